"""The tokenizer, the frozen base model, and the checks that an adapter must pass."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import AlpacareError, ModelError, RecipeError, first_line
from alpacare_sft.hub.errors import hub_fault
from alpacare_sft.model.embedded import embedded_model
from alpacare_sft.recipe.names import EMBEDDED, EMBEDDED_NAME, local_path
from alpacare_sft.recipe.sections import ModelSection
from alpacare_sft.run.directory import disk_errors_explained
from alpacare_sft.runtime import local_rank, prepared_process

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>")
_SPARE_TOKEN = re.compile(r"<\|?(reserved_special_token|unused|extra_id)_?\d+\|?>")
_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@prepared_process()
def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a padding token of its own.

    Raises:
        ModelError: if it cannot be had, needs code of its repository, or its vocabulary has no token to pad with.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name

    load_config(model)
    with loading_errors_explained(model.model_name_or_path, model.model_revision):
        place, revision = _place(model)
        stated = get_tokenizer_config(place, revision=revision)
        known = tokenizer_class_from_name(stated.get("tokenizer_class") or "")
        if "auto_map" in stated and known is None:  # transformers 5.23 would take another class without a word
            raise ModelError(f"model.model_name_or_path: {_own_code(model.model_name_or_path, 'tokenizer')}")
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    set_pad_token(tokenizer)
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad with a token that the vocabulary has and that is not the end token.

    A collator that masks padding would otherwise mask the end token with it, and the model would
    never learn to stop. Nothing is added, so no embedding is resized.

    Raises:
        ModelError: if there is no such token.
    """
    vocabulary = tokenizer.get_vocab()
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    spare = (token for token in sorted(vocabulary) if _SPARE_TOKEN.fullmatch(token))
    for token in (*_PAD_TOKENS, tokenizer.unk_token, *spare):
        if token in vocabulary and vocabulary[token] not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
            tokenizer.pad_token = token
            return
    raise ModelError(
        "model.model_name_or_path: its vocabulary has no token to pad with besides the end token, and padding with "
        "that teaches the model never to stop. Use a model whose tokenizer has a padding or reserved token."
    )


def load_base_model(model: ModelSection, dtype: str) -> PreTrainedModel:
    """The frozen base model, on the CPU, or quantized on its device.

    Args:
        model: the recipe's section.
        dtype: torch dtype of the weights where the section says `auto`.

    Raises:
        ModelError: if it cannot be had, or only by running code or reading pickles; one message a cause.
        RecipeError: if bitsandbytes is needed and missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    chosen = getattr(torch, dtype if model.dtype == "auto" else model.dtype)
    options: dict[str, Any] = {"dtype": chosen}
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    if model.quantization:
        options["quantization_config"] = _quantization(chosen)
        options["device_map"] = {"": (local_rank() or 0) if torch.cuda.is_available() else "cpu"}
    load_config(model)
    check_weights(model)
    # Else transformers 5.23 asks a service for weights that a repository does not hold, and takes those.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    with loading_errors_explained(model.model_name_or_path, model.model_revision):
        place, revision = _place(model)
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place, revision=revision, **options, trust_remote_code=False, use_safetensors=True
        )
    base.requires_grad_(False)
    return base


def enable_checkpointing(model: Any) -> None:
    """Compute activations again in the backward, as `SFTTrainer` sets it up for a model with an adapter (trl 1.16)."""
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()


def check_weights(model: ModelSection) -> None:
    """Refuse a base whose weights are pickles alone: reading them can run what their author put there.

    Raises:
        ModelError: with the remedy.
    """
    from transformers.utils import has_file

    with loading_errors_explained(model.model_name_or_path, model.model_revision):
        place, revision = _place(model)
        no_safe_ones = not any(has_file(place, file, revision=revision) for file in _SAFE_WEIGHTS)
        if no_safe_ones and any(has_file(place, file, revision=revision) for file in _PICKLED_WEIGHTS):
            raise ModelError(f"model.model_name_or_path: {_no_safe_weights(model.model_name_or_path)}")


def load_config(model: ModelSection) -> PreTrainedConfig:
    """The configuration of a causal language model that transformers knows, read without code of its repository."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    with loading_errors_explained(model.model_name_or_path, model.model_revision):
        place, revision = _place(model)
        _refuse_adapter(place, revision)
        # None, the default, asks on standard input whether to run the code (transformers 5.23).
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    parts = (config, *(getattr(config, name, None) for name in config.sub_configs))
    kernels = {getattr(part, "_attn_implementation", None) or "" for part in parts}
    foreign = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or ())
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if (foreign and not known) or any("/" in kernel for kernel in kernels):  # a kernel of the Hub is code, too
        raise ModelError(f"model.model_name_or_path: {_own_code(model.model_name_or_path, 'model')}")
    if not known:
        raise ModelError(
            f"model.model_name_or_path must be a causal language model, {model.model_name_or_path} is of type "
            f"{config.model_type}. Name one that transformers lists under AutoModelForCausalLM."
        )
    return config


def _own_code(name: str, what: str) -> str:
    return (
        f"the {what} of {name} needs code of its own repository, which is never run. "
        "Name a model that transformers knows by itself."
    )


def _no_safe_weights(name: str) -> str:
    return (
        f"{name} holds no weights as model.safetensors; other files (.bin, .pt, .pth) can run code when they are read. "
        "Name a revision or a model with safetensors, or save a copy of your own with save_pretrained."
    )


def context_tokens(model: ModelSection) -> int | None:
    """Tokens that the base model has positions for, or None if it states no limit.

    Raises:
        ModelError: if its config cannot be had.
    """
    return getattr(load_config(model), "max_position_embeddings", None)


def check_context(model: ModelSection, max_length: int) -> None:
    """Refuse rows longer than the base model has positions for.

    Raises:
        ModelError: if its config cannot be had.
        RecipeError: with both lengths.
    """
    context = context_tokens(model)
    if context and max_length > context:
        raise RecipeError(
            f"train.max_length must be at most {context:,}, the positions of {model.model_name_or_path}, "
            f"got {max_length:,}. The model was never trained beyond them."
        )


def base_identity(model: ModelSection, base: PreTrainedModel) -> dict[str, str | None]:
    """The base's public name and the commit that its revision stood for, for records and cards."""
    if model.model_name_or_path == EMBEDDED:
        return {"name": EMBEDDED_NAME, "revision": None}
    from huggingface_hub import try_to_load_from_cache

    revision, source = model.model_revision, base.config.name_or_path
    # the commit stands in the cache's path; transformers 5.23 no longer keeps it in the config
    config = None if local_path(source) else try_to_load_from_cache(source, "config.json", revision=revision)
    return {
        "name": model.model_name_or_path,
        "revision": Path(config).parent.name if isinstance(config, str) else revision,
    }


def _quantization(compute_dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("model.quantization: nf4 needs bitsandbytes. Install it: pip install bitsandbytes.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _place(model: ModelSection) -> tuple[str, str]:
    """Where the libraries find a base, a directory or a repository of the Hub; and its revision there."""
    name = str(embedded_model()) if model.model_name_or_path == EMBEDDED else model.model_name_or_path
    return str(local_path(name) or name), model.model_revision


def _refuse_adapter(place: str, revision: str) -> None:
    """Refuse an adapter: transformers would load the model that it names, and the adapter into it, without a word."""
    from transformers.utils import cached_file, find_adapter_config_file

    cached_file(place, "config.json", revision=revision)  # the first file requested: who may not read it fails here
    if find_adapter_config_file(place, revision=revision):
        raise ModelError(
            f"model.model_name_or_path must be a base model, {place} holds an adapter. Name the model that it was "
            "trained on (base_model_name_or_path in its adapter_config.json)."
        )


@contextmanager
def loading_errors_explained(name: str, revision: str | None, key: str = "model.model_name_or_path") -> Iterator[None]:
    """Turn what goes wrong while loading into one message a cause, each with its remedy.

    Args:
        name: a directory, or a repository on the Hub.
        revision: of the repository.
        key: what names it, for the message.
    """
    import torch
    from safetensors import SafetensorError

    # What the libraries raise for a damaged or a strange file.
    expected = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
    try:
        with disk_errors_explained():
            yield
    except AlpacareError:
        raise
    except Exception as error:
        kind = "adapter" if key == "--adapter" else "model"
        message = hub_fault(error, name, kind, revision)
        if isinstance(error, torch.OutOfMemoryError) or not (message or isinstance(error, expected)):
            raise
        raise ModelError(f"{key}: {message or _loading_fault(name, error)}") from error


def _loading_fault(name: str, error: BaseException) -> str:
    folder = local_path(name)
    if folder and folder.is_dir() and not (folder / "config.json").exists():
        return f"{name} is a directory without config.json. Name the directory of a saved model."
    if "trust_remote_code" in str(error):
        return _own_code(name, "model")
    if isinstance(error, OSError) and "safetensors" in str(error):
        return _no_safe_weights(name)
    if type(error).__name__ == "SafetensorError":
        return f"{name} holds weights that are cut short or damaged ({error}). Copy or download them again."
    if "ignore_mismatched_sizes" in str(error):
        return f"{name} holds weights of other sizes than its config.json says. Copy or download it again."
    if "attention" in str(error).lower() or "flash" in str(error).lower():
        return f"{name} cannot be loaded with this model.attn_implementation: {first_line(error)}."
    return f"{name} cannot be loaded: {first_line(error)}."
