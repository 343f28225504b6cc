"""Linear layers in the layout that a CPU's kernels read fastest, while a model answers."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

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
