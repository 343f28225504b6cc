"""Answers and references → a score for every row, means with intervals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from alpacare_sft.data.text import repetition, split_words
from alpacare_sft.evaluation.intervals import format_interval, judge_difference, paired_shares, paired_summary
from alpacare_sft.evaluation.metrics import UNICODE, choice_scores, rouge_scores, rouge_tokenizer
from alpacare_sft.evaluation.similarity import similarities

if TYPE_CHECKING:
    from alpacare_sft.evaluation.answering import EvaluationRequests, ModelResponses
    from alpacare_sft.evaluation.generation import Answer
    from alpacare_sft.recipe.sections import EvaluateSection

# A row's scores: by metric, by model (`base`, `adapter`); a row without a value has no part in the metric.
RowScores = dict[str, dict[str, list[float | None]]]
REPEATED_FROM = 0.5
FEW_ROWS = 30
WHAT_IT_MEASURES = "This is closeness of wording to the references. It does not measure medical correctness."


@dataclass(frozen=True)
class AnsweredRows:
    """Rows and one model's answers to them, with what several scores are read from."""

    rows: Sequence[Mapping[str, Any]]
    answers: Sequence[Answer]

    @cached_property
    def texts(self) -> list[str]:
        """Answers as written."""
        return [answer.text for answer in self.answers]

    @cached_property
    def references(self) -> list[str]:
        """Answers of the data set."""
        return [row["output"] for row in self.rows]

    @cached_property
    def rouge(self) -> dict[str, list[float]]:
        """See `rouge_scores`."""
        return rouge_scores(self.texts, self.references)

    @cached_property
    def choices(self) -> dict[str, list[float | None]]:
        """See `choice_scores`."""
        return choice_scores(self.rows, self.texts)

    @cached_property
    def length_ratios(self) -> list[float]:
        """Words of the answer over words of the reference."""
        split = split_words if rouge_tokenizer(self.references) == UNICODE else str.split
        pairs = zip(self.texts, self.references, strict=True)
        return [len(split(text)) / max(1, len(split(reference))) for text, reference in pairs]

    def ends(self, end: str) -> list[float]:
        """1 for each answer that ended so."""
        return [float(answer.end == end) for answer in self.answers]


@dataclass(frozen=True)
class Score:
    """One score, in all that table, page, card and figures need to know.

    Attributes:
        label: what it is.
        better: `lower` or `higher`; None where neither side is the better one.
        of: its value for each row, shape (n,), None where a row has none; a score without is not of single answers.
        is_share: rows score 0 or 1.
        is_main: one of the primary metrics, which `intervals.SCOPE` names.
    """

    label: str
    better: str | None
    of: Callable[[AnsweredRows], Sequence[float | None]] | None = None
    is_share: bool = False
    is_main: bool = False


SCORES = {
    "rougeL": Score("ROUGE-L F-measure", "higher", lambda one: one.rouge["rougeL"], is_main=True),
    "loss": Score("loss on the references, teacher forced, nats a token", "lower", is_main=True),
    "perplexity": Score("perplexity on the references, teacher forced", "lower"),
    "rouge1": Score("ROUGE-1 F-measure", "higher", lambda one: one.rouge["rouge1"]),
    "rouge2": Score("ROUGE-2 F-measure", "higher", lambda one: one.rouge["rouge2"]),
    "rougeLsum": Score("ROUGE-Lsum F-measure", "higher", lambda one: one.rouge["rougeLsum"]),
    "similarity": Score("BERTScore F-measure by all-MiniLM-L6-v2, likeness of tokens in context", "higher"),
    "length_ratio": Score("words of the answer over words of the reference", None, lambda one: one.length_ratios),
    "cut_share": Score(
        "share of answers cut at generate.max_new_tokens", "lower", lambda one: one.ends("length"), is_share=True
    ),
    "run_on_share": Score(
        "share of answers that went on with a new question, cut there", "lower", lambda one: one.ends("run_on"),
        is_share=True,
    ),
    "empty_share": Score(
        "share of empty answers", "lower", lambda one: [float(not text) for text in one.texts], is_share=True
    ),
    "repeated_share": Score(
        "share of answers in which at least half of the four-word sequences repeat an earlier one", "lower",
        lambda one: [float(repetition(text) >= REPEATED_FROM) for text in one.texts], is_share=True,
    ),
    "choice_accuracy": Score(
        "share of multiple-choice rows with the right option; an answer whose option cannot be read counts as wrong",
        "higher", lambda one: one.choices["choice_accuracy"], is_share=True,
    ),
    "choice_unread": Score(
        "share of multiple-choice rows from whose answer no one option can be read", "lower",
        lambda one: one.choices["choice_unread"], is_share=True,
    ),
    "general_loss": Score("loss on general rows that are not medical (forgetting check)", "lower"),
}  # fmt: skip
"""Every score, in the order in which they are shown; a new one is an entry here."""


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
    rows: Sequence[Mapping[str, Any]],
    responses: Mapping[str, ModelResponses],
    requests: EvaluationRequests,
    wanted: Sequence[str],
) -> RowScores:
    """Every score of every row.

    Args:
        rows: with `instruction`, `input` and `output`, the reference.
        responses: filled, by model; they may hold more than is asked for now.
        requests: what is asked for.
        wanted: metrics of the recipe, of which `similarity` is computed here.

    Returns:
        By metric and model, values in the order of the rows, shape (n,); `general_loss` is apart.
    """
    scores: RowScores = {}
    places = range(len(rows))
    if requests.wants_losses:
        scores["loss"] = {who: [own.losses[row] for row in places] for who, own in responses.items()}
    if requests.wants_answers:
        answered = {who: AnsweredRows(rows, [own.answers[row] for row in places]) for who, own in responses.items()}
        for name, score in SCORES.items():
            if score.of:
                scores[name] = {who: [*score.of(one)] for who, one in answered.items()}
        if "similarity" in wanted:
            texts = {who: one.texts for who, one in answered.items()}
            values = similarities(texts, [row["output"] for row in rows])
            scores["similarity"] = {who: [*column] for who, column in values.items()}
    return {name: sides for name, sides in scores.items() if any(value is not None for value in sides["adapter"])}


def summarize_scores(
    scores: RowScores,
    num_tokens: Sequence[int],
    evaluate: EvaluateSection,
    keep: Sequence[int] | None = None,
    *,
    unseen: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Means, intervals and verdicts of every metric, in the order of `SCORES`.

    Args:
        scores: as `score_rows` returns them.
        num_tokens: tokens in the loss of each reference, shape (n,): the loss weighs each token alike.
        evaluate: confidence and number of resamples.
        keep: indices of the rows to use, all by default.
        unseen: why a score that could not see the words has no verdict, by its name (`metrics.unseen_scores`).

    Returns:
        By metric: `n`, `label`, `better`, `main`, `base`, `adapter` and `difference` (see `paired_summary`), and
        with a difference `shown`, `side` and `verdict` (see `judge_difference`); `unseen` where there is no verdict.
    """
    places = range(len(num_tokens)) if keep is None else keep
    metrics = {}
    for name, sides in scores.items():
        used = [place for place in places if sides["adapter"][place] is not None]
        if not used:
            continue
        values = {who: [column[place] for place in used] for who, column in sides.items()}
        weights = [num_tokens[place] for place in used] if name == "loss" else None
        metrics[name] = summarize(name, values, evaluate, weights)
        if name == "loss":
            metrics["perplexity"] = summarize("perplexity", values, evaluate, weights)
    for name in (unseen or {}).keys() & metrics.keys():
        metrics[name] |= _without_verdict(metrics[name], (unseen or {})[name])
    return {name: metrics[name] for name in SCORES if name in metrics}


def _without_verdict(part: Mapping[str, Any], reason: str) -> dict[str, Any]:
    judged = {"shown": False, "side": None, "verdict": f"no verdict: {reason}"} if "difference" in part else {}
    return {"unseen": reason, **judged}


def summarize(
    name: str, values: Mapping[str, Any], evaluate: EvaluateSection, weights: Sequence[int] | None = None
) -> dict[str, Any]:
    """One metric's part of `scores.json`."""
    score = SCORES[name]
    confidence, samples = evaluate.confidence, evaluate.bootstrap_samples
    if score.is_share:
        parts = paired_shares(values, confidence)
    else:
        transform = np.exp if name == "perplexity" else None
        parts = paired_summary(values, confidence, samples, weights=weights, transform=transform)
    about = {"n": len(values["adapter"]), "label": score.label, "better": score.better, "main": score.is_main}
    judged = judge_difference(parts["difference"], score.better) if "difference" in parts else {}
    return {**about, **parts, **judged}


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
