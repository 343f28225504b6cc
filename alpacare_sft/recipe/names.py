"""What a name stands for: something in the package, a path on this machine or a repository of the Hub; decided here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpacare_sft.recipe.sections import DataSection, HubDataset

EMBEDDED = "embedded"
EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what `embedded` as a model is on the Hub
_FOLDER = Path(__file__).parent.parent / "embedded"
EMBEDDED_FILES = {"embedded": _FOLDER / "rows.jsonl", "embedded_dirty": _FOLDER / "dirty_rows.jsonl"}
ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # of files of rows
COMMIT = re.compile(r"[0-9a-f]{40}")

DataPath = str | HubDataset | Sequence[str | HubDataset]


def is_path(name: str) -> bool:
    """Whether a name is spelled as a path or a pattern, which no repository of the Hub is; looks at no disk.

    Every file of rows that can be read has one of `ENDINGS`, so for `data.path` this is what the data stage decided.
    """
    known = Path(name).suffix.lower() in ENDINGS
    return known or not name.strip() or name.count("/") > 1 or re.search(r"^[./~]|[*?\[\\]", name) is not None


def expand(path: str | Path) -> Path:
    """A path with the home directory in the place of `~`; as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def local_path(name: str) -> Path | None:
    """The file or directory that a name leads to now, or None; for what is read now, never for what was read then."""
    path = expand(name)
    return path if path.exists() else None


def is_same_name(name: str, other: str) -> bool:
    """Whether two names are one: paths by where they lead, repositories of the Hub without letter case."""
    paths = local_path(name), local_path(other)
    if name == other or not any(paths):
        return name == other or (not (is_path(name) or is_path(other)) and name.casefold() == other.casefold())
    return all(paths) and expand(name).resolve() == expand(other).resolve()


def path_entries(path: DataPath) -> list[str | HubDataset]:
    """The entries of `data.path`, one or several."""
    return [path] if isinstance(path, str | HubDataset) else list(path)


def hub_datasets(path: DataPath, revision: str | None = None) -> list[HubDataset]:
    """The data sets of the Hub among the entries of `data.path`, by their spelling.

    Args:
        path: one entry or several.
        revision: `data.revision`, which is that of an entry that is text.
    """
    entries = (
        HubDataset(path=entry, revision=revision) if isinstance(entry, str) else entry
        for entry in path_entries(path)
        if not isinstance(entry, str) or not (entry in EMBEDDED_FILES or is_path(entry))
    )
    return list(entries)


def pin_commits(data: DataSection, commits: Any) -> DataSection:
    """A recipe's section with each data set of the Hub named by its commit, as `commit_of` recorded it."""
    if not commits or not hub_datasets(data.path):
        return data
    if isinstance(data.path, str):
        return dataclasses.replace(data, revision=commits)
    entries: list[str | HubDataset] = []
    for entry in path_entries(data.path):
        datasets = hub_datasets(entry, data.revision)
        commit = commits.get(datasets[0].path) if datasets and isinstance(commits, dict) else commits
        entries.append(dataclasses.replace(datasets[0], revision=commit or datasets[0].revision) if datasets else entry)
    return dataclasses.replace(data, revision=None, path=entries if isinstance(data.path, list) else entries[0])
