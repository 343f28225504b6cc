"""A `Recipe` → what was given and what it resolved to, its hash, and how two recipes differ."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe import rules
from alpacare_sft.recipe.document import dump_yaml
from alpacare_sft.recipe.keys import SECTIONS, TOP_KEYS, dotted, known_keys, plain_value, section_types
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.recipe.names import is_same_name

# The sections that have a say in the trained weights, in the order of a recipe.
ADAPTER_SECTIONS = ("model", "data", "prompt", "lora", "train", "early_stopping")

# Keys of `train` that change what is shown or stored, and never the adapter.
SHOWN_ONLY = {
    "train.logging_strategy",
    "train.logging_steps",
    "train.logging_first_step",
    "train.log_on_each_node",
    "train.log_level",
    "train.log_level_replica",
    "train.report_to",
    "train.run_name",
    "train.project",
    "train.trackio_space_id",
    "train.trackio_bucket_id",
    "train.trackio_static_space_id",
    "train.save_total_limit",
    "train.dataset_num_proc",
    "train.dataloader_num_workers",
    "train.dataloader_pin_memory",
    "train.dataloader_persistent_workers",
    "train.dataloader_prefetch_factor",
    "train.skip_memory_metrics",
    "train.debug",
    "train.per_device_eval_batch_size",
}
# What counts of these is rows per optimizer step, which training compares and records.
BATCH_KEYS = {"train.per_device_train_batch_size", "train.gradient_accumulation_steps"}
# Names of repositories on the Hub, unless they are paths.
HUB_NAMES = {"model.model_name_or_path", "data.path"}


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a mapping that loads back to an equal recipe, under later defaults of this package too.

    Our own sections stand in full; `train` and `lora` hold what was given and what differs from upstream's defaults.
    """
    document: dict[str, Any] = recipe.values()
    given = given_document(recipe)
    for name in ("lora", "train"):
        unlike_default = given_values(recipe, name)
        named = {*unlike_default, *(given.get(name) or ())}
        document[name] = {key: value for key, value in document[name].items() if key in named}
    document |= {key: given[key] for key in TOP_KEYS}
    order = (*ADAPTER_SECTIONS, *SECTIONS, *TOP_KEYS)
    return {key: document[key] for key in dict.fromkeys(order)}


def given_values(recipe: Recipe, section: str) -> dict[str, Any]:
    """What `train` or `lora` holds beside upstream's defaults."""
    values, defaults = vars(getattr(recipe, section)), vars(section_types()[section]())
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def given_document(recipe: Recipe) -> dict[str, Any]:
    """The document that a recipe was loaded from, with what was set in Python since."""
    document = copy.deepcopy(recipe.document)
    for section, values in recipe.values().items():
        changed = {key: value for key, value in values.items() if value != recipe.loaded[section].get(key)}
        if changed:
            document[section] = {**(document.get(section) or {}), **changed}
    return document | {"output_dir": str(recipe.output_dir), "resume": recipe.resume}


def settle(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with attributes that follow from the machine or the run, and do not count as given."""
    return dataclasses.replace(recipe, **changes, document=given_document(recipe), loaded={})


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as it was given, overrides applied."""
    head = "# The recipe of this run with its overrides. run.json holds what every key resolved to.\n"
    return head + dump_yaml(given_document(recipe))


def recipe_sha256(recipe: Recipe) -> str:
    """Hash of what was given, as far as it alters the adapter; no default has a part in it."""
    given = given_document(recipe)
    parts = {
        f"{section}.{key}": plain_value(value)
        for section in ADAPTER_SECTIONS
        for key, value in (given.get(section) or {}).items()
    }
    parts = {key: value for key, value in parts.items() if key not in SHOWN_ONLY | BATCH_KEYS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def dotted_values(document: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → value of the sections that have a say in the adapter, into the sections within them."""
    values = dotted({name: document.get(name) for name in ADAPTER_SECTIONS})
    return {key: plain_value(value) for key, value in values.items()}


def given_keys(*recipes: Recipe) -> set[str]:
    """Dotted keys that any of the recipes names."""
    return {key for recipe in recipes for key in dotted_values(given_document(recipe))}


def recipe_differences(before: Recipe, after: Recipe) -> list[str]:
    """`train.learning_rate: 0.0002 → 0.0001`, one line for each key that alters the adapter and either names."""
    old, new = dotted_values(before.values()), dotted_values(after.values())
    named = (given_keys(before, after) - SHOWN_ONLY - BATCH_KEYS) & known_keys().keys()
    return [
        f"{key}: {old.get(key)} → {new.get(key)}"
        for key in sorted(named)
        if not _is_same(key, old.get(key), new.get(key))
    ]


def _is_same(key: str, old: Any, new: Any) -> bool:
    """Whether two values are one; the Hub takes letter case in a name for no difference, a file system may."""
    if key in HUB_NAMES and isinstance(old, str) and isinstance(new, str):
        return is_same_name(old, new)
    return bool(old == new)


def refuse_removed_keys(recipe: Recipe) -> None:
    """Refuse to train by keys that the installed TRL or PEFT lacks; loading takes them for a finished run's sake.

    Raises:
        RecipeError: with each such key.
    """
    removed = [key.split(".") for key in sorted(given_keys(recipe) - known_keys().keys())]
    if removed:
        known = {name: [item.name for item in dataclasses.fields(kind)] for name, kind in section_types().items()}
        raise RecipeError([rules.unknown_key(section, key, known[section]) for section, key in removed])
