"""What `data/report.json` holds beside the counts: what was read, lengths and rows as the model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.columns import list_names
from alpacare_sft.data.words import split_words

if TYPE_CHECKING:
    from datasets import Dataset

DROPPED_CONVERSATIONS = "drop_conversations"
NUM_SOURCES = 5  # named at a terminal; data/report.json names all
NUM_EXAMPLES = 50
NUM_EXTREMES = 5


def encoded_segments(row: Mapping[str, Any], tokenizer: Any) -> list[tuple[str, bool]]:
    """Runs of a row's tokens, decoded from the ids that the model gets, and whether they are in the loss."""
    segments: list[tuple[list[int], bool]] = []
    for token, in_loss in zip(row["input_ids"], row["completion_mask"], strict=True):
        if not segments or segments[-1][1] != bool(in_loss):
            segments.append(([], bool(in_loss)))
        segments[-1][0].append(token)
    return [(tokenizer.decode(ids, skip_special_tokens=False), in_loss) for ids, in_loss in segments]


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
        "segments": [[text, in_loss] for text, in_loss in encoded_segments(row, tokenizer)],
    }


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
