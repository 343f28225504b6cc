"""An evaluation, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from alpacare_sft.evaluation.generation import CUT
from alpacare_sft.evaluation.intervals import format_interval
from alpacare_sft.review.judge import show_judge
from alpacare_sft.runtime import open_console

if TYPE_CHECKING:
    from alpacare_sft.evaluation.evaluate import Evaluation

SIDE_BY_SIDE = 3
ENDS = {"length": CUT, "run_on": " [… went on with a new question]"}
SIDES = ("base", "adapter")


def show_evaluation(result: Evaluation, every_score: bool = False) -> None:
    """Print three answers side by side, the scores, the verdict and the page to open.

    Args:
        result: of `evaluate`.
        every_score: the descriptive scores as well as the primary metrics.
    """
    console = open_console()
    scores = result.scores
    answered = [line for line in result.predictions if "adapter" in line]
    for line in answered[:SIDE_BY_SIDE]:
        console.print(_side_by_side(line))
    if answered:
        console.print(f"[italic]{escape(scores['notice'])}[/italic]\n")
    primary = {name: part for name, part in scores["metrics"].items() if part["main"]}
    shown = scores["metrics"] if every_score or not primary else primary
    console.print(_score_table({**scores, "metrics": shown}))
    if hidden := len(scores["metrics"]) - len(shown):
        console.print(f"{hidden} descriptive scores: add --all, or open the page.")
    if near := scores["near_duplicates"]["rows"]:
        console.print(f"{near:,} of {scores['n']:,} rows nearly repeat a training row; report.html has scores without.")
    console.print(f"[bold]{escape(scores['verdict'])}[/bold]")
    console.print(f"{escape(scores['intervals'])}\n")
    if result.judgement:
        show_judge(result.judgement)
    files = sorted(path.name for path in result.folder.iterdir() if path.is_file() and not path.name.startswith("."))
    console.print(f"written to {escape(str(result.folder))}: {', '.join(files)}")
    console.print(f"[bold]open {escape(str(result.folder / 'report.html'))}[/bold]", soft_wrap=True)


def _side_by_side(line: Mapping[str, Any]) -> Table:
    prompt = line["prompt"]
    question = "\n".join(text for text in (prompt.get("system"), prompt["instruction"], prompt["input"]) if text)
    answered = [who for who in SIDES if who in line]
    headers = (Column(name, ratio=1, overflow="fold") for name in ("reference", *answered))
    title = f"row {line['id']}: {escape(question)}"
    table = Table(*headers, title=title, title_justify="left", show_lines=True, expand=True)
    shown = [line[who] + ENDS.get(line[f"{who}_end"], "") for who in answered]
    table.add_row(*(escape(text) for text in (line["reference"], *shown)))
    return table


def _score_table(scores: Mapping[str, Any]) -> Table:
    """Eighty columns wide at most: an interval stands under its mean."""
    metrics = scores["metrics"]
    sides = [name for name in (*SIDES, "difference") if name in next(iter(metrics.values()))]
    confidence = next(iter(metrics.values()))["adapter"]["confidence"]
    title = f"{scores['n']:,} {escape(scores['source'])}, {100 * confidence:g}% intervals; difference = adapter - base"
    headers = [Column("score", no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in sides)]
    if "difference" in sides:
        headers += [Column("p", justify="right"), Column("verdict")]
    table = Table(*headers, title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    table.pad_edge, table.padding = False, 0  # the box itself sets columns one apart
    for name, part in metrics.items():
        rows = "" if part["n"] == scores["n"] else f"\n{part['n']:,} rows"
        cells = [_with_bounds(part[side], "+" if side == "difference" else "") for side in sides]
        if "difference" in sides:
            cells += [_format_p_value(part["difference"]["p_value"]), _in_a_word(part)]
        table.add_row(f"{name}{rows}", *(escape(cell) for cell in cells), style="bold" if part["main"] else None)
    table.caption, table.caption_justify = (scores.get("rouge") or {}).get("note"), "left"
    return table


def _with_bounds(part: Mapping[str, Any], sign: str) -> str:
    return format_interval(part, f"{sign}.3f").replace(" [", "\n[").replace(", ", ",")


def _format_p_value(value: float | None) -> str:
    return "–" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _in_a_word(part: Mapping[str, Any]) -> str:
    """Whether the adapter is better or worse, higher or lower where neither is better, unclear if nothing was shown."""
    if "unseen" in part:
        return "none"
    if part["side"] is None or part["better"] is None:
        return part["side"] or "unclear"
    return "better" if part["side"] == part["better"] else "worse"
