"""Rows in: from the Hub, from local files or from the package, as text columns.

What is wrong with a file is told with the file's name and, where it has one, the line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.files import load_file, local_files
from alpacare_sft.data.hub import as_hub_dataset, load_hub, path_entries
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import TEXT_COLUMNS, DataSection

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class LoadedRows:
    """Rows as they were read.

    Attributes:
        rows: columns id, instruction, input and output; `id` counts from 0 in the order of the source.
        filled: for each column with a constant, how many rows it filled.
        sources: what `load_hub` says of each data set of the Hub.
    """

    rows: Dataset
    filled: Mapping[str, int]
    sources: Sequence[Mapping[str, Any]] = ()


def load_rows(data: DataSection) -> LoadedRows:
    """The rows of a recipe.

    Raises:
        DataError: if the source cannot be read, lacks a column, or holds something else than text.
    """
    from datasets import concatenate_datasets

    entries = [(entry, as_hub_dataset(entry, data.revision)) for entry in path_entries(data.path)]
    if data.revision is not None and not any(dataset for _, dataset in entries):
        raise DataError(
            f"data.revision must be left out for local files, which have none, got {data.revision!r}. "
            "Remove it; the rows are recorded by their hash."
        )
    parts: dict[str, Dataset] = {}
    sources = []
    for entry, dataset in entries:
        if dataset is not None:
            rows, source = load_hub(dataset)
            parts[f"{dataset.path} ({source['name']}, {source['split']})"] = rows
            sources.append(source)
        else:
            parts |= {str(path): load_file(path) for path in local_files(str(entry)) if str(path) not in parts}
    columns = [_text_columns(source, rows, data) for source, rows in parts.items()]
    rows = concatenate_datasets(columns)
    rows = rows.add_column("id", range(len(rows)))
    return LoadedRows(*_fill_constants(rows, data.constants), sources)


def _text_columns(source: str, rows: Dataset, data: DataSection) -> Dataset:
    """The three columns, as text or null, whatever the source calls them."""
    from datasets import Value

    if len(rows) == 0:
        raise DataError(f"data.path: {source} must hold at least one row, got none.")
    for ours in TEXT_COLUMNS:
        theirs = data.columns.get(ours, ours)
        if theirs in rows.column_names:
            continue
        optional = ours == "input" or ours in data.constants
        if not optional or ours in data.columns:
            found = ", ".join(rows.column_names)
            remedy = "Name one of these" if ours in data.columns else f"Map it with data.columns.{ours}"
            if ours == "instruction":
                remedy += ", or set data.constants.instruction"
            raise DataError(
                f"data.columns.{ours} must name a column of {source}, there is no {theirs!r} in: {found}. {remedy}."
            )
    present = [(data.columns.get(ours, ours), ours) for ours in TEXT_COLUMNS]
    present = [(theirs, ours) for theirs, ours in present if theirs in rows.column_names]
    chosen = dict(present)
    if len(chosen) < len(present):
        raise DataError(f"data.columns must name a column of its own for each of {', '.join(TEXT_COLUMNS)}.")
    rows = rows.select_columns(list(chosen))
    rows = rows.rename_columns({theirs: ours for theirs, ours in chosen.items() if theirs != ours})
    for column in rows.column_names:
        _check_text(source, rows, column)
    for column in TEXT_COLUMNS:
        if column not in rows.column_names:
            rows = rows.add_column(column, [None] * len(rows))
        if rows.features[column] != Value("string"):
            rows = rows.cast_column(column, Value("string"))
    return rows.select_columns(list(TEXT_COLUMNS))


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
                f"{_text_remedy(value)}, or map another column with data.columns."
            )


def _text_remedy(value: Any) -> str:
    if isinstance(value, list | dict):
        return "Write it as one text"
    if isinstance(value, date):  # datasets reads a JSON column of nothing but dates as dates
        return "Store the rows as CSV, where a column of dates stays text"
    return "Put it in quotes"


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
