"""Which rows are asked: the run's test split, or another file's; and how near they stand to the training rows."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.clean import clean_rows
from alpacare_sft.data.equality import question_key
from alpacare_sft.data.hub import commit_of
from alpacare_sft.data.load import load_rows
from alpacare_sft.data.near_duplicates import find_near_duplicates
from alpacare_sft.errors import DataError, RunError
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.recipe.names import EMBEDDED_FILES
from alpacare_sft.recipe.sections import ROW_COLUMNS
from alpacare_sft.run.directory import has_sha256, read_object
from alpacare_sft.run.json_lines import read_json_lines
from alpacare_sft.run.shapes import ReportShape, shape_fault
from alpacare_sft.runtime import say

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.run.directory import RunDirectory

GENERAL_ROWS = EMBEDDED_FILES["embedded"].with_name("general.jsonl")


@dataclass(frozen=True)
class HeldOutRows:
    """Rows to score on, and what is known of them.

    Attributes:
        rows: with `id`, `instruction`, `input` and `output`, and `system` where a row has a turn of its own.
        source: where they come from, for a person.
        unseen: what is known of whether their questions were trained on, for a person.
        near: by row id, the training row that its question nearly repeats: `id`, `split`, `similarity`.
        threshold: similarity from which on a row counts as near.
        counts: rows `loaded` and `kept`, for rows from a file.
        commit: of a data set on the Hub.
    """

    rows: list[dict[str, Any]]
    source: str
    unseen: str
    near: Mapping[Any, dict[str, Any]]
    threshold: float
    counts: Mapping[str, int] = field(default_factory=dict)
    commit: str | None = None


def read_test_split(run: RunDirectory, limit: int | None) -> HeldOutRows:
    """The test split of a run, proven to be the one that was held out.

    Raises:
        RunError: if it is empty, or is not what the run recorded.
    """
    recorded = run.read_record().get("data_sha256") or {}
    for name in ("train", "test"):
        if not has_sha256(run.data / f"{name}.jsonl", recorded.get(name, "")):
            raise RunError(
                f"{run.data / name}.jsonl is not the split that this run was trained with, so its test rows cannot be "
                "proven unseen. Put the file back, or train again."
            )
    rows, train = read_json_lines(run.data / "test.jsonl"), read_json_lines(run.data / "train.jsonl")
    if not rows:
        raise RunError("data.splits.test is 0, there is nothing to score. Give it rows and train again, or use --rows.")
    trained_on = {(row["instruction"], row["input"]) for row in train}
    if exact := sum((row["instruction"], row["input"]) in trained_on for row in rows):
        raise RunError(f"{exact:,} test questions stand in the training rows. Train again: a draw keeps them apart.")
    respelt = _seen(rows, train)  # drawn by a version that kept only equal texts together
    unseen = "None of the test questions stands in the run's training rows."
    if respelt:
        unseen = (
            f"{len(respelt):,} of the test questions stand in the run's training rows in another spelling (Unicode "
            "form, case, white space); they count as near-duplicates. Train again: a draw now keeps them apart."
        )
    try:
        report = read_object(run.data / "report.json")
        if fault := shape_fault(report, ReportShape):
            raise ValueError(fault)
        near = report["near_duplicates"]
        return HeldOutRows(rows[:limit], "test rows", unseen, _nearest(near["nearest"]) | respelt, near["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{run.data / 'report.json'} is missing, damaged or of an older version. Make it again: "
            "alpacare-sft data RECIPE."
        ) from error


def load_other_rows(path: str, trained: Recipe, run: RunDirectory, limit: int | None) -> HeldOutRows:
    """Rows of a file or a Hub data set, cleaned as the recipe of the run cleans, compared with its training rows.

    Raises:
        DataError: if they cannot be read, none is left, or some were trained on.
    """
    from datasets import Dataset

    section = dataclasses.replace(trained.data, path=path, revision=None)
    try:
        source = load_rows(section)
    except DataError as error:  # told of the recipe's keys
        raise DataError(f"--rows {path}, read by the run's section data: {error}") from error
    cleaned = clean_rows(source.columns, section.clean).rows
    if len(cleaned) == 0:
        raise DataError(f"--rows {path}: no row of {source.num_loaded:,} is left after cleaning. Check its columns.")
    train = read_json_lines(run.data / "train.jsonl")
    if seen := _seen(cleaned, train):
        raise DataError(
            f"--rows {path}: {len(seen):,} of {len(cleaned):,} questions were trained on; scores on them would say "
            "nothing. Take them out."
        )
    near = find_near_duplicates({"train": Dataset.from_list(train), "test": cleaned}, section.constants)
    counts = {"loaded": source.num_loaded, "kept": len(cleaned)}
    rows = [{key: row[key] for key in ROW_COLUMNS if row.get(key) is not None} for row in cleaned]
    return HeldOutRows(
        rows[:limit],
        f"rows of {Path(path).name}",
        "None of these questions stands in the run's training rows.",
        _nearest(near["nearest"]),
        near["threshold"],
        counts,
        commit_of(source.hub),
    )


def read_general_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The general rows of the package; none if the run was trained on some, as they would hide what was forgotten."""
    rows = read_json_lines(GENERAL_ROWS)
    if seen := _seen(rows, read_json_lines(run.data / "train.jsonl")):
        say(
            f"{len(seen)} of the {len(rows)} general rows stand in the training rows: their loss would not show what "
            "was forgotten, and is left out."
        )
        return []
    return rows


def encode_rows(rows: list[dict[str, Any]], encoder: PromptEncoder) -> list[dict[str, Any]]:
    """Rows as token ids; references are never cut."""
    return encoder.encode_rows(rows, max_length=sys.maxsize)


def _seen(rows: Iterable[Mapping[str, Any]], train: Iterable[Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Rows whose question is that of a training row, by id, as `HeldOutRows.near` tells them."""
    trained_on = {_question(row): row["id"] for row in train}
    return {
        row["id"]: {"id": trained_on[_question(row)], "split": "train", "similarity": 1.0}
        for row in rows
        if _question(row) in trained_on
    }


def _question(row: Mapping[str, Any]) -> tuple[str, str]:
    return question_key(row["instruction"]), question_key(row["input"] or "")


def _nearest(found: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {one["test"]: {"id": one["train"], "split": "train", "similarity": one["similarity"]} for one in found}
