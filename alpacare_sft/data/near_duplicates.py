"""Near-duplicates between test and training rows: what an exact comparison does not see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

THRESHOLD = 0.7
_SHINGLE_WORDS = 3
_PERMUTATIONS = 128
_CANDIDATES_FROM = 0.5  # the sketch is approximate: look further, then compare exactly
_SHOWN_PAIRS = 100
_WORD = re.compile(r"\w+")
METHOD = (
    f"questions (instruction and input, a constant instruction left out) as sets of {_SHINGLE_WORDS} words in a row, "
    f"candidates by MinHash with {_PERMUTATIONS} permutations, then their exact Jaccard similarity"
)


def find_near_duplicates(splits: Mapping[str, Dataset], constants: Mapping[str, str]) -> dict[str, Any]:
    """Test rows whose question nearly repeats a training row's.

    Source: Broder, "On the resemblance and containment of documents", 1997; the sketches and their
    index are those of `datasketch`.

    Args:
        splits: with `train` and `test`.
        constants: instructions that the recipe filled in; they say nothing about likeness.

    Returns:
        `threshold`, `method`, `test_rows` with at least one near-duplicate, `nearest`, the most alike
        training row of each of them by id, and `pairs` with their texts, the most alike first, at most 100.
    """
    from datasketch import MinHashLSH

    train, test = splits["train"], splits["test"]
    index = MinHashLSH(threshold=_CANDIDATES_FROM, num_perm=_PERMUTATIONS)
    shingles = [_shingles(question) for question in _questions(train, constants)]
    for number, words in enumerate(shingles):
        index.insert(number, _sketch(words))
    pairs = []
    for place, question in enumerate(_questions(test, constants)):
        words = _shingles(question)
        for number in sorted(index.query(_sketch(words))):
            similarity = len(words & shingles[number]) / len(words | shingles[number])
            if similarity >= THRESHOLD:
                pairs.append((similarity, place, number))
    pairs.sort(reverse=True)
    nearest: dict[int, dict[str, Any]] = {}
    for similarity, place, number in pairs:
        told = {"test": test[place]["id"], "train": train[number]["id"], "similarity": round(similarity, 4)}
        nearest.setdefault(place, told)
    return {
        "threshold": THRESHOLD,
        "method": METHOD,
        "test_rows": len(nearest),
        "nearest": list(nearest.values()),
        "pairs": [
            {"similarity": round(similarity, 4), "test": _text(test[place]), "train": _text(train[number])}
            for similarity, place, number in pairs[:_SHOWN_PAIRS]
        ],
    }


def _questions(rows: Dataset, constants: Mapping[str, str]) -> Iterable[str]:
    for instruction, given in zip(rows["instruction"], rows["input"], strict=True):
        yield given if instruction == constants.get("instruction") and given else f"{instruction} {given}"


def _shingles(text: str) -> frozenset[str]:
    words = _WORD.findall(text.casefold())
    size = min(_SHINGLE_WORDS, max(len(words), 1))
    return frozenset(" ".join(words[i : i + size]) for i in range(max(len(words) - size + 1, 1)))


def _sketch(words: frozenset[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch([word.encode() for word in words])
    return sketch


def _text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "instruction", "input", "output")}
