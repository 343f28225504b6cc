"""Rows in: what each entry of `data.path` is, its rows as text columns, and what is said of them.

A fault of a file is reported with the file's name and, where it has one, the line.
"""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alpacare_sft.data.clean import is_empty
from alpacare_sft.data.columns import TextRows, list_names, needed_columns, text_columns
from alpacare_sft.data.files import load_file
from alpacare_sft.data.hub import load_hub
from alpacare_sft.data.raw_rows import Batch, RawRows, ranges, text_array
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.names import EMBEDDED_FILES, ENDINGS, expand, is_path
from alpacare_sft.recipe.sections import DataSection, HubDataset

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

DROPPED_CONVERSATIONS = "drop_conversations"
NUM_SOURCES = 5  # named at a terminal; data/report.json names all
_REMEDIES = {
    ".gz": "Unpack it, and name what was in it",
    ".zip": "Unpack it, and name what was in it",
    ".xlsx": "Save the sheet as CSV UTF-8",
    ".xls": "Save the sheet as CSV UTF-8",
}


class Source(NamedTuple):
    """One local file, or one data set on the Hub.

    Attributes:
        name: as a person knows it.
        file: the file, or None.
        dataset: the data set, or None.
    """

    name: str
    file: Path | None = None
    dataset: HubDataset | None = None


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
            batch = batch.set_column(batch.schema.get_field_index(name), name, text_array(texts))
            filled[name] += sum(empty)
        batches[place] = batch
    return batches, filled


def resolve_sources(path: Any, revision: str | None = None) -> list[Source]:
    """Sources that `data.path` names, in its order, files of a pattern by name, each once.

    Args:
        path: one entry or a list of them.
        revision: `data.revision`, which is that of a data set on the Hub whose entry is text.

    Raises:
        DataError: if a name matches nothing, a directory, or a file of another kind.
    """
    sources: dict[str, Source] = {}
    for entry in path if isinstance(path, list) else [path]:
        for source in _resolve(entry, revision):
            sources.setdefault(str(source.file.resolve() if source.file else source.dataset), source)
    return list(sources.values())


def _resolve(entry: str | HubDataset, revision: str | None) -> list[Source]:
    if isinstance(entry, HubDataset):
        return [Source(entry.path, dataset=entry)]
    if entry in EMBEDDED_FILES:
        return [Source(entry, EMBEDDED_FILES[entry])]
    try:
        matches = _matches(expand(entry)) if entry.strip() else []
    except PermissionError as error:
        raise DataError(f"data.path: {error.filename} may not be read. Give yourself the right, or move it.") from None
    if matches:
        return [Source(str(match), _readable(match)) for match in matches]
    if "://" in entry:
        raise DataError(f"data.path must name files or a data set on the Hub, got the address {entry}. Download it.")
    if is_path(entry):
        raise DataError(f"data.path must name existing files, nothing matches {entry!r}. Check the path.")
    return [Source(entry, dataset=HubDataset(path=entry, revision=revision))]


def _matches(path: Path) -> list[Path]:
    """The path itself if it exists, else the files that it matches; a directory that exists is no pattern either."""
    literal = next(parent for parent in (path, *path.parents) if parent.exists())
    if literal == path:
        return [path]
    pattern = os.path.join(glob.escape(str(literal)), *path.parts[len(literal.parts) :])
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    return [match for match in matches if not ("**" in path.parts and match.is_dir())]


def _readable(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"data.path must name files, {path} is a directory. {_directory_remedy(path)}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        remedy = _REMEDIES.get(ending, "Give it the ending of what it holds, or convert it")
        raise DataError(f"data.path: {path} must end in {', '.join(ENDINGS)}, got {ending or 'none'}. {remedy}.")
    return path


def _directory_remedy(folder: Path) -> str:
    if any(folder.glob("*.arrow")):
        return "It was written by `save_to_disk`: write its rows with `Dataset.to_parquet`, and name that file."
    inside = glob.iglob(os.path.join(glob.escape(str(folder)), "**"), recursive=True)
    names = [Path(name) for name in islice(inside, 10_000)]  # a home directory may hold millions
    names = [name for name in names if name.suffix.lower() in ENDINGS and name.is_file()]
    if not names:
        return f"No file in it ends in {', '.join(ENDINGS)}."
    ending, _ = Counter(name.suffix for name in names).most_common(1)[0]
    is_deep = any(name.parent != folder for name in names)
    return f"Write {folder}/{'**/' if is_deep else ''}*{ending}."


def reading_steps(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The step in which conversations of several turns went, as `clean.clean_rows` records steps, if there were any."""
    if not any("dropped_conversations" in source for source in sources):
        return []
    before = sum(source["rows"] for source in sources)
    dropped = sum(source.get("dropped_conversations", 0) for source in sources)
    step = {"name": DROPPED_CONVERSATIONS, "rows_before": before, "rows_after": before - dropped}
    return [{**step, "dropped": dropped, "changed": 0}]


def input_hint(sources: Sequence[Mapping[str, Any]]) -> str:
    """The key to set where a column that is not used looks like the input that no row has, or nothing."""
    for source in sources:
        if name := source.get("input_candidate"):
            return (
                f"No row has an input, and the column {name} looks like it: to use it, set data.columns.input: {name}."
            )
    return ""


def describe_sources(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was read and how, the columns that are not used and values that were no text, a line each."""
    lines = [f"read {source['name']}: {source['rows']:,} rows, {source['format']}" for source in sources[:NUM_SOURCES]]
    if len(sources) > 1:
        more = f"and {len(sources) - len(lines):,} more; " if len(sources) > len(lines) else ""
        lines.append(f"{more}in all {len(sources):,} sources, {sum(source['rows'] for source in sources):,} rows")
    if unused := list(dict.fromkeys(name for source in sources for name in source["unused_columns"])):
        lines.append(f"columns not used: {list_names(unused)}")
    if hint := input_hint(sources):
        lines.append(hint)
    converted: Counter[str] = Counter()
    for source in sources:
        converted.update(source["converted"])
    if converted:
        counts = ", ".join(f"{count:,} in {name}" for name, count in converted.items())
        lines.append(f"values that are not text, taken as they are written: {counts}")
    if num_system := sum(source.get("system", 0) for source in sources):
        lines.append(f"{num_system:,} rows have a system message of their own")
    if dropped := sum(source.get("dropped_conversations", 0) for source in sources):
        lines.append(f"{dropped:,} rows that are not one question and one answer are dropped: split them into such")
    return lines
