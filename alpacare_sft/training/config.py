"""Recipe, rows and base model → the trainer, checked before its first step.

What the libraries below refuse late, or do otherwise than requested, is reported before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.data.prepare import PreparedData
from alpacare_sft.errors import DataError, ModelError, RecipeError, first_line
from alpacare_sft.recipe.keys import plain_value
from alpacare_sft.recipe.resolved import given_values
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.training.batches import share_batch

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import SFTConfig

    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.training.trainer import AnswerSFTTrainer

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


_EXTRA = ("tensorboard", "trackio", "wandb")
_TRACKERS = {"azure_ml": "azureml"}  # where the package has another name


def build_sft_config(recipe: Recipe, run: RunDirectory, precision: runtime.Precision) -> SFTConfig:
    """`trl.SFTConfig` of a recipe on this machine.

    Raises:
        RecipeError: if upstream refuses a value, or the rows of a step do not divide by the processes.
    """
    from trl import SFTConfig

    batch = share_batch(recipe.train)
    if recipe.forward.rows == "auto" and batch.processes == 1:  # the step is one batch, which the trainer divides
        size = batch.per_device_train_batch_size * batch.gradient_accumulation_steps
        batch = dataclasses.replace(batch, per_device_train_batch_size=size, gradient_accumulation_steps=1)
    ours = {
        "output_dir": str(run.checkpoints),
        "completion_only_loss": True,
        "per_device_train_batch_size": batch.per_device_train_batch_size,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "fp16": precision.fp16,
        "bf16": precision.bf16,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "restore_callback_states_from_checkpoint": True,
    }
    if recipe.train.ddp_find_unused_parameters is None:
        ours["ddp_find_unused_parameters"] = False  # every LoRA weight takes part in every step
    if recipe.train.activation_checkpointing is None:  # trl 1.16 has its default under the old name, which warns
        ours["activation_checkpointing"] = getattr(recipe.train, "gradient_checkpointing", False)
    if not runtime.has_gpu(recipe.train.use_cpu):
        ours["dataloader_pin_memory"] = False  # else torch warns at every epoch
    try:
        config = SFTConfig(**{**given_values(recipe, "train"), **ours})
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise RecipeError(f"train: {' '.join(str(error).split())}") from error
    config.mixed_precision = "no" if precision.name == "fp32" else precision.name  # else a launcher's --mixed_precision
    return config


def check_trackers(recipe: Recipe) -> None:
    """Refuse a tracker whose package is missing, before anything is loaded.

    Raises:
        RecipeError: with the line that installs it.
    """
    names = recipe.train.report_to or []
    for name in [names] if isinstance(names, str) else names:
        if name not in ("none", "all") and importlib.util.find_spec(_TRACKERS.get(name, name)) is None:
            package = "'alpacare_sft[trackers]'" if name in _EXTRA else name
            raise RecipeError(f"train.report_to: {name} needs its package. Install it: pip install {package}.")


def build_lora_config(recipe: Recipe) -> LoraConfig:
    """`peft.LoraConfig` of a recipe.

    Raises:
        ValueError: if upstream refuses a value.
    """
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **plain_value(given_values(recipe, "lora")))


def build_trainer(recipe: Recipe, config: SFTConfig, data: PreparedData, tokenizer: Any, base: Any) -> AnswerSFTTrainer:
    """The trainer, its adapter in float32 and its labels compared with the mask.

    Raises:
        ModelError: if the adapter does not fit the model.
        DataError: if the labels are not what the mask says.
    """
    import torch
    from transformers import EarlyStoppingCallback, PrinterCallback

    from alpacare_sft.training.callbacks import Account, Terminal
    from alpacare_sft.training.forwards import Packer
    from alpacare_sft.training.trainer import AnswerSFTTrainer

    stopping = recipe.early_stopping
    early = [EarlyStoppingCallback(stopping.patience, stopping.threshold)] if stopping.patience else []
    rows = {name: split.select_columns(["input_ids", "completion_mask"]) for name, split in data.splits.items()}
    try:
        with warnings.catch_warnings():  # what merging such an adapter changes is measured by `merge_adapter`
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            # a misspelling, which PEFT goes on without
            warnings.filterwarnings("error", message=".*(did not match any|no parameter was matched)")
            trainer = AnswerSFTTrainer(
                model=base,
                args=config,
                train_dataset=rows["train"],
                eval_dataset=rows["validation"] if recipe.evaluates_during_training else None,
                processing_class=tokenizer,
                peft_config=build_lora_config(recipe),
                callbacks=[Account(), *early],
            )
    except (ValueError, ImportError, TypeError, AttributeError, KeyError, RuntimeWarning) as error:
        message = " ".join(str(error).split())
        if "arget modules" in message or "target_modules" in message:
            raise ModelError(f"lora.target_modules: {message}") from error
        raise RecipeError(f"train or lora: {message}") from error
    trainer.remove_callback(PrinterCallback)  # what transformers adds where tqdm is disabled
    trainer.add_callback(Terminal())
    for parameter in trainer.model.parameters():  # TRL casts adapters on a quantized base to bfloat16 (trl#4901)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    # PEFT 0.21 would put the base's embeddings into each checkpoint where LoRA targets them.
    trainer.model.save_pretrained = partial(trainer.model.save_pretrained, save_embedding_layers=False)
    check_labels(trainer, data)
    if recipe.forward.rows == "auto" and config.world_size == 1:
        trainer.packer = Packer(trainer.model, trainer.accelerator.device)
        if not trainer.packer.lays:
            runtime.say("forward.rows: this model does not keep rows apart end to end; they are padded.")
    return trainer


def check_labels(trainer: AnswerSFTTrainer, data: PreparedData, num_rows: int = 8) -> None:
    """Compare the labels that reach the model with the completion mask, on the first rows.

    Raises:
        DataError: if a prompt token would be in the loss, or an answer token would not.
    """
    if trainer.args.packing or trainer.args.shuffle_dataset:
        return  # rows are joined or reordered, there is no first row to compare
    rows = data.splits["train"].select(range(min(num_rows, len(data.splits["train"]))))
    for index, row in enumerate(rows):
        labels = trainer.data_collator([trainer.train_dataset[index]])["labels"][0].tolist()
        wanted = [
            token if in_loss else -100 for token, in_loss in zip(row["input_ids"], row["completion_mask"], strict=True)
        ]
        if labels[: len(wanted)] != wanted:
            raise DataError(
                f"row {row['id']}: the labels are not those of its answer. Report this with the versions in use."
            )
