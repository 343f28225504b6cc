"""The splits and their report in a run's directory: lengths, and rows as the model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.prepare import PreparedData, jsonl, prepare_data
from alpacare_sft.data.text import repetition
from alpacare_sft.errors import RunError
from alpacare_sft.model.base import load_tokenizer
from alpacare_sft.reporting.pages import save_data_report
from alpacare_sft.run.directory import RunDirectory, new_directory, write_json, write_text
from alpacare_sft.runtime import say

if TYPE_CHECKING:
    from datasets import Dataset

    from alpacare_sft.recipe.loading import Recipe

DATA_KEYS = ("data.", "prompt.", "model.", "train.max_length")
NUM_EXAMPLES = 50
NUM_EXTREMES = 5


def encoded_segments(row: Mapping[str, Any], tokenizer: Any) -> list[tuple[str, bool]]:
    """Runs of a row's tokens, decoded from the ids that the model gets, and whether they are in the loss."""
    segments: list[tuple[list[int], bool]] = []
    for token, in_loss in zip(row["input_ids"], row["completion_mask"], strict=True):
        if not segments or segments[-1][1] != bool(in_loss):
            segments.append(([], bool(in_loss)))
        segments[-1][0].append(token)
    return [(tokenizer.decode(ids, skip_special_tokens=False), in_loss) for ids, in_loss in segments]


def describe_rows(splits: Mapping[str, Dataset], tokenizer: Any) -> dict[str, Any]:
    """Token lengths of every row and the first rows of each split, for the page."""
    lengths = {
        name: {column: list(rows[column]) for column in ("prompt_tokens", "completion_tokens")}
        for name, rows in splits.items()
        if len(rows)
    }
    total = sum(len(rows) for rows in splits.values())
    examples = []
    for name, rows in splits.items():
        share = max(1, round(NUM_EXAMPLES * len(rows) / total)) if len(rows) else 0
        examples += [describe_row(rows[index], name, tokenizer) for index in range(min(share, len(rows)))]
    return {"lengths": lengths, "examples": examples[:NUM_EXAMPLES], "extremes": _extremes(splits, tokenizer)}


def _extremes(splits: Mapping[str, Dataset], tokenizer: Any) -> dict[str, Any]:
    """The rows that a person should look at first: shortest and longest answers, and the most repetitive."""
    rows = [(name, part, index) for name, part in splits.items() for index in range(len(part))]
    lengths = [length for part in splits.values() for length in part["completion_tokens"]]
    repetitions = [repetition(text) for part in splits.values() for text in part["output"]]

    def describe(place: int) -> dict[str, Any]:
        name, part, index = rows[place]
        return describe_row(part[index], name, tokenizer) | {"repetition": repetitions[place]}

    by_length = sorted(range(len(rows)), key=lambda place: lengths[place])
    by_repetition = sorted(range(len(rows)), key=lambda place: -repetitions[place])
    repetitive = [place for place in by_repetition[:NUM_EXTREMES] if repetitions[place] > 0]
    return {
        "shortest": [describe(place) for place in by_length[:NUM_EXTREMES]],
        "longest": [describe(place) for place in reversed(by_length[-NUM_EXTREMES:])],
        "most_repetitive": [describe(place) for place in repetitive],
    }


def describe_row(row: Mapping[str, Any], split: str, tokenizer: Any) -> dict[str, Any]:
    """One row for the page: its id, split, lengths and segments."""
    return {
        "id": row["id"],
        "split": split,
        "truncated": row["truncated"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "segments": [[text, in_loss] for text, in_loss in encoded_segments(row, tokenizer)],
    }


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
