"""Linear layers in the layout that a CPU's kernels read fastest: while a model answers, and where it gains, trains."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alpacare_sft.run.directory import own_cache, read_object, write_json
from alpacare_sft.runtime import describe_hardware

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Forward and backward of a training must gain this much. Where PyTorch's own way is MKL's AVX2 code on a processor with
# AVX-512 (AMD Zen 4 and 5), it is 2 times as slow as oneDNN's blocks; on Intel's processors both are equal to 5 %.
_LEAST_GAIN = 1.7
_LEAST_BYTES = 50 * 2**20  # of frozen weights: less stays in the processor's caches whatever its layout
_TOKENS = 256  # of a forward, which the blocks of a training are chosen for
# Rows of a product that the layout is chosen for: those of a batch that writes its next tokens. More rows, such as
# those of a prompt, are multiplied as fast in it as in a layout of their own.
_ROWS = 32


@contextmanager
def fast_cpu_layout(model: PreTrainedModel) -> Iterator[None]:
    """Within it, float32 layers on an x86 CPU multiply by weights in oneDNN's own blocks.

    Each product of PyTorch's default way reorders the weights anew, which for the few rows of a decoding step is
    most of the work: decoding 16 rows of SmolLM2-135M takes 1.6 times as long. The sums differ in the last
    bits, as between two CPUs. Other devices and precisions are left as they are.

    The weights stand in one layout at a time, but for a head that is also the embedding, and come back bit for bit.
    Layers with an adapter beside them stay as they are, since PEFT may read their weights. It is the way of PyTorch's
    own compiler (torch/_inductor/mkldnn_ir.py, `LinearUnary`).

    Args:
        model: in evaluation mode; nothing in it is trained or saved meanwhile.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = {id(part) for layer in model.modules() if isinstance(layer, BaseTunerLayer) for part in layer.modules()}
    layers = [layer for layer in model.modules() if id(layer) not in tuned and _gains(layer)]
    embedding = model.get_input_embeddings().weight
    try:
        for layer in layers:
            blocked = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            layer.forward = partial(_multiply, blocked, layer.bias)
            if layer.weight is not embedding:
                layer.weight.data = torch.empty(0)
        yield
    finally:
        for layer in layers:
            fast = vars(layer).pop("forward", None)
            if fast and layer.weight is not embedding:
                layer.weight.data = fast.args[0].to_dense()


class _BlockedLinear(torch.autograd.Function):
    """A frozen layer with its weights in blocks, one copy for the forward and one for the backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, backward_weights: Tensor, bias: Tensor | None) -> Tensor:
        """Product of values, shape (…, inputs), and weights; shape (…, outputs)."""
        ctx.backward_weights = backward_weights
        return _multiply(weights, bias, values)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None, None, None]:
        """Gradient of the values alone."""
        return _multiply(ctx.backward_weights, None, outer[0]), None, None, None


def block_frozen_layers(model: Any, before: int | None = None) -> int:
    """Put the frozen float32 layers of a model that is trained on a CPU into oneDNN's blocks, if this machine gains.

    Each layer's plain weights go when its blocks are there, but for a head that is also the embedding; what is saved
    of a training are the trained weights, which stay as they are. Left off where memory is short of a second copy.

    Args:
        model: with its adapter; not saved whole, merged or trained otherwise afterwards.
        before: what this returned when the run was begun, which decides again; None for a new run.

    Returns:
        The number of layers in blocks, 0 where nothing was changed.
    """
    import psutil
    from peft.tuners.lora import LoraLayer

    adapted = [part for part in model.modules() if isinstance(part, LoraLayer)]
    # DoRA reads the weights, and so does LoRA of single parameters.
    reads = [part for part in adapted if part.lora_magnitude_vector or hasattr(part, "parameter_name")]
    read = {id(part.base_layer) for part in reads}
    frozen = [layer for layer in model.modules() if _gains(layer) and not layer.weight.requires_grad]
    layers = [layer for layer in frozen if id(layer) not in read]
    size = sum(layer.weight.nbytes for layer in layers)
    if before == 0 or size < _LEAST_BYTES:
        return 0
    if before is None and (2 * size > psutil.virtual_memory().available / 2 or not training_gains()):
        return 0
    embedding = model.get_input_embeddings().weight
    for layer in layers:
        weight = layer.weight.detach()
        forward, backward = (
            torch.ops.mkldnn._reorder_linear_weight(one.contiguous(), _TOKENS) for one in (weight, weight.t())
        )
        layer.forward = partial(_train_multiply, forward, backward, layer.bias)
        if layer.weight is not embedding:
            layer.weight.data = torch.empty(0)
    return len(layers)


def _train_multiply(weights: Tensor, backward: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
    product: Tensor = _BlockedLinear.apply(values, weights, backward, bias)  # type: ignore[no-untyped-call]
    return product


def training_gains() -> bool:
    """Whether products of a training step are faster in blocks here: measured once on a machine, then remembered.

    The choice decides the last bits of the losses, so it must not change from run to run.
    """
    path = own_cache() / "cpu_layout.json"
    processor = describe_hardware(use_cpu=True)["processor"]
    name = f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    try:
        known = read_object(path)
    except (OSError, ValueError):
        known = {}
    if name not in known:
        known[name] = round(_measured_gain(), 2)
        with suppress(OSError):  # a cache that cannot be written
            write_json(path, known)
    return bool(known[name] >= _LEAST_GAIN)


def _measured_gain() -> float:
    """Time of PyTorch's way over that of blocks, the least of many: others may use the processor meanwhile."""
    values, weight = torch.randn(_TOKENS, 576), torch.randn(1536, 576)  # a layer of SmolLM2-135M
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, _TOKENS)
    ways = (partial(nn.functional.linear, values, weight), partial(_multiply, blocked, None, values))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(200):  # a quarter of a second; with 40, others on the processor made it 0.75 to 1.3 where it is 1.05
        for way, found in zip(ways, times, strict=True):
            began = time.perf_counter()
            way()
            found.append(time.perf_counter() - began)
    return min(times[0]) / min(times[1])


def _gains(layer: nn.Module) -> bool:
    """Whether a layer is a plain one, and on this machine faster in blocks; quantized ones are of other classes."""
    return (
        type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _multiply(blocked: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, blocked, bias, "none", [], "")
    return product
