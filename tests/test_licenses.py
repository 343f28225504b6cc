"""Whose terms an adapter stands under, by the names of its base and its rows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from alpacare_sft.hub.preflight import with_base_license
from alpacare_sft.recipe.loading import Recipe
from alpacare_sft.recipe.sections import HubSection
from alpacare_sft.reporting.licenses import (
    HUB_LICENSES,
    adapter_license,
    base_license,
    data_license,
    license_faults,
    nearest_license,
)

LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
TINY = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
ALPACARE = "lavita/AlpaCare-MedInstruct-52k"
BASES = {
    LLAMA: ("llama3.2", "Llama"),
    "meta-llama/Llama-3.1-8B": ("llama3.1", "Llama"),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama3", "Llama-3"),
    "somebody/Llama3-Med42-8B": ("llama3", "Llama-3"),
    "unsloth/llama-3.2-3b-bnb-4bit": ("llama3.2", "Llama"),
    "nvidia/Llama-3_1-Nemotron-70B": ("llama3.1", "Llama"),
    "meta-llama/Llama-2-7b-chat-hf": ("llama2", ""),
    "codellama/CodeLlama-7b-hf": ("llama2", ""),
    "meta-llama/LlamaGuard-7b": ("llama2", ""),
    "meta-llama/Meta-Llama-Guard-2-8B": ("llama3", "Llama-3"),
    "meta-llama/Llama-Guard-3-8B": None,  # Meta names two licences for it
    "meta-llama/Llama-Guard-3-11B-Vision": ("llama3.2", "Llama"),
    "meta-llama/Llama-Guard-3-1B-INT4": ("llama3.2", "Llama"),
    "meta-llama/Llama-Guard-4-12B": ("llama4", "Llama"),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("llama3.1", "Llama"),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": ("llama3.3", "Llama"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("apache-2.0", ""),
    "openlm-research/open_llama_3b": None,
    "openlm-research/open_llama_3b_v2": None,
    "somebody/open-llama-3b": None,
    "somebody/llama-4bit": None,
    "huggyllama/llama-7b": None,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": None,
    "Qwen/Qwen3-0.6B": None,
}


@pytest.mark.parametrize("name", BASES)
def test_the_licence_of_a_base_follows_from_its_name(name: str) -> None:
    known = base_license(name)
    assert (known and (known.id, known.name_prefix)) == BASES[name]
    assert adapter_license(name, HubSection()) == (known.id if known else None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (ALPACARE, ("cc-by-nc-4.0", True)),
        ("embedded", ("cc0-1.0", False)),
        (["embedded", "embedded_dirty"], ("cc0-1.0", False)),
        (["embedded", "letters.jsonl"], (None, False)),
        ("somebody/rows", (None, False)),
    ],
)
def test_the_licence_of_rows_is_that_of_a_known_set_or_not_stated(
    path: str | list[str], expected: tuple[str | None, bool]
) -> None:
    found = data_license(path, HubSection())
    assert (found.id, found.non_commercial) == expected
    assert data_license(path, HubSection(data_license="mit")).id == "mit"


FAULTS = {
    "right": (LLAMA, ALPACARE, {"repo_id": "me/Llama-3.2-1B-AlpaCare"}, []),
    "other name": (LLAMA, ALPACARE, {"repo_id": "me/AlpaCare"}, ["must begin with 'Llama'"]),
    "small letters": (LLAMA, ALPACARE, {"repo_id": "me/llama-x"}, ["must begin with 'Llama'"]),
    "Llama 3": ("meta-llama/Meta-Llama-3-8B", "embedded", {"repo_id": "me/Llama3-x"}, []),
    "Llama 3, no 3": ("meta-llama/Meta-Llama-3-8B", "embedded", {"repo_id": "me/Llama-x"}, ["begin with 'Llama-3'"]),
    "other licence": (LLAMA, ALPACARE, {"license": "mit"}, ["hub.license must be llama3.2 or left out, got 'mit'"]),
    "Llama 2, any name": ("meta-llama/Llama-2-7b-hf", "embedded", {"repo_id": "me/AlpaCare"}, []),
    "distilled into Llama": (
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "embedded",
        {"repo_id": "me/AlpaCare", "license": "mit"},
        ["must begin with 'Llama'", "hub.license must be llama3.1 or left out, got 'mit'"],
    ),
    "a llama of unknown terms": ("me/llama-7b", "embedded", {}, ["hub.license must name the licence of me/llama-7b"]),
    "TinyLlama": (TINY, "embedded", {}, ["hub.license must name the licence of TinyLlama"]),
    "TinyLlama as stated": (TINY, "embedded", {"repo_id": "me/x", "license": "apache-2.0"}, []),
    "Llama as stated": (
        "me/llama-x",
        "embedded",
        {"repo_id": "me/x", "license": "llama3.1"},
        ["must begin with 'Llama'"],
    ),
    "no derivatives": ("a/b", "c/d", {"data_license": "cc-by-nd-4.0"}, ["forbids sharing derivatives"]),
    "misspelt": ("a/b", "c/d", {"data_license": "CC BY-NC 4.0"}, ["got 'CC BY-NC 4.0'. Did you mean cc-by-nc-4.0?"]),
    "rows of nobody": ("a/b", "c/d", {"include_rows": True}, ["hub.include_rows: true publishes the text of rows"]),
    "rows under a licence": ("a/b", "c/d", {"include_rows": True, "data_license": "cc0-1.0"}, []),
}


# Words of section 1.b of each licence, in models/llama*/LICENSE of github.com/meta-llama/llama-models.
META = "Meta Platforms, Inc. All Rights Reserved."
ASKED = {
    "llama2": (f"Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) {META}", ""),
    "llama3": (
        f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © {META}",
        "Built with Meta Llama 3",
    ),
    "llama3.1": (
        f"Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © {META}",
        "Built with Llama",
    ),
    "llama3.2": (
        f"Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © {META}",
        "Built with Llama",
    ),
    "llama3.3": (
        f"Llama 3.3 is licensed under the Llama 3.3 Community License, Copyright © {META}",
        "Built with Llama",
    ),
    "llama4": (f"Llama 4 is licensed under the Llama 4 Community License, Copyright © {META}", "Built with Llama"),
}


@pytest.mark.parametrize("stated", ASKED)
def test_notice_and_line_to_display_are_those_of_the_licence(stated: str) -> None:
    known = base_license("me/llama-x", stated)
    assert known and (known.notice, known.built_with) == ASKED[stated]
    named = base_license(f"me/{stated.replace('llama', 'Llama-')}-x")
    assert named == known


@pytest.mark.parametrize(
    ("base", "stated", "on_its_card", "expected"),
    [
        ("Qwen/Qwen3-0.6B", None, "apache-2.0", "apache-2.0"),
        ("meta-llama/Llama-Guard-3-8B", None, "llama3.1", "llama3.1"),
        ("Qwen/Qwen3-0.6B", "other", "apache-2.0", "other"),
        ("Qwen/Qwen3-0.6B", None, None, None),
        (LLAMA, None, "mit", None),  # what Meta's terms say of it needs no card
    ],
)
def test_a_licence_is_that_on_the_card_of_the_base(
    base: str, stated: str | None, on_its_card: str | None, expected: str | None, make_recipe: Callable[..., Recipe]
) -> None:
    card = SimpleNamespace(license=on_its_card)
    hub: Any = SimpleNamespace(model_info=lambda name: SimpleNamespace(card_data=card))
    recipe = make_recipe("--hub.repo_id", "me/Llama-x", *(["--hub.license", stated] if stated else []))
    assert with_base_license(hub, recipe, base).hub.license == expected


def test_a_licence_that_is_stated_does_not_make_a_llama() -> None:
    assert base_license(TINY, "apache-2.0") is None


@pytest.mark.parametrize("case", FAULTS)
def test_what_a_licence_forbids_is_told(case: str) -> None:
    base, path, hub, expected = FAULTS[case]
    faults = list(license_faults(base, path, HubSection(**hub)))
    assert len(faults) == len(expected)
    assert [part for part, fault in zip(expected, faults, strict=True) if part not in fault] == []


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("Apache License 2.0", "apache-2.0"),
        ("apache", "apache-2.0"),
        ("The MIT License", "mit"),
        ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
        ("CC-BY-4.0 International", "cc-by-4.0"),
        ("CC0", "cc0-1.0"),
        ("GPLv3", "gpl-3.0"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("Llama 3.2 Community License", "llama3.2"),
        ("BSD 3-Clause", "bsd-3-clause"),
        ("my hospital's own terms", None),
        ("", None),
    ],
)
def test_the_nearest_spelling_of_a_licence(text: str, nearest: str | None) -> None:
    assert nearest_license(text) == nearest


def test_every_licence_of_the_list_is_its_own_nearest() -> None:
    assert [name for name in HUB_LICENSES if nearest_license(name) != name] == []
