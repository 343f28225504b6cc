"""On a card: the precision that it has, TRL's own head, and the losses of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.runtime import resolve_precision
from alpacare_sft.training.train import train
from alpacare_sft.training.trainer import AnswerSFTTrainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card is here")]
Make = Callable[..., Recipe]


@pytest.fixture
def on_card(document: dict[str, Any]) -> dict[str, Any]:
    document["train"]["use_cpu"] = False
    document["lora"]["lora_dropout"] = 0.0
    return document


def test_a_run_on_a_card_matches_the_cpu(on_card: dict[str, Any], make_recipe: Make) -> None:
    card = train(make_recipe("--train.max_steps", "4"))
    cpu = train(
        make_recipe("--train.max_steps", "4", "--train.use_cpu", "true", "--output_dir", f"{on_card['output_dir']}-cpu")
    )
    assert card["precision"] in ("fp16", "bf16")
    assert card["train"]["train_loss"] == pytest.approx(cpu["train"]["train_loss"], rel=2e-2)
    assert card["train"]["peak_memory_bytes"] > 0


def test_fp16_trains_with_float32_adapters_and_a_scaler(on_card: dict[str, Any], make_recipe: Make) -> None:
    record = train(make_recipe("--train.fp16", "true", "--train.max_steps", "4"))
    assert record["precision"] == "fp16"
    assert record["status"] == "done"


def test_upstream_scores_answer_positions_by_itself(on_card: dict[str, Any], make_recipe: Make, tokenizer: Any) -> None:
    from alpacare_sft.model.base import load_base_model
    from alpacare_sft.run.directory import RunDirectory
    from alpacare_sft.training.config import build_sft_config, build_trainer

    recipe = make_recipe()
    precision = resolve_precision(recipe.train)
    data, base = prepare_data(recipe, tokenizer), load_base_model(recipe.model, precision.dtype)
    trainer = build_trainer(
        recipe, build_sft_config(recipe, RunDirectory(recipe.output_dir), precision), data, tokenizer, base
    )
    assert isinstance(trainer, AnswerSFTTrainer)
    assert not trainer._scores_every_position()
