"""Recipes that work: how they are read, overridden, resolved, hashed and documented."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.recipe.document import dump_yaml, parse_yaml, read_document
from alpacare_sft.recipe.loading import Recipe, load_recipe
from alpacare_sft.recipe.reference import recipe_schema, recipe_schema_text
from alpacare_sft.recipe.resolved import recipe_differences, recipe_document, recipe_sha256, recipe_yaml
from tests.recipe_reference import recipe_reference, upstream_stub

Make = Callable[..., Recipe]
ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LEAST = "model: {model_name_or_path: embedded}\ndata: {path: embedded}\noutput_dir: run\n"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    """`load("train: {seed: 1}", "--train.max_steps", "3")`: what a text adds to the least recipe."""

    def load(text: str | bytes = "", *overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else (LEAST + text).encode())
        return load_recipe(path, overrides)

    return load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("false", False),
        ("True", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("2e-4", 0.0002),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("-1", -1),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("0.0", 0.0),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("2025-01-01", "2025-01-01"),
        ("12:30", "12:30"),
        ("'5'", "5"),
        ("[a, 1, no]", ["a", 1, "no"]),
    ],
)
def test_yaml_is_read_by_version_1_2(text: str, value: Any) -> None:
    (read,), duplicates = parse_yaml(f"[{text or 'null'}]")
    assert (type(read), read, duplicates) == (type(value), value, [])


@pytest.mark.parametrize("text", ["no", "2e-4", "8e12345", "1234567", "true", "~", "2025-01-01", "0x1F", "1_000", ".5"])
def test_text_that_looks_like_something_else_is_written_in_quotes(text: str) -> None:
    document = {"a": {"b": text, "c": [text]}}
    assert parse_yaml(dump_yaml(document)) == (document, [])


def test_anchors_and_merges_are_followed() -> None:
    document, duplicates = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {d: &d {<<: *a, y: 4}}\ne: {<<: *d}\n")
    assert document == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"d": {"x": 1, "y": 4}},
        "e": {"x": 1, "y": 4},
    }
    assert duplicates == []


def test_line_ends_and_byte_order_marks_of_windows_change_nothing(load: Callable[..., Recipe]) -> None:
    plain = load("train:\n  seed: 7\n  max_steps: 3\n")
    windows = (LEAST + "train:\n  seed: 7\n  max_steps: 3\n").replace("\n", "\r\n")
    assert load(b"\xef\xbb\xbf" + windows.encode()) == plain
    assert plain.train.seed == 7


def test_a_section_without_keys_has_its_defaults(load: Callable[..., Recipe]) -> None:
    empty = "".join(f"{name}:\n" for name in ("prompt", "lora", "train", "early_stopping", "generate", "hub"))
    assert load(empty) == load()


def test_overrides_reach_every_kind_of_key(load: Callable[..., Recipe]) -> None:
    words = "--train.learning_rate 1e-4 --lora.target_modules [k_proj] --data.splits.train 40 --resume=never"
    more = "--data.clean.keep_newlines false --train.max_steps -1 --hub.repo_id null --output_dir=runs/b"
    recipe = load("", *words.split(), *more.split())
    assert (recipe.train.learning_rate, recipe.train.max_steps) == (1e-4, -1)
    assert recipe.lora.target_modules in (["k_proj"], {"k_proj"})
    assert (recipe.data.splits.train, recipe.data.clean.keep_newlines) == (40, False)
    assert (recipe.resume, recipe.hub.repo_id, recipe.output_dir) == ("never", None, Path("runs/b"))


def test_the_last_of_two_overrides_counts_and_makes_missing_sections(load: Callable[..., Recipe]) -> None:
    recipe = load("", "--train.seed", "1", "--train.seed=2", "--safety.disclaimer", "Ask a doctor: always.")
    assert recipe.train.seed == 2
    assert recipe.safety.disclaimer == "Ask a doctor: always."


@pytest.mark.parametrize(
    "text", ["Ask: a doctor.", "You are #1 of # two", "# first", "- listen\n- look", "Say 'no'", " a "]
)
def test_a_sentence_on_the_command_line_stays_what_it_is(load: Callable[..., Recipe], text: str) -> None:
    assert load("", "--prompt.system", text).prompt.system == text


@pytest.mark.parametrize("text", ["# Role", "null", "~", "1", "no", "a: b", "# Role\nYou are a nurse.\n"])
def test_text_in_quotes_stays_text(load: Callable[..., Recipe], text: str) -> None:
    quoted = json.dumps(text)
    recipe = load(f"prompt: {{system: {quoted}}}\nsafety: {{disclaimer: {quoted}}}\nhub: {{repo_id: {quoted}}}\n")
    assert [recipe.prompt.system, recipe.safety.disclaimer, recipe.hub.repo_id] == [text] * 3


def test_upstream_arguments_of_every_kind_are_taken(load: Callable[..., Recipe]) -> None:
    recipe = load(
        "train: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 0.1}, warmup_steps: 0.1,"
        " report_to: [tensorboard], accelerator_config: {split_batches: true}, eval_strategy: no, max_grad_norm: 1}\n"
        "lora: {target_modules: all-linear, rank_pattern: {q_proj: 8}, layers_to_transform: [0, 1]}\n"
    )
    assert recipe.train.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert recipe.train.report_to == ["tensorboard"]
    assert not recipe.evaluates_during_training
    assert (recipe.lora.target_modules, recipe.lora.rank_pattern) == ("all-linear", {"q_proj": 8})


def test_no_evaluation_turns_off_what_needs_it_and_says_so(make_recipe: Make) -> None:
    recipe = make_recipe("--early_stopping.patience", "3", "--train.eval_strategy", "no")
    assert (recipe.train.eval_strategy, recipe.train.load_best_model_at_end) == ("no", False)
    assert recipe.early_stopping.patience == 0
    assert recipe.notes == [
        "train.eval_strategy is no: loading the best checkpoint and early stopping turned off with it."
    ]


def test_patience_turns_best_model_loading_on_and_says_so(make_recipe: Make) -> None:
    recipe = make_recipe("--early_stopping.patience", "3", "--train.load_best_model_at_end", "false")
    assert recipe.train.load_best_model_at_end is True
    assert recipe.notes == ["early_stopping.patience is set: train.load_best_model_at_end turned on with it."]
    assert make_recipe().notes == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_resolved_recipe_reads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["--model.model_revision", "'8e12345'", "--prompt.system", "Be “kind”:\n- no µg"])
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(recipe_yaml(recipe), encoding="utf-8")
    again = load_recipe(resolved)
    assert again == recipe
    assert recipe_sha256(again) == recipe_sha256(recipe)
    assert recipe_document(again) == recipe_document(recipe)


ALTERS = {
    "model.model_revision": "v2",
    "data.seed": 43,
    "data.path": "embedded_dirty",
    "data.clean.strip": False,
    "data.splits.test": 7,
    "prompt.overflow": "drop",
    "prompt.date": "02 Jan 2025",
    "lora.r": 5,
    "lora.target_modules": ["k_proj"],
    "train.learning_rate": 1e-3,
    "train.max_length": 100,
    "train.seed": 1,
    "train.lr_scheduler_type": "cosine",
    "train.weight_decay": 0.1,
    "early_stopping.patience": 2,
}
DOES_NOT = {
    "generate.max_new_tokens": 7,
    "evaluate.confidence": 0.9,
    "safety.disclaimer": "Ask.",
    "hub.repo_id": "a/b",
    "output_dir": "runs/other",
    "resume": "never",
    "train.report_to": "tensorboard",
    "train.logging_steps": 7,
    "train.run_name": "a",
    "train.save_total_limit": 1,
    "train.dataset_num_proc": 2,
    "train.dataloader_num_workers": 1,
    "train.per_device_eval_batch_size": 3,
    "train.per_device_train_batch_size": 4,
    "train.gradient_accumulation_steps": 1,
}


@pytest.mark.parametrize("key", [*ALTERS, *DOES_NOT])
def test_the_hash_covers_what_alters_the_adapter_and_nothing_else(make_recipe: Make, key: str) -> None:
    before, after = make_recipe(), make_recipe(f"--{key}", json.dumps({**ALTERS, **DOES_NOT}[key]))
    assert before != after
    assert (recipe_sha256(before) != recipe_sha256(after)) == (key in ALTERS)
    assert [told.split(": ")[0] for told in recipe_differences(before, after)] == [key] * (key in ALTERS)


def test_names_of_the_hub_are_compared_without_case_and_paths_with_it(make_recipe: Make, tmp_path: Path) -> None:
    names = ("org/Base", "ORG/base", "org/base-2")
    recipes = [make_recipe("--model.model_name_or_path", name, "--data.path", name) for name in names]
    assert recipe_differences(recipes[0], recipes[1]) == []
    assert recipe_differences(recipes[0], recipes[2]) == [
        "data.path: org/Base → org/base-2",
        "model.model_name_or_path: org/Base → org/base-2",
    ]
    (tmp_path / "Rows.jsonl").touch()
    paths = [make_recipe("--data.path", str(tmp_path / name)) for name in ("Rows.jsonl", "rows.jsonl")]
    assert len(recipe_differences(*paths)) == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_fits_the_schema(path: Path, schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    assert load_recipe(path).notes == []
    Draft202012Validator.check_schema(schema)
    errors = Draft202012Validator(schema).iter_errors(read_document(path)[0])
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize(
    ("section", "key"),
    [("train", "learning_rat"), ("train", "output_dir"), ("lora", "task_type"), ("generate", "x"), ("model", "y")],
)
def test_the_schema_refuses_what_loading_refuses(schema: dict[str, Any], section: str, key: str) -> None:
    from jsonschema import Draft202012Validator

    document, _ = read_document(ROOT / "recipes" / "demo.yaml")
    document[section] = {**document.get(section, {}), key: "x"}
    assert not Draft202012Validator(schema).is_valid(document)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return dict(json.loads(json.dumps(recipe_schema(), default=str)))


def test_an_empty_word_is_empty_text_and_not_null(tmp_path: Path) -> None:
    words = ["--prompt.system", "", "--output_dir", str(tmp_path)]
    assert load_recipe(ROOT / "recipes" / "demo.yaml", words).prompt.system == ""
    assert load_recipe(ROOT / "recipes" / "demo.yaml", ["--prompt.system", "null"]).prompt.system is None


def test_the_reference_of_the_keys_is_not_stale() -> None:
    assert (ROOT / "recipes" / "README.md").read_text(encoding="utf-8") == recipe_reference(), "make recipes/README.md"


def test_the_schema_file_is_not_stale() -> None:
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    other = [name for name in ("trl", "peft", "transformers", "pydantic") if version(name) != tested[name]]
    if other:
        pytest.skip(f"the schema is that of the tested versions; {', '.join(other)} installed in another")
    text = (ROOT / "recipes" / "schema.json").read_text(encoding="utf-8")
    assert text == recipe_schema_text(), "make recipes/schema.json"
    stub = "alpacare_sft/recipe/upstream_sections.pyi"
    assert (ROOT / stub).read_text(encoding="utf-8") == upstream_stub(), f"make {stub}"


@pytest.mark.slow
def test_a_misspelt_key_is_refused_by_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    from mypy import api

    lines = ["from alpacare_sft import load_recipe", "train = load_recipe('x').train"]
    lines += ["train.learning_rate", "train.learnig_rate", "load_recipe('x').lora.rr"]
    (tmp_path / "use.py").write_text("\n".join(lines))
    out, _, status = api.run(["--strict", f"--cache-dir={tmp_path / 'cache'}", str(tmp_path / "use.py")])
    assert status == 1 and out.count("[attr-defined]") == 2, out
    assert 'maybe "learning_rate"?' in out


REFERENCE = {
    "model.model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct",
    "model.quantization": None,
    "data.path": "lavita/AlpaCare-MedInstruct-52k",
    "data.splits": {"train": 2000, "validation": 100, "test": 100},
    "data.seed": 42,
    "prompt.format": "sections",
    "lora.r": 16,
    "lora.lora_alpha": 32,
    "lora.lora_dropout": 0.05,
    "lora.bias": "none",
    "lora.target_modules": ["q_proj", "v_proj"],
    "train.per_device_train_batch_size": 1,
    "train.gradient_accumulation_steps": 2,
    "train.learning_rate": 2e-4,
    "train.num_train_epochs": 5,
    "train.fp16": True,
    "train.logging_steps": 20,
    "train.save_steps": 100,
    "train.save_strategy": "steps",
    "train.max_length": 512,
    "train.eval_strategy": "steps",
    "train.eval_steps": 100,
    "train.load_best_model_at_end": True,
    "train.metric_for_best_model": "loss",
    "train.lr_scheduler_type": "linear",
    "train.warmup_steps": 0,
    "train.seed": 42,
    "train.activation_checkpointing": False,
    "early_stopping.patience": 3,
}


def dotted(recipe: Recipe, key: str) -> Any:
    """A value of the recipe as it loads, defaults included, in plain types."""
    section, name = key.split(".")
    if section in ("train", "lora"):
        value = getattr(getattr(recipe, section), name)
        value = sorted(value) if isinstance(value, set | list) else value
        return getattr(value, "value", value)
    return recipe_document(recipe)[section][name]


def test_t4_is_the_reference() -> None:
    recipe = load_recipe(ROOT / "recipes" / "t4.yaml")
    assert {key: dotted(recipe, key) for key in REFERENCE} == REFERENCE


def test_t4_qlora_differs_from_t4_in_the_quantization_alone() -> None:
    plain, quantized = (recipe_document(load_recipe(ROOT / "recipes" / f"{name}.yaml")) for name in ("t4", "t4-qlora"))
    assert quantized["model"].pop("quantization") == "nf4"
    assert plain["model"].pop("quantization") is None
    assert (plain.pop("output_dir"), quantized.pop("output_dir")) == ("runs/t4", "runs/t4-qlora")
    assert plain == quantized
