"""Scores of single answers, without a model: ROUGE and choices. Intervals are in `intervals`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import evaluate
from datasets import Features, Value
from evaluate import MetricInfo

from alpacare_sft.data.text import find_words

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
DEFAULT, UNICODE = "rouge_score default", "Unicode words"

# Decided here: with one letter in twenty lost, most words of ordinary length are still whole. English, with an accent
# or a µ here and there, loses far less; Vietnamese and Czech lose more, other scripts all.
LOST_AT_MOST = 0.05


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
                "predictions: written texts; references: the texts of the same rows; use_stemmer: Porter stemmer of "
                "the default tokenizer. Words are runs of ASCII letters and digits in lower case, the tokenizer of "
                "rouge_score, or words of every script where the references need them (`rouge_tokenizer`); "
                "sentences of rougeLsum are lines."
            ),
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], use_stemmer: bool = True
    ) -> dict[str, list[float]]:
        from rouge_score.rouge_scorer import RougeScorer

        tokenizer = _UnicodeWords() if rouge_tokenizer(references) == UNICODE else None
        scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=use_stemmer, tokenizer=tokenizer)
        rows = [scorer.score(target, written) for written, target in zip(predictions, references, strict=True)]
        return {kind: [row[kind].fmeasure for row in rows] for kind in ROUGE_TYPES}


def rouge_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F-measures of each row, each of shape (n,); see `Rouge`."""
    if not answers:
        return {kind: [] for kind in ROUGE_TYPES}
    found: dict[str, list[float]] = Rouge(keep_in_memory=True).compute(predictions=answers, references=references)
    return found


class _UnicodeWords:
    """A tokenizer as `rouge_score` takes it."""

    def tokenize(self, text: str) -> list[str]:
        return find_words(text)


def rouge_tokenizer(references: Sequence[str]) -> str:
    """What cuts the texts of all rows into words: `UNICODE` where the default loses too much of the references."""
    return UNICODE if _lost_share(tuple(references)) > LOST_AT_MOST else DEFAULT


@lru_cache(maxsize=1)  # every score of an evaluation asks about the same references
def _lost_share(texts: tuple[str, ...]) -> float:
    """Share of the letters, marks and digits that the default tokenizer of `rouge_score` drops."""
    letters = sum(unicodedata.category(character)[0] in "LMN" for text in texts for character in text)
    retained = sum(len(re.findall("[a-z0-9]", text.lower())) for text in texts)
    return max(0, letters - retained) / letters if letters else 0.0


def describe_rouge(references: Sequence[str], answers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How ROUGE sees the texts.

    Args:
        references: texts, shape (n,).
        answers: by model, in the same order.

    Returns:
        `tokenizer`, the `lost_share` of the references' letters that decided it, `partly_seen` rows with a letter or
        sign that it drops (5 µg and 5 g are one to the default), and `note`, the same in words, or None.
    """
    tokenizer, lost = rouge_tokenizer(references), _lost_share(tuple(references))
    rows = zip(references, *answers.values(), strict=True) if tokenizer == DEFAULT else ()
    partly_seen = sum(not all(map(_is_whole, texts)) for texts in rows)
    note = None
    if tokenizer == UNICODE:
        note = (
            "ROUGE compares words of every script (characters in Chinese, Japanese, Korean, Thai and the like): the "
            f"default tokenizer of rouge_score drops {lost:.0%} of the letters of the references."
        )
    elif partly_seen:
        note = (
            f"ROUGE compares words of a-z and 0-9. {partly_seen:,} of {len(references):,} rows have other letters or "
            "signs, which it does not see: 5 µg and 5 g are equal to it."
        )
    return {"tokenizer": tokenizer, "lost_share": lost, "partly_seen": partly_seen, "note": note}


def _is_whole(text: str) -> bool:
    """Whether the default tokenizer keeps every letter and sign of a text."""
    return all(re.fullmatch("[a-z0-9.,]+", word) for word in find_words(text.lower()))


def unseen_scores(references: Sequence[str]) -> dict[str, str]:
    """Why a score that compares words has no verdict, by score: it could not see the words of the references."""
    reasons = {}
    is_seen = find_words if rouge_tokenizer(references) == UNICODE else re.compile("[a-zA-Z0-9]").search
    unseen = sum(not is_seen(text) for text in references)
    if unseen > LOST_AT_MOST * len(references):
        told = f"{unseen:,} of {len(references):,} references have no word that ROUGE sees"
        reasons = dict.fromkeys(ROUGE_TYPES, told)
    names = [unicodedata.name(letter, "") for text in references for letter in text if letter.isalpha()]
    foreign = sum(not name.startswith(("LATIN", "MICRO")) for name in names)
    if foreign > LOST_AT_MOST * len(names):
        reasons["similarity"] = f"its model is of English, {foreign / len(names):.0%} of the letters are not Latin"
    return reasons


_OPTION = re.compile(r"(?:^|(?<=[\s,;(\[]))\(?([A-Za-z])([).:])\s*(?=\S)")
# In "Vitamin A is best" and "A bone" no option is named, so a letter needs its place or its word.
_AFTER = r"(?=[).:,;]|\s*(?:\n|$)|\s+[-–—]|\s+(?:because|since|as)\b)"
_IS_RIGHT = r"\)?\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"
_PREFIX = re.compile(
    r"\W*(?:the\s+|my\s+|it\s+)?(?:(?:most\s+likely|correct|right|best|final)\s+)?(?:answer|option|choice)?\s*(?:is)?\s*:?\s*"
    r"(?:option\s+)?\(?",
    re.I,
)
_EMPHASIS = re.compile(r"[*_`]")
_NEGATED = re.compile(
    r"\b(?:not|no|neither|nor|never|cannot|except|excluding|unlike|rather than|instead of|without|wrong|incorrect)\b"
    r"|n['’]t\b",
    re.I,
)
_REJECTED = re.compile(r"\s*(?:is|are|was|were)(?:n['’]t|\s+(?:not|never|wrong|incorrect|false))\b", re.I)


@cache
def _choice_patterns(last: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What begins with a letter up to `last`, and what states one as its answer."""
    upper, lower = f"[A-{last}]", f"[a-{last.lower()}]"
    pronoun = r"I(?:['’]|\s+(?!(?:or|and|nor)\b)[a-z])"  # "B, I think" names one option
    another = rf"(?!{pronoun})(?:{upper}|{lower})\b"
    alone = rf"(?!\W*\s(?:or|and|nor)\b|\s*[,/&]\s*(?:(?:or|and)\s+)?(?:option\s+)?\(?{another})"
    begins = rf"({upper}){alone}(?:{_AFTER}|{_IS_RIGHT})|({lower})(?:[).:]|\s*(?:\n|$))"
    states = (
        rf"\b(?i:answer|choice)\s+is\s*:?\s*(?i:option\s+)?\(?({upper}){alone}{_AFTER}"
        rf"|\b(?i:answer|choice|option)\s+\(?({upper}){_IS_RIGHT}"
    )
    return re.compile(begins), re.compile(states)


def parse_options(text: str) -> dict[str, str]:
    """Options of a multiple-choice question by their letter, such as `A) radius B) ulna`.

    Returns:
        Texts by capital letter; empty unless there are at least two, lettered from A on without a gap.
    """
    marks = list(_OPTION.finditer(text))
    if [mark[1].upper() for mark in marks] != [chr(ord("A") + place) for place in range(len(marks))]:
        marks = _marks_of_one_kind(text, marks)
    if len(marks) < 2:
        return {}
    letters = [mark[1].upper() for mark in marks]
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    texts = [text[mark.end() : end].strip(" \n\t,;()[]") for mark, end in zip(marks, ends, strict=True)]
    return dict(zip(letters, texts, strict=True))


def _marks_of_one_kind(text: str, marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Marks that look like the first A, in their order; none if a letter is missing or stands twice.

    Letters far ahead are words of an option: "Vitamin K: none", "i.v.", "infection with S. aureus".
    """
    first = next((mark for mark in marks if mark[1].upper() == "A"), None)
    options: list[re.Match[str]] = []
    for mark in marks:
        if first is None or (mark[1].isupper(), mark[2]) != (first[1].isupper(), first[2]):
            continue
        if options and mark.start() == options[-1].end():  # "B. E. coli"
            continue
        ahead = ord(mark[1].upper()) - ord("A") - len(options)
        if ahead == 0:
            options.append(mark)
        elif ahead <= 1 or text[: mark.start()].endswith("\n"):
            return []
    return options


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
        if re.match(r"[A-Z]\.\s", text):  # the E of "E. coli" is no letter of an option
            said = said.replace(text, "…")
    begins_with, states = _choice_patterns(max("H", *options))
    found = [match for match in states.finditer(said) if not _denies(said, match)]
    prefix = _PREFIX.match(said)
    if prefix and not parse_options(said) and (begins := begins_with.match(said, prefix.end())):
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
