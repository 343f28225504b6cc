"""The layout in which a CPU answers: the same logits, the same weights afterwards, and nothing else touched."""

from __future__ import annotations

import platform

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alpacare_sft.model.cpu_layout import fast_cpu_layout

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
