"""Predictions → a blind sheet as CSV and as a page, and the key that stands apart."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from alpacare_sft.data.equality import copy_key
from alpacare_sft.errors import RunError
from alpacare_sft.reporting.pages import render
from alpacare_sft.run.directory import read_object, write_json, write_text
from alpacare_sft.run.shapes import ReviewKeyShape, shape_fault

CRITERIA = ("correctness", "completeness", "clarity")
FLAG = "could_harm"
TEXTS = ("id", "instruction", "input")
KEY_FILE = "review_key.json"

# What a spreadsheet may take for a formula: OWASP's list (CSV injection), wide forms too, after white space or quotes.
# One that splits at `;`, or does not heed quotes, begins a cell after each of these marks. review.html has the same.
_BREAK = r"\t\r\n\v\f\x85\u2028\u2029"
_BLANK = rf"(?:[^\S{_BREAK}]|[\"\ufeff])*"
_SIGN = "[=+\\-@＝＋－＠]"
_FORMULA = re.compile(rf"'*{_BLANK}(?:{_SIGN}|[{_BREAK}])")
_INNER = re.compile(rf"([;{_BREAK}])(?='*{_BLANK}{_SIGN})")
_INNER_SAFE = re.compile(rf"([;{_BREAK}])'(?='*{_BLANK}{_SIGN})")


def save_review_sheets(folder: Path, predictions: Sequence[Mapping[str, Any]], *, seed: int, notice: str) -> None:
    """Write `review.csv`, `review.html` and `review_key.json`.

    What people did is never lost: a `review.csv` in which something was entered stays, under another name if its
    answers are not these, and the keys of earlier sheets stay in the key.

    In half of the rows, drawn by the seed and the answers, the base's answer is A. Neither sheet holds
    anything to tell which: the draw cannot be repeated without knowing whose answer is whose.

    Args:
        folder: `eval` of a run.
        predictions: rows of `predictions.jsonl`. Shown is `display`; without a base's answer A is rated alone.
        seed: of the draw.
        notice: what stands at the end of each `display`; the page sets it apart.
    """
    digest = predictions_sha256(predictions)
    orders = _draw_orders(predictions, f"{seed}:{digest}")
    rows = [_sheet_row(row, order) for row, order in zip(predictions, orders, strict=True)]
    letters = "ab"[: len(orders[0])] if orders else ""
    # by what is written on it, with a letter first: no spreadsheet makes a number of it
    sheet = "r" + hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:15]
    key_rows = [
        {"id": row["id"], **dict(zip(letters, order, strict=True)), "sha256": text_hashes(cells)}
        for row, order, cells in zip(predictions, orders, rows, strict=True)
    ]
    key = {"sheet": sheet, "seed": seed, "predictions_sha256": digest, "letters": letters, "rows": key_rows}
    columns = sheet_columns(letters)
    keys = read_keys(folder)
    path = folder / "review.csv"
    filled = _is_filled(path)
    if filled and not (keys and keys[0]["sheet"] == sheet):
        stem = f"review-{keys[0]['sheet'] if keys else 'earlier'}"
        # another sheet of the same answers may have been put aside before
        names = (f"{stem}{f'-{number}' if number > 1 else ''}.csv" for number in count(1))
        path.rename(next(folder / name for name in names if not (folder / name).exists()))
        filled = False
    write_json(folder / KEY_FILE, {**key, "earlier": [old for old in keys if old["sheet"] != sheet]})
    if not filled:
        write_text(path, format_csv([{"sheet": sheet, **row} for row in rows], columns))
    shown = {"sheet": sheet, "letters": letters, "columns": columns, "criteria": CRITERIA, "flag": FLAG}
    write_text(folder / "review.html", render("review.html", **shown, rows=rows, notice=notice))


def read_keys(folder: Path) -> list[dict[str, Any]]:
    """The keys of the sheets that were made here, the newest first; none if there is no key yet.

    Raises:
        RunError: if the file is not a key.
    """
    path = folder / KEY_FILE
    try:
        newest = read_object(path)
        keys = [newest, *newest.pop("earlier", [])]
        if not any(shape_fault(key, ReviewKeyShape) for key in keys) and all(map(_names_models, keys)):
            return keys
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        pass
    raise RunError(f"{path} is not the key of a review. Put it back, or move it away and run eval again.")


def _names_models(key: Mapping[str, Any]) -> bool:
    """Whether a key says of each letter whose answer it was."""
    whose = ["base", "adapter"] if key["letters"] == "ab" else ["adapter"]
    rows = [sorted(str(row.get(letter)) for letter in key["letters"]) == sorted(whose) for row in key["rows"]]
    return key["letters"] in ("a", "ab") and bool(key["sheet"] and rows) and all(rows)


def _is_filled(path: Path) -> bool:
    """Whether someone entered something into a sheet, or saved it as something that is no sheet of ours."""
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        entered = re.compile(rf"(?:{'|'.join((*CRITERIA, FLAG))})_[ab]|preferred|comment|reviewer")
        return "sheet" not in (rows.fieldnames or ()) or any(
            value for row in rows for name, value in row.items() if entered.fullmatch(name or "")
        )
    except FileNotFoundError:
        return False
    except (ValueError, csv.Error):
        return True


def predictions_sha256(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Hash of the answers with their names."""
    answers = [{key: row.get(key) for key in ("id", "prompt", "base", "adapter", "display")} for row in predictions]
    return hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()


def _draw_orders(predictions: Sequence[Mapping[str, Any]], seed: str) -> list[tuple[str, ...]]:
    """Whose answer is A and whose is B in each row; each order in half of the rows, give or take one."""
    if not all("base" in row for row in predictions):
        return [("adapter",)] * len(predictions)
    orders: list[tuple[str, ...]] = [("base", "adapter"), ("adapter", "base")]
    draw = random.Random(seed)
    draw.shuffle(orders)  # which order the odd row gets
    drawn = [orders[index % 2] for index in range(len(predictions))]
    draw.shuffle(drawn)
    return drawn


def _sheet_row(row: Mapping[str, Any], order: Sequence[str]) -> dict[str, str]:
    prompt = row["prompt"]
    instruction = "\n\n".join(text for text in (prompt.get("system"), prompt["instruction"]) if text)
    cells = {"id": str(row["id"]), "instruction": instruction, "input": prompt["input"]}
    return cells | {f"answer_{letter}": row["display"][name] for letter, name in zip("ab", order, strict=False)}


def text_hashes(cells: Mapping[str, str]) -> dict[str, str]:
    """Column → hash of its text, white space aside: spreadsheets change line breaks."""
    texts = {name: copy_key(text).encode("utf-8", "surrogatepass") for name, text in cells.items() if name != "id"}
    return {name: hashlib.sha256(text).hexdigest()[:16] for name, text in texts.items()}


def sheet_columns(letters: str) -> list[str]:
    """Columns of the CSV in their order, for the letters `ab` or `a`."""
    ratings = [f"{name}_{letter}" for letter in letters for name in (*CRITERIA, FLAG)]
    preferred = ["preferred"] if len(letters) > 1 else []
    return ["sheet", *TEXTS, *(f"answer_{letter}" for letter in letters), *ratings, *preferred, "comment", "reviewer"]


def format_csv(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """CSV as Excel reads it: a byte-order mark, quoted cells, and no cell that is taken for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([[safe_cell(row.get(column, "")) for column in columns] for row in rows])
    return "\ufeff" + text.getvalue()


def safe_cell(text: str) -> str:
    """Text with an apostrophe wherever a spreadsheet would take what follows for a formula."""
    text = _INNER.sub(r"\1'", text)
    return "'" + text if _FORMULA.match(text) else text


def whole_cell(text: str) -> str:
    """What `safe_cell` was given."""
    text = _INNER_SAFE.sub(r"\1", text)
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
