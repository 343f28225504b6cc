"""JSON Lines: rows and predictions, and a cache of a model's responses that grows line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alpacare_sft.errors import RunError
from alpacare_sft.run.directory import json_sha256, write_text


def format_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line, letters of every script as they are."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file that this package wrote.

    Raises:
        RunError: if it is damaged; names the line.
    """
    rows = []
    # a row may hold other line breaks, such as U+2028
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            rows += [dict(json.loads(line))] if line else []
        except (ValueError, TypeError) as error:
            raise RunError(f"{path}:{number} is damaged: {error}. Make it again.") from error
    return rows


class ResponseCache:
    """Responses by key; each new one is appended to a file at once, so that a stop loses none.

    Attributes:
        entries: by key. A line that is damaged, or that a stop cut off, is left out: it is requested again.

    Args:
        path: JSON Lines, one response with its `key` and a hash of both a line; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path and path.exists() else ""
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
                if entry.pop("sha256", None) in (None, json_sha256(entry)[:16]):  # None: written by version 0.1
                    self.entries[str(entry.pop("key"))] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        if path and text and not text.endswith("\n"):
            write_text(path, text[: text.rfind("\n") + 1])

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Keep one response, in memory and in the file."""
        self.entries[key] = dict(entry)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                keyed = {"key": key, **entry}
                file.write(format_json_lines([{**keyed, "sha256": json_sha256(keyed)[:16]}]))
