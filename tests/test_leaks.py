"""Near-duplicates between test and training rows, and the rows worth a look."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from datasets import Dataset

from alpacare_sft.data.near_duplicates import find_near_duplicates
from alpacare_sft.data.text import repetition

LETTER = "Hello doctor, I have had a dry cough for two weeks and a fever since Monday. What should I do about it now?"

CONSTANT = {"instruction": "Answer the patient."}


def rows(*texts: str, instruction: str = "Answer the patient.") -> Dataset:
    columns: dict[str, list[Any]] = {
        "id": list(range(len(texts))),
        "instruction": [instruction] * len(texts),
        "input": list(texts),
        "output": ["An answer."] * len(texts),
    }
    return Dataset.from_dict(columns)


def test_a_changed_word_is_found_and_another_question_is_not() -> None:
    train = rows(LETTER.replace("Monday", "Tuesday"), "My knee hurts when I climb the stairs at home.")
    found = find_near_duplicates({"train": train, "test": rows(LETTER)}, {"instruction": "Answer the patient."})
    assert found["test_rows"] == 1
    assert [(pair["test"]["id"], pair["train"]["id"]) for pair in found["pairs"]] == [(0, 0)]
    assert 0.7 <= found["pairs"][0]["similarity"] < 1


def test_a_constant_instruction_makes_nothing_alike() -> None:
    long = "Read the letter of the patient below with care and answer it as a kind and careful doctor would do. " * 2
    train, test = rows("My knee hurts.", instruction=long), rows("I cough a lot.", instruction=long)
    assert find_near_duplicates({"train": train, "test": test}, {"instruction": long})["pairs"] == []
    assert len(find_near_duplicates({"train": train, "test": test}, {})["pairs"]) == 1


def test_an_empty_test_split_has_none() -> None:
    assert find_near_duplicates({"train": rows(LETTER), "test": rows().select([])}, {})["test_rows"] == 0


# The same made-up letter in a script each, and the word that a second writer would choose otherwise.
SCRIPTS = {
    "Chinese": (
        "医生您好，我最近两周一直干咳，从星期一开始发烧，晚上咳得更厉害，请问我现在应该怎么办？",
        "星期一",
        "星期二",
    ),
    "Japanese": (
        "先生、二週間前から空咳が続いていて、月曜日から熱があります。夜になると咳がひどくなります。",
        "月曜日",
        "火曜日",
    ),
    "Thai": ("สวัสดีคุณหมอ ฉันไอแห้งมาสองสัปดาห์แล้วและมีไข้ตั้งแต่วันจันทร์ ตอนกลางคืนไอหนักขึ้น", "จันทร์", "อังคาร"),
    "Hindi": (
        "नमस्ते डॉक्टर मुझे दो हफ्ते से सूखी खांसी है और सोमवार से बुखार है रात में खांसी बढ़ जाती है अब मुझे क्या करना चाहिए",
        "सोमवार",
        "मंगलवार",
    ),
    "mixed": (
        "患者服用 metformin 500 mg 每天两次，最近 HbA1c 升到 8.2%，伴有恶心和腹泻，请问是否需要换药？",
        "两次",
        "三次",
    ),
    "English": (LETTER, "Monday", "Tuesday"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_changed_word_is_found_in_every_script(script: str) -> None:
    letter, word, other = SCRIPTS[script]
    strange = [text for name, (text, _, _) in SCRIPTS.items() if name != script]
    near = find_near_duplicates({"train": rows(*strange, letter.replace(word, other)), "test": rows(letter)}, CONSTANT)
    assert [(pair["test"]["id"], pair["train"]["id"]) for pair in near["pairs"]] == [(0, len(strange))]
    assert 0.7 <= near["pairs"][0]["similarity"] < 1


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("高血压患者平时的饮食需要注意哪些问题？", "糖尿病足早期有什么表现，应当如何护理？"),
        ("高血圧の薬はいつ飲めばよいですか。", "子どもの発熱が三日続いています。"),
        ("ยาลดความดันควรกินตอนไหน", "ลูกมีไข้มาสามวันแล้ว"),
        ("🙂", "≥"),
    ],
)
def test_another_question_is_not_near_in_any_script(text: str, other: str) -> None:
    assert find_near_duplicates({"train": rows(other), "test": rows(text)}, CONSTANT)["test_rows"] == 0


def test_spellings_of_one_letter_are_the_same() -> None:
    letter = "Ma fièvre est montée à 39 °C, et la toux\xa0dure depuis 2–3 semaines."
    other = unicodedata.normalize("NFD", letter.upper().replace("°", "º").replace("–", "-").replace("\xa0", " "))
    near = find_near_duplicates({"train": rows(other), "test": rows(letter)}, CONSTANT)
    assert [pair["similarity"] for pair in near["pairs"]] == [1.0]


def test_every_pair_of_the_threshold_is_found() -> None:
    words = [f"w{n}" for n in range(60)]
    texts = [" ".join([*words[:n], "zz", *words[n + 1 :]]) for n in range(40)] + [
        " ".join(words[n:]) for n in range(20)
    ]
    near = find_near_duplicates({"train": rows(*texts), "test": rows(" ".join(words))}, CONSTANT)
    shingles = [
        {tuple(text.split()[i : i + 3]) for i in range(len(text.split()) - 2)} for text in [" ".join(words), *texts]
    ]
    alike = [len(shingles[0] & one) / len(shingles[0] | one) for one in shingles[1:]]
    expected = {(n, round(value, 4)) for n, value in enumerate(alike) if value >= 0.7}
    assert {(pair["train"]["id"], pair["similarity"]) for pair in near["pairs"]} == expected


@pytest.mark.parametrize(
    ("texts", "fraction"),
    [
        ((LETTER, "12 days?"), 1.0),
        (("患者发烧。", "कब से?"), 1.0),
        (("ab😀", "c±"), 0.6),
        (("\uf0b3\uf0b3\uf0b3",), 0.0),
        (("?!",), None),
    ],
)
def test_the_share_of_the_text_that_was_read_is_told(texts: tuple[str, ...], fraction: float | None) -> None:
    near = find_near_duplicates({"train": rows(*texts), "test": rows().select([])}, CONSTANT)
    assert near["seen_fraction"] == fraction


@pytest.mark.parametrize(
    ("text", "share"), [("one two three four five", 0.0), ("a b c d " * 5, 13 / 17), ("short", 0.0), ("", 0.0)]
)
def test_repetition_is_the_share_of_runs_seen_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)
