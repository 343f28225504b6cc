"""The report of a run in eight sections, as Markdown that its author completes and as a page that prints."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RunError
from alpacare_sft.reporting.card import card_facts, render_markdown
from alpacare_sft.reporting.evaluation_page import primary_picture
from alpacare_sft.reporting.evidence import Evidence, read_evidence, read_log_history, read_or_empty
from alpacare_sft.reporting.pages import funnel_picture, losses_picture, render
from alpacare_sft.run.directory import RunDirectory, text_sha256, write_text
from alpacare_sft.run.trained import trained_recipe
from alpacare_sft.runtime import say

if TYPE_CHECKING:
    from markupsafe import Markup

    from alpacare_sft.recipe.loading import Recipe

# The last line of a report that nobody has edited; what stands above it is hashed.
_SEAL = re.compile(r"\n<!-- written by alpacare_sft, sha256 ([0-9a-f]{64}) -->\n\Z")


def save_run_report(recipe: Recipe) -> None:
    """Write `report.md` and `report.html` of the run in `output_dir`; a Markdown file that was edited is kept.

    Args:
        recipe: its sections `hub` and `safety` count; model, data and training are those of the run.

    Raises:
        RunError: if the run has no trained adapter, or `report.md` is not text.
    """
    run = RunDirectory(recipe.output_dir)
    trained = dataclasses.replace(trained_recipe(run), hub=recipe.hub, safety=recipe.safety)
    reviewed = run.path / "eval" / "review.json"
    if reviewed.exists() and run.damaged("eval/review.json"):
        raise RunError(
            f"{reviewed} is not as it was written. Sum the sheets up again: alpacare-sft review RECIPE FILE …"
        )
    evidence, review = read_evidence(run), read_or_empty(reviewed)
    path, page = run.path / "report.md", run.path / "report.html"
    with run.lock():
        text = _written_by_hand(run)
        if text is None:
            text = format_run_report(trained, evidence, review)
            write_text(path, f"{text}\n<!-- written by alpacare_sft, sha256 {text_sha256(text)} -->\n")
        else:
            say(
                f"{path} was edited and is kept; the page shows it. Figures that changed since are not in it: move it "
                "away and run this again to have them."
            )
        write_text(page, format_page(text, _pictures(run, evidence)))
    blanks = len(re.findall(r"\[To be written: ", text))
    say(f"report: {path} ({blanks} marked places are left for its author to write); to print: {page}")


def format_run_report(recipe: Recipe, evidence: Evidence, review: Mapping[str, Any]) -> str:
    """The eight sections as Markdown.

    Args:
        recipe: that the adapter was trained by.
        evidence: what the run's directory says.
        review: what `eval/review.json` holds; empty if nobody rated answers.
    """
    text = render_markdown(
        "report.md",
        review=review,
        cleaning=vars(recipe.data.clean),
        published={name: value for name, value in vars(recipe.data.splits).items() if isinstance(value, str)},
        no_scores=evidence.no_scores,
        **card_facts(recipe, evidence),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def format_page(text: str, pictures: Mapping[str, Markup]) -> str:
    """The report as a page; HTML in its text is shown as text.

    Args:
        text: Markdown with a heading of the second level for each section.
        pictures: by words of the section's heading that they follow, in lower case.
    """
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    title, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    parts = []
    for section in sections:
        heading = section.partition("\n")[0].lower()
        drawn = [image for words, image in pictures.items() if words in heading]
        parts.append({"text": Markup(markdown.render(section)), "pictures": drawn})  # nosec B704
    return render("report.html", head=Markup(markdown.render(title)), sections=parts)  # nosec B704


def _written_by_hand(run: RunDirectory) -> str | None:
    """The report as its author edited it, or None if there is none or it stands as it was written."""
    path = run.path / "report.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} must be UTF-8 text. Save it as UTF-8, or move it away.") from error
    seal = _SEAL.search(text)
    body = text[: seal.start()] if seal else text
    return None if seal and seal[1] == text_sha256(body) else body


def _pictures(run: RunDirectory, evidence: Evidence) -> dict[str, Markup]:
    """What the run has numbers for, by the section that it belongs to."""
    drawn = {
        "preprocessing": funnel_picture(evidence.report),
        "model training": losses_picture(evidence.record, read_log_history(run)),
        "evaluation": primary_picture((evidence.scores or {}).get("metrics") or {}),
    }
    return {words: image for words, image in drawn.items() if image}
