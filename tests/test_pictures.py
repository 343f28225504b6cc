"""The README's pictures are of today's page and terminal."""

from __future__ import annotations

import json

import pytest

from tests import pictures


def test_pictures_are_of_todays_templates() -> None:
    made_from = json.loads((pictures.PICTURES / "sources.json").read_text(encoding="utf-8"))
    assert made_from == pictures.sources(), "make them again: make demo && .venv/bin/python tests/pictures.py runs/demo"


@pytest.mark.parametrize("name", ["page-light", "page-dark", "terminal-light", "terminal-dark"])
def test_pictures_are_small_and_shown_by_the_readme(name: str) -> None:
    file = pictures.PICTURES / f"{name}.png"
    assert 10_000 < file.stat().st_size <= pictures.MOST_BYTES
    assert f"recipes/pictures/{name}.png" in (pictures.ROOT / "README.md").read_text(encoding="utf-8")
