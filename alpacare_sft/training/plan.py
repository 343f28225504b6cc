"""What a recipe will need before it runs: memory, steps, tokens, disk and time; no weights and no GPU."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.errors import RecipeError
from alpacare_sft.model.base import check_context, enable_checkpointing, load_config, load_tokenizer
from alpacare_sft.model.cost import Cost, trace_layers
from alpacare_sft.recipe.keys import plain_value
from alpacare_sft.training.config import build_lora_config

if TYPE_CHECKING:
    from alpacare_sft.data.prepare import PreparedData
    from alpacare_sft.recipe.loading import Recipe


@dataclass(frozen=True)
class Target:
    """Where a recipe is to run; of a card its dense half-precision operations by the data sheet, without sparsity."""

    name: str
    memory_bytes: int
    is_gpu: bool
    tflops: float | None = None


CARDS = {  # with the memory that torch reports, in GiB
    key: Target(name, int(gib * 2**30), is_gpu=True, tflops=tflops)
    for key, name, gib, tflops in (
        ("t4", "NVIDIA T4", 14.6, 65),
        ("l4", "NVIDIA L4", 22.0, 121),
        ("a10", "NVIDIA A10", 22.0, 125),
        ("a100-40", "NVIDIA A100 40 GB", 39.4, 312),
        ("a100-80", "NVIDIA A100 80 GB", 79.1, 312),
        ("h100", "NVIDIA H100 80 GB", 79.1, 989),
    )
}
# Share of the data sheet that a training reaches. On a T4 cuBLAS sustains 24 to 27 of 65 TFLOPS at its 70 W, and the
# published run of the reference recipe reached 7.
_RATES = (0.11, 0.38)
_CONTEXT_BYTES = 600 * 2**20  # CUDA's context and the libraries' work space, which torch does not count
# The C library keeps what tensors freed in a heap that fragments: measured, up to 1.6 times what is alive.
_HEAP = 1.6
_LOGITS_BYTES = 4  # float32
_TILE_BYTES = 512 * 2**20  # at most; trl 1.16 scores the answers of a CUDA device in tiles of tokens and vocabulary
# Bytes that the optimizer keeps for each trained parameter, by a part of its name; AdamW has two moments in float32.
_OPTIMIZERS = {"8bit": 2, "adafactor": 4, "sgd": 0}
_MEASURED_SECONDS = 30


def find_target(gpu: str | None, use_cpu: bool = False) -> Target:
    """The card that `--gpu` names, or this machine; `use_cpu` leaves its card out.

    Raises:
        RecipeError: if it is neither a card of the list nor a number of GiB.
    """
    import psutil
    import torch

    if gpu in CARDS:
        return CARDS[gpu]
    if gpu is not None:
        try:
            gib = float(gpu)
        except ValueError:
            gib = math.nan
        if not 0 < gib < math.inf:
            raise RecipeError(f"--gpu must be one of {', '.join(CARDS)} or a number of GiB, got {gpu}.")
        return Target(f"a GPU with {gib:g} GiB", int(gib * 2**30), True)
    if runtime.has_gpu(use_cpu):
        return Target(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory, True)
    return Target("this machine, without a GPU", psutil.virtual_memory().available, False)


class Plan:
    """Estimates for a recipe on a target; each trace of the model takes up to a second and is made once.

    Args:
        recipe: that is to be trained.
        target: where.
        data: its rows; by default they are prepared.
    """

    def __init__(self, recipe: Recipe, target: Target, data: PreparedData | None = None) -> None:
        import pyarrow.compute

        self.recipe, self.target = recipe, target
        self.config = load_config(recipe.model)
        self.sizes = self.config.get_text_config()
        check_context(recipe.model, recipe.max_length)
        self.data: PreparedData = data or prepare_data(recipe, load_tokenizer(recipe.model))
        split = self.data.splits["train"]
        ids = split.with_format("arrow")["input_ids"]  # a list a row would take a minute for a million rows
        self.lengths: list[int] = pyarrow.compute.list_value_length(ids).to_pylist()
        self.longest = max(self.lengths)
        self.lora = build_lora_config(recipe)
        # tokens after the prompt: those in the loss
        self.answers = [length - prompt for length, prompt in zip(self.lengths, split["prompt_tokens"], strict=True)]
        self._costs: dict[tuple[int, bool, int], Cost] = {}

    @cached_property
    def dtype(self) -> str:
        """Of the frozen weights: the recipe's, or what the target's precision needs."""
        given = self.recipe.model.dtype
        return ("float16" if self.half else "float32") if given == "auto" else given

    @cached_property
    def half(self) -> bool:
        """Whether products run in half precision: on a GPU, unless the recipe says no to both."""
        train = self.recipe.train
        return self.target.is_gpu and not (train.fp16 is False and train.bf16 is False)

    def cost(self, rows: int, checkpointing: bool, tokens: int) -> Cost:
        """The layers' cost; memory grows with the rows by what the second and third row of a batch add."""
        if rows > 3:
            two, three = (self.cost(number, checkpointing, tokens) for number in (2, 3))
            return dataclasses.replace(
                three,
                **{
                    name: getattr(three, name) + (rows - 3) * (getattr(three, name) - getattr(two, name))
                    for name in ("saved_bytes", "peak_bytes", "operations")
                },
            )
        key = (rows, checkpointing, tokens)
        if key not in self._costs:
            self._costs[key] = trace_layers(
                self.config,
                self.lora,
                rows,
                tokens,
                dtype=self.dtype,
                half=self.half,
                checkpointing=checkpointing,
            )
        return self._costs[key]

    def training(
        self, rows: int, checkpointing: bool | None = None, max_length: int | None = None, nf4: bool | None = None
    ) -> dict[str, Any]:
        """Bytes of a training step with the longest rows, by part, and the peak."""
        checkpointing = self.checkpointing if checkpointing is None else checkpointing
        longest = min(self.longest, max_length or self.recipe.max_length)
        cost = self.cost(rows, checkpointing, longest)
        weights = self._weights_bytes(cost, bool(self.recipe.model.quantization) if nf4 is None else nf4)
        adapter = 4 * cost.trained_parameters
        optim = str(plain_value(self.recipe.train.optim))
        moments = next((size for name, size in _OPTIMIZERS.items() if name in optim), 8) * cost.trained_parameters
        head = self._head_bytes(rows * min(max(self.answers), longest))
        in_backward = {"activations": cost.peak_bytes, "head": 0}
        at_head = {"activations": cost.saved_bytes, "head": head}  # scored when the forward is done
        active = max(in_backward, at_head, key=lambda parts: sum(parts.values()))
        parts = {"weights": weights, "adapter": adapter, "gradients": adapter, "optimizer": moments, **active}
        return {"rows_per_forward": rows, **self._judged(parts)}

    @property
    def checkpointing(self) -> bool:
        """Whether the recipe computes activations again in the backward."""
        given = self.recipe.train.activation_checkpointing  # as `config.build_sft_config` decides
        return getattr(self.recipe.train, "gradient_checkpointing", False) if given is None else given

    def _weights_bytes(self, cost: Cost, nf4: bool) -> int:
        """Of nf4: four bits a weight and, quantized twice, an eighth of a bit a weight of scales (peft's QLoRA)."""
        if not nf4:
            return cost.weights_bytes
        size = 2 if self.dtype != "float32" else 4
        return cost.weights_bytes - cost.linear_bytes + int(cost.linear_bytes / size * (0.5 + 0.127 / 8))

    def _head_bytes(self, answer_tokens: int) -> int:
        logits: int = answer_tokens * self.sizes.vocab_size * _LOGITS_BYTES
        return min(logits, _TILE_BYTES) if self.target.is_gpu else logits

    def _judged(self, parts: dict[str, int]) -> dict[str, Any]:
        """Parts with their peak, and whether it fits."""
        variable = parts.get("activations", 0) + parts.get("head", 0) + parts.get("cache", 0)
        extra = _CONTEXT_BYTES if self.target.is_gpu else int((_HEAP - 1) * variable)
        name = "CUDA context" if self.target.is_gpu else "heap"
        peak = sum(parts.values()) + extra
        margin = self.target.memory_bytes - peak
        return {"parts": {**parts, name: extra}, "peak_bytes": peak, "margin_bytes": margin, "fits": margin >= 0}

    def evaluation(self) -> dict[str, Any]:
        """Bytes of answering the longest test prompts in one batch."""
        rows, new = self.recipe.generate.batch_size, self.recipe.generate.max_new_tokens
        prompts = self.data.splits["test"]["prompt_tokens"] if "test" in self.data.splits else []
        longest = max(prompts, default=self.recipe.max_length)
        one = trace_layers(self.config, None, 2, longest, dtype=self.dtype)
        cache = int(one.saved_bytes / 2 * rows * (longest + new) / longest)
        logits = 2 * rows * self.sizes.vocab_size * _LOGITS_BYTES
        active = int((one.peak_bytes - one.saved_bytes) / 2 * rows)
        weights = self._weights_bytes(one, bool(self.recipe.model.quantization))
        parts = {"weights": weights, "cache": cache, "activations": active, "head": logits}
        return {"rows": rows, "tokens": longest + new, **self._judged(parts)}

    @cached_property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step."""
        return self.recipe.train.per_device_train_batch_size * self.recipe.train.gradient_accumulation_steps

    def settings(self) -> list[dict[str, Any]]:
        """Training with each number of rows a forward that keeps the optimizer step."""
        most = min(self.rows_per_step, max(32, self.recipe.train.per_device_train_batch_size))
        return [self.training(rows) for rows in range(1, most + 1) if self.rows_per_step % rows == 0]

    def change_that_fits(self) -> str | None:
        """The first single change that fits, cheapest first: overrides of the command line; None if none does."""
        rows = self.recipe.train.per_device_train_batch_size
        fewer = [one["rows_per_forward"] for one in self.settings() if one["fits"] and one["rows_per_forward"] < rows]
        if fewer:
            parts = self.rows_per_step // max(fewer)
            return f"--train.per_device_train_batch_size {max(fewer)} --train.gradient_accumulation_steps {parts}"
        if not self.checkpointing and self.training(rows, checkpointing=True)["fits"]:
            return "--train.activation_checkpointing true"
        for max_length in (self.recipe.max_length // 2, self.recipe.max_length // 4):
            if self.training(rows, max_length=max_length)["fits"]:
                return f"--train.max_length {max_length}"
        if self.target.is_gpu and not self.recipe.model.quantization and self.training(rows, nf4=True)["fits"]:
            return "--model.quantization nf4"
        return None

    def refuse_what_cannot_fit(self) -> None:
        """Refuse a run that has no room for one row a forward with activation checkpointing, its last resort.

        Raises:
            RecipeError: with the need, the room, and a change that fits.
        """
        least = self.training(1, checkpointing=True)
        if least["fits"] or getattr(self.config, "quantization_config", None):  # whose weights are fewer bytes
            return
        need, room = (number / 2**30 for number in (least["peak_bytes"], self.target.memory_bytes))
        change = self.change_that_fits()
        remedy = f"Add {change}" if change else "Choose a smaller model, or a larger card"
        raise RecipeError(
            f"{self.recipe.model.model_name_or_path} needs {need:.1f} GiB to be trained on rows of {self.longest} "
            f"tokens, one a forward and with activation checkpointing; {self.target.name} has {room:.1f} GiB. "
            f"{remedy}, or try it with --force."
        )

    def most_tokens(self) -> int:
        """Tokens of a forward that there is room for, by what one row of the longest takes."""
        one = self.training(1)
        row = (one["parts"]["activations"] + one["parts"]["head"]) * (1 if self.target.is_gpu else _HEAP)
        return int((one["margin_bytes"] + row) / row * self.longest)

    def steps(self) -> dict[str, int]:
        """Optimizer steps and tokens."""
        train, num_rows = self.recipe.train, len(self.lengths)
        epoch = math.ceil(num_rows / self.rows_per_step)
        total = train.max_steps if train.max_steps > 0 else math.ceil(epoch * train.num_train_epochs)
        tokens = sum(self.lengths)
        return {"steps_per_epoch": epoch, "tokens_per_epoch": tokens, "steps": total, "tokens": tokens * total // epoch}

    def operations(self) -> int:
        """Floating-point operations of the whole training, by the mean length of its rows."""
        mean = max(1, round(sum(self.lengths) / len(self.lengths)))
        layers = self.cost(1, self.checkpointing, mean).operations / mean * sum(self.lengths)
        head = 4 * sum(self.answers) * self.sizes.hidden_size * self.sizes.vocab_size  # forward, and to the hidden
        steps = self.steps()
        return int((layers + head) * steps["steps"] / steps["steps_per_epoch"])

    def checkpoint_bytes(self) -> int:
        """A checkpoint on disk: adapter and moments, in float32."""
        return 12 * self.cost(1, self.checkpointing, self.longest).trained_parameters

    def measured_tokens_per_second(self) -> float:
        """Real steps for half a minute, on random weights of the configuration, on this machine."""
        import torch
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        device = torch.device("cuda" if runtime.has_gpu() else "cpu")
        runtime.set_threads()
        dtype = getattr(torch, self.dtype if device.type == "cuda" else "float32")
        model = AutoModelForCausalLM.from_config(self.config, dtype=dtype, trust_remote_code=False).to(device)
        model = get_peft_model(model, self.lora).train()
        if self.checkpointing:
            enable_checkpointing(model)
        rows = self.recipe.train.per_device_train_batch_size
        length = max(2, round(sum(self.lengths) / len(self.lengths)))
        answer = max(1, round(sum(self.answers) / len(self.answers)))
        ids = torch.randint(self.sizes.vocab_size, (rows, length), device=device)
        tokens, begun, seconds = 0, 0.0, 0.0
        while seconds < _MEASURED_SECONDS:
            with torch.autocast(device.type, enabled=device.type == "cuda" and self.half):
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=answer).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, -answer:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            model.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if begun:  # the first step allocates
                tokens += rows * length
            begun = begun or time.perf_counter()
            seconds = time.perf_counter() - begun
        return tokens / seconds


@runtime.prepared_process()
def plan_run(recipe: Recipe, gpu: str | None = None, measure: bool = False) -> dict[str, Any]:
    """Estimate what a recipe needs.

    Args:
        recipe: its model's configuration and tokenizer, and its rows, must be at hand.
        gpu: a card of `CARDS`, a number of GiB, or None for this machine.
        measure: time real steps on this machine.

    Returns:
        `target`, `training` (one entry for each number of rows a forward), `evaluation`, `steps`, `checkpoint_bytes`,
        `seconds` of training (low and high, or None) with their `basis`, and `change` that fits. Bytes and seconds.

    Raises:
        RecipeError: if `gpu` names nothing.
        DataError, ModelError: if rows, tokenizer or configuration cannot be had.
    """
    target = find_target(gpu)
    plan = Plan(recipe, target)
    settings = plan.settings()
    rows = recipe.train.per_device_train_batch_size
    own = next(one for one in settings if one["rows_per_forward"] == rows)
    steps, seconds, basis = plan.steps(), None, "unknown"
    if measure:
        speed = plan.measured_tokens_per_second()
        seconds, basis = [steps["tokens"] / speed] * 2, "measured here on random weights"
    elif target.tflops:
        rates = [share * target.tflops * 1e12 for share in _RATES]
        seconds, basis = [plan.operations() / rate for rate in reversed(rates)], "modelled"
    return {
        "target": dataclasses.asdict(target),
        "model": recipe.model.model_name_or_path,
        "precision": "half" if plan.half else "float32",
        "rows_per_forward": rows,
        "longest_row_tokens": plan.longest,
        "training": settings,
        "fits": own["fits"],
        "change": None if own["fits"] else plan.change_that_fits(),
        "evaluation": plan.evaluation(),
        **steps,
        "operations": plan.operations(),
        "checkpoint_bytes": plan.checkpoint_bytes(),
        "seconds": seconds,
        "basis": basis,
    }
