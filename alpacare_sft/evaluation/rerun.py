"""A recorded run, trained and scored again in a directory of its own, and how far its results are the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.markup import escape
from rich.table import Table

from alpacare_sft.errors import RunError
from alpacare_sft.evaluation.evaluate import evaluate
from alpacare_sft.model.base import loading_errors_explained
from alpacare_sft.recipe.loading import Recipe, load_recipe, recipe_from_document
from alpacare_sft.recipe.names import is_path
from alpacare_sft.reporting.evidence import (
    pinned_recipe,
    published_recipe,
    read_evidence,
    read_log_history,
    read_or_empty,
)
from alpacare_sft.run.directory import WEIGHTS, RunDirectory, file_sha256, last_name, read_object, write_json
from alpacare_sft.run.json_lines import read_json_lines
from alpacare_sft.run.trained import trained_recipe
from alpacare_sft.runtime import open_console, prepared_process, say
from alpacare_sft.training.train import train

SIDES = ("base", "adapter")


_PUBLISHED = ("recipe.yaml", "run.json", WEIGHTS)


@prepared_process()
def rerun(name: str | Path, against: Path | None = None) -> dict[str, Any]:
    """Run a finished run again beside it, or compare it with another, and write what differs into `rerun.json`.

    The first run is read and never written to. A run that is stopped goes on where it was.

    Args:
        name: the directory of the finished run; or a repository on the Hub that it was published in, which is run
            again in `runs/`.
        against: another finished run, which is then not trained.

    Returns:
        `identical`; `results`, one entry for each thing that was compared, with `same` and `difference`; `versions`
        and `hardware`, the values of both runs where they differ.

    Raises:
        RunError: if one of the runs is not finished, its files were changed, or the repository lacks one.
        DataError, ModelError: if what the run was made of cannot be had.
    """
    path = Path(name).resolve()
    if not path.exists() and not is_path(str(name)) and "/" in str(name) and against is None:
        return _rerun_published(str(name))
    first = RunDirectory(path)
    second = RunDirectory(against or path.with_name(f"{path.name}-rerun"))
    recipe = trained_recipe(first)
    if against is None:
        _train_again(recipe, first, second)
    elif second.read_record().get("status") != "done":
        raise RunError(f"--against must be a finished run, {against} is none. Leave it out to train anew.")
    return _compare(first, second, recipe.output_dir.name)


def _compare(first: RunDirectory, second: RunDirectory, name: str) -> dict[str, Any]:
    for run in (first, second):
        if damaged := run.damaged(""):
            raise RunError(
                f"{run.path}: {', '.join(damaged)} not as written: nothing was compared. Make it again: alpacare-sft "
                "data, train or eval with its recipe."
            )
    results = list(compare_runs(first, second))
    records = [run.read_record() for run in (first, second)]
    differences = {
        name: dict(_differences(*(one.get(name) or {} for one in records))) for name in ("versions", "hardware")
    }
    comparison = {"identical": all(one["same"] for one in results), "results": results, **differences}
    write_json(second.path / "rerun.json", {"of": name, **comparison})
    return comparison


def _rerun_published(name: str) -> dict[str, Any]:
    """Train by the recipe in a repository, whose base and rows are named by commit, and score where it has scores."""
    from huggingface_hub import snapshot_download

    with loading_errors_explained(name, "main", "rerun"):
        folder = Path(snapshot_download(name, allow_patterns=[*_PUBLISHED, "scores.json"]))
    if missing := [file for file in _PUBLISHED if not (folder / file).exists()]:
        raise RunError(
            f"{name} lacks {' and '.join(missing)}: it cannot be run again. Name a repository made by `push`."
        )
    second = RunDirectory(Path("runs") / f"{last_name(name)}-rerun")
    say(f"{name} is run again in {second.path}.")
    recipe = load_recipe(folder / "recipe.yaml", ["--output_dir", str(second.path)])
    train(recipe)
    scores = folder / "scores.json"
    if scores.exists() and not read_evidence(second).scores:
        evaluate(recipe)
    with TemporaryDirectory() as place:  # what is published, as a run's directory has it
        first = RunDirectory(Path(place))
        write_json(first.record, read_object(folder / "run.json"))
        first.adapter.mkdir()
        shutil.copy(folder / WEIGHTS, first.adapter / WEIGHTS)
        write_json(first.path / "eval" / "scores.json", read_or_empty(scores))
        return _compare(first, second, name)


def _train_again(given: Recipe, first: RunDirectory, second: RunDirectory) -> None:
    """Train by the recipe of a run, its branches pinned, and score as its scores were made."""
    evidence = read_evidence(first)
    recipe = recipe_from_document({**given.document, "output_dir": str(second.path)})
    recipe = published_recipe(pinned_recipe(recipe, evidence.record), given, evidence)
    say(f"{first.path} is run again in {second.path}.")
    train(recipe)
    if evidence.scores and not read_evidence(second).scores:
        evaluate(recipe)


def compare_runs(first: RunDirectory, second: RunDirectory) -> Iterator[dict[str, Any]]:
    """Rows, losses, adapter, answers and scores of two finished runs; what one of them lacks is left out."""
    hashes = [run.read_record().get("data_sha256") or {} for run in (first, second)]
    for split in hashes[0]:
        yield _result(f"rows of {split}", hashes[0][split] == hashes[1].get(split), "other rows")
    losses = [_losses(run) for run in (first, second)]
    common = sorted(losses[0].keys() & losses[1].keys())
    if common:
        largest = max(abs(losses[0][step] - losses[1][step]) for step in common)
        same = losses[0] == losses[1]
        yield _result(f"losses of {len(common):,} logged steps", same, f"at most {largest:.3g}")
    weights = [file_sha256(run.adapter / WEIGHTS) for run in (first, second)]
    yield _result("adapter", weights[0] == weights[1], "other bytes")
    yield from _compare_answers(first, second)
    yield from _compare_scores(first, second)


def _compare_answers(first: RunDirectory, second: RunDirectory) -> Iterator[dict[str, Any]]:
    files = [run.path / "eval" / "predictions.jsonl" for run in (first, second)]
    if not all(file.is_file() for file in files):
        return
    rows = [{row["id"]: row for row in read_json_lines(file)} for file in files]
    for side in SIDES:
        pairs = [(row.get(side), rows[1].get(row_id, {}).get(side)) for row_id, row in rows[0].items()]
        changed = sum(one != other for one, other in pairs)
        yield _result(f"answers of the {side}", not changed, f"{changed:,} of {len(pairs):,}")


def _compare_scores(first: RunDirectory, second: RunDirectory) -> Iterator[dict[str, Any]]:
    metrics = [read_or_empty(run.path / "eval" / "scores.json").get("metrics") or {} for run in (first, second)]
    for name in (name for name in metrics[0] if name in metrics[1]):
        for side in SIDES:
            means = [((one[name] or {}).get(side) or {}).get("mean") for one in metrics]
            if None not in means:
                yield _result(f"{name} of the {side}", means[0] == means[1], f"{means[0]:.4f} → {means[1]:.4f}")


def _result(name: str, same: bool, difference: str) -> dict[str, Any]:
    return {"name": name, "same": same, "difference": None if same else difference}


def _losses(run: RunDirectory) -> dict[str, float]:
    """Training and validation losses by step, as the last checkpoint has them."""
    return {
        f"{key} {entry['step']}": entry[key]
        for entry in read_log_history(run)
        for key in ("loss", "eval_loss")
        if key in entry
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            yield name, [before.get(name), after.get(name)]


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print what `rerun` found."""
    console = open_console()
    table = Table("compared", "same", "difference", box=None, pad_edge=False)
    for one in comparison["results"]:
        table.add_row(escape(one["name"]), "yes" if one["same"] else "no", escape(one["difference"] or ""))
    console.print(table)
    for kind in ("versions", "hardware"):
        for name, (before, after) in comparison[kind].items():
            console.print(f"{kind}: {escape(name)} {escape(str(before))} → {escape(str(after))}")
    if comparison["identical"]:
        console.print("[bold]identical[/bold]: every row, loss, weight, answer and score that was compared.")
    elif comparison["versions"] or comparison["hardware"]:
        console.print("[bold]not identical[/bold]: versions or hardware differ, as listed.")
    else:
        console.print("[bold]not identical[/bold], though versions and hardware are the same.")
