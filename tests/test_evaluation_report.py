"""The page of an evaluation: what it shows, what it leaves out, and that text of rows and answers stays text."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.reporting import evaluation_page
from alpacare_sft.reporting.evaluation_page import compare_words, save_evaluation_report
from tests.made_up_scores import HOSTILE, NOTICE, made_up_predictions, made_up_scores

Rows = list[dict[str, Any]]


def page_of(folder: Path, rows: Rows, scores: dict[str, Any] | None = None) -> str:
    scores = made_up_scores(rows) if scores is None else scores
    save_evaluation_report(folder / "report.html", scores, rows, notice=NOTICE)
    return (folder / "report.html").read_text(encoding="utf-8")


def words(page: str) -> str:
    return unescape(" ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split()))


def groups(page: str) -> dict[str, list[str]]:
    """Groups of each row shown, in the order of the page."""
    found = re.findall(r'<article class="row" data-groups="([^"]*)">\n<p class="head"><strong>Row (\d+)<', page)
    return {row: names.split() for names, row in found}


def test_verdict_and_what_it_is_not_stand_at_the_top(tmp_path: Path) -> None:
    top = words(page_of(tmp_path, made_up_predictions(12)).split("<nav")[0])
    assert "The adapter's loss is lower than the base's, beyond the interval." in top
    assert "Intervals cover the choice of test rows, not the training seed." in top
    assert "no measure of medical correctness" in top
    assert "People should judge the answers on the blind sheet review.html before they read this page" in top


def test_forgetting_alone_says_nothing_of_wording_or_of_a_sheet(tmp_path: Path) -> None:
    scores = made_up_scores(made_up_predictions(3))
    scores["metrics"] = {"general_loss": scores["metrics"]["loss"]}
    top = words(page_of(tmp_path, [], scores).split("<nav")[0])
    assert "no measure of medical correctness" in top
    assert "wording" not in top and "review.html" not in top


def test_scores_have_intervals_p_values_and_words(tmp_path: Path) -> None:
    rows = made_up_predictions(10)
    shown = words(page_of(tmp_path, rows).split('id="scores"')[1].split("</table>")[0])
    assert "loss loss on the references, nats a token; lower is better" in shown
    assert "2.5000 2.4500 to 2.5500 2.2400 2.1900 to 2.2900 −0.2600 −0.3000 to −0.2200 under 0.001" in shown
    assert "lower is better; primary metric" in shown
    assert "lower than the base's, beyond the interval" in shown
    assert (
        "Means over 10 test rows (loss and perplexity: over their tokens), below each its 95 % interval."
        in shown.replace("\xa0", " ")
    )


@pytest.mark.parametrize("answer", ["", "  the Ulna,\nthe radius. ", "the and the and", "…", HOSTILE, "naïve café"])
def test_shared_words_cut_an_answer_and_lose_nothing(answer: str) -> None:
    reference, answers = compare_words("The radius and the ulna (naïve).", {"base": answer, "adapter": "The ulna"})
    assert "".join(text for text, _ in answers["base"]) == answer
    assert "".join(text for text, _ in reference) == "The radius and the ulna (naïve)."
    assert all(text for parts in (reference, *answers.values()) for text, _ in parts)


def test_words_in_the_order_of_the_reference_are_shared() -> None:
    reference, answers = compare_words("The radius and the ulna", {"adapter": "Surely THE radius, and an ulna."})
    expected = [("Surely ", ""), ("THE radius, and", "shared"), (" an ", ""), ("ulna", "shared"), (".", "")]
    assert answers == {"adapter": expected}
    assert reference == [("The radius and ", ""), ("the", "missed"), (" ulna", "")]


def test_words_of_one_answer_alone_are_told_apart() -> None:
    reference, answers = compare_words("The radius and the ulna", {"base": "A radius.", "adapter": "radius and ulna"})
    assert answers["base"] == [("A ", ""), ("radius", "shared"), (".", "")]
    assert answers["adapter"] == [("radius", "shared"), (" ", ""), ("and ulna", "only")]
    assert reference == [("The", "missed"), (" radius and ", ""), ("the", "missed"), (" ulna", "")]


def test_the_marks_of_words_are_explained_and_told_without_colour(tmp_path: Path) -> None:
    page = page_of(tmp_path, made_up_predictions(12))
    legend = page.split('<h2 id="answers">')[1].split('<form class="controls"')[0]
    for kind in ("shared", "shared only", "missed"):
        assert f'<span class="{kind}">' in legend and page.count(f'<span class="{kind}">') > 3
    assert "underlined where both answers have them, bold and underlined twice where only this one does" in words(
        legend
    )
    alone = words(page_of(tmp_path, made_up_predictions(12, baseline=False)))
    assert "are underlined . In the reference, dotted words are not in the answer." in alone


def test_text_of_rows_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    rows = made_up_predictions(6)
    for key in ("reference", "base"):
        rows[0][key] = HOSTILE
    rows[0] |= {"id": HOSTILE, "prompt": {"instruction": HOSTILE, "input": HOSTILE}}
    scores = made_up_scores(rows) | {"verdict": HOSTILE, "generate": {HOSTILE: HOSTILE}}
    page = page_of(tmp_path, rows, scores)
    assert page.count("<script>") == 2 and "<img" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_the_page_loads_nothing_and_its_references_hold(tmp_path: Path) -> None:
    rows = [{**row, "adapter": "plain"} for row in made_up_predictions(6)]
    page = page_of(tmp_path, rows)
    assert "http://" not in page and "https://" not in page and "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!#)|@import|<link|url\((?!#)', page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#| for=")([^") ]+)', page)) <= set(ids)


def test_every_answer_has_the_notice_once_and_apart_from_its_text(tmp_path: Path) -> None:
    page = page_of(tmp_path, made_up_predictions(5))
    assert page.count(f'<p class="notice">{NOTICE}</p>') == page.count(NOTICE) == 10
    assert page.count("The answer is empty.") == 1


def test_rows_are_ordered_by_what_they_gained_and_told_once(tmp_path: Path) -> None:
    rows = made_up_predictions(40)
    page = page_of(tmp_path, rows)
    shown = groups(page)
    gains = [row["scores"]["rougeL"]["adapter"] - row["scores"]["rougeL"]["base"] for row in rows]
    order = [gains[int(row)] for row in shown]
    assert len(shown) == 40 and order == sorted(gains, reverse=True)
    counts = {name: sum(name in names for names in shown.values()) for name in ("best", "worst", "changed")}
    assert counts == {"best": 10, "worst": 10, "changed": 10}
    assert "best" in next(iter(shown.values())) and "worst" in list(shown.values())[-1]
    assert "near" in shown["1"] and "cut" in shown["2"] and "changed" in shown["4"]
    assert "near-duplicate of training row 77, similarity 0.83" in words(page)


def test_answers_that_are_the_same_are_told(tmp_path: Path) -> None:
    rows = made_up_predictions(3)
    rows[1]["adapter"] = rows[1]["base"]
    assert page_of(tmp_path, rows).count("both answers are the same") == 1


def test_a_row_that_gained_is_never_among_the_worst(tmp_path: Path) -> None:
    rows = made_up_predictions(6)
    for row in rows:
        row["scores"]["rougeL"] = {"base": 0.1, "adapter": 0.2}
    page = page_of(tmp_path, rows)
    assert '<option value="best">' in page and '<option value="worst">' not in page


def test_many_rows_are_chosen_from_and_told(tmp_path: Path) -> None:
    rows = made_up_predictions(1000)
    for row in rows:
        row["adapter_end"] = "length"
    page = page_of(tmp_path, rows)
    shown = groups(page)
    assert 50 < len(shown) < 90 and sum("cut" in names for names in shown.values()) == 50
    assert f"Of 1,000 rows this page holds the {len(shown)} of the groups below" in words(page)
    assert len(page) < 600_000


def test_without_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    rows = made_up_predictions(12, baseline=False)
    page = page_of(tmp_path, rows)
    assert ">Base<" not in page and "Difference" not in page and "<svg" not in page and "p-value" not in page
    assert page.count(NOTICE) == len(rows)
    assert '<option value="best">' in page and '<option value="changed">' not in page


def test_a_single_row_is_a_page(tmp_path: Path) -> None:
    rows = made_up_predictions(1)
    scores = made_up_scores(rows)
    for metric in scores["metrics"].values():
        for part in ("base", "adapter", "difference"):
            metric[part] |= {"low": None, "high": None}
        metric["difference"]["p_value"] = None
    scores["near_duplicates"] = {"threshold": 0.7, "rows": 0}
    page = page_of(tmp_path, rows, scores)
    assert "Means over 1 test row" in words(page) and page.count("<svg") == 2
    assert "No test row has a near-duplicate in the training split" in words(page)


def test_an_answerless_evaluation_shows_its_losses(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("id", "prompt", "reference", "scores")} for row in made_up_predictions(8)]
    for row in rows:
        del row["scores"]["rougeL"]
    scores = made_up_scores(made_up_predictions(8))
    del scores["metrics"]["rougeL"]
    page = page_of(tmp_path, rows, scores)
    assert "No answers were written" in page and NOTICE not in page
    assert "Base" in page and page.count("<svg") == 4  # the primary metric, and its differences row by row


@pytest.mark.parametrize("key", sorted(set(made_up_scores(made_up_predictions(3)))))
def test_a_record_without_a_key_is_a_page(tmp_path: Path, key: str) -> None:
    rows = made_up_predictions(3)
    scores = made_up_scores(rows)
    del scores[key]
    assert page_of(tmp_path, rows, scores).count("<h1>") == 1


def test_empty_records_are_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, [], {})
    assert page.count("<h1>") == 1 and "<script" not in page


def test_part_of_the_test_split_is_told(tmp_path: Path) -> None:
    rows = made_up_predictions(3)
    assert "Not the run's own adapter" not in page_of(tmp_path, rows)
    other = {"complete": False, "limit": 3, "source": "rows of letters.jsonl", "rows_file": {"name": "letters.jsonl"}}
    scores = made_up_scores(rows) | other
    scores["model"]["adapter"] = "/home/somebody/other"
    page = page_of(tmp_path, rows, scores)
    told = "Scored: 3 rows; source: rows of letters.jsonl, the first 3 only; adapter: other."
    assert told in words(page) and "somebody" not in page
    assert "alpacare-sft eval recipe.yaml --output_dir . --limit 3 --rows letters.jsonl --adapter other" in words(page)


def test_what_repeats_it_is_told(tmp_path: Path) -> None:
    rows = made_up_predictions(3)
    page = page_of(tmp_path, rows)
    shown = words(page.split('id="repeat"')[1])
    assert "--generate.max_new_tokens 96 --generate.do_sample false" in shown
    facts = ("Base model tiny", "Precision float32", "Positions with the same likeliest token 99.17 %", "Seed 42")
    for fact in (*facts, "Largest logit difference 0.002", "torch 2.13.0", "Cores 2"):
        assert fact in shown
    assert all(f'title="{letter * 64}"' in page for letter in "abc")
    assert "somebody" not in page


def test_the_command_needs_no_quoting_by_hand() -> None:
    scores = {"evaluate": {"metrics": ["loss", "rouge"], "judge": {"endpoint": "http://localhost"}}}
    assert evaluation_page._command(scores).endswith("""--evaluate.metrics '["loss", "rouge"]'""")


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    assert page_of(tmp_path, made_up_predictions(9)) == page_of(tmp_path, made_up_predictions(9))


def test_what_rouge_could_see_is_told_beside_the_scores(tmp_path: Path) -> None:
    rows = made_up_predictions(3)
    page = page_of(tmp_path, rows, made_up_scores(rows) | {"rouge": {"note": "ROUGE compares words of every script."}})
    assert "ROUGE compares words of every script." in words(page)
    assert "ROUGE compares" not in words(page_of(tmp_path, rows))


def test_words_are_marked_in_scripts_without_spaces() -> None:
    reference, answers = compare_words("高血压患者", {"adapter": "高血糖患者"})
    assert reference == [("高血", ""), ("压", "missed"), ("患者", "")]
    assert answers["adapter"] == [("高血", "shared"), ("糖", ""), ("患者", "shared")]


def test_a_rows_own_system_turn_is_shown(tmp_path: Path) -> None:
    rows = made_up_predictions(3)
    rows[0]["prompt"]["system"] = "Answer as a nurse would."
    assert "Answer as a nurse would." in words(page_of(tmp_path, rows))


def test_the_first_picture_shows_the_primary_metrics_beside_the_base(tmp_path: Path) -> None:
    rows = made_up_predictions(8)
    scores = made_up_scores(rows)
    page = page_of(tmp_path, rows, scores)
    assert page.index("Means of base and adapter and their difference") < page.index('id="scores"')
    for part in scores["metrics"].values():
        part.pop("difference", None)
    assert "Means of base and adapter and their difference" not in page_of(tmp_path, rows, scores)
