"""What the JSON files of a run hold, as far as it is read again: a value of another kind is told by its place.

A file may lack a key, as older versions wrote it, and hold others. What the record's own hash vouches for is not looked
at again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from typing_extensions import TypedDict

_Text = str | None
_Whole = int | None
_Number = float | int | None


class BaseModelShape(TypedDict):
    """Of the record: the base by its public name."""

    name: str
    revision: _Text


class _Batch(TypedDict, total=False):
    processes: _Whole
    per_device_train_batch_size: _Whole
    gradient_accumulation_steps: _Whole


class _Hardware(TypedDict, total=False):
    device: _Text
    machine: _Text
    cores: _Whole
    threads: _Whole
    processes: _Whole


class _Rows(TypedDict, total=False):
    loaded: int
    cleaned: int
    looked_at: int
    dropped_no_answer: _Whole
    dropped_too_long: _Whole
    dropped_held_out: _Whole
    kept: int
    train: int
    validation: int
    test: int
    unused: int
    truncated: _Whole
    filled: dict[str, int] | None


class _Parameters(TypedDict):
    trainable: int
    total: int


class _Tokens(TypedDict, total=False):
    trained: _Whole
    answer: _Whole


class _Training(TypedDict, total=False):
    optimizer_steps: _Whole
    seconds: float | int
    tokens_per_second: _Number
    peak_memory_bytes: _Number
    train_loss: _Number
    eval_loss: _Number
    best_step: _Whole
    stopped_early: bool | None
    effective_batch_size: _Whole


class RecordShape(TypedDict, total=False):
    """`run.json`."""

    status: str
    recipe_sha256: str
    scores_sha256: str
    data_sha256: dict[str, str] | None
    data_commit: str | dict[str, _Text] | None
    versions: dict[str, str] | None
    earlier_versions: list[dict[str, str]]
    hardware: _Hardware | None
    precision: _Text
    seed: _Whole
    resolved: dict[str, dict[str, Any]]
    files: dict[str, str]
    batch: _Batch | None
    rows: _Rows
    base_model: BaseModelShape
    end_token_ids: list[int] | None
    parameters: _Parameters | None
    tokens: _Tokens
    train: _Training
    pushed: dict[str, Any] | None


class _Step(TypedDict, total=False):
    name: str
    rows_after: int
    dropped: int
    changed: int


class _Source(TypedDict, total=False):
    name: str
    format: str
    rows: int
    unused_columns: list[str] | None


class _Quantiles(TypedDict, total=False):
    median: _Number
    p95: _Number


class _Split(TypedDict, total=False):
    prompt_tokens: _Quantiles | None
    completion_tokens: _Quantiles | None


class _Nearest(TypedDict):
    test: int | str
    train: int | str
    similarity: float | int


class _NearDuplicates(TypedDict, total=False):
    threshold: _Number
    method: _Text
    seen_fraction: _Number
    test_rows: _Whole
    nearest: list[_Nearest]


class _Note(TypedDict, total=False):
    rows: _Whole


class ReportShape(TypedDict, total=False):
    """`data/report.json`."""

    sources: list[_Source] | None
    rows: _Rows | None
    steps: list[_Step] | None
    cleaning: dict[str, _Note] | None
    splits: dict[str, _Split] | None
    shared_questions: _Whole
    near_duplicates: _NearDuplicates | None


class _Interval(TypedDict):
    mean: _Number
    low: _Number
    high: _Number


class _Side(_Interval, total=False):
    confidence: _Number


class _Sides(TypedDict):
    adapter: _Side


class _Metric(_Sides, total=False):
    base: _Side | None
    difference: _Side | None
    n: _Whole
    label: _Text
    better: _Text
    main: bool | None
    side: _Text
    verdict: _Text


class _Rouge(TypedDict, total=False):
    note: _Text


class _ScoredModel(TypedDict, total=False):
    adapter_sha256: _Text
    precision: _Text
    merged: bool | None


class _ScoredNear(TypedDict, total=False):
    threshold: _Number
    rows: _Whole


class _ScoredOn(TypedDict, total=False):
    device: _Text


class ScoresShape(TypedDict, total=False):
    """`eval/scores.json`."""

    n: _Whole
    metrics: dict[str, _Metric] | None
    rouge: _Rouge | None
    verdict: _Text
    intervals: _Text
    near_duplicates: _ScoredNear | None
    model: _ScoredModel | None
    generate: dict[str, Any]
    evaluate: dict[str, Any]
    seconds: dict[str, float | int] | None
    hardware: _ScoredOn | None


class _Criterion(TypedDict, total=False):
    n: _Whole
    base: _Interval | None
    adapter: _Interval | None
    difference: _Interval | None


class _Harm(TypedDict, total=False):
    n: _Whole
    flagged: _Whole
    low: _Number
    high: _Number
    confidence: _Number


class ReviewShape(TypedDict):
    """`eval/review.json`."""

    rows: _Whole
    rows_reviewed: _Whole
    reviewers: list[dict[str, Any]]
    criteria: dict[str, _Criterion]
    could_harm: dict[str, _Harm] | None


class _Letters(TypedDict, total=False):
    a: str
    b: str


class _KeyRow(_Letters):
    id: int | str
    sha256: dict[str, str]


class ReviewKeyShape(TypedDict):
    """One key of `eval/review_key.json`."""

    sheet: str
    letters: str
    rows: list[_KeyRow]
    predictions_sha256: str


class _LogEntry(TypedDict, total=False):
    step: int
    loss: _Number
    eval_loss: _Number
    learning_rate: _Number
    grad_norm: _Number


LogShape = list[_LogEntry]  # of `trainer_state.json`


class _Prediction(TypedDict):
    id: int | str


PredictionsShape = list[_Prediction]  # `eval/predictions.jsonl`


def shape_fault(value: Any, shape: Any) -> str:
    """The first thing about a JSON value that its file cannot hold, with its place; empty if there is none."""
    from pydantic import ValidationError

    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = []
        for part in first["loc"]:
            inner = value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {}
            if part in inner:  # else it is a member of a union, or missing
                place.append(str(part))
                value = inner[part]
            elif first["type"] == "missing":
                return f"{'.'.join([*place, str(part)])} is missing"
        shown = ascii(value)
        return f"{'.'.join(place) or 'it'} cannot be {shown if len(shown) < 60 else shown[:57] + '...'}"
    return ""


@cache
def _adapter(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)
