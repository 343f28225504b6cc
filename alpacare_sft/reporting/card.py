"""The model card: what an adapter is, what was measured, what it is not for; every number is one of the record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alpacare_sft import __version__
from alpacare_sft.model.prompt import format_sections
from alpacare_sft.recipe.names import (
    COMMIT,
    EMBEDDED,
    EMBEDDED_FILES,
    EMBEDDED_NAME,
    DataPath,
    hub_datasets,
    is_path,
    path_entries,
)
from alpacare_sft.reporting.evidence import Evidence, pinned_recipe, read_evidence
from alpacare_sft.reporting.licenses import adapter_license, base_license, data_license
from alpacare_sft.reporting.pages import SPLITS, STEPS, cleaning_notes, looked_at
from alpacare_sft.run.directory import RunDirectory, last_name, write_text

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.recipe.sections import HubDataset

TAG = "alpacare_sft"
PLACEHOLDER = "owner/name"
# What of `train` a reader needs to judge a run, in the order of the table.
_SHOWN = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "max_length", "packing", "activation_checkpointing"),
)


def save_card(run: RunDirectory, recipe: Recipe) -> str:
    """Write `adapter/README.md` from what the run holds by now; the text.

    Args:
        run: with an adapter and its record.
        recipe: that it was trained by; its sections `hub` and `safety` may be those of another.
    """
    text = format_card(recipe, read_evidence(run))
    write_text(run.adapter / "README.md", text)
    return text


def format_card(recipe: Recipe, evidence: Evidence) -> str:
    """Markdown with the Hub's metadata at its top.

    Args:
        recipe: that the adapter was trained by, with the sections `hub` and `safety` to publish by.
        evidence: what the run's directory says; what it lacks the card leaves out or says to be missing.
    """
    metadata = card_metadata(pinned_recipe(recipe, evidence.record), evidence)
    return render_markdown("card.md", metadata=metadata, **card_facts(recipe, evidence))


def card_facts(recipe: Recipe, evidence: Evidence) -> dict[str, Any]:
    """What the templates of the model card and of the report in eight sections show; see `format_card`."""
    recipe = pinned_recipe(recipe, evidence.record)
    base, datasets = evidence.record["base_model"], hub_datasets(recipe.data.path, recipe.data.revision)
    names = dict.fromkeys(dataset.path for dataset in datasets)
    commits = [str(dataset.revision) for dataset in datasets if dataset.revision]
    return dict(
        recipe=recipe,
        record=evidence.record,
        report=evidence.report,
        scores=evidence.scores,
        answered=_has_answers(evidence.scores or {}),
        scored=[] if evidence.scores is None else list(_score_rows(evidence.scores["metrics"])),
        funnel=list(_funnel(evidence.report)),
        notes=cleaning_notes(evidence.report),
        settings=dict(_settings(recipe)),
        repo_id=recipe.hub.repo_id or PLACEHOLDER,
        base=base,
        base_link=_link(base["name"]),
        repacked=base["name"] == EMBEDDED_NAME and recipe.model.model_name_or_path == EMBEDDED,
        base_license=base_license(base["name"], recipe.hub.license),
        license=adapter_license(base["name"], recipe.hub),
        rows_from=_source(recipe),
        datasets=names,
        dataset_links=", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in names),
        data_commit=", ".join(dict.fromkeys(commits)) if len(commits) == len(datasets) else "",
        local_rows=len(datasets) + _num_packaged(recipe.data.path) < len(path_entries(recipe.data.path)),
        pinned=" and ".join(_pinned(recipe)),
        targets=_targets(recipe),
        confidence=_confidence(evidence.scores),
        data_license=data_license(recipe.data.path, recipe.hub),
        prompt=format_sections("{instruction}", "{input}", recipe.prompt.system).rstrip("\n"),
        code_prompt=format_sections("What helps with a cold?", "", recipe.prompt.system),
        ends=evidence.record.get("end_token_ids"),
        notice=" ".join(recipe.safety.disclaimer.split()),
        version=__version__,
    )


def render_markdown(template: str, **context: Any) -> str:
    """The Markdown that a template of `templates/` makes; what is missing is empty."""
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("alpacare_sft.reporting"),
        autoescape=False,  # Markdown, not HTML  # nosec B701
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(count=_count, cell=_cell, literal=_literal, interval=_interval)
    return environment.get_template(template).render(context)


def _pinned(recipe: Recipe) -> Iterator[str]:
    """What of a recipe is named by its commit."""
    if COMMIT.fullmatch(recipe.model.model_revision):
        yield "the base model"
    datasets = hub_datasets(recipe.data.path, recipe.data.revision)
    if datasets and all(COMMIT.fullmatch(dataset.revision or "") for dataset in datasets):
        yield "the data set"


def card_metadata(recipe: Recipe, evidence: Evidence) -> str:
    """The YAML between the dashes, as the Hub reads it."""
    from huggingface_hub import ModelCardData

    base = evidence.record["base_model"]["name"]
    datasets = list(dict.fromkeys(dataset.path for dataset in hub_datasets(recipe.data.path)))
    name = (recipe.hub.repo_id or PLACEHOLDER).rpartition("/")[2]
    results = list(_results(recipe, evidence.scores)) if evidence.scores else []
    data = ModelCardData(
        base_model=base,
        base_model_relation="adapter",
        library_name="peft",
        pipeline_tag="text-generation",
        license=adapter_license(base, recipe.hub),
        datasets=datasets or None,
        tags=[TAG, "lora", "sft", "trl", "medical"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _results(recipe: Recipe, scores: Mapping[str, Any]) -> Iterator[Any]:
    """The adapter's means for the Hub's table of results, intervals and the base's in the arguments of each."""
    from huggingface_hub import EvalResult

    datasets = hub_datasets(recipe.data.path, recipe.data.revision)
    dataset = datasets[0] if len(datasets) == len(path_entries(recipe.data.path)) == 1 else None
    for name, metric in scores["metrics"].items():
        side = metric["adapter"]
        if not _is_finite(side["mean"]):
            continue
        told = {key: side[key] for key in ("low", "high", "confidence") if _is_finite(side.get(key))}
        if _is_finite((metric.get("base") or {}).get("mean")):
            told["base"] = metric["base"]["mean"]
        general = name == "general_loss"
        yield EvalResult(
            task_type="text-generation",
            dataset_type="general-rows" if general else dataset.path if dataset else "held-out-rows",
            dataset_name="rows that are not medical, of alpacare_sft"
            if general
            else f"{_source(recipe)}, held-out rows",
            dataset_revision=None if general or dataset is None else dataset.revision,
            metric_type=name,
            metric_name=metric.get("label"),
            metric_value=side["mean"],
            metric_args={**told, "n": metric.get("n", scores["n"])},
        )


def _has_answers(scores: Mapping[str, Any]) -> bool:
    """Whether answers were written for the scores; version 0.1.0 did not say how ROUGE saw them."""
    return bool(scores) and scores.get("rouge", scores["metrics"].get("rougeL")) is not None


def _score_rows(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each score as the report rounds it, the verdict in words."""
    from alpacare_sft.evaluation.intervals import format_interval

    for name, metric in metrics.items():
        sides = {
            who: format_interval(metric[who], "+.3f" if who == "difference" else ".3f") if metric.get(who) else "–"
            for who in ("base", "adapter", "difference")
        }
        yield {"name": name, **sides, **{key: metric.get(key) for key in ("label", "n", "verdict")}}


def _funnel(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each step with the rows left, dropped and changed, in words."""
    rows = report.get("rows") or {}
    if "loaded" not in rows:
        return
    yield {"step": "Rows loaded", "rows": rows["loaded"]}
    for column, count in (rows.get("filled") or {}).items():
        yield {"step": f"Constant {column}", "rows": rows["loaded"], "changed": count}
    for step in report.get("steps") or []:
        label = STEPS.get(step["name"], (step["name"], ""))[0]
        yield {
            "step": label,
            "rows": step["rows_after"],
            "dropped": step.get("dropped"),
            "changed": step.get("changed"),
        }
    if rows.get("dropped_no_answer") is not None:
        left = rows["cleaned"] - rows["dropped_no_answer"]
        label = f"Prompt leaves no room for an answer{looked_at(rows)}"
        yield {"step": label, "rows": left, "dropped": rows["dropped_no_answer"]}
    if rows.get("dropped_too_long"):
        left = rows["kept"] + (rows.get("dropped_held_out") or 0)
        yield {"step": "Longer than the limit", "rows": left, "dropped": rows["dropped_too_long"]}
    if rows.get("dropped_held_out"):
        yield {"step": "Question of a held-out split", "rows": rows["kept"], "dropped": rows["dropped_held_out"]}
    for name, (label, _) in SPLITS.items():
        if name in rows:
            yield {"step": label, "rows": rows[name]}


def _link(name: str) -> str:
    """A model's name with its page, unless it is a directory."""
    return name if is_path(name) else f"[{name}](https://huggingface.co/{name})"


def _settings(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    unused = "max_steps" if recipe.train.max_steps < 0 else "num_train_epochs"  # a number of steps comes first
    for key in _SHOWN:
        value = getattr(recipe.train, key, None)
        if value is not None and key != unused:
            yield key, getattr(value, "value", value)


def _targets(recipe: Recipe) -> str:
    targets = recipe.lora.target_modules
    if targets is None or isinstance(targets, str):
        return targets or "the layers that PEFT chooses"
    return ", ".join(sorted(targets))


def _confidence(scores: Mapping[str, Any] | None) -> str:
    """Level of the intervals, as a percentage."""
    sides = [metric["adapter"] for metric in (scores or {}).get("metrics", {}).values()]
    return next((f"{100 * side['confidence']:g} %" for side in sides if side.get("confidence")), "")


def _num_packaged(path: DataPath) -> int:
    return sum(entry in EMBEDDED_FILES for entry in path_entries(path) if isinstance(entry, str))


def _source(recipe: Recipe) -> str:
    """Where the rows are from: a Hub id, the package, or names of files without their folders."""
    return ", ".join(map(_entry_name, path_entries(recipe.data.path)))


def _entry_name(entry: str | HubDataset) -> str:
    if isinstance(entry, str):
        return entry if hub_datasets(entry) else last_name(entry)
    told = [f"{key} {value}" for key, value in (("configuration", entry.name), ("split", entry.split)) if value]
    return f"{entry.path} ({', '.join(told)})" if told else entry.path


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _interval(part: Any) -> str:
    """A mean with its interval; a dash for none."""
    from alpacare_sft.evaluation.intervals import format_interval

    return format_interval(part, ".2f") if isinstance(part, Mapping) and part.get("mean") is not None else "–"


def _cell(value: Any) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _literal(value: Any) -> str:
    """Text as Python source has it, letters of every script as they are."""
    return json.dumps(value, ensure_ascii=False)
