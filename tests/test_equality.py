"""When two texts count as the same: as copies, as questions, as names."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from alpacare_sft.data.text import copy_key, question_key
from alpacare_sft.errors import ModelError, RecipeError
from alpacare_sft.evaluation.held_out import Selection
from alpacare_sft.model.adapter import other_base
from alpacare_sft.recipe.names import is_same_name

DECOMPOSED = unicodedata.normalize("NFD", "Où siège la fièvre ?")


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (DECOMPOSED, "Où siège la fièvre ?"),
        ("5\u00a0mg of  it\n", "5 mg of it"),
        ("4 k\u2126", "4 kΩ"),
        ("5 \u212b", "5 Å"),
    ],
)
def test_copies_are_equal_but_for_unicode_form_and_white_space(text: str, other: str) -> None:
    assert copy_key(text) == copy_key(other)
    assert question_key(text) == question_key(other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("What does the RADIUS do?", "what does the radius do?"),
        ("FIE\u0300VRE", "fièvre"),
        ("5 \u00b5g", "5 \u03bcg"),
        ("38 \u00baC", "38 °C"),
        ("38 \u02daC", "38 °C"),
        ("COVID\u201119", "covid-19"),
        ("2\u20138 days", "2-8 days"),
        ("\u22125 dioptres", "-5 dioptres"),
        ("hyper\u00adtension", "hypertension"),
        ("STRASSE", "Straße"),
        ("ᾳ", "α\u0345"),
    ],
)
def test_spellings_of_a_question_are_one_question_and_no_copies(text: str, other: str) -> None:
    assert question_key(text) == question_key(other)
    assert copy_key(text) != copy_key(other) or unicodedata.normalize("NFC", text) == unicodedata.normalize(
        "NFC", other
    )


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("10⁶ cells", "106 cells"),
        ("½ tablet", "1/2 tablet"),
        ("H₂O", "H2O"),
        ("5 mg", "5mg"),
        ("5 mg", "5 µg"),
        ("a — b", "a - b"),
        ("±2", "+2"),
        ("５ mg", "5 mg"),
        ("may", "mày"),
    ],
)
def test_texts_that_say_something_else_stay_two(text: str, other: str) -> None:
    assert question_key(text) != question_key(other)


def test_names_of_the_hub_are_compared_without_case() -> None:
    assert is_same_name("meta-llama/Llama-3.2-1B", "Meta-Llama/llama-3.2-1b")
    assert is_same_name("gpt2", "GPT2")
    assert not is_same_name("meta-llama/Llama-3.2-1B", "mirror/Llama-3.2-1B")
    assert not is_same_name("/models/Base", "/models/base")


def test_directories_are_compared_by_where_they_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "Base").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert is_same_name("base", str(tmp_path / "base"))
    assert is_same_name("./link", "base")
    assert not is_same_name("base", "org/base")
    if not (tmp_path / "base").samefile(tmp_path / "Base"):
        assert not is_same_name(str(tmp_path / "base"), str(tmp_path / "Base"))


def adapter_of(folder: Path, base: str | None) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("named", ["org/Base-1B", "ORG/base-1b", None, ""])
def test_an_adapter_of_the_same_base_is_taken(tmp_path: Path, named: str | None) -> None:
    assert other_base("mine", adapter_of(tmp_path, named), "org/Base-1B", same_base=False) is None


@pytest.mark.parametrize("named", ["mirror/Base-1B", "/models/Base-1B", "org/Base-3B"])
def test_an_adapter_of_another_name_says_how_to_say_that_it_is_the_same(tmp_path: Path, named: str) -> None:
    folder = adapter_of(tmp_path, named)
    with pytest.raises(ModelError, match=rf"--adapter: mine was trained on {named}, .* add --same-base; else"):
        other_base("mine", folder, "org/Base-1B", same_base=False)
    assert other_base("mine", folder, "org/Base-1B", same_base=True) == named


def test_the_same_base_is_said_of_an_adapter() -> None:
    with pytest.raises(RecipeError, match=r"--same-base is about .* Add --adapter"):
        Selection(None, None, None, same_base=True)
