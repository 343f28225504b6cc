"""One failure of the Hub, or of the way to it → one message, whatever was requested."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import TYPE_CHECKING

from alpacare_sft.errors import AlpacareError, RunError, causes_of, first_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TOKENS = "https://huggingface.co/settings/tokens"
# What else a name may be, what its revision is set by, and what needs no Hub.
_KINDS = {
    "model": ("a directory", "model.model_revision", "use `embedded`"),
    "adapter": ("a directory", "another --adapter", "name a directory"),
    "data set": ("a file", "data.revision", "name local files; a local file needs its ending, as in rows.jsonl"),
}
_BY_STATUS = {
    401: f"the Hub does not know this token. Renew it at {TOKENS}, then `hf auth login`.",
    429: "the Hub accepts no more requests for now. Wait a few minutes and run it again.",
}
_WRITING = {
    402: "the Hub asks for payment to store {name}. See https://huggingface.co/settings/billing.",
    403: f"this token may not write to {{name}}. Give it the right at {TOKENS}, or ask the owner of {{page}}.",
    404: "{name} does not exist, or this token may not see it. Check hub.repo_id and the token.",
    409: "{name} is taken, or was changed at the same time. Look at {page}, then run it again.",
    412: "{name} was changed by someone else at the same time; nothing was written over. Look at {page}, then run it "
    "again.",
}


def hub_fault(
    error: BaseException, name: str, kind: str = "model", revision: str | None = None, *, writes: bool = False
) -> str | None:
    """Why a request to the Hub failed, with its remedy; None if something else failed.

    Args:
        error: what the client raised, or what was raised from it.
        name: of the repository.
        kind: `model`, `adapter` or `data set`.
        revision: that was requested.
        writes: whether the repository is one to write to.
    """
    from huggingface_hub import errors as hub

    causes, text = list(causes_of(error)), str(error)
    page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{name}"
    local, key, instead = _KINDS[kind]
    refusal = next((cause for cause in causes if isinstance(cause, hub.HfHubHTTPError)), None)
    # datasets 5.2 raises what it met from None, so that its own words are all that is left of the cause
    if isinstance(refusal, hub.GatedRepoError) or "is a gated dataset" in text:
        return _gated_fault(refusal.response.status_code == 401 if refusal else "authenticated" in text, name, page)
    if isinstance(refusal, hub.RevisionNotFoundError):
        return f"{name} has no revision {revision}. See {page}/tree/main, and set {key}."
    is_missing = isinstance(refusal, hub.RepositoryNotFoundError) or type(error).__name__ == "DatasetNotFoundError"
    if is_missing and not writes:
        return (
            f"{name} is neither {local} nor a {kind} that this token may see on the Hub. Check the name ({page}); a "
            f"private one needs HF_TOKEN. Without the Hub, {instead}."
        )
    if refusal is not None:
        return _status_fault(refusal, name, page, writes)
    unreachable = any(isinstance(cause, hub.OfflineModeIsEnabled | hub.LocalEntryNotFoundError) for cause in causes)
    if not writes and (unreachable or "offline mode" in text or type(error) is ConnectionError):
        return f"{name} is not in the cache and the Hub cannot be reached. Check the network, or {instead}."
    broken = [cause for cause in causes if _is_of_connection(cause)]
    if broken:
        what = "the connection to the Hub" if writes else f"the download of {name}"
        return f"{what} broke off ({first_line(broken[0])}). Run it again; if it breaks off again, check the network."
    return None


def _gated_fault(no_token: bool, name: str, page: str) -> str:
    if no_token:
        return f"{name} is gated and no token was given. Accept its licence at {page}, then `hf auth login`."
    return (
        f"{name} is gated and this token may not read it. Accept its licence at {page} with the token's account; a "
        "fine-grained token also needs the right to read gated repositories."
    )


def _status_fault(refusal: HfHubHTTPError, name: str, page: str, writes: bool) -> str | None:
    status = refusal.response.status_code
    if status == 404 and not writes:  # a file that is not there: for the reader of the repository to tell
        return None
    message = (_BY_STATUS | (_WRITING if writes else {})).get(
        status, "the Hub answered {status} for {name}. Check {page} and the token, or try again later."
    )
    message = message.format(name=name, page=page, status=status)
    return f"{message} {hub_sentence(refusal.server_message)}".rstrip()


def hub_sentence(text: str | None) -> str:
    """What the Hub says itself, for the end of a message; empty if it says nothing."""
    return f"The Hub says: {line}." if (line := _shortened(text or "")) else ""


def _shortened(text: str) -> str:
    """A text of others, short and without tokens."""
    from huggingface_hub import get_token

    line = re.sub(r"\bhf_\w+", "***", text.replace(get_token() or "\0", "***"))
    return shorten(line, 300, placeholder=" …").rstrip(".")


@contextmanager
def hub_errors_explained(repo_id: str, state: str = "") -> Iterator[None]:
    """Turn what goes wrong while a repository is looked at or written to into one message a cause.

    Args:
        repo_id: that is written to.
        state: how the repository is if the request that writes to it is refused; empty for one that does not write.

    Raises:
        RunError: with the remedy; no text of a request is in it.
    """
    try:
        yield
    except AlpacareError:
        raise
    except Exception as error:
        message = hub_fault(error, repo_id, writes=True)
        strange = isinstance(error, LookupError | TypeError | AttributeError)  # as the client reads another's JSON
        if message is None and not isinstance(error, RuntimeError | ValueError) and not strange:
            raise
        if message is None and strange:
            message = (
                "what answered is not the Hub, such as a proxy of this network. Check HF_ENDPOINT and the network."
            )
        if message is None:  # what the client and its transfer library raise for the rest
            message = f"the client gave up: {_shortened(first_line(error))}. Run it again."
        raise RunError(f"hub: {message} {_state(error, state)}.") from error


def _state(error: Exception, state: str) -> str:
    if not state:
        return "Nothing was changed there"
    responses = (getattr(cause, "response", None) for cause in causes_of(error))
    status = next((response.status_code for response in responses if response is not None), None)
    return state if status and status < 500 else f"{state}, unless only the Hub's last answer was lost"


def _is_of_connection(error: BaseException) -> bool:
    """Whether the HTTP library raised it, which `huggingface_hub` calls httpx or, since 2, httpx2; or the system."""
    return type(error).__module__.startswith("httpx") or isinstance(error, ConnectionError | TimeoutError)
