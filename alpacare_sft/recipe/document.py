"""A recipe's text → a mapping, before anyone asks what its keys mean."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alpacare_sft.errors import Fault, RecipeError, first_line

_MOST_VALUES = 100_000
_MOST_BYTES = 2**20  # some hundred times the longest recipe


class _RecipeLoader(yaml.SafeLoader):
    """YAML as its version 1.2 reads it, where `no` is a word and `2e-4` a number.

    PyYAML follows version 1.1, which turns `eval_strategy: no` into False, `2e-4` into text, `010`
    into 8 and `12:30` into 750.
    """

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        number = int(text, 16 if "x" in text else 8 if "o" in text else 10)
        if number.bit_length() > 64:  # no key takes it, and floats end before some of them
            raise ValueError("it has more than 64 bits; text of digits goes in quotes")
        return number

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # of PyYAML's constructors
            what = f"a value is no {node.tag.rpartition(':')[2]} ({first_line(error)})"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


_RecipeLoader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_RecipeLoader.add_constructor("tag:yaml.org,2002:int", _RecipeLoader.construct_yaml_int)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$", re.IGNORECASE),
    list("-+0123456789."),
)


class _RecipeDumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else, such as `no` or `2e-4`."""


_RecipeDumper.yaml_implicit_resolvers = {
    letter: yaml.SafeDumper.yaml_implicit_resolvers.get(letter, []) + _RecipeLoader.yaml_implicit_resolvers[letter]
    for letter in _RecipeLoader.yaml_implicit_resolvers
}


def dump_yaml(document: Mapping[str, Any]) -> str:
    """YAML that `parse_yaml` reads back to an equal mapping."""
    return yaml.dump(document, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


def parse_yaml(text: str) -> tuple[Any, list[Fault]]:
    """The value of a YAML text and a fault for each key that stands twice in one mapping.

    Raises:
        yaml.YAMLError: if the text is not YAML.
    """
    loader = _RecipeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _count_values(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its anchors stand for more than {_MOST_VALUES:,} values; write out what is meant")
        duplicates = list(_duplicates(node))  # before construction, which merges `<<` into the nodes
        return None if node is None else loader.construct_document(node), duplicates
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply; write out what is meant") from None
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values that a node stands for when each alias is followed; each node is looked at once."""
    if id(node) not in counted:
        counted[id(node)] = 1  # an anchor on itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        counted[id(node)] = 1 + sum(_count_values(part, counted) for part in inner)
    return counted[id(node)]


def _duplicates(node: yaml.Node | None, section: str = "") -> Iterator[Fault]:
    lines: dict[str, int] = {}
    for key_node, value in node.value if isinstance(node, yaml.MappingNode) else ():
        key, line = f"{section}{key_node.value}", key_node.start_mark.line + 1
        if key in lines and key_node.value != "<<":
            yield Fault(key, f"must stand once, got it again on line {line} after line {lines[key]}. Keep one of them.")
        lines.setdefault(key, line)
        if value.start_mark.index >= key_node.end_mark.index:  # an alias stands elsewhere, where it is looked at
            yield from _duplicates(value, f"{key}.")


def read_document(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """A recipe file as a mapping of sections, and the faults of its text.

    Raises:
        RecipeError: if the file cannot be read or is not a mapping of sections.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise RecipeError(f"{path} is too large for a recipe: at most 1 MiB. Name the YAML file of a recipe.")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path} must be a recipe file, none is there.{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} must be a recipe file, got a directory. Name the YAML file in it.") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path} must be UTF-8 text, line {line} is not. Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # NUL, or half a character
        raise RecipeError(f"{str(path)!r} must be the name of a recipe file: {error}.") from None
    try:
        document, duplicates = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_yaml_fault(path, error)) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict):
        kind = "nothing" if document is None else type(document).__name__
        raise RecipeError(
            f"{path} must be a mapping of sections (model, data, train, …), got {kind}. Start from recipes/demo.yaml."
        )
    return document, duplicates


def _yaml_fault(path: Path, error: yaml.MarkedYAMLError) -> str:
    line = error.problem_mark.line + 1 if error.problem_mark else "?"
    problem = str(error.problem)
    if problem.startswith("but "):  # PyYAML's sentence begins in its context
        problem = f"{error.context} {problem}"
    hint = " Indent with spaces, YAML takes no tabs." if "\\t" in problem else ""
    return f"{path}, line {line}: not valid YAML: {problem}.{hint}"


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
            if not rest or rest[0].startswith("--"):
                hint = f"One that begins with -- goes after =, as in --{key}=VALUE."
                raise RecipeError(f"--{key} must be followed by a value. {hint}")
            value = rest.pop(0)
        if not all(key.split(".")):
            raise RecipeError(f"an override must be a dotted key such as --train.max_steps, got --{key}.")
        yield key, _override_value(value)


def _override_value(text: str) -> Any:
    """A word of the command line as YAML; a sentence with `: `, ` #` or a leading dash in it stays text.

    An empty word is empty text, which is not null: `--prompt.system ""` is an empty system turn.
    """
    if not text:
        return text
    try:
        value = parse_yaml(text)[0]
    except yaml.YAMLError:
        return text
    start = text.lstrip()[:1]
    is_text = isinstance(value, str) and start not in ("'", '"', "!")
    is_block = isinstance(value, dict | list) and start not in ("{", "[")
    return text if is_text or is_block or start == "#" else value


def apply_overrides(document: dict[str, Any], overrides: Sequence[tuple[str, Any]]) -> list[Fault]:
    """Write dotted keys into `document`, in place; a fault for each that runs through a value."""
    faults = []
    for dotted, value in overrides:
        *sections, key = dotted.split(".")
        target = document
        for section in sections:
            if target.get(section) is None:
                target[section] = {}
            if not isinstance(target[section], dict):
                faults.append(Fault(dotted, f"must name a key of a section, but {section} holds a value."))
                break
            target = target[section]
        else:
            target[key] = value
    return faults
