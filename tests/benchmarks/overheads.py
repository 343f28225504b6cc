"""What a run spends beside its matrix products: validation, checkpoints, scores; and how near a step is to them.

- validation: `evaluate` of the trainer beside a plain forward and loss over the same padded batches
- checkpoints: seconds of one, as a share of 100 optimizer steps
- scores: every score of 100 rows with its intervals, answers being there
- floor: a step's matrix products alone, timed on their shapes in the fastest of the layouts that torch offers

    python tests/benchmarks/overheads.py --rows rows.jsonl --constant "Answer the patient."
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpacare_sft import runtime


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="embedded", help="a rows file in the place of the embedded ones")
    parser.add_argument("--constant", default="", help="instruction for rows without one")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def build(options: argparse.Namespace, folder: str) -> Any:
    """The trainer of the demo's model, two rows a step, 60 validation rows."""
    from alpacare_sft import load_recipe, load_tokenizer, prepare_data
    from alpacare_sft.model.base import load_base_model
    from alpacare_sft.run.directory import RunDirectory
    from alpacare_sft.training.config import build_sft_config, build_trainer

    words = {
        "output_dir": f"{folder}/run",
        "data.path": options.rows,
        "data.splits.train": 60,
        "data.splits.validation": 60,
        "data.splits.test": 1,
        "data.max_dropped_fraction": 1.0,
        "train.max_length": 512,
        "train.per_device_train_batch_size": 1,
        "train.gradient_accumulation_steps": 2,
        "train.eval_strategy": "steps",
        "train.max_steps": 6,
        "train.eval_steps": 100,
        "train.save_steps": 100,
        "train.load_best_model_at_end": "false",
        "early_stopping.patience": 0,
        "lora.lora_dropout": 0.0,
        **({"data.constants.instruction": options.constant} if options.constant else {}),
    }
    overrides = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    recipe = load_recipe("recipes/demo.yaml", overrides)
    precision = runtime.resolve_precision(recipe.train)
    tokenizer = load_tokenizer(recipe.model)
    data = prepare_data(recipe, tokenizer)
    base = load_base_model(recipe.model, precision.dtype)
    config = build_sft_config(recipe, RunDirectory(recipe.output_dir), precision)
    return build_trainer(recipe, config, data, tokenizer, base)


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def time_validation(trainer: Any, repeats: int) -> str:
    import torch
    from torch.nn import functional

    batches = list(trainer.get_eval_dataloader())

    @torch.no_grad()
    def plain() -> None:
        trainer.model.eval()
        for batch in batches:
            labels = batch["labels"][:, 1:]
            answers = labels != -100
            logits = trainer.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits[:, :-1]
            functional.cross_entropy(logits[answers].float(), labels[answers])

    trainer.evaluate()
    ratios = sorted(seconds(trainer.evaluate) / seconds(plain) for _ in range(repeats))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) of a plain forward and loss"


def time_checkpoints(trainer: Any, repeats: int) -> str:
    steps: list[float] = []
    step = trainer.training_step

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = step(*args, **kwargs)
        steps.append(time.perf_counter() - began)
        return result

    trainer.training_step = timed
    trainer.train()
    del trainer.training_step
    saves = [seconds(lambda: trainer._save_checkpoint(trainer.model, None)) for _ in range(repeats)]
    share = statistics.median(saves) / (100 * 2 * statistics.median(steps))
    return f"{statistics.median(saves):.2f} s each, {share:.2%} of 100 steps of {2 * statistics.median(steps):.2f} s"


def time_scores(repeats: int) -> str:
    from alpacare_sft.evaluation.answering import EvaluationRequests, ModelResponses
    from alpacare_sft.evaluation.generation import Answer
    from alpacare_sft.evaluation.scoring import score_rows, summarize_scores
    from alpacare_sft.recipe.loading import load_recipe
    from alpacare_sft.recipe.names import EMBEDDED_FILES

    recipe = load_recipe("recipes/demo.yaml")
    rows = [json.loads(line) for line in EMBEDDED_FILES["embedded"].read_text(encoding="utf-8").splitlines()[:100]]
    told = [Answer(row["output"][place % 7 :], 60, "end_token") for place, row in enumerate(rows)]
    losses = {place: 2 + place % 5 / 10 for place in range(100)}
    sides = {
        who: ModelResponses(Path("none"), losses=dict(losses), answers=dict(enumerate(told)))
        for who in ("base", "adapter")
    }
    requests = EvaluationRequests([], [], wants_answers=True, wants_losses=True, answer_end=1)

    def score() -> None:
        summarize_scores(score_rows(rows, sides, requests, ["rouge", "loss"]), [60] * 100, recipe.evaluate)

    score()
    times = sorted(seconds(score) for _ in range(repeats))
    samples = f"{recipe.evaluate.bootstrap_samples:,} resamples"
    return f"{statistics.median(times):.2f} s ({times[0]:.2f} to {times[-1]:.2f}), {samples}"


def time_floor(trainer: Any, repeats: int) -> str:
    """Forward and backward to the inputs of every frozen linear layer, for one row of each forward of a step."""
    import torch
    from torch import nn

    loader = iter(trainer.get_train_dataloader())
    batches = [next(loader) for _ in range(8)]
    base = [layer for layer in trainer.model.modules() if type(layer) is nn.Linear and not layer.weight.requires_grad]
    head = trainer.model.get_output_embeddings()
    shapes: Counter[tuple[int, int, int]] = Counter()
    for batch in batches:
        answers = int((batch["labels"] != -100).sum())
        for layer in base:
            rows = answers if layer is head else batch["input_ids"].shape[1]
            shapes[rows, *layer.weight.shape] += 1
    floor = 0.0
    for (rows, outputs, inputs), number in shapes.items():
        for left, right in ((inputs, outputs), (outputs, inputs)):  # forward, and back to the inputs
            floor += number * fastest_product(torch.randn(rows, left), torch.randn(left, right), repeats)
    model, whole = trainer.model.train(), []
    for _ in range(repeats):
        whole.append(seconds(lambda: [trainer.training_step(model, dict(batch), 400) for batch in batches]))
        model.zero_grad()
    share = floor / statistics.median(whole)
    return f"{share:.2f} of the time of forward and backward is the floor ({len(batches)} rows of 512 tokens at most)"


def fastest_product(values: Any, weights: Any, repeats: int) -> float:
    """Seconds of a product by the fastest of: weights as they are, transposed, and in oneDNN's blocks."""
    import torch

    transposed = weights.t().contiguous()
    ways = [lambda: values @ weights, lambda: values @ transposed.t()]
    if torch.backends.mkldnn.is_available():
        blocked = torch.ops.mkldnn._reorder_linear_weight(transposed, len(values))
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(values, blocked, None, "none", [], ""))
    best = []
    for way in ways:
        way()
        best.append(statistics.median(seconds(way) for _ in range(repeats)))
    return min(best)


def main() -> None:
    options = arguments()
    runtime.set_import_variables()  # before torch is imported
    runtime.keep_freed_memory()
    runtime.set_threads()
    print("scores of 100 rows  ", time_scores(options.repeats), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(options, folder)
        print("validation          ", time_validation(trainer, options.repeats), flush=True)
        print("checkpoints         ", time_checkpoints(trainer, options.repeats), flush=True)
        print("matrix products     ", time_floor(trainer, options.repeats), flush=True)


if __name__ == "__main__":
    main()
