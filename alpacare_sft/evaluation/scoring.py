"""Answers and references → a score for every row, means with intervals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alpacare_sft.data.report import repetition
from alpacare_sft.intervals import format_interval, paired_shares, paired_summary, verdict
from alpacare_sft.metrics import choice_scores, rouge_scores
from alpacare_sft.similarity import similarities

if TYPE_CHECKING:
    from alpacare_sft.evaluation.answering import AnswerSheet, Questions
    from alpacare_sft.recipe.sections import EvaluateSection

# A row's scores: by metric, by model (`base`, `adapter`); a row without a value has no part in the metric.
RowScores = dict[str, dict[str, list[float | None]]]
REPEATED_FROM = 0.5
WHAT_IT_MEASURES = "This is closeness of wording to the references. It does not measure medical correctness."


@dataclass(frozen=True)
class Meaning:
    """What a metric is, which side is the better one (`lower`, `higher`, or None), and whether rows score 0 or 1."""

    label: str
    better: str | None
    is_share: bool = False


MEANINGS = {
    "loss": Meaning("loss on the references, teacher forced, nats a token", "lower"),
    "perplexity": Meaning("perplexity on the references, teacher forced", "lower"),
    "rouge1": Meaning("ROUGE-1 F-measure", "higher"),
    "rouge2": Meaning("ROUGE-2 F-measure", "higher"),
    "rougeL": Meaning("ROUGE-L F-measure", "higher"),
    "rougeLsum": Meaning("ROUGE-Lsum F-measure", "higher"),
    "similarity": Meaning("BERTScore F-measure by all-MiniLM-L6-v2, likeness of tokens in context", "higher"),
    "length_ratio": Meaning("words of the answer over words of the reference", None),
    "cut_share": Meaning("share of answers cut at generate.max_new_tokens", "lower", is_share=True),
    "run_on_share": Meaning("share of answers that went on with a new question, cut there", "lower", is_share=True),
    "empty_share": Meaning("share of empty answers", "lower", is_share=True),
    "repeated_share": Meaning("share of answers of which half or more repeats itself", "lower", is_share=True),
    "choice_accuracy": Meaning(
        "share of multiple-choice rows with the right option, as far as a pattern can read it", "higher", is_share=True
    ),
    "general_loss": Meaning("loss on general rows that are not medical (forgetting check)", "lower"),
}


@dataclass(frozen=True)
class Finding:
    """One clause of the verdict: what a score is called, and what each outcome means in words."""

    name: str
    higher: str
    lower: str
    none: str


FINDINGS = {
    "rougeL": Finding(
        "ROUGE-L",
        higher="the adapter's answers share more wording with the references than the base's",
        lower="the adapter's answers share less wording with the references than the base's",
        none="no difference in wording shared with the references was shown",
    ),
    "loss": Finding(
        "loss",
        higher="the adapter predicts the references worse",
        lower="the adapter predicts the references better",
        none="no difference in predicting the references was shown",
    ),
    "general_loss": Finding(
        "loss",
        higher="it predicts rows that are not medical worse, a sign of forgetting",
        lower="it predicts rows that are not medical better",
        none="no change on rows that are not medical was shown",
    ),
}


def score_rows(
    rows: Sequence[Mapping[str, Any]], sheets: Mapping[str, AnswerSheet], questions: Questions, wanted: Sequence[str]
) -> RowScores:
    """Every score of every row.

    Args:
        rows: with `instruction`, `input` and `output`, the reference.
        sheets: filled, by model; they may hold more than is asked for now.
        questions: what is asked for.
        wanted: metrics of the recipe, of which `similarity` is asked for here.

    Returns:
        By metric and model, values in the order of the rows, shape (n,); `general_loss` is apart.
    """
    scores: RowScores = {}
    for who, sheet in sheets.items():
        if questions.wants_losses:
            scores.setdefault("loss", {})[who] = [sheet.losses[row] for row in range(len(rows))]
        if questions.wants_answers:
            for name, values in _score_answers(rows, sheet).items():
                scores.setdefault(name, {})[who] = values
            if "similarity" in wanted:
                texts = [sheet.answers[row].text for row in range(len(rows))]
                scores.setdefault("similarity", {})[who] = [*similarities(texts, [row["output"] for row in rows])]
    if all(value is None for value in scores.get("choice_accuracy", {}).get("adapter", [])):
        scores.pop("choice_accuracy", None)
    return scores


def _score_answers(rows: Sequence[Mapping[str, Any]], sheet: AnswerSheet) -> dict[str, list[Any]]:
    answers = [sheet.answers[row] for row in range(len(rows))]
    texts, references = [answer.text for answer in answers], [row["output"] for row in rows]
    ratios = [len(text.split()) / max(1, len(target.split())) for text, target in zip(texts, references, strict=True)]
    return {
        **rouge_scores(texts, references),
        "length_ratio": ratios,
        "cut_share": [float(answer.end == "length") for answer in answers],
        "run_on_share": [float(answer.end == "run_on") for answer in answers],
        "empty_share": [float(not text) for text in texts],
        "repeated_share": [float(repetition(text) >= REPEATED_FROM) for text in texts],
        "choice_accuracy": choice_scores(rows, texts),
    }


def summarize_scores(
    scores: RowScores, num_tokens: Sequence[int], evaluate: EvaluateSection, keep: Sequence[int] | None = None
) -> dict[str, dict[str, Any]]:
    """Means, intervals and verdicts of every metric.

    Args:
        scores: as `score_rows` returns them.
        num_tokens: learnt tokens of each reference, shape (n,): the loss weighs each token alike.
        evaluate: confidence and number of resamples.
        keep: indices of the rows to use, all by default.

    Returns:
        By metric: `n`, `label`, `better`, `base`, `adapter` and `difference` (see `paired_summary`), `verdict`.
    """
    places = range(len(num_tokens)) if keep is None else keep
    found = {}
    for name, sides in scores.items():
        used = [place for place in places if sides["adapter"][place] is not None]
        if not used:
            continue
        values = {who: [column[place] for place in used] for who, column in sides.items()}
        weights = [num_tokens[place] for place in used] if name == "loss" else None
        found[name] = summarize(name, values, evaluate, weights)
        if name == "loss":
            found["perplexity"] = summarize("perplexity", values, evaluate, weights)
    return found


def summarize(
    name: str, values: Mapping[str, Any], evaluate: EvaluateSection, weights: Sequence[int] | None = None
) -> dict[str, Any]:
    """One metric's part of `scores.json`."""
    meaning = MEANINGS[name]
    confidence, samples = evaluate.confidence, evaluate.bootstrap_samples
    if meaning.is_share:
        parts = paired_shares(values, confidence, samples)
    else:
        transform = np.exp if name == "perplexity" else None
        parts = paired_summary(values, confidence, samples, weights=weights, transform=transform)
    told = {"n": len(values["adapter"]), "label": meaning.label, "better": meaning.better, **parts}
    if "difference" in parts:
        told["verdict"] = verdict(parts["difference"], meaning.better)
    return told


def verdict_sentence(metrics: Mapping[str, Mapping[str, Any]], num_rows: int, rows_told: str) -> str:
    """What was found, in words, with its uncertainty, and what it is not."""
    parts = [(finding, metrics[name]) for name, finding in FINDINGS.items() if name in metrics]
    began = f"On {num_rows:,} {rows_told}"
    if "difference" in next(iter(metrics.values())):
        told = f"{began}: {'; '.join(_clause(finding, part) for finding, part in parts)}."
    else:
        alone = "; ".join(f"{finding.name} {format_interval(part['adapter'], '.3f')}" for finding, part in parts)
        told = f"{began} the adapter alone: {alone}. No base was scored, so what training changed is not told."
    few = " With so few rows the intervals themselves are uncertain." if num_rows < 30 else ""
    return f"{told} {WHAT_IT_MEASURES}{few}"


def _clause(finding: Finding, part: Mapping[str, Any]) -> str:
    side = part["verdict"].split(" ", 1)[0]
    words = {"higher": finding.higher, "lower": finding.lower}.get(side, finding.none)
    means = f"{part['base']['mean']:.3f} → {part['adapter']['mean']:.3f}"
    return f"{words} ({finding.name} {means}, difference {format_interval(part['difference'], '+.3f')})"
