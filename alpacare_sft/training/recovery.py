"""Out of memory in mid-run: the same rows again in smaller forwards, the same step again, as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from alpacare_sft.model.base import enable_checkpointing
from alpacare_sft.runtime import free_memory, is_out_of_memory, say


class Undo:
    """Gradients and random state before a forward, to repeat it from.

    A failed backward has added to some of the gradients. Copies are of the adapter's alone, a few megabytes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.gradients = [
            (one, None if one.grad is None else one.grad.clone()) for one in model.parameters() if one.requires_grad
        ]
        self.draws = torch.get_rng_state()
        self.device_draws = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Put everything back."""
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        torch.set_rng_state(self.draws)
        if self.device_draws is not None:
            torch.cuda.set_rng_state(self.device_draws)


def protect_step(optimizer: torch.optim.Optimizer, count: Callable[[], None]) -> None:
    """Let a step in which memory runs out be taken again, once, from copies of the weights and their moments.

    Args:
        optimizer: whose method `step` is replaced. Its copies are as large as an adapter and its moments; a paged one,
            whose moments stand in memory of their own, is left as it is.
        count: called for each step that is taken again.
    """
    step, copies = optimizer.step, list[torch.Tensor]()

    def take(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        held = [one.detach() for group in self.param_groups for one in group["params"]]
        held += [value for kept in self.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
        if any(getattr(value, "is_paged", False) for value in held):
            return step(*args, **kwargs)
        is_first, is_copied = not self.state, False
        try:
            if len(copies) != len(held):
                copies[:] = [torch.empty_like(value) for value in held]
            torch._foreach_copy_(copies, held)
            is_copied = True
            return step(*args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if is_copied:
            torch._foreach_copy_(held, copies)
            if is_first:
                self.state.clear()
            count()
            say("out of memory in the optimizer's step: it is taken again.")
        copies.clear()
        free_memory()
        return step(*args, **kwargs)

    optimizer.step = MethodType(take, optimizer)  # type: ignore[method-assign]


class Recovery:
    """What a run has shown of its memory: rows a forward that fit, and whether activations are computed again.

    Attributes:
        times: forwards and steps that were repeated.
        rows: most rows of a forward since then; None while memory never ran out.
        checkpointing: whether activation checkpointing was turned on for it.
    """

    def __init__(self, times: int = 0, rows: int | None = None, checkpointing: bool = False) -> None:
        self.times, self.rows, self.checkpointing = times, rows, checkpointing

    def shrink(self, num_rows: int, model: Any) -> bool:
        """Choose smaller forwards after one of `num_rows` rows failed; whether there is a way left."""
        size = min(num_rows, self.rows or num_rows)
        if size == 1 and (self.checkpointing or getattr(model, "is_activation_checkpointing", False)):
            return False
        self.times += 1
        if size > 1:
            self.rows = size // 2
            say(f"out of memory: the same rows again, at most {self.rows} a forward; loss and update stay the same.")
        else:
            self.checkpointing, self.rows = True, 1
            self.apply(model)
            say("out of memory with one row a forward: activation checkpointing is turned on, the loss stays the same.")
        return True

    def apply(self, model: Any) -> None:
        """Turn activation checkpointing on where it was needed before a resume."""
        if self.checkpointing:
            enable_checkpointing(model)

    def describe(self) -> dict[str, Any] | None:
        """For the record; None if memory never ran out."""
        if not self.times:
            return None
        return {"times": self.times, "rows_per_forward": self.rows, "activation_checkpointing": self.checkpointing}
