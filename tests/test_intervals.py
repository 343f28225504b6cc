"""Intervals: paired by row, of the coverage that they state, and a verdict that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from alpacare_sft.evaluation.intervals import (
    SCOPE,
    _changed_share,
    exact_share,
    format_interval,
    judge_difference,
    paired_shares,
    paired_summary,
)

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
    told = judge_difference(summary["difference"], "higher")
    words = "one row, no interval" if len(values) == 1 else "no clear difference (the interval includes 0)"
    assert told == {"shown": False, "side": None, "verdict": words}


@pytest.mark.parametrize(
    ("low", "high", "better", "side", "expected"),
    [
        (-0.2, 0.1, "higher", None, "no clear difference (the interval includes 0)"),
        (0.0, 0.1, "higher", None, "no clear difference (the interval includes 0)"),
        (0.1, 0.2, "higher", "higher", "higher than the base's (better), beyond the 95% interval"),
        (0.1, 0.2, "lower", "higher", "higher than the base's (worse), beyond the 95% interval"),
        (-0.2, -0.1, "lower", "lower", "lower than the base's (better), beyond the 95% interval"),
        (-0.2, -0.1, None, "lower", "lower than the base's, beyond the 95% interval"),
    ],
)
def test_verdict_follows_from_the_interval(
    low: float, high: float, better: str | None, side: str | None, expected: str
) -> None:
    difference = {"low": low, "high": high, "confidence": 0.95, "p_value": 0.01, "test": "permutation test"}
    shown = side is not None
    assert judge_difference(difference, better) == {"shown": shown, "side": side, "verdict": expected}


def test_three_rows_that_agree_are_no_evidence() -> None:
    summary = paired_summary({"base": [0.1, 0.2, 0.3], "adapter": [0.4, 0.6, 0.8]}, 0.95, 1000)["difference"]
    assert summary["low"] > 0
    told = {"shown": False, "side": None, "verdict": "no clear difference (permutation test, p = 0.25)"}
    assert judge_difference(summary, "higher") == told


def test_an_interval_in_words() -> None:
    assert format_interval({"mean": 1.0, "low": 0.5, "high": 1.5}, "+.1f") == "+1.0 [+0.5, +1.5]"
    assert format_interval({"mean": 1.0, "low": None, "high": None}, ".1f") == "1.0"


def test_the_main_scores_and_the_number_of_tests_are_told() -> None:
    assert "ROUGE-L and loss are the primary" in SCOPE and "one in twenty" in SCOPE


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_few_resamples_leave_a_p_value_that_can_show_a_difference(confidence: float) -> None:
    scores = {"base": [0.0] * 30, "adapter": [1.0 + n / 10 for n in range(30)]}
    difference = paired_summary(scores, confidence, 10)["difference"]
    assert difference["p_value"] < (1 - confidence) / 2
    assert judge_difference(difference, "higher")["shown"]


POPULATIONS: dict[str, tuple[Draw, float, int]] = {  # of a score or a difference, its true mean, rows
    "ROUGE": (lambda r, n: r.beta(2, 9, n), 2 / 11, 100),
    "difference of ROUGE": (lambda r, n: r.beta(2, 6, n) - r.beta(2, 9, n), 2 / 8 - 2 / 11, 100),
    "no difference": (lambda r, n: r.beta(2, 9, n) - r.beta(2, 9, n), 0.0, 100),
    "often 0": (lambda r, n: (r.random(n) < 0.4) * r.beta(2, 5, n), 0.4 * 2 / 7, 100),
    "20 rows": (lambda r, n: r.beta(2, 6, n) - r.beta(2, 9, n), 2 / 8 - 2 / 11, 20),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_95_percent_intervals_hold_the_truth_93_to_97_times_of_100(name: str) -> None:
    draw, truth, num_rows = POPULATIONS[name]
    rng = np.random.default_rng(5)
    found = [paired_summary({"adapter": draw(rng, num_rows)}, 0.95, 400)["adapter"] for _ in range(1000)]
    assert 930 <= sum(one["low"] <= truth <= one["high"] for one in found) <= 970


@pytest.mark.parametrize("transform", [None, np.exp])
def test_intervals_of_losses_weighted_by_tokens_hold_the_truth_93_to_97_times_of_100(transform: Any) -> None:
    rng = np.random.default_rng(5)
    in_long = np.exp(0.5**2 / 2 * (0.85**2 - 1))  # a long reference has a lower loss a token
    truth = np.subtract(*((transform or float)(mean * in_long) for mean in (2.2, 2.4)))
    held = 0
    for _ in range(500):
        lengths = np.maximum(1, np.round(rng.lognormal(4, 0.5, 100)))
        of_row = (lengths / np.exp(4)) ** -0.15 * rng.gamma(16, 1 / 16, 100)
        base, adapter = (mean * of_row * rng.gamma(60, 1 / 60, 100) for mean in (2.4, 2.2))
        found = paired_summary({"base": base, "adapter": adapter}, 0.95, 300, weights=lengths, transform=transform)
        held += found["difference"]["low"] <= truth <= found["difference"]["high"]
    assert 465 <= held <= 485


def test_the_interval_widens_where_few_rows_carry_the_mean() -> None:
    scores = {"adapter": list(np.linspace(0, 1, 20))}
    even, few = (paired_summary(scores, 0.95, 2000, weights=w)["adapter"] for w in ([1] * 20, [9, *[1] * 18, 9]))
    plain = 2 * 1.96 * np.std(scores["adapter"]) / np.sqrt(20)
    assert 1.03 * plain < even["high"] - even["low"] < 1.2 * plain  # a t interval is 1.1 as wide
    assert few["high"] - few["low"] > 2 * plain


def test_none_of_100_is_not_never() -> None:
    summary = paired_shares({"base": [0.0] * 100, "adapter": [0.0] * 100}, 0.95)
    assert summary["adapter"]["mean"] == summary["difference"]["mean"] == 0
    assert summary["adapter"]["high"] == pytest.approx(0.0362, abs=1e-4)  # 1 - 0.025 ** (1 / 100)
    assert summary["difference"]["low"] < -0.01 < 0.01 < summary["difference"]["high"]
    assert summary["difference"]["p_value"] == 1.0
    assert not judge_difference(summary["difference"], "lower")["shown"]


def _outcomes(gained: float, lost: float, count: int) -> Iterator[tuple[int, int, float]]:
    """Rows gained and lost, and how likely; what is rarer than once in a million is left out."""
    for more in range(count + 1):
        likely = stats.binom.pmf(more, count, gained)
        rest = stats.binom.pmf(np.arange(count - more + 1), count - more, lost / (1 - gained)) * likely
        yield from ((more, int(less), rest[less]) for less in np.flatnonzero(rest > 1e-6))


@pytest.mark.parametrize("count", [40, 100])
@pytest.mark.parametrize(
    ("gained", "lost"), [(0.02, 0), (0.05, 0.02), (0.1, 0), (0.1, 0.05), (0.2, 0), (0.2, 0.1), (0.4, 0.2)]
)
def test_intervals_of_changed_shares_hold_the_truth_at_least_93_times_of_100(
    gained: float, lost: float, count: int
) -> None:
    held = 0.0
    for more, less, likely in _outcomes(gained, lost, count):
        found = _changed_share(more, less, count, 0.95)
        held += likely * (found["low"] <= gained - lost <= found["high"])
    few_change = count * (gained + lost) <= 10
    assert 0.935 <= held <= (1 if few_change else 0.97)


@pytest.mark.parametrize(("share", "most"), [(0.01, 1), (0.05, 0.99), (0.2, 0.97), (0.4, 0.97)])
def test_intervals_of_one_share_hold_the_truth_at_least_95_times_of_100(share: float, most: float) -> None:
    held = 0.0
    for hits, likely in enumerate(stats.binom.pmf(np.arange(101), 100, share)):
        found = exact_share(hits, 100, 0.95)
        held += likely * (found["low"] <= share <= found["high"])
    assert 0.95 <= held <= most


def test_the_test_of_shares_is_mcnemars() -> None:
    scores = {"base": [0.0] * 98 + [1.0] * 2, "adapter": [1.0] * 10 + [0.0] * 90}
    difference = paired_shares(scores, 0.95)["difference"]
    assert difference["mean"] == pytest.approx(0.08)
    assert difference["p_value"] == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    assert judge_difference(difference, "lower")["verdict"].startswith("higher than the base's (worse)")


@pytest.mark.parametrize("count", [40, 100])
def test_what_the_test_of_shares_shows_the_interval_shows_too(count: int) -> None:
    pairs = [(gained, lost) for lost in (0, 1, 2, 5) for gained in range(lost, 25)]
    shown = [pair for pair in pairs if _changed_share(*pair, count, 0.95)["p_value"] <= 0.05]
    assert min(shown) == (6, 0)
    assert all(_changed_share(*pair, count, 0.95)["low"] > 0 for pair in shown)


def _difference_only(scores: dict[str, Any]) -> dict[str, Any]:
    """The interval of the difference, drawn as `paired_summary` draws it, without the two others and the p-value."""
    return paired_summary({"adapter": scores["adapter"] - scores["base"]}, 0.95, 1000)["adapter"]


def test_the_difference_has_the_interval_of_the_paired_differences() -> None:
    rng = np.random.default_rng(6)
    scores = {"base": rng.gamma(20, 0.12, 50), "adapter": rng.gamma(18, 0.12, 50)}
    whole = paired_summary(scores, 0.95, 1000)["difference"]
    assert {key: whole[key] for key in ("mean", "low", "high")} == pytest.approx(
        {key: _difference_only(scores)[key] for key in ("mean", "low", "high")}
    )


def test_under_no_difference_small_p_values_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng(7)
    draws = [{"base": rng.beta(2, 9, 30), "adapter": rng.beta(2, 9, 30)} for _ in range(300)]
    small = sum(paired_summary(scores, 0.95, 200)["difference"]["p_value"] < 0.05 for scores in draws)
    assert 5 <= small <= 27
