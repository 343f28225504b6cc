"""Rows → train, validation and test, without a question standing in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.equality import question_keys
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import SplitsSection

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")


def split_rows(rows: Dataset, splits: SplitsSection, seed: int) -> dict[str, Dataset]:
    """Draw the splits at random, in groups of rows with the same question.

    The order of the draw is that of SHA-256 over the seed and the text of the group's first row, so it
    depends on nothing but these. The test split is drawn first, then validation, then train: a recipe with
    more training rows keeps its test rows.

    Args:
        rows: cleaned rows.
        splits: sizes, in rows or as fractions of `rows`.
        seed: of the draw.

    Returns:
        The three splits, each in the order of the draw.

    Raises:
        DataError: if there are too few rows.
    """
    sizes = _sizes(len(rows), splits)
    groups: dict[tuple[str, str], list[int]] = {}
    for index, key in enumerate(question_keys(rows)):
        groups.setdefault(key, []).append(index)
    instructions, inputs = rows["instruction"][:], rows["input"][:]  # whole columns: one row at a time is slow
    # By the text itself and not by its key, so that rows of one spelling are drawn as they always were.
    pool = sorted(groups.values(), key=lambda group: _draw_key(seed, instructions[group[0]], inputs[group[0]] or ""))
    chosen: dict[str, list[int]] = {}
    for name in reversed(SPLITS):
        chosen[name], pool = _take(pool, sizes[name])
        if len(chosen[name]) < sizes[name]:
            raise DataError(
                f"data.splits.{name} must be at most {len(chosen[name])}, got {sizes[name]}: no group of rows with "
                "one question is left whole. Ask for fewer rows."
            )
    return {name: rows.select(chosen[name]) for name in SPLITS}


def _draw_key(seed: int, instruction: str, given: str) -> str:
    return hashlib.sha256(f"{seed}\x00{instruction}\x00{given}".encode()).hexdigest()


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


def _take(pool: list[list[int]], size: int) -> tuple[list[int], list[list[int]]]:
    """Whole groups from the front of `pool` until `size` rows are taken; what was left over.

    A group that does not fit goes on to the next split. If whole groups cannot fill the last
    places, a group is taken in part and the rest of it is left unused: it cannot leak.
    """
    taken: list[int] = []
    left: list[list[int]] = []
    for group in pool:
        if len(taken) + len(group) <= size:
            taken += group
        else:
            left.append(group)
    if len(taken) < size and left:
        taken += left.pop(0)[: size - len(taken)]
    return taken, left
