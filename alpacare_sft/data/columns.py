"""Columns of a source → instruction, input, output and system, as text; what is not used, and what it may be."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpacare_sft.data.conversations import conversation_columns, read_exchange
from alpacare_sft.data.files import RawRows
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import ROW_COLUMNS, TEXT_COLUMNS, DataSection

MAPPED_COLUMNS = ROW_COLUMNS[1:]
NUM_NAMES = 20  # shown of many columns
NUM_PROBED = 100  # rows whose values say whether a column is text
# Names that public sets of instructions give these columns, the surest first.
_LIKELY = {
    "instruction": ("question", "query", "prompt", "instruction", "problem", "request", "task"),
    "output": ("response", "answer", "completion", "output", "reply", "target", "assistant", "solution"),
    "input": (
        "context", "input", "note", "passage", "case", "patient", "vignette", "history", "background", "description",
        "document", "excerpt", "article", "abstract", "report", "scenario", "text",
    ),
}  # fmt: skip
# What stands beside such a word where a column only tells about the text: `patient_id`, `note_length`.
_ABOUT = {"id", "ids", "length", "len", "tokens", "count", "num", "number", "type", "date", "url", "source", "age"}
_ABOUT |= {"sex", "gender", "name", "title", "hash", "category", "language", "lang", "score", "index", "idx"}


@dataclass
class TextRows:
    """Rows as text columns, and what happened to them on the way.

    Attributes:
        columns: instruction, input and output, and system where a row has one; text or None.
        ids: place of each row in its source, from 0.
        record: of the source, for `data/report.json`: name, format, rows, unused_columns, converted (values that were
            no text), and where they apply system (rows that have one), input_candidate and dropped_conversations.
    """

    columns: dict[str, list[str | None]]
    ids: list[int]
    record: dict[str, Any]


def needed_columns(data: DataSection) -> set[str]:
    """The names that a source must give its columns."""
    return {data.columns.get(ours, ours) for ours in ("instruction", "output") if ours not in data.constants}


def list_names(names: Sequence[str]) -> str:
    """Names of columns for a person, the first of many."""
    return ", ".join([*names[:NUM_NAMES], *(["…"] if len(names) > NUM_NAMES else [])])


def text_columns(raw: RawRows, data: DataSection) -> TextRows:
    """The columns of a source that a recipe asks for; conversations where it names none.

    Raises:
        DataError: if a column is missing or holds lists or objects.
    """
    chosen = {ours: data.columns.get(ours, ours) for ours in MAPPED_COLUMNS}
    chosen = {ours: theirs for ours, theirs in chosen.items() if theirs in raw.names}
    missing = {ours for ours in ("instruction", "output") if ours not in chosen and ours not in data.constants}
    turns: tuple[str, ...] = ()
    if missing and not data.columns.keys() & {"instruction", "output"}:
        turns = conversation_columns(raw.names)
    if turns:
        chosen = {ours: theirs for ours, theirs in chosen.items() if ours in ("input", "system")}
        missing = set()
    missing |= {ours for ours in data.columns if ours not in chosen}
    if missing:
        raise DataError(_missing_message(raw, data, missing, chosen))
    if len(set(chosen.values())) < len(chosen):
        raise DataError(f"data.columns must name a column of its own for each of {', '.join(TEXT_COLUMNS)}.")
    columns = {ours: raw.column(theirs) for ours, theirs in chosen.items()}
    ids = list(range(raw.num_rows))
    record: dict[str, Any] = {"name": raw.name, "format": raw.form, "rows": raw.num_rows}
    if turns:
        columns, ids = _exchanges(raw, turns, columns)
        record["dropped_conversations"] = raw.num_rows - len(ids)
    record["unused_columns"] = [name for name in raw.names if name not in {*chosen.values(), *turns}]
    return _finish(raw, data, columns, TextRows({ours: [None] * len(ids) for ours in TEXT_COLUMNS}, ids, record))


def _finish(raw: RawRows, data: DataSection, columns: Mapping[str, list[Any]], rows: TextRows) -> TextRows:
    """Fill in the texts, how many were no text before, and the column that looks like an input that is not there."""
    converted = {}
    for ours, values in columns.items():
        rows.columns[ours], count = _texts(raw, ours, values, rows.ids)
        if count:
            converted[ours] = count
    if num_system := sum(bool(text) for text in rows.columns.get("system", ())):
        rows.record["system"] = num_system
    else:
        rows.columns.pop("system", None)
    rows.record["converted"] = converted
    has_input = "input" in data.constants or any(rows.columns["input"])
    if not has_input and (candidates := _likely("input", raw, rows.record["unused_columns"])):
        rows.record["input_candidate"] = candidates[0]
    return rows


def _exchanges(
    raw: RawRows, turns: Sequence[str], columns: Mapping[str, list[Any]]
) -> tuple[dict[str, list[Any]], list[int]]:
    """Columns of the rows that are one question and one answer, and which rows those are."""
    ids: list[int] = []
    exchanges = []
    for index, values in enumerate(zip(*(raw.column(name) for name in turns), strict=True)):
        if exchange := read_exchange(raw.place(index), turns, values):
            exchanges.append(exchange)
            ids.append(index)
    read = {name: [values[index] for index in ids] for name, values in columns.items()}
    read |= {name: [getattr(exchange, name) for exchange in exchanges] for name in ("instruction", "output")}
    beside = read.get("system", [None] * len(ids))
    read["system"] = [exchange.system or other for exchange, other in zip(exchanges, beside, strict=True)]
    return read, ids


def _texts(raw: RawRows, ours: str, values: list[Any], ids: Sequence[int]) -> tuple[list[str | None], int]:
    """Values as text or None, and how many were something else; a number is written as its source writes it."""
    others = [place for place, value in enumerate(values) if type(value) is not str and value is not None]
    texts = list(values) if others else values
    for place in others:
        value = values[place]
        if isinstance(value, list | dict | tuple | bytes):
            shown = json.dumps(value, default=str, ensure_ascii=False)[:60]
            raise DataError(
                f"data.path: {raw.name}, row {ids[place] + 1}: {ours} must be text, got {type(value).__name__} "
                f"{shown}. Write it as one text, or map another column with data.columns."
            )
        texts[place] = _text(value)
    for place, text in enumerate(texts):
        if text and not text.isascii() and _has_surrogate(text):
            raise DataError(
                f"{raw.place(ids[place])}: {ours} holds half a character (a lone surrogate). Mend the text."
            )
    return texts, sum(texts[place] is not None for place in others)


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value != value else str(value)  # NaN, which alone differs from itself, is how tables write nothing


def _has_surrogate(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is not None


def _missing_message(raw: RawRows, data: DataSection, missing: set[str], chosen: Mapping[str, str]) -> str:
    """What is missing first, and the mapping of everything that has a likely name."""
    free = [name for name in raw.names if name not in chosen.values()]
    mapping = {ours: theirs for ours, theirs in data.columns.items() if ours in chosen}
    for ours in (*(ours for ours in MAPPED_COLUMNS if ours in missing), *({"input"} - set(chosen))):
        for name in _likely(ours, raw, free)[:1]:
            mapping[ours] = name
            free.remove(name)
    first = next(ours for ours in MAPPED_COLUMNS if ours in missing)
    remedy = "Name one of these" if first in data.columns else f"Map it with data.columns.{first}"
    if missing <= set(mapping):
        shown = ", ".join(f"{ours}: {_yaml_name(mapping[ours])}" for ours in MAPPED_COLUMNS if ours in mapping)
        remedy = f"Set data.columns to {{{shown}}}, if these are they"
    elif first == "instruction":
        remedy += ", or set data.constants.instruction"
    return (
        f"data.columns.{first} must name a column of {raw.name}, there is no {data.columns.get(first, first)!r} in: "
        f"{list_names(raw.names)}. {remedy}."
    )


def _yaml_name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name, ensure_ascii=False)


def _likely(ours: str, raw: RawRows, names: Iterable[str]) -> list[str]:
    """Columns of text whose names say that they are `ours`, the surest first."""
    words = {name: re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()) for name in names}
    words = {name: parts for name, parts in words.items() if not _ABOUT.intersection(parts)}
    forms = [{word, f"{word}s"} for word in _LIKELY.get(ours, ())]
    whole = [name for form in forms for name in words if name.lower() in form]
    part = [name for form in forms for name, parts in words.items() if form.intersection(parts)]
    # 0.8 lets one or two letters of such a name be wrong
    close = [name for name in words if difflib.SequenceMatcher(None, ours, name.lower()).ratio() >= 0.8]
    return [name for name in dict.fromkeys([*whole, *part, *close]) if _holds_text(raw.column(name)[:NUM_PROBED])]


def _holds_text(values: Sequence[Any]) -> bool:
    return any(isinstance(value, str) and value.strip() for value in values) and not any(
        isinstance(value, list | dict) for value in values
    )
