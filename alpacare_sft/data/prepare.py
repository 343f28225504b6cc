"""Recipe and tokenizer → the three splits as the model sees them, every row accounted for."""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.hub import commit_of, describe_unused
from alpacare_sft.data.load import DROPPED_CONVERSATIONS, input_hint, reading_steps
from alpacare_sft.data.near_duplicates import find_near_duplicates
from alpacare_sft.data.split import SPLITS, clean_parts, load_parts, split_parts
from alpacare_sft.data.text import question_digests
from alpacare_sft.errors import DataError
from alpacare_sft.model.base import load_tokenizer
from alpacare_sft.model.prompt import PromptEncoder, check_encoder
from alpacare_sft.recipe.sections import ROW_COLUMNS
from alpacare_sft.run.directory import disk_errors_explained
from alpacare_sft.run.json_lines import format_json_lines
from alpacare_sft.runtime import prepared_process

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from alpacare_sft.recipe.loading import Recipe

# An answer whose last character closes nothing was often cut where it was made; its end token still counts.
_ENDS_OPEN = re.compile(r"[\w,;–—-]$")

_BATCH = 1_000  # rows tokenized in one call: many, as each call costs, and few, as their tokens are lists until then


@dataclass(frozen=True)
class PreparedData:
    """The splits and the account of how they came to be.

    Attributes:
        splits: `train`, `validation` and `test`; columns id, instruction, input, output,
            input_ids, completion_mask, prompt_tokens, completion_tokens and truncated.
        report: what `data/report.json` holds.
    """

    splits: Mapping[str, Dataset]
    report: Mapping[str, Any]

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Hash of each split's JSON Lines text."""
        return {name: hashlib.sha256(jsonl(rows).encode()).hexdigest() for name, rows in self.splits.items()}


@prepared_process()
def prepare_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None = None) -> PreparedData:
    """Load, clean, encode and split the rows of a recipe.

    Rows that leave no token to learn are dropped before the draw, so that a split of 2,000 rows
    has 2,000 that teach.

    Args:
        recipe: whose `data` is read.
        tokenizer: of the base model; by default that of `recipe.model`.

    Raises:
        DataError: if rows cannot be read, are too few, or too many leave no room for an answer.
        ModelError: if the tokenizer cannot be had, or cannot make the prompt that the recipe asks for.
        RunError: if a cache cannot be written.
    """
    with disk_errors_explained():
        return _prepare(recipe, tokenizer or load_tokenizer(recipe.model))


def _prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    encoder = PromptEncoder(tokenizer, recipe.prompt)
    check_encoder(encoder)
    parts = load_parts(recipe.data)
    sources = [source for part in parts.values() for source in part.sources]
    loaded = sum(part.num_loaded for part in parts.values())
    result = clean_parts(parts, recipe.data.clean)
    cleaned, steps = result.rows, [*reading_steps(sources), *result.steps]
    if len(cleaned) == 0:
        raise DataError(_no_row_left(loaded, steps))
    encoded = EncodedRows(cleaned, encoder, recipe)
    try:
        drawn, held_out = split_parts(cleaned, recipe.data.splits, recipe.data.seed, encoded.retain)
    except DataError as error:
        encoded.counts()  # too few rows may be left because too many were dropped, or look alike without their input
        raise DataError(" ".join(filter(None, (str(error), _copies_hint(steps), input_hint(sources))))) from None
    dropped = encoded.counts()
    splits = {name: encoded.select(drawn[name]) for name in SPLITS}
    available = len(cleaned) - dropped["no_answer"] - dropped["too_long"] - held_out
    hub = [info for part in parts.values() for info in part.hub]
    rows = {
        "loaded": loaded,
        "cleaned": len(cleaned),
        "looked_at": dropped["looked_at"],
        "dropped_no_answer": dropped["no_answer"],
        "dropped_too_long": dropped["too_long"],
        "dropped_held_out": held_out,
        "kept": available,
        **{name: len(splits[name]) for name in SPLITS},
        "unused": available - sum(len(part) for part in splits.values()),
        "truncated": sum(splits["train"]["truncated"]),
        "filled": {name: sum(part.filled[name] for part in parts.values()) for name in recipe.data.constants},
    }
    report = {
        "commit": commit_of(hub),
        "sources": sources,
        "hub": hub,
        "unused_sources": list(describe_unused(hub)),
        "prompt": {"system": recipe.prompt.system, "default_system": encoder.default_system()},
        "rows": rows,
        "steps": steps,
        "cleaning": result.notes,
        "max_length": recipe.max_length,
        "seed": recipe.data.seed,
        "splits": {name: _split_summary(splits[name]) for name in SPLITS},
        "shared_questions": _count_shared_questions(splits),
        "near_duplicates": find_near_duplicates(splits, recipe.data.constants),
    }
    return PreparedData(splits, report)


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


def _copies_hint(steps: Sequence[Mapping[str, Any]]) -> str:
    """How many rows are missing because they are copies."""
    copies = sum(step["dropped"] for step in steps if step["name"].startswith("drop_duplicates"))
    return f"{copies:,} rows were dropped as copies of others." if copies else ""


def _no_row_left(loaded: int, steps: Sequence[Mapping[str, Any]]) -> str:
    worst = max(steps, key=lambda step: step["dropped"], default=None)
    message = f"no row is left of {loaded:,} after cleaning"
    if worst is None or not worst["dropped"]:
        return f"{message}. Check data.path."
    message += f": {worst['name']} dropped {worst['dropped']:,}"
    if worst["name"] == DROPPED_CONVERSATIONS:
        return f"{message}. Only rows of one question and one answer can be read: split conversations into such rows."
    if worst["name"] == "drop_missing":
        return (
            f"{message}. Map the columns with data.columns, or set data.constants.instruction. What counts as missing "
            "beside null and blanks is data.clean.no_input_marks."
        )
    if worst["name"] == "min_characters":
        return f"{message}. Set data.clean.min_characters: 1 to keep short answers."
    return f"{message}. Check the rows, or set data.clean.{worst['name']}."


def _split_summary(rows: Dataset) -> dict[str, Any]:
    if len(rows) == 0:
        return {"rows": 0}
    prompt, completion = list(rows["prompt_tokens"]), list(rows["completion_tokens"])
    in_loss = [sum(mask) for mask in rows["completion_mask"]]
    return {
        "rows": len(rows),
        "with_input": sum(bool(text) for text in rows["input"]),
        "open_end": sum(_ENDS_OPEN.search(text) is not None for text in rows["output"]),
        "truncated": sum(rows["truncated"]),
        "prompt_tokens": _quantiles(prompt),
        "completion_tokens": _quantiles(completion),
        "learnt_tokens": sum(in_loss),
        "cut_tokens": sum(completion) - sum(in_loss),
    }


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
        "total": sum(ordered),
    }


def _count_shared_questions(splits: Mapping[str, Dataset]) -> int:
    """Questions (instruction and input) that stand in more than one split; the draw makes it 0."""
    questions = [set(question_digests(rows)) for rows in splits.values()]
    return sum(len(questions[a] & questions[b]) for a in range(3) for b in range(a))


def jsonl(rows: Dataset) -> str:
    """The text columns of a split, one JSON object a line, in the order of the split."""
    names = [name for name in ROW_COLUMNS if name in rows.column_names]
    texts = zip(*(rows[name] for name in names), strict=True)
    return format_json_lines(
        {key: text for key, text in zip(names, values, strict=True) if text is not None} for values in texts
    )
