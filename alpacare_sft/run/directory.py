"""The run directory: its paths, its lock, its record and its atomic writes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpacare_sft.errors import RunError

_SCRATCH = re.compile(
    r"\.(adapter|adapter-unchecked|data|eval|\.?[a-z_]+\.(json|jsonl|yaml|html|csv))\.([a-z0-9_]{8}|old)"
)
WEIGHTS = "adapter_model.safetensors"  # as PEFT names an adapter's
LOCK_REMEDY = "Wait for it, stop it, or choose another output_dir"


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~_umask())
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def last_name(path: str) -> str:
    """A path, of this system or another, without its folders."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with a line break at the end."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that takes the place of `path` if the body succeeds, and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        scratch.chmod(0o777 & ~_umask())
        yield scratch
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        scratch.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run and the record in it. Nothing is created before `lock`."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was given."""
        return self.path / "recipe.yaml"

    @property
    def record(self) -> Path:
        """The record, `run.json`."""
        return self.path / "run.json"

    @property
    def data(self) -> Path:
        """The splits and their report."""
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        """What an unfinished run goes on from."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The result."""
        return self.path / "adapter"

    @property
    def unchecked_adapter(self) -> Path:
        """What a training ended with, until it is checked."""
        return self.path / "adapter-unchecked"

    @property
    def training_report(self) -> Path:
        """Curves of loss and learning rate."""
        return self.path / "training.html"

    def has_adapter(self) -> bool:
        """Whether a trained adapter is here."""
        return (self.adapter / WEIGHTS).exists()

    def holds_work(self) -> bool:
        """Whether there is something that beginning anew would lose: a checkpoint or an adapter."""
        weights = self.has_adapter() or (self.unchecked_adapter / WEIGHTS).exists()
        return weights or bool(list(self.checkpoints.glob("checkpoint-*")))

    def read_record(self) -> dict[str, Any]:
        """The record, or an empty one if the run has none yet.

        Raises:
            RunError: if the record is not JSON.
        """
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, UnicodeDecodeError) as error:
            raise RunError(f"{self.record} is not a record of a run: {error}. Move the directory away.") from error
        if not isinstance(record, dict):
            raise RunError(f"{self.record} is not a record of a run. Move the directory away.")
        return record

    def update_record(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Merge `changes` into the record and write it; the whole record."""
        record = {**self.read_record(), **changes}
        write_json(self.record, record)
        return record

    def clear(self) -> None:
        """Remove what an earlier run left, and nothing that it did not make, nor what people wrote into sheets."""
        for path in (self.data, self.checkpoints, self.adapter, self.unchecked_adapter):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.path / "eval").glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != ".csv" and path.name != "review_key.json":
                path.unlink(missing_ok=True)
        for path in (self.recipe, self.record, self.training_report):
            path.unlink(missing_ok=True)

    def _remove_scratch(self) -> None:
        """Remove what a killed process had begun to write; the lock says that none is writing now."""
        for path in [path for path in self.path.iterdir() if _SCRATCH.fullmatch(path.name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of this directory.

        The operating system drops the lock when its holder dies, so none is ever left behind.

        Raises:
            RunError: if another process holds it; names that process.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"output_dir: {self.path} cannot be made: {error.strerror}. Choose another.") from error
        holder = self.path / ".lock.json"
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"output_dir: {self.path} is in use by {_who(holder)}. {LOCK_REMEDY}.") from None
        except OSError as error:
            raise RunError(f"output_dir: {self.path} cannot be written: {error.strerror}. Choose another.") from error
        self._remove_scratch()
        try:
            write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def _who(holder: Path) -> str:
    try:
        told = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']} since {told['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def check_free_disk(path: Path, need_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        RunError: with the need and what there is.
    """
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    if free < need_bytes:
        raise RunError(
            f"output_dir: {path} needs {need_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free. "
            "Lower train.save_total_limit, or choose another disk."
        )
