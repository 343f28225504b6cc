"""A publisher's own splits: read by name, used as they are, and kept out of the training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from alpacare_sft.data.clean import CleanedRows, add_up, clean_rows
from alpacare_sft.data.equality import question_digests
from alpacare_sft.data.load import LoadedRows, load_rows
from alpacare_sft.data.sources import resolve_sources
from alpacare_sft.data.split import SPLITS, split_rows
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import CleanSection, DataSection, SplitsSection

if TYPE_CHECKING:
    from datasets import Dataset

PART = "part"
"""Column that says which split a row was published in, or `DRAWN`; only where a recipe names a split."""
DRAWN = "drawn"


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
