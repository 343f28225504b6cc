"""Rows in: from the Hub, from local files or from the package, as text columns.

What is wrong with a file is told with the file's name and, where it has one, the line.
"""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import DataSection

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("instruction", "input", "output")
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_EMBEDDED = Path(__file__).parent.parent / "embedded"
EMBEDDED_FILES = {"embedded": _EMBEDDED / "rows.jsonl", "embedded_dirty": _EMBEDDED / "dirty_rows.jsonl"}


def load_rows(data: DataSection) -> tuple[Dataset, dict[str, int]]:
    """The rows of a recipe as the columns id, instruction, input and output.

    Returns:
        The rows, `id` counting from 0 in the order of the source; and for each column with a
        constant, how many rows it filled.

    Raises:
        DataError: if the source cannot be read, lacks a column, or holds something else than text.
    """
    from datasets import concatenate_datasets

    if files := _local_files(data.path):
        parts = [(str(path), _load_file(path)) for path in files]
    else:
        assert isinstance(data.path, str)
        parts = [(data.path, _load_from_hub(data.path, data.revision))]
    columns = [_text_columns(source, rows, data) for source, rows in parts]
    rows = concatenate_datasets(columns)
    rows = rows.add_column("id", range(len(rows)))
    return _fill_constants(rows, data.constants)


def _local_files(path: str | list[str]) -> list[Path]:
    """Files that `path` names, or an empty list if it is a Hub id."""
    patterns = [path] if isinstance(path, str) else path
    files: list[Path] = []
    for pattern in patterns:
        if pattern in EMBEDDED_FILES:
            files.append(EMBEDDED_FILES[pattern])
            continue
        matches = sorted(glob.glob(str(Path(pattern).expanduser())))
        known = Path(pattern).suffix in BUILDERS
        looks_local = known or len(patterns) > 1 or pattern.startswith((".", "/", "~")) or pattern.count("/") > 1
        if not matches:
            if len(patterns) == 1 and not looks_local and "*" not in pattern:
                return []
            raise DataError(f"data.path must name existing files, nothing matches {pattern}. Check the path.")
        for match in map(Path, matches):
            if match.is_dir():
                raise DataError(f"data.path must name files, {match} is a directory. Write {match}/*.jsonl.")
            if match.suffix not in BUILDERS:
                raise DataError(f"data.path: {match} must end in {', '.join(BUILDERS)}, got {match.suffix or 'none'}.")
        files += map(Path, matches)
    return list(dict.fromkeys(files))


def _load_file(path: Path) -> Dataset:
    from datasets import Features, Value, load_dataset

    if path.stat().st_size == 0:
        raise DataError(f"data.path: {path} is empty. It must hold at least one row.")
    options: dict[str, Any] = {}
    if path.suffix == ".csv":  # text stays text: pandas would read `None` as a null and `5` as a number
        header = _csv_header(path)
        options = {"keep_default_na": False, "features": Features({name: Value("string") for name in header})}
    try:
        return load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train", **options)
    except Exception as error:  # datasets raises many kinds, none of which names the line
        raise DataError(_reading_fault(path, error)) from error


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise DataError(_encoding_fault(path, error)) from None
    except csv.Error as error:
        raise DataError(f"data.path: {path}, line 1: {error}.") from None
    if len(set(header)) != len(header):
        raise DataError(f"data.path: {path}, line 1: each column must be named once, got {', '.join(header)}.")
    return header


def _encoding_fault(path: Path, error: UnicodeDecodeError) -> str:
    line = path.read_bytes()[: error.start].count(b"\n") + 1
    return f"data.path: {path}, line {line}: not UTF-8 text. Save the file as UTF-8."


def _reading_fault(path: Path, error: Exception) -> str:
    """Where a file that `datasets` could not read is wrong, found by a slower reading of it."""
    cause = error.__cause__ or error
    if path.suffix == ".parquet":
        return f"data.path: {path} is not a whole Parquet file ({_first_line(cause)}). Copy or make it again."
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as decoding:
        return _encoding_fault(path, decoding)
    if path.suffix == ".csv":
        return f"data.path: {path}: {_first_line(cause)}."
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as fault:
            return f"data.path: {path}, line {fault.lineno}: not valid JSON ({fault.msg}). Mend the line."
        wrong = next((n for n, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
        if wrong is not None:
            return f"data.path: {path}, row {wrong}: must be an object with the keys instruction, input and output."
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as fault:
            return f"data.path: {path}, line {number}: not valid JSON ({fault.msg}). Mend or remove the line."
        if not isinstance(row, dict):
            return f"data.path: {path}, line {number}: must be an object with the keys instruction, input and output."
    return f"data.path: {path}: {_first_line(cause) or 'no row is in it'}."


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _load_from_hub(path: str, revision: str | None) -> Dataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(path, revision=revision, split="train")
    except DatasetNotFoundError as error:
        message = str(error)
        if "gated" in message:
            remedy = f"Accept its terms at https://huggingface.co/datasets/{path} and set HF_TOKEN."
        elif revision and revision in message:
            remedy = f"There is no revision {revision}; see https://huggingface.co/datasets/{path}/tree/main."
        else:
            remedy = (
                "Check the name; a private data set needs HF_TOKEN. A local file needs its ending, as in rows.jsonl."
            )
        raise DataError(f"data.path: {path} is neither a file nor a data set that can be read. {remedy}") from error
    except ConnectionError as error:
        raise DataError(
            f"data.path: {path} cannot be reached: {_first_line(error)}. Check the network, or name local files."
        ) from error
    except Exception as error:  # builders raise many kinds for a data set in a form that they do not know
        raise DataError(f"data.path: {path} cannot be loaded: {_first_line(error.__cause__ or error)}.") from error


def _text_columns(source: str, rows: Dataset, data: DataSection) -> Dataset:
    """The three columns, as text or null, whatever the source calls them."""
    from datasets import Value

    if len(rows) == 0:
        raise DataError(f"data.path: {source} must hold at least one row, got none.")
    for ours in COLUMNS:
        theirs = data.columns.get(ours, ours)
        if theirs in rows.column_names:
            continue
        optional = ours == "input" or ours in data.constants
        if not optional or ours in data.columns:
            found = ", ".join(rows.column_names)
            raise DataError(
                f"data.columns.{ours} must name a column of {source}, there is no {theirs!r} in: {found}. "
                f"Map it with data.columns.{ours}" + ("." if ours == "output" else f", or set data.constants.{ours}.")
            )
    present = [(data.columns.get(ours, ours), ours) for ours in COLUMNS]
    present = [(theirs, ours) for theirs, ours in present if theirs in rows.column_names]
    chosen = dict(present)
    if len(chosen) < len(present):
        raise DataError(f"data.columns must name a column of its own for each of {', '.join(COLUMNS)}.")
    rows = rows.select_columns(list(chosen))
    rows = rows.rename_columns({theirs: ours for theirs, ours in chosen.items() if theirs != ours})
    for column in rows.column_names:
        _check_text(source, rows, column)
    for column in COLUMNS:
        if column not in rows.column_names:
            rows = rows.add_column(column, [None] * len(rows))
        if rows.features[column] != Value("string"):
            rows = rows.cast_column(column, Value("string"))
    return rows.select_columns(list(COLUMNS))


def _check_text(source: str, rows: Dataset, column: str) -> None:
    from datasets import Value

    kind = rows.features[column]
    if kind in (Value("string"), Value("large_string"), Value("null")):
        return
    for number, value in enumerate(rows[column], 1):
        if value is not None and not isinstance(value, str):
            shown = json.dumps(value, default=str)[:60]
            raise DataError(
                f"data.path: {source}, row {number}: {column} must be text, got {type(value).__name__} {shown}. "
                "Put it in quotes, or map another column with data.columns."
            )


def _fill_constants(rows: Dataset, constants: Mapping[str, str]) -> tuple[Dataset, dict[str, int]]:
    filled = {}
    for column, constant in constants.items():
        missing = sum(not (text or "").strip() for text in rows[column])
        filled[column] = missing
        if missing:
            rows = rows.map(
                _fill, fn_kwargs={"column": column, "constant": constant}, desc=f"Filling {column}", batched=True
            )
    return rows, filled


def _fill(batch: dict[str, list[Any]], column: str, constant: str) -> dict[str, list[Any]]:
    return {column: [text if (text or "").strip() else constant for text in batch[column]]}


def show_progress(visible: bool) -> None:
    """Let `datasets` draw its bars, or not."""
    import datasets

    (datasets.enable_progress_bars if visible and sys.stderr.isatty() else datasets.disable_progress_bars)()
