"""The keys that a recipe may hold: their types, in words too, and the values that a document sets."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from alpacare_sft.recipe import sections, upstream
from alpacare_sft.recipe.upstream import flatten

SECTIONS: dict[str, type] = {
    "model": sections.ModelSection,
    "data": sections.DataSection,
    "prompt": sections.PromptSection,
    "early_stopping": sections.EarlyStoppingSection,
    "forward": sections.ForwardSection,
    "checkpoints": sections.CheckpointsSection,
    "generate": sections.GenerateSection,
    "evaluate": sections.EvaluateSection,
    "safety": sections.SafetySection,
    "hub": sections.HubSection,
}
TOP_KEYS: dict[str, Any] = typing.get_type_hints(sections.TopKeys)


class Key(typing.NamedTuple):
    """One key: its type, its field with the default, and the dataclass whose docstrings say what it means."""

    annotation: Any
    field: dataclasses.Field[Any]
    section: type

    @property
    def default(self) -> Any:
        """What it is where a recipe leaves it out; `dataclasses.MISSING` if it is required."""
        make = self.field.default_factory
        return self.field.default if make is dataclasses.MISSING else make()


@cache
def section_types() -> dict[str, type]:
    """Section → its dataclass: ours, and those of the installed TRL and PEFT."""
    return {**SECTIONS, **{name: upstream.section_type(name) for name in ("train", "lora")}}


@cache
def known_keys() -> dict[str, Key]:
    """Dotted name → key, for every key that a recipe may hold, sections within sections and theirs too."""
    of_sections = [pair for name, section in section_types().items() for pair in _keys_of(section, f"{name}.")]
    return dict([*of_sections, *_keys_of(sections.TopKeys)])


def _keys_of(section: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    types = typing.get_type_hints(section, include_extras=True)
    for item in dataclasses.fields(section):
        yield f"{prefix}{item.name}", Key(types[item.name], item, section)
        if inner := nested_section(types[item.name]):
            yield from _keys_of(inner, f"{prefix}{item.name}.")


def dotted(document: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → value of everything that a document sets, into the sections within sections; unknown keys too."""
    values: dict[str, Any] = {}
    for section, keys in document.items():
        for key, value in keys.items() if isinstance(keys, Mapping) else ():
            known = known_keys().get(name := f"{section}.{key}")
            if isinstance(value, Mapping) and known and nested_section(known.annotation):
                values |= {f"{name}.{inner}": one for inner, one in value.items()}
            else:
                values[name] = value
    return values | {key: document[key] for key in TOP_KEYS if key in document}


def nested_section(annotation: Any) -> type | None:
    """The dataclass of a section within a section, which may be one that is off by default (`X | None`)."""
    parts = [part for part in flatten(annotation) if part is not type(None)]
    return entry_section(parts[0]) if len(parts) == 1 else None


def entry_section(annotation: Any) -> type | None:
    """The dataclass among the members of a union and of the lists within, as an entry of `data.path` may be one."""
    for part in flatten(annotation):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            return part
        if typing.get_origin(part) is list and (section := entry_section(*typing.get_args(part))):
            return section
    return None


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
