"""A recipe's text → a mapping, before anyone asks what its keys mean."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from alpacare_sft.errors import RecipeError


class _RecipeLoader(yaml.SafeLoader):
    """YAML as its version 1.2 reads it, where `no` is a word and `2e-4` a number.

    PyYAML follows version 1.1, which turns `eval_strategy: no` into False and `2e-4` into text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen and key != "<<":
                self.duplicates.append(
                    f"{key} must stand once, got it again on line {line} after line {seen[key]}. Keep one of them."
                )
            seen.setdefault(key, line)
        return super().construct_mapping(node, deep)


_RecipeLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$", re.IGNORECASE),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> tuple[Any, list[str]]:
    """The value of a YAML text and a fault for each key that stands twice in one mapping.

    Raises:
        yaml.YAMLError: if the text is not YAML.
    """
    loader = _RecipeLoader(text)
    try:
        return loader.get_single_data(), loader.duplicates
    finally:
        loader.dispose()


def read_document(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A recipe file as a mapping of sections, and the faults of its text.

    Raises:
        RecipeError: if the file cannot be read or is not a mapping of sections.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path} must be a recipe file, none is there.{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} must be a recipe file, got a directory. Name the YAML file in it.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} must be UTF-8 text, byte {error.start} is not. Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        document, duplicates = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        hint = " Indent with spaces, YAML takes no tabs." if "\\t" in str(error.problem) else ""
        raise RecipeError(f"{path}, line {line}: not valid YAML: {error.problem}.{hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}.") from None
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise RecipeError(
            f"{path} must be a mapping of sections (model, data, train, …), got {found}. Start from recipes/demo.yaml."
        )
    return document, duplicates


def _nearest_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("recipes")
    names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {folder / close[0]}?" if close else ""


def parse_overrides(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """`--train.learning_rate 1e-4` or `--train.learning_rate=1e-4` → dotted key and YAML value.

    Raises:
        RecipeError: if an argument is not an override, or lacks its value.
    """
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise RecipeError(
                f"the command line must hold one recipe and overrides such as --train.max_steps 20, got {word!r}."
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and not _is_number(rest[0])):
                raise RecipeError(f"--{key} must be followed by a value.")
            value = rest.pop(0)
        try:
            yield key, parse_yaml(value)[0]
        except yaml.YAMLError:
            yield key, value


def _is_number(word: str) -> bool:
    return isinstance(yaml.safe_load(word), int | float)


def apply_overrides(document: dict[str, Any], overrides: Sequence[tuple[str, Any]]) -> list[str]:
    """Write dotted keys into `document`, in place; a fault for each that runs through a value."""
    faults = []
    for dotted, value in overrides:
        *sections, key = dotted.split(".")
        target = document
        for section in sections:
            if target.get(section) is None:
                target[section] = {}
            if not isinstance(target[section], dict):
                faults.append(f"{dotted} must name a key of a section, but {section} holds a value.")
                break
            target = target[section]
        else:
            target[key] = value
    return faults
