"""The thin `SFTTrainer`: the head on answer positions where TRL scores all, and loud failures."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.nn import functional
from trl import SFTTrainer

from alpacare_sft.callbacks import Account
from alpacare_sft.errors import RunError

IGNORED = -100


def answer_mask(labels: torch.Tensor) -> torch.Tensor:
    """Positions whose *next* token is learnt.

    Args:
        labels: token ids, shape (B, T); -100 where nothing is learnt.

    Returns:
        Booleans, shape (B, T); the last column is always False.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask


def answer_logits(model: torch.nn.Module, inputs: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
    """Logits of the masked positions alone, shape (N, V), through the model's own forward."""
    logits: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=mask).logits
    return logits


def upstream_is_compact(device: torch.device) -> bool:
    """Whether TRL's fused head scores the learnt positions alone there (`trl.trainer.utils`, 1.16)."""
    return device.type in ("cuda", "xpu") and importlib.util.find_spec("triton") is not None


class AnswerSFTTrainer(SFTTrainer):
    """`SFTTrainer` that projects only answer positions where TRL would project every one.

    On devices with Triton (CUDA, XPU), TRL 1.16's fused head already scores the learnt positions
    alone, in vocabulary tiles; there its own path runs. Elsewhere it scores the prompt and the
    padding too (`trl.trainer.utils.add_fused_lm_head`, `compact`); there this class asks the model
    for the logits of the answer positions. Same loss, same normalisation by
    `num_items_in_batch`, and TRL's accuracy metric; TRL's entropy metric is left out.
    """

    @property
    def account(self) -> Account:
        """The account callback; a resume puts a new one in the place of the old."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Account))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of one step, their answer tokens counted over all processes."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.account.answer_tokens += int(num_items or 0)
        return samples, num_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the learnt tokens; see `SFTTrainer.compute_loss`.

        Raises:
            RunError: if the loss is not finite; names the step and the rows.
        """
        if return_outputs or not self._scores_every_position():
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            result = self._answer_loss(model, inputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if not torch.isfinite(loss):
            raise RunError(self._not_finite(loss.item(), inputs))
        return result

    def _scores_every_position(self) -> bool:
        """Whether upstream would project positions that teach nothing."""
        plain_loss = self.args.loss_type == "nll" and self.label_smoother is None and self.compute_loss_func is None
        return plain_loss and not self.aux_loss_enabled and not upstream_is_compact(self.accelerator.device)

    def _answer_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        mode = "train" if model.training else "eval"
        labels = inputs["labels"]
        mask = answer_mask(labels)
        targets = labels[:, 1:][mask[:, :-1]]  # (N,)
        if targets.numel() == 0:
            raise RunError("a batch holds no token to learn. Rows without an answer should have been dropped.")
        given = {key: value for key, value in inputs.items() if key != "labels"}
        logits = answer_logits(model, given, mask)
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        loss = total / (targets.numel() if num_items_in_batch is None else num_items_in_batch)
        # As upstream: the count spans all processes, and DDP averages their gradients.
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        with torch.no_grad():
            correct = torch.stack(
                [(logits.argmax(-1) == targets).sum(), torch.tensor(targets.numel(), device=loss.device)]
            )
            hits, count = self.accelerator.gather_for_metrics(correct[None]).sum(0).tolist()
        self._metrics[mode]["mean_token_accuracy"].append(hits / count)
        return loss

    def _not_finite(self, loss: float, inputs: dict[str, Any]) -> str:
        rows = [row[row != self._tokenizer.pad_token_id] for row in inputs["input_ids"]]
        begins = "; ".join(repr(self._tokenizer.decode(row[:60], skip_special_tokens=True)[:120]) for row in rows)
        return (
            f"the loss is {loss} at step {self.state.global_step + 1}, on rows that begin: {begins}. Lower "
            "train.learning_rate, or leave fp16 for bf16 or float32; the last checkpoint is kept."
        )
