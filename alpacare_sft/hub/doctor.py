"""Whether this machine can run: versions, card, room, token, gates; each line with its remedy."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alpacare_sft.errors import RecipeError, first_line
from alpacare_sft.hub.errors import TOKENS, hub_fault
from alpacare_sft.hub.preflight import read_account
from alpacare_sft.recipe.keys import section_types
from alpacare_sft.recipe.names import EMBEDDED, hub_datasets, is_path
from alpacare_sft.runtime import resolve_precision

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe

# The reference downloads 2.5 GB of weights and 60 MB of rows; a run adds some 20 MB a checkpoint.
_DISK_GB = 5
_MEMORY_GB = 6  # 2.5 for the weights of the reference, the rest for the libraries and the rows
_SITES = {
    "COLAB_RELEASE_TAG": "Colab: files vanish with the machine, and it ends after hours; keep output_dir on a mounted "
    "Drive, and use --stop-after",
    "KAGGLE_KERNEL_RUN_TYPE": "Kaggle: only /kaggle/working is kept, and a session ends after 12 hours; use "
    "--stop-after",
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    level: Literal["fine", "warning", "fault"]
    subject: str
    text: str


def examine(recipe: Recipe | None = None) -> Iterator[Finding]:
    """Look at this machine, and where a recipe is given at what it needs.

    Args:
        recipe: whose base, rows and precision count.

    Yields:
        A finding for each thing that was looked at; nothing is downloaded, and the token is never shown.
    """
    yield from _versions()
    yield from _hardware(recipe)
    yield from _room(recipe)
    yield from _token()
    yield from _gates(recipe)
    yield from (Finding("warning", "site", text) for name, text in _SITES.items() if name in os.environ)


def _versions() -> Iterator[Finding]:
    """Python and each distribution that the package needs, against the bounds that it states."""
    from packaging.requirements import Requirement

    yield Finding("fine", "Python", sys.version.split()[0])  # pip refuses another than the metadata allows
    wrong, names = [], []
    try:
        needs = importlib.metadata.requires("alpacare_sft") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "warning", "packages", "alpacare_sft is not installed, so its bounds are unknown. Run: pip install ."
        )
        return
    for line in needs:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and need.specifier.contains(version, prereleases=True):
            names.append(f"{need.name} {version}")
        else:
            wrong.append(f"{need.name}{need.specifier} is needed, {version or 'none'} is installed")
    for text in wrong:
        yield Finding("fault", "packages", f"{text}. Run: pip install --upgrade alpacare_sft")
    shown = [name for name in names if name.split()[0] in ("torch", "transformers", "trl", "peft", "datasets")]
    yield Finding("fine", "packages", f"{len(names)} within the tested bounds: {', '.join(shown)}")


def _hardware(recipe: Recipe | None) -> Iterator[Finding]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken installation raises whatever its loader meets
        text = f"cannot be imported: {first_line(error)}. Install it anew: see pytorch.org for this machine's line"
        yield Finding("fault", "torch", text)
        return
    if not torch.cuda.is_available():
        text = "none is visible; training runs on the CPU in float32, for small models only"
        yield Finding("warning", "GPU", text)
    else:
        properties, (major, minor) = torch.cuda.get_device_properties(0), torch.cuda.get_device_capability()
        half = resolve_precision(section_types()["train"]()).name  # of a recipe that leaves it open
        half += ", as bfloat16 needs compute capability 8.0" if half == "fp16" else ""
        size = f"{properties.total_memory / 2**30:.1f} GiB"
        yield Finding("fine", "GPU", f"{properties.name}, {size}, compute capability {major}.{minor}: {half}")
    yield from _launcher(torch.cuda.device_count())
    if recipe is not None:
        try:
            yield Finding("fine", "precision", f"the recipe trains in {resolve_precision(recipe.train).name} here")
        except RecipeError as error:
            yield Finding("fault", "precision", str(error))


def _launcher(num_gpus: int) -> Iterator[Finding]:
    """Whether `accelerate launch` starts what a recipe means: without a configuration it takes every GPU."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        if num_gpus > 1:
            text = f"accelerate launch will start {num_gpus} processes, which share the recipe's rows of a step"
            yield Finding("warning", "launcher", f"{text}. For one: CUDA_VISIBLE_DEVICES=0")
        return
    try:
        config = load_config_from_file(None)
    except Exception as error:  # a file that a person may have edited
        yield Finding("fault", "launcher", f"{default_config_file}: {first_line(error)}. Run: accelerate config")
        return
    if num_gpus and config.num_processes > num_gpus:
        text = f"its configuration starts {config.num_processes} processes on {num_gpus} GPU"
        yield Finding("fault", "launcher", f"{text}. Run: accelerate config")
    else:
        yield Finding("fine", "launcher", f"accelerate's configuration starts {config.num_processes} process(es)")


def _room(recipe: Recipe | None) -> Iterator[Finding]:
    """Memory, and the disks of the run and of the cache."""
    import psutil
    from huggingface_hub import constants

    memory = psutil.virtual_memory().available / 1e9
    low = "; the reference needs more" if memory < _MEMORY_GB else ""
    yield Finding("warning" if low else "fine", "memory", f"{memory:.0f} GB available{low}")
    places = {"cache": Path(constants.HF_HOME), "output_dir": recipe.output_dir if recipe else Path.cwd()}
    for name, path in places.items():
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free / 1e9
        if not os.access(there, os.W_OK):
            yield Finding("fault", name, f"{path} may not be written. Set {_setting(name)} to a place that may")
        elif free < _DISK_GB:
            text = f"{free:.1f} GB are free, the reference needs about {_DISK_GB}. Free some, or set {_setting(name)}"
            yield Finding("warning", name, text)
        else:
            yield Finding("fine", name, f"{free:.0f} GB are free")


def _setting(place: str) -> str:
    return "HF_HOME" if place == "cache" else "output_dir"


def _token() -> Iterator[Finding]:
    """Whose token there is and what it may do; never the token."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        yield Finding("warning", "token", f"none; gated models need one. Make it at {TOKENS}, then: hf auth login")
        return
    try:
        account = read_account(HfApi())
    except Exception as error:  # the network, or a token that the Hub does not know
        fault = hub_fault(error, "the token", writes=True)
        yield Finding(
            "warning", "token", f"one is stored; {fault or 'the Hub cannot be reached, so it was not tried.'}"
        )
        return
    role = ((account.get("auth") or {}).get("accessToken") or {}).get("role", "of unknown rights")
    reads = "; it cannot publish" if role == "read" else ""
    yield Finding("fine", "token", f"of {account.get('name')}, {role}{reads}")


def _gates(recipe: Recipe | None) -> Iterator[Finding]:
    """Whether the token may read the recipe's base and data sets."""
    from huggingface_hub import HfApi

    if recipe is None:
        return
    base = recipe.model.model_name_or_path
    wanted = [] if base == EMBEDDED or is_path(base) else [("model", base)]
    wanted += [("data set", name) for name in dict.fromkeys(one.path for one in hub_datasets(recipe.data.path))]
    for kind, name in wanted:
        try:
            HfApi().auth_check(name, repo_type="dataset" if kind == "data set" else "model")
            yield Finding("fine", kind, f"{name} may be read")
        except Exception as error:  # as the client raises it
            fault = hub_fault(error, name, kind)
            is_refusal = fault is not None and getattr(error, "response", None) is not None
            text = fault or "the Hub cannot be reached, so it was not tried"
            yield Finding("fault" if is_refusal else "warning", kind, text)
