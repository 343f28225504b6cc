"""Intervals: paired by row, of the coverage that they state, and a verdict that follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from alpacare_sft.intervals import paired_shares, paired_summary, verdict

Draw = Callable[[np.random.Generator, int], Any]


def test_the_difference_is_paired_by_row() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=100)
    adapter = base + 0.1 + rng.normal(scale=0.01, size=100)
    summary = paired_summary({"base": list(base), "adapter": list(adapter)}, 0.95, 2000)
    low, high = summary["difference"]["low"], summary["difference"]["high"]
    assert 0.09 < low < 0.1 < high < 0.11
    assert summary["base"]["high"] - summary["base"]["low"] > 10 * (high - low)


def test_means_are_plain_means_or_weighted_ones() -> None:
    scores = {"base": [1.0, 2.0, 6.0], "adapter": [1.0, 1.0, 1.0]}
    assert paired_summary(scores, 0.95, 100)["base"]["mean"] == pytest.approx(3.0)
    assert paired_summary(scores, 0.95, 100)["difference"]["mean"] == pytest.approx(-2.0)
    assert paired_summary(scores, 0.95, 100, weights=[2, 1, 1])["base"]["mean"] == pytest.approx(2.5)
    powers = paired_summary(scores, 0.95, 100, transform=np.exp)
    assert powers["difference"]["mean"] == pytest.approx(np.exp(1) - np.exp(3))


def test_p_value_is_that_of_every_exchange_where_rows_are_few() -> None:
    summary = paired_summary({"base": [0.0] * 5, "adapter": [1.0, 2.0, 3.0, 4.0, 5.0]}, 0.95, 1000)
    assert summary["difference"]["p_value"] == pytest.approx(2 / 2**5)


def test_the_same_numbers_at_each_call() -> None:
    scores = {"base": list(np.linspace(0, 1, 40)), "adapter": list(np.linspace(1, 0, 40) ** 2)}
    assert paired_summary(scores, 0.9, 500) == paired_summary(scores, 0.9, 500)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.25]])
def test_degenerate_rows_make_no_warning_and_no_claim(values: list[float]) -> None:
    summary = paired_summary({"base": values, "adapter": values}, 0.95, 100)
    assert summary["difference"]["mean"] == 0
    told = verdict(summary["difference"], "higher")
    assert told == ("one row, no interval" if len(values) == 1 else "not distinguishable from no difference")


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (-0.2, 0.1, "higher", "not distinguishable from no difference"),
        (0.0, 0.1, "higher", "not distinguishable from no difference"),
        (0.1, 0.2, "higher", "higher than the base's (better), beyond the 95% interval"),
        (0.1, 0.2, "lower", "higher than the base's (worse), beyond the 95% interval"),
        (-0.2, -0.1, "lower", "lower than the base's (better), beyond the 95% interval"),
        (-0.2, -0.1, None, "lower than the base's, beyond the 95% interval"),
    ],
)
def test_verdict_follows_from_the_interval(low: float, high: float, better: str | None, expected: str) -> None:
    assert verdict({"low": low, "high": high, "confidence": 0.95, "p_value": 0.01}, better) == expected


def test_three_rows_that_agree_are_no_evidence() -> None:
    summary = paired_summary({"base": [0.1, 0.2, 0.3], "adapter": [0.4, 0.6, 0.8]}, 0.95, 1000)["difference"]
    assert summary["low"] > 0
    assert verdict(summary, "higher") == "not shown: by the permutation test chance does as much (p = 0.25)"


POPULATIONS: dict[str, tuple[Draw, Draw, float]] = {  # base, adapter, true difference
    "ROUGE": (lambda r, n: r.beta(2, 9, n), lambda r, n: r.beta(2, 6, n), 2 / 8 - 2 / 11),
    "loss": (lambda r, n: r.gamma(20, 0.12, n), lambda r, n: r.gamma(18, 0.12, n), -0.24),
    "share": (lambda r, n: (r.random(n) < 0.3) * 1.0, lambda r, n: (r.random(n) < 0.1) * 1.0, -0.2),
    "no difference": (lambda r, n: r.beta(2, 9, n), lambda r, n: r.beta(2, 9, n), 0.0),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_95_percent_intervals_hold_the_truth_93_to_97_times_of_100(name: str) -> None:
    draw_base, draw_adapter, truth = POPULATIONS[name]
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        row_effect = rng.normal(scale=0.05, size=100)  # what makes rows alike in base and adapter
        scores = {"base": draw_base(rng, 100) + row_effect, "adapter": draw_adapter(rng, 100) + row_effect}
        found = _difference_only(scores)
        held += found["low"] <= truth <= found["high"]
    assert 930 <= held <= 970


def _difference_only(scores: dict[str, Any]) -> dict[str, Any]:
    """The interval of the difference, drawn as `paired_summary` draws it, without the two others and the p-value."""
    return paired_summary({"adapter": scores["adapter"] - scores["base"]}, 0.95, 1000)["adapter"]


def test_none_of_100_is_not_never() -> None:
    summary = paired_shares({"base": [0.0] * 100, "adapter": [0.0] * 100}, 0.95, 100)
    assert summary["adapter"]["mean"] == summary["difference"]["mean"] == 0
    assert summary["adapter"]["high"] == pytest.approx(0.0362, abs=1e-4)  # 1 - 0.025 ** (1 / 100)
    assert summary["difference"]["low"] < -0.01 < 0.01 < summary["difference"]["high"]
    assert verdict(summary["difference"], "lower") == "not distinguishable from no difference"


def test_intervals_of_shares_hold_the_truth_at_least_93_times_of_100() -> None:
    rng = np.random.default_rng(5)
    held = {"adapter": 0, "difference": 0}
    for _ in range(500):
        scores = {"base": (rng.random(100) < 0.06) * 1.0, "adapter": (rng.random(100) < 0.03) * 1.0}
        found = paired_shares(scores, 0.95, 1)
        for name, truth in (("adapter", 0.03), ("difference", -0.03)):
            held[name] += found[name]["low"] <= truth <= found[name]["high"]
    assert min(held.values()) >= 465


@pytest.mark.parametrize("name", ["loss", "share"])
def test_the_difference_has_the_interval_of_the_paired_differences(name: str) -> None:
    draw_base, draw_adapter, _ = POPULATIONS[name]
    rng = np.random.default_rng(6)
    scores = {"base": draw_base(rng, 50), "adapter": draw_adapter(rng, 50)}
    whole = paired_summary(scores, 0.95, 1000)["difference"]
    assert {key: whole[key] for key in ("mean", "low", "high")} == pytest.approx(
        {key: _difference_only(scores)[key] for key in ("mean", "low", "high")}
    )


def test_under_no_difference_small_p_values_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng(7)
    draws = [{"base": rng.beta(2, 9, 30), "adapter": rng.beta(2, 9, 30)} for _ in range(300)]
    small = sum(paired_summary(scores, 0.95, 200)["difference"]["p_value"] < 0.05 for scores in draws)
    assert 5 <= small <= 27
