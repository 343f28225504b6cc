"""A mapping → a `Recipe`, with all faults at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alpacare_sft.errors import Fault, RecipeError
from alpacare_sft.recipe import rules, sections
from alpacare_sft.recipe.document import apply_overrides, parse_overrides, read_document
from alpacare_sft.recipe.keys import dotted, known_keys, plain_value, section_types
from alpacare_sft.recipe.names import expand
from alpacare_sft.recipe.validation import validate
from alpacare_sft.runtime import prepared_process

if TYPE_CHECKING:
    from alpacare_sft.recipe.upstream_sections import LoraSection, TrainSection


@dataclass(kw_only=True)
class Recipe:
    """Everything that a run is made of, checked.

    `train` and `lora` hold every argument of the installed `trl.SFTConfig` and `peft.LoraConfig`; these
    are built when the hardware is known (`training.config.build_sft_config`).
    """

    model: sections.ModelSection
    data: sections.DataSection
    prompt: sections.PromptSection
    lora: LoraSection
    train: TrainSection
    early_stopping: sections.EarlyStoppingSection
    forward: sections.ForwardSection
    checkpoints: sections.CheckpointsSection
    generate: sections.GenerateSection
    evaluate: sections.EvaluateSection
    safety: sections.SafetySection
    hub: sections.HubSection
    output_dir: Path
    resume: Literal["auto", "never"]
    notes: list[str] = field(default_factory=list, compare=False)
    """What loading decided beside the recipe's words, for a person to read."""
    document: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The file after overrides: the keys that were given, and no defaults."""
    loaded: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """`values()` as they were made from `document`; what differs now was set in Python since."""

    def __post_init__(self) -> None:
        if not self.loaded:
            self.loaded = self.values()

    def values(self) -> dict[str, dict[str, Any]]:
        """Section → key → value as YAML and JSON hold them; all keys that a recipe may hold, defaults included."""
        return {
            name: {
                key: plain_value(value)
                for key, value in vars(getattr(self, name)).items()
                if rules.refused_key(name, key) is None
            }
            for name in section_types()
        }

    @property
    def max_length(self) -> int:
        """Most tokens of a row, prompt and answer; a recipe cannot leave it open (`rules.bound_faults`)."""
        assert self.train.max_length is not None
        return self.train.max_length

    @property
    def evaluates_during_training(self) -> bool:
        """Whether the validation loss is computed while training."""
        return self.train.eval_strategy != "no"


@prepared_process()
def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: the YAML file.
        overrides: command-line words such as `["--train.learning_rate", "1e-4"]`.

    Raises:
        RecipeError: with all faults, each naming its key.
    """
    path = Path(path)
    document, faults = read_document(path)
    faults += apply_overrides(document, list(parse_overrides(overrides)))
    return recipe_from_document(document, source=str(path), faults=faults)


@prepared_process()
def recipe_from_document(document: dict[str, Any], source: str = "", faults: Sequence[Fault] = ()) -> Recipe:
    """Check a mapping of sections and make a `Recipe` of it.

    Raises:
        RecipeError: with all faults.
    """
    given = {key: {} if value is None and key in section_types() else value for key, value in document.items()}
    document = _without_removed_keys(given)
    values, invalid = validate(document)
    reported = [*faults, *(fault for fault in invalid if fault.key not in {one.key for one in faults})]
    if reported or values is None:
        wrong = {fault.key for fault in reported}
        across = (fault for fault in _faults_of_the_rest(document, wrong) if fault.key not in wrong)
        raise RecipeError([*reported, *across], source)
    notes = _settle(values)
    if faults := list(_faults_across_keys(values)):
        raise RecipeError(faults, source)
    values["output_dir"] = expand(values["output_dir"])
    return Recipe(**values, notes=notes, document=given)


def _without_removed_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document less the keys that the run in `output_dir` was given and that TRL and PEFT have no more.

    A finished run needs no value for them, training refuses them (`resolved.refuse_removed_keys`).
    """
    unknown = [
        (section, key)
        for section in ("train", "lora")
        for key in (document[section] if isinstance(document.get(section), Mapping) else ())
        if f"{section}.{key}" not in known_keys() and rules.refused_key(section, str(key)) is None
    ]
    if not unknown or not isinstance(document.get("output_dir"), str):
        return document
    try:
        given, _ = read_document(expand(document["output_dir"]) / "recipe.yaml")
    except RecipeError:
        return document
    removed = [(section, key) for section, key in unknown if key in (given.get(section) or ())]
    return {
        section: {key: value for key, value in values.items() if (section, key) not in removed}
        if section in ("train", "lora") and isinstance(values, Mapping)
        else values
        for section, values in document.items()
    }


def _faults_across_keys(values: Mapping[str, Any]) -> Iterator[Fault]:
    train, lora, data, evaluate = vars(values["train"]), vars(values["lora"]), values["data"], values["evaluate"]
    yield from rules.bound_faults(train, lora)
    yield from rules.target_faults(lora)
    yield from rules.forward_faults(values["forward"].rows, train)
    yield from rules.evaluation_faults(train, bool(data.splits.validation))
    yield from rules.judge_faults(evaluate.judge, evaluate.baseline, evaluate.metrics)
    yield from rules.safety_faults(values["safety"].disclaimer)
    yield from rules.combination_faults(train, data, values["prompt"], evaluate.metrics)


def _faults_of_the_rest(document: Mapping[str, Any], wrong: Collection[str]) -> Iterator[Fault]:
    """Faults across keys of a recipe with wrong keys: those of the document without them."""
    rest: dict[str, Any] = {"model": {"model_name_or_path": "x"}, "data": {"path": "x"}, "output_dir": "x"}
    right = known_keys().keys() - set(wrong)
    apply_overrides(rest, [(key, value) for key, value in dotted(document).items() if key in right])
    values, _ = validate(rest)
    if values is not None:
        yield from _faults_across_keys(values)


def _settle(values: Mapping[str, Any]) -> list[str]:
    """Let keys that follow from others follow them, in place; what was decided, in words."""
    train, stopping = values["train"], values["early_stopping"]
    if train.eval_strategy != "no":
        if not stopping.patience or train.load_best_model_at_end:
            return []
        train.load_best_model_at_end = True
        return ["early_stopping.patience is set: train.load_best_model_at_end turned on with it."]
    off = []
    if train.load_best_model_at_end:
        train.load_best_model_at_end = False
        off.append("loading the best checkpoint")
    if stopping.patience:
        stopping.patience = 0
        off.append("early stopping")
    return [f"train.eval_strategy is no: {' and '.join(off)} turned off with it."] if off else []
