"""Scores of single answers: ROUGE as `rouge_score` computes it, choices and repetition."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from alpacare_sft.evaluation.metrics import (
    DEFAULT,
    LOST_AT_MOST,
    ROUGE_TYPES,
    UNICODE,
    Rouge,
    choice_scores,
    chosen_option,
    describe_rouge,
    parse_options,
    rouge_scores,
    rouge_tokenizer,
    unseen_scores,
)

ANSWERS = ["The heart pumps blood.\nIt has four chambers.", "Rest and drink water", "", "µ 5 °C is normal"]
REFERENCES = ["The heart is pumping the blood.\nFour chambers make it up.", "Drink fluids and rest", "none", "5 °C"]


def test_rouge_has_the_values_of_rouge_score_row_by_row() -> None:
    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    expected = [scorer.score(reference, answer) for answer, reference in zip(ANSWERS, REFERENCES, strict=True)]
    assert rouge_scores(ANSWERS, REFERENCES) == {kind: [row[kind].fmeasure for row in expected] for kind in ROUGE_TYPES}


# What "rouge" of evaluate 0.4.6 (metrics/rouge/rouge.py) gives with use_stemmer=True, use_aggregator=False.
OF_EVALUATE = {
    "rouge1": [0.736842, 0.75, 0.0, 0.666667, 1.0, 0.421053, 0.823529],
    "rouge2": [0.235294, 0.0, 0.0, 0.5, 0.666667, 0.0, 0.266667],
    "rougeL": [0.631579, 0.25, 0.0, 0.666667, 0.5, 0.421053, 0.470588],
    "rougeLsum": [0.631579, 0.25, 0.0, 0.666667, 1.0, 0.421053, 0.470588],
}


def test_rouge_has_the_values_of_evaluates_own() -> None:
    answers = [
        *ANSWERS,
        "one two\nthree four",
        "Take 2 tablets daily; don't drink alcohol.",
        "Dehydration is caused by losing fluids.\n\nDrink water often.",
    ]
    references = [
        *REFERENCES,
        "three four\none two",
        "Take two tablets a day and do not drink any alcohol.",
        "Losing fluid causes dehydration.\nOften, drinking water helps.",
    ]
    scores = rouge_scores(answers, references)
    assert scores == {kind: pytest.approx(values, abs=1e-6) for kind, values in OF_EVALUATE.items()}


def test_rouge_has_known_values() -> None:
    scores = rouge_scores(["the cat sat"], ["the cat sat on the mat"])
    assert scores["rouge1"] == [pytest.approx(2 * 1.0 * 0.5 / 1.5)]
    assert scores["rouge2"] == [pytest.approx(2 * 1.0 * 0.4 / 1.4)]
    assert scores["rougeL"] == [pytest.approx(2 * 1.0 * 0.5 / 1.5)]
    assert rouge_scores(["hearts"], ["heart"])["rouge1"] == [1.0]  # stemmed
    assert Rouge(keep_in_memory=True).compute(predictions=["hearts"], references=["heart"], use_stemmer=False)[
        "rouge1"
    ] == [0.0]


def test_rougelsum_compares_line_by_line() -> None:
    scores = rouge_scores(["one two\nthree four"], ["three four\none two"])
    assert scores["rougeL"] == [pytest.approx(0.5)]
    assert scores["rougeLsum"] == [pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Which one? A) radius B) ulna C) femur", {"A": "radius", "B": "ulna", "C": "femur"}),
        ("A. Radius\nB. Ulna", {"A": "Radius", "B": "Ulna"}),
        ("Pick: (a) iron, (b) zinc", {"A": "iron", "B": "zinc"}),
        ("A: one\nC: three", {}),  # a gap: not a list of options
        ("A patient with vitamin B. deficiency", {}),
        ("No options here.", {}),
    ],
)
def test_options_are_read(text: str, options: dict[str, str]) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", "B"),
        ("B) ulna", "B"),
        ("b.", "B"),
        ("The correct answer is: C", "C"),
        ("Answer: (A) radius", "A"),
        ("Answer: **B**", "B"),
        ("**B**", "B"),
        ("B\nIt lies on the side of the little finger.", "B"),
        ("B - ulna", "B"),
        ("B, because it lies on the side of the little finger.", "B"),
        ("The answer is B because it lies on that side.", "B"),
        ("I think that the correct answer is option C.", "C"),
        ("Option B is correct.", "B"),
        ("A) radius B) ulna C) femur\nThe answer is B.", "B"),
        ("It is the ulna, which lies on the side of the little finger.", "B"),
        ("It is the ulna, not the radius.", "B"),
        ("It is not the radius but the ulna.", "B"),
        ("The ulna does not touch the wrist.", "B"),
        ("A bone of the leg.", None),  # an article, not a letter
        ("The answer is A bone of the leg.", None),
        ("Vitamin A is the best choice.", None),
        ("Either the radius or the ulna.", None),
        ("Not the ulna.", None),
        ("The ulna is wrong.", None),
        ("All except the ulna.", None),
        ("Option B is not correct.", None),
        ("I do not think that the answer is B.", None),
        ("A and B", None),
        ("A, B", None),
        ("The answer is A or B.", None),
        ("B) ulna. The answer is C.", None),
        ("A) radius B) ulna C) femur", None),  # the options again, none chosen
        ("D", None),
        ("", None),
    ],
)
def test_the_one_option_that_is_chosen(answer: str, choice: str | None) -> None:
    assert chosen_option(answer, {"A": "radius", "B": "ulna", "C": "femur"}) == choice


def test_a_dot_in_the_text_of_an_option_makes_no_letter() -> None:
    options = {"A": "S. aureus", "B": "C. difficile", "C": "H. pylori", "D": "E. coli", "E": "none"}
    answers = ["E. coli causes it.", "The answer is E. coli.", "C. difficile", "B. C. difficile", "E."]
    assert [chosen_option(answer, options) for answer in answers] == ["D", "D", "B", "B", "E"]


@pytest.mark.parametrize("text", ["\n" * 20_000 + "x", "! " * 20_000, "answer is " * 5_000, "A, " * 5_000])
def test_a_long_answer_is_read_in_no_time(text: str) -> None:
    assert chosen_option(text, {"A": "radius", "B": "ulna"}) is None


def test_a_choice_that_cannot_be_read_is_told_apart_from_a_wrong_one() -> None:
    row = {"instruction": "Which bone? A) radius B) ulna", "input": "", "output": "B) ulna"}
    rows = [row, row, row, row | {"output": "Either."}, row | {"instruction": "Which bone?"}]
    assert choice_scores(rows, ["B", "A", "It lies in the arm.", "B", "B"]) == {
        "choice_accuracy": [1.0, 0.0, 0.0, None, None],
        "choice_unread": [0.0, 0.0, 1.0, None, None],
    }


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Боль в груди и кашель ночью.", "Боль в горле и насморк."),
        ("高血压患者每天应服药。", "糖尿病人少吃糖。"),
        ("ผู้ป่วยมีไข้สูง", "ไอแห้ง"),
        ("혈압이 높은 환자", "당뇨 있음"),
        ("मरीज़ को बुखार है", "खाँसी नहीं"),
        ("Bệnh nhân bị sốt cao", "Không ho"),
    ],
)
def test_rouge_sees_the_words_of_every_script(text: str, other: str) -> None:
    scores = rouge_scores([text, other, ""], [text, text, text])
    assert rouge_tokenizer([text]) == UNICODE
    assert scores["rougeL"][0] == 1.0 and 0 <= scores["rougeL"][1] < 0.7 and scores["rougeL"][2] == 0.0


def test_the_references_alone_choose_the_tokenizer_of_all_rows() -> None:
    mostly_english = ["Chest pain and cough at night, and some fever."] * 9 + ["Боль."]
    assert rouge_tokenizer(mostly_english) == DEFAULT
    assert rouge_scores(["Боль."] * 10, mostly_english)["rougeL"] == [0.0] * 10
    mixed = [*mostly_english[:1], "Боль в груди и кашель ночью."]
    assert rouge_tokenizer(mixed) == UNICODE
    assert rouge_scores(["Chest pains", "боль"], mixed)["rouge1"] == [pytest.approx(2 / 11), pytest.approx(2 / 7)]


@pytest.mark.parametrize(("lost", "tokenizer"), [(5, DEFAULT), (6, UNICODE)])
def test_up_to_one_letter_in_twenty_may_be_lost(lost: int, tokenizer: str) -> None:
    assert LOST_AT_MOST == 0.05
    assert rouge_tokenizer(["a" * (100 - lost) + "é" * lost]) == tokenizer


def test_rows_that_the_default_tokenizer_cannot_see_whole_are_counted() -> None:
    references = ["Take 5 g of it daily, in two doses."] * 3 + ["Take some of it."]
    answers = {"base": ["Take 5 g"] * 4, "adapter": ["Take 5 µg", "Take 0.5 g", "Take it at ≥ 38", "Take it."]}
    seen = describe_rouge(references, answers)
    assert rouge_scores(["5 µg"], ["5 g"])["rougeL"] == [1.0]  # what the count warns of
    assert (seen["tokenizer"], seen["partly_seen"], seen["lost_share"]) == (DEFAULT, 2, 0.0)
    assert "2 of 4 rows have other letters or signs" in seen["note"]
    assert describe_rouge(references, {"adapter": references})["note"] is None


def test_the_unicode_tokenizer_is_named_with_its_reason() -> None:
    seen = describe_rouge(["Боль в груди."], {"adapter": ["Боль"]})
    assert (seen["tokenizer"], seen["partly_seen"], seen["lost_share"]) == (UNICODE, 0, 1.0)
    assert "drops 100% of the letters of the references" in seen["note"]
    units = ["Принимать 5 мкг, то есть 5 µg."]
    assert rouge_scores(["Принимать 5 мкг, то есть 5 g."], units)["rougeL"][0] < 1


def test_a_score_that_cannot_see_the_words_is_known() -> None:
    assert unseen_scores(["Fever above 38 °C.", "A µ or β is rare in such a text."]) == {}
    assert unseen_scores(["Fever."] * 19 + ["—"]) == {}
    blind = unseen_scores(["Fever."] * 18 + ["—", "…"])
    assert blind == dict.fromkeys(ROUGE_TYPES, "2 of 20 references have no word that ROUGE sees")
    assert "100% of the letters are not Latin" in unseen_scores(["Боль в груди."])["similarity"]
    assert list(unseen_scores(["\ue041\ue042"])) == list(ROUGE_TYPES)  # letters of a font, of no script


BONES = ["radius", "ulna", "femur", "tibia", "fibula", "patella", "sternum", "rib", "scapula", "clavicle"]
BONES += ["sacrum", "hyoid"]


@pytest.mark.parametrize("form", ["{}) {}", "({}) {}", "{}. {}", "{}: {}"])
@pytest.mark.parametrize("separator", [" ", "\n", "; "])
@pytest.mark.parametrize("letters", ["ABCDEFGHIJ", "abcdefghijkl"])
def test_options_are_read_up_to_the_last_letter(form: str, separator: str, letters: str) -> None:
    question = separator.join(form.format(*pair) for pair in zip(letters, BONES, strict=False))
    options = parse_options(f"Which bone? {question}")
    assert options == dict(zip(letters.upper(), BONES, strict=False))


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("I", "I"),
        ("J) clavicle", "J"),
        ("j.", "J"),
        ("The answer is I.", "I"),
        ("Option J is correct.", "J"),
        ("B, I think.", "B"),
        ("I believe that the answer is J.", "J"),
        ("I am not sure.", None),
        ("I or J", None),
        ("B, I", None),
        ("K", None),
    ],
)
def test_a_letter_past_h_is_chosen_and_a_pronoun_is_not(answer: str, choice: str | None) -> None:
    assert chosen_option(answer, dict(zip("ABCDEFGHIJ", BONES, strict=False))) == choice


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("A) Vitamin K: none B) iron p.o. C) zinc i.v.", ["Vitamin K: none", "iron p.o.", "zinc i.v."]),
        ("A. E. coli B. C. difficile C. H. pylori", ["E. coli", "C. difficile", "H. pylori"]),
        ("Vitamin K: why? A: one B: two (Vitamin K: no)", ["one", "two (Vitamin K: no"]),
        ("A. infection with S. aureus\nB. none", ["infection with S. aureus", "none"]),
        ("A: one B: two D: four", []),
        ("A) one B) two\nF) six", []),
    ],
)
def test_other_letters_in_an_option_are_its_words(text: str, options: list[str]) -> None:
    assert list(parse_options(text).values()) == options
