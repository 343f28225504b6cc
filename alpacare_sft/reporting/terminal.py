"""The funnel and the rows, for a person at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.data.report import describe_sources, encoded_segments
from alpacare_sft.data.saving import DATA_KEYS, refuse_other_data, save_data
from alpacare_sft.model.base import check_context, load_tokenizer
from alpacare_sft.reporting.pages import cleaning_notes, looked_at
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.run.trained import continue_run
from alpacare_sft.runtime import open_console

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    rows = report["rows"]
    table = Table(title="rows", title_justify="left")
    table.add_column("step")
    for name in ("rows", "dropped", "changed"):
        table.add_column(name, justify="right")
    table.add_row("loaded", f"{rows['loaded']:,}", "", "")
    for column, count in rows["filled"].items():
        table.add_row(f"constant {column}", f"{rows['loaded']:,}", "", f"{count:,}")
    for step in report["steps"]:
        table.add_row(step["name"], f"{step['rows_after']:,}", _count(step["dropped"]), _count(step["changed"]))
    after = rows["cleaned"] - rows["dropped_no_answer"]
    table.add_row(f"no room for an answer{looked_at(rows)}", f"{after:,}", _count(rows["dropped_no_answer"]), "")
    if rows["dropped_too_long"]:
        after -= rows["dropped_too_long"]
        table.add_row("longer than max_length", f"{after:,}", _count(rows["dropped_too_long"]), "")
    if rows["dropped_held_out"]:
        table.add_row("question of a held-out split", f"{rows['kept']:,}", _count(rows["dropped_held_out"]), "")
    return table


def notes_table(report: Mapping[str, Any]) -> Table | str:
    """What cleaning cost or could not decide, with the first example of each; empty text if there is nothing."""
    if not (notes := cleaning_notes(report)):
        return ""
    table = Table(title="cleaning", title_justify="left", show_lines=True)
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_column("what and why")
    for note in notes:
        text = Text(note["why"])
        for example in note["examples"][:1]:
            after = f" → {example['after']}" if "after" in example else ""
            text.append(f"\nrow {example['id']}, {example['column']}: {example['text']}{after}", style="dim")
        table.add_row(note["label"], f"{note['rows']:,}", text)
    return table


def split_table(report: Mapping[str, Any]) -> Table:
    """Rows and tokens of each split, what truncation costs, and what may have leaked."""
    table = Table(title="splits", title_justify="left")
    table.add_column("")
    for name in report["splits"]:
        table.add_column(name, justify="right")
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
