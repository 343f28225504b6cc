"""The reference recipe from download to publication, with the genuine Llama vocabulary, as a person types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.hub_server import serve
from tests.hub_writing import Account, WritableHub, WritingHandler, Written
from tests.test_hub_training import MODEL, RECIPE, ROWS, make_repositories, medical_rows

pytestmark = pytest.mark.slow

TOKEN, NAME = "hf_a_token_that_may_write", "tester/Llama-3.2-1B-AlpaCare"
LICENSE = "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT (a stand-in)\n"
SMALL = [
    *("--train.fp16", "false", "--train.max_steps", "2", "--train.eval_steps", "2", "--train.save_steps", "2"),
    *("--train.learning_rate", "1e-2", "--generate.max_new_tokens", "8"),
    *("--data.splits.train", "24", "--data.splits.validation", "4", "--data.splits.test", "4"),
]
SAME_TOKENS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
exec(open(sys.argv[1]).read())
base = AutoModelForCausalLM.from_pretrained(sys.argv[3])
own = PeftModel.from_pretrained(base, sys.argv[2])
end = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
mine = own.generate(**prompt, max_new_tokens=8, do_sample=False, **end)
assert prompt["input_ids"][0, :2].tolist() == [128000, 14711], prompt
assert torch.equal(mine, answer), (mine, answer)
logits = [model(**prompt).logits, own(**prompt).logits, own.unload()(**prompt).logits]
assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[1], logits[2])
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WritableHub]:
    served = make_repositories(tmp_path_factory, medical_rows(400))
    (served[0].folder / "LICENSE.txt").write_text(LICENSE)
    accounts = {TOKEN: Account("tester")}
    with serve(WritableHub(served, tokens={TOKEN: True}, accounts=accounts), WritingHandler) as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(hub: WritableHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_TOKEN": TOKEN}
    return {**own, **ours, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=280, env=environment)
    assert TOKEN not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def pushed(hub: WritableHub, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory; its adapter was trained, scored and published by two commands."""
    target = tmp_path_factory.mktemp("runs") / "t4"
    for verb, more in (("train", []), ("eval", ["--push", "--hub.repo_id", NAME])):
        words = ["-m", "alpacare_sft", verb, str(RECIPE), *SMALL, "--output_dir", str(target), *more]
        done = run(environment, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def there(hub: WritableHub, pushed: Path) -> Written:
    return hub.of(NAME)


def test_the_adapter_goes_with_the_notice_and_a_copy_of_the_licence(there: Written) -> None:
    assert there.read("LICENSE.txt").decode() == LICENSE
    notice = "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. "
    assert there.read("NOTICE").decode().startswith(f"{notice}All Rights Reserved.")
    assert {"adapter_model.safetensors", "scores.json", "tokenizer.json", "chat_template.jinja"} <= set(there.files())
    assert there.private and len(there.history) == 2


def test_the_card_names_licences_base_commit_and_scores(there: Written, hub: WritableHub) -> None:
    card = ModelCard(there.read("README.md").decode())
    base = hub.repositories[0]
    assert (card.data.base_model, card.data.license, card.data.datasets) == (MODEL, "llama3.2", [ROWS])
    assert "**Built with Llama.**" in card.text and "**Not for commercial use.**" in card.text
    assert f'"{MODEL}", revision="{base.commit}"' in card.text
    assert card.data.eval_results[0].dataset_revision == hub.repositories[1].commit
    recipe = yaml.safe_load(there.read("recipe.yaml"))
    pinned = (recipe["model"]["model_revision"], recipe["data"]["revision"])
    assert pinned == (base.commit, hub.repositories[1].commit)
    assert "`recipe.yaml` names the base model and the data set by commit" in card.text
    scores = json.loads(there.read("scores.json"))
    means = {name: metric["adapter"]["mean"] for name, metric in scores["metrics"].items()}
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == means
    assert "| no_input_marks |" not in card.text and "| Marks for no input |" in card.text


def test_no_row_and_no_place_of_this_machine_is_published(there: Written, pushed: Path) -> None:
    rows = (pushed / "data" / "test.jsonl").read_text().splitlines()
    private = [str(pushed.parent), TOKEN, *(json.loads(row)["instruction"] for row in rows)]
    names = [name for name in there.files() if name != "tokenizer.json"]
    everything = b"\n".join(there.read(name) for name in names).decode(errors="replace")
    assert [text for text in private if text in everything] == []


def test_the_lines_of_the_card_give_the_tokens_of_the_adapter_that_was_trained(
    there: Written, pushed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    code = re.search(r"```python\n(.+?)```", there.read("README.md").decode(), re.DOTALL)
    assert code is not None
    (tmp_path / "card.py").write_text(code[1])
    done = run(environment, "-c", SAME_TOKENS, str(tmp_path / "card.py"), str(pushed / "adapter"), MODEL)
    assert done.returncode == 0, done.stderr


def test_a_name_that_does_not_begin_with_llama_is_refused(
    pushed: Path, environment: dict[str, str], hub: WritableHub
) -> None:
    words = ["push", str(RECIPE), *SMALL, "--output_dir", str(pushed), "--hub.repo_id", "tester/AlpaCare-1B"]
    asked = len(hub.requests)
    done = run(environment, "-m", "alpacare_sft", *words)
    assert done.returncode == 2 and len(hub.requests) == asked
    assert "must begin with 'Llama', got 'AlpaCare-1B'" in done.stderr and "Name it Llama-AlpaCare-1B." in done.stderr
