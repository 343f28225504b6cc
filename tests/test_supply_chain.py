"""What is installed is what was tested: the lock file holds each tested version, by its hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HASHED = re.compile(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")
LEFT_OUT = {"torch", "llama-models"}  # builds for each accelerator; .ci/test-models.txt


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {re.sub("[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1].split()[0] for line in lines}


@pytest.mark.parametrize("path", sorted((ROOT / ".ci").glob("lock-*.txt")), ids=lambda path: path.stem)
def test_a_lock_file_holds_the_tested_versions(path: Path) -> None:
    tested = pins(ROOT / "constraints.txt")
    assert pins(path) == {name: version for name, version in tested.items() if name not in LEFT_OUT}, "see .ci/lock.py"


@pytest.mark.parametrize("path", sorted((ROOT / ".ci").glob("*.txt")), ids=lambda path: path.stem)
def test_each_file_to_install_is_known_by_its_hash(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    assert lines and all(HASHED.fullmatch(line) for line in lines)
    assert "://" not in path.read_text(encoding="utf-8")
