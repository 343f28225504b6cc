"""A run from recipe to adapter on the tiny model: what moved, what is written, what resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alpacare_sft.errors import DataError, RecipeError, RunError
from alpacare_sft.recipe.loading import Recipe, load_recipe, recipe_from_document
from alpacare_sft.run.directory import RunDirectory, checkpoint_folders
from alpacare_sft.training.callbacks import Account
from alpacare_sft.training.checkpoints import checkpoint_fault, seal_checkpoint
from alpacare_sft.training.train import train
from tests.conftest import tiny_document

pytestmark = pytest.mark.slow

Make = Callable[..., Recipe]


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_writes_everything_that_it_promises(make_recipe: Make) -> None:
    recipe = make_recipe()
    record = train(recipe)
    run = recipe.output_dir
    for name in (
        "recipe.yaml",
        "run.json",
        "data/train.jsonl",
        "data/report.json",
        "data/report.html",
        "training.html",
        "adapter/adapter_config.json",
        "adapter/README.md",
        "adapter/tokenizer.json",
    ):
        assert (run / name).stat().st_size > 0, name
    assert record == json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    assert record["distributions"]["torch"] == record["versions"]["torch"] and record["hardware"]["libraries"]
    assert "://" not in json.dumps(record["distributions"])  # no address of an index
    assert record["rows"]["train"] == 24
    assert record["train"]["optimizer_steps"] == 12
    assert record["tokens"]["trained"] > record["tokens"]["answer"] > 0
    assert set(record["data_sha256"]) == {"train", "validation", "test"}


def test_lora_moves_and_nothing_else(make_recipe: Make) -> None:
    recipe = make_recipe()
    train(recipe)
    weights = load_file(recipe.output_dir / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "v_proj"}
    assert all("lora_A" in name or "lora_B" in name for name in weights)
    assert all(value.abs().max() > 0 for value in weights.values())
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_the_resolved_recipe_parses_back_to_an_equal_one(make_recipe: Make) -> None:
    recipe = make_recipe("--train.max_steps", "1")
    train(recipe)
    resolved = load_recipe(recipe.output_dir / "recipe.yaml")
    assert resolved.lora == recipe.lora
    assert resolved.data == recipe.data
    before = vars(recipe.train)
    assert {key for key, value in vars(resolved.train).items() if value != before[key]} <= {"fp16", "bf16"}


def test_a_finished_run_is_left_alone(make_recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe("--train.max_steps", "2")
    train(recipe)
    before = adapter_bytes(recipe.output_dir)
    train(recipe)
    assert "this run is complete" in capsys.readouterr().out
    assert adapter_bytes(recipe.output_dir) == before


def test_another_recipe_in_the_same_directory_is_refused_by_its_difference(make_recipe: Make) -> None:
    train(make_recipe("--train.max_steps", "2"))
    with pytest.raises(RunError, match=r"train\.learning_rate: 0\.01 → 0\.02"):
        train(make_recipe("--train.max_steps", "2", "--train.learning_rate", "0.02"))
    train(make_recipe("--train.max_steps", "2", "--generate.max_new_tokens", "7"))  # alters no adapter


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """End training at a step as a crash would: no checkpoint is written for it."""
    return lambda step: crash_at(monkeypatch, step)


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def crash(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step:
            raise RuntimeError("crash")

    monkeypatch.setattr(Account, "on_step_begin", crash, raising=False)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that nothing interrupted: its record and the bytes of its adapter."""
    run = tmp_path_factory.mktemp("whole") / "run"
    record = train(recipe_from_document(tiny_document(tiny_model, run)))
    return {"record": record, "adapter": adapter_bytes(run)}


@pytest.fixture(scope="module")
def crashed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same recipe that crashed after step 8, with checkpoints of steps 3 and 6."""
    run = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        crash_at(patch, 8)
        train(recipe_from_document(tiny_document(tiny_model, run)))
    return run


@pytest.mark.parametrize("step", [4, 11])
def test_n_plus_n_steps_equal_2n_to_the_bit(
    make_recipe: Make, whole: dict[str, Any], stop_after: Callable[[int], None], step: int
) -> None:
    recipe = make_recipe()
    stop_after(step)
    with pytest.raises(RuntimeError, match="crash"):
        train(recipe)
    assert json.loads((recipe.output_dir / "run.json").read_text())["status"] == "failed"
    stop_after(-1)
    resumed = train(recipe)
    assert adapter_bytes(recipe.output_dir) == whole["adapter"]
    assert resumed["tokens"] == whole["record"]["tokens"]
    assert resumed["train"]["eval_loss"] == whole["record"]["train"]["eval_loss"]


@pytest.mark.parametrize("damage", ["optimizer.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_is_passed_over(
    make_recipe: Make, whole: dict[str, Any], crashed: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    shutil.copytree(crashed, recipe.output_dir)
    file = recipe.output_dir / "checkpoints" / "checkpoint-6" / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    train(recipe)
    told = capsys.readouterr().out
    assert f"checkpoint-6 is skipped: {damage}" in told
    assert "going on from step 3" in told
    assert adapter_bytes(recipe.output_dir) == whole["adapter"]


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"]
)
def test_a_part_that_is_missing_or_cut_short_is_named(crashed: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(crashed / "checkpoints" / "checkpoint-6", folder)
    assert checkpoint_fault(folder) is None
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert name in str(checkpoint_fault(folder))
    (folder / name).unlink()
    assert name in str(checkpoint_fault(folder))


def test_a_moved_run_still_ends_with_its_best_checkpoint(
    make_recipe: Make, whole: dict[str, Any], crashed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(crashed, moved)
    state = moved / "checkpoints" / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text().replace(str(crashed), "/gone"))
    train(recipe_from_document(tiny_document(tiny_model, moved)))
    assert adapter_bytes(moved) == whole["adapter"]
    assert str(moved) in json.loads(state.read_text())["best_model_checkpoint"]


def test_early_stopping_keeps_its_patience_over_a_resume(make_recipe: Make, stop_after: Callable[[int], None]) -> None:
    arguments = ("--early_stopping.patience", "2", "--early_stopping.threshold", "100", "--train.num_train_epochs", "5")
    recipe = make_recipe(*arguments)
    whole = train(recipe)
    assert whole["train"]["stopped_early"]
    shutil.rmtree(recipe.output_dir)
    stop_after(whole["train"]["optimizer_steps"] - 1)
    with pytest.raises(RuntimeError, match="crash"):
        train(recipe)
    stop_after(-1)
    assert train(recipe)["train"]["optimizer_steps"] == whole["train"]["optimizer_steps"]


@pytest.mark.parametrize("patience", ["0", "2"])
def test_a_run_whose_training_had_ended_takes_no_step_more(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, patience: str
) -> None:
    recipe = make_recipe("--early_stopping.patience", patience, "--early_stopping.threshold", "100")
    with monkeypatch.context() as patch:
        patch.setattr("alpacare_sft.training.train.save_adapter", lambda *_: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            train(recipe)
    last = max(int(path.name.split("-")[1]) for path in (recipe.output_dir / "checkpoints").glob("checkpoint-*"))
    record = train(recipe)
    assert record["train"]["optimizer_steps"] == last
    assert record["train"]["stopped_early"] == (patience == "2")
    best = recipe.output_dir / "checkpoints" / f"checkpoint-{record['train']['best_step']}"
    assert adapter_bytes(recipe.output_dir) == (best / "adapter_model.safetensors").read_bytes()


def test_other_rows_refuse_to_resume(
    make_recipe: Make, stop_after: Callable[[int], None], document: dict[str, Any], write_rows: Callable[..., Path]
) -> None:
    rows = [{"instruction": f"Name bone number {n}.", "output": f"It is the bone called {n}."} for n in range(40)]
    document["data"]["path"] = str(write_rows(rows))
    stop_after(8)
    with pytest.raises(RuntimeError, match="crash"):
        train(make_recipe())
    rows[3]["output"] = "It is another one."
    write_rows(rows)
    stop_after(-1)
    with pytest.raises(RunError, match="begun on other rows"):
        train(make_recipe())


def test_batch_and_accumulation_give_one_step(make_recipe: Make, document: dict[str, Any]) -> None:
    document["lora"]["lora_dropout"] = 0.0
    losses, weights = [], []
    for size, parts in ((8, 1), (4, 2), (2, 4)):
        recipe = make_recipe(
            *("--train.per_device_train_batch_size", str(size), "--train.gradient_accumulation_steps", str(parts)),
            *("--train.max_steps", "3", "--train.logging_steps", "1", "--train.save_strategy", "no"),
            *("--train.eval_strategy", "no", "--output_dir", f"{document['output_dir']}-{size}"),
        )
        losses.append(train(recipe)["train"]["train_loss"])
        weights.append(load_file(recipe.output_dir / "adapter" / "adapter_model.safetensors"))
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=1e-5)
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=0)


def test_a_run_that_failed_before_its_first_checkpoint_may_be_corrected(make_recipe: Make) -> None:
    with pytest.raises(DataError, match=r"data\.splits"):
        train(make_recipe("--data.splits.train", "4000"))
    assert train(make_recipe("--train.max_steps", "1", "--train.save_strategy", "no", "--train.eval_strategy", "no"))


def test_a_full_card_is_told_with_the_keys_to_change(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from alpacare_sft.training.trainer import AnswerSFTTrainer

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AnswerSFTTrainer, "training_step", full)
    recipe = make_recipe()
    with pytest.raises(RunError) as error:
        train(recipe)
    for key in ("train.per_device_train_batch_size 1", "train.activation_checkpointing", "train.max_length"):
        assert key in str(error.value)
    assert json.loads((recipe.output_dir / "run.json").read_text())["status"] == "failed"


def test_a_missing_tracker_is_told_with_its_install_line(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"train\.report_to: wandb .*pip install 'alpacare_sft\[trackers\]'"):
        train(make_recipe("--train.report_to", "wandb"))


def test_an_adapter_that_learnt_nothing_is_not_done(make_recipe: Make) -> None:
    recipe = make_recipe("--train.learning_rate", "1e-45", "--train.max_steps", "1")
    with pytest.raises(RunError, match="training changed nothing"):
        train(recipe)
    assert not (recipe.output_dir / "adapter").exists()


def test_a_full_disk_is_told_before_training(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(RunError, match=r"output_dir: .* needs 0\.\d+ GiB, 0\.00 GiB are free"):
        train(make_recipe())


def test_a_lost_best_checkpoint_is_not_replaced_by_the_last(make_recipe: Make, crashed: Path) -> None:
    recipe = make_recipe()
    shutil.copytree(crashed, recipe.output_dir)
    checkpoints = recipe.output_dir / "checkpoints"
    state = json.loads((checkpoints / "checkpoint-6" / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = str(checkpoints / "checkpoint-5")
    (checkpoints / "checkpoint-6" / "trainer_state.json").write_text(json.dumps(state))
    seal_checkpoint(checkpoints / "checkpoint-6")
    with pytest.raises(RunError, match=r"checkpoint-5 has the best validation loss and cannot be used"):
        train(recipe)


def test_the_recorded_validation_loss_is_a_loss_whatever_chose_the_best(make_recipe: Make) -> None:
    words = ("--train.metric_for_best_model", "mean_token_accuracy", "--train.greater_is_better", "true")
    assert train(make_recipe(*words, "--train.max_steps", "3"))["train"]["eval_loss"] > 1


def test_a_home_directory_in_output_dir_is_one_directory(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = make_recipe("--output_dir", "~/run")
    assert recipe.output_dir == tmp_path / "run"


def test_early_stopping_without_best_model_loading_is_told_before_anything_is_written(make_recipe: Make) -> None:
    words = ("--early_stopping.patience", "2", "--train.load_best_model_at_end", "false", "--train.save_steps", "4")
    with pytest.raises(RecipeError, match=r"train\.save_steps must be a multiple of train\.eval_steps"):
        make_recipe(*words)


def test_what_upstream_refuses_is_told_before_anything_is_written(make_recipe: Make) -> None:
    recipe = make_recipe("--train.accelerator_config", "{x: 1}")
    with pytest.raises(RecipeError, match=r"^train: AcceleratorConfig.* unexpected keyword argument .x."):
        train(recipe)
    assert not recipe.output_dir.exists()


def test_showing_other_rows_in_a_finished_run_is_refused(make_recipe: Make, crashed: Path) -> None:
    from alpacare_sft.reporting.terminal import show_data

    recipe = make_recipe("--prompt.system", "You are kind.")
    shutil.copytree(crashed, recipe.output_dir)
    before = (recipe.output_dir / "data" / "report.json").read_bytes()
    with pytest.raises(RunError, match=r"prompt\.system: None → You are kind\."):
        show_data(recipe, 0)
    assert (recipe.output_dir / "data" / "report.json").read_bytes() == before
    show_data(make_recipe("--train.learning_rate", "0.5"), 0)  # says nothing about rows


def test_the_card_tells_the_record_and_the_notice(make_recipe: Make) -> None:
    recipe = make_recipe("--train.max_steps", "2", "--safety.disclaimer", "Not advice.")
    record = train(recipe)
    card = (recipe.output_dir / "adapter" / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    assert card.count("Not advice.") == 1
    for value in (
        record["recipe_sha256"],
        f"{record['tokens']['answer']:,} of them answers",
        "| Training split | 24 |",
    ):
        assert value in card


def test_rows_longer_than_the_context_are_refused_before_they_are_made(make_recipe: Make) -> None:
    recipe = make_recipe("--train.max_length", "1025")
    with pytest.raises(RecipeError, match=r"train.max_length must be at most 1,024, the positions of .*, got 1,025"):
        train(recipe)
    assert not RunDirectory(recipe.output_dir).data.exists()


def test_a_run_that_is_gone_goes_on_from_its_copy(
    make_recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe("--checkpoints.copy_to", str(tmp_path / "drive"), "--train.save_total_limit", "4")
    train(recipe)
    copied = sorted(path.name for path in (tmp_path / "drive" / "run" / "checkpoints").iterdir())
    newest, *_ = checkpoint_folders(recipe.output_dir / "checkpoints")
    best = json.loads((newest / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert copied == sorted({newest.name, Path(best).name})
    before = adapter_bytes(recipe.output_dir)
    shutil.rmtree(recipe.output_dir)
    assert train(recipe)["status"] == "done" and adapter_bytes(recipe.output_dir) == before
    assert "is begun with what" in capsys.readouterr().out
    shutil.rmtree(recipe.output_dir)
    shutil.rmtree(tmp_path / "drive")
    (tmp_path / "drive").write_text("not a directory")  # as a drive that is not mounted any more
    assert train(recipe)["status"] == "done" and adapter_bytes(recipe.output_dir) == before
    assert "has no copy of this checkpoint: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--lora.rank_pattern", "{q_porj: 4}"), "q_porj"),
        (("--lora.target_parameters", "[x]"), "no parameter was matched"),
    ],
)
def test_what_peft_would_go_on_without_is_told(make_recipe: Make, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(RecipeError, match=rf"^train or lora: .*{told}"):
        train(make_recipe(*words))


def test_an_adapter_that_is_not_finite_is_not_done(make_recipe: Make) -> None:
    recipe = make_recipe("--train.max_steps", "1", "--train.eval_strategy", "no", "--train.learning_rate", "1e39")
    with pytest.raises(RunError, match=r"holds numbers that are not finite\. Lower train.learning_rate"):
        train(recipe)
    assert not (recipe.output_dir / "adapter").exists()
