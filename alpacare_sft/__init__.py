"""Declarative supervised fine-tuning of small instruct models on medical instructions.

A recipe (one YAML file) goes in; a cleaned and split data set, a LoRA adapter trained on answers
only, scores on held-out rows with their uncertainty, and a record of it all come out.

    from alpacare_sft import load_recipe, train, evaluate
    recipe = load_recipe("recipes/demo.yaml")
    train(recipe)
    evaluate(recipe)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AlpacareError": "errors",
    "DataError": "errors",
    "ModelError": "errors",
    "Recipe": "recipe.loading",
    "RecipeError": "errors",
    "RunError": "errors",
    "StoppedError": "errors",
    "ask": "evaluation.ask",
    "evaluate": "evaluation.evaluate",
    "load_recipe": "recipe.loading",
    "load_tokenizer": "model.base",
    "prepare_data": "data.prepare",
    "push": "hub.push",
    "review_answers": "review.summary",
    "train": "training.train",
}
__all__ = sorted([*_HOMES, "__version__"])

if TYPE_CHECKING:
    from alpacare_sft.data.prepare import prepare_data as prepare_data
    from alpacare_sft.errors import AlpacareError as AlpacareError
    from alpacare_sft.errors import DataError as DataError
    from alpacare_sft.errors import ModelError as ModelError
    from alpacare_sft.errors import RecipeError as RecipeError
    from alpacare_sft.errors import RunError as RunError
    from alpacare_sft.errors import StoppedError as StoppedError
    from alpacare_sft.evaluation.ask import ask as ask
    from alpacare_sft.evaluation.evaluate import evaluate as evaluate
    from alpacare_sft.hub.push import push as push
    from alpacare_sft.model.base import load_tokenizer as load_tokenizer
    from alpacare_sft.recipe.loading import Recipe as Recipe
    from alpacare_sft.recipe.loading import load_recipe as load_recipe
    from alpacare_sft.review.summary import review_answers as review_answers
    from alpacare_sft.training.train import train as train


def __getattr__(name: str) -> Any:
    """Public names on their first use: importing torch takes seconds, `--help` does not need it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with import_module(f"{__name__}.runtime").prepared_process():  # libraries read variables and print at import
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
