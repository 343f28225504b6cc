"""The page of an evaluation: scores with their uncertainty, and the answers of base and adapter side by side.

Wording and looks are in `templates/evaluation.html`; here are the choice of rows and the comparison of words.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.text import word_spans
from alpacare_sft.reporting.figures import Numbers, draw_differences, draw_primary, is_finite, picture
from alpacare_sft.reporting.pages import drop_place, render
from alpacare_sft.run.directory import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

Part = tuple[str, str]

ROWS_IN_FULL = 200
"""Up to so many test rows the page holds all of them; of more, those of its groups."""

CHOSEN = 10
MARKED = 50
WORDS_COMPARED = 2000
CUT = {"length", "run_on"}
SIDES = ("base", "adapter")
OWN_ADAPTER = "adapter"
REPEATED = {
    "generate": ("max_new_tokens", "batch_size", "do_sample", "temperature", "top_p"),
    "evaluate": ("metrics", "baseline", "confidence", "bootstrap_samples"),
}
PANELS = {"rougeL": "ROUGE-L, higher is closer", "loss": "loss, lower is closer"}
MERGE_CHECK = {
    "positions": "Positions compared",
    "same_token_share": "Positions with the same likeliest token",
    "largest_logit_difference": "Largest logit difference",
    "lost_share": "Lost of the adapter's change of the logits",
}
GROUPS = {
    "best": "best",
    "worst": "worst",
    "changed": "most changed",
    "near": "near-duplicates",
    "cut": "cut answers",
}


def save_evaluation_report(
    path: Path, scores: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], *, notice: str
) -> None:
    """Write the page of an evaluation as one HTML file that loads nothing.

    Args:
        path: the HTML file, replaced if it exists.
        scores: what `scores.json` holds; a section whose key is missing is left out.
        predictions: the objects of `predictions.jsonl`, in its order. Texts of `base` are absent without
            a baseline.
        notice: shown once with each answer, apart from the text that was scored.
    """
    whole = len(predictions) <= ROWS_IN_FULL
    groups = _choose_groups(predictions, len(predictions) if whole else MARKED)
    in_groups = {i: [name for name, rows in groups.items() if i in rows] for i in _order(predictions)}
    context = {
        "rows": [_compare(predictions[i], names) for i, names in in_groups.items() if whole or names],
        "groups": {name: label for name, label in GROUPS.items() if groups[name]},
        "num_predictions": len(predictions),
        "has_baseline": any("base" in part for part in [*(scores.get("metrics") or {}).values(), *predictions]),
        "pictures": _pictures(scores, predictions),
        "settings": {key: _facts(scores.get(key)) for key in ("generate", "evaluate", "seconds", "versions")},
        "merge_check": _merge_facts((scores.get("model") or {}).get("merge_check") or {}),
        "command": _command(scores),
    }
    write_text(path, render("evaluation.html", scores=scores, notice=notice, chosen=CHOSEN, marked=MARKED, **context))


def _choose_groups(predictions: Sequence[Mapping[str, Any]], marked: int) -> dict[str, list[int]]:
    """Indices of the rows of each group, the most telling first; at most `marked` near-duplicates and cut answers."""
    rising = _rising(predictions, _rouge_change)
    both = any("base" in row for row in predictions)
    worst = [i for i in rising if not both or _rouge_change(predictions[i]) < 0]
    best = [i for i in rising[::-1] if not both or _rouge_change(predictions[i]) > 0]
    limit = CHOSEN if both else min(CHOSEN, len(rising) // 2)  # without a base every row is both
    return {
        "best": best[:limit],
        "worst": worst[:limit],
        "changed": [i for i in _rising(predictions, _word_overlap) if _word_overlap(predictions[i]) < 1][:CHOSEN],
        "near": [i for i, row in enumerate(predictions) if row.get("near_duplicate_of")][:marked],
        "cut": [i for i, row in enumerate(predictions) if {row.get(f"{who}_end") for who in SIDES} & CUT][:marked],
    }


def _rising(predictions: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], float]) -> list[int]:
    """Indices by rising key, those without a number left out."""
    values = {i: key(row) for i, row in enumerate(predictions)}
    return sorted((i for i, value in values.items() if math.isfinite(value)), key=values.__getitem__)


def _order(predictions: Sequence[Mapping[str, Any]]) -> list[int]:
    """Every index of a row with an answer: the most gained first, those without a number last."""
    gained = _rising(predictions, _rouge_change)[::-1]
    answered = {i for i, row in enumerate(predictions) if any(who in row for who in SIDES)}
    return [*gained, *sorted(answered - set(gained))]


def _difference(row: Mapping[str, Any], metric: str) -> float:
    """Adapter − base; not a number where either is missing."""
    values = (row.get("scores") or {}).get(metric) or {}
    adapter, base = (values.get(who) for who in SIDES[::-1])
    return math.nan if adapter is None or base is None else float(adapter - base)


def _rouge_change(row: Mapping[str, Any]) -> float:
    """The row's change in ROUGE-L, or without a base its ROUGE-L."""
    value = ((row.get("scores") or {}).get("rougeL") or {}).get("adapter")
    return _difference(row, "rougeL") if "base" in row else math.nan if value is None else float(value)


def _word_overlap(row: Mapping[str, Any]) -> float:
    """Share of words, counted as often as they stand, that the answers of base and adapter have in common."""
    if "base" not in row or "adapter" not in row:
        return math.nan
    base, adapter = (Counter(_words(row[who])) for who in SIDES)
    total = base.total() + adapter.total()
    return 2 * (base & adapter).total() / total if total else 1.0


def _words(text: str) -> list[str]:
    return [text[start:end].casefold() for start, end in word_spans(text)]


def _compare(row: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """What the template shows of one row; texts in parts as `compare_words` returns them."""
    reference, parts = compare_words(row.get("reference") or "", {who: row[who] for who in SIDES if who in row})
    answers = [
        {
            "who": who,
            "parts": cut,
            "end": row.get(f"{who}_end"),
            "tokens": row.get(f"{who}_tokens"),
            "scores": {name: values.get(who) for name, values in (row.get("scores") or {}).items()},
        }
        for who, cut in parts.items()
    ]
    changes = {metric: change for metric in PANELS if math.isfinite(change := _difference(row, metric))}
    return {"row": row, "groups": groups, "reference": reference, "answers": answers, "changes": changes}


def compare_words(reference: str, answers: Mapping[str, str]) -> tuple[list[Part], dict[str, list[Part]]]:
    """Cut a reference and its answers where words begin or cease to be shared, in the same order.

    Words are compared in lower case and without punctuation, by `difflib.SequenceMatcher`. Past
    `WORDS_COMPARED` words nothing is marked.

    Returns:
        The reference and each answer in parts that join to the text, each with what its words are: in answers
        `shared` by the reference and every answer, or `only` by the reference and this one; in the reference
        `missed` by every answer; elsewhere empty.
    """
    words = _words(reference)[:WORDS_COMPARED]
    pairs = {who: _match_words(words, _words(text)[:WORDS_COMPARED]) for who, text in answers.items()}
    times = Counter(place for found in pairs.values() for place in found.values())
    missed = {place: "missed" for place in range(len(words)) if answers and not times[place]}
    kinds = {
        who: {mine: "shared" if times[place] == len(answers) else "only" for mine, place in found.items()}
        for who, found in pairs.items()
    }
    return _cut(reference, missed), {who: _cut(text, kinds[who]) for who, text in answers.items()}


def _match_words(reference: list[str], answer: list[str]) -> dict[int, int]:
    """Places in the answer, with the place in the reference of the same word."""
    blocks = SequenceMatcher(None, reference, answer, autojunk=False).get_matching_blocks()
    return {block.b + i: block.a + i for block in blocks for i in range(block.size)}


def _cut(text: str, kinds: Mapping[int, str]) -> list[Part]:
    """Runs of words of one kind, by the place of each, and the text between them."""
    spans = word_spans(text)
    parts, done = [], 0
    for kind, run in groupby(range(len(spans)), key=lambda place: kinds.get(place, "")):
        if kind:
            places = list(run)
            start, end = spans[places[0]][0], spans[places[-1]][1]
            parts += [(text[done:start], ""), (text[start:end], kind)]
            done = end
    return [part for part in [*parts, (text[done:], "")] if part[0]]


def _pictures(scores: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    primary = primary_picture(scores.get("metrics") or {})
    return {**({"primary": primary} if primary else {}), **_differences_picture(scores, predictions)}


def primary_picture(metrics: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Base, adapter and difference of each primary metric; none without a baseline or an interval."""
    shown = []
    for name, part in metrics.items():
        parts = [part.get(side) or {} for side in (*SIDES, "difference")]
        bounds = [one.get(key) for one in parts for key in ("mean", "low", "high")]
        if part.get("main") and all(map(is_finite, bounds)):
            shown.append({**part, "title": PANELS.get(name, name)})
    if not shown:
        return None
    label = "Means of base and adapter and their difference, with intervals; the numbers are in the table of scores."
    height = 20 + 120 * len(shown)
    return picture("primary", label, partial(draw_primary, metrics=shown), (height, 2 * height))


def _differences_picture(scores: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    panels: list[Numbers] = []
    for metric, title in PANELS.items():
        values = sorted(value for row in predictions if math.isfinite(value := _difference(row, metric)))
        summary = ((scores.get("metrics") or {}).get(metric) or {}).get("difference") or {}
        if values:
            panels.append({"title": title, "values": values, "summary": summary})
    if not panels:
        return {}
    label = "Differences, adapter minus base, of each test row in rising order; their means are in the table of scores."
    draw = partial(draw_differences, panels=panels)
    return {"differences": picture("differences", label, draw, (320, 60 + 280 * len(panels)))}


def _flatten(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Leaves of a record with their dotted names; what is null is left out."""
    if isinstance(value, Mapping):
        return [leaf for key, part in value.items() for leaf in _flatten(part, f"{name}.{key}" if name else str(key))]
    return [] if value is None else [(name, value)]


def _facts(value: Any) -> list[tuple[str, str]]:
    """Leaves of a record as a person reads them."""
    return [(name, _text(leaf)) for name, leaf in _flatten(value)]


def _merge_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    shares = {key: f"{100 * value:.4g} %" for key, value in found.items() if key.endswith("_share")}
    return [(MERGE_CHECK.get(key, key), text) for key, text in _facts({**found, **shares})]


def _text(leaf: Any) -> str:
    if isinstance(leaf, bool):
        return "yes" if leaf else "no"
    return f"{leaf:g}" if isinstance(leaf, float) else str(leaf)


def _command(scores: Mapping[str, Any]) -> str:
    """What repeats the evaluation of the rows of a run, its settings spelled out."""
    words = ["alpacare-sft eval recipe.yaml --output_dir ."]
    words += [f"--limit {scores['limit']}"] if scores.get("limit") else []
    words += [f"--rows {shlex.quote(scores['rows_file']['name'])}"] if scores.get("rows_file") else []
    adapter = (scores.get("model") or {}).get("adapter") or OWN_ADAPTER
    words += [f"--adapter {shlex.quote(drop_place(adapter))}"] if adapter != OWN_ADAPTER else []
    words += ["--same-base"] if (scores.get("model") or {}).get("adapter_base") else []
    for section, keys in REPEATED.items():
        for key, value in _flatten({key: (scores.get(section) or {}).get(key) for key in keys}):
            words.append(f"--{section}.{key} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}")
    return " ".join(words)
