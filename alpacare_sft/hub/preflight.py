"""What must be right before anything is uploaded: the name, the licences, the token and the repository."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.hub.errors import TOKENS, hub_errors_explained, hub_sentence
from alpacare_sft.hub.files import ALLOWED
from alpacare_sft.recipe.names import COMMIT, EMBEDDED, EMBEDDED_NAME, is_path, is_same_name, local_path
from alpacare_sft.reporting.card import TAG, card_metadata
from alpacare_sft.reporting.evidence import Evidence
from alpacare_sft.reporting.licenses import base_license, license_faults, spelling_fault

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    from alpacare_sft.recipe.loading import Recipe

# Meta's repositories on the Hub name a licence by the first (Llama 3.2) or by the second (Llama 3.1 and 3.3).
LICENSE_NAMES = ("LICENSE.txt", "LICENSE")


class _Scope(TypedDict, total=False):
    entity: dict[str, Any] | None
    permissions: list[str] | None


class _Rights(TypedDict, total=False):
    scoped: list[_Scope] | None


class _Token(TypedDict, total=False):
    role: str | None
    fineGrained: _Rights | None


class _Auth(TypedDict, total=False):
    accessToken: _Token | None


class _Organisation(TypedDict):
    name: str


class _AccountParts(TypedDict, total=False):
    auth: _Auth | None
    orgs: list[_Organisation] | None


class _Account(_AccountParts):
    """What the Hub says of a token, as far as it is read."""

    name: str


def recipe_faults(recipe: Recipe, base: Mapping[str, str | None] | None = None) -> Iterator[str]:
    """What of a recipe stands in the way of a push; needs no network.

    Args:
        recipe: with the section `hub` to publish by.
        base: `name` and `revision` of the base as the run recorded them; None before there is a run.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, not in its __all__

    name = recipe.hub.repo_id
    if not name:
        yield "hub.repo_id must name the repository to publish to, as owner/name. Add --hub.repo_id owner/name."
    else:
        is_valid = False
        with suppress(HFValidationError):
            validate_repo_id(name)
            is_valid = name.count("/") == 1
        if not is_valid:
            yield (
                f"hub.repo_id must be owner/name, of letters, digits and -_. and at most 96 characters, got {name!r}. "
                "Correct it."
            )
    public = _base_name(recipe) if base is None else str(base["name"])
    # what a run recorded tells by its commit; before there is a run, what lies here now
    is_local = local_path(public) is not None if base is None else not COMMIT.fullmatch(base["revision"] or "")
    if (is_local or is_path(public)) and public.lower() != EMBEDDED_NAME.lower():
        yield (
            f"model.model_name_or_path must be a model on the Hub, so that others can load the adapter, got {public}. "
            "Train with the base's name on the Hub; files that are in the cache are not downloaded again."
        )
    yield from license_faults(public, recipe.data.path, recipe.hub)


def _base_name(recipe: Recipe) -> str:
    name = recipe.model.model_name_or_path
    return EMBEDDED_NAME if name == EMBEDDED else name


def check_recipe(recipe: Recipe, base: Mapping[str, str | None] | None = None) -> None:
    """Refuse a recipe that cannot be published.

    Raises:
        RecipeError: with every fault.
    """
    if faults := list(recipe_faults(recipe, base)):
        raise RecipeError(faults)


def preflight(recipe: Recipe) -> None:
    """All that can be known before there is an adapter, for a push at the end of a long run.

    Raises:
        RecipeError: if the name, a licence or the metadata of the model card stands in the way.
        RunError: if the token may not write there, or the name is taken.
    """
    check_recipe(recipe)
    api, base = open_hub(str(recipe.hub.repo_id)), _base_name(recipe)
    find_remote(api, recipe, base)
    recipe = with_base_license(api, recipe, base)
    metadata = card_metadata(recipe, Evidence({"base_model": {"name": base}}, {}, None, ""))
    check_card(recipe, f"---\n{metadata}\n---\n")


def with_base_license(api: HfApi, recipe: Recipe, base: str) -> Recipe:
    """The recipe with the licence that the base's own card states, where neither recipe nor base's name tells one.

    Args:
        api: of the Hub.
        recipe: with the section `hub` to publish by.
        base: its name on the Hub.

    Raises:
        RecipeError: if that licence forbids something about the publication.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if recipe.hub.license or base_license(base):
        return recipe
    card = None
    with hub_errors_explained(base), suppress(HfHubHTTPError):  # a base that this token may not see
        card = api.model_info(base).card_data
    stated = getattr(card, "license", None)
    if not isinstance(stated, str):
        return recipe
    hub = dataclasses.replace(recipe.hub, license=stated)
    if faults := list(license_faults(base, recipe.data.path, hub)):
        raise RecipeError(faults)
    return dataclasses.replace(recipe, hub=hub)


def check_card(recipe: Recipe, card: str) -> None:
    """Let the Hub read a model card's metadata before anything is made there; it refuses a commit over these, too.

    Raises:
        RecipeError: with the Hub's own sentence.
    """
    from huggingface_hub import ModelCard

    with hub_errors_explained(str(recipe.hub.repo_id)):
        try:
            ModelCard(card).validate()
        except ValueError as error:  # what `validate` makes of a 400
            message = _card_fault(str(error))
            if re.search(r"\blicense\b", message):
                raise RecipeError(f"{spelling_fault('license', recipe.hub)} {message}") from error
            raise RecipeError(
                f"hub: the Hub refuses the model card. {message} Check data.path and the section hub."
            ) from error


def _card_fault(answer: str) -> str:
    """The Hub's own sentence, from its JSON or its lines of text."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        parsed = json.loads(answer)
        answer = parsed.get("error") or "; ".join(fault["message"] for fault in parsed["errors"])
    return hub_sentence(answer.replace("- Error: ", ""))


def open_hub(repo_id: str) -> HfApi:
    """The Hub's client, once it is known that the token may write to `repo_id`.

    Raises:
        RunError: one message a cause.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise RunError("hub: HF_HUB_OFFLINE is set, and a push needs the Hub. Unset it, or add --dry-run just to look.")
    token = get_token()
    if not token:
        raise RunError(f"hub: no token was found. Make one with the right to write at {TOKENS}, then `hf auth login`.")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise RunError(f"hub: the token contains characters that no token has. Copy it again from {TOKENS}.")
    api = HfApi(token=token)
    with hub_errors_explained(repo_id):
        account = read_account(api)
    _check_rights(account, repo_id)
    return api


def read_account(api: HfApi) -> Mapping[str, Any]:
    """Whose token it is, and what it may do.

    Raises:
        TypeError: if the answer is none of the Hub's.
    """
    from pydantic import TypeAdapter, ValidationError

    account: Mapping[str, Any] = api.whoami()
    try:
        TypeAdapter(_Account).validate_python(account)
    except ValidationError as error:
        raise TypeError(f"of the account, {error.errors()[0]['msg']}") from None
    return account


def _check_rights(account: Mapping[str, Any], repo_id: str) -> None:
    owner = repo_id.partition("/")[0]
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise RunError(f"hub: this token may only read. Make one with the right to write at {TOKENS}.")
    organisations = {str(org["name"]).lower(): org for org in account.get("orgs") or []}
    account_name, organisation = account["name"], organisations.get(owner.lower(), {})
    if owner.lower() != str(account_name).lower():
        if not organisation:
            raise RunError(
                f"hub.repo_id: {owner} is neither the token's account ({account_name}) nor one of its organisations. "
                f"Write {account_name}/{repo_id.partition('/')[2]}, or use a token of {owner}."
            )
        if organisation.get("roleInOrg") == "read":
            raise RunError(
                f"hub.repo_id: {account_name} may only read in {owner}. Ask for the role `contributor` or `write` "
                f"at https://huggingface.co/organizations/{owner}."
            )
    if token.get("role") == "fineGrained" and not _may_write(token.get("fineGrained") or {}, owner, repo_id):
        raise RunError(
            f"hub: this fine-grained token may not write to {repo_id}. Give it `Write access to contents/settings of "
            f"all repos` under {owner} at {TOKENS}."
        )


def _may_write(rights: Mapping[str, Any], owner: str, repo_id: str) -> bool:
    """Whether a fine-grained token has the right; where the Hub does not say whose, its own answer decides later."""
    named = {owner.lower(), repo_id.lower(), ""}
    scopes = [scope for scope in rights.get("scoped") or [] if "repo.write" in (scope.get("permissions") or [])]
    return any(str((scope.get("entity") or {}).get("name", "")).lower() in named for scope in scopes)


def find_remote(api: HfApi, recipe: Recipe, base: str) -> ModelInfo | None:
    """The repository as it is, or None if there is none of that name.

    Raises:
        RunError: if it holds something else than an adapter of this base made by this package, or is
            public where the recipe says private.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    repo_id = str(recipe.hub.repo_id)
    with hub_errors_explained(repo_id):
        try:
            info = api.model_info(repo_id)
        except RepositoryNotFoundError as error:
            if error.response is not None and error.response.status_code == 401:
                raise
            return None
    _check_owner(info, base)
    if recipe.hub.private and not info.private:
        raise RunError(
            f"hub.private is true and {repo_id} is public. Set hub.private: false to publish there, make it private at "
            f"https://huggingface.co/{repo_id}/settings, or choose another hub.repo_id."
        )
    return info


def files_of(info: ModelInfo) -> frozenset[str]:
    """Paths of what a repository holds."""
    return frozenset(file.rfilename for file in info.siblings or [])


def _check_owner(info: ModelInfo, base: str) -> None:
    """Refuse to write over what this package did not put there."""
    files, card = files_of(info) - {".gitattributes", "README.md"}, info.card_data
    if not files:
        return
    remedy = "Choose another hub.repo_id."
    tags = getattr(card, "tags", None)
    if card is None or not isinstance(tags, list) or TAG not in tags:
        strange = sorted(files - ALLOWED) or sorted(files)
        named = ", ".join(strange[:3]) + (", …" if len(strange) > 3 else "")
        raise RunError(f"hub.repo_id: {info.id} already holds something else ({named}). {remedy}")
    theirs = card.base_model[0] if isinstance(card.base_model, list) else card.base_model
    if not is_same_name(str(theirs), base):
        raise RunError(f"hub.repo_id: {info.id} holds an adapter for {theirs}, this one is for {base}. {remedy}")


def find_license(base: Mapping[str, str | None], stated: str | None, *, online: bool) -> Path | None:
    """A copy of the licence that asks to come with what is made of a base, from the base's own repository.

    Args:
        base: its `name` and `revision`.
        stated: `hub.license`, which may tell the licence where the name does not.
        online: whether to ask the Hub for what the cache does not hold.

    Returns:
        The file, or None if the licence does not ask for it, or it cannot be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    name = str(base["name"])
    known = base_license(name, stated)
    if known is None or not known.notice:
        return None
    for file in LICENSE_NAMES:
        cached = try_to_load_from_cache(name, file, revision=base["revision"])
        if isinstance(cached, str):
            return Path(cached)
        if online:
            try:
                return Path(hf_hub_download(name, file, revision=base["revision"]))
            except HfHubHTTPError:  # a look-alike of the base without one, or a licence not accepted by this account
                continue
    return None
