"""Cleaning, one counted step after another, in the order of `CleanSection`, and what a person should know of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.characters import (
    find_damage,
    find_mended,
    find_uncertain,
    mend_symbols,
    remove_non_printable,
    show_invisible,
    straighten_quotes,
)
from alpacare_sft.data.raw_rows import text_array
from alpacare_sft.data.text import collapse_all, collapse_lines, copy_key, lost_structure, strip
from alpacare_sft.recipe.sections import ROW_COLUMNS, CleanSection

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Columns = dict[str, list[Any]]
Steps = list[dict[str, Any]]
Notes = dict[str, dict[str, Any]]

NOTES = (
    "structure_lost",
    "signs_mended",
    "uncertain_characters",
    "damaged_text",
    "ambiguous_inputs",
    "short_answers",
)
"""What is counted with examples beside the steps; `reporting.pages` has the words for it."""

_TEXT_STEPS = ("strip", "collapse_whitespace", "straight_quotes", "remove_non_printable")
_BITS = {name: 1 << place for place, name in enumerate((*_TEXT_STEPS, "no_input_marks", *NOTES))}
_NUM_EXAMPLES = 5
_EXCERPT = 60  # characters before and after what an example shows: a line and a half
# Inputs that often stand for none and are just as often an entry of a chart: `Allergies: none`, sodium, a dash.
_AMBIGUOUS_INPUTS = frozenset(("none", "nil", "na", "-", "--", "–", "—"))
_HOLDS_AN_ANSWER = re.compile(r"[\w+]")


@dataclass(frozen=True)
class CleanedRows:
    """Rows after cleaning.

    Attributes:
        rows: the rows retained; instruction, input and output are never null once a step changes texts.
        steps: for each step `name`, `rows_before`, `rows_after`, `dropped` and `changed`.
        notes: for each name of `NOTES` the number of `rows` and a few `examples` (`id`, `column`, `text`, and `after`
            where the text was changed). Short answers are among the rows dropped, all others among those retained.
    """

    rows: Dataset
    steps: Steps
    notes: Notes


def clean_rows(batches: Iterable[pa.RecordBatch], clean: CleanSection) -> CleanedRows:
    """Clean rows, one batch after another.

    Args:
        batches: columns id, instruction, input and output, and system where a row has one; text or null. At least one.
        clean: which steps to take.
    """
    seen: tuple[set[bytes], set[bytes]] = (set(), set())
    parts = [_clean_batch(batch, clean, *seen) for batch in batches]
    steps, notes = _add_up([(steps, notes) for _, steps, notes in parts])
    return CleanedRows(_data_set([rows for rows, _, _ in parts]), steps, notes)


def _clean_batch(
    batch: pa.RecordBatch, clean: CleanSection, seen: set[bytes], seen_cleaned: set[bytes]
) -> tuple[pa.RecordBatch, Steps, Notes]:
    """The rows of a batch, cleaned, and their counts.

    Args:
        batch: the rows.
        clean: which steps to take.
        seen: digests of the rows of the batches before, to which those of this one are added.
        seen_cleaned: the same of cleaned rows.
    """
    import pyarrow as pa

    steps: Steps = []

    def count(name: str, before: Columns, after: Columns, changed: int = 0) -> Columns:
        sizes = {"rows_before": len(before["id"]), "rows_after": len(after["id"])}
        dropped = len(before["id"]) - len(after["id"])
        steps.append({"name": name, **sizes, "dropped": dropped, "changed": changed})
        return after

    names = batch.schema.names
    table: Columns = batch.to_pydict()
    if clean.drop_missing:
        table = count("drop_missing", table, _drop_missing(table, clean.no_input_marks))
    if clean.drop_duplicates:
        table = count("drop_duplicates", table, _drop_duplicates(table, str, seen))
    source, table = table, _clean_texts(table, clean)
    for name in _text_steps(clean):
        count(name, table, table, len(_flagged(table, name)))
    cleaned, table = table, _drop_short(table, clean.min_characters)
    if clean.min_characters:
        count("min_characters", cleaned, table)
    if clean.no_input_marks:
        count("no_input_marks", table, table, len(_flagged(table, "no_input_marks")))
    if clean.drop_duplicates:
        table = count("drop_duplicates_after_cleaning", table, _drop_duplicates(table, copy_key, seen_cleaned))
    notes = {name: _note(name, cleaned if name == "short_answers" else table, source, clean) for name in NOTES}
    arrays = {name: pa.array(table[name], pa.int64()) if name == "id" else text_array(table[name]) for name in names}
    return pa.record_batch(arrays), steps, notes


def _data_set(batches: Iterable[pa.RecordBatch]) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint
    from datasets.table import InMemoryTable

    # With no fingerprint given, `datasets` 5.2 pickles all rows to compute one.
    table = InMemoryTable(pa.Table.from_batches(batches))
    return Dataset(table, fingerprint=generate_random_fingerprint())


def add_up(results: Sequence[CleanedRows]) -> CleanedRows:
    """The rows of several results one after another, and their counts over all of them."""
    from datasets import concatenate_datasets

    counts = _add_up([(result.steps, result.notes) for result in results])
    return CleanedRows(concatenate_datasets([result.rows for result in results]), *counts)


def _add_up(counts: Sequence[tuple[Steps, Notes]]) -> tuple[Steps, Notes]:
    """The counts of several parts over all of them."""
    steps = [
        {key: value if key == "name" else sum(step[key] for step in parts) for key, value in parts[0].items()}
        for parts in zip(*(steps for steps, _ in counts), strict=True)
    ]
    notes = {}
    for name in NOTES:
        examples = [example for _, part in counts for example in part[name]["examples"]]
        notes[name] = {"rows": sum(part[name]["rows"] for _, part in counts), "examples": examples[:_NUM_EXAMPLES]}
    return steps, notes


def is_empty(text: str | None, marks: Sequence[str]) -> bool:
    """Whether a text is null, blank, or one of the marks that say that there is none.

    Case, full stops at the end and brackets around do not count, but the brackets of a mark do: the mark `<na>`, which
    pandas writes, is not `Na`.
    """
    if text is None or not text.strip():
        return True
    name = _name(text)
    return not _names(tuple(marks)).isdisjoint((name, name.strip("<>[]() ")))


@cache
def _names(marks: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_name, marks)) - {""}


def _name(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def blank_marks(text: str, marks: Sequence[str]) -> str:
    """An input such as `<noinput>` or `N/A.` as no input."""
    return "" if is_empty(text, marks) else text


def _drop_missing(table: Columns, marks: Sequence[str]) -> Columns:
    pairs = zip(table["instruction"], table["output"], strict=True)
    return _select(table, [i for i, pair in enumerate(pairs) if not any(is_empty(text, marks) for text in pair)])


def _drop_duplicates(table: Columns, key: Callable[[str], str], seen: set[bytes]) -> Columns:
    """The first of the rows whose texts have equal keys; a key is compared by its digest, which takes less memory."""
    places = []
    for place, texts in enumerate(zip(*(table[name] for name in _text_columns(table)), strict=True)):
        digest = blake2b("\x00".join(key(text or "") for text in texts).encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            places.append(place)
    return _select(table, places)


def _drop_short(table: Columns, min_characters: int) -> Columns:
    pairs = zip(table["instruction"], table["output"], strict=True)
    places = [i for i, pair in enumerate(pairs) if min(len(text or "") for text in pair) >= min_characters]
    return _select(table, places)


def _select(table: Columns, places: list[int]) -> Columns:
    if len(places) == len(table["id"]):
        return table
    return {name: [values[place] for place in places] for name, values in table.items()}


def _text_columns(table: Columns) -> list[str]:
    return [name for name in ROW_COLUMNS[1:] if name in table]


def _text_steps(clean: CleanSection) -> dict[str, Callable[[str], str]]:
    """The steps that change every text, by the name of their key."""
    collapse: Callable[[str], str] = collapse_lines if clean.keep_newlines else collapse_all
    steps: dict[str, Callable[[str], str]] = {
        "strip": strip if clean.keep_newlines else str.strip,
        "collapse_whitespace": collapse,
        "straight_quotes": straighten_quotes,
        "remove_non_printable": lambda text: remove_non_printable(text, collapse if clean.collapse_whitespace else str),
    }
    return {name: step for name, step in steps.items() if getattr(clean, name)}


def _clean_texts(table: Columns, clean: CleanSection) -> Columns:
    """Every text cleaned in one pass; a column `flags` has a bit for each step that changed the row, and each note."""
    steps = _text_steps(clean)
    flags = [0] * len(table["id"])
    result = {**table, "flags": flags}
    for column in _text_columns(table):
        # A null system turn is the template's own, not an empty one; other nulls are empty texts once texts change.
        keep_null = column == "system" or not (steps or clean.no_input_marks)
        result[column] = []
        for place, raw in enumerate(table[column]):
            text = raw or ""
            for name, step in steps.items():
                if (new := step(text)) != text:
                    flags[place] |= _BITS[name]
                    text = new
            if column == "input" and (new := blank_marks(text, clean.no_input_marks)) != text:
                flags[place] |= _BITS["no_input_marks"]
                text = new
            for name, _, _ in _find_notes(raw or "", text, column, clean):
                flags[place] |= _BITS[name]
            result[column].append(None if raw is None and keep_null else text)
    return result


def _find_notes(raw: str, text: str, column: str, clean: CleanSection) -> Iterator[tuple[str, str, int]]:
    """Each note on a text: its name, the text that shows it, before or after cleaning, and where."""
    if clean.collapse_whitespace and not clean.keep_newlines and (match := lost_structure(raw)):
        yield "structure_lost", raw.strip(), match.start()
    if match := find_damage(raw):
        yield "damaged_text", raw, match.start()
    if match := find_uncertain(text):
        yield "uncertain_characters", text, match.start()
    if clean.remove_non_printable and (match := find_mended(raw)):
        yield "signs_mended", raw, match.start(2)
    if column == "input" and text.rstrip(".").casefold() in _AMBIGUOUS_INPUTS:
        yield "ambiguous_inputs", text, 0
    if column == "output" and len(text) < clean.min_characters and _HOLDS_AN_ANSWER.search(text):
        yield "short_answers", text, 0


def _flagged(table: Columns, name: str) -> list[int]:
    """Places of the rows that a step changed or a note is on."""
    return [place for place, flags in enumerate(table["flags"]) if flags & _BITS[name]]


def _note(name: str, table: Columns, source: Columns, clean: CleanSection) -> dict[str, Any]:
    """Number of rows with a note, and examples; `source` has the texts before cleaning."""
    places = _flagged(table, name)
    examples = []
    for place in places[:_NUM_EXAMPLES]:
        row_id = table["id"][place]
        raw_place = source["id"].index(row_id)
        for column in _text_columns(table):
            raw, cleaned = source[column][raw_place] or "", table[column][place] or ""
            for note, text, start in _find_notes(raw, cleaned, column, clean):
                if note == name:
                    after = {"after": _excerpt(mend_symbols(text), start)} if name == "signs_mended" else {}
                    examples.append({"id": row_id, "column": column, "text": _excerpt(text, start), **after})
    return {"rows": len(places), "examples": examples[:_NUM_EXAMPLES]}


def _excerpt(text: str, start: int) -> str:
    """The text around a place, in which every character can be seen."""
    first, last = max(0, start - _EXCERPT), start + _EXCERPT
    return ("…" if first else "") + show_invisible(text[first:last]) + ("…" if last < len(text) else "")
