"""Local files in: their rows under the names that the file gives, and what is wrong with them, by line.

Read by ourselves, each file once unless it is wrong: a builder of `datasets` takes types from the first block of a
column, which later rows contradict, parses columns that nobody needs, and keeps what it read by the file's time.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.delimited import read_table
from alpacare_sft.data.json_files import iterate_objects, read_objects
from alpacare_sft.data.raw_rows import BATCH_ROWS, Batch, PackedRows, RawRows
from alpacare_sft.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

_PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # zip, gzip, bzip2, xz, zstd
_MARKS = (  # of UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def load_file(path: Path, needed: Set[str]) -> RawRows:
    """The rows of one file.

    Args:
        path: a file in one of `names.ENDINGS`.
        needed: names that its columns should have; they tell the dialects of CSV and the forms of JSON apart.

    Raises:
        DataError: if it cannot be read, with the line where it is wrong.
    """
    if path.suffix.lower() == ".parquet":
        return _load_parquet(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        table, lines = read_table(f"data.path: {path}", _read_text(path), needed)
        return RawRows(str(path), f"CSV, {table.form}", len(lines), table.names, table.rows.batches, lines)
    try:
        return _load_json(path, needed)
    except RecursionError:
        raise DataError(f"data.path: {path} is nested too deeply. Save a list of objects, one a row.") from None


def _load_json(path: Path, needed: Set[str]) -> RawRows:
    """Objects one after another; all of the text at once only for other forms, and to say what is wrong."""
    lines: Sequence[int] | None
    try:
        with path.open(encoding="utf-8-sig") as file:
            numbered, form = iterate_objects(file)
            packed = PackedRows(numbered)
        is_whole = len(packed.lines) > 1  # one object may hold the rows
        lines = packed.lines if form == "JSON Lines" else None
    except (ValueError, FileNotFoundError, PermissionError):
        is_whole = False
    if not is_whole:
        one_a_line = path.suffix.lower() != ".json"
        rows, lines, form = read_objects(f"data.path: {path}", _read_text(path), needed, one_a_line)
        packed = PackedRows(zip(lines or count(1), rows, strict=False))
    return RawRows(str(path), form, len(packed.lines), list(packed.names), packed.batches, lines)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, PermissionError) as error:  # others, as of a disk, are no fault of the path
        raise DataError(f"data.path: {path} cannot be read: {error.strerror}.") from None
    if data.startswith(_PACKED):
        raise DataError(f"data.path: {path} is a compressed file. Unpack it, and name what was in it.")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and 3 * data[:64].count(0) > len(data[:64]):  # every second byte of it, without a mark
        encoding = "UTF-16"
    try:
        if encoding:
            raise UnicodeDecodeError("utf-8", data, 0, 1, encoding)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"data.path: {path}, line {line}: not UTF-8 text{_encoding_remedy(path, data, encoding)}"
        ) from None
    if not text or text.isspace():  # `strip` would copy it
        raise DataError(f"data.path: {path} is empty. It must hold at least one row.")
    return text


def _encoding_remedy(path: Path, data: bytes, encoding: str | None) -> str:
    told = f", it is {encoding}" if encoding else ""
    if encoding is None and re.search(rb"[\x80-\xff]{2}", data) is None:  # letters of Western Europe stand alone
        encoding, told = "WINDOWS-1252", ", most likely Windows-1252 or Latin-1"
    command = f"iconv -f {encoding or 'ENCODING'} -t UTF-8 {path.name} > utf8_{path.name}"
    return f"{told}. Save the file as UTF-8, as with: {command}"


def _load_parquet(path: Path) -> RawRows:
    import pyarrow
    import pyarrow.parquet

    def reads(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except PermissionError as error:
            raise DataError(f"data.path: {path} cannot be read: {error.strerror}.") from None
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's
            raise DataError(
                f"data.path: {path} is not a whole Parquet file ({first_line(error)}). Copy or make it again."
            ) from error

    file = reads(lambda: pyarrow.parquet.ParquetFile(path))
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        raise DataError(f"data.path: {path}: each column must be named once, got {', '.join(names)}. Rename one.")

    def batches(names: Sequence[str]) -> Iterator[Batch]:
        for name in names:
            _check_unpacked_size(path, file.metadata, name)
        read = file.iter_batches(BATCH_ROWS, columns=list(names))
        start = 0
        while (batch := reads(lambda: next(read, None))) is not None:
            columns = {name: reads(functools.partial(_values, batch.column(name))) for name in names}
            yield range(start, start + len(batch)), columns
            start += len(batch)

    return RawRows(str(path), "Parquet", file.metadata.num_rows, names, batches)


def _values(column: pa.Array) -> list[Any]:
    import numpy
    import pyarrow

    if pyarrow.types.is_floating(column.type) and column.type.bit_width < 64:  # 0.1 would be 0.10000000149
        return [None if value is None else numpy.float32(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _check_unpacked_size(path: Path, metadata: Any, name: str) -> None:
    """Refuse a column that, unpacked, would fill the memory: a small file may hold it many times over."""
    import psutil

    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    need = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == name)
    free = psutil.virtual_memory().available
    if need > free:
        raise DataError(
            f"data.path: {path} unpacks to {need / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free in memory. "
            "Split the file."
        )
