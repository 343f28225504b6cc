"""Rows in JSON: one a line, as an array, under a key, or column by column as pandas writes them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from typing import Any, TextIO

from alpacare_sft.data.columns import CONVERSATION_COLUMNS, conversation_columns, is_turns
from alpacare_sft.errors import DataError
from alpacare_sft.runtime import holds_half_character

Objects = list[dict[str, Any]]
_SPACE = re.compile(r"\s*")
_FIRST, _NEXT = re.compile(r"\s*\[\s*(?=\{)"), re.compile(r"\s*,\s*(?=\{)")  # what stands before an object of an array
_BLOCK = 1 << 20  # characters read at once
_RECORDS = "df.to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)"


class Literal(str):
    """A value that is not text, as it is written in the file: `0.50` stays `0.50`."""


class _WrongKey(ValueError):
    """What is wrong with a key, and what to do."""


def read_objects(place: str, text: str, needed: Set[str], one_a_line: bool) -> tuple[Objects, list[int] | None, str]:
    """The rows of a text, the line of each where rows have one, and the form in words.

    Args:
        place: the file, for messages.
        text: all of it, decoded.
        needed: columns that rows should have; they tell rows from what stands around them.
        one_a_line: whether the file's name says that each line is a row.

    Raises:
        DataError: with the line, if it is not JSON, or does not say where its rows are.
    """
    lines: list[int] | None = None
    if text.lstrip().startswith("["):
        rows, form = _array(place, text), "JSON array"
    else:
        rows, lines, form = _objects(place, text, one_a_line)
        if len(rows) == 1 and isinstance(rows[0], dict):
            rows, inside = _unwrap(place, rows[0], needed)
            if inside:
                lines, form = None, f"JSON, {inside}"
    if not rows:
        raise DataError(f"{place} is an empty list. It must hold at least one row.")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            where = f"line {lines[index]}" if lines else f"row {index + 1}"
            raise DataError(f"{place}, {where}: must be an object with the keys instruction, input and output.")
    return rows, lines, form


def iterate_objects(file: TextIO) -> tuple[Iterator[tuple[int, dict[str, Any]]], str]:
    """Objects one a line or of an array, with the numbers of their lines or rows, and the form in words.

    Only a part of the text is in memory at a time. The iterator raises ValueError if the file is anything else, or is
    wrong; `read_objects` says where.
    """
    is_array = file.read(_BLOCK).lstrip().startswith("[")
    file.seek(0)
    return (enumerate(_iterate_array(file), 1), "JSON array") if is_array else (_iterate_lines(file), "JSON Lines")


def _iterate_lines(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            if not line.lstrip().startswith("{"):
                raise ValueError("no object")
            yield number, _DECODER.decode(line)


def _iterate_array(file: TextIO) -> Iterator[dict[str, Any]]:
    text, position, before = "", 0, _FIRST
    while True:
        if match := before.match(text, position):
            try:
                row, position = _DECODER.raw_decode(text, match.end())
            except json.JSONDecodeError:  # the object may go on
                match = None
            else:
                before = _NEXT
                yield row
        if match is None:
            # As much again as is not read yet: an object of any length is parsed a few times only.
            more = file.read(max(_BLOCK, len(text) - position))
            text, position = text[position:] + more, 0
            if not more:
                break
    if before is _FIRST or text.strip() != "]":
        raise ValueError("no array of objects")


def _array(place: str, text: str) -> list[Any]:
    try:
        rows: list[Any] = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}, line {error.lineno}: not valid JSON ({error.msg}). Mend the line.") from None
    except _WrongKey as error:
        fault, remedy = error.args
        raise DataError(f"{place}, row {_row_of_wrong_key(text)}: {fault}. {remedy}.") from None
    return rows


def _row_of_wrong_key(text: str) -> int:
    """The number of the first element of an array that has such a key."""
    position, number = text.index("[") + 1, 1
    while True:
        try:
            _, position = _DECODER.raw_decode(text, _after_space(text, position))
        except _WrongKey:
            return number
        position, number = text.index(",", position) + 1, number + 1


def _objects(place: str, text: str, one_a_line: bool) -> tuple[list[Any], list[int], str]:
    """Objects one a line, or over several lines as `jq` and `json.dump` write them; each with its line."""
    broken = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # others are part of a text
    numbered = [(number, line) for number, line in enumerate(broken, 1) if line.strip()]
    rows: list[Any] = []
    for number, line in numbered:
        try:
            rows.append(_DECODER.decode(line))
        except json.JSONDecodeError as error:
            if rows or not line.lstrip().startswith("{"):
                raise DataError(f"{place}, line {number}: {_invalid(error)}. Mend or remove the line.") from None
            return _spread_objects(place, "\n".join(broken), error if one_a_line else None)
        except _WrongKey as error:
            raise DataError(f"{place}, line {number}: {error.args[0]}. {error.args[1]}.") from None
    return rows, [number for number, _ in numbered], "JSON Lines"


def _spread_objects(
    place: str, text: str, first_fault: json.JSONDecodeError | None
) -> tuple[list[Any], list[int], str]:
    """One JSON value after another, each over as many lines as it likes."""
    rows: list[Any] = []
    lines: list[int] = []
    line, before, position = 1, 0, _after_space(text, 0)
    while position < len(text):
        line, before = line + text.count("\n", before, position), position
        try:
            row, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            where, error = (line, first_fault) if first_fault and not rows else (error.lineno, error)
            raise DataError(f"{place}, line {where}: {_invalid(error)}. Mend or remove the line.") from None
        except _WrongKey as error:
            fault, remedy = error.args
            raise DataError(f"{place}, line {line}: {fault}, in the object that begins there. {remedy}.") from None
        rows.append(row)
        lines.append(line)
        position = _after_space(text, end)
    return rows, lines, "JSON objects"


def _after_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None  # it matches nothing as well
    return space.end()


def _invalid(error: json.JSONDecodeError) -> str:
    return f"not valid JSON ({error.msg})"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _WrongKey(f"the key /{key} stands twice in one object", "Remove one")
    if wrong := [key for key in row if holds_half_character(key)]:
        raise _WrongKey(f"the key {wrong[0]!r} holds half of a character", "Write it anew")
    return row


def _constant(name: str) -> Literal | None:
    return None if name == "NaN" else Literal(name)  # how Python writes a missing number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=Literal, parse_int=Literal, parse_constant=_constant
)


def _unwrap(place: str, document: dict[str, Any], needed: Set[str]) -> tuple[Objects, str]:
    """The rows of a file that is one object, and where in it they stand; a row is itself, and stands nowhere.

    Raises:
        DataError: if they may stand in several places, or in none.
    """
    row = [name for name, value in document.items() if is_turns(value) or not isinstance(value, dict | list)]
    if needed <= set(row) or conversation_columns(row) or len(row) == len(document):
        return [document], ""
    needed = needed | CONVERSATION_COLUMNS
    if columns := _columns(place, document, needed):
        return columns, "one object as pandas writes it"
    tables = list(_tables(document))
    fitting = [table for table in tables if needed & set(table[1][0])] or tables
    if len(fitting) == 1:
        return fitting[0][1], f"rows under {fitting[0][0]}"
    if fitting:
        names = " and ".join(path for path, _ in fitting)
        raise DataError(f"{place} holds rows under {names}. Save those to use as a file of their own.")
    raise DataError(
        f"{place} is one object whose keys ({', '.join(list(document)[:8])}) do not say where its rows are. "
        f"Save a list of objects, one a row; in pandas: {_RECORDS}."
    )


def _tables(value: dict[str, Any], path: str = "") -> Iterable[tuple[str, Objects]]:
    """Each list of objects in an object, with its dotted path; turns of a conversation are none."""
    for key, inner in value.items():
        dotted = f"{path}.{key}" if path else key
        if isinstance(inner, dict):
            yield from _tables(inner, dotted)
        elif isinstance(inner, list) and inner and not is_turns(inner) and all(isinstance(row, dict) for row in inner):
            yield dotted, inner


def _columns(place: str, document: dict[str, Any], needed: Set[str]) -> Objects | None:
    """Rows of the forms in which pandas writes a frame as one object (`orient`), or None.

    Raises:
        DataError: if a column is named twice, or by no text.
    """
    names, cells, schema = document.get("columns"), document.get("data"), document.get("schema")
    if isinstance(schema, dict) and "pandas_version" in schema and isinstance(cells, list):
        return cells
    if isinstance(names, list) and isinstance(cells, list) and all(_fits(row, names) for row in cells):
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            named = ", ".join(map(str, names))
            raise DataError(f"{place}: each column must be named once, by text, got {named}. Rename one.")
        return [dict(zip(names, row, strict=True)) for row in cells]
    values = list(document.values())
    if all(isinstance(value, list) for value in values):
        as_long = len({len(value) for value in values}) == 1
        objects = any(isinstance(cell, dict) for value in values for cell in value)
        fits = as_long and (needed & set(document) or not objects)
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)] if fits else None
    if not all(isinstance(value, dict) for value in values):
        return None
    inner = list(values[0])
    rows_inside = bool(needed & set(inner)) or _are_numbers(document)
    columns_inside = bool(needed & set(document)) or _are_numbers(inner)
    if rows_inside and not columns_inside:  # {"0": {"instruction": …}}
        return values
    if columns_inside and not rows_inside and all(list(value) == inner for value in values):
        return [{name: document[name][key] for name in document} for key in inner]  # {"instruction": {"0": …}}
    return None


def _fits(row: Any, names: list[Any]) -> bool:
    return isinstance(row, list) and len(row) == len(names)


def _are_numbers(keys: Iterable[str]) -> bool:
    return all(key.isdigit() for key in keys)
