"""The layout in which a CPU answers: the same logits, the same weights afterwards, and nothing else touched."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alpacare_sft.model import cpu_layout
from alpacare_sft.model.base import enable_checkpointing
from alpacare_sft.model.cpu_layout import block_frozen_layers, fast_cpu_layout, training_gains

IDS = torch.arange(2, 26).reshape(3, 8)  # (B, T)

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available(),
    reason="the layout is oneDNN's, of x86 CPUs",
)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 4, "vocab_size": 300}
    config = LlamaConfig(num_hidden_layers=2, attention_bias=True, tie_word_embeddings=request.param, **sizes)
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS).logits


def test_logits_stay_and_weights_come_back_to_the_bit(model: PreTrainedModel) -> None:
    before, weights = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    with fast_cpu_layout(model):
        torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
        assert model.model.layers[0].mlp.up_proj.weight.numel() == 0  # never twice in memory
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), before)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings


def test_weights_come_back_when_answering_fails(model: PreTrainedModel) -> None:
    before = logits(model)
    with pytest.raises(KeyboardInterrupt), fast_cpu_layout(model):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), before)


def test_other_precisions_are_left_as_they_are(model: PreTrainedModel) -> None:
    half = model.to(torch.bfloat16)
    with fast_cpu_layout(half):
        assert not any("forward" in vars(layer) for layer in half.modules() if isinstance(layer, nn.Linear))


def test_an_adapter_that_reads_its_weights_keeps_them(model: PreTrainedModel) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    attached = get_peft_model(model, config).eval()
    before = logits(attached)
    with fast_cpu_layout(attached):
        torch.testing.assert_close(logits(attached), before, atol=1e-5, rtol=1e-5)


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """What is measured here, in the place of the machine's own figure; every size of weights counts."""
    measured = [2.0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_layout, "_LEAST_BYTES", 0)
    monkeypatch.setattr(cpu_layout, "_measured_gain", lambda: measured[0])
    return measured


def step(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of the trained weights."""
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), [one.grad.clone() for one in model.parameters() if one.requires_grad]


@pytest.mark.parametrize("dora", [False, True])
def test_a_step_in_blocks_has_the_same_loss_and_gradients(model: PreTrainedModel, gain: Any, dora: bool) -> None:
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, use_dora=dora)
    tuned = get_peft_model(model, config).train()
    loss, gradients = step(tuned)
    assert block_frozen_layers(tuned) == 2 * (5 if dora else 7) + 1
    assert model.model.layers[0].mlp.up_proj.weight.numel() == 0  # the plain weights are gone
    again, others = step(tuned)
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(others, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    enable_checkpointing(tuned)
    torch.testing.assert_close(step(tuned)[0], loss, atol=1e-5, rtol=1e-5)


def test_a_machine_that_gains_nothing_keeps_the_plain_way_and_remembers_it(model: PreTrainedModel, gain: Any) -> None:
    gain[0] = 1.1
    assert block_frozen_layers(model.requires_grad_(False)) == 0
    gain[0] = 9.0
    assert not training_gains()  # as it was measured first: another choice would change the last bits


def test_memory_that_is_short_keeps_the_plain_way(
    model: PreTrainedModel, gain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    assert block_frozen_layers(model.requires_grad_(False)) == 0
