"""The adapter: what may be trained, and its way to disk and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alpacare_sft.errors import ModelError, RunError
from alpacare_sft.run import new_directory

if TYPE_CHECKING:
    from torch import nn

    from alpacare_sft.trainer import AnswerSFTTrainer


def check_adapter(model: nn.Module) -> dict[str, int]:
    """Make sure that the LoRA weights alone are trained, and in float32.

    Returns:
        Counts of `trainable` and `total` parameters.

    Raises:
        ModelError: if something else would be trained, or nothing.
    """
    import torch

    trainable = total = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if not parameter.requires_grad:
            continue
        if "lora_" not in name and not name.endswith(".bias"):
            raise ModelError(f"{name} would be trained, only LoRA weights may be. Check lora.modules_to_save.")
        if parameter.dtype != torch.float32:
            raise ModelError(f"{name} is {parameter.dtype}, adapter weights must be float32.")
        trainable += parameter.numel()
    if not trainable:
        raise ModelError("no LoRA weight would be trained. Check lora.target_modules.")
    return {"trainable": trainable, "total": total}


def save_adapter(trainer: AnswerSFTTrainer, target: Path, identity: Mapping[str, str | None]) -> None:
    """Write the adapter at once, load it back and make sure that it is the one in memory, and alive.

    Raises:
        RunError: if what was written differs, or learnt nothing.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = identity["name"], identity["revision"]
    with new_directory(target) as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        trainer.processing_class.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # upstream's empty card
        written = load_file(folder / "adapter_model.safetensors")
        memory = get_peft_model_state_dict(model, save_embedding_layers=False)
        same = [name for name, value in written.items() if name in memory and torch.equal(value, memory[name].cpu())]
        if not len(same) == len(written) == len(memory):
            raise RunError(f"{len(memory) - len(same)} tensors of the adapter differ on disk. Check the disk.")
        alive = [name for name, value in written.items() if "lora_B" in name and bool(value.abs().max() > 0)]
        if not alive and trainer.state.global_step > 0:
            raise RunError("the adapter learnt nothing: every lora_B is zero. Check train.learning_rate.")
