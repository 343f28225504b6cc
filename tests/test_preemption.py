"""kill -9 at random moments, resumed each time, ends with the adapter of a run that was left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

# One interpreter imports what takes seconds, and forks a child for each attempt; it never computes itself.
DRIVER = """
import os, random, signal, sys, time
import datasets, peft, transformers, trl
import alpacare_sft.trainer, alpacare_sft.training, alpacare_sft.callbacks
from alpacare_sft import load_recipe, train

def attempt(recipe, output_dir, kill_after=None):
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(load_recipe(recipe, ["--output_dir", output_dir]))
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return status, time.monotonic() - began

recipe, whole, killed, seed = sys.argv[1:]
status, seconds = attempt(recipe, whole)
assert status == 0, status
moments = random.Random(int(seed))
kills = 0
while kills < 10:
    status, _ = attempt(recipe, killed, moments.uniform(0.1, 0.8) * seconds)
    kills += os.WIFSIGNALED(status)
    if status == 0:
        print("finished before the last kill", flush=True)
        break
status, _ = attempt(recipe, killed)
print("kills", kills, "status", status)
"""


def test_ten_kills_leave_the_same_adapter(document: dict[str, Any], tmp_path: Path) -> None:
    document["train"] |= {"num_train_epochs": 4, "save_total_limit": 2}
    document["early_stopping"] = {"patience": 2, "threshold": 0.02}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-c", DRIVER, str(recipe), str(whole), str(killed), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "status 0" in done.stdout, done.stdout[-3000:]
    name = "adapter/adapter_model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    records = [json.loads((run / "run.json").read_text()) for run in (whole, killed)]
    for key in ("tokens", "data_sha256", "recipe_sha256"):
        assert records[0][key] == records[1][key], key
    for key in ("optimizer_steps", "best_step", "eval_loss", "stopped_early"):
        assert records[0]["train"][key] == records[1]["train"][key], key
    print(done.stdout[-1500:])
