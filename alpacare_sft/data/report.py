"""What `data/report.json` holds beside the counts: lengths and rows as the model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.words import split_words

if TYPE_CHECKING:
    from datasets import Dataset

NUM_EXAMPLES = 50
NUM_EXTREMES = 5


def encoded_segments(row: Mapping[str, Any], tokenizer: Any) -> list[tuple[str, bool]]:
    """Runs of a row's tokens, decoded from the ids that the model gets, and whether they are learnt."""
    segments: list[tuple[list[int], bool]] = []
    for token, learnt in zip(row["input_ids"], row["completion_mask"], strict=True):
        if not segments or segments[-1][1] != bool(learnt):
            segments.append(([], bool(learnt)))
        segments[-1][0].append(token)
    return [(tokenizer.decode(ids, skip_special_tokens=False), learnt) for ids, learnt in segments]


def describe_rows(splits: Mapping[str, Dataset], tokenizer: Any) -> dict[str, Any]:
    """Token lengths of every row and the first rows of each split, for the page."""
    lengths = {
        name: {column: list(rows[column]) for column in ("prompt_tokens", "completion_tokens")}
        for name, rows in splits.items()
        if len(rows)
    }
    total = sum(len(rows) for rows in splits.values())
    examples = []
    for name, rows in splits.items():
        share = max(1, round(NUM_EXAMPLES * len(rows) / total)) if len(rows) else 0
        examples += [describe_row(rows[index], name, tokenizer) for index in range(min(share, len(rows)))]
    return {"lengths": lengths, "examples": examples[:NUM_EXAMPLES], "extremes": _extremes(splits, tokenizer)}


def _extremes(splits: Mapping[str, Dataset], tokenizer: Any) -> dict[str, Any]:
    """The rows that a person should look at first: shortest and longest answers, and the most repetitive."""
    rows = [(name, part, index) for name, part in splits.items() for index in range(len(part))]
    lengths = [length for part in splits.values() for length in part["completion_tokens"]]
    repetitions = [repetition(text) for part in splits.values() for text in part["output"]]

    def describe(place: int) -> dict[str, Any]:
        name, part, index = rows[place]
        return describe_row(part[index], name, tokenizer) | {"repetition": repetitions[place]}

    by_length = sorted(range(len(rows)), key=lambda place: lengths[place])
    by_repetition = sorted(range(len(rows)), key=lambda place: -repetitions[place])
    repetitive = [place for place in by_repetition[:NUM_EXTREMES] if repetitions[place] > 0]
    return {
        "shortest": [describe(place) for place in by_length[:NUM_EXTREMES]],
        "longest": [describe(place) for place in reversed(by_length[-NUM_EXTREMES:])],
        "most_repetitive": [describe(place) for place in repetitive],
    }


def repetition(text: str) -> float:
    """Share of a text's four-word runs that it had before: 0 for none, towards 1 for a loop; see `split_words`."""
    words = split_words(text.casefold())
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def describe_row(row: Mapping[str, Any], split: str, tokenizer: Any) -> dict[str, Any]:
    """One row for the page: its id, split, lengths and segments."""
    return {
        "id": row["id"],
        "split": split,
        "truncated": row["truncated"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "segments": [[text, learnt] for text, learnt in encoded_segments(row, tokenizer)],
    }
