"""The rows of an optimizer step → forwards: as they come, in parts, or laid end to end without padding.

Where memory runs out in mid-run the same rows go again in smaller forwards, as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from alpacare_sft.model.base import enable_checkpointing
from alpacare_sft.runtime import say

IGNORED = -100
# Tokens of a forward. On a card more fill it better, until memory is planned for; on two cores one row of letters and
# four of the demo were fastest, beyond that the activations leave the caches.
MOST_TOKENS = {"cuda": 4096, "cpu": 512}


def split_rows(inputs: Mapping[str, Any], most: int | None) -> Iterator[dict[str, Any]]:
    """A batch in parts of at most `most` rows; None for the whole batch.

    Args:
        inputs: tensors of shape (B, …), and what belongs to all rows.
        most: rows of a part.
    """
    num_rows = len(inputs["labels"])
    size = most or num_rows
    for start in range(0, num_rows, size):
        yield _select(inputs, slice(start, start + size))


def _select(inputs: Mapping[str, Any], rows: slice | list[int]) -> dict[str, Any]:
    """Some rows of a batch: views of them for a slice, copies for a list."""
    num_rows = len(inputs["labels"])
    return {
        name: value[rows] if isinstance(value, torch.Tensor) and len(value) == num_rows else value
        for name, value in inputs.items()
    }


class Packer:
    """Forwards of a step with few operations.

    Rows laid end to end have no padding, but a dense mask: attention then costs the square of their sum. transformers 5
    makes the mask that keeps them apart from `position_ids`, for models that pass them on.

    Args:
        model: that is trained; its layers and sizes decide what is cheaper.
        device: where the forwards run.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        config: Any = model.config
        config = config.get_text_config()
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
        self.per_token = sum(p.numel() for p in model.parameters() if id(p) not in embeddings and p.dim() > 1)
        self.per_pair = 2 * heads * head_dim * config.num_hidden_layers
        self.most_tokens = MOST_TOKENS.get(device.type, MOST_TOKENS["cuda"])
        self.lays = keeps_rows_apart(model, device)

    def forwards(self, inputs: Mapping[str, Any], most: int | None) -> Iterator[dict[str, Any]]:
        """The parts of a padded batch, each as one forward.

        Args:
            inputs: `input_ids`, `attention_mask` and `labels`, each of shape (B, T), padded on the right.
            most: rows of a forward, where memory ran out with more; None for no bound.
        """
        lengths = inputs["attention_mask"].sum(1).tolist()
        for rows in self.group(lengths, most):
            part = [lengths[row] for row in rows]
            longest = max(part)
            padded = {name: value[:, :longest] for name, value in _select(inputs, rows).items()}
            yield _laid(padded, part) if self.is_cheaper_laid(part) else padded

    def group(self, lengths: list[int], most: int | None) -> list[list[int]]:
        """Rows of like length together, as many as the bound on tokens holds."""
        groups: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
            last = groups[-1] if groups else []
            if last and len(last) < (most or len(lengths)) and self._tokens(last, lengths, row) <= self.most_tokens:
                last.append(row)
            else:
                groups.append([row])
        return groups

    def _tokens(self, rows: list[int], lengths: list[int], more: int) -> int:
        part = [*(lengths[row] for row in rows), lengths[more]]
        return sum(part) if self.is_cheaper_laid(part) else len(part) * max(part)

    def is_cheaper_laid(self, lengths: list[int]) -> bool:
        """Whether rows of these lengths have fewer multiply-adds end to end than padded."""
        total, padded = sum(lengths), len(lengths) * max(lengths)
        if not self.lays or total == padded:
            return False
        pairs = total**2 - padded * max(lengths)
        return bool((total - padded) * self.per_token + pairs * self.per_pair < 0)


def _laid(inputs: Mapping[str, Any], lengths: list[int]) -> dict[str, Any]:
    """Padded rows end to end, shape (1, sum of the lengths); the first label of a row is of no position."""
    kept = inputs["attention_mask"].bool()
    labels = inputs["labels"].clone()
    labels[:, 0] = IGNORED
    positions = torch.cat([torch.arange(length, device=labels.device) for length in lengths])
    return {
        "input_ids": inputs["input_ids"][kept][None],
        "labels": labels[kept][None],
        "position_ids": positions[None],
    }


@torch.no_grad()
def keeps_rows_apart(model: Any, device: torch.device) -> bool:
    """Whether two rows laid end to end give what each gives alone; tried on a few tokens, without dropout."""
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(5, 11, device=device)[None] % model.config.get_text_config().vocab_size
        positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
        apart = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, 3:].float()
        alone = model(input_ids=ids[:, 3:], use_cache=False).logits[0].float()
        joined = model(input_ids=ids, use_cache=False).logits[0, 3:].float()  # as one row: what must not come out
        # Rounding in half precision is far below a tenth of what the other row would change.
        return bool((apart - alone).norm() <= 0.1 * (joined - alone).norm())
    except (TypeError, ValueError, RuntimeError):  # a model that takes no positions, or masks in another way
        return False
    finally:
        model.train(was_training)


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


class Recovery:
    """What a run has shown of its memory: rows a forward that fit, and whether activations are computed again.

    Attributes:
        times: forwards that were repeated.
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
