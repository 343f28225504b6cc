"""What each entry of `data.path` is: rows of the package, local files or a data set on the Hub."""

from __future__ import annotations

import glob
import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from alpacare_sft.errors import DataError
from alpacare_sft.recipe.names import EMBEDDED_FILES, ENDINGS, is_path
from alpacare_sft.recipe.sections import HubDataset

_REMEDIES = {
    ".gz": "Unpack it, and name what was in it",
    ".zip": "Unpack it, and name what was in it",
    ".xlsx": "Save the sheet as CSV UTF-8",
    ".xls": "Save the sheet as CSV UTF-8",
}


class Source(NamedTuple):
    """One local file, or one data set on the Hub.

    Attributes:
        name: as a person knows it.
        file: the file, or None.
        dataset: the data set, or None.
    """

    name: str
    file: Path | None = None
    dataset: HubDataset | None = None


def resolve_sources(path: Any, revision: str | None = None) -> list[Source]:
    """Sources that `data.path` names, in its order, files of a pattern by name, each once.

    Args:
        path: one entry or a list of them.
        revision: `data.revision`, which is that of a data set on the Hub whose entry is text.

    Raises:
        DataError: if a name matches nothing, a directory, or a file of another kind.
    """
    sources: dict[str, Source] = {}
    for entry in path if isinstance(path, list) else [path]:
        for source in _resolve(entry, revision):
            sources.setdefault(str(source.file.resolve() if source.file else source.dataset), source)
    return list(sources.values())


def local_files(path: Any) -> list[Path]:
    """Local files among the sources of `data.path`."""
    return [source.file for source in resolve_sources(path) if source.file]


def _resolve(entry: str | HubDataset, revision: str | None) -> list[Source]:
    if isinstance(entry, HubDataset):
        return [Source(entry.path, dataset=entry)]
    if entry in EMBEDDED_FILES:
        return [Source(entry, EMBEDDED_FILES[entry])]
    try:
        matches = _matches(Path(entry).expanduser()) if entry.strip() else []
    except PermissionError as error:
        raise DataError(f"data.path: {error.filename} may not be read. Give yourself the right, or move it.") from None
    if matches:
        return [Source(str(match), _readable(match)) for match in matches]
    if "://" in entry:
        raise DataError(f"data.path must name files or a data set on the Hub, got the address {entry}. Download it.")
    if is_path(entry):
        raise DataError(f"data.path must name existing files, nothing matches {entry!r}. Check the path.")
    return [Source(entry, dataset=HubDataset(path=entry, revision=revision))]


def _matches(path: Path) -> list[Path]:
    """The path itself if it exists, else the files that it matches; a directory that exists is no pattern either."""
    literal = next(parent for parent in (path, *path.parents) if parent.exists())
    if literal == path:
        return [path]
    pattern = os.path.join(glob.escape(str(literal)), *path.parts[len(literal.parts) :])
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    return [match for match in matches if not ("**" in path.parts and match.is_dir())]


def _readable(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"data.path must name files, {path} is a directory. {_directory_remedy(path)}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        remedy = _REMEDIES.get(ending, "Give it the ending of what it holds, or convert it")
        raise DataError(f"data.path: {path} must end in {', '.join(ENDINGS)}, got {ending or 'none'}. {remedy}.")
    return path


def _directory_remedy(folder: Path) -> str:
    if any(folder.glob("*.arrow")):
        return "It was written by `save_to_disk`: write its rows with `Dataset.to_parquet`, and name that file."
    inside = glob.iglob(os.path.join(glob.escape(str(folder)), "**"), recursive=True)
    names = [Path(name) for name in islice(inside, 10_000)]  # a home directory may hold millions
    names = [name for name in names if name.suffix.lower() in ENDINGS and name.is_file()]
    if not names:
        return f"No file in it ends in {', '.join(ENDINGS)}."
    ending, _ = Counter(name.suffix for name in names).most_common(1)[0]
    is_deep = any(name.parent != folder for name in names)
    return f"Write {folder}/{'**/' if is_deep else ''}*{ending}."
