"""Time and memory of `alpacare-sft data` beside a plain pandas and tokenizer script that counts nothing.

Rows are recombined from the embedded ones, at the length of a medical instruction set. Each run is a process of its
own and the sides take turns; `again` reads what the first run cached. What is printed are medians, ratios and spreads.

    python tests/benchmarks/data_speed.py                                  # 52,002 rows
    python tests/benchmarks/data_speed.py --rows 1000000 --repeats 1 --alone
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from alpacare_sft.model.embedded import embedded_model
from alpacare_sft.recipe.names import EMBEDDED_FILES

PLAIN = """
import sys
import pandas as pd
from transformers import AutoTokenizer

rows = pd.read_json(sys.argv[1], lines=True).dropna().drop_duplicates()
for name in ("instruction", "input", "output"):
    rows[name] = rows[name].str.strip()
rows = rows[(rows.instruction != "") & (rows.output != "")]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
prompts = [f"### Instruction:\\n{text}\\n\\n### Input:\\n{given}\\n\\n### Answer:\\n"
           for text, given in zip(rows.instruction, rows.input)]
asked, answered = tokenizer(prompts)["input_ids"], tokenizer(list(rows.output))["input_ids"]
rows["input_ids"] = [(one + other)[:512] for one, other in zip(asked, answered)]
rows = rows.sample(frac=1, random_state=42)
for name, part in (("train", rows[:2000]), ("validation", rows[2000:2100]), ("test", rows[2100:2200])):
    part.to_json(f"{sys.argv[3]}/{name}.jsonl", orient="records", lines=True)
"""
SIZES = ("train", "2000", "validation", "100", "test", "100")


def write_rows(path: Path, number: int) -> None:
    draw = random.Random(1)
    source = [json.loads(line) for line in EMBEDDED_FILES["embedded"].read_text(encoding="utf-8").splitlines()]
    words = [word for row in source for word in row["instruction"].split()]
    answers = [word for row in source for word in row["output"].split()]

    def cut(all_words: list[str], least: int, most: int) -> str:
        start = draw.randrange(len(all_words) - most)
        return " ".join(all_words[start : start + draw.randrange(least, most)])

    with path.open("w", encoding="utf-8") as file:
        for place in range(number):
            given = cut(words, 10, 40) if place % 2 else "<noinput>"
            row = {"output": cut(answers, 40, 130), "input": given, "instruction": cut(words, 8, 50)}
            file.write(json.dumps(row) + "\n")


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the peak of resident memory in GiB over all of its processes."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in family))
        except psutil.Error:
            pass
        time.sleep(0.05)
    assert process.returncode == 0
    return time.perf_counter() - start, peak / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=52_002)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the plain script")
    options = parser.parse_args()
    recipe = str(Path(__file__).parents[2] / "recipes" / "demo.yaml")
    results: dict[str, list[tuple[float, float]]] = {"cold": [], "again": [], "plain": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", options.rows)
        sizes = [f"--data.splits.{key}={value}" for key, value in zip(SIZES[::2], SIZES[1::2], strict=True)]
        ours = [sys.executable, "-m", "alpacare_sft", "data", recipe, "--show", "0", f"--output_dir={folder}/run"]
        ours += [f"--data.path={folder}/rows.jsonl", "--train.max_length=512", *sizes]
        plain = [sys.executable, "-c", PLAIN, f"{folder}/rows.jsonl", str(embedded_model()), name]
        for repeat in range(options.repeats):
            cache = {"HF_DATASETS_CACHE": f"{folder}/cache-{repeat}", "HF_HUB_OFFLINE": "1"}
            for side in ("cold", "again", "plain")[: 2 if options.alone else 3]:
                results[side].append(measure(plain if side == "plain" else ours, cache))
    medians = {side: statistics.median(seconds for seconds, _ in runs) for side, runs in results.items() if runs}
    for side, runs in results.items():
        if runs:
            times = sorted(seconds for seconds, _ in runs)
            ratio = f", {medians[side] / medians['plain']:.2f} of the plain script" if "plain" in medians else ""
            each, peak = 1e6 * medians[side] / options.rows, max(peak for _, peak in runs)
            print(
                f"{side:>6}: {medians[side]:.1f} s ({times[0]:.1f} to {times[-1]:.1f}), {each:.0f} µs a row, "
                f"peak {peak:.2f} GiB{ratio}"
            )


if __name__ == "__main__":
    main()
