"""kill -9 at random and at chosen moments, resumed each time, ends with the adapter of a run that was left alone."""

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
ATTEMPT = """
import functools, importlib, os, random, signal, sys, time
import datasets, peft, transformers, trl
import alpacare_sft.training.trainer, alpacare_sft.training.train, alpacare_sft.training.callbacks
from alpacare_sft import load_recipe, train

def attempt(recipe, output_dir, kill_after=None, before=lambda: None):
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            datasets.config.HF_DATASETS_CACHE = output_dir + "-cache"
            before()
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
"""
RANDOM_MOMENTS = """
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
# At the n-th call of a function, half a file if it is one that writes a file, then the kill. The parent looks at
# what the kill left and prints it.
CHOSEN_MOMENTS = """
def kill_at(place, call):
    module, _, path = place.partition(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def killed(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            if place == "torch:save":
                open(args[1], "wb").write(b"PK half an archive")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, killed)

recipe, whole, killed, *moments = sys.argv[1:]
assert attempt(recipe, whole)[0] == 0
for moment in moments:
    place, call = moment.rsplit("@", 1)
    status, _ = attempt(recipe, killed, before=lambda: kill_at(place, int(call)))
    print(moment, "killed" if os.WIFSIGNALED(status) else f"status {status}", flush=True)
print("last status", attempt(recipe, killed)[0], flush=True)
"""
# In the order in which one run meets them; each attempt goes on where the one before was killed.
MOMENTS = {
    "data, while rows are tokenized": "alpacare_sft.model.prompt:PromptEncoder.encode_rows@1",
    "data, while its directory is written": "alpacare_sft.data.report:write_json@1",
    "a step, between its two micro-batches": "alpacare_sft.training.trainer:AnswerSFTTrainer.compute_loss@4",
    "a step, before the weights change": "torch.optim:AdamW.step@2",
    "a checkpoint, while the optimizer is written": "torch:save@2",
    "a checkpoint, before its last file": "transformers:TrainerState.save_to_json@1",
    "a checkpoint, before older ones go": "alpacare_sft.training.trainer:rotate_checkpoints@1",
    "the step after a resume": "torch.optim:AdamW.step@1",
    "the final save, before the adapter is in its place": "peft:get_peft_model_state_dict@1",
    "the final save, before the record says done": "alpacare_sft.training.train:save_training_report@1",
}


@pytest.fixture
def recipe(document: dict[str, Any], tmp_path: Path) -> Path:
    document["train"] |= {"num_train_epochs": 4, "save_total_limit": 2}
    document["early_stopping"] = {"patience": 2, "threshold": 0.02}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def drive(driver: str, recipe: Path, *words: str) -> tuple[Path, Path, str]:
    """The directories of the run that was left alone and of the one that was killed, and what was printed."""
    whole, killed = recipe.parent / "whole", recipe.parent / "killed"
    command = [sys.executable, "-c", ATTEMPT + driver, str(recipe), str(whole), str(killed), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return whole, killed, done.stdout


def assert_same_run(whole: Path, killed: Path) -> None:
    name = "adapter/adapter_model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    records = [json.loads((run / "run.json").read_text()) for run in (whole, killed)]
    for key in ("status", "tokens", "data_sha256", "recipe_sha256"):
        assert records[0][key] == records[1][key], key
    for key in ("optimizer_steps", "best_step", "eval_loss", "stopped_early"):
        assert records[0]["train"][key] == records[1]["train"][key], key
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_ten_kills_leave_the_same_adapter(recipe: Path) -> None:
    whole, killed, told = drive(RANDOM_MOMENTS, recipe, "7")
    assert "status 0" in told, told[-3000:]
    assert_same_run(whole, killed)


def test_a_kill_in_each_phase_leaves_the_same_adapter(recipe: Path) -> None:
    whole, killed, told = drive(CHOSEN_MOMENTS, recipe, *MOMENTS.values())
    expected = [f"{moment} killed" for moment in MOMENTS.values()]
    assert [line for line in told.splitlines() if " killed" in line or "status" in line] == [*expected, "last status 0"]
    assert told.count("is skipped: trainer_state.json is missing") == 2
    assert "training had ended" in told
    assert_same_run(whole, killed)
