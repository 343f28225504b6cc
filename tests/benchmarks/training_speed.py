"""Training speed and peak memory beside a plain TRL script, on the same rows.

Each run is a process of its own, and the two take turns, so that a machine whose speed drifts
slows both. What is printed are medians and ratios. The losses of both must agree.

    python tests/benchmarks/training_speed.py --rows rows.jsonl --steps 12 --repeats 3
    python tests/benchmarks/training_speed.py --recipe recipes/t4.yaml   # on a card
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from alpacare_sft import runtime


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/demo.yaml")
    parser.add_argument("--rows", default="", help="a rows file in the place of the recipe's data")
    parser.add_argument("--constant", default="", help="instruction for rows without one")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--forward-rows", choices=["auto"], help="forward.rows of our side")
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def overrides(options: argparse.Namespace, folder: str) -> list[str]:
    total = options.steps * options.batch_size * options.accumulation
    words = {
        "output_dir": f"{folder}/run",
        "train.max_length": options.max_length,
        "train.per_device_train_batch_size": options.batch_size,
        "train.gradient_accumulation_steps": options.accumulation,
        "train.max_steps": options.steps,
        "train.logging_steps": 1,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.activation_checkpointing": "false",
        "lora.lora_dropout": 0.0,  # so that both sides take the same steps
        "data.splits.train": total,
        "data.splits.validation": 0,
        "data.splits.test": 1,
        "data.max_dropped_fraction": 1.0,
    }
    if options.rows:
        words["data.path"] = options.rows
    if options.forward_rows and options.side == "ours":
        words["forward.rows"] = options.forward_rows
    if options.constant:
        words["data.constants.instruction"] = options.constant
    return [word for key, value in words.items() for word in (f"--{key}", str(value))]


def run_side(options: argparse.Namespace) -> None:
    """One side in this process; prints its figures as the last line."""
    if options.side == "ours":
        runtime.set_import_variables()  # before torch is imported
    else:  # a plain script has the process as it comes
        runtime.keep_freed_memory = lambda: None
    import torch
    from transformers import TrainerCallback

    from alpacare_sft import load_recipe, load_tokenizer, prepare_data
    from alpacare_sft.model.base import load_base_model
    from alpacare_sft.run.directory import RunDirectory
    from alpacare_sft.training.config import build_sft_config, build_trainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[tuple[float, int]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            import time

            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append((time.perf_counter(), state.num_input_tokens_seen))

    runtime.set_threads()
    recipe = load_recipe(options.recipe, overrides(options, options.folder))
    precision = runtime.resolve_precision(recipe.train)
    tokenizer = load_tokenizer(recipe.model)
    data = prepare_data(recipe, tokenizer)
    base = load_base_model(recipe.model, precision.dtype)
    run = RunDirectory(recipe.output_dir)
    if options.side == "ours":
        trainer = build_trainer(recipe, build_sft_config(recipe, run, precision), data, tokenizer, base)
    else:
        trainer = plain_trainer(build_sft_config(recipe, run, precision), data, tokenizer, base, recipe.lora)
    clock = Clock()
    trainer.add_callback(clock)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    (began, first), (ended, last) = clock.marks[options.warmup_steps - 1], clock.marks[-1]
    figures = {
        "tokens_per_second": (last - first) / (ended - began),
        "peak_memory_bytes": runtime.peak_memory_bytes(),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "forwards_of_rows": options.batch_size,
        "precision": precision.name,
    }
    print("\n" + json.dumps(figures))


def plain_trainer(config: Any, data: Any, tokenizer: Any, base: Any, lora: Any) -> Any:
    """What a script on TRL alone would build: the same rows, tokens, mask, seed and adapter."""
    from peft import LoraConfig
    from trl import SFTTrainer

    names = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")
    return SFTTrainer(
        model=base,
        args=config,
        train_dataset=data.splits["train"].select_columns(["input_ids", "completion_mask"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **{name: getattr(lora, name) for name in names}),
    )


def main() -> None:
    options = arguments()
    if options.side:
        return run_side(options)
    figures: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    for _ in range(options.repeats):
        for side, found in figures.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
                done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    report(figures)


def report(figures: dict[str, list[dict[str, Any]]]) -> None:
    pairs = list(zip(figures["ours"], figures["plain"], strict=True))
    print(f"{'':26}{'ours':>12}{'plain TRL':>12}{'ratio':>9}   (medians of {len(pairs)} interleaved runs, min-max)")
    for key, unit, scale in (("tokens_per_second", "tokens/s", 1.0), ("peak_memory_bytes", "GiB peak", 2.0**30)):
        sides = [statistics.median(run[key] / scale for run in figures[side]) for side in ("ours", "plain")]
        ratios = sorted(ours[key] / plain[key] for ours, plain in pairs)
        print(
            f"{unit:26}{sides[0]:12.2f}{sides[1]:12.2f}{statistics.median(ratios):9.3f}"
            f"   ({ratios[0]:.3f}-{ratios[-1]:.3f})"
        )
    worst = max(abs(a - b) for ours, plain in pairs for a, b in zip(ours["losses"], plain["losses"], strict=True))
    steps, precision = len(pairs[0][0]["losses"]), pairs[0][0]["precision"]
    print(f"{'largest loss difference':26}{worst:12.2e}   over {steps} steps, {precision}")


if __name__ == "__main__":
    main()
