"""Tokenizer, base model and what goes wrong on the way to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.errors import ModelError
from alpacare_sft.model.adapter import check_adapter
from alpacare_sft.model.base import load_base_model, load_tokenizer, set_pad_token
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.recipe.sections import ModelSection
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.runtime import Precision
from alpacare_sft.training.config import build_lora_config, build_sft_config, build_trainer

Make = Callable[..., Recipe]


def test_padding_is_a_token_of_its_own_and_nothing_is_added(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_model)
    size = len(plain)
    plain.pad_token = plain.eos_token
    set_pad_token(plain)
    assert plain.pad_token == "<|finetune_right_pad_id|>"
    assert len(plain) == size


def test_a_vocabulary_without_a_token_to_pad_with_is_refused() -> None:
    bare = SimpleNamespace(
        get_vocab=lambda: {"a": 0, "</s>": 1}, pad_token=None, unk_token=None, eos_token_id=1, bos_token_id=None
    )
    with pytest.raises(ModelError, match="no token to pad with"):
        set_pad_token(bare)  # type: ignore[arg-type]


def test_an_adapter_directory_is_not_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="must be a base model"):
        load_tokenizer(ModelSection(model_name_or_path=str(tmp_path)))


def test_a_model_that_cannot_be_reached_is_told_in_one_message() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing .*Check the network, or use `embedded`"):
        load_tokenizer(ModelSection(model_name_or_path="nobody/nothing"))


def test_targets_that_the_model_lacks_are_named(make_recipe: Make, tokenizer: Any) -> None:
    recipe = make_recipe("--lora.target_modules", "[query_key_value]")
    data = prepare_data(recipe, tokenizer)
    base = load_base_model(recipe.model, "float32")
    with pytest.raises(ModelError, match=r"lora\.target_modules.*query_key_value"):
        build_trainer(
            recipe,
            build_sft_config(recipe, RunDirectory(recipe.output_dir), Precision(False, False)),
            data,
            tokenizer,
            base,
        )


@pytest.mark.slow
def test_qlora_builds_and_takes_a_step_on_a_cpu(make_recipe: Make, tokenizer: Any) -> None:
    recipe = make_recipe("--model.quantization", "nf4", "--train.max_steps", "1", "--train.eval_strategy", "no")
    base = load_base_model(recipe.model, "float32")
    assert base.is_quantized
    data = prepare_data(recipe, tokenizer)
    trainer = build_trainer(
        recipe,
        build_sft_config(recipe, RunDirectory(recipe.output_dir), Precision(False, False)),
        data,
        tokenizer,
        base,
    )
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in trainable.items()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in trainable.items())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_parameters_of_a_quantized_base_are_counted_as_before_it_was_quantized(make_recipe: Make) -> None:
    """Four-bit weights are packed by twos, so that their tensors have half as many elements."""
    from peft import get_peft_model

    counts = []
    for words in ([], ["--model.quantization", "nf4"]):
        recipe = make_recipe(*words)
        counts.append(
            check_adapter(get_peft_model(load_base_model(recipe.model, "float32"), build_lora_config(recipe)))
        )
    assert counts[0] == counts[1]
