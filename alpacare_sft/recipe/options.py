"""The keys of a recipe as options of the command line: their help, and completion in a shell.

jsonargparse shows and completes them; what a key can hold is decided by `validation` alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Iterator
from typing import Any, get_type_hints

from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe import rules
from alpacare_sft.recipe.keys import default_of, is_required, nested_section, section_types
from alpacare_sft.recipe.reference import TOP_KEYS, field_docs
from alpacare_sft.recipe.upstream import upstream_fields
from alpacare_sft.recipe.validation import RESUME
from alpacare_sft.recipe.values import describe_type, plain_value


def add_keys(parser: Any, beginning: str = "") -> int:
    """Add an option for each key whose dotted name begins so; how many.

    Args:
        parser: a `jsonargparse.ArgumentParser`.
        beginning: `lora`, `data.clean`, `train.lr`; all keys if empty.
    """
    number = 0
    for dotted, kind, default, meaning in _keys():
        if dotted.startswith(beginning):
            shown = f"{meaning} ({describe_type(kind)}{default})".replace("%", "%%").strip()
            option = parser.add_argument(
                f"--{dotted}", type=kind, help=shown, default=argparse.SUPPRESS, metavar="VALUE"
            )
            option.option_strings = [f"--{dotted}"]  # jsonargparse adds one with `+` for lists
            number += 1
    return number


def _keys() -> Iterator[tuple[str, Any, str, str]]:
    """Dotted name, type, default in words and meaning of each key."""
    for name, section in section_types().items():
        yield from _keys_of(name, section)
    for name, kind in (("output_dir", str), ("resume", RESUME)):
        yield name, kind, "", TOP_KEYS[name]


def _keys_of(name: str, section: type) -> Iterator[tuple[str, Any, str, str]]:
    is_upstream = name in ("train", "lora")
    docs = {key: field.help for key, field in upstream_fields(name).items()} if is_upstream else field_docs(section)
    types = get_type_hints(section, include_extras=True)
    for item in dataclasses.fields(section):
        if rules.refused_key(name, item.name):
            continue
        if inner := nested_section(kind := types[item.name]):
            yield from _keys_of(f"{name}.{item.name}", inner)
        else:
            yield f"{name}.{item.name}", kind, _default(item), docs[item.name]


def _default(item: dataclasses.Field[Any]) -> str:
    if is_required(item):
        return "; required"
    return f"; default: {json.dumps(plain_value(default_of(item)), ensure_ascii=False)}"


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
        close = difflib.get_close_matches(beginning, [*section_types(), *(key for key, *_ in _keys())], n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Sections: {', '.join(section_types())}."
        raise RecipeError(f"--help must be followed by a section or a key of a recipe, got {beginning!r}. {hint}")
    return parser.format_help()
