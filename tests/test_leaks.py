"""Near-duplicates between test and training rows, and the rows worth a look."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from alpacare_sft.data.near_duplicates import find_near_duplicates
from alpacare_sft.data.report import repetition

LETTER = "Hello doctor, I have had a dry cough for two weeks and a fever since Monday. What should I do about it now?"


def rows(*texts: str, instruction: str = "Answer the patient.") -> Dataset:
    columns: dict[str, list[Any]] = {
        "id": list(range(len(texts))),
        "instruction": [instruction] * len(texts),
        "input": list(texts),
        "output": ["An answer."] * len(texts),
    }
    return Dataset.from_dict(columns)


def test_a_changed_word_is_found_and_another_question_is_not() -> None:
    train = rows(LETTER.replace("Monday", "Tuesday"), "My knee hurts when I climb the stairs at home.")
    found = find_near_duplicates({"train": train, "test": rows(LETTER)}, {"instruction": "Answer the patient."})
    assert found["test_rows"] == 1
    assert [(pair["test"]["id"], pair["train"]["id"]) for pair in found["pairs"]] == [(0, 0)]
    assert 0.7 <= found["pairs"][0]["similarity"] < 1


def test_a_constant_instruction_makes_nothing_alike() -> None:
    long = "Read the letter of the patient below with care and answer it as a kind and careful doctor would do. " * 2
    train, test = rows("My knee hurts.", instruction=long), rows("I cough a lot.", instruction=long)
    assert find_near_duplicates({"train": train, "test": test}, {"instruction": long})["pairs"] == []
    assert len(find_near_duplicates({"train": train, "test": test}, {})["pairs"]) == 1


def test_an_empty_test_split_has_none() -> None:
    assert find_near_duplicates({"train": rows(LETTER), "test": rows().select([])}, {})["test_rows"] == 0


@pytest.mark.parametrize(
    ("text", "share"), [("one two three four five", 0.0), ("a b c d " * 5, 13 / 17), ("short", 0.0), ("", 0.0)]
)
def test_repetition_is_the_share_of_runs_seen_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)
