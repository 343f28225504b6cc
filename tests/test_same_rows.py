"""Each row once an epoch, whatever makes up an optimizer step: counted in what reaches the training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.recipe.loading import Recipe, recipe_from_document
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.training.batches import Batch, describe_batch, refuse_other_batch, share_batch
from alpacare_sft.training.train import train

Make = Callable[..., Recipe]

# Run by each process of a launcher: trains, stops after a step if told to, and writes the answers it learnt, by step.
DRIVER = """
import json, os, sys
from pathlib import Path
import datasets
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[2])
from alpacare_sft import load_recipe, train
from alpacare_sft.errors import StoppedError
from alpacare_sft.training.callbacks import StopOnSignal
from tests.test_same_rows import record_rows

stop_after, rows = int(sys.argv[3]), record_rows(int(sys.argv[3]))
try:
    train(load_recipe(sys.argv[1], sys.argv[4:]))
except StoppedError:
    pass
rank = os.environ.get("RANK", "0")
Path(sys.argv[2], f"rows-{rank}.json").write_text(json.dumps(rows))
"""


def record_rows(stop_after: int = 0) -> list[tuple[int, str]]:
    """(step, answer) of each row with labels that is trained on from here on; asks to stop after a step."""
    from alpacare_sft.training.callbacks import StopOnSignal
    from alpacare_sft.training.trainer import AnswerSFTTrainer

    rows: list[tuple[int, str]] = []
    step, stop = AnswerSFTTrainer.training_step, StopOnSignal.on_step_end

    def training_step(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
        for labels in inputs["labels"]:
            if learnt := labels[labels != -100].tolist():
                rows.append((self.state.global_step + 1, self._tokenizer.decode(learnt, skip_special_tokens=True)))
        return step(self, model, inputs, *args)

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **values: Any) -> None:
        self.requested = self.requested or state.global_step == stop_after
        stop(self, args, state, control, **values)

    AnswerSFTTrainer.training_step, StopOnSignal.on_step_end = training_step, on_step_end  # type: ignore[method-assign]
    return rows


@pytest.fixture
def document(tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]) -> dict[str, Any]:
    rows = [{"instruction": f"Name bone {n}.", "output": f"Bone {n}{' of the hand' * (n % 5)}."} for n in range(47)]
    return {
        "model": {"model_name_or_path": str(tiny_model)},
        "data": {"path": str(write_rows(rows)), "splits": {"train": 41, "validation": 3, "test": 3}},
        "lora": {"r": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        "train": {
            "max_length": 96,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 1,
            "activation_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 100,
            "eval_strategy": "no",
            "use_cpu": True,
        },
        "output_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def launch(document: dict[str, Any], tmp_path: Path) -> Callable[..., tuple[list[tuple[int, str]], str]]:
    """`launch(2, stop_after, *overrides)`: rows that two processes learnt together, and what they printed."""

    def run(processes: int, stop_after: int = 0, *overrides: str) -> tuple[list[tuple[int, str]], str]:
        recipe, driver, cache = tmp_path / "recipe.yaml", tmp_path / "driver.py", tmp_path / "cache"
        recipe.write_text(yaml.safe_dump(document))
        driver.write_text(DRIVER)
        cache.mkdir(exist_ok=True)
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
        command = [sys.executable, *launcher, str(driver), str(recipe), str(cache), str(stop_after), *overrides]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        rows = [json.loads((cache / f"rows-{rank}.json").read_text()) for rank in range(processes)]
        return [(step, row) for part in rows for step, row in part], done.stdout

    return run


def assert_each_row_once(rows: list[tuple[int, str]], document: dict[str, Any], steps: int) -> None:
    counts = Counter(row for _, row in rows)
    trained = [json.loads(line)["output"] for line in (Path(document["output_dir"]) / "data/train.jsonl").open()]
    assert set(counts) == {*trained}
    assert set(counts.values()) == {1}
    assert sorted({step for step, _ in rows}) == list(range(1, steps + 1))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_other_processes_go_on_and_read_each_of_41_rows_once(
    document: dict[str, Any], launch: Callable[..., Any], before: int, after: int
) -> None:
    first, _ = launch(before, 9)
    second, told = launch(after)
    assert_each_row_once(first + second, document, steps=21)
    assert f"effective batch size: 2 rows per optimizer step ({after} process{'es' * (after > 1)})" in told
    assert "going on from step 9 of 21" in told and "the draws of dropout differ" in told
    record = json.loads((Path(document["output_dir"]) / "run.json").read_text())
    assert record["train"]["optimizer_steps"] == 21
    assert record["batch"]["processes"] == after and record["train"]["effective_batch_size"] == 2
