"""Answers and scores: batches change nothing, intervals are paired, notices stay out of what is scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.evaluation import evaluate, reference_loss
from alpacare_sft.generation import generate_answers, pad_left
from alpacare_sft.metrics import paired_summary, rouge_scores
from alpacare_sft.model import load_base_model
from alpacare_sft.prompt import PromptEncoder
from alpacare_sft.recipe import Recipe
from alpacare_sft.recipe.sections import GenerateSection
from alpacare_sft.training import train

Make = Callable[..., Recipe]
ROW = {"instruction": "Name the bones of the forearm.", "input": "", "output": "The radius and the ulna."}


def test_padding_stands_on_the_left() -> None:
    ids, mask = pad_left([[5, 6], [7, 8, 9]], pad_token_id=2)
    assert ids.tolist() == [[2, 5, 6], [7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_batch_1_and_batch_8_write_the_same_tokens(make_recipe: Make, tokenizer: Any) -> None:
    recipe = make_recipe()
    model = load_base_model(recipe.model, "float32").eval()
    encoder = PromptEncoder(tokenizer, recipe.prompt)
    prompts = [encoder.encode_prompt("Say something about bones. " * n, "") for n in (1, 4, 2, 7, 3)]
    answers = []
    for size in (1, 8):
        generate = GenerateSection(max_new_tokens=12, batch_size=size)
        answers.append(dict(generate_answers(model, tokenizer, prompts, generate)))
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


def test_rouge_has_known_values() -> None:
    scores = rouge_scores(["the cat sat"], ["the cat sat on the mat"])
    assert scores["rouge1"] == [pytest.approx(2 * 1.0 * 0.5 / 1.5)]
    assert scores["rougeL"] == [pytest.approx(2 * 1.0 * 0.5 / 1.5)]
    assert rouge_scores(["hearts"], ["heart"])["rouge1"] == [1.0]  # stemmed


def test_the_difference_is_paired_by_row() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=100)
    adapter = base + 0.1 + rng.normal(scale=0.01, size=100)
    summary = paired_summary({"base": list(base), "adapter": list(adapter)}, 0.95, 2000)
    low, high = summary["difference"]["low"], summary["difference"]["high"]
    assert 0.09 < low < 0.1 < high < 0.11
    assert summary["base"]["high"] - summary["base"]["low"] > 10 * (high - low)


def test_eval_says_what_is_missing(make_recipe: Make) -> None:
    with pytest.raises(RunError, match=r"holds no trained adapter.*alpacare-sft train"):
        evaluate(make_recipe())


def test_eval_writes_answers_and_scores_without_the_notice(make_recipe: Make) -> None:
    words = ("--generate.max_new_tokens", "8", "--evaluate.bootstrap_samples", "100")
    recipe = make_recipe(*words, "--safety.disclaimer", "NOTICE")
    train(recipe)
    scores = evaluate(recipe, limit=4)
    assert scores["n"] == 4
    assert set(scores["metrics"]) == {"loss", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert set(scores["metrics"]["loss"]["difference"]) == {"mean", "low", "high", "confidence"}
    text = (recipe.output_dir / "eval" / "predictions.jsonl").read_text()
    assert len(text.splitlines()) == 4
    assert {"id", "prompt", "reference", "base", "adapter"} <= set(json.loads(text.splitlines()[0]))
    trained_on = (recipe.output_dir / "data" / "train.jsonl").read_text()
    assert "NOTICE" not in text + trained_on


@pytest.fixture
def trained(make_recipe: Make) -> Recipe:
    recipe = make_recipe(
        "--generate.max_new_tokens", "4", "--evaluate.bootstrap_samples", "50", "--train.max_steps", "3"
    )
    train(recipe)
    return recipe


def test_an_edited_recipe_of_a_run_is_not_trusted(trained: Recipe) -> None:
    path = trained.output_dir / "recipe.yaml"
    path.write_text(path.read_text().replace("format: sections", "format: chat"))
    with pytest.raises(RunError, match="not the recipe that this adapter was trained by"):
        evaluate(trained)


def test_without_a_baseline_the_adapter_is_scored_alone(trained: Recipe) -> None:
    trained.evaluate.baseline = False
    scores = evaluate(trained, limit=2)
    assert {name for part in scores["metrics"].values() for name in part} == {"adapter"}


def test_a_limit_below_one_is_refused(trained: Recipe) -> None:
    with pytest.raises(RecipeError, match="--limit must be at least 1, got 0"):
        evaluate(trained, limit=0)


def test_sampled_answers_are_those_of_the_next_time(trained: Recipe) -> None:
    trained.generate.do_sample = True
    written = []
    for _ in range(2):
        evaluate(trained, limit=2)
        written.append((trained.output_dir / "eval" / "predictions.jsonl").read_text())
    assert written[0] == written[1]
