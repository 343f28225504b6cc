"""A mapping → a `Recipe`, with every fault told at once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe import keys, rules, sections
from alpacare_sft.recipe.document import apply_overrides, parse_overrides, read_document
from alpacare_sft.recipe.keys import SECTIONS, key_faults, known_keys, nested_keys, refused_faults
from alpacare_sft.recipe.values import (
    describe_type,
    fits_type,
    plain_value,
    quotes_remedy,
    show_value,
    takes_text_or_null,
)
from alpacare_sft.runtime import prepared_process

RESUME = Literal["auto", "never"]


@dataclass(kw_only=True)
class Recipe:
    """Everything that a run is made of, checked.

    `train` and `lora` hold every argument of `trl.SFTConfig` and `peft.LoraConfig` by name; the
    objects are built when the hardware is known (`training.build_sft_config`).
    """

    model: sections.ModelSection
    data: sections.DataSection
    prompt: sections.PromptSection
    lora: dict[str, Any]
    train: dict[str, Any]
    early_stopping: sections.EarlyStoppingSection
    generate: sections.GenerateSection
    evaluate: sections.EvaluateSection
    safety: sections.SafetySection
    hub: sections.HubSection
    output_dir: Path
    resume: RESUME
    notes: list[str] = field(default_factory=list, compare=False)
    """What loading decided beside the recipe's words, for a person to read."""
    document: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The file after overrides: the keys that were given, and no defaults."""
    loaded: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """`values()` as they were made from `document`; what differs now was set in Python since."""

    def __post_init__(self) -> None:
        if not self.loaded:
            self.loaded = self.values()

    def values(self) -> dict[str, dict[str, Any]]:
        """Section → key → value as YAML and JSON hold them; all keys that a recipe may hold, defaults included."""
        values = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
        for name, section in (("lora", self.lora), ("train", self.train)):
            values[name] = {key: value for key, value in section.items() if rules.refused_key(name, key) is None}
        return {name: plain_value(section) for name, section in values.items()}

    @property
    def evaluates_during_training(self) -> bool:
        """Whether the validation loss is computed while training."""
        return str(self.train["eval_strategy"]) != "no"


@cache
def build_parser() -> Any:
    """The jsonargparse parser of a recipe: one group a section, values checked by type."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    for name, section in keys.upstream_classes().items():
        parser.add_class_arguments(section, name, instantiate=False)
    parser.add_argument("--output_dir", type=str, required=True)
    parser.add_argument("--resume", type=RESUME, default="auto")
    return parser


@cache
def upstream_defaults(section: str) -> dict[str, Any]:
    """What `train` or `lora` holds when a recipe says nothing."""
    least = {"model": {"model_name_or_path": "x"}, "data": {"path": "x"}, "output_dir": "x"}
    return dict(vars(build_parser().parse_object(_typed(least))[section]))


@prepared_process()
def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: the YAML file.
        overrides: command-line words such as `["--train.learning_rate", "1e-4"]`.

    Raises:
        RecipeError: with every fault that can be found, each naming its key.
    """
    path = Path(path)
    document, faults = read_document(path)
    faults += apply_overrides(document, list(parse_overrides(overrides)))
    return recipe_from_document(document, source=str(path), faults=faults)


def recipe_from_document(document: dict[str, Any], source: str = "", faults: Sequence[str] = ()) -> Recipe:
    """Check a mapping of sections and make a `Recipe` of it.

    Raises:
        RecipeError: with every fault that can be found.
    """
    given = {key: {} if value is None and key in known_keys() else value for key, value in document.items()}
    document = _without_removed_keys(given)
    found = [*faults, *key_faults(document), *refused_faults(document)]
    parsed = None
    if not found:
        parsed = _parse(document)
    if parsed is None:
        told = tuple(fault.split(" ", 1)[0] + "." for fault in found)  # a fault within a value says enough of it
        values = ((fault, fault.split(" ", 1)[0] + ".") for fault in _value_faults(document))
        found += [fault for fault, key in values if not any(other.startswith(key) for other in told)]
        if not found:  # a fault of no single value; jsonargparse's own words are all there is
            found.append(_parse_error(document))
        found += list(_checks_of_what_parses(document, found))
        raise RecipeError(found, source)
    notes = _settle(parsed)
    found = list(_cross_faults(parsed))
    if found:
        raise RecipeError(found, source)
    return _build(parsed, notes, given)


def _without_removed_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document less the keys that the run in `output_dir` was given and that TRL and PEFT have no more.

    A finished run needs no value for them, training refuses them (`resolved.refuse_removed_keys`).
    """
    unknown = [
        (section, key)
        for section in ("train", "lora")
        for key in (document[section] if isinstance(document.get(section), Mapping) else ())
        if key not in known_keys()[section] and rules.refused_key(section, str(key)) is None
    ]
    if not unknown or not isinstance(document.get("output_dir"), str):
        return document
    try:
        given, _ = read_document(Path(document["output_dir"]).expanduser() / "recipe.yaml")
    except RecipeError:
        return document
    removed = [(section, key) for section, key in unknown if key in (given.get(section) or ())]
    return {
        section: {key: value for key, value in values.items() if (section, key) not in removed}
        if section in ("train", "lora") and isinstance(values, Mapping)
        else values
        for section, values in document.items()
    }


def fits_key(dotted: str, value: Any) -> bool:
    """Whether a key of the installed libraries takes a value."""
    section, key, *inner = dotted.split(".")
    annotation = known_keys()[section][key]
    for name in inner:
        annotation = (nested_keys(annotation) or {})[name]
    return fits_type(value, annotation)


def _parse(document: Mapping[str, Any]) -> Any | None:
    """The parsed namespace, or None where a value does not fit.

    jsonargparse 4.53 does not check the bounds of a section's `Annotated` fields, `_value_faults` does.
    """
    from argparse import ArgumentError

    try:
        parsed = build_parser().parse_object(_typed(document))
    except (ArgumentError, ValueError, TypeError):
        return None
    for dotted, value, annotation in _leaves(document):
        if isinstance(value, str) and takes_text_or_null(annotation):
            parsed[dotted] = value  # jsonargparse 4.53 reads text such as `# Role` as null
    return None if _value_faults(document) else parsed


def _parse_error(document: Mapping[str, Any]) -> str:
    from argparse import ArgumentError

    try:
        build_parser().parse_object(_typed(document))
    except (ArgumentError, ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return "the recipe cannot be parsed."


def _typed(document: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(dict(document))  # jsonargparse 4.53 writes into lists
    values.setdefault("train", {})["output_dir"] = "unused"
    return values


def _value_faults(document: Mapping[str, Any]) -> list[str]:
    """A fault for each leaf whose value does not fit its annotation."""
    return [
        f"{dotted} must be {describe_type(annotation)}, got {show_value(value)}.{quotes_remedy(value, annotation)}"
        for dotted, value, annotation in _leaves(document)
        if not fits_type(value, annotation)
    ]


def _leaves(document: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section, known in known_keys().items():
        values = document.get(section)
        if not isinstance(values, Mapping):
            continue
        for key, value in values.items():
            if key not in known or rules.refused_key(section, str(key)):
                continue
            inner = nested_keys(known[key])
            if inner is None:
                yield f"{section}.{key}", value, known[key]
            elif isinstance(value, Mapping):
                yield from ((f"{section}.{key}.{k}", v, inner[k]) for k, v in value.items() if k in inner)
    for key, annotation in (("output_dir", str), ("resume", RESUME)):
        if document.get(key) not in (None, ""):
            yield key, document[key], annotation


def _cross_faults(parsed: Any) -> Iterator[str]:
    train, lora = vars(parsed.train), vars(parsed.lora)
    yield from rules.bound_faults(train, lora)
    yield from rules.target_faults(lora)
    yield from rules.evaluation_faults(train, bool(parsed.data.splits.validation))
    yield from rules.judge_faults(parsed.evaluate.judge, parsed.evaluate.baseline, parsed.evaluate.metrics)
    yield from rules.safety_faults(parsed.safety.disclaimer)
    yield from rules.combination_faults(train, parsed.data, parsed.prompt, parsed.evaluate.metrics)


def _checks_of_what_parses(document: Mapping[str, Any], told: Sequence[str]) -> Iterator[str]:
    """Faults across keys, found in the recipe less the keys that are already told to be wrong."""
    wrong = {fault.split(" ", 1)[0] for fault in told}
    good: dict[str, Any] = {"model": {"model_name_or_path": "x"}, "data": {"path": "x"}, "output_dir": "x"}
    for dotted, value, _ in _leaves(document):
        if dotted not in wrong:
            apply_overrides(good, [(dotted, value)])
    if (parsed := _parse(good)) is not None:
        yield from _cross_faults(parsed)


def _settle(parsed: Any) -> list[str]:
    """Let keys that follow from others follow them, in place; what was decided, in words."""
    train, stopping = parsed.train, parsed.early_stopping
    if str(train.eval_strategy) != "no":
        if not stopping.patience or train.load_best_model_at_end:
            return []
        train.load_best_model_at_end = True
        return ["early_stopping.patience is set: train.load_best_model_at_end turned on with it."]
    off = []
    if train.load_best_model_at_end:
        train.load_best_model_at_end = False
        off.append("loading the best checkpoint")
    if stopping.patience:
        stopping.patience = 0
        off.append("early stopping")
    return [f"train.eval_strategy is no: {' and '.join(off)} turned off with it."] if off else []


def _build(parsed: Any, notes: list[str], document: dict[str, Any]) -> Recipe:
    own = build_parser().instantiate(parsed)
    train, lora = vars(parsed.train).copy(), vars(parsed.lora).copy()
    train.pop("output_dir")
    return Recipe(
        **{name: getattr(own, name) for name in SECTIONS},
        train=train,
        lora=lora,
        output_dir=Path(own.output_dir).expanduser(),
        resume=own.resume,
        notes=notes,
        document=document,
    )
