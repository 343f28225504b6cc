"""The card beside the adapter: what it is, how it was made, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alpacare_sft.recipe import Recipe


def format_card(recipe: Recipe, record: Mapping[str, Any]) -> str:
    """Markdown with the Hub's metadata at its top; every number is one of the record.

    Args:
        recipe: of the run.
        record: what `run.json` holds once training has ended.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("alpacare_sft"),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    path = recipe.data.path
    source = path if isinstance(path, str) else ", ".join(path)
    card = environment.get_template("card.md")
    return card.render(recipe=recipe, record=record, rows=record["rows"], train=record["train"], source=source)
