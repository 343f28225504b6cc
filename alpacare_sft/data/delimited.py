r"""Tables of text: CSV and TSV, in the dialect that the file itself shows.

A dialect is a separator and how a quote stands inside a quoted cell, as `""` (RFC 4180) or as `\"` (Spark, MySQL).
A reading holds if every record has as many cells as the header and each quote is closed where its cell ends.
Nothing is guessed: where two readings hold and differ, the file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass

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
        names: of the columns; each record of `rows` has as many cells.
        starts: where in the text the header and each row begin.
    """

    separator: str
    backslash: bool
    names: list[str]
    rows: list[list[str | None]]
    starts: list[int]

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


def read_table(place: str, text: str, needed: Set[str]) -> tuple[Table, list[int]]:
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
            f"{place}, line {_line(text, table.starts[0])}: each column must be named once, got "
            f"{', '.join(table.names)}. Rename one."
        )
    if not table.rows:
        raise DataError(f"{place}: there is no row under the header. It must hold at least one row.")
    return table, _lines(text, table.starts[1:])


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
    records = list(_records(text, start, separator, backslash))
    if not records:
        raise _Unreadable(start, "there is no header.")
    starts = [start for start, _ in records]
    header, *rows = [cells for _, cells in records]
    width = len(header)
    if rows and all(len(cells) == width + 1 and not cells[-1] for cells in rows):  # each line ends in a separator
        rows = [cells[:-1] for cells in rows]
    elif width > 1 and not header[-1] and all(len(cells) == width - 1 for cells in rows):  # the header alone does
        width -= 1
    for begin, cells in zip(starts[1:], rows, strict=True):
        if len(cells) != width:
            raise _Unreadable(
                begin,
                f"must have {width} cells, as the header has, got {len(cells)}. Mend the line; a cell with a "
                f"{_word(separator)} in it needs quotes around it.",
            )
    if backslash:
        rows = _unescape(rows)
    names = [(name or "").strip() or f"Unnamed: {number}" for number, name in enumerate(header[:width])]
    return Table(separator, backslash, names, rows, starts)


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


def _unescape(rows: list[list[str | None]]) -> list[list[str | None]]:
    r"""Resolve `\"` in quoted cells; `\\` and a line break after `\` too, where the writer escapes each backslash.

    It does if no quoted cell has a backslash that could not be one: beside `C:\new` nothing but quotes is escaped.
    """
    quoted = (cell for cells in rows for cell in cells if isinstance(cell, _Quoted))
    escapes_all = all(escaped in '\\"\r\n' for cell in quoted for escaped in _PAIR.findall(cell))

    def resolve(match: re.Match[str]) -> str:
        return match[1] if escapes_all or match[1] == '"' else match[0]

    return [[_PAIR.sub(resolve, cell) if isinstance(cell, _Quoted) else cell for cell in cells] for cells in rows]


def _refuse_difference(place: str, text: str, first: Table, second: Table) -> None:
    """Refuse a text that two dialects read, if they read it differently."""
    records = zip([first.names, *first.rows], [second.names, *second.rows], strict=False)
    differing = next((number for number, (one, other) in enumerate(records) if one != other), None)
    if differing is None and len(first.rows) == len(second.rows):
        return
    number = min(len(first.rows), len(second.rows)) if differing is None else differing
    remedy = 'Save it with each quote inside a cell doubled ("").'
    if first.separator != second.separator:
        remedy = f"Write sep={first.separator} or sep={second.separator} as its first line."
    raise DataError(
        f"{place}, line {_line(text, first.starts[number])}: can be read in two ways, {first.form}, or {second.form}. "
        f"{remedy}"
    )


def _line(text: str, start: int) -> int:
    return len(_BREAK.findall(text, 0, start)) + 1


def _lines(text: str, starts: list[int]) -> list[int]:
    """The line of each place in `text`; places are in order."""
    lines, line, before = [], 1, 0
    for start in starts:
        line += len(_BREAK.findall(text, before, start))
        before = start
        lines.append(line)
    return lines


def _word(separator: str) -> str:
    return SEPARATORS.get(separator, f"{separator!r} sign")
