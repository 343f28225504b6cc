"""A run's adapter against its base: answers, scores with their uncertainty, and the files that tell them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft import hardware
from alpacare_sft.cpu_layout import fast_cpu_layout
from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.evaluation.answering import AnswerSheet, Questions, fill_sheet
from alpacare_sft.evaluation.compared_models import ComparedModels
from alpacare_sft.evaluation.held_out import (
    GENERAL_ROWS,
    HeldOutRows,
    encode_rows,
    load_other_rows,
    read_rows,
    read_test_split,
)
from alpacare_sft.evaluation.scoring import RowScores, score_rows, summarize, summarize_scores, verdict_sentence
from alpacare_sft.evaluation_report import save_evaluation_report
from alpacare_sft.generation import with_notice
from alpacare_sft.hub.card import save_card
from alpacare_sft.intervals import SCOPE
from alpacare_sft.prompt import PromptEncoder
from alpacare_sft.recipe.writing import read_resolved, recipe_sha256
from alpacare_sft.recording import installed_versions
from alpacare_sft.review import judge_answers, save_review_sheets
from alpacare_sft.run import RunDirectory, file_sha256, write_json, write_text
from alpacare_sft.similarity import find_encoder

if TYPE_CHECKING:
    from alpacare_sft.recipe import Recipe


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


def evaluate(
    recipe: Recipe, *, limit: int | None = None, rows: str | None = None, adapter: str | None = None
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

    Raises:
        RecipeError: if `limit` is not at least 1, or a metric needs what is not installed.
        DataError: if `rows` cannot be used.
        ModelError: if `adapter` cannot be had or does not fit.
        RunError: if there is no trained adapter, or its recipe was edited since.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit must be at least 1, got {limit}.")
    if "similarity" in recipe.evaluate.metrics:
        find_encoder()  # before the hour that answers may take
    run = RunDirectory(recipe.output_dir)
    trained = trained_recipe(run)
    hardware.set_threads()
    asked = load_other_rows(rows, trained, run, limit) if rows else read_test_split(run, limit)
    folder = _folder(run, limit, rows, adapter)
    with RunDirectory(folder).lock():
        models = ComparedModels(trained, recipe, run, adapter)
        encoder = PromptEncoder(models.tokenizer, trained.prompt)
        questions = Questions(
            encode_rows(asked.rows, encoder),
            encode_rows(read_rows(GENERAL_ROWS), encoder) if "forgetting" in recipe.evaluate.metrics else [],
            wants_answers=not {"rouge", "similarity"}.isdisjoint(recipe.evaluate.metrics),
            wants_losses="loss" in recipe.evaluate.metrics,
            learnt_end=encoder.end_token_id(),
        )
        sheets = _fill_sheets(folder, questions, models, recipe)
        row_scores = score_rows(asked.rows, sheets, questions, recipe.evaluate.metrics)
        predictions = _predictions(asked, questions, sheets, row_scores, recipe.safety.disclaimer)
        scores = {
            **_summary(asked, questions, sheets, row_scores, recipe),
            "limit": limit,
            "complete": limit is None and rows is None and adapter is None,
            **_circumstances(run, models, sheets, recipe),
        }
        _save(folder, scores, predictions, recipe)
        if scores["complete"]:
            run.update_record({"scores_sha256": file_sha256(folder / "scores.json")})
            save_card(run, dataclasses.replace(trained, hub=recipe.hub, safety=recipe.safety, generate=recipe.generate))
            if questions.wants_answers:
                save_review_sheets(folder, predictions, seed=recipe.train["seed"], notice=recipe.safety.disclaimer)
        judgement = _judge(folder, predictions, recipe)
    return Evaluation(folder, scores, predictions, judgement)


def trained_recipe(run: RunDirectory) -> Recipe:
    """The recipe that a run's adapter was trained by.

    Raises:
        RunError: if there is no adapter, or the recipe was edited since.
    """
    if not run.has_adapter():
        raise RunError(f"output_dir: {run.path} holds no trained adapter. Train it first: alpacare-sft train RECIPE.")
    trained = read_resolved(run.recipe)
    if run.read_record().get("recipe_sha256") != recipe_sha256(trained):
        raise RunError(f"{run.recipe} is not the recipe that this adapter was trained by. Undo what was changed in it.")
    return trained


def _folder(run: RunDirectory, limit: int | None, rows: str | None, adapter: str | None) -> Path:
    """Scores of the whole test split with the run's own adapter stand in `eval/`, and nothing else does."""
    parts = [f"rows-{_short_name(rows)}"] if rows else []
    parts += [f"adapter-{_short_name(adapter)}"] if adapter else []
    parts += [f"first-{limit}"] if limit else []
    return run.path / "eval" / "-".join(parts) if parts else run.path / "eval"


def _short_name(place: str) -> str:
    """The last part of a path, and of the whole enough to tell it from another of that name."""
    whole = str(Path(place).resolve()) if Path(place).exists() else place
    return f"{Path(place).stem}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def _fill_sheets(folder: Path, questions: Questions, models: ComparedModels, recipe: Recipe) -> dict[str, AnswerSheet]:
    """Ask the base first: merging changes its weights."""
    told = models.describe(), dataclasses.asdict(recipe.generate), recipe.train["seed"], installed_versions()
    sheets: dict[str, AnswerSheet] = {}
    for who in ("base", "adapter") if recipe.evaluate.baseline else ("adapter",):
        fingerprint = questions.fingerprint(who, *told, hardware.describe_hardware()["device"])
        sheet = AnswerSheet.open(folder / "answers" / f"{who}.jsonl", fingerprint)
        if sheet.lacks(questions):
            model, merge = (models.base(), {}) if who == "base" else models.with_adapter(questions.rows)
            with fast_cpu_layout(model):
                fill_sheet(sheet, questions, model, models.tokenizer, recipe, who, merge)
            del model  # the one copy of the weights is `models`' to free
        sheets[who] = sheet
    return sheets


def _summary(
    asked: HeldOutRows, questions: Questions, sheets: Mapping[str, AnswerSheet], row_scores: RowScores, recipe: Recipe
) -> dict[str, Any]:
    num_tokens = [sum(row["completion_mask"]) for row in questions.rows]
    metrics = summarize_scores(row_scores, num_tokens, recipe.evaluate)
    if questions.general:
        every = range(len(questions.general))
        values = {who: [sheet.general_losses[row] for row in every] for who, sheet in sheets.items()}
        weights = [sum(row["completion_mask"]) for row in questions.general]
        metrics["general_loss"] = summarize("general_loss", values, recipe.evaluate, weights)
    apart = [place for place, row in enumerate(asked.rows) if row["id"] not in asked.near]
    near: dict[str, Any] = {"threshold": asked.threshold, "rows": len(asked.rows) - len(apart)}
    if apart and near["rows"]:
        kept = summarize_scores(row_scores, num_tokens, recipe.evaluate, apart)
        near["without"] = {"n": len(apart), "metrics": kept}
    return {
        "n": len(asked.rows),
        "source": asked.source,
        "rows": dict(asked.counts),
        "metrics": metrics,
        "verdict": verdict_sentence(metrics, len(asked.rows), asked.source),
        "intervals": SCOPE,
        "near_duplicates": near,
    }


def _circumstances(
    run: RunDirectory, models: ComparedModels, sheets: Mapping[str, AnswerSheet], recipe: Recipe
) -> dict[str, Any]:
    """With what, on what and by which settings: what repeating it takes."""
    record = run.read_record()
    return {
        "model": {**models.describe(), **sheets["adapter"].merge},
        "generate": dataclasses.asdict(recipe.generate),
        "evaluate": {key: value for key, value in dataclasses.asdict(recipe.evaluate).items() if key != "judge"},
        "seconds": {who: round(sheet.seconds, 1) for who, sheet in sheets.items()},
        "seed": recipe.train["seed"],
        **{key: record[key] for key in ("recipe_sha256", "data_sha256")},
        "seen_in_training": 0,  # anything else was refused
        "versions": installed_versions(),
        "hardware": hardware.describe_hardware(),
        "notice": recipe.safety.disclaimer,
    }


def _predictions(
    asked: HeldOutRows, questions: Questions, sheets: Mapping[str, AnswerSheet], row_scores: RowScores, notice: str
) -> list[dict[str, Any]]:
    lines = []
    for place, row in enumerate(asked.rows):
        prompt = {"instruction": row["instruction"], "input": row["input"]}
        line: dict[str, Any] = {"id": row["id"], "prompt": prompt, "reference": row["output"]}
        answers = {who: sheet.answers[place] for who, sheet in sheets.items() if questions.wants_answers}
        for who, answer in answers.items():
            line |= {who: answer.text, f"{who}_end": answer.end, f"{who}_tokens": answer.num_tokens}
        line["reference_tokens"] = sum(questions.rows[place]["completion_mask"])
        line["display"] = {who: with_notice(answer, notice) for who, answer in answers.items()}
        of_row = {
            name: {who: values[place] for who, values in sides.items() if values[place] is not None}
            for name, sides in row_scores.items()
        }
        line["scores"] = {name: sides for name, sides in of_row.items() if sides}
        if row["id"] in asked.near:
            line["near_duplicate_of"] = asked.near[row["id"]]
        lines.append(line)
    return lines


def _save(folder: Path, scores: dict[str, Any], predictions: list[dict[str, Any]], recipe: Recipe) -> None:
    write_text(folder / "predictions.jsonl", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions))
    write_json(folder / "scores.json", scores)
    save_evaluation_report(folder / "report.html", scores, predictions, notice=recipe.safety.disclaimer)


def _judge(folder: Path, predictions: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any] | None:
    """Last, so that a judge that fails costs no answer and no score."""
    judged = folder / "judge.json"
    if recipe.evaluate.judge is None:
        judged.unlink(missing_ok=True)
        return None
    found = judge_answers(predictions, recipe.evaluate.judge)
    write_json(judged, found)
    return found
