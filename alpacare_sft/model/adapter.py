"""The adapter: what may be trained, and its way to disk and back."""

from __future__ import annotations

import hashlib
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import ModelError, RunError, first_line
from alpacare_sft.model.base import loading_errors_explained
from alpacare_sft.recipe.names import is_path, is_same_name, local_path
from alpacare_sft.run.directory import (
    CONFIG,
    WEIGHTS,
    RunDirectory,
    has_effect,
    is_lora_weight,
    new_directory,
    read_object,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from alpacare_sft.training.trainer import AnswerSFTTrainer

# What merging changes is looked at on these: enough positions to see rounding, a second of work.
CHECKED_ROWS, CHECKED_TOKENS = 4, 64


def check_adapter(model: PeftModel) -> dict[str, int]:
    """Make sure that the LoRA weights alone are trained, and in float32.

    Returns:
        Counts of `trainable` and `total` parameters, those of a quantized base as many as it had before.

    Raises:
        ModelError: if something else would be trained, or nothing.
    """
    import torch

    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not is_lora_weight(name):
            raise ModelError(f"{name} would be trained, only LoRA weights may be. Check lora.modules_to_save.")
        if parameter.dtype != torch.float32:
            raise ModelError(f"{name} is {parameter.dtype}, adapter weights must be float32.")
    trainable, total = model.get_nb_trainable_parameters()
    if not trainable:
        raise ModelError("no LoRA weight would be trained. Check lora.target_modules.")
    return {"trainable": trainable, "total": total}


def trainable_digests(model: nn.Module) -> dict[str, str]:
    """Name → hash of each float32 parameter that is trained, to tell later which have changed."""
    return {
        name: hashlib.sha256(parameter.detach().cpu().numpy().tobytes()).hexdigest()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_adapter(
    trainer: AnswerSFTTrainer, run: RunDirectory, identity: Mapping[str, str | None], untrained: Mapping[str, str]
) -> None:
    """Write the adapter beside its place, load it back, and put it there if it is whole and training changed it.

    The trainer's state is written with it: whatever fails from here on, a rerun goes on from these weights.

    Args:
        trainer: after its training.
        run: where to.
        identity: name and revision of the base, for the adapter's config.
        untrained: `trainable_digests` of the model before it was trained.

    Raises:
        RunError: if what was written differs or is not finite, or training changed nothing; the weights stay where
            they were written.
    """
    from transformers.trainer import TRAINER_STATE_NAME

    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = identity["name"], identity["revision"]
    with new_directory(run.unchecked_adapter) as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        trainer.processing_class.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # upstream's empty card
        trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
    fault = None
    if not all(bool(one.isfinite().all()) for one in model.parameters() if one.requires_grad):
        fault = "the adapter holds numbers that are not finite. Lower train.learning_rate."
    fault = fault or _difference_on_disk(model, run.unchecked_adapter / WEIGHTS)
    if trainer.state.global_step > 0 and not _was_trained(model, untrained):
        fault = fault or "training changed nothing: no weight that has an effect is another. Check train.learning_rate."
    if fault:
        raise RunError(f"{fault} What was trained is kept in {run.unchecked_adapter}.")
    shutil.rmtree(run.adapter, ignore_errors=True)
    run.unchecked_adapter.rename(run.adapter)


def _difference_on_disk(model: Any, path: Path) -> str | None:
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    written, memory = load_file(path), get_peft_model_state_dict(model, save_embedding_layers=False)
    differ = [
        name
        for name in {*written, *memory}
        if name not in written or name not in memory or not torch.equal(written[name], memory[name].cpu())
    ]
    if not differ:
        return None
    return f"{len(differ)} tensors of the adapter differ on disk, such as {min(differ)}. Check the disk."


def _was_trained(model: nn.Module, untrained: Mapping[str, str]) -> bool:
    now = trainable_digests(model)
    return any(has_effect(name) and digest != untrained[name] for name, digest in now.items())


def find_adapter(adapter: str) -> Path:
    """The directory of an adapter, downloaded first if it is one of the Hub.

    Raises:
        ModelError: if it cannot be had, or holds no adapter.
    """
    from huggingface_hub import snapshot_download

    folder = local_path(adapter)
    if folder is None or not folder.is_dir():
        if is_path(adapter) or "/" not in adapter:
            raise ModelError(f"--adapter: {adapter} is neither a directory nor the name of a repository (owner/name).")
        with loading_errors_explained(adapter, "main", "--adapter"):
            folder = Path(snapshot_download(adapter, allow_patterns=["adapter_*"]))
    if not all((folder / name).exists() for name in (CONFIG, WEIGHTS)):
        raise ModelError(
            f"--adapter: {adapter} must hold {CONFIG} and {WEIGHTS}; weights in other files (.bin) can run code when "
            "they are read. Name the directory that a training wrote, or a repository made of one."
        )
    refuse_other_than_lora(folder)
    return folder


def refuse_other_than_lora(folder: Path) -> None:
    """Refuse what PEFT 0.21 would do for an adapter's configuration beside reading LoRA weights.

    Other methods load further models and tokenizers by name, or pickles; `megatron_core` and, in a class that
    is not used here, `auto_mapping` name modules to import.

    Raises:
        ModelError: with the entry.
    """
    config = _read_config(folder)
    mapping = config.get("auto_mapping") or {}
    library = str(mapping.get("parent_library") or "transformers") if isinstance(mapping, dict) else ""
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder / CONFIG}: peft_type must be LORA, got {config.get('peft_type')!r}.")
    if config.get("megatron_config") or library.partition(".")[0] != "transformers":
        entry = "megatron_core" if config.get("megatron_config") else "auto_mapping"
        raise ModelError(f"{folder / CONFIG}: {entry} names code to import, which is never run. Leave it out.")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG} is damaged: {error}. Copy or download it again.") from error


def attach_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base, on its device, with an adapter around it.

    Raises:
        ModelError: if it does not fit.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    refuse_other_than_lora(folder)
    does_not_fit = f"the adapter in {folder} is damaged or does not fit this base"
    # What PEFT 0.21 lets through for values of its configuration that it does not look at.
    refusals = (
        *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
        *(ImportError, OSError, re.error, SafetensorError),
    )
    try:
        with warnings.catch_warnings():  # PEFT warns of names that it does not know, and goes on without them
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            attached: PreTrainedModel = PeftModel.from_pretrained(base, folder).eval()
        with safe_open(folder / WEIGHTS, "pt") as file:
            written = set(file.keys())
    except torch.OutOfMemoryError:
        raise
    except refusals as error:
        raise ModelError(f"{does_not_fit}: {first_line(error)}. Copy or download it again.") from error
    if unused := written ^ set(get_peft_model_state_dict(attached, save_embedding_layers=False)):
        raise ModelError(f"{does_not_fit}: {len(unused):,} tensors have no counterpart, such as {min(unused)}.")
    return attached


def other_base(adapter: str, folder: Path, base_name: str, same_base: bool) -> str | None:
    """The base that an adapter names, if that is not by its name the run's.

    Args:
        adapter: its name, for messages.
        folder: where it lies.
        base_name: of the run's base.
        same_base: take the one for the other.

    Raises:
        ModelError: if it names another base, and `same_base` does not say that it is the same.
    """
    named = _read_config(folder).get("base_model_name_or_path")
    if not named or is_same_name(str(named), base_name):
        return None
    if not same_base:
        raise ModelError(
            f"--adapter: {adapter} was trained on {named}, the base here is {base_name}. If both are one model, such "
            "as a mirror or a local copy of it, add --same-base; else score it with a recipe of its own base."
        )
    return str(named)


def merge_adapter(
    attached: Any, rows: Sequence[Mapping[str, Any]], base: Tensor
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Add an adapter to the weights of its base, in place, and compare before with after.

    In 16-bit weights a small change is rounded. What that loses is reported beside what the adapter does, since
    an adapter that was rounded away altogether would still leave most of the likeliest tokens as they were.

    Args:
        attached: base with the adapter around it, unquantized.
        rows: encoded rows, at least one; the first few are read.
        base: what `answer_logits` gave for these rows before the adapter was attached, which may change its weights.

    Returns:
        The plain model, and what was compared on the references' first tokens: `positions`;
        `same_token_share`, the share of them whose likeliest token stayed the same; `largest_logit_difference`;
        and `lost_share`, the root mean square change of the logits by merging over that by the adapter. The
        last two are None where a logit is no number.
    """
    before = answer_logits(attached, rows)
    merged = attached.merge_and_unload().eval()
    after = answer_logits(merged, rows)
    done, lost = before - base, after - before
    return merged, {
        "positions": len(before),
        "same_token_share": float((after.argmax(-1) == before.argmax(-1)).float().mean()),
        "largest_logit_difference": _number(lost.abs().max()),
        "lost_share": _number(lost.norm() / done.norm()) if done.any() else 0.0,
    }


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def answer_logits(model: Any, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Logits that the first tokens of the first few references are predicted by, float32 on the CPU, shape (N, V)."""
    import torch

    logits: list[Tensor] = []
    for row in rows[:CHECKED_ROWS]:
        ids = torch.tensor([row["input_ids"][: row["prompt_tokens"] + CHECKED_TOKENS]], device=model.device)
        positions = ids.shape[1] - row["prompt_tokens"] + 1
        with torch.inference_mode():
            predicted = model(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
        logits.append(predicted[0, :-1].float().cpu())
    return torch.cat(logits)
