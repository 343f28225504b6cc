"""Predictions and scores in the shape that an evaluation writes, made up without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NOTICE = "For research and education only. It can be wrong. Ask a clinician."
HOSTILE = "</div><script>document.title='ran'</script><img src=https://example.com/x onerror=\"document.title='ran'\">"
REFERENCE = "The radius and the ulna are the bones of the forearm; the radius is on the side of the thumb."
WORDS = [
    "A",
    "forearm",
    "has",
    "the",
    "bones",
    "of",
    "an",
    "arm",
    "and",
    "no",
    "thumb",
    "is",
    "on",
    "the",
    "radius",
    "side",
    "of",
    "ulna",
]
ADDED = ["the", "radius", "and", "the", "ulna", "are", "the", "bones", "of", "the", "forearm"]
LABELS = {"loss": ("lower", "loss on the references, nats a token"), "rougeL": ("higher", "longest common sequence")}


def made_up_predictions(count: int, *, baseline: bool = True) -> list[dict[str, Any]]:
    """Row `i` has its own question; row 1 is a near-duplicate, row 2 was cut, row 3 is hostile, row 4 is empty."""
    rows = []
    for i in range(count):
        answers = {
            "base": " ".join(WORDS[(i + k) % len(WORDS)] for k in range(3 + i % 9)),
            "adapter": " ".join(ADDED[: i % 11]) + f" as number {i} says.",
        }
        answers["adapter"] = {3: f"One {HOSTILE} two", 4: ""}.get(i, answers["adapter"])
        shown = answers if baseline else {"adapter": answers["adapter"]}
        row: dict[str, Any] = {
            "id": i,
            "prompt": {"instruction": f"Question {i}?", "input": "" if i % 3 else "  A\nlist"},
        }
        row |= {"reference": REFERENCE, "reference_tokens": 24, **shown}
        row["display"] = {who: f"{text}\n\n{NOTICE}" for who, text in shown.items()}
        row["scores"] = {"rougeL": {"base": (i * 7 % 10) / 20, "adapter": (i * 3 % 10) / 15}}
        row["scores"]["loss"] = {"base": 2.3 + i % 5 / 10, "adapter": 2.0 + i % 7 / 10}
        row["scores"] = {m: {who: v[who] for who in shown} for m, v in row["scores"].items()}
        for who, text in shown.items():
            row |= {f"{who}_end": "length" if i == 2 else "end_token", f"{who}_tokens": len(text.split())}
        rows.append(row)
    for row in rows[1:2]:
        row["near_duplicate_of"] = {"id": 77, "split": "train", "similarity": 0.83}
    return rows


def made_up_scores(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals of made-up width, and every other key of `scores.json`."""
    metrics = {name: _summary(predictions, name) for name in LABELS if predictions}
    return {
        "n": len(predictions),
        "source": "test rows",
        "unseen": "None of the test questions stands in the run's training rows.",
        "limit": None,
        "complete": True,
        "metrics": metrics,
        "verdict": "The adapter's loss is lower than the base's, beyond the interval.",
        "intervals": "Intervals cover the choice of test rows, not the training seed.",
        "near_duplicates": {"threshold": 0.7, "rows": 1, "without": {"n": len(predictions) - 1, "metrics": metrics}},
        "model": {
            "name": "/home/somebody/models/tiny",
            "revision": None,
            "adapter": "adapter",
            "adapter_sha256": "a" * 64,
            "precision": "float32",
            "merged": True,
            "merge_check": {"positions": 120, "same_token_share": 0.9917, "largest_logit_difference": 0.002},
        },
        "generate": {"max_new_tokens": 96, "do_sample": False},
        "seed": 42,
        "seconds": {"base": 12.3, "adapter": 11.1},
        "versions": {"torch": "2.13.0"},
        "recipe_sha256": "b" * 64,
        "data_sha256": {"test": "c" * 64},
        "hardware": {"device": "cpu", "cores": 2, "python": "3.11.9"},
        "notice": NOTICE,
    }


def _summary(predictions: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    better, label = LABELS[metric]
    summary: dict[str, Any] = {"n": len(predictions), "better": better, "label": label, "main": True}
    for who in predictions[0]["scores"][metric]:
        mean = sum(row["scores"][metric][who] for row in predictions) / len(predictions)
        summary[who] = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "confidence": 0.95}
    if "base" in summary:
        mean = summary["adapter"]["mean"] - summary["base"]["mean"]
        interval = {"mean": mean, "low": mean - 0.04, "high": mean + 0.04, "confidence": 0.95, "p_value": 0.0004}
        summary |= {"difference": interval | {"test": "permutation test"}, "shown": True, "side": "lower"}
        summary["verdict"] = "lower than the base's, beyond the interval"
    return summary
