"""Configurations and splits of Hub data sets, and a publisher's own splits used as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from alpacare_sft.data.hub import describe_unused
from alpacare_sft.data.load import LoadedRows
from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.data.split import clean_parts, load_parts, split_parts
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.document import dump_yaml
from alpacare_sft.recipe.loading import load_recipe
from alpacare_sft.recipe.names import pin_commits
from alpacare_sft.recipe.resolved import recipe_differences, recipe_document
from alpacare_sft.recipe.sections import CleanSection, DataSection, HubDataset, SplitsSection
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.run.record import recorded
from alpacare_sft.run.trained import read_stored_recipe
from tests.conftest import batches_of, tiny_document
from tests.hub_server import Hub, Repository, serve
from tests.test_hub_errors import CONFIGURATIONS, DRIVER


def made_rows(subject: str, count: int) -> list[dict[str, str]]:
    return [
        {
            "instruction": f"What helps with {subject} number {n}?",
            "input": "",
            "output": f"Rest for {n} days, {subject}.",
        }
        for n in range(count)
    ]


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def own_spelling(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**row, "instruction": row["instruction"].upper(), "output": f"Again: {row['output']}"} for row in rows]


SPLITS = {
    "train": made_rows("colds", 20) + own_spelling(made_rows("rash", 2)) + made_rows("flu", 1),
    "validation": made_rows("flu", 4),
    "test": made_rows("rash", 5),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("sets")
    for name in ("three", "configs"):
        (folder / name).mkdir()
    for name, rows in SPLITS.items():
        (folder / "three" / f"{name}.jsonl").write_text(jsonl(rows))
    (folder / "configs" / "README.md").write_text(CONFIGURATIONS)
    (folder / "configs" / "labeled.jsonl").write_text(jsonl(made_rows("coughs", 20)))
    (folder / "configs" / "artificial.jsonl").write_text(jsonl(made_rows("burns", 20)))
    with serve(Hub([Repository(f"them/{name}", folder / name, "datasets") for name in ("three", "configs")])) as hub:
        yield hub


DRAWN = "--data.splits.train 8 --data.splits.validation 2 --data.splits.test 2"
NAMED = "--data.splits.train train --data.splits.validation validation --data.splits.test test"
RUNS = {
    "drawn": f"--data.path them/three {DRAWN}",
    "named": f"--data.path them/three {NAMED}",
    "mixed": "--data.path them/three --data.splits.train 0.8 --data.splits.validation 0.2 --data.splits.test test",
    "labeled": f'--data.path {{"path":"them/configs","name":"labeled"}} {DRAWN}',
    "several": f'--data.path ["embedded",{{"path":"them/configs","name":"labeled","split":"train[:3]"}}] {DRAWN}',
}


@pytest.fixture(scope="module")
def runs(hub: Hub, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `data` wrote and printed, by name."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_document(tiny_model, folder / "unused")))
    start = ["data", str(folder / "recipe.yaml"), "--show", "0", "--output_dir"]
    cases = [
        {"words": [*start, str(folder / name), *words.split()], "log": str(folder / name), "environment": {}}
        for name, words in RUNS.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**own, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "COLUMNS": "200"}
    driver = [sys.executable, "-c", DRIVER, str(folder / "cases.json")]
    subprocess.run(driver, check=True, capture_output=True, timeout=200, env=environment)
    assert [
        (folder / f"{name}.2").read_text()[-300:] for name in RUNS if (folder / f"{name}.code").read_text() != "0"
    ] == []
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", ["them/three", "embedded"])
def test_a_home_of_the_libraries_under_a_file_ends_with_1_where_a_cache_is_needed(
    path: str, hub: Hub, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_document(tiny_model, tmp_path / "run")))
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**own, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "file" / "hf")}
    words = [sys.executable, "-m", "alpacare_sft", "data", str(tmp_path / "recipe.yaml"), "--data.path", path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if path == "embedded":  # local rows need no cache
        assert (done.returncode, messages) == (0, []), done.stderr
    else:
        assert (done.returncode, len(messages)) == (1, 1), done.stderr
        assert "Set HF_HOME to a directory that can be" in messages[0]


def report(runs: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((runs / name / "data" / "report.json").read_text())
    return loaded


def questions(runs: Path, name: str, split: str) -> list[str]:
    lines = (runs / name / "data" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line)["instruction"] for line in lines]


@pytest.mark.slow
def test_splits_that_are_not_read_are_told_everywhere(runs: Path) -> None:
    told = "them/three: read train (23 rows); not read splits validation (4 rows), test (5 rows)."
    assert report(runs, "drawn")["unused_sources"] == [f"{told} data.splits can name them, as in {{test: test}}."]
    assert told in " ".join((runs / "drawn.1").read_text().split())
    assert told in (runs / "drawn" / "data" / "report.html").read_text()


@pytest.mark.slow
def test_the_splits_of_a_publisher_are_used_as_they_are(runs: Path) -> None:
    for split in ("validation", "test"):
        assert questions(runs, "named", split) == [row["instruction"] for row in SPLITS[split]]
    assert questions(runs, "named", "train") == [row["instruction"] for row in made_rows("colds", 20)]
    rows = report(runs, "named")["rows"]
    assert {key: rows[key] for key in ("loaded", "dropped_held_out", "kept", "train", "unused")} == {
        "loaded": 32, "dropped_held_out": 3, "kept": 29, "train": 20, "unused": 0,
    }  # fmt: skip
    assert "question of a held-out split" in (runs / "named.1").read_text()
    assert "3 rows were dropped because" in (runs / "named" / "data" / "report.html").read_text()
    assert report(runs, "named")["unused_sources"] == []


@pytest.mark.slow
def test_a_named_test_split_stands_beside_a_drawn_validation_split(runs: Path) -> None:
    rows = report(runs, "mixed")["rows"]
    assert questions(runs, "mixed", "test") == [row["instruction"] for row in SPLITS["test"]]
    assert (rows["dropped_held_out"], rows["train"], rows["validation"], rows["unused"]) == (2, 16, 4, 1)
    assert report(runs, "mixed")["shared_questions"] == 0


@pytest.mark.slow
def test_a_configuration_is_read_by_its_name(runs: Path) -> None:
    assert "coughs" in questions(runs, "labeled", "train")[0]
    read = report(runs, "labeled")["hub"][0]
    assert (read["path"], read["name"], read["split"], read["other_names"]) == (
        "them/configs", "labeled", "train", ["artificial"],
    )  # fmt: skip


@pytest.mark.slow
def test_several_entries_are_read_in_their_order(runs: Path, hub: Hub) -> None:
    assert report(runs, "several")["rows"]["loaded"] == 336 + 3
    repository = hub.find("datasets", "them/configs")
    assert repository is not None and report(runs, "several")["commit"] == repository.commit


def loaded(name: str) -> LoadedRows:
    rows = Dataset.from_list([{"id": n, **row} for n, row in enumerate(SPLITS[name])])
    return LoadedRows(deque(batches_of(rows)), {}, [{"rows": len(rows)}], [])


def test_a_copy_of_a_test_row_costs_the_training_row_not_the_test_row() -> None:
    parts = {"train": loaded("test"), "test": loaded("test")}
    rows = clean_parts(parts, CleanSection()).rows
    assert len(rows) == 10 and rows["id"][:] == list(range(10))
    with pytest.raises(DataError, match=r"^data\.splits\.train: no row of 'train' is left"):
        split_parts(rows, SplitsSection(train="train", validation=0, test="test"), 42)


def test_names_of_splits_need_a_hub_data_set(make_recipe: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"^data\.splits\.test must be a number of rows .* for local files, got 'test'"):
        prepare_data(make_recipe("--data.splits.test", "test"), tokenizer)


def test_a_split_to_draw_from_is_refused_where_nothing_is_drawn() -> None:
    splits = SplitsSection(train="train", validation=0, test="test")
    with pytest.raises(DataError, match=r"^data\.path\.split must be left out, got 'train'"):
        load_parts(DataSection(path=HubDataset(path="them/three", split="train"), splits=splits))


PARTS = ("{path: them/rows, name: a, split: 'test[:9]', revision: v1}", "[embedded, {path: a/b}]")


@pytest.mark.parametrize("path", PARTS)
def test_a_recipe_with_parts_of_data_sets_is_stored_and_read_again(make_recipe: Any, tmp_path: Path, path: str) -> None:
    recipe = make_recipe("--data.path", path)
    run = RunDirectory(recipe.output_dir)
    with run.lock(), pytest.raises(KeyError), recorded(run, recipe):
        raise KeyError
    assert read_stored_recipe(run).recipe.data == recipe.data
    assert recipe_differences(read_stored_recipe(run).recipe, recipe) == []
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_yaml(recipe_document(recipe)))
    assert load_recipe(dumped).data == recipe.data


def test_each_data_set_is_pinned_to_its_commit() -> None:
    commits = {"a/b": "1" * 40, "c/d": "2" * 40}
    several = DataSection(path=["a/b", "embedded", HubDataset(path="c/d", split="test")], revision="main")
    pinned = pin_commits(several, commits)
    first, second = HubDataset(path="a/b", revision="1" * 40), HubDataset(path="c/d", split="test", revision="2" * 40)
    assert (pinned.path, pinned.revision) == ([first, "embedded", second], None)
    one = pin_commits(DataSection(path=HubDataset(path="a/b", name="x")), "3" * 40)
    assert one.path == HubDataset(path="a/b", name="x", revision="3" * 40)


def test_slices_and_all_count_as_read() -> None:
    source = {"path": "a/b", "name": "default", "rows": 3, "sizes": {"train": 6, "test": 2}, "other_names": []}
    assert list(describe_unused([{**source, "split": "all"}])) == []
    assert list(describe_unused([{**source, "split": "train[:50%]"}, {**source, "split": "test+train[50%:]"}])) == []
