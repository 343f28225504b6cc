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
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.training import train as training
from alpacare_sft.training.checkpoints import HASHES, checkpoint_folders, newest_whole_checkpoint
from tests.conftest import tiny_document
from tests.test_review import fill

pytestmark = pytest.mark.slow

# Every verb that reads what others wrote, in the order of the work; {} is the recipe.
STAGES = {
    "data": ["data", "{}", "--show", "0"],
    "training": ["train", "{}"],
    "evaluation": ["eval", "{}"],
    "review": ["review", "{}"],
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
    assert [call(stage, folder) for stage in ("training", "evaluation")] == [0, 0]
    fill(folder / "run" / "eval", [{"base": (2, 2, 2), "adapter": (4, 3, 5)}] * 3)
    assert [call(stage, folder) for stage in ("review", "report")] == [0, 0]
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def call(stage: str, folder: Path) -> int:
    words = [word.format(folder / "recipe.yaml") for word in STAGES[stage]]
    words += [str(folder / "run" / "eval" / "sheet.csv")] if stage == "review" else []
    return main([*words, "--output_dir", str(folder / "run")])


def results(folder: Path) -> dict[str, Any]:
    """What must be the same again: bytes of what was trained, and scores and answers without their seconds."""
    run = folder / "run"
    scores = json.loads((run / "eval" / "scores.json").read_text())
    told = {key: scores[key] for key in ("n", "metrics", "verdict", "model", "unseen")}
    texts = {name: (run / "eval" / name).read_text() for name in ("predictions.jsonl", "review.json")}
    return {**{name: (run / name).read_bytes() for name in RESULTS}, "scores": told, **texts}


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
                   "eval/answers/adapter.jsonl", "eval/report.html", "eval/review.json"],
    "pages": ["report.html", "training.html", "data/report.html", ".run.json"],
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
        assert code == 0 or re.search(r"^error: .*alpacare-sft (train|data|eval|review) RECIPE", err, re.DOTALL), err
    assert [call(stage, run) for stage in ("training", "evaluation", "review", "report", "push")] == [0] * 5
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
@pytest.mark.parametrize("stage", ["data", "training", "evaluation", "review", "report"])
def test_a_disk_that_takes_no_more_costs_nothing_that_was_there(
    stage: str, number: int, run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if stage == "training":
        flip(run / "run" / "adapter" / "adapter_model.safetensors")  # so that there is something to do
    for first in range(1 if stage == "review" else 2):  # files that can still be written
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
    assert [call(stage, run) for stage in ("training", "evaluation", "review", "report")] == [0] * 4
    assert results(run) == results(whole)


@pytest.mark.parametrize("stage", ["data", "training", "evaluation", "report"])
def test_a_second_run_on_the_directory_is_refused(
    stage: str, run: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory(run / "run" / "eval" if stage == "evaluation" else run / "run").lock():
        assert call(stage, run) == 1
    assert f"is in use by process {os.getpid()}" in capfd.readouterr().err
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
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
    words = [verb, recipe, *([run + "/eval/sheet.csv"] if verb == "review" else []), "--output_dir", run]
    for write, numbers in ((1, [9]), (2, [9]), (1, [15]), (2, [2, 2])):
        status = attempt(words, write, numbers)
        ended = "signalled" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        print(verb, write, numbers, ended, flush=True)  # or a child would print it again
    print(verb, "status", attempt(words), flush=True)
"""


def test_signals_at_a_write_leave_a_run_that_goes_on(run: Path, whole: Path) -> None:
    verbs = ["data", "eval", "review", "report"]
    command = [sys.executable, "-c", SIGNALLED, str(run / "recipe.yaml"), str(run / "run"), *verbs]
    for name in ("scores.json", "predictions.jsonl", "review.json", "report.html"):
        (run / "run" / "eval" / name).unlink()
    shutil.rmtree(run / "run" / "eval" / "answers")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(run / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    lines = [line.split(" ") for line in done.stdout.splitlines() if line.split(" ")[0] in verbs]
    assert [line[-1] for line in lines if line[1] == "status"] == ["0"] * 4, done.stdout + done.stderr
    ended = [line[-1] for line in lines if line[1] != "status"]
    assert len(ended) == 16 and set(ended) == {"signalled", "75", "130"}, done.stdout + done.stderr
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


OTHERS = "the writer is one that the other stages are tested with: files beside their place, then renamed"
NOTHING = "it writes nothing"
READS = "it reads the recipe and the rows as data does: test_wrong_recipes, test_wrong_data"
ALONE = "one process"
SEALED = "test_damaged_files_are_mended_or_named"
DISK = "test_a_disk_that_takes_no_more_costs_nothing_that_was_there"
SIGNALS = "test_signals_at_a_write_leave_a_run_that_goes_on"
SECOND = "test_a_second_run_on_the_directory_is_refused"
KILLS = "test_a_kill_in_each_phase_leaves_the_same_adapter"
STOPS = "test_a_signal_finishes_the_step_saves_and_exits_75"
HUB = "test_a_fault_is_one_message_with_its_key_and_remedy, test_a_hub_that_never_answers_is_given_up"
DIES = "test_where_one_of_two_processes_dies_the_other_ends_and_the_run_goes_on"
CLOCK = "its result holds no time, and its order follows none"
LOCAL = "it asks no network"
# Fault → stage → the test, or why it cannot happen.
TABLE: dict[str, dict[str, str]] = {
    "disk full, read-only directory": {
        "data": DISK, "training": DISK, "checkpoint": KILLS, "final save": DISK, "evaluation": DISK, "review": DISK,
        "report": DISK, "push": "test_a_full_disk_after_the_commit_is_told_and_leaves_the_record_whole",
        "plan": NOTHING,
    },
    "file cut short, bit flipped, file gone": {
        "data": SEALED, "training": "test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one",
        "checkpoint": "test_a_checkpoint_with_a_damaged_file_is_skipped", "final save": SEALED, "evaluation": SEALED,
        "review": "test_a_damaged_key_of_a_review_is_left_to_people", "report": SEALED, "push": SEALED, "plan": READS,
    },
    "kill -9": {
        "data": SIGNALS, "training": "test_ten_kills_leave_the_same_adapter", "checkpoint": KILLS, "final save": KILLS,
        "evaluation": SIGNALS, "review": SIGNALS, "report": SIGNALS,
        "push": "test_a_push_cut_off_in_the_middle_leaves_the_old_revision_whole", "plan": NOTHING,
    },
    "SIGTERM, SIGINT twice": {
        "data": SIGNALS, "training": STOPS, "checkpoint": STOPS, "final save": KILLS, "evaluation": SIGNALS,
        "review": SIGNALS, "report": SIGNALS,
        "push": "test_a_push_cut_off_in_the_middle_leaves_the_old_revision_whole", "plan": NOTHING,
    },
    "clock set back": {
        "data": CLOCK, "training": CLOCK,
        "checkpoint": "test_a_clock_that_was_set_back_costs_no_checkpoint", "final save": CLOCK, "evaluation": CLOCK,
        "review": CLOCK, "report": CLOCK, "push": CLOCK, "plan": CLOCK,
    },
    "second run on the directory": {
        "data": SECOND, "training": SECOND, "checkpoint": SECOND, "final save": SECOND, "evaluation": SECOND,
        "review": OTHERS, "report": SECOND,
        "push": "test_a_commit_that_came_between_is_not_written_over", "plan": NOTHING,
    },
    "network hangs, cuts, answers 429 or 500": {
        "data": HUB, "training": HUB, "checkpoint": LOCAL, "final save": LOCAL, "evaluation": HUB, "review": LOCAL,
        "report": LOCAL, "push": "test_a_push_cut_off_in_the_middle_leaves_the_old_revision_whole", "plan": HUB,
    },
    "one process of several dies": {
        "data": DIES, "training": DIES, "checkpoint": DIES, "final save": "the first process alone saves",
        "evaluation": ALONE, "review": ALONE, "report": ALONE, "push": ALONE, "plan": ALONE,
    },
}  # fmt: skip


def test_the_table_names_tests_that_are_there() -> None:
    """`python -m tests.test_faults` prints the table."""
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py")]
    stages = {tuple(row) for row in TABLE.values()}
    assert len(stages) == 1 and len(next(iter(stages))) == 9
    named = {name for row in TABLE.values() for cell in row.values() for name in re.findall(r"test_\w+_\w+_\w+", cell)}
    assert [name for name in named if not any(f"def {name}(" in text for text in texts)] == []


if __name__ == "__main__":
    for fault, row in TABLE.items():
        print(fault, *(f"  {stage:12} {cell}" for stage, cell in row.items()), sep="\n")
