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

pytestmark = pytest.mark.slow


def losses(run: Path) -> list[float]:
    newest = max((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("launcher", ["accelerate.commands.launch", "torch.distributed.run"])
def test_two_processes_take_the_steps_of_one(document: dict[str, Any], tmp_path: Path, launcher: str) -> None:
    """At the same rows a step the losses agree to 1e-4: sums are split otherwise, nothing else differs."""
    from alpacare_sft.recipe.loading import recipe_from_document
    from alpacare_sft.training import train

    document["lora"]["lora_dropout"] = 0.0  # each process draws its own
    document["train"] |= {"logging_steps": 1, "num_train_epochs": 1}
    one = train(recipe_from_document(document))
    recipe = tmp_path / "two.yaml"
    two = {**document, "output_dir": str(tmp_path / "two")}
    two["train"] = {**document["train"], "per_device_train_batch_size": 1}
    recipe.write_text(yaml.safe_dump(two))
    options = ["--multi_gpu", "--num_processes", "2"] if "accelerate" in launcher else ["--nproc_per_node", "2"]
    command = [sys.executable, "-m", launcher, *options, "-m", "alpacare_sft", "train", str(recipe)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "ACCELERATE_USE_CPU": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 rows, over 2 process(es)" in done.stdout
    assert done.stdout.count("done: ") == 1
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["data_sha256"] == one["data_sha256"]
    assert record["tokens"] == one["tokens"]
    assert losses(tmp_path / "two") == pytest.approx(losses(Path(document["output_dir"])), abs=1e-4)
