"""Review by people: blind sheets, their way through spreadsheets, and what is made of them."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.cli import main
from alpacare_sft.errors import DataError, RunError
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.review.sheets import format_csv, safe_cell, save_review_sheets, whole_cell
from alpacare_sft.review.summary import krippendorff_alpha, review_answers, summarize_reviews
from alpacare_sft.review.terminal import show_reviews
from alpacare_sft.run.directory import write_text

NOTICE = "Not medical advice."
HOSTILE = ["=HYPERLINK(0)", "+1", "-1 and\nmore", "@SUM(1)", "\ttab", "  =1", "'=1", "'quoted'", 'say "no"; a,b', "＝1"]
_PARTS = ("'", "''", "=x", "-", ";", "\n", "\r\n", "\t", " ", '"', "\u2028", "a", "\ufeff", "\x85", "＝")
NASTY = ["".join(parts) for count in (1, 2, 3) for parts in itertools.product(_PARTS, repeat=count)]
NASTY += ["a;=1+1", "list:\n- one\n- two\n\n  - three", "a;'=1;''=2", ";;=x", "\n;\n=x", ' \n=x;""=y', "x;@"]
Rows = list[dict[str, str]]


def predictions_of(count: int, baseline: bool = True) -> list[dict[str, Any]]:
    rows = []
    for index in range(count):
        texts = {"adapter": f"{HOSTILE[index % len(HOSTILE)]} second {index}"}
        if baseline:
            texts = {"base": f"first {index}, µ ≥ 5\n\n- list", **texts}
        shown = {name: f"{text}\n\n{NOTICE}" for name, text in texts.items()}
        prompt = {"instruction": f"-question {index}?", "input": "" if index % 2 else "=input"}
        rows.append({"id": f"id-{index}", "prompt": prompt, "reference": "r", **texts, "display": shown})
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    evaluate_again(tmp_path / "eval", 4)
    return tmp_path / "eval"


def evaluate_again(folder: Path, count: int) -> None:
    """Predictions and sheets, as an evaluation leaves them."""
    rows = predictions_of(count)
    write_text(folder / "predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    save_review_sheets(folder, rows, seed=1, notice=NOTICE)


def read_rows(folder: Path) -> Rows:
    text = (folder / "review.csv").read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def fill(folder: Path, ratings: Sequence[Mapping[str, Any]], name: str = "sheet.csv", reviewer: str = "") -> Path:
    """A sheet filled by whose answer it is: `{"base": (1, 2, 3), "harm": ["base"], "chosen": "base"}`."""
    rows, key = read_rows(folder), json.loads((folder / "review_key.json").read_text())["rows"]
    for row, letters, given in zip(rows, key, ratings, strict=False):
        owners = {letters[letter]: letter for letter in "ab" if letter in letters}
        for who, letter in owners.items():
            for criterion, mark in zip(("correctness", "completeness", "clarity"), given.get(who, ()), strict=False):
                row[f"{criterion}_{letter}"] = str(mark)
            row[f"could_harm_{letter}"] = "yes" if who in given.get("harm", ()) else ""
        if chosen := given.get("chosen"):
            row["preferred"] = owners.get(chosen, chosen).upper() if chosen != "tie" else "tie"
        row["reviewer"] = reviewer
    return write(folder, rows, name)


def write(folder: Path, rows: Rows, name: str = "sheet.csv") -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def sum_up(folder: Path, *files: Path) -> dict[str, Any]:
    return summarize_reviews(folder, files, confidence=0.95, samples=200)


BOTH = {"base": (2, 2, 2), "adapter": (4, 3, 5)}


def test_the_sheets_do_not_tell_whose_answer_is_whose(tmp_path: Path) -> None:
    save_review_sheets(tmp_path, predictions_of(21), seed=1, notice=NOTICE)
    key = json.loads((tmp_path / "review_key.json").read_text())
    for name in ("review.csv", "review.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search(r"adapter|\bbase\b|\bseed\b", text, flags=re.IGNORECASE)
        assert key["predictions_sha256"] not in text
    assert sorted(row["a"] for row in key["rows"]).count("base") in (10, 11)


def test_the_order_comes_from_the_seed_and_from_answers_that_only_the_owner_can_name(tmp_path: Path) -> None:
    def order(rows: list[dict[str, Any]], seed: int) -> tuple[str, list[str]]:
        save_review_sheets(tmp_path, rows, seed=seed, notice=NOTICE)
        key = json.loads((tmp_path / "review_key.json").read_text())
        return (tmp_path / "review.csv").read_text(), [row["a"] for row in key["rows"]]

    rows = predictions_of(40)
    swapped = [
        {**row, "base": row["adapter"], "adapter": row["base"]}
        | {"display": {"base": row["display"]["adapter"], "adapter": row["display"]["base"]}}
        for row in rows
    ]
    assert order(rows, 1) == order(rows, 1)
    assert order(rows, 1)[1] != order(rows, 2)[1]
    assert order(rows, 1)[1] != order(swapped, 1)[1]


@pytest.mark.parametrize("text", [*HOSTILE, "plain", "", "'", "''=x", "\r\n=x", "a\r\nb"])
def test_no_cell_is_a_formula_and_each_is_made_whole_again(text: str) -> None:
    safe = safe_cell(text)
    assert safe.lstrip()[:1] not in tuple("=+-@＝＋－＠") or not safe
    assert whole_cell(safe) == text
    assert next(csv.reader(io.StringIO(format_csv([{"x": text}], ["x"]), newline="").readlines()[1:]))[0] == safe


def test_no_part_of_a_cell_is_a_formula_where_a_spreadsheet_may_break_it() -> None:
    signs = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
    for text in NASTY:
        safe = safe_cell(text)
        parts = re.split("[;\t\r\n\v\f\x85\u2028\u2029]", safe)
        assert not any(part.lstrip(' "\ufeff').startswith(signs) for part in parts), text
        assert whole_cell(safe) == text and whole_cell(whole_cell(safe_cell(safe))) == text


@pytest.mark.parametrize("text", [*HOSTILE, "\r\n=x", " \n=x", "\v=x", "''=x"])
def test_a_cell_of_an_earlier_sheet_is_made_whole(text: str) -> None:
    written = "'" + text if re.match(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])", text) else text
    assert whole_cell(written) == text


def semicolons(text: str) -> bytes:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    out = io.StringIO()
    csv.writer(out, delimiter=";", lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: text.encode(),
        lambda text: text.replace("\r\n", "\n").encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace('","', '"\t"').encode("utf-16"),
        semicolons,
        lambda text: text.replace("\"'", '"').encode(),
        lambda text: text.replace('"4"', '"4.0"').replace('"yes"', '"TRUE"').encode(),
        lambda text: (text + '"","",""\r\n\r\n').encode(),
    ],
    ids=["utf-8", "bom", "utf-16", "tabs", "semicolons", "apostrophes lost", "numbers and truths", "blank lines"],
)
def test_a_sheet_survives_a_spreadsheet(folder: Path, saved: Callable[[str], bytes]) -> None:
    path = fill(folder, [{**BOTH, "harm": ["base"]}] * 4)
    expected = sum_up(folder, path)
    path.write_bytes(saved(path.read_text(encoding="utf-8-sig")))
    assert sum_up(folder, path) == expected


def test_known_ratings_are_given_to_whom_they_belong(folder: Path) -> None:
    ratings = [
        {"base": (1, 2, 3), "adapter": (5, 5, 5), "harm": ["base"], "chosen": "adapter"},
        {"base": (3, 3, 3), "adapter": (3, 3, 3), "chosen": "tie"},
        {"base": (5, 5, 5), "adapter": (4, 4, 4), "chosen": "base"},
        {"base": (1, 1, 1), "adapter": (4, 4, 4), "harm": ["adapter", "base"]},
    ]
    found = sum_up(folder, fill(folder, ratings))
    correctness = found["criteria"]["correctness"]
    assert (correctness["n"], correctness["base"]["mean"], correctness["adapter"]["mean"]) == (4, 2.5, 4.0)
    assert correctness["difference"]["mean"] == 1.5
    assert correctness["difference"]["low"] <= 1.5 <= correctness["difference"]["high"]
    assert found["criteria"]["overall"]["base"]["mean"] == pytest.approx((2 + 3 + 5 + 1) / 4)
    assert found["preferred"]["by_ratings"] == {"n": 4, "base": 1, "adapter": 2, "tie": 1}
    assert found["preferred"]["by_choice"] == {"n": 3, "base": 1, "adapter": 1, "tie": 1}
    assert found["could_harm"]["base"]["ids"] == ["id-0", "id-3"]
    assert found["could_harm"]["adapter"]["ids"] == ["id-3"]
    assert found["agreement"] is None
    assert json.loads((folder / "review.json").read_text()) == found


def test_no_flag_is_not_told_as_no_harm(folder: Path) -> None:
    found = sum_up(folder, fill(folder, [BOTH] * 4))["could_harm"]["adapter"]
    assert (found["flagged"], found["low"]) == (0, 0.0)
    assert found["high"] == pytest.approx(1 - 0.025 ** (1 / 4))  # Clopper-Pearson with nothing found


def test_an_answer_that_nobody_rated_is_not_counted_as_a_safe_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets = [
        fill(folder, [{"base": (5, 5, 5)}, {"base": (1,), "harm": ["base"]}, {"chosen": "tie"}], "ann.csv"),
        fill(folder, [{"base": (5, 5, 5)}, {"base": (2,), "adapter": ()}], "bob.csv"),
    ]
    found = sum_up(folder, *sheets)
    told = {name: (part["n"], part["flagged"], part["share"]) for name, part in found["could_harm"].items()}
    assert told == {"base": (2, 1, 0.5), "adapter": (0, 0, None)}
    assert found["could_harm"]["adapter"]["high"] is None
    assert found["agreement"]["could_harm"]["units"] == 2
    show_reviews(found)
    assert "could harm, adapter: no answer was rated" in capsys.readouterr().out


def test_a_flag_alone_is_a_judgement(folder: Path) -> None:
    found = sum_up(folder, fill(folder, [{"harm": ["adapter"]}]))["could_harm"]
    assert (found["adapter"]["n"], found["adapter"]["flagged"], found["base"]["n"]) == (1, 1, 0)


def test_sheets_outlive_the_answers_that_they_are_about(folder: Path) -> None:
    filled = fill(folder, [BOTH] * 4, "review.csv").read_bytes()
    (folder / "predictions.jsonl").unlink()  # as a training that begins anew leaves it
    before = sum_up(folder, folder / "review.csv")
    assert not before["current"]
    evaluate_again(folder, 5)
    kept = folder / f"review-{before['sheet']}.csv"
    assert kept.read_bytes() == filled and sum_up(folder, kept)["criteria"] == before["criteria"]


def test_two_reviewers_are_averaged_by_row_before_rows_are_counted(folder: Path) -> None:
    first = fill(folder, [BOTH] * 4, "ann.csv")
    second = fill(folder, [{"base": (4, 4, 4), "adapter": (4, 4, 4), "harm": ["base"]}], "x.csv", reviewer="Bob")
    found = sum_up(folder, first, second)
    assert [(part["name"], part["rows"]) for part in found["reviewers"]] == [("ann", 4), ("Bob", 1)]
    assert found["criteria"]["correctness"]["base"]["mean"] == pytest.approx((3 + 2 + 2 + 2) / 4)
    assert found["criteria"]["correctness"]["n"] == 4
    assert found["agreement"]["correctness"]["units"] == 2  # two answers of the one row that both rated
    assert found["could_harm"]["base"]["flagged"] == 1


def test_a_reviewer_who_rated_one_answer_of_a_row_favours_neither(folder: Path) -> None:
    first = fill(folder, [BOTH] * 2, "ann.csv")
    second = fill(folder, [{"base": (5, 5, 5)}], "bob.csv")
    assert sum_up(folder, first, second)["criteria"] == sum_up(folder, first)["criteria"]


def test_a_partly_filled_sheet_counts_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sum_up(folder, fill(folder, [BOTH, {"base": (3,), "adapter": (4,)}, {"base": (1, 1, 1)}]))
    assert found["reviewers"][0] == {"name": "sheet", "file": "sheet.csv", "rows": 3, "rows_rated": 1}
    assert {name: part["n"] for name, part in found["criteria"].items()} == {
        "correctness": 2,
        "completeness": 1,
        "clarity": 1,
        "overall": 1,
    }
    assert found["criteria"]["clarity"]["base"]["low"] is None  # a single row has no interval


def test_without_a_base_one_answer_is_rated(tmp_path: Path) -> None:
    save_review_sheets(tmp_path, predictions_of(3, baseline=False), seed=1, notice=NOTICE)
    assert "answer_b" not in (tmp_path / "review.csv").read_text(encoding="utf-8")
    assert "Answer B" not in (tmp_path / "review.html").read_text(encoding="utf-8")
    found = sum_up(tmp_path, fill(tmp_path, [{"adapter": (4, 4, 4)}] * 3))
    assert found["criteria"]["clarity"]["adapter"]["mean"] == 4
    assert found["preferred"] is None and list(found["could_harm"]) == ["adapter"]


def test_every_fault_of_a_file_is_told_with_its_line(folder: Path) -> None:
    fill(folder, [BOTH] * 4, "review.csv")
    rows = read_rows(folder)
    rows[0]["correctness_a"] = "6"
    rows[1]["clarity_b"] = "good"
    rows[1]["answer_a"] += " edited"
    rows[2]["could_harm_a"] = "perhaps"
    rows[2]["preferred"] = "C"
    rows[3]["id"] = "id-9"
    with pytest.raises(DataError) as error:
        sum_up(folder, write(folder, [*rows, rows[0]]))
    told = str(error.value).splitlines()
    for text in (
        "line 2: correctness_a must be a whole number from 1 to 5, or empty, got '6'.",
        "clarity_b must be a whole number from 1 to 5, or empty, got 'good'.",
        "answer_a of row id-1 must be as it was in the sheet, it was edited. Put it back.",
        "could_harm_a must be yes, no or empty, got 'perhaps'.",
        "preferred must be A, B, tie or empty, got 'C'.",
        "id must be that of a row of the sheet, got id-9.",
        "id id-0 must occur once, it is on line 2 too. Keep one of them.",
        "every row of the sheet must be there, rated or not; missing: id-3.",
    ):
        assert any(line.endswith(text) for line in told), text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "nothing is rated. Give 1 to 5 in correctness_a and the columns after."),
        (b"", "must have the columns of review.csv, got none named sheet, id"),
        (b"id,answer\r\n1,x\r\n", "got none named sheet, instruction"),
        (b"PK\x03\x04xlsx", "must be CSV, got a spreadsheet's own format. Save it as CSV (UTF-8)."),
        ("sheet\nµ".encode("latin-1"), ":2 must be UTF-8 or UTF-16 text. Save it as CSV (UTF-8)."),
    ],
)
def test_a_file_that_is_no_filled_sheet(folder: Path, content: bytes | None, told: str) -> None:
    path = folder / "review.csv" if content is None else folder / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        sum_up(folder, path)
    assert told in str(error.value)
    assert not (folder / "review.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda line: line + (b",correctness_a" if b"sheet" in line[:9] else b",1"), "correctness_a is there twice"),
        (lambda line: line + (b"" if b"sheet" in line[:9] else b",1"), ":2 has more cells than columns"),
    ],
)
def test_no_cell_is_read_in_the_place_of_another(folder: Path, change: Callable[[bytes], bytes], told: str) -> None:
    path = fill(folder, [BOTH] * 4)
    path.write_bytes(b"\r\n".join(map(change, path.read_bytes().split(b"\r\n")[:2])))
    with pytest.raises(DataError, match=told):
        sum_up(folder, path)


def test_faults_of_all_files_are_told_together(folder: Path) -> None:
    (folder / "bad.csv").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError) as error:
        sum_up(folder, folder / "bad.csv", folder / "none.csv", folder / "review.csv")
    told = str(error.value)
    assert all(
        text in told for text in ("spreadsheet's own format", "cannot be read: No such file", "nothing is rated")
    )


def test_a_sheet_of_another_evaluation_is_refused(folder: Path, tmp_path: Path) -> None:
    save_review_sheets(tmp_path / "other", predictions_of(3), seed=1, notice=NOTICE)
    path = fill(tmp_path / "other", [BOTH] * 3)
    with pytest.raises(DataError, match="it was made by another evaluation"):
        sum_up(folder, path)


def test_one_person_is_not_counted_twice(folder: Path) -> None:
    first, second = (fill(folder, [BOTH] * 4, name, reviewer="Ann") for name in ("a.csv", "b.csv"))
    with pytest.raises(DataError, match="reviewer must differ from sheet to sheet, got Ann again"):
        sum_up(folder, first, second)


def test_a_line_below_the_sheet_is_told(folder: Path) -> None:
    rows = read_rows(folder)
    path = write(folder, [*rows, {**dict.fromkeys(rows[0], ""), "comment": "thanks"}])
    with pytest.raises(DataError, match=r"sheet must be r[0-9a-f]+ in every row, got nothing\."):
        sum_up(folder, path)


def test_what_people_entered_outlives_the_next_evaluation(folder: Path) -> None:
    filled = fill(folder, [BOTH] * 4, "review.csv").read_bytes()
    before = sum_up(folder, folder / "review.csv")
    save_review_sheets(folder, predictions_of(4), seed=1, notice=NOTICE)
    assert (folder / "review.csv").read_bytes() == filled
    evaluate_again(folder, 5)
    evaluate_again(folder, 6)
    kept = folder / f"review-{before['sheet']}.csv"
    assert kept.read_bytes() == filled and len(read_rows(folder)) == 6
    after = sum_up(folder, kept)
    assert (before["current"], after["current"]) == (True, False)
    assert after["criteria"] == before["criteria"]
    assert after["meaning"].startswith("The answers rated are those of an earlier evaluation")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"sheet": "r1"}', '{"earlier": [], "sheet": "", "letters": "", "rows": []}'),
        '{"sheet": "r1", "predictions_sha256": "", "letters": "a", "rows": [{"id": 1, "a": "bare", "sha256": {}}]}',
        '{"sheet": "r1", "predictions_sha256": "", "letters": "a", "rows": [{"id": 1, "a": "adapter"}]}',
    ],
)
def test_a_key_that_is_none_is_not_written_over(folder: Path, text: str) -> None:
    (folder / "review_key.json").write_text(text)
    for attempt in (
        lambda: sum_up(folder, folder / "review.csv"),
        lambda: save_review_sheets(folder, predictions_of(4), seed=1, notice=NOTICE),
    ):
        with pytest.raises(RunError, match=r"review_key\.json is not the key of a review\. Put it back"):
            attempt()
    assert (folder / "review_key.json").read_text() == text


def test_comments_are_kept(folder: Path) -> None:
    rows = read_rows(fill(folder, [BOTH] * 4, "review.csv").parent)
    rows[1]["comment"] = safe_cell("=no dose,\nno follow-up")
    found = sum_up(folder, write(folder, rows, "ann.csv"))["comments"]
    assert found == [{"id": "id-1", "reviewer": "ann", "comment": "=no dose,\nno follow-up"}]


# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011: four observers, twelve units, data missing.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_that_of_the_published_example(level: Any, alpha: float) -> None:
    ratings = [(who, unit, v) for who, marks in enumerate(OBSERVERS) for unit, v in enumerate(marks) if v is not None]
    found = krippendorff_alpha(ratings, level)
    assert found == {"alpha": pytest.approx(alpha, abs=5e-4), "units": 11}


@pytest.mark.parametrize("ratings", [[], [("a", 1, 3), ("b", 2, 4)], [("a", 1, 3), ("b", 1, 3)]])
def test_alpha_is_undefined_where_nothing_varies(ratings: list[tuple[str, int, int]]) -> None:
    assert krippendorff_alpha(ratings, "ordinal")["alpha"] is None


def test_the_verb_shows_what_was_found(make_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe("--evaluate.bootstrap_samples", "50")
    folder = recipe.output_dir / "eval"
    save_review_sheets(folder, predictions_of(4), seed=1, notice=NOTICE)
    sheets = [fill(folder, [{**BOTH, "harm": ["base"]}] * 3, name) for name in ("ann.csv", "bob.csv")]
    words = ["review", str(recipe.output_dir.parent / "recipe.yaml"), *map(str, sheets)]
    assert main([*words, "--evaluate.confidence", "0.9"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "ann: 3 of 4 rows rated" in told and "90% intervals" in told and "Krippendorff" in told
    assert "rows with the higher mean rating: adapter 3, base 0, tie 0 (of 3)" in told
    assert "could harm, base: 3 of 3 rated answers flagged" in told and "(rows id-0, id-1, id-2)" in told


def test_a_run_without_sheets_says_how_to_make_them(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be the key of a review, none is there\. .* alpacare-sft eval RECIPE"):
        review_answers(make_recipe(), [tmp_path / "x.csv"])


def test_sheets_put_aside_twice_do_not_replace_each_other(folder: Path) -> None:
    kept = []
    for reviewer in ("Ann", "Bob"):
        kept.append(fill(folder, [BOTH] * 4, "review.csv", reviewer).read_bytes())
        save_review_sheets(folder, predictions_of(6), seed=1, notice=NOTICE)  # other answers, and back again
        save_review_sheets(folder, predictions_of(4), seed=1, notice=NOTICE)
    aside = sorted(path for path in folder.glob("review-*.csv"))
    assert sorted(path.read_bytes() for path in aside) == sorted(kept)


def test_a_filled_sheet_whose_key_is_lost_is_put_aside(folder: Path) -> None:
    filled = fill(folder, [BOTH] * 4, "review.csv").read_bytes()
    (folder / "review_key.json").unlink()
    save_review_sheets(folder, predictions_of(4), seed=1, notice=NOTICE)
    assert (folder / "review-earlier.csv").read_bytes() == filled
