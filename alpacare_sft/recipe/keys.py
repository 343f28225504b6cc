"""The keys that a recipe may hold, and the faults of keys that it may not."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from alpacare_sft.recipe import rules, sections

SECTIONS: dict[str, type] = {
    "model": sections.ModelSection,
    "data": sections.DataSection,
    "prompt": sections.PromptSection,
    "early_stopping": sections.EarlyStoppingSection,
    "generate": sections.GenerateSection,
    "evaluate": sections.EvaluateSection,
    "safety": sections.SafetySection,
    "hub": sections.HubSection,
}


def upstream_classes() -> dict[str, type]:
    """The classes of the sections `train` and `lora`; importing them takes seconds."""
    from peft import LoraConfig
    from trl import SFTConfig

    return {"train": SFTConfig, "lora": LoraConfig}


@cache
def known_keys() -> dict[str, dict[str, Any]]:
    """Section → key → annotation, for every key that a recipe may hold."""
    keys: dict[str, dict[str, Any]] = {}
    for name, section in {**SECTIONS, **upstream_classes()}.items():
        keys[name] = {f.name: f.type for f in dataclasses.fields(section) if f.init}
        hints = typing.get_type_hints(section, include_extras=True)
        keys[name] = {key: hints.get(key, annotation) for key, annotation in keys[name].items()}
    return keys


def is_known_key(dotted: str) -> bool:
    """Whether the installed libraries have the key of a section, or of a section within a section."""
    section, key, *inner = dotted.split(".")
    annotation = known_keys().get(section, {}).get(key)
    return annotation is not None and all(name in (nested_keys(annotation) or [name]) for name in inner[:1])


def nested_keys(annotation: Any) -> dict[str, Any] | None:
    """Key → annotation of a section within a section, or None for a value."""
    section = nested_section(annotation)
    return None if section is None else typing.get_type_hints(section, include_extras=True)


def nested_section(annotation: Any) -> type | None:
    """The dataclass of a section within a section, which may be one that is off by default (`X | None`)."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    parts = tuple(part for part in parts if part is not type(None))
    is_section = len(parts) == 1 and isinstance(parts[0], type) and dataclasses.is_dataclass(parts[0])
    return parts[0] if is_section else None


def key_faults(document: Mapping[str, Any]) -> Iterator[str]:
    """Unknown keys, sections that are none, and required keys that are missing."""
    known = known_keys()
    top = [*known, "output_dir", "resume"]
    for section, values in document.items():
        if section not in top:
            yield rules.unknown_key("", str(section), top)
        elif section in known:
            yield from _section_key_faults(section, values, known[section])
    for required in ("model.model_name_or_path", "data.path"):
        section, key = required.split(".")
        values = document.get(section, {})
        if isinstance(values, Mapping) and values.get(key) in (None, ""):
            yield f"{required} must be given. `embedded` needs no network."
    yield from _missing_in_nested(document, known)
    yield from _entry_faults(document.get("data"))
    if document.get("output_dir") in (None, ""):
        yield "output_dir must be given: the directory of the run, for example runs/demo."


def _section_key_faults(section: str, values: Any, known: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(values, Mapping):
        yield f"{section} must be a section of keys, got {values!r}."
        return
    for key, value in values.items():
        if key not in known:
            if rules.refused_key(section, str(key)) is None:
                yield rules.unknown_key(section, str(key), list(known))
        elif (inner := nested_keys(known[key])) is not None and value is not None:
            yield from _section_key_faults(f"{section}.{key}", value, inner)


def _missing_in_nested(document: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Required keys that a section within a section lacks."""
    for section, keys in known.items():
        outer = document.get(section)
        if not isinstance(outer, Mapping):
            continue
        for key, annotation in keys.items():
            inner, values = nested_section(annotation), outer.get(key)
            if inner is None or not isinstance(values, Mapping):
                continue
            for item in dataclasses.fields(inner):
                required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
                if required and values.get(item.name) in (None, ""):
                    yield f"{section}.{key}.{item.name} must be given."


def _entry_faults(data: Any) -> Iterator[str]:
    """Keys of the entries of `data.path` that name a part of a Hub data set."""
    path = data.get("path") if isinstance(data, Mapping) else None
    known = typing.get_type_hints(sections.HubDataset)
    for entry in path if isinstance(path, list) else [path]:
        if isinstance(entry, Mapping):
            yield from _section_key_faults("data.path", entry, known)
            if not entry.get("path"):
                yield "data.path.path must be given: the id of a Hub data set, owner/name."


def refused_faults(document: Mapping[str, Any]) -> Iterator[str]:
    """Keys of TRL and PEFT that would contradict one of ours."""
    for section in ("train", "lora"):
        values = document.get(section)
        for key in values if isinstance(values, Mapping) else ():
            if fault := rules.refused_key(section, str(key)):
                yield fault
