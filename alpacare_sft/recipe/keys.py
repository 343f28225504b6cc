"""The keys that a recipe may hold, with their types."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from alpacare_sft.recipe import sections, upstream
from alpacare_sft.recipe.upstream import flatten

SECTIONS: dict[str, type] = {
    "model": sections.ModelSection,
    "data": sections.DataSection,
    "prompt": sections.PromptSection,
    "early_stopping": sections.EarlyStoppingSection,
    "forward": sections.ForwardSection,
    "generate": sections.GenerateSection,
    "evaluate": sections.EvaluateSection,
    "safety": sections.SafetySection,
    "hub": sections.HubSection,
}


@cache
def known_keys() -> dict[str, dict[str, Any]]:
    """Section → key → type, for every key that a recipe may hold."""
    return {name: dict(typing.get_type_hints(kind, include_extras=True)) for name, kind in section_types().items()}


@cache
def section_types() -> dict[str, type]:
    """Section → its dataclass: ours, and those of the installed TRL and PEFT."""
    return {**SECTIONS, **{name: upstream.section_type(name) for name in ("train", "lora")}}


def is_known_key(dotted: str) -> bool:
    """Whether the installed libraries have the key of a section, or of a section within a section."""
    section, key, *inner = dotted.split(".")
    annotation = known_keys().get(section, {}).get(key)
    return annotation is not None and all(name in (nested_keys(annotation) or [name]) for name in inner[:1])


def key_type(dotted: str) -> Any:
    """The type of a key that `leaves` names."""
    kinds: Any = {**known_keys(), "output_dir": str, "resume": str}
    for name in dotted.split("."):
        kinds = (kinds if isinstance(kinds, dict) else nested_keys(kinds) or {})[name]
    return kinds


def nested_keys(annotation: Any) -> dict[str, Any] | None:
    """Key → type of a section within a section, or None for a value."""
    section = nested_section(annotation)
    return None if section is None else typing.get_type_hints(section, include_extras=True)


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


def is_required(item: dataclasses.Field[Any]) -> bool:
    """Whether a key has no default."""
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def default_of(item: dataclasses.Field[Any]) -> Any:
    """The default of a key that is not required."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def leaves(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that a document sets, into the sections within sections; known keys alone."""
    for section, keys in known_keys().items():
        values = document.get(section)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            inner = nested_keys(keys[key]) if key in keys else None
            if isinstance(value, Mapping) and inner:
                yield from ((f"{section}.{key}.{name}", one) for name, one in value.items() if name in inner)
            elif key in keys:
                yield f"{section}.{key}", value
    yield from ((key, document[key]) for key in ("output_dir", "resume") if document.get(key) not in (None, ""))
