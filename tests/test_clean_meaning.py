"""Cleaning never changes what a text says; what it costs or cannot decide is counted with examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console

from alpacare_sft.data.characters import find_damage, find_uncertain, remove_non_printable, straighten_quotes
from alpacare_sft.data.clean import CleanedRows, clean_rows, is_empty
from alpacare_sft.data.text import collapse_lines, strip
from alpacare_sft.recipe.sections import CleanSection
from alpacare_sft.reporting.pages import CLEANING, cleaning_notes, save_data_report
from alpacare_sft.reporting.terminal import notes_table
from tests.conftest import batches_of

FILLER = "This is a whole sentence."


def clean(*outputs: str, **keys: Any) -> CleanedRows:
    rows = [{"id": n, "instruction": f"Question {n}?", "input": "", "output": text} for n, text in enumerate(outputs)]
    return clean_rows(batches_of(Dataset.from_list(rows)), CleanSection(**keys))


def cleaned(text: str, **keys: Any) -> str:
    rows = clean(text, **{"min_characters": 0, **keys}).rows
    return str(rows[0]["output"])


def counts(result: CleanedRows) -> dict[str, int]:
    return {name: note["rows"] for name, note in result.notes.items() if note["rows"]}


LAYOUTS = {
    "nested list": "- Fever\n  - above 38.5 °C\n    - with rigors\n- Cough",
    "numbered nested list": "1. Airway\n   a) open it\n   b) look\n2. Breathing",
    "fenced code": "Use:\n\n```python\ndef bmi(kg, m):\n    x   = m ** 2\n\n\n    return kg / x\n```",
    "code without a fence": "def bmi(kg, m):\n    if m > 0:\n        return kg / m  # per  metre",
    "table by tabs": "Drug\tDose\tRoute\nAspirin\t75 mg\toral\nHeparin\t\tsubcutaneous",
    "table with an empty first cell": "\tDay 1\tDay 2\nNa\t140\t138\nK\t\t4.1",
    "table by spaces": "Drug        Dose    Unit\nAspirin     75      mg\nThyroxine   50      µg",
    "numbers to the right": "Na    140\nK       4\nGlucose 5.5\nUrea   12  high",
    "table with a heading between": "Drug   Dose\nACE inhibitors\nRamipril   5 mg\nBeta blockers\nAtenolol   50 mg",
    "table of Markdown": "| Drug    | Dose  |\n|---------|-------|\n| Aspirin | 75 mg |",
    "empty cells in one line": "Na\t\tK\t4.2",
    "a number in its cell": "Na\t140",
    "first item indented": "  - outer\n    - inner\n  - outer",
    "YAML": "drug:\n name: aspirin\n dose: 75",
    "dialogue": "A:\n    Where?\n\nB:\n    Here.",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_that_says_something_stays(layout: str) -> None:
    assert cleaned(LAYOUTS[layout]) == LAYOUTS[layout]
    assert cleaned(LAYOUTS[layout] + " \n\n", straight_quotes=False) == LAYOUTS[layout]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  He  came. \nShe left.  ", "He came.\nShe left."),
        ("One sentence.  Another.\nA third.  A fourth.", "One sentence. Another.\nA third. A fourth."),
        ("5\u00a0mg,\ta slip\n\n\n\nNext", "5 mg, a slip\n\nNext"),
        ("   Indented alone.\nThe rest is not.", "Indented alone.\nThe rest is not."),
        ("Dear\u3000doctor,\u2003hello", "Dear doctor, hello"),
    ],
)
def test_white_space_of_prose_is_noise(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\v", "\f", "\x85", "\r", "\r\n"])
def test_every_line_break_is_one(mark: str) -> None:
    text = f"Do:{mark}1. Sit{mark}2. Wait"
    assert cleaned(text) == "Do:\n1. Sit\n2. Wait"
    assert remove_non_printable(text + "\u200b") == "Do:\n1. Sit\n2. Wait"
    assert cleaned(text, keep_newlines=False) == "Do: 1. Sit 2. Wait"


@pytest.mark.parametrize(
    "text", [*LAYOUTS.values(), "a\n  b\n\n\nc  d\n e\tf", " x\n\ty  z", "- a\u2028  - b\x85\x85\x85c"]
)
def test_white_space_is_settled_after_one_pass(text: str) -> None:
    once = collapse_lines(strip(text))
    assert collapse_lines(strip(once)) == once


CLINICAL = [
    "µg μg ° º ± × ≤ ≥ ½ ¼ 10⁶ 10⁻³ m² H₂O ′ ″ ‰ Ω Å",
    "می\u200cخواهم دارو",  # ZWNJ parts, in Persian
    "ക്\u200d क्\u200dष ශ්\u200dරී",  # ZWJ joins, in Malayalam, Hindi and Sinhala
    "1403 ه\u200d",  # and gives an Arabic letter its form
    "👩\u200d⚕\ufe0f 👨\u200d👩\u200d👧 ❤\ufe0f\u200d🩹",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
    "الجرعة \u200e5 mg\u200f/يوم",  # marks of direction order what a reader sees
    "\u202eAB",
    "กิน\u200bยา",  # a zero-width space parts words of Thai
    "e\u0301 ș ḥ̣ ё й 한 が",
    "\u0601 ١٢",  # a sign of Arabic that is a format character and is seen
    "ᠮᠣᠩ\u180eᠠ",
    "2\u00ad8 °C, \u00ad5, hyper\u00ad\ntension",  # here a soft hyphen is the one that is seen
    "2\x028 °C and 5 \x07g",  # a sign that the PDF's font lost
    "3‚5 mg",
    "15 \ue000g \U000f0000",
]


@pytest.mark.parametrize("text", CLINICAL)
def test_letters_and_signs_of_every_script_stay(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ten\u200cdon ten\u200ddon", "tendon tendon"),
        ("hyper\u00adtension", "hypertension"),
        ("\u200e12/03/2020 \u202abold\u202c", "12/03/2020 bold"),
        ("a\u2060b\u206ac\U000e0041d", "abcd"),
        ("‚so‘ „so“ it’s", "'so' \"so\" it's"),
        ("a\x1fb", "a b"),
    ],
)
def test_what_says_nothing_goes(text: str, expected: str) -> None:
    assert remove_non_printable(straighten_quotes(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Give 15 \uf06dg at 2\uf02d8 \uf0b0C.", "Give 15 µg at 2−8 °C."),
        ("5\uf06dg/kg, 250/\uf06dL, 10 \uf06dmol/L \uf0b1 2 \uf06dmol/L", "5µg/kg, 250/µL, 10 µmol/L ± 2 µmol/L"),
        ("in \uf06dmol/L (\uf06dg)", "in µmol/L (µg)"),
        ("age \uf0b3 65, BP \uf0a3 140/90", "age ≥ 65, BP ≤ 140/90"),
        ("2.5 \uf0b4 10, p \uf03c 0.05, at \uf02d20 \uf0b0C", "2.5 × 10, p < 0.05, at −20 °C"),
        ("flexion to 90\uf0b0, 38\uf0b0F", "flexion to 90°, 38°F"),
        ("IL-1\uf062 and \uf0622-agonist", "IL-1β and β2-agonist"),
        ("15\u00a0\uf06dg", "15 µg"),
        ("\uf0b3 5 mm", "≥ 5 mm"),
    ],
)
def test_signs_of_the_symbol_font_are_mended_where_they_are_certain(text: str, expected: str) -> None:
    assert cleaned(text) == expected
    assert counts(clean(FILLER, text + " " + FILLER)) == {"signs_mended": 1}


@pytest.mark.parametrize(
    "text",
    [
        "\uf0b7 5 mg\n\uf0a7 6 mg \uf0fc 7",  # bullets and ticks of Wingdings
        "\uf06d 5 mg",  # a bullet before a number
        "\uf06dmol\n\uf06dg/L",  # at the beginning of a line
        "3 \uf06dM \uf06dF",  # boxes to tick
        "Dose \uf0a3 5 mg \uf0a3 10 mg",
        "Criteria:\n\uf0b3 5 mm\n\uf0b3 6 mm",
        "5 \uf06d\uf06dg, 5 \uf0b7\uf06dg, 2\uf02d\uf0b08",  # two in a row
        "TNF-\uf061, a \uf06d alone, 5 \uf06dx",
        "Give 1 \uf06cg",  # a bullet of Wingdings, λ of Symbol
        "\uf02d 5 mg",
    ],
)
def test_a_private_character_that_is_not_certain_stays_and_is_counted(text: str) -> None:
    result = clean(FILLER, text)
    assert result.rows[1]["output"] == text
    assert counts(result) == {"uncertain_characters": 1}
    assert "<U+F0" in result.notes["uncertain_characters"]["examples"][0]["text"]


@pytest.mark.parametrize(
    "text", ["15 Âµg", "2â€“8 °C", "2â€\u201c8", "â€™", "5 Î¼g", "3 Ã— 4", "15 ?g", "38 ?C", "15 \ufffdg"]
)
@pytest.mark.parametrize("keep_newlines", [True, False])
def test_damaged_text_is_counted_and_never_guessed(text: str, keep_newlines: bool) -> None:
    result = clean(FILLER, f"Give {text} daily.", keep_newlines=keep_newlines)
    assert result.rows[1]["output"] == f"Give {text} daily."
    assert counts(result) == {"damaged_text": 1}
    assert result.notes["damaged_text"]["examples"][0]["id"] == 1


@pytest.mark.parametrize(
    "text", [*CLINICAL[:7], "“Ü–”", "naïve café", "ROMÂNIA", "Is it 5? Go.", "What? Give 5 g", "血压 血圧"]
)
def test_whole_text_is_not_called_damaged(text: str) -> None:
    assert (find_damage(text), find_uncertain(text)) == (None, None)


def test_bytes_of_windows_read_as_latin_1_stay() -> None:
    result = clean("From 2\x968 mg a day.")
    assert result.rows[0]["output"] == "From 2\x968 mg a day."
    assert counts(result) == {"damaged_text": 1}
    assert "2<U+0096>8" in result.notes["damaged_text"]["examples"][0]["text"]


LOSSES = {
    "list": "Do this:\n- sit down.\n- wait.",
    "numbers": "First.\n\n1. Sit down.\n2. Wait.",
    "table": "Drug\tDose\nAspirin\t75 mg",
    "table by spaces": "Drug:   Dose.\nAspirin:   75 mg.",
    "cells in one line": "Na\t\tK\t4.2",
    "code": "Run it.\n```\nx = 1.\n```",
    "lines": "BP 120/80\nHR 72\nTemp 37.1",
}


def test_what_the_reference_flattens_is_counted() -> None:
    prose = [
        "One paragraph.\n\nAnother one.",
        "A line that a mail program wrapped at its seventieth character, as\nthey do.",
    ]
    result = clean(*LOSSES.values(), *prose, "One line with  two blanks.", keep_newlines=False)
    assert list(result.rows["output"]) == [
        " ".join(text.split()) for text in (*LOSSES.values(), *prose, "One line with  two blanks.")
    ]
    assert result.notes["structure_lost"]["rows"] == len(LOSSES)
    assert [example["id"] for example in result.notes["structure_lost"]["examples"]] == [0, 1, 2, 3, 4]
    assert "structure_lost" not in counts(clean(*LOSSES.values()))


SHORT = ["B", "No", "5 µg", "C)", "Да", "否", "7.4", "+"]


def test_short_answers_that_may_be_right_are_counted_apart() -> None:
    result = clean(*SHORT, "...", "—", FILLER)
    assert list(result.rows["output"]) == [FILLER]
    assert counts(result) == {"short_answers": len(SHORT)}
    assert [example["text"] for example in result.notes["short_answers"]["examples"]] == SHORT[:5]
    assert list(clean(*SHORT, min_characters=1).rows["output"]) == SHORT


MARKS = tuple(CleanSection().no_input_marks)


@pytest.mark.parametrize("text", [None, "", " \n", "nan", "NaN", "null", "<NA>", "<na>.", "N/A", "<noinput>", "(null)"])
def test_one_list_says_what_is_empty(text: str | None) -> None:
    assert is_empty(text, MARKS)


@pytest.mark.parametrize("text", ["Na", "[Na]", "NA", "-", "none", "None.", "No", "0", "B", "nil", "Nano"])
def test_what_can_be_an_answer_or_an_entry_is_not_empty(text: str) -> None:
    assert not is_empty(text, MARKS)


def test_a_mark_counts_as_empty_in_every_column() -> None:
    texts = [("nan", "", FILLER), (FILLER, "null", "N/A"), (FILLER, "<NA>", FILLER), (FILLER, "Na", FILLER)]
    rows = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in texts]
    result = clean_rows(batches_of(Dataset.from_list([{"id": n, **row} for n, row in enumerate(rows)])), CleanSection())
    assert [(row["id"], row["input"]) for row in result.rows] == [(2, ""), (3, "Na")]
    assert result.steps[0]["dropped"] == 2
    assert counts(result) == {"ambiguous_inputs": 1}


def test_a_system_turn_is_cleaned_and_never_a_reason_to_drop() -> None:
    systems = [None, "", " be “kind”  ", "nan"]
    rows = [
        {"id": n, "system": text, "instruction": f"Question {n}?", "input": "", "output": FILLER}
        for n, text in enumerate(systems)
    ]
    result = clean_rows(batches_of(Dataset.from_list(rows)), CleanSection())
    assert list(result.rows["system"]) == [None, "", 'be "kind"', "nan"]


def test_notes_are_shown_at_the_terminal_on_the_page_and_on_the_card(tmp_path: Path) -> None:
    rows = clean("B", "Keep it at 5 \uf06dg daily.", "\uf0b7 5 mg\n\uf0b7 6 mg <b>", "15 Âµg daily")
    report = {"rows": {"loaded": 4, "cleaned": 3, "kept": 3}, "steps": rows.steps, "cleaning": rows.notes}
    save_data_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w", encoding="utf-8"))
    console.print(notes_table(report))
    for text in (page, console.export_text()):
        for name in ("signs_mended", "uncertain_characters", "damaged_text", "short_answers"):
            assert CLEANING[name][0] in text and CLEANING[name][1].split(".")[0] in text
        assert "5 µg" in text and "U+F06D" in text and "15 Âµg" in text and "min_characters: 1" in text
    assert "&lt;b&gt;" in page and CLEANING["structure_lost"][0] not in page
    assert notes_table({"cleaning": {}}) == "" and cleaning_notes({}) == []


def test_the_report_of_a_run_holds_the_notes(
    document: dict[str, Any], make_recipe: Callable[..., Any], write_rows: Callable[..., Path], tokenizer: Any
) -> None:
    from alpacare_sft.data.prepare import prepare_data

    rows = [{"instruction": f"Name bone {n}.", "input": "", "output": f"It is bone {n}."} for n in range(10)]
    rows += [{"instruction": "Which one is it?", "input": "", "output": "B"}]
    document["data"] = {"path": str(write_rows(rows)), "splits": {"train": 6, "validation": 2, "test": 2}}
    report = json.loads(json.dumps(prepare_data(make_recipe(), tokenizer).report))
    assert report["cleaning"]["short_answers"] == {
        "rows": 1, "examples": [{"id": 10, "column": "output", "text": "B"}]
    }  # fmt: skip
