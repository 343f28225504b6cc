"""Which rows are scored: the run's test split or another file's, or some of them; how near the training rows are."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.clean import clean_rows
from alpacare_sft.data.hub import commit_of
from alpacare_sft.data.load import load_rows
from alpacare_sft.data.near_duplicates import find_near_duplicates
from alpacare_sft.data.text import question_key
from alpacare_sft.errors import DataError, RecipeError, RunError
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.recipe.names import EMBEDDED_FILES, local_path
from alpacare_sft.recipe.sections import ROW_COLUMNS
from alpacare_sft.run.directory import file_sha256, has_sha256, last_name, read_object, text_sha256
from alpacare_sft.run.json_lines import read_json_lines
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
        near = read_object(run.data / "report.json")["near_duplicates"]
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
    cleaned = clean_rows(source.take_batches(), section.clean).rows
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


@dataclass(frozen=True)
class Selection:
    """The whole test split and the run's own adapter, unless something else is asked for.

    Attributes:
        limit: the first rows only.
        rows: a file or Hub data set in the place of the test split.
        adapter: a directory or Hub repository in the place of the run's adapter.
        same_base: the base that `adapter` names is the run's, whatever it is called there.

    Raises:
        RecipeError: if `limit` is not at least 1, or `same_base` is given without `adapter`.
    """

    limit: int | None
    rows: str | None
    adapter: str | None
    same_base: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise RecipeError(f"--limit must be at least 1, got {self.limit}.")
        if self.same_base and self.adapter is None:
            raise RecipeError(
                "--same-base is about the base that another adapter names. Add --adapter, or leave it out."
            )

    @property
    def is_whole(self) -> bool:
        """Whether it is the evaluation that the model card may tell."""
        return self.limit is None and self.rows is None and self.adapter is None

    def folder(self, run: RunDirectory) -> Path:
        """Scores of the whole test split with the run's own adapter stand in `eval/`, and nothing else does."""
        parts = [f"rows-{_short_name(self.rows)}"] if self.rows else []
        parts += [f"adapter-{_short_name(self.adapter)}"] if self.adapter else []
        parts += [f"first-{self.limit}"] if self.limit else []
        return run.path / "eval" / "-".join(parts) if parts else run.path / "eval"

    def describe(self, unseen: str, commit: str | None) -> dict[str, Any]:
        """Its part of `scores.json`.

        Args:
            unseen: what is known of whether the run was trained on these questions.
            commit: of `rows`, if they are a data set on the Hub.
        """
        if self.adapter:
            unseen += " What the other adapter was trained on is not known here: it may have been trained on them."
        return {
            "limit": self.limit,
            "complete": self.is_whole,
            "unseen": unseen,
            "rows_file": {**_file(self.rows), "commit": commit} if self.rows else None,
        }


def _file(rows: str) -> dict[str, Any]:
    """Name and hash of a file; several files, or a data set on the Hub, have no hash here."""
    path = local_path(rows)
    return {"name": last_name(rows) if path else rows, "sha256": file_sha256(path) if path and path.is_file() else None}


def _short_name(place: str) -> str:
    """The last part of a path, and of the whole enough to tell it from another of that name."""
    path = local_path(place)
    whole = str(path.resolve()) if path else place
    return f"{Path(place).stem}-{text_sha256(whole)[:6]}"
