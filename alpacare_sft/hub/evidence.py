"""What a run's directory says about its adapter, for the card and the push."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpacare_sft.adapter import adapter_sha256
from alpacare_sft.run import RunDirectory, file_sha256


@dataclass(frozen=True)
class Evidence:
    """The record, the account of the rows, and the scores if they are this adapter's.

    Attributes:
        record: what `run.json` holds.
        report: what `data/report.json` holds; empty if there is none.
        scores: what `eval/scores.json` holds, or None.
        no_scores: why there are none, and what to do about it; empty if there are.
    """

    record: dict[str, Any]
    report: dict[str, Any]
    scores: dict[str, Any] | None
    no_scores: str


def read_evidence(run: RunDirectory) -> Evidence:
    """Read what is known of a run's adapter.

    Scores count if they are of the whole test split and of the very weights that lie there.
    """
    record, path = run.read_record(), run.path / "eval" / "scores.json"
    scores = _read(path)
    fault = _scores_fault(scores, run.adapter)
    if not fault and file_sha256(path) != record.get("scores_sha256"):
        fault = "eval/scores.json was changed since it was written. Score again: alpacare-sft eval RECIPE"
    return Evidence(record, _read(run.data / "report.json"), None if fault else scores, fault)


def _scores_fault(scores: dict[str, Any], adapter: Path) -> str:
    remedy = "Score it: alpacare-sft eval RECIPE"
    if not scores.get("metrics"):
        return f"this adapter was not evaluated. {remedy}"
    if not scores.get("complete"):
        return f"eval/scores.json is not of the whole test split. {remedy}"
    if (scores.get("model") or {}).get("adapter_sha256") != adapter_sha256(adapter):
        return f"eval/scores.json is of another adapter. {remedy}"
    return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
