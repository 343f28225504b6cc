"""The review page in a browser: what is entered stays, leaves as CSV and comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.review.reading import read_sheet
from alpacare_sft.review.sheets import safe_cell, save_review_sheets
from alpacare_sft.review.summary import summarize_reviews
from tests import test_pages
from tests.test_review import NASTY

pytestmark = pytest.mark.slow

browser = test_pages.browser
NOTICE = "Not medical advice."
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
ANSWERS = ["=1+1", '- first\n\n- second, "quoted"; µ ≥ 5', f"'{HOSTILE}", "'=1", "plain\r\nlines"]


def predictions() -> list[dict[str, Any]]:
    prompts = [
        {"instruction": f"@ask {answer}", "input": "" if i else "\n  lab: 5"} for i, answer in enumerate(ANSWERS)
    ]
    texts = [{"base": answer, "adapter": f"better than {answer}"} for answer in ANSWERS]
    return [
        {"id": f"-{i}", "prompt": prompt, **text, "display": {k: f"{v}\n\n{NOTICE}" for k, v in text.items()}}
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_review_sheets(tmp_path, predictions(), seed=3, notice=NOTICE)
    return tmp_path


@pytest.fixture
def open_page(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:
    """`open_page(width=390)`: the page in a fresh profile; a script error or a request fails the test."""
    contexts, wrong = [], []

    def open_(width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
        page.goto((folder / "review.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [text for text in wrong if not text.startswith("blob:")] == []


def rate(page: Any, row: int, marks: str, letter: str) -> None:
    for name, mark in zip(("correctness", "completeness", "clarity"), marks, strict=True):
        page.check(f'input[name="{row}:{name}_{letter}"][value="{mark}"]')


def save(page: Any, folder: Path, name: str = "out.csv") -> Path:
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(folder / name)
    return folder / name


def fill(page: Any) -> None:
    rate(page, 1, "123", "a")
    rate(page, 1, "454", "b")
    rate(page, 3, "555", "a")
    page.check('input[name="1:could_harm_a"]')
    page.check('input[name="1:preferred"][value="B"]')
    page.fill('textarea[name="1:comment"]', '=no, "why"\nline two')
    page.fill("#reviewer", "Ann Ö.")


def test_what_was_entered_is_there_after_a_reload(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.input_value("#reviewer") == "" and page.text_content("#progress") == "0 of 5 rated"
    fill(page)
    page.reload()
    assert page.text_content("#progress") == "1 of 5 rated, 1 in part"
    assert page.is_checked('input[name="1:clarity_b"][value="4"]') and page.is_checked('input[name="1:could_harm_a"]')
    assert page.input_value('textarea[name="1:comment"]') == '=no, "why"\nline two'
    page.click('[data-clear="1"]')  # asked, and by default refused
    assert page.text_content("#progress") == "1 of 5 rated, 1 in part"
    page.on("dialog", lambda dialog: dialog.accept())
    page.click('[data-clear="1"]')
    page.reload()
    assert page.text_content("#progress") == "0 of 5 rated, 1 in part"
    assert page.is_checked('input[name="3:clarity_a"][value="5"]')


def test_the_saved_file_is_one_that_the_package_reads(open_page: Callable[..., Any], folder: Path) -> None:
    page = open_page()
    fill(page)
    sheet = read_sheet(save(page, folder), json.loads((folder / "review_key.json").read_text()))
    assert (sheet.reviewer, sheet.num_rated, sorted(sheet.ratings)) == ("Ann Ö.", 1, ["-0", "-2"])
    assert sheet.ratings["-0"].scores["a"] == {"correctness": 1, "completeness": 2, "clarity": 3}
    assert (sheet.ratings["-0"].flags, sheet.ratings["-0"].preferred) == ({"a"}, "b")
    assert '"\'=no, ""why""\nline two"' in (folder / "out.csv").read_text(encoding="utf-8")
    assert summarize_reviews(folder, [folder / "out.csv"], confidence=0.9, samples=50)["rows_reviewed"] == 2


def test_an_untouched_page_saves_the_sheet_that_the_package_wrote(open_page: Callable[..., Any], folder: Path) -> None:
    saved = save(open_page(), folder).read_bytes().replace(b"\r\n", b"\n")
    assert saved == (folder / "review.csv").read_bytes().replace(b"\r\n", b"\n")


def test_the_page_guards_cells_as_the_package_does(open_page: Callable[..., Any]) -> None:
    safe, whole = open_page().evaluate("(texts) => [texts.map(safe), texts.map((text) => whole(safe(text)))]", NASTY)
    assert safe == [safe_cell(text) for text in NASTY]
    assert whole == NASTY


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_saved_file_comes_back_in_another_browser(open_page: Callable[..., Any], folder: Path, encoding: str) -> None:
    page = open_page()
    fill(page)
    path = save(page, folder)
    path.write_bytes(path.read_text(encoding="utf-8-sig").replace('","', '";"').encode(encoding))
    other = open_page()
    other.set_input_files("#import", path)
    other.wait_for_function("document.getElementById('progress').value .startsWith('1 of 5 rated')")
    assert save(other, folder, "again.csv").read_bytes() == save(page, folder).read_bytes()


@pytest.mark.parametrize(("answer", "rated"), [("accept", "0 of 5 rated"), ("dismiss", "1 of 5 rated, 1 in part")])
def test_a_file_takes_the_place_of_entries_only_when_told_so(
    open_page: Callable[..., Any], folder: Path, answer: str, rated: str
) -> None:
    page = open_page()
    fill(page)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), getattr(dialog, answer)()))
    page.set_input_files("#import", folder / "review.csv")
    page.wait_for_function("document.getElementById('import').value === ''")
    assert asked == ["Replace what is entered here with the contents of the file?"]
    assert page.text_content("#progress") == rated


def test_a_file_of_another_sheet_changes_nothing(open_page: Callable[..., Any], folder: Path) -> None:
    page = open_page()
    fill(page)
    wrong = folder / "wrong.csv"
    wrong.write_text((folder / "review.csv").read_text(encoding="utf-8").replace('"r', '"s'), encoding="utf-8")
    page.set_input_files("#import", wrong)
    page.wait_for_selector("#told:not(:empty)")
    assert page.text_content("#told") == "This file is not a CSV of this sheet. Nothing was changed."
    assert page.text_content("#progress") == "1 of 5 rated, 1 in part"


def test_two_tabs_do_not_undo_each_other(open_page: Callable[..., Any]) -> None:
    page = open_page()
    other = page.context.new_page()
    other.goto(page.url)
    rate(page, 1, "123", "a")
    other.wait_for_selector('input[name="1:clarity_a"][value="3"]:checked', state="attached")
    rate(other, 2, "444", "a")
    page.wait_for_selector('input[name="2:clarity_a"][value="4"]:checked', state="attached")
    assert page.text_content("#progress") == "0 of 5 rated, 2 in part"


def test_a_file_without_a_name_is_told(open_page: Callable[..., Any], folder: Path) -> None:
    page = open_page()
    save(page, folder)
    assert page.text_content("#told").startswith("Saved without a name.")
    page.fill("#reviewer", "Ann")
    assert page.text_content("#told") == ""
    save(page, folder)
    assert page.text_content("#told") == ""


def test_text_of_answers_is_shown_and_never_obeyed(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.title() == "Review of answers"
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("article").nth(2).inner_text()
    assert page.locator("article").nth(0).locator(".answer").nth(0).inner_text().endswith(f"\n\n{NOTICE}")


def test_the_keyboard_is_enough_and_every_field_has_its_own_name(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.click("#next")
    for key in ("Tab", "Space", "ArrowRight", "ArrowRight", "Tab", "Space"):
        page.keyboard.press(key)
    assert page.is_checked('input[name="1:correctness_a"][value="3"]')
    assert page.is_checked('input[name="1:completeness_a"][value="1"]')
    assert page.get_by_role("group", name="Clarity of answer B, row 2, 1 worst to 5 best").count() == 1
    assert page.get_by_role("checkbox", name="Could harm (answer A, row 1)").count() == 1


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme)
    fill(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrast, text = page.evaluate(test_pages.CONTRAST)
    assert contrast >= 4.5, text
    sides = page.locator("article").first.locator(".sides > section")
    tops = [sides.nth(index).bounding_box()["y"] for index in range(2)]
    assert (tops[0] == tops[1]) == (width > 800)
