"""The thin `SFTTrainer`: the head on answer positions where TRL scores all, and loud failures."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer

from alpacare_sft.errors import RunError
from alpacare_sft.runtime import free_memory, is_out_of_memory, say
from alpacare_sft.training.callbacks import Account
from alpacare_sft.training.checkpoints import HASHES, seal_checkpoint
from alpacare_sft.training.forwards import IGNORED, Packer, split_rows
from alpacare_sft.training.recovery import Undo, protect_step


def answer_mask(labels: torch.Tensor) -> torch.Tensor:
    """Positions whose *next* token is in the loss.

    Args:
        labels: token ids, shape (B, T); -100 outside the loss.

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


class AnswerLoss(torch.autograd.Function):
    """Cross-entropy summed over positions, a few rows of logits at a time, its gradient written over the logits.

    Called whole, `cross_entropy` passes five times over a matrix of N × V numbers and keeps three of them
    (log-probabilities, a matrix of zeros for the targets, the gradient); a few rows at a time stay in the
    processor's cache. On two cores that was 8 % of a step.
    """

    rows_at_a_time = 32

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of -log p(target), and how many targets were the likeliest token.

        Args:
            ctx: of autograd.
            logits: float32, shape (N, V); overwritten.
            targets: token ids, shape (N,).
        """
        loss, hits = logits.new_zeros(()), targets.new_zeros(())
        at_a_time = AnswerLoss.rows_at_a_time
        for rows, aims in zip(
            torch.split(logits.detach(), at_a_time), torch.split(targets[:, None], at_a_time), strict=True
        ):
            aimed = rows.gather(1, aims)
            highest, likeliest = rows.max(1, keepdim=True)
            total = rows.sub_(highest).exp_().sum(1, keepdim=True)
            loss += (highest + total.log() - aimed).sum()
            hits += (likeliest == aims).sum()
            rows.div_(total).scatter_add_(1, aims, rows.new_full(aims.shape, -1.0))
        ctx.gradient = logits.detach()
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[torch.Tensor, None]:
        """Softmax less the target, shape (N, V)."""
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(outer[0]), None


class RowOrder(Sampler[int]):
    """Another sampler's order, the same in each process and after a resume; the last step filled up.

    accelerate 1.15 fills the last batches of several processes with rows from the beginning, which would be
    trained on twice (`BatchSamplerShard`; without `even_batches` the processes wait for each other for ever).

    Args:
        inner: the order of an epoch; where it draws without a seed of its own, it is given one.
        seed: of the first epoch.
        filler: index of a row without labels, read `num_fill` times at the end.
    """

    def __init__(self, inner: Any, seed: int, filler: int, num_fill: int) -> None:
        self.inner, self.seed, self.filler, self.num_fill, self.epoch = inner, seed, filler, num_fill, 0

    def __len__(self) -> int:
        return len(self.inner) + self.num_fill

    def __iter__(self) -> Iterator[int]:
        if hasattr(self.inner, "generator"):
            self.inner.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from self.inner
        yield from [self.filler] * self.num_fill

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader."""
        self.epoch = epoch
        if hasattr(self.inner, "set_epoch"):
            self.inner.set_epoch(epoch)


def lower_rate(args: SFTConfig) -> str:
    """The command that trains the recipe of a run with a tenth of its learning rate, in another directory."""
    run = Path(args.output_dir).parent
    other, rate = run.with_name(f"{run.name}-lower-rate"), args.learning_rate / 10
    words = ["alpacare-sft", "train", str(run / "recipe.yaml"), "--train.learning_rate", f"{rate:g}"]
    return shlex.join([*words, "--output_dir", str(other)])


def upstream_is_compact(device: torch.device) -> bool:
    """Whether TRL's fused head scores the answer positions alone there (`trl.trainer.utils`, 1.16)."""
    return device.type in ("cuda", "xpu") and importlib.util.find_spec("triton") is not None


class AnswerSFTTrainer(SFTTrainer):
    """`SFTTrainer` that projects only answer positions where TRL would project every one.

    On devices with Triton (CUDA, XPU), TRL 1.16's fused head already scores the answer positions
    alone, in vocabulary tiles; there its own path runs. Elsewhere it scores the prompt and the
    padding too (`trl.trainer.utils.add_fused_lm_head`, `compact`); there this class asks the model
    for the logits of the answer positions. Same loss, same normalisation by
    `num_items_in_batch`, and TRL's accuracy metric; TRL's entropy metric is left out.
    """

    packer: Packer | None = None
    """What puts rows into forwards; None takes them as they come."""
    evaluation_rows: int | None = None
    """Most rows of a forward of the evaluation since memory ran out in one; None while it never did."""
    after_save: Callable[[], None] | None = None
    """Called by the first process when a checkpoint is whole."""

    @property
    def account(self) -> Account:
        """The account callback; a resume puts a new one in the place of the old."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Account))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of one step, their answer tokens counted over all processes."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.account.answer_tokens += int(num_items or 0)
        return samples, num_items

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        """Batches of a data set; those of training in the order and with the filling of `RowOrder`."""
        if not kwargs.get("is_training"):
            return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
        num_rows, draw = len(dataset), kwargs.pop("sampler_fn")
        sampler = draw(dataset)
        num_fill = -num_rows % (batch_size * self.args.world_size) if self.args.world_size > 1 else 0
        if num_fill:
            filler = {"input_ids": self._tokenizer.pad_token_id, "labels": IGNORED, "seq_lengths": 1}
            dataset = dataset.add_item({name: [filler.get(name, 0)] for name in dataset.column_names})
        loader = super()._get_dataloader(dataset, description, batch_size, lambda _: sampler, *args, **kwargs)
        shard = loader.batch_sampler
        batches = getattr(shard, "batch_sampler", shard)  # several processes: a part of the batches each
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        loader.set_sampler(RowOrder(batches.sampler, seed, num_rows, num_fill))
        return loader

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of rows that have a label: all but those that fill up."""
        if "attention_mask" in inputs:
            labelled = (inputs["labels"] != IGNORED).any(1, keepdim=True)
            inputs = {**inputs, "attention_mask": inputs["attention_mask"] * labelled}
        super()._track_num_input_tokens(inputs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer, whose step is taken again where memory ran out in it."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if "step" not in vars(optimizer):  # the Trainer may ask twice
            protect_step(optimizer, self._count_repetition)
        return optimizer

    def _count_repetition(self) -> None:
        self.account.recovery.times += 1

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save, seal what all processes wrote, and only then remove the oldest.

        Upstream takes the one that was written first by the clock for the oldest: that removes the newest where a
        clock was set back or a directory was copied.
        """
        sealed = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (sealed / HASHES).unlink(missing_ok=True)  # of a step that is saved twice
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal_checkpoint(sealed)
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint, use_mtime=False)
            if self.after_save:
                self.after_save()

    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch; rows that accelerate fills the last one with have no say in its mean."""
        state = self.accelerator.gradient_state
        if self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0:
            num_before = self.args.process_index * len(inputs["labels"])
            inputs["labels"][max(0, state.remainder - num_before) :] = IGNORED
        predict, num_rows = super().prediction_step, len(inputs["labels"])
        while True:
            try:
                parts = list(split_rows(inputs, self.evaluation_rows))
                results = [predict(model, part, *args, **kwargs) for part in parts]
                break
            except RuntimeError as error:
                most = min(num_rows, self.evaluation_rows or num_rows)
                if not is_out_of_memory(error) or self.args.world_size > 1 or most == 1:
                    raise
            self.evaluation_rows = most // 2
            say(f"out of memory in the evaluation: the same rows again, {self.evaluation_rows} a forward.")
            free_memory()
        if len(parts) == 1:
            return results[0]
        counts = torch.stack([answer_mask(part["labels"]).sum() for part in parts]).to(results[0][0].device)
        return (torch.stack([loss for loss, *_ in results]) * counts).sum() / counts.sum(), None, None

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a batch; where memory runs out, of the same rows in smaller parts.

        The loss is a sum divided by the tokens of the whole optimizer step, so that parts add up to the batch. With
        several processes the others wait in the same backward, and the run ends at its last checkpoint.
        """
        recovery = self.account.recovery
        step: Callable[..., torch.Tensor] = super().training_step
        if self.args.world_size > 1 or num_items_in_batch is None:
            return step(model, inputs, num_items_in_batch)
        while True:
            undo = Undo(model)
            try:
                losses = [step(model, part, num_items_in_batch) for part in self._forwards(inputs, recovery.rows)]
                return torch.stack(losses).sum() if len(losses) > 1 else losses[0]
            except RuntimeError as error:
                if not is_out_of_memory(error) or not recovery.shrink(len(inputs["labels"]), model):
                    raise
            undo.restore()
            free_memory()

    def _forwards(self, inputs: dict[str, Any], most: int | None) -> Iterator[dict[str, Any]]:
        """The batch as it comes, or where `forward.rows` is auto in the forwards of the `Packer`."""
        if self.packer is None or "attention_mask" not in inputs:
            return split_rows(inputs, most)
        return self.packer.forwards(inputs, most)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the tokens in the loss; see `SFTTrainer.compute_loss`.

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
        if targets.numel() == 0 and self.args.world_size == 1:
            raise RunError("a batch holds no token to learn. Rows without an answer should have been dropped.")
        given = {key: value for key, value in inputs.items() if key != "labels"}
        total, hits = AnswerLoss.apply(  # type: ignore[no-untyped-call]
            answer_logits(model, given, mask).float(), targets
        )
        num_tokens = targets.numel() if num_items_in_batch is None else num_items_in_batch
        # As upstream: rows that fill up have no token.
        loss: torch.Tensor = total / torch.as_tensor(num_tokens).clamp(min=1)
        # As upstream: the count spans all processes, and DDP averages their gradients.
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        correct = torch.stack([hits, torch.tensor(targets.numel(), device=hits.device)])
        hits, count = self.accelerator.gather_for_metrics(correct[None]).sum(0).tolist()
        self._metrics[mode]["mean_token_accuracy"].append(hits / max(count, 1))
        return loss

    def _not_finite(self, loss: float, inputs: dict[str, Any]) -> str:
        rows = [row[row != self._tokenizer.pad_token_id] for row in inputs["input_ids"]]
        begins = "; ".join(repr(self._tokenizer.decode(row[:60], skip_special_tokens=True)[:120]) for row in rows)
        return (
            f"the loss is {loss} at step {self.state.global_step + 1}, on rows that begin: {begins}. The last "
            f"checkpoint stays. Try a lower learning rate: {lower_rate(self.args)}"
        )
