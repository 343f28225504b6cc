"""Precision follows the card, whatever torch says that it could emulate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alpacare_sft.errors import RecipeError
from alpacare_sft.recipe.keys import section_types
from alpacare_sft.runtime import check_devices, resolve_precision, set_threads


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    return monkeypatch


def asked(fp16: bool | None = False, bf16: bool | None = None, use_cpu: bool = False) -> Any:
    return section_types()["train"](fp16=fp16, bf16=bf16, use_cpu=use_cpu)


@pytest.mark.parametrize(
    ("capability", "name"), [((6, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_precision_left_out_is_chosen_by_compute_capability(
    card: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert resolve_precision(asked()).name == name
    assert resolve_precision(asked(use_cpu=True)).name == "fp32"


def test_bf16_on_a_t4_is_refused_although_torch_emulates_it(card: pytest.MonkeyPatch) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(RecipeError, match=r"train\.bf16 needs .* 8\.0 or more, a card has 7\.5.*train\.fp16"):
        resolve_precision(asked(bf16=True))


def test_fp16_without_a_card_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("a card is here")
    with pytest.raises(RecipeError, match=r"train\.fp16 needs a CUDA device.*--train\.fp16 false"):
        resolve_precision(asked(fp16=True))


def test_float32_can_be_asked_for_on_any_card(card: pytest.MonkeyPatch) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    assert resolve_precision(asked(bf16=False)).name == "fp32"


def test_one_process_that_sees_two_cards_is_told_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RecipeError, match="--num_processes 2"):
        check_devices()
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_devices()


def test_threads_are_the_share_of_a_process_whatever_the_launcher_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    try:
        assert set_threads() == torch.get_num_threads() >= 1
    finally:
        torch.set_num_threads(before)
