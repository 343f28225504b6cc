"""Pages for people: the data report, and how the training went.

Each page is one HTML file that loads nothing. Wording and looks are in `templates/`, pictures in
`pictures`; here are the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.reporting.figures import Numbers, draw_funnel, draw_lengths, draw_losses, draw_rates, picture, points
from alpacare_sft.run.directory import last_name, write_text

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

STEPS = {
    "drop_conversations": (
        "Conversations",
        "Rows that are not one question and one answer are dropped: split those of several turns into such rows.",
    ),
    "drop_missing": ("Incomplete rows", "Rows without an instruction or without an answer are dropped."),
    "drop_duplicates": ("Exact copies", "Of rows alike in instruction, input and answer the first stays."),
    "strip": ("Outer white space", "White space at both ends of each text is removed."),
    "collapse_whitespace": ("Inner white space", "Runs of spaces in prose and of empty lines become one."),
    "straight_quotes": ("Curly quotes", "Curly quotes and apostrophes become straight ones."),
    "remove_non_printable": ("Invisible characters", "What says nothing is removed; certain signs are mended."),
    "min_characters": ("Very short rows", "Rows with too short an instruction or answer are dropped."),
    "no_input_marks": ("Marks for no input", "An input that only says that there is none becomes empty."),
    "drop_duplicates_after_cleaning": ("Copies after cleaning", "Of rows that cleaning made alike the first stays."),
}
CLEANING = {
    "structure_lost": (
        "Structure flattened",
        "Lists, tables, code or lines of text that became one line. data.clean.keep_newlines: true keeps them.",
    ),
    "signs_mended": (
        "Signs mended",
        "Codes of a symbol font that are certain by the number or unit beside them, such as µ, ° and ≥.",
    ),
    "uncertain_characters": (
        "Uncertain characters",
        "Private-use codes, controls or soft hyphens that may stand for a sign. They stay; correct them in the source.",
    ),
    "damaged_text": (
        "Damaged text",
        "Characters that were wrongly decoded or lost before the rows came. They stay; correct them in the source.",
    ),
    "ambiguous_inputs": (
        "Inputs such as none, - or Na",
        "They stay, as a chart has such entries. Where they mean no input, add them to data.clean.no_input_marks.",
    ),
    "short_answers": (
        "Short answers dropped",
        "Answers such as a letter, a number, yes or no may be right. data.clean.min_characters: 1 keeps them.",
    ),
}
SPLITS = {
    "train": ("Training split", "Rows to learn from."),
    "validation": ("Validation split", "Rows to compare steps of the training by; never trained on."),
    "test": ("Test split", "Rows held out for the scores; never trained on."),
    "unused": ("In no split", "Rows that no split asked for, or that would have put one question into two splits."),
}


def save_training_report(path: Path, record: Numbers, log_history: Sequence[Numbers]) -> None:
    """Write the page of a training: curves of loss and learning rate, and the numbers of its record.

    Args:
        path: the HTML file, replaced if it exists.
        record: what `run.json` holds; what it lacks the page leaves out.
        log_history: the entries of the trainer's state, in the order of their steps; may be empty.
    """
    best, values = _best_step(record, log_history), _losses(log_history)
    pictures = {}
    if loss := losses_picture(record, log_history):
        pictures["loss"] = loss
    if points(log_history, "learning_rate")[0] or points(log_history, "grad_norm")[0]:
        label = "Learning rate and gradient norm by optimizer step; the values are in the table of logged numbers."
        pictures["rates"] = picture("rates", label, partial(draw_rates, history=log_history), (340, 380))
    context = {"not_finite": sum(not math.isfinite(value) for value in values), "log": _merge_steps(log_history)}
    write_text(path, render("training.html", record=record, best=best, pictures=pictures, **context))


def save_data_report(path: Path, report: Numbers) -> None:
    """Write the page of a data set: the funnel, the lengths, and rows as the model sees them.

    Args:
        path: the HTML file, replaced if it exists.
        report: what `data/report.json` holds, and where there are any `lengths`, `examples`,
            `extremes` and `near_duplicates`; a section whose key is missing is left out.
    """
    pictures = {}
    if rows := funnel_picture(report):
        pictures["funnel"] = rows
    totals = _lengths(report)
    max_length = report.get("max_length")
    if totals["Prompt and answer"]:
        label = "Distribution of token lengths of prompts, answers and both; the table below has the quantiles."
        draw = partial(draw_lengths, lengths=totals, max_length=max_length)
        pictures["lengths"] = picture("lengths", label, draw, (270, 560))
    longer = sum(total > max_length for total in totals["Prompt and answer"]) if max_length else 0
    context = {
        "funnel": funnel_steps(report),
        "notes": cleaning_notes(report),
        "split_labels": SPLITS,
        "longer": longer,
    }
    write_text(path, render("data.html", report=report, pictures=pictures, **context))


def losses_picture(record: Numbers, log_history: Sequence[Numbers]) -> Markup | None:
    """Curves of training and validation loss; none without a finite loss."""
    if not any(map(math.isfinite, _losses(log_history))):
        return None
    label = "Training and validation loss by optimizer step; the values are in the table of logged numbers."
    draw = partial(draw_losses, history=log_history, best=_best_step(record, log_history))
    return picture("loss", label, draw, (320, 340))


def funnel_picture(report: Numbers) -> Markup | None:
    """Rows after each step of the preparation; none without counts."""
    if not (funnel := funnel_steps(report)):
        return None
    label = "Rows left after each step, and the splits that they went to; the numbers are in the table below."
    height = 30 + 36 * len(funnel)
    return picture("funnel", label, partial(draw_funnel, funnel=funnel), (height, height))


def cleaning_notes(report: Numbers) -> list[dict[str, Any]]:
    """What cleaning cost or could not decide, where there is any: `label`, `why`, `rows` and `examples`."""
    notes = report.get("cleaning") or {}
    labels = {name: label for name, label in CLEANING.items() if (notes.get(name) or {}).get("rows")}
    return [{"label": label, "why": why, **notes[name]} for name, (label, why) in labels.items()]


def render(template: str, **context: Any) -> str:
    """The page that a template of `templates/` makes; text in it is escaped, and what is missing is empty."""
    return load_template(template, number=_format_number, seconds=_format_seconds, place=drop_place).render(context)


def load_template(name: str, **filters: Callable[[Any], Any]) -> Template:
    """A template of `templates/`: text is escaped in a `.html`; a `.md` keeps the line break at its end."""
    from jinja2 import ChainableUndefined, Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("alpacare_sft.reporting"),
        autoescape=select_autoescape(["html"]),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=name.endswith(".md"),
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def _format_number(value: Any) -> str:
    """Whole numbers with thousands set apart, others with three significant digits, what is missing as a dash."""
    if not isinstance(value, int | float):
        return "–"
    if not math.isfinite(value):
        return "not a number"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"


def _format_seconds(value: Any) -> str:
    """Hours, minutes and seconds; what is missing as a dash."""
    if not isinstance(value, int | float):
        return "–"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] if hours else []
    parts += [f"{minutes} min"] if hours or minutes else []
    return " ".join([*parts, f"{seconds} s"]) if parts else f"{value:.1f} s"


def drop_place(name: Any) -> Any:
    """A folder's own name for one on this disk; a name on the Hub, and what is missing, as it is."""
    if not isinstance(name, str) or not (name.startswith(("/", "~", ".")) or "\\" in name):
        return name
    return last_name(name)


def _best_step(record: Numbers, history: Sequence[Numbers]) -> tuple[int, float] | None:
    """The step that the record calls best, or else the one of lowest validation loss, and that loss."""
    losses = dict(zip(*points(history, "eval_loss"), strict=True))
    train = record.get("train") or {}
    step: int | None = train.get("best_step") or min(losses, key=losses.__getitem__, default=None)
    loss: float | None = train.get("eval_loss") if step is None else losses.get(step, train.get("eval_loss"))
    return None if step is None or loss is None else (step, loss)


def _losses(history: Sequence[Numbers]) -> list[float]:
    return [entry[key] for entry in history for key in ("loss", "eval_loss") if entry.get(key) is not None]


def _merge_steps(history: Sequence[Numbers]) -> list[dict[str, Any]]:
    keys = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    steps: dict[int, dict[str, Any]] = {}
    for entry in history:
        if "step" in entry and ("loss" in entry or "eval_loss" in entry):
            steps.setdefault(entry["step"], {}).update({key: entry[key] for key in keys if entry.get(key) is not None})
    return list(steps.values())


def funnel_steps(report: Numbers) -> list[dict[str, Any]]:
    """The steps from the rows loaded to the splits, as page, picture, model card and terminal show them.

    Args:
        report: what `data/report.json` holds.

    Returns:
        For each step its `label` and `why`, the `rows` left, how many it `dropped` and `changed`, and `start`: the rows
        before it on the axis of the picture. A step of cleaning has its `name` in the recipe, a split `is_split`. Empty
        if nothing was counted.
    """
    rows = report.get("rows") or {}
    if "loaded" not in rows:
        return []
    steps = [_step("Rows loaded", "What the source holds.", rows["loaded"])]
    for column, count in (rows.get("filled") or {}).items():
        steps.append(_step(f"Constant {column}", "A missing text is filled by the recipe's.", rows["loaded"], 0, count))
    for step in report.get("steps") or []:
        label, why = STEPS.get(step["name"], (step["name"], ""))
        counts = _step(label, why, step["rows_after"], step.get("dropped", 0), step.get("changed", 0))
        steps.append({**counts, "name": step["name"]})
    left = rows.get("cleaned", steps[-1]["rows"])
    # How many rows were tokenized, where the splits were full before all were.
    number = rows.get("looked_at", rows.get("cleaned"))
    looked_at = f", of {number:,} rows looked at" if number != rows.get("cleaned") else ""
    for key, label, why in (
        ("dropped_no_answer", f"No room for an answer{looked_at}", "The prompt alone fills the token limit."),
        ("dropped_too_long", "Longer than the limit", "The recipe drops such rows."),
        ("dropped_held_out", "Question of a held-out split", "It stands in a published split."),
    ):
        dropped = rows.get(key)
        if dropped or (dropped == 0 and key == "dropped_no_answer"):  # the one that every run may have is always told
            left -= dropped
            steps.append(_step(label, why, left, dropped))
    start = 0
    for name, (label, why) in SPLITS.items():
        if name in rows:
            steps.append({**_step(label, why, rows[name]), "start": start, "is_split": True})
            start += rows[name]
    return steps


def _step(label: str, why: str, rows: int, dropped: int = 0, changed: int = 0) -> dict[str, Any]:
    return {"label": label, "why": why, "rows": rows, "dropped": dropped, "changed": changed, "start": 0}


def _lengths(report: Numbers) -> dict[str, list[int]]:
    splits = [split for split in (report.get("lengths") or {}).values() if split]
    prompt = [length for split in splits for length in split["prompt_tokens"]]
    answer = [length for split in splits for length in split["completion_tokens"]]
    return {"Prompt": prompt, "Answer": answer, "Prompt and answer": [sum(t) for t in zip(prompt, answer, strict=True)]}
