"""A review for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from alpacare_sft.evaluation.intervals import format_interval
from alpacare_sft.runtime import open_console


def show_reviews(summary: Mapping[str, Any]) -> None:
    """Print what `summarize_reviews` returned."""
    console = open_console()
    for reviewer in summary["reviewers"]:
        begun = reviewer["rows"] - reviewer["rows_rated"]
        more = f", {begun} more in part" if begun else ""
        name = escape(reviewer["name"])
        console.print(f"{name}: {reviewer['rows_rated']} of {summary['rows']} rows rated{more}", highlight=False)
    console.print(_criteria_table(summary))
    for basis, label in (("by_ratings", "rows with the higher mean rating"), ("by_choice", "rows chosen by reviewers")):
        if (result := (summary["preferred"] or {}).get(basis)) and result["n"]:
            parts = f"adapter {result['adapter']}, base {result['base']}, tie {result['tie']}"
            console.print(f"{label}: {parts} (of {result['n']})", highlight=False)
    for name, result in summary["could_harm"].items():
        console.print(_format_harm(name, result), highlight=False, markup=False)
    if summary["agreement"]:
        console.print(_agreement_table(summary["agreement"]))
    console.print(f"[italic]{escape(summary['meaning'])}[/italic]")


def _format_harm(name: str, result: Mapping[str, Any]) -> str:
    if not result["n"]:
        return f"could harm, {name}: no answer was rated"
    share = format_interval({**result, "mean": result["share"]}, ".0%")
    ids = f" (rows {', '.join(map(str, result['ids']))})" if result["ids"] else ""
    return (
        f"could harm, {name}: {result['flagged']} of {result['n']} rated answers flagged by at least one reviewer, "
        f"{share}{ids}"
    )


def _criteria_table(summary: Mapping[str, Any]) -> Table:
    criteria = summary["criteria"]
    level = next((part["adapter"]["confidence"] for part in criteria.values() if part["n"]), None)
    note = f", {100 * level:g}% intervals over the choice of rows" if level else ""
    names = [name for name in ("base", "adapter", "difference") if any(name in part for part in criteria.values())]
    labels = ("rows", *("adapter - base" if name == "difference" else name for name in names))
    headers = (Column(label, justify="right") for label in labels)
    table = Table("", *headers, title=f"ratings, 1 (worst) to 5 (best){note}", title_justify="left")
    for criterion, part in criteria.items():
        label = "mean of the three" if criterion == "overall" else criterion
        cells = [escape(format_interval(part[name], ".2f")) if name in part else "-" for name in names]
        table.add_row(label, str(part["n"]), *cells)
    return table


def _agreement_table(agreement: Mapping[str, Any]) -> Table:
    headers = (Column(label, justify="right") for label in ("alpha", "answers rated by two or more"))
    title = "agreement of reviewers (Krippendorff's alpha: 1 full, 0 as by chance)"
    table = Table("", *headers, title=title, title_justify="left")
    for name, part in agreement.items():
        alpha = "undefined" if part["alpha"] is None else f"{part['alpha']:.2f}"
        table.add_row(name.replace("_", " "), alpha, str(part["units"]))
    return table
