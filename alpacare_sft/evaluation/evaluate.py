"""A run's adapter against its base: answers, scores with their uncertainty, and the files that tell them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.evaluation.answering import AnswerSheet, Questions, fill_sheet, told_memory
from alpacare_sft.evaluation.compared_models import ComparedModels
from alpacare_sft.evaluation.held_out import encode_rows, load_other_rows, read_general_rows, read_test_split
from alpacare_sft.evaluation.results import describe_circumstances, list_predictions, summarize_rows
from alpacare_sft.evaluation.scoring import score_rows
from alpacare_sft.evaluation.selection import Selection
from alpacare_sft.evaluation.similarity import find_encoder
from alpacare_sft.model.cpu_layout import fast_cpu_layout
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.reporting.card import save_card
from alpacare_sft.reporting.evaluation_page import save_evaluation_report
from alpacare_sft.review.judge import check_judge, judge_answers
from alpacare_sft.review.sheets import save_review_sheets
from alpacare_sft.run.directory import RunDirectory, file_sha256, write_json, write_text
from alpacare_sft.run.json_lines import format_json_lines
from alpacare_sft.run.record import MODEL_PACKAGES, installed_versions
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
    """Answer and score the run's test rows, with the base first and then with its adapter.

    Model, data, prompt and adapter are those of the run in `output_dir`; `generate`, `evaluate`
    and `safety` those of the recipe given. Answers are written down as they come; an evaluation
    that was stopped goes on where it was.

    Args:
        recipe: with the `output_dir` of a finished run.
        limit: score the first rows only.
        rows: a file or Hub data set to score on in the place of the test split.
        adapter: a directory or Hub repository in the place of the run's adapter.
        same_base: take the base that `adapter` names for the run's, such as a mirror or a local copy of it.

    Raises:
        RecipeError: if `limit` is not at least 1, `same_base` is given without `adapter`, or a metric needs what
            is not installed.
        DataError: if `rows` cannot be used.
        ModelError: if `adapter` cannot be had or does not fit.
        RunError: if there is no trained adapter, or its recipe was edited since.
    """
    selection = Selection(limit, rows, adapter, same_base)
    check_judge(recipe.evaluate.judge)
    if "similarity" in recipe.evaluate.metrics:
        find_encoder()  # before the hour that answers may take
    run = RunDirectory(recipe.output_dir)
    trained = trained_recipe(run)
    runtime.set_threads()
    asked = load_other_rows(rows, trained, run, limit) if rows else read_test_split(run, limit)
    folder = selection.folder(run)
    with RunDirectory(folder).lock():
        models = ComparedModels(trained, recipe, run, adapter, same_base)
        encoder = PromptEncoder(models.tokenizer, trained.prompt)
        questions = Questions(
            encode_rows(asked.rows, encoder),
            encode_rows(read_general_rows(run), encoder) if "forgetting" in recipe.evaluate.metrics else [],
            wants_answers=not {"rouge", "similarity"}.isdisjoint(recipe.evaluate.metrics),
            wants_losses="loss" in recipe.evaluate.metrics,
            learnt_end=encoder.end_token_id(),
        )
        beyond = questions.num_beyond(models.context_tokens, recipe.generate.max_new_tokens)
        if beyond:
            say(
                f"{beyond} rows could go past the {models.context_tokens:,} tokens that the model reads, with their "
                "reference or an answer of full length."
            )
        sheets = _fill_sheets(folder, questions, models, recipe)
        row_scores = score_rows(asked.rows, sheets, questions, recipe.evaluate.metrics)
        predictions = list_predictions(asked, questions, sheets, row_scores, recipe.safety.disclaimer)
        scores = {
            **summarize_rows(asked, questions, sheets, row_scores, recipe),
            "beyond_context": beyond,
            **selection.describe(asked.unseen, asked.commit),
            **describe_circumstances(run, models, sheets, recipe),
        }
        _save(folder, scores, predictions, recipe)
        if selection.is_whole:
            run.update_record({"scores_sha256": file_sha256(folder / "scores.json")})
            save_card(run, dataclasses.replace(trained, hub=recipe.hub, safety=recipe.safety, generate=recipe.generate))
            if questions.wants_answers:
                save_review_sheets(folder, predictions, seed=recipe.train.seed, notice=recipe.safety.disclaimer)
        judgement = _judge(folder, predictions, recipe)
    return Evaluation(folder, scores, predictions, judgement)


def _fill_sheets(folder: Path, questions: Questions, models: ComparedModels, recipe: Recipe) -> dict[str, AnswerSheet]:
    """Ask the base first: merging changes its weights."""
    device = runtime.describe_hardware(recipe.train.use_cpu)["device"]
    told = models.describe(), installed_versions(MODEL_PACKAGES), device
    sheets: dict[str, AnswerSheet] = {}
    for who in ("base", "adapter") if recipe.evaluate.baseline else ("adapter",):
        model_fingerprint = questions.fingerprint(who, *told)
        sheet = AnswerSheet.open(folder / "answers" / f"{who}.jsonl", model_fingerprint, _deciding(recipe))
        if sheet.lacks(questions):
            with told_memory():
                model, merge = (models.base(), {}) if who == "base" else models.with_adapter(questions.rows)
                with fast_cpu_layout(model):
                    fill_sheet(sheet, questions, model, models.tokenizer, recipe, who, merge)
            del model  # the one copy of the weights is `models`' to free
        sheets[who] = sheet
    return sheets


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


def _judge(folder: Path, predictions: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any] | None:
    """Last, so that a judge that fails costs no answer and no score."""
    if recipe.evaluate.judge is None:
        return None
    found = judge_answers(predictions, recipe.evaluate.judge, folder / "judge_replies.jsonl")
    write_json(folder / "judge.json", found)
    return found
