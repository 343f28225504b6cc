"""What a name stands for: something in the package, a path or a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpacare_sft.hub.preflight import recipe_faults
from alpacare_sft.recipe.loading import load_recipe
from alpacare_sft.recipe.names import hub_datasets, is_path, local_path
from alpacare_sft.recipe.sections import HubDataset

PATHS = ["rows.jsonl", "a/b.CSV", "./model", "../rows", "~/model", "/srv/model", "a/b/c", "rows*", r"C:\models", " "]
REPOSITORIES = ["gpt2", "owner/name", "meta-llama/Llama-3.2-1B-Instruct", "owner/rows.v2"]


@pytest.mark.parametrize("name", PATHS + REPOSITORIES)
def test_a_path_is_known_by_its_spelling(name: str) -> None:
    assert is_path(name) == (name in PATHS)


def test_what_lies_here_today_makes_no_data_set_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ["owner/rows", "embedded", "rows.jsonl", HubDataset(path="owner/parts", split="test")]
    expected = [HubDataset(path="owner/rows", revision="v1"), HubDataset(path="owner/parts", split="test")]
    assert hub_datasets(path, "v1") == expected
    (tmp_path / "owner" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_datasets(path, "v1") == expected


def test_a_base_is_local_by_the_record_and_before_a_run_by_what_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {model_name_or_path: owner/base}\ndata: {path: embedded}\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["--hub.repo_id", "me/adapter", "--output_dir", str(tmp_path)])
    of_hub = {"name": "owner/base", "revision": "a" * 40}
    assert list(recipe_faults(recipe)) == []
    (tmp_path / "owner" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_path("owner/base") is not None and list(recipe_faults(recipe, of_hub)) == []
    for base in (None, {**of_hub, "revision": "main"}):
        assert "must be a model on the Hub" in next(recipe_faults(recipe, base))
