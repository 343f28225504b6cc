"""Writes a lock file: each package of constraints.txt with the hash of the one file that this platform installs.

    python .ci/lock.py > .ci/lock-linux-x86_64-py311.txt

PyTorch is not in it: it comes in builds for each kind of accelerator, from the index that a site chooses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILDS = ("torch",)
MODELS = ("llama_models",)  # in test-models.txt


def main() -> None:
    """Ask pip, which downloads nothing but metadata, what it would install."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if "==" in line and line.split("==")[0] not in BUILDS + MODELS]
    ask = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    ask += ["--prefer-binary", "--report", "-", *names]
    found = json.loads(subprocess.run(ask, check=True, capture_output=True, text=True).stdout)["install"]
    hashes = {
        f"{one['metadata']['name']}=={one['metadata']['version']}": one["download_info"]["archive_info"]["hashes"]
        for one in found
    }
    print("# Made by .ci/lock.py from constraints.txt, for pip --require-hashes; PyTorch is left to the site's index.")
    for name, digests in sorted(hashes.items(), key=lambda pair: pair[0].lower()):
        print(f"{name} --hash=sha256:{digests['sha256']}")


if __name__ == "__main__":
    main()
