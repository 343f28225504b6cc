"""Publishing an adapter, with the real client against a Hub of our own: what leaves, what stays, what goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alpacare_sft import load_recipe, push, train
from alpacare_sft.cli import main
from alpacare_sft.errors import ModelError, RecipeError, RunError
from alpacare_sft.evaluation.rerun import rerun
from alpacare_sft.hub.files import _recipe_text
from alpacare_sft.hub.preflight import find_license
from alpacare_sft.recipe.resolved import recipe_sha256, recipe_yaml
from alpacare_sft.reporting.evidence import pinned_recipe
from alpacare_sft.run.directory import RunDirectory, adapter_sha256
from tests.conftest import tiny_document, write_record
from tests.hub_server import Refusal, Repository, serve
from tests.hub_writing import Account, WritableHub, WritingHandler
from tests.made_up_scores import made_up_predictions, made_up_scores

pytestmark = [
    pytest.mark.slow,
    # huggingface_hub 2.4 sends large files by a name that its HTTP library calls old
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"),
]

BASE = "them/tiny-base"
WRITER, READER, NARROW, WIDE, UNKNOWN = "hf_writer_1", "hf_reader_2", "hf_narrow_3", "hf_wide_4", "hf_unknown_5"
ORGANISATIONS = {"clinic": "write", "library": "read"}
ACCOUNTS = {
    WRITER: Account("tester", organisations=ORGANISATIONS),
    READER: Account("tester", role="read"),
    NARROW: Account("tester", role="fineGrained", scopes=("clinic",), organisations=ORGANISATIONS),
    WIDE: Account("tester", role="fineGrained", scopes=("tester",)),
}
FILES = [
    *(
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "recipe.yaml",
        "run.json",
    ),
    *("scores.json", "tokenizer.json", "tokenizer_config.json"),
]
ROWS = ["data/report.html", "eval/predictions.jsonl", "eval/report.html"]
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}


@pytest.fixture(scope="module")
def hub(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WritableHub]:
    """A Hub that this process's client talks to, with a cache and a token of its own."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    served = WritableHub([Repository(BASE, tiny_model)], tokens=dict.fromkeys(ACCOUNTS, True), accounts=ACCOUNTS)
    home = tmp_path_factory.mktemp("hf-home")
    with serve(served, WritingHandler) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", hub.endpoint)
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts
        patch.setenv("HF_TOKEN", WRITER)
        patch.delenv("HF_HUB_OFFLINE")
        close_session()
        yield hub
        close_session()


def save_scores(run: Path, scores: dict[str, Any]) -> None:
    """Scores as an evaluation leaves them: their hash is in the record."""
    path = run / "eval" / "scores.json"
    path.write_text(json.dumps(scores))
    RunDirectory(run).seal(path)


@pytest.fixture(scope="module")
def trained(hub: WritableHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the base from the Hub, with scores of its adapter."""
    folder = tmp_path_factory.mktemp("secret-project")
    document = tiny_document(Path(BASE), folder / "run")
    document["train"] |= {"max_steps": 4, "save_steps": 2, "eval_steps": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    train(load_recipe(folder / "recipe.yaml"))
    predictions = made_up_predictions(6)
    scores = made_up_scores(predictions)
    scores["model"] |= {"name": BASE, "adapter_sha256": adapter_sha256(folder / "run" / "adapter")}
    (folder / "run" / "eval").mkdir()
    save_scores(folder / "run", scores)
    lines = [json.dumps(row) + "\n" for row in predictions]
    (folder / "run" / "eval" / "predictions.jsonl").write_text("".join(lines))
    (folder / "run" / "eval" / "report.html").write_text("<p>rows</p>")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def words(trained: Path, run: Path, request: pytest.FixtureRequest) -> list[str]:
    """Recipe and overrides of the command line, with a repository of the test's own."""
    name = hashlib.sha1(request.node.name.encode()).hexdigest()[:12]
    return [str(trained / "recipe.yaml"), "--output_dir", str(run), "--hub.repo_id", f"tester/{name}"]


@pytest.fixture
def make(words: list[str]) -> Callable[..., Any]:
    """`make("--hub.private", "false")`: the recipe with overrides."""
    return lambda *overrides: load_recipe(words[0], [*words[1:], *overrides])


def name_of(words: list[str]) -> str:
    return words[-1]


def test_the_adapter_comes_back_from_the_hub_with_the_same_tokens(
    hub: WritableHub, run: Path, words: list[str], make: Callable[..., Any]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pushed = push(make())
    ids = AutoTokenizer.from_pretrained(name_of(words))("### Instruction:\nHi\n\n### Answer:\n", return_tensors="pt")

    def answer(source: str) -> list[int]:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), source).eval()
        with torch.inference_mode():
            tokens: list[int] = model.generate(**ids, max_new_tokens=24, do_sample=False)[0].tolist()
        return tokens

    assert answer(name_of(words)) == answer(str(run / "adapter"))
    assert pushed.changed and pushed.commit == hub.of(name_of(words)).commit
    noted = json.loads((run / "run.json").read_text())["pushed"]
    assert (noted["repo"], noted["commit"]) == (name_of(words), pushed.commit)


def test_exactly_the_listed_files_leave_in_one_commit(hub: WritableHub, words: list[str], make: Any, run: Path) -> None:
    (run / "adapter" / "training_args.bin").write_bytes(b"pickle")
    (run / "adapter" / "optimizer.pt").write_bytes(b"moments")
    push(make())
    there = hub.of(name_of(words))
    assert sorted(set(there.files()) - {".gitattributes"}) == FILES
    assert len(there.history) == 2 and there.private
    message = json.loads(hub.sent[-1].splitlines()[0])["value"]
    assert message["parentCommit"] == there.history[0][0]


def test_nothing_in_a_pushed_file_tells_of_this_machine_or_holds_a_row(
    hub: WritableHub, words: list[str], make: Any, run: Path, trained: Path
) -> None:
    push(make("--evaluate.judge", "{endpoint: 'http://secret-host:8000/v1', model: m}"))
    there = hub.of(name_of(words))
    rows = [json.loads(line) for line in (run / "data" / "test.jsonl").read_text().splitlines()]
    rows += [json.loads(line) for line in (run / "eval" / "predictions.jsonl").read_text().splitlines()]
    private = [str(trained), str(run), WRITER, socket.gethostname() + '"', "secret-host", "secret-project"]
    private += [row.get("output") or row["adapter"] for row in rows if len(row.get("output") or row["adapter"]) > 20]
    everything = b"\n".join(there.read(name) for name in there.files() if name != "tokenizer.json").decode(
        errors="replace"
    )
    assert [text for text in private if text in everything] == []
    config = json.loads(there.read("adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, hub.find("models", BASE).commit)


def test_the_published_recipe_loads_and_trains_the_same(
    hub: WritableHub, words: list[str], make: Any, tmp_path: Path, trained: Path
) -> None:
    from alpacare_sft.recipe.resolved import recipe_differences

    push(make())
    (tmp_path / "recipe.yaml").write_bytes(hub.of(name_of(words)).read("recipe.yaml"))
    published = load_recipe(tmp_path / "recipe.yaml")
    given = load_recipe(trained / "recipe.yaml", ["--train.bf16", "false", "--train.fp16", "false"])
    commit = hub.repositories[0].commit
    assert recipe_differences(given, published) == [f"model.model_revision: main → {commit}"]
    assert (str(published.output_dir), published.hub.repo_id) == ("runs/run", name_of(words))


def test_a_rerun_fetches_the_commits_that_the_run_recorded(make: Any) -> None:
    of_hub, of_files = make("--data.path", "owner/rows"), make()
    record = {"base_model": {"name": BASE, "revision": "a" * 40}, "data_commit": "b" * 40}
    pinned = pinned_recipe(of_hub, record)
    assert (pinned.model.model_revision, pinned.data.revision) == ("a" * 40, "b" * 40)
    assert pinned_recipe(of_files, record).data.revision is None
    assert pinned_recipe(of_hub, {"base_model": {"name": "embedded", "revision": None}}) == of_hub


def test_the_published_recipe_names_no_project_and_no_account(make: Any, tmp_path: Path) -> None:
    private = {"run_name": "acme-leak", "project": "acme-audit", "trackio_space_id": "acme/space", "report_to": "none"}
    overrides = [word for key, value in private.items() for word in (f"--train.{key}", value)]
    text = push(make(*overrides), dry_run=True).card + _recipe_text(make(*overrides))
    assert "acme" not in text
    (tmp_path / "recipe.yaml").write_text(_recipe_text(make(*overrides)))
    assert load_recipe(tmp_path / "recipe.yaml").train.run_name != "acme-leak"


def test_rows_are_published_when_the_recipe_says_so_and_go_when_it_no_longer_does(
    hub: WritableHub, words: list[str], make: Any
) -> None:
    push(make("--hub.include_rows", "true"))
    there = hub.of(name_of(words))
    assert sorted(set(there.files()) - {".gitattributes"}) == sorted([*FILES, *ROWS])
    push(make())
    assert sorted(set(there.files()) - {".gitattributes"}) == FILES


def test_pushing_the_same_twice_changes_nothing(
    hub: WritableHub, words: list[str], make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = push(make())
    asked = len(hub.requests)
    second = push(make())
    assert (second.commit, second.changed) == (first.commit, False)
    assert len(hub.of(name_of(words)).history) == 2
    assert [path for _, path, _ in hub.requests[asked:] if "/commit/" in path or path.startswith("/lfs/")] == []
    assert "already holds exactly this" in capsys.readouterr().out


def test_a_later_push_sends_what_changed_alone(hub: WritableHub, words: list[str], make: Any, run: Path) -> None:
    settings = "--generate.max_new_tokens", "96"  # as the scores have them
    push(make(*settings))
    (run / "eval" / "scores.json").unlink()
    push(make(*settings))
    lines = [json.loads(line) for line in hub.sent[-1].splitlines()]
    assert [(line["key"], line["value"].get("path")) for line in lines[1:]] == [
        ("file", "README.md"),
        ("deletedFile", "scores.json"),
    ]


def test_the_card_validates_and_its_index_has_the_scores(
    hub: WritableHub, words: list[str], make: Any, run: Path
) -> None:
    from huggingface_hub import ModelCard

    push(make())
    card = ModelCard.load(name_of(words))
    scores = json.loads((run / "eval" / "scores.json").read_text())["metrics"]
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        name: metric["adapter"]["mean"] for name, metric in scores.items()
    }
    assert {r.metric_type: r.metric_args["low"] for r in card.data.eval_results}["loss"] == scores["loss"]["adapter"][
        "low"
    ]
    assert (card.data.base_model, card.data.library_name, card.data.model_name) == (BASE, "peft", name_of(words)[7:])
    assert (run / "adapter" / "README.md").read_text() == str(card.content)


CARD = {
    "for": "**For** research and education",
    "not for": "**Not for** diagnosis",
    "notice": "ask a qualified health professional",
    "wording": "*wording* of the reference answers",
    "verdict": "The adapter's loss is lower than the base's, beyond the interval.",
    "intervals": "not the training seed",
    "funnel": "| Rows loaded | 336 |",
    "training rows": "| Training split | 24 |",
    "leaks": "Overlap between splits: 0 questions occur in more than one. 0 test rows nearly repeat",
    "rate": "| learning_rate | 0.01 |",
    "lora": "| LoRA | r 4, alpha 8",
    "steps": "| optimizer steps | 4, each on 4 rows |",
    "energy": "| energy | not measured |",
    "prompt": "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Answer:",
    "base": f'AutoModelForCausalLM.from_pretrained("{BASE}", revision="',
    "again": "recipe.yaml --local-dir . && alpacare-sft train recipe.yaml && alpacare-sft eval recipe.yaml",
    "pinned": "`recipe.yaml` names the base model by commit",
    "data": "cc0-1.0",
}


@pytest.mark.parametrize("part", CARD)
def test_the_card_says(part: str, make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert CARD[part] in push(make(), dry_run=True).card


def run_code(card: str) -> dict[str, Any]:
    """The names that the card's lines of Python leave behind."""
    code = re.search(r"```python\n(.+?)```", card, re.DOTALL)
    assert code is not None
    exec(code[1], scope := {})
    return scope


def test_the_code_of_the_card_stops_where_the_run_does(
    hub: WritableHub, words: list[str], make: Any, run: Path
) -> None:
    scope = run_code(push(make()).card)
    length, whole = scope["prompt"]["input_ids"].shape[1], scope["answer"][0].tolist()
    assert len(whole) == length + 96  # the limit of the scores, whatever the recipe says now
    end = whole[length + 2]
    RunDirectory(run).update_record({"end_token_ids": [1, end]})
    stopped = run_code(push(make()).card)["answer"][0].tolist()
    assert stopped == whole[: whole.index(end, length) + 1]


def test_the_code_of_the_card_ends_answers_where_the_run_does(
    hub: WritableHub, words: list[str], make: Any, run: Path
) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    recipe = dataclasses.replace(recipe, prompt=dataclasses.replace(recipe.prompt, format="chat", system='Be "kind".'))
    (run / "recipe.yaml").write_text(recipe_yaml(recipe))
    changes = {"recipe_sha256": recipe_sha256(recipe), "resolved": recipe.values(), "end_token_ids": [1, 3]}
    RunDirectory(run).update_record(changes)
    scope = run_code(push(make("--generate.max_new_tokens", "8")).card)
    assert scope["model"].generation_config.eos_token_id == [1, 3]
    assert scope["messages"][0] == {"role": "system", "content": 'Be "kind".'}


def test_an_adapter_without_scores_is_said_not_to_be_evaluated(
    make: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = json.loads((run / "eval" / "scores.json").read_text())
    scores["model"]["adapter_sha256"] = "0" * 64
    (run / "eval" / "scores.json").write_text(json.dumps(scores))
    pushed = push(make())
    assert "scores.json" not in pushed.files
    assert "**Not evaluated**" in pushed.card and "model-index" not in pushed.card
    assert "is of another adapter. Score it: alpacare-sft eval RECIPE" in capsys.readouterr().out


def test_a_dry_run_asks_nobody_and_writes_nothing(
    hub: WritableHub, run: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    asked = len(hub.requests)
    assert main(["push", words[0], "--dry-run", "--output_dir", str(run)]) == 0
    shown = capsys.readouterr().out
    assert len(hub.requests) == asked
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [name for name in FILES if name not in shown] == []
    assert "checkpoints/" in shown and "hub.repo_id must name" in " ".join(shown.split())


REFUSED = {
    "no token": ("", "tester/x", ("no token was found", "settings/tokens")),
    "unknown token": (UNKNOWN, "tester/x", ("does not know this token", "hf auth login")),
    "token with a space": ("hf_a b", "tester/x", ("contains characters that no token has",)),
    "read-only token": (READER, "tester/x", ("may only read", "settings/tokens")),
    "narrow token": (NARROW, "tester/x", ("fine-grained token may not write to tester/x", "under tester")),
    "stranger's name": (WRITER, "stranger/x", ("stranger is neither the token's account (tester)", "tester/x")),
    "reader in an organisation": (WRITER, "library/x", ("may only read in library", "organizations/library")),
    "another work": (
        WRITER,
        "tester/taken",
        ("already holds something else (model.safetensors)", "Choose another"),
    ),
    "another base": (WRITER, "tester/other", ("holds an adapter for them/other-base", BASE, "Choose another")),
    "public": (WRITER, "tester/public", ("hub.private is true and tester/public is public", "hub.private: false")),
}


@pytest.fixture
def taken(hub: WritableHub) -> None:
    if hub.find("models", "tester/taken") is None:
        card = b"---\nbase_model: them/other-base\ntags: [alpacare_sft]\n---\n"
        hub.make("tester/taken", {"model.safetensors": b"weights"})
        hub.make("tester/other", {"README.md": card, "adapter_config.json": b"{}"})
        hub.make("tester/public", {}, private=False)


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_message_with_its_remedy_and_uploads_nothing(
    case: str, hub: WritableHub, taken: None, make: Any, run: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    token, repo_id, told = REFUSED[case]
    monkeypatch.setenv("HF_TOKEN", token)
    asked = len(hub.requests)
    with pytest.raises(RunError) as error:
        push(make("--hub.repo_id", repo_id))
    assert [part for part in told if part not in str(error.value)] == []
    assert {method for method, _, _ in hub.requests[asked:]} <= {"GET"}
    assert token == "" or token not in str(error.value) + "".join(capfd.readouterr())
    assert "pushed" not in json.loads((run / "run.json").read_text())


def test_a_right_that_the_hub_alone_knows_of_is_told_as_one_message(hub: WritableHub, make: Any) -> None:
    hub.accounts = {**ACCOUNTS, WRITER: Account("tester", role="write", organisations={"clinic": "contributor"})}
    try:
        with pytest.raises(RunError, match=r"this token may not write to clinic/x\. Give it the right at https"):
            push(make("--hub.repo_id", "clinic/x"))
    finally:
        hub.accounts = ACCOUNTS


def test_a_licence_that_the_hub_refuses_is_told_before_the_training(
    hub: WritableHub, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--push", "--hub.license", "Apache License 2.0", "--output_dir", str(tmp_path / "new")]
    assert main(["train", *words, *there]) == 2
    told = capsys.readouterr().err
    assert "hub.license must be a licence as the Hub spells it, got 'Apache License 2.0'" in told
    assert "Did you mean apache-2.0?" in told and 'The Hub says: "license" must be one of [apache-2.0, mit' in told
    assert not (tmp_path / "new").exists() and hub.find("models", name_of(words)) is None


def test_no_repository_is_made_for_a_card_that_the_hub_refuses(
    hub: WritableHub, words: list[str], make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make("--hub.license", "MIT License")
    with pytest.raises(RecipeError, match=r"got 'MIT License'\. Did you mean mit\?.*The Hub says: "):
        push(recipe)
    assert hub.find("models", name_of(words)) is None
    push(recipe, dry_run=True)  # asks nobody, and goes by a list
    assert "Did you mean mit?" in " ".join(capsys.readouterr().out.split())


def test_the_hub_decides_on_a_licence_that_is_not_on_the_dated_list(
    hub: WritableHub, make: Any, words: list[str]
) -> None:
    assert push(make("--hub.license", "new-1.0")).changed
    assert hub.of(name_of(words)).info()["cardData"]["license"] == "new-1.0"


def test_another_fault_of_the_card_is_told_in_the_hubs_words(
    hub: WritableHub, make: Any, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = Refusal(400, "", "", '- Error: "datasets[0]" must be a string')
    monkeypatch.setattr(WritingHandler, "_validate", lambda *_: (_ for _ in ()).throw(refusal))
    with pytest.raises(RecipeError, match=r'refuses the model card\. The Hub says: "datasets\[0\]" must be a string\.'):
        push(make())
    assert hub.find("models", name_of(words)) is None


FAILING = {
    "_create": "it is taken by another.*was not created",
    "_preupload": "it is taken by another.*was created and is empty",
    "_commit": "it is taken by another.*was created and is empty",
}


@pytest.mark.parametrize("request_", FAILING)
@pytest.mark.parametrize("status", [403, 500])
def test_what_a_refusal_left_on_the_hub_is_said_as_it_is(
    request_: str, status: int, hub: WritableHub, make: Any, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = Refusal(status, "", f"it is taken by another, {WRITER}")
    monkeypatch.setattr(WritingHandler, request_, lambda *_: (_ for _ in ()).throw(refusal))
    doubt = ", unless only the Hub's last answer was lost" if status == 500 else ""
    with pytest.raises(RunError, match=f"The Hub says: {FAILING[request_]}{doubt}\\.$") as error:
        push(make())
    assert (hub.find("models", name_of(words)) is None) == (request_ == "_create")
    assert WRITER not in str(error.value) and "othing was changed" not in str(error.value)


def test_letter_case_makes_no_other_base(hub: WritableHub, make: Any, words: list[str]) -> None:
    push(make())
    there = hub.of(name_of(words))
    card = there.read("README.md").replace(BASE.encode(), BASE.upper().encode(), 1)
    there.commit_files({**there.history[-1][1], "README.md": card})
    assert push(make()).changed


def test_offline_mode_is_told(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"HF_HUB_OFFLINE is set, and a push needs the Hub\. Unset it"):
        push(make())


WRONG = {
    "hub.repo_id must name the repository": ["--hub.repo_id", "null"],
    "hub.repo_id must be owner/name": ["--hub.repo_id", "no-owner"],
    "hub.repo_id must be owner/name, of letters": ["--hub.repo_id", "tester/a b"],
    "forbids sharing derivatives of the rows": ["--hub.data_license", "cc-by-nd-4.0"],
}


@pytest.mark.parametrize("told", WRONG)
def test_a_recipe_that_cannot_be_published_is_refused_before_the_hub_is_asked(
    told: str, hub: WritableHub, make: Any
) -> None:
    asked = len(hub.requests)
    with pytest.raises(RecipeError, match=told):
        push(make(*WRONG[told]))
    assert len(hub.requests) == asked


@pytest.mark.parametrize("path", ["/lfs/", "/api/models/.*/commit/", "/api/models/.*/preupload/"])
def test_a_push_cut_off_in_the_middle_leaves_the_old_revision_whole(
    path: str, hub: WritableHub, words: list[str], make: Any, run: Path
) -> None:
    push(make())
    there = hub.of(name_of(words))
    before = dict(there.history[-1][1])
    change_weights(run)
    hub.cut = (path, 100)
    with pytest.raises(RunError, match=f"broke off.*{name_of(words)} is as it was, at commit {there.commit[:8]}"):
        push(make())
    hub.cut = ("", 0)
    assert there.history[-1][1] == before and len(there.history) == 2
    assert push(make()).changed
    assert there.read("adapter_model.safetensors") == (run / "adapter" / "adapter_model.safetensors").read_bytes()


def change_weights(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: value * 2 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    RunDirectory(run).seal(path)


@pytest.mark.parametrize("name", ["LICENSE.txt", "LICENSE"])
def test_the_licence_is_fetched_where_the_recipe_states_it(hub: WritableHub, name: str, tmp_path: Path) -> None:
    base = Repository(f"me/llama-{name.lower()}", tmp_path)
    hub.repositories = [*hub.repositories, base]
    identity = {"name": base.name, "revision": base.commit}
    assert find_license(identity, "llama3.1", online=True) is None
    (tmp_path / name).write_text("the terms")
    found = find_license(identity, "llama3.1", online=True)
    assert found is not None and found.read_text() == "the terms"
    assert find_license(identity, None, online=True) is None


def test_a_licence_that_was_added_by_hand_stays(
    hub: WritableHub, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make("--hub.license", "llama3.1", "--hub.repo_id", "tester/Llama-by-hand")
    push(recipe)
    assert "them/tiny-base holds no LICENSE.txt or LICENSE that this token may read." in capsys.readouterr().out
    there = hub.of("tester/Llama-by-hand")
    there.commit_files({**there.history[-1][1], "LICENSE.txt": b"the terms"})
    assert not push(recipe).changed and "LICENSE.txt" in there.files()
    assert "that this token may read" not in capsys.readouterr().out
    assert there.read("NOTICE").startswith(b"Llama 3.1 is licensed under")


def test_a_commit_that_came_between_is_not_written_over(
    hub: WritableHub, words: list[str], make: Any, run: Path
) -> None:
    push(make())
    there = hub.of(name_of(words))
    (run / "eval" / "scores.json").unlink()
    hub.before_commit = lambda repository: repository.commit_files({**repository.history[-1][1], "README.md": b"mine"})
    with pytest.raises(RunError, match="was changed by someone else at the same time; nothing was written over"):
        push(make())
    assert there.read("README.md") == b"mine"


def test_a_full_disk_after_the_commit_is_told_and_leaves_the_record_whole(
    hub: WritableHub, words: list[str], make: Any, run: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = make()
    before = {name: (run / name).read_bytes() for name in ("run.json", "adapter/README.md")}

    def full(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith((".run.json", ".README.md")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("alpacare_sft.run.directory.os.fsync", full)
    assert push(recipe).commit == hub.of(name_of(words)).commit
    assert "the push is complete, but" in (told := capsys.readouterr().out) and "No space left" in told
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_full_disk_before_the_commit_publishes_nothing(
    hub: WritableHub, words: list[str], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache")

    monkeypatch.setattr("alpacare_sft.hub.push.find_license", full)
    assert main(["push", *words]) == 1
    assert capsys.readouterr().err == "error: No space left on device: cache. Nothing half-written was left.\n"
    assert hub.find("models", name_of(words)) is None


BROKEN = {
    "holds base_model.lm_head, which is not a LoRA weight": lambda w: (
        w | {"base_model.lm_head": next(iter(w.values()))}
    ),
    "holds values that are not finite": lambda w: {name: value * float("nan") for name, value in w.items()},
    "not changed by training: every lora_B is": lambda w: {n: v * 0 if "lora_B" in n else v for n, v in w.items()},
}


@pytest.mark.parametrize("told", BROKEN)
def test_weights_that_are_no_adapter_are_refused(told: str, make: Any, run: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "adapter" / "adapter_model.safetensors"
    weights = {name: value.clone() for name, value in BROKEN[told](load_file(path)).items()}
    save_file(weights, path)
    RunDirectory(run).seal(path)
    with pytest.raises(RunError, match=told):
        push(make())


def test_an_adapter_without_its_tokenizer_is_refused(make: Any, run: Path) -> None:
    (run / "adapter" / "tokenizer_config.json").unlink()
    with pytest.raises(RunError, match=r"tokenizer_config\.json not as the training wrote it\. Make it again"):
        push(make(), dry_run=True)
    write_record(run, {**json.loads((run / "run.json").read_text()), "files": {}})  # as 0.1 wrote it
    with pytest.raises(RunError, match=r"holds no tokenizer\. Train it again"):
        push(make(), dry_run=True)


def test_a_base_known_on_this_machine_alone_is_refused(make: Any, run: Path, tiny_model: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["base_model"] = {"name": str(tiny_model), "revision": "main"}
    write_record(run, record)
    with pytest.raises(RecipeError, match=r"model\.model_name_or_path must be a model on the Hub"):
        push(make())
    assert str(tiny_model) not in push(make(), dry_run=True).card


def test_a_run_that_is_not_done_is_refused(make: Any, run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    write_record(run, {**record, "status": "stopped"})
    with pytest.raises(RunError, match=r"the training in .* has not ended"):
        push(make(), dry_run=True)


def test_a_taken_name_is_told_before_the_training(
    hub: WritableHub, taken: None, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        str(trained / "recipe.yaml"),
        "--push",
        "--hub.repo_id",
        "tester/taken",
        "--output_dir",
        str(tmp_path / "n"),
    ]
    assert main(["train", *words]) == 1
    assert "already holds something else" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


def test_training_ends_with_the_push(hub: WritableHub, words: list[str], run: Path) -> None:
    assert main(["train", *words, "--push"]) == 0
    assert set(hub.of(name_of(words)).files()) >= ADAPTER


def test_an_organisation_and_a_fine_grained_token_may_be_written_to(
    hub: WritableHub, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(make("--hub.repo_id", "clinic/adapter", "--hub.private", "false"))
    assert not hub.of("clinic/adapter").private
    monkeypatch.setenv("HF_TOKEN", WIDE)
    push(make("--hub.repo_id", "tester/by-a-fine-grained-token"))
    assert set(hub.of("tester/by-a-fine-grained-token").files()) >= ADAPTER


def test_the_published_recipe_repeats_the_scores(hub: WritableHub, run: Path, make: Any) -> None:
    """Settings given only now were not those of the scores."""
    scored = json.loads((run / "eval" / "scores.json").read_text())["generate"]["max_new_tokens"]
    pushed = push(make("--generate.max_new_tokens", str(scored + 1)), dry_run=True)
    assert f"max_new_tokens={scored}," in pushed.card


def test_a_published_run_is_run_again_to_the_bit(
    hub: WritableHub, words: list[str], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(make())
    monkeypatch.chdir(tmp_path)
    told = rerun(name_of(words))
    same = {one["name"]: one["same"] for one in told["results"]}
    assert same["adapter"] and same["rows of train"] and same["rows of test"]
    assert "loss of the adapter" in same  # these scores were made up
    assert (tmp_path / "runs" / f"{name_of(words).split('/')[1]}-rerun" / "rerun.json").is_file()
    with pytest.raises(RunError, match=r"lacks recipe.yaml and run.json and adapter_model.safetensors"):
        rerun(BASE)
    with pytest.raises(ModelError, match=r"^rerun: tester/nothing is neither"):
        rerun("tester/nothing")
