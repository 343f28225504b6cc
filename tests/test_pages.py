"""The pages in a real browser: nothing is fetched or run, search, filters and sorting work, and they fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.reporting.evaluation_page import save_evaluation_report
from alpacare_sft.reporting.pages import save_data_report, save_training_report
from alpacare_sft.reporting.run_report import format_page
from alpacare_sft.review.sheets import save_review_sheets
from alpacare_sft.run.directory import write_text
from tests.made_up_scores import HOSTILE, NOTICE, made_up_predictions, made_up_scores

pytestmark = pytest.mark.slow

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]
LONG = "pneumonoultramicroscopicsilicovolcanoconiosis" * 3
TOKENS = {"min": 3, "median": 40.5, "p95": 90, "max": 4321, "total": 50000}
# The least contrast of any text with what stands behind it (WCAG 2, at least 4.5 to be read with ease), and the text.
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("main *:not(svg *)")]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  const found = texts.map((e) => {
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 60)];
  });
  return found.sort((x, y) => x[0] - y[0])[0];
}"""

NAMES = ["data", "training", "eval", "review", "report"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all pages; closed with this module, because its event loop is in the way of others."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    home = str(tmp_path_factory.mktemp("chromium"))
    places = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS, env=places)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run, of made-up numbers and some hostile rows."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {"data": folder / "data.html", "training": folder / "training.html", "eval": folder / "eval.html"}
    paths |= {name: folder / f"{name}.html" for name in ("review", "report")}
    texts = ["What is anaemia?", "Name a bone.", f"{HOSTILE} {LONG}"]
    rows = [
        {"id": i, "split": split, "prompt_tokens": 9, "completion_tokens": 7, "segments": [[text, False], [LONG, True]]}
        for i, (text, split) in enumerate(zip(texts, ("train", "validation", "test"), strict=True))
    ]
    split = {"rows": 1800, "truncated": 12, "cut_tokens": 500, "prompt_tokens": TOKENS, "completion_tokens": TOKENS}
    side = {"id": HOSTILE, "instruction": HOSTILE, "input": LONG, "output": "yes"}
    report = {
        "rows": {"loaded": 2101, "cleaned": 2010, "kept": 2001, "train": 1800, "validation": 100, "test": 101},
        "steps": [{"name": "drop_duplicates_after_cleaning", "rows_after": 2010, "dropped": 91, "changed": 0}],
        "max_length": 256,
        "splits": {"train": split, "validation": split, "test": split},
        "lengths": {"train": {"prompt_tokens": [5, 40], "completion_tokens": [90, 400]}},
        "examples": rows,
        "near_duplicates": {
            "threshold": 0.7,
            "test_rows": 1,
            "pairs": [{"similarity": 0.83, "test": side, "train": side}],
        },
    }
    save_data_report(paths["data"], report)
    history = [{"step": n, "loss": 3 - n / 50, "learning_rate": 1e-4, "grad_norm": 0.7} for n in range(1, 60)]
    record = {"base_model": {"name": f"org/{LONG}"}, "versions": {"torch": HOSTILE}, "seed": 42}
    save_training_report(paths["training"], record, history)
    predictions = made_up_predictions(30)
    predictions[5]["reference"] = f"{LONG} {LONG}"
    save_evaluation_report(paths["eval"], made_up_scores(predictions), predictions, notice=NOTICE)
    save_review_sheets(folder, predictions, seed=42, notice=NOTICE)
    cell = HOSTILE.replace("|", "")
    table = f"| source | {cell} |\n|---|---|\n| {cell} | {LONG} |\n"
    sections = f"## 1. Dataset\n\n{HOSTILE}\n\n[x](javascript:alert(1))\n\n{table}"
    write_text(paths["report"], format_page(f"# Fine-tuning {HOSTILE}\n\n{sections}", {}))
    return paths


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """`open_page("data")`: the page, watched: at the end of the test it has asked for nothing and no script failed."""
    contexts: list[Any] = []
    seen: list[str] = []

    def open_(name: str, width: int = 1280, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
        page.goto(pages[name].as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert set(seen) <= {path.as_uri() for path in pages.values()}


def shown(page: Any) -> list[str]:
    """Names of the rows that can be seen."""
    return [row.inner_text() for row in page.locator("#rows > article:visible .head strong:text-matches('^Row')").all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_and_can_be_read(open_page: Open, name: str, width: int, scheme: str) -> None:
    page = open_page(name, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("svg:visible").count() == page.locator(".picture[role=img]").count()
    contrast, text = page.evaluate(CONTRAST)
    assert contrast >= 4.5, text


@pytest.mark.parametrize("name", NAMES)
def test_text_of_rows_is_seen_and_does_not_run(open_page: Open, name: str) -> None:
    page = open_page(name)
    page.wait_for_timeout(50)  # an image that does not load tells so a moment later
    assert page.title() != "ran"
    assert page.locator("main img, main script").count() == 0
    assert "<script>document.title='ran'</script><img src=https" in page.locator("main").inner_text()


def test_rows_of_the_data_are_found(open_page: Open) -> None:
    page = open_page("data")
    assert page.locator(".controls output").inner_text() == "3 of 3 rows shown"
    page.get_by_role("searchbox").fill("  ANAEMIA ")
    assert shown(page) == ["Row 0"]
    page.locator("#group").select_option("test")
    assert shown(page) == [] and page.locator(".controls output").inner_text() == "0 of 3 rows shown"
    page.get_by_role("searchbox").fill("")
    assert shown(page) == ["Row 2"]


def test_answers_are_found_and_grouped(open_page: Open) -> None:
    page = open_page("eval")
    assert len(shown(page)) == 30
    counts = {}
    for group in ("best", "worst", "most changed", "near-duplicates", "cut answers", "all rows shown"):
        page.locator("#group").select_option(group)
        counts[group] = len(shown(page))
    assert list(counts.values()) == [10, 10, 10, 1, 1, 30]
    page.get_by_role("searchbox").fill("as number 7 says")  # its words are marked one by one
    assert shown(page) == ["Row 7"]
    page.get_by_role("searchbox").fill("ask a clinician")  # the notice is no part of a row
    assert shown(page) == []


def column(page: Any, number: int) -> list[str]:
    return [
        cell.inner_text().split("\n")[0] for cell in page.locator(f".sortable tbody tr > :nth-child({number})").all()
    ]


def test_scores_are_sorted_by_mouse_and_by_keyboard(open_page: Open) -> None:
    page = open_page("eval")
    assert column(page, 1) == ["loss", "rougeL"]
    page.get_by_role("button", name="Score").click()
    assert column(page, 1) == ["loss", "rougeL"]
    head = page.get_by_role("columnheader", name="Adapter").first
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and column(page, 1) == ["rougeL", "loss"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending" and column(page, 1) == ["loss", "rougeL"]
    assert page.locator("[aria-sort]").count() == 1


def test_without_scripts_all_rows_are_there(open_page: Open) -> None:
    page = open_page("eval", java_script_enabled=False)
    assert page.locator("#rows > article:visible").count() == 30
    assert page.locator("form:visible, button:visible").count() == 0


@pytest.mark.parametrize("name", NAMES)
def test_paper_is_white_and_has_no_controls(open_page: Open, name: str) -> None:
    page = open_page(name, 700, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".controls:visible, nav:visible").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 700
