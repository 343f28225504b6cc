"""Local files in: which ones `data.path` names, their rows, and what is wrong with them, by line."""

from __future__ import annotations

import csv
import glob
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # zip, gzip, bzip2, xz, zstd
_EMBEDDED = Path(__file__).parent.parent / "embedded"
EMBEDDED_FILES = {"embedded": _EMBEDDED / "rows.jsonl", "embedded_dirty": _EMBEDDED / "dirty_rows.jsonl"}


def local_files(path: str | list[str]) -> list[Path]:
    """Files that `data.path` names, or an empty list if it is a Hub id.

    Raises:
        DataError: if a name matches nothing, a directory, or a file of another kind.
    """
    patterns = [path] if isinstance(path, str) else path
    files: list[Path] = []
    for pattern in patterns:
        if pattern in EMBEDDED_FILES:
            files.append(EMBEDDED_FILES[pattern])
            continue
        matches = sorted(glob.glob(str(Path(pattern).expanduser()))) if pattern.strip() else []
        if not matches:
            if len(patterns) == 1 and not _looks_local(pattern):
                return []
            raise DataError(f"data.path must name existing files, nothing matches {pattern!r}. Check the path.")
        files += [_readable(Path(match)) for match in matches]
    return list(dict.fromkeys(files))


def _looks_local(pattern: str) -> bool:
    known = _ending(Path(pattern)) in BUILDERS
    return known or pattern.startswith((".", "/", "~")) or pattern.count("/") > 1 or "*" in pattern or not pattern


def _readable(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"data.path must name files, {path} is a directory. Write {path}/*.jsonl.")
    if _ending(path) not in BUILDERS:
        raise DataError(f"data.path: {path} must end in {', '.join(BUILDERS)}, got {path.suffix or 'none'}.")
    return path


def _ending(path: Path) -> str:
    return path.suffix.lower()


def load_file(path: Path) -> Dataset:
    """The rows of one file, under the names that it gives its columns; cells of a CSV file stay text.

    Raises:
        DataError: if it cannot be read, with the line where it is wrong.
    """
    from datasets import Features, Value, load_dataset

    options: dict[str, Any] = {}
    if _ending(path) == ".parquet":
        _check_unpacked_size(path)
    else:
        _check_encoding(path)
    if _ending(path) == ".csv":  # pandas would read `None` as a null and `5` as a number
        header = _csv_header(path)
        options = {"keep_default_na": False, "features": Features({name: Value("string") for name in header})}
    try:
        rows = load_dataset(BUILDERS[_ending(path)], data_files=str(path), split="train", **options)
    except Exception as error:  # datasets raises many kinds, none of which names the line
        raise DataError(_reading_fault(path, error)) from error
    if BUILDERS[_ending(path)] == "json" and rows.column_names == ["text"] and (fault := _json_fault(path)):
        raise DataError(fault)  # datasets 5.2 reads what is no object as a column `text`
    return rows


def _check_encoding(path: Path) -> None:
    """Refuse a file without rows or not in UTF-8, which `datasets` tells in the middle of a step, if at all."""
    blank, number = True, 0
    try:
        with path.open("rb") as file:
            if file.read(6).startswith(_PACKED):  # datasets would unpack it, however large it gets
                raise DataError(f"data.path: {path} is a compressed file. Unpack it, and name what was in it.")
            file.seek(0)
            for line in file:
                number += 1
                blank = not line.decode("utf-8-sig").strip() and blank
    except UnicodeDecodeError:
        raise DataError(f"data.path: {path}, line {number}: not UTF-8 text. Save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"data.path: {path} cannot be read: {error.strerror}.") from None
    if blank:
        raise DataError(f"data.path: {path} is empty. It must hold at least one row.")


def _check_unpacked_size(path: Path) -> None:
    """Refuse a Parquet file whose columns, unpacked into the cache, would fill the disk."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        parts = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowInvalid, OSError):
        return  # told when it is read
    need = sum(parts.row_group(number).total_byte_size for number in range(parts.num_row_groups))
    cache = next(folder for folder in (Path(datasets.config.HF_DATASETS_CACHE), Path.home()) if folder.exists())
    free = shutil.disk_usage(cache).free
    if need > free:
        raise DataError(
            f"data.path: {path} unpacks to {need / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free at {cache}. "
            "Split the file, or set HF_DATASETS_CACHE to a larger disk."
        )


def _csv_header(path: Path) -> list[str]:
    """The names of the columns; each record has been seen to have as many cells.

    pandas takes the first column for an index where records are longer, and fills what is short.
    """
    records = _csv_records(path)
    line, header = next(records)
    if len(set(header)) != len(header):
        raise DataError(f"data.path: {path}, line {line}: each column must be named once, got {', '.join(header)}.")
    for line, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"data.path: {path}, line {line}: must have {len(header)} cells, as the header has, got {len(cells)}. "
                "Mend the line; a cell with a comma in it needs quotes around it."
            )
    return [name or f"Unnamed: {number}" for number, name in enumerate(header)]  # as pandas calls them


def _csv_records(path: Path, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The line where each record begins, and its cells; blank lines are none."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=strict)
        line = 1
        try:
            for cells in reader:
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"data.path: {path}, line {line}: {error}. Mend the record that begins there.") from None


def _reading_fault(path: Path, error: Exception) -> str:
    """Where a file that `datasets` could not read is wrong, found by a slower reading of it."""
    cause = error.__cause__ or error
    if _ending(path) == ".parquet":
        if _is_whole_without_rows(path):
            return f"data.path: {path} must hold at least one row, got none."
        return f"data.path: {path} is not a whole Parquet file ({first_line(cause)}). Copy or make it again."
    if _ending(path) == ".csv":
        try:
            num_records = sum(1 for _ in _csv_records(path, strict=True)) - 1
        except DataError as fault:
            return str(fault)
        fault_text = first_line(cause) if num_records else "there is no row under the header"
        return f"data.path: {path}: {fault_text}."
    return _json_fault(path) or f"data.path: {path}: {first_line(cause) or 'no row is in it'}."


def _is_whole_without_rows(path: Path) -> bool:
    import pyarrow
    import pyarrow.parquet

    try:
        return bool(pyarrow.parquet.read_metadata(path).num_rows == 0)
    except (pyarrow.ArrowInvalid, OSError):
        return False


def _json_fault(path: Path) -> str | None:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            return f"data.path: {path}, line {error.lineno}: not valid JSON ({error.msg}). Mend the line."
        units = [(f"row {number}", json.dumps(row)) for number, row in enumerate(rows, 1)]
    else:
        units = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not units:
        return f"data.path: {path} is an empty list. It must hold at least one row."
    return next((f"data.path: {path}, {place}: {fault}" for place, unit in units if (fault := _row_fault(unit))), None)


def _row_fault(text: str) -> str | None:
    import pyarrow
    import pyarrow.json

    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg}). Mend or remove the line."
    if not isinstance(row, dict):
        return "must be an object with the keys instruction, input and output."
    try:
        pyarrow.json.read_json(io.BytesIO(text.encode()))
    except pyarrow.ArrowInvalid as error:  # such as a key that stands twice
        told = first_line(error).removeprefix("JSON parse error: ").removesuffix(" in row 0").rstrip(".")
        return f"{told}. Mend or remove it."
    return None


def first_line(error: BaseException) -> str:
    """The first line of an upstream message, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")
