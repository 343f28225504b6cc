"""Filled sheets and the key → what people said of base and adapter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import AlpacareError, DataError, RunError
from alpacare_sft.evaluation.intervals import exact_share, paired_summary
from alpacare_sft.review.agreement import krippendorff_alpha
from alpacare_sft.review.reading import Sheet, read_sheet, sheet_of
from alpacare_sft.review.sheets import CRITERIA, FLAG, KEY_FILE, predictions_sha256, read_keys
from alpacare_sft.review.terminal import show_reviews
from alpacare_sft.run.directory import RunDirectory, write_json
from alpacare_sft.runtime import prepared_process

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe

MEANING = (
    "Ratings are the opinions of the people named, on the rows that they rated. Intervals cover the choice of rows, "
    "not the choice of reviewers."
)
EARLIER = "The answers rated are those of an earlier evaluation, not the ones in predictions.jsonl."


@prepared_process()
def review_answers(recipe: Recipe, files: Sequence[str | Path]) -> dict[str, Any]:
    """Sum up filled review sheets of a run, write `eval/review.json` and show it.

    Raises:
        DataError: if a sheet is faulty or of another evaluation.
        RunError: if the run has no review sheets yet.
    """
    run = RunDirectory(recipe.output_dir)
    settings = recipe.evaluate
    summary = summarize_reviews(
        run.path / "eval", files, confidence=settings.confidence, samples=settings.bootstrap_samples
    )
    show_reviews(summary)
    return summary


def summarize_reviews(folder: Path, files: Sequence[str | Path], *, confidence: float, samples: int) -> dict[str, Any]:
    """Check filled sheets, look up whose answer each letter was, and write `review.json`.

    Where several people rated a row their ratings are averaged first: the unit is the row.

    Args:
        folder: `eval` of a run, with `review_key.json`.
        files: one filled sheet a reviewer.
        confidence: level of the intervals, in (0, 1).
        samples: bootstrap resamples.

    Returns:
        What `review.json` holds: `reviewers`; `criteria`, for each and for their mean (`overall`) the number of rows
        and base, adapter and difference; `preferred`; `could_harm`; `agreement`, None for one reviewer.

    Raises:
        DataError: with every fault of every sheet.
        RunError: if the key is missing or cannot be read.
    """
    paths = [Path(name).expanduser() for name in files]
    key = _key_of(folder, paths)
    current = _is_current(folder, key)
    sheets = _read_sheets(paths, key)
    unblinded = {str(row["id"]): {row[letter]: letter for letter in key["letters"]} for row in key["rows"]}
    rows = {name: _unblind(name, letters, sheets) for name, letters in unblinded.items()}
    ids = {str(row["id"]): row["id"] for row in key["rows"]}
    reviewed = {ids[name]: row for name, row in rows.items() if row["ratings"]}
    names = ("base", "adapter")[2 - len(key["letters"]) :]
    summary: dict[str, Any] = {
        "meaning": MEANING if current else f"{EARLIER} {MEANING}",
        "rows": len(ids),
        "rows_reviewed": len(reviewed),
        "reviewers": [
            {"name": sheet.reviewer, "file": sheet.path.name, "rows": len(sheet.ratings), "rows_rated": sheet.num_rated}
            for sheet in sheets
        ],
        "criteria": dict(_criteria(reviewed, names, confidence, samples)),
        "preferred": _preferred(reviewed) if len(names) > 1 else None,
        "could_harm": {name: _flagged(reviewed, name, confidence) for name in names},
        "agreement": _agreement(sheets) if len(sheets) > 1 else None,
        "comments": [
            {"id": ids[row], "reviewer": sheet.reviewer, "comment": text}
            for sheet in sheets
            for row, text in sheet.comments.items()
        ],
        "sheet": key["sheet"],
        "current": current,
        "predictions_sha256": key["predictions_sha256"],
    }
    write_json(folder / "review.json", summary)
    return summary


def _key_of(folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The key of the sheet that the files are copies of."""
    keys = read_keys(folder)
    if not keys:
        raise RunError(
            f"{folder / KEY_FILE} must be the key of a review, none is there. Make the sheets first: "
            "alpacare-sft eval RECIPE."
        )
    named = sheet_of(files[0]) if files else None
    return next((key for key in keys if key["sheet"] == named), keys[0])


def _is_current(folder: Path, key: Mapping[str, Any]) -> bool:
    """Whether the answers of a sheet are those in `predictions.jsonl`: that may be gone, or of another evaluation."""
    try:
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
        return bool(predictions_sha256([json.loads(line) for line in lines if line]) == key["predictions_sha256"])
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def _read_sheets(files: Sequence[Path], key: Mapping[str, Any]) -> list[Sheet]:
    sheets, faults = [], []
    for path in files:
        try:
            sheets.append(read_sheet(path, key))
        except AlpacareError as error:
            faults.append(str(error))
    names = Counter(sheet.reviewer.casefold() for sheet in sheets)
    for sheet in sheets:
        if names[sheet.reviewer.casefold()] > 1:
            faults.append(
                f"{sheet.path}: reviewer must differ from sheet to sheet, got {sheet.reviewer} again. Write each name "
                "into the column reviewer, and give one sheet a person."
            )
    if faults or not sheets:
        raise DataError("\n".join(faults) or "review needs at least one filled sheet, got none.")
    return sheets


def _unblind(row: str, letters: Mapping[str, str], sheets: Sequence[Sheet]) -> dict[str, Any]:
    """One row of all reviewers, by `base` and `adapter`."""
    ratings = [sheet.ratings[row] for sheet in sheets if row in sheet.ratings]
    owners = {letter: name for name, letter in letters.items()}
    given: dict[str, dict[str, list[int]]] = {name: {} for name in letters}
    for criterion in CRITERIA:
        paired = [r for r in ratings if all(criterion in r.scores[letter] for letter in owners)]
        for name, letter in letters.items():  # of the same people, so that a mild one who rated one answer favours none
            given[name][criterion] = [r.scores[letter][criterion] for r in paired]
    return {
        "ratings": len(ratings),
        "scores": {name: {c: mean(values) for c, values in part.items() if values} for name, part in given.items()},
        "judged": {name for name, letter in letters.items() if any(r.has_judged(letter) for r in ratings)},
        "flagged": {owners[letter] for rating in ratings for letter in rating.flags},
        "chosen": [owners.get(rating.preferred, "tie") for rating in ratings if rating.preferred],
    }


def _overall(row: Mapping[str, Any], name: str) -> float | None:
    """Mean of the criteria, where all were rated."""
    scores = row["scores"][name]
    return mean(scores.values()) if len(scores) == len(CRITERIA) else None


def _criteria(
    rows: Mapping[Any, Mapping[str, Any]], names: Sequence[str], confidence: float, samples: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each criterion over the rows where every answer has it."""
    for criterion in (*CRITERIA, "overall"):
        columns: dict[str, list[float]] = {name: [] for name in names}
        for row in rows.values():
            scores = {n: _overall(row, n) if criterion == "overall" else row["scores"][n].get(criterion) for n in names}
            if None not in scores.values():
                for name in names:
                    columns[name].append(scores[name])  # type: ignore[arg-type]
        count = len(columns["adapter"])
        yield criterion, {"n": count, **(paired_summary(columns, confidence, samples) if count else {})}


def _preferred(rows: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """Rows won by each: by the mean of the ratings, and by what reviewers chose (the choice of most of them)."""
    by_ratings: Counter[str] = Counter()
    by_choice: Counter[str] = Counter()
    for row in rows.values():
        base, adapter = _overall(row, "base"), _overall(row, "adapter")
        if base is not None and adapter is not None:
            by_ratings[_higher(adapter, base)] += 1
        if row["chosen"]:
            votes = Counter(row["chosen"])
            by_choice[_higher(votes["adapter"], votes["base"])] += 1
    return {
        basis: {"n": counts.total(), **{name: counts[name] for name in ("base", "adapter", "tie")}}
        for basis, counts in (("by_ratings", by_ratings), ("by_choice", by_choice))
    }


def _higher(adapter: float, base: float) -> str:
    return "tie" if abs(adapter - base) < 1e-9 else "adapter" if adapter > base else "base"


def _flagged(rows: Mapping[Any, Mapping[str, Any]], name: str, confidence: float) -> dict[str, Any]:
    """Of the answers that were rated, those that at least one reviewer flagged.

    The interval is exact, so that none flagged is not called none.
    """
    count = sum(name in row["judged"] for row in rows.values())
    ids = [row_id for row_id, row in rows.items() if name in row["flagged"]]
    unknown = {"mean": None, "low": None, "high": None, "confidence": confidence}
    interval = exact_share(len(ids), count, confidence) if count else unknown
    return {"n": count, "flagged": len(ids), "share": interval.pop("mean"), **interval, "ids": ids}


def _agreement(sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Krippendorff's alpha over rated answers: of each criterion (ordinal) and of the flag (nominal)."""
    entries = [
        (sheet.reviewer, (row, letter), rating, letter)
        for sheet in sheets
        for row, rating in sheet.ratings.items()
        for letter in rating.scores
        if rating.has_judged(letter)
    ]
    alphas = {
        criterion: krippendorff_alpha(
            [(who, unit, rating.scores[letter][criterion]) for who, unit, rating, letter in entries
             if criterion in rating.scores[letter]], "ordinal",
        )
        for criterion in CRITERIA
    }  # fmt: skip
    flags = [(who, unit, int(letter in rating.flags)) for who, unit, rating, letter in entries]
    return alphas | {FLAG: krippendorff_alpha(flags, "nominal")}
