"""Rows → train, validation and test, without a question standing in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import chain, tee
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.equality import question_digests, question_texts
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import SplitsSection

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

SPLITS = ("train", "validation", "test")


def split_rows(
    rows: Dataset, splits: SplitsSection, seed: int, retain: Callable[[list[int]], list[int]] = list
) -> dict[str, list[int]]:
    """Draw the splits at random, in groups of rows with the same question.

    The order of the draw is that of SHA-256 over the seed and the text of the group's first row, so it
    depends on nothing but these. The test split is drawn first, then validation, then train: a recipe with
    more training rows keeps its test rows.

    Args:
        rows: cleaned rows.
        splits: sizes, in rows or as fractions of the rows that can be drawn.
        seed: of the draw.
        retain: of the places of a group those that can be drawn; with sizes in rows it is asked in the order of the
            draw, until the splits are full.

    Returns:
        Places in `rows`, for each split in the order of the draw.

    Raises:
        DataError: if there are too few rows.
    """
    pool = _in_order(rows, seed, retain)
    available = len(rows)
    if any(isinstance(getattr(splits, name), float) for name in SPLITS):
        pool, counted = tee(pool)
        available = sum(map(len, counted))
    sizes = _sizes(available, splits)
    chosen: dict[str, list[int]] = {}
    for name in reversed(SPLITS):
        chosen[name], pool = _take(pool, sizes[name])
        if len(chosen[name]) < sizes[name]:
            _sizes(sum(map(len, _in_order(rows, seed, retain))), splits)
            raise DataError(
                f"data.splits.{name} must be at most {len(chosen[name])}, got {sizes[name]}: no group of rows with "
                "one question is left whole. Ask for fewer rows."
            )
    return {name: chosen[name] for name in SPLITS}


def _in_order(rows: Dataset, seed: int, retain: Callable[[list[int]], list[int]]) -> Iterator[list[int]]:
    """What can be drawn of each group, in the order of the draw; that of a group is given by its first such row."""
    import numpy as np

    keys = _draw_keys(rows, seed)
    questions = question_digests(rows)
    places = np.argsort(questions, kind="stable")  # rows of one question stand together, in their order
    starts = np.flatnonzero(np.append(True, questions[places[1:]] != questions[places[:-1]])[: len(places)])
    ends = np.append(starts[1:], len(places))
    first = places[starts]
    waiting: list[tuple[bytes, list[int]]] = []  # groups whose first row cannot be drawn
    for number in np.lexsort((first, keys[first])):
        group = places[starts[number] : ends[number]].tolist()
        key = keys[group[0]]
        while waiting and waiting[0] < (key, group):
            yield heappop(waiting)[1]
        retained = retain(group)
        if retained and keys[retained[0]] != key:
            heappush(waiting, (keys[retained[0]], retained))
        elif retained:
            yield retained
    while waiting:
        yield heappop(waiting)[1]


def _draw_keys(rows: Dataset, seed: int) -> np.ndarray:
    """What orders the draw: SHA-256 over the seed and the text of each row, its first 16 bytes, shape (N,).

    Of the text itself and not of its question key, so that rows of one spelling are drawn as they always were.
    """
    import numpy as np

    keys = bytearray()
    for instruction, given in question_texts(rows):
        keys += hashlib.sha256(f"{seed}\x00{instruction}\x00{given or ''}".encode()).digest()[:16]
    return np.frombuffer(keys, "S16")


def _sizes(available: int, splits: SplitsSection) -> Mapping[str, int]:
    asked: dict[str, Any] = {name: getattr(splits, name) for name in SPLITS}
    sizes = {name: int(size * available) if isinstance(size, float) else size for name, size in asked.items()}
    total = sum(sizes.values())
    if total > available:
        parts = " + ".join(f"{sizes[name]} {name}" for name in SPLITS)
        raise DataError(
            f"data.splits must not ask for more rows than there are: {parts} = {total:,}, and {available:,} are left "
            "after cleaning. Ask for fewer, for example as fractions (0.8, 0.1, 0.1), or give data.path more rows."
        )
    for name, size in sizes.items():
        if size == 0 and asked[name]:
            raise DataError(f"data.splits.{name}: {asked[name]} of {available} rows is no row. Ask for more.")
    return sizes


def _take(pool: Iterator[list[int]], size: int) -> tuple[list[int], Iterator[list[int]]]:
    """Whole groups from the front of `pool` until `size` rows are taken; what was left over.

    A group that does not fit goes on to the next split. If whole groups cannot fill the last
    places, a group is taken in part and the rest of it is left unused: it cannot leak.
    """
    taken: list[int] = []
    left: list[list[int]] = []
    while len(taken) < size and (group := next(pool, None)) is not None:
        if len(taken) + len(group) <= size:
            taken += group
        else:
            left.append(group)
    if len(taken) < size and left:
        taken += left.pop(0)[: size - len(taken)]
    return taken, chain(left, pool)
