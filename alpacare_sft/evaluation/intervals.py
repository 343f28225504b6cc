"""Means with intervals that are paired by row, and what a difference says in words. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

_SEED = 20240101
_BATCH = 1000  # resamples at once: memory stays small with many rows
SCOPE = (
    "Intervals and p-values cover the choice of test rows. They do not cover the training seed: another training of "
    "the same recipe would give somewhat other scores. ROUGE-L and loss are the primary "
    "metrics, the rest are descriptive; no correction for multiple comparisons: at 95 %, one in twenty scores that "
    "nothing changed would differ by chance."
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

    Rows are drawn whole, so that the interval of the difference is paired. Percentile intervals, widened as a
    t interval of so few rows is. In simulations 94 to 96 % of nominal 95 % intervals held the true value, with
    100 rows as with 20, of scores like ROUGE and of losses weighted by lengths (log-normal, sigma 0.5). It was
    92 to 94 % with 100 rows where a few long rows carry the mean (sigma 0.9) or a score has a long tail, and 85
    to 92 % with 5 rows. Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; for the
    widening Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, where weighted rows count as so
    many of equal weight after Kish, "Survey Sampling", 1965; for the test, which exchanges base and adapter
    within rows, Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989.

    Args:
        scores: `adapter`, and `base` if it was scored: one score a row, in the same order, shape (n,).
        confidence: level of the intervals, in (0, 1).
        samples: resamples of the bootstrap, and exchanges of the permutation test, of which there are
            more where so few could never give a p-value that this confidence asks for.
        weights: of the rows, shape (n,), such as their tokens; equal by default.
        transform: applied to a mean, such as `numpy.exp` for perplexity.

    Returns:
        For each of `base`, `adapter` and `difference` (adapter less base): `mean`, `low`, `high` and
        `confidence`, with the difference also `p_value`, two-sided, and `test`, its name; `low`, `high` and
        `p_value` are None for a single row.
    """
    columns = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    of_rows = np.ones(len(columns["adapter"])) if weights is None else np.asarray(weights, dtype=float)
    mean = partial(_weighted_mean, transform=transform)
    statistics: dict[str, Callable[[Any], Any]] = {
        name: lambda rows, values=values: mean(values[rows], of_rows[rows])  # type: ignore[misc]
        for name, values in columns.items()
    }
    if "base" in columns:
        of_adapter, of_base = statistics["adapter"], statistics["base"]
        statistics["difference"] = lambda rows: of_adapter(rows) - of_base(rows)
    result: dict[str, dict[str, Any]] = {
        name: _interval(statistic, of_rows, confidence, samples) for name, statistic in statistics.items()
    }
    if "base" in columns:
        exchanges = max(samples, math.ceil(10 / (1 - confidence)))
        p_value = _p_value(columns["adapter"], columns["base"], of_rows, mean, exchanges)
        result["difference"] |= {"p_value": p_value, "test": "permutation test"}
    return result


def paired_shares(scores: Mapping[str, Sequence[float]], confidence: float) -> dict[str, Any]:
    """`paired_summary` of scores that are 0 or 1, such as whether an answer is empty.

    A bootstrap of rows that are all alike has no width, and none of 100 is not never. The interval of one
    share is exact and so rather too wide: nominal 95 % intervals hold the true share at least 95 % of the
    time, and up to 100 % the rarer it is. That of the difference counts one more row each as gained and as
    lost: from 40 rows on it holds 94 to 97 % of the time, and up to 100 % where a handful of rows change. The
    test is McNemar's exact one. Sources: Clopper and Pearson, "The use of confidence or fiducial limits",
    1934; Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based
    on paired data", 2012; McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", 1947.

    Args:
        scores: `adapter`, and `base` if it was scored: 0 or 1 a row, in the same order, shape (n,).
        confidence: level of the intervals, in (0, 1).
    """
    columns = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    count = len(columns["adapter"])
    result: dict[str, Any] = {}
    for name, values in columns.items():
        result[name] = exact_share(int(values.sum()), count, confidence)
    if "base" in columns:
        change = columns["adapter"] - columns["base"]
        result["difference"] = _changed_share(int((change > 0).sum()), int((change < 0).sum()), count, confidence)
    return result


def _changed_share(gained: int, lost: int, count: int, confidence: float) -> dict[str, Any]:
    more, less = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    centre = more - less
    reach = stats.norm.ppf(0.5 + confidence / 2) * np.sqrt((more + less - centre**2) / (count + 2))
    result = _estimate((gained - lost) / count, max(-1, centre - reach), min(1, centre + reach), confidence)
    p_value = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return {**result, "p_value": p_value, "test": "exact McNemar test"}


def exact_share(hits: int, count: int, confidence: float) -> dict[str, float | None]:
    """Share of rows that have something, with its exact interval; see `paired_shares` for source and coverage."""
    bounds = stats.binomtest(hits, count).proportion_ci(confidence, method="exact")
    return _estimate(hits / count, bounds.low, bounds.high, confidence)


def _estimate(mean: Any, low: Any, high: Any, confidence: float) -> dict[str, float | None]:
    return {"mean": float(mean), "low": float(low), "high": float(high), "confidence": confidence}


def _weighted_mean(values: Any, weights: Any, transform: Callable[[Any], Any] | None = None) -> Any:
    mean = (values * weights).sum(-1) / weights.sum(-1)
    return mean if transform is None else transform(mean)


def _interval(
    statistic: Callable[[Any], Any], weights: Any, confidence: float, samples: int
) -> dict[str, float | None]:
    rows = np.arange(len(weights))
    mean = float(statistic(rows))
    if len(weights) == 1:
        return {"mean": mean, "low": None, "high": None, "confidence": confidence}
    result = stats.bootstrap(
        (rows,),
        lambda drawn, axis: statistic(drawn),
        vectorized=True,
        n_resamples=samples,
        confidence_level=_widened_level(confidence, weights),
        method="percentile",
        rng=np.random.default_rng(_SEED),
        batch=_BATCH,
    ).confidence_interval
    return _estimate(mean, result.low, result.high, confidence)


def _widened_level(confidence: float, weights: Any) -> float:
    """The level of a normal interval that is as wide as the t interval of a mean with these weights."""
    num_rows = max(weights.sum() ** 2 / (weights**2).sum(), 1.5)  # of equal weight, that these amount to
    reach = stats.t.ppf(0.5 + confidence / 2, num_rows - 1) * math.sqrt(num_rows / (num_rows - 1))
    return min(1 - 2 * float(stats.norm.sf(reach)), 1 - 1e-9)


def _p_value(adapter: Any, base: Any, weights: Any, mean: Callable[[Any, Any], Any], exchanges: int) -> float | None:
    if len(weights) < 2:
        return None
    result = stats.permutation_test(
        (adapter, base),
        lambda one, other, axis: mean(one, weights) - mean(other, weights),
        permutation_type="samples",
        vectorized=True,
        n_resamples=exchanges,
        rng=np.random.default_rng(_SEED),
        batch=_BATCH,
    )
    return float(result.pvalue)


def judge_difference(difference: Mapping[str, Any], better: str | None) -> dict[str, Any]:
    """What a difference comes to; it counts as one if interval and test agree.

    Args:
        difference: as `paired_summary` returns it.
        better: `lower`, `higher`, or None where neither is.

    Returns:
        `shown`, whether there is one; `side`, `lower` or `higher` than the base's, None where none was shown;
        `verdict`, the same in words.
    """
    low, high, p_value, confidence = (difference[key] for key in ("low", "high", "p_value", "confidence"))
    if low is None:
        return {"shown": False, "side": None, "verdict": "one row, no interval"}
    if low <= 0 <= high:
        return {"shown": False, "side": None, "verdict": "no clear difference (the interval includes 0)"}
    if p_value > 1 - confidence:
        verdict = f"no clear difference ({difference['test']}, p = {p_value:.2g})"
        return {"shown": False, "side": None, "verdict": verdict}
    side = "lower" if high < 0 else "higher"
    judged = "" if better is None else " (better)" if side == better else " (worse)"
    verdict = f"{side} than the base's{judged}, beyond the {100 * confidence:g}% interval"
    return {"shown": True, "side": side, "verdict": verdict}


def format_interval(part: Mapping[str, Any], form: str) -> str:
    """`mean [low, high]`, each in a format such as `+.3f`; the mean alone without an interval, a dash for no mean."""
    mean, low, high = part["mean"], part["low"], part["high"]
    if mean is None:
        return "–"
    return f"{mean:{form}}" if low is None or high is None else f"{mean:{form}} [{low:{form}}, {high:{form}}]"
