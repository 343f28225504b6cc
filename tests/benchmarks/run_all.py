"""Every benchmark by name, one after another, and their results as RESULTS.md with machine and versions.

python tests/benchmarks/run_all.py                    # all, on the embedded rows
python tests/benchmarks/run_all.py --repeats 3 start data
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from alpacare_sft.runtime import describe_hardware

HERE = Path(__file__).parent
BENCHMARKS = {
    "train-1x2": ("Training, one row a forward, two a step", ["training_speed.py", "--steps", "10"]),
    "train-2x1": (
        "Training, two rows a forward",
        ["training_speed.py", "--steps", "10", "--batch-size", "2", "--accumulation", "1"],
    ),
    "train-8x1": (
        "Training, eight rows a forward",
        ["training_speed.py", "--steps", "6", "--batch-size", "8", "--accumulation", "1"],
    ),
    "train-8x1-auto": (
        "Training, eight rows a step, `forward.rows: auto`",
        ["training_speed.py", "--steps", "6", "--batch-size", "8", "--accumulation", "1", "--forward-rows", "auto"],
    ),
    "litgpt": ("Training beside LitGPT, one row a forward, two a step", ["litgpt_speed.py", "--steps", "10"]),
    "overheads": ("Validation, checkpoints, scores, and the floor of a step", ["overheads.py"]),
    "memory": ("Memory that `plan` predicts, beside what was held", ["memory_plan.py"]),
    "start": ("Help, and a wrong key of a recipe reported", []),
    "data": ("52,002 rows prepared", ["data_speed.py"]),
}


def time_command(words: list[str], repeats: int) -> str:
    """Median and range of the seconds of a command line."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "alpacare_sft", *words], capture_output=True)
        times.append(time.perf_counter() - start)
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"


def run_start(repeats: int) -> str:
    recipe = str(HERE.parents[1] / "recipes" / "demo.yaml")
    lines = {"--help": ["--help"], "a wrong key": ["train", recipe, "--train.learnig_rate", "1"]}
    return "\n".join(f"{name}: {time_command(words, repeats)}" for name, words in lines.items())


def machine() -> str:
    """Processor, cores, memory, accelerator and versions; nothing that names a place."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU has run these"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft", "datasets"))
    size = psutil.virtual_memory().total / 2**30
    hardware = f"{describe_hardware()['processor']}, {os.cpu_count()} cores, {size:.0f} GiB; {gpu}."
    return f"{hardware} Python {platform.python_version()}, {versions}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    parts = [
        "# Results",
        "",
        f"{datetime.date.today()}: {machine()} Medians of {options.repeats} interleaved runs.",
        "",
    ]
    for name in options.names or BENCHMARKS:
        title, words = BENCHMARKS[name]
        print(f"{name}: {title}", flush=True)
        if words:
            command = [sys.executable, str(HERE / words[0]), *words[1:], "--repeats", str(options.repeats)]
            environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            text = done.stdout.strip("\n") if done.returncode == 0 else f"failed: {done.stderr.strip()[-500:]}"
        else:
            text = run_start(options.repeats)
        print(text, flush=True)
        parts += [f"## {title} (`{name}`)", "", "```", text, "```", ""]
    if not options.names:
        (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
