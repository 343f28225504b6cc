"""Near-duplicates between test and training rows: what an exact comparison does not see."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.text import question_key

if TYPE_CHECKING:
    from datasets import Dataset

THRESHOLD = 0.7  # a question of 20 words with one of them changed is at 15 / 21
_SHINGLE_WORDS = 3  # two words in a row are shared by chance
_SHOWN_PAIRS = 100
METHOD = (
    f"questions (instruction and input, a constant instruction left out) as sets of {_SHINGLE_WORDS} words in a row, "
    "without case and Unicode forms; where a script writes no spaces (Chinese, Japanese, Thai and others), each two "
    "characters in a row count as a word; Jaccard similarity of the sets"
)
_ASCII_WORD = re.compile(r"\w+")  # as the pattern `run` below, in half the time


def find_near_duplicates(splits: Mapping[str, Dataset], constants: Mapping[str, str]) -> dict[str, Any]:
    """Test rows whose question nearly repeats a training row's.

    Source: Broder, "On the resemblance and containment of documents", 1997.

    Args:
        splits: with `train` and `test`.
        constants: instructions that the recipe filled in; they say nothing about likeness.

    Returns:
        `threshold`, `method`, `seen_fraction` of the text (see `_seen_fraction`), `test_rows` with at least one
        near-duplicate, `nearest`, the most alike training row of each of them by id, and `pairs` with
        their texts, the most alike first, at most 100.
    """
    train, test = splits["train"], splits["test"]
    train_questions, test_questions = _questions(train, constants), _questions(test, constants)
    pairs = _alike(train_questions, test_questions)
    pairs.sort(reverse=True)
    nearest: dict[int, dict[str, Any]] = {}
    for similarity, place, number in pairs:
        pair = {"test": test[place]["id"], "train": train[number]["id"], "similarity": round(similarity, 4)}
        nearest.setdefault(place, pair)
    return {
        "threshold": THRESHOLD,
        "method": METHOD,
        "seen_fraction": _seen_fraction([*train_questions, *test_questions]),
        "test_rows": len(nearest),
        "nearest": list(nearest.values()),
        "pairs": [
            {"similarity": round(similarity, 4), "test": _text(test[place]), "train": _text(train[number])}
            for similarity, place, number in pairs[:_SHOWN_PAIRS]
        ],
    }


def _alike(train: list[str], test: list[str]) -> list[tuple[float, int, int]]:
    """Every pair of at least `THRESHOLD`: its similarity, the place in `test` and that in `train`.

    A row that similar to a test row shares more than `THRESHOLD` of the test row's shingles, so at least one
    of any 1 - `THRESHOLD` of them and one more: the rarest are looked up, which few rows have.
    Source: Chaudhuri et al., "A Primitive Operator for Similarity Joins in Data Cleaning", 2006 (prefix filter).
    """
    shingles = [_shingles(question) for question in test]
    count = Counter(chain.from_iterable(shingles))
    places = defaultdict(list)
    for place, words in enumerate(shingles):
        rarest = sorted(words, key=count.__getitem__)[: int((1 - THRESHOLD) * len(words) + 1e-9) + 1]
        for word in rarest:
            places[word].append(place)
    pairs = []
    for number, question in enumerate(train):
        words = _shingles(question)
        for place in set(chain.from_iterable(places[word] for word in words & places.keys())):
            similarity = len(words & shingles[place]) / len(words | shingles[place])
            if similarity >= THRESHOLD:
                pairs.append((similarity, place, number))
    return pairs


@cache
def _patterns() -> dict[str, Any]:
    r"""Of `regex`, which knows Unicode's properties: runs of text, characters with their marks, and signs.

    `\w` of `re` leaves out combining marks, which are the vowels of Thai and of the scripts of India. The
    scripts without spaces are those that the Unicode Standard Annex #29 leaves out of ALetter.
    """
    import regex

    word = r"[\p{L}\p{N}_][\p{Mn}\p{Mc}]*"
    unspaced = r"[\p{Ideographic}\p{Hiragana}\p{WB=Katakana}\p{LB=Complex_Context}]"
    return {
        "unspaced": regex.compile(unspaced),
        "character": regex.compile(word),
        "run": regex.compile(rf"(?:(?={unspaced}){word})+|(?:(?!{unspaced}){word})+"),
        "sign": regex.compile(r"[\p{S}\p{Co}\p{Cn}]+"),
    }


def _runs(text: str) -> list[str]:
    """Words, and where a script writes no spaces between words all that stands together."""
    runs: list[str] = (_ASCII_WORD if text.isascii() else _patterns()["run"]).findall(text)
    return runs


def _words(runs: list[str]) -> Iterator[str]:
    """Words; pairs of characters for those of a script without spaces."""
    for run in runs:
        if run.isascii() or not _patterns()["unspaced"].match(run):
            yield run
        else:
            characters = _patterns()["character"].findall(run)
            yield from map("".join, pairwise(characters)) if len(characters) > 1 else (run,)


def _seen_fraction(questions: list[str]) -> float | None:
    """Share of the characters that are compared, white space and punctuation counted on neither side.

    Not compared are signs (%, ±, emoji) and private-use characters. Rounded down, so that 1 means all; None
    if there is no character.
    """
    read = sum(len(run) for text in questions for run in _runs(text))
    signs = sum(len(run) for text in questions for run in _patterns()["sign"].findall(text))
    return math.floor(1000 * read / (read + signs)) / 1000 if read + signs else None


def _questions(rows: Dataset, constants: Mapping[str, str]) -> list[str]:
    columns = zip(rows["instruction"][:], rows["input"][:], strict=True)
    filled = constants.get("instruction")
    return [question_key(given if text == filled and given else f"{text} {given}") for text, given in columns]


def _shingles(text: str) -> frozenset[str]:
    words = list(_words(_runs(text)))
    size = min(_SHINGLE_WORDS, max(len(words), 1))
    return frozenset(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def _text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "instruction", "input", "output")}
