"""Words of every script: what scores, pages and counts of repetition compare."""

from __future__ import annotations

import regex

from alpacare_sft.data.equality import question_key

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
