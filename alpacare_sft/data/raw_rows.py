"""Rows under the names of their source, a batch at a time, so that never all of them are Python objects at once."""

from __future__ import annotations

import pickle  # of values in this process  # nosec B403
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1_000  # few, as their texts are Python strings at once, and many, as each call of Arrow costs
NUM_PROBED = 100  # rows whose values say whether a column is text
_TEXT_TYPES = {str, type(None)}

# Places of the rows of a batch in their source, and the values of each column, texts in Arrow or Python objects.
Batch = tuple[range, Mapping[str, "pa.Array | list[Any]"]]


@dataclass(frozen=True)
class RawRows:
    """Rows under the names of their source.

    Attributes:
        name: of the source, as a person knows it.
        form: how it was read, such as `CSV, separated by semicolons`.
        num_rows: how many there are.
        names: of its columns.
        batches: the values of some columns, at most `BATCH_ROWS` rows at a time, in order; read when asked for.
        lines: the line where each row begins, where rows have one.
    """

    name: str
    form: str
    num_rows: int
    names: Sequence[str]
    batches: Callable[[Sequence[str]], Iterator[Batch]]
    lines: Sequence[int] | None = None

    def place(self, index: int) -> str:
        """A row as a person finds it in the source."""
        return f"data.path: {self.name}, " + (f"line {self.lines[index]}" if self.lines else f"row {index + 1}")

    def probe(self, name: str) -> list[Any]:
        """The first values of a column."""
        _, columns = next(self.batches([name]))
        return as_list(columns[name][:NUM_PROBED])


def text_array(values: Sequence[str | None]) -> pa.Array:
    """Texts in Arrow.

    In memory of the C library: mimalloc, Arrow's own choice, held 1.7 times the texts of a million rows.
    """
    import pyarrow as pa

    return pa.array(values, pa.string(), memory_pool=pa.system_memory_pool())


def as_list(values: pa.Array | list[Any]) -> list[Any]:
    """Values as Python objects."""
    return values if isinstance(values, list) else list(values.to_pylist())


def ranges(num_rows: int) -> Iterator[range]:
    """The places of each batch of rows."""
    return (range(start, min(start + BATCH_ROWS, num_rows)) for start in range(0, num_rows, BATCH_ROWS))


class PackedRows:
    """Objects as columns: texts in Arrow, batches with anything else pickled, which is as small.

    Attributes:
        names: keys of all objects, in the order in which they come up.
        lines: the number of each.

    Args:
        rows: objects with their numbers, a line or a place.
    """

    def __init__(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        self.names: dict[str, None] = {}
        self.lines = array("Q")
        self._batches: list[dict[str, pa.Array | bytes | list[Any]]] = []
        numbered = iter(rows)
        while batch := list(islice(numbered, BATCH_ROWS)):
            self.lines.extend(line for line, _ in batch)
            names = dict.fromkeys(name for _, row in batch for name in row)
            self.names |= names
            self._batches.append({name: _pack([row.get(name) for _, row in batch]) for name in names})

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """The values of some columns."""
        for places, columns in zip(ranges(len(self.lines)), self._batches, strict=True):
            nothing = [None] * len(places)
            yield places, {name: _unpack(columns[name]) if name in columns else nothing for name in names}


def _pack(values: list[Any]) -> pa.Array | bytes | list[Any]:
    if _TEXT_TYPES.issuperset(map(type, values)):
        try:
            return text_array(values)
        except UnicodeEncodeError:  # half a character
            pass
    try:
        return pickle.dumps(values)
    except RecursionError:  # nested deeper than `pickle` goes, about 500 levels
        return values


def _unpack(values: pa.Array | bytes | list[Any]) -> pa.Array | list[Any]:
    return pickle.loads(values) if isinstance(values, bytes) else values  # as `_pack` made them  # nosec B301
