"""Data that cannot be trained on: each gets one message that says where it is wrong, and nothing is written."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml

from alpacare_sft.cli import main
from alpacare_sft.data.load import load_rows
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import DataSection


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Name bone {n}.", "input": "", "output": f"It is bone {n}."} | changes for n in range(count)
    ]


def lines(values: Sequence[Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def parquet(values: Sequence[dict[str, Any]], num_rows: int = 12) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(values))[:num_rows], sink)
    return bytes(sink.getvalue())


def far_date() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    dates = pa.array([2**60] * 12, pa.timestamp("us"))
    texts = pa.array([f"It is bone {n}." for n in range(12)])
    pq.write_table(pa.table({"instruction": texts, "output": texts, "input": dates}), sink)
    return bytes(sink.getvalue())


def packed(text: str) -> bytes:
    """A few bytes that unpack to many."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", text * 10_000)
    return sink.getvalue()


class Wrong(NamedTuple):
    """A file named `rows` and its ending, with what the message about it must hold."""

    told: list[str]
    content: str | bytes | None = None
    ending: str = ".jsonl"
    overrides: tuple[str, ...] = ()
    path: Any = None


GOOD = lines(rows(12))
HEAD = "instruction,input,output\n"
BONE = '"It is bone 3."'
WRONG = {
    # text of the file
    "empty": Wrong(["rows.jsonl is empty"], ""),
    "blank lines": Wrong(["rows.jsonl is empty"], "\n \n\n"),
    "only a byte order mark": Wrong(["rows.json is empty"], b"\xef\xbb\xbf", ".json"),
    "broken line": Wrong(["rows.jsonl, line 4: not valid JSON"], lines(rows(3)) + '{"instruction":\n' + lines(rows(8))),
    "last line cut": Wrong(["rows.jsonl, line 12: not valid JSON"], GOOD[:-12]),
    "broken array": Wrong(["rows.json, line 60: not valid JSON"], json.dumps(rows(12), indent=1)[:-26], ".json"),
    "text after an array": Wrong(["rows.json, line 1: not valid JSON"], json.dumps(rows(12)) + "x", ".json"),
    "empty array": Wrong(["rows.json is an empty list"], "[]", ".json"),
    "numbers, not objects": Wrong(["rows.jsonl, line 1: must be an object"], lines([1, 2, 3])),
    "strings, not objects": Wrong(["rows.jsonl, line 1: must be an object"], lines(["a", "b"])),
    "lists, not objects": Wrong(["rows.json, row 1: must be an object"], json.dumps([["a"], ["b"]]), ".json"),
    "one number among objects": Wrong(["rows.json, row 4: must be an object"], json.dumps([*rows(3), 5]), ".json"),
    "a key twice": Wrong(
        ["rows.jsonl, line 13", "/instruction", "twice"], GOOD + '{"instruction": "a", "instruction": "b"}\n'
    ),
    "half a character in a key": Wrong(
        ["rows.jsonl, line 13: the key 'k\\ud800' holds half of a character. Write it anew."],
        GOOD + '{"instruction": "a", "output": "b", "k\\ud800": "x"}\n',
    ),
    "an object without keys": Wrong(["rows.json holds rows without a key. Give each"], "[{}, {}]", ".json"),
    "a column twice in an object of pandas": Wrong(
        ["rows.json: each column must be named once, by text, got instruction, output, output. Rename one."],
        json.dumps({"columns": ["instruction", "output", "output"], "data": [["What?", "This.", "That."]]}),
        ".json",
    ),
    "a date that Python cannot hold": Wrong(["rows.parquet is not a whole Parquet file ("], far_date(), ".parquet"),
    "half a character": Wrong(["rows.jsonl, line 4", "surrogate"], GOOD.replace("bone 3.", "bone \\ud800", 1)),
    "Latin-1": Wrong(["rows.jsonl, line 4: not UTF-8"], GOOD.replace("bone 3", "b\xf8ne").encode("latin-1")),
    "UTF-16": Wrong(["rows.jsonl, line 1: not UTF-8"], GOOD.encode("utf-16")),
    "Latin-1 CSV": Wrong(["rows.csv, line 2: not UTF-8"], (HEAD + "What?,,It is \xf8 it\n").encode("latin-1"), ".csv"),
    "CSV line with too few cells": Wrong(["rows.csv, line 3: must have 3 cells", "got 1"], HEAD + "a,b,c\nd\n", ".csv"),
    "CSV line with too many": Wrong(["rows.csv, line 3: must have 3", "got 4"], HEAD + "a,b,c\nd,e,f,g\n", ".csv"),
    "CSV lines with one too many": Wrong(
        ["rows.csv, line 2: must have 3 cells", "got 4"], HEAD + "a,b,c,d\n" * 12, ".csv"
    ),
    "CSV with an open quote": Wrong(["rows.csv, line 3", "unexpected end"], HEAD + 'a,b,c\nd,e,"f\ng,h,i\n', ".csv"),
    "CSV names a column twice": Wrong(
        ["rows.csv, line 1: each column must be named once"], "input,output,input\na,b,c\n", ".csv"
    ),
    "CSV without rows": Wrong(["rows.csv: there is no row under the header"], HEAD, ".csv"),
    "Parquet cut short": Wrong(["rows.parquet is not a whole Parquet file"], parquet(rows(12))[:-40], ".parquet"),
    "Parquet without rows": Wrong(["rows.parquet must hold at least one row"], parquet(rows(1), 0), ".parquet"),
    "zip under another name": Wrong(["rows.jsonl is a compressed file. Unpack it"], packed(GOOD)),
    "gzip under another name": Wrong(["rows.csv is a compressed file"], gzip.compress(HEAD.encode()), ".csv"),
    "zip": Wrong(["rows.zip must end in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, got .zip"], packed(GOOD), ".zip"),
    # columns and values
    "a column missing": Wrong(
        ["data.columns.output must name a column", "'output' in: instruction"], lines([{"instruction": "What is it?"}])
    ),
    "rows under two keys": Wrong(
        ["rows.json holds rows under train and test. Save those to use as a file of their own"],
        json.dumps({"train": rows(12), "test": rows(2)}),
        ".json",
    ),
    "an object without rows": Wrong(
        ["rows.json is one object whose keys (version, data) do not say", "orient='records'"],
        json.dumps({"version": "1", "data": {"a": 1}}, indent=1),
        ".json",
    ),
    "lists": Wrong(
        ["row 1: output must be text, got list", "Write it as one text"], lines(rows(12, output=["a", "b"]))
    ),
    "one list among texts": Wrong(["rows.jsonl, row 4: output must be text, got list"], GOOD.replace(BONE, '["a"]')),
    "nested objects": Wrong(["row 1: output must be text, got dict"], lines(rows(12, output={"text": "a"}))),
    "one object among texts": Wrong(["rows.jsonl, row 4: output must be text, got dict"], GOOD.replace(BONE, "{}")),
    "mapped column absent": Wrong(
        ["data.columns.output must name a column", "'answer'"], GOOD, overrides=("--data.columns.output", "answer")
    ),
    "two columns from one": Wrong(
        ["data.columns must name a column of its own"], GOOD, overrides=("--data.columns.input", "output")
    ),
    "constant for answers": Wrong(["data.constants.output must be"], GOOD, overrides=("--data.constants.output", "x")),
    # rows that are left
    "only nulls": Wrong(
        ["no row is left of 12", "drop_missing dropped 12"], lines(rows(12, instruction=None, output=None))
    ),
    "only short rows": Wrong(
        ["no row is left of 12", "data.clean.min_characters"],
        lines([{"instruction": f"a{n}", "output": "b"} for n in range(12)]),
    ),
    "only copies": Wrong(["data.splits must not ask for more rows", "= 10, and 1 are left"], lines(rows(1) * 12)),
    "too few rows": Wrong(["data.splits must not ask for more rows", "and 5 are left"], lines(rows(5))),
    "a fraction of no row": Wrong(
        ["data.splits.validation: 0.01 of 12 rows is no row"], GOOD, overrides=("--data.splits.validation", "0.01")
    ),
    "one question": Wrong(
        ["data.splits.", "must be at most"],
        lines([{"instruction": "Name a bone.", "output": f"It is bone {n}."} for n in range(12)]),
    ),
    "prompts past max_length": Wrong(
        ["12 of 12 rows (100.0%)", "Raise train.max_length"], GOOD, overrides=("--train.max_length", "8")
    ),
    "too many long prompts": Wrong(
        ["2 of 14 rows (14.3%)", "data.max_dropped_fraction allows 5.0%"],
        GOOD + lines([{"instruction": "long " * 200, "output": f"It is bone {n}."} for n in range(2)]),
        overrides=("--data.splits.train", "9"),  # more than there is room for: every row is looked at
    ),
    "overflow is an error": Wrong(
        ["prompt.overflow: error, and 2 of 14 rows", "(ids 12, 13)"],
        GOOD + lines([{"instruction": f"What is bone {n}?", "output": "long " * 200} for n in range(2)]),
        overrides=("--prompt.overflow", "error"),
    ),
    "overflow dropped": Wrong(
        ["data.splits must not ask for more rows", "and 9 are left"],
        lines(rows(9)) + lines([{"instruction": f"What is bone {n}?", "output": "long " * 200} for n in range(3)]),
        overrides=("--prompt.overflow", "drop"),
    ),
    # names
    "directory": Wrong(["data.path must name files", "folder is a directory. Write", "*.jsonl"], path="./folder"),
    "missing file": Wrong(["data.path must name existing files, nothing matches 'none.jsonl'"], path="none.jsonl"),
    "missing one of two": Wrong(
        ["data.path must name existing files, nothing matches 'b.csv'"], path=["embedded", "b.csv"]
    ),
    "nothing matches": Wrong(["data.path must name existing files, nothing matches '*.none'"], path="*.none"),
    "empty name": Wrong(["data.path must name existing files, nothing matches ''"], path=[""]),
    "revision of a file": Wrong(
        ["data.revision must be left out for local files", "'v2'"], GOOD, overrides=("--data.revision", "v2")
    ),
    "one file of a glob without answers": Wrong(
        ["data.columns.output must name a column of", "b.jsonl", "there is no 'output' in: instruction, reply"],
        path="folder/*.jsonl",
    ),
    "unknown ending": Wrong(
        ["rows.xlsx must end in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, got .xlsx", "Save the sheet as CSV"],
        GOOD,
        ".xlsx",
    ),
    "no ending": Wrong(["rows must end in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, got none"], GOOD, ""),
    "a set that cannot be reached": Wrong(
        ["data.path: someone/rows is not in the cache and the Hub cannot be reached", "Check the network"],
        path="someone/rows",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=list(WRONG))
def test_wrong_data_is_one_message_and_writes_nothing(
    case: Wrong,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if case.content is not None:
        content = case.content if isinstance(case.content, bytes) else case.content.encode()
        Path("rows" + case.ending).write_bytes(content)
    Path("folder").mkdir()
    Path("folder/a.jsonl").write_text(GOOD)
    Path("folder/b.jsonl").write_text(lines([{"instruction": "What is it?", "reply": "A bone."}]))
    recipe = {
        "model": {"model_name_or_path": str(tiny_model)},
        "data": {"path": case.path or f"./rows{case.ending}", "splits": {"train": 6, "validation": 2, "test": 2}},
        "train": {"max_length": 128},
        "output_dir": "run",
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    assert main(["data", "recipe.yaml", *case.overrides]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ") and err.count("error:") == 1 and "Traceback" not in err, err
    assert [words for words in case.told if words not in err] == [], err
    assert out == "" and sorted(tmp_path.iterdir()) == before


def test_a_file_that_unpacks_past_the_memory_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet(rows(2, output="It is a bone. " * 100_000)))
    assert path.stat().st_size < 200_000
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(DataError, match=r"rows\.parquet unpacks to 0\.00 GiB, 0\.00 GiB are free in memory"):
        load_rows(DataSection(path=str(path)))
