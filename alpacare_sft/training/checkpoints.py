"""Which checkpoint a run goes on from, and whether anything is left to train."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpacare_sft.errors import RunError, first_line
from alpacare_sft.recipe.names import expand
from alpacare_sft.run.directory import (
    WEIGHTS,
    RunDirectory,
    changed_files,
    checkpoint_folders,
    file_sha256,
    new_directory,
    read_object,
    write_json,
    write_text,
)
from alpacare_sft.runtime import say

# The Trainer writes these in this order, the state last; a kill in between leaves a part of them.
_ARCHIVES = ("optimizer.pt", "scheduler.pt")
STATE = "trainer_state.json"
HASHES = "sha256.json"


@dataclass(frozen=True)
class Checkpoint:
    """A directory that the Trainer wrote whole."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """The optimizer's step that it was written after."""
        return int(self.state["global_step"])

    def is_complete(self, patience: int) -> bool:
        """Whether training had ended here: at its last step, or stopped early."""
        stopper = self.state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
        waited = stopper.get("attributes", {}).get("early_stopping_patience_counter", 0)
        return self.step >= int(self.state["max_steps"]) or bool(patience and waited >= patience)

    def best(self) -> Path:
        """The best checkpoint so far, where it lies now: a run may have been moved; this one if none was chosen.

        Raises:
            RunError: if it is gone or damaged, as a run could then not end with its best weights.
        """
        name = self.state.get("best_model_checkpoint")
        best = self.path.parent / Path(name).name if name else self.path
        if fault := checkpoint_fault(best):
            raise RunError(f"{best.name} has the best validation loss and cannot be used: {fault}. Add --overwrite.")
        return best

    def adopt(self) -> None:
        """Let the state name the best checkpoint where it lies now.

        The Trainer keeps the path as it was written and forgets a best checkpoint that it does not
        find there, and with it the weights that it should end with.
        """
        written, best = Path(self.state.get("best_model_checkpoint") or ""), self.best()
        if written.name == best.name and written != best:
            self.state["best_model_checkpoint"] = str(best)
            (self.path / HASHES).unlink(missing_ok=True)  # a stop in between leaves it whole by its other files
            write_json(self.path / STATE, self.state)
            seal_checkpoint(self.path)


def seal_checkpoint(folder: Path) -> None:
    """Write the hashes of a checkpoint's files beside them."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != HASHES)
    write_json(folder / HASHES, {path.name: file_sha256(path) for path in files})


def copy_checkpoints(run: RunDirectory, place: str) -> None:
    """Have what a run goes on from in a second place: its newest checkpoint, the best, its recipe and its record.

    A place that cannot be written, or has another run of that name, costs the training nothing; it is told.
    """
    try:
        _copy_checkpoints(run, expand(place) / run.path.name)
    except (OSError, ValueError) as error:
        say(f"checkpoints.copy_to: {place} has no copy of this checkpoint: {first_line(error)}. The training goes on.")


def _copy_checkpoints(run: RunDirectory, target: Path) -> None:
    there = RunDirectory(target).read_record().get("recipe_sha256")
    if target.resolve() == run.path.resolve() or there not in (None, run.read_record().get("recipe_sha256")):
        raise ValueError(f"{target} holds another run, or this one. Name another directory")
    newest = checkpoint_folders(run.checkpoints)[0]
    best = read_object(newest / STATE).get("best_model_checkpoint")
    names = {newest.name, *([Path(best).name] if best else [])}
    for path in (run.recipe, run.record_copy, run.record):
        write_text(target / path.name, path.read_text(encoding="utf-8"))
    for name in names:
        source, copy = run.checkpoints / name, target / "checkpoints" / name
        if checkpoint_fault(copy) or read_object(copy / HASHES) != read_object(source / HASHES):
            with new_directory(copy) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
    for folder in (target / "checkpoints").glob("*checkpoint-*"):  # older ones, and what a kill left of a copy
        if folder.name not in names:
            shutil.rmtree(folder)


def restore_checkpoints(run: RunDirectory, place: str) -> None:
    """Begin a run that is gone with what `copy_checkpoints` has of it.

    Its checkpoints come last: where that is cut off, the next start begins it anew.
    """
    source = expand(place) / run.path.name
    if run.holds_work() or not checkpoint_folders(source / "checkpoints"):
        return
    say(f"{run.path} is begun with what {source} has of it.")
    for name in (run.recipe.name, run.record_copy.name, run.record.name):
        write_text(run.path / name, (source / name).read_text(encoding="utf-8"))
    with new_directory(run.checkpoints) as folder:
        shutil.copytree(source / "checkpoints", folder, dirs_exist_ok=True)


def forget_copy(run: RunDirectory, place: str) -> None:
    """Remove the copy of a run that begins anew, unless it is of another recipe."""
    target = RunDirectory(expand(place) / run.path.name)
    if target.path.resolve() != run.path.resolve():
        target.clear()


def newest_whole_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest checkpoint that can be resumed exactly.

    Returns:
        The checkpoint, or None; and the newer ones that were skipped, with the reason.
    """
    passed_over: list[tuple[Path, str]] = []
    for path in checkpoint_folders(folder):
        if fault := checkpoint_fault(path):
            passed_over.append((path, fault))
        else:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(path, state), passed_over
    return None, passed_over


def saved_batch(state: Mapping[str, Any]) -> dict[str, int]:
    """How the steps of a checkpoint were made up, as `Account` wrote it; empty if version 0.1 wrote it."""
    account = state.get("stateful_callbacks", {}).get("Account", {})
    batch: dict[str, int] = account.get("attributes", {}).get("batch", {})
    return batch


def ended_training(run: RunDirectory) -> Checkpoint | None:
    """The weights that a training ended with, if what comes after it failed; see `save_adapter`."""
    for folder in (run.unchecked_adapter, run.adapter):
        if (folder / STATE).exists():
            return Checkpoint(folder, json.loads((folder / STATE).read_text(encoding="utf-8")))
    return None


def checkpoint_fault(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed exactly, or None if it can."""
    from safetensors import SafetensorError, safe_open

    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        state["global_step"], state["max_steps"]
    except FileNotFoundError:
        return f"{STATE} is missing, it was cut off while being written"
    except (ValueError, KeyError, TypeError):
        return f"{STATE} cannot be read"
    with suppress(FileNotFoundError):  # cut off before its last file, or written by version 0.1
        return _changed_file(path)
    try:
        with safe_open(path / WEIGHTS, framework="numpy") as file:
            file.keys()
    except FileNotFoundError:
        return f"{WEIGHTS} is missing"
    except (SafetensorError, OSError):
        return f"{WEIGHTS} is cut short"
    processes = saved_batch(state).get("processes", 1 if (path / "rng_state.pth").exists() else 2)
    rng = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return next((fault for name in (*_ARCHIVES, *rng) if (fault := _archive_fault(path / name))), None)


def _changed_file(folder: Path) -> str | None:
    try:
        hashes = read_object(folder / HASHES)
    except ValueError:
        return f"{HASHES} is damaged"
    changed = changed_files(folder, hashes)
    return f"{min(changed)} is damaged" if changed else None


def _archive_fault(path: Path) -> str | None:
    if not path.exists():
        return f"{path.name} is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{path.name} is damaged" if archive.testzip() else None
    except (zipfile.BadZipFile, OSError):
        return f"{path.name} is cut short"
