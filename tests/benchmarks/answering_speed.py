"""Answers of `eval` beside answering the same rows one by one with `generate` through PEFT.

Both answer with the base and with the adapter. The two take turns, each in a process of its own.
Also told: how many answers differ between batches of one and of many, and between merged and not.

    python tests/benchmarks/answering_speed.py runs/demo --rows 20 --tokens 128
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alpacare_sft import runtime


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a trained run")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", choices=["eval", "one-by-one"], help=argparse.SUPPRESS)
    return parser.parse_args()


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """One side in this process: seconds of answering, loading left out, and the answers."""
    if options.side == "eval":
        runtime.set_import_variables()  # before torch is imported
        runtime.keep_freed_memory()
    from alpacare_sft.evaluation.compared_models import ComparedModels
    from alpacare_sft.evaluation.held_out import encode_rows, read_test_split
    from alpacare_sft.model.prompt import PromptEncoder
    from alpacare_sft.run.directory import RunDirectory
    from alpacare_sft.run.trained import trained_recipe

    runtime.set_threads()
    run = RunDirectory(options.run)
    recipe = trained_recipe(run)
    recipe.generate.max_new_tokens, recipe.generate.batch_size = options.tokens, options.batch_size
    models = ComparedModels(recipe, recipe, run)
    rows = encode_rows(read_test_split(run, options.rows).rows, PromptEncoder(models.tokenizer, recipe.prompt))
    models.base()
    began = time.perf_counter()
    answers = (_batched if options.side == "eval" else _one_by_one)(models, rows, recipe, run)
    return {"seconds": time.perf_counter() - began, "answers": answers}


def _batched(models: Any, rows: Any, recipe: Any, run: Any) -> dict[str, list[str]]:
    from alpacare_sft.evaluation.generation import generate_answers
    from alpacare_sft.model.cpu_layout import fast_cpu_layout

    end = models.tokenizer.eos_token_id
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in rows]

    def told(model: Any) -> list[str]:
        with fast_cpu_layout(model):
            found = dict(generate_answers(model, models.tokenizer, prompts, recipe.generate, answer_end=end))
        return [found[index].text for index in range(len(prompts))]

    base = told(models.base())
    return {"base": base, "adapter": told(models.with_adapter(rows)[0])}


def _one_by_one(models: Any, rows: Any, recipe: Any, run: Any) -> dict[str, list[str]]:
    import torch
    from peft import PeftModel

    from alpacare_sft.evaluation.generation import configure_generation, read_answer

    model = PeftModel.from_pretrained(models.base(), run.adapter).eval()
    ends = configure_generation(model, models.tokenizer, recipe.generate, models.tokenizer.eos_token_id).eos_token_id

    def told() -> list[str]:
        texts = []
        for row in rows:
            ids = torch.tensor([row["input_ids"][: row["prompt_tokens"]]], device=model.device)
            written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
            tokens = written[0, ids.shape[1] :].tolist()
            texts.append(read_answer(tokens, ends, models.tokenizer).text)
        return texts

    with model.disable_adapter():
        base = told()
    return {"base": base, "adapter": told()}


def main() -> None:
    options = arguments()
    if options.side:
        print("\n" + json.dumps(answer(options)))
        return
    found: dict[str, list[dict[str, Any]]] = {"eval": [], "one-by-one": []}
    for _ in range(options.repeats):
        for side, runs in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    seconds = {side: statistics.median(run["seconds"] for run in runs) for side, runs in found.items()}
    print(f"{options.rows} rows, at most {options.tokens} tokens, base and adapter, batches of {options.batch_size}")
    for side, value in seconds.items():
        print(f"{side:12}{value:10.1f} s")
    print(f"{'ratio':12}{seconds['one-by-one'] / seconds['eval']:10.2f}")
    for who in ("base", "adapter"):
        pairs = zip(found["eval"][0]["answers"][who], found["one-by-one"][0]["answers"][who], strict=True)
        what = "batched from single" if who == "base" else "merged and batched from attached and single"
        print(f"{who}: {sum(a != b for a, b in pairs)} of {options.rows} answers differ, {what}")


if __name__ == "__main__":
    main()
