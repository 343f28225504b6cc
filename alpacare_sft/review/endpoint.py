"""One question to an OpenAI-compatible endpoint → its verdict, what it cost in tokens, or why there is none."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe.sections import JudgeSection

if TYPE_CHECKING:
    import requests

RETRIES = 4
BACKOFF_SECONDS = 1.0  # doubled at each retry; a server's Retry-After comes first
_VERDICT = re.compile(
    r"VERDICT\W{0,6}(?:answer\s+|a\s+(?=tie))?(A|B|TIE)\b(?!\W*(?:tie|and|or)\b|\s*[/&])", flags=re.IGNORECASE
)


@dataclass(frozen=True)
class Reply:
    """What became of one request."""

    kind: str
    """`a`, `b` or `tie`; `refused`, `unreadable` or `failed` if there is no verdict."""

    tokens: tuple[int, int] | None = None
    """Of the prompt and of the reply, as the endpoint counted them."""

    why: str = ""
    """What went wrong, if it failed."""

    is_cached: bool = False
    """Whether an earlier run asked for it."""


def check_judge(judge: JudgeSection | None) -> None:
    """Refuse a judge whose key is not there, before the hour that answers may take.

    Raises:
        RecipeError: with the name of the variable.
    """
    if judge is None or judge.api_key_env is None:
        return
    key = _key(judge)
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        wrong = "holds characters that no key has" if key else "is empty"
        raise RecipeError(
            f"evaluate.judge.api_key_env must name an environment variable that holds a key, {judge.api_key_env} "
            f"{wrong}. Set it, or set evaluate.judge.api_key_env: null for a server that needs none."
        )


def open_session(judge: JudgeSection) -> requests.Session:
    """A session that asks again after 429 and server errors, and sends the key to this endpoint alone.

    Raises:
        RecipeError: if the key is not there.
    """
    import requests
    from urllib3.util import Retry

    check_judge(judge)
    key = _key(judge)
    session = requests.Session()
    retries = Retry(
        total=RETRIES,
        connect=1,
        read=1,  # a reply that came too late may have been billed
        backoff_factor=BACKOFF_SECONDS,
        status_forcelist=(408, 429, 500, 502, 503, 504),
        allowed_methods=("POST",),
        raise_on_status=False,
        retry_after_max=60,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retries))

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    session.auth = authorize  # as a callable it also keeps passwords of ~/.netrc out
    return session


def ask_judge(session: requests.Session, judge: JudgeSection, content: str) -> Reply:
    """Ask one question; what goes wrong is in the reply, without the key."""
    import requests

    body: dict[str, Any] = {"model": judge.model, "messages": [{"role": "user", "content": content}]}
    if judge.temperature is not None:
        body["temperature"] = judge.temperature
    url = judge.endpoint.rstrip("/") + "/chat/completions"
    try:
        answer = session.post(url, json=body, timeout=judge.timeout_seconds, allow_redirects=False)
    except requests.RequestException as error:
        return Reply("failed", why=_cause(error, judge))
    text = answer.text.replace(_key(judge), "[key]") if _key(judge) else answer.text  # some servers repeat it
    excerpt = " ".join(text.split())[:200]
    if answer.status_code != 200:
        return Reply("failed", why=f"status {answer.status_code}{f', {excerpt}' if excerpt else ''}")
    return _read_reply(answer) or Reply("failed", why=f"its reply is not a chat completion: {excerpt or 'nothing'}")


def _key(judge: JudgeSection) -> str:
    return os.environ.get(judge.api_key_env, "").strip() if judge.api_key_env else ""


def _cause(error: Exception, judge: JudgeSection) -> str:
    import requests

    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return f"no reply within {judge.timeout_seconds:g} seconds (evaluate.judge.timeout_seconds)"
    return "it cannot be reached" if isinstance(error, requests.ConnectionError) else type(error).__name__


def _read_reply(answer: requests.Response) -> Reply | None:
    """What the model wrote, or None if this is no completion."""
    try:
        body = answer.json()
        choice = body["choices"][0]
        message = choice["message"]
        tokens = _tokens(body)
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return Reply("refused", tokens)
        verdicts = _VERDICT.findall(message.get("content") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return Reply(verdicts[-1].lower() if verdicts else "unreadable", tokens)


def _tokens(body: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        return int(body["usage"]["prompt_tokens"]), int(body["usage"]["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        return None
