"""Pages for people: what became of the rows, and how the training went.

Each page is one HTML file that loads nothing. Wording and looks are in `templates/`; here are the
numbers and the pictures. A picture is SVG in the page, drawn once for a desk and once for a phone,
its colours CSS variables of `base.html`, so that it follows the reader's light or dark scheme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.run import write_text

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Mapping[str, Any]
Draw = Callable[["Figure", bool], None]

# Matplotlib knows no CSS: it draws in colours that nobody would choose, and `_svg` puts these in their place.
INK, MUTED, LINE, FIRST, SECOND = (f"#01010{n}" for n in range(1, 6))
CSS_COLOURS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alpacare_sft",
    "text.parse_math": False,
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "legend.frameon": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
}

STEPS = {
    "drop_missing": ("Incomplete rows", "Rows without an instruction or without an answer are dropped."),
    "drop_duplicates": ("Exact copies", "Of rows alike in instruction, input and answer the first stays."),
    "strip": ("Outer white space", "White space at both ends of each text is removed."),
    "collapse_whitespace": ("Inner white space", "Each run of spaces and tabs, or of line breaks, becomes one."),
    "straight_quotes": ("Curly quotes", "Curly quotes and apostrophes become straight ones."),
    "remove_non_printable": ("Invisible characters", "Control, format and private-use characters are removed."),
    "min_characters": ("Very short rows", "Rows with too short an instruction or answer are dropped."),
    "no_input_marks": ("Marks for no input", "An input that only says that there is none becomes empty."),
    "drop_duplicates_after_cleaning": ("Copies after cleaning", "Of rows that cleaning made alike the first stays."),
}
SPLITS = {
    "train": ("Training split", "Rows to learn from."),
    "validation": ("Validation split", "Rows to compare steps of the training by; none is learnt."),
    "test": ("Test split", "Rows held out for the scores; none is learnt."),
    "unused": ("In no split", "Rows that no split asked for, or that would have put one question into two splits."),
}


def save_training_report(path: Path, record: Numbers, log_history: Sequence[Numbers]) -> None:
    """Write the page of a training: curves of loss and learning rate, and the numbers of its record.

    Args:
        path: the HTML file, replaced if it exists.
        record: what `run.json` holds; what it lacks the page leaves out.
        log_history: the entries of the trainer's state, in the order of their steps; may be empty.
    """
    best = _best_step(record, log_history)
    values = [entry[key] for entry in log_history for key in ("loss", "eval_loss") if entry.get(key) is not None]
    pictures = {}
    if any(map(math.isfinite, values)):
        label = "Training and validation loss by optimizer step; the values are in the table of logged numbers."
        draw = partial(_draw_losses, history=log_history, best=best)
        pictures["loss"] = _picture("loss", label, draw, (320, 340))
    if _points(log_history, "learning_rate")[0] or _points(log_history, "grad_norm")[0]:
        label = "Learning rate and gradient norm by optimizer step; the values are in the table of logged numbers."
        pictures["rates"] = _picture("rates", label, partial(_draw_rates, history=log_history), (340, 380))
    context = {"not_finite": sum(not math.isfinite(value) for value in values), "log": _merge_steps(log_history)}
    write_text(path, _render("training.html", record=record, best=best, pictures=pictures, **context))


def save_data_report(path: Path, report: Numbers) -> None:
    """Write the page of a data set: the funnel, the lengths, and rows as the model sees them.

    Args:
        path: the HTML file, replaced if it exists.
        report: what `data/report.json` holds, and where there are any `lengths`, `examples`,
            `extremes` and `near_duplicates`; a section whose key is missing is left out.
    """
    funnel = _funnel(report)
    pictures = {}
    if funnel:
        label = "Rows left after each step, and the splits that they went to; the numbers are in the table below."
        height = 30 + 36 * len(funnel)
        pictures["funnel"] = _picture("funnel", label, partial(_draw_funnel, funnel=funnel), (height, height))
    totals = _lengths(report)
    max_length = report.get("max_length")
    if totals["Prompt and answer"]:
        label = "Distribution of token lengths of prompts, answers and both; the table below has the quantiles."
        draw = partial(_draw_lengths, lengths=totals, max_length=max_length)
        pictures["lengths"] = _picture("lengths", label, draw, (270, 560))
    longer = sum(total > max_length for total in totals["Prompt and answer"]) if max_length else 0
    page = _render("data.html", report=report, funnel=funnel, pictures=pictures, split_labels=SPLITS, longer=longer)
    write_text(path, page)


def _render(template: str, **context: Any) -> str:
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("alpacare_sft"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_format_number, seconds=_format_seconds)
    return environment.get_template(template).render(context)


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


def _points(history: Sequence[Numbers], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the entries that have a finite number there."""
    found = [(e["step"], e[key]) for e in history if e.get(key) is not None and "step" in e]
    found = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


def _best_step(record: Numbers, history: Sequence[Numbers]) -> tuple[int, float] | None:
    """The step that the record calls best, or else the one of lowest validation loss, and that loss."""
    losses = dict(zip(*_points(history, "eval_loss"), strict=True))
    train = record.get("train") or {}
    step: int | None = train.get("best_step") or min(losses, key=losses.__getitem__, default=None)
    loss: float | None = train.get("eval_loss") if step is None else losses.get(step, train.get("eval_loss"))
    return None if step is None or loss is None else (step, loss)


def _merge_steps(history: Sequence[Numbers]) -> list[dict[str, Any]]:
    keys = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    steps: dict[int, dict[str, Any]] = {}
    for entry in history:
        if "step" in entry and ("loss" in entry or "eval_loss" in entry):
            steps.setdefault(entry["step"], {}).update({key: entry[key] for key in keys if entry.get(key) is not None})
    return list(steps.values())


def _funnel(report: Numbers) -> list[dict[str, Any]]:
    """One entry a bar: its label and why, rows left, dropped and changed, and the rows before it on the axis."""
    rows = report.get("rows") or {}
    if "loaded" not in rows:
        return []
    bars = [_bar("Rows loaded", "What the source holds.", rows["loaded"])]
    for column, count in (rows.get("filled") or {}).items():
        bars.append(_bar(f"Constant {column}", "A missing text is filled by the recipe's.", rows["loaded"], 0, count))
    for step in report.get("steps") or []:
        label, why = STEPS.get(step["name"], (step["name"], ""))
        bar = _bar(label, why, step["rows_after"], step.get("dropped", 0), step.get("changed", 0))
        bars.append({**bar, "name": step["name"]})
    left = rows.get("cleaned", bars[-1]["rows"])
    for label, why, dropped in (
        ("No room for an answer", "The prompt alone fills the token limit.", rows.get("dropped_no_answer")),
        ("Longer than the limit", "The recipe drops such rows.", rows.get("dropped_too_long") or None),
    ):
        if dropped is not None:
            left -= dropped
            bars.append(_bar(label, why, left, dropped))
    start = 0
    for name, (label, why) in SPLITS.items():
        if name in rows:
            bars.append({**_bar(label, why, rows[name]), "start": start, "is_split": True})
            start += rows[name]
    return bars


def _bar(label: str, why: str, rows: int, dropped: int = 0, changed: int = 0) -> dict[str, Any]:
    return {"label": label, "why": why, "rows": rows, "dropped": dropped, "changed": changed, "start": 0}


def _lengths(report: Numbers) -> dict[str, list[int]]:
    splits = [split for split in (report.get("lengths") or {}).values() if split]
    prompt = [length for split in splits for length in split["prompt_tokens"]]
    answer = [length for split in splits for length in split["completion_tokens"]]
    return {"Prompt": prompt, "Answer": answer, "Prompt and answer": [sum(t) for t in zip(prompt, answer, strict=True)]}


def _picture(name: str, label: str, draw: Draw, heights: tuple[int, int]) -> Markup:
    """A drawing at the widths of a desk and of a phone; the page shows the one that fits."""
    from markupsafe import Markup

    wide, narrow = _svg(name, "wide", draw, (740, heights[0])), _svg(name, "narrow", draw, (350, heights[1]))
    return Markup('<div class="picture" role="img" aria-label="{}">{}{}</div>').format(label, wide, narrow)


def _svg(name: str, kind: str, draw: Draw, size: tuple[int, int]) -> Markup:
    """Draw at `size` in CSS pixels; ids are made unique in the page, nothing names a place on the network."""
    from markupsafe import Markup
    from matplotlib import style
    from matplotlib.figure import Figure

    file = io.StringIO()
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure, kind == "narrow")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"^.*?<svg[^>]*>|<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-{kind}-", text)
    for drawn, meant in CSS_COLOURS.items():
        text = text.replace(drawn, meant)
    return Markup(f'<svg class="{kind}" viewBox="0 0 {size[0]} {size[1]}">{text}')


def _draw_losses(figure: Figure, narrow: bool, history: Sequence[Numbers], best: tuple[int, float] | None) -> None:
    axes = figure.subplots()
    steps, losses = _points(history, "loss")
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, losses, color=FIRST, linewidth=1, marker=marker, label="training, as logged")
    width = len(losses) // 10
    if width > 1:
        means = [sum(losses[i - width : i]) / width for i in range(width, len(losses) + 1)]
        middle = steps[width // 2 :][: len(means)]
        axes.plot(middle, means, color=FIRST, linewidth=2.5, label=f"training, mean of {width}")
    steps, losses = _points(history, "eval_loss")
    if steps:
        axes.plot(steps, losses, color=SECOND, linewidth=2, marker="o", markersize=4, label="validation")
    if best:
        label = f"best: {best[1]:.4f} at step {best[0]:,}"
        axes.plot(*best, color=INK, marker="D", markersize=9, fillstyle="none", linestyle="", label=label)
    _label_axes(axes, "optimizer step", "loss")
    figure.legend(loc="outside upper left", ncols=1 if narrow else 4)


def _draw_rates(figure: Figure, narrow: bool, history: Sequence[Numbers]) -> None:
    panels = {"learning rate": "learning_rate", "gradient norm": "grad_norm"}
    panels = {title: key for title, key in panels.items() if _points(history, key)[0]}
    grid = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, key) in zip(grid, panels.items(), strict=True):
        steps, values = _points(history, key)
        axes.plot(steps, values, color=FIRST, linewidth=1.5, marker="o" if len(steps) == 1 else "")
        axes.set_title(title)
        axes.set_ylim(bottom=0)
        _label_axes(axes, "optimizer step" if title == list(panels)[-1] else "")
        axes.yaxis.set_major_formatter("{x:.1e}" if key == "learning_rate" else "{x:g}")


def _draw_funnel(figure: Figure, narrow: bool, funnel: Sequence[Numbers]) -> None:
    axes = figure.subplots()
    for y, bar in enumerate(funnel):
        colour = SECOND if bar.get("is_split") else FIRST
        if bar["rows"]:  # the edge keeps a split of a few rows in sight
            axes.barh(y, bar["rows"], 0.32, bar["start"], color=colour, edgecolor=colour)
        if bar["dropped"]:
            axes.barh(y, bar["dropped"], 0.32, bar["rows"], color="none", edgecolor=INK, linestyle=":")
        told = [f"{bar['rows']:,}"]
        told += [f"{bar['dropped']:,} dropped"] if bar["dropped"] else []
        told += [f"{bar['changed']:,} changed"] if bar["changed"] else []
        axes.annotate(bar["label"], (0, y), (0, 9), ("axes fraction", "data"), textcoords="offset points")
        place = (1, y), (0, 9), ("axes fraction", "data")
        axes.annotate(" · ".join(told), *place, textcoords="offset points", horizontalalignment="right")
    axes.set_xlim(0, max(1, max(bar["start"] + bar["rows"] + bar["dropped"] for bar in funnel)))
    axes.set_ylim(len(funnel) - 0.5, -0.8)
    axes.set_axis_off()


def _draw_lengths(figure: Figure, narrow: bool, lengths: Mapping[str, list[int]], max_length: int | None) -> None:
    longest = max(lengths["Prompt and answer"])
    limit = min(longest, 2 * max_length) if max_length else longest
    line = max_length if max_length and max_length <= 2 * longest else None
    edges = [limit * n / 40 for n in range(41)]
    panels = figure.subplots(*((3, 1) if narrow else (1, 3)), sharex=True, sharey=True)
    for axes, (title, values) in zip(panels, lengths.items(), strict=True):
        axes.hist([min(value, limit) for value in values], edges, color=FIRST)
        axes.set_title(title)
        if line:
            axes.axvline(line, color=SECOND, linestyle="--", label=f"max_length, {line:,} tokens")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _label_axes(axes, "tokens", "rows" if narrow or title == "Prompt" else "")
    if line:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left")


def _label_axes(axes: Axes, x: str, y: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")
