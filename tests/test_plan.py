"""What a recipe will need: counted without weights, equal to what real steps hold and compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alpacare_sft.cli import main
from alpacare_sft.errors import RecipeError
from alpacare_sft.model.base import load_config
from alpacare_sft.model.cost import trace_layers
from alpacare_sft.reporting.terminal import show_plan
from alpacare_sft.training import train as training
from alpacare_sft.training.config import build_lora_config
from alpacare_sft.training.plan import Plan, Target, find_target, plan_run
from tests.benchmarks.memory_plan import held_bytes

pytestmark = pytest.mark.slow


def real_model(recipe: Any) -> Any:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(load_config(recipe.model))
    return get_peft_model(model, build_lora_config(recipe)).train()


@pytest.mark.parametrize("rows", [1, 3])
def test_bytes_and_operations_are_those_of_a_real_step(
    rows: int, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe("--lora.lora_dropout", "0")
    cost = trace_layers(load_config(recipe.model), build_lora_config(recipe), rows, 64, dtype="float32")
    model = real_model(recipe)
    ids, mask = torch.zeros(rows, 64, dtype=torch.long), torch.ones(rows, 64, dtype=torch.long)
    if rows > 1:
        mask[0, -3:] = 0
    layers = model.base_model.model.model

    def step() -> None:
        layers(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.sum().backward()

    with FlopCounterMode(display=False) as counted:
        step()
    model.zero_grad()
    held = held_bytes(step, tmp_path / "trace.json")
    assert cost.operations == counted.get_total_flops()
    assert cost.trained_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cost.peak_bytes == pytest.approx(held, rel=0.1)


def test_more_rows_cost_what_they_add(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe()
    plan = Plan(recipe, find_target("t4"))
    traced = trace_layers(plan.config, plan.lora, 6, 64, dtype=plan.dtype, half=plan.half)
    assert plan.cost(6, False, 64).peak_bytes == pytest.approx(traced.peak_bytes, rel=0.02)
    assert plan.cost(6, False, 64).operations == pytest.approx(traced.operations, rel=0.001)


def test_a_recipe_that_does_not_fit_is_told_the_cheapest_change(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe("--train.per_device_train_batch_size", "4", "--train.gradient_accumulation_steps", "1")
    peaks = {one["rows_per_forward"]: one["peak_bytes"] for one in Plan(recipe, find_target("t4")).settings()}
    assert list(peaks) == [1, 2, 4] and peaks[1] < peaks[2] < peaks[4]
    plan = Plan(recipe, Target("a small card", peaks[2] + 1, is_gpu=True))
    assert plan.change_that_fits() == "--train.per_device_train_batch_size 2 --train.gradient_accumulation_steps 2"
    assert Plan(recipe, Target("a tiny card", 1000, is_gpu=True)).change_that_fits() is None


def small(memory_bytes: int) -> Callable[..., Target]:
    return lambda *_: Target("a tiny card", memory_bytes, is_gpu=True)


def test_a_run_that_cannot_fit_is_refused_before_weights_are_read(
    make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe("--train.max_steps", "1", "--train.eval_strategy", "no")
    monkeypatch.setattr(training, "find_target", small(2**20))
    told = r"needs 0\.\d GiB .* rows of 1\d\d tokens, one a forward .* a tiny card has 0\.0 GiB.* --force"
    with monkeypatch.context() as patch, pytest.raises(RecipeError, match=told):
        patch.setattr(training, "load_base_model", None)
        training.train(recipe)
    words = ["--train.max_steps", "1", "--train.eval_strategy", "no", "--force"]
    assert main(["train", str(recipe.output_dir.parent / "recipe.yaml"), *words]) == 0
    assert "done: 1 steps" in capsys.readouterr().out


def test_a_step_that_cannot_be_traced_is_trained_all_the_same(
    make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no rule for aten::odd")

    monkeypatch.setattr("alpacare_sft.training.plan.trace_layers", fail)
    training.train(make_recipe("--train.max_steps", "1", "--train.eval_strategy", "no"))
    assert "memory is not planned for, as this model's step cannot be traced: no rule" in capsys.readouterr().out


def test_forwards_hold_what_there_is_room_for(make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe("--train.max_steps", "1", "--train.eval_strategy", "no", "--forward.rows", "auto")
    plan = Plan(make_recipe("--train.fp16", "false", "--train.bf16", "false"), find_target("t4"))  # as on a CPU
    one = plan.training(1)
    room = one["peak_bytes"] + one["parts"]["activations"] + one["parts"]["head"]  # for two of the longest rows
    assert Plan(plan.recipe, Target("a small card", room, is_gpu=True)).most_tokens() == 2 * plan.longest
    build, built = training.build_trainer, []
    monkeypatch.setattr(training, "find_target", small(room))
    monkeypatch.setattr(training, "build_trainer", lambda *given: built.append(build(*given)) or built[0])
    training.train(recipe)
    assert built[0].packer.most_tokens == 2 * plan.longest


def test_steps_and_tokens_are_those_of_the_rows(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe("--train.max_steps", "-1", "--train.num_train_epochs", "2")
    plan = Plan(recipe, find_target(None))
    steps = plan.steps()
    tokens = sum(len(ids) for ids in plan.data.splits["train"]["input_ids"])
    assert steps["tokens_per_epoch"] == tokens and steps["tokens"] == 2 * tokens
    assert steps["steps_per_epoch"] == -(-len(plan.lengths) // plan.rows_per_step)


def test_a_plan_is_a_table_or_json_and_needs_no_weights(
    make_recipe: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recipe = make_recipe()
    plan = plan_run(recipe, "t4")
    json.dumps(plan)
    show_plan(plan)
    out = capsys.readouterr().out
    assert "NVIDIA T4" in out and "left over" in out and "It fits." in out and "modelled" in out
    assert max(map(len, out.splitlines())) <= 80
    assert not recipe.output_dir.exists()


@pytest.mark.parametrize("gpu", ["t5", "0", "-3", "nan", "inf"])
def test_a_card_that_is_none_is_told(gpu: str) -> None:
    with pytest.raises(RecipeError, match="--gpu must be one of t4, l4"):
        find_target(gpu)


def test_the_command_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipes/demo.yaml", "--gpu", "t4", "--json", "--train.max_length", "200"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["seconds"][0] < plan["seconds"][1] and plan["basis"] == "modelled"


def test_more_rows_a_forward_than_the_table_has_are_planned(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe("--train.per_device_train_batch_size", "48", "--train.gradient_accumulation_steps", "1")
    assert plan_run(recipe, "t4")["training"][-1]["rows_per_forward"] == 48
