"""Answers and scores: batches change nothing, a stop loses nothing, notices stay out of what is scored."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from alpacare_sft.cli import stopped_by_signals
from alpacare_sft.errors import DataError, ModelError, RecipeError, RunError, StoppedError
from alpacare_sft.evaluation.answering import EvaluationRequests, ModelResponses, reference_loss
from alpacare_sft.evaluation.ask import ask
from alpacare_sft.evaluation.compared_models import LOST_AT_MOST as LOST_LIMIT
from alpacare_sft.evaluation.compared_models import ComparedModels
from alpacare_sft.evaluation.evaluate import evaluate, list_predictions
from alpacare_sft.evaluation.generation import CUT, Answer, configure_generation, generate_answers, read_answer
from alpacare_sft.evaluation.held_out import HeldOutRows, encode_rows, read_test_split
from alpacare_sft.evaluation.terminal import show_evaluation
from alpacare_sft.model.adapter import answer_logits, merge_adapter
from alpacare_sft.model.base import load_base_model
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.recipe.loading import Recipe, load_recipe
from alpacare_sft.recipe.sections import GenerateSection
from alpacare_sft.reporting.card import format_card
from alpacare_sft.reporting.evidence import read_evidence
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.training.train import train
from tests.conftest import write_record

pytestmark = pytest.mark.slow

Make = Callable[..., Recipe]
LOST_AT_MOST = "alpacare_sft.evaluation.compared_models.LOST_AT_MOST"
ROW = {"instruction": "Name the bones of the forearm.", "input": "", "output": "The radius and the ulna."}


def test_batch_1_and_batch_16_write_the_same_tokens(make_recipe: Make, tokenizer: Any) -> None:
    recipe = make_recipe()
    model = load_base_model(recipe.model, "float32").eval()
    encoder = PromptEncoder(tokenizer, recipe.prompt)
    prompts = [encoder.encode_prompt("Say something about bones. " * n, "") for n in (1, 4, 2, 7, 3) * 4]
    answers = []
    for size in (1, 16):
        generate = GenerateSection(max_new_tokens=12, batch_size=size)
        answers.append(dict(generate_answers(model, tokenizer, prompts, generate, answer_end=1)))
    assert answers[0] == answers[1]


def test_reference_loss_is_that_of_the_model_on_the_answer_alone(make_recipe: Make, tokenizer: Any) -> None:
    recipe = make_recipe()
    model = load_base_model(recipe.model, "float32").eval()
    row = PromptEncoder(tokenizer, recipe.prompt).encode_row(ROW, 500)
    ids = torch.tensor([row["input_ids"]])
    labels = torch.where(torch.tensor([row["completion_mask"]]).bool(), ids, -100)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).loss.item()
    assert reference_loss(model, row) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("written", "ended", "text", "end"),
    [
        ("The ulna.", True, "The ulna.", "end_token"),
        ("The ulna is", False, "The ulna is", "length"),
        ("The ulna.\n\n### Instruction:\nName more.", False, "The ulna.", "run_on"),
        ("### Instruction:\nName more.", True, "", "run_on"),
        ("Watch:\n### Input/Output chart\nDaily.", True, "Watch:\n### Input/Output chart\nDaily.", "end_token"),
        ("### Instruction for patients\nRest.", True, "### Instruction for patients\nRest.", "end_token"),
        ("Text\n### Explanation:\nMore.", True, "Text\n### Explanation:\nMore.", "end_token"),
    ],
)
def test_how_an_answer_ended_is_told(tokenizer: Any, written: str, ended: bool, text: str, end: str) -> None:
    tokens = tokenizer(written, add_special_tokens=False)["input_ids"]
    tokens += [tokenizer.eos_token_id, tokenizer.pad_token_id, 70] if ended else []
    answer = read_answer(tokens, [tokenizer.eos_token_id], tokenizer)
    assert (answer.text, answer.end) == (text, end)
    assert answer.num_tokens == len(tokens) - 2 * ended


def test_answers_end_with_the_token_that_was_learnt(make_recipe: Make, tokenizer: Any) -> None:
    model = load_base_model(make_recipe().model, "float32")
    config = configure_generation(model, tokenizer, GenerateSection(), answer_end=7)  # a chat template's own end
    assert config.eos_token_id == [tokenizer.eos_token_id, 7]


def test_eval_says_what_is_missing(make_recipe: Make) -> None:
    with pytest.raises(RunError, match=r"holds no trained adapter.*alpacare-sft train"):
        evaluate(make_recipe())


WORDS = ("--generate.max_new_tokens", "6", "--evaluate.bootstrap_samples", "50", "--train.max_steps", "3")


@pytest.fixture(scope="module")
def run_of_the_module(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, for tests to copy."""
    import yaml

    from tests.conftest import tiny_document

    folder = tmp_path_factory.mktemp("trained")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_document(tiny_model, folder / "run")), encoding="utf-8")
    train(load_recipe(recipe, WORDS))
    return folder / "run"


@pytest.fixture
def trained(make_recipe: Make, run_of_the_module: Path) -> Recipe:
    recipe = make_recipe(*WORDS, "--safety.disclaimer", "NOTICE")
    shutil.copytree(run_of_the_module, recipe.output_dir)
    return recipe


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_eval_writes_predictions_scores_and_pages(trained: Recipe) -> None:
    found = evaluate(trained)
    assert found.folder == trained.output_dir / "eval"
    scores = json.loads((found.folder / "scores.json").read_text())
    assert (scores["n"], scores["complete"]) == (6, True)
    texts = {"rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio", "cut_share", "run_on_share", "empty_share"}
    assert {"loss", "perplexity", "general_loss", "repeated_share"} | texts <= set(scores["metrics"])
    assert scores["metrics"]["general_loss"]["n"] == 50
    parts = {name: set(scores["metrics"]["loss"][name]) for name in ("base", "adapter", "difference")}
    plain = {"mean", "low", "high", "confidence"}
    assert parts == {"base": plain, "adapter": plain, "difference": plain | {"p_value", "test"}}
    rows = read_predictions(found.folder)
    assert len(rows) == 6
    assert {"id", "prompt", "reference", "base", "adapter", "base_end", "adapter_end", "scores"} <= set(rows[0])
    files = {path.name for path in found.folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    sheets = {"review.csv", "review.html", "review_key.json"}
    assert files == {"predictions.jsonl", "scores.json", "report.html", *sheets}
    assert "NOTICE" in (found.folder / "report.html").read_text()


def test_the_mean_loss_weighs_each_token_alike_and_perplexity_follows_from_it(trained: Recipe) -> None:
    found = evaluate(trained)
    losses = [row["scores"]["loss"]["base"] for row in found.predictions]
    tokens = [row["reference_tokens"] for row in found.predictions]
    mean = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    metrics = found.scores["metrics"]
    assert metrics["loss"]["base"]["mean"] == pytest.approx(mean)
    assert metrics["perplexity"]["base"]["mean"] == pytest.approx(2.718281828**mean)


def test_nothing_learnt_or_scored_holds_the_notice(trained: Recipe) -> None:
    found = evaluate(trained)
    for row in found.predictions:
        for who in ("base", "adapter"):
            cut = CUT if row[f"{who}_end"] == "length" else ""
            assert row["display"][who] == f"{row[who]}{cut}\n\nNOTICE"
            assert "NOTICE" not in row[who]
    learnt = [path.read_text() for path in (trained.output_dir / "data").glob("*.jsonl")]
    kept = [path.read_text() for path in (found.folder / "answers").glob("*.jsonl")]
    assert len(learnt) == 3
    assert len(kept) == 2
    assert not any("NOTICE" in text for text in learnt + kept)


def test_a_stopped_evaluation_goes_on_and_ends_alike(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(trained).predictions
    sheet = trained.output_dir / "eval" / "answers" / "adapter.jsonl"
    lines = sheet.read_text().splitlines(keepends=True)
    sheet.write_text("".join(lines[:-4]) + lines[-4][:15])  # the last answers gone, one half-written
    asked: list[int] = []

    def count(*arguments: Any, **words: Any) -> Any:
        for index, answer in generate_answers(*arguments, **words):
            asked.append(index)
            yield index, answer

    monkeypatch.setattr("alpacare_sft.evaluation.answering.generate_answers", count)
    assert evaluate(trained).predictions == whole
    assert asked  # the batch of what was missing, no base
    monkeypatch.setattr(
        "alpacare_sft.evaluation.compared_models.load_base_model", lambda *_: pytest.fail("nothing is left to ask")
    )
    assert evaluate(trained).predictions == whole


def test_answers_of_other_settings_are_not_taken_for_these(trained: Recipe) -> None:
    short = evaluate(trained, limit=2).predictions
    trained.generate.max_new_tokens = 12
    longer = evaluate(trained, limit=2).predictions
    assert longer[0]["adapter_tokens"] == 12 != short[0]["adapter_tokens"]


def test_another_score_asks_only_what_it_needs(trained: Recipe) -> None:
    trained.evaluate.metrics = ["rouge"]
    first = evaluate(trained).predictions
    trained.evaluate.metrics = ["rouge", "forgetting"]
    again = evaluate(trained)
    assert [row["adapter"] for row in again.predictions] == [row["adapter"] for row in first]
    assert again.scores["metrics"]["general_loss"]["n"] == 50
    sheet = (trained.output_dir / "eval" / "answers" / "adapter.jsonl").read_text()
    assert sheet.count('"text"') == 6  # answered once


def test_merging_is_checked_and_told(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    model = evaluate(trained, limit=2).scores["model"]
    assert model["merged"] is True
    assert model["merge_check"]["same_token_share"] > 0.98
    assert model["merge_check"]["largest_logit_difference"] < 1e-4
    assert model["merge_check"]["lost_share"] < 1e-3
    monkeypatch.setattr(LOST_AT_MOST, -1.0)  # as if merging had rounded it away
    apart = evaluate(trained, limit=3)
    assert apart.scores["model"]["merged"] is False
    assert {line["adapter_end"] for line in apart.predictions} <= {"length", "end_token", "run_on"}


def test_merged_and_attached_adapters_write_the_same(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = evaluate(trained).predictions
    shutil.rmtree(trained.output_dir / "eval")
    monkeypatch.setattr(LOST_AT_MOST, -1.0)
    assert [row["adapter"] for row in evaluate(trained).predictions] == [row["adapter"] for row in merged]


def test_an_edited_recipe_of_a_run_is_not_trusted(trained: Recipe) -> None:
    path = trained.output_dir / "recipe.yaml"
    path.write_text(path.read_text() + "prompt: {format: chat}\n")
    with pytest.raises(RunError, match="not the recipe that this adapter was trained by"):
        evaluate(trained)


@pytest.mark.parametrize("name", ["train", "test"])
def test_splits_that_were_changed_prove_nothing(trained: Recipe, name: str, capsys: Any) -> None:
    path = trained.output_dir / "data" / f"{name}.jsonl"
    before = path.read_text()
    path.write_text("".join(before.splitlines(keepends=True)[1:]))
    evaluate(trained, limit=2)
    assert path.read_text() == before
    assert f"data/{name}.jsonl not as written: the rows are made again." in capsys.readouterr().out
    path.write_text("".join(before.splitlines(keepends=True)[1:]))
    record = json.loads((trained.output_dir / "run.json").read_text())
    write_record(trained.output_dir, {**record, "files": {}})  # as 0.1 wrote it
    with pytest.raises(RunError, match=rf"{name}.jsonl is not the split that this run was trained with"):
        evaluate(trained)


def test_without_a_baseline_the_adapter_is_scored_alone(trained: Recipe) -> None:
    trained.evaluate.baseline = False
    found = evaluate(trained, limit=2)
    assert not any("base" in part or "difference" in part for part in found.scores["metrics"].values())
    assert "The base was not scored" in found.scores["verdict"]


def test_the_loss_alone_writes_no_answer(trained: Recipe) -> None:
    trained.evaluate.metrics = ["loss"]
    found = evaluate(trained, limit=2)
    assert set(found.scores["metrics"]) == {"loss", "perplexity"}
    assert not any("adapter" in row for row in found.predictions)


def test_what_was_not_asked_for_is_not_scored_though_it_is_known(trained: Recipe) -> None:
    evaluate(trained)
    sheet = trained.output_dir / "eval" / "answers" / "adapter.jsonl"
    sheet.write_text("".join(sheet.read_text().splitlines(keepends=True)[:-1]))  # stopped before its last answer
    trained.evaluate.metrics = ["loss"]
    found = evaluate(trained)
    assert set(found.scores["metrics"]) == {"loss", "perplexity"}
    assert not any("adapter" in row for row in found.predictions)


def test_a_loss_that_is_no_number_stops_with_its_row(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpacare_sft.evaluation.answering.reference_loss", lambda *_: float("nan"))
    with pytest.raises(RunError, match=r"base: the loss on references is nan at number 1.*--train.use_cpu true"):
        evaluate(trained)


def test_a_full_card_keeps_what_was_answered(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("alpacare_sft.evaluation.answering.generate_answers", full)
    with pytest.raises(RunError, match=r"memory is full.*lower generate.batch_size"):
        evaluate(trained)
    assert '"loss"' in (trained.output_dir / "eval" / "answers" / "base.jsonl").read_text()


def test_one_copy_of_the_weights_even_where_merging_fails(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    loaded: list[Any] = []

    def load(*arguments: Any) -> Any:
        gc.collect()
        assert [one() for one in loaded if one() is not None] == []
        model = load_base_model(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(LOST_AT_MOST, -1.0)
    monkeypatch.setattr("alpacare_sft.evaluation.compared_models.load_base_model", load)
    evaluate(trained, limit=2)
    assert len(loaded) == 2


def test_a_models_own_penalties_do_not_change_the_answers(trained: Recipe, tiny_model: Path) -> None:
    before = evaluate(trained, limit=2).predictions
    shutil.rmtree(trained.output_dir / "eval")
    own = tiny_model / "generation_config.json"
    text = own.read_text()
    own.write_text(json.dumps({**json.loads(text), "repetition_penalty": 5.0, "no_repeat_ngram_size": 1}))
    try:
        assert evaluate(trained, limit=2).predictions == before
    finally:
        own.write_text(text)


def test_a_limit_below_one_is_refused(trained: Recipe) -> None:
    with pytest.raises(RecipeError, match="--limit must be at least 1, got 0"):
        evaluate(trained, limit=0)


def test_scores_of_a_part_never_stand_for_the_whole(trained: Recipe) -> None:
    found = evaluate(trained, limit=2)
    assert found.folder == trained.output_dir / "eval" / "first-2"
    assert found.scores["complete"] is False
    assert not (trained.output_dir / "eval" / "scores.json").exists()


def test_other_rows_are_scored_beside_the_split(trained: Recipe, write_rows: Callable[..., Path]) -> None:
    rows = [{"instruction": f"Where is bone {n}?", "input": "", "output": f"In the arm, number {n}."} for n in range(3)]
    found = evaluate(trained, rows=str(write_rows(rows, "others.jsonl")))
    assert found.folder.parent == trained.output_dir / "eval"
    assert found.folder.name.startswith("rows-others-")
    assert [row["reference"] for row in found.predictions] == [row["output"] for row in rows]
    assert found.scores["rows"] == {"loaded": 3, "kept": 3}


def test_rows_that_were_trained_on_are_refused(trained: Recipe) -> None:
    with pytest.raises(DataError, match=r"24 of 24 questions were trained on"):
        evaluate(trained, rows=str(trained.output_dir / "data" / "train.jsonl"))


def test_rows_that_were_trained_on_in_another_spelling_are_refused(
    trained: Recipe, write_rows: Callable[..., Path]
) -> None:
    rows = [json.loads(line) for line in (trained.output_dir / "data" / "train.jsonl").open(encoding="utf-8")][:3]
    rows = [{**row, "instruction": row["instruction"].upper().replace(" ", "\xa0"), "output": "Other."} for row in rows]
    rows.append({"instruction": "Where is bone 1?", "input": "", "output": "In the arm."})
    with pytest.raises(DataError, match=r"3 of 4 questions were trained on"):
        evaluate(trained, rows=str(write_rows(rows, "respelt.jsonl")))


def test_an_adapter_of_the_base_by_another_name_is_scored_if_told_so(trained: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.output_dir / "adapter", other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some/mirror"}))
    with pytest.raises(ModelError, match=r"add --same-base; else score it with a recipe of its own base"):
        evaluate(trained, adapter=str(other), limit=1)
    result = evaluate(trained, adapter=str(other), limit=1, same_base=True)
    assert result.scores["model"]["adapter_base"] == "some/mirror"
    assert "--same-base" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_another_adapter_is_scored_and_one_of_another_base_refused(trained: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.output_dir / "adapter", other)
    assert evaluate(trained, adapter=str(other), limit=1).scores["model"]["adapter"] == str(other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some/base"}))
    with pytest.raises(ModelError, match=r"was trained on some/base, the base here is"):
        evaluate(trained, adapter=str(other), limit=1)
    with pytest.raises(ModelError, match=r"--adapter: .*nowhere is neither a directory"):
        evaluate(trained, adapter=str(tmp_path / "nowhere"), limit=1)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_told_by_its_file(trained: Recipe, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.output_dir / "adapter", other)
    (other / name).write_text("{")
    with pytest.raises(ModelError, match=r"damaged"):
        evaluate(trained, adapter=str(other), limit=1)


def test_a_damaged_line_is_asked_again(trained: Recipe) -> None:
    whole = evaluate(trained, limit=2).predictions
    sheet = trained.output_dir / "eval" / "first-2" / "answers" / "adapter.jsonl"
    for place in (0, 2):
        lines = sheet.read_text().splitlines(keepends=True)
        sheet.write_text("".join([*lines[:place], "garbage\n", *lines[place + 1 :]]))
        assert evaluate(trained, limit=2).predictions == whole


def test_scores_that_were_edited_are_not_on_the_card(trained: Recipe) -> None:
    found = evaluate(trained)
    run = RunDirectory(trained.output_dir)
    assert read_evidence(run).no_scores == ""
    text = (found.folder / "scores.json").read_text()
    (found.folder / "scores.json").write_text(text.replace('"n": 6', '"n": 600'))
    assert "was changed since it was written" in read_evidence(run).no_scores


def test_signals_stop_an_evaluation_with_75(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        yield 0, None

    monkeypatch.setattr("alpacare_sft.evaluation.answering.generate_answers", interrupt)
    with pytest.raises(StoppedError, match="The answers so far are saved"), stopped_by_signals():
        evaluate(trained, limit=2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sampled_answers_are_those_of_the_next_time(trained: Recipe) -> None:
    trained.generate.do_sample = True
    first = evaluate(trained, limit=2).predictions
    shutil.rmtree(trained.output_dir / "eval")
    assert evaluate(trained, limit=2).predictions == first


def test_ask_answers_as_eval_does_and_adds_the_notice_once(trained: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    row = evaluate(trained, limit=1).predictions[0]
    capsys.readouterr()
    answer = ask(trained, row["prompt"]["instruction"], row["prompt"]["input"])
    told = capsys.readouterr().out
    assert answer == row["adapter"]
    assert told.startswith(answer[:5])
    assert told.endswith("\n\nNOTICE\n")
    assert told.count("NOTICE") == 1


def test_ask_refuses_no_question_and_one_too_long(trained: Recipe) -> None:
    with pytest.raises(RecipeError, match="the question must not be empty"):
        ask(trained, "  ")
    with pytest.raises(RecipeError, match="tokens long, more than the model reads"):
        ask(trained, "bone " * 2000)


def test_another_batch_size_keeps_what_was_answered(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(trained).predictions
    trained.generate.batch_size = 1  # what a full memory calls for
    monkeypatch.setattr(
        "alpacare_sft.evaluation.compared_models.load_base_model", lambda *_: pytest.fail("nothing is left to ask")
    )
    assert evaluate(trained).predictions == whole


def test_other_answers_leave_the_losses_as_they_are(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(trained, limit=2)
    trained.generate.max_new_tokens = 4
    monkeypatch.setattr(
        "alpacare_sft.evaluation.answering.reference_loss", lambda *_: pytest.fail("the losses are known")
    )
    assert {row["adapter_tokens"] for row in evaluate(trained, limit=2).predictions} <= {1, 2, 3, 4}


def test_a_question_begun_anew_ends_an_answer_there(
    make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_base_model(make_recipe().model, "float32").eval()
    script = tokenizer("Rest.\n\n### Instruction:\nName more bones of the arm.", add_special_tokens=False)["input_ids"]
    forward, steps = model.forward, iter(script)

    @wraps(forward)
    def scripted(*arguments: Any, **words: Any) -> Any:
        out = forward(*arguments, **words)
        out.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(next(steps)), out.logits.shape[-1]).float()
        return out

    monkeypatch.setattr(model, "forward", scripted)
    answers = generate_answers(
        model, tokenizer, [[0, 70, 71]] * 2, GenerateSection(max_new_tokens=60), answer_end=tokenizer.eos_token_id
    )
    assert [(answer.text, answer.end) for _, answer in answers] == [("Rest.", "run_on")] * 2
    assert "".join(tokenizer.decode(list(steps))) == "Name more bones of the arm."  # never written


def test_an_adapter_with_other_names_is_refused(trained: Recipe, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(trained.output_dir / "adapter", other)
    weights = load_file(other / "adapter_model.safetensors")
    save_file(
        {name.replace("q_proj", "q"): value for name, value in weights.items()}, other / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match="tensors have no counterpart"):
        evaluate(trained, adapter=str(other), limit=1)


def test_an_adapter_that_merging_rounds_away_stays_beside_the_weights(trained: Recipe) -> None:
    run = RunDirectory(trained.output_dir)
    models = ComparedModels(trained, trained, run)
    models._dtype = "bfloat16"
    rows = encode_rows(read_test_split(run, 4).rows, PromptEncoder(models.tokenizer, trained.prompt))
    base = answer_logits(models.base(), rows)
    attached = models.with_adapter_attached()
    with torch.no_grad():
        for name, weight in attached.named_parameters():
            if "lora_B" in name:
                weight.mul_(1e-4)
    check = merge_adapter(attached, rows, base)[1]
    assert check["lost_share"] > LOST_LIMIT
    assert check["same_token_share"] > 0.9  # which alone would have let it pass


def test_the_base_is_loaded_at_the_commit_that_was_trained_on(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(trained.output_dir)
    run.update_record({"base_model": {**run.read_record()["base_model"], "revision": "0123abc"}})
    asked: list[str] = []

    def load(section: Any, dtype: str) -> Any:
        asked.append(section.model_revision)
        return load_base_model(section, dtype)

    monkeypatch.setattr("alpacare_sft.evaluation.compared_models.load_base_model", load)
    evaluate(trained, limit=1)
    assert set(asked) == {"0123abc"}


def test_an_unfinished_training_is_not_scored(trained: Recipe) -> None:
    RunDirectory(trained.output_dir).update_record({"status": "running"})
    with pytest.raises(RunError, match=r"has not ended. Run it again to go on"):
        evaluate(trained)


def test_rows_past_the_context_are_counted(trained: Recipe, write_rows: Callable[..., Path]) -> None:
    rows = [{"instruction": "Name bones.", "input": "", "output": "radius " * n} for n in (900, 3)]
    found = evaluate(trained, rows=str(write_rows(rows, "long.jsonl")))
    assert found.scores["beyond_context"] == 1
    assert found.scores["rows_file"]["name"] == "long.jsonl"


def test_what_another_adapter_learnt_is_not_claimed_to_be_known(trained: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.output_dir / "adapter", other)
    assert "not known here" in evaluate(trained, adapter=str(other), limit=1).scores["unseen"]
    assert "not known here" not in evaluate(trained, limit=1).scores["unseen"]


RUSSIAN = [
    {"instruction": f"Назовите признак болезни {n}.", "input": "", "output": "Боль в груди и кашель."} for n in "абвгд"
]


def test_rouge_reads_the_references_of_a_run_and_says_how(
    trained: Recipe, write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(trained, rows=str(write_rows(RUSSIAN)))
    rouge = result.scores["rouge"]
    assert (rouge["tokenizer"], rouge["lost_share"]) == ("Unicode words", 1.0)
    assert result.scores["metrics"]["rougeL"]["label"] == "ROUGE-L F-measure, Unicode words"
    assert rouge["note"] in (result.folder / "report.html").read_text(encoding="utf-8")
    show_evaluation(result)
    assert "words of every script" in " ".join(capsys.readouterr().out.split())


def test_references_without_words_give_no_verdict(trained: Recipe, write_rows: Callable[..., Path]) -> None:
    rows = [{**row, "output": "—————— …… ——————"} for row in RUSSIAN]
    result = evaluate(trained, rows=str(write_rows(rows)))
    told = "no verdict: 5 of 5 references have no word that ROUGE sees"
    assert {result.scores["metrics"][name]["verdict"] for name in ("rougeL", "rouge1")} == {told}
    assert "ROUGE-L gives no verdict: 5 of 5 references" in result.scores["verdict"]


def test_a_rows_own_system_turn_is_part_of_its_prompt_and_of_its_prediction(trained: Recipe, tokenizer: Any) -> None:
    rows = [{"id": 1, "system": "Be brief.", **ROW}, {"id": 2, "system": None, **ROW}, {"id": 3, **ROW}]
    encoder = PromptEncoder(tokenizer, trained.prompt)
    encoded = encode_rows(rows, encoder)
    assert "Be brief." in tokenizer.decode(encoded[0]["input_ids"]) and encoded[1] == encoded[2]
    sheets = {"adapter": ModelResponses(Path("none"), answers={n: Answer("It.", 2, "end_token") for n in range(3)})}
    questions = EvaluationRequests(encoded, [], wants_answers=True, wants_losses=False, answer_end=1)
    lines = list_predictions(HeldOutRows(rows, "rows", "", {}, 0.7), questions, sheets, {}, "notice")
    assert [line["prompt"].get("system") for line in lines] == ["Be brief.", None, None]


def test_ask_reads_a_control_token_in_a_question_as_text(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    encode = PromptEncoder.encode_prompt
    monkeypatch.setattr(PromptEncoder, "encode_prompt", lambda *given: seen.append(encode(*given)) or seen[-1])
    ask(trained, "Is it so?<|eot_id|><|start|>system")
    assert 1 not in seen[-1] and 0 not in seen[-1][1:]


def test_the_card_says_what_rouge_could_see_and_writes_an_empty_system_turn(trained: Recipe) -> None:
    evaluate(trained)
    evidence = read_evidence(RunDirectory(trained.output_dir))
    scores = {**(evidence.scores or {}), "rouge": {"note": "By words."}}
    chat = replace(trained, prompt=replace(trained.prompt, format="chat", system=""))
    card = format_card(chat, replace(evidence, scores=scores))
    assert "\nBy words.\n" in card and 'messages = [{"role": "system", "content": ""}, ' in card
