"""Each cleaning step alone, their order and counts, and what cleaning leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from datasets import Dataset

from alpacare_sft.data.clean import (
    blank_marks,
    clean_rows,
    collapse_all,
    collapse_lines,
    remove_non_printable,
    straighten_quotes,
    strip,
)
from alpacare_sft.data.load import load_rows
from alpacare_sft.recipe.sections import CleanSection, DataSection
from tests.conftest import batches_of

OFF: dict[str, Any] = {
    "drop_missing": False,
    "drop_duplicates": False,
    "strip": False,
    "collapse_whitespace": False,
    "straight_quotes": False,
    "remove_non_printable": False,
    "min_characters": 0,
    "no_input_marks": [],
}
MEANT = "µg ≥ 38 °C, ′ and ″, café, é and e\u0301, 血压 血圧 糖尿病, Привет, مرحبا, 🩺 👍🏽, ½ → × ± – — …"


def dataset(rows: Sequence[tuple[str | None, str | None, str | None]]) -> Any:
    from datasets import Dataset, Features, Value

    columns = {name: [row[i] for row in rows] for i, name in enumerate(("instruction", "input", "output"))}
    features = Features({**{name: Value("string") for name in columns}, "id": Value("int64")})
    return Dataset.from_dict({**columns, "id": list(range(len(rows)))}, features=features)


def cleaned(rows: Sequence[Any], **steps: Any) -> tuple[list[Any], list[tuple[str, int, int]]]:
    """Rows kept, and each step with what it dropped and changed; every step is off but those named."""
    result = clean_rows(batches_of(dataset(rows)), CleanSection(**{**OFF, **steps}))
    kept = result.rows
    texts = list(zip(kept["instruction"], kept["input"], kept["output"], strict=True))
    return texts, [(step["name"], step["dropped"], step["changed"]) for step in result.steps]


@pytest.fixture(scope="module")
def dirty() -> Any:
    return list(load_rows(DataSection(path="embedded_dirty")).batches)


@pytest.mark.parametrize("step", [strip, collapse_all, collapse_lines, remove_non_printable, straighten_quotes])
def test_every_step_leaves_what_is_meant_alone(step: Any) -> None:
    assert step(MEANT) == MEANT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ten\u200bdon", "tendon"),
        ("\ufeffWhat?", "What?"),
        ("a\u0007b\x00c\x7f", "abc"),
        ("a\u00adb", "ab"),
        ("a\ue000b", "a\ue000b"),  # may stand for a sign, so it is counted and stays
        ("a\nb\tc", "a\nb\tc"),
        (" \u200b ", ""),
    ],
)
def test_what_cannot_be_printed_goes(text: str, expected: str) -> None:
    assert remove_non_printable(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("it’s ‘so’", "it's 'so'"), ("“a” „b‟", '"a" "b"'), ("5′ 3″ is 160 cm", "5′ 3″ is 160 cm"), ("‚a‛", "'a'")],
)
def test_curly_quotes_become_straight_and_primes_stay(text: str, expected: str) -> None:
    assert straighten_quotes(text) == expected


LIST = "Do:\r\n\r\n\r\n1.  Sit \t down \n2. Wait\n\n\n\n"


def test_line_breaks_are_kept_or_become_spaces() -> None:
    assert collapse_lines(LIST) == "Do:\n\n1. Sit down\n2. Wait"
    assert collapse_all(LIST) == "Do: 1. Sit down 2. Wait"
    for keep, expected in ((True, collapse_lines(LIST)), (False, collapse_all(LIST))):
        assert cleaned([("a", "", LIST)], collapse_whitespace=True, keep_newlines=keep) == (
            [("a", "", expected)],
            [("collapse_whitespace", 0, 1)],
        )


def test_no_break_and_wide_spaces_collapse_too() -> None:
    assert collapse_lines("5\u00a0\u00a0mg\u3000of\u2003it") == "5 mg of it"


MARKS = tuple(CleanSection().no_input_marks)


@pytest.mark.parametrize(
    "text",
    ["<noinput>", "<NoInput>", "N/A", "n/a.", "N/A..", " No input ", "NULL", "nan", "<NA>", "[null]", "#N/A", ""],
)
def test_an_input_that_says_that_there_is_none_becomes_empty(text: str) -> None:
    assert blank_marks(text, MARKS) == ""


@pytest.mark.parametrize("text", [
        "None of these", "Na 140 mmol/l", "A nan", "-5 °C", "no input was given", "5",
        "none", "None", "Na", "[Na]", "NA", "-", "–", "nil",  # entries of a chart
    ],
)  # fmt: skip
def test_an_input_that_only_begins_so_stays(text: str) -> None:
    assert blank_marks(text, MARKS) == text


def test_marks_are_looked_for_in_the_input_alone() -> None:
    rows = [("None", "None", "None"), ("none", "", "n/a")]
    assert cleaned(rows, no_input_marks=["none", "n/a"]) == (
        [("None", "", "None"), ("none", "", "n/a")],
        [("no_input_marks", 0, 1)],
    )


def test_rows_without_instruction_or_output_are_dropped() -> None:
    rows = [("a", None, "b"), (None, "", "b"), ("a", "", None), (" \n", "", "b"), ("a", "", "\t"), ("a", "c", "b")]
    kept, steps = cleaned(rows, drop_missing=True)
    assert (kept, steps) == ([("a", None, "b"), ("a", "c", "b")], [("drop_missing", 4, 0)])


def test_the_first_of_equal_rows_is_kept_in_its_place() -> None:
    rows = [("b", "", "1"), ("a", "", "1"), ("b", "", "1"), ("a", "", "2"), ("a", "x", "1"), ("a", None, "1")]
    kept, steps = cleaned(rows, drop_duplicates=True)
    assert kept == [("b", "", "1"), ("a", "", "1"), ("a", "", "2"), ("a", "x", "1")]
    assert steps == [("drop_duplicates", 2, 0), ("drop_duplicates_after_cleaning", 0, 0)]


def test_cleaning_makes_copies_and_drops_them() -> None:
    kept, steps = cleaned([("a", "", "b"), (" a", "", "b ")], drop_duplicates=True, strip=True)
    assert kept == [("a", "", "b")]
    assert steps == [("drop_duplicates", 0, 0), ("strip", 0, 1), ("drop_duplicates_after_cleaning", 1, 0)]


def test_copies_in_another_unicode_form_are_dropped_and_other_spellings_stay() -> None:
    rows = [
        ("Fie\u0300vre de 38 °C?", "", "Oui."),
        ("Fièvre de 38\xa0°C?", "", "Oui."),
        ("fièvre de 38 °C?", "", "Oui."),
    ]
    kept, steps = cleaned([*rows, ("10⁶", "", "Oui."), ("106", "", "Oui.")], drop_duplicates=True)
    assert kept == [rows[0], rows[2], ("10⁶", "", "Oui."), ("106", "", "Oui.")]
    assert steps == [("drop_duplicates", 0, 0), ("drop_duplicates_after_cleaning", 1, 0)]


def test_a_row_with_another_system_turn_is_no_copy() -> None:
    from datasets import Dataset

    texts = {"instruction": "a", "input": "", "output": "b"}
    rows = [
        {"id": n, "system": system, **texts} for n, system in enumerate(["Be brief.", None, "Be brief.", "Be kind."])
    ]
    kept = clean_rows(batches_of(Dataset.from_list(rows)), CleanSection(**{**OFF, "drop_duplicates": True})).rows
    assert list(kept["id"]) == [0, 1, 3]


def test_short_rows_are_dropped_by_characters_and_not_bytes() -> None:
    rows = [("糖尿病とは?", "", "a" * 6), ("a" * 5, "", "a" * 9), ("a" * 9, "", "b" * 5)]
    assert cleaned(rows, min_characters=6) == (rows[:1], [("min_characters", 2, 0)])


def test_every_step_switched_off_changes_nothing() -> None:
    rows = [(" a’", None, "\u200b"), (" a’", None, "\u200b"), ("", "N/A", "")]
    assert cleaned(rows) == (rows, [])


DIRTY_STEPS = [
    ("drop_missing", 42, 34, 8, 0),
    ("drop_duplicates", 34, 32, 2, 0),
    ("strip", 32, 32, 0, 5),
    ("collapse_whitespace", 32, 32, 0, 5),
    ("straight_quotes", 32, 32, 0, 3),
    ("remove_non_printable", 32, 32, 0, 4),
    ("min_characters", 32, 29, 3, 0),
    ("no_input_marks", 29, 29, 0, 6),
    ("drop_duplicates_after_cleaning", 29, 26, 3, 0),
]
DIRTY_DROPPED = [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 16, 23, 24, 25]


def test_the_dirty_rows_show_every_step_in_its_order(dirty: Any) -> None:
    result = clean_rows(dirty, CleanSection())
    kept = result.rows
    assert [tuple(step.values()) for step in result.steps] == DIRTY_STEPS
    assert sorted(set(range(42)) - set(kept["id"])) == DIRTY_DROPPED
    assert not [text for column in ("instruction", "input", "output") for text in kept[column] if text is None]


def test_dirty_rows_come_out_as_a_person_would_write_them(dirty: Any) -> None:
    kept = clean_rows(dirty, CleanSection()).rows
    rows = {row["id"]: row for row in kept}
    assert rows[17]["instruction"] == 'What does the term "benign" mean?'
    assert rows[19]["output"] == "A tendon is a tough cord of fibrous tissue that joins muscle to bone."
    assert rows[20]["instruction"] == "What is a ligament?"
    assert rows[21]["instruction"] == "What is cartilage?"
    assert [rows[number]["input"] for number in range(26, 32)] == [""] * 6
    assert "≥ 5 mm" in rows[33]["output"] and "µm" in rows[33]["output"] and "血压" in rows[34]["output"]
    assert (rows[41]["instruction"], rows[41]["input"]) == ("What is a synapse?", "")


@pytest.mark.parametrize("keep_newlines", [True, False])
@pytest.mark.parametrize("path", ["embedded", "embedded_dirty"])
def test_cleaning_twice_is_cleaning_once(path: str, keep_newlines: bool) -> None:
    clean = CleanSection(keep_newlines=keep_newlines)
    once = clean_rows(load_rows(DataSection(path=path)).batches, clean).rows
    twice = clean_rows(batches_of(once), clean)
    assert twice.rows.to_list() == once.to_list()
    assert {(step["dropped"], step["changed"]) for step in twice.steps} == {(0, 0)}


def test_the_embedded_rows_are_clean() -> None:
    steps = clean_rows(load_rows(DataSection(path="embedded")).batches, CleanSection()).steps
    assert {(step["dropped"], step["changed"]) for step in steps} == {(0, 0)}


def test_no_row_is_a_result_and_not_an_error() -> None:
    kept, steps = cleaned([("a", "", "b")], drop_missing=True, min_characters=6, strip=True, no_input_marks=["-"])
    assert (kept, [step[1] for step in steps]) == ([], [0, 0, 1, 0])


def test_white_space_around_an_invisible_character_is_one_run_once_it_is_gone() -> None:
    rows = Dataset.from_dict(
        {
            "id": [0],
            "instruction": ["Say a\u200b word."],
            "input": [""],
            "output": ["One \u200b two.\n\n\u200b\n\n\nThree."],
        }
    )
    cleaned = clean_rows(batches_of(rows), CleanSection()).rows
    assert cleaned[0]["output"] == "One two.\n\nThree."
