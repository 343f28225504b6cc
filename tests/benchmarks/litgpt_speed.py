"""Training speed and peak memory beside LitGPT's `finetune_lora`, on the same rows, model, precision and LoRA.

LitGPT is installed into an environment of its own beside this one, whose torch it uses. The two take turns. Both
train on the same texts: our prompt goes to LitGPT's style `default`, which adds nothing; its clock is the one that it
prints for each row.

    python tests/benchmarks/litgpt_speed.py --rows rows.jsonl --constant "Answer the patient." --repeats 5
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import training_speed

PACKAGES = ["litgpt==0.5.13", "lightning==2.6.1", "lightning-utilities", "torchmetrics", "pytorch-lightning==2.6.1"]
PACKAGES += ["jsonargparse<=4.41", "typeshed-client", "docstring-parser"]
DRIVER = """
import resource, sys
from litgpt.__main__ import main
from litgpt.prompts import Default, prompt_styles
prompt_styles["default"] = Default  # the text of a row as it is
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def install(folder: Path) -> str:
    """An environment with LitGPT over the packages of this one; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv" if "venv" in sysconfig.get_scheme_names() else None, vars=paths))
    (site / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
    return python


def prepare(options: Any, folder: Path) -> tuple[Path, Path, float]:
    """Model and rows as LitGPT takes them, and the mean tokens of a row."""
    from alpacare_sft import load_recipe, load_tokenizer, prepare_data
    from alpacare_sft.model.embedded import embedded_model

    recipe = load_recipe(options.recipe, training_speed.overrides(options, str(folder)))
    tokenizer = load_tokenizer(recipe.model)
    split = prepare_data(recipe, tokenizer).splits["train"]
    rows = []
    for row in split:
        ids, prompt = row["input_ids"], row["prompt_tokens"]
        rows.append(
            {"instruction": tokenizer.decode(ids[:prompt]), "input": "", "output": tokenizer.decode(ids[prompt:])}
        )
    (folder / "data").mkdir()
    for name, part in (("train", rows), ("val", rows[:1])):
        (folder / "data" / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    shutil.copytree(embedded_model(), folder / "model")
    return folder / "model", folder / "data", sum(map(len, split["input_ids"])) / len(split)


def run_litgpt(python: str, options: Any, model: Path, data: Path, tokens: float) -> dict[str, float]:
    words = {
        "data": "JSON", "data.json_path": data, "data.prompt_style": "default", "data.mask_prompt": "true",
        "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_query": "true", "lora_value": "true",
        "lora_key": "false", "lora_projection": "false", "lora_mlp": "false", "lora_head": "false",
        "precision": "32-true", "train.micro_batch_size": options.batch_size, "train.log_interval": 1,
        "train.global_batch_size": options.batch_size * options.accumulation, "train.epochs": 1,
        "train.max_seq_length": options.max_length, "train.save_interval": 10_000, "eval.interval": 10_000,
        "eval.initial_validation": "false", "eval.final_validation": "false", "logger_name": "csv",
        "out_dir": model.parent / "out",
    }  # fmt: skip
    command = [python, "-c", DRIVER, "finetune_lora", str(model)]
    command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=model.parent)
    times = [float(text) / 1000 for text in re.findall(r"iter time: ([\d.]+) ms", done.stdout)]
    if done.returncode or len(times) <= options.warmup_steps:
        sys.exit(f"LitGPT failed:\n{done.stdout[-1500:]}{done.stderr[-3000:]}")
    counted = times[options.warmup_steps * options.accumulation :]
    peak = re.findall(r"^peak (\d+)", done.stdout, re.MULTILINE)
    return {
        "tokens_per_second": tokens * options.batch_size * len(counted) / sum(counted),
        "peak_memory_bytes": float(peak[-1]),
    }


def run_ours() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, training_speed.__file__, *sys.argv[1:], "--side", "ours", "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main() -> None:
    options = training_speed.arguments()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = install(folder / "peer")
        model, data, tokens = prepare(options, folder)
        convert = [python, "-m", "litgpt", "convert_to_litgpt", str(model), "--model_name", "SmolLM2-135M-Instruct"]
        subprocess.run(convert, check=True, capture_output=True)
        for _ in range(options.repeats):
            pairs.append((run_ours(), run_litgpt(python, options, model, data, tokens)))
    print(f"{'':26}{'ours':>12}{'LitGPT':>12}{'ratio':>9}   (medians of {len(pairs)} interleaved runs, min-max)")
    for key, unit, scale in (("tokens_per_second", "tokens/s", 1.0), ("peak_memory_bytes", "GiB peak", 2.0**30)):
        sides = [statistics.median(pair[side][key] / scale for pair in pairs) for side in (0, 1)]
        ratios = sorted(ours[key] / theirs[key] for ours, theirs in pairs)
        spread = f"({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"{unit:26}{sides[0]:12.2f}{sides[1]:12.2f}{statistics.median(ratios):9.2f}   {spread}")


if __name__ == "__main__":
    main()
