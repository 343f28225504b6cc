"""The arguments of `trl.SFTConfig` and `peft.LoraConfig`, read from the installed source.

Importing TRL, transformers and PEFT takes seconds, parsing five of their files hundredths of one.
`upstream_sections.pyi` types what is made here for mypy and editors.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import importlib.util
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

# Package, file and class, each after the one that it inherits from.
_UPSTREAM = {
    "train": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
    "lora": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
}
_ENUMERATIONS = (
    ("transformers", "trainer_utils.py"),
    ("transformers", "training_args.py"),
    ("transformers", "debug_utils.py"),
)


class Field(typing.NamedTuple):
    """Type, default and meaning of one key of `train` or `lora`; a default that the source does not show is None."""

    annotation: Any
    default: Any
    help: str = ""


class _Names(dict[str, Any]):
    """What annotations may name; a class that is no enumeration is a mapping in a recipe."""

    def __missing__(self, name: str) -> Any:
        return dict[str, Any]


@cache
def upstream_fields(section: str) -> dict[str, Field]:
    """Key → type and default, for every argument of `trl.SFTConfig` (`train`) or `peft.LoraConfig` (`lora`)."""
    fields: dict[str, Field] = {}
    for package, file, name in _UPSTREAM[section]:
        tree = _parse(package, file)
        constants = {target: value for target, value in _assignments(tree) if isinstance(value, ast.Constant)}
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        for target, value, annotation in _annotated(body):
            if "ClassVar" in ast.unparse(annotation):
                continue
            options = {item.arg: item.value for item in value.keywords} if isinstance(value, ast.Call) else {}
            if isinstance(init := options.get("init"), ast.Constant) and init.value is False:
                fields.pop(target, None)
            else:
                default = options.get("default", options.get("default_factory", value))
                meaning = _help(options.get("metadata"))
                fields[target] = Field(_evaluate(annotation), _default(default, constants), meaning)
    return fields


@cache
def _parse(package: str, file: str) -> ast.Module:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))


def _assignments(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _annotated(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr | None, ast.expr]]:
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value, node.annotation


@cache
def _names() -> _Names:
    """Typing's names, built-in types, and each of transformers' enumerations as the closed list of its values."""
    names = _Names(
        {**vars(typing), **{kind.__name__: kind for kind in (int, float, str, bool, dict, list, tuple, set)}}
    )
    for package, file in _ENUMERATIONS:
        for node in _parse(package, file).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in node.bases):
                values = tuple(value.value for _, value in _assignments(node) if isinstance(value, ast.Constant))
                names[node.name] = Literal[values]
    return names


def _evaluate(annotation: ast.expr) -> Any:
    """The type of an annotation, without the `| str` beside a closed list, which would let misspellings through."""
    # An annotation of an installed library, which is imported later anyway.
    value = eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, _names())  # nosec B307
    if isinstance(value, str):
        return _evaluate(ast.parse(value, mode="eval").body)
    parts = flatten(value)
    if str in parts and any(typing.get_origin(part) is Literal for part in parts):
        parts = [part for part in parts if part is not str]
    # `typing` keeps the members of a union in the order in which it saw them first, in whatever was imported before
    return functools.reduce(operator.or_, sorted(parts, key=lambda part: (part is type(None), str(part))))


def _help(metadata: ast.expr | None) -> str:
    """What `field(metadata={"help": …})` says, as far as it is plain text."""
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    texts = [
        value.value for key, value in pairs if ast.unparse(key or value) == "'help'" and isinstance(value, ast.Constant)
    ]
    return " ".join(str(text) for text in texts)


def _default(value: ast.expr | None, constants: Mapping[str, Any]) -> Any:
    if isinstance(value, ast.Name):
        value = constants.get(value.id)
    if isinstance(value, ast.Lambda):
        value = value.body
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def section_type(section: str) -> type:
    """The dataclass of `train` or `lora`; `output_dir` stands at the top of a recipe."""
    fields = [
        (key, field.annotation, dataclasses.field(default_factory=functools.partial(copy.deepcopy, field.default)))
        for key, field in upstream_fields(section).items()
        if key != "output_dir"
    ]
    return dataclasses.make_dataclass(f"{section.title()}Section", fields, kw_only=True)


def flatten(annotation: Any) -> list[Any]:
    """The members of a union, or the type alone."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [part for argument in typing.get_args(annotation) for part in flatten(argument)]
    return [annotation]
