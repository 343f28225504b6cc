"""Signals, locks and other ends of a process, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alpacare_sft.training.checkpoints import newest_whole_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def start(document: dict[str, Any], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line on the tiny recipe, slowed so that there is time to interrupt it."""
    document["train"] |= {"num_train_epochs": 200, "save_steps": 60, "eval_steps": 60, "logging_steps": 1}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))

    def run(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), "alpacare_sft", "train", str(recipe)]
        return subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"},
        )

    return run


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} never came: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits_75(
    start: Callable[..., subprocess.Popen[str]], document: dict[str, Any], number: signal.Signals
) -> None:
    process = start()
    wait_for(process, "step    7/")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped at step" in errors
    assert "Traceback" not in errors
    record = json.loads((Path(document["output_dir"]) / "run.json").read_text())
    assert record["status"] == "stopped"
    resumed = start("--train.max_steps", "1200")  # the same number of steps, said otherwise: another recipe
    assert resumed.wait(timeout=60) == 1
    again = start()
    wait_for(again, "going on from step")
    again.terminate()
    assert again.wait(timeout=60) == 75


LAUNCHERS = {
    "one process": ("accelerate.commands.launch", "--cpu", "--num_processes", "1"),
    "two processes": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
}


def test_the_end_of_the_time_saves_a_checkpoint_and_exits_75(
    start: Callable[..., subprocess.Popen[str]], document: dict[str, Any]
) -> None:
    process = start("--stop-after", "1s")  # over before the first step ends
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "stopped at step 1 of" in errors and "Run it again to go on." in errors
    newest, _ = newest_whole_checkpoint(Path(document["output_dir"]) / "checkpoints")
    assert newest is not None and newest.step == 1


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=list(LAUNCHERS))
def test_under_a_launcher_the_process_that_the_lock_names_is_signalled(
    start: Callable[..., subprocess.Popen[str]], document: dict[str, Any], launcher: tuple[str, ...]
) -> None:
    run = Path(document["output_dir"])
    process = start(launcher=launcher)
    wait_for(process, " 7/")
    pid = json.loads((run / ".lock.json").read_text())["pid"]
    assert pid != process.pid
    os.kill(pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors  # the launcher's own, whatever its child exited with
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "stopped at step" in told[0]
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "stopped" and record["hardware"]["processes"] == int(launcher[-1])
    checkpoint, passed_over = newest_whole_checkpoint(run / "checkpoints")
    assert checkpoint is not None and checkpoint.step >= 7 and not passed_over


def test_a_second_process_is_refused_by_a_lock_that_names_its_holder(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    first = start()
    wait_for(first, "step    1/")
    second = start()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"in use by process {first.pid}" in errors
    first.terminate()
    assert first.wait(timeout=60) == 75


def test_a_killed_run_leaves_no_lock_and_goes_on(start: Callable[..., subprocess.Popen[str]]) -> None:
    first = start()
    wait_for(first, "step   62/")
    first.kill()
    first.wait(timeout=60)
    second = start()
    wait_for(second, "going on from step")
    second.terminate()
    assert second.wait(timeout=60) == 75


def test_launched_by_accelerate_without_a_verb(document: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    document["train"] |= {"max_steps": 2, "eval_strategy": "no", "load_best_model_at_end": False}
    recipe.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    done = subprocess.run([*command, "-m", "alpacare_sft", str(recipe)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads((Path(document["output_dir"]) / "run.json").read_text())["status"] == "done"
