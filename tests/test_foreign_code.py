"""No code of a model, tokenizer, adapter or data set repository runs; whatever standard input says."""

from __future__ import annotations

import ast
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import alpacare_sft
from alpacare_sft.errors import ModelError
from alpacare_sft.model.adapter import attach_adapter, find_adapter
from alpacare_sft.model.base import check_weights, load_base_model, load_tokenizer
from alpacare_sft.recipe.sections import ModelSection

MODULE = (
    "from pathlib import Path\nPath(r'{marker}').touch()\nclass Own: pass\nOwnConfig = OwnTokenizer = OwnModel = Own\n"
)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that foreign code would write; whoever asks on standard input is told yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    marker = tmp_path / "it-ran"
    yield marker
    assert not marker.exists()


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, marker: Path) -> Path:
    """A copy of the tiny model with a module that nobody may import."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(MODULE.format(marker=marker))
    return folder


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def section(folder: Path) -> ModelSection:
    return ModelSection(model_name_or_path=str(folder))


OWN_TYPE = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
OF_ANOTHER = {"model_type": "own", "auto_map": {"AutoConfig": "them/code--own.OwnConfig"}}
OWN_HEAD = {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "own.OwnModel"}}
KERNEL = {"attn_implementation": "them/attention"}


@pytest.mark.parametrize("entries", [OWN_TYPE, OF_ANOTHER, OWN_HEAD, KERNEL], ids=["own", "other", "head", "kernel"])
@pytest.mark.parametrize("load", [load_tokenizer, lambda model: load_base_model(model, "float32")])
def test_a_model_with_code_of_its_own_is_refused(folder: Path, entries: dict[str, Any], load: Any) -> None:
    change(folder / "config.json", **entries)
    with pytest.raises(ModelError, match=r"^model\.model_name_or_path: the model of .* code of its own .* never run"):
        load(section(folder))


def test_a_tokenizer_with_code_of_its_own_is_refused(folder: Path) -> None:
    named = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    change(folder / "tokenizer_config.json", **named)
    with pytest.raises(ModelError, match=r"the tokenizer of .* code of its own .* never run"):
        load_tokenizer(section(folder))


def test_code_beside_a_model_that_transformers_knows_is_not_read(folder: Path) -> None:
    change(folder / "config.json", auto_map=OWN_TYPE["auto_map"])
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    load_tokenizer(section(folder))
    assert type(load_base_model(section(folder), "float32")).__module__.startswith("transformers.")


@pytest.mark.parametrize("auto_map", ["own", ["own"], 5, {"AutoConfig": 5}])
def test_a_strange_map_of_code_is_one_message(folder: Path, auto_map: Any) -> None:
    change(folder / "config.json", model_type="own", auto_map=auto_map)
    with pytest.raises(ModelError, match=r"^model\.model_name_or_path"):
        load_tokenizer(section(folder))


def test_what_is_no_causal_language_model_is_refused_before_the_rows(folder: Path) -> None:
    change(folder / "config.json", model_type="vit")
    with pytest.raises(ModelError, match=r"must be a causal language model, .* is of type vit"):
        load_tokenizer(section(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused(folder: Path, marker: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
            return Path.touch, (marker,)

    (folder / "model.safetensors").unlink()
    torch.save({"weights": Trap()}, folder / name)
    with pytest.raises(ModelError, match=r"holds no weights as model\.safetensors; .* can run code"):
        load_base_model(section(folder), "float32")
    if name == "pytorch_model.bin":  # told by train before the rows
        with pytest.raises(ModelError, match=r"no weights as model\.safetensors"):
            check_weights(section(folder))


ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"auto_mapping": {"base_model_class": "Own", "parent_library": "own"}}, "auto_mapping names code"),
        ({"megatron_config": {"a": 1}, "megatron_core": "own.core"}, "megatron_core names code"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "them/own"}, "peft_type must be LORA"),
        ({"peft_type": "XLORA"}, "peft_type must be LORA"),
        ({"peft_type": None}, "peft_type must be LORA"),
    ],
)
def test_an_adapter_that_names_code_is_refused(
    tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, Any], message: str
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, **entries}))
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match=message):
        find_adapter(str(folder))
    base = load_base_model(section(tiny_model), "float32")
    with pytest.raises(ModelError, match=message):
        attach_adapter(base, folder)


def test_an_adapter_of_pickles_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"must hold adapter_config\.json and adapter_model\.safetensors.*\.bin"):
        find_adapter(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["data", "train"])
def test_nothing_is_asked_on_the_command_line(
    folder: Path, document: dict[str, Any], tmp_path: Path, verb: str
) -> None:
    change(folder / "config.json", **OWN_TYPE)
    document["model"]["model_name_or_path"] = str(folder)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    words = [sys.executable, "-m", "alpacare_sft", verb, str(tmp_path / "recipe.yaml")]
    done = subprocess.run(words, input="y\n" * 9, capture_output=True, text=True, timeout=120)
    assert done.returncode == ModelError.exit_code
    assert "Do you wish" not in done.stdout + done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 and "code of its own repository" in messages[0]


def test_every_call_that_could_run_code_says_no() -> None:
    calls = [
        (path.name, ast.unparse(call))
        for path in Path(alpacare_sft.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("Auto")
    ]
    assert len(calls) >= 7
    assert [call for call in calls if "trust_remote_code=False" not in call[1]] == []
