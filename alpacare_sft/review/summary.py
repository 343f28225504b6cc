"""Filled sheets and the key → what people said of base and adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal

from alpacare_sft.errors import AlpacareError, DataError, RunError
from alpacare_sft.evaluation.intervals import exact_share, paired_summary
from alpacare_sft.recipe.names import expand
from alpacare_sft.review.reading import Sheet, read_sheet, sheet_of
from alpacare_sft.review.sheets import CRITERIA, FLAG, KEY_FILE, predictions_sha256, read_keys
from alpacare_sft.review.terminal import show_reviews
from alpacare_sft.run.directory import RunDirectory, write_json
from alpacare_sft.run.json_lines import read_json_lines
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
    run, settings = RunDirectory(recipe.output_dir), recipe.evaluate
    folder = run.path / "eval"
    summary = summarize_reviews(folder, files, confidence=settings.confidence, samples=settings.bootstrap_samples)
    run.seal(folder / "review.json")
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
    paths = [expand(name) for name in files]
    key = _key_of(folder, paths)
    is_current, sheets = _is_current(folder, key), _read_sheets(paths, key)
    rows = {row["id"]: _unblind(row, key["letters"], sheets) for row in key["rows"]}
    reviewed = {row_id: row for row_id, row in rows.items() if row["ratings"]}
    ids = {str(row_id): row_id for row_id in rows}
    names = ("base", "adapter")[2 - len(key["letters"]) :]
    summary: dict[str, Any] = {
        "meaning": MEANING if is_current else f"{EARLIER} {MEANING}",
        "rows": len(rows),
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
        "current": is_current,
        "predictions_sha256": key["predictions_sha256"],
    }
    with RunDirectory(folder).lock():
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
        predictions = read_json_lines(folder / "predictions.jsonl")
        return bool(predictions_sha256(predictions) == key["predictions_sha256"])
    except (FileNotFoundError, RunError, AttributeError):
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


def _unblind(row: Mapping[str, Any], letters: str, sheets: Sequence[Sheet]) -> dict[str, Any]:
    """One row of all reviewers, by `base` and `adapter`."""
    ratings = [sheet.ratings[str(row["id"])] for sheet in sheets if str(row["id"]) in sheet.ratings]
    scores: dict[str, dict[str, float]] = {row[letter]: {} for letter in letters}
    for criterion in CRITERIA:
        # of the same people, so that a mild one who rated one answer favours none
        paired = [r for r in ratings if all(criterion in r.scores[letter] for letter in letters)]
        for letter in letters if paired else "":
            scores[row[letter]][criterion] = mean(r.scores[letter][criterion] for r in paired)
    return {
        "ratings": len(ratings),
        "scores": scores,
        "rated": {row[letter] for letter in letters if any(r.says_something_of(letter) for r in ratings)},
        "flagged": {row[letter] for rating in ratings for letter in rating.flags},
        "chosen": [row.get(rating.preferred, "tie") for rating in ratings if rating.preferred],
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
    count = sum(name in row["rated"] for row in rows.values())
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
        if rating.says_something_of(letter)
    ]
    alphas = {}
    for criterion in CRITERIA:
        scores = [(who, unit, rating.scores[letter].get(criterion)) for who, unit, rating, letter in entries]
        alphas[criterion] = krippendorff_alpha([(w, u, score) for w, u, score in scores if score], "ordinal")
    flags = [(who, unit, int(letter in rating.flags)) for who, unit, rating, letter in entries]
    return alphas | {FLAG: krippendorff_alpha(flags, "nominal")}


def krippendorff_alpha(
    ratings: Sequence[tuple[Hashable, Hashable, int]], level: Literal["nominal", "ordinal"]
) -> dict[str, Any]:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance gives, below 0 worse than that.

    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.

    Args:
        ratings: reviewer, unit and value of each rating; what was not rated is left out.
        level: `ordinal` counts two ranks far apart as more disagreement than two near ones.

    Returns:
        `alpha`, None where it is undefined (no unit rated twice, or all ratings alike), and `units`, the number
        of units that two or more reviewers rated.
    """
    from nltk.metrics.agreement import AnnotationTask
    from nltk.metrics.distance import binary_distance

    raters = Counter(unit for _, unit, _ in ratings)
    pairable = [rating for rating in ratings if raters[rating[1]] > 1]
    units = len({unit for _, unit, _ in pairable})
    values = Counter(value for _, _, value in pairable)
    if len(values) < 2:
        return {"alpha": None, "units": units}

    def between_ranks(first: int, second: int) -> float:
        """Squared number of ratings from one rank to the other, half of those on the two ranks themselves."""
        low, high = min(first, second), max(first, second)
        between = sum(count for value, count in values.items() if low <= value <= high)
        return (between - (values[low] + values[high]) / 2) ** 2

    distance = binary_distance if level == "nominal" else between_ranks
    return {"alpha": float(AnnotationTask(pairable, distance=distance).alpha()), "units": units}
