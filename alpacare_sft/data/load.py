"""Rows in: from the Hub, from local files or from the package, as text columns.

A fault of a file is reported with the file's name and, where it has one, the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.clean import Columns, is_empty
from alpacare_sft.data.columns import TextRows, needed_columns, text_columns
from alpacare_sft.data.files import RawRows, load_file
from alpacare_sft.data.hub import load_hub
from alpacare_sft.data.sources import resolve_sources
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import TEXT_COLUMNS, DataSection

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class LoadedRows:
    """Rows as they were read.

    Attributes:
        columns: instruction, input, output, id, and system where a row has a turn of its own; text or null, a list for
            each. `id` counts from 0 in the order of the sources.
        filled: for each column with a constant, how many rows it filled.
        sources: the record of each file and data set, as `columns.TextRows` describes it.
        hub: what `load_hub` says of each data set of the Hub.
    """

    columns: Columns
    filled: Mapping[str, int]
    sources: Sequence[Mapping[str, Any]]
    hub: Sequence[Mapping[str, Any]]

    @property
    def num_loaded(self) -> int:
        """Rows that the sources hold, conversations that were dropped included."""
        return sum(source["rows"] for source in self.sources)


def load_rows(data: DataSection) -> LoadedRows:
    """The rows of a recipe.

    Raises:
        DataError: if a source cannot be read, lacks a column, or holds lists or objects for text.
        RunError: if a cache cannot be written.
    """
    sources = resolve_sources(data.path, data.revision)
    if data.revision is not None and all(source.file for source in sources):
        raise DataError(
            f"data.revision must be left out for local files, which have none, got {data.revision!r}. "
            "Remove it; the rows are recorded by their hash."
        )
    parts, hub = [], []
    for source in sources:
        if source.file:
            raw = replace(load_file(source.file, needed_columns(data)), name=source.name)
        else:
            assert source.dataset is not None
            rows, info = load_hub(source.dataset)
            raw = _raw_rows(f"{source.name} ({info['name']}, {info['split']})", rows)
            hub.append(info)
        if raw.num_rows == 0:
            raise DataError(f"data.path: {raw.name} must hold at least one row, got none.")
        parts.append(text_columns(raw, data))
    columns, filled = _fill_constants(_join(parts), data)
    return LoadedRows(columns, filled, [part.record for part in parts], hub)


def _raw_rows(name: str, dataset: Dataset) -> RawRows:
    """The rows of a data set on the Hub under its own names; the names of its classes are text."""

    def column(name: str) -> list[Any]:
        values = list(dataset.select_columns([name])[:][name])
        names = getattr(dataset.features[name], "names", None)  # of a ClassLabel; -1 is none
        return [names[value] if value is not None and value >= 0 else None for value in values] if names else values

    return RawRows(name, "Hub", len(dataset), dataset.column_names, column)


def _join(parts: Sequence[TextRows]) -> dict[str, list[Any]]:
    """The rows of all sources, one after another, and their ids."""
    names = [name for name in (*TEXT_COLUMNS, "system") if any(name in part.columns for part in parts)]
    columns: dict[str, list[Any]] = {name: [] for name in (*names[:3], "id", *names[3:])}
    start = 0
    for part in parts:
        for name in names:
            columns[name] += part.columns.get(name) or [None] * len(part.ids)
        columns["id"] += [start + number for number in part.ids]
        start += part.record["rows"]
    return columns


def _fill_constants(columns: dict[str, list[Any]], data: DataSection) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Put a recipe's constant where a text is empty, by the words that say so for every column."""
    filled = {}
    for name, constant in data.constants.items():
        empty = [is_empty(text, data.clean.no_input_marks) for text in columns[name]]
        columns[name] = [constant if gap else text for gap, text in zip(empty, columns[name], strict=True)]
        filled[name] = sum(empty)
    return columns, filled
