"""Whatever is in a file, a recipe, a sheet or an answer of the Hub: a result or one of our errors, and never another.

Each test draws the same cases at every run. `FUZZ_CASES` is how many all of them draw together (`make soak`: 20,000).
What once went wrong stays as an `@example`.
"""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from alpacare_sft import evaluate, push, review_answers, train
from alpacare_sft.data.hub import load_hub
from alpacare_sft.data.prepare import PreparedData, prepare_data
from alpacare_sft.data.report import restore_data
from alpacare_sft.data.text import question_key
from alpacare_sft.errors import AlpacareError, ModelError, RecipeError
from alpacare_sft.evaluation.held_out import read_test_split
from alpacare_sft.evaluation.rerun import rerun
from alpacare_sft.hub.doctor import examine
from alpacare_sft.hub.preflight import preflight
from alpacare_sft.model.adapter import attach_adapter, find_adapter, other_base
from alpacare_sft.model.base import load_base_model, load_tokenizer
from alpacare_sft.recipe.document import parse_yaml
from alpacare_sft.recipe.keys import known_keys
from alpacare_sft.recipe.loading import Recipe, load_recipe, recipe_from_document
from alpacare_sft.recipe.resolved import recipe_yaml
from alpacare_sft.recipe.sections import HubDataset, ModelSection
from alpacare_sft.reporting.card import save_card
from alpacare_sft.reporting.run_report import save_run_report
from alpacare_sft.review.sheets import save_review_sheets
from alpacare_sft.review.summary import summarize_reviews
from alpacare_sft.review.terminal import show_reviews
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.run.json_lines import format_json_lines
from alpacare_sft.run.trained import continue_run, trained_recipe
from tests.conftest import tiny_document
from tests.fuzzing import TEXT, VALUES, as_json, fuzz, mutated, places, with_value
from tests.hub_server import Repository, serve
from tests.hub_writing import Account, WritableHub, WritingHandler
from tests.made_up_scores import made_up_predictions

RECIPES = Path(__file__).parent.parent / "recipes"
SHIPPED = {path.name: path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))}
SNIPPETS = (
    *("!!binary aGk=", "!!binary '*'", "2001-01-01", "!!timestamp 2001-13-45", "!!timestamp x", "!!set {a, b}"),
    *("!!omap [a: 1]", "!!omap [1]", "!!pairs [a: 1]", "!!int x", "!!int ''", "!!float x", "!!bool maybe", "!!null x"),
    *("!!python/object/apply:os.getcwd []", "!own x", "&a [*a]", "&a {b: *a}", "*a", "&a x", ".nan", "-.inf", "1e999"),
    *("{<<: 3}", "{<<: [1]}", "{<<: {a: 1}}", "{? [1] : 2}", "{? {a: 1} : 2}", "{1: 2}", "{null: 2}", "{.nan: 1}"),
    *('"\\ud800"', '"\\0"', '"\\u2028"', "'\ufeff'", "0x", "0o9", "0x" + "f" * 4000, "1" * 5000, "[" * 40 + "]" * 40),
    *("[" * 400 + "]" * 400, "{a: " * 400 + "}" * 400, "0o17", "1_000", "12:30", "010", "~", "", "- x", "x: y"),
    *("{path: owner/name, split: 3}", "[embedded, 3]", "{path: {path: x}}", "a\tb", "{a: 1, a: 2}", "|\n x", "---"),
)


@st.composite
def recipe_texts(draw: st.DrawFn) -> str:
    """A shipped recipe with something else in some of its places, as YAML."""
    document = parse_yaml(draw(st.sampled_from(list(SHIPPED.values()))))[0]
    document = draw(mutated(document)) if draw(st.booleans()) else document
    snippets = draw(st.lists(st.sampled_from(SNIPPETS), max_size=2))
    for number in range(len(snippets)):
        where = draw(st.sampled_from(list(places(document))))
        document = with_value(document, where, f"HERE{number}")
    text = str(yaml.safe_dump(document, default_flow_style=True, width=10**9))
    for number, snippet in enumerate(snippets):
        text = text.replace(f"HERE{number}", snippet)
    return text


def loads_or_refuses(content: bytes, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        try:
            recipe = load_recipe(path, overrides)
        except RecipeError as error:
            assert str(error).strip() and all(fault[:1].strip() for fault in error.faults)
            return
        path.write_text(recipe_yaml(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe
        assert list(Path(folder).iterdir()) == [path]


SHORT = st.sampled_from([*SNIPPETS, "3", "2e-4", "x", "--3", "-", "--"])
KEYS = [f"{section}.{key}" for section, keys in known_keys().items() for key in keys]


@fuzz(0.2)
@given(recipe_texts())
@example("{train: {seed: !!timestamp x}}")
@example("{train: {seed: !!bool maybe}}")
@example("{train: {seed: !!binary '*'}}")
@example("{train: {seed: 1" + "0" * 400 + "}, model: {model_name_or_path: x}, data: {path: x}, output_dir: x}")
@example('{output_dir: "\\ud800", model: {model_name_or_path: x}, data: {path: x}}')
@example('{output_dir: "a\\0b", model: {model_name_or_path: x}, data: {path: x}, train: {no_key: 1}}')
@example("{'': 1, ' 0': 1}")
def test_a_recipe_loads_or_is_refused(text: str) -> None:
    loads_or_refuses(text.encode("utf-8", "surrogatepass"), [])


@fuzz(0.06)
@given(st.one_of(st.binary(max_size=60), TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_bytes_are_a_recipe_or_refused(content: bytes) -> None:
    loads_or_refuses(content, [])


@fuzz(0.2)
@given(
    st.lists(
        st.one_of(
            st.builds("--{}={}".format, st.sampled_from(KEYS), st.one_of(SHORT, TEXT)),
            st.builds("--{}".format, st.sampled_from(KEYS)),
            SHORT,
            TEXT,
        ),
        max_size=3,
    )
)
@example(["--train.seed=!!int x"])
@example(["--train.seed=" + "1" * 5000])
@example(["--train.seed=" + "[" * 400 + "]" * 400])
@example(["--train.seed", "--{"])
@example(["--data.path", "\udcff"])
def test_overrides_are_taken_or_refused(words: list[str]) -> None:
    loads_or_refuses(SHIPPED["demo.yaml"].encode(), words)


@contextmanager
def new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


GOOD = [{"instruction": f"Name bone {n}.", "input": "", "output": f"It is bone number {n}."} for n in range(8)]
NAMES = st.one_of(st.sampled_from(("instruction", "input", "output", "output", "messages", "prompt", "system")), TEXT)
OFF = {"drop_duplicates": False, "strip": False, "collapse_whitespace": False, "straight_quotes": False}
OFF |= {"remove_non_printable": False, "min_characters": 0, "no_input_marks": []}


@st.composite
def row_lists(draw: st.DrawFn) -> list[Any]:
    """Good rows, and among them some that are odd."""
    odd = st.one_of(
        st.builds(lambda n, name, value: {**GOOD[n], name: value}, st.integers(0, 7), NAMES, TEXT),
        st.builds(lambda n, name, value: {**GOOD[n], name: value}, st.integers(0, 7), NAMES, VALUES),
        st.dictionaries(NAMES, TEXT, max_size=4),
        st.builds(lambda role, text: {"messages": [{"role": role, "content": text}] * 2}, TEXT, VALUES),
        VALUES,
    )
    rows: list[Any] = [*GOOD, *draw(st.lists(odd, max_size=2))]
    return rows if draw(st.booleans()) else [row for row in rows if isinstance(row, dict)]


@st.composite
def row_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The ending and the bytes of a file of rows, whole or damaged."""
    rows, ending = draw(row_lists()), draw(st.sampled_from((".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")))
    objects = [row for row in rows if isinstance(row, dict)]
    if ending == ".parquet":
        content = parquet_bytes(objects)
    elif ending in (".csv", ".tsv"):
        file = io.StringIO()
        names = list(dict.fromkeys(str(name) for row in objects for name in row))
        style = {"quoting": draw(st.sampled_from((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)))}
        writer = csv.writer(file, delimiter="," if ending == ".csv" else "\t", **style)
        writer.writerows([names, *([row.get(name, "") for name in names] for row in objects)])
        content = file.getvalue().encode("utf-8", "surrogatepass")
    elif ending == ".json":
        content = json.dumps(draw(st.sampled_from((rows, {"data": rows}, columns_of(objects))))).encode()
    else:
        content = "".join(json.dumps(row, ensure_ascii=draw(st.booleans())) + "\n" for row in rows).encode(
            "utf-8", "surrogatepass"
        )
    match draw(st.sampled_from(("whole", "whole", "whole", "cut", "damaged", "marked", "encoded"))):
        case "cut":
            content = content[: draw(st.integers(0, len(content)))]
        case "damaged":
            place, byte = draw(st.integers(0, max(0, len(content) - 1))), draw(st.binary(max_size=4))
            content = content[:place] + byte + content[place + draw(st.integers(0, 2)) :]
        case "marked":
            content = b"\xef\xbb\xbf" + content
        case "encoded":
            content = content.decode("utf-8", "replace").encode(
                draw(st.sampled_from(("utf-16", "utf-32", "cp037"))), "replace"
            )
    return ending, content


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: {str(n): row.get(name) for n, row in enumerate(rows)} for name in names}


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Each column by the type that its values have, as text where they have several."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
            columns[name] = pyarrow.array([ascii(value) for value in values])
    file = io.BytesIO()
    with suppress(UnicodeEncodeError, pyarrow.ArrowException):  # half a character in a name, an empty object
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def questions(rows: Any) -> set[tuple[str, str]]:
    return {(question_key(row["instruction"]), question_key(row["input"] or "")) for row in rows}


def check_account(data: PreparedData) -> None:
    """Every row is counted once, and no question stands in two splits."""
    rows = data.report["rows"]
    assert rows["loaded"] - sum(step["dropped"] for step in data.report["steps"]) == rows["cleaned"]
    dropped = rows["dropped_no_answer"] + rows["dropped_too_long"] + rows["dropped_held_out"]
    assert rows["cleaned"] - dropped == rows["kept"]
    assert rows["kept"] == rows["train"] + rows["validation"] + rows["test"] + rows["unused"]
    assert data.report["shared_questions"] == 0
    assert not questions(data.splits["train"]) & questions(data.splits["test"])


def prepare(path: str, tiny_model: Path, tokenizer: Any, clean: dict[str, Any]) -> PreparedData | None:
    """What is made of a file of rows; None if it was refused."""
    document = tiny_document(tiny_model, Path(path).parent / "run")
    document["data"] = {"path": path, "splits": {"train": 4, "validation": 1, "test": 2}, "clean": clean}
    document["train"]["max_length"] = 1024
    recipe = recipe_from_document(document)
    try:
        data = prepare_data(recipe, tokenizer)
    except AlpacareError as error:
        assert str(error).strip()
        return None
    check_account(data)
    return data


@fuzz(0.16)
@given(file=row_files(), clean=st.sampled_from(({}, OFF)))
def test_files_of_rows_are_read_or_refused(
    file: tuple[str, bytes], clean: dict[str, Any], tiny_model: Path, tokenizer: Any
) -> None:
    with new_folder() as folder:
        (folder / f"rows{file[0]}").write_bytes(file[1])
        prepare(str(folder / f"rows{file[0]}"), tiny_model, tokenizer, clean)


def skeleton(text: str) -> str:
    """Letters and digits of ASCII, which no cleaning step touches."""
    return "".join(re.findall("[A-Za-z0-9]", text))


@fuzz(0.1)
@given(
    texts=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=5),
    ending=st.sampled_from((".json", ".jsonl", ".csv", ".parquet")),
    cleans=st.booleans(),
)
def test_texts_are_those_given_as_far_as_cleaning_lets_them(
    texts: list[tuple[str, str, str]], ending: str, cleans: bool, tiny_model: Path, tokenizer: Any
) -> None:
    rows = [*GOOD, *(dict(zip(("instruction", "input", "output"), row, strict=True)) for row in texts)]
    rows = [{name: re.sub("[\ud800-\udfff]", "", text) for name, text in row.items()} for row in rows]
    with new_folder() as folder:
        path = folder / f"rows{ending}"
        if ending == ".parquet":
            path.write_bytes(parquet_bytes(rows))
        elif ending == ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text(json.dumps(rows) if ending == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
        data = prepare(str(path), tiny_model, tokenizer, {} if cleans else OFF)
    for row in (row for split in data.splits.values() for row in split) if data else ():
        for name, text in rows[row["id"]].items():
            if name == "input" and (not text.strip() or (cleans and not row[name])):
                continue  # blanks and marks are no input
            assert (skeleton(row[name]) == skeleton(text)) if cleans else (row[name] == text)


SHEET_CELLS = st.one_of(st.sampled_from(("", "1", "5", "4,0", "6", "yes", "no", "A", "tie", "0", "=1+1")), TEXT)


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation with its blind sheet."""
    folder = tmp_path_factory.mktemp("eval")
    predictions = made_up_predictions(4)
    (folder / "predictions.jsonl").write_text(format_json_lines(predictions), encoding="utf-8")
    save_review_sheets(folder, predictions, seed=1, notice="Not medical advice.")
    return folder


def rate(row: list[str]) -> None:
    """Enter a rating of both answers."""
    row[6:9] = row[10:13] = ["3", "4", "5"]


@st.composite
def sheets(draw: st.DrawFn, text: str) -> bytes:
    """A sheet with cells filled, exchanged and taken away, saved in one way or another."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    rated = draw(st.booleans())
    for row in rows[1:] if rated else ():
        rate(row)
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(SHEET_CELLS)
    match draw(st.sampled_from(("", "", "remove", "repeat", "short", "columns"))):
        case "remove":
            del rows[draw(st.integers(0, len(rows) - 1))]
        case "repeat":
            rows.append(draw(st.sampled_from(rows)))
        case "short":
            del rows[-1][draw(st.integers(0, 9)) :]
        case "columns":
            place = draw(st.integers(0, len(rows[0]) - 1))
            rows = [[*row[:place], *row[place + 1 :]] for row in rows]
    file = io.StringIO()
    csv.writer(file, delimiter=draw(st.sampled_from(",;\t")), quoting=csv.QUOTE_ALL).writerows(rows)
    encoding = draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "latin-1")))
    content = file.getvalue().encode(encoding, "replace")
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=3)) + draw(st.sampled_from((content[place:], b"")))
    return content


@fuzz(0.1)
@given(data=st.data())
def test_filled_sheets_are_read_or_refused(data: st.DataObject, reviewed: Path) -> None:
    text = (reviewed / "review.csv").read_text(encoding="utf-8-sig")
    with new_folder() as folder:
        files = [folder / f"{number}.csv" for number in range(data.draw(st.integers(1, 2)))]
        for file in files:
            file.write_bytes(data.draw(sheets(text)))
        try:
            summary = summarize_reviews(reviewed, files, confidence=0.95, samples=20)
        except AlpacareError as error:
            assert str(error).strip()
            return
        assert 0 < summary["rows_reviewed"] <= summary["rows"] == 4
        show_reviews(summary)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a run of four steps, scored and with sheets."""
    folder = tmp_path_factory.mktemp("trained")
    document = tiny_document(tiny_model, folder / "run")
    document["train"]["max_steps"] = 4
    document |= {"generate": {"max_new_tokens": 4}, "evaluate": {"bootstrap_samples": 100}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml")
    train(recipe)
    evaluate(recipe)
    sheet = folder / "run" / "eval" / "review.csv"
    rows = list(csv.reader(io.StringIO(sheet.read_text(encoding="utf-8-sig"), newline="")))
    for row in rows[1:]:
        rate(row)
    with sheet.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    review_answers(recipe, [sheet])
    return folder


@pytest.fixture(scope="module")
def base_model(tiny_model: Path) -> Any:
    return load_base_model(ModelSection(model_name_or_path=str(tiny_model)), "float32")


@pytest.mark.filterwarnings("ignore")  # what PEFT says of keys that it does not know
@fuzz(0.08)
@given(data=st.data())
def test_configurations_of_adapters_are_followed_or_refused(
    data: st.DataObject, trained: Path, base_model: Any
) -> None:
    adapter = trained / "run" / "adapter"
    document = data.draw(mutated(json.loads((adapter / "adapter_config.json").read_text())))
    with new_folder() as folder:
        (folder / "adapter_config.json").write_text(as_json(document))
        (folder / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
        with suppress(AlpacareError):
            other_base("given", find_adapter(str(folder)), "them/base", same_base=False)
        with suppress(AlpacareError):
            attach_adapter(copy.deepcopy(base_model), folder)


def as_line(value: Any) -> str:
    return as_json(value) + "\n"


# Whatever reads the files of a finished run.
READERS: dict[str, Callable[[Recipe, RunDirectory], Any]] = {
    "report": lambda recipe, run: save_run_report(recipe),
    "push": lambda recipe, run: push(recipe, dry_run=True),
    "review": lambda recipe, run: review_answers(recipe, [run.path / "eval" / "review.csv"]),
    "test rows": lambda recipe, run: read_test_split(run, None),
    "rows": lambda recipe, run: restore_data(run, trained_recipe(run)),
    "train": lambda recipe, run: continue_run(run, recipe),
    "rerun": lambda recipe, run: rerun(run.path, run.path),
    "card": lambda recipe, run: save_card(run, recipe),
}
RUN_FILES = (
    *("run.json", "data/report.json", "eval/scores.json", "eval/predictions.jsonl", "eval/review_key.json"),
    *("eval/review.json", "checkpoints/checkpoint-4/trainer_state.json", "data/test.jsonl"),
)


@fuzz(0.06)
@given(data=st.data())
def test_files_of_a_run_are_used_or_refused(data: st.DataObject, trained: Path) -> None:
    run = trained / "run"
    recipe = load_recipe(trained / "recipe.yaml")
    name, reader = data.draw(st.sampled_from(RUN_FILES)), data.draw(st.sampled_from(list(READERS)))
    before = {other: (run / other).read_bytes() for other in (*RUN_FILES, ".run.json")}
    try:
        if name.endswith(".jsonl"):
            rows = [json.loads(line) for line in before[name].splitlines()]
            lines = data.draw(mutated(rows))
            (run / name).write_text("".join(map(as_line, lines)) if isinstance(lines, list) else as_line(lines))
        else:
            (run / name).write_text(as_json(data.draw(mutated(json.loads(before[name])))))
        READERS[reader](recipe, RunDirectory(run))
    except AlpacareError as error:
        assert str(error).strip()
    finally:
        for other, content in before.items():
            (run / other).write_bytes(content)


PAGE = b"<!DOCTYPE html><html><body><h1>Sign in to this network</h1></body></html>"


@dataclass
class OddHub(WritableHub):
    """A Hub that has whatever is asked for, and answers one of the requests with something else.

    Attributes:
        folders: what repositories of each kind hold.
        oddity: which request that is, counted from 0; its status, or 0 for the right one; its body, or None for the
            right one; and how many bytes of the body are sent before the connection is closed.
    """

    folders: Mapping[str, Path] = field(default_factory=dict)
    oddity: tuple[int, int, bytes | None, int | None] = (-1, 0, None, None)

    def find(self, kind: str, name: str) -> Repository | None:
        if name.startswith("tester/"):  # what a push would make
            return super().find(kind, name)
        return Repository(name, self.folders["adapter" if "adapter" in name else kind], kind)


class OddHandler(WritingHandler):
    def _send(self, status: int, headers: Mapping[str, str], body: bytes, file: str = "") -> None:
        hub = self.server.hub
        assert isinstance(hub, OddHub)
        place, other_status, other_body, length = hub.oddity
        if len(hub.requests) != place:
            super()._send(status, headers, body, file)
            return
        hub.requests.append((self.command, self.path, other_status or status))
        self.send_response(other_status or status)
        for name, value in headers.items():
            if value and name.lower() != "content-length":
                self.send_header(name, value)
        body = body if other_body is None else other_body
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:length])
        self.close_connection = True


@pytest.fixture(scope="module")
def odd_hub(tiny_model: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OddHub]:
    """A Hub that this process's clients talk to, with caches and a token of its own."""
    import datasets
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    home = tmp_path_factory.mktemp("home")
    (home / "rows").mkdir()
    (home / "rows" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    folders = {"models": tiny_model, "datasets": home / "rows", "adapter": trained / "run" / "adapter"}
    served = OddHub([], tokens={"hf_writer": True}, accounts={"hf_writer": Account("tester")}, folders=folders)
    with serve(served, OddHandler) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(hf_api.api, "endpoint", hub.endpoint)
        patch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        patch.setattr("time.sleep", lambda seconds: None)  # between attempts
        patch.setenv("HF_TOKEN", "hf_writer")
        patch.delenv("HF_HUB_OFFLINE")
        close_session()
        yield hub
        close_session()


# Whatever talks to the Hub, with the name of a repository that nobody asked for before.
CLIENTS: dict[str, Callable[[Recipe, str], Any]] = {
    "tokenizer": lambda recipe, name: load_tokenizer(ModelSection(model_name_or_path=f"them/{name}")),
    "base": lambda recipe, name: load_base_model(ModelSection(model_name_or_path=f"them/{name}"), "float32"),
    "adapter": lambda recipe, name: find_adapter(f"them/adapter-{name}"),
    "rows": lambda recipe, name: load_hub(HubDataset(path=f"them/{name}")),
    "preflight": lambda recipe, name: preflight(recipe),
    "push": lambda recipe, name: push(recipe),
    "doctor": lambda recipe, name: list(examine(recipe)),
}
NAMES_OF_CASES = (f"odd{number}" for number in itertools.count())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("client", CLIENTS)
def test_right_answers_of_that_hub_are_taken(client: str, odd_hub: OddHub, trained: Path) -> None:
    odd_hub.oddity = (-1, 0, None, None)
    odd_hub.requests.clear()
    ask_hub(client, trained)
    assert odd_hub.requests


def ask_hub(client: str, trained: Path) -> None:
    name = next(NAMES_OF_CASES)
    recipe = load_recipe(trained / "recipe.yaml", ["--hub.repo_id", f"tester/{name}"])
    if client == "push":
        run = RunDirectory(trained / "run")
        run.update_record({"base_model": {"name": "them/base", "revision": "a" * 40}, "pushed": None})
    else:
        recipe.model.model_name_or_path = f"them/{name}"
    CLIENTS[client](recipe, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "climbing", ["../../adapter_climbed", "adapter_/../../../adapter_climbed", "/tmp/adapter_climbed"]
)
def test_names_from_the_hub_that_climb_out_are_written_nowhere(
    climbing: str, odd_hub: OddHub, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    listed = {"id": "them/x", "sha": "b" * 40, "siblings": [{"rfilename": climbing}], "private": False}
    odd_hub.requests.clear()
    odd_hub.oddity = (0, 0, as_json(listed).encode(), None)
    with pytest.raises(AlpacareError):
        ask_hub("adapter", trained)
    assert not list(tmp_path_factory.getbasetemp().rglob("adapter_climbed"))
    assert not Path("/tmp/adapter_climbed").exists()


STATUSES = st.sampled_from((0, 0, 0, 200, 201, 204, 206, 302, 304, 400, 401, 402, 403, 404, 409, 412, 413, 416, 418))
BODIES = st.one_of(st.none(), st.just(PAGE), VALUES.map(lambda value: as_json(value).encode()), st.binary(max_size=20))


@pytest.mark.filterwarnings("ignore")  # what the clients say of answers that they do not know
@fuzz(0.04)
@given(
    client=st.sampled_from(list(CLIENTS)),
    place=st.integers(0, 5),
    status=st.one_of(STATUSES, st.sampled_from((429, 500, 502, 503, 504))),
    body=BODIES,
    length=st.sampled_from((None, None, 0, 7)),
)
@example(client="preflight", place=0, status=0, body=b"[]", length=None)
@example(client="push", place=0, status=0, body=b"{}", length=None)
@example(client="preflight", place=2, status=0, body=b"[]", length=None)
@example(client="push", place=4, status=0, body=b"null", length=None)
@example(client="preflight", place=2, status=0, body=b'{"id": "x", "cardData": 3}', length=None)
def test_odd_answers_of_the_hub_are_told(
    client: str, place: int, status: int, body: bytes | None, length: int | None, odd_hub: OddHub, trained: Path
) -> None:
    odd_hub.requests.clear()
    odd_hub.oddity = (place, status, body, length)
    try:
        ask_hub(client, trained)
    except AlpacareError as error:
        assert str(error).strip() and "hf_writer" not in str(error)


@pytest.mark.parametrize("value", [True, 3, ["x"], "x"])
def test_an_adapter_whose_entry_for_code_is_no_mapping_is_refused(value: Any, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(as_json(json.loads(path.read_text()) | {"auto_mapping": value}))
    with pytest.raises(ModelError, match="auto_mapping names code to import, which is never run"):
        find_adapter(str(tmp_path / "adapter"))


# File of a run, place of a value, the value, and the reader that once failed on it.
DAMAGE = [
    ("eval/scores.json", ("metrics", "loss", "base", "low"), "x", "report"),
    ("eval/scores.json", ("generate",), {"no_key": 1}, "push"),
    ("data/report.json", ("near_duplicates",), None, "test rows"),
    ("data/report.json", ("steps",), [3], "report"),
    ("run.json", ("data_sha256",), None, "test rows"),
    ("run.json", ("train", "seconds"), "x", "card"),
    ("run.json", ("rows", "loaded"), 10**400, "report"),
    ("run.json", ("resolved", "lora", "target_modules"), [None, "q_proj"], "report"),
    ("eval/review.json", ("criteria",), 3, "report"),
    ("eval/predictions.jsonl", (), [None], "rerun"),
    ("eval/review_key.json", ("rows",), [3], "review"),
]


@pytest.mark.parametrize(("name", "place", "value", "reader"), DAMAGE)
def test_a_value_of_another_kind_in_a_file_of_a_run_is_told(
    name: str, place: tuple[str, ...], value: Any, reader: str, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    recipe = load_recipe(trained / "recipe.yaml", ["--output_dir", str(tmp_path / "run")])
    path = tmp_path / "run" / name
    document = None if name.endswith(".jsonl") else with_value(json.loads(path.read_text()), place, value)
    path.write_text("".join(map(as_line, value)) if document is None else as_json(document))
    with suppress(AlpacareError):
        READERS[reader](recipe, RunDirectory(tmp_path / "run"))
