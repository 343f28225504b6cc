"""Scores of answers, and intervals that are paired by row. Pure numbers, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SEED = 20240101


def rouge_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F-measures of each row by `rouge_score`, Porter stemmer on, its own tokenizer (ASCII letters and digits).

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    rows = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {kind: [row[kind].fmeasure for row in rows] for kind in ROUGE_TYPES}


def paired_summary(
    base: Sequence[float],
    adapter: Sequence[float],
    confidence: float,
    samples: int,
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Weighted means of base, adapter and their difference, each with a bootstrap interval.

    Rows are drawn together, so the interval of the difference is paired. Source: Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, percentile intervals.

    Args:
        base: one score a row, shape (n,).
        adapter: the same rows, shape (n,).
        confidence: level of the intervals, in (0, 1).
        samples: bootstrap resamples.
        weights: of each row, shape (n,); equal if None.

    Returns:
        For each of `base`, `adapter` and `difference`: `mean`, `low`, `high` and `confidence`.
    """
    weight = np.ones(len(base)) if weights is None else np.asarray(weights, dtype=float)
    columns = {
        "base": np.asarray(base, dtype=float),
        "adapter": np.asarray(adapter, dtype=float),
        "difference": np.asarray(adapter, dtype=float) - np.asarray(base, dtype=float),
    }
    return {name: _interval(values, weight, confidence, samples) for name, values in columns.items()}


def _weighted_mean(values: Any, weight: Any, axis: int = -1) -> Any:
    return (values * weight).sum(axis) / weight.sum(axis)


def _interval(values: Any, weight: Any, confidence: float, samples: int) -> dict[str, Any]:
    mean = float(_weighted_mean(values, weight))
    low = high = mean
    if len(values) > 1 and np.ptp(values) > 0:
        found = stats.bootstrap(
            (values, weight),
            _weighted_mean,
            paired=True,
            vectorized=True,
            n_resamples=samples,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(_SEED),
            batch=1000,
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return {"mean": mean, "low": low, "high": high, "confidence": confidence}
