"""The run directory: its paths, lock, record and atomic writes; and errors that a disk or a cache causes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alpacare_sft.errors import RunError, causes_of
from alpacare_sft.runtime import is_main_process, say

_SCRATCH = re.compile(
    r"\.(adapter|adapter-unchecked|checkpoints|data|eval|\.?[a-z_]+\.(json|jsonl|yaml|html|csv|md))\.([a-z0-9_]{8}|old)"
)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT names an adapter's files
# Numbers of system errors: a full disk, a place that cannot be written, and one that could not be made.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHUT = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_NOT_MADE = {errno.EEXIST, errno.ENOENT}  # of a cache only if it is no directory; else some file of others is missing
# pyarrow, safetensors and the transfer library of huggingface_hub say it in their text alone.
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")
LOCK_REMEDY = "Wait for it, stop it, or choose another output_dir"


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never half of it."""
    scratch = _scratch_beside(path)
    try:
        with scratch.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _scratch_beside(path: Path) -> Path:
    """A name that no file has, in the directory of `path`, which is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{secrets.token_hex(4)}"


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def json_sha256(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Hash of a value as JSON, whatever the order of its keys; `default` as `json.dumps` has it."""
    return text_sha256(json.dumps(value, sort_keys=True, default=default))


def has_sha256(path: Path, digest: str) -> bool:
    """Whether a file is there, and has this hash."""
    return path.is_file() and file_sha256(path) == digest


def changed_files(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """Names of files that are gone from a directory, or have another hash."""
    return [name for name, digest in hashes.items() if not has_sha256(folder / name, digest)]


def adapter_sha256(folder: Path) -> str:
    """Hash of an adapter: its config, which says how strongly its weights count, and its weights."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in (CONFIG, WEIGHTS))).hexdigest()


def is_lora_weight(name: str) -> bool:
    """Whether a parameter is one that an adapter may hold: LoRA's, or a bias that `lora.bias` trains."""
    return "lora_" in name or name.endswith(".bias")


def has_effect(name: str) -> bool:
    """Whether a LoRA weight changes the model's output by itself; the first matrix of a product does not."""
    return "lora_A" not in name and "lora_embedding_A" not in name


def last_name(path: str) -> str:
    """A path, of this system or another, without its folders."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with a line break at the end."""
    write_text(path, format_json(value))


def format_json(value: Any) -> str:
    """JSON, indented, with a line break at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: if it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it must hold an object")
    return value


def _whole_number(text: str) -> int:
    """A number that floats reach too."""
    if (number := int(text)).bit_length() > 1000:
        raise ValueError("a number in it is too large")
    return number


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that takes the place of `path` if the body succeeds, and vanishes if not."""
    scratch = _scratch_beside(path)
    scratch.mkdir()
    try:
        yield scratch
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        scratch.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Directories of checkpoints, whole or not, the newest first."""
    candidates = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(candidates, key=lambda path: int(path.name.split("-")[-1]), reverse=True)


class RunDirectory:
    """Paths of a run and the record in it. Nothing is created before `lock`.

    Attributes:
        path: the directory.
        recipe: the recipe as it was given.
        record: `run.json`, with a copy in `.run.json` by which damage is noticed and mended.
        data: the splits and their report.
        checkpoints: what an unfinished run goes on from.
        adapter: the result.
        unchecked_adapter: what a training ended with, until it is checked.
        training_report: curves of loss and learning rate.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.record = path / "run.json"
        self.record_copy = path / ".run.json"
        self.data = path / "data"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.unchecked_adapter = path / "adapter-unchecked"
        self.training_report = path / "training.html"

    def has_adapter(self) -> bool:
        """Whether a trained adapter is here."""
        return (self.adapter / WEIGHTS).exists()

    def holds_work(self) -> bool:
        """Whether there is something that beginning anew would lose: a checkpoint or an adapter."""
        weights = self.has_adapter() or (self.unchecked_adapter / WEIGHTS).exists()
        return weights or bool(checkpoint_folders(self.checkpoints))

    def read_record(self) -> dict[str, Any]:
        """The record, or an empty one if the run has none yet; from its copy where it is not as it was written.

        Raises:
            RunError: if the record is not JSON, and there is no copy.
        """
        if (copy := self._read_copy()) is not None:
            if not self._is_record(copy):  # damaged; or another process is between its two writes
                time.sleep(0.2)
                copy = self._read_copy() or copy
            if not self._is_record(copy) and is_main_process():
                say(f"{self.record} is not as it was written: its copy {self.record_copy.name} is used.")
                with suppress(OSError):  # a place that can only be read
                    write_text(self.record, copy)
            return dict(json.loads(copy))
        try:
            return read_object(self.record)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError as error:
            raise RunError(
                f"{self.record} is not a record of a run: {error}. Put a whole copy of it back, or add --overwrite to "
                "begin the run anew."
            ) from error

    def _is_record(self, text: str) -> bool:
        try:
            return self.record.read_text(encoding="utf-8") == text
        except (OSError, ValueError):
            return False

    def _read_copy(self) -> str | None:
        """The text of the record's copy; None where there is none, or it is damaged itself."""
        try:
            digest, _, text = self.record_copy.read_text(encoding="utf-8").partition("\n")
        except (OSError, ValueError):
            return None
        return text if text_sha256(text) == digest else None

    def update_record(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Merge `changes` into the record and write it, its copy first; the whole record."""
        record = {**self.read_record(), **changes}
        text = format_json(record)
        write_text(self.record_copy, f"{text_sha256(text)}\n{text}")
        write_text(self.record, text)
        return record

    def seal(self, *paths: Path) -> None:
        """Record the hashes of files of this directory, by which `damaged` knows them."""
        hashes = {path.relative_to(self.path).as_posix(): file_sha256(path) for path in paths}
        folders = {name.partition("/")[0] for name in hashes}
        before = {  # but for files that are rightly gone, of an earlier attempt at the same stage
            name: digest
            for name, digest in self._hashes().items()
            if name.partition("/")[0] not in folders or (self.path / name).exists()
        }
        self.update_record({"files": before | hashes})

    def damaged(self, beginning: str) -> list[str]:
        """Names of sealed files that begin so and are gone, or not as they were written."""
        named = {name: digest for name, digest in self._hashes().items() if name.startswith(beginning)}
        return changed_files(self.path, named)

    def _hashes(self) -> dict[str, str]:
        record = self.read_record()
        before = {"eval/scores.json": record["scores_sha256"]} if "scores_sha256" in record else {}  # as 0.1 wrote it
        return {**before, **record.get("files", {})}

    def clear(self) -> None:
        """Remove what an earlier run left, and nothing that it did not make, nor what people wrote into sheets."""
        for path in (self.data, self.checkpoints, self.adapter, self.unchecked_adapter):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.path / "eval").glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != ".csv" and path.name != "review_key.json":
                path.unlink(missing_ok=True)
        for path in (self.record_copy, self.record, self.recipe, self.training_report, self.path / "report.html"):
            path.unlink(missing_ok=True)

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
        for path in [path for path in self.path.iterdir() if _SCRATCH.fullmatch(path.name)]:  # of a killed process
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def _who(holder: Path) -> str:
    try:
        process = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {process['pid']} on {process['host']} since {process['since']}"
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


def own_cache() -> Path:
    """Where this package keeps the embedded model that it converted, and what it measured of the machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alpacare_sft"


@contextmanager
def disk_errors_explained() -> Iterator[None]:
    """Turn an error that a disk caused into one about that disk, however others wrapped and worded it.

    Raises:
        RunError: with the path and the variable that moves it.
    """
    try:
        yield
    except Exception as error:
        if message := disk_fault(error):
            raise RunError(message) from error
        raise


def disk_fault(error: BaseException) -> str | None:
    """What is wrong with the disk or the place of a cache, or None if another thing caused the error."""
    for cause in causes_of(error):
        number = cause.errno if isinstance(cause, OSError) else None
        named = getattr(cause, "filename", None)
        path = Path(os.fsdecode(named)).absolute() if isinstance(named, str | bytes | os.PathLike) else None
        # caches that the path lies in, or that it was made for
        caches = [c for c in _caches() if path and (path.is_relative_to(c[1]) or c[1].is_relative_to(path))]
        if number in _FULL or any(words in str(cause).lower() for words in _FULL_WORDS):
            fullest = min(_caches(), key=lambda cache: shutil.disk_usage(_nearest(cache[1])).free)
            variable, place = caches[0] if caches else fullest
            return f"the disk is full at {path or place}. Free space there, or set {variable} to a larger disk."
        if caches and (number in _SHUT or (number in _NOT_MADE and not caches[0][1].is_dir())):
            shut = (cache for cache in reversed(caches) if not os.access(_nearest(cache[1]), os.W_OK | os.X_OK))
            variable, place = next(shut, caches[0])
            why = os.strerror(number or 0).lower()
            return f"the cache {place} cannot be written ({why}). Set {variable} to a directory that can be."
    return None


def _caches() -> list[tuple[str, Path]]:
    """The variable that moves each cache, and where it is now; `HF_HOME`, which holds the others, last."""
    import datasets
    from huggingface_hub import constants

    caches = {
        "HF_DATASETS_CACHE": datasets.config.HF_DATASETS_CACHE,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_XET_CACHE": constants.HF_XET_CACHE,
        "XDG_CACHE_HOME": own_cache(),
        "HF_HOME": constants.HF_HOME,
    }
    return [(variable, Path(place).expanduser().absolute()) for variable, place in caches.items()]


def _nearest(place: Path) -> Path:
    return next(path for path in (place, *place.parents) if path.exists())
