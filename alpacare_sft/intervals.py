"""Means with intervals that are paired by row, and what a difference says in words. Pure numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

_SEED = 20240101
_BATCH = 1000  # resamples at once: memory stays small with many rows
SCOPE = (
    "Intervals and p-values cover the choice of test rows. They do not cover the training seed: "
    "another training of the same recipe would give somewhat other scores."
)


def paired_summary(
    scores: Mapping[str, Sequence[float]],
    confidence: float,
    samples: int,
    *,
    weights: Sequence[float] | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """Means of base, adapter and their difference, each with a bootstrap interval over the rows.

    Rows are drawn whole, so that the interval of the difference is paired. Percentile intervals: in
    simulations with 100 rows of scores like ROUGE, loss and shares, 94 to 96 % of nominal 95 % intervals
    held the true mean (`tests/test_intervals.py`). Sources: Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993; for the test, which exchanges base and adapter within rows, Noreen,
    "Computer-Intensive Methods for Testing Hypotheses", 1989.

    Args:
        scores: `adapter`, and `base` if it was scored: one score a row, in the same order, shape (n,).
        confidence: level of the intervals, in (0, 1).
        samples: resamples of the bootstrap, and exchanges of the permutation test.
        weights: of the rows, shape (n,), such as their tokens; equal by default.
        transform: applied to a mean, such as `numpy.exp` for perplexity.

    Returns:
        For each of `base`, `adapter` and `difference` (adapter less base): `mean`, `low`, `high` and
        `confidence`, with the difference also `p_value`, two-sided; `low`, `high` and `p_value` are
        None for a single row.
    """
    columns = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    share = np.ones(len(columns["adapter"])) if weights is None else np.asarray(weights, dtype=float)
    mean = partial(_weighted_mean, transform=transform)
    statistics: dict[str, Callable[[Any], Any]] = {
        name: lambda rows, values=values: mean(values[rows], share[rows])  # type: ignore[misc]
        for name, values in columns.items()
    }
    if "base" in columns:
        of_adapter, of_base = statistics["adapter"], statistics["base"]
        statistics["difference"] = lambda rows: of_adapter(rows) - of_base(rows)
    found = {name: _interval(statistic, len(share), confidence, samples) for name, statistic in statistics.items()}
    if "base" in columns:
        found["difference"]["p_value"] = _p_value(columns["adapter"], columns["base"], share, mean, samples)
    return found


def paired_shares(scores: Mapping[str, Sequence[float]], confidence: float, samples: int) -> dict[str, Any]:
    """`paired_summary` of scores that are 0 or 1, such as whether an answer is empty.

    A bootstrap of rows that are all alike has no width, and none of 100 is not never. Intervals of one
    share are exact; that of the difference adds half a row to each of the four kinds of pairs. Sources:
    Clopper and Pearson, "The use of confidence or fiducial limits", 1934; Agresti and Min, "Simple
    improved confidence intervals for comparing matched proportions", 2005.

    Args:
        scores: `adapter`, and `base` if it was scored: 0 or 1 a row, in the same order, shape (n,).
        confidence: level of the intervals, in (0, 1).
        samples: exchanges of the permutation test.
    """
    columns = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    count = len(columns["adapter"])
    found: dict[str, Any] = {}
    for name, values in columns.items():
        found[name] = exact_share(int(values.sum()), count, confidence)
    if "base" in columns:
        change = columns["adapter"] - columns["base"]
        gained, lost = (change > 0).sum() + 0.5, (change < 0).sum() + 0.5
        centre = (gained - lost) / (count + 2)
        error = np.sqrt(gained + lost - (gained - lost) ** 2 / (count + 2)) / (count + 2)
        reach = stats.norm.ppf(0.5 + confidence / 2) * error
        found["difference"] = _told(change.mean(), max(-1, centre - reach), min(1, centre + reach), confidence)
        even = np.ones(count)
        found["difference"]["p_value"] = _p_value(columns["adapter"], columns["base"], even, _weighted_mean, samples)
    return found


def exact_share(hits: int, count: int, confidence: float) -> dict[str, float | None]:
    """Share of rows that have something, with its exact interval; see `paired_shares` for the source."""
    bounds = stats.binomtest(hits, count).proportion_ci(confidence, method="exact")
    return _told(hits / count, bounds.low, bounds.high, confidence)


def format_interval(part: Mapping[str, Any], form: str) -> str:
    """`mean [low, high]`, each in a format such as `+.3f`; the mean alone where there is no interval."""
    mean = f"{part['mean']:{form}}"
    return mean if part["low"] is None else f"{mean} [{part['low']:{form}}, {part['high']:{form}}]"


def _told(mean: Any, low: Any, high: Any, confidence: float) -> dict[str, float | None]:
    return {"mean": float(mean), "low": float(low), "high": float(high), "confidence": confidence}


def _weighted_mean(values: Any, share: Any, transform: Callable[[Any], Any] | None = None) -> Any:
    mean = (values * share).sum(-1) / share.sum(-1)
    return mean if transform is None else transform(mean)


def _interval(
    statistic: Callable[[Any], Any], num_rows: int, confidence: float, samples: int
) -> dict[str, float | None]:
    rows = np.arange(num_rows)
    mean = float(statistic(rows))
    if num_rows == 1:
        return {"mean": mean, "low": None, "high": None, "confidence": confidence}
    found = stats.bootstrap(
        (rows,),
        lambda drawn, axis: statistic(drawn),
        vectorized=True,
        n_resamples=samples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(_SEED),
        batch=_BATCH,
    ).confidence_interval
    return _told(mean, found.low, found.high, confidence)


def _p_value(adapter: Any, base: Any, share: Any, mean: Callable[[Any, Any], Any], samples: int) -> float | None:
    if len(share) < 2:
        return None
    found = stats.permutation_test(
        (adapter, base),
        lambda one, other, axis: mean(one, share) - mean(other, share),
        permutation_type="samples",
        vectorized=True,
        n_resamples=samples,
        rng=np.random.default_rng(_SEED),
        batch=_BATCH,
    )
    return float(found.pvalue)


def verdict(difference: Mapping[str, Any], better: str | None) -> str:
    """A difference in words; it counts as one if the interval and the test agree.

    Bootstrap intervals of few rows are too narrow: three rows that agree are no evidence, and the test says so.

    Args:
        difference: as `paired_summary` returns it.
        better: `lower`, `higher`, or None where neither is.
    """
    low, high = difference["low"], difference["high"]
    if low is None:
        return "one row, no interval"
    if low <= 0 <= high:
        return "not distinguishable from no difference"
    if difference["p_value"] is None or difference["p_value"] > 1 - difference["confidence"]:
        told = "" if difference["p_value"] is None else f" (p = {difference['p_value']:.2f})"
        return f"not shown: by the permutation test chance does as much{told}"
    side = "lower" if high < 0 else "higher"
    judged = "" if better is None else " (better)" if side == better else " (worse)"
    return f"{side} than the base's{judged}, beyond the {difference['confidence']:.0%} interval"
