"""Which rows and which adapter an evaluation is of, where it is kept, and what is known of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe.names import local_path
from alpacare_sft.run.directory import file_sha256, last_name

if TYPE_CHECKING:
    from alpacare_sft.run.directory import RunDirectory


@dataclass(frozen=True)
class Selection:
    """The whole test split and the run's own adapter, unless something else is asked for.

    Attributes:
        limit: the first rows only.
        rows: a file or Hub data set in the place of the test split.
        adapter: a directory or Hub repository in the place of the run's adapter.
        same_base: the base that `adapter` names is the run's, whatever it is called there.

    Raises:
        RecipeError: if `limit` is not at least 1, or `same_base` is given without `adapter`.
    """

    limit: int | None
    rows: str | None
    adapter: str | None
    same_base: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise RecipeError(f"--limit must be at least 1, got {self.limit}.")
        if self.same_base and self.adapter is None:
            raise RecipeError(
                "--same-base is about the base that another adapter names. Add --adapter, or leave it out."
            )

    @property
    def is_whole(self) -> bool:
        """Whether it is the evaluation that the model card may tell."""
        return self.limit is None and self.rows is None and self.adapter is None

    def folder(self, run: RunDirectory) -> Path:
        """Scores of the whole test split with the run's own adapter stand in `eval/`, and nothing else does."""
        parts = [f"rows-{_short_name(self.rows)}"] if self.rows else []
        parts += [f"adapter-{_short_name(self.adapter)}"] if self.adapter else []
        parts += [f"first-{self.limit}"] if self.limit else []
        return run.path / "eval" / "-".join(parts) if parts else run.path / "eval"

    def describe(self, unseen: str, commit: str | None) -> dict[str, Any]:
        """Its part of `scores.json`.

        Args:
            unseen: what is known of whether the run was trained on these questions.
            commit: of `rows`, if they are a data set on the Hub.
        """
        if self.adapter:
            unseen += " What the other adapter was trained on is not known here: it may have been trained on them."
        return {
            "limit": self.limit,
            "complete": self.is_whole,
            "unseen": unseen,
            "rows_file": {**_file(self.rows), "commit": commit} if self.rows else None,
        }


def _file(rows: str) -> dict[str, Any]:
    """Name and hash of a file; several files, or a data set on the Hub, have no hash here."""
    path = local_path(rows)
    return {"name": last_name(rows) if path else rows, "sha256": file_sha256(path) if path and path.is_file() else None}


def _short_name(place: str) -> str:
    """The last part of a path, and of the whole enough to tell it from another of that name."""
    path = local_path(place)
    whole = str(path.resolve()) if path else place
    return f"{Path(place).stem}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
