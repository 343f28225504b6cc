"""What the libraries under a run refuse late, or do otherwise than requested: reported before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from alpacare_sft import runtime
from alpacare_sft.errors import RecipeError, first_line

if TYPE_CHECKING:
    from trl import SFTConfig

# What `accelerate launch` tells its processes, by its options or by the file of `accelerate config`.
_SPLIT_WEIGHTS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
_LOADER = {"split_batches": False, "dispatch_batches": False, "even_batches": True, "use_seedable_sampler": True}
_NEED_THE_MODEL = ("galore", "apollo", "lomo", "adalomo")


def check_launcher() -> None:
    """Refuse a launcher's configuration that splits the model over processes.

    The adapter and its checkpoints are written whole by one process; and without a GPU accelerate
    1.15 leaves FSDP and DeepSpeed out silently.

    Raises:
        RecipeError: with what to do instead.
    """
    modes = [name for key, name in _SPLIT_WEIGHTS.items() if os.environ.get(key, "").lower() in ("true", "1", "yes")]
    if modes:
        raise RecipeError(
            f"the launcher asks for {' and '.join(modes)}, which is not supported: each process must hold the whole "
            "model, so that one can save the adapter. Launch with --multi_gpu, or answer no to it in `accelerate "
            "config`; for less memory a process add --model.quantization nf4 or --train.activation_checkpointing true."
        )


def check_config(config: SFTConfig) -> None:
    """Build what `SFTConfig` names and leaves for later: the schedule, the optimizer, the kernels.

    Raises:
        RecipeError: naming the key, with upstream's own words.
    """
    _check_schedule(config)
    _check_optimizer(config)
    _check_loader(config)
    if config.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise RecipeError(
            "train.use_liger_kernel needs its package, and a GPU. Install it: pip install liger-kernel. "
            "Or leave it out."
        )
    if config.activation_offloading and not runtime.has_gpu(config.use_cpu):
        raise RecipeError("train.activation_offloading needs a GPU, none is in use. Leave it out.")
    if config.torch_compile:
        _check_compilation(config)


def _check_schedule(config: SFTConfig) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    options = config.lr_scheduler_kwargs
    name = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=options)
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"train.lr_scheduler_kwargs must suit train.lr_scheduler_type {name}, got {options or 'none'}: "
            f"{first_line(error)}."
        ) from error


def _check_optimizer(config: SFTConfig) -> None:
    from transformers import Trainer

    name = getattr(config.optim, "value", config.optim)
    try:
        Trainer.get_optimizer_cls_and_kwargs(config, None)
    except (ImportError, ValueError) as error:
        if name.startswith(_NEED_THE_MODEL) and not isinstance(error, ImportError):
            return
        options = f" with train.optim_args {config.optim_args!r}" if config.optim_args else ""
        raise RecipeError(f"train.optim: {name}{options} cannot be used here: {first_line(error)}.") from error


def _check_loader(config: SFTConfig) -> None:
    """Keep accelerate from another order or another number of rows per step than a resume goes on with."""
    if config.train_sampling_strategy == "batch_rebalance":
        raise RecipeError(
            "train.train_sampling_strategy must not be batch_rebalance: with it transformers 5.23 repeats rows in the "
            "last step, and a resumed epoch reads other rows than it began with. Use group_by_length."
        )
    given = config.accelerator_config.to_dict()
    for key, needed in _LOADER.items():
        if given[key] not in (needed, None):
            raise RecipeError(
                f"train.accelerator_config.{key} must be {str(needed).lower()}, got {str(given[key]).lower()}: else "
                "rows would be read twice or not at all. Leave it out."
            )


def _check_compilation(config: SFTConfig) -> None:
    from torch._dynamo import list_backends
    from torch._inductor import list_mode_options

    choices = (("backend", list_backends(exclude_tags=())), ("mode", ["default", *list_mode_options()]))
    for key, known in choices:
        value = getattr(config, f"torch_compile_{key}")
        if value is not None and value not in known:
            raise RecipeError(f"train.torch_compile_{key} must be one of {', '.join(known)}, got {value}.")
