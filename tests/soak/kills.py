"""kill -9 ten times at random in a run of 300 steps, and ten times at random writes of each later stage."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_faults import SIGNALLED, results, run, whole
from tests.test_preemption import RANDOM_MOMENTS, assert_same_run, drive

__all__ = ["run", "whole"]  # fixtures
AT_RANDOM = (
    SIGNALLED[: SIGNALLED.index("for verb in")]
    + """
import random
draw, verb = random.Random(int(sys.argv[4])), sys.argv[3]
words = [verb, recipe, *([run + "/eval/sheet.csv"] if verb == "review" else []), "--output_dir", run]
for _ in range(10):
    status = attempt(words, draw.randrange(1, 9), [9])
    ended = "signalled" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    print(verb, ended, flush=True)
print(verb, "status", attempt(words), flush=True)
"""
)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_of_300_steps_ends_with_the_same_bytes(document: dict[str, Any], tmp_path: Path, seed: int) -> None:
    document["train"] |= {"max_steps": 300, "save_steps": 9, "eval_steps": 9, "save_total_limit": 3}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    left_alone, killed, told = drive(RANDOM_MOMENTS, tmp_path / "recipe.yaml", str(seed))
    assert "status 0" in told, told[-3000:]
    assert_same_run(left_alone, killed)


@pytest.mark.parametrize("verb", ["data", "train", "eval", "review", "report"])
def test_ten_kills_at_random_writes_of_a_stage_end_with_the_same_bytes(verb: str, run: Path, whole: Path) -> None:
    if verb == "train":
        shutil.rmtree(run / "run" / "adapter")
    if verb == "eval":
        shutil.rmtree(run / "run" / "eval" / "answers")
    seed = str(random.Random(verb).randrange(1000))
    command = [sys.executable, "-c", AT_RANDOM, str(run / "recipe.yaml"), str(run / "run"), verb, seed]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(run / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{verb} ")]
    assert lines[-1] == f"{verb} status 0", done.stdout + done.stderr
    assert lines.count(f"{verb} signalled") >= 3, lines
    assert results(run) == results(whole)
