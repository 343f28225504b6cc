r"""Tables of text: CSV and TSV, in the dialect that the file itself shows.

A dialect is a separator and how a quote stands inside a quoted cell, as `""` (RFC 4180) or as `\"` (Spark, MySQL).
A reading holds if every record has as many cells as the header and each quote is closed where its cell ends.
Nothing is guessed: where two readings hold and differ, the file is refused.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice

from alpacare_sft.data.raw_rows import PackedRows, as_list
from alpacare_sft.errors import DataError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_BREAK = re.compile(r"\r\n|\r|\n")
_DECLARED = re.compile(r'"?sep=([^\r\n])"?[,;\t]*(?:\r\n|\r|\n)', re.IGNORECASE)  # Excel's first line
_DOUBLED = r'"([^"]*+(?:""[^"]*+)*+)"'
_ESCAPED = r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_PAIR = re.compile(r"\\(.)", re.DOTALL)
NULL = r"\N"  # how MySQL and PostgreSQL write null; only without quotes


@dataclass
class Table:
    """A file as one dialect reads it.

    Attributes:
        names: of the columns; each row has as many cells.
        start: where in the text the header begins.
        rows: the records under it; their numbers are where they begin.
    """

    separator: str
    backslash: bool
    names: list[str]
    start: int
    rows: PackedRows

    @property
    def form(self) -> str:
        """The dialect in words."""
        quotes = ', quotes as \\"' if self.backslash else ""
        return f"separated by {_word(self.separator)}s{quotes}"


class _Unreadable(Exception):
    """Why a dialect does not read a text, and where."""

    def __init__(self, start: int, reason: str) -> None:
        super().__init__(reason)
        self.start = start


def read_table(place: str, text: str, needed: Set[str]) -> tuple[Table, Sequence[int]]:
    """The one reading of a text that holds, and the line of each row.

    Args:
        place: the file, for messages.
        text: all of it, decoded.
        needed: columns that the header should name; they tell separators apart.

    Raises:
        DataError: with the line, if no reading holds or two differ.
    """
    declared = _DECLARED.match(text)
    start = declared.end() if declared else 0
    separators = [declared[1]] if declared else _separators(text, needed)
    tables, faults = [], []
    for separator in separators:
        for backslash in (False, True) if '\\"' in text else (False,):
            try:
                tables.append(_read(text, start, separator, backslash))
            except _Unreadable as fault:
                faults.append(fault)
    if not tables:
        furthest = max(faults, key=lambda fault: fault.start)  # the dialect that reads furthest
        raise DataError(f"{place}, line {_line(text, furthest.start)}: {furthest}")
    table = tables[0]
    for other in tables[1:]:
        _refuse_difference(place, text, table, other)
    if len(set(table.names)) < len(table.names):
        raise DataError(
            f"{place}, line {_line(text, table.start)}: each column must be named once, got "
            f"{', '.join(table.names)}. Rename one."
        )
    if not table.rows.lines:
        raise DataError(f"{place}: there is no row under the header. It must hold at least one row.")
    return table, _lines(text, table.rows.lines)


def _separators(text: str, needed: Set[str]) -> list[str]:
    """Separators that part the header; if it then names the needed columns, only such."""
    headers = {}
    for separator in SEPARATORS:
        try:
            headers[separator] = {name.strip() for name in next(_records(text, 0, separator, False))[1] if name}
        except (_Unreadable, StopIteration):
            headers[separator] = set()
    parting = [separator for separator, names in headers.items() if len(names) > 1]
    return [separator for separator in parting if needed <= headers[separator]] or parting or [","]


def _read(text: str, start: int, separator: str, backslash: bool) -> Table:
    records = _records(text, start, separator, backslash)
    start, header = next(records, (start, None))
    if header is None:
        raise _Unreadable(start, "there is no header.")
    names = [(name or "").strip() or f"Unnamed: {number}" for number, name in enumerate(header)]
    first = next(records, None)
    width = num_cells = len(header)
    if first and len(first[1]) == width + 1 and not first[1][-1]:  # each line ends in a separator
        num_cells += 1
    elif width > 1 and not header[-1] and (not first or len(first[1]) == width - 1):  # the header alone does
        names.pop()
        num_cells -= 1
    resolve = _unescape(text, start, separator) if backslash else None

    def rows() -> Iterator[tuple[int, dict[str, str | None]]]:
        wrong = None
        for begin, cells in chain([first] if first else [], records):
            if len(cells) != num_cells or (num_cells > width and cells[-1]):
                # The first row's width is one that all must have; if they do not, the header's is, which it lacks.
                wrong = wrong or ((begin, cells) if num_cells == width else first)
            if resolve:
                cells = [resolve(cell) if isinstance(cell, _Quoted) else cell for cell in cells]
            yield begin, dict(zip(names, cells, strict=False))
        if wrong:  # told once the quotes of all records are known to be right
            raise _Unreadable(
                wrong[0],
                f"must have {width} cells, as the header has, got {len(wrong[1])}. Mend the line; a cell with a "
                f"{_word(separator)} in it needs quotes around it.",
            )

    return Table(separator, backslash, names, start, PackedRows(rows()))


class _Quoted(str):
    """A cell that stood in quotes, its escapes not yet resolved."""


def _records(text: str, start: int, separator: str, backslash: bool) -> Iterator[tuple[int, list[str | None]]]:
    """Where each record begins, and its cells; blank lines are none."""
    part = re.escape(separator)
    quoted = _ESCAPED if backslash else _DOUBLED
    cell = re.compile(rf'(?:{quoted}|([^{part}\r\n"][^{part}\r\n]*+)?)({part}|\r\n|\r|\n|\Z)', re.DOTALL)
    cells: list[str | None] = []
    position, end = start, separator
    while end or position < len(text):
        match = cell.match(text, position)
        if match is None:
            closed = re.compile(quoted, re.DOTALL).match(text, position)
            reason = "a quote inside a cell is neither doubled nor escaped" if closed else "unexpected end of the file"
            raise _Unreadable(start, f"{reason}. Mend the quotes of the record that begins there.")
        inside, bare, end = match.groups()
        if inside is None:
            cells.append(None if bare == NULL else bare or "")
        else:
            cells.append(_Quoted(inside) if backslash else inside.replace('""', '"'))
        position = match.end()
        if end != separator:
            if len(cells) > 1 or (cells[0] or "").strip():
                yield start, cells
            cells, start = [], position


def _unescape(text: str, start: int, separator: str) -> Callable[[str], str]:
    r"""Resolve `\"` in quoted cells; `\\` and a line break after `\` too, where the writer escapes each backslash.

    It does if no quoted cell has a backslash that could not be one: beside `C:\new` nothing but quotes is escaped.
    """
    rows = islice(_records(text, start, separator, backslash=True), 1, None)
    quoted = (cell for _, cells in rows for cell in cells if isinstance(cell, _Quoted))
    escapes_all = all(escaped in '\\"\r\n' for cell in quoted for escaped in _PAIR.findall(cell))
    return lambda cell: _PAIR.sub(lambda pair: pair[1] if escapes_all or pair[1] == '"' else pair[0], cell)


def _refuse_difference(place: str, text: str, first: Table, second: Table) -> None:
    """Refuse a text that two dialects read, if they read it differently."""
    records = zip(_cells(first), _cells(second), strict=False)
    differing = next((number for number, (one, other) in enumerate(records) if one != other), None)
    starts, others = [first.start, *first.rows.lines], [second.start, *second.rows.lines]
    if differing is None and len(starts) == len(others):
        return
    number = min(len(starts), len(others)) - 1 if differing is None else differing
    remedy = 'Save it with each quote inside a cell doubled ("").'
    if first.separator != second.separator:
        remedy = f"Write sep={first.separator} or sep={second.separator} as its first line."
    raise DataError(
        f"{place}, line {_line(text, starts[number])}: can be read in two ways, {first.form}, or {second.form}. "
        f"{remedy}"
    )


def _cells(table: Table) -> Iterator[Sequence[str | None]]:
    """The header and the rows."""
    yield table.names
    for _, columns in table.rows.batches(table.names):
        yield from map(list, zip(*map(as_list, columns.values()), strict=True))


def _line(text: str, start: int) -> int:
    return len(_BREAK.findall(text, 0, start)) + 1


def _lines(text: str, starts: Sequence[int]) -> Sequence[int]:
    """The line of each place in `text`; places are in order."""
    lines, line, before = array("Q"), 1, 0
    for start in starts:
        line += len(_BREAK.findall(text, before, start))
        before = start
        lines.append(line)
    return lines


def _word(separator: str) -> str:
    return SEPARATORS.get(separator, f"{separator!r} sign")
