"""A run's adapter against its base: answers, scores with their uncertainty, and what its files say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.data.report import restore_data
from alpacare_sft.evaluation.answering import (
    EvaluationRequests,
    ModelResponses,
    collect_responses,
    memory_faults_reported,
)
from alpacare_sft.evaluation.compared_models import ComparedModels
from alpacare_sft.evaluation.generation import with_notice
from alpacare_sft.evaluation.held_out import (
    HeldOutRows,
    Selection,
    encode_rows,
    load_other_rows,
    read_general_rows,
    read_test_split,
)
from alpacare_sft.evaluation.intervals import SCOPE
from alpacare_sft.evaluation.metrics import ROUGE_TYPES, UNICODE, describe_rouge, unseen_scores
from alpacare_sft.evaluation.scoring import RowScores, score_rows, summarize, summarize_scores, verdict_sentence
from alpacare_sft.evaluation.similarity import find_encoder
from alpacare_sft.model.cpu_layout import fast_cpu_layout
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.reporting.card import save_card
from alpacare_sft.reporting.evaluation_page import save_evaluation_report
from alpacare_sft.review.judge import check_judge, judge_answers
from alpacare_sft.review.sheets import save_review_sheets
from alpacare_sft.run.directory import RunDirectory, write_json, write_text
from alpacare_sft.run.json_lines import format_json_lines
from alpacare_sft.run.record import MODEL_PACKAGES, installed_versions, version_changes
from alpacare_sft.run.trained import trained_recipe
from alpacare_sft.runtime import prepared_process, say

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and where it was written.

    Attributes:
        folder: `eval/` of the run, or a folder of its own in it for other rows, adapters or a limit.
        scores: what `scores.json` holds.
        predictions: what `predictions.jsonl` holds.
        judgement: what `judge.json` holds, if the recipe names a judge.
    """

    folder: Path
    scores: dict[str, Any]
    predictions: list[dict[str, Any]]
    judgement: dict[str, Any] | None = None


@prepared_process()
def evaluate(
    recipe: Recipe,
    *,
    limit: int | None = None,
    rows: str | None = None,
    adapter: str | None = None,
    same_base: bool = False,
) -> Evaluation:
    """Answer and score the run's test rows, base first, then adapter; goes on where it was stopped.

    Args:
        recipe: with the `output_dir` of a finished run, whose model, data, prompt and adapter are used.
        limit: score the first rows only.
        rows: a file or Hub data set in the place of the test split.
        adapter: a directory or Hub repository in the place of the run's adapter.
        same_base: take the base that `adapter` names for the run's, such as a mirror or a local copy of it.

    Raises:
        RecipeError: if an argument is wrong, or a metric needs what is not installed.
        DataError, ModelError: if `rows` or `adapter` cannot be used.
        RunError: if there is no trained adapter, or its recipe was edited since.
    """
    selection = Selection(limit, rows, adapter, same_base)
    check_judge(recipe.evaluate.judge)
    if "similarity" in recipe.evaluate.metrics:
        find_encoder()  # before the hour that answers may take
    run = RunDirectory(recipe.output_dir)
    trained = trained_recipe(run)
    runtime.set_threads()
    restore_data(run, trained)
    held_out = load_other_rows(rows, trained, run, limit) if rows else read_test_split(run, limit)
    folder = selection.folder(run)
    with RunDirectory(folder).lock():
        models = ComparedModels(trained, recipe, run, adapter, same_base)
        requests, beyond = _requests(held_out, run, models, trained, recipe)
        responses = _collect_responses(folder, requests, models, recipe)
        row_scores = score_rows(held_out.rows, responses, requests, recipe.evaluate.metrics)
        predictions = list_predictions(held_out, requests, responses, row_scores, recipe.safety.disclaimer)
        scores = {
            **summarize_rows(held_out, requests, responses, row_scores, recipe),
            "beyond_context": beyond,
            **selection.describe(held_out.unseen, held_out.commit),
            **describe_circumstances(run, models, responses, recipe),
        }
        _save(folder, scores, predictions, recipe)
        if selection.is_whole:
            run.seal(folder / "scores.json", folder / "predictions.jsonl")
            _save_card_and_sheets(run, trained, recipe, predictions if requests.wants_answers else None)
        judgement = _judge(folder, predictions, recipe)
    return Evaluation(folder, scores, predictions, judgement)


def _requests(
    held_out: HeldOutRows, run: RunDirectory, models: ComparedModels, trained: Recipe, recipe: Recipe
) -> tuple[EvaluationRequests, int]:
    """What both models are asked, and of how many rows an answer or reference could go past what they read."""
    encoder, wanted = PromptEncoder(models.tokenizer, trained.prompt), recipe.evaluate.metrics
    requests = EvaluationRequests(
        encode_rows(held_out.rows, encoder),
        encode_rows(read_general_rows(run), encoder) if "forgetting" in wanted else [],
        wants_answers=not {"rouge", "similarity"}.isdisjoint(wanted),
        wants_losses="loss" in wanted,
        answer_end=encoder.end_token_id(),
    )
    if beyond := requests.num_beyond(models.context_tokens, recipe.generate.max_new_tokens):
        say(
            f"{beyond} rows could go past the {models.context_tokens:,} tokens that the model reads, with their "
            "reference or an answer of full length."
        )
    return requests, beyond


def _collect_responses(
    folder: Path, requests: EvaluationRequests, models: ComparedModels, recipe: Recipe
) -> dict[str, ModelResponses]:
    """Ask the base first: merging changes its weights."""
    device = runtime.describe_hardware(recipe.train.use_cpu)["device"]
    told = models.describe(), installed_versions(MODEL_PACKAGES), device
    responses: dict[str, ModelResponses] = {}
    for who in ("base", "adapter") if recipe.evaluate.baseline else ("adapter",):
        model_fingerprint = requests.fingerprint(who, *told)
        own = ModelResponses.open(folder / "answers" / f"{who}.jsonl", model_fingerprint, _deciding(recipe))
        if own.lacks(requests):
            with memory_faults_reported():
                model, merge = (models.base(), {}) if who == "base" else models.with_adapter(requests.rows)
                with fast_cpu_layout(model):
                    collect_responses(own, requests, model, models.tokenizer, recipe, who, merge)
            del model  # the one copy of the weights is `models`' to free
        responses[who] = own
    return responses


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What of `generate` decides an answer: not the size of a batch, unless its rows share random numbers."""
    told = dataclasses.asdict(recipe.generate)
    if recipe.generate.do_sample:
        return {**told, "seed": recipe.train.seed}
    return {key: told[key] for key in ("max_new_tokens", "do_sample")}


def _save(folder: Path, scores: dict[str, Any], predictions: list[dict[str, Any]], recipe: Recipe) -> None:
    (folder / "judge.json").unlink(missing_ok=True)  # of other answers, for all that is known here
    write_text(folder / "predictions.jsonl", format_json_lines(predictions))
    write_json(folder / "scores.json", scores)
    save_evaluation_report(folder / "report.html", scores, predictions, notice=recipe.safety.disclaimer)


def _save_card_and_sheets(
    run: RunDirectory, trained: Recipe, recipe: Recipe, predictions: list[dict[str, Any]] | None
) -> None:
    save_card(run, dataclasses.replace(trained, hub=recipe.hub, safety=recipe.safety, generate=recipe.generate))
    if predictions is not None:
        save_review_sheets(run.path / "eval", predictions, seed=recipe.train.seed, notice=recipe.safety.disclaimer)


def _judge(folder: Path, predictions: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any] | None:
    """Last, so that a judge that fails costs no answer and no score."""
    if recipe.evaluate.judge is None:
        return None
    found = judge_answers(predictions, recipe.evaluate.judge, folder / "judge_replies.jsonl")
    write_json(folder / "judge.json", found)
    return found


def summarize_rows(
    held_out: HeldOutRows,
    requests: EvaluationRequests,
    responses: Mapping[str, ModelResponses],
    row_scores: RowScores,
    recipe: Recipe,
) -> dict[str, Any]:
    """Every score with its intervals, the verdict in words, and the scores without near-duplicates."""
    num_tokens = [sum(row["completion_mask"]) for row in requests.rows]
    references = [row["output"] for row in held_out.rows]
    rouge, unseen = None, unseen_scores(references)
    if requests.wants_answers:
        texts = {who: [own.answers[row].text for row in range(len(references))] for who, own in responses.items()}
        rouge = describe_rouge(references, texts)
    metrics = summarize_scores(row_scores, num_tokens, recipe.evaluate, unseen=unseen)
    if requests.general:
        every = range(len(requests.general))
        values = {who: [own.general_losses[row] for row in every] for who, own in responses.items()}
        weights = [sum(row["completion_mask"]) for row in requests.general]
        metrics["general_loss"] = summarize("general_loss", values, recipe.evaluate, weights)
    apart = [place for place, row in enumerate(held_out.rows) if row["id"] not in held_out.near]
    near: dict[str, Any] = {"threshold": held_out.threshold, "rows": len(held_out.rows) - len(apart)}
    if apart and near["rows"]:
        without = summarize_scores(row_scores, num_tokens, recipe.evaluate, apart, unseen=unseen)
        near["without"] = {"n": len(apart), "metrics": without}
    if rouge and rouge["tokenizer"] == UNICODE:
        for name in metrics.keys() & set(ROUGE_TYPES):
            metrics[name]["label"] += f", {UNICODE}"
    return {
        "n": len(held_out.rows),
        "source": held_out.source,
        "rows": dict(held_out.counts),
        "metrics": metrics,
        "rouge": rouge,
        "verdict": verdict_sentence(metrics, len(held_out.rows), held_out.source),
        "intervals": SCOPE,
        "near_duplicates": near,
    }


def describe_circumstances(
    run: RunDirectory, models: ComparedModels, responses: Mapping[str, ModelResponses], recipe: Recipe
) -> dict[str, Any]:
    """With what, on what and by which settings: what repeating it takes."""
    record = run.read_record()
    changes = version_changes(record)
    return {
        "model": {**models.describe(), **responses["adapter"].merge},
        "generate": dataclasses.asdict(recipe.generate),
        "evaluate": {key: value for key, value in dataclasses.asdict(recipe.evaluate).items() if key != "judge"},
        "seconds": {who: round(own.seconds, 1) for who, own in responses.items()},
        "seed": recipe.train.seed,
        **{key: record[key] for key in ("recipe_sha256", "data_sha256")},
        "versions": installed_versions(),
        **({"versions_since_training": changes} if changes else {}),
        "hardware": runtime.describe_hardware(recipe.train.use_cpu),
        "notice": recipe.safety.disclaimer,
    }


def list_predictions(
    held_out: HeldOutRows,
    requests: EvaluationRequests,
    responses: Mapping[str, ModelResponses],
    row_scores: RowScores,
    notice: str,
) -> list[dict[str, Any]]:
    """What `predictions.jsonl` holds: a line a row, with the notice in `display` alone."""
    lines = []
    for place, row in enumerate(held_out.rows):
        prompt = {key: row[key] for key in ("system", "instruction", "input") if row.get(key) is not None}
        line: dict[str, Any] = {"id": row["id"], "prompt": prompt, "reference": row["output"]}
        answers = {who: own.answers[place] for who, own in responses.items() if requests.wants_answers}
        for who, answer in answers.items():
            line |= {who: answer.text, f"{who}_end": answer.end, f"{who}_tokens": answer.num_tokens}
        line["reference_tokens"] = sum(requests.rows[place]["completion_mask"])
        line["display"] = {who: with_notice(answer, notice) for who, answer in answers.items()}
        of_row = {
            name: {who: values[place] for who, values in sides.items() if values[place] is not None}
            for name, sides in row_scores.items()
        }
        line["scores"] = {name: sides for name, sides in of_row.items() if sides}
        if row["id"] in held_out.near:
            line["near_duplicate_of"] = held_out.near[row["id"]]
        lines.append(line)
    return lines
