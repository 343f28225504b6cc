"""A full disk and caches in the wrong place: exit 1, the path, and the variable that moves it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.errors import DataError, RunError
from alpacare_sft.model.base import loading_errors_explained
from alpacare_sft.run.directory import disk_fault


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caches of the libraries, in a folder of this test."""
    home = tmp_path / "hf"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    return home


def os_error(number: int, path: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), str(path)) if path else OSError(number, os.strerror(number))


def test_a_full_disk_is_told_by_its_path_and_the_variable(caches: Path) -> None:
    (caches / "datasets").mkdir(parents=True)
    path = caches / "datasets" / "json" / "rows.arrow"
    told = disk_fault(os_error(errno.ENOSPC, path))
    assert told == f"the disk is full at {path}. Free space there, or set HF_DATASETS_CACHE to a larger disk."
    model = disk_fault(os_error(errno.EDQUOT, caches / "hub" / "models--a--b"))
    assert model is not None and "set HF_HUB_CACHE to a larger disk" in model


@pytest.mark.parametrize(
    "error",
    [
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        RuntimeError("Data processing error: IO Error: No space left on device (os error 28)"),
        os_error(errno.ENOSPC),
    ],
)
def test_a_full_disk_is_known_by_its_words(error: Exception, caches: Path) -> None:
    told = disk_fault(error)
    assert told is not None and "the disk is full at" in told


def test_what_a_disk_caused_is_no_fault_of_the_rows(
    make_recipe: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        try:
            raise os_error(errno.ENOSPC, caches / "datasets" / "x.arrow")
        except OSError as error:
            raise DataError("data.path: rows.jsonl: the file is damaged.") from error

    monkeypatch.setattr("alpacare_sft.data.prepare.load_parts", fail)
    with pytest.raises(RunError, match=r"the disk is full at .*x\.arrow.*HF_DATASETS_CACHE"):
        prepare_data(make_recipe(), tokenizer)
    with (
        pytest.raises(RunError, match=r"the disk is full .*HF_HUB_CACHE"),
        loading_errors_explained("them/model", None),
    ):
        raise os_error(errno.ENOSPC, caches / "hub" / "blobs")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_names_its_variable(number: int, caches: Path) -> None:
    told = disk_fault(os_error(number, caches / "datasets" / "json.lock"))
    assert told is not None and told.startswith("the cache ") and "cannot be written" in told and "Set HF_" in told


def test_other_errors_are_left_to_others(tmp_path: Path, caches: Path) -> None:
    (caches / "hub").mkdir(parents=True)
    assert disk_fault(os_error(errno.EACCES, tmp_path / "rows.jsonl")) is None
    assert disk_fault(os_error(errno.ENOENT, caches / "hub" / "config.json")) is None
    assert disk_fault(ValueError("no such split")) is None
