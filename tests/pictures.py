"""The README's pictures, light and dark: the first screen of the evaluation page, and the end of what `eval` prints.

    make demo && .venv/bin/python tests/pictures.py runs/demo

Needs Chromium. Beside the pictures `sources.json` keeps what they were made from; a test compares it with today's.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "recipes" / "pictures"
PACKAGE = ROOT / "alpacare_sft"
# What decides how the page and the terminal look.
SOURCES = [
    *(PACKAGE / "reporting" / "templates" / name for name in ("base.html", "evaluation.html", "macros.html")),
    PACKAGE / "reporting" / "figures.py",
    PACKAGE / "evaluation" / "terminal.py",
]
MOST_BYTES = 150_000
SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers


def sources() -> dict[str, str]:
    """SHA-256 of each file in `SOURCES`."""
    return {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in SOURCES}


def main() -> None:
    run = Path(sys.argv[1])
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for scheme in SCHEMES:
            screenshot(run / "eval" / "report.html", f"page-{scheme}", scheme, (1100, 820))
            page = Path(folder) / "terminal.html"
            height = write_terminal(run, page, scheme)
            screenshot(page, f"terminal-{scheme}", scheme, (820, height))
    (PICTURES / "sources.json").write_text(json.dumps(sources(), indent=2) + "\n", encoding="utf-8")


def write_terminal(run: Path, page: Path, scheme: str) -> int:
    """What `eval` prints of answers that are there already, 80 columns wide, as a page; its height in pixels."""
    from rich.console import Console
    from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI
    from rich.text import Text

    command = [sys.executable, "-m", "alpacare_sft", "eval", str(run / "recipe.yaml"), "--output_dir", str(run)]
    variables = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "80"}
    printed = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=80, file=io.StringIO())
    lines = [line.rstrip() for line in printed.replace(str(run), "runs/demo").splitlines()]
    last = max(place for place, line in enumerate(lines) if "row " in line and ": " in line)  # of three answers
    console.print(Text.from_ansi("\n".join(["$ alpacare-sft eval recipes/demo.yaml", "…", *lines[last:]])))
    theme = MONOKAI if scheme == "dark" else DEFAULT_TERMINAL_THEME
    html = console.export_html(theme=theme, inline_styles=True)
    page.write_text(html.replace("<body>", '<body style="margin: 20px">'), encoding="utf-8")
    return 40 + 18 * (len(lines) - last + 3)


def screenshot(page: Path, name: str, scheme: str, size: tuple[int, int]) -> None:
    """The first screen of a page as PNG of few colours."""
    from PIL import Image

    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(path for candidate in names if (path := shutil.which(candidate)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "screen.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={file}"]
        flags += [f"--window-size={size[0]},{size[1]}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True)
        Image.open(file).convert("RGB").quantize(128).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
