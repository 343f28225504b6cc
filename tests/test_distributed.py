"""Several processes on a CPU: the same steps as one, data made once, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alpacare_sft.errors import RecipeError
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.runtime import Precision

pytestmark = pytest.mark.slow


def losses(run: Path) -> list[float]:
    newest = max((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("launcher", ["accelerate.commands.launch", "torch.distributed.run"])
def test_two_processes_take_the_steps_of_one(document: dict[str, Any], tmp_path: Path, launcher: str) -> None:
    """At the same rows a step the losses agree to 1e-4: sums are split otherwise, nothing else differs."""
    from alpacare_sft.recipe.loading import recipe_from_document
    from alpacare_sft.training.train import train

    document["lora"]["lora_dropout"] = 0.0  # each process draws its own
    document["train"] |= {"logging_steps": 1, "num_train_epochs": 1}
    one = train(recipe_from_document(document))
    recipe = tmp_path / "two.yaml"
    two = {**document, "output_dir": str(tmp_path / "two")}
    recipe.write_text(yaml.safe_dump(two))
    options = ["--multi_gpu", "--num_processes", "2"] if "accelerate" in launcher else ["--nproc_per_node", "2"]
    command = [sys.executable, "-m", launcher, *options, "-m", "alpacare_sft", "train", str(recipe)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "ACCELERATE_USE_CPU": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "effective batch size: 4 rows per optimizer step (2 processes)" in done.stdout
    assert done.stdout.count("done: ") == 1
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["data_sha256"] == one["data_sha256"]
    assert record["tokens"] == one["tokens"]
    assert losses(tmp_path / "two") == pytest.approx(losses(Path(document["output_dir"])), abs=1e-4)


def test_a_launcher_that_splits_the_model_is_refused_in_one_message(document: dict[str, Any], tmp_path: Path) -> None:
    """Without a card accelerate 1.15 leaves it out without a word, and one process saves the adapter with a card."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    command = [*launcher, "--num_processes", "2", "-m", "alpacare_sft", str(recipe)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1  # the launcher's own
    assert len(told) == 1 and "the launcher asks for FSDP, which is not supported" in told[0]
    assert not Path(document["output_dir"]).exists()


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_other_ways_to_split_the_model_are_refused(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    from alpacare_sft.recipe.loading import recipe_from_document
    from alpacare_sft.training.train import train

    monkeypatch.setenv(variable, "true")
    with pytest.raises(RecipeError, match=r"the launcher asks for .* not supported: each process must hold the whole"):
        train(recipe_from_document(document))
    assert not Path(document["output_dir"]).exists()


def test_the_precision_is_that_of_the_recipe_and_not_of_the_launcher(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alpacare_sft.recipe.loading import recipe_from_document
    from alpacare_sft.training.config import build_sft_config

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = recipe_from_document(document)
    config = build_sft_config(recipe, RunDirectory(recipe.output_dir), Precision(fp16=False, bf16=False))
    assert config.mixed_precision == "no"
