"""What a run's directory says about its adapter, for the model card and the push."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RunError
from alpacare_sft.recipe.keys import known_keys
from alpacare_sft.recipe.names import COMMIT, pin_commits
from alpacare_sft.recipe.validation import fits_key
from alpacare_sft.run.directory import RunDirectory, adapter_sha256, checkpoint_folders, has_sha256, read_object

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe


@dataclass(frozen=True)
class Evidence:
    """The record, the account of the rows, and the scores if they are this adapter's.

    Attributes:
        record: what `run.json` holds.
        report: what `data/report.json` holds; empty if there is none.
        scores: what `eval/scores.json` holds, or None.
        no_scores: why there are none, and what to do about it; empty if there are.
    """

    record: dict[str, Any]
    report: dict[str, Any]
    scores: dict[str, Any] | None
    no_scores: str


def read_evidence(run: RunDirectory) -> Evidence:
    """Read what is known of a run's adapter.

    Scores count if they are of the whole test split and of the very weights that lie there.

    Raises:
        RunError: if the account of the rows is not as it was written.
    """
    if damaged := run.damaged("data/report.json"):
        raise RunError(f"{run.path}: {damaged[0]} is not as it was written. Make it again: alpacare-sft data RECIPE.")
    record, path = run.read_record(), run.path / "eval" / "scores.json"
    if not (record.get("base_model") or {}).get("name"):
        raise RunError(f"{run.record} does not name the base model. Train it again: alpacare-sft train RECIPE.")
    scores = read_or_empty(path)
    fault = _scores_fault(scores, run.adapter)
    if not fault and run.damaged("eval/scores.json"):
        fault = "eval/scores.json was changed since it was written. Score again: alpacare-sft eval RECIPE"
    return Evidence(record, read_or_empty(run.data / "report.json"), None if fault else scores, fault)


def published_recipe(trained: Recipe, given: Recipe, evidence: Evidence) -> Recipe:
    """The recipe of a run as it is published: with the settings of its scores, so that it repeats them.

    Args:
        trained: the recipe that the adapter was trained by.
        given: what `hub` and `safety` are taken from, and without scores `generate` and `evaluate` too.
        evidence: of the run.
    """
    generate, rated = given.generate, given.evaluate
    if evidence.scores:
        generate = dataclasses.replace(generate, **_settings("generate", evidence.scores))
        rated = dataclasses.replace(rated, **_settings("evaluate", evidence.scores))
    return dataclasses.replace(trained, hub=given.hub, safety=given.safety, generate=generate, evaluate=rated)


def _settings(section: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of scores that this version has, and takes."""
    given = scores.get(section, {}).items()
    return {
        key: value for key, value in given if f"{section}.{key}" in known_keys() and fits_key(f"{section}.{key}", value)
    }


def pinned_recipe(recipe: Recipe, record: Mapping[str, Any]) -> Recipe:
    """A run's recipe with the commits that its branches stood for, so that a rerun fetches the same files.

    Args:
        recipe: that the run was trained by.
        record: of the run; a commit that it does not have stays as the recipe names it.
    """
    base = (record.get("base_model") or {}).get("revision") or ""
    model, data = recipe.model, pin_commits(recipe.data, record.get("data_commit"))
    if COMMIT.fullmatch(base):
        model = dataclasses.replace(model, model_revision=base)
    return dataclasses.replace(recipe, model=model, data=data)


def _scores_fault(scores: dict[str, Any], adapter: Path) -> str:
    remedy = "Score it: alpacare-sft eval RECIPE"
    if not scores.get("metrics"):
        return f"this adapter was not evaluated. {remedy}"
    if not scores.get("complete"):
        return f"eval/scores.json does not cover the whole test split. {remedy}"
    if (scores.get("model") or {}).get("adapter_sha256") != adapter_sha256(adapter):
        return f"eval/scores.json is of another adapter. {remedy}"
    return ""


def read_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty where there is none."""
    try:
        return read_object(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def read_log_history(run: RunDirectory) -> list[dict[str, Any]]:
    """What the trainer logged, by step, from the last checkpoint whose state is as it was written; else empty."""
    for folder in checkpoint_folders(run.checkpoints):
        state = folder / "trainer_state.json"
        digest = read_or_empty(folder / "sha256.json").get(state.name)
        if state.exists() and (digest is None or has_sha256(state, digest)):
            return list(read_or_empty(state).get("log_history") or [])
    return []
