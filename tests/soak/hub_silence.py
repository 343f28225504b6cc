"""A Hub that accepts connections and never answers: each file is asked for six times, then one message ends it."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.test_hub_errors import CASES, outcomes_of


def test_a_hub_that_never_answers_is_given_up(tiny_model: Path, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.nowhere]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # connections are made, and nobody reads what they ask
        outcomes = outcomes_of(cases, f"http://127.0.0.1:{silent.getsockname()[1]}", tiny_model, tmp_path)
    for case in cases:
        outcome = outcomes[case.name]
        assert outcome.code == case.code and outcome.stderr.count("error: ") == 1, outcome.stderr
        assert "the Hub cannot be reached" in outcome.stderr or "broke off" in outcome.stderr, outcome.stderr
