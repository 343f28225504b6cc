"""Scores of rows, and a verdict that says what was measured and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alpacare_sft.evaluation.answering import EvaluationRequests, ModelResponses
from alpacare_sft.evaluation.evaluate import Evaluation
from alpacare_sft.evaluation.generation import Answer
from alpacare_sft.evaluation.scoring import SCORES, score_rows, summarize, summarize_scores, verdict_sentence
from alpacare_sft.evaluation.terminal import _score_table, show_evaluation
from alpacare_sft.recipe.sections import EvaluateSection

ROWS = [
    {"instruction": "Which bone? A) radius B) ulna", "input": "", "output": "B) ulna"},
    {"instruction": "Name a bone.", "input": "", "output": "The femur is a bone."},
]
EVERYTHING = EvaluationRequests([], [], wants_answers=True, wants_losses=True, answer_end=1)


def sheet(*answers: Answer) -> ModelResponses:
    return ModelResponses(Path("none"), losses={0: 2.0, 1: 1.0}, answers=dict(enumerate(answers)))


def test_every_answer_gets_every_score() -> None:
    looped = "rest well and drink water " * 8
    sheets = {
        "base": sheet(Answer("A", 2, "end_token"), Answer("", 1, "end_token")),
        "adapter": sheet(Answer("The answer is B.", 6, "end_token"), Answer(looped.strip(), 40, "length")),
    }
    scores = score_rows(ROWS, sheets, EVERYTHING, ["rouge", "loss"])
    assert scores["choice_accuracy"] == {"base": [0.0, None], "adapter": [1.0, None]}
    assert scores["choice_unread"] == {"base": [0.0, None], "adapter": [0.0, None]}
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
    assert list(summary) == [name for name in SCORES if name in summary]
    assert [name for name, part in summary.items() if part["main"]] == ["rougeL", "loss"]


def test_scores_that_no_row_has_are_left_out() -> None:
    sheets = {"adapter": sheet(Answer("B", 2, "end_token"), Answer("No", 2, "end_token"))}
    rows = [{**row, "instruction": "Which bone?"} for row in ROWS]
    assert not {"choice_accuracy", "choice_unread"} & set(score_rows(rows, sheets, EVERYTHING, ["rouge"]))


def test_a_difference_is_told_in_words_and_by_keys() -> None:
    values = {"base": [0.0] * 40, "adapter": [1.0] * 10 + [0.0] * 30}
    summary = summarize("empty_share", values, EvaluateSection())
    assert (summary["shown"], summary["side"], summary["better"]) == (True, "higher", "lower")
    assert summary["verdict"] == "higher than the base's (worse), beyond the 95% interval"
    assert "verdict" not in summarize("loss", {"adapter": [1.0, 2.0]}, EvaluateSection(bootstrap_samples=50))


def part(side: str | None, mean: float, n: int = 100) -> dict[str, Any]:
    bounds = {"low": mean - 0.1, "high": mean + 0.1, "confidence": 0.95}
    means = {name: {"mean": value, **bounds} for name, value in (("base", 1.0), ("adapter", 1.0 + mean))}
    return {**means, "n": n, "difference": {"mean": mean, **bounds, "p_value": 0.01}, "side": side}


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ("higher", "the adapter's answers share more wording with the references than the base's (ROUGE-L 1.000 →"),
        ("lower", "the adapter's answers share less wording with the references than the base's (ROUGE-L 1.000 →"),
        (None, "no difference in wording shared with the references was shown (ROUGE-L 1.000 →"),
    ],
)
def test_the_verdict_says_what_was_shown_and_what_was_not_measured(side: str | None, words: str) -> None:
    told = verdict_sentence({"rougeL": part(side, 0.2)}, 100, "test rows")
    assert words in told
    assert "[+0.100, +0.300]" in told
    assert "does not measure medical correctness" in told
    assert "uncertain" not in told


def test_general_rows_are_counted_apart() -> None:
    metrics = {"loss": part("lower", -0.2), "general_loss": part("higher", 0.2, n=50)}
    told = verdict_sentence(metrics, 100, "test rows")
    assert told.startswith("On 100 test rows: the adapter predicts the references better (loss ")
    assert " On 50 rows that are not medical: the adapter predicts the references worse, a sign of forgetting" in told


def test_forgetting_alone_says_nothing_of_wording() -> None:
    told = verdict_sentence({"general_loss": part(None, 0.01, n=50)}, 5, "test rows")
    assert told == (
        "On 50 rows that are not medical: no difference in predicting the references was shown "
        "(loss 1.000 → 1.010, difference +0.010 [-0.090, +0.110])."
    )


def test_an_adapter_alone_shows_no_change() -> None:
    alone = {name: {"n": 100, "adapter": part(None, 0.5)["adapter"]} for name in ("loss", "general_loss")}
    assert verdict_sentence(alone, 100, "test rows") == (
        "On 100 test rows the adapter alone: loss 1.500 [0.400, 0.600]. On 100 rows that are not medical the adapter "
        "alone: loss 1.500 [0.400, 0.600]. The base was not scored, so this does not show what training changed. "
        "This is closeness of wording to the references. It does not measure medical correctness."
    )


def test_few_rows_are_called_few() -> None:
    told = verdict_sentence({"loss": part(None, 0.0)}, 5, "test rows")
    assert "With so few rows the intervals themselves are uncertain." in told


@pytest.mark.parametrize(
    ("side", "better", "word"),
    [
        ("higher", "higher", "better"),
        ("higher", "lower", "worse"),
        ("lower", None, "lower"),
        (None, "lower", "unclear"),
    ],
)
def test_the_terminal_tells_each_verdict_in_a_word_and_fits_80_columns(
    side: str | None, better: str | None, word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    metrics = {name: {**part(side, 12.3), "better": better, "main": name == "loss"} for name in SCORES}
    scores = {"n": 100, "source": "test rows", "metrics": metrics}
    Console().print(_score_table(scores))
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert told.count(word) == len(SCORES)
    assert "choice_unread " in told and "[+12.200,+12.400]" in told and "…" not in told


def test_the_terminal_shows_the_primary_metrics_and_folds_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    metrics = {name: {**part(None, 0.1), "better": "higher", "main": SCORES[name].is_main} for name in SCORES}
    scores = {
        "n": 100, "source": "rows", "metrics": metrics, "verdict": "v", "intervals": "i",
        "near_duplicates": {"rows": 0},
    }  # fmt: skip
    result = Evaluation(tmp_path, scores, [])
    show_evaluation(result)
    folded = capsys.readouterr().out
    assert "rougeL" in folded and "empty_share" not in folded and f"{len(SCORES) - 2} descriptive scores" in folded
    assert f"open {tmp_path}/report.html" in folded
    show_evaluation(result, every_score=True)
    assert "empty_share" in capsys.readouterr().out


RUSSIAN = [{"instruction": "Что это?", "input": "", "output": text} for text in ("Боль в груди.", "Кашель ночью.")]


def test_answers_equal_to_their_references_score_1_in_every_script() -> None:
    sheets = {"adapter": sheet(*(Answer(row["output"], 4, "end_token") for row in RUSSIAN))}
    scores = score_rows(RUSSIAN, sheets, EVERYTHING, ["rouge"])
    assert scores["rougeL"]["adapter"] == scores["rouge1"]["adapter"] == [1.0, 1.0]


def test_lengths_and_loops_count_characters_where_words_have_no_spaces() -> None:
    rows = [{"instruction": "?", "input": "", "output": "多喝水。"}]
    sheets = {"adapter": sheet(Answer("多喝水多休息。" * 8, 60, "length"))}
    scores = score_rows(rows, sheets, EVERYTHING, ["rouge"])
    assert scores["length_ratio"]["adapter"] == [14.0] and scores["repeated_share"]["adapter"] == [1.0]


def test_a_score_that_could_not_see_has_no_verdict() -> None:
    row_scores: Any = {"rougeL": {"base": [0.1] * 30, "adapter": [0.9] * 30}}
    summary = summarize_scores(row_scores, [1] * 30, EvaluateSection(), unseen={"rougeL": "nothing was seen"})
    assert summary["rougeL"]["verdict"] == "no verdict: nothing was seen"
    assert (summary["rougeL"]["shown"], summary["rougeL"]["side"]) == (False, None)
    told = verdict_sentence(summary, 30, "test rows")
    assert told.startswith("On 30 test rows: ROUGE-L gives no verdict: nothing was seen.")
    assert "difference" not in told


def test_without_a_base_an_unseen_score_is_told_too() -> None:
    row_scores: Any = {"rougeL": {"adapter": [0.0] * 30}}
    summary = summarize_scores(row_scores, [1] * 30, EvaluateSection(), unseen={"rougeL": "nothing was seen"})
    assert "ROUGE-L 0.000 [0.000, 0.000] (nothing was seen)" in verdict_sentence(summary, 30, "test rows")


def test_the_terminal_names_the_tokenizer_and_gives_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"rougeL": {**part("higher", 0.2), "better": "higher", "main": True, "unseen": "nothing was seen"}}
    Console(width=80).print(
        _score_table({"n": 9, "source": "rows", "metrics": metrics, "rouge": {"note": "By words."}})
    )
    told = capsys.readouterr().out
    assert "By words." in told and "none" in told and "better" not in told
