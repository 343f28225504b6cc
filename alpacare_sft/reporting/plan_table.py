"""What a recipe will need, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from alpacare_sft.runtime import open_console


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print the plan of a recipe: memory by part, steps, disk and time, and what would make it fit.

    Args:
        plan: of `training.plan.plan_run`.
    """
    console = open_console()
    target = plan["target"]
    console.print(
        f"[bold]{escape(str(plan['model']))}[/bold] on {escape(target['name'])} ({_gib(target['memory_bytes'])} GiB), "
        f"{plan['precision']} products, longest row {plan['longest_row_tokens']:,} tokens. "
        "Memory is modelled, no weights were read.",
        highlight=False,
    )
    console.print(_memory_table(plan))
    console.print(
        f"{plan['steps']:,} optimizer steps, {plan['steps_per_epoch']:,} an epoch; {plan['tokens']:,} tokens, "
        f"{plan['tokens_per_epoch']:,} an epoch. A checkpoint: {plan['checkpoint_bytes'] / 1e6:,.0f} MB.",
        highlight=False,
    )
    console.print(_time(plan), highlight=False)
    if plan["fits"]:
        console.print("[green]It fits.[/green]")
    elif plan["change"]:
        console.print(f"[red]It does not fit.[/red] It would with: {plan['change']}", highlight=False)
    else:
        console.print("[red]It does not fit[/red], with no single change: use a smaller model or a larger card.")
    if not plan["evaluation"]["fits"]:
        console.print("Answering does not fit: lower generate.batch_size.")


def _memory_table(plan: Mapping[str, Any]) -> Table:
    """A column for each number of rows a forward, and one for the evaluation; MiB."""
    columns = [
        *((f"{one['rows_per_forward']} a forward", one) for one in _nearest(plan)),
        (f"answering {plan['evaluation']['rows']}", plan["evaluation"]),
    ]
    table = Table(title="memory, MiB", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for title, one in columns:
        own = one.get("rows_per_forward") == plan["rows_per_forward"]
        table.add_column(title, justify="right", style="bold" if own else "")
    names = dict.fromkeys(name for _, one in columns for name in one["parts"])
    for name in names:
        cells = [f"{one['parts'][name] / 2**20:,.0f}" if name in one["parts"] else "" for _, one in columns]
        table.add_row(name, *cells)
    table.add_row("peak", *(f"{one['peak_bytes'] / 2**20:,.0f}" for _, one in columns), style="bold")
    table.add_row("left over", *(f"{one['margin_bytes'] / 2**20:,.0f}" for _, one in columns))
    return table


def _nearest(plan: Mapping[str, Any], most: int = 4) -> list[Mapping[str, Any]]:
    """The recipe's rows a forward and those around it, as many as 80 columns hold."""
    ranked = sorted(plan["training"], key=lambda one: abs(one["rows_per_forward"] - plan["rows_per_forward"]))
    return sorted(ranked[:most], key=lambda one: int(one["rows_per_forward"]))


def _time(plan: Mapping[str, Any]) -> str:
    if not plan["seconds"]:
        return f"{plan['operations'] / 1e12:,.0f} × 10¹² operations; time: add --measure, or name a card of the list."
    low, high = (f"{seconds / 60:,.0f} min" if seconds >= 90 else f"{seconds:,.0f} s" for seconds in plan["seconds"])
    span = low if low == high else f"{low} to {high}"
    return f"{plan['operations'] / 1e12:,.0f} × 10¹² operations; training time: {span} ({plan['basis']})."


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"
