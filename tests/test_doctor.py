"""What `doctor` sees, with a remedy for each, and that it never shows a token."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError

from alpacare_sft.cli import main
from alpacare_sft.hub.doctor import Finding, examine

# The HTTP library of huggingface_hub, by its name in either major version.
httpx = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
TOKEN = "hf_" + "a" * 34


def of(subject: str, findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.text) for one in findings if one.subject == subject]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, and a Hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    def unreachable(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(HfApi, "auth_check", unreachable)
    monkeypatch.setattr(HfApi, "whoami", unreachable)


def test_this_environment_has_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "✓ packages" in out and "! token      none; gated models need one." in out and "✗" not in out


def test_json_has_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert {"level": "fine", "subject": "Python"}.items() <= findings[0].items()


def test_a_broken_torch_is_told_and_the_rest_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    findings = list(examine())
    [(level, text)] = of("torch", findings)
    assert level == "fault" and "libcudart.so.12" in text and "Install it anew" in text
    assert of("memory", findings) and of("token", findings)


def test_a_version_outside_its_bounds_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "peft" else real(name))
    faults = [text for level, text in of("packages", list(examine())) if level == "fault"]
    assert len(faults) == 1 and faults[0].startswith("peft") and "0.1 is installed. Run: pip install" in faults[0]


def test_a_token_is_tried_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    account = {"name": "ann", "auth": {"accessToken": {"role": "read"}}}
    assert of("token", list(examine()))[0][0] == "warning"
    monkeypatch.setattr(HfApi, "whoami", lambda self: account)
    findings = list(examine())
    assert of("token", findings) == [("fine", "of ann, read; it cannot publish")]
    assert TOKEN not in str(findings)


def test_a_gate_that_is_shut_is_a_fault_and_a_hub_out_of_reach_a_warning(
    make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe("--model.model_name_or_path", "meta-llama/Llama-3.2-1B-Instruct")
    assert [level for level, _ in of("model", list(examine(recipe)))] == ["warning"]

    def gated(*_: Any, **__: Any) -> None:
        raise GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr(HfApi, "auth_check", gated)
    [(level, text)] = of("model", list(examine(recipe)))
    assert level == "fault" and "Accept its licence at https://huggingface.co/meta-llama" in text


def test_what_a_site_does_differently_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert "use --stop-after" in of("site", list(examine()))[0][1]
