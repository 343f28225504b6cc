"""What the keys of a recipe mean, for a person: JSON Schema, help and completion in a shell; all from their docstrings.

jsonargparse shows and completes the keys; what one can hold is decided by `validation` alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import re
from functools import cache
from typing import Any

from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe import rules, sections
from alpacare_sft.recipe.keys import (
    SECTIONS,
    TOP_KEYS,
    describe_type,
    known_keys,
    nested_section,
    plain_value,
    section_types,
)
from alpacare_sft.recipe.upstream import upstream_fields
from alpacare_sft.recipe.validation import recipe_model

# Our sections by their dotted names, those within sections after the others.
OWN_SECTIONS: dict[str, type] = {
    **SECTIONS,
    "data.path": sections.HubDataset,
    "data.clean": sections.CleanSection,
    "data.splits": sections.SplitsSection,
    "evaluate.judge": sections.JudgeSection,
}


@cache
def field_docs(section: type) -> dict[str, str]:
    """Key → the docstring under its field, as one paragraph."""
    source = inspect.getsource(section)
    docs = re.findall(r'^    (\w+): [^\n]*(?:\n(?!    """)[^\n]*)*\n    """(.*?)"""', source, flags=re.M | re.S)
    return {key: " ".join(text.split()) for key, text in docs}


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe: our keys with their bounds, TRL's and PEFT's as they are."""
    schema = recipe_model().model_json_schema()
    definitions = schema["$defs"]
    for section in OWN_SECTIONS.values():
        part = definitions[section.__name__]
        part |= {"description": inspect.getdoc(section), "additionalProperties": False}
        for key, text in field_docs(section).items():
            part["properties"][key]["description"] = text
    for name, refused in rules.REFUSED.items():
        part = definitions[section_types()[name].__name__]
        part["properties"] = {key: value for key, value in part["properties"].items() if key not in refused}
        part["additionalProperties"] = False
    for key, text in field_docs(sections.TopKeys).items():
        schema["properties"][key]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A recipe of alpacare_sft"}


def recipe_schema_text() -> str:
    """The schema as a file holds it."""
    return json.dumps(recipe_schema(), indent=1, default=str) + "\n"


def add_keys(parser: Any, beginning: str = "") -> int:
    """Add an option for each key whose dotted name begins so; how many.

    Args:
        parser: a `jsonargparse.ArgumentParser`.
        beginning: `lora`, `data.clean`, `train.lr`; all keys if empty.
    """
    names = [name for name in _key_names() if name.startswith(beginning)]
    for name in names:
        kind = known_keys()[name].annotation
        shown = f"{_meaning(name)} ({describe_type(kind)}{_default(name)})".replace("%", "%%").strip()
        option = parser.add_argument(f"--{name}", type=kind, help=shown, default=argparse.SUPPRESS, metavar="VALUE")
        option.option_strings = [f"--{name}"]  # jsonargparse adds one with `+` for lists
    return len(names)


def _key_names() -> list[str]:
    """Dotted names of the keys that hold a value, and no section."""
    return [
        name
        for name, key in known_keys().items()
        if not nested_section(key.annotation) and not rules.refused_key(*name.partition(".")[::2])
    ]


def _meaning(name: str) -> str:
    section, _, key = name.partition(".")
    if section in ("train", "lora"):
        return upstream_fields(section)[key].help
    return field_docs(known_keys()[name].section)[name.rpartition(".")[2]]


def _default(name: str) -> str:
    """The default of a key in words; the docstrings of those at the top have it."""
    default = known_keys()[name].default
    if name in TOP_KEYS:
        return ""
    if default is dataclasses.MISSING:
        return "; required"
    return f"; default: {json.dumps(plain_value(default), ensure_ascii=False)}"


def help_of_keys(beginning: str) -> str:
    """The keys whose dotted names begin so, as `--help` shows them.

    Raises:
        RecipeError: if there is none.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=f"--{beginning}", usage=argparse.SUPPRESS, add_help=False, formatter_class=argparse.HelpFormatter
    )
    group = parser.add_argument_group(beginning)
    if not add_keys(group, beginning.removeprefix("--")):
        close = difflib.get_close_matches(beginning, [*section_types(), *_key_names()], n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Sections: {', '.join(section_types())}."
        raise RecipeError(f"--help must be followed by a section or a key of a recipe, got {beginning!r}. {hint}")
    return parser.format_help()
