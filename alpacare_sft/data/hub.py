"""Data sets of the Hub: their rows, what of them is read, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import DataError, first_line
from alpacare_sft.hub.errors import hub_fault
from alpacare_sft.recipe.names import COMMIT
from alpacare_sft.recipe.sections import HubDataset
from alpacare_sft.run.directory import disk_errors_explained

if TYPE_CHECKING:
    from datasets import Dataset

_DEFAULT_SPLIT = "train"


def load_hub(entry: HubDataset) -> tuple[Dataset, dict[str, Any]]:
    """The rows of a data set of the Hub, under its own column names.

    Returns:
        The rows; and `path`, `name`, `split` and `commit` of what was read, its number of `rows`, `sizes` in rows of
        all splits by name, and `other_names`, the configurations that were not read.

    Raises:
        DataError: if it cannot be had, or has no such configuration or split; with the names that it has.
        RunError: if a cache cannot be written.
    """
    from datasets import load_dataset_builder

    if "/" not in entry.path:  # `datasets` would take `json` for its own reader of whatever lies in this directory
        raise DataError(_not_found(entry.path))
    split = entry.split or _DEFAULT_SPLIT
    with disk_errors_explained():
        try:
            # The address of the Hub: else a directory of the same name would be taken for it.
            builder = load_dataset_builder(f"hf://datasets/{entry.path}", entry.name, revision=entry.revision)
            if entry.revision and type(builder).__module__.endswith(".cache"):
                _check_cached_revision(entry.path, entry.revision, builder.hash)
            builder.download_and_prepare()
        except DataError:
            raise
        except Exception as error:  # builders raise many kinds for a data set in a form that they do not know
            raise DataError(f"data.path: {_hub_fault(entry, error)}") from error
        sizes = {str(name): int(info.num_examples) for name, info in (builder.info.splits or {}).items()}
        rows = _read_split(builder, entry, split, sizes)
    # `datasets` 5.2 names what it built by its commit, with what else told it apart.
    commit = COMMIT.match(builder.hash or "")
    return rows, {
        "path": entry.path,
        "name": builder.config.name,
        "split": split,
        "rows": len(rows),
        "commit": commit[0] if commit else None,
        "sizes": sizes,
        "other_names": sorted({*builder.builder_configs} - {builder.config.name}),
    }


def _read_split(builder: Any, entry: HubDataset, split: str, sizes: Mapping[str, int]) -> Dataset:
    listed = ", ".join(f"{name} ({count:,} rows)" for name, count in sizes.items())
    missing = next((name for name in _names_in(split) if name not in {*sizes, "all"}), None)
    if missing and entry.split is None:
        example = f"--data.path '{{path: {entry.path}, split: {next(iter(sizes), '…')}}}'"
        raise DataError(
            f"data.path: {entry.path} has no split {missing!r}, which is read unless another is named. "
            f"Its splits: {listed}. Name one, as in {example}."
        )
    if missing:
        raise DataError(f"data.path: {entry.path} has no split {missing!r}. Its splits: {listed}. Name one of them.")
    try:
        rows: Dataset = builder.as_dataset(split=split)
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"data.path: {split!r} is no part of {entry.path}: {first_line(error)}. Its splits: {listed}. "
            "Write one as in train, train[:90%] or train+validation."
        ) from error
    return rows


def _names_in(split: str) -> list[str]:
    """The splits that `train[:90%]+validation` is made of."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def commit_of(sources: Sequence[Mapping[str, Any]]) -> Any:
    """Commit of the data set that was read; of several, by their ids; None if there is none."""
    commits = {source["path"]: source["commit"] for source in sources}
    return commits if len(commits) > 1 else next(iter(commits.values()), None)


def describe_unused(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What of a publisher's data sets is read and what is not, a line for each where something is not.

    Args:
        sources: what `load_hub` said of each part that was read.
    """
    for path, name in dict.fromkeys((source["path"], source["name"]) for source in sources):
        parts = [source for source in sources if (source["path"], source["name"]) == (path, name)]
        used = {split for part in parts for split in _names_in(part["split"])}
        splits = [f"{split} ({n:,} rows)" for split, n in parts[0]["sizes"].items() if not {split, "all"} & used]
        names = parts[0]["other_names"]
        read = ", ".join(f"{part['split']} ({part['rows']:,} rows)" for part in parts)
        not_read = [f"splits {', '.join(splits)}"] if splits else []
        not_read += [f"configurations {', '.join(names)}"] if names else []
        if not_read:
            told = f"{path}{f', configuration {name}' if names else ''}: read {read}; not read {'; '.join(not_read)}."
            yield told + (" data.splits can name them, as in {test: test}." if splits else "")


def _check_cached_revision(path: str, revision: str, cached: str) -> None:
    """Without the Hub, `datasets` 5.2 takes what it cached last, whatever revision was asked for."""
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(path, "README.md", repo_type="dataset", revision=revision)
    commit = Path(card).parent.name if isinstance(card, str) else revision
    if not cached.startswith(commit):
        raise DataError(
            f"data.revision: {revision} of {path} cannot be had from the Hub, and the cache holds another, {cached}. "
            "Check the network and the token, or name that one."
        )


def _hub_fault(entry: HubDataset, error: Exception) -> str:
    """What is wrong, told by its cause, with the page or the command that mends it."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    path, page = entry.path, f"https://huggingface.co/datasets/{entry.path}"
    if isinstance(error, EmptyDatasetError | DataFilesNotFoundError):
        return f"{path} holds no file of rows. See {page}/tree/main."
    if "scripts are no longer supported" in str(error):
        return f"{path} is made by a script of its own, which is never run. Look at {page} for its rows as files."
    if names := _listed_names(error):
        which = f"has no configuration {entry.name!r}" if entry.name else "has several configurations"
        example = f"--data.path '{{path: {path}, name: {names[0]}}}'"
        return f"{path} {which}. Choose one of: {', '.join(names)}, as in {example}."
    answered = hub_fault(error, path, "data set", entry.revision)
    return answered or f"{path} cannot be loaded: {first_line(error.__cause__ or error)}."


def _not_found(path: str) -> str:
    return (
        f"data.path: {path} is neither a file nor a data set that can be read. Check the name, owner/name; a private "
        "data set needs HF_TOKEN. A local file needs its ending, as in rows.jsonl."
    )


def _listed_names(error: Exception) -> list[str]:
    """The configurations that an error of `datasets` 5.2 about the choice of one lists."""
    listed = re.search(r"vailable(?: configs)?(?: in the cache)?: \[(.*)\]", str(error))
    return re.findall(r"'([^']*)'", listed[1]) if listed and isinstance(error, ValueError) else []
