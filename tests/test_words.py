"""Words of every script, as scores and pages compare them."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

import alpacare_sft
from alpacare_sft.data.text import find_words, repetition, split_words, word_spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Боль в груди — кашель.", ["боль", "в", "груди", "кашель"]),
        ("高血压, 5毫克", ["高", "血", "压", "5", "毫", "克"]),
        ("カメラー", ["カ", "メ", "ラ", "ー"]),
        ("มีไข้", ["มี", "ไ", "ข้"]),
        ("혈압이", ["혈", "압", "이"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم دارو", ["می\u200cخواهم", "دارو"]),
        ("Straße, café", ["strasse", "café"]),
        ("H₂O, 10⁶, B12", ["h₂o", "10", "⁶", "b12"]),
        ("0.5 mg or 2,5 %", ["0.5", "mg", "or", "2,5", "%"]),
        ("≥ 38 °C, -5 to –4 or −3, 2-8", ["≥", "38", "°", "c", "-", "5", "to", "-", "4", "or", "-", "3", "2", "8"]),
        ("lost: \ufffd — …", ["lost"]),
    ],
)  # fmt: skip
def test_words_of_each_script_are_found(text: str, words: list[str]) -> None:
    assert find_words(text) == words
    assert find_words(unicodedata.normalize("NFD", text)) == words


def test_units_that_differ_are_different_words() -> None:
    assert find_words("5 µg") == find_words("5 μg") != find_words("5 g")  # micro sign, Greek mu
    assert find_words("5 %") != find_words("5") != find_words("-5")


def test_spans_are_of_the_text_as_it_is() -> None:
    text = "Cafe\u0301 血压 ≥ 5"
    assert [text[start:end] for start, end in word_spans(text)] == ["Cafe\u0301", "血", "压", "≥", "5"]


def test_split_words_are_those_of_white_space_except_in_scripts_without() -> None:
    assert split_words("It's 5 µg, isn't it?\nYes.") == ["It's", "5", "µg,", "isn't", "it?", "Yes."]
    assert split_words("多喝水。Rest") == ["多", "喝", "水", "。Rest"]


def test_a_loop_is_seen_in_a_script_without_spaces() -> None:
    assert repetition("多喝水多休息。" * 6) > 0.5
    assert repetition("血压高的病人应当少吃盐并按时服药。") == 0


PACKAGE = Path(alpacare_sft.__file__).parent
NOT_OURS = re.compile(
    r"\blearnt\b|\bpassed over\b|not taken here|must hold words|became of the rows|without harm|main scores|"
    r"called one if|runs it anew|\basked for here\b",
    re.IGNORECASE,
)


def sentences() -> Iterator[tuple[str, str]]:
    """Everything that a user reads: text of the code, pages, model card, recipes and READMEs."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value
    others = [*PACKAGE.rglob("*.md"), *PACKAGE.rglob("*.html"), *(PACKAGE.parent / "recipes").glob("*.*")]
    for path in [*others, PACKAGE.parent / "README.md"]:
        markup = r'class="[^"]*"|--learnt[\w-]*|\.learnt|\{%.*?%\}|learnt_\w+'
        yield path.name, re.sub(markup, "", path.read_text(encoding="utf-8"))


def test_messages_pages_and_help_use_the_terms_of_the_field() -> None:
    assert [(place, match[0]) for place, text in sentences() if (match := NOT_OURS.search(text))] == []
