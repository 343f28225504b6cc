"""A push that is not made, for a person at a terminal: the files, the model card, and what stays here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.markdown import Markdown
from rich.markup import escape
from rich.panel import Panel
from rich.syntax import Syntax
from rich.tree import Tree

from alpacare_sft.hub.files import Publication
from alpacare_sft.reporting.card import PLACEHOLDER

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe


def show_publication(recipe: Recipe, publication: Publication, faults: Sequence[str], no_scores: str) -> None:
    """Show what a push would publish.

    Args:
        recipe: with the section `hub`.
        publication: the files.
        faults: what stands in the way of the push.
        no_scores: why the model card has no scores; empty if it has.
    """
    console = Console()
    metadata, _, body = publication.card.removeprefix("---\n").partition("\n---\n")
    console.print(
        Panel(Syntax(metadata, "yaml", background_color="default"), title="README.md: metadata", title_align="left")
    )
    console.print(Panel(Markdown(body), title="README.md: model card", title_align="left"))
    console.print(file_tree(recipe, publication))
    kept = Tree("stays on this machine")
    for name, why in publication.kept_back:
        kept.add(f"{escape(name)}  [dim]{escape(why)}[/dim]")
    console.print(kept)
    if no_scores:
        console.print(f"\nthe model card says `not evaluated`: {no_scores}", markup=False)
    for fault in faults:
        console.print(f"\nbefore it can be pushed: {fault}", markup=False)
    console.print("\ndry run: nothing was sent and nothing was written.")


def file_tree(recipe: Recipe, publication: Publication) -> Tree:
    """The repository as a push would leave it, with sizes."""
    seen = "private if it is new" if recipe.hub.private else "public if it is new"
    tree = Tree(f"[bold]{escape(recipe.hub.repo_id or PLACEHOLDER)}[/bold] ({seen})")
    folders = {"": tree}
    for name in publication.files:
        folder, _, last = name.rpartition("/")
        if folder not in folders:
            folders[folder] = tree.add(f"{folder}/")
        folders[folder].add(f"{escape(last)}  [dim]{decimal(len(publication.read(name)))}[/dim]")
    return tree
