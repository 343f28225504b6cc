"""The recipes that come with the package, for those who have no clone of its repository."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from alpacare_sft.errors import RecipeError

_PACKAGE = Path(__file__).parent.parent
_SCHEMA = "schema.json"  # what editors complete a recipe by, named in its first line


def shipped_recipes() -> dict[str, Path]:
    """Recipes by name: in an installed package beside its modules, in a clone beside the package."""
    installed = _PACKAGE / "shipped"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def copy_recipe(name: str, folder: Path) -> Path:
    """Write a recipe and its schema into a folder.

    Args:
        name: such as `demo`.
        folder: made if it is not there.

    Returns:
        The path of the recipe.

    Raises:
        RecipeError: if there is no such recipe, or another file of that name.
    """
    recipes = shipped_recipes()
    source = recipes.get(name.removesuffix(".yaml"))
    if source is None:
        close = difflib.get_close_matches(name, recipes, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Choose one of these."
        raise RecipeError(f"recipes copy must name one of {', '.join(recipes)}, got {name!r}. {hint}")
    target = folder / source.name
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise RecipeError(f"{target} is there already and differs. Name another place: --folder FOLDER.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (source, source.with_name(_SCHEMA)):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    return target
