"""Damage × stages: whatever happens to a file of a run, the next command goes on, or names the one that mends it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainerCallback

from alpacare_sft.cli import main
from alpacare_sft.training import train as training
from alpacare_sft.training.checkpoints import HASHES, checkpoint_folders, newest_whole_checkpoint
from tests.conftest import tiny_document

pytestmark = pytest.mark.slow

# Every verb that reads what others wrote, in the order of the work; {} is the recipe.
STAGES = {
    "data": ["data", "{}", "--show", "0"],
    "training": ["train", "{}"],
    "evaluation": ["eval", "{}"],
    "report": ["report", "{}"],
    "push": ["push", "{}", "--dry-run"],
    "plan": ["plan", "{}", "--json"],
}
RESULTS = ("adapter/adapter_model.safetensors", "data/train.jsonl", "data/test.jsonl", "data/report.json")


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through every stage; its recipe names its directory relative to itself."""
    folder = tmp_path_factory.mktemp("whole")
    document = tiny_document(tiny_model, folder / "run")
    document["generate"] = {"max_new_tokens": 6}
    document["evaluate"] = {"metrics": ["loss", "rouge"], "bootstrap_samples": 200}
    document["hub"] = {"repo_id": "someone/model"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    for stage in ("training", "evaluation", "report"):
        assert call(stage, folder) == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def call(stage: str, folder: Path) -> int:
    words = [word.format(folder / "recipe.yaml") for word in STAGES[stage]]
    return main([*words, "--output_dir", str(folder / "run")])


def results(folder: Path) -> dict[str, Any]:
    """What must be the same again: bytes of what was trained, and scores and answers without their seconds."""
    run = folder / "run"
    scores = json.loads((run / "eval" / "scores.json").read_text())
    told = {key: scores[key] for key in ("n", "metrics", "verdict", "model", "unseen")}
    return {**{name: (run / name).read_bytes() for name in RESULTS}, "scores": told} | {
        "answers": (run / "eval" / "predictions.jsonl").read_text()
    }


def flip(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 4
    path.write_bytes(bytes(text))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], object]] = {"flipped": flip, "cut": cut, "gone": Path.unlink}
FILES = {
    "record": ["run.json", "recipe.yaml"],
    "rows": ["data/train.jsonl", "data/validation.jsonl", "data/test.jsonl", "data/report.json"],
    "adapter": ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/tokenizer.json",
                "adapter/README.md"],
    "evaluation": ["eval/scores.json", "eval/predictions.jsonl", "eval/answers/base.jsonl",
                   "eval/answers/adapter.jsonl", "eval/report.html"],
    "pages": ["report.md", "report.html", "training.html", "data/report.html", ".run.json"],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("files", FILES.values(), ids=list(FILES))
def test_damaged_files_are_mended_or_named(
    files: list[str], damage: str, run: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in files:
        DAMAGE[damage](run / "run" / file)
    for stage in ("report", "push"):
        code, err = call(stage, run), capfd.readouterr().err
        assert code == 0 or re.search(r"^error: .*alpacare-sft (train|data|eval) RECIPE", err, re.DOTALL), err
    assert [call(stage, run) for stage in ("training", "evaluation", "report", "push")] == [0] * 4
    assert "Traceback" not in capfd.readouterr().err
    assert results(run) == results(whole)


def test_a_damaged_key_of_a_review_is_left_to_people(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = run / "run" / "eval" / "review_key.json"
    cut(key)
    before = key.read_bytes()
    assert call("evaluation", run) == 1
    assert "Put it back, or move it away and run eval again." in capfd.readouterr().err
    assert key.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_with_a_damaged_file_is_skipped(damage: str, run: Path) -> None:
    checkpoints = run / "run" / "checkpoints"
    newest, *_ = checkpoint_folders(checkpoints)
    kept = [path for path in newest.iterdir() if path.name != HASHES or damage != "gone"]  # as 0.1 wrote them
    for path in kept:
        before = path.read_bytes()
        DAMAGE[damage](path)
        found, skipped = newest_whole_checkpoint(checkpoints)
        assert found and found.path != newest and [folder for folder, _ in skipped] == [newest], path.name
        path.write_bytes(before)
    assert newest_whole_checkpoint(checkpoints)[1] == []


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    run: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest, *_ = checkpoint_folders(run / "run" / "checkpoints")
    flip(newest / "adapter_model.safetensors")
    flip(run / "run" / "adapter" / "adapter_model.safetensors")
    assert call("training", run) == 0
    out = capfd.readouterr().out
    assert f"{newest.name} is skipped: adapter_model.safetensors is damaged" in out and "going on from step" in out
    assert results(run) == results(whole)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize("stage", ["data", "training", "evaluation", "report"])
def test_a_disk_that_takes_no_more_costs_nothing_that_was_there(
    stage: str, number: int, run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if stage == "training":
        flip(run / "run" / "adapter" / "adapter_model.safetensors")  # so that there is something to do
    for first in range(2):  # files that can still be written
        with monkeypatch.context() as patch:
            written = []

            def fsync(descriptor: int, first: int = first, written: list[int] = written) -> None:
                written.append(descriptor)
                if len(written) > first:
                    raise OSError(number, os.strerror(number))

            patch.setattr("alpacare_sft.run.directory.os.fsync", fsync)
            code, err = call(stage, run), capfd.readouterr().err
        assert code == 1 and "Traceback" not in err, err
        assert os.strerror(number).lower() in err.lower() or "disk is full" in err, err
    left = [path.name for path in (run / "run").rglob(".*") if path.name not in (".lock", ".run.json")]
    assert left == []
    assert [call(stage, run) for stage in ("training", "evaluation", "report")] == [0] * 3
    assert results(run) == results(whole)


# One interpreter imports what takes seconds and forks a child for each attempt; at its n-th write a child gets signals.
SIGNALLED = """
import os, signal, sys
import datasets, peft, transformers, trl
import alpacare_sft.evaluation.evaluate, alpacare_sft.training.trainer, alpacare_sft.reporting.run_report
from alpacare_sft.run import directory
from alpacare_sft.cli import main

def attempt(words, write=0, numbers=()):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    fsync, written = os.fsync, []
    def counted(descriptor):
        written.append(descriptor)
        if len(written) == write:
            for number in numbers:
                os.kill(os.getpid(), number)
        fsync(descriptor)
    directory.os.fsync = counted
    code = 1
    try:
        code = main(words)
    finally:
        sys.stdout.flush()
        os._exit(code)

recipe, run = sys.argv[1:3]
for verb in sys.argv[3:]:
    words = [verb, recipe, "--output_dir", run]
    for write, numbers in ((1, [9]), (2, [9]), (1, [15]), (2, [2, 2])):
        status = attempt(words, write, numbers)
        print(verb, write, numbers, "signalled" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status))
    print(verb, "status", attempt(words))
"""


def test_signals_at_a_write_leave_a_run_that_goes_on(run: Path, whole: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(run / "recipe.yaml"), str(run / "run"), "data", "eval", "report"]
    shutil.rmtree(run / "run" / "eval")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(run / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    lines = [line.split(" ") for line in done.stdout.splitlines() if line.startswith(("data ", "eval ", "report "))]
    assert [line[-1] for line in lines if line[1] == "status"] == ["0", "0", "0"], done.stdout + done.stderr
    ended = [line[-1] for line in lines if line[1] != "status"]
    assert len(ended) == 12 and set(ended) <= {"signalled", "75", "130"}, done.stdout + done.stderr
    assert results(run) == results(whole)
    assert [path.name for path in (run / "run").rglob(".*.*") if path.name != ".run.json"] == []


def test_a_clock_that_was_set_back_costs_no_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    document = tiny_document(tiny_model, tmp_path / "run")
    document["train"] |= {"save_steps": 1, "save_total_limit": 2, "max_steps": 4, "load_best_model_at_end": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    folders = tmp_path / "run" / "checkpoints"

    class FromTheFuture(TrainerCallback):
        """Files of tomorrow, as a clock leaves them that is set back before the next are written."""

        def on_save(self, *_: Any, **__: Any) -> None:
            for path in checkpoint_folders(folders):
                os.utime(path, (time.time() + 86_400,) * 2)

    with pytest.MonkeyPatch.context() as patch:
        build = training.build_trainer
        patch.setattr(training, "build_trainer", lambda *given: with_callback(build(*given), FromTheFuture()))
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert [path.name for path in checkpoint_folders(folders)] == ["checkpoint-4", "checkpoint-3"]


def with_callback(trainer: Any, callback: TrainerCallback) -> Any:
    trainer.add_callback(callback)
    return trainer
