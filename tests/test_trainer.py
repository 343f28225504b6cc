"""The answer-only head: TRL's own loss and gradient, at the positions that teach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState
from trl import SFTTrainer

from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.errors import RunError
from alpacare_sft.model.base import load_base_model
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.runtime import Precision
from alpacare_sft.training.callbacks import StopOnSignal
from alpacare_sft.training.config import build_sft_config, build_trainer
from alpacare_sft.training.trainer import AnswerSFTTrainer, answer_logits, answer_mask

Make = Callable[..., Recipe]
FP32 = Precision(fp16=False, bf16=False)


def make_trainer(recipe: Recipe, tokenizer: Any) -> AnswerSFTTrainer:
    base = load_base_model(recipe.model, "float32")
    data = prepare_data(recipe, tokenizer)
    return build_trainer(recipe, build_sft_config(recipe, RunDirectory(recipe.output_dir), FP32), data, tokenizer, base)


@pytest.fixture
def trainer(make_recipe: Make, tokenizer: Any) -> AnswerSFTTrainer:
    return make_trainer(make_recipe("--train.per_device_train_batch_size", "3"), tokenizer)


def batch_of(trainer: AnswerSFTTrainer, size: int = 3) -> dict[str, Any]:
    return trainer.data_collator([trainer.train_dataset[index] for index in range(size)])


def test_mask_marks_the_position_before_each_learnt_token() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, -100], [-100, 7, -100, -100, -100]])
    expected = [[False, True, True, False, False], [True, False, False, False, False]]
    assert answer_mask(labels).tolist() == expected


def test_loss_and_gradient_are_those_of_trl(trainer: AnswerSFTTrainer) -> None:
    trainer.model.eval()  # no dropout, so that both sides see the same weights
    gradients, losses = [], []
    for compute in (AnswerSFTTrainer.compute_loss, SFTTrainer.compute_loss):
        trainer.model.zero_grad()
        loss = compute(trainer, trainer.model, batch_of(trainer), num_items_in_batch=torch.tensor(100))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.requires_grad])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for ours, upstream in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, upstream, atol=1e-6, rtol=1e-4)


def test_masked_logits_are_those_of_every_position(trainer: AnswerSFTTrainer) -> None:
    inputs = batch_of(trainer)
    mask = answer_mask(inputs.pop("labels"))
    trainer.model.eval()
    with torch.no_grad():
        every = trainer.model(**inputs).logits[mask]
        torch.testing.assert_close(answer_logits(trainer.model, inputs, mask), every)


def test_the_head_sees_answer_positions_alone(trainer: AnswerSFTTrainer) -> None:
    seen = []
    head = trainer.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
    inputs = batch_of(trainer)
    trainer.compute_loss(trainer.model, inputs)
    hook.remove()
    assert seen == [int((inputs["labels"] != -100).sum())]


def test_upstream_scores_where_its_kernel_is_compact(
    trainer: AnswerSFTTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trainer._scores_every_position()
    monkeypatch.setattr("alpacare_sft.training.trainer.upstream_is_compact", lambda device: True)
    assert not trainer._scores_every_position()


@pytest.mark.parametrize("option", [("loss_type", "dft"), ("label_smoothing_factor", "0.1")])
def test_other_losses_stay_upstream(make_recipe: Make, tokenizer: Any, option: tuple[str, str]) -> None:
    with pytest.warns(FutureWarning) if "smoothing" in option[0] else _nothing():
        trainer = make_trainer(make_recipe(f"--train.{option[0]}", option[1]), tokenizer)
    assert not trainer._scores_every_position()


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(trainer: AnswerSFTTrainer) -> None:
    with torch.no_grad():
        next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(RunError, match=r"loss is nan at step 1, on rows that begin: '.*Instruction"):
        trainer.train()


def test_trainable_weights_are_float32_and_the_base_is_frozen(trainer: AnswerSFTTrainer) -> None:
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert not parameter.requires_grad or parameter.dtype == torch.float32


def test_packed_rows_train_too(make_recipe: Make, tokenizer: Any) -> None:
    words = ("--train.packing", "true", "--train.max_steps", "1", "--train.eval_strategy", "no")
    trainer = make_trainer(make_recipe(*words, "--train.save_strategy", "no"), tokenizer)
    trainer.train()
    assert trainer.state.global_step == 1


def test_fp16_base_with_float32_adapter_steps_through_autocast_and_scaler(make_recipe: Make, tokenizer: Any) -> None:
    """The arithmetic of a T4 as far as a CPU has it: float16 base, autocast, loss scaling."""
    recipe = make_recipe("--lora.lora_dropout", "0.0")
    exact = make_trainer(recipe, tokenizer)
    data = prepare_data(recipe, tokenizer)
    half = build_trainer(recipe, exact.args, data, tokenizer, load_base_model(recipe.model, "float16"))
    assert {p.dtype for p in half.model.parameters() if not p.requires_grad} == {torch.float16}
    losses, updates = [], []
    for trainer, dtype in ((exact, None), (half, torch.float16)):
        trainable = [p for p in trainer.model.parameters() if p.requires_grad]
        before = torch.cat([p.detach().flatten() for p in trainable])
        optimizer, scaler = torch.optim.SGD(trainable, lr=1.0), torch.amp.GradScaler("cpu", enabled=dtype is not None)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = trainer.compute_loss(trainer.model, batch_of(trainer))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        updates.append(torch.cat([p.detach().flatten() for p in trainable]) - before)
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in trainable)
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert updates[0].norm() > 1e-3
    assert (updates[1] - updates[0]).norm() < 0.02 * updates[0].norm()


def test_the_time_leaves_room_for_two_of_the_longest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, control, clock = StopOnSignal(stop_after_seconds=1000), TrainerControl(), iter([0.0, 10.0, 40.0, 45.0])
    monkeypatch.setattr("alpacare_sft.training.callbacks.time.monotonic", lambda: next(clock))
    stop.end = 100.0
    stop.on_train_begin()
    stops = []
    for _ in range(3):
        stop.on_step_end(None, TrainerState(), control)
        stops.append(control.should_training_stop)
    assert stops == [False, True, True] and stop.longest_seconds == 30
