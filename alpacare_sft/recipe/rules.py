"""Faults of a recipe that its types cannot show.

Each check reads plain values and yields faults, so that all faults of a recipe are reported at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from alpacare_sft.errors import Fault
from alpacare_sft.recipe.sections import ROW_COLUMNS, TEXT_COLUMNS

RENAMED = {
    "train": {
        "warmup_ratio": "train.warmup_steps (a value below 1 is a share of the steps)",
        "group_by_length": "train.train_sampling_strategy: group_by_length",
        "overwrite_output_dir": "--overwrite on the command line",
        "evaluation_strategy": "train.eval_strategy",
        "tokenizer": "model.model_name_or_path",
        "torch_dtype": "model.dtype",
        "dtype": "model.dtype",
        "gradient_checkpointing": "train.activation_checkpointing",
        "gradient_checkpointing_kwargs": "train.activation_checkpointing_kwargs",
        "max_seq_length": "train.max_length",
        "num_epochs": "train.num_train_epochs",
        "lr": "train.learning_rate",
        "batch_size": "train.per_device_train_batch_size",
        "no_cuda": "train.use_cpu",
        "patience": "early_stopping.patience",
        "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    },
    "lora": {"alpha": "lora.lora_alpha", "dropout": "lora.lora_dropout", "rank": "lora.r"},
    "model": {
        "name": "model.model_name_or_path",
        "revision": "model.model_revision",
        "torch_dtype": "model.dtype",
        "load_in_4bit": "model.quantization: nf4",
    },
    "data": {
        "dataset": "data.path",
        **dict.fromkeys(("name", "config", "config_name", "subset"), "data.path: {path: owner/name, name: …}"),
        "split": "data.path: {path: owner/name, split: …}",
        "test_size": "data.splits.test",
    },
}

_PUBLISHING = (
    "Publishing is a step of its own, which sends a checked list of files and no training_args.bin: "
    "alpacare-sft push RECIPE, or --push on train and eval"
)
REFUSED = {
    "train": {
        "output_dir": "It stands once, at the top: output_dir",
        "completion_only_loss": "Prompts are never in the loss; leave it out",
        "assistant_only_loss": "Answers alone are in the loss already; leave it out",
        "push_to_hub": _PUBLISHING,
        "hub_model_id": "Use hub.repo_id",
        "hub_token": "The token comes from the environment (HF_TOKEN or `hf auth login`), never from a file",
        "hub_private_repo": "Use hub.private",
        "hub_strategy": _PUBLISHING,
        "hub_always_push": _PUBLISHING,
        "hub_revision": _PUBLISHING,
        "model_init_kwargs": "Use the section model",
        "trust_remote_code": "Code from a model repository is not run; choose a model that transformers knows",
        "chat_template_path": "Use prompt.format: chat for the model's own template",
        "dataset_text_field": "Use data.columns",
        "dataloader_drop_last": "Every row is used and scored; leave it out",
        **dict.fromkeys(
            ("deepspeed", "fsdp", "fsdp_config", "parallelism_config"),
            "Each process holds the whole model, so that one can save the adapter; leave it out",
        ),
        "dataset_kwargs": "Rows are tokenized before TRL sees them; leave it out",
        "eos_token": "The end token is that of the tokenizer; leave it out",
        "pad_token": "The padding token is one that the vocabulary already has; leave it out",
        "truncation_mode": "Use prompt.overflow",
        "eval_packing": "Use train.packing for both",
        "resume_from_checkpoint": "Use resume: auto or never at the top",
        "restore_callback_states_from_checkpoint": "A resumed run restores them always; leave it out",
        "ignore_data_skip": "A resumed run goes on with the row where it stopped; leave it out",
        "save_only_model": "A checkpoint without the optimizer cannot be resumed; leave it out",
        "auto_find_batch_size": "It changes the recipe while it runs; set train.per_device_train_batch_size",
        "remove_unused_columns": "Leave it out",
        "label_names": "Leave it out",
        "do_train": "The verb says what to do",
        "do_eval": "Use train.eval_strategy",
        "do_predict": "The verb says what to do",
        "local_rank": "The launcher sets it",
        "logging_nan_inf_filter": "A loss that is not finite stops the run; leave it out",
        "include_num_input_tokens_seen": "Tokens are always counted; leave it out",
        "disable_tqdm": "The progress bar shows itself on a terminal only; leave it out",
    },
    "lora": {
        "loftq_config": "Leave it out; for a 4-bit base use model.quantization: nf4",
        "task_type": "It is CAUSAL_LM; leave it out",
        "base_model_name_or_path": "Use model.model_name_or_path",
        "revision": "Use model.model_revision",
        "inference_mode": "Leave it out",
        "peft_type": "It is LORA; leave it out",
        "peft_version": "It is recorded; leave it out",
        "auto_mapping": "Leave it out",
        "arrow_config": "It chooses among several adapters, and one is trained; leave it out",
        "runtime_config": "Leave it out",
        "trainable_token_indices": "No token is added or retrained; leave it out",
    },
}

# (key, smallest value, whether that value itself is allowed)
BOUNDS = (
    ("train.learning_rate", 0, False),
    ("train.num_train_epochs", 0, False),
    ("train.per_device_train_batch_size", 1, True),
    ("train.per_device_eval_batch_size", 1, True),
    ("train.gradient_accumulation_steps", 1, True),
    ("train.max_length", 8, True),
    ("train.seed", 0, True),
    ("train.data_seed", 0, True),
    ("train.weight_decay", 0, True),
    ("train.max_grad_norm", 0, True),
    ("train.warmup_steps", 0, True),
    ("train.logging_steps", 0, False),
    ("train.save_steps", 0, False),
    ("train.eval_steps", 0, False),
    ("train.save_total_limit", 1, True),
    ("train.dataset_num_proc", 1, True),
    ("train.dataloader_num_workers", 0, True),
    ("train.adam_epsilon", 0, False),
    ("train.eval_accumulation_steps", 1, True),
    ("train.neftune_noise_alpha", 0, True),
    ("train.pad_to_multiple_of", 1, True),
    ("train.adam_beta1", 0, True),
    ("train.adam_beta2", 0, True),
    ("train.label_smoothing_factor", 0, True),
    ("lora.lora_dropout", 0, True),
    ("lora.r", 1, True),
    ("lora.lora_alpha", 0, False),
)

# Numbers that are shares, and must stay below 1.
BELOW_ONE = ("train.adam_beta1", "train.adam_beta2", "train.label_smoothing_factor", "lora.lora_dropout")
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
TRAIN_CHOICES = {
    "loss_type": ("nll", "dft"),
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_NEED_WORKERS = ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor")


def unknown_key(section: str, key: str, known: Sequence[str]) -> Fault:
    """A key that does not exist: its new name, its place, or the nearest one."""
    shown = key if key and key == key.strip() else repr(key)
    dotted = f"{section}.{shown}" if section else shown
    if new := RENAMED.get(section, {}).get(key):
        return Fault(dotted, f"is not a key any more. Use {new}.")
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        nearest = f"{section}.{close[0]}" if section else close[0]
        return Fault(dotted, f"is not a key. Did you mean {nearest}?")
    listed = f"Known keys: {', '.join(known)}." if len(known) < 15 else "recipes/README.md says where they are listed."
    return Fault(dotted, f"is not a key{f' of {section}' if section else ''}. {listed}")


def refused_key(section: str, key: str) -> Fault | None:
    """The fault of a key of TRL or PEFT that would contradict one of ours, or None."""
    reason = REFUSED.get(section, {}).get(key)
    if reason is None and section == "train" and key in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        return unknown_key(section, key, [])
    return None if reason is None else Fault(f"{section}.{key}", f"cannot be set in a recipe. {reason}.")


def bound_faults(train: Mapping[str, Any], lora: Mapping[str, Any]) -> Iterator[Fault]:
    """Numbers of `train` and `lora` that upstream would take and that cannot work."""
    for key, low, included in BOUNDS:
        section, _, name = key.partition(".")
        value = {"train": train, "lora": lora}[section].get(name)  # a version of TRL may lack any of them
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            yield Fault(key, f"must be a finite number, got {value:g}.")
        elif value < low or (value == low and not included):
            yield Fault(key, f"must be {'at least' if included else 'more than'} {low}, got {value:g}.")
        elif value >= 1 and key in BELOW_ONE:
            yield Fault(key, f"must be at least 0 and below 1, got {value:g}.")
    for key, choices in TRAIN_CHOICES.items():
        if train.get(key, choices[0]) not in choices:
            yield Fault(f"train.{key}", f"must be one of {', '.join(choices)}, got {train[key]}.")
    if train["max_steps"] != -1 and train["max_steps"] < 1:
        yield Fault("train.max_steps", f"must be at least 1, or -1 for whole epochs, got {train['max_steps']}.")
    if train["seed"] >= 2**32:
        yield Fault("train.seed", f"must be less than 2**32, as numpy's is, got {train['seed']}.")
    if train["max_length"] is None:
        yield Fault("train.max_length", "must be a number of tokens, got null. The reference is 512.")
    if isinstance(train["warmup_steps"], float) and train["warmup_steps"] == 1.0:
        yield Fault(
            "train.warmup_steps",
            "must be a whole number of steps or a share below 1, got 1.0, which is one step "
            "and not the whole run. Write 1 or 0.99.",
        )
    if str(lora.get("init_lora_weights")).startswith("pissa_niter"):
        yield Fault(
            "lora.init_lora_weights",
            f"must not be {lora['init_lora_weights']}: it draws at random and changes the base, "
            "so that the saved adapter does not load back as it was trained. Use pissa or olora, which are exact.",
        )
    if lora.get("init_lora_weights") == "loftq":
        yield Fault(
            "lora.init_lora_weights", "must not be loftq: it needs lora.loftq_config, which is not taken. Use pissa."
        )


def target_faults(lora: Mapping[str, Any]) -> Iterator[Fault]:
    """LoRA on layers that the loss does not see, or that are not LoRA's to keep."""
    targets = lora["target_modules"]
    names = [targets] if isinstance(targets, str) else list(targets or ())
    if targets is not None and not names:
        yield Fault(
            "lora.target_modules", "must name at least one layer, got an empty list. The reference is [q_proj, v_proj]."
        )
    if any(name == "lm_head" or name.endswith(".lm_head") for name in names):
        yield Fault(
            "lora.target_modules",
            "must not hold lm_head: the loss reads the head's weights directly, an adapter "
            "there would never be trained. Remove it.",
        )
    yield from _pattern_faults(lora)
    for name in lora.get("modules_to_save") or ():
        yield Fault(
            "lora.modules_to_save",
            f"must be empty, got {name}: whole layers in the adapter cannot be merged, compared "
            "or published as LoRA. Remove it.",
        )


def _pattern_faults(lora: Mapping[str, Any]) -> Iterator[Fault]:
    """Names of layers that are no regular expressions, where PEFT reads such, and ranks that are no numbers."""
    patterns = [(key, lora[key]) for key in ("target_modules", "exclude_modules") if isinstance(lora.get(key), str)]
    for key in ("rank_pattern", "alpha_pattern"):
        values = lora.get(key) or {}
        patterns += [(key, name) for name in values]
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                yield Fault(f"lora.{key}", f"must give each layer a number above 0, got {value!r} for {name}.")
    for key, pattern in patterns:
        try:
            re.compile(str(pattern))
        except re.error as error:
            yield Fault(f"lora.{key}", f"must be names or a regular expression, got {pattern!r}: {error}.")


def evaluation_faults(train: Mapping[str, Any], has_validation: bool) -> Iterator[Fault]:
    """Evaluation, saving and best-model loading that do not fit together."""
    evaluation, saving = str(train["eval_strategy"]), str(train["save_strategy"])
    metric = str(train.get("metric_for_best_model") or "loss").removeprefix("eval_")
    if metric not in ("loss", "mean_token_accuracy"):
        yield Fault("train.metric_for_best_model", f"must be loss or mean_token_accuracy, got {metric}.")
    if metric == "loss" and train.get("greater_is_better"):
        yield Fault(
            "train.greater_is_better", "must not be true for a loss: it keeps the worst checkpoint. Leave it out."
        )
    if evaluation != "no" and not has_validation:
        yield Fault(
            "train.eval_strategy",
            f": {evaluation} needs validation rows, data.splits.validation is 0. "
            "Give it rows, or set train.eval_strategy: no.",
        )
    if not train["load_best_model_at_end"] or evaluation == "no" or saving == "best":
        return
    if evaluation != saving:
        yield Fault(
            "train.load_best_model_at_end",
            f"needs train.save_strategy equal to train.eval_strategy, got {saving} and {evaluation}.",
        )
    elif evaluation == "steps":
        every = train["eval_steps"] or train["logging_steps"]
        share = every < 1, train["save_steps"] < 1
        uneven = (train["save_steps"] / every) % 1 > 1e-9
        if share[0] != share[1] or (every > 0 and uneven):
            yield Fault(
                "train.save_steps",
                "must be a multiple of train.eval_steps when train.load_best_model_at_end is set, "
                f"got {train['save_steps']:g} and {every:g}.",
            )


def judge_faults(judge: Any, baseline: bool, metrics: Sequence[str]) -> Iterator[Fault]:
    """Addresses and names of the judge that cannot be right; a key that stands in them is not shown."""
    if judge is None:
        return
    if not baseline:
        yield Fault("evaluate.judge", "compares base and adapter and needs evaluate.baseline: true, got false.")
    if not {"rouge", "similarity"} & set(metrics):
        yield Fault("evaluate.judge", "reads written answers and needs rouge or similarity in evaluate.metrics.")
    try:
        parts = urlsplit(judge.endpoint)
    except ValueError:
        parts = urlsplit("")
    if parts.username or parts.password or parts.query:
        yield Fault(
            "evaluate.judge.endpoint",
            "must hold no password and no query. The key comes by evaluate.judge.api_key_env.",
        )
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        yield Fault(
            "evaluate.judge.endpoint",
            f"must be an address such as http://localhost:8000/v1 or https://host/v1, got {judge.endpoint!r}.",
        )
    if judge.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", judge.api_key_env):
        yield Fault(
            "evaluate.judge.api_key_env",
            "must be the name of an environment variable, not the key itself. "
            "Put the key into a variable, such as OPENAI_API_KEY, and name that.",
        )


def safety_faults(disclaimer: str) -> Iterator[Fault]:
    """The notice is what people read beside every answer; it is never empty."""
    if not disclaimer.strip():
        yield Fault(
            "safety.disclaimer", "must not be empty, it stands beside every answer that people read. Leave it out."
        )


def forward_faults(rows: str | None, train: Mapping[str, Any]) -> Iterator[Fault]:
    """What `forward.rows: auto` cannot be combined with: parts of a step add up only where the loss is a sum."""
    if rows is None:
        return
    for key, plain in (("loss_type", "nll"), ("label_smoothing_factor", 0), ("packing", False)):
        if train.get(key, plain) != plain:
            yield Fault("forward.rows", f"needs train.{key}: {str(plain).lower()}, got {train[key]}. Leave one out.")


def combination_faults(train: Mapping[str, Any], data: Any, prompt: Any, metrics: Sequence[str]) -> Iterator[Fault]:
    """Keys that are right alone and wrong together."""
    if train["fp16"] and train["bf16"]:
        yield Fault("train.fp16", "and train.bf16 must not both be true. Leave both out to let the hardware decide.")
    for key in _NEED_WORKERS:
        if train.get(key) and not train.get("dataloader_num_workers"):
            yield Fault(f"train.{key}", "needs train.dataloader_num_workers of at least 1, got 0.")
    if train.get("padding_free") and not train.get("packing"):
        yield Fault("train.padding_free", "needs train.packing: true, which turns it on by itself. Leave it out.")
    for key in data.columns:
        if key not in ROW_COLUMNS[1:]:
            yield Fault(f"data.columns.{key}", "must be one of instruction, input, output, system.")
    for key in data.constants:
        if key not in TEXT_COLUMNS[:2]:
            yield Fault(f"data.constants.{key}", "must be instruction or input: an answer cannot be a constant.")
    yield from _data_faults(data)
    sizes = (data.splits.train, data.splits.validation, data.splits.test)
    fractions = sum(size for size in sizes if isinstance(size, float))
    if fractions > 1 + 1e-9:
        yield Fault("data.splits", f"must not add up to more than 1, got {fractions:g}.")
    if prompt.overflow == "truncate_output" and train.get("packing") and train.get("packing_strategy") == "wrapped":
        yield Fault("train.packing_strategy", ": wrapped cuts rows in the middle. Use bfd.")
    if not metrics or len(set(metrics)) < len(metrics):
        yield Fault("evaluate.metrics", f"must name each score once, got {list(metrics)}.")


def _data_faults(data: Any) -> Iterator[Fault]:
    """Entries of `data.path` and names of splits that cannot be right."""
    entries = data.path if isinstance(data.path, list) else [data.path]
    if not data.path:
        yield Fault("data.path", "must name a data set or a file, got nothing.")
    parts = [entry for entry in entries if not isinstance(entry, str)]
    for entry in parts:
        if not _HUB_ID.fullmatch(entry.path):
            yield Fault(
                "data.path.path",
                f"must be the id of a Hub data set, owner/name, got {entry.path!r}. A local file is text: "
                f"data.path: {entry.path}",
            )
    if parts and data.revision is not None:
        remedy = "Write it there: {path: …, revision: …}."
        yield Fault("data.revision", f"must be left out beside an entry {{path: …}}. {remedy}")
    named = [size for size in vars(data.splits).values() if isinstance(size, str)]
    if "" in (name.strip() for name in named):
        yield Fault("data.splits", "must hold a size or the name of a split, got ''.")
    if named and len(entries) > 1:
        yield Fault(
            "data.splits",
            f"names a split ({named[0]}), which needs data.path to be one Hub data set, got {len(entries)} entries. "
            "Give sizes in rows, or name one data set.",
        )
