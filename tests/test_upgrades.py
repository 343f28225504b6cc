"""A run under other versions of TRL and PEFT than it was trained with: made-up ones with keys of their own."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from alpacare_sft import ask, evaluate, push, train
from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.recipe import keys, upstream, validation
from alpacare_sft.recipe.document import dump_yaml
from alpacare_sft.recipe.loading import Recipe, load_recipe
from alpacare_sft.recipe.resolved import SHOWN_ONLY, recipe_document, recipe_sha256, settle
from alpacare_sft.run import record
from alpacare_sft.run.directory import RunDirectory, write_text
from alpacare_sft.run.record import recorded
from alpacare_sft.run.trained import continue_run, trained_recipe
from alpacare_sft.training.callbacks import Account
from tests.conftest import tiny_document, write_record

Make = Callable[..., Recipe]
Upgrade = Callable[..., None]
OTHER = "99.0.0"
CHANGES = [  # section, and what another version of its class does
    pytest.param("train", {"added": {"new_key": 3}}, id="train-added"),
    pytest.param("train", {"removed": ["weight_decay"]}, id="train-removed"),
    pytest.param("train", {"defaults": {"weight_decay": 0.5}}, id="train-default"),
    pytest.param("lora", {"added": {"new_key": "x"}}, id="lora-added"),
    pytest.param("lora", {"removed": ["use_dora"]}, id="lora-removed"),
    pytest.param("lora", {"defaults": {"use_rslora": True}}, id="lora-default"),
]


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upgrade]:
    """`upgrade("train", added={"new_key": 3})`: TRL becomes another version."""
    fields, installed = upstream.upstream_fields, record._version

    def change(section: str, added: Any = (), removed: Any = (), defaults: Any = ()) -> None:
        other = {name: field for name, field in fields(section).items() if name not in removed}
        other |= {name: upstream.Field(type(value), value) for name, value in dict(added).items()}
        other |= {name: other[name]._replace(default=value) for name, value in dict(defaults).items()}
        package = {"train": "trl", "lora": "peft"}[section]
        monkeypatch.setattr(upstream, "upstream_fields", lambda name: other if name == section else fields(name))
        monkeypatch.setattr(record, "_version", lambda name: OTHER if name == package else installed(name))
        forget()

    yield change
    monkeypatch.undo()
    forget()


def forget() -> None:
    keys.known_keys.cache_clear()
    keys.section_types.cache_clear()
    validation.recipe_model.cache_clear()


@pytest.fixture
def begun(make_recipe: Make) -> Callable[..., RunDirectory]:
    """`begun("done", "--train.weight_decay", "0.1")`: a run of the tiny recipe as its directory says it."""

    def begin(status: str, *overrides: str) -> RunDirectory:
        recipe = make_recipe(*overrides)
        run = RunDirectory(recipe.output_dir)
        with recorded(run, settle(recipe, train=dataclasses.replace(recipe.train, fp16=False, bf16=False))):
            run.update_record({"status": status})
        write_text(
            run.adapter / "adapter_model.safetensors" if status == "done" else run.checkpoints / "checkpoint-3" / "a",
            "",
        )
        return run

    return begin


def test_what_was_given_is_stored_and_what_it_resolved_to_stands_beside_it(
    begun: Any, document: dict[str, Any]
) -> None:
    run = begun("done", "--train.weight_decay", "0.1")
    stored = yaml.safe_load(run.recipe.read_text())
    document["train"]["weight_decay"] = 0.1
    assert stored == {**document, "resume": "auto"}
    resolved = run.read_record()["resolved"]
    assert set(resolved) == {"model", "data", "prompt", "lora", "train", "early_stopping"}
    assert (resolved["train"]["weight_decay"], resolved["train"]["adam_beta1"]) == (0.1, 0.9)
    assert resolved["data"]["clean"]["strip"] is True
    assert run.read_record()["versions"]["trl"] == version("trl")


@pytest.mark.parametrize(("section", "changes"), CHANGES)
def test_the_hash_of_a_recipe_holds_no_default(make_recipe: Make, upgrade: Upgrade, section: str, changes: Any) -> None:
    before = recipe_sha256(make_recipe())
    upgrade(section, **changes)
    assert recipe_sha256(make_recipe()) == before


@pytest.mark.parametrize(("section", "changes"), CHANGES)
def test_a_finished_run_opens_under_another_version(
    begun: Any, upgrade: Upgrade, capsys: pytest.CaptureFixture[str], section: str, changes: Any
) -> None:
    run = begun("done")
    before = trained_recipe(run)
    assert capsys.readouterr().out == ""
    upgrade(section, **changes)
    after = trained_recipe(run)
    lines = capsys.readouterr().out.splitlines()
    package = {"train": "trl", "lora": "peft"}[section]
    assert len(lines) == 1 and f"{package} {version(package)} → {OTHER}" in lines[0]
    for name in ("train", "lora"):
        now = vars(getattr(after, name))
        assert {**now, **vars(getattr(before, name))} == now
    assert (after.model, after.data, after.prompt) == (before.model, before.data, before.prompt)


def test_a_given_key_that_was_removed_is_told_for_a_finished_run(
    begun: Any, make_recipe: Make, upgrade: Upgrade, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--train.weight_decay", "0.1")
    run = begun("done", *words)
    upgrade("train", removed=["weight_decay"])
    recipe = make_recipe(*words)  # the file that it was trained by still loads
    assert trained_recipe(run).train.weight_decay == 0.1
    assert "keys that no longer exist: train.weight_decay (was 0.1)" in capsys.readouterr().out
    assert continue_run(run, recipe) == recipe  # nothing is left to train
    assert recipe_document(trained_recipe(run))["train"]["weight_decay"] == 0.1


def test_a_given_key_that_was_removed_is_refused_by_a_resume(begun: Any, make_recipe: Make, upgrade: Upgrade) -> None:
    run = begun("stopped", "--train.weight_decay", "0.1")
    upgrade("train", removed=["weight_decay"])
    for recipe in (make_recipe(), make_recipe("--train.weight_decay", "0.1")):
        with pytest.raises(RunError, match=rf"begun with train\.weight_decay: 0\.1, .*\(trl .* → {OTHER}\)\. Install"):
            continue_run(run, recipe)


def test_a_removed_key_is_an_unknown_one_where_no_run_knows_it(begun: Any, make_recipe: Make, upgrade: Upgrade) -> None:
    begun("done", "--train.weight_decay", "0.1")
    upgrade("train", removed=["weight_decay"])
    with pytest.raises(RecipeError, match=r"train\.adam_beta11 is not a key. Did you mean train\.adam_beta1\?"):
        make_recipe("--train.adam_beta11", "0.8")
    with pytest.raises(RecipeError, match=r"train\.weight_decay is not a key"):
        make_recipe("--train.weight_decay", "0.1", "--output_dir", "runs/other")
    with pytest.raises(RecipeError, match=r"train\.weight_decay is not a key"):
        train(make_recipe("--train.weight_decay", "0.1"), overwrite=True)


@pytest.mark.parametrize(("section", "changes"), CHANGES)
def test_a_resume_under_another_version_keeps_the_values_of_the_run(
    begun: Any, make_recipe: Make, upgrade: Upgrade, capsys: pytest.CaptureFixture[str], section: str, changes: Any
) -> None:
    run = begun("stopped")
    before = make_recipe()
    upgrade(section, **changes)
    recipe = make_recipe()
    continued = continue_run(run, recipe)
    shown = capsys.readouterr().out
    package = {"train": "trl", "lora": "peft"}[section]
    assert f"{package} {version(package)} → {OTHER}" in shown and "may differ in the last bits" in shown
    for name in ("train", "lora"):
        values, old = continued.values()[name], before.values()[name]
        assert {key: value for key, value in values.items() if key in old and key not in ("fp16", "bf16")} == {
            key: value for key, value in old.items() if key in values and key not in ("fp16", "bf16")
        }
    assert recipe_sha256(continued) == recipe_sha256(before)
    for key in (*changes.get("added", ()), *changes.get("removed", ()), *changes.get("defaults", ())):
        assert f"{section}.{key}" in shown


def test_values_are_compared_key_by_key_over_what_either_names(begun: Any, make_recipe: Make, upgrade: Upgrade) -> None:
    run = begun("stopped", "--train.adam_beta1", "0.9")  # named, and the default
    upgrade("train", defaults={"weight_decay": 0.5, "adam_beta1": 0.8})
    continue_run(run, make_recipe("--train.adam_beta1", "0.9", "--train.weight_decay", "0.0"))  # the run's values
    with pytest.raises(RunError, match=r"train\.weight_decay: 0\.0 → 0\.5"):
        continue_run(run, make_recipe("--train.adam_beta1", "0.9", "--train.weight_decay", "0.5"))
    with pytest.raises(RunError, match=r"train\.adam_beta1: 0\.9 → 0\.8"):
        continue_run(run, make_recipe())


def test_batch_keys_and_what_is_shown_are_no_other_recipe(begun: Any, make_recipe: Make) -> None:
    run = begun("stopped")
    words = ["--train.per_device_train_batch_size", "4", "--train.gradient_accumulation_steps", "1"]
    continued = continue_run(run, make_recipe(*words, "--train.logging_steps", "7"))
    batch = (continued.train.per_device_train_batch_size, continued.train.gradient_accumulation_steps)
    assert batch == (4, 1)
    assert continued.train.logging_steps == 7


def test_a_default_of_our_own_that_changed_is_that_of_the_run(
    begun: Any, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun("stopped")
    entry = run.read_record()
    entry["resolved"]["data"]["clean"] |= {"min_characters": 3, "a_step_of_then": True}
    write_record(run.path, entry)
    assert continue_run(run, make_recipe()).data.clean.min_characters == 3
    assert make_recipe().data.clean.min_characters == 6


def test_a_precision_that_the_machine_lacks_is_told_by_the_run(begun: Any, make_recipe: Make) -> None:
    run = begun("stopped")
    entry = run.read_record()
    entry["resolved"]["train"]["fp16"] = True
    write_record(run.path, entry)
    with pytest.raises(RunError, match="was begun in fp16, which this machine lacks"):
        continue_run(run, make_recipe())


def test_values_that_are_set_in_python_count_as_given(make_recipe: Make, tmp_path: Path) -> None:
    recipe, run = make_recipe(), RunDirectory(tmp_path / "run")
    recipe.train.weight_decay, recipe.data.clean.strip = 0.1, False
    with recorded(run, recipe):
        pass
    again = load_recipe(run.recipe)
    assert (again, recipe_sha256(again)) == (recipe, run.read_record()["recipe_sha256"])
    assert recipe_sha256(again) != recipe_sha256(make_recipe())


def as_of_0_1(run: RunDirectory, recipe: Recipe) -> None:
    """Write recipe and record as version 0.1.0 did: our sections in full, the hash over every default."""
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, fp16=False, bf16=False))
    values = {name: dataclasses.asdict(getattr(recipe, name)) for name in ("model", "data", "prompt")}
    values["early_stopping"] = dataclasses.asdict(recipe.early_stopping)
    values["lora"] = vars(recipe.lora)
    values["train"] = {key: value for key, value in vars(recipe.train).items() if f"train.{key}" not in SHOWN_ONLY}
    write_text(run.recipe, "# The resolved recipe\n" + dump_yaml(recipe_document(recipe)))
    digest = hashlib.sha256(json.dumps(dict(flat(values)), sort_keys=True).encode()).hexdigest()
    entry = run.read_record()
    del entry["resolved"], entry["earlier_versions"]
    write_record(run.path, {**entry, "recipe_sha256": digest})


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in (value if isinstance(value, dict) else vars(value)).items():
        inner = getattr(inner, "value", sorted(inner) if isinstance(inner, set) else inner)
        if (isinstance(inner, dict) and inner) or hasattr(inner, "__dict__"):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def test_a_run_of_0_1_opens_and_its_hash_is_checked_under_its_versions(
    begun: Any, make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun("done", "--prompt.system", "Be kind.")
    as_of_0_1(run, make_recipe("--prompt.system", "Be kind."))
    assert trained_recipe(run).prompt.system == "Be kind."
    assert capsys.readouterr().out == ""
    write_text(run.recipe, run.recipe.read_text().replace("Be kind.", "Be rude."))
    with pytest.raises(RunError, match="is not the recipe that this adapter was trained by"):
        trained_recipe(run)


@pytest.mark.parametrize(("section", "changes"), CHANGES)
def test_a_run_of_0_1_opens_under_other_versions_and_says_that_its_hash_is_not_checkable(
    begun: Any, make_recipe: Make, upgrade: Upgrade, capsys: pytest.CaptureFixture[str], section: str, changes: Any
) -> None:
    run = begun("done")
    as_of_0_1(run, make_recipe())
    upgrade(section, **changes)
    assert trained_recipe(run).train.learning_rate == 0.01
    shown = capsys.readouterr().out
    assert f"→ {OTHER}" in shown and "recipe.yaml cannot be checked" in shown


def test_a_run_of_0_1_is_gone_on_with(begun: Any, make_recipe: Make) -> None:
    run = begun("stopped")
    as_of_0_1(run, make_recipe())
    stored = yaml.safe_load(run.recipe.read_text())
    stored["data"]["clean"]["no_input_marks"] = ["then"]  # a default of then, which nobody named
    write_text(run.recipe, dump_yaml(stored))
    recipe = make_recipe()
    recipe = settle(recipe, train=dataclasses.replace(recipe.train, fp16=False, bf16=False))
    assert continue_run(run, recipe).data.clean.no_input_marks == ["then"]
    with pytest.raises(RunError, match=r"train\.learning_rate: 0\.01 → 0\.02"):
        continue_run(run, make_recipe("--train.learning_rate", "0.02"))


@pytest.fixture(scope="module")
def crashed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that crashed after step 8 of 12, with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("crashed")
    write_text(folder / "recipe.yaml", dump_yaml(tiny_document(tiny_model, folder / "run")))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(Account, "on_step_begin", crash_at_8, raising=False)
        train(load_recipe(folder / "recipe.yaml"))
    return folder


def crash_at_8(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
    if state.global_step == 8:
        raise RuntimeError("crash")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same recipe that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    write_text(folder / "recipe.yaml", dump_yaml(tiny_document(tiny_model, folder / "run")))
    train(load_recipe(folder / "recipe.yaml"))
    return folder


@pytest.mark.slow
def test_a_resume_under_changed_defaults_ends_with_the_weights_of_the_run(
    crashed: Path, finished: Path, upgrade: Upgrade
) -> None:
    upgrade("train", added={"new_key": 3}, removed=["push_to_hub"], defaults={"weight_decay": 0.5, "adam_beta1": 0.5})
    entry = train(load_recipe(crashed / "recipe.yaml"))
    one, two = (load_file(path / "run" / "adapter" / "adapter_model.safetensors") for path in (crashed, finished))
    assert all((one[name] == two[name]).all() for name in two)
    before = RunDirectory(finished / "run").read_record()
    assert entry["recipe_sha256"] == before["recipe_sha256"]
    assert (entry["versions"]["trl"], entry["earlier_versions"]) == (OTHER, [before["versions"]])
    assert entry["resolved"]["train"]["weight_decay"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("section", "changes"), CHANGES)
def test_a_finished_run_is_evaluated_asked_and_pushed_under_another_version(
    finished: Path, upgrade: Upgrade, capsys: pytest.CaptureFixture[str], section: str, changes: Any
) -> None:
    upgrade(section, **changes)
    words = ["--generate.max_new_tokens", "4", "--evaluate.metrics", "[loss]", "--hub.repo_id", "them/tiny"]
    recipe = load_recipe(finished / "recipe.yaml", words)
    scores = evaluate(recipe, limit=2).scores
    package = {"train": "trl", "lora": "peft"}[section]
    assert scores["versions_since_training"] == [f"{package} {version(package)} → {OTHER}"]
    ask(recipe, "What helps with a cold?", out=io.StringIO())
    published = push(recipe, dry_run=True)
    assert "recipe.yaml" in published.files
    assert capsys.readouterr().out.count(f"{package} {version(package)} → {OTHER}") == 3
