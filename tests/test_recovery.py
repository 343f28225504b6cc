"""Out of memory in mid-run: loss and update are as if nothing had been, and what worked is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alpacare_sft import train
from alpacare_sft.errors import RunError
from alpacare_sft.evaluation.generation import generate_answers
from alpacare_sft.recipe.sections import GenerateSection
from alpacare_sft.runtime import is_out_of_memory
from alpacare_sft.training.callbacks import MOST_SKIPPED, Account
from alpacare_sft.training.trainer import AnswerSFTTrainer
from tests.test_trainer import Make, make_trainer

WORDS = ("--lora.lora_dropout", "0", "--train.per_device_train_batch_size", "4", "--train.max_steps", "3")
SHORT = (*WORDS, "--train.gradient_accumulation_steps", "1", "--train.eval_steps", "1", "--train.logging_steps", "1")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def trained_weights(make_recipe: Make, tokenizer: Any) -> tuple[AnswerSFTTrainer, list[torch.Tensor]]:
    trainer = make_trainer(make_recipe(*SHORT), tokenizer)
    trainer.train()
    return trainer, [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]


def losses(trainer: AnswerSFTTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def fail_above(rows: int, method: Callable[..., Any], fails: list[int]) -> Callable[..., Any]:
    """The method, which runs out of memory with more rows than it is allowed."""

    def limited(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if len(inputs["labels"]) > rows:
            fails.append(len(inputs["labels"]))
            raise FULL
        return method(self, model, inputs, *args, **kwargs)

    return limited


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 1])
def test_a_forward_that_fails_is_repeated_in_parts(
    rows: int, make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, expected = trained_weights(make_recipe, tokenizer)
    fails: list[int] = []
    monkeypatch.setattr(AnswerSFTTrainer, "compute_loss", fail_above(rows, AnswerSFTTrainer.compute_loss, fails))
    trainer, weights = trained_weights(make_recipe, tokenizer)
    assert losses(trainer, "loss") == pytest.approx(losses(plain, "loss"), abs=1e-5)
    assert losses(trainer, "eval_loss") == pytest.approx(losses(plain, "eval_loss"), abs=1e-5)
    for ours, theirs in zip(weights, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert trainer.account.recovery.rows == rows
    assert fails.count(4) < 3 + 3 * 2  # a training batch fails once, not at every step
    assert trainer.account.recovery.describe()["rows_per_forward"] == rows


@pytest.mark.slow
def test_a_backward_that_fails_half_way_leaves_no_gradient(
    make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trained_weights(make_recipe, tokenizer)
    trainer = make_trainer(make_recipe(*SHORT), tokenizer)
    backward, calls = trainer.accelerator.backward, []

    def fails_once(loss: torch.Tensor, **kwargs: Any) -> None:
        backward(loss, **kwargs)
        calls.append(loss)
        if len(calls) == 1:
            raise FULL

    monkeypatch.setattr(trainer.accelerator, "backward", fails_once)
    trainer.train()
    assert trainer.account.recovery.times == 1
    for ours, theirs in zip((p for p in trainer.model.parameters() if p.requires_grad), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3])
def test_a_step_that_fails_half_way_is_taken_again(
    at: int, make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, expected = trained_weights(make_recipe, tokenizer)
    step, calls = torch.optim.AdamW.step, []

    def fails_at(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        calls.append(self)
        if len(calls) == at:
            raise FULL
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", fails_at)
    trainer, weights = trained_weights(make_recipe, tokenizer)
    assert len(calls) == 4 and trainer.account.recovery.times == 1
    assert losses(trainer, "loss") == losses(plain, "loss")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, expected, strict=True))


@pytest.mark.slow
def test_a_device_that_fails_ends_at_the_last_checkpoint_and_goes_on(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, compute = make_recipe("--train.save_steps", "1", *SHORT), AnswerSFTTrainer.compute_loss

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"device-side assert triggered\. The last che"):
        patch.setattr(AnswerSFTTrainer, "compute_loss", fails)
        train(recipe)
    assert train(recipe)["status"] == "done"
    out = capsys.readouterr().out
    assert "going on from step 1 of 3" in out, out


@pytest.mark.slow
def test_one_row_that_does_not_fit_is_checkpointed_and_then_gives_up(
    make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trained_weights(make_recipe, tokenizer)
    compute = AnswerSFTTrainer.compute_loss

    def needs_checkpointing(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training and not model.is_activation_checkpointing:
            raise FULL
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(AnswerSFTTrainer, "compute_loss", needs_checkpointing)
    trainer, weights = trained_weights(make_recipe, tokenizer)
    assert vars(trainer.account.recovery) == {"times": 3, "rows": 1, "checkpointing": True}
    for ours, theirs in zip(weights, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(AnswerSFTTrainer, "compute_loss", fail_above(0, compute, []))
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(make_recipe(*SHORT), tokenizer).train()


@pytest.mark.slow
def test_what_worked_stands_in_the_record(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnswerSFTTrainer, "compute_loss", fail_above(2, AnswerSFTTrainer.compute_loss, []))
    record = train(make_recipe(*SHORT))
    told = {"times": 1, "rows_per_forward": 2, "activation_checkpointing": False}
    assert record["status"] == "done" and record["train"]["out_of_memory"] == told


def test_a_checkpoint_keeps_what_worked() -> None:
    account = Account()
    account.recovery.rows, account.recovery.times = 2, 1
    assert account.state()["attributes"]["memory"] == {"times": 1, "rows": 2, "checkpointing": False}


def test_other_errors_of_a_device_are_not_repeated() -> None:
    assert is_out_of_memory(FULL) and is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("CUDA out of memory."))


def test_steps_that_fp16_skips_are_counted_and_too_many_in_a_row_stop() -> None:
    from types import SimpleNamespace

    from transformers import TrainerControl, TrainerState

    account, skipped, taken = Account(), SimpleNamespace(step_was_skipped=True), SimpleNamespace(step_was_skipped=False)
    for optimizer in [skipped] * (MOST_SKIPPED - 1) + [taken] + [skipped] * (MOST_SKIPPED - 1):
        account.on_step_end(None, TrainerState(), TrainerControl(), optimizer=optimizer)
    assert account.skipped_steps == 2 * (MOST_SKIPPED - 1)
    with pytest.raises(RunError, match="fp16 overflowed in each of the 20 steps"):
        account.on_step_end(None, TrainerState(), TrainerControl(), optimizer=skipped)


def test_answers_that_do_not_fit_are_written_by_halves(
    tiny_model: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompts = [[5, 6, 7][: 1 + index % 3] for index in range(5)]

    def answers() -> dict[int, Any]:
        return dict(generate_answers(model, tokenizer, prompts, GenerateSection(max_new_tokens=4), answer_end=2))

    expected, generate, sizes = answers(), type(model).generate, []

    def limited(self: Any, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise FULL
        return generate(self, **inputs)

    monkeypatch.setattr(type(model), "generate", limited)
    assert answers() == expected and sizes == [5, 2, 3, 1, 2]
