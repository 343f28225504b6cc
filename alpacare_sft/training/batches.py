"""Rows per optimizer step: shared out over the processes, recorded, and held equal when a run is resumed."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.run.directory import RunDirectory, checkpoint_folders
from alpacare_sft.run.trained import read_stored_recipe
from alpacare_sft.runtime import num_processes
from alpacare_sft.training.checkpoints import STATE, saved_batch

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from alpacare_sft.recipe.upstream_sections import TrainSection

_SIZE, _PARTS = "per_device_train_batch_size", "gradient_accumulation_steps"


@dataclass(frozen=True)
class Batch:
    """How one optimizer step is made up."""

    processes: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int

    @property
    def rows(self) -> int:
        """Rows per optimizer step, over all processes."""
        return self.processes * self.per_device_train_batch_size * self.gradient_accumulation_steps

    def __str__(self) -> str:
        size, parts = self.per_device_train_batch_size, self.gradient_accumulation_steps
        return f"{_count(self.processes, 'process', 'es')} × batch {size} × accumulation {parts}"

    @classmethod
    def of(cls, args: TrainingArguments) -> Batch:
        """What a trainer with these arguments does."""
        return cls(args.world_size, args.per_device_train_batch_size, args.gradient_accumulation_steps)


def describe_batch(batch: Batch) -> str:
    """The line that a person reads when training begins."""
    return (
        f"effective batch size: {_count(batch.rows, 'row')} per optimizer step "
        f"({_count(batch.processes, 'process', 'es')})"
    )


def share_batch(train: TrainSection) -> Batch:
    """A recipe's rows per optimizer step, which it states for one process, shared out over those of this launch.

    Accumulation is divided first: the micro-batch then needs the memory that the recipe was tried with.

    Raises:
        RecipeError: if the rows do not divide evenly; with the override that makes them.
    """
    processes, size, parts = num_processes(), train.per_device_train_batch_size, train.gradient_accumulation_steps
    if size * parts % processes:
        unit = processes // math.gcd(processes, size)
        fitting = math.ceil(parts / unit) * unit
        raise RecipeError(
            f"train.{_SIZE} × train.{_PARTS} must be a multiple of the {processes} processes, got {size} × "
            f"{parts}. Add --train.{_PARTS} {fitting} ({size * fitting} rows per optimizer step)."
        )
    shared = math.gcd(parts, processes)
    return Batch(processes, size // (processes // shared), parts // shared)


def begun_batch(run: RunDirectory) -> Batch | None:
    """What the optimizer steps of the run in a directory are made of: of its newest checkpoint, or as it began.

    Runs of version 0.1 did not record it: their recipe states it for each process.
    """
    if not run.holds_work() or not run.recipe.exists():
        return None
    for folder in checkpoint_folders(run.checkpoints):
        with suppress(OSError, ValueError):  # cut off while being written
            if batch := saved_batch(json.loads((folder / STATE).read_text(encoding="utf-8"))):
                return Batch(**batch)
    record = run.read_record()
    if "batch" in record:
        return Batch(**record["batch"])
    train = read_stored_recipe(run).recipe.train
    return Batch(
        record.get("hardware", {}).get("processes", 1),
        train.per_device_train_batch_size,
        train.gradient_accumulation_steps,
    )


def refuse_other_batch(run: RunDirectory, train: TrainSection) -> None:
    """Keep the rows per optimizer step of the run in a directory, and the order of its rows.

    Other processes, batch sizes and accumulation may make up the same steps.

    Raises:
        RunError: with both numbers and what makes them equal.
    """
    begun, processes = begun_batch(run), num_processes()
    if begun is None:
        return
    size, parts = train.per_device_train_batch_size, train.gradient_accumulation_steps
    rows = size * parts
    if begun.rows % processes:
        fitting = max(n for n in range(1, processes) if begun.rows % n == 0)
        raise RunError(
            f"output_dir: {run.path} was begun with {_count(begun.rows, 'row')} per optimizer step, which {processes} "
            f"processes cannot share. Launch {_count(fitting, 'process', 'es')}."
        )
    if rows != begun.rows:
        fitting = math.gcd(size, begun.rows)
        override = f"--train.{_PARTS} {begun.rows // fitting}"
        if fitting != size:
            override = f"--train.{_SIZE} {fitting} {override}"
        raise RunError(
            f"output_dir: {run.path} was begun with {_count(begun.rows, 'row')} per optimizer step, the recipe asks "
            f"for {rows} ({size} × {parts}). Add {override}, or --overwrite to begin anew."
        )
    if key := _reorders_rows(train, begun, share_batch(train)):
        raise RunError(
            f"output_dir: {run.path} was begun with {begun}. With {key} the order of its rows depends on that, and "
            f"{share_batch(train)} would read some of them twice. Launch it as it was begun, or add --overwrite."
        )


def _reorders_rows(train: TrainSection, begun: Batch, now: Batch) -> str | None:
    """The key that makes another order of rows out of other processes (transformers 5.23, trl 1.16)."""
    if begun.processes == now.processes:
        return None
    if train.train_sampling_strategy == "group_by_length":  # within groups of 50 steps of one process
        return "train.train_sampling_strategy: group_by_length"
    return "train.packing" if train.packing else None


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"
