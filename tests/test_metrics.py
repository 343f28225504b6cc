"""Scores of single answers: ROUGE as `rouge_score` computes it, choices and repetition."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from alpacare_sft.metrics import (
    ROUGE_TYPES,
    Rouge,
    chosen_option,
    parse_options,
    rouge_scores,
)

ANSWERS = ["The heart pumps blood.\nIt has four chambers.", "Rest and drink water", "", "µ 5 °C is normal"]
REFERENCES = ["The heart is pumping the blood.\nFour chambers make it up.", "Drink fluids and rest", "none", "5 °C"]


def test_rouge_has_the_values_of_rouge_score_row_by_row() -> None:
    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    expected = [scorer.score(reference, answer) for answer, reference in zip(ANSWERS, REFERENCES, strict=True)]
    assert rouge_scores(ANSWERS, REFERENCES) == {kind: [row[kind].fmeasure for row in expected] for kind in ROUGE_TYPES}


def test_rouge_has_known_values() -> None:
    scores = rouge_scores(["the cat sat"], ["the cat sat on the mat"])
    assert scores["rouge1"] == [pytest.approx(2 * 1.0 * 0.5 / 1.5)]
    assert scores["rouge2"] == [pytest.approx(2 * 1.0 * 0.4 / 1.4)]
    assert scores["rougeL"] == [pytest.approx(2 * 1.0 * 0.5 / 1.5)]
    assert rouge_scores(["hearts"], ["heart"])["rouge1"] == [1.0]  # stemmed
    assert Rouge(keep_in_memory=True).compute(predictions=["hearts"], references=["heart"], use_stemmer=False)[
        "rouge1"
    ] == [0.0]


def test_rougelsum_compares_line_by_line() -> None:
    scores = rouge_scores(["one two\nthree four"], ["three four\none two"])
    assert scores["rougeL"] == [pytest.approx(0.5)]
    assert scores["rougeLsum"] == [pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Which one? A) radius B) ulna C) femur", {"A": "radius", "B": "ulna", "C": "femur"}),
        ("A. Radius\nB. Ulna", {"A": "Radius", "B": "Ulna"}),
        ("Pick: (a) iron, (b) zinc", {"A": "iron", "B": "zinc"}),
        ("A: one\nC: three", {}),  # a gap: not a list of options
        ("A patient with vitamin B. deficiency", {}),
        ("No options here.", {}),
    ],
)
def test_options_are_read(text: str, options: dict[str, str]) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", "B"),
        ("B) ulna", "B"),
        ("b.", "B"),
        ("The correct answer is: C", "C"),
        ("Answer: (A) radius", "A"),
        ("It is the ulna, which lies on the side of the little finger.", "B"),
        ("A bone of the leg.", None),  # an article, not a letter
        ("Either the radius or the ulna.", None),
        ("D", None),
        ("", None),
    ],
)
def test_the_one_option_that_is_chosen(answer: str, choice: str | None) -> None:
    assert chosen_option(answer, {"A": "radius", "B": "ulna", "C": "femur"}) == choice
