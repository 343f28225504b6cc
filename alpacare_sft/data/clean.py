"""Cleaning, one counted step after another, in the order of `CleanSection`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.equality import copy_key
from alpacare_sft.recipe.sections import ROW_COLUMNS, TEXT_COLUMNS, CleanSection

if TYPE_CHECKING:
    from datasets import Dataset

# Primes (′ ″) measure and do not quote; they are not here.
_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'})
_REMOVED_CATEGORIES = ("Cc", "Cf", "Cs", "Co")
_BLANKS = re.compile(r"[^\S\n]+")
_BLANKS_AT_BREAK = re.compile(r" ?\n ?")
_MANY_BREAKS = re.compile(r"\n{3,}")


def clean_rows(rows: Dataset, clean: CleanSection, num_proc: int | None = None) -> tuple[Dataset, list[dict[str, Any]]]:
    """Clean rows.

    Args:
        rows: columns id, instruction, input and output; text or null.
        clean: which steps to take.
        num_proc: processes for the steps that change text.

    Returns:
        The rows kept, no text null; and for each step a record of `name`, `rows_before`,
        `rows_after`, `dropped` and `changed`.
    """
    steps = []
    for name, step in _steps(clean):
        before = len(rows)
        rows, changed = step(rows, num_proc)
        after = len(rows)
        steps.append(
            {"name": name, "rows_before": before, "rows_after": after, "dropped": before - after, "changed": changed}
        )
    return rows, steps


Step = Callable[["Dataset", int | None], tuple["Dataset", int]]


def _steps(clean: CleanSection) -> Iterator[tuple[str, Step]]:
    if clean.drop_missing:
        yield "drop_missing", _drop_where(_is_missing)
    if clean.drop_duplicates:
        yield "drop_duplicates", _drop_duplicates(str)
    if clean.strip:
        yield "strip", _change(strip)
    if clean.collapse_whitespace:
        yield "collapse_whitespace", _change(_collapse(clean))
    if clean.straight_quotes:
        yield "straight_quotes", _change(straighten_quotes)
    if clean.remove_non_printable:
        yield "remove_non_printable", _change(remove_non_printable, then=_collapse(clean))
    if clean.min_characters:
        yield "min_characters", _drop_where(_is_short, min_characters=clean.min_characters)
    if clean.no_input_marks:
        yield "no_input_marks", _change(blank_marks, columns=("input",), marks=tuple(clean.no_input_marks))
    if clean.drop_duplicates:
        yield "drop_duplicates_after_cleaning", _drop_duplicates(copy_key)


def _collapse(clean: CleanSection) -> Callable[[str], str]:
    """What a recipe does with runs of white space."""
    if not clean.collapse_whitespace:
        return str
    return collapse_lines if clean.keep_newlines else collapse_all


def strip(text: str) -> str:
    """Without white space at both ends."""
    return text.strip()


def collapse_all(text: str) -> str:
    """Every run of white space, line breaks included, as one space."""
    return " ".join(text.split())


def collapse_lines(text: str) -> str:
    """Runs of blanks as one space, every line end as a line feed, at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _BLANKS_AT_BREAK.sub("\n", _BLANKS.sub(" ", text))
    return _MANY_BREAKS.sub("\n\n", text).strip()


def straighten_quotes(text: str) -> str:
    """Curly quotes and apostrophes as straight ones; ′ and ″, which measure, stay."""
    return text.translate(_STRAIGHT)


def remove_non_printable(text: str, then: Callable[[str], str] = str) -> str:
    """Without control, format, surrogate and private-use characters; line breaks and tabs stay.

    Zero-width joiners go too: they are format characters, and tokenizers spend tokens on them.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _REMOVED_CATEGORIES)
    return then(kept.strip())  # white space that an invisible character held apart is a run now


def blank_marks(text: str, marks: tuple[str, ...]) -> str:
    """An input such as `<noinput>` or `N/A.` as no input."""
    return "" if _bare(text) in _bare_marks(marks) else text


def is_empty(text: str | None, marks: Sequence[str]) -> bool:
    """Whether a text is blank, or only says in words that there is none."""
    return not (text or "").strip() or blank_marks(text or "", tuple(marks)) == ""


@cache
def _bare_marks(marks: tuple[str, ...]) -> frozenset[str]:
    return frozenset(_bare(mark) for mark in marks)


def _bare(text: str) -> str:
    return text.strip().rstrip(".").strip("<>[]() ").casefold()


def _is_missing(row: dict[str, Any]) -> bool:
    return not (row["instruction"] or "").strip() or not (row["output"] or "").strip()


def _is_short(row: dict[str, Any], min_characters: int) -> bool:
    return min(len(row["instruction"] or ""), len(row["output"] or "")) < min_characters


def _keep(row: dict[str, Any], drop: Callable[..., bool], options: dict[str, Any]) -> bool:
    return not drop(row, **options)


def _drop_where(drop: Callable[..., bool], **options: Any) -> Step:
    def step(rows: Dataset, num_proc: int | None) -> tuple[Dataset, int]:
        return rows.filter(_keep, fn_kwargs={"drop": drop, "options": options}, desc="Filtering", num_proc=num_proc), 0

    return step


def _drop_duplicates(key: Callable[[str], str]) -> Step:
    """Keep the first of the rows whose texts have equal keys; needs all rows at once, so one process."""

    def step(rows: Dataset, num_proc: int | None) -> tuple[Dataset, int]:
        columns = [[key(text or "") for text in rows[name][:]] for name in ROW_COLUMNS[1:] if name in rows.column_names]
        first = {row: index for index, row in reversed(list(enumerate(zip(*columns, strict=True))))}
        return (rows if len(first) == len(rows) else rows.select(sorted(first.values()))), 0

    return step


def _change(change: Callable[..., str], columns: tuple[str, ...] = TEXT_COLUMNS, **options: Any) -> Step:
    def step(rows: Dataset, num_proc: int | None) -> tuple[Dataset, int]:
        if len(rows) == 0:  # `map` would not add the column
            return rows, 0
        rows = rows.map(
            _apply,
            batched=True,
            fn_kwargs={"change": change, "columns": columns, "options": options},
            desc="Cleaning",
            num_proc=num_proc,
        )
        return rows.remove_columns("changed"), sum(rows["changed"])

    return step


def _apply(
    batch: dict[str, list[Any]], change: Callable[..., str], columns: tuple[str, ...], options: dict[str, Any]
) -> dict[str, list[Any]]:
    new = {column: [change(text or "", **options) for text in batch[column]] for column in columns}
    size = len(batch["id"])
    new["changed"] = [any(new[c][row] != (batch[c][row] or "") for c in columns) for row in range(size)]  # type: ignore[misc]
    return new
