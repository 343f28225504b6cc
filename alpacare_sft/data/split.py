"""Rows → train, validation and test, without a question standing in two of them.

Splits are drawn, or are a publisher's own: read by name, used as they are, and kept out of the training rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import chain, tee
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.clean import CleanedRows, add_up, clean_rows
from alpacare_sft.data.load import LoadedRows, load_rows, resolve_sources
from alpacare_sft.data.text import question_digests, question_texts
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import CleanSection, DataSection, SplitsSection

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
PART = "part"
"""Column that says which split a row was published in, or `DRAWN`; only where a recipe names a split."""
DRAWN = "drawn"


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


def load_parts(data: DataSection) -> dict[str, LoadedRows]:
    """The rows to draw splits from, as `DRAWN`, and those of each split that is named, by the recipe's name for it.

    Raises:
        DataError: if the rows cannot be read, or splits of local files are named.
    """
    named = _named_splits(data.splits)
    if not named:
        return {DRAWN: load_rows(data)}
    dataset = None if isinstance(data.path, list) else resolve_sources(data.path, data.revision)[0].dataset
    if dataset is None:
        name, split = next(iter(named.items()))
        raise DataError(
            f"data.splits.{name} must be a number of rows or a fraction for local files, got {split!r}, the name of a "
            "split of a Hub data set. Give a number, or score the rows of another file with eval --rows FILE."
        )

    def part(split: str | None) -> LoadedRows:
        return load_rows(dataclasses.replace(data, path=dataclasses.replace(dataset, split=split), revision=None))

    parts = {}
    if any(size for size in vars(data.splits).values() if not isinstance(size, str)):
        parts[DRAWN] = part(dataset.split)
    elif dataset.split is not None:
        raise DataError(
            f"data.path.split must be left out, got {dataset.split!r}: data.splits names every split, and no row is "
            "drawn from it."
        )
    for name, split in named.items():
        try:
            parts[name] = part(split)
        except DataError as error:
            raise DataError(f"data.splits.{name}: {str(error).removeprefix('data.path: ')}") from error
    return parts


def clean_parts(parts: Mapping[str, LoadedRows], clean: CleanSection) -> CleanedRows:
    """Rows of all parts, cleaned; each part by itself, so that a test row is never dropped as a training row's copy.

    Returns:
        The rows, with a column `PART` if there are several parts, and the counts over all of them.
    """
    if list(parts) == [DRAWN]:
        return clean_rows(parts[DRAWN].take_batches(), clean)
    results, first_id = [], 0
    for name, part in parts.items():
        result = clean_rows(part.take_batches(first_id), clean)
        results.append(dataclasses.replace(result, rows=result.rows.add_column(PART, [name] * len(result.rows))))
        first_id += part.num_loaded
    return add_up(results)


def split_parts(
    rows: Dataset, splits: SplitsSection, seed: int, retain: Callable[[list[int]], list[int]] = list
) -> tuple[dict[str, list[int]], int]:
    """The three splits, drawn or published, as places in `rows`.

    Args:
        rows: cleaned rows, with a column `PART` where a split is named.
        splits: sizes and names.
        seed: of the draw.
        retain: of places those that can be drawn; see `split_rows`.

    Returns:
        The splits, and how many rows were dropped because their question is one of a held-out split.

    Raises:
        DataError: if there are too few rows.
    """
    named = _named_splits(splits)
    if not named:
        return split_rows(rows, splits, seed, retain), 0
    keys, parts = question_digests(rows), rows[PART][:]
    places = {part: retain([i for i, name in enumerate(parts) if name == part]) for part in (DRAWN, *named)}
    published = {keys[index] for name in named if name != "train" for index in places[name]}
    pool = [index for index in places[DRAWN] if keys[index] not in published]
    drawn = split_rows(rows.select(pool), dataclasses.replace(splits, **dict.fromkeys(named, 0)), seed)
    result = {name: [pool[place] for place in drawn[name]] for name in SPLITS} | {name: places[name] for name in named}
    dropped = len(places[DRAWN]) - len(pool)
    if "train" in named:
        held_out = published | {keys[index] for name in SPLITS[1:] for index in result[name]}
        result["train"] = [index for index in places["train"] if keys[index] not in held_out]
        dropped += len(places["train"]) - len(result["train"])
    for name in named:
        if not result[name]:
            raise DataError(f"data.splits.{name}: no row of {named[name]!r} is left. Name another split.")
    return result, dropped


def _named_splits(splits: SplitsSection) -> dict[str, str]:
    """The splits of a recipe that are the publisher's own, with the publisher's name."""
    return {name: size for name in SPLITS if isinstance(size := getattr(splits, name), str)}
