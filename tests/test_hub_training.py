"""The reference recipe from download to adapter: a look-alike of its model and its data set on a Hub of our own."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from alpacare_sft.model.base import load_tokenizer
from alpacare_sft.model.prompt import PromptEncoder, check_encoder
from alpacare_sft.recipe.loading import load_recipe
from alpacare_sft.recipe.resolved import given_values
from alpacare_sft.recipe.sections import ModelSection, PromptSection
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.runtime import Precision
from alpacare_sft.training.config import build_sft_config
from tests.hub_server import Hub, Repository, serve

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parent.parent / "recipes" / "t4.yaml"
MODEL, ROWS = "meta-llama/Llama-3.2-1B-Instruct", "lavita/AlpaCare-MedInstruct-52k"
TOKEN = "hf_a_token_that_may_read"
BOS, PAD, EOT = 128000, 128004, 128009
FP32 = ("--train.fp16", "false")
STEPS = {"max_steps": "4", "logging_steps": "1", "eval_steps": "2", "save_steps": "2"}
DATA = ("alpacare_sft", "data", "--show", "0")
REFERENCE_SFT = {
    "max_length": 512,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "num_train_epochs": 5,
    "max_steps": -1,
    "fp16": True,
    "bf16": False,
    "logging_steps": 20,
    "save_steps": 100,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "seed": 42,
    "packing": False,
    "completion_only_loss": True,
    "push_to_hub": False,
}
REFERENCE_LORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
}
NAMED_TOKENS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]
CONFIG = {  # keys and values of the genuine one but for the four sizes
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": [128001, 128008, EOT],
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- set told = messages[0]['content'] | trim if messages[0]['role'] == 'system' else '' %}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '\n\n' + told + '<|eot_id|>' }}
{%- for turn in turns %}
{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: MedInstruct-52k.json
---
Rows made by a test.
"""
WORDS = [
    "pain",
    "fever",
    "dose",
    "mg",
    "patient",
    "acute",
    "chronic",
    "therapy",
    "blood",
    "pressure",
    "insulin",
    "renal",
    "heart",
    "rate",
    "nausea",
    "rash",
    "biopsy",
    "lesion",
    "asthma",
    "inhaler",
    "daily",
    "weeks",
    "consult",
    "risk",
    "factor",
    "symptom",
    "diagnosis",
    "sleep",
    "diet",
    "exercise",
    "infection",
    "vaccine",
    "µg",
    "β-blocker",
]


def medical_rows(count: int = 52_002) -> Iterator[dict[str, str]]:
    """Rows in the columns of the real set; two have no answer, ten are copies of the first, one in fifty is long."""
    draw = random.Random(52)
    for number in range(count):
        words = draw.choices(WORDS, k=draw.choice((8, 12, 16, 24)))
        text = " ".join(words)
        choices = f"A) {words[0]}\nB) {words[1]}\nC) {words[2]}\nD) {words[3]}"
        given = (choices, f"Patient {number}: “{text}”", "<noinput>", "<noinput>", "<noinput>")[number % 5]
        answer = "\n\n".join(f"{place}. {text}." for place in range(1, 60 if number % 50 == 7 else 3))
        row = {"output": answer, "input": given, "instruction": f"Case {number}: {' '.join(words[:6])}?"}
        if number == 0:
            first = row
        yield {**row, "output": ""} if number in (20, 21) else first if 30 <= number < 40 else row


def save_llama_look_alike(folder: Path) -> None:
    """The genuine vocabulary and configuration keys, few and narrow layers of random weights."""
    import torch
    from tokenizers import processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    package = importlib.util.find_spec("llama_models")
    assert package is not None and package.submodule_search_locations
    lines = (Path(package.submodule_search_locations[0]) / "llama3" / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(3, 248)]
    converter = TikTokenConverter(extra_special_tokens=[*NAMED_TOKENS, *reserved])
    converter.load_tiktoken_bpe = lambda _: ranks  # type: ignore[method-assign]  # its own needs tiktoken
    raw = converter.converted()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{NAMED_TOKENS[0]} $A", special_tokens=[(NAMED_TOKENS[0], BOS)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=NAMED_TOKENS[0], eos_token="<|eot_id|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def make_repositories(tmp_path_factory: pytest.TempPathFactory, rows: Iterable[Any]) -> list[Repository]:
    """The reference's base model, gated, and its data set; without the genuine vocabulary the tests skip."""
    pytest.importorskip("llama_models", reason="the genuine vocabulary: pip install --no-deps llama-models==0.3.0")
    model, data = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("rows")
    save_llama_look_alike(model)
    (data / "README.md").write_text(CARD)
    (data / "MedInstruct-52k.json").write_text(json.dumps(list(rows), ensure_ascii=False, indent=1))
    return [Repository(MODEL, model, gated=True), Repository(ROWS, data, kind="datasets")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    repositories = make_repositories(tmp_path_factory, medical_rows())
    with serve(Hub(repositories, tokens={TOKEN: True})) as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = str(tmp_path_factory.mktemp("hf-home"))
    return {**own, "HF_ENDPOINT": hub.endpoint, "HF_HOME": home, "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


def read_rows(run_directory: Path, name: str) -> list[dict[str, Any]]:
    lines = (run_directory / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def trained(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the recipe as it is, but for precision and number of steps."""
    target = tmp_path_factory.mktemp("runs") / "t4"
    overrides = [word for key, value in STEPS.items() for word in (f"--train.{key}", value)]
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "alpacare_sft"]
    run(environment, *launch, str(RECIPE), *FP32, *overrides, "--output_dir", str(target))
    return target


@pytest.fixture(scope="module")
def record(trained: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((trained / "run.json").read_text())
    return loaded


def test_every_row_is_accounted_for(trained: Path, record: dict[str, Any]) -> None:
    report = json.loads((trained / "data" / "report.json").read_text())
    expected = {"loaded": 52_002, "cleaned": 51_990, "kept": 51_990, "train": 2000, "validation": 100, "test": 100}
    assert {name: record["rows"][name] for name in expected} == expected
    assert record["rows"]["unused"] == 51_990 - 2200
    assert {step["name"]: step["dropped"] for step in report["steps"] if step["dropped"]} == {
        "drop_missing": 2,
        "drop_duplicates": 10,
    }
    assert {step["name"]: step["changed"] for step in report["steps"] if step["name"] == "no_input_marks"} == {
        "no_input_marks": 31_194
    }
    assert record["status"] == "done" and record["train"]["optimizer_steps"] == 4


def test_splits_hold_cleaned_rows_and_no_question_twice(trained: Path) -> None:
    splits = {name: read_rows(trained, name) for name in ("train", "validation", "test")}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2000, "validation": 100, "test": 100}
    rows = [row for part in splits.values() for row in part]
    assert len({(row["instruction"], row["input"]) for row in rows}) == 2200
    texts = [text for row in rows for text in row.values() if isinstance(text, str)]
    assert [text for text in texts if "\n" in text or "“" in text or "noinput" in text] == []
    assert any(row["input"].startswith("A) ") and " B) " in row["input"] for row in rows)
    assert any(row["output"].startswith("1. ") and " 2. " in row["output"] for row in rows)


def test_the_adapter_names_its_base_and_the_commit(trained: Path, record: dict[str, Any], hub: Hub) -> None:
    commit = hub.repositories[0].commit
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert record["base_model"] == {"name": MODEL, "revision": commit}
    assert record["data_commit"] == hub.repositories[1].commit
    assert {key: config[key] for key in REFERENCE_LORA} == REFERENCE_LORA
    assert (config["base_model_name_or_path"], config["revision"]) == (MODEL, commit)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert record["parameters"]["trainable"] == 2 * (16 * (32 + 32) + 16 * (32 + 16))


def test_each_file_is_downloaded_once(trained: Path, hub: Hub) -> None:
    files = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"]
    assert sorted(hub.downloads(MODEL)) == [*files, "tokenizer.json", "tokenizer_config.json"]
    assert sorted(hub.downloads(ROWS)) == ["MedInstruct-52k.json", "README.md"]


def test_the_warm_cache_gives_the_same_rows_without_a_hub(
    environment: dict[str, str], record: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    asked = len(hub.requests)
    run({**environment, "HF_HUB_OFFLINE": "1"}, *DATA, str(RECIPE), *FP32, "--output_dir", str(tmp_path))
    for name, expected in record["data_sha256"].items():
        assert hashlib.sha256((tmp_path / "data" / f"{name}.jsonl").read_bytes()).hexdigest() == expected
    assert len(hub.requests) == asked


def test_the_values_of_the_reference_reach_the_libraries(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, ["--output_dir", str(tmp_path)])
    config = build_sft_config(recipe, RunDirectory(recipe.output_dir), Precision(fp16=True, bf16=False))
    assert {key: getattr(config, key) for key in REFERENCE_SFT} == REFERENCE_SFT
    lora = LoraConfig(**given_values(recipe, "lora"))
    assert {key: getattr(lora, key) for key in REFERENCE_LORA} == REFERENCE_LORA
    assert lora.target_modules == {"q_proj", "v_proj"}
    assert recipe.early_stopping.patience == 3


@pytest.fixture(scope="module")
def tokenizer(hub: Hub) -> Any:
    return load_tokenizer(ModelSection(model_name_or_path=str(hub.repositories[0].folder)))


def test_the_tokenizer_pads_with_a_token_of_its_own(tokenizer: Any) -> None:
    assert len(tokenizer) == 128_256
    assert tokenizer.convert_tokens_to_ids([NAMED_TOKENS[0], NAMED_TOKENS[4], "<|eot_id|>"]) == [BOS, PAD, EOT]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (BOS, PAD, EOT)


@pytest.mark.parametrize("prompt", [PromptSection(), PromptSection(format="chat")], ids=["sections", "chat"])
def test_a_row_has_one_bos_and_learns_to_stop_if_it_is_whole(tokenizer: Any, trained: Path, prompt: Any) -> None:
    encoder = PromptEncoder(tokenizer, prompt)
    check_encoder(encoder)
    rows = [encoder.encode_row(row, 512) for row in read_rows(trained, "train")[:200]]
    learnt = [[t for t, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if mask] for row in rows]
    assert {(row["input_ids"][0], row["input_ids"].count(BOS)) for row in rows} == {(BOS, 1)}
    assert {tuple(ids).count(EOT) for ids, row in zip(learnt, rows, strict=True) if row["truncated"]} == {0}
    assert {(ids.count(EOT), ids[-1]) for ids, row in zip(learnt, rows, strict=True) if not row["truncated"]} == {
        (1, EOT)
    }
    assert {len(row["input_ids"]) for row in rows if row["truncated"]} == {512}


def test_the_chat_prompt_is_that_of_the_model_on_a_fixed_date(tokenizer: Any) -> None:
    encoder = PromptEncoder(tokenizer, PromptSection(format="chat"))
    assert tokenizer.decode(encoder.encode_prompt("What helps?", "A cold.")) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 01 Jan 2025\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat helps?\n\nA cold.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
