"""How far reviewers agree: Krippendorff's alpha by `nltk`, with his distance for ordered values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal


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
    distance = binary_distance if level == "nominal" else _ordinal_distance(values)
    return {"alpha": float(AnnotationTask(pairable, distance=distance).alpha()), "units": units}


def _ordinal_distance(counts: Counter[int]) -> Callable[[int, int], float]:
    """Squared number of ratings from one rank to the other, half of those on the two ranks themselves."""

    def distance(first: int, second: int) -> float:
        low, high = min(first, second), max(first, second)
        between = sum(count for value, count in counts.items() if low <= value <= high)
        return (between - (counts[low] + counts[high]) / 2) ** 2

    return distance
