"""What leaves this machine: a list of files, each named here, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RunError
from alpacare_sft.recipe.document import dump_yaml
from alpacare_sft.recipe.names import EMBEDDED_FILES, hub_datasets, path_entries
from alpacare_sft.recipe.resolved import recipe_document
from alpacare_sft.reporting.card import format_card
from alpacare_sft.reporting.evidence import Evidence, pinned_recipe
from alpacare_sft.reporting.licenses import base_license
from alpacare_sft.run.directory import (
    CONFIG,
    WEIGHTS,
    RunDirectory,
    format_json,
    has_effect,
    is_lora_weight,
    last_name,
    read_object,
)

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.model", "vocab.json", "merges.txt"),
)
# In the repository's order of names; with `hub.include_rows` only.
ROWS = ("data/report.html", "eval/predictions.jsonl", "eval/report.html")
NOTICE = "NOTICE"
LICENSE = "LICENSE.txt"  # as Meta names it
ALLOWED = frozenset({"README.md", CONFIG, WEIGHTS, "recipe.yaml", "run.json", "scores.json", NOTICE, LICENSE})
ALLOWED |= {*TOKENIZER, *ROWS}
# Keys of run.json and of scores.json that are published.
_RECORD = """
status recipe_sha256 data_sha256 data_commit versions earlier_versions git_commit hardware precision seed base_model
end_token_ids rows tokens parameters train seconds
"""
_SCORES = """
n source limit complete rows metrics verdict intervals near_duplicates model beyond_context unseen generate seed seconds
versions recipe_sha256 data_sha256 hardware notice versions_since_training
"""
_REASONS = {
    "checkpoints": "only needed to go on with the training",
    "data": "text of rows (hub.include_rows publishes data/report.html)",
    "eval": "text of rows (hub.include_rows publishes eval/report.html and eval/predictions.jsonl)",
    "training.html": "the model card has its numbers",
}
_NOT_LISTED = "not on the list of files to publish"
_OF_THIS_MACHINE = ("name_or_path", "tokenizer_file", "local_files_only")  # in tokenizer_config.json
# Keys of `train` that name projects, accounts and servers of whoever trained; none alters the adapter.
_PRIVATE = re.compile(r"run_name|project|report_to|(trackio|hub)_.*")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
_PLACE = re.compile(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[\\/]|\\\\).*")


@dataclass(frozen=True)
class Publication:
    """What a push would make of the repository.

    Attributes:
        files: path in the repository → its bytes, or the file that holds them.
        kept_back: path in the run's directory, and why it is not published.
    """

    files: dict[str, bytes | Path]
    kept_back: list[tuple[str, str]]

    @property
    def card(self) -> str:
        """The text of README.md."""
        return self.read("README.md").decode()

    @property
    def lacks_license(self) -> bool:
        """Whether the text of a licence that asks to come with an adapter is not among the files."""
        return NOTICE in self.files and LICENSE not in self.files

    def read(self, name: str) -> bytes:
        """The content of a file."""
        content = self.files[name]
        return content.read_bytes() if isinstance(content, Path) else content


def collect_files(
    run: RunDirectory, recipe: Recipe, evidence: Evidence, license_copy: Path | None = None
) -> Publication:
    """The files of a publication, with what tells of this machine taken out of them.

    Args:
        run: with a trained adapter.
        recipe: that it was trained by, with the section `hub` to publish by.
        evidence: what the directory says.
        license_copy: the text of the base's licence, where it asks to come with an adapter.

    Raises:
        RunError: if the adapter is not one to publish, or a file would tell of this machine.
    """
    check_weights(run.adapter / WEIGHTS)
    if not (run.adapter / "tokenizer_config.json").is_file():
        raise RunError(f"{run.adapter} holds no tokenizer. Train it again: alpacare-sft train RECIPE --overwrite.")
    base = without_places(evidence.record["base_model"])
    record = {**evidence.record, "base_model": base}
    evidence = dataclasses.replace(evidence, record=record)
    config = _read_written(run.adapter / CONFIG)
    config |= {"base_model_name_or_path": base["name"], "revision": base["revision"]}
    tokenizer = _read_written(run.adapter / "tokenizer_config.json")
    files: dict[str, bytes | Path] = {
        "README.md": format_card(recipe, evidence).encode(),
        CONFIG: _json(without_places(config)),
        WEIGHTS: run.adapter / WEIGHTS,
        "recipe.yaml": _recipe_text(pinned_recipe(recipe, record)).encode(),
        "run.json": _json(without_places({key: record[key] for key in _RECORD.split() if key in record})),
        **{name: run.adapter / name for name in TOKENIZER if (run.adapter / name).is_file()},
        "tokenizer_config.json": _json({key: tokenizer[key] for key in tokenizer if key not in _OF_THIS_MACHINE}),
    }
    if scores := evidence.scores:
        files["scores.json"] = _json(without_places({key: scores[key] for key in _SCORES.split() if key in scores}))
    known = base_license(base["name"], recipe.hub.license)
    if known and known.notice:
        files[NOTICE] = f"{known.notice}\n\nThe licence: {known.page}\n".encode()
        if license_copy:
            files[LICENSE] = license_copy
    if recipe.hub.include_rows:
        # answers of another adapter are not published with this one
        own = [name for name in ROWS if evidence.scores is not None or not name.startswith("eval/")]
        if damaged := [name for name in own if run.damaged(name)]:
            raise RunError(f"{run.path / damaged[0]} is not as it was written. Score again: alpacare-sft eval RECIPE.")
        files |= {name: run.path / name for name in own if (run.path / name).is_file()}
    publication = Publication(dict(sorted(files.items())), list(_kept_back(run, files)))
    _check_places(publication, run)
    return publication


def _read_written(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Train it again: alpacare-sft train RECIPE --overwrite.") from error


def check_weights(path: Path) -> None:
    """Refuse weights that are no LoRA, not numbers, or never trained.

    Raises:
        RunError: with the tensor's name.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} cannot be read: {error}. Train it again: alpacare-sft train RECIPE --overwrite."
        ) from error
    for name, value in weights.items():
        if not is_lora_weight(name):
            raise RunError(f"{path} holds {name}, which is not a LoRA weight. Publish an adapter of LoRA weights only.")
        if not bool(torch.isfinite(value).all()):
            raise RunError(f"{path}: {name} holds values that are not finite. Train again with a lower learning rate.")
    if not any(bool(value.any()) for name, value in weights.items() if has_effect(name)):
        raise RunError(f"{path} was not changed by training: every lora_B is zero. Check train.learning_rate.")


def without_places(value: Any) -> Any:
    """JSON values, with each path on this machine cut down to its last name."""
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if isinstance(value, str) and _PLACE.fullmatch(value):
        return last_name(value)
    return value


def _recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as others can run it: files by their names, no server of ours."""
    document: dict[str, Any] = recipe_document(recipe)
    for section in ("model", "lora", "train"):
        document[section] = without_places(document[section])
    document["train"] = {key: value for key, value in document["train"].items() if not _PRIVATE.fullmatch(key)}
    path = document["data"]["path"]
    public = [
        entry if not isinstance(entry, str) or entry in EMBEDDED_FILES or hub_datasets(entry) else last_name(entry)
        for entry in path_entries(path)
    ]
    document["data"]["path"] = public if isinstance(path, list) else public[0]
    if "judge" in document["evaluate"]:
        document["evaluate"]["judge"] = None
    document["output_dir"] = f"runs/{recipe.output_dir.resolve().name}"
    return dump_yaml(document)


def _kept_back(run: RunDirectory, files: Mapping[str, bytes | Path]) -> Iterator[tuple[str, str]]:
    published = {content for content in files.values() if isinstance(content, Path)}
    published |= {run.adapter / name for name in files} | {run.recipe, run.record}  # those are made anew
    if "scores.json" in files:
        published.add(run.path / "eval" / "scores.json")
    for top in sorted(path for path in run.path.iterdir() if not path.name.startswith(".")):
        left = [path for path in sorted({top, *top.rglob("*")} - published) if path.is_file()]
        if top == run.adapter:
            yield from ((f"adapter/{path.relative_to(top)}", _NOT_LISTED) for path in left)
        elif left:
            name = f"{top.name}/ ({len(left)} files)" if top.is_dir() else top.name
            yield name, _REASONS.get(top.name, _NOT_LISTED)


def _check_places(publication: Publication, run: RunDirectory) -> None:
    """The last look: no file may name the run's directory, the home or the token."""
    home = str(Path.home())
    hidden = {"its output_dir": str(run.path.resolve()), "the token": os.environ.get("HF_TOKEN", "").strip()}
    if home.count("/") > 1:  # a home such as /root is too short to be told from other text
        hidden["the home directory"] = home
    for name in publication.files:
        if name == WEIGHTS or name in TOKENIZER[:1]:
            continue
        text = publication.read(name)
        leaks = [what for what, secret in hidden.items() if len(secret) > 1 and secret.encode() in text]
        leaks += ["a token of the Hub"] if _TOKEN.search(text) else []
        if leaks:
            raise RunError(
                f"{name} would publish {leaks[0]}. Take it out of the recipe, or set hub.include_rows: false."
            )


def _json(value: Any) -> bytes:
    return format_json(value).encode()
