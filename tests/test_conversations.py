"""Conversations and columns of other names: read where they are one question and one answer, told where not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from alpacare_sft.cli import main
from alpacare_sft.data.load import load_rows
from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.errors import DataError
from alpacare_sft.recipe.sections import DataSection
from tests.conftest import loaded_columns

ASK, ANSWER = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A bone."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A bone."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]}
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [ASK, ANSWER]},
    "content in parts": {"messages": [PARTS, ANSWER]},
    "ShareGPT": {"conversations": [HUMAN, GPT]},
    "OpenAI's turns under ShareGPT's name": {"conversations": [ASK, ANSWER]},
    "prompt and completion": {"prompt": "What is it?", "completion": "A bone."},
    "prompt and completion as turns": {"prompt": [ASK], "completion": [ANSWER]},
    "prompt as turns, completion as text": {"prompt": [ASK], "completion": "A bone."},
}
SYSTEM_ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [SYSTEM, ASK, ANSWER]},
    "developer": {"messages": [SYSTEM | {"role": "developer"}, ASK, ANSWER]},
    "ShareGPT": {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]},
    "prompt and completion": {"prompt": [SYSTEM, ASK], "completion": [ANSWER]},
    "a column": {"instruction": "What is it?", "output": "A bone.", "system": "Be brief."},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_one_question_and_one_answer_are_a_row(row: dict[str, Any], write_rows: Callable[..., Path]) -> None:
    rows = pa.Table.from_batches(load_rows(DataSection(path=str(write_rows([row])))).batches)
    assert rows.to_pylist() == [{"instruction": "What is it?", "input": None, "output": "A bone.", "id": 0}]


@pytest.mark.parametrize("row", SYSTEM_ROWS.values(), ids=list(SYSTEM_ROWS))
def test_a_rows_own_system_turn_is_a_column(row: dict[str, Any], write_rows: Callable[..., Path]) -> None:
    other = {"messages": [ASK, ANSWER]} if "messages" in row else {}
    loaded = load_rows(DataSection(path=str(write_rows([row, other] if other else [row]))))
    assert loaded_columns(loaded)["system"] == ["Be brief.", *([None] if other else [])]
    assert loaded.sources[0]["system"] == 1


def test_a_system_column_of_another_name_is_mapped(write_rows: Callable[..., Path]) -> None:
    path = write_rows([{"system_prompt": "Be brief.", "question": "What?", "response": "That."}])
    columns = {"system": "system_prompt", "instruction": "question", "output": "response"}
    assert loaded_columns(load_rows(DataSection(path=str(path), columns=columns)))["system"] == ["Be brief."]


OTHERS: dict[str, list[Any]] = {
    "two questions": [ASK, ANSWER, ASK, ANSWER],
    "two answers": [ASK, ANSWER, ANSWER],
    "the answer first": [ANSWER, ASK],
    "an image": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER],
    "a tool": [ASK, {"role": "assistant", "content": None}, {"role": "tool", "content": "1"}, ANSWER],
    "a call of a tool alone": [ASK, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
}  # fmt: skip


@pytest.mark.parametrize("turns", OTHERS.values(), ids=list(OTHERS))
def test_other_conversations_are_dropped_and_counted(
    turns: list[Any], document: dict[str, Any], make_recipe: Callable[..., Any], write_rows: Callable[..., Path],
    tokenizer: Any,
) -> None:  # fmt: skip
    rows = [{"messages": [ASK | {"content": f"Name bone {n}."}, ANSWER]} for n in range(12)]
    rows.insert(3, {"messages": turns})
    document["data"] = {"path": str(write_rows(rows)), "splits": {"train": 8, "validation": 2, "test": 2}}
    data = prepare_data(make_recipe(), tokenizer)
    assert data.report["steps"][0] == {
        "name": "drop_conversations", "rows_before": 13, "rows_after": 12, "dropped": 1, "changed": 0
    }  # fmt: skip
    assert (data.report["rows"]["loaded"], data.report["rows"]["kept"]) == (13, 12)
    assert sorted(row_id for rows in data.splits.values() for row_id in rows["id"]) == [*range(3), *range(4, 13)]


def test_nothing_but_longer_conversations_is_told_with_the_remedy(
    document: dict[str, Any], make_recipe: Callable[..., Any], write_rows: Callable[..., Path], tokenizer: Any
) -> None:
    document["data"]["path"] = str(write_rows([{"messages": OTHERS["two questions"]}] * 12))
    with pytest.raises(DataError, match=r"no row is left of 12.*dropped 12\. Only rows of one question and one answer"):
        prepare_data(make_recipe(), tokenizer)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "line 1: messages must be a list of turns"),
        (["hello"], "line 1: a turn of messages must have role and content"),
    ],
)
def test_what_is_no_conversation_is_told_by_its_line(value: Any, message: str, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=message):
        load_rows(DataSection(path=str(write_rows([{"messages": value}, {"messages": [ASK, ANSWER]}]))))


def test_columns_that_a_recipe_names_win_over_conversations(write_rows: Callable[..., Path]) -> None:
    path = write_rows([{"messages": [ASK, ANSWER], "q": "Where?", "a": "There."}])
    loaded = load_rows(DataSection(path=str(path), columns={"instruction": "q", "output": "a"}))
    assert loaded_columns(loaded) == {"instruction": ["Where?"], "input": [None], "output": ["There."], "id": [0]}
    assert loaded.sources[0]["unused_columns"] == ["messages"]


# Columns that are not used, and those that are missing
NAMES = {
    ("question", "answer"): "{instruction: question, output: answer}",
    ("query", "response", "context"): "{instruction: query, input: context, output: response}",
    ("Instruction", "Output"): "{instruction: Instruction, output: Output}",
    ("instuction", "ouput"): "{instruction: instuction, output: ouput}",
    ("patient_question", "doctorAnswer", "patient_id"): "{instruction: patient_question, output: doctorAnswer}",
    ("prompt text", "response"): '{instruction: "prompt text", output: response}',
}


@pytest.mark.parametrize("names", NAMES)
def test_a_hint_about_missing_columns_leads_to_rows_when_it_is_followed(
    names: tuple[str, ...], write_rows: Callable[..., Path]
) -> None:
    import yaml

    path = write_rows([{name: f"text of {name}" for name in names}])
    with pytest.raises(DataError) as refused:
        load_rows(DataSection(path=str(path)))
    assert f"Set data.columns to {NAMES[names]}" in str(refused.value)
    columns = yaml.safe_load(NAMES[names])
    row = load_rows(DataSection(path=str(path), columns=columns)).batches[0].to_pylist()[0]
    assert {ours: row[ours] for ours in columns} == {ours: f"text of {theirs}" for ours, theirs in columns.items()}


def test_a_column_of_lists_is_not_suggested(write_rows: Callable[..., Path]) -> None:
    path = write_rows([{"question": "What?", "answers": ["a"], "final": "a"}] * 2)
    with pytest.raises(DataError, match=r"Map it with data\.columns\.instruction, or set data\.constants"):
        load_rows(DataSection(path=str(path)))


NOTES = [
    {"instruction": f"Which bone is in note {n}?", "note": f"Pain over bone {n}.", "output": f"It is bone {n}."}
    for n in range(12)
]


def test_columns_that_are_not_used_are_shown_and_one_like_an_input_with_its_key(
    document: dict[str, Any], make_recipe: Callable[..., Any], write_rows: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [row | {"patient_id": "7", "topic": "x"} for row in NOTES]
    document["data"] = {"path": str(write_rows(rows)), "splits": {"train": 8, "validation": 2, "test": 2}}
    make_recipe()
    assert main(["data", str(tmp_path / "recipe.yaml"), "--show", "0"]) == 0
    shown = capsys.readouterr().out
    assert "columns not used: note, patient_id, topic" in shown
    assert "set data.columns.input: note" in " ".join(shown.split())
    report = json.loads((tmp_path / "run" / "data" / "report.json").read_text())
    assert report["sources"][0]["input_candidate"] == "note"
    assert "columns.input" in (tmp_path / "run" / "data" / "report.html").read_text()
    assert main(["data", str(tmp_path / "recipe.yaml"), "--show", "0", "--data.columns.input", "note"]) == 0
    assert "looks like" not in capsys.readouterr().out


@pytest.mark.parametrize("output", ["It is bone 7.", "It is bone {}."], ids=["copies", "one question"])
def test_splits_that_cannot_be_drawn_for_want_of_the_input_say_so(
    output: str, document: dict[str, Any], make_recipe: Callable[..., Any], write_rows: Callable[..., Path],
    tokenizer: Any,
) -> None:  # fmt: skip
    rows = [row | {"instruction": "Which bone?", "output": output.format(n)} for n, row in enumerate(NOTES)]
    document["data"] = {"path": str(write_rows(rows)), "splits": {"train": 8, "validation": 2, "test": 2}}
    with pytest.raises(
        DataError, match=r"data\.splits.*column note looks like it: to use it, set data\.columns\.input: note"
    ):
        prepare_data(make_recipe(), tokenizer)
    document["data"]["columns"] = {"input": "note"}
    assert len(prepare_data(make_recipe(), tokenizer).splits["train"]) == 8


def test_words_for_nothing_are_empty_for_constants_too(write_rows: Callable[..., Path]) -> None:
    words = ["nan", "N/A", "<noinput>", "None.", "NULL", " ", "What?"]
    rows = [{"instruction": word, "input": word, "output": "That."} for word in words]
    constants = {"instruction": "Explain the note.", "input": "Nothing."}
    data = DataSection(path=str(write_rows(rows)), constants=constants)
    loaded = load_rows(data)
    empty = [word for word in words if word.strip(" .<>").casefold() in {"", *data.clean.no_input_marks}]
    assert loaded_columns(loaded)["instruction"] == [
        constants["instruction"] if word in empty else word for word in words
    ]
    assert loaded.filled == {"instruction": len(empty), "input": len(empty)} and "nan" in empty
