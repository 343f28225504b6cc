"""One text: its white space, when it counts as the same as another, and its words.

White space is layout and stays, or noise and goes. Texts are the same as copies of a row, or as one question in two
spellings. Words are those of every script: what scores, pages and counts of repetition compare.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

# Vertical tab, form feed, next line, line and paragraph separator end a line as well as CR and LF do.
_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_BLANK = re.compile(r"[^\S\n\t]")  # no-break, thin and wide spaces, once line breaks are line feeds
_RUN = re.compile(r"[ \t]{2,}|\t")
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


# Signs that keyboards, fonts and PDF readers write in place of one another. Micro, ohm and angstrom signs are not
# here: NFC and case folding already make them the letters μ, ω and å.
_SAME_SIGN = str.maketrans(
    {
        **dict.fromkeys("\u00ba\u02da", "\u00b0"),  # masculine ordinal, ring above: degree
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),  # hyphens, short dashes, minus
        **dict.fromkeys(
            "\u00ad\u200b\u2060\ufeff\ufe0e\ufe0f"
        ),  # not printed: soft hyphen, zero-width spaces, variants
    }
)


def copy_key(text: str) -> str:
    """What two texts share if they are copies: NFC, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def question_key(text: str) -> str:
    """What two spellings of one question share: `copy_key` without case, and one sign for those that look alike.

    Never NFKC, which makes 10⁶ and 106 the same. Source: Unicode Standard, D145, canonical caseless matching.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFD", text).translate(_SAME_SIGN)
    return copy_key(text.casefold())


def question_digests(rows: Dataset) -> np.ndarray:
    """Digests of the keys of instruction and input of each row, 16 bytes each, shape (N,)."""
    import numpy as np

    digests = bytearray()
    for instruction, given in question_texts(rows):
        instruction, given = question_key(instruction), question_key(given or "")
        digests += blake2b(f"{len(instruction)} {instruction}{given}".encode(), digest_size=16).digest()
    return np.frombuffer(digests, "S16")


def question_texts(rows: Dataset) -> Iterator[tuple[str, str | None]]:
    """Instruction and input of each row, a batch of rows in memory at a time."""
    for batch in rows.select_columns(["instruction", "input"]).iter(1_000):
        yield from zip(batch["instruction"], batch["input"], strict=True)


# Scripts that put no spaces between words are read character by character: Chinese and Japanese, and those of line
# break class SA in Unicode's annex 14 (Thai, Lao, Khmer, Myanmar). Korean too: its particles are joined to words.
_SINGLE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\p{Line_Break=Complex_Context}"
_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_SINGLE}]]"
_JOINERS = r"[\u200c\u200d](?=[\p{L}\p{M}])"  # within Persian and Indic words
_NUMBER = r"\p{Nd}+(?:[.,٫]\p{Nd}+)*"  # 0.5 is one word: half of a wrong dose is not half right
# Signs that change a quantity; not U+FFFD, which stands for what is lost.
_SIGN = r"[[\p{Sm}\p{Sc}\p{So}%‰]--[\ufffd]]\p{M}*|(?<![\p{L}\p{N}])-(?=\p{Nd})"
_WORDS = regex.compile(rf"{_NUMBER}|[{_SINGLE}]\p{{M}}*|{_LETTERS}(?:{_LETTERS}|{_JOINERS})*|{_SIGN}", regex.VERSION1)
_PIECES = regex.compile(rf"[{_SINGLE}]\p{{M}}*|[^{_SINGLE}]+", regex.VERSION1)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words, numbers and signs of a text begin and end."""
    return [match.span() for match in _WORDS.finditer(text)]


def find_words(text: str) -> list[str]:
    """Words, numbers and signs (°, %, ≥, the minus of a number) of a text in one spelling, as `question_key` has it."""
    return list(_WORDS.findall(question_key(text)))


def split_words(text: str) -> list[str]:
    """Words between white space, with their punctuation; a character each in scripts without spaces."""
    return [piece for word in text.split() for piece in _PIECES.findall(word)]


def repetition(text: str) -> float:
    """Share of a text's four-word runs that it had before: 0 for none, towards 1 for a loop; see `split_words`."""
    words = split_words(text.casefold())
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
