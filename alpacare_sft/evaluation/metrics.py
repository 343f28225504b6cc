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
# In "Vitamin A is best" and "A bone" no option is named, so a letter needs its place or its word.
_AFTER = r"(?=[).:,;]|\s*(?:\n|$)|\s+[-–—]|\s+(?:because|since|as)\b)"
_ALONE = r"(?!\W*\s(?:or|and|nor)\b|\s*[,/&]\s*(?:(?:or|and)\s+)?(?:option\s+)?\(?[A-Ha-h]\b)"
_IS_RIGHT = r"\)?\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"
_PREFIX = re.compile(
    r"\W*(?:the\s+|my\s+|it\s+)?(?:(?:most\s+likely|correct|right|best|final)\s+)?(?:answer|option|choice)?\s*(?:is)?\s*:?\s*"
    r"(?:option\s+)?\(?",
    re.I,
)
_BEGINS = re.compile(rf"([A-H]){_ALONE}(?:{_AFTER}|{_IS_RIGHT})|([a-h])(?:[).:]|\s*(?:\n|$))")
_STATES = re.compile(
    rf"\b(?i:answer|choice)\s+is\s*:?\s*(?i:option\s+)?\(?([A-H]){_ALONE}{_AFTER}"
    rf"|\b(?i:answer|choice|option)\s+\(?([A-H]){_IS_RIGHT}"
)
_EMPHASIS = re.compile(r"[*_`]")
_NEGATED = re.compile(
    r"\b(?:not|no|neither|nor|never|cannot|except|excluding|unlike|rather than|instead of|without|wrong|incorrect)\b"
    r"|n['’]t\b",
    re.I,
)
_REJECTED = re.compile(r"\s*(?:is|are|was|were)(?:n['’]t|\s+(?:not|never|wrong|incorrect|false))\b", re.I)


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
    """The one option that an answer chooses: by its letter, or by its text where it is not denied.

    A letter counts at the beginning, or where the answer says that it is the answer. In doubt none was chosen.

    Args:
        answer: free text, with or without marks of emphasis.
        options: as `parse_options` returns them.

    Returns:
        A capital letter, or None if no option is named or more than one is.
    """
    said = _EMPHASIS.sub("", answer)
    letters = _letters(said, options) & set(options)
    if letters:
        return letters.pop() if len(letters) == 1 else None
    named = [letter for letter, text in options.items() if _names(said, text)]
    return named[0] if len(named) == 1 else None


def _letters(said: str, options: Mapping[str, str]) -> set[str]:
    """Letters that a text names as its choice; where it repeats the options, that at its beginning is none."""
    for text in options.values():
        if re.match(r"[A-H]\.\s", text):  # the E of "E. coli" is no letter of an option
            said = said.replace(text, "…")
    found = [match for match in _STATES.finditer(said) if not _denies(said, match)]
    prefix = _PREFIX.match(said)
    if prefix and not parse_options(said) and (begins := _BEGINS.match(said, prefix.end())):
        found.append(begins)
    return {(match[1] or match[2]).upper() for match in found}


def _bare(text: str) -> str:
    return _EMPHASIS.sub("", text).rstrip(".").casefold()


def _names(said: str, text: str) -> bool:
    """Whether a text names an option's somewhere without denying it."""
    said, text = said.casefold(), _bare(text)
    found = re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", said) if text else ()
    return any(not _denies(said, match) for match in found)


def _denies(said: str, match: re.Match[str]) -> bool:
    """Whether the sentence denies what was matched in it: before it, up to a "but", or right after it."""
    before = re.split(r"[.!?;\n]|\bbut\b", said[: match.start()])[-1]
    return bool(_NEGATED.search(before) or _REJECTED.match(said, match.end()))


def choice_scores(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> dict[str, list[float | None]]:
    """Whether an answer chooses the option that the reference chooses, and whether none could be read from it.

    Args:
        rows: with `instruction`, `input` and `output`.
        answers: written, in the same order.

    Returns:
        `choice_accuracy` and `choice_unread`, each 0 or 1 a row, shape (n,); None for rows without options,
        or whose reference chooses none.
    """
    scores: dict[str, list[float | None]] = {"choice_accuracy": [], "choice_unread": []}
    for row, answer in zip(rows, answers, strict=True):
        options = parse_options(f"{row['instruction']}\n{row['input']}")
        right = chosen_option(row["output"], options) if options else None
        chosen = chosen_option(answer, options) if right else None
        scores["choice_accuracy"].append(float(chosen == right) if right else None)
        scores["choice_unread"].append(float(chosen is None) if right else None)
    return scores
