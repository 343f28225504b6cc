"""The rows that come with the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.recipe.names import EMBEDDED_FILES
from alpacare_sft.reporting.terminal import split_table


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in EMBEDDED_FILES["embedded"].open(encoding="utf-8")]


def test_there_are_enough_rows_and_a_third_has_an_input(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 300
    assert all(list(row) == ["instruction", "input", "output"] for row in rows)
    assert 0.3 <= sum(bool(row["input"]) for row in rows) / len(rows) <= 0.4


def test_answers_have_20_to_200_words_and_no_question_stands_twice(rows: list[dict[str, str]]) -> None:
    assert all(20 <= len(row["output"].split()) <= 200 for row in rows)
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)
    assert len({row["output"] for row in rows}) == len(rows)


def test_no_template_made_them(rows: list[dict[str, str]]) -> None:
    """No opening of five words is shared by more than one row in fifty."""
    for key in ("instruction", "output"):
        openings = [" ".join(row[key].split()[:5]) for row in rows]
        assert max(map(openings.count, openings)) <= len(rows) / 50, key


def test_cleaning_finds_nothing_to_mend_in_them(rows: list[dict[str, str]], make_recipe: Any, tokenizer: Any) -> None:
    report = prepare_data(make_recipe(), tokenizer).report
    assert [(step["dropped"], step["changed"]) for step in report["steps"]] == [(0, 0)] * len(report["steps"])


def test_what_was_compared_is_told_in_the_terminal(make_recipe: Any, tokenizer: Any) -> None:
    report = prepare_data(make_recipe(), tokenizer).report
    assert 0.99 < report["near_duplicates"]["seen_fraction"] <= 1
    report["near_duplicates"]["seen_fraction"] = 0.731
    assert "The comparison read 73.1% of the questions' letters" in str(split_table(report).caption)


def test_answers_to_one_question_stay_in_one_split(make_recipe: Callable[..., Recipe], tokenizer: Any) -> None:
    """The dirty rows hold two questions with two answers each."""
    for seed in range(5):
        words = ("--data.path", "embedded_dirty", "--data.seed", str(seed), "--train.max_length", "1024")
        sizes = [f"--data.splits.{name}={size}" for name, size in (("train", 0.6), ("validation", 0.2), ("test", 0.2))]
        data = prepare_data(make_recipe(*words, *sizes), tokenizer)
        assert data.report["shared_questions"] == 0
