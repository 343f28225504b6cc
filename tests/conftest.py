"""A tiny random Llama and a tokenizer made on the spot; recipes that use them; no network, no cache left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tiny sums gain nothing from threads that spin

from alpacare_sft.recipe.loading import Recipe, load_recipe
from alpacare_sft.recipe.names import EMBEDDED_FILES

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}\n\n{{ message['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `datasets` caches out of the user's home."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a two-layer Llama with random weights and a byte-level BPE of 600 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [" ".join(json.loads(line).values()) for line in EMBEDDED_FILES["embedded"].open(encoding="utf-8")]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>", "<|start|>"]
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=special[0], eos_token=special[1])
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=True,
        )
    )
    folder = tmp_path_factory.mktemp("tiny-llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    from alpacare_sft.model.base import load_tokenizer
    from alpacare_sft.recipe.sections import ModelSection

    return load_tokenizer(ModelSection(model_name_or_path=str(tiny_model)))


def local_files(path: Any) -> list[Path]:
    """The local files among the sources of `data.path`."""
    from alpacare_sft.data.load import resolve_sources

    return [source.file for source in resolve_sources(path) if source.file]


def loaded_columns(loaded: Any) -> dict[str, list[Any]]:
    """The columns of loaded rows."""
    import pyarrow as pa

    return dict(pa.Table.from_batches(loaded.batches).to_pydict())


def batches_of(rows: Any) -> list[Any]:
    """The rows of a data set as `clean_rows` takes them."""
    return list(rows.data.table.to_batches(max_chunksize=3))  # few, so that each test sees several


def tiny_document(tiny_model: Path, output_dir: Path) -> dict[str, Any]:
    """A recipe that trains the tiny model on embedded rows in seconds."""
    return {
        "model": {"model_name_or_path": str(tiny_model)},
        "data": {"path": "embedded", "splits": {"train": 24, "validation": 6, "test": 6}},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "train": {
            "max_length": 192,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "activation_checkpointing": False,
            "logging_steps": 2,
            "save_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "load_best_model_at_end": True,
            "use_cpu": True,
        },
        "output_dir": str(output_dir),
    }


def write_record(run: Path, record: dict[str, Any]) -> None:
    """A record in the place of the one that a run has, whose copy would be used instead."""
    (run / ".run.json").unlink(missing_ok=True)
    (run / "run.json").write_text(json.dumps(record))


@pytest.fixture
def document(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe as a mapping; tests change what they need."""
    return tiny_document(tiny_model, tmp_path / "run")


@pytest.fixture
def make_recipe(document: dict[str, Any], tmp_path: Path) -> Callable[..., Recipe]:
    """`make_recipe("--train.seed", "1")`: the tiny recipe with overrides."""

    def make(*overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return load_recipe(path, overrides)

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """`write_rows(rows)`: rows as a JSON Lines file."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_records() -> Path:
    """Real records that lie beside a developer's checkout; where they are absent the test skips, visibly."""
    if not SHARED.is_dir():
        pytest.skip("real records are not here; they are no part of the project")
    return SHARED
