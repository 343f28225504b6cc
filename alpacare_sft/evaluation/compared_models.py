"""The two models of an evaluation: the base, then the same weights with the adapter in them."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.model.adapter import answer_logits, attach_adapter, find_adapter, merge_adapter, other_base
from alpacare_sft.model.base import context_tokens, load_base_model, load_tokenizer
from alpacare_sft.run.directory import adapter_sha256
from alpacare_sft.runtime import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.run.directory import RunDirectory

# Where merging loses more of what the adapter does, it stays beside the weights, slower and exact.
LOST_AT_MOST = 0.1


class ComparedModels:
    """One copy of the weights, loaded when first asked for: the base before its adapter is merged into it.

    Attributes:
        tokenizer: of both.
        context_tokens: that both have positions for, or None if they state no limit.

    Args:
        trained: the recipe that the adapter was trained by.
        recipe: the one given now, for the device and its precision.
        run: of the adapter.
        adapter: a directory or Hub repository in the place of the run's own.
        same_base: take the base that `adapter` names for the run's.
    """

    def __init__(
        self, trained: Recipe, recipe: Recipe, run: RunDirectory, adapter: str | None = None, same_base: bool = False
    ) -> None:
        self._identity: dict[str, Any] = run.read_record()["base_model"]
        revision = self._identity["revision"] or trained.model.model_revision  # the commit, if the base has one
        self._section = dataclasses.replace(trained.model, dtype="auto", model_revision=revision)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self._section)
        self.context_tokens = context_tokens(self._section)
        self._asked = adapter
        self._use_cpu = recipe.train.use_cpu
        # The hardware's own, whatever the training used: an adapter made on a GPU can be scored without one.
        self._dtype = runtime.resolve_precision(dataclasses.replace(recipe.train, fp16=False, bf16=None)).dtype
        self._folder, self._other_base = run.adapter, None
        if adapter:
            self._folder = find_adapter(adapter)
            self._other_base = other_base(adapter, self._folder, self._identity["name"], same_base)
        if self._other_base:
            say(f"--same-base: {self._other_base}, which {adapter} names, is taken for {self._identity['name']}.")
        self._model: PreTrainedModel | None = None

    def base(self) -> PreTrainedModel:
        """The base in the precision of this machine, on its GPU if there is one; not after `with_adapter`."""
        if self._model is None:
            model = load_base_model(self._section, self._dtype)
            if not self._section.quantization:
                model = model.to("cuda" if runtime.has_gpu(self._use_cpu) else "cpu")
            self._model = model.eval()
        return self._model

    def with_adapter(self, rows: Sequence[Mapping[str, Any]]) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model with its adapter, merged where that keeps it.

        Args:
            rows: encoded, a few of which are read before and after merging.

        Returns:
            The model; and `merged`, with `merge_check` (see `merge_adapter`) where merging was tried.
        """
        if self._section.quantization:  # merging would round the adapter away
            return self.with_adapter_attached(), {"merged": False}
        base = answer_logits(self.base(), rows)
        merged, check = merge_adapter(self.with_adapter_attached(), rows, base)
        if check["lost_share"] is not None and check["lost_share"] <= LOST_AT_MOST:
            return merged, {"merged": True, "merge_check": check}
        del merged
        self._model = None  # freed before the base is loaded anew
        gc.collect()
        return self.with_adapter_attached(), {"merged": False, "merge_check": check}

    def with_adapter_attached(self) -> PreTrainedModel:
        """The base with its adapter beside the weights: exact in every precision, and slower."""
        return attach_adapter(self.base(), self._folder)

    def describe(self) -> dict[str, Any]:
        """Base, adapter and precision, for a record."""
        return {
            **self._identity,
            "adapter": self._asked or "adapter",
            "adapter_sha256": adapter_sha256(self._folder),
            **({"adapter_base": self._other_base} if self._other_base else {}),  # said to be the same by --same-base
            "precision": self._dtype,
        }
