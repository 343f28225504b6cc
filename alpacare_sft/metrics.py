"""Scores of answers, and intervals that are paired by row. Pure numbers, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def paired_summary(scores: Mapping[str, Sequence[float]], confidence: float, samples: int) -> dict[str, Any]:
    """Means of base, adapter and their difference, each with a bootstrap interval over the rows.

    Rows are drawn together, so the interval of the difference is paired. Source: Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, percentile intervals.

    Args:
        scores: `adapter`, and `base` if it was scored: one score a row, in the same order, shape (n,).
        confidence: level of the intervals, in (0, 1).
        samples: bootstrap resamples.

    Returns:
        For each of `base`, `adapter` and `difference`: `mean`, `low`, `high` and `confidence`.
    """
    columns = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    if "base" in columns:
        columns["difference"] = columns["adapter"] - columns["base"]
    return {name: _interval(values, confidence, samples) for name, values in columns.items()}


def _interval(values: Any, confidence: float, samples: int) -> dict[str, Any]:
    mean = float(values.mean())
    low = high = mean
    if len(values) > 1 and np.ptp(values) > 0:
        found = stats.bootstrap(
            (values,),
            np.mean,
            vectorized=True,
            n_resamples=samples,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(_SEED),
            batch=1000,
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return {"mean": mean, "low": low, "high": high, "confidence": confidence}
