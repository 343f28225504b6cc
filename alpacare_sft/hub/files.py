"""What leaves this machine: a list of files, each named here, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.data.hub import hub_datasets
from alpacare_sft.data.sources import EMBEDDED_FILES
from alpacare_sft.errors import RunError
from alpacare_sft.model.adapter import has_effect
from alpacare_sft.recipe.document import dump_yaml
from alpacare_sft.recipe.resolved import recipe_document
from alpacare_sft.reporting.card import format_card
from alpacare_sft.reporting.evidence import Evidence, pinned_recipe
from alpacare_sft.reporting.licenses import base_license
from alpacare_sft.run.directory import WEIGHTS, RunDirectory, last_name

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
ALLOWED = frozenset(
    {
        "README.md",
        "adapter_config.json",
        WEIGHTS,
        "recipe.yaml",
        "run.json",
        "scores.json",
        NOTICE,
        LICENSE,
        *TOKENIZER,
        *ROWS,
    }
)
_RECORD = (
    *(
        "status",
        "recipe_sha256",
        "data_sha256",
        "data_commit",
        "versions",
        "earlier_versions",
        "git_commit",
        "hardware",
        "precision",
    ),
    *("seed", "base_model", "end_token_ids", "rows", "tokens", "parameters", "train", "seconds"),
)
_SCORES = (
    *("n", "source", "limit", "complete", "rows", "metrics", "verdict", "intervals", "near_duplicates", "model"),
    *("beyond_context", "unseen"),
    *("generate", "seed", "seconds", "versions", "recipe_sha256", "data_sha256", "hardware", "notice"),
    "versions_since_training",
)
_REASONS = {
    "checkpoints": "only needed to go on with the training",
    "data": "text of rows (hub.include_rows publishes data/report.html)",
    "eval": "text of rows (hub.include_rows publishes eval/report.html and eval/predictions.jsonl)",
    "training.html": "the model card has its numbers",
}
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
    evidence = dataclasses.replace(evidence, record={**evidence.record, "base_model": base})
    known = base_license(evidence.record["base_model"]["name"], recipe.hub.license)
    files: dict[str, bytes | Path] = {
        "README.md": format_card(recipe, evidence).encode(),
        "adapter_config.json": _adapter_config(run, evidence.record),
        WEIGHTS: run.adapter / WEIGHTS,
        "recipe.yaml": _recipe_text(pinned_recipe(recipe, evidence.record)).encode(),
        "run.json": _json(without_places({key: evidence.record[key] for key in _RECORD if key in evidence.record})),
    }
    for name in TOKENIZER:
        path = run.adapter / name
        if path.is_file():
            files[name] = _json(_tokenizer_config(path)) if name == "tokenizer_config.json" else path
    if evidence.scores:
        files["scores.json"] = _json(
            without_places({key: evidence.scores[key] for key in _SCORES if key in evidence.scores})
        )
    if known and known.notice:
        files[NOTICE] = f"{known.notice}\n\nThe licence: {known.page}\n".encode()
        if license_copy:
            files[LICENSE] = license_copy
    if recipe.hub.include_rows:
        files |= {name: run.path / name for name in ROWS if (run.path / name).is_file() and _is_own(name, evidence)}
    publication = Publication(dict(sorted(files.items())), list(_kept_back(run, files)))
    _check_places(publication, run)
    return publication


def check_weights(path: Path) -> None:
    """Refuse weights that are no LoRA, not numbers, or never learnt.

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
        if "lora_" not in name and not name.endswith(".bias"):
            raise RunError(f"{path} holds {name}, which is not a LoRA weight. Publish an adapter of LoRA weights only.")
        if not bool(torch.isfinite(value).all()):
            raise RunError(f"{path}: {name} holds values that are not finite. Train again with a lower learning rate.")
    if not any(bool(value.any()) for name, value in weights.items() if has_effect(name)):
        raise RunError(f"{path} learnt nothing: every lora_B is zero. Check train.learning_rate and train again.")


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
    names = [_public_entry(entry) for entry in (path if isinstance(path, list) else [path])]
    document["data"]["path"] = names if isinstance(path, list) else names[0]
    if "judge" in document["evaluate"]:
        document["evaluate"]["judge"] = None
    document["output_dir"] = f"runs/{recipe.output_dir.resolve().name}"
    return dump_yaml(document)


def _public_entry(entry: Any) -> Any:
    """An entry of `data.path` without the folders of a local file."""
    is_public = not isinstance(entry, str) or entry in EMBEDDED_FILES or hub_datasets(entry)
    return entry if is_public else last_name(entry)


def _adapter_config(run: RunDirectory, record: Mapping[str, Any]) -> bytes:
    config = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = record["base_model"]
    return _json(without_places({**config, "base_model_name_or_path": base["name"], "revision": base["revision"]}))


def _tokenizer_config(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_text(encoding="utf-8"))
    return {
        key: value for key, value in config.items() if key not in ("name_or_path", "tokenizer_file", "local_files_only")
    }


def _is_own(name: str, evidence: Evidence) -> bool:
    """Answers of another adapter are not published with this one."""
    return evidence.scores is not None or not name.startswith("eval/")


def _kept_back(run: RunDirectory, files: Mapping[str, bytes | Path]) -> Iterator[tuple[str, str]]:
    published = {content for content in files.values() if isinstance(content, Path)}
    remade = {run.adapter / name for name in files} | {run.recipe, run.record}
    if "scores.json" in files:
        remade.add(run.path / "eval" / "scores.json")
    for top in sorted(path for path in run.path.iterdir() if not path.name.startswith(".")):
        left = sorted({top, *top.rglob("*")} - published - remade)
        left = [path for path in left if path.is_file()]
        if top == run.adapter:
            yield from ((f"adapter/{path.relative_to(top)}", "not on the list of files to publish") for path in left)
        elif left:
            named = f"{top.name}/" if top.is_dir() else top.name
            yield (
                f"{named}{f' ({len(left)} files)' if top.is_dir() else ''}",
                _REASONS.get(top.name, "not on the list of files to publish"),
            )


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
        found = [what for what, secret in hidden.items() if len(secret) > 1 and secret.encode() in text]
        found += ["a token of the Hub"] if _TOKEN.search(text) else []
        if found:
            raise RunError(
                f"{name} would publish {found[0]}. Take it out of the recipe, or set hub.include_rows: false."
            )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
