"""The report in eight sections: its figures are those of the run, and what its author wrote into it is kept."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from alpacare_sft import Recipe, load_recipe, train
from alpacare_sft.errors import RunError
from alpacare_sft.reporting.run_report import format_page, save_run_report
from tests.conftest import tiny_document

SECTIONS = [
    "Introduction",
    "Dataset",
    "Preprocessing",
    "Model training",
    "Dataset splitting",
    "Tokenization and LoRA",
    "Evaluation",
    "Safety and mitigations",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_document(tiny_model, folder / "run")), encoding="utf-8")
    train(load_recipe(folder / "recipe.yaml"))
    return folder


@pytest.fixture
def recipe(trained: Path, tmp_path: Path) -> Recipe:
    """Of a copy of the trained run."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return load_recipe(trained / "recipe.yaml", ["--output_dir", str(tmp_path / "run")])


def report_of(recipe: Recipe) -> str:
    save_run_report(recipe)
    return (recipe.output_dir / "report.md").read_text(encoding="utf-8")


def test_the_eight_sections_stand_in_their_order(recipe: Recipe) -> None:
    text = report_of(recipe)
    assert re.findall(r"^## \d\. (.*)$", text, flags=re.MULTILINE) == SECTIONS
    assert re.findall(r"<h2>\d\. (.*?)</h2>", (recipe.output_dir / "report.html").read_text()) == SECTIONS


def test_figures_are_those_of_the_record(recipe: Recipe) -> None:
    record = json.loads((recipe.output_dir / "run.json").read_text())
    text = report_of(recipe)
    assert f"{record['rows']['loaded']:,} rows were read" in text
    assert f"| training | {record['rows']['train']:,} |" in text
    assert f"({record['tokens']['answer']:,} of {record['tokens']['trained']:,} tokens read" in text
    assert f"Mean loss on training rows over all steps: {record['train']['train_loss']:.4f}" in text


def test_what_was_not_measured_is_not_claimed(recipe: Recipe) -> None:
    text = report_of(recipe)
    assert "The test rows were not scored: this adapter was not evaluated. Score it: alpacare-sft eval RECIPE" in text
    assert "No review by people is in this run." in text
    assert "It was compared with the model before training" not in text
    assert "**[To be written: why this assistant was made" in text


def test_ratings_of_people_are_shown_with_their_number(recipe: Recipe) -> None:
    rating = {"mean": 3.5, "low": 3.0, "high": 4.0}
    review = {
        "rows": 4,
        "rows_reviewed": 3,
        "reviewers": [{"name": "Ann"}],
        "current": True,
        "criteria": {"correctness": {"n": 3, "base": rating, "adapter": rating, "difference": None}},
        "could_harm": {"adapter": {"n": 3, "flagged": 1, "low": 0.008, "high": 0.906, "confidence": 0.95}},
    }
    (recipe.output_dir / "eval").mkdir()
    (recipe.output_dir / "eval" / "review.json").write_text(json.dumps(review))
    text = report_of(recipe)
    assert "3 of 4 rows were rated by 1 person" in text and "Ann" not in text
    assert "| correctness | 3 | 3.50 [3.00, 4.00] | 3.50 [3.00, 4.00] | – |" in text
    assert "1 of 3 of the adapter (1 to 91 % at 95 % confidence)" in text


def test_an_edited_report_is_kept_and_shown(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe.output_dir / "report.md"
    edited = report_of(recipe).replace("## 2. Dataset", "## 2. Dataset\n\nLetters of one clinic. <script>x</script>\n")
    path.write_text(edited, encoding="utf-8")
    save_run_report(recipe)
    page = (recipe.output_dir / "report.html").read_text()
    assert path.read_text() == edited and "was edited and is kept" in capsys.readouterr().out
    assert "Letters of one clinic. &lt;script&gt;" in page and "<script>x" not in page


def test_a_report_that_nobody_edited_is_written_anew(recipe: Recipe) -> None:
    before = report_of(recipe)
    recipe.safety.disclaimer = "Another notice."
    assert "Another notice." in report_of(recipe) != before


def test_markdown_cannot_leave_the_page_or_run_there() -> None:
    page = format_page("# A\n\n## B\n\n[x](javascript:alert(1)) <img src=x onerror=alert(1)>\n", {})
    assert "<img" not in page and 'href="javascript' not in page


def test_a_run_without_an_adapter_says_what_to_do(recipe: Recipe) -> None:
    shutil.rmtree(recipe.output_dir / "adapter")
    with pytest.raises(RunError, match="Train it first: alpacare-sft train RECIPE"):
        save_run_report(recipe)
    assert not (recipe.output_dir / "report.md").exists()
