"""The notebooks run from end to end on the embedded model, with the same cells and other parameters."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from alpacare_sft.model.embedded import embedded_model

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "recipes").glob("*.ipynb"))
FEW = [
    *("--data.splits.train", "12", "--data.splits.validation", "2", "--data.splits.test", "3"),
    *("--train.max_steps", "4", "--train.save_steps", "4", "--train.eval_steps", "4", "--train.max_length", "96"),
    *("--generate.max_new_tokens", "8", "--evaluate.metrics", "[rouge, loss]", "--evaluate.bootstrap_samples", "50"),
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_stores_no_output_and_says_why_each_cell_is_there(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    kinds = [cell.cell_type for cell in book.cells]
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    assert all(kinds[place - 1] == "markdown" for place, kind in enumerate(kinds) if kind == "code")
    assert "not medical advice" in book.cells[0].source
    assert not re.search(r"hf_\w{8,}", path.read_text(encoding="utf-8"))


def execute(path: Path, folder: Path, **parameters: Any) -> Any:
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    place = next(i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    book.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return book


def printed(book: Any) -> str:
    outputs = (output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_both_notebooks_run_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trained = execute(ROOT / "recipes" / "t4.ipynb", tmp_path, RECIPE="demo", OVERRIDES=FEW, QUESTION="What is pain?")
    text = printed(trained)
    assert "done: 4 steps" in text and "3 test rows" in text and "not medical advice" in text
    assert (tmp_path / "demo.zip").is_file() and (tmp_path / "runs" / "demo" / "eval" / "scores.json").is_file()
    pages = [output for cell in trained.cells for output in cell.get("outputs", []) if "<iframe" in str(output)]
    assert len(pages) == 3 and "README.md" in text
    adapter = str(tmp_path / "runs" / "demo" / "adapter")
    questions = {"QUESTIONS": ["What is pain?"], "MAX_NEW_TOKENS": 8, "BASE": str(embedded_model())}
    asked = execute(ROOT / "recipes" / "inference.ipynb", tmp_path, ADAPTER=adapter, **questions)
    answer = printed(asked).split("What is pain?")[-1]
    assert "not medical advice" in answer
