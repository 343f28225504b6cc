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
from alpacare_sft.errors import RunError
from alpacare_sft.generation import Answer, generate_answers
from alpacare_sft.model import load_base_model, load_tokenizer
from alpacare_sft.prompt import PromptEncoder
from alpacare_sft.recipe.writing import read_resolved
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
        RunError: if there is no trained adapter.
    """
    run = RunDirectory(recipe.output_dir)
    trained = _trained_recipe(run)
    hardware.set_threads()
    rows = _read_rows(run, limit)
    precision = hardware.resolve_precision(
        {"fp16": None, "bf16": None, "use_cpu": recipe.train["use_cpu"]} if not recipe.train["fp16"] else recipe.train
    )
    tokenizer = load_tokenizer(trained.model)
    model = load_base_model(trained.model, precision.dtype)
    if not trained.model.quantization:
        model = model.to("cuda" if hardware.has_card() and not recipe.train["use_cpu"] else "cpu")
    model.eval()
    encoder = PromptEncoder(tokenizer, trained.prompt)
    encoded = [encoder.encode_row(row, max_length=sys.maxsize) for row in rows]  # references are never cut
    prompts = [encoder.encode_prompt(row["instruction"], row["input"]) for row in rows]
    base = _measure(model, tokenizer, prompts, encoded, recipe, "base")
    adapter = _measure(_with_adapter(model, run), tokenizer, prompts, encoded, recipe, "adapter")
    scores = _score(rows, base, adapter, recipe)
    _save(run, rows, base, adapter, scores)
    _show(rows, base, adapter, scores, recipe, run)
    return scores


@dataclasses.dataclass(frozen=True)
class Measured:
    """Answers and reference losses of one model, in the order of the rows."""

    answers: list[Answer]
    """Empty if no score needs them."""

    losses: list[float]
    """Mean negative log-likelihood of each reference, teacher forced, in nats a token."""


def _trained_recipe(run: RunDirectory) -> Recipe:
    if not run.has_adapter():
        raise RunError(
            f"output_dir: {run.path} holds no trained adapter. Run `alpacare-sft train` with this recipe first."
        )
    return read_resolved(run.recipe)


def _read_rows(run: RunDirectory, limit: int | None) -> list[dict[str, Any]]:
    lines = (run.data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][:limit]
    if not rows:
        raise RunError("data.splits.test is 0, there is nothing to score. Give it rows and train again.")
    return rows


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    encoded: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    who: str,
) -> Measured:
    from rich.progress import track

    losses = [reference_loss(model, row) for row in encoded]
    if "rouge" not in recipe.evaluate.metrics:
        return Measured([], losses)
    found = generate_answers(model, tokenizer, prompts, recipe.generate)
    shown = track(found, f"answers of {who}", total=len(prompts), console=Console(stderr=True))
    answers = dict(shown)
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


def _score(rows: Sequence[Mapping[str, Any]], base: Measured, adapter: Measured, recipe: Recipe) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "confidence": recipe.evaluate.confidence,
        "samples": recipe.evaluate.bootstrap_samples,
    }
    scores: dict[str, Any] = {"n": len(rows), "metrics": {}}
    if "loss" in recipe.evaluate.metrics:
        scores["metrics"]["loss"] = metrics.paired_summary(base.losses, adapter.losses, **settings)
    if "rouge" in recipe.evaluate.metrics:
        references = [row["output"] for row in rows]
        ours, theirs = (metrics.rouge_scores([a.text for a in m.answers], references) for m in (adapter, base))
        for kind in metrics.ROUGE_TYPES:
            scores["metrics"][kind] = metrics.paired_summary(theirs[kind], ours[kind], **settings)
        cut = {name: [not a.finished for a in m.answers] for name, m in (("base", base), ("adapter", adapter))}
        scores["cut_at_max_new_tokens"] = {name: sum(flags) / len(rows) for name, flags in cut.items()}
    return scores


def _save(
    run: RunDirectory, rows: Sequence[Mapping[str, Any]], base: Measured, adapter: Measured, scores: Mapping[str, Any]
) -> None:
    lines = []
    for index, row in enumerate(rows):
        line = {"id": row["id"], "prompt": {"instruction": row["instruction"], "input": row["input"]}}
        line |= {"reference": row["output"]}
        for name, measured in (("base", base), ("adapter", adapter)):
            line[f"{name}_loss"] = measured.losses[index]
            if measured.answers:
                answer = measured.answers[index]
                line |= {name: answer.text, f"{name}_finished": answer.finished}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(run.path / "eval" / "predictions.jsonl", "".join(lines))
    write_json(run.path / "eval" / "scores.json", scores)


def _show(
    rows: Sequence[Mapping[str, Any]],
    base: Measured,
    adapter: Measured,
    scores: Mapping[str, Any],
    recipe: Recipe,
    run: RunDirectory,
) -> None:
    console = Console()
    for index in range(min(SIDE_BY_SIDE, len(base.answers))):
        console.print(_side_by_side(rows[index], base.answers[index], adapter.answers[index]))
    console.print(_score_table(scores))
    if base.answers:
        console.print(f"[italic]{escape(recipe.safety.disclaimer)}[/italic]")
    console.print(f"\nwritten to {escape(str(run.path / 'eval'))}: predictions.jsonl, scores.json")


def _side_by_side(row: Mapping[str, Any], base: Answer, adapter: Answer) -> Table:
    question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
    table = Table(title=f"test row {row['id']}: {escape(question)}", title_justify="left", show_lines=True, expand=True)
    for name in ("reference", "base", "adapter"):
        table.add_column(name, ratio=1, overflow="fold")
    shown = [answer.text + ("" if answer.finished else " […]") for answer in (base, adapter)]
    table.add_row(*(escape(text) for text in (row["output"], *shown)))
    return table


def _score_table(scores: Mapping[str, Any]) -> Table:
    confidence = next(iter(scores["metrics"].values()))["base"]["confidence"]
    table = Table(
        title=f"{scores['n']} test rows, {confidence:.0%} intervals over the choice of rows", title_justify="left"
    )
    table.add_column("score")
    for name in ("base", "adapter", "difference (adapter - base)"):
        table.add_column(name, justify="right")
    for metric, summary in scores["metrics"].items():
        cells = [f"{part['mean']:.4f} [{part['low']:.4f}, {part['high']:.4f}]" for part in summary.values()]
        table.add_row(metric + (" (lower is better)" if metric == "loss" else ""), *(escape(cell) for cell in cells))
    return table
