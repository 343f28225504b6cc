"""Input that is unusual and right, from file to counts, and base models that are odd: accepted, or refused at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from alpacare_sft.cli import main

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"Name bone {n}.", "input": "", "output": f"It is bone {n}."} for n in range(12)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "instruction,input,output\r\n" + "".join(f'"{row["instruction"]}","","{row["output"]}"\r\n' for row in ROWS)


class Odd(NamedTuple):
    """Files of rows, with what is counted of them; the recipe's text may be odd as well."""

    counts: dict[str, Any]
    files: dict[str, str]
    path: str | list[str] = "./rows.jsonl"
    overrides: tuple[str, ...] = ()
    recipe: Callable[[str], str] = str


def counts(loaded: int = 12, kept: int = 12, **others: int) -> dict[str, Any]:
    return {"loaded": loaded, "cleaned": kept, "kept": kept, "train": 6, "validation": 2, "test": 2, **others}


def with_anchor(text: str) -> str:
    return text.replace("max_steps: 1", "max_steps: &one 1").replace("seed: 7", "seed: *one")


NULLS = LINES + '{"instruction": null, "input": null, "output": "A lone answer."}\n{"instruction": "Why is that so?"}\n'
ACCEPTED = {
    "Windows line ends in the rows": Odd(counts(), {"rows.jsonl": LINES.replace("\n", "\r\n")}),
    "Windows line ends in the recipe": Odd(
        counts(), {"rows.jsonl": LINES}, recipe=lambda text: text.replace("\n", "\r\n")
    ),
    "a byte order mark in the rows": Odd(counts(), {"rows.jsonl": "\ufeff" + LINES}),
    "a byte order mark in the recipe": Odd(counts(), {"rows.jsonl": LINES}, recipe=lambda text: "\ufeff" + text),
    "anchors": Odd(counts(), {"rows.jsonl": LINES}, recipe=with_anchor),
    "2e-4 in quotes": Odd(counts(), {"rows.jsonl": LINES}, overrides=("--train.learning_rate", '"2e-4"')),
    "CSV with quotes and Windows line ends": Odd(counts(), {"rows.csv": CSV}, "./rows.csv"),
    "capital endings": Odd(counts(), {"ROWS.JSONL": LINES}, "ROWS.JSONL"),
    "a capital CSV": Odd(counts(), {"Rows.Csv": CSV}, "./Rows.Csv"),
    "nulls, dropped and counted": Odd(counts(14), {"rows.jsonl": NULLS}),
    "copies, dropped and counted": Odd(counts(24), {"rows.jsonl": LINES * 2}),
    "a line of 10 MB": Odd(
        counts(13, 13),
        {"rows.jsonl": LINES + json.dumps({"instruction": "What is it?", "output": f"It{' ' * 10_000_000}is."}) + "\n"},
    ),
    "mixed columns over a glob": Odd(
        counts(),
        {
            "a.jsonl": "".join(json.dumps(row | {"source": "a", "tags": ["x"]}) + "\n" for row in ROWS[:6]),
            "b.csv": "output,instruction\n" + "".join(f"{r['output']},{r['instruction']}\n" for r in ROWS[6:9]),
            "c.json": json.dumps([row | {"input": None, "source": 3} for row in ROWS[9:]]),
        },
        "./[abc].*",
    ),
    "an empty test split": Odd(
        counts() | {"test": 0, "unused": 4}, {"rows.jsonl": LINES}, overrides=("--data.splits.test", "0")
    ),
}


def write_recipe(base: Path, path: str | list[str]) -> str:
    document = {
        "model": {"model_name_or_path": str(base)},
        "data": {"path": path, "splits": {"train": 6, "validation": 2, "test": 2}},
        "lora": {"target_modules": ["q_proj", "v_proj"], "r": 2},
        "train": {"max_length": 128, "seed": 7, "max_steps": 1, "eval_strategy": "no", "use_cpu": True},
        "output_dir": "run",
    }
    return yaml.safe_dump(document, default_flow_style=None)


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=list(ACCEPTED))
def test_odd_input_that_is_right_gives_the_right_counts(
    case: Odd, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in case.files.items():
        Path(name).write_bytes(text.encode())
    Path("recipe.yaml").write_bytes(case.recipe(write_recipe(tiny_model, case.path)).encode())
    assert main(["data", "recipe.yaml", "--show", "0", *case.overrides]) == 0, capfd.readouterr().err
    rows = json.loads(Path("run/data/report.json").read_text())["rows"]
    assert {name: rows[name] for name in case.counts} == case.counts
    assert capfd.readouterr().err == ""


class Base(NamedTuple):
    """A change of the tiny model's directory, and what is told of it; None if it trains."""

    change: Callable[[Path], object]
    told: str | None
    overrides: tuple[str, ...] = ()


def edit_json(name: str, **changes: Any) -> Callable[[Path], object]:
    def edit(base: Path) -> None:
        values = json.loads((base / name).read_text()) | changes
        (base / name).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return edit


def without_template(base: Path) -> None:
    (base / "chat_template.jinja").unlink()


CHAT = ("--prompt.format", "chat")
BASES = {
    "tied embeddings": Base(lambda base: None, None),
    "no pad token": Base(edit_json("tokenizer_config.json", pad_token=...), None),
    "no chat template, headings": Base(without_template, None),
    "no chat template, chat": Base(without_template, "prompt.format: chat needs a model with a chat template", CHAT),
    "no end token": Base(edit_json("tokenizer_config.json", eos_token=...), "its tokenizer has no end token"),
    "no such layer": Base(lambda base: None, "lora.target_modules", ("--lora.target_modules", "[query_key_value]")),
    "an adapter": Base(
        lambda base: (base / "adapter_config.json").write_text("{}"), "must be a base model, {base} holds an adapter"
    ),
    "no weights": Base(lambda base: (base / "model.safetensors").unlink(), "{base} holds no weights"),
    "weights cut short": Base(
        lambda base: (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-99]),
        "{base} holds weights that are cut short or damaged",
    ),
    "no configuration": Base(lambda base: (base / "config.json").unlink(), "is a directory without config.json"),
    "broken configuration": Base(lambda base: (base / "config.json").write_text("{"), "{base} cannot be loaded"),
    "unknown architecture": Base(edit_json("config.json", model_type="xyz"), "{base} cannot be loaded"),
    "no tokenizer": Base(lambda base: [path.unlink() for path in base.glob("token*")], "{base} cannot be loaded"),
    "a classifier": Base(edit_json("config.json", model_type="vit"), "must be a causal language model, {base} is"),
    "weights of another size": Base(edit_json("config.json", vocab_size=500), "{base} holds weights of other sizes"),
}


@pytest.mark.parametrize("case", BASES.values(), ids=list(BASES))
def test_an_odd_base_trains_or_is_refused_in_one_message(
    case: Base, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    case.change(base)
    Path("rows.jsonl").write_text(LINES)
    Path("recipe.yaml").write_text(write_recipe(base, "./rows.jsonl"))
    code = main(["train", "recipe.yaml", *case.overrides])
    err = capfd.readouterr().err
    record = json.loads(Path("run/run.json").read_text())
    if case.told is None:
        assert (code, record["status"]) == (0, "done"), err
        return
    assert (code, record["status"]) == (1, "failed"), err
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 and "Traceback" not in err
    assert case.told.format(base=base) in messages[0]
    assert {path.name for path in Path("run").iterdir()} <= {".lock", "recipe.yaml", ".run.json", "run.json", "data"}
