"""Real records, where a developer has them beside the checkout: letters and clinicians' instructions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.loading import Recipe

Make = Callable[..., Recipe]
SIZES = ("--data.splits.train", "200", "--data.splits.validation", "50", "--data.splits.test", "100")


def test_letters_need_an_instruction_and_get_it_from_a_constant(
    make_recipe: Make, tokenizer: Any, real_records: Path
) -> None:
    letters = ("--data.path", f"{real_records}/icliniq_*.jsonl", *SIZES, "--train.max_length", "1024")
    with pytest.raises(DataError, match=r"drop_missing dropped 2,000\..*data\.constants\.instruction"):
        prepare_data(make_recipe(*letters), tokenizer)
    data = prepare_data(make_recipe(*letters, "--data.constants.instruction", "Answer the patient."), tokenizer)
    assert data.report["rows"]["filled"] == {"instruction": 2000}
    assert [len(part) for part in data.splits.values()] == [200, 50, 100]


def test_two_answers_to_one_question_never_stand_in_two_splits(
    make_recipe: Make, tokenizer: Any, real_records: Path
) -> None:
    words = ("--data.path", f"{real_records}/clinician216_gpt*.jsonl", *SIZES, "--train.max_length", "1024")
    data = prepare_data(make_recipe(*words), tokenizer)
    asked = [{row["instruction"] for row in part} for part in data.splits.values()]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert data.report["splits"]["train"]["open_end"] > 0.4 * 200  # these answers were cut where they were made


def test_the_seed_tasks_have_no_output_and_are_told_so(make_recipe: Make, tokenizer: Any, real_records: Path) -> None:
    with pytest.raises(DataError, match=r"data\.columns\.output .* topic, view, type"):
        prepare_data(make_recipe("--data.path", f"{real_records}/seed_tasks167.json"), tokenizer)
