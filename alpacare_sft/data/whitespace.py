"""White space of one text: what is layout and stays, what is noise and goes, and what flattening costs."""

from __future__ import annotations

import re

# Vertical tab, form feed, next line, line and paragraph separator end a line as well as CR and LF do.
_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_BLANK = re.compile(r"[^\S\n\t]")  # no-break, thin and wide spaces, once line breaks are line feeds
_RUN = re.compile(r"[ \t]{2,}|\t")
_MANY_BREAKS = re.compile(r"\n{3,}")
# What may stand between two cells: a tab, three blanks, or two that do not follow the end of a sentence, where many
# people type two.
_GAP_TEXT = r"(?<=\S)(?:[^\S\n]*\t[^\S\n]*|[^\S\n]{3,}|(?<![.!?])(?<![.!?][\"')\]])[^\S\n]{2})(?=\S)"
_GAP = re.compile(rf"{_GAP_TEXT}|\|.*\|")  # or cells between bars
# A line whose first cell is empty, or an outermost item that is indented, loses its place without its indentation.
_PLACED_BY_INDENTATION = re.compile(rf"\n(?:[^\S\n]+\S|[^\n]*?{_GAP_TEXT})")
# In a line by itself one tab may be a slip. Two are cells, two in a row an empty one, and so is one beside a number.
_CELL_BY_TAB = re.compile(r"\t.*\t|\d\t|\t[-−+±<>≤≥]?\d")
# How far a line with a gap may stand from the next one of the same table: one line, such as a heading, may be between.
_NEAR_LINES = 2
_FENCES = ("```", "~~~")

_ITEM = r"(?:[-*+•‣◦▪·–—]|\(?(?:\d{1,3}|[A-Za-z])[.)])[^\S\n]+\S"
# A line of at most 50 characters that ends no sentence ended where it should: prose is wrapped at 60 and more.
_SHORT_LINE = r"(?<![^\n])[^\n]{0,49}[^\s.!?:;,]\n(?=\S)"
_STRUCTURE = re.compile(rf"\n\s*{_ITEM}|```|~~~|\n[^\S\n]+\S|\n[^\n|]*\|[^\n|]*\||{_SHORT_LINE}|{_GAP_TEXT}")
_CELLS = re.compile(r"\S[^\S\n]*\t\s*\S")


def unify_breaks(text: str) -> str:
    """Every kind of line break as a line feed."""
    return _BREAK.sub("\n", text)


def strip(text: str) -> str:
    """Without white space at both ends, but with the indentation of a first line that is placed by it."""
    body = text.strip()
    if len(body) == len(text) or not text[:1].isspace():
        return body
    lead = unify_breaks(text[: len(text) - len(text.lstrip())]).rpartition("\n")[2]
    return lead + body if lead and _PLACED_BY_INDENTATION.search(unify_breaks(body)) else body


def collapse_all(text: str) -> str:
    """Every run of white space, line breaks included, as one space."""
    return " ".join(text.split())


def collapse_lines(text: str) -> str:
    """Runs of blanks in prose as one space, every line end as a line feed, at most one empty line in a row.

    Indentation, lines of a table and fenced code keep their runs. A no-break space becomes a space: it looks like one.
    """
    if text.isprintable() and "  " not in text:  # printable text has no other white space than the space
        return text.strip()
    lines = [line.rstrip() for line in _BLANK.sub(" ", unify_breaks(text)).split("\n")]
    laid_out = _laid_out(lines)
    result: list[str] = []
    is_code = False
    for place, line in enumerate(lines):
        if is_fence := line.lstrip().startswith(_FENCES):
            is_code = not is_code
        if is_code or is_fence or place in laid_out:
            result.append(line)
        elif line or result[-1:] != [""]:
            result.append(_RUN.sub(" ", line))
    return strip("\n".join(result))


def _laid_out(lines: list[str]) -> set[int]:
    """Places of lines whose blanks are layout: they are indented, or stand in a table."""
    filled = [place for place, line in enumerate(lines) if line]
    gaps = [bool(_GAP.search(lines[place])) for place in filled]
    result = set()
    for number, place in enumerate(filled):
        line = lines[place]
        near = gaps[max(0, number - _NEAR_LINES) : number] + gaps[number + 1 : number + 1 + _NEAR_LINES]
        if line[0] in " \t" or (gaps[number] and (any(near) or _CELL_BY_TAB.search(line))):
            result.add(place)
    return result


def lost_structure(text: str) -> re.Match[str] | None:
    """The first part of a text that says something by its layout, which `collapse_all` takes away.

    A list, a table, code, indentation, or lines that end where they were meant to. Paragraphs alone are none.
    """
    if text.isprintable():
        return None
    body = unify_breaks(text.strip())
    return (_STRUCTURE if "\n" in body else _CELLS).search(body)
