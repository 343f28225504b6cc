"""The run directory: writes that are whole or not there, one process at a time, a record that grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from alpacare_sft.errors import RunError
from alpacare_sft.run import directory
from alpacare_sft.run.directory import RunDirectory, check_free_disk, new_directory, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_makes_its_folders_and_ends_lines_with_a_line_feed(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "µ\n")
    write_json(tmp_path / "a" / "b.json", {"text": "µ", "list": [1]})
    assert (tmp_path / "a" / "b.txt").read_bytes() == "µ\n".encode()
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "text": "µ",\n  "list": [\n    1\n  ]\n}\n'
    assert names(tmp_path / "a") == ["b.json", "b.txt"]


def test_a_write_leaves_the_permissions_that_any_file_gets(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "a")
    (tmp_path / "plain").write_text("a")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_a_new_directory_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with new_directory(tmp_path / "data") as scratch:
            write_text(scratch / f"{text}.txt", text)
    assert (names(tmp_path), names(tmp_path / "data")) == (["data"], ["new.txt"])
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "data").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_new_directory_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    with new_directory(tmp_path / "data") as scratch:
        write_text(scratch / "old.txt", "old")
    with pytest.raises(RuntimeError, match="half"), new_directory(tmp_path / "data") as scratch:
        write_text(scratch / "new.txt", "new")
        raise RuntimeError("half way")
    assert (names(tmp_path), names(tmp_path / "data")) == (["data"], ["old.txt"])


def test_what_an_interrupted_exchange_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".data.old").mkdir()
    with new_directory(tmp_path / "data") as scratch:
        write_text(scratch / "a.txt", "a")
    with new_directory(tmp_path / "data") as scratch:
        write_text(scratch / "b.txt", "b")
    assert (names(tmp_path), names(tmp_path / "data")) == (["data"], ["b.txt"])


def test_a_record_grows_key_by_key(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    assert directory.read_record() == {}
    directory.update_record({"status": "running", "seconds": {"data": 1.0}})
    assert directory.update_record({"status": "done"}) == {"status": "done", "seconds": {"data": 1.0}}
    assert directory.read_record() == {"status": "done", "seconds": {"data": 1.0}}


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_broken_record_is_told_by_its_path(tmp_path: Path, text: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.record.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"run\.json is not a record of a run: .* Put a whole copy of it back"):
        directory.read_record()


def test_clear_removes_what_a_run_made_and_nothing_else(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for name in ("data/a", "checkpoints/a", "adapter/a", "eval/a", "run.json", "recipe.yaml", "training.html"):
        write_text(tmp_path / name, "x")
    write_text(tmp_path / "notes.txt", "mine")
    directory.clear()
    directory.clear()
    assert names(tmp_path) == ["eval", "notes.txt"]
    assert names(tmp_path / "eval") == []


def test_clear_leaves_the_sheets_that_people_may_have_filled(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for name in ("review.csv", "review_key.json", "review.html", "scores.json", "answers/base.jsonl"):
        write_text(tmp_path / "eval" / name, "x")
    directory.clear()
    assert names(tmp_path / "eval") == ["review.csv", "review_key.json"]


HOLD = """
import sys, pathlib
from alpacare_sft.run.directory import RunDirectory
with RunDirectory(pathlib.Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"is in use by process {holder.pid} on .* since .* Wait for it, stop it"):
            RunDirectory(tmp_path / "run").lock().__enter__()
        holder.kill()
        holder.wait()
    with RunDirectory(tmp_path / "run").lock():  # the system took the dead one's lock away
        told = json.loads((tmp_path / "run" / ".lock.json").read_text())
        assert told["pid"] == os.getpid()
    assert not (tmp_path / "run" / ".lock.json").exists()


def test_nothing_is_made_before_the_lock(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    assert directory.read_record() == {} and directory.adapter == tmp_path / "run" / "adapter"
    directory.clear()
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_made_is_told_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"output_dir: .*file/run cannot be made: Not a directory\. Choose another\."):
        RunDirectory(tmp_path / "file" / "run").lock().__enter__()


def test_a_full_disk_is_told_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10 * 2**30, 9 * 2**30, 2**30)
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda _: usage)
    check_free_disk(tmp_path, 2**30)
    told = (
        r"output_dir: .* needs 1\.50 GiB, 1\.00 GiB are free\. Lower train\.save_total_limit, or choose another disk\."
    )
    with pytest.raises(RunError, match=told):
        check_free_disk(tmp_path, 3 * 2**29)
