"""Which rows are scored, and whether they were seen, without a model."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.evaluation.held_out import GENERAL_ROWS, read_general_rows, read_test_split
from alpacare_sft.run.directory import RunDirectory, file_sha256, write_json
from alpacare_sft.run.json_lines import read_json_lines

FEVER = {"instruction": "Où siège la fièvre ?", "input": "38 °C, 5 µg", "output": "Ici."}
COUGH = {"instruction": "What helps a cough?", "input": "", "output": "Tea."}
DECOMPOSED = {
    "instruction": unicodedata.normalize("NFD", "OÙ  siège la fièvre ?"),
    "input": "38 ºC, 5 μg",
    "output": "Là.",
}


def run_of(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> RunDirectory:
    """A run's record and rows, the training rows from id 100 on."""
    run = RunDirectory(folder)
    run.data.mkdir(parents=True)
    for name, rows, first in (("train", train, 100), ("test", test, 0)):
        lines = [json.dumps({"id": first + n} | row, ensure_ascii=False) + "\n" for n, row in enumerate(rows)]
        (run.data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    write_json(run.data / "report.json", {"near_duplicates": {"threshold": 0.7, "nearest": []}})
    run.update_record({"data_sha256": {name: file_sha256(run.data / f"{name}.jsonl") for name in ("train", "test")}})
    return run


def test_a_question_in_another_spelling_counts_as_seen_in_a_run_drawn_before(tmp_path: Path) -> None:
    held_out = read_test_split(run_of(tmp_path, [COUGH, DECOMPOSED], [FEVER, {**COUGH, "input": "dry"}]), None)
    assert held_out.near == {0: {"id": 101, "split": "train", "similarity": 1.0}}
    assert held_out.unseen.startswith("1 of the test questions stand in the run's training rows in another spelling")


def test_rows_that_were_not_seen_are_said_to_be_unseen(tmp_path: Path) -> None:
    held_out = read_test_split(run_of(tmp_path, [COUGH], [FEVER]), None)
    assert (held_out.near, held_out.unseen) == ({}, "None of the test questions stands in the run's training rows.")


def test_general_rows_that_were_trained_on_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    general = read_json_lines(GENERAL_ROWS)
    assert read_general_rows(run_of(tmp_path / "without", [COUGH], [FEVER])) == general
    learnt = [{**row, "instruction": row["instruction"].upper()} for row in general[:2]]
    assert read_general_rows(run_of(tmp_path / "with", [COUGH, *learnt], [FEVER])) == []
    assert "2 of the 50 general rows stand in the training rows" in capsys.readouterr().out
