"""Pictures for the pages: SVG that follows the reader's light or dark scheme.

Each is drawn once for a desk and once for a phone; its colours are CSS variables of `base.html`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


def picture(name: str, label: str, draw: Draw, heights: tuple[int, int]) -> Markup:
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
    # What matplotlib drew; it escapes the text in it.
    return Markup(f'<svg class="{kind}" viewBox="0 0 {size[0]} {size[1]}">{text}')  # nosec B704


def is_finite(value: Any) -> bool:
    """Whether a record holds a number there that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def points(history: Sequence[Numbers], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the entries that have a finite number there."""
    points = [(e["step"], e[key]) for e in history if e.get(key) is not None and "step" in e]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in points], [value for _, value in points]


def draw_losses(figure: Figure, narrow: bool, history: Sequence[Numbers], best: tuple[int, float] | None) -> None:
    """Training and validation loss by step, the best step marked."""
    axes = figure.subplots()
    steps, losses = points(history, "loss")
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, losses, color=FIRST, linewidth=1, marker=marker, label="training, as logged")
    width = len(losses) // 10
    if width > 1:
        means = [sum(losses[i - width : i]) / width for i in range(width, len(losses) + 1)]
        middle = steps[width // 2 :][: len(means)]
        axes.plot(middle, means, color=FIRST, linewidth=2.5, label=f"training, mean of {width}")
    steps, losses = points(history, "eval_loss")
    if steps:
        axes.plot(steps, losses, color=SECOND, linewidth=2, marker="o", markersize=4, label="validation")
    if best:
        label = f"best: {best[1]:.4f} at step {best[0]:,}"
        axes.plot(*best, color=INK, marker="D", markersize=9, fillstyle="none", linestyle="", label=label)
    _label_axes(axes, "optimizer step", "loss")
    figure.legend(loc="outside upper left", ncols=1 if narrow else 4)


def draw_rates(figure: Figure, narrow: bool, history: Sequence[Numbers]) -> None:
    """Learning rate and gradient norm by step, one panel each."""
    panels = {"learning rate": "learning_rate", "gradient norm": "grad_norm"}
    panels = {title: key for title, key in panels.items() if points(history, key)[0]}
    grid = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, key) in zip(grid, panels.items(), strict=True):
        steps, values = points(history, key)
        axes.plot(steps, values, color=FIRST, linewidth=1.5, marker="o" if len(steps) == 1 else "")
        axes.set_title(title)
        axes.set_ylim(bottom=0)
        _label_axes(axes, "optimizer step" if title == list(panels)[-1] else "")
        axes.yaxis.set_major_formatter("{x:.1e}" if key == "learning_rate" else "{x:g}")


def draw_funnel(figure: Figure, narrow: bool, funnel: Sequence[Numbers]) -> None:
    """A bar a step: rows left, rows dropped dotted, and the splits at the end."""
    axes = figure.subplots()
    for y, bar in enumerate(funnel):
        colour = SECOND if bar.get("is_split") else FIRST
        if bar["rows"]:  # the edge keeps a split of a few rows in sight
            axes.barh(y, bar["rows"], 0.32, bar["start"], color=colour, edgecolor=colour)
        if bar["dropped"]:
            axes.barh(y, bar["dropped"], 0.32, bar["rows"], color="none", edgecolor=INK, linestyle=":")
        parts = [f"{bar['rows']:,}"]
        parts += [f"{bar['dropped']:,} dropped"] if bar["dropped"] else []
        parts += [f"{bar['changed']:,} changed"] if bar["changed"] else []
        axes.annotate(bar["label"], (0, y), (0, 9), ("axes fraction", "data"), textcoords="offset points")
        place = (1, y), (0, 9), ("axes fraction", "data")
        axes.annotate(" · ".join(parts), *place, textcoords="offset points", horizontalalignment="right")
    axes.set_xlim(0, max(1, max(bar["start"] + bar["rows"] + bar["dropped"] for bar in funnel)))
    axes.set_ylim(len(funnel) - 0.5, -0.8)
    axes.set_axis_off()


def draw_lengths(figure: Figure, narrow: bool, lengths: Mapping[str, list[int]], max_length: int | None) -> None:
    """Histograms of prompt, answer and both, with the limit as a line."""
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


def draw_differences(figure: Figure, narrow: bool, panels: Sequence[Numbers]) -> None:
    """Differences row by row in rising order, one panel a score, with their mean and its interval.

    Each panel has `title`, `values` (sorted, not empty) and `summary`, which may have `mean`, `low` and `high`.
    """
    grid = figure.subplots(*((len(panels), 1) if narrow else (1, len(panels))), squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=True):
        values, summary = panel["values"], panel["summary"]
        edges = [row + 0.5 for row in range(len(values) + 1)]
        axes.stairs(values, edges, fill=True, color=FIRST, alpha=0.6, label="test rows")
        axes.axhline(0, color=INK, linewidth=1)
        mean, low, high = (summary.get(key) for key in ("mean", "low", "high"))
        if is_finite(low) and is_finite(high):
            axes.axhspan(low, high, color=SECOND, alpha=0.3, linewidth=0, label="interval of the mean")
        if is_finite(mean):
            axes.axhline(mean, color=SECOND, linewidth=1.5, linestyle="--", label="mean")
        axes.set_title(panel["title"])
        axes.set_xlim(0, len(values) + 1)
        _label_axes(axes, "test rows, by rising difference", "adapter − base" if narrow or axes is grid[0] else "")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=1 if narrow else 3)


def draw_primary(figure: Figure, narrow: bool, metrics: Sequence[Numbers]) -> None:
    """For each primary metric base, adapter and their difference, each a mean with its interval.

    Each metric has `title`, and `base`, `adapter` and `difference` with `mean`, `low` and `high`.
    """
    grid = figure.subplots(*((2 * len(metrics), 1) if narrow else (len(metrics), 2)), squeeze=False).ravel()
    for place, metric in enumerate(metrics):
        sides, change = grid[2 * place : 2 * place + 2]
        for height, (name, colour) in enumerate((("adapter", SECOND), ("base", FIRST))):
            _interval(sides, metric[name], height, colour)
        sides.set_yticks([0, 1], ["adapter", "base"])
        sides.set_title(metric["title"])
        change.axvline(0, color=INK, linewidth=1)
        _interval(change, metric["difference"], 0, INK)
        change.set_yticks([0], ["adapter − base"])
        for axes, room in ((sides, 1.6), (change, 0.8)):
            axes.set_ylim(-0.6, room)
            axes.grid(axis="x", color=LINE)
            axes.grid(visible=False, axis="y")


def _interval(axes: Axes, part: Numbers, height: float, colour: str) -> None:
    axes.plot([part["low"], part["high"]], [height, height], color=colour, linewidth=2)
    axes.plot([part["mean"]], [height], color=colour, marker="o", markersize=7)


def _label_axes(axes: Axes, x: str, y: str = "") -> None:
    """Labels, and whole numbers with thousands set apart on the axis below."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")
