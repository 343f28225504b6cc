"""Few forwards an optimizer step: loss and gradients are those of the textbook, rows stay apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alpacare_sft import load_recipe, train
from alpacare_sft.errors import RecipeError
from alpacare_sft.run.directory import WEIGHTS, file_sha256
from alpacare_sft.training.forwards import IGNORED, Packer, keeps_rows_apart
from alpacare_sft.training.trainer import AnswerSFTTrainer
from tests.test_trainer import Make, make_trainer

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
MODELS = {
    "llama": {"tie_word_embeddings": True},
    "llama-untied": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
}


def model_of(name: str, dora: bool = False) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = AutoConfig.for_model(name.split("-")[0], **SIZES, **MODELS[name], pad_token_id=0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if name == "gemma2" else "sdpa")
    for parameter in base.parameters():  # larger than at the start of a training, so that a mistake shows
        parameter.data.mul_(2)
    lora = LoraConfig(r=2, lora_alpha=8, use_dora=dora, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(base, lora).train()


def random_batch(seed: int) -> dict[str, torch.Tensor]:
    draw = random.Random(seed)
    rows = []
    for _ in range(draw.randint(1, 6)):
        prompt, answer = draw.randint(1, 9), draw.randint(1, 9)
        rows.append(([draw.randrange(1, 97) for _ in range(prompt + answer)], prompt))
    longest = max(len(ids) for ids, _ in rows)
    padding = [longest - len(ids) for ids, _ in rows]
    return {
        "input_ids": torch.tensor([ids + [0] * pad for (ids, _), pad in zip(rows, padding, strict=True)]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * pad for (ids, _), pad in zip(rows, padding, strict=True)]
        ),
        "labels": torch.tensor(
            [
                [IGNORED] * prompt + ids[prompt:] + [IGNORED] * pad
                for (ids, prompt), pad in zip(rows, padding, strict=True)
            ]
        ),
    }


def textbook(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """Row by row: the mean over the step's answer tokens of -log softmax, and its gradients."""
    count = int((batch["labels"] != IGNORED).sum())
    model.zero_grad()
    total = 0.0
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        logits = model(input_ids=ids[None, :length], use_cache=False).logits[0]
        scores = torch.log_softmax(logits.double(), -1)
        picked = [scores[place - 1, labels[place]] for place in range(1, length) if labels[place] != IGNORED]
        loss = -torch.stack(picked).sum() / count
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_textbook(name: str, dora: bool, make_recipe: Make, tokenizer: Any) -> None:
    model, trainer = model_of(name, dora), make_trainer(make_recipe(), tokenizer)
    trainer.model = model
    packer = Packer(model, torch.device("cpu"))
    laid = 0
    for seed in range(12):
        batch = random_batch(seed)
        expected, gradients = textbook(model, batch)
        packer.most_tokens = 10 + 7 * seed
        for trainer.packer, most in ((None, None), (None, 2), (packer, None), (packer, 2)):
            model.zero_grad()
            loss, count = 0.0, (batch["labels"] != IGNORED).sum()
            for part in trainer._forwards(batch, most):
                laid += "position_ids" in part
                one = trainer._answer_loss(model, part, count)
                one.backward()
                loss += one.item()
            assert loss == pytest.approx(expected, abs=1e-5)
            for ours, theirs in zip((p.grad for p in model.parameters() if p.requires_grad), gradients, strict=True):
                assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max().item())
    assert laid or not packer.lays


@pytest.mark.parametrize("name", MODELS)
def test_models_of_these_families_keep_rows_apart(name: str) -> None:
    assert keeps_rows_apart(model_of(name), torch.device("cpu"))


def test_a_model_without_positions_of_its_own_is_padded() -> None:
    config = AutoConfig.for_model("bloom", vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    assert not keeps_rows_apart(AutoModelForCausalLM.from_config(config), torch.device("cpu"))


def test_rows_share_a_forward_up_to_the_bound_and_the_cheaper_form_is_taken() -> None:
    packer = Packer(model_of("llama"), torch.device("cpu"))
    packer.most_tokens = 20
    assert packer.group([4, 18, 5, 3, 30], None) == [[3, 0, 2], [1], [4]]
    assert packer.group([4, 4, 4, 4], 2) == [[0, 1], [2, 3]]
    packer.per_token, packer.per_pair = 1000, 1
    assert packer.is_cheaper_laid([4, 18]) and not packer.is_cheaper_laid([5, 5])
    packer.per_token, packer.per_pair = 1, 1000
    assert not packer.is_cheaper_laid([10, 11, 12, 13])


@pytest.mark.parametrize(
    ("key", "value"), [("loss_type", "dft"), ("label_smoothing_factor", "0.1"), ("packing", "true")]
)
def test_a_step_that_does_not_add_up_is_refused(key: str, value: str, make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=rf"forward\.rows needs train\.{key}"):
        make_recipe("--forward.rows", "auto", f"--train.{key}", value)


def trained(make_recipe: Make, *words: str) -> dict[str, Any]:
    return train(make_recipe("--lora.lora_dropout", "0", *words))


@pytest.mark.slow
def test_a_run_has_the_same_losses_rows_and_tokens(make_recipe: Make, tmp_path: Path) -> None:
    plain = trained(make_recipe, "--output_dir", str(tmp_path / "plain"))
    auto = trained(make_recipe, "--output_dir", str(tmp_path / "auto"), "--forward.rows", "auto")
    assert auto["train"]["train_loss"] == pytest.approx(plain["train"]["train_loss"], abs=1e-5)
    assert auto["train"]["eval_loss"] == pytest.approx(plain["train"]["eval_loss"], abs=1e-5)
    assert auto["train"]["effective_batch_size"] == plain["train"]["effective_batch_size"]
    assert auto["tokens"] == plain["tokens"] and auto["recipe_sha256"] == plain["recipe_sha256"]


@pytest.mark.slow
def test_a_resume_is_exact_to_the_bit(make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--forward.rows", "auto", "--train.save_strategy", "steps", "--train.save_steps", "3")
    whole = make_recipe("--output_dir", str(tmp_path / "whole"), *words)
    train(whole)
    step, seen = AnswerSFTTrainer.training_step, []

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    parted = make_recipe("--output_dir", str(tmp_path / "parted"), *words)
    with monkeypatch.context() as patch, pytest.raises(BaseException, match=r"SIGINT|stopped"):
        patch.setattr(AnswerSFTTrainer, "training_step", dies)
        train(parted)
    train(load_recipe(tmp_path / "parted" / "recipe.yaml"))
    shas = [file_sha256(tmp_path / name / "adapter" / WEIGHTS) for name in ("whole", "parted")]
    assert shas[0] == shas[1]
