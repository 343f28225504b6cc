"""Scores of single answers, without a model: ROUGE and choices. Intervals are in `intervals`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from evaluate import MetricInfo

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge(evaluate.Metric):
    """ROUGE-1, -2, -L and -Lsum of each row, by `rouge_score`.

    `evaluate.load("rouge")` fetches its script from the Hub and does not stem unless told; with
    `use_stemmer=True` and `use_aggregator=False` its numbers are these. The aggregate there is the
    median of an unseeded bootstrap; here a mean over rows is a plain mean.
    """

    def _info(self) -> MetricInfo:
        return MetricInfo(
            description="F-measure of shared words, word pairs and longest common subsequence, for each row.",
            citation='Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004',
            inputs_description=(
                "predictions: written texts; references: the texts of the same rows; use_stemmer: Porter stemmer. "
                "Words are runs of ASCII letters and digits in lower case, the tokenizer of rouge_score; sentences "
                "of rougeLsum are lines."
            ),
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], use_stemmer: bool = True
    ) -> dict[str, list[float]]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=use_stemmer)
        rows = [scorer.score(target, written) for written, target in zip(predictions, references, strict=True)]
        return {kind: [row[kind].fmeasure for row in rows] for kind in ROUGE_TYPES}


def rouge_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F-measures of each row, each of shape (n,); see `Rouge`."""
    if not answers:
        return {kind: [] for kind in ROUGE_TYPES}
    found: dict[str, list[float]] = Rouge(keep_in_memory=True).compute(predictions=answers, references=references)
    return found


_OPTION = re.compile(r"(?:^|(?<=[\s,;(\[]))\(?([A-Ha-h])[).:]\s*(?=\S)")
_STATED = re.compile(
    r"^\W*(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)?\s*(?:is)?\s*:?\s*", re.I
)


def parse_options(text: str) -> dict[str, str]:
    """Options of a multiple-choice question by their letter, such as `A) radius B) ulna`.

    Returns:
        Texts by capital letter; empty unless there are at least two, lettered from A on without a gap.
    """
    marks = list(_OPTION.finditer(text))
    letters = [mark[1].upper() for mark in marks]
    if len(marks) < 2 or letters != [chr(ord("A") + place) for place in range(len(marks))]:
        return {}
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    texts = [text[mark.end() : end].strip(" \n\t,;()[]") for mark, end in zip(marks, ends, strict=True)]
    return dict(zip(letters, texts, strict=True))


def chosen_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The one option that an answer chooses: by its letter at the beginning, or by its text anywhere.

    Args:
        answer: free text.
        options: as `parse_options` returns them.

    Returns:
        A capital letter, or None if no option is named or more than one is.
    """
    said = answer[_STATED.match(answer).end() :]  # type: ignore[union-attr]  # matches the empty text as well
    lettered = re.match(r"\(?([A-Ha-h])(?:[).:]|\s*$)", said)
    if lettered and lettered[1].upper() in options:
        return lettered[1].upper()
    named = [
        letter
        for letter, text in options.items()
        if text and re.search(rf"(?<!\w){re.escape(text.rstrip('.').casefold())}(?!\w)", answer.casefold())
    ]
    return named[0] if len(named) == 1 else None


def choice_scores(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
    """1 where an answer chooses the option that the reference chooses, 0 where not, None for other rows.

    Args:
        rows: with `instruction`, `input` and `output`.
        answers: written, in the same order.
    """
    scores: list[float | None] = []
    for row, answer in zip(rows, answers, strict=True):
        options = parse_options(f"{row['instruction']}\n{row['input']}")
        right = chosen_option(row["output"], options) if options else None
        scores.append(None if right is None else float(chosen_option(answer, options) == right))
    return scores
