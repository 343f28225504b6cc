"""A trained adapter → its repository on the Hub: checked, in one commit, private unless asked otherwise."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RunError
from alpacare_sft.hub.errors import hub_errors_explained
from alpacare_sft.hub.files import ALLOWED, LICENSE, NOTICE, Publication, collect_files
from alpacare_sft.hub.preflight import (
    LICENSE_NAMES,
    Remote,
    check_card,
    check_recipe,
    find_license,
    find_remote,
    open_hub,
    recipe_faults,
)
from alpacare_sft.hub.showing import show_publication
from alpacare_sft.reporting.card import save_card
from alpacare_sft.reporting.evidence import published_recipe, read_evidence
from alpacare_sft.reporting.licenses import base_license, unlisted_license
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.run.record import version_changes
from alpacare_sft.run.trained import trained_recipe
from alpacare_sft.runtime import prepared_process, say

if TYPE_CHECKING:
    from huggingface_hub import HfApi

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
    if dry_run:
        evidence = read_evidence(run)
        published = published_recipe(trained, recipe, evidence)
        base = evidence.record["base_model"]
        license_copy = find_license(base, recipe.hub.license, online=False)
        publication = collect_files(run, published, evidence, license_copy)
        faults = [*recipe_faults(published, base), *unlisted_license(published.hub)]
        show_publication(published, publication, faults, evidence.no_scores)
        return Pushed(recipe.hub.repo_id, None, False, tuple(publication.files), publication.card)
    with run.lock():
        evidence = read_evidence(run)
        published = published_recipe(trained, recipe, evidence)
        base = evidence.record["base_model"]
        check_recipe(published, base)
        collect_files(run, published, evidence)  # what is wrong with the adapter is told before the Hub is asked
        api = open_hub(str(recipe.hub.repo_id))
        remote = find_remote(api, published, base["name"])
        with hub_errors_explained(str(base["name"])):
            license_copy = find_license(base, recipe.hub.license, online=True)
        publication = collect_files(run, published, evidence, license_copy)
        check_card(published, publication.card)
        _tell_missing(published, publication, remote, base["name"])
        if evidence.no_scores:
            say(f"the model card will say `not evaluated`: {evidence.no_scores}")
        commit, changed = _commit(api, published, publication, remote)
        _note(run, published, commit)
    return Pushed(recipe.hub.repo_id, commit, changed, tuple(publication.files), publication.card)


def _tell_missing(recipe: Recipe, publication: Publication, remote: Remote | None, base: str) -> None:
    known = base_license(base, recipe.hub.license)
    if known and _lacks_license(publication) and (remote is None or LICENSE not in remote.files):
        say(
            f"{base} holds no {' or '.join(LICENSE_NAMES)} that this token may read. The {known.title} asks for a copy "
            f"beside the adapter: add it to the repository by hand, as {LICENSE} ({known.page})."
        )


def _lacks_license(publication: Publication) -> bool:
    return NOTICE in publication.files and LICENSE not in publication.files


def _commit(api: HfApi, recipe: Recipe, publication: Publication, remote: Remote | None) -> tuple[str, bool]:
    """Make one commit of what differs; the commit that `main` stands for, and whether it is a new one."""
    repo_id = str(recipe.hub.repo_id)
    page = f"{api.endpoint}/{repo_id}"
    state = "was created and is empty" if remote is None else f"is as it was, at commit {remote.commit[:8]}"
    if remote is None:
        remote = _create(api, recipe)
    with hub_errors_explained(repo_id, f"{repo_id} {state}"):
        made = api.create_commit(  # leaves out what is there already, and makes none of nothing
            repo_id,
            _operations(publication, remote.files),
            commit_message=_message(recipe, publication),
            parent_commit=remote.commit,
        )
    commit = str(made.oid)
    if commit == remote.commit:
        say(f"{page} already holds exactly this, at commit {commit[:8]}: nothing to do.")
        return commit, False
    seen = "private" if remote.private else "public"
    say(f"pushed {len(publication.files)} files to {page} ({seen}), commit {commit[:8]}")
    return commit, True


def _create(api: HfApi, recipe: Recipe) -> Remote:
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
    return Remote(str(info.sha), frozenset(), bool(info.private))


def _operations(publication: Publication, there: frozenset[str]) -> list[Any]:
    """The files, and those of an earlier push that are no longer published; a licence added by hand stays."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    gone = (ALLOWED & there) - publication.files.keys() - ({LICENSE} if _lacks_license(publication) else set())
    added = [CommitOperationAdd(name, content) for name, content in publication.files.items()]
    return [*added, *map(CommitOperationDelete, sorted(gone))]


def _message(recipe: Recipe, publication: Publication) -> str:
    scored = "with scores" if "scores.json" in publication.files else "not evaluated"
    return f"Adapter of recipe {Path(recipe.output_dir).name}, {scored}"


def _note(run: RunDirectory, recipe: Recipe, commit: str) -> None:
    """Write down what was pushed; the push is done, whether or not this disk has room for the note."""
    told = {"repo": recipe.hub.repo_id, "commit": commit, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    record = run.read_record()
    before = record.get("pushed") or {}
    if {key: before.get(key) for key in ("repo", "commit")} == {"repo": told["repo"], "commit": commit}:
        return
    changes = version_changes(record)
    try:
        save_card(run, recipe)
        run.update_record({"pushed": told | ({"versions_since_training": changes} if changes else {})})
    except OSError as error:
        say(f"the push is complete, but {run.record} could not be written: {error.strerror}.")
