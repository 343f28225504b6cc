"""A `Recipe` → the resolved YAML, its hash, and how two recipes differ."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from alpacare_sft.recipe.document import dump_yaml, read_document
from alpacare_sft.recipe.keys import SECTIONS
from alpacare_sft.recipe.loading import Recipe, recipe_from_document, upstream_defaults

# Keys of `train` that change what is shown or kept, and never the adapter.
_SHOWN_ONLY = {
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "log_on_each_node",
    "log_level",
    "log_level_replica",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "save_total_limit",
    "dataset_num_proc",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "skip_memory_metrics",
    "debug",
    "per_device_eval_batch_size",
}


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a mapping that loads back to an equal recipe.

    Our own sections stand in full; `train` and `lora` hold what differs from upstream's defaults.
    """
    document: dict[str, Any] = {name: _plain(dataclasses.asdict(getattr(recipe, name))) for name in SECTIONS}
    for name in ("lora", "train"):
        document[name] = _plain(given_values(recipe, name))
    document["output_dir"], document["resume"] = str(recipe.output_dir), recipe.resume
    order = ("model", "data", "prompt", "lora", "train", *SECTIONS, "output_dir", "resume")
    return {key: document[key] for key in dict.fromkeys(order)}


def given_values(recipe: Recipe, section: str) -> dict[str, Any]:
    """What `train` or `lora` holds beside upstream's defaults."""
    upstream = upstream_defaults(section)
    return {key: value for key, value in getattr(recipe, section).items() if value != upstream[key]}


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    head = "# The resolved recipe of this run. Keys of train and lora that are not here have upstream's defaults.\n"
    return head + dump_yaml(recipe_document(recipe))


def read_resolved(path: Path) -> Recipe:
    """A recipe that `recipe_yaml` wrote.

    Raises:
        RecipeError: if it was changed into something that cannot work.
    """
    document, faults = read_document(path)
    return recipe_from_document(document, source=str(path), faults=faults)


def what_alters_the_adapter(recipe: Recipe) -> dict[str, Any]:
    """Dotted key → value of everything that has a say in the trained weights."""
    parts = {name: _plain(dataclasses.asdict(getattr(recipe, name))) for name in ("model", "data", "prompt")}
    parts["early_stopping"] = dataclasses.asdict(recipe.early_stopping)
    parts["lora"] = _plain(recipe.lora)
    parts["train"] = {key: _plain(value) for key, value in recipe.train.items() if key not in _SHOWN_ONLY}
    return dict(_dotted(parts))


def recipe_sha256(recipe: Recipe) -> str:
    """Hash of what alters the adapter."""
    return hashlib.sha256(json.dumps(what_alters_the_adapter(recipe), sort_keys=True).encode()).hexdigest()


def recipe_differences(before: Recipe, after: Recipe) -> list[str]:
    """`train.learning_rate: 0.0002 → 0.0001`, one line for each key that alters the adapter."""
    old, new = what_alters_the_adapter(before), what_alters_the_adapter(after)
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def _plain(value: Any) -> Any:
    """Values as YAML and JSON hold them."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Namespace):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _dotted(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _dotted(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
