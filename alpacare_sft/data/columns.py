"""Columns of a source → instruction, input, output and system, as text; what is not used, and what it may be.

Rows that are conversations are read where they are one question and one answer, with a system turn or without.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from alpacare_sft.data.raw_rows import RawRows, as_list, text_array
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import ROW_COLUMNS, TEXT_COLUMNS, DataSection

if TYPE_CHECKING:
    import pyarrow as pa

MAPPED_COLUMNS = ROW_COLUMNS[1:]
NUM_NAMES = 20  # shown of many columns
# Names that public sets of instructions give these columns, the surest first.
_LIKELY = {
    "instruction": ("question", "query", "prompt", "instruction", "problem", "request", "task"),
    "output": ("response", "answer", "completion", "output", "reply", "target", "assistant", "solution"),
    "input": (
        "context", "input", "note", "passage", "case", "patient", "vignette", "history", "background", "description",
        "document", "excerpt", "article", "abstract", "report", "scenario", "text",
    ),
}  # fmt: skip
# What stands beside such a word where a column only tells about the text: `patient_id`, `note_length`.
_ABOUT = {"id", "ids", "length", "len", "tokens", "count", "num", "number", "type", "date", "url", "source", "age"}
_ABOUT |= {"sex", "gender", "name", "title", "hash", "category", "language", "lang", "score", "index", "idx"}

# As OpenAI, ShareGPT and TRL name them; the first whose columns are there is read.
CONVERSATIONS = (("messages",), ("conversations",), ("conversation",), ("prompt", "completion"))
CONVERSATION_COLUMNS = frozenset(name for names in CONVERSATIONS for name in names)
_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
_ROLES |= {"chatgpt": "assistant", "developer": "system"}
_TURN_KEYS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True)
class TextRows:
    """Rows as text columns, and what happened to them on the way.

    Attributes:
        table: instruction, input, output and id, and system where a row has one; text or null, and the number of the
            row.
        record: of the source, for `data/report.json`: name, format, rows, unused_columns, converted (values that were
            no text), and where they apply system (rows that have one), input_candidate and dropped_conversations.
    """

    table: pa.Table
    record: dict[str, Any]


def needed_columns(data: DataSection) -> set[str]:
    """The names that a source must give its columns."""
    return {data.columns.get(ours, ours) for ours in ("instruction", "output") if ours not in data.constants}


def list_names(names: Sequence[str]) -> str:
    """Names of columns for a person, the first of many."""
    return ", ".join([*names[:NUM_NAMES], *(["…"] if len(names) > NUM_NAMES else [])])


def text_columns(raw: RawRows, data: DataSection, first_id: int = 0) -> TextRows:
    """The columns of a source that a recipe asks for; conversations where it names none.

    Args:
        raw: the source.
        data: names its columns.
        first_id: of its first row.

    Raises:
        DataError: if a column is missing or holds lists or objects.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen, turns = _choose(raw, data)
    tables = []
    converted: Counter[str] = Counter()
    places: Sequence[int]
    for places, batch in raw.batches([*chosen.values(), *turns] or raw.names[:1]):
        columns: dict[str, Any] = {ours: batch[theirs] for ours, theirs in chosen.items()}
        if turns:
            columns, places = _exchanges(raw, {name: as_list(batch[name]) for name in turns}, columns, places)
        for ours, values in columns.items():
            columns[ours], count = _texts(raw, ours, values, places)
            converted[ours] += count
        ids = pa.array([first_id + place for place in places], pa.int64())
        nothing = pa.nulls(len(places), pa.string())
        texts = {ours: columns.get(ours, nothing) for ours in (*TEXT_COLUMNS, "system")}
        tables.append(pa.table({**texts, "id": ids}))
    table = pa.concat_tables(tables).select([*TEXT_COLUMNS, "id", "system"])
    record: dict[str, Any] = {"name": raw.name, "format": raw.form, "rows": raw.num_rows}
    if turns:
        record["dropped_conversations"] = raw.num_rows - len(table)
    record["unused_columns"] = [name for name in raw.names if name not in {*chosen.values(), *turns}]
    num_filled = {name: pc.sum(pc.greater(pc.binary_length(table[name]), 0)).as_py() for name in ("input", "system")}
    if num_filled["system"]:
        record["system"] = num_filled["system"]
    else:
        table = table.drop_columns("system")
    record["converted"] = {ours: count for ours, count in converted.items() if count}
    has_input = "input" in data.constants or num_filled["input"]
    if not has_input and (candidates := _likely("input", raw, record["unused_columns"])):
        record["input_candidate"] = candidates[0]
    return TextRows(table, record)


def _choose(raw: RawRows, data: DataSection) -> tuple[dict[str, str], tuple[str, ...]]:
    """The source's name for each of our columns that it has, and its columns of conversations if those are read.

    Raises:
        DataError: if a column is missing, or is named twice.
    """
    chosen = {ours: data.columns.get(ours, ours) for ours in MAPPED_COLUMNS}
    chosen = {ours: theirs for ours, theirs in chosen.items() if theirs in raw.names}
    missing = {ours for ours in ("instruction", "output") if ours not in chosen and ours not in data.constants}
    turns: tuple[str, ...] = ()
    if missing and not data.columns.keys() & {"instruction", "output"}:
        turns = conversation_columns(raw.names)
    if turns:
        chosen = {ours: theirs for ours, theirs in chosen.items() if ours in ("input", "system")}
        missing = set()
    missing |= {ours for ours in data.columns if ours not in chosen}
    if missing:
        raise DataError(_missing_message(raw, data, missing, chosen))
    if len(set(chosen.values())) < len(chosen):
        raise DataError(f"data.columns must name a column of its own for each of {', '.join(TEXT_COLUMNS)}.")
    return chosen, turns


def _exchanges(
    raw: RawRows, turns: Mapping[str, list[Any]], columns: Mapping[str, Any], places: Sequence[int]
) -> tuple[dict[str, list[Any]], list[int]]:
    """Columns of the rows of a batch that are one question and one answer, and their places in the source."""
    exchanges = {}
    for number, values in enumerate(zip(*turns.values(), strict=True)):
        if exchange := read_exchange(raw.place(places[number]), list(turns), values):
            exchanges[number] = exchange
    lists = {name: as_list(values) for name, values in columns.items()}
    read = {name: [values[number] for number in exchanges] for name, values in lists.items()}
    read |= {name: [getattr(one, name) for one in exchanges.values()] for name in ("instruction", "output")}
    beside = read.get("system", [None] * len(exchanges))
    read["system"] = [one.system or other for one, other in zip(exchanges.values(), beside, strict=True)]
    return read, [places[number] for number in exchanges]


def _texts(
    raw: RawRows, ours: str, values: pa.Array | list[Any], places: Sequence[int]
) -> tuple[pa.Array | pa.ChunkedArray, int]:
    """Values as text or null, and how many were something else; a number is written as its source writes it."""
    if not isinstance(values, list):
        return values, 0
    others = [number for number, value in enumerate(values) if type(value) is not str and value is not None]
    texts = list(values) if others else values
    for number in others:
        value = values[number]
        if isinstance(value, list | dict | tuple | bytes):
            shown = json.dumps(value, default=str, ensure_ascii=False)[:60]
            raise DataError(
                f"data.path: {raw.name}, row {places[number] + 1}: {ours} must be text, got {type(value).__name__} "
                f"{shown}. Write it as one text, or map another column with data.columns."
            )
        texts[number] = _text(value)
    for number, text in enumerate(texts):
        if text and not text.isascii() and _has_surrogate(text):
            raise DataError(
                f"{raw.place(places[number])}: {ours} holds half a character (a lone surrogate). Mend the text."
            )
    return text_array(texts), sum(texts[number] is not None for number in others)


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value != value else str(value)  # NaN, which alone differs from itself, is how tables write nothing


def _has_surrogate(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is not None


def _missing_message(raw: RawRows, data: DataSection, missing: set[str], chosen: Mapping[str, str]) -> str:
    """What is missing first, and the mapping of everything that has a likely name."""
    if not raw.names:
        return f"data.path: {raw.name} holds rows without a key. Give each an instruction, an input and an output."
    free = [name for name in raw.names if name not in chosen.values()]
    mapping = {ours: theirs for ours, theirs in data.columns.items() if ours in chosen}
    for ours in (*(ours for ours in MAPPED_COLUMNS if ours in missing), *({"input"} - set(chosen))):
        for name in _likely(ours, raw, free)[:1]:
            mapping[ours] = name
            free.remove(name)
    first = next(ours for ours in MAPPED_COLUMNS if ours in missing)
    remedy = "Name one of these" if first in data.columns else f"Map it with data.columns.{first}"
    if missing <= set(mapping):
        shown = ", ".join(f"{ours}: {_yaml_name(mapping[ours])}" for ours in MAPPED_COLUMNS if ours in mapping)
        remedy = f"Set data.columns to {{{shown}}}, if these are they"
    elif first == "instruction":
        remedy += ", or set data.constants.instruction"
    return (
        f"data.columns.{first} must name a column of {raw.name}, there is no {data.columns.get(first, first)!r} in: "
        f"{list_names(raw.names)}. {remedy}."
    )


def _yaml_name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name, ensure_ascii=False)


def _likely(ours: str, raw: RawRows, names: Iterable[str]) -> list[str]:
    """Columns of text whose names say that they are `ours`, the surest first."""
    words = {name: re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()) for name in names}
    words = {name: parts for name, parts in words.items() if not _ABOUT.intersection(parts)}
    forms = [{word, f"{word}s"} for word in _LIKELY.get(ours, ())]
    whole = [name for form in forms for name in words if name.lower() in form]
    part = [name for form in forms for name, parts in words.items() if form.intersection(parts)]
    # 0.8 lets one or two letters of such a name be wrong
    close = [name for name in words if difflib.SequenceMatcher(None, ours, name.lower()).ratio() >= 0.8]
    return [name for name in dict.fromkeys([*whole, *part, *close]) if _holds_text(raw.probe(name))]


def _holds_text(values: Sequence[Any]) -> bool:
    return any(isinstance(value, str) and value.strip() for value in values) and not any(
        isinstance(value, list | dict) for value in values
    )


class Exchange(NamedTuple):
    """One question and its answer; what a row lacks is None."""

    system: Any
    instruction: Any
    output: Any


def conversation_columns(names: Collection[str]) -> tuple[str, ...]:
    """Columns of conversations among `names`; empty if there are none."""
    return next((columns for columns in CONVERSATIONS if set(columns) <= set(names)), ())


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, each with its role."""
    return isinstance(value, list) and any(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in value)


def read_exchange(place: str, names: Sequence[str], values: Sequence[Any]) -> Exchange | None:
    """The one question and answer of a row, or None if it has more turns, tools or parts that are not text.

    Args:
        place: the row, for messages.
        names: the columns: one of whole conversations, or a prompt and a completion.
        values: the row's values there.

    Raises:
        DataError: if a value is neither text nor a list of turns.
    """
    turns: list[tuple[str, Any]] = []
    for name, value, role in zip(names, values, ("user", "assistant"), strict=False):
        if isinstance(value, list):
            turns += [_turn(place, name, turn) for turn in value]
        elif isinstance(value, dict) or (len(names) == 1 and value is not None):
            raise DataError(f"{place}: {name} must be a list of turns, each with role and content, got {value!r:.60}.")
        elif value is not None:
            turns.append((role, value))
    texts = dict(turns)
    order = [role for role in ("system", "user", "assistant") if role in texts]
    if [role for role, _ in turns] != order or any(isinstance(text, dict | list) for text in texts.values()):
        return None
    return Exchange(*(texts.get(role) for role in ("system", "user", "assistant")))


def _turn(place: str, name: str, turn: Any) -> tuple[str, Any]:
    """Role and text of a turn; content in parts is joined, as chat templates do, where all of them are text."""
    for role_key, content_key in _TURN_KEYS:
        if isinstance(turn, dict) and turn.get(role_key) is not None:
            role, content = str(turn[role_key]).strip().lower(), turn.get(content_key)
            break
    else:
        raise DataError(f"{place}: a turn of {name} must have role and content, or from and value, got {turn!r:.60}.")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    if turn.get("tool_calls"):
        role = "tool"
    return _ROLES.get(role, role), content
