"""Memory and operations of one step, traced on tensors that have shapes and no contents: no weights, no GPU."""

from __future__ import annotations

import dataclasses
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from alpacare_sft.model.base import enable_checkpointing

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedConfig

_NO_MASK = "alpacare_sft_sdpa_without_mask"


@dataclass(frozen=True)
class Cost:
    """What the layers of a model need for some rows; the head on the vocabulary is left out.

    Attributes:
        weights_bytes: of the frozen base, its head and buffers included.
        linear_bytes: of the weights that nf4 would quantize: those of the linear layers but the head.
        trained_parameters: of the adapter, kept in float32.
        saved_bytes: what the forward leaves for the backward, or the cache of keys and values.
        peak_bytes: most that was alive at once beside weights and adapter.
        operations: floating-point operations of all matrix products and attention.
    """

    weights_bytes: int
    linear_bytes: int
    trained_parameters: int
    saved_bytes: int
    peak_bytes: int
    operations: int


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive, the most of them, and the operations.

    `FlopCounterMode` (torch 2.13) keeps recomputed activations alive, and `MemTracker` refuses frozen weights.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = self.operations = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self.alive -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


def trace_layers(
    config: PreTrainedConfig,
    lora: LoraConfig | None,
    rows: int,
    tokens: int,
    *,
    dtype: str,
    half: bool = False,
    checkpointing: bool = False,
) -> Cost:
    """Trace a forward through all layers, and the backward where there is an adapter.

    Attention is the CPU's fused one, which like a card's keeps no matrix of tokens × tokens. A batch of more than one
    row is padded and has a mask.

    Args:
        config: of the base.
        lora: the adapter; none traces a prompt that is answered, its cache of keys and values included.
        rows: of the batch.
        tokens: of each row.
        dtype: of the frozen weights, as torch names it.
        half: whether products run under autocast, in half precision.
        checkpointing: whether activations are computed again in the backward.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = _build_model(config, lora, dtype, padded=rows > 1)
    if checkpointing and lora:
        enable_checkpointing(model)
    counter, autocast = _Counter(), torch.autocast("cpu", _half(dtype)) if half else nullcontext()
    with FakeTensorMode():
        parameters = _fill(model)
        for parameter in parameters:
            counter.add(parameter)
        fixed = counter.alive
        with counter, autocast, torch.set_grad_enabled(bool(lora)):
            layers = (model.get_base_model() if lora else model).base_model
            output = layers(input_ids=torch.zeros(rows, tokens, dtype=torch.long), use_cache=lora is None)
            saved = counter.alive - fixed
            if lora:
                output.last_hidden_state.sum().backward()
    added = 0
    if lora and lora.lora_dropout:
        num_layers = config.get_text_config().num_hidden_layers
        added = _dropout_bytes(model, rows * tokens) // (num_layers if checkpointing else 1)
    trained = sum(one.numel() for one in parameters if one.requires_grad) if lora else 0
    weights = fixed - 4 * trained
    linear = _linear_bytes(model) - 4 * trained  # less PEFT's own matrices
    return Cost(weights, linear, trained, saved + added, counter.peak - fixed + added, counter.operations)


def _linear_bytes(model: Any) -> int:
    """Weights of all linear layers but the head."""
    head = model.get_output_embeddings()
    return sum(_bytes(one.weight) for one in model.modules() if type(one) is nn.Linear and one is not head)


def _dropout_bytes(model: nn.Module, tokens: int) -> int:
    """What the adapter's dropout leaves for the backward: its draws and its output, in float32.

    Traced with it, the draws would be counted in a form that only tensors without contents have.
    """
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return sum(2 * 4 * tokens * layer.in_features for layer in layers)


def _build_model(config: PreTrainedConfig, lora: LoraConfig | None, dtype: str, padded: bool) -> Any:
    """The model without weights, with the adapter in float32.

    transformers 5.23 gives a mask to every traced attention, for which it repeats keys and values for each head; one
    row needs none. An attention of another name gets none.
    """
    from peft import get_peft_model
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_NO_MASK, sdpa_attention_forward)
    attention = "sdpa" if padded else _NO_MASK
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
        )
        if lora:
            model = get_peft_model(model, dataclasses.replace(lora, lora_dropout=0.0))
    for parameter in model.parameters():
        if parameter.requires_grad and lora:
            parameter.data = parameter.data.float()
    return model.train() if lora else model.eval()


def _fill(model: nn.Module) -> list[Tensor]:
    """Put tensors of the mode that is on in the place of those without a device; all of them, shared ones once."""
    filled: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in filled:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    filled[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                if tensor is not None:
                    tensors[name] = filled[id(tensor)]  # type: ignore[assignment]
    return list(filled.values())


def _half(dtype: str) -> torch.dtype:
    """Of autocast: that of the weights, or each product would be counted with a copy of them."""
    return torch.bfloat16 if dtype == "bfloat16" else torch.float16


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
