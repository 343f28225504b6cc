"""Scores of rows, and a verdict that says what was measured and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.evaluation.answering import AnswerSheet, Questions
from alpacare_sft.evaluation.scoring import MEANINGS, score_rows, summarize_scores, verdict_sentence
from alpacare_sft.generation import Answer
from alpacare_sft.recipe.sections import EvaluateSection

ROWS = [
    {"instruction": "Which bone? A) radius B) ulna", "input": "", "output": "B) ulna"},
    {"instruction": "Name a bone.", "input": "", "output": "The femur is a bone."},
]
EVERYTHING = Questions([], [], wants_answers=True, wants_losses=True, learnt_end=1)


def sheet(*answers: Answer) -> AnswerSheet:
    return AnswerSheet(Path("none"), losses={0: 2.0, 1: 1.0}, answers=dict(enumerate(answers)))


def test_every_answer_gets_every_score() -> None:
    looped = "rest well and drink water " * 8
    sheets = {
        "base": sheet(Answer("A", 2, "end_token"), Answer("", 1, "end_token")),
        "adapter": sheet(Answer("The answer is B.", 6, "end_token"), Answer(looped.strip(), 40, "length")),
    }
    scores = score_rows(ROWS, sheets, EVERYTHING, ["rouge", "loss"])
    assert scores["choice_accuracy"] == {"base": [0.0, None], "adapter": [1.0, None]}
    assert scores["empty_share"] == {"base": [0.0, 1.0], "adapter": [0.0, 0.0]}
    assert scores["repeated_share"]["adapter"] == [0.0, 1.0]
    assert scores["cut_share"]["adapter"] == [0.0, 1.0]
    assert scores["length_ratio"]["adapter"] == [2.0, 8.0]


def test_a_score_counts_the_rows_that_it_applies_to() -> None:
    sheets = {"adapter": sheet(Answer("B", 2, "end_token"), Answer("No", 2, "end_token"))}
    summary = summarize_scores(
        score_rows(ROWS, sheets, EVERYTHING, ["rouge"]), [2, 6], EvaluateSection(bootstrap_samples=50)
    )
    assert summary["choice_accuracy"]["n"] == 1
    assert summary["rougeL"]["n"] == 2
    assert summary["loss"]["adapter"]["mean"] == pytest.approx((2 * 2.0 + 6 * 1.0) / 8)
    assert set(summary) <= set(MEANINGS)


def part(verdict: str, mean: float) -> dict[str, Any]:
    bounds = {"low": mean - 0.1, "high": mean + 0.1, "confidence": 0.95}
    means = {name: {"mean": value, **bounds} for name, value in (("base", 1.0), ("adapter", 1.0 + mean))}
    return {**means, "difference": {"mean": mean, **bounds, "p_value": 0.01}, "verdict": verdict}


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("higher than the base's (better), beyond the 95% interval", "share more wording with the references"),
        ("lower than the base's (worse), beyond the 95% interval", "share less wording with the references"),
        ("not distinguishable from no difference", "no difference in wording shared with the references was shown"),
        ("not shown: by the permutation test chance does as much (p = 0.25)", "no difference in wording shared"),
    ],
)
def test_the_verdict_says_what_was_shown_and_what_was_not_measured(verdict: str, words: str) -> None:
    told = verdict_sentence({"rougeL": part(verdict, 0.2)}, 100, "test rows")
    assert words in told
    assert "[+0.100, +0.300]" in told
    assert "does not measure medical correctness" in told
    assert "uncertain" not in told


def test_few_rows_are_called_few() -> None:
    told = verdict_sentence({"loss": part("not distinguishable from no difference", 0.0)}, 5, "test rows")
    assert "With so few rows the intervals themselves are uncertain." in told
