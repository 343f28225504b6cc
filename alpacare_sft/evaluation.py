"""Test rows → answers of base and adapter → scores with their uncertainty."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alpacare_sft import hardware, metrics
from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.generation import Answer, generate_answers
from alpacare_sft.model import load_base_model, load_tokenizer
from alpacare_sft.prompt import PromptEncoder
from alpacare_sft.recipe.writing import read_resolved, recipe_sha256
from alpacare_sft.run import RunDirectory, write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alpacare_sft.recipe import Recipe

SIDE_BY_SIDE = 3


def evaluate(recipe: Recipe, *, limit: int | None = None) -> dict[str, Any]:
    """Answer and score the run's test rows, with the base first and then with its adapter.

    Model, data, prompt and adapter are those of the run in `output_dir`; `generate`, `evaluate`
    and `safety` those of the recipe given.

    Args:
        recipe: with the `output_dir` of a finished run.
        limit: score the first rows only.

    Returns:
        What `eval/scores.json` holds.

    Raises:
        RecipeError: if `limit` is not at least 1.
        RunError: if there is no trained adapter, or its recipe was edited since.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit must be at least 1, got {limit}.")
    run = RunDirectory(recipe.output_dir)
    trained = _trained_recipe(run)
    hardware.set_threads()
    rows = _read_rows(run, limit)
    tokenizer = load_tokenizer(trained.model)
    model = _load_for_answers(trained, recipe)
    encoder = PromptEncoder(tokenizer, trained.prompt)
    encoded = [encoder.encode_row(row, max_length=sys.maxsize) for row in rows]  # references are never cut
    measured = {}
    if recipe.evaluate.baseline:
        measured["base"] = _measure(model, tokenizer, encoded, recipe, "base")
    measured["adapter"] = _measure(_with_adapter(model, run), tokenizer, encoded, recipe, "adapter")
    scores = _score(rows, measured, recipe)
    _save(run, rows, measured, scores)
    _show(rows, measured, scores, recipe, run)
    return scores


def _load_for_answers(trained: Recipe, recipe: Recipe) -> PreTrainedModel:
    """The base in the precision of this machine, on its card if there is one."""
    asked = {"fp16": recipe.train["fp16"], "bf16": None, "use_cpu": recipe.train["use_cpu"]}
    model = load_base_model(trained.model, hardware.resolve_precision(asked).dtype)
    if not trained.model.quantization:
        model = model.to("cuda" if hardware.has_card() and not recipe.train["use_cpu"] else "cpu")
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Measured:
    """Answers and reference losses of one model, in the order of the rows."""

    answers: list[Answer]
    """Empty if no score needs them."""

    losses: list[float]
    """Empty if not asked for. Mean negative log-likelihood of each reference, teacher forced, in nats a token."""


def _trained_recipe(run: RunDirectory) -> Recipe:
    if not run.has_adapter():
        raise RunError(f"output_dir: {run.path} holds no trained adapter. Train it first: alpacare-sft train RECIPE.")
    trained = read_resolved(run.recipe)
    if run.read_record().get("recipe_sha256") != recipe_sha256(trained):
        raise RunError(f"{run.recipe} is not the recipe that this adapter was trained by. Undo what was changed in it.")
    return trained


def _read_rows(run: RunDirectory, limit: int | None) -> list[dict[str, Any]]:
    lines = (run.data / "test.jsonl").read_text(encoding="utf-8").split("\n")  # other breaks may stand in a row
    rows = [json.loads(line) for line in lines if line][:limit]
    if not rows:
        raise RunError("data.splits.test is 0, there is nothing to score. Give it rows and train again.")
    return rows


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    who: str,
) -> Measured:
    from rich.progress import track

    wanted = recipe.evaluate.metrics
    losses = [reference_loss(model, row) for row in encoded] if "loss" in wanted else []
    if "rouge" not in wanted:
        return Measured([], losses)
    torch.manual_seed(recipe.train["seed"])  # sampled answers are those of the next time too
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in encoded]
    found = generate_answers(model, tokenizer, prompts, recipe.generate)
    answers = dict(track(found, f"answers of {who}", total=len(prompts), console=Console(stderr=True)))
    return Measured([answers[index] for index in range(len(prompts))], losses)


@torch.inference_mode()
def reference_loss(model: PreTrainedModel, row: Mapping[str, Any]) -> float:
    """Mean negative log-likelihood of a row's learnt tokens, in nats a token."""
    ids = torch.tensor([row["input_ids"]], device=model.device)
    count = sum(row["completion_mask"])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, -count:]))


def _with_adapter(model: PreTrainedModel, run: RunDirectory) -> PreTrainedModel:
    """The base with the adapter merged into it, or wrapped around it when the base is quantized."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, run.adapter)
    quantized = getattr(model, "is_quantized", False)
    return (wrapped if quantized else wrapped.merge_and_unload()).eval()


def _score(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Measured], recipe: Recipe) -> dict[str, Any]:
    confidence, samples = recipe.evaluate.confidence, recipe.evaluate.bootstrap_samples
    found: dict[str, dict[str, list[float]]] = {}
    if "loss" in recipe.evaluate.metrics:
        found["loss"] = {name: part.losses for name, part in measured.items()}
    if "rouge" in recipe.evaluate.metrics:
        references = [row["output"] for row in rows]
        for name, part in measured.items():
            for kind, values in metrics.rouge_scores([a.text for a in part.answers], references).items():
                found.setdefault(kind, {})[name] = values
    scores: dict[str, Any] = {"n": len(rows)}
    scores["metrics"] = {m: metrics.paired_summary(values, confidence, samples) for m, values in found.items()}
    cut = {name: [not a.finished for a in part.answers] for name, part in measured.items() if part.answers}
    return scores | {"cut_at_max_new_tokens": {name: sum(flags) / len(rows) for name, flags in cut.items()}}


def _save(
    run: RunDirectory, rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Measured], scores: Mapping[str, Any]
) -> None:
    lines = []
    for index, row in enumerate(rows):
        prompt = {"instruction": row["instruction"], "input": row["input"]}
        line = {"id": row["id"], "prompt": prompt, "reference": row["output"]}
        for name, part in measured.items():
            if part.losses:
                line[f"{name}_loss"] = part.losses[index]
            if part.answers:
                line |= {name: part.answers[index].text, f"{name}_finished": part.answers[index].finished}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(run.path / "eval" / "predictions.jsonl", "".join(lines))
    write_json(run.path / "eval" / "scores.json", scores)


def _show(
    rows: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Measured],
    scores: Mapping[str, Any],
    recipe: Recipe,
    run: RunDirectory,
) -> None:
    console = Console()
    answered = {name: part.answers for name, part in measured.items() if part.answers}
    for index in range(min(SIDE_BY_SIDE, len(rows)) if answered else 0):
        console.print(_side_by_side(rows[index], {name: answers[index] for name, answers in answered.items()}))
    console.print(_score_table(scores))
    if answered:
        console.print(f"[italic]{escape(recipe.safety.disclaimer)}[/italic]")
    console.print(f"\nwritten to {escape(str(run.path / 'eval'))}: predictions.jsonl, scores.json")


def _side_by_side(row: Mapping[str, Any], answers: Mapping[str, Answer]) -> Table:
    question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
    table = Table(title=f"test row {row['id']}: {escape(question)}", title_justify="left", show_lines=True, expand=True)
    for name in ("reference", *answers):
        table.add_column(name, ratio=1, overflow="fold")
    shown = [answer.text + ("" if answer.finished else " […]") for answer in answers.values()]
    table.add_row(*(escape(text) for text in (row["output"], *shown)))
    return table


def _score_table(scores: Mapping[str, Any]) -> Table:
    summaries = scores["metrics"]
    first = next(iter(summaries.values()))
    title = f"{scores['n']} test rows, {first['adapter']['confidence']:.0%} intervals over the choice of rows"
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for name in first:
        table.add_column(f"{name} (adapter - base)" if name == "difference" else name, justify="right")
    for metric, summary in summaries.items():
        cells = [f"{part['mean']:.4f} [{part['low']:.4f}, {part['high']:.4f}]" for part in summary.values()]
        table.add_row(metric + (" (lower is better)" if metric == "loss" else ""), *(escape(cell) for cell in cells))
    return table
