"""The judge: verdicts, refusals and failures of an endpoint on this machine's loopback."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.errors import RecipeError, RunError
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.recipe.resolved import recipe_sha256
from alpacare_sft.recipe.sections import JudgeSection
from alpacare_sft.review import judge as judges
from alpacare_sft.review.judge import check_judge, judge_answers, show_judge

KEY = "secret-of-this-test"
USAGE = {"prompt_tokens": 100, "completion_tokens": 7}
Answer = tuple[int, Any]


def reply(text: str | None, **message: Any) -> Answer:
    return 200, {"choices": [{"message": {"content": text, **message}, "finish_reason": "stop"}], "usage": USAGE}


def rows(count: int) -> list[dict[str, Any]]:
    prompt = {"instruction": "What helps?", "input": ""}
    return [{"id": i, "prompt": prompt, "base": f"BASE {i}", "adapter": f"ADAPTER {i}"} for i in range(count)]


class Server(ThreadingHTTPServer):
    """Answers each request by `respond(body)` and keeps what was asked."""

    respond: Callable[[dict[str, Any]], Answer]
    asked: list[tuple[str, str | None, dict[str, Any]]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        status, content = self.server.respond(body)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that waited no longer
            self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(judges, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: Server, respond: Callable[[dict[str, Any]], Answer], count: int = 1, kept: Path | None = None, **keys: Any
) -> dict[str, Any]:
    server.respond = respond  # type: ignore[method-assign]
    section = JudgeSection(**{"endpoint": f"http://127.0.0.1:{server.server_port}/v1/", "model": "m"} | keys)
    return judge_answers(rows(count), section, kept)


def adapter_first(body: dict[str, Any]) -> bool:
    text = body["messages"][0]["content"]
    return bool(text.index("ADAPTER") < text.index("BASE"))


def likes_adapter(body: dict[str, Any]) -> Answer:
    return reply("Better. VERDICT: A" if adapter_first(body) else "Better.\n\n**Verdict: B**")


@pytest.mark.parametrize(
    ("respond", "winner", "disagreed"),
    [
        (likes_adapter, "adapter", 0),
        (lambda body: reply("VERDICT: B" if adapter_first(body) else "VERDICT: A"), "base", 0),
        (lambda body: reply("VERDICT: A"), "tie", 1),
        (lambda body: reply("VERDICT: TIE"), "tie", 0),
        (lambda body: reply("VERDICT: A tie." if adapter_first(body) else "VERDICT: TIE"), "tie", 0),
        (lambda body: reply("VERDICT: A" if adapter_first(body) else "VERDICT: TIE"), "tie", 1),
        (lambda body: reply("VERDICT: A? No.\nVERDICT: B" if adapter_first(body) else "VERDICT: A"), "base", 0),
        (lambda body: reply("Both are fine."), "none", 0),
    ],
)
def test_a_pair_is_won_if_both_orders_agree(
    server: Server, respond: Callable[[dict[str, Any]], Answer], winner: str, disagreed: int
) -> None:
    found = ask(server, respond)
    assert {name for name, count in found["verdicts"].items() if count} - {"orders_disagreed"} == {winner}
    assert found["verdicts"]["orders_disagreed"] == disagreed
    assert (found["n"], found["requests"], found["rows"][0]["verdict"]) == (1, 2, winner)


def test_tokens_and_refusals_are_counted(server: Server) -> None:
    answers = [
        reply(None, refusal="I cannot"),
        (200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
        (200, "<html>"),
        (200, {"choices": []}),
        reply("VERDICT: TIE"),
        reply("VERDICT: TIE"),
    ]
    found = ask(server, lambda body: answers[len(server.asked) - 1], count=3)
    assert (found["refused"], found["unreadable"], found["failed"]) == (2, 0, 2)
    assert found["tokens"] == {"prompt": 300, "completion": 21, "unknown": 1}
    assert found["verdicts"] == {"adapter": 0, "base": 0, "tie": 1, "none": 2, "orders_disagreed": 0}


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server: Server, status: int) -> None:
    found = ask(server, lambda body: likes_adapter(body) if len(server.asked) > 2 else (status, "busy"))
    assert len(server.asked) == 4
    assert (found["verdicts"]["adapter"], found["failed"], found["requests"]) == (1, 0, 2)


def test_a_slow_reply_is_a_failure_with_its_key(server: Server) -> None:
    def slow(body: dict[str, Any]) -> Answer:
        time.sleep(0.3)
        return likes_adapter(body)

    with pytest.raises(RunError, match=r"no reply within 0\.05 seconds \(evaluate\.judge\.timeout_seconds\)\."):
        ask(server, slow, timeout_seconds=0.05)


@pytest.mark.parametrize("status", [302, 400, 401, 404, 500])
def test_a_server_that_refuses_at_once_is_told_without_the_key(server: Server, status: int) -> None:
    with pytest.raises(
        RunError, match=f"evaluate.judge.endpoint http://.*: status {status}, wrong key \\[key\\]\\."
    ) as e:
        ask(server, lambda body: (status, f"wrong key\n{KEY}"), api_key_env="JUDGE_KEY")
    assert KEY not in str(e.value)


def test_a_page_in_the_place_of_a_reply_is_told(server: Server) -> None:
    with pytest.raises(RunError, match="its reply is not a chat completion: <html> Welcome"):
        ask(server, lambda body: (200, "<html>\n Welcome"), count=9)
    assert len(server.asked) == 2


def test_an_endpoint_that_is_not_there(server: Server) -> None:
    section = JudgeSection(endpoint="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9/v1: it cannot be reached\."):
        judge_answers(rows(1), section)


def test_what_was_paid_for_is_kept_when_the_server_goes_away(server: Server) -> None:
    found = ask(server, lambda body: likes_adapter(body) if len(server.asked) <= 3 else (400, "gone"), count=9)
    assert (found["n"], found["failed"], found["verdicts"]["adapter"], found["verdicts"]["none"]) == (3, 3, 1, 2)
    assert found["stopped"] == (
        "Stopped after 3 of 9 rows: 3 requests failed in a row (status 400, gone). Run it again to ask what is missing."
    )


def test_what_was_answered_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "replies.jsonl"
    ask(server, lambda body: likes_adapter(body) if len(server.asked) <= 3 else (400, "gone"), count=9, kept=kept)
    assert len(kept.read_text().splitlines()) == 3
    with kept.open("a") as file:
        file.write('{"fingerprint": "of a stop in the mid')
    server.asked.clear()
    found = ask(server, likes_adapter, count=9, kept=kept)
    assert (len(server.asked), found["requests"], found["kept"]) == (15, 18, 3)
    assert found["verdicts"]["adapter"] == 9 and found["tokens"]["prompt"] == 1800
    assert ask(server, likes_adapter, count=9, kept=kept) == {**found, "kept": 18}
    assert len(server.asked) == 15


def test_a_stop_loses_no_reply(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_judge = judges.ask_judge

    def interrupt(session: Any, section: JudgeSection, content: str) -> judges.Reply:
        if len(server.asked) == 5:
            raise KeyboardInterrupt
        return ask_judge(session, section, content)

    monkeypatch.setattr("alpacare_sft.review.judge.ask_judge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(server, likes_adapter, count=9, kept=tmp_path / "replies.jsonl")
    monkeypatch.undo()
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("other", [{"model": "n"}, {"temperature": 0.5}, {"temperature": None}])
def test_another_judge_is_asked_anew(server: Server, tmp_path: Path, other: dict[str, Any]) -> None:
    ask(server, likes_adapter, kept=tmp_path / "replies.jsonl")
    found = ask(server, likes_adapter, kept=tmp_path / "replies.jsonl", **other)
    assert (found["kept"], len(server.asked)) == (0, 4)


def test_a_server_that_fails_at_the_first_new_request_leaves_what_is_known(server: Server, tmp_path: Path) -> None:
    ask(server, likes_adapter, count=2, kept=tmp_path / "replies.jsonl")
    found = ask(server, lambda body: (400, "gone"), count=9, kept=tmp_path / "replies.jsonl")
    assert (found["verdicts"]["adapter"], found["kept"], found["failed"]) == (2, 4, 4)
    assert found["stopped"] is not None


def test_the_key_goes_to_the_endpoint_and_nowhere_else(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(server, likes_adapter, count=3, api_key_env="JUDGE_KEY", max_rows=2, temperature=None)
    show_judge(found)
    path, key, body = server.asked[0]
    assert (path, key, len(server.asked)) == ("/v1/chat/completions", f"Bearer {KEY}", 4)
    assert body["model"] == "m" and "temperature" not in body
    told = capsys.readouterr()
    assert KEY not in json.dumps(found) + told.out + told.err
    shown = " ".join(told.out.split())
    assert "opinion of one language model" in shown
    assert "4 requests, 0 of them answered earlier" in shown and "400 prompt tokens and 28 completion tokens." in shown


def test_no_key_is_sent_where_none_is_named(server: Server) -> None:
    ask(server, likes_adapter)
    assert server.asked[0][1] is None
    assert server.asked[0][2]["temperature"] == 0.0


def test_a_key_that_is_not_set_is_told_before_anything_is_asked(server: Server) -> None:
    with pytest.raises(RecipeError, match="JUDGE_KEY_OF_NOBODY is empty"):
        ask(server, likes_adapter, api_key_env="JUDGE_KEY_OF_NOBODY")
    assert server.asked == []


def test_a_key_is_looked_for_before_there_are_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    section = JudgeSection(endpoint="http://127.0.0.1:9/v1", model="m", api_key_env="JUDGE_KEY")
    for value, told in (("", "is empty"), ("ключ", "holds characters that no key has")):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(RecipeError, match=f"JUDGE_KEY {told}"):
            check_judge(section)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for judge in (section, None, JudgeSection(endpoint="http://127.0.0.1:9/v1", model="m")):
        check_judge(judge)


def test_without_a_base_there_is_nothing_to_judge(server: Server) -> None:
    with pytest.raises(RunError, match=r"Set evaluate\.baseline: true\."):
        judge_answers([{"id": 1, "adapter": "x"}], JudgeSection(endpoint="http://127.0.0.1:9/v1", model="m"))


GIVEN = ["--evaluate.judge.endpoint", "http://localhost:8000/v1", "--evaluate.judge.model", "m"]


def test_a_judge_is_off_by_default_and_leaves_the_run_as_it_is(make_recipe: Callable[..., Recipe]) -> None:
    without, given = make_recipe(), make_recipe(*GIVEN)
    assert without.evaluate.judge is None
    assert given.evaluate.judge == JudgeSection(endpoint="http://localhost:8000/v1", model="m")
    assert recipe_sha256(without) == recipe_sha256(given)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--evaluate.judge.model", "m"], "evaluate.judge.endpoint must be given."),
        (["--evaluate.judge", "m"], "evaluate.judge must be a section of keys, got 'm'."),
        (
            [*GIVEN, "--evaluate.judge.modle", "m"],
            "evaluate.judge.modle is not a key. Did you mean evaluate.judge.model?",
        ),
        ([*GIVEN, "--evaluate.judge.endpoint", "localhost:80"], "evaluate.judge.endpoint must be an address such as"),
        ([*GIVEN, "--evaluate.judge.endpoint", "http://["], "evaluate.judge.endpoint must be an address such as"),
        ([*GIVEN, "--evaluate.judge.endpoint", f"http://me:{KEY}@h/v1"], "must hold no password and no query."),
        (
            [*GIVEN, "--evaluate.judge.api_key_env", KEY],
            "must be the name of an environment variable, not the key itself.",
        ),
        (
            [*GIVEN, "--evaluate.judge.max_rows", "0"],
            "evaluate.judge.max_rows must be a whole number (more than 0) or null",
        ),
        ([*GIVEN, "--evaluate.baseline", "false"], "needs evaluate.baseline: true, got false."),
    ],
)
def test_a_wrong_judge_is_told_by_its_key(make_recipe: Callable[..., Recipe], words: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        make_recipe(*words)
    assert told in str(error.value)
    assert KEY not in str(error.value)
