"""The recipe that a run's adapter was trained by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpacare_sft.errors import RunError
from alpacare_sft.recipe.resolved import read_resolved, recipe_sha256
from alpacare_sft.run.directory import RunDirectory

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe


def trained_recipe(run: RunDirectory) -> Recipe:
    """The recipe that a run's adapter was trained by.

    Raises:
        RunError: if there is no adapter, its training has not ended, or the recipe was edited since.
    """
    if not run.has_adapter():
        raise RunError(f"output_dir: {run.path} holds no trained adapter. Train it first: alpacare-sft train RECIPE.")
    record = run.read_record()
    if record.get("status") != "done":
        raise RunError(f"output_dir: the training in {run.path} has not ended. Run it again to go on.")
    trained = read_resolved(run.recipe)
    if record["recipe_sha256"] != recipe_sha256(trained):
        raise RunError(f"{run.recipe} is not the recipe that this adapter was trained by. Undo what was changed in it.")
    return trained
