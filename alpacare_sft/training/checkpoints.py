"""Which checkpoint a run goes on from, and whether anything is left to train."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpacare_sft.errors import RunError
from alpacare_sft.run.directory import WEIGHTS, write_json

# The Trainer writes these in this order, the state last; a kill in between leaves a part of them.
_ARCHIVES = ("optimizer.pt", "scheduler.pt")
_STATE = "trainer_state.json"


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
            write_json(self.path / _STATE, self.state)


def newest_whole_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest checkpoint that can be resumed exactly.

    Returns:
        The checkpoint, or None; and the newer ones that were passed over, with the reason.
    """
    passed_over: list[tuple[Path, str]] = []
    candidates = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(candidates, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if fault := checkpoint_fault(path):
            passed_over.append((path, fault))
        else:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            return Checkpoint(path, state), passed_over
    return None, passed_over


def checkpoint_fault(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed exactly, or None if it can."""
    from safetensors import SafetensorError, safe_open

    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        state["global_step"], state["max_steps"]
    except FileNotFoundError:
        return f"{_STATE} is missing, it was cut off while being written"
    except (ValueError, KeyError, TypeError):
        return f"{_STATE} cannot be read"
    try:
        with safe_open(path / WEIGHTS, framework="numpy") as file:
            file.keys()
    except FileNotFoundError:
        return f"{WEIGHTS} is missing"
    except (SafetensorError, OSError):
        return f"{WEIGHTS} is cut short"
    rng = sorted(path.glob("rng_state*.pth"))
    if not rng:
        return "rng_state.pth is missing"
    for archive in (*(path / name for name in _ARCHIVES), *rng):
        if fault := _archive_fault(archive):
            return fault
    return None


def _archive_fault(path: Path) -> str | None:
    if not path.exists():
        return f"{path.name} is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{path.name} is damaged" if archive.testzip() else None
    except (zipfile.BadZipFile, OSError):
        return f"{path.name} is cut short"
