"""The funnel and the rows, and what a recipe will need, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from alpacare_sft.data.load import describe_sources
from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.data.report import DATA_KEYS, encoded_segments, refuse_other_data, save_data
from alpacare_sft.model.base import check_context, load_tokenizer
from alpacare_sft.reporting.pages import cleaning_notes, funnel_steps
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.run.trained import continue_run
from alpacare_sft.runtime import open_console

if TYPE_CHECKING:
    from collections.abc import Callable

    from alpacare_sft.recipe.loading import Recipe

IN_LOSS = "bold green underline"
# By prompt.system, which is null or empty where the chat template writes a system prompt of its own.
_DEFAULT_SYSTEM = {
    None: "the chat template writes a system prompt of its own; prompt.system replaces it",
    "": "the chat template ignores an empty prompt.system and writes its own; another text replaces it",
}


def show_data(recipe: Recipe, num_rows: int = 3) -> None:
    """Prepare the rows of a recipe, write them into its run directory and show them.

    Raises:
        DataError: if the rows are wrong or too few.
        RunError: if the directory holds a run that was begun on other rows.
    """
    run = RunDirectory(recipe.output_dir)
    if run.holds_work():
        recipe = continue_run(run, recipe, DATA_KEYS)
    tokenizer = load_tokenizer(recipe.model)
    check_context(recipe.model, recipe.max_length)
    data = prepare_data(recipe, tokenizer)
    with run.lock():
        refuse_other_data(run, data)
        save_data(run, data, tokenizer)
    console = open_console()
    for line in describe_sources(data.report["sources"]):
        console.print(escape(line), highlight=False)
    console.print(funnel_table(data.report))
    console.print(notes_table(data.report))
    console.print(split_table(data.report))
    for note in data.report["unused_sources"]:
        console.print(escape(note))
    if default := data.report["prompt"]["default_system"]:
        console.print(f"{_DEFAULT_SYSTEM[data.report['prompt']['system']]}: {escape(default)}")
    rows = data.splits["train"]
    for index in range(min(num_rows, len(rows))):
        console.print(row_panel(rows[index], tokenizer))
    if num_rows and len(rows):
        console.print(Text.assemble("Tokens in the loss are ", ("marked so", IN_LOSS), "; everything else is context."))
    console.print(f"\nwritten to {escape(str(run.data))}: train, validation and test .jsonl, report.html, report.json")


def funnel_table(report: Mapping[str, Any]) -> Table:
    """Each step with the rows it changed and dropped, from the rows loaded to the splits."""
    headers = (Column(name, justify="right") for name in ("rows", "dropped", "changed"))
    table = Table("step", *headers, title="rows", title_justify="left")
    for step in funnel_steps(report):
        if "is_split" not in step:  # those have a table of their own
            label = step.get("name") or step["label"][0].lower() + step["label"][1:]
            table.add_row(label, f"{step['rows']:,}", _count(step["dropped"]), _count(step["changed"]))
    return table


def notes_table(report: Mapping[str, Any]) -> Table | str:
    """What cleaning cost or could not decide, with the first example of each; empty text if there is nothing."""
    if not (notes := cleaning_notes(report)):
        return ""
    rows = Column("rows", justify="right")
    table = Table("", rows, "what and why", title="cleaning", title_justify="left", show_lines=True)
    for note in notes:
        text = Text(note["why"])
        for example in note["examples"][:1]:
            after = f" → {example['after']}" if "after" in example else ""
            text.append(f"\nrow {example['id']}, {example['column']}: {example['text']}{after}", style="dim")
        table.add_row(note["label"], f"{note['rows']:,}", text)
    return table


def split_table(report: Mapping[str, Any]) -> Table:
    """Rows and tokens of each split, what truncation costs, and what may have leaked."""
    headers = (Column(name, justify="right") for name in report["splits"])
    table = Table("", *headers, title="splits", title_justify="left")
    lines: dict[str, Callable[[Any], str]] = {
        "rows": lambda split: f"{split['rows']:,}",
        "with an input": lambda split: f"{split['with_input']:,}",
        "answers that end without a full stop": lambda split: f"{split['open_end']:,}",
        f"longer than {report['max_length']} tokens": lambda split: f"{split['truncated']:,}",
        "answer tokens cut off": lambda split: f"{split['cut_tokens']:,}",
        "tokens in the loss": lambda split: f"{split['learnt_tokens']:,}",
        "prompt tokens, median and longest": lambda split: _middle_and_end(split["prompt_tokens"]),
        "answer tokens, median and longest": lambda split: _middle_and_end(split["completion_tokens"]),
    }
    for label, show in lines.items():
        table.add_row(label, *(show(split) if split["rows"] else "-" for split in report["splits"].values()))
    near = report["near_duplicates"]
    table.caption = (
        f"{report['rows']['unused']:,} rows in no split. Questions that stand in two splits: "
        f"{report['shared_questions']}. Test rows that nearly repeat a training row (similarity "
        f"{near['threshold']} or more): {near['test_rows']}. {_seen(near['seen_fraction'])}"
    )
    table.caption_justify = "left"
    return table


def _seen(fraction: float | None) -> str:
    return (
        "" if fraction is None else f"The comparison read {fraction:.1%} of the questions' letters, digits and signs."
    )


def _middle_and_end(lengths: Mapping[str, Any]) -> str:
    return f"{lengths['median']:,.0f}, {lengths['max']:,}"


def row_panel(row: Mapping[str, Any], tokenizer: Any) -> Panel:
    """One row as the model sees it, tokens in the loss marked."""
    text = Text()
    for piece, in_loss in encoded_segments(row, tokenizer):
        text.append(piece, style=IN_LOSS if in_loss else "dim")
    loss_tokens = sum(row["completion_mask"])
    cut = ", truncated" if row["truncated"] else ""
    title = f"row {row['id']}: {len(row['input_ids'])} tokens, {loss_tokens} in the loss{cut}"
    return Panel(text, title=title, title_align="left")


def _count(value: int) -> str:
    return f"{value:,}" if value else "-"


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
    headers = (
        Column(title, justify="right", style="bold" if one.get("rows_per_forward") == plan["rows_per_forward"] else "")
        for title, one in columns
    )
    table = Table("", *headers, title="memory, MiB", title_justify="left", box=None, pad_edge=False)
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
