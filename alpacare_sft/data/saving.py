"""The splits and their report, into a run's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alpacare_sft.data.prepare import PreparedData, jsonl, prepare_data
from alpacare_sft.data.report import describe_rows
from alpacare_sft.errors import RunError
from alpacare_sft.model.base import load_tokenizer
from alpacare_sft.reporting.pages import save_data_report
from alpacare_sft.run.directory import RunDirectory, new_directory, write_json, write_text
from alpacare_sft.runtime import say

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe

DATA_KEYS = ("data.", "prompt.", "model.", "train.max_length")


def refuse_other_data(run: RunDirectory, data: PreparedData) -> None:
    """Keep the rows that an unfinished run was begun on.

    Raises:
        RunError: if `data` differs from them.
    """
    before = run.read_record().get("data_sha256") or {}
    if run.holds_work() and not before:
        raise RunError(f"{run.record} says nothing of the rows of this run. Put a copy back, or add --overwrite.")
    if run.holds_work() and before != data.sha256:
        changed = ", ".join(name for name, value in data.sha256.items() if before.get(name) != value)
        raise RunError(
            f"output_dir: {run.path} was begun on other rows ({changed} differ). Give it the rows it began with, "
            "choose another output_dir, or add --overwrite."
        )


def save_data(run: RunDirectory, data: PreparedData, tokenizer: Any) -> None:
    """Write the splits, their report and its page, all of them or none; a run seals them."""
    with new_directory(run.data) as folder:
        for name, rows in data.splits.items():
            write_text(folder / f"{name}.jsonl", jsonl(rows))
        write_json(folder / "report.json", data.report)
        save_data_report(folder / "report.html", {**data.report, **describe_rows(data.splits, tokenizer)})
    if run.read_record():
        run.seal(*run.data.glob("*.json*"))


def restore_data(run: RunDirectory, recipe: Recipe) -> None:
    """Make the rows of a run again where a file of them is not as it was written.

    Raises:
        DataError: if they cannot be had any more.
        RunError: if they are others now.
    """
    if damaged := run.damaged("data/"):
        say(f"{run.path}: {', '.join(damaged)} not as written: the rows are made again.")
        tokenizer = load_tokenizer(recipe.model)
        data = prepare_data(recipe, tokenizer)
        refuse_other_data(run, data)
        save_data(run, data, tokenizer)
