"""Whose terms an adapter stands under, by the names of its base and its rows."""

from __future__ import annotations

import pytest

from alpacare_sft.hub.licenses import adapter_license, base_license, data_license, license_faults
from alpacare_sft.recipe.sections import HubSection

LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
ALPACARE = "lavita/AlpaCare-MedInstruct-52k"
BASES = {
    LLAMA: ("llama3.2", "Llama"),
    "meta-llama/Llama-3.1-8B": ("llama3.1", "Llama"),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama3", "Llama-3"),
    "somebody/Llama3-Med42-8B": ("llama3", "Llama-3"),
    "unsloth/llama-3.2-3b-bnb-4bit": ("llama3.2", "Llama"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("apache-2.0", ""),
    "openlm-research/open_llama_3b": None,
    "somebody/open-llama-3b": None,
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
    "no derivatives": ("a/b", "c/d", {"data_license": "cc-by-nd-4.0"}, ["forbids sharing what is made"]),
    "rows of nobody": ("a/b", "c/d", {"include_rows": True}, ["hub.include_rows: true publishes the text of rows"]),
    "rows under a licence": ("a/b", "c/d", {"include_rows": True, "data_license": "cc0-1.0"}, []),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_a_licence_forbids_is_told(case: str) -> None:
    base, path, hub, expected = FAULTS[case]
    faults = list(license_faults(base, path, HubSection(**hub)))
    assert len(faults) == len(expected)
    assert [part for part, fault in zip(expected, faults, strict=True) if part not in fault] == []
