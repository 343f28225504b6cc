"""Answers and references → a score for every row, means with intervals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alpacare_sft.data.report import repetition
from alpacare_sft.data.words import split_words
from alpacare_sft.evaluation.intervals import format_interval, judge_difference, paired_shares, paired_summary
from alpacare_sft.evaluation.metrics import UNICODE, choice_scores, rouge_scores, rouge_tokenizer
from alpacare_sft.evaluation.similarity import similarities

if TYPE_CHECKING:
    from alpacare_sft.evaluation.answering import AnswerSheet, Questions
    from alpacare_sft.recipe.sections import EvaluateSection

# A row's scores: by metric, by model (`base`, `adapter`); a row without a value has no part in the metric.
RowScores = dict[str, dict[str, list[float | None]]]
REPEATED_FROM = 0.5
FEW_ROWS = 30
WHAT_IT_MEASURES = "This is closeness of wording to the references. It does not measure medical correctness."


@dataclass(frozen=True)
class Meaning:
    """What a metric is, which side is the better one (`lower`, `higher`, or None), and whether rows score 0 or 1."""

    label: str
    better: str | None
    is_share: bool = False
    is_main: bool = False  # of the few to go by, named in `intervals.SCOPE`


MEANINGS = {
    "rougeL": Meaning("ROUGE-L F-measure", "higher", is_main=True),
    "loss": Meaning("loss on the references, teacher forced, nats a token", "lower", is_main=True),
    "perplexity": Meaning("perplexity on the references, teacher forced", "lower"),
    "rouge1": Meaning("ROUGE-1 F-measure", "higher"),
    "rouge2": Meaning("ROUGE-2 F-measure", "higher"),
    "rougeLsum": Meaning("ROUGE-Lsum F-measure", "higher"),
    "similarity": Meaning("BERTScore F-measure by all-MiniLM-L6-v2, likeness of tokens in context", "higher"),
    "length_ratio": Meaning("words of the answer over words of the reference", None),
    "cut_share": Meaning("share of answers cut at generate.max_new_tokens", "lower", is_share=True),
    "run_on_share": Meaning("share of answers that went on with a new question, cut there", "lower", is_share=True),
    "empty_share": Meaning("share of empty answers", "lower", is_share=True),
    "repeated_share": Meaning(
        "share of answers in which at least half of the four-word sequences repeat an earlier one",
        "lower", is_share=True,
    ),
    "choice_accuracy": Meaning(
        "share of multiple-choice rows with the right option; an answer whose option cannot be read counts as wrong",
        "higher", is_share=True,
    ),
    "choice_unread": Meaning(
        "share of multiple-choice rows from whose answer no one option can be read", "lower", is_share=True
    ),
    "general_loss": Meaning("loss on general rows that are not medical (forgetting check)", "lower"),
}  # fmt: skip
"""In the order in which scores are told."""


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
}
GENERAL_FINDING = Finding(
    "loss",
    higher="the adapter predicts the references worse, a sign of forgetting",
    lower="the adapter predicts the references better",
    none="no difference in predicting the references was shown",
)


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
    if questions.wants_answers and "similarity" in wanted:
        texts = {who: [sheet.answers[row].text for row in range(len(rows))] for who, sheet in sheets.items()}
        found = similarities(texts, [row["output"] for row in rows])
        scores["similarity"] = {who: [*values] for who, values in found.items()}
    return {name: sides for name, sides in scores.items() if any(value is not None for value in sides["adapter"])}


def _score_answers(rows: Sequence[Mapping[str, Any]], sheet: AnswerSheet) -> dict[str, list[Any]]:
    answers = [sheet.answers[row] for row in range(len(rows))]
    texts, references = [answer.text for answer in answers], [row["output"] for row in rows]
    split = split_words if rouge_tokenizer(references) == UNICODE else str.split
    lengths = [[len(split(text)) for text in side] for side in (texts, references)]
    ratios = [written / max(1, expected) for written, expected in zip(*lengths, strict=True)]
    return {
        **rouge_scores(texts, references),
        "length_ratio": ratios,
        "cut_share": [float(answer.end == "length") for answer in answers],
        "run_on_share": [float(answer.end == "run_on") for answer in answers],
        "empty_share": [float(not text) for text in texts],
        "repeated_share": [float(repetition(text) >= REPEATED_FROM) for text in texts],
        **choice_scores(rows, texts),
    }


def summarize_scores(
    scores: RowScores,
    num_tokens: Sequence[int],
    evaluate: EvaluateSection,
    keep: Sequence[int] | None = None,
    *,
    unseen: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Means, intervals and verdicts of every metric, in the order of `MEANINGS`.

    Args:
        scores: as `score_rows` returns them.
        num_tokens: learnt tokens of each reference, shape (n,): the loss weighs each token alike.
        evaluate: confidence and number of resamples.
        keep: indices of the rows to use, all by default.
        unseen: why a score that could not see the words has no verdict, by its name (`metrics.unseen_scores`).

    Returns:
        By metric: `n`, `label`, `better`, `main`, `base`, `adapter` and `difference` (see `paired_summary`), and
        with a difference `shown`, `side` and `verdict` (see `judge_difference`); `unseen` where there is no verdict.
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
    for name in (unseen or {}).keys() & found.keys():
        found[name] |= _without_verdict(found[name], (unseen or {})[name])
    return {name: found[name] for name in MEANINGS if name in found}


def _without_verdict(part: Mapping[str, Any], reason: str) -> dict[str, Any]:
    judged = {"shown": False, "side": None, "verdict": f"no verdict: {reason}"} if "difference" in part else {}
    return {"unseen": reason, **judged}


def summarize(
    name: str, values: Mapping[str, Any], evaluate: EvaluateSection, weights: Sequence[int] | None = None
) -> dict[str, Any]:
    """One metric's part of `scores.json`."""
    meaning = MEANINGS[name]
    confidence, samples = evaluate.confidence, evaluate.bootstrap_samples
    if meaning.is_share:
        parts = paired_shares(values, confidence)
    else:
        transform = np.exp if name == "perplexity" else None
        parts = paired_summary(values, confidence, samples, weights=weights, transform=transform)
    told = {"n": len(values["adapter"]), "label": meaning.label, "better": meaning.better, "main": meaning.is_main}
    judged = judge_difference(parts["difference"], meaning.better) if "difference" in parts else {}
    return {**told, **parts, **judged}


def verdict_sentence(metrics: Mapping[str, Mapping[str, Any]], num_rows: int, rows_told: str) -> str:
    """What was found, in words, with its uncertainty, and what it is not.

    Args:
        metrics: as `summarize_scores` returns them, and `general_loss`.
        num_rows: scored rows, without the general ones.
        rows_told: where they come from.
    """
    found = [(finding, metrics[name]) for name, finding in FINDINGS.items() if name in metrics]
    told = [_told_of(f"{num_rows:,} {rows_told}", found)] if found else []
    if general := metrics.get("general_loss"):
        told.append(_told_of(f"{general['n']:,} rows that are not medical", [(GENERAL_FINDING, general)]))
    if not any("difference" in part for part in metrics.values()):
        told.append("The base was not scored, so this does not show what training changed.")
    if found:
        told.append(WHAT_IT_MEASURES)
    if found and num_rows < FEW_ROWS:
        told.append("With so few rows the intervals themselves are uncertain.")
    return " ".join(told)


def _told_of(rows: str, found: Sequence[tuple[Finding, Mapping[str, Any]]]) -> str:
    if all("difference" in part for _, part in found):
        return f"On {rows}: {'; '.join(_clause(finding, part) for finding, part in found)}."
    alone = "; ".join(
        f"{finding.name} {format_interval(part['adapter'], '.3f')}"
        + (f" ({reason})" if (reason := part.get("unseen")) else "")
        for finding, part in found
    )
    return f"On {rows} the adapter alone: {alone}."


def _clause(finding: Finding, part: Mapping[str, Any]) -> str:
    words = {"higher": finding.higher, "lower": finding.lower, None: finding.none}[part["side"]]
    if reason := part.get("unseen"):
        return f"{finding.name} gives no verdict: {reason}"
    means = f"{part['base']['mean']:.3f} → {part['adapter']['mean']:.3f}"
    return f"{words} ({finding.name} {means}, difference {format_interval(part['difference'], '+.3f')})"
