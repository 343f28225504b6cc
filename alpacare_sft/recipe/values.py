"""One value against its annotation, and an annotation in words."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from alpacare_sft.recipe.upstream import flatten

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}
_BOUND_WORDS = (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"))


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def plain_types(annotation: Any) -> set[Any]:
    """The members of a union, without the bounds that they are annotated with."""
    return {_plain(part) for part in flatten(annotation)}


def plain_value(value: Any) -> Any:
    """A value as YAML and JSON hold it: enums by their value, sets sorted, objects as mappings."""
    if isinstance(value, enum.Enum):  # set in Python
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain_value(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain_value(dataclasses.asdict(value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def describe_type(annotation: Any) -> str:
    """An annotation as a person would say it: `a whole number (more than 0) or null`."""
    words: list[str] = []
    for part in flatten(annotation):
        plain = _plain(part)
        if get_origin(plain) is Literal:
            word = "one of " + ", ".join(str(value) for value in get_args(plain))
        elif get_origin(plain) in (list, set):
            inner = describe_type(get_args(plain)[0])
            word = "a list of these" if inner == " or ".join(words) and len(words) > 1 else f"a list of {inner}"
        elif isinstance(plain, type) and dataclasses.is_dataclass(plain):
            word = f"a mapping of {', '.join(item.name for item in dataclasses.fields(plain))}"
        elif plain is dict or get_origin(plain) is dict:
            word = "a mapping"
        else:
            word = _WORDS.get(plain, getattr(plain, "__name__", str(plain)))
        bounds = [
            f"{text} {getattr(constraint, name):g}"
            for constraint in (get_args(part)[1:] if get_origin(part) is Annotated else ())
            for name, text in _BOUND_WORDS
            if hasattr(constraint, name)
        ]
        words.append(f"{word} ({' and '.join(bounds)})" if bounds else word)
    if any(word.startswith("one of") for word in words):  # `one of …` says more than the bare `text` beside it
        words = [word for word in words if word != "text"]
    return " or ".join(dict.fromkeys(words))


def quotes_remedy(value: Any, annotation: Any) -> str:
    """What to do about a number or a truth value that stands for text, such as a commit `1234567`."""
    plain = plain_types(annotation)
    wants_text = str in plain and not plain & {int, float}
    return " Put it in quotes." if wants_text and isinstance(value, int | float) else ""


def show_value(value: Any) -> str:
    """A value as a message shows it, cut where it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) < 80 else text[:77] + "..."
