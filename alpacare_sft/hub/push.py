"""A trained adapter → its repository on the Hub: checked, in one commit, private unless asked otherwise."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RunError
from alpacare_sft.evaluation import trained_recipe
from alpacare_sft.hub.card import save_card
from alpacare_sft.hub.evidence import Evidence, read_evidence
from alpacare_sft.hub.files import ALLOWED, LICENSE, NOTICE, Publication, collect_files
from alpacare_sft.hub.preflight import (
    Remote,
    check_recipe,
    find_license,
    find_remote,
    open_hub,
    recipe_faults,
)
from alpacare_sft.hub.refusals import refusals_told
from alpacare_sft.hub.showing import show_publication
from alpacare_sft.recording import say
from alpacare_sft.run import RunDirectory

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from alpacare_sft.recipe import Recipe


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repo_id: of the repository; None in a dry run without one.
        commit: that `main` stands for now; None in a dry run.
        changed: whether this push made that commit.
        files: that the repository holds of this run.
        card: text of its README.md.
    """

    repo_id: str | None
    commit: str | None
    changed: bool
    files: tuple[str, ...]
    card: str


def push(recipe: Recipe, *, dry_run: bool = False) -> Pushed:
    """Publish a run's adapter with its card, recipe, record and scores, in one commit.

    Model, data and training are those of the run in `output_dir`; `hub` and `safety` those of the
    recipe given. The same content pushed twice makes one commit. Until the commit, which the Hub
    makes whole or not at all, the repository stays as it was.

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
    published = dataclasses.replace(
        trained, hub=recipe.hub, safety=recipe.safety, generate=recipe.generate, evaluate=recipe.evaluate
    )
    if dry_run:
        evidence = _evidence(run)
        publication = collect_files(run, published, evidence, find_license(evidence.record["base_model"], online=False))
        faults = list(recipe_faults(published, evidence.record["base_model"]))
        show_publication(published, publication, faults, evidence.no_scores)
        return Pushed(recipe.hub.repo_id, None, False, tuple(publication.files), publication.card)
    with run.lock():
        evidence = _evidence(run)
        check_recipe(published, evidence.record["base_model"])
        base = evidence.record["base_model"]
        collect_files(run, published, evidence)  # what is wrong with the adapter is told before the Hub is asked
        api = open_hub(str(recipe.hub.repo_id))
        remote = find_remote(api, published, base["name"])
        with refusals_told(str(base["name"])):
            license_copy = find_license(base, online=True)
        publication = collect_files(run, published, evidence, license_copy)
        _tell_missing(publication, base["name"])
        if evidence.no_scores:
            say(f"the card will say `not evaluated`: {evidence.no_scores}")
        commit, changed = _commit(api, published, publication, remote)
        _note(run, published, commit)
    return Pushed(recipe.hub.repo_id, commit, changed, tuple(publication.files), publication.card)


def _evidence(run: RunDirectory) -> Evidence:
    evidence = read_evidence(run)
    if evidence.record.get("status") != "done" or not evidence.record.get("base_model"):
        raise RunError(f"output_dir: {run.path} holds a run that is not done. End it first: alpacare-sft train RECIPE.")
    return evidence


def _tell_missing(publication: Publication, base: str) -> None:
    if NOTICE in publication.files and LICENSE not in publication.files:
        say(
            f"{base} holds no {LICENSE} that this token may read. Its licence asks for a copy beside the adapter: add "
            "it to the repository by hand."
        )


def _commit(api: HfApi, recipe: Recipe, publication: Publication, remote: Remote | None) -> tuple[str, bool]:
    """Make one commit of what differs; the commit that `main` stands for, and whether it is a new one."""
    repo_id = str(recipe.hub.repo_id)
    page = f"{api.endpoint}/{repo_id}"
    is_new = remote is None
    if remote is None:
        remote = _create(api, recipe)
    operations = _operations(publication, remote.files)
    if not operations:
        say(f"{page} holds this already, commit {remote.commit[:8]}: nothing to do.")
        return remote.commit, False
    state = "is new and empty" if is_new else f"is as it was, at commit {remote.commit[:8]}"
    with refusals_told(repo_id, f"{repo_id} {state}, unless the Hub's last answer alone was lost"):
        made = api.create_commit(
            repo_id, operations, commit_message=_message(recipe, publication), parent_commit=remote.commit
        )
    seen = "private" if remote.private else "public"
    say(f"pushed {len(publication.files)} files to {page} ({seen}), commit {made.oid[:8]}")
    return str(made.oid), True


def _create(api: HfApi, recipe: Recipe) -> Remote:
    repo_id = str(recipe.hub.repo_id)
    with refusals_told(repo_id):
        api.create_repo(repo_id, private=recipe.hub.private, exist_ok=True)
        info = api.model_info(repo_id)
    if recipe.hub.private and not info.private:
        raise RunError(
            f"hub.private is true and the Hub made {repo_id} public. Nothing was published; see its settings."
        )
    return Remote(str(info.sha), {}, bool(info.private))


def _operations(publication: Publication, there: Mapping[str, tuple[int | None, str | None, str | None]]) -> list[Any]:
    """Files that the repository lacks or holds otherwise, and those of an earlier push that are published no more."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    changed: list[Any] = [
        CommitOperationAdd(name, content)
        for name, content in publication.files.items()
        if name not in there or not _is_same(publication.read(name), there[name])
    ]
    gone = sorted((ALLOWED & there.keys()) - publication.files.keys())
    return changed + [CommitOperationDelete(name) for name in gone]


def _is_same(content: bytes, there: tuple[int | None, str | None, str | None]) -> bool:
    size, blob, sha256 = there
    if size is not None and size != len(content):
        return False
    if sha256:
        return sha256 == hashlib.sha256(content).hexdigest()
    return blob == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _message(recipe: Recipe, publication: Publication) -> str:
    scored = "with scores" if "scores.json" in publication.files else "not evaluated"
    return f"Adapter of recipe {Path(recipe.output_dir).name}, {scored}"


def _note(run: RunDirectory, recipe: Recipe, commit: str) -> None:
    """Write down what was pushed; the push is done, whether or not this disk has room for the note."""
    told = {"repo": recipe.hub.repo_id, "commit": commit, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    before = run.read_record().get("pushed") or {}
    if {key: before.get(key) for key in ("repo", "commit")} == {"repo": told["repo"], "commit": commit}:
        return
    try:
        save_card(run, recipe)
        run.update_record({"pushed": told})
    except OSError as error:
        say(f"the push is whole, but {run.record} could not be written: {error.strerror}.")
