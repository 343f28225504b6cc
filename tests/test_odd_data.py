"""Data that is unusual and right: what comes in, row by row, and what is counted."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.data.load import load_rows
from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import DataSection
from tests.conftest import loaded_columns, local_files

Row = tuple[str | None, str | None, str | None]
ROWS = [{"instruction": f"Name bone {n}.", "input": "", "output": f"It is bone {n}."} for n in range(3)]
EXPECTED: list[Row] = [(row["instruction"], row["input"], row["output"]) for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "instruction,input,output\n" + "".join(f"{row['instruction']},,{row['output']}\n" for row in ROWS)


def loaded(path: str | Path | list[str], **keys: Any) -> list[Row]:
    rows = loaded_columns(load_rows(DataSection(path=path if isinstance(path, list) else str(path), **keys)))
    assert list(rows) == ["instruction", "input", "output", "id"]
    assert rows["id"] == list(range(len(rows["id"])))
    return list(zip(rows["instruction"], rows["input"], rows["output"], strict=True))


FORMS = {
    "JSON Lines": (".jsonl", LINES),
    "with Windows line ends": (".jsonl", LINES.replace("\n", "\r\n")),
    "with a byte order mark": (".jsonl", "\ufeff" + LINES),
    "with blank lines": (".jsonl", LINES.replace("\n", "\n\n")),
    "without a last line end": (".jsonl", LINES.rstrip()),
    "under the name .json": (".json", LINES),
    "array": (".json", json.dumps(ROWS)),
    "indented array": (".json", json.dumps(ROWS, indent=2)),
    "array with a byte order mark": (".json", "\ufeff" + json.dumps(ROWS)),
    "columns in another order": (".jsonl", "".join(json.dumps(dict(reversed(row.items()))) + "\n" for row in ROWS)),
    "columns that nobody asked for": (
        ".jsonl",
        "".join(json.dumps(row | {"n": 1, "tags": ["a"]}) + "\n" for row in ROWS),
    ),
    "CSV": (".csv", CSV),
    "CSV with Windows line ends": (".csv", CSV.replace("\n", "\r\n")),
    "CSV with a byte order mark": (".csv", "\ufeff" + CSV),
    "CSV with blank lines": (".csv", CSV.replace("\n", "\n\n")),
    "CSV with every cell in quotes": (".csv", re.sub(r"([^,\n]*)([,\n])", r'"\1"\2', CSV)),
    "CSV with a nameless column": (".csv", CSV.replace("output\n", "output,\n").replace(".\n", ".,\n")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    ending, text = FORMS[form]
    path = tmp_path / f"rows{ending}"
    path.write_bytes(text.encode())
    assert loaded(path) == EXPECTED


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert loaded(tmp_path / "rows.parquet") == EXPECTED


def test_large_text_of_parquet_is_text(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pa.schema([(name, pa.large_string()) for name in ("instruction", "input", "output")])
    pq.write_table(pa.Table.from_pylist(ROWS, schema=columns), tmp_path / "rows.parquet")
    assert loaded([str(tmp_path / "rows.parquet"), "embedded"])[:3] == EXPECTED


def test_csv_cells_stay_the_text_that_they_are(tmp_path: Path) -> None:
    cells = ["None", "5", "N/A", "nan", "true", "2020-01-31", "1e5", "007", "", " x "]
    text = "instruction,input,output\n" + "".join(f"What is it?,{cell},It is it.\n" for cell in cells)
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    assert [given for _, given, _ in loaded(tmp_path / "rows.csv")] == cells


def test_csv_cells_may_hold_line_breaks_quotes_and_commas(tmp_path: Path) -> None:
    text = 'instruction,input,output\n"List, please.","","1. ""a""\n\n2. b"\nWhat?,,"c, d"\n'
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    assert loaded(tmp_path / "rows.csv") == [("List, please.", "", '1. "a"\n\n2. b'), ("What?", "", "c, d")]


def test_text_of_every_script_comes_in_unchanged(write_rows: Callable[..., Path]) -> None:
    row = {"instruction": "血压 µg ≥ 5 °C", "input": "étude 🩺 ’", "output": "a\u200bb\tc\r\nd\u2028e"}
    assert loaded(write_rows([row])) == [tuple(row.values())]


def test_a_missing_or_null_input_is_null(write_rows: Callable[..., Path]) -> None:
    rows = [{"instruction": "What?", "output": "That."}, {"instruction": "Who?", "input": None, "output": None}]
    assert loaded(write_rows(rows)) == [("What?", None, "That."), ("Who?", None, None)]
    assert loaded(write_rows(rows[:1])) == [("What?", None, "That.")]


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, row in zip(("b", "c", "a"), ROWS, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert loaded(tmp_path / "*.jsonl") == [EXPECTED[2], EXPECTED[0], EXPECTED[1]]


def test_a_list_reads_its_files_in_its_order_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "a.csv").write_text(CSV, encoding="utf-8")
    paths = [str(tmp_path / name) for name in ("b.jsonl", "a.csv", "*.jsonl")]
    assert [path.name for path in local_files(paths)] == ["b.jsonl", "a.csv"]
    assert loaded(paths) == EXPECTED * 2


def test_a_name_that_is_no_file_is_a_data_set_of_the_hub() -> None:
    assert local_files("lavita/AlpaCare-MedInstruct-52k") == []
    assert local_files("squad") == []


def test_columns_are_mapped_even_crosswise(write_rows: Callable[..., Path]) -> None:
    path = write_rows([{"input": "What?", "instruction": "context", "answer": "That.", "output": "no"}])
    columns = {"instruction": "input", "input": "instruction", "output": "answer"}
    assert loaded(path, columns=columns) == [("What?", "context", "That.")]


def test_a_constant_stands_in_for_what_is_missing_or_empty_and_is_counted(write_rows: Callable[..., Path]) -> None:
    rows = [{"instruction": text, "output": "That."} for text in ("What?", "", None, "  ")]
    data = DataSection(path=str(write_rows(rows)), constants={"instruction": "Answer.", "input": "Nothing else."})
    loaded = load_rows(data)
    filled, counts = loaded_columns(loaded), loaded.filled
    assert list(filled["instruction"]) == ["What?", "Answer.", "Answer.", "Answer."]
    assert list(filled["input"]) == ["Nothing else."] * 4
    assert counts == {"instruction": 3, "input": 4}


def test_a_constant_stands_in_for_a_column_that_is_not_there(write_rows: Callable[..., Path]) -> None:
    path = write_rows([{"input": "My knee hurts.", "output": "See a doctor."}])
    assert loaded(path, constants={"instruction": "Answer."}) == [("Answer.", "My knee hurts.", "See a doctor.")]
    with pytest.raises(DataError, match=r"or set data\.constants\.instruction"):
        loaded(path)


def test_rows_with_nulls_are_dropped_and_counted(
    document: dict[str, Any], make_recipe: Callable[..., Any], write_rows: Callable[..., Path], tokenizer: Any
) -> None:
    rows = [{"instruction": f"Name bone {n}.", "input": None, "output": f"It is bone {n}."} for n in range(10)]
    rows += [{"instruction": None, "input": None, "output": "a lone answer"}, {"instruction": "What?", "input": "x"}]
    document["data"] = {"path": str(write_rows(rows)), "splits": {"train": 6, "validation": 2, "test": 2}}
    report = prepare_data(make_recipe(), tokenizer).report
    assert report["steps"][0] == {
        "name": "drop_missing", "rows_before": 12, "rows_after": 10, "dropped": 2, "changed": 0
    }  # fmt: skip
    assert {name: report["rows"][name] for name in ("loaded", "cleaned", "kept", "unused")} == {
        "loaded": 12, "cleaned": 10, "kept": 10, "unused": 0
    }  # fmt: skip


def test_the_two_forms_of_embedded_rows_come_with_the_package() -> None:
    assert [len(loaded(name)) for name in ("embedded", "embedded_dirty")] == [336, 42]
    assert len(loaded(["embedded", "embedded_dirty"])) == 378


@pytest.mark.parametrize("overflow", ["truncate_output", "drop"])
def test_rows_are_encoded_as_far_as_the_draw_needs_them(
    make_recipe: Any, tokenizer: Any, write_rows: Any, overflow: str
) -> None:
    rows = [{"instruction": f"What is sign {n}?", "output": f"It is sign {n}."} for n in range(50)]
    words = ("--data.path", str(write_rows(rows)), "--prompt.overflow", overflow)
    counts = prepare_data(make_recipe(*words), tokenizer).report["rows"]
    needed = counts["train"] + counts["validation"] + counts["test"]
    assert counts["looked_at"] == (needed if overflow == "truncate_output" else 50)
    assert counts["unused"] == 50 - needed


def test_too_few_rows_for_want_of_copies_say_how_many_were_dropped(
    make_recipe: Any, tokenizer: Any, write_rows: Any
) -> None:
    texts = ["Où est la fièvre ?", unicodedata.normalize("NFD", "Où est la fièvre ?")]
    rows = [{"instruction": f"{text} {n}", "output": f"It is sign {n}."} for n in range(6) for text in texts]
    words = ("--data.splits.train", "8", "--data.splits.validation", "2", "--data.splits.test", "2")
    with pytest.raises(DataError, match=r"and 6 are left after cleaning.* 6 rows were dropped as copies of others\.$"):
        prepare_data(make_recipe("--data.path", str(write_rows(rows)), *words), tokenizer)
