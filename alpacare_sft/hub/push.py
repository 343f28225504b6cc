"""A trained adapter → its repository on the Hub: checked, in one commit, private unless the recipe says otherwise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.markdown import Markdown
from rich.markup import escape
from rich.panel import Panel
from rich.syntax import Syntax
from rich.tree import Tree

from alpacare_sft.errors import RunError
from alpacare_sft.hub.errors import hub_errors_explained
from alpacare_sft.hub.files import ALLOWED, LICENSE, Publication, collect_files
from alpacare_sft.hub.preflight import (
    LICENSE_NAMES,
    check_card,
    check_recipe,
    files_of,
    find_license,
    find_remote,
    open_hub,
    recipe_faults,
    with_base_license,
)
from alpacare_sft.reporting.card import PLACEHOLDER, save_card
from alpacare_sft.reporting.evidence import Evidence, published_recipe, read_evidence
from alpacare_sft.reporting.licenses import base_license, unlisted_license
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.run.record import version_changes
from alpacare_sft.run.trained import trained_recipe
from alpacare_sft.runtime import open_console, prepared_process, say

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    from alpacare_sft.recipe.loading import Recipe


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repo_id: of the repository; None in a dry run without one.
        commit: that `main` stands for now; None in a dry run.
        changed: whether this push made that commit.
        files: that the repository holds of this run.
        card: the model card, text of its README.md.
    """

    repo_id: str | None
    commit: str | None
    changed: bool
    files: tuple[str, ...]
    card: str


@prepared_process()
def push(recipe: Recipe, *, dry_run: bool = False) -> Pushed:
    """Publish a run's adapter with its model card, recipe, record and scores, in one commit.

    Model, data and training are those of the run in `output_dir`; `hub` and `safety` those of the
    recipe given. The same content pushed twice makes one commit. A repository is created when the Hub has
    accepted the card and its licence; until the commit, which the Hub makes whole or not at all, it stays as
    it was.

    Args:
        recipe: with the `output_dir` of a finished run and `hub.repo_id`.
        dry_run: show what would be published; needs no network and no token, and writes nothing.

    Raises:
        RecipeError: if the name or a licence stands in the way.
        RunError: if there is no adapter to publish, the token may not write there, the name is taken,
            or the connection broke off.
    """
    run = RunDirectory(recipe.output_dir)
    trained = trained_recipe(run)
    with nullcontext() if dry_run else run.lock():
        evidence = read_evidence(run)
        published = published_recipe(trained, recipe, evidence)
        base = evidence.record["base_model"]
        if dry_run:
            license_copy = find_license(base, recipe.hub.license, online=False)
            publication = collect_files(run, published, evidence, license_copy)
            faults = [*recipe_faults(published, base), *unlisted_license(published.hub)]
            show_publication(published, publication, faults, evidence.no_scores)
            return Pushed(recipe.hub.repo_id, None, False, tuple(publication.files), publication.card)
        check_recipe(published, base)
        collect_files(run, published, evidence)  # what is wrong with the adapter is reported before any request
        api = open_hub(str(recipe.hub.repo_id))
        remote = find_remote(api, published, base["name"])
        published = with_base_license(api, published, base["name"])
        with hub_errors_explained(str(base["name"])):
            license_copy = find_license(base, published.hub.license, online=True)
        publication = collect_files(run, published, evidence, license_copy)
        check_card(published, publication.card)
        _report_missing(published, publication, remote, evidence)
        commit, changed = _commit(api, published, publication, remote)
        _record_push(run, published, commit)
    return Pushed(recipe.hub.repo_id, commit, changed, tuple(publication.files), publication.card)


def _report_missing(recipe: Recipe, publication: Publication, remote: ModelInfo | None, evidence: Evidence) -> None:
    base = evidence.record["base_model"]["name"]
    known = base_license(base, recipe.hub.license)
    if known and publication.lacks_license and (remote is None or LICENSE not in files_of(remote)):
        say(
            f"{base} holds no {' or '.join(LICENSE_NAMES)} that this token may read. The {known.title} asks for a copy "
            f"beside the adapter: add it to the repository by hand, as {LICENSE} ({known.page})."
        )
    if evidence.no_scores:
        say(f"the model card will say `not evaluated`: {evidence.no_scores}")


def _commit(api: HfApi, recipe: Recipe, publication: Publication, remote: ModelInfo | None) -> tuple[str, bool]:
    """Make one commit of what differs; the commit that `main` stands for, and whether it is a new one."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repo_id = str(recipe.hub.repo_id)
    page = f"{api.endpoint}/{repo_id}"
    state = f"is as it was, at commit {str(remote.sha)[:8]}" if remote else "was created and is empty"
    remote = remote or _create(api, recipe)
    # those of an earlier push that are no longer published; a licence added by hand stays
    gone = (ALLOWED & files_of(remote)) - publication.files.keys() - ({LICENSE} if publication.lacks_license else set())
    added = [CommitOperationAdd(name, content) for name, content in publication.files.items()]
    scored = "with scores" if "scores.json" in publication.files else "not evaluated"
    with hub_errors_explained(repo_id, f"{repo_id} {state}"):
        made = api.create_commit(  # leaves out what is there already, and makes none of nothing
            repo_id,
            [*added, *map(CommitOperationDelete, sorted(gone))],
            commit_message=f"Adapter of recipe {Path(recipe.output_dir).name}, {scored}",
            parent_commit=remote.sha,
        )
    commit = str(made.oid)
    if commit == remote.sha:
        say(f"{page} already holds exactly this, at commit {commit[:8]}: nothing to do.")
        return commit, False
    visibility = "private" if remote.private else "public"
    say(f"pushed {len(publication.files)} files to {page} ({visibility}), commit {commit[:8]}")
    return commit, True


def _create(api: HfApi, recipe: Recipe) -> ModelInfo:
    repo_id = str(recipe.hub.repo_id)
    with hub_errors_explained(repo_id, f"{repo_id} was not created"):
        api.create_repo(repo_id, private=recipe.hub.private, exist_ok=True)
    with hub_errors_explained(repo_id, f"{repo_id} was created and is empty"):
        info = api.model_info(repo_id)
    if recipe.hub.private and not info.private:
        raise RunError(
            f"hub.private is true, but the Hub made {repo_id} public. It was created and is empty; make it private at "
            f"{api.endpoint}/{repo_id}/settings, then push again."
        )
    return info


def _record_push(run: RunDirectory, recipe: Recipe, commit: str) -> None:
    """Write down what was pushed; the push is done, whether or not this disk has room for the note."""
    pushed = {"repo": recipe.hub.repo_id, "commit": commit}
    record = run.read_record()
    if pushed.items() <= (record.get("pushed") or {}).items():
        return
    changes = version_changes(record)
    pushed["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        save_card(run, recipe)
        run.update_record({"pushed": pushed | ({"versions_since_training": changes} if changes else {})})
    except OSError as error:
        say(f"the push is complete, but {run.record} could not be written: {error.strerror}.")


def show_publication(recipe: Recipe, publication: Publication, faults: Sequence[str], no_scores: str) -> None:
    """Show what a push would publish.

    Args:
        recipe: with the section `hub`.
        publication: the files.
        faults: what stands in the way of the push.
        no_scores: why the model card has no scores; empty if it has.
    """
    console = open_console()
    metadata, _, body = publication.card.removeprefix("---\n").partition("\n---\n")
    console.print(
        Panel(Syntax(metadata, "yaml", background_color="default"), title="README.md: metadata", title_align="left")
    )
    console.print(Panel(Markdown(body), title="README.md: model card", title_align="left"))
    console.print(_file_tree(recipe, publication))
    retained = Tree("stays on this machine")
    for name, why in publication.kept_back:
        retained.add(f"{escape(name)}  [dim]{escape(why)}[/dim]")
    console.print(retained)
    if no_scores:
        console.print(f"\nthe model card says `not evaluated`: {no_scores}", markup=False)
    for fault in faults:
        console.print(f"\nbefore it can be pushed: {fault}", markup=False)
    console.print("\ndry run: nothing was sent and nothing was written.")


def _file_tree(recipe: Recipe, publication: Publication) -> Tree:
    """The repository as a push would leave it, with sizes."""
    visibility = "private" if recipe.hub.private else "public"
    tree = Tree(f"[bold]{escape(recipe.hub.repo_id or PLACEHOLDER)}[/bold] ({visibility} if it is new)")
    folders = {"": tree}
    for name in publication.files:
        folder, _, last = name.rpartition("/")
        if folder not in folders:
            folders[folder] = tree.add(f"{folder}/")
        folders[folder].add(f"{escape(last)}  [dim]{decimal(len(publication.read(name)))}[/dim]")
    return tree
