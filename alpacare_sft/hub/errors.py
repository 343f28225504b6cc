"""What the Hub answers in the place of success → one message a cause, with its page and its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alpacare_sft.errors import RunError, causes_of
from alpacare_sft.model.base import is_of_http

TOKENS = "https://huggingface.co/settings/tokens"
_CUT = (ConnectionError, TimeoutError)


@contextmanager
def refusals_told(repo_id: str, otherwise: str = "Nothing was changed there") -> Iterator[None]:
    """Turn what goes wrong with the Hub into one message a cause; no text of a request is in it.

    Args:
        repo_id: that is written to.
        otherwise: what became of it, for a connection that broke off.

    Raises:
        RunError: with the remedy.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:
        causes = list(causes_of(error))
        response = next((c.response for c in causes if isinstance(c, HfHubHTTPError) and c.response is not None), None)
        broken = any(is_of_http(cause) or isinstance(cause, _CUT) for cause in causes)
        if response is not None:
            raise RunError(f"hub: {_refusal(response.status_code, repo_id)}") from error
        if broken:
            raise RunError(
                f"hub: the connection to the Hub broke off or could not be made ({type(causes[-1]).__name__}). "
                f"{otherwise}. Check the network and run it again."
            ) from error
        if isinstance(error, RuntimeError | ValueError):  # what the client and its transfer library raise for the rest
            raise RunError(f"hub: the client gave up: {_first_line(error)}. {otherwise}. Run it again.") from error
        raise


def _first_line(error: Exception) -> str:
    """The head of a message of others, without the token."""
    from huggingface_hub import get_token

    text = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return text.replace(get_token() or "\0", "***")


def _refusal(status: int, repo_id: str) -> str:
    page = f"https://huggingface.co/{repo_id}"
    told = {
        401: f"the Hub does not know this token. Renew it at {TOKENS}, then `hf auth login`.",
        402: f"the Hub asks for payment to store {repo_id}. See https://huggingface.co/settings/billing.",
        403: f"this token may not write to {repo_id}. Give it the right at {TOKENS}, or ask the owner of {page}.",
        404: f"{repo_id} does not exist, or this token may not see it. Check hub.repo_id and the token.",
        409: f"{repo_id} is taken, or was changed at the same time. Look at {page}, then run it again.",
        412: f"{repo_id} was changed by someone else at the same time; nothing was written over. Look at {page}, then "
        "run it again.",
        429: "the Hub accepts no more requests for now. Wait a few minutes and run it again.",
    }
    if status in told:
        return told[status]
    return f"the Hub answered {status} for {repo_id}; nothing was changed there. Try again later, or look at {page}."
