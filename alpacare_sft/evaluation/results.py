"""What `scores.json` and `predictions.jsonl` say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.evaluation.answering import EvaluationRequests, ModelResponses
from alpacare_sft.evaluation.generation import with_notice
from alpacare_sft.evaluation.held_out import HeldOutRows
from alpacare_sft.evaluation.intervals import SCOPE
from alpacare_sft.evaluation.metrics import ROUGE_TYPES, UNICODE, describe_rouge, unseen_scores
from alpacare_sft.evaluation.scoring import RowScores, summarize, summarize_scores, verdict_sentence
from alpacare_sft.run.record import installed_versions, version_changes

if TYPE_CHECKING:
    from alpacare_sft.evaluation.compared_models import ComparedModels
    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.run.directory import RunDirectory


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
