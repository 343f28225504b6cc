"""Rows as token ids, encoded when the draw asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import ROW_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset

    from alpacare_sft.model.prompt import PromptEncoder
    from alpacare_sft.recipe.loading import Recipe

_BATCH = 1_000  # rows tokenized in one call: many, as each call costs, and few, as their tokens are lists until then


class EncodedRows:
    """Rows of a data set as the model is trained on them; each is encoded once, when it is looked at."""

    def __init__(self, rows: Dataset, encoder: PromptEncoder, recipe: Recipe) -> None:
        self.rows = rows
        self.encoder = encoder
        self.max_length = recipe.max_length
        self.overflow = recipe.prompt.overflow
        self.max_dropped_fraction = recipe.data.max_dropped_fraction
        self._encoded: dict[int, dict[str, Any]] = {}
        sizes = vars(recipe.data.splits).values()
        # A share of the rows is a share of those that can be drawn, and an error or a drop names all of them.
        if self.overflow != "truncate_output" or not all(isinstance(size, int) for size in sizes):
            self._encode(range(len(rows)))

    def _encode(self, places: Sequence[int]) -> None:
        import numpy as np

        for start in range(0, len(places), _BATCH):
            batch = places[start : start + _BATCH]
            columns = self.rows[list(batch)]
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            for place, row in zip(batch, self.encoder.encode_rows(rows, self.max_length), strict=True):
                row["input_ids"] = np.asarray(row["input_ids"], dtype=np.int32)  # a list needs nine times the memory
                row["completion_mask"] = np.asarray(row["completion_mask"], dtype=np.int8)
                self._encoded[place] = row

    def retain(self, places: Sequence[int]) -> list[int]:
        """Those of the rows that leave a token to learn, and are not dropped as too long."""
        self._encode([place for place in places if place not in self._encoded])
        drops = self.overflow == "drop"
        return [place for place in places if self._has_room(place) and not (drops and self._is_too_long(place))]

    def _has_room(self, place: int) -> bool:
        """Whether the prompt leaves a token to learn."""
        return bool(self._encoded[place]["prompt_tokens"] < self.max_length)

    def _is_too_long(self, place: int) -> bool:
        """Whether an answer that has room is cut."""
        return self._has_room(place) and bool(self._encoded[place]["truncated"])

    def counts(self) -> dict[str, int]:
        """Rows looked at, and of these the rows without room for an answer and those dropped as too long.

        Raises:
            DataError: if more rows are dropped than the recipe allows.
        """
        no_answer = [place for place in self._encoded if not self._has_room(place)]
        too_long = [place for place in self._encoded if self._is_too_long(place)]
        if self.overflow == "error" and (too_long or no_answer):
            ids = sorted(self.rows["id"][place] for place in too_long + no_answer)
            raise DataError(
                f"prompt.overflow: error, and {len(ids):,} of {len(self.rows):,} rows are longer than train.max_length "
                f"{self.max_length} (ids {', '.join(map(str, ids[:5]))}{', …' if len(ids) > 5 else ''}). "
                "Raise it, or use prompt.overflow: truncate_output or drop."
            )
        share = len(no_answer) / max(len(self._encoded), 1)
        if share > self.max_dropped_fraction:
            raise DataError(
                f"{len(no_answer):,} of {len(self._encoded):,} rows ({share:.1%}) leave no room for an answer: "
                f"their prompt alone fills train.max_length {self.max_length}. data.max_dropped_fraction allows "
                f"{self.max_dropped_fraction:.1%}. Raise train.max_length, or the fraction."
            )
        return {
            "looked_at": len(self._encoded),
            "no_answer": len(no_answer),
            "too_long": len(too_long) if self.overflow == "drop" else 0,
        }

    def select(self, places: Sequence[int]) -> Dataset:
        """Rows with their texts and tokens."""
        from datasets import Dataset, Features, List, Value

        rows = self.rows.select_columns([name for name in ROW_COLUMNS if name in self.rows.column_names]).select(places)
        number, numbers = Value("int64"), List(Value("int64"))
        types = {
            "input_ids": numbers,
            "completion_mask": numbers,
            "prompt_tokens": number,
            "completion_tokens": number,
            "truncated": Value("bool"),
        }
        columns = {name: [self._encoded[place][name] for place in places] for name in types}
        return Dataset.from_dict({**rows.to_dict(), **columns}, features=Features({**rows.features, **types}))
