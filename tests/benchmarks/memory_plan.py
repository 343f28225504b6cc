"""Memory that `plan` predicts beside what torch's allocator held in real training steps on the CPU.

Each cell is a process of its own that trains two steps of the recipe's model on rows of one length. What the C library
keeps beyond that depends on the order of its blocks; the resident memory is printed for comparison.

    python tests/benchmarks/memory_plan.py
    python tests/benchmarks/memory_plan.py --rows 1 --tokens 128
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Beside the embedded model (Llama's layers, tied head): random ones with the embedded tokenizer.
MODELS: dict[str, dict[str, Any]] = {
    "embedded": {},
    "qwen2": {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 2048, "num_key_value_heads": 2},
    "gemma": {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 2048, "num_key_value_heads": 1},
}
MOST_BYTES, MOST_SHARE = 64 * 2**20, 0.1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--repeats", type=int, help="ignored: a cell is the same each time")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def save_model(name: str, folder: Path) -> str:
    """What a recipe calls a model of `MODELS`; a random one is written first."""
    if not MODELS[name]:
        return name
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from alpacare_sft.model.embedded import embedded_model

    config = AutoConfig.for_model(name, vocab_size=49_152, num_attention_heads=8, head_dim=64, **MODELS[name])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model()).save_pretrained(folder)
    return str(folder)


def run_cell(model: str, rows: int, tokens: int, checkpointing: bool, folder: str) -> dict[str, int]:
    """Predicted and measured bytes."""
    from alpacare_sft import load_recipe, load_tokenizer, prepare_data, runtime
    from alpacare_sft.model.base import load_base_model
    from alpacare_sft.run.directory import RunDirectory
    from alpacare_sft.training.config import build_sft_config, build_trainer
    from alpacare_sft.training.plan import Plan, find_target

    path = Path(folder) / "rows.jsonl"
    lines = [  # every second row is shorter, so that a batch is padded
        {"instruction": f"Say {i} " + "red " * (tokens // 2), "output": "blue " * (tokens // (1 + 3 * (i % 2)))}
        for i in range(2 * rows + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    keys = {
        "output_dir": f"{folder}/run",
        "model.model_name_or_path": save_model(model, Path(folder) / "model"),
        "data.path": path,
        "data.splits.train": 2 * rows,
        "data.splits.validation": 0,
        "data.splits.test": 1,
        "data.max_dropped_fraction": 1.0,
        "train.max_length": tokens,
        "train.per_device_train_batch_size": rows,
        "train.gradient_accumulation_steps": 1,
        "train.max_steps": 2,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.activation_checkpointing": str(checkpointing).lower(),
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    recipe = load_recipe("recipes/demo.yaml", words)
    plan = Plan(recipe, find_target(None)).training(rows)
    predicted = sum(size for name, size in plan["parts"].items() if name != "heap")
    precision = runtime.resolve_precision(recipe.train)
    tokenizer = load_tokenizer(recipe.model)
    base = load_base_model(recipe.model, precision.dtype)
    config = build_sft_config(recipe, RunDirectory(recipe.output_dir), precision)
    trainer = build_trainer(recipe, config, prepare_data(recipe, tokenizer), tokenizer, base)
    return {"predicted": predicted, **measure(trainer, Path(folder) / "trace.json")}


def measure(trainer: Any, trace: Path) -> dict[str, int]:
    """The most that torch's allocator held beside the weights, and the peak of the resident memory."""
    from alpacare_sft import runtime

    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in trainer.model.parameters()}
    held = held_bytes(trainer.train, trace)
    return {"measured": sum(weights.values()) + held, "resident": runtime.peak_memory_bytes()}


def held_bytes(step: Callable[[], Any], trace: Path) -> int:
    """The most that torch's allocator held for a step on the CPU, as its profiler counts it from the start."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    profiled.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")


def main() -> None:
    options = arguments()
    if options.cell:
        model, rows, tokens, checkpointing = json.loads(options.cell)
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + json.dumps(run_cell(model, rows, tokens, checkpointing, folder)))
        return
    names = f"{'model':10}{'rows':>4}{'tokens':>8}{'checkpointing':>15}"
    print(f"{names}{'predicted':>11}{'measured':>10}{'error':>8}{'resident':>10}  MiB")
    cells = [(m, r, t, c) for m in options.models for c in (False, True) for t in options.tokens for r in options.rows]
    for cell in cells:
        command = [sys.executable, __file__, "--cell", json.dumps(cell)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{cell} failed:\n{done.stderr[-3000:]}")
        one = json.loads(done.stdout.strip().splitlines()[-1])
        error = one["predicted"] - one["measured"]
        fine = abs(error) <= max(MOST_BYTES, MOST_SHARE * one["measured"])
        mib = {name: value / 2**20 for name, value in one.items()}
        print(
            f"{cell[0]:10}{cell[1]:>4}{cell[2]:>8}{cell[3]!s:>15}{mib['predicted']:>11.0f}{mib['measured']:>10.0f}"
            f"{error / one['measured']:>+8.1%}{mib['resident']:>10.0f}  {'' if fine else 'outside'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
