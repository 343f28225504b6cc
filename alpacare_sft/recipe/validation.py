"""A document → typed values, once, with all faults at once. pydantic decides what fits, in strict JSON mode."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from yaml import YAMLError

from alpacare_sft.errors import Fault
from alpacare_sft.recipe import rules
from alpacare_sft.recipe.document import apply_overrides, parse_yaml
from alpacare_sft.recipe.keys import (
    TOP_KEYS,
    describe_type,
    dotted,
    entry_section,
    known_keys,
    nested_section,
    plain_types,
    section_types,
)
from alpacare_sft.runtime import holds_half_character

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_MOST_LEVELS = 100  # of lists and mappings in one another; pydantic reads 200
_UNSTORABLE = "must hold no NUL and no half of a character (a lone surrogate), which no file can hold. Take it out."
_REMEDIES = {
    "model.model_name_or_path": " `embedded` needs no network.",
    "data.path": " `embedded` needs no network.",
    "data.path.path": " It is the id of a Hub data set, owner/name.",
    "output_dir": " It is the directory of the run, for example runs/demo.",
}


@cache
def recipe_model() -> type[BaseModel]:
    """The pydantic model of a recipe: our sections, and those of TRL and PEFT by their fields."""
    from pydantic import ConfigDict, Field, create_model

    config = ConfigDict(extra="forbid", protected_namespaces=())
    required = {key.section for key in known_keys().values() if key.default is MISSING}
    fields: dict[str, Any] = {
        name: (section, ... if section in required else Field(default_factory=section))
        for name, section in section_types().items()
    }
    for name, annotation in TOP_KEYS.items():
        default = known_keys()[name].default
        fields[name] = (annotation, ... if default is MISSING else default)
    return create_model("Recipe", __config__=config, **fields)


def validate(document: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[Fault]]:
    """Values of each section, and the faults.

    Args:
        document: a section without keys as an empty mapping.

    Returns:
        The sections as their dataclasses, `output_dir` and `resume`; None if there is a fault. And the faults
        of single keys; what is wrong across keys is for `rules`.
    """
    from pydantic import ValidationError

    document = dict(document)
    refused = [fault for section in ("train", "lora") for fault in _refused(section, document.get(section))]
    refused += [
        Fault(name, _UNSTORABLE) for name, value in dotted(document).items() if not _is_storable(_as_json(value))
    ]
    for section, key in (("model", "model_name_or_path"), ("data", "path")):
        if isinstance(values := document.setdefault(section, {}), dict):
            document[section] = {
                name: value for name, value in values.items() if name != key or value not in (None, "")
            }
    if document.get("output_dir", "") in (None, ""):
        document.pop("output_dir", None)  # blank is missing
    plain = _as_json(document)
    apply_overrides(plain, list(_numbers_in_quotes(plain)))
    try:
        model = recipe_model().model_validate_json(_json_bytes(plain), strict=True)
    except ValidationError as error:
        reported = {fault.key for fault in refused}
        return None, [*refused, *(fault for fault in _faults(error, document) if fault.key not in reported)]
    return (None if refused else dict(model)), refused


def _refused(section: str, values: Any) -> Iterator[Fault]:
    for key in values if isinstance(values, Mapping) else ():
        if fault := rules.refused_key(section, str(key)):
            yield fault


def _is_storable(value: Any) -> bool:
    """Whether files and their names can hold the texts of a JSON value."""
    if isinstance(value, Mapping):
        return all(_is_storable(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(_is_storable, value))
    return not isinstance(value, str) or not ("\0" in value or holds_half_character(value))


def _json_bytes(value: Any) -> bytes:
    """JSON for pydantic, which reads no half characters: those are refused by `_is_storable`."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _numbers_in_quotes(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys that hold no text and are given `"2e-4"`, with what the text says."""
    for name, value in dotted(document).items():
        key = known_keys().get(name)
        if key and isinstance(value, str) and plain_types(key.annotation) <= {int, float, bool, type(None)}:
            with suppress(YAMLError):
                yield name, parse_yaml(value)[0]


def _as_json(value: Any, parents: Sequence[int] = ()) -> Any:
    """A YAML value as JSON has it; an anchor that holds itself ends there, and so does what pydantic would not read."""
    if id(value) in parents or len(parents) > _MOST_LEVELS:
        return "…"
    within = (*parents, id(value))
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner, within) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner, within) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _faults(error: ValidationError, document: Mapping[str, Any]) -> Iterator[Fault]:
    """One fault a key: a union gives an error for each of its members, and one within a member says more."""
    faults = [_fault(item["loc"], item["type"], document) for item in error.errors(include_url=False)]
    first = {fault.key: fault for fault in reversed(faults)}
    for key in dict.fromkeys(fault.key for fault in faults):
        if not any(other.startswith(f"{key}.") for other in first):
            yield first[key]


def _fault(place: Sequence[str | int], kind: str, document: Mapping[str, Any]) -> Fault:
    known: Mapping[str, Any] = {**section_types(), **TOP_KEYS}
    path: list[str] = []
    value: Any = document
    annotation: Any = None
    for part in place:
        if isinstance(part, int):  # an entry of a list
            value = value[part] if isinstance(value, list) else value
            continue
        if part not in known:
            continue  # a member of a union
        path.append(part)
        value, annotation = value.get(part) if isinstance(value, Mapping) else None, known[part]
        inner = entry_section(annotation)
        known = get_type_hints(inner, include_extras=True) if inner else {}
    name = ".".join(path)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return rules.unknown_key(name, str(place[-1]), list(known))
    if kind in ("missing", "missing_argument"):
        return Fault(name, f"must be given.{_REMEDIES.get(name, '')}")
    if nested_section(annotation):
        return Fault(name, f"must be a section of keys, got {value!r}.")
    remedy = _quotes_remedy(value, annotation)
    return Fault(name, f"must be {describe_type(annotation)}, got {_show_value(value)}.{remedy}")


def _quotes_remedy(value: Any, annotation: Any) -> str:
    """What to do about a number or a truth value that stands for text, such as a commit `1234567`."""
    plain = plain_types(annotation)
    wants_text = str in plain and not plain & {int, float}
    return " Put it in quotes." if wants_text and isinstance(value, int | float) else ""


def _show_value(value: Any) -> str:
    """A value as a message shows it, cut where it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def fits_key(name: str, value: Any) -> bool:
    """Whether a key of the installed libraries takes a value."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(known_keys()[name].annotation).validate_json(_json_bytes(_as_json(value)), strict=True)
    except ValidationError:
        return False
    return True
