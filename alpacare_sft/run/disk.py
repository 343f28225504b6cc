"""A full disk, or a cache where nothing can be written → one message with the variable that moves it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpacare_sft.errors import RunError, causes_of

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHUT = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_NOT_MADE = {errno.EEXIST, errno.ENOENT}  # of a cache only if it is no directory; else some file of others is missing
# pyarrow, safetensors and the transfer library of huggingface_hub say it in their text alone.
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")


def own_cache() -> Path:
    """Where this package keeps the embedded model that it converted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alpacare_sft"


@contextmanager
def disk_faults_told() -> Iterator[None]:
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
        caches = _caches_of(path) if path else []
        if number in _FULL or any(words in str(cause).lower() for words in _FULL_WORDS):
            variable, place = caches[0] if caches else min(_caches(), key=_free_bytes)
            return f"the disk is full at {path or place}. Free space there, or set {variable} to a larger disk."
        if caches and (number in _SHUT or (number in _NOT_MADE and not caches[0][1].is_dir())):
            variable, place = next((cache for cache in reversed(caches) if not _is_writable(cache[1])), caches[0])
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


def _caches_of(path: Path) -> list[tuple[str, Path]]:
    """Caches that a path lies in, or that it was made for."""
    return [cache for cache in _caches() if path.is_relative_to(cache[1]) or cache[1].is_relative_to(path)]


def _nearest(place: Path) -> Path:
    return next(path for path in (place, *place.parents) if path.exists())


def _is_writable(place: Path) -> bool:
    nearest = _nearest(place)
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def _free_bytes(cache: tuple[str, Path]) -> int:
    return shutil.disk_usage(_nearest(cache[1])).free
