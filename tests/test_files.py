"""Files of every dialect and form: their texts come out exactly, or one message names the line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.data.clean import clean_rows
from alpacare_sft.data.load import LoadedRows, load_rows
from alpacare_sft.data.raw_rows import BATCH_ROWS
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import CleanSection, DataSection
from tests.conftest import loaded_columns

HEAD = "instruction,input,output\n"
ROWS = [{"instruction": f"Name vessel {n}.", "input": "", "output": f"Vessel {n}, a vein."} for n in range(3)]
TEXTS = [tuple(row.values()) for row in ROWS]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., LoadedRows]:
    """`read(text, ".csv")`: the rows of a file with that content."""

    def rows_of(content: str | bytes, ending: str = ".csv", **keys: Any) -> LoadedRows:
        path = tmp_path / f"rows{ending}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_rows(DataSection(path=str(path), **keys))

    return rows_of


def texts(loaded: LoadedRows) -> list[tuple[str | None, ...]]:
    rows = loaded_columns(loaded)
    return list(zip(rows["instruction"], rows["input"], rows["output"], strict=True))


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(separator: str, head: str = "") -> str:
    cells = [["instruction", "input", "output"], *([text or "" for text in row] for row in TEXTS)]
    quoted = [[f'"{cell}"' if separator in cell else cell for cell in row] for row in cells]
    return head + "".join(separator.join(row) + "\n" for row in quoted)


# What a table is separated by
TABLES = {
    "commas": (table(","), ".csv", "comma"),
    "semicolons": (table(";"), ".csv", "semicolon"),
    "semicolons and a byte order mark": ("\ufeff" + table(";"), ".csv", "semicolon"),
    "tabs": (table("\t"), ".csv", "tab"),
    "tabs in a .tsv": (table("\t"), ".tsv", "tab"),
    "commas in a .tsv": (table(","), ".tsv", "comma"),
    "bars": (table("|"), ".csv", "bar"),
    "sep=": (table(";", "sep=;\n"), ".csv", "semicolon"),
    "sep= in quotes, with Windows line ends": (table(";", '"sep=;"\n').replace("\n", "\r\n"), ".csv", "semicolon"),
    "a separator after each last cell": (table(";").replace("\n", ";\n"), ".csv", "semicolon"),
    "a separator after the cells of the rows": (
        table(";").replace("\n", ";\n").replace("output;", "output"),
        ".csv",
        "semicolon",
    ),
    "a separator after the header": (table(";").replace("output", "output;"), ".csv", "semicolon"),
    "blank lines": (table(";").replace("\n", "\n\n"), ".csv", "semicolon"),
    "old line ends": (table(";").replace("\n", "\r"), ".csv", "semicolon"),
}


@pytest.mark.parametrize("case", TABLES.values(), ids=list(TABLES))
def test_a_table_is_read_by_its_own_separator_which_is_told(
    case: tuple[str, str, str], read: Callable[..., LoadedRows]
) -> None:
    content, ending, separator = case
    loaded = read(content, ending)
    assert texts(loaded) == TEXTS
    assert loaded.sources[0]["format"] == f"CSV, separated by {separator}s"


def test_a_header_of_other_names_leads_to_the_separator_too(read: Callable[..., LoadedRows]) -> None:
    content = "question (short, long);answer\nWhat, then?;That, then.\nWho?;He.\n"
    loaded = read(content, columns={"instruction": "question (short, long)", "output": "answer"})
    assert texts(loaded) == [("What, then?", None, "That, then."), ("Who?", None, "He.")]


def test_a_table_that_two_separators_read_is_refused_until_it_says_which(read: Callable[..., LoadedRows]) -> None:
    with pytest.raises(DataError, match=r"line 1: can be read in two ways.*commas.*semicolons.*Write sep=, or sep=;"):
        read("q,x;a\nb,c;d\n")
    loaded = read("sep=;\nq,x;a\nb,c;d\n", columns={"instruction": "q,x", "output": "a"})
    assert texts(loaded) == [("b,c", None, "d")]


# How a quote stands in a quoted cell
QUOTES = {
    "escaped": (r'"a \"q.f.\"","","The \"q.f.\", seen, is 0."', ('a "q.f."', "", 'The "q.f.", seen, is 0.')),
    "escaped at the end of a cell": (r'"a","","ends in \"q\""', ("a", "", 'ends in "q"')),
    "escaped, other backslashes as they are": (r'"say \"a\"","C:\new\table","b"', ('say "a"', r"C:\new\table", "b")),
    "escaped, each backslash too": (r'"say \"a\"","C:\\new","b"', ('say "a"', r"C:\new", "b")),
    "escaped, as MySQL breaks lines": ('"say \\"a\\"","x\\\ny","b"', ('say "a"', "x\ny", "b")),
    "escaped beside cells without quotes": (r'say,\d+ and 5","b \"c\""', ("say", r'\d+ and 5"', 'b "c"')),
    "doubled": ('"say ""a""",,"b, c"', ('say "a"', "", "b, c")),
    "doubled, with backslashes": (r'"say \""a\""","C:\","\n"', (r"say \"a\"", "C:\\", r"\n")),
    "doubled, over lines": ('"a\r\n\r\nb",,"c""\n"', ("a\r\n\r\nb", "", 'c"\n')),
    "none": (r'5" of pipe,\alpha,it is 5"', ('5" of pipe', r"\alpha", 'it is 5"')),
    "null of a database": (r"a,\N,b", ("a", None, "b")),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTES.values(), ids=list(QUOTES))
def test_quotes_and_backslashes_of_cells_come_out_exactly(
    case: tuple[str, tuple[str, ...]], read: Callable[..., LoadedRows]
) -> None:
    record, cells = case
    loaded = read(HEAD + record + "\nx,y,z\n")
    assert texts(loaded) == [cells, ("x", "y", "z")]
    assert ('quotes as \\"' in loaded.sources[0]["format"]) == ('\\"' in record and '""a' not in record)


BROKEN = {
    "a quote inside a cell": (HEAD + 'a,b,c\n"Yes" he said,,b\n', "line 3: a quote inside a cell is neither doubled"),
    "quotes of two kinds": (HEAD + '"a \\"b\\"",,c\n"a ""b""",,c\n', "line 3: a quote inside a cell"),
    "an escaped record too short": (HEAD + '"a \\"b\\"",,c\n"a"\n', "line 3: must have 3 cells.*got 1"),
    "an open quote": (HEAD + 'a,b,c\n\n"d,e,f\ng,h,i\n', "line 4: unexpected end"),
    "a semicolon too many": ("instruction;output\na;b\nc;d;e\n", "line 3: must have 2.*a cell with a semicolon in it"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=list(BROKEN))
def test_a_record_that_no_dialect_reads_is_told_by_its_line(
    case: tuple[str, str], read: Callable[..., LoadedRows]
) -> None:
    with pytest.raises(DataError, match=case[1]):
        read(case[0])


# Forms of JSON
PANDAS = "JSON, one object as pandas writes it"


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: {str(number): row[name] for number, row in enumerate(rows)} for name in rows[0]}


SPLIT = {"columns": list(ROWS[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]}
TABLE_SCHEMA = {"fields": [{"name": "instruction", "type": "string"}], "pandas_version": "1.4.0"}
FORMS: dict[str, tuple[str, str, str]] = {
    "lines in .ndjson": (lines(*ROWS), ".ndjson", "JSON Lines"),
    "lines in .json": (lines(*ROWS), ".json", "JSON Lines"),
    "an array in .jsonl": (json.dumps(ROWS), ".jsonl", "JSON array"),
    "objects over several lines": ("\n".join(json.dumps(row, indent=1) for row in ROWS), ".jsonl", "JSON objects"),
    "under a key": (json.dumps({"version": "1", "data": ROWS}), ".json", "JSON, rows under data"),
    "under a key, indented": (json.dumps({"data": ROWS}, indent=2), ".json", "JSON, rows under data"),
    "under keys": (json.dumps({"meta": {"n": 3}, "a": {"rows": ROWS}}), ".json", "JSON, rows under a.rows"),
    "under one key of two": (json.dumps({"authors": [{"name": "x"}], "rows": ROWS}), ".json", "JSON, rows under rows"),
    "pandas, columns": (json.dumps(columns_of(ROWS)), ".json", PANDAS),
    "pandas, columns, indented": (json.dumps(columns_of(ROWS), indent=1), ".json", PANDAS),
    "pandas, index": (json.dumps(dict(zip("012", ROWS, strict=True))), ".json", PANDAS),
    "pandas, split": (json.dumps(SPLIT), ".json", PANDAS),
    "pandas, table": (
        json.dumps({"schema": TABLE_SCHEMA, "data": ROWS}),
        ".json",
        PANDAS,
    ),
    "pandas, list": (
        json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
        ".json",
        PANDAS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMS.values(), ids=list(FORMS))
def test_every_form_of_json_gives_its_rows_and_is_told(
    case: tuple[str, str, str], read: Callable[..., LoadedRows]
) -> None:
    content, ending, form = case
    loaded = read(content, ending)
    assert (texts(loaded), loaded.sources[0]["format"]) == (TEXTS, form)


def test_one_row_is_a_row_in_every_form(read: Callable[..., LoadedRows]) -> None:
    for content in (json.dumps(ROWS[0]), json.dumps(ROWS[0], indent=1), json.dumps([ROWS[0]])):
        for ending in (".json", ".jsonl"):
            assert texts(read(content, ending)) == TEXTS[:1]


def test_rows_column_by_column_under_other_names_lead_to_the_mapping(read: Callable[..., LoadedRows]) -> None:
    content = json.dumps({"question": {"0": "What?"}, "answer": {"0": "That."}})
    with pytest.raises(DataError, match=r"Set data\.columns to \{instruction: question, output: answer\}"):
        read(content, ".json")
    assert texts(read(content, ".json", columns={"instruction": "question", "output": "answer"})) == [
        ("What?", None, "That.")
    ]


def test_a_value_that_is_not_text_is_taken_as_it_is_written_and_counted(read: Callable[..., LoadedRows]) -> None:
    content = (
        '{"instruction": "Dose?", "input": 0.50, "output": 1e-3}\n'
        '{"instruction": 12345678901234567890, "input": NaN, "output": true}\n'
        '{"instruction": "Date?", "input": "2020-01-31", "output": -0.0}\n'
    )
    loaded = read(content, ".jsonl")
    assert texts(loaded) == [
        ("Dose?", "0.50", "1e-3"),
        ("12345678901234567890", None, "true"),
        ("Date?", "2020-01-31", "-0.0"),
    ]
    assert loaded.sources[0]["converted"] == {"instruction": 1, "input": 1, "output": 3}


def test_a_key_that_stands_twice_is_told_by_its_row(read: Callable[..., LoadedRows]) -> None:
    twice = json.dumps(ROWS)[:-2] + ', "output": "x"}]'
    with pytest.raises(DataError, match="row 3: the key /output stands twice"):
        read(twice, ".json")


def test_json_nested_past_reason_is_one_message(read: Callable[..., LoadedRows]) -> None:
    with pytest.raises(DataError, match="nested too deeply"):
        read("[" * 100_000 + "]" * 100_000, ".json")


def test_types_of_later_rows_never_matter(read: Callable[..., LoadedRows]) -> None:
    early = {"instruction": "What?", "input": None, "output": "That.", "seen": "2020-01-31", "n": 1}
    rows = [*[early] * 500, early | {"input": "a note", "seen": "unknown", "n": [{"a": 1}]}]
    loaded = read(lines(*rows), ".jsonl")
    assert texts(loaded)[-1] == ("What?", "a note", "That.")
    assert set(loaded_columns(loaded)["input"][:500]) == {None}
    assert loaded.sources[0]["unused_columns"] == ["seen", "n"]


def test_columns_and_types_of_later_batches_never_matter(read: Callable[..., LoadedRows]) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": f"What is {n}?", "output": "That."} for n in range(2 * BATCH_ROWS + 9)
    ]
    rows[BATCH_ROWS + 1] |= {"input": "a note", "output": 0.5}
    expected = [(row["instruction"], row.get("input"), str(row["output"])) for row in rows]
    for content, ending in (
        (lines(*rows), ".jsonl"),
        (json.dumps(rows), ".json"),
        (json.dumps(rows, indent=1), ".json"),
    ):
        loaded = read(content, ending)
        assert texts(loaded) == expected
        assert loaded_columns(loaded)["id"] == list(range(len(rows)))
        assert loaded.sources[0]["converted"] == {"output": 1}


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_only_a_batch_of_rows_is_python_objects_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    import tracemalloc  # Arrow's memory is not traced

    from datasets import Dataset

    for module in ("raw_rows", "files"):
        monkeypatch.setattr(f"alpacare_sft.data.{module}.BATCH_ROWS", 50)
    monkeypatch.setattr("alpacare_sft.data.json_files._BLOCK", 1 << 14)
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n}. " * 200} for n in range(1_000)]
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text(lines(*rows) if ending == ".jsonl" else json.dumps(rows))
    num_rows, size = len(rows), sum(len(row["output"]) for row in rows)
    del rows
    section = DataSection(path=str(path))
    clean_rows(load_rows(section).take_batches(), CleanSection())  # imports
    tracemalloc.start()
    kept = clean_rows(load_rows(section).take_batches(), CleanSection()).rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == num_rows
    assert peak < size / 2


@pytest.mark.slow
def test_types_of_later_blocks_never_matter(read: Callable[..., LoadedRows]) -> None:
    early = lines({"instruction": "What?", "input": None, "output": "That. " * 20, "seen": "2020-01-31"})
    loaded = read(early * 80_000 + lines({"instruction": "Who?", "input": "x", "output": "y", "seen": "no"}), ".jsonl")
    assert texts(loaded)[-1] == ("Who?", "x", "y")


def test_numbers_and_dates_of_parquet_are_text_and_other_columns_are_not_read(tmp_path: Path) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    columns = {
        "instruction": ["a", "b"],
        "input": pa.array([0.1, None], pa.float32()),
        "output": [datetime.date(2020, 1, 31), None],
        "image": [b"\xff", b"\xfe"],
    }
    pq.write_table(pa.table(columns), path)
    loaded = load_rows(DataSection(path=str(path)))
    assert texts(loaded) == [("a", "0.1", "2020-01-31"), ("b", None, None)]
    assert loaded.sources[0]["unused_columns"] == ["image"]


# Encodings
ENCODINGS = {
    "utf-16": "line 1: not UTF-8 text, it is UTF-16.*iconv -f UTF-16 -t UTF-8",
    "utf-16-le": "line 1: not UTF-8 text, it is UTF-16",
    "utf-32": "line 1: not UTF-8 text, it is UTF-32",
    "cp1252": "line 3: not UTF-8 text, most likely Windows-1252.*iconv -f WINDOWS-1252 -t UTF-8 rows.csv",
    "latin-1": "line 3: not UTF-8 text, most likely Windows-1252 or Latin-1",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_another_encoding_is_named_with_the_command_that_mends_it(
    encoding: str, read: Callable[..., LoadedRows]
) -> None:
    with pytest.raises(DataError, match=ENCODINGS[encoding]):
        read((HEAD + "a,b,c\nTemperature?,,over 38 °C\n").encode(encoding))


def test_an_encoding_that_cannot_be_told_is_not_guessed(read: Callable[..., LoadedRows]) -> None:
    with pytest.raises(DataError, match=r"line 2: not UTF-8 text\. Save the file as UTF-8"):
        read((HEAD + "发烧,,体温\n").encode("gb18030"))


# Time and disk
def test_what_is_read_belongs_to_the_content_not_to_the_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for word in ("vein", "bone"):
        path.write_text(lines({"instruction": "What?", "output": word}), encoding="utf-8")
        os.utime(path, (1, 1))
        assert loaded_columns(load_rows(DataSection(path=str(path))))["output"] == [word]


def test_a_fault_of_the_disk_is_not_one_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(*ROWS))

    def broken(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(OSError, match="Input/output error"):
        load_rows(DataSection(path=str(tmp_path / "rows.jsonl")))
