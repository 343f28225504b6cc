"""A run that is run again gives the same rows, losses, adapter, answers and scores, or says what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from alpacare_sft import evaluate, load_recipe, train
from alpacare_sft.cli import main
from alpacare_sft.errors import RunError
from alpacare_sft.evaluation.rerun import rerun
from alpacare_sft.training.checkpoints import seal_checkpoint
from tests.conftest import tiny_document, write_record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe, trained and scored."""
    folder = tmp_path_factory.mktemp("finished")
    document = tiny_document(tiny_model, folder / "run")
    document["train"] |= {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "logging_steps": 1}
    document["generate"] = {"max_new_tokens": 4}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml")
    train(recipe)
    evaluate(recipe)
    return folder / "run"


def test_a_run_is_the_same_to_the_bit(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main(["rerun", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run-rerun" / "rerun.json").read_text())
    names = [one["name"] for one in told["results"]]
    assert told["identical"] and told["versions"] == told["hardware"] == {}
    assert {"rows of train", "adapter", "answers of the adapter", "rougeL of the adapter"} <= set(names)
    assert "identical" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_what_differs_is_told_with_its_size(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "other")
    record = json.loads((tmp_path / "other" / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    write_record(tmp_path / "other", record)
    state = max((tmp_path / "other" / "checkpoints").glob("*/trainer_state.json"))
    history = json.loads(state.read_text())
    history["log_history"][0]["loss"] += 0.25
    state.write_text(json.dumps(history))
    seal_checkpoint(state.parent)
    told = rerun(finished, tmp_path / "other")
    assert not told["identical"]
    assert [(one["name"], one["difference"]) for one in told["results"] if not one["same"]] == [
        ("losses of 6 logged steps", "at most 0.25")
    ]
    assert list(told["versions"]) == ["torch"] and told["versions"]["torch"][1] == "1.0"


def test_a_run_that_is_not_finished_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--against must be a finished run"):
        rerun(finished, tmp_path / "none")
    with pytest.raises(RunError, match="holds no trained adapter"):
        rerun(tmp_path / "none")
