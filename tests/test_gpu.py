"""On a card: the precision that it has, TRL's own head, and the losses of the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from alpacare_sft import evaluate
from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.runtime import resolve_precision
from alpacare_sft.training.plan import plan_run
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


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_resume_on_a_card_takes_the_steps_that_were_left(
    precision: str, on_card: dict[str, Any], make_recipe: Make
) -> None:
    if precision == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this card only emulates bfloat16")
    recipe = make_recipe(f"--train.{precision}", "true", "--train.max_steps", "6")
    whole = train(recipe)
    shutil.rmtree(recipe.output_dir / "adapter")
    shutil.rmtree(recipe.output_dir / "checkpoints" / "checkpoint-6")
    again = train(recipe)
    assert again["status"] == "done" and again["precision"] == precision
    assert again["train"]["train_loss"] == pytest.approx(whole["train"]["train_loss"], rel=1e-3)


def test_answers_come_from_merged_weights_on_a_card(on_card: dict[str, Any], make_recipe: Make) -> None:
    recipe = make_recipe("--train.max_steps", "4", "--generate.max_new_tokens", "8")
    train(recipe)
    scores = evaluate(recipe).scores
    assert scores["metrics"]["loss"]["n"] == 6 and scores["model"]["positions"] > 0


def test_the_plan_is_what_the_card_held(on_card: dict[str, Any], make_recipe: Make) -> None:
    recipe = make_recipe("--train.max_steps", "2", "--train.eval_strategy", "no")
    plan = plan_run(recipe)
    held = train(recipe)["train"]["peak_memory_bytes"]
    own = next(one for one in plan["training"] if one["rows_per_forward"] == plan["rows_per_forward"])
    predicted = own["peak_bytes"] - own["parts"]["CUDA context"]
    assert abs(predicted - held) <= max(64 * 2**20, 0.1 * held), (predicted, held)


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
