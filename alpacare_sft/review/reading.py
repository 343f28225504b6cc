"""A filled sheet → its ratings; all faults of the file are reported at once."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpacare_sft.errors import DataError
from alpacare_sft.review.sheets import CRITERIA, FLAG, sheet_columns, text_hashes, whole_cell

# What a cell may hold, in small letters, and what that means; spreadsheets write yes and no in their own language.
_SCORES: dict[str, int | None] = {"": None, "1": 1, "2": 2, "3": 3, "4": 4, "5": 5}
_FLAGS = dict.fromkeys(("yes", "y", "x", "1", "true", "wahr", "vrai"), True)
_FLAGS |= dict.fromkeys(("", "no", "n", "0", "false", "falsch", "faux"), False)


@dataclass(frozen=True)
class Rating:
    """What one reviewer said about one row.

    Attributes:
        scores: letter → criterion → 1 to 5, of those that were given.
        flags: letters of the answers that could harm.
        preferred: `a`, `b`, `tie`, or nothing.
    """

    scores: Mapping[str, Mapping[str, int]]
    flags: frozenset[str]
    preferred: str

    def says_something_of(self, letter: str) -> bool:
        """Whether an answer was rated or flagged: one that nobody looked at is not a safe one."""
        return bool(self.scores[letter]) or letter in self.flags


@dataclass(frozen=True)
class Sheet:
    """One reviewer's sheet.

    Attributes:
        path: the file.
        reviewer: the name in it, else that of the file.
        ratings: row id → rating, of the rows on which something was entered.
        num_rated: rows in which every rating was given.
        comments: row id → what was written beside it.
    """

    path: Path
    reviewer: str
    ratings: Mapping[str, Rating]
    num_rated: int
    comments: Mapping[str, str]


def sheet_of(path: Path) -> str | None:
    """Name of the sheet that a file is a copy of, or None where it has none; `read_sheet` says why."""
    try:
        names = [row.get("sheet", "").strip() for _, row in list(_numbered_rows(path))[1:]]
    except DataError:
        return None
    return next(filter(None, names), None)


def read_sheet(path: Path, key: Mapping[str, Any]) -> Sheet:
    """Read and check one filled sheet.

    Args:
        path: CSV as `review.csv` is, or as a spreadsheet saved it again (comma, semicolon or tab; UTF-8 or UTF-16).
        key: what `review_key.json` holds.

    Raises:
        DataError: with every fault, each with its line.
    """
    lines = list(_numbered_rows(path))
    columns = sheet_columns(key["letters"])
    if missing := [name for name in columns[:-2] if name not in (lines[0][1] if lines else ())]:
        named = ", ".join(missing)
        raise DataError(
            f"{path} must have the columns of review.csv, got none named {named}. Fill a copy of review.csv."
        )
    # texts are compared without white space at their ends
    cells = [(number, {name: whole_cell(row.get(name) or "").strip() for name in columns}) for number, row in lines[1:]]
    names = [row["sheet"] for _, row in cells]
    if names and key["sheet"] not in names:
        raise DataError(
            f"{path}:{cells[0][0]}: sheet must be {key['sheet']}, got {names[0] or 'nothing'}: it was made by another "
            "evaluation. Fill the review.csv or review.html of this one."
        )
    faults = list(_row_faults(cells, key))
    parsed = {row["id"]: _parse(row, key["letters"], number, faults) for number, row in cells}
    reviewers = {row["reviewer"]: number for number, row in reversed(cells) if row["reviewer"]}
    if len(reviewers) > 1:
        several = ", ".join(sorted(reviewers))
        faults.append((max(reviewers.values()), f"reviewer must be one person, got {several}. Give each a file"))
    if faults:
        raise DataError(_format_faults(path, faults))
    ratings = {row_id: rating for row_id, rating in parsed.items() if rating}
    if not ratings:
        raise DataError(
            f"{path} must hold ratings, nothing is rated. Give 1 to 5 in correctness_a and the columns after."
        )
    num_rated = sum(all(len(part) == len(CRITERIA) for part in rating.scores.values()) for rating in ratings.values())
    comments = {row["id"]: row["comment"] for _, row in cells if row["comment"]}
    return Sheet(path, next(iter(reviewers), path.stem), ratings, num_rated, comments)


def _format_faults(path: Path, faults: Sequence[tuple[int, str]]) -> str:
    if len(faults) == 1:
        return f"{path}:{faults[0][0]}: {faults[0][1]}."
    return "\n".join(
        [f"{len(faults)} faults in {path}:", *(f"  - line {line}: {text}." for line, text in sorted(faults))]
    )


def _numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column name, of the header first."""
    text = _read_text(path)
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] = []
    number = 1
    try:
        for row in reader:
            if not header:
                header = [name.strip().lower() for name in row]
                if twice := {name for name in header if name and header.count(name) > 1}:
                    raise DataError(f"{path}: the column {min(twice)} is there twice. Keep one of them.")
            if any(cell.strip() for cell in row[len(header) :]):
                raise DataError(f"{path}:{number} has more cells than columns. Fill a copy of review.csv.")
            if any(cell.strip() for cell in row):
                yield number, dict(zip(header, row, strict=False))
            number = reader.line_num + 1  # a quoted cell may hold line breaks
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} must be CSV: {error}. Save it as CSV again.") from error


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} must be a filled review sheet, it cannot be read: {error.strerror}.") from error
    if content.startswith(b"PK\x03\x04"):
        raise DataError(f"{path} must be CSV, got a spreadsheet's own format. Save it as CSV (UTF-8).")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line} must be UTF-8 or UTF-16 text. Save it as CSV (UTF-8).") from None


def _row_faults(cells: Sequence[tuple[int, Mapping[str, str]]], key: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Rows that are unknown, twice there or missing, and texts that were edited."""
    known = {str(row["id"]): row["sha256"] for row in key["rows"]}
    seen: dict[str, int] = {}
    for number, row in cells:
        name = row["id"]
        if row["sheet"] != key["sheet"]:
            yield number, f"sheet must be {key['sheet']} in every row, got {row['sheet'] or 'nothing'}"
        elif name not in known:
            yield number, f"id must be that of a row of the sheet, got {name or 'nothing'}"
        elif name in seen:
            yield number, f"id {name} must occur once, it is on line {seen[name]} too. Keep one of them"
        else:
            hashes = text_hashes({column: row[column] for column in known[name]})
            for column in (column for column in known[name] if hashes[column] != known[name][column]):
                yield number, f"{column} of row {name} must be as it was in the sheet, it was edited. Put it back"
        seen.setdefault(name, number)
    if missing := [name for name in known if name not in seen]:
        last = cells[-1][0] if cells else 1
        named = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        yield last, f"every row of the sheet must be there, rated or not; missing: {named}"


def _parse(row: Mapping[str, str], letters: str, line: int, faults: list[tuple[int, str]]) -> Rating | None:
    """A row's ratings, or None where nothing was entered; a cell that holds something else is added to the faults."""

    def meaning(name: str, meanings: Mapping[str, Any], contract: str) -> Any:
        text = row.get(name, "")
        plain = re.sub(r"^([0-5])[.,]0+$", r"\1", text.lower())  # a spreadsheet may write 4 as `4.0` or `4,0`
        if plain not in meanings:
            faults.append((line, f"{name} must be {contract}, got {text[:40]!r}"))
        return meanings.get(plain)

    scores = {
        letter: {
            criterion: score
            for criterion in CRITERIA
            if (score := meaning(f"{criterion}_{letter}", _SCORES, "a whole number from 1 to 5, or empty"))
        }
        for letter in letters
    }
    flags = frozenset(letter for letter in letters if meaning(f"{FLAG}_{letter}", _FLAGS, "yes, no or empty"))
    preferred = meaning("preferred", {name: name for name in ("", "tie", *letters)}, "A, B, tie or empty")
    return Rating(scores, flags, preferred) if any(scores.values()) or flags or preferred else None
