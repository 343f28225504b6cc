"""The exceptions that a user may meet.

AlpacareError
├── RecipeError    the recipe or the command line is wrong          exit 2
├── DataError      the input rows are wrong, or too few             exit 2
├── ModelError     the base model cannot be had or does not fit     exit 1
└── RunError       the run failed, or its directory refuses it      exit 1
    └── StoppedError   stopped on request, with a checkpoint        exit 75

Each message stands alone: what must be, what was given, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class AlpacareError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class Fault(NamedTuple):
    """What is wrong with one key of a recipe; as text, the sentence that a user reads."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}{self.text}" if self.text.startswith(":") else f"{self.key} {self.text}"


class RecipeError(AlpacareError):
    """The recipe cannot work; carries all of its faults.

    Args:
        faults: each fault, in the order of the file.
        source: the file that holds them, for the message's first line.
    """

    exit_code = 2

    def __init__(self, faults: str | Sequence[str | Fault], source: str = "") -> None:
        self.faults = [faults] if isinstance(faults, str) else [str(fault) for fault in faults]
        self.source = source
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        if not source and len(self.faults) == 1:
            super().__init__(self.faults[0])
        else:
            noun = "fault" if len(self.faults) == 1 else "faults"
            where = f" in {source}" if source else ""
            super().__init__(f"{len(self.faults)} {noun}{where}:\n{lines}")


class DataError(AlpacareError):
    """The rows cannot be read, are not text, or are too few."""

    exit_code = 2


class ModelError(AlpacareError):
    """The base model or its tokenizer cannot be had, or cannot be trained as requested."""


class RunError(AlpacareError):
    """A run failed, or its directory does not allow what was requested."""


class StoppedError(RunError):
    """The run was stopped by a signal; a checkpoint to resume from was written."""

    exit_code = 75


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the newest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The head of a message of others, without its full stop; the name of the error if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
