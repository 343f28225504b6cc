"""The recipe that a run was trained by, whatever versions of the libraries read it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from alpacare_sft import runtime
from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.recipe.document import apply_overrides, read_document
from alpacare_sft.recipe.keys import SECTIONS, is_known_key
from alpacare_sft.recipe.loading import Recipe, recipe_from_document
from alpacare_sft.recipe.resolved import (
    ADAPTER_SECTIONS,
    SHOWN_ONLY,
    dotted_values,
    given_document,
    given_keys,
    given_values,
    recipe_differences,
    recipe_sha256,
    recipe_yaml,
    settle,
)
from alpacare_sft.recipe.sections import EarlyStoppingSection
from alpacare_sft.recipe.validation import fits_key
from alpacare_sft.recipe.values import plain_value, show_value
from alpacare_sft.run.directory import RunDirectory, write_text
from alpacare_sft.run.record import version_changes
from alpacare_sft.runtime import say

_Section = TypeVar("_Section")
_ELSE = "choose another output_dir, or add --overwrite to replace it"


@dataclass(frozen=True)
class StoredRecipe:
    """What a run says of its recipe.

    Attributes:
        recipe: with the values of the run, and of the installed libraries where the run knows none.
        removed: dotted key → value of the run, for each key that the installed libraries lack.
        added: dotted keys that the installed libraries have and the run does not know.
        versions: `trl 1.16.0 → 1.17.0`, for each package that is another now.
        is_of_record: whether the recipe has the hash of the record; None if that cannot be checked.
    """

    recipe: Recipe
    removed: dict[str, Any]
    added: list[str]
    versions: list[str]
    is_of_record: bool | None

    def describe_changes(self) -> str:
        """What is not as it was when the run was trained, in one line; empty if nothing is."""
        parts = [f"other versions than the run's: {', '.join(self.versions)}"] if self.versions else []
        if self.removed:
            values = (f"{key} (was {value})" for key, value in sorted(self.removed.items()))
            parts.append(f"keys that no longer exist: {', '.join(values)}")
        return "; ".join(parts)


def read_stored_recipe(run: RunDirectory) -> StoredRecipe:
    """Read the recipe of a run; its values of `train` and `lora` need not fit the installed libraries.

    A run of 0.1.0 has no resolved values in its record. Its recipe.yaml holds our sections in full, defaults and
    all, and of `train` and `lora` what was not upstream's default then.

    Raises:
        RecipeError: if recipe.yaml cannot be read, or holds a value of ours that cannot work.
    """
    document, _ = read_document(run.recipe)
    record = run.read_record()
    values = record.get("resolved", document)
    is_old = "resolved" not in record
    sections = {**document, **{name: values.get(name) or {} for name in ADAPTER_SECTIONS}}
    own = {name: dict(_known(sections.get(name) or {}, name)) for name in SECTIONS}
    top = {key: document[key] for key in ("output_dir", "resume") if key in document}
    base = recipe_from_document(copy.deepcopy(own) | top, source=str(run.recipe))
    given = {key: value for key, value in document.items() if key in ("train", "lora") or not is_old}
    recipe = dataclasses.replace(
        base,
        train=_with_values(base.train, sections["train"]),
        lora=_with_values(base.lora, sections["lora"]),
        early_stopping=EarlyStoppingSection(**own["early_stopping"]),
        document=given,
        loaded={},
        notes=[],
    )
    versions = version_changes(record)
    if not versions:
        _check_values(run, recipe)
    of_run = dotted_values(sections) | dotted_values(given)
    return StoredRecipe(
        recipe,
        removed={key: value for key, value in of_run.items() if not is_known_key(key)},
        added=[] if is_old else sorted(key for key in dotted_values(recipe.values()) if key not in of_run),
        versions=versions,
        is_of_record=_is_of_record(record, document, recipe),
    )


def _check_values(run: RunDirectory, recipe: Recipe) -> None:
    """Refuse values of `train` and `lora` that the very libraries of the run never took.

    Raises:
        RecipeError: with the first of them.
    """
    for section in ("train", "lora"):
        for key, value in given_values(recipe, section).items():
            if is_known_key(f"{section}.{key}") and not fits_key(f"{section}.{key}", value):
                raise RecipeError(f"{run.record}: resolved.{section}.{key} cannot be {show_value(value)}.")


def _known(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The keys of one of our sections that this version has, into the sections within it."""
    for key, value in values.items():
        if is_known_key(f"{prefix}.{key}"):
            inner = isinstance(value, Mapping) and "." not in prefix
            yield key, dict(_known(value, f"{prefix}.{key}")) if inner else value


def _is_of_record(record: Mapping[str, Any], document: Mapping[str, Any], recipe: Recipe) -> bool | None:
    if "resolved" in record:
        actual = recipe_sha256(recipe)
    elif any(change.split(" ")[0] in ("trl", "peft", "transformers") for change in version_changes(record)):
        return None  # the hash of 0.1.0 covers the defaults of these three
    else:
        actual = _sha256_of_0_1(document, recipe)
    return actual == record.get("recipe_sha256")


def _sha256_of_0_1(document: Mapping[str, Any], recipe: Recipe) -> str:
    """The hash as 0.1.0 made it: of every value, the defaults of the libraries included."""
    parts = {name: document.get(name) or {} for name in ("model", "data", "prompt", "early_stopping")}
    train = {key: value for key, value in vars(recipe.train).items() if f"train.{key}" not in SHOWN_ONLY}
    values = dict(_leaves({**parts, "lora": plain_value(vars(recipe.lora)), "train": plain_value(train)}))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _with_values(section: _Section, values: Mapping[str, Any]) -> _Section:
    """A copy of `train` or `lora` with a run's values, those of keys that the installed libraries lack too."""
    changed = copy.copy(section)
    vars(changed).update(values)
    return changed


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def trained_recipe(run: RunDirectory) -> Recipe:
    """The recipe that a run's adapter was trained by, under any version of the libraries.

    Raises:
        RunError: if there is no adapter, its training has not ended, or the recipe was edited since.
    """
    if not run.has_adapter():
        raise RunError(f"output_dir: {run.path} holds no trained adapter. Train it first: alpacare-sft train RECIPE.")
    if run.read_record().get("status") != "done":
        raise RunError(f"output_dir: the training in {run.path} has not ended. Run it again to go on.")
    if damaged := run.damaged("adapter/"):
        raise RunError(
            f"{run.path}: {', '.join(damaged)} not as the training wrote it. Make it again from its last checkpoint: "
            "alpacare-sft train RECIPE."
        )
    undo = (
        "Undo what was changed in it, or have it written anew from the recipe that the run was begun with: "
        "alpacare-sft train RECIPE."
    )
    try:
        stored = read_stored_recipe(run)
    except RecipeError as error:
        raise RunError(f"{error}\n{undo}") from error
    if stored.is_of_record is False:
        raise RunError(f"{run.recipe} is not the recipe that this adapter was trained by. {undo}")
    if changes := stored.describe_changes():
        say(f"{run.path}: {changes}.")
    if stored.is_of_record is None:
        say(f"{run.recipe} cannot be checked: its hash covers the defaults of the versions that it was trained with.")
    return stored.recipe


def continue_run(run: RunDirectory, recipe: Recipe, keys: tuple[str, ...] = ("",)) -> Recipe:
    """Hold a recipe to a directory that holds work.

    Args:
        run: a directory with a checkpoint or an adapter.
        recipe: what is requested now.
        keys: beginnings of the dotted keys that must agree; all that alter the adapter by default.

    Returns:
        The recipe, with the run's value of each key that neither names.

    Raises:
        RunError: with each difference, or what of the run this machine or its libraries lack.
    """
    if run.read_record().get("recipe_sha256") == recipe_sha256(recipe) and run.damaged("recipe.yaml"):
        say(f"{run.recipe} is not as it was written: it is written anew from the recipe given, which is the run's.")
        write_text(run.recipe, recipe_yaml(recipe))
    if not run.recipe.exists():
        raise RunError(
            f"output_dir: {run.path} holds checkpoints or an adapter and no recipe. "
            "Choose another output_dir, or add --overwrite to replace them."
        )
    stored = read_stored_recipe(run)
    differences = [line for line in recipe_differences(stored.recipe, recipe) if line.startswith(keys)]
    if differences:
        lines = "\n".join(f"  - {difference}" for difference in differences)
        raise RunError(
            f"output_dir: {run.path} holds a run of another recipe:\n{lines}\n{_ELSE[0].upper()}{_ELSE[1:]}."
        )
    if run.read_record().get("status") == "done" and run.has_adapter():
        if changes := stored.describe_changes():
            say(f"{run.path}: {changes}.")
        return recipe
    named = given_keys(stored.recipe)
    if removed := {key: stored.removed[key] for key in named & stored.removed.keys() if key.startswith(keys)}:
        lines = ", ".join(f"{key}: {value}" for key, value in sorted(removed.items()))
        raise RunError(
            f"output_dir: {run.path} was begun with {lines}, which the installed libraries no longer have "
            f"({', '.join(stored.versions)}). Install the versions that it was begun with, {_ELSE}."
        )
    return _with_values_of(run, stored, recipe, keys)


def _with_values_of(run: RunDirectory, stored: StoredRecipe, recipe: Recipe, keys: tuple[str, ...]) -> Recipe:
    """The recipe with the run's value of each key that neither names, reported where that is no default any more."""
    before, now = dotted_values(stored.recipe.values()), dotted_values(recipe.values())
    free = before.keys() & now.keys() - given_keys(stored.recipe, recipe) - SHOWN_ONLY
    other = {key: before[key] for key in sorted(free) if before[key] != now[key] and key.startswith(keys)}
    retained = {key: value for key, value in other.items() if fits_key(key, value)}
    if stored.versions:
        say(
            f"going on under other versions than the run began with: {', '.join(stored.versions)}. The run's values "
            "are retained; results may differ in the last bits."
        )
    if retained:
        say(f"retained from the run: {_pairs(retained)}.")
    if lost := {**stored.removed, **{key: value for key, value in other.items() if key not in retained}}:
        say(f"of the run, but not taken by the installed libraries: {_pairs(lost)}.")
    if stored.added:
        added = {key: now.get(key) for key in stored.added}
        say(f"unknown to the run, now at their defaults: {_pairs(added)}.")
    if not retained:
        return recipe
    document = given_document(recipe)
    apply_overrides(document, list(retained.items()))
    whole = recipe_from_document(document, source=str(run.recipe))
    continued = settle(recipe, **{name: getattr(whole, name) for name in ADAPTER_SECTIONS})
    try:
        runtime.resolve_precision(continued.train)
    except RecipeError as error:
        name = "fp16" if continued.train.fp16 else "bf16"
        raise RunError(
            f"output_dir: {run.path} was begun in {name}, which this machine lacks. Go on where it is there, {_ELSE}."
        ) from error
    return continued


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(values.items()))
