"""The draw: exact sizes, no question in two splits, and the same rows on any machine."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest

from alpacare_sft.data.split import SPLITS, split_rows
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import SplitsSection

SEEDS = range(12)


def dataset(groups: Sequence[int]) -> Any:
    """Rows of as many answers to each question as `groups` says, questions taking turns."""
    from datasets import Dataset

    rows = [
        (f"question {g}", f"input {g % 3}", turn)
        for turn in range(max(groups))
        for g, n in enumerate(groups)
        if turn < n
    ]
    columns = ("instruction", "input", "turn")
    return Dataset.from_list([dict(zip(columns, row, strict=True)) | {"id": i} for i, row in enumerate(rows)])


def drawn(rows: Any, train: float, validation: float, test: float, seed: int = 42) -> dict[str, list[int]]:
    splits = split_rows(rows, SplitsSection(train=train, validation=validation, test=test), seed)
    assert tuple(splits) == SPLITS
    return {name: rows.select(places)["id"][:] for name, places in splits.items()}


def sizes(splits: dict[str, list[int]]) -> list[int]:
    return [len(ids) for ids in splits.values()]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((30, 5, 5), [30, 5, 5]),
        ((1, 0, 0), [1, 0, 0]),
        ((40, 0, 0), [40, 0, 0]),
        ((0.8, 0.1, 0.1), [32, 4, 4]),
        ((0.5, 0.26, 3), [20, 10, 3]),
    ],
)
def test_splits_have_exactly_the_rows_asked_for(asked: Any, expected: list[int]) -> None:
    splits = drawn(dataset([1] * 40), *asked)
    assert sizes(splits) == expected
    assert len({row for ids in splits.values() for row in ids}) == sum(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_question_never_stands_in_two_splits(seed: int) -> None:
    rows = dataset([1, 2, 3, 1, 4, 2, 1, 5, 3, 2, 1, 1, 2, 6, 1, 1])
    places = split_rows(rows, SplitsSection(train=20, validation=6, test=6), seed)
    splits = {name: rows.select(part) for name, part in places.items()}
    questions = [set(zip(part["instruction"], part["input"], strict=True)) for part in splits.values()]
    assert [len(part) for part in splits.values()] == [20, 6, 6]
    assert questions[0] & questions[1] == questions[0] & questions[2] == questions[1] & questions[2] == set()


def test_the_same_instruction_on_another_input_is_another_question() -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"id": n, "instruction": "Say it plainly.", "input": f"text {n}"} for n in range(6)])
    assert sizes(drawn(rows, 2, 2, 2)) == [2, 2, 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_draw_does_not_depend_on_the_order_of_the_rows(seed: int) -> None:
    rows = dataset([1] * 30)
    turned = rows.select(list(reversed(range(30))))
    assert drawn(rows, 20, 5, 5, seed) == drawn(turned, 20, 5, 5, seed)


def test_the_draw_is_the_same_on_every_machine() -> None:
    order = [1, 8, 5, 3, 4, 2, 0, 7, 6, 9]  # by SHA-256 of "42\0question n\0input n % 3"
    splits = {"train": order[4:9], "validation": order[2:4], "test": order[:2]}
    assert drawn(dataset([1] * 10), 5, 2, 2) == splits


SPELLINGS = [unicodedata.normalize("NFD", "Où siège la fièvre ?"), "Où siège la fièvre ?", "OÙ SIÈGE\xa0LA FIÈVRE ?"]


def respelt(first: str, *others: str) -> Any:
    """Ten rows of a spelling each, then other spellings of the first row's question."""
    from datasets import Dataset

    texts = [
        (first, "5 µg"),
        *((f"question {n}", f"input {n % 3}") for n in range(9)),
        *((text, "5 μg") for text in others),
    ]
    return Dataset.from_list([{"id": n, "instruction": text, "input": given} for n, (text, given) in enumerate(texts)])


@pytest.mark.parametrize("seed", SEEDS)
def test_spellings_of_one_question_never_stand_in_two_splits(seed: int) -> None:
    splits = drawn(respelt(*SPELLINGS), 6, 3, 3, seed)
    assert [sum(row in (0, 10, 11) for row in ids) for ids in splits.values() if set(ids) & {0, 10, 11}] == [3]


def test_a_group_is_drawn_by_the_text_of_its_first_row() -> None:
    alone = drawn(respelt(SPELLINGS[0]), 4, 3, 3)
    order = [row for name in ("test", "validation", "train") for row in alone[name]]
    group = drawn(respelt(*SPELLINGS), 12, 0, 0)["train"]
    assert [row for row in group if row < 10] == order
    assert group[group.index(0) :][:3] == [0, 10, 11]


def test_another_seed_draws_other_rows() -> None:
    draws = [drawn(dataset([1] * 30), 20, 5, 5, seed)["test"] for seed in SEEDS]
    assert len({tuple(draw) for draw in draws}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_test_and_validation_rows_stay_when_train_grows(seed: int) -> None:
    rows = dataset([1, 2, 3] * 8)
    small, large = drawn(rows, 10, 6, 7, seed), drawn(rows, 30, 6, 7, seed)
    assert (small["test"], small["validation"]) == (large["test"], large["validation"])
    assert large["train"][:1] == small["train"][:1]


@pytest.mark.parametrize("seed", SEEDS)
def test_test_rows_stay_when_validation_grows(seed: int) -> None:
    rows = dataset([1, 2, 3] * 8)
    assert drawn(rows, 10, 0, 7, seed)["test"] == drawn(rows, 10, 9, 7, seed)["test"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rest_of_a_group_taken_in_part_is_left_unused(seed: int) -> None:
    rows = dataset([4, 4, 4])
    splits = drawn(rows, 4, 2, 3, seed)
    question = {row["id"]: row["instruction"] for row in rows}
    used = [{question[row] for row in ids} for ids in splits.values()]
    assert sizes(splits) == [4, 2, 3]
    assert [len(questions) for questions in used] == [1, 1, 1]
    assert len(set.union(*used)) == 3


def test_what_is_not_asked_for_is_left_unused() -> None:
    assert sum(sizes(drawn(dataset([1] * 40), 10, 2, 3))) == 15


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            (30, 6, 5),
            r"data\.splits must not ask for more rows than there are: 30 train \+ 6 validation \+ 5 test = 41",
        ),
        ((40, 0.5, 0), r"40 train \+ 20 validation \+ 0 test = 60, and 40 are left"),
        ((0.01, 1, 1), r"data\.splits\.train: 0\.01 of 40 rows is no row"),
    ],
)
def test_too_few_rows_are_told_in_numbers(asked: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        drawn(dataset([1] * 40), *asked)


def test_too_few_questions_are_told_by_split() -> None:
    with pytest.raises(DataError, match=r"data\.splits\.train must be at most 0, got 4: no group of rows"):
        drawn(dataset([6, 6]), 4, 2, 2)


def test_no_more_rows_are_looked_at_than_the_splits_need() -> None:
    seen: list[int] = []

    def retain(group: list[int]) -> list[int]:
        seen.extend(group)
        return [place for place in group if place % 5]

    rows = dataset([1] * 60)
    drawn_places = split_rows(rows, SplitsSection(train=12, validation=4, test=4), 42, retain)
    assert len(seen) < 30 and all(place % 5 for places in drawn_places.values() for place in places)
    whole = rows.select([place for place in range(60) if place % 5])
    assert {name: rows.select(places)["id"][:] for name, places in drawn_places.items()} == drawn(whole, 12, 4, 4)
