"""Rows in: from the Hub, from local files or from the package, as text columns.

A fault of a file is reported with the file's name and, where it has one, the line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.clean import is_empty
from alpacare_sft.data.columns import TextRows, needed_columns, text_columns
from alpacare_sft.data.files import load_file
from alpacare_sft.data.hub import load_hub
from alpacare_sft.data.raw_rows import Batch, RawRows, ranges
from alpacare_sft.data.sources import resolve_sources
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import DataSection

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


@dataclass(frozen=True)
class LoadedRows:
    """Rows as they were read.

    Attributes:
        batches: columns instruction, input, output, id, and system where a row has a turn of its own; text or null.
            `id` counts from 0 in the order of the sources.
        filled: for each column with a constant, how many rows it filled.
        sources: the record of each file and data set, as `columns.TextRows` describes it.
        hub: what `load_hub` says of each data set of the Hub.
    """

    batches: deque[pa.RecordBatch]
    filled: Mapping[str, int]
    sources: Sequence[Mapping[str, Any]]
    hub: Sequence[Mapping[str, Any]]

    @property
    def num_loaded(self) -> int:
        """Rows that the sources hold, conversations that were dropped included."""
        return sum(source["rows"] for source in self.sources)

    def take_batches(self, first_id: int = 0) -> Iterator[pa.RecordBatch]:
        """The batches, ids from `first_id` on; each is given up as it is taken, since cleaned rows need its memory."""
        import pyarrow.compute as pc

        while self.batches:
            batch = self.batches.popleft()
            yield batch.set_column(batch.schema.get_field_index("id"), "id", pc.add(batch["id"], first_id))


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
    parts: list[TextRows] = []
    hub = []
    num_rows = 0
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
        parts.append(text_columns(raw, data, num_rows))
        num_rows += raw.num_rows
    batches, filled = _fill_constants([part.table for part in parts], data)
    return LoadedRows(batches, filled, [part.record for part in parts], hub)


def _raw_rows(name: str, dataset: Dataset) -> RawRows:
    """The rows of a data set on the Hub under its own names; the names of its classes are text."""

    def batches(names: Sequence[str]) -> Iterator[Batch]:
        rows = dataset.select_columns(list(names))
        for places in ranges(len(rows)):
            batch = rows[places.start : places.stop]
            yield places, {name: _class_names(dataset, name, batch[name]) for name in names}

    return RawRows(name, "Hub", len(dataset), dataset.column_names, batches)


def _class_names(dataset: Dataset, column: str, values: list[Any]) -> list[Any]:
    """Values of a column, those of a ClassLabel as their names; -1 is none."""
    names = getattr(dataset.features[column], "names", None)
    return [names[value] if value is not None and value >= 0 else None for value in values] if names else values


def _fill_constants(tables: Sequence[pa.Table], data: DataSection) -> tuple[deque[pa.RecordBatch], Mapping[str, int]]:
    """Put a recipe's constant where a text is empty, by the words that say so for every column.

    Returns:
        The rows of all sources, one after another; and how many rows each constant filled.
    """
    import pyarrow as pa

    table = pa.concat_tables(tables, promote_options="default")  # no system in one source is null beside another's
    filled = dict.fromkeys(data.constants, 0)
    batches = deque(table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)])
    for place, batch in enumerate(batches):
        for name, constant in data.constants.items():
            texts = batch[name].to_pylist()
            empty = [is_empty(text, data.clean.no_input_marks) for text in texts]
            texts = [constant if gap else text for gap, text in zip(empty, texts, strict=True)]
            batch = batch.set_column(batch.schema.get_field_index(name), name, pa.array(texts, pa.string()))
            filled[name] += sum(empty)
        batches[place] = batch
    return batches, filled
