"""What goes wrong between a machine and the Hub: one message a cause, with key and remedy, and no token in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import tiny_document
from tests.hub_server import Hub, Repository, serve

pytestmark = pytest.mark.slow

READER, STRANGER, UNKNOWN = "hf_reader_token_1", "hf_stranger_token_2", "hf_unknown_token_3"
# Each case is one call of the command line; a process for each would take ten times as long to import.
DRIVER = """
import json, os, sys, time
time.sleep = lambda seconds: None  # what the clients wait between their attempts
import huggingface_hub.file_download
huggingface_hub.file_download._ETAG_RETRY_TIMEOUT = 1  # of 60 seconds, at each of six attempts
from alpacare_sft.cli import main
for case in json.load(open(sys.argv[1])):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(case["environment"])
    for descriptor in (1, 2):
        os.dup2(os.open(f"{case['log']}.{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
    code = main(case["words"])
    sys.stdout.flush(), sys.stderr.flush()
    open(f"{case['log']}.code", "w").write(str(code))
"""


@dataclass(frozen=True)
class Case:
    """A run that must fail: who asks for what, the exit code, and what the message must say."""

    name: str
    words: str
    code: int
    told: tuple[str, ...]
    token: str | None = None
    nowhere: bool = False


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str
    run: Path

    def written(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.run.rglob("*") if path.is_file())


def of_model(name: str, words: str, *told: str, token: str | None = None, nowhere: bool = False) -> Case:
    return Case(name, f"--model.model_name_or_path {words}", 1, ("model.", *told), token, nowhere)


def of_data(name: str, words: str, *told: str, token: str | None = None, nowhere: bool = False) -> Case:
    return Case(name, f"--data.path {words}", 2, ("data.", *told), token, nowhere)


def part(repository: str, **keys: str) -> str:
    """An entry of `data.path` as one word."""
    return json.dumps({"path": f"them/{repository}", **keys}, separators=(",", ":"))


PAGE = "https://huggingface.co"
CASES = (
    of_model("no token", "them/gated", "is gated and no token", f"{PAGE}/them/gated", "hf auth login"),
    of_model("no access", "them/gated", "this token may not read it", f"licence at {PAGE}/them/gated", token=STRANGER),
    of_model("unknown token", "them/gated", "does not know this token", f"{PAGE}/settings/tokens", token=UNKNOWN),
    of_model("unknown token, open model", "them/open", "does not know this token", "hf auth login", token=UNKNOWN),
    of_model("no model", "them/nothing", "neither a directory nor a model", f"{PAGE}/them/nothing", token=READER),
    of_model("no model, no token", "them/nothing", "neither a directory nor a model", f"{PAGE}/them/nothing"),
    of_model("private model", "them/private", "that this token may see", f"{PAGE}/them/private"),
    of_model("no model revision", "them/open --model.model_revision v9", "no revision v9", "set model.model_revision"),
    of_model("an adapter", "them/adapter", "must be a base model", "holds an adapter", "base_model_name_or_path"),
    of_model("an adapter with a tokenizer", "them/tuned", "must be a base model", "base_model_name_or_path"),
    of_model("own code", "them/own-code", "needs code of its own repository, which is never run"),
    of_model("pickled weights", "them/pickled", "holds no weights as model.safetensors", "can run code"),
    of_model("forbidden", "them/forbidden", "the Hub answered 403", f"{PAGE}/them/forbidden", token=READER),
    of_model("busy", "them/busy", "accepts no more requests for now", "Wait a few minutes", token=READER),
    of_model("broken", "them/broken", "the Hub answered 500 for them/broken", "try again later", token=READER),
    of_data("busy data", "them/busy-rows", "accepts no more requests for now", "Wait a few minutes", token=READER),
    of_data("broken data", "them/broken-rows", "the Hub answered 500", "try again later", token=READER),
    of_model("cut vocabulary", "them/cut-early", "the download of them/cut-early broke off", "Run it again"),
    of_model("cut weights", "them/cut", "the download of them/cut broke off", "Run it again"),
    of_model("no hub, model", "them/open", "the Hub cannot be reached", "`embedded`", nowhere=True, token=READER),
    of_data("no data set", "them/nothing", "neither a file nor a data set", "Check the name", token=READER),
    of_data("no data set, no token", "them/nothing", "neither a file nor a data set", "HF_TOKEN"),
    of_data("gated data", "them/gated-rows", "no token was given", f"{PAGE}/datasets/them/gated-rows", "hf auth login"),
    of_data("no access to data", "them/gated-rows", "may not read it", f"{PAGE}/datasets/them/gated", token=STRANGER),
    of_data("unknown token, data", "them/rows", "does not know this token", "hf auth login", token=UNKNOWN),
    of_data("no data revision", "them/rows --data.revision v9", "no revision v9", f"{PAGE}/datasets/them/rows/tree"),
    of_data(
        "forbidden data", "them/forbidden-rows", "the Hub answered 403", f"{PAGE}/datasets/them/forb", token=READER
    ),
    of_data("cut rows", "them/cut-rows", "the download of them/cut-rows broke off", "Run it again"),
    of_data("no rows in it", "them/empty", "holds no file of rows", f"{PAGE}/datasets/them/empty/tree/main"),
    of_data("several configurations", "them/configs", "has several configurations", "labeled, artificial", "name:"),
    of_data("no configuration", part("configs", name="lab"), "no configuration 'lab'", "one of: labeled, artificial"),
    of_data("no default split", "them/test-only", "has no split 'train'", "Its splits: test (9 rows)", "split: test}"),
    of_data("no split", part("test-only", split="dev"), "has no split 'dev'", "Its splits: test (9 rows)"),
    of_data("no part of a split", part("test-only", split="test[:x]"), "'test[:x]' is no part", "train[:90%]"),
    of_data("no split of a publisher", "them/rows --data.splits.test dev", "data.splits.test: them/rows has no split"),
    of_data("a script", "them/script", "made by a script of its own, which is never run"),
    of_data("no owner", "json", "json is neither a file nor a data set", "owner/name"),
    of_data("too few rows", "them/rows", "data.splits must not ask for more rows"),  # and now they are in the cache
    of_data("other revision cached", "them/rows --data.revision v9", "cache holds another", "token", token=UNKNOWN),
    of_data("no hub, data", "them/rows", "cannot be reached", "Check the network", nowhere=True, token=READER),
)


CONFIGURATIONS = """---
configs:
- {config_name: labeled, data_files: labeled.jsonl}
- {config_name: artificial, data_files: artificial.jsonl}
---
"""


def repositories(tiny_model: Path, folder: Path) -> Iterator[Repository]:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "them/open"}))
    shutil.copytree(tiny_model, folder / "tuned")
    (folder / "tuned" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "them/open"}))
    for name in ("own-code", "pickled"):
        shutil.copytree(tiny_model, folder / name)
    code = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "own-code" / "config.json").write_text(json.dumps(code))
    (folder / "own-code" / "own.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w')\n")
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    yield from (Repository(f"them/{name}", folder / name) for name in ("own-code", "pickled"))
    (folder / "rows").mkdir()
    row = json.dumps({"output": "Rest and drink.", "input": "", "instruction": "What helps with a cold?"})
    (folder / "rows" / "rows.jsonl").write_text(f"{row}\n" * 9)
    for name in ("configs/labeled", "configs/artificial", "test-only/test", "script/rows"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text(f"{row}\n" * 9)
    (folder / "configs" / "README.md").write_text(CONFIGURATIONS)
    (folder / "script" / "script.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w')\n")
    yield from (
        Repository(f"them/{name}", folder / name, kind="datasets") for name in ("configs", "test-only", "script")
    )
    (folder / "cut-rows").mkdir()
    (folder / "cut-rows" / "rows.jsonl").write_text(f"{row}\n" * 9)
    (folder / "empty").mkdir()
    (folder / "empty" / "README.md").write_text("Nothing yet.\n")
    yield Repository("them/gated", tiny_model, gated=True)
    yield Repository("them/open", tiny_model)
    yield Repository("them/cut", tiny_model)
    yield Repository("them/cut-early", tiny_model)
    yield Repository("them/tuned", folder / "tuned")
    yield Repository("them/forbidden", tiny_model, status=403)
    yield Repository("them/private", tiny_model, private=True)
    yield Repository("them/adapter", folder / "adapter")
    yield Repository("them/rows", folder / "rows", kind="datasets")
    yield Repository("them/cut-rows", folder / "cut-rows", kind="datasets")
    yield Repository("them/empty", folder / "empty", kind="datasets")
    yield Repository("them/forbidden-rows", folder / "rows", kind="datasets", status=403)
    for name, status in (("busy", 429), ("broken", 500)):
        yield Repository(f"them/{name}", tiny_model, status=status)
        yield Repository(f"them/{name}-rows", folder / "rows", kind="datasets", status=status)
    yield Repository("them/gated-rows", folder / "rows", kind="datasets", gated=True)


@pytest.fixture(scope="module")
def hub(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    breaks = {"them/cut/model.safetensors": 5_000, "them/cut-early/tokenizer.json": 500, "them/cut-rows/rows.jsonl": 99}
    served = list(repositories(tiny_model, tmp_path_factory.mktemp("repositories")))
    with serve(Hub(served, tokens={READER: True, STRANGER: False}, breaks=breaks)) as hub:
        yield hub


@pytest.fixture(scope="module")
def outcomes(hub: Hub, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("outcomes")
    told = outcomes_of([case for case in CASES if not case.nowhere], hub.endpoint, tiny_model, folder)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        return told | outcomes_of([case for case in CASES if case.nowhere], nowhere, tiny_model, folder)


def outcomes_of(cases: list[Case], endpoint: str, tiny_model: Path, folder: Path) -> dict[str, Outcome]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_document(tiny_model, folder / "unused")))
    home = folder / f"home-{endpoint.split(':')[-1]}"
    todo: list[dict[str, Any]] = [
        {
            "words": ["train", str(recipe), *case.words.split(), "--output_dir", str(folder / f"{case.name} run")],
            "log": str(folder / case.name),
            "environment": {"HF_TOKEN": case.token} if case.token else {},
        }
        for case in cases
    ]
    (folder / "cases.json").write_text(json.dumps(todo))
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**own, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}  # seconds of silence
    driver = [sys.executable, "-c", DRIVER, str(folder / "cases.json")]
    subprocess.run(driver, check=True, capture_output=True, timeout=200, env=environment)
    return {
        case.name: Outcome(
            int((folder / f"{case.name}.code").read_text()),
            (folder / f"{case.name}.1").read_text(),
            (folder / f"{case.name}.2").read_text(),
            folder / f"{case.name} run",
        )
        for case in cases
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_one_message_with_its_key_and_remedy(case: Case, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[case.name]
    messages = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert outcome.code == case.code
    assert len(messages) == 1 and outcome.stderr.splitlines()[-1] == messages[0]
    assert [part for part in case.told if part not in messages[0]] == []
    assert "Traceback" not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_token_is_shown_or_stored(case: Case, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[case.name]
    everything = outcome.stdout + outcome.stderr + outcome.written()
    assert [token for token in (READER, STRANGER, UNKNOWN) if token in everything] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_failed_run_leaves_its_record_and_nothing_half_written(case: Case, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[case.name]
    left = {path.name for path in outcome.run.iterdir()}
    assert left == {".lock", "recipe.yaml", ".run.json", "run.json"} | (
        {"data"} if case.name == "cut weights" else set()
    )
    record = json.loads((outcome.run / "run.json").read_text())
    assert record["status"] == "failed"
    assert f"error: {record['error'].partition(': ')[2]}" in outcome.stderr


def test_who_may_not_read_and_what_is_no_base_is_told_before_any_download(
    outcomes: dict[str, Outcome], hub: Hub
) -> None:
    assert hub.downloads("them/gated") == []
    assert hub.downloads("them/gated-rows") == []
    assert hub.downloads("them/tuned") == ["config.json", "adapter_config.json"]


def test_no_code_and_no_pickle_was_run_or_fetched(outcomes: dict[str, Outcome], hub: Hub) -> None:
    repository = hub.find("datasets", "them/script")
    assert repository is not None and repository.files() == ["rows.jsonl", "script.py"]
    assert not (repository.folder.parent / "it-ran").exists()
    assert "own.py" not in hub.downloads("them/own-code")
    assert "pytorch_model.bin" not in hub.downloads("them/pickled")


def test_rows_are_ready_before_the_weights_are_asked_for(outcomes: dict[str, Outcome], hub: Hub) -> None:
    data = outcomes["cut weights"].run / "data"
    assert {path.name for path in data.iterdir()} == {
        *("report.html", "report.json", "test.jsonl", "train.jsonl", "validation.jsonl")
    }
    assert "model.safetensors" not in hub.downloads("them/cut-early")
