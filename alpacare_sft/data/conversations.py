"""Rows that are conversations: read where they are one question and one answer, with a system turn or without."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from alpacare_sft.errors import DataError

# As OpenAI, ShareGPT and TRL name them; the first whose columns are there is read.
CONVERSATIONS = (("messages",), ("conversations",), ("conversation",), ("prompt", "completion"))
CONVERSATION_COLUMNS = frozenset(name for names in CONVERSATIONS for name in names)
_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
_ROLES |= {"chatgpt": "assistant", "developer": "system"}
_TURN_KEYS = (("role", "content"), ("from", "value"))


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
