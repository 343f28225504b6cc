"""Pages: what they show, what they leave out, and that a row's text stays text."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.reporting.pages import save_data_report, save_training_report

HOSTILE = "</script><script>alert(1)</script><img src=https://example.com/x onerror=alert(2)>"
DIGEST = "d407aa9dd9f839c1e1e4b8958c2837c9b9169a9f3fe7a2bbce35fad4f8da8a96"
EXAMPLE = {"id": 7, "split": "test", "truncated": True, "prompt_tokens": 31, "completion_tokens": 1234}
HISTORY = [
    {"step": 10, "loss": 3.10241, "learning_rate": 1.75e-4, "grad_norm": 0.732},
    {"step": 20, "loss": 2.98765, "learning_rate": 1.525e-4, "grad_norm": 0.889},
    {"step": 20, "eval_loss": 2.86535},
    {"step": 30, "eval_loss": 2.91234},
]


def training_page(folder: Path, record: dict[str, Any], history: list[dict[str, Any]]) -> str:
    save_training_report(folder / "training.html", record, history)
    return (folder / "training.html").read_text(encoding="utf-8")


def data_page(folder: Path, report: dict[str, Any]) -> str:
    save_data_report(folder / "report.html", report)
    return (folder / "report.html").read_text(encoding="utf-8")


def words(page: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())


@pytest.fixture
def report() -> dict[str, Any]:
    example = {**EXAMPLE, "segments": [["<|user|>\n  ask ", False], [f"say {HOSTILE}", True]]}
    row = {"id": 8, "instruction": HOSTILE, "input": "", "output": "yes"}
    pair = {"similarity": 0.83, "test": row, "train": row}
    tokens = {"min": 3, "median": 40.5, "p95": 90, "max": 4321, "total": 50000}
    split = {"rows": 1800, "with_input": 600, "truncated": 12, "learnt_tokens": 49500, "cut_tokens": 500}
    return {
        "rows": {"loaded": 2101, "cleaned": 2010, "dropped_no_answer": 9, "kept": 2001, "train": 1800, "test": 201},
        "steps": [{"name": "drop_missing", "rows_before": 2101, "rows_after": 2010, "dropped": 91, "changed": 0}],
        "max_length": 256,
        "shared_questions": 0,
        "splits": {"train": {**split, "prompt_tokens": tokens, "completion_tokens": tokens}, "test": {"rows": 0}},
        "lengths": {"train": {"prompt_tokens": [5, 40], "completion_tokens": [90, 400]}, "test": {}},
        "examples": [example],
        "extremes": {"shortest": [example], "most_repetitive": [{**example, "repetition": 0.731}]},
        "near_duplicates": {"threshold": 0.7, "test_rows": 1, "pairs": [pair]},
    }


def test_text_of_rows_is_shown_and_never_obeyed(tmp_path: Path, report: dict[str, Any]) -> None:
    page = data_page(tmp_path, report)
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 5
    assert "<pre><span>&lt;|user|&gt;\n  ask </span>" in page


def test_names_in_the_record_are_escaped(tmp_path: Path) -> None:
    page = training_page(tmp_path, {"base_model": {"name": f"org {HOSTILE}"}, "versions": {"torch": HOSTILE}}, HISTORY)
    assert "<script" not in page
    assert "<img" not in page


def test_pages_load_nothing(tmp_path: Path, report: dict[str, Any]) -> None:
    report["near_duplicates"] = report["extremes"] = report["examples"][0]["segments"] = None
    for page in (data_page(tmp_path, report), training_page(tmp_path, {}, HISTORY)):
        assert "http://" not in page
        assert "https://" not in page
        assert not re.findall(r'(?:src|href)="(?!#)|@import|<link|url\((?!#)', page)
        assert "default-src 'none'" in page


def test_ids_are_unique_and_every_reference_has_one(tmp_path: Path, report: dict[str, Any]) -> None:
    for page in (data_page(tmp_path, report), training_page(tmp_path, {}, HISTORY)):
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_pictures_take_their_colours_from_the_page(tmp_path: Path, report: dict[str, Any]) -> None:
    for page in (data_page(tmp_path, report), training_page(tmp_path, {}, HISTORY)):
        pictures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
        assert "currentColor" in pictures
        assert not re.findall(r"(?:fill|stroke): #\w+", pictures)


@pytest.mark.parametrize("history", [[], [{"step": 5, "train_runtime": 1.0}]])
def test_training_without_a_logged_loss(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    page = training_page(tmp_path, {}, history)
    assert "No loss was logged." in page
    assert "no validation loss was measured" in words(page)
    assert "<svg" not in page


def test_training_with_one_entry_and_without_evaluation(tmp_path: Path) -> None:
    page = training_page(tmp_path, {"train": {"optimizer_steps": 1, "stopped_early": False}}, HISTORY[:1])
    assert "trained for 1 optimizer step; no validation loss was measured" in words(page)
    assert "it was not stopped early" in page
    assert page.count("<svg") == 4


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    page = training_page(tmp_path, {}, [*HISTORY, {"step": 40, "loss": float("nan"), "grad_norm": float("inf")}])
    assert "1 of the logged losses is not a number." in words(page)


def test_a_noisy_loss_gets_its_mean(tmp_path: Path) -> None:
    history = [{"step": step, "loss": 2.0 + step % 2} for step in range(1, 41)]
    page = training_page(tmp_path, {}, history)
    assert page.count("training, mean of 4") == 2
    assert "training, as logged" in page


def test_training_shows_the_numbers_it_was_given(tmp_path: Path) -> None:
    record = {
        "train": {"optimizer_steps": 1500, "best_step": 20, "stopped_early": True, "peak_memory_bytes": 3 * 2**30},
        "tokens": {"trained": 17459, "answer": 11559},
        "seconds": {"data": 8123.2, "model": 0.4},
        "recipe_sha256": DIGEST,
        "base_model": {"name": "/home/somebody/models/tiny"},
    }
    page = training_page(tmp_path, record, HISTORY)
    summary = "1,500 optimizer steps; the validation loss was best at step 20, with 2.8653; training stopped early"
    assert summary in words(page)
    assert all(
        number in page
        for number in ("17,459", "11,559", "3.00 GiB", "3.1024", "1.75e-04", "0.889", "2 h 15 min 23 s", "0.4 s")
    )
    assert f'<code title="{DIGEST}">{DIGEST[:12]}…</code>' in page
    assert "Training of tiny" in page and "somebody" not in page
    assert "no measure of medical correctness" in words(page)


def test_data_shows_the_numbers_it_was_given(tmp_path: Path, report: dict[str, Any]) -> None:
    shown = words(data_page(tmp_path, report))
    assert "Of 2,101 rows loaded, 2,001 were kept (95.2&nbsp;%)." in shown
    assert "9 rows were dropped because no answer token fits: the prompt alone fills the limit of 256 tokens." in shown
    assert "12 training rows are truncated, which costs 500 of the split's 50,000 answer tokens (1.0&nbsp;%)." in shown
    assert "No question (instruction and input) is shared between splits." in shown
    assert "1 test row has a near-duplicate among the training rows." in shown
    assert "1 row is longer than max_length, 256 tokens" in shown
    assert "with a similarity of 0.7 or more" in shown and "Similarity 0.83" in shown and "repetition 0.73" in shown
    assert "2,010 · 91 dropped" in shown


def test_the_share_of_the_text_that_was_compared_is_told(tmp_path: Path, report: dict[str, Any]) -> None:
    assert "The comparison read" not in data_page(tmp_path, report)
    report["near_duplicates"]["seen_fraction"] = 0.731
    assert "The comparison read 73.1 % of the questions' letters, digits and signs." in words(
        data_page(tmp_path, report)
    )


def test_shared_questions_warn(tmp_path: Path, report: dict[str, Any]) -> None:
    shown = words(data_page(tmp_path, {**report, "shared_questions": 3}))
    assert "3 questions stand in more than one split." in shown
    assert "is shared between splits" not in shown


@pytest.mark.parametrize(
    ("key", "anchor"),
    [("examples", "examples"), ("extremes", "extremes"), ("near_duplicates", "near-duplicates"), ("splits", "lengths")],
)
def test_a_section_without_its_key_is_left_out(tmp_path: Path, report: dict[str, Any], key: str, anchor: str) -> None:
    assert f'id="{anchor}"' in data_page(tmp_path, report)
    del report[key]
    page = data_page(tmp_path, report)
    assert f'id="{anchor}"' not in page
    assert f'href="#{anchor}"' not in page


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    page = data_page(tmp_path, {})
    assert page.count("<h1>") == 1
    assert "<script" not in page and "<h2" not in page


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path, report: dict[str, Any]) -> None:
    assert data_page(tmp_path, report) == data_page(tmp_path, report)


def test_import_leaves_pictures_and_templates_alone() -> None:
    code = (
        "import sys, alpacare_sft.reporting.pages; "
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'jinja2')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
