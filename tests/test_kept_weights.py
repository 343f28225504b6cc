"""Nothing trained is lost: every kind of LoRA matrix counts, and a failed check keeps what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alpacare_sft.errors import RunError
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.training.train import train

pytestmark = pytest.mark.slow

Make = Callable[..., Recipe]
FEW = ("--train.max_steps", "2", "--train.eval_strategy", "no", "--train.load_best_model_at_end", "false")
WITHOUT = (*FEW, "--train.save_strategy", "no")


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter 'default'")
@pytest.mark.parametrize(
    ("option", "kinds"),
    [
        ("target_modules=[embed_tokens]", {"lora_embedding_A", "lora_embedding_B"}),
        ("use_dora=true", {"lora_A", "lora_B", "lora_magnitude_vector"}),
        ("lora_bias=true", {"lora_A", "lora_B"}),
        ("bias=lora_only", {"lora_A", "lora_B"}),
        ("kasa_config={}", {"lora_A", "lora_B", "lora_diag"}),
        ("monteclora_config={}", {"lora_A", "lora_B", "lora_monteclora_sampler"}),
        ("velora_config={}", {"lora_A", "lora_B", "lora_velora_embed"}),
    ],
)
def test_every_kind_of_matrix_is_saved(make_recipe: Make, option: str, kinds: set[str]) -> None:
    recipe = make_recipe(*FEW, "--lora.{}={}".format(*option.split("=")))
    assert train(recipe)["status"] == "done"
    saved = weights(recipe.output_dir)
    assert {part for name in saved for part in name.split(".") if part.startswith("lora_")} == kinds


def refuse_to_train(*_: Any, **__: Any) -> None:
    raise AssertionError("it was trained already")


def kept(run: Path) -> bytes:
    return (run / "adapter-unchecked" / "adapter_model.safetensors").read_bytes()


def test_a_check_that_fails_keeps_what_was_trained_and_a_rerun_takes_it_up(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(*WITHOUT)
    run = recipe.output_dir
    with monkeypatch.context() as patch:
        patch.setattr("alpacare_sft.model.adapter._was_trained", lambda *_: False)
        with pytest.raises(RunError, match=rf"changed nothing.* What was trained is kept in {run}/adapter-unchecked"):
            train(recipe)
        before = kept(run)
        patch.setattr("transformers.Trainer.train", refuse_to_train)
        with pytest.raises(RunError, match="training changed nothing"):
            train(recipe)
    assert kept(run) == before and not (run / "adapter").exists()
    monkeypatch.setattr("transformers.Trainer.train", refuse_to_train)
    record = train(recipe)
    assert record["status"] == "done" and record["train"]["optimizer_steps"] == 2
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert not (run / "adapter-unchecked").exists() and not (run / "adapter" / "trainer_state.json").exists()


@pytest.mark.parametrize("step", ["end_token_ids", "summarize_training", "save_card", "save_training_report"])
def test_whatever_fails_after_training_a_rerun_does_not_train_again(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    recipe = make_recipe(*WITHOUT)
    module = "callbacks" if step == "summarize_training" else "train"
    with monkeypatch.context() as patch:
        patch.setattr(f"alpacare_sft.training.{module}.{step}", lambda *_: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            train(recipe)
    monkeypatch.setattr("transformers.Trainer.train", refuse_to_train)
    assert train(recipe)["status"] == "done"


def test_weights_that_are_kept_are_work_that_another_recipe_does_not_replace(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(*WITHOUT)
    with monkeypatch.context() as patch:
        patch.setattr("alpacare_sft.model.adapter._was_trained", lambda *_: False)
        with pytest.raises(RunError, match="training changed nothing"):
            train(recipe)
    before = kept(recipe.output_dir)
    other = make_recipe(*WITHOUT, "--train.learning_rate", "0.5")
    with pytest.raises(RunError, match=r"train\.learning_rate: 0\.01 → 0\.5"):
        train(other)
    assert kept(recipe.output_dir) == before
    assert train(other, overwrite=True)["status"] == "done"
    assert not (recipe.output_dir / "adapter-unchecked").exists()


def test_checkpoints_of_an_adapter_on_the_embeddings_hold_no_base_weights(make_recipe: Make) -> None:
    recipe = make_recipe("--train.max_steps", "3", "--lora.target_modules", "[embed_tokens]")
    train(recipe)
    saved = load_file(recipe.output_dir / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors")
    assert saved.keys() == weights(recipe.output_dir).keys()
