"""What holds for the command line holds for Python: no reports, no noise, and the process as it was afterwards."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import alpacare_sft
from alpacare_sft import prepare_data
from alpacare_sft.errors import RecipeError
from alpacare_sft.runtime import describe_hardware, prepared_process
from tests.conftest import tiny_document

FUNCTIONS = [name for name in alpacare_sft.__all__ if inspect.isfunction(getattr(alpacare_sft, name))]
# As in a notebook: the libraries come first, and the caller has settings of his own.
NOTEBOOK = """
import json, logging, sys, warnings
import torch, datasets, transformers
import datasets.load, huggingface_hub.constants as constants, huggingface_hub.utils._telemetry as telemetry
sent = []
telemetry._start_telemetry_thread = lambda: None
telemetry._TELEMETRY_QUEUE.put = sent.append
constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False

class Session:
    def head(self, url, **_):
        sent.append(url)

datasets.load.get_session = Session
warnings.filterwarnings("ignore", message="the caller's own")
logging.getLogger("transformers").setLevel(logging.INFO)
logging.getLogger("datasets.packaged_modules").setLevel(logging.INFO)
torch.set_num_threads(3)

def state():
    loggers = {name: logger for name, logger in logging.root.manager.loggerDict.items() if name in seen}
    return [
        [str(entry) for entry in warnings.filters],
        {name: getattr(logger, "level", None) for name, logger in loggers.items()},
        [datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()],
        [constants.HF_HUB_DISABLE_TELEMETRY, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, torch.get_num_threads()],
    ]

seen = list(logging.root.manager.loggerDict)
before = state()
from alpacare_sft import load_recipe, train
recipe = load_recipe(sys.argv[1])
record = train(recipe)
print(json.dumps([sent, before == state(), record["hardware"]["settings_without_effect"]]))
"""


@pytest.fixture(scope="module")
def notebook(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("notebook")
    document = tiny_document(tiny_model, folder / "run")
    document["train"] |= {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "log_level": "error"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    ours = ("HF_", "TQDM_", "OMP_", "GOMP_", "TOKENIZERS_", "DO_NOT_TRACK", "DISABLE_TELEMETRY", "CI")
    own = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    words = [sys.executable, "-c", NOTEBOOK, str(folder / "recipe.yaml")]
    environment = {**own, "HF_HOME": str(folder / "home")}
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "it/s" not in done.stderr
    values: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return values


@pytest.mark.slow
def test_a_run_from_python_is_reported_to_nobody(notebook: list[Any]) -> None:
    assert notebook[0] == []


@pytest.mark.slow
def test_filters_loggers_bars_constants_and_threads_are_the_callers_after_a_run(notebook: list[Any]) -> None:
    assert notebook[1] is True


@pytest.mark.slow
def test_what_came_too_late_is_recorded(notebook: list[Any]) -> None:
    assert notebook[2] == ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_prepares_the_process(name: str) -> None:
    function = getattr(alpacare_sft, name)
    assert inspect.unwrap(function) is not function
    assert function.__globals__["__name__"] == "contextlib"  # ContextDecorator's wrapper


def test_telemetry_is_off_inside_and_as_it_was_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    with prepared_process(), prepared_process():
        assert constants.HF_HUB_DISABLE_TELEMETRY is True and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert constants.HF_HUB_DISABLE_TELEMETRY is False


def test_the_caller_has_his_settings_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    logger = logging.getLogger("datasets.packaged_modules")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    before = [*warnings.filters]
    with pytest.raises(RecipeError):
        alpacare_sft.load_recipe(tmp_path / "none.yaml")
    assert (warnings.filters, logger.level) == (before, logging.DEBUG)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_variables_are_set_before_torch_is_imported_by_any_public_name() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    look = "import os; from alpacare_sft import ask; print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, env=own)
    assert (done.stdout, done.stderr) == ("PASSIVE 10000\n", "")


def test_a_callers_own_variables_stand_and_count_as_in_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    with prepared_process():
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
        assert describe_hardware()["settings_without_effect"] == []


def test_prepare_data_needs_no_tokenizer_of_its_caller(make_recipe: Callable[..., Any], tokenizer: Any) -> None:
    recipe = make_recipe()
    assert prepare_data(recipe).sha256 == prepare_data(recipe, tokenizer).sha256
