"""Each file of a run, damaged in each way, alone; and one of two processes that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from alpacare_sft.cli import main
from tests.test_faults import DAMAGE, FILES, run, test_damaged_files_are_mended_or_named, whole

__all__ = ["run", "whole"]  # fixtures


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", [file for files in FILES.values() for file in files])
def test_a_damaged_file_is_mended_or_named(
    file: str, damage: str, run: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    test_damaged_files_are_mended_or_named([file], damage, run, whole, capfd)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_of_two_processes_dies_the_other_ends_and_the_run_goes_on(
    rank: int, document: dict[str, Any], tmp_path: Path
) -> None:
    document["train"] |= {"num_train_epochs": 60, "save_steps": 6, "save_total_limit": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    words = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "alpacare_sft",
        str(tmp_path / "recipe.yaml"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    launcher = subprocess.Popen([sys.executable, *words], env=environment)
    checkpoints = tmp_path / "run" / "checkpoints"
    while not list(checkpoints.glob("checkpoint-*/sha256.json")):
        assert launcher.poll() is None
        time.sleep(0.1)
    children = {child.environ()["RANK"]: child for child in psutil.Process(launcher.pid).children()}
    children[str(rank)].send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert launcher.wait(timeout=60) == 1
    assert time.monotonic() - began < 60 and not any(child.is_running() for child in children.values())
    assert main(["train", str(tmp_path / "recipe.yaml"), "--train.max_steps", "12"]) in (0, 1)
    assert list(checkpoints.glob("checkpoint-*"))
