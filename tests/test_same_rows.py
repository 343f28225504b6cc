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
from alpacare_sft.recipe.keys import section_types
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


@pytest.mark.slow
def test_two_processes_fill_the_last_step_with_rows_that_count_nothing(
    document: dict[str, Any], launch: Callable[..., Any]
) -> None:
    """41 rows on 2 × 4: 7 readings too many; loss, tokens and weights are those of one process."""
    run = Path(document["output_dir"])
    eval_words = ("--train.eval_strategy", "epoch", "--train.per_device_eval_batch_size", "2")
    words = ("--train.per_device_train_batch_size", "8", "--train.gradient_accumulation_steps", "1", *eval_words)
    records, rows = [], []
    for processes in (1, 2):
        document["output_dir"] = str(run / str(processes))
        rows.append(launch(processes, 0, *words)[0])
        records.append(json.loads((run / str(processes) / "run.json").read_text()))
        assert_each_row_once(rows[-1], document, steps=6)
    assert sorted(rows[0]) == sorted(rows[1])
    assert records[0]["tokens"] == records[1]["tokens"]
    for key in ("train_loss", "eval_loss"):
        assert records[1]["train"][key] == pytest.approx(records[0]["train"][key], abs=1e-5), key
    assert records[1]["batch"] == {
        "processes": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        ((1, 2), (2, 1), ()),
        ((4, 2), (2, 4), ()),
        ((2, 1), (1, 2), ("--train.train_sampling_strategy=group_by_length",)),
    ],
)
def test_other_batch_and_accumulation_go_on_with_the_same_steps(
    document: dict[str, Any], launch: Callable[..., Any], before: tuple[int, int], after: tuple[int, int], options: Any
) -> None:
    document["train"]["num_train_epochs"] = 2
    names = ("--train.per_device_train_batch_size", "--train.gradient_accumulation_steps")
    words = [[*options, names[0], str(size), names[1], str(parts)] for size, parts in (before, after)]
    steps = -(-41 // (before[0] * before[1]))
    first, _ = launch(1, steps + 2, *words[0])
    second, told = launch(1, 0, *words[1])
    assert f"going on from step {steps + 2} of {2 * steps}" in told
    assert_each_row_once([row for row in first + second if row[0] <= steps], document, steps)
    assert_each_row_once([(step - steps, row) for step, row in first + second if step > steps], document, steps)


@pytest.mark.parametrize(
    ("processes", "recipe", "shared"),
    [(1, (1, 2), (1, 2)), (2, (1, 2), (1, 1)), (2, (4, 1), (2, 1)), (2, (8, 3), (4, 3)), (6, (4, 3), (2, 1)),
     (4, (2, 2), (1, 1)), (8, (2, 16), (2, 2))],
)  # fmt: skip
def test_a_step_is_shared_out_accumulation_first(
    monkeypatch: pytest.MonkeyPatch, processes: int, recipe: tuple[int, int], shared: tuple[int, int]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    batch = share_batch(asked(*recipe))
    assert (batch.per_device_train_batch_size, batch.gradient_accumulation_steps) == shared
    assert batch.rows == recipe[0] * recipe[1]


def test_the_effective_batch_size_is_told_in_one_line() -> None:
    assert describe_batch(Batch(1, 1, 2)) == "effective batch size: 2 rows per optimizer step (1 process)"
    assert describe_batch(Batch(2, 1, 1)) == "effective batch size: 2 rows per optimizer step (2 processes)"


@pytest.mark.parametrize(("processes", "recipe", "parts"), [(3, (1, 2), 3), (2, (1, 1), 2), (4, (2, 3), 4)])
def test_a_step_that_does_not_divide_is_refused_with_an_override_that_works(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, processes: int, recipe: tuple[int, int], parts: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    document["train"] |= {"per_device_train_batch_size": recipe[0], "gradient_accumulation_steps": recipe[1]}
    with pytest.raises(RecipeError, match=rf"a multiple of the {processes} processes.*accumulation_steps {parts} "):
        train(recipe_from_document(document))
    assert not Path(document["output_dir"]).exists()
    document["train"]["gradient_accumulation_steps"] = parts
    assert share_batch(recipe_from_document(document).train).rows == recipe[0] * parts


def begun(document: dict[str, Any], batch: Batch | None, record: dict[str, Any] | None = None) -> RunDirectory:
    """A run directory with a checkpoint whose steps were made up so; without `batch` one of version 0.1."""
    from dataclasses import asdict

    from alpacare_sft.recipe.resolved import recipe_yaml

    run = RunDirectory(Path(document["output_dir"]))
    (run.checkpoints / "checkpoint-9").mkdir(parents=True)
    state = {"stateful_callbacks": {"Account": {"attributes": {"batch": asdict(batch)} if batch else {}}}}
    (run.checkpoints / "checkpoint-9" / "trainer_state.json").write_text(json.dumps(state))
    run.recipe.write_text(recipe_yaml(recipe_from_document(document)))
    run.update_record(record or {})
    return run


def asked(size: int, parts: int, strategy: str = "random", packing: bool = False) -> Any:
    names = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    return section_types()["train"](**names, train_sampling_strategy=strategy, packing=packing)


@pytest.mark.parametrize(
    ("size", "parts", "override"),
    [(1, 4, "--train.gradient_accumulation_steps 2,"), (2, 2, "--train.gradient_accumulation_steps 1,"),
     (4, 1, "--train.per_device_train_batch_size 2 --train.gradient_accumulation_steps 1,"),
     (3, 1, "--train.per_device_train_batch_size 1 --train.gradient_accumulation_steps 2,")],
)  # fmt: skip
def test_other_rows_per_step_are_refused_with_both_numbers_and_the_override(
    document: dict[str, Any], size: int, parts: int, override: str
) -> None:
    run = begun(document, Batch(1, 1, 2))
    with pytest.raises(RunError) as error:
        refuse_other_batch(run, asked(size, parts))
    assert f"begun with 2 rows per optimizer step, the recipe asks for {size * parts}" in str(error.value)
    assert f"Add {override}" in str(error.value)


def test_more_processes_than_a_begun_step_has_rows_are_told_how_many_to_launch(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RunError, match=r"6 rows per optimizer step, which 4 processes cannot share\. Launch 3 pro"):
        refuse_other_batch(begun(document, Batch(2, 1, 3)), asked(1, 6))


def test_a_run_of_version_0_1_had_its_recipe_on_each_process(document: dict[str, Any]) -> None:
    run = begun(document, None, {"hardware": {"processes": 2}})
    refuse_other_batch(run, asked(2, 2))
    with pytest.raises(RunError, match="begun with 4 rows per optimizer step, the recipe asks for 2"):
        refuse_other_batch(run, asked(1, 2))


@pytest.mark.parametrize(
    ("key", "options"),
    [("train_sampling_strategy: group_by_length", ("group_by_length",)), ("packing", ("random", True))],
)
def test_another_number_of_processes_is_refused_where_the_order_of_rows_depends_on_it(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, key: str, options: tuple[Any, ...]
) -> None:
    run = begun(document, Batch(1, 1, 2))
    refuse_other_batch(run, asked(1, 2, *options))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match=rf"begun with 1 process × batch 1 × accumulation 2\. With train\.{key}"):
        refuse_other_batch(run, asked(1, 2, *options))
    refuse_other_batch(run, asked(1, 2))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accelerator_config.split_batches", True),
        ("accelerator_config.dispatch_batches", True),
        ("accelerator_config.even_batches", False),
        ("accelerator_config.use_seedable_sampler", False),
        ("train_sampling_strategy", "batch_rebalance"),
    ],
)
def test_a_loader_that_reads_rows_twice_is_refused(document: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    document["train"] |= {section: {name: value}} if section else {name: value}
    with pytest.raises(RecipeError, match=rf"train\.{key} must"):
        train(recipe_from_document(document))
    assert not Path(document["output_dir"]).exists()


@pytest.mark.parametrize(("rows", "size", "processes"), [(41, 1, 2), (41, 4, 2), (40, 4, 3), (5, 8, 2), (1, 2, 4)])
def test_processes_read_the_order_of_one_and_fill_with_a_row_of_its_own(rows: int, size: int, processes: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from alpacare_sft.training.trainer import RowOrder

    fill = -rows % (size * processes)
    batches = BatchSampler(RowOrder(range(rows), 0, rows, fill), size, drop_last=False)
    parts = [list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)]
    read = [row for together in zip(*parts, strict=True) for batch in together for row in batch]
    assert read == [*range(rows), *[rows] * fill]
