"""Words on the command line → one call; errors → one message and an exit code."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import alpacare_sft as sft
from alpacare_sft.errors import AlpacareError, RecipeError, RunError, StoppedError
from alpacare_sft.runtime import holds_half_character, is_main_process, local_rank, prepared_process, printable

VERBS = {
    "recipes": "list the recipes that come with the package, or write one into a folder",
    "data": "load, clean, split and show the rows, as the model sees them; needs no model weights",
    "plan": "estimate memory, steps and time of a recipe, and what makes it fit; needs no GPU and no weights",
    "train": "run a recipe: data, training, adapter; goes on where an unfinished run stopped (the default verb)",
    "eval": "answer and score the test rows with the base and with the trained adapter",
    "ask": "answer one question with the trained adapter, with the notice",
    "review": "sum up review sheets that people filled: means, preferences, flags, agreement",
    "report": "write what a run did in eight sections, as Markdown to complete and as a page to print",
    "push": "publish the adapter with its model card, recipe, record and scores on the Hub, in one commit",
    "rerun": "run a recorded run again beside it, and compare rows, losses, adapter, answers and scores",
    "doctor": "look whether this machine can run: versions, card, room, token, gates; each with its remedy",
    "schema": "print the JSON Schema of a recipe, for editors",
    "completion": "print what completes verbs, flags and keys in a shell",
}
EXAMPLES = {
    "recipes": "alpacare-sft recipes copy demo",
    "data": "alpacare-sft data recipes/demo.yaml",
    "plan": "alpacare-sft plan recipes/demo.yaml --gpu t4",
    "train": "alpacare-sft train recipes/demo.yaml",
    "eval": "alpacare-sft eval recipes/demo.yaml",
    "ask": 'alpacare-sft ask recipes/demo.yaml "What helps against a cold?"',
    "review": "alpacare-sft review recipes/demo.yaml ann.csv bob.csv",
    "report": "alpacare-sft report recipes/demo.yaml",
    "push": "alpacare-sft push recipes/demo.yaml --dry-run",
    "rerun": "alpacare-sft rerun runs/demo",
    "doctor": "alpacare-sft doctor recipes/t4.yaml",
    "schema": "alpacare-sft schema --output recipes/schema.json",
    "completion": "source <(alpacare-sft completion bash)",
}
FIRST = "first steps, in the order of the work:\n" + "".join(
    f"  {EXAMPLES[verb]}\n" for verb in ("recipes", "data", "train", "eval", "ask", "push")
)
SHELLS = ("bash", "zsh", "tcsh")
DESCRIPTION = "Fine-tune a small instruct model on medical instructions, from one recipe."
EPILOG = """\
Every key of a recipe has an override: --train.learning_rate 1e-4, --data.splits.train 40.
alpacare-sft train --help lora shows the keys of a section, --help train.save those that begin so.

exit codes: 0 done; 2 the recipe, the command line or the data is wrong; 1 the run failed;
            75 stopped on request, with a checkpoint to resume from (SIGTERM, SIGINT)

The models made here are for education and research. Their answers are not medical advice."""


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their flags; overrides are left to the recipe."""
    parser = argparse.ArgumentParser(
        prog="alpacare-sft",
        description=DESCRIPTION,
        epilog=f"{FIRST}\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"alpacare-sft {sft.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    for verb, summary in VERBS.items():
        example = f"example:\n  {EXAMPLES[verb]}\n\n{EPILOG}"
        sub = verbs.add_parser(
            verb, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=example, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        add_flags(sub, verb)
    return parser


def add_flags(sub: argparse.ArgumentParser, verb: str) -> None:
    """The words and flags of one verb, beside the keys of the recipe."""
    sub.add_argument("--debug", action="store_true", help="show the traceback of an expected error")
    if verb == "recipes":
        sub.add_argument("action", choices=("list", "copy"), nargs="?", default="list")
        sub.add_argument("name", nargs="?", help="of the recipe to write, such as demo")
        sub.add_argument("--folder", type=Path, default=Path("recipes"), help="where to write it (default: recipes)")
        return
    if verb == "schema":
        sub.add_argument("-o", "--output", type=Path, help="write to a file instead")
        return
    if verb == "completion":
        sub.add_argument("shell", choices=SHELLS, help="source <(alpacare-sft completion bash)")
        return
    if verb == "doctor":
        sub.add_argument("recipe", nargs="?", help="whose base, rows and precision are looked at, too")
        sub.add_argument("--json", action="store_true", help="print a list of objects")
        return
    if verb == "rerun":
        sub.add_argument("run", help="the directory of a finished run, such as runs/demo, or the repository of one")
        sub.add_argument("--against", type=Path, metavar="RUN", help="compare with this run and train none")
        return
    sub.add_argument("recipe", help="a YAML file, such as recipes/demo.yaml")
    if verb == "ask":
        sub.add_argument("question", help="the instruction, in quotes; overrides come after it")
        sub.add_argument("--input", default="", help="the input that belongs to it")
    if verb == "plan":
        sub.add_argument("--gpu", metavar="CARD|GIB", help="t4, l4, a10, a100-40, a100-80, h100 or a number of GiB")
        sub.add_argument("--measure", action="store_true", help="time half a minute of real steps on this machine")
        sub.add_argument("--json", action="store_true", help="print one JSON object, bytes and seconds")
    if verb == "train":
        sub.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in output_dir")
        sub.add_argument("--force", action="store_true", help="train even where the planned memory is not there")
        sub.add_argument("--stop-after", metavar="TIME", help="such as 8h30m: write a checkpoint before, exit with 75")
    if verb == "push":
        sub.add_argument("--dry-run", action="store_true", help="show the files and the model card; needs no network")
    if verb in ("train", "eval"):
        sub.add_argument("--push", action="store_true", help="publish the adapter afterwards; checked beforehand")
    if verb == "data":
        sub.add_argument("--show", type=int, default=3, metavar="N", help="rows to show (default: 3)")
    if verb == "review":
        sub.add_argument("files", nargs="+", metavar="FILE", help="filled sheets, one a person; overrides follow")
    if verb == "eval":
        sub.add_argument("--all", action="store_true", help="show the descriptive scores, too")
        sub.add_argument("--limit", type=int, metavar="N", help="score the first N rows only")
        sub.add_argument("--rows", metavar="FILE", help="score the rows of a file instead of the test split")
        sub.add_argument("--adapter", metavar="PATH|HUB_ID", help="score another adapter of the same base")
        sub.add_argument(
            "--same-base", action="store_true", help="the base that --adapter names is this one (a mirror, a copy)"
        )


def with_default_verb(arguments: Sequence[str]) -> list[str]:
    """Put `train` before a recipe that follows no verb.

    Raises:
        RecipeError: if the first word is neither a verb nor the name of a file.
    """
    words = list(arguments)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is None or first in VERBS:
        return words
    if not Path(first).suffix and not Path(first).exists():
        close = difflib.get_close_matches(first, VERBS, n=1)
        hint = f" Did you mean {close[0]}?" if close else " Overrides come after it."
        raise RecipeError(f"the first word must be a verb ({', '.join(VERBS)}) or a recipe file, got {first!r}.{hint}")
    return ["train", *words]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    if not words:
        parser.print_help()
        return 2
    try:
        for word in words:
            if holds_half_character(word):
                raise RecipeError(f"{word!r} must be UTF-8 text. Set the terminal to UTF-8.")
        if (beginning := help_topic(words)) is not None:
            from alpacare_sft.recipe.reference import help_of_keys

            print(help_of_keys(beginning), end="")
            return 0
        options, overrides = parser.parse_known_args(with_default_verb(words))
        with prepared_process():
            return run_verb(options, overrides)
    except AlpacareError as error:
        if "--debug" in words:
            traceback.print_exc()
        if not local_rank() or type(error) is RunError:  # else one message for each process
            print(printable(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a directory that may not be written
        if "--debug" in words or error.errno is None:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{where}. Nothing half-written was left.", file=sys.stderr)
        return 1


def help_topic(words: Sequence[str]) -> str | None:
    """The section or key that follows `--help`."""
    for word, following in itertools.pairwise(words):
        if word in ("--help", "-h") and not following.startswith("-"):
            return following
    return None


def run_verb(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Call what the verb names; its exit code."""
    if overrides and not getattr(options, "recipe", None) and options.verb != "recipes":  # which says what it takes
        raise RecipeError(f"{options.verb} takes no overrides, got {' '.join(overrides)}.")
    match options.verb:
        case "schema":
            return print_schema(options.output)
        case "recipes":
            return print_recipes(options.action, options.name, options.folder, overrides)
        case "completion":
            return print_completion(options.shell)
        case "doctor":
            return print_findings(sft.load_recipe(options.recipe, overrides) if options.recipe else None, options.json)
        case "rerun":
            return print_comparison(options.run, options.against)
    run_recipe(options, sft.load_recipe(options.recipe, overrides))
    return 0


def run_recipe(options: argparse.Namespace, recipe: sft.Recipe) -> None:
    """Call a verb that acts on a recipe."""
    publishes = getattr(options, "push", False) and is_main_process()
    if publishes:  # hours of training must not end at a name that is taken
        from alpacare_sft.hub.preflight import preflight

        preflight(recipe)
    match options.verb:
        case "train":
            seconds = parse_time(options.stop_after)
            sft.train(recipe, overwrite=options.overwrite, stop_after_seconds=seconds, force=options.force)
        case "plan":
            print_plan(recipe, options.gpu, options.measure, options.json)
        case "data":
            from alpacare_sft.reporting.terminal import show_data

            show_data(recipe, options.show)
        case "eval":
            from alpacare_sft.evaluation.terminal import show_evaluation

            with stopped_by_signals():
                scored = sft.evaluate(
                    recipe,
                    limit=options.limit,
                    rows=options.rows,
                    adapter=options.adapter,
                    same_base=options.same_base,
                )
            show_evaluation(scored, every_score=options.all)
        case "review":
            sft.review_answers(recipe, options.files)
        case "report":
            from alpacare_sft.reporting.run_report import save_run_report

            save_run_report(recipe)
        case "ask":
            sft.ask(recipe, options.question, options.input)
        case "push":
            sft.push(recipe, dry_run=options.dry_run)
    if publishes:
        sft.push(recipe)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into an exit with 75: the answers so far are saved."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("stopped on request. The answers so far are saved; run it again to go on.") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def print_comparison(run: str, against: Path | None) -> int:
    """Run a run again and show what differs; 1 if something does."""
    from alpacare_sft.evaluation.rerun import rerun, show_comparison

    with stopped_by_signals():
        comparison = rerun(run, against)
    show_comparison(comparison)
    return int(not comparison["identical"])


def parse_time(text: str | None) -> float | None:
    """Seconds that `8h30m`, `45m` or `90s` stands for.

    Raises:
        RecipeError: if it is something else.
    """
    if text is None:
        return None
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or parts is None:
        raise RecipeError(f"--stop-after must be hours, minutes, seconds such as 8h30m, 45m or 90s, got {text!r}.")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def print_findings(recipe: sft.Recipe | None, as_json: bool) -> int:
    """Show what `doctor` saw, as lines or as JSON; 1 where there is a fault."""
    from dataclasses import asdict

    from alpacare_sft.hub.doctor import examine

    signs = {"fine": "✓", "warning": "!", "fault": "✗"}
    findings = []
    for finding in examine(recipe):
        findings.append(finding)
        if not as_json:
            print(f"{signs[finding.level]} {finding.subject:10} {finding.text}", flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return int(any(finding.level == "fault" for finding in findings))


def print_plan(recipe: sft.Recipe, gpu: str | None, measure: bool, as_json: bool) -> None:
    """Show what a recipe needs, as a table or as JSON."""
    from alpacare_sft.reporting.terminal import show_plan
    from alpacare_sft.training.plan import plan_run

    plan = plan_run(recipe, gpu, measure)
    if as_json:
        print(json.dumps(plan, indent=2))
    else:
        show_plan(plan)


def print_schema(output: Path | None) -> int:
    """Write the JSON Schema of a recipe to a file, or show it."""
    from alpacare_sft.recipe.reference import recipe_schema_text
    from alpacare_sft.run.directory import write_text

    text = recipe_schema_text()
    if output is None:
        print(text, end="")
        return 0
    try:
        write_text(output, text)
    except OSError as error:
        raise RecipeError(f"--output must be a file that can be written, got {output}: {error.strerror}.") from error
    return 0


def print_recipes(action: str, name: str | None, folder: Path, overrides: Sequence[str]) -> int:
    """Show the shipped recipes, or write one and say what to type next."""
    from alpacare_sft.recipe.shipped import copy_recipe, shipped_recipes

    if overrides or (action == "copy" and name is None):
        fault = f"takes no overrides, got {' '.join(overrides)}" if overrides else "must name a recipe"
        raise RecipeError(f"recipes {action} {fault}. For example: {EXAMPLES['recipes']}.")
    if action == "list":
        for recipe, path in shipped_recipes().items():
            print(f"{recipe:12} {_first_sentence(path)}")
        return 0
    path = copy_recipe(str(name), folder)
    print(f"written: {path}. Next: alpacare-sft train {path}")
    return 0


def _first_sentence(path: Path) -> str:
    """What a recipe's first comment says of it."""
    lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()[1:12]]
    return " ".join(line for line in lines if line).split(". ")[0].rstrip(".,") + "."


def print_completion(shell: str) -> int:
    """Show the script by which a shell completes verbs, flags and the keys of a recipe."""
    from jsonargparse import ArgumentParser

    from alpacare_sft.recipe.reference import add_keys

    try:
        import shtab
    except ImportError:
        message = "completion needs the package shtab. Install it: pip install 'alpacare_sft[completion]'."
        raise RunError(message) from None
    parser = ArgumentParser(prog="alpacare-sft")
    verbs = parser.add_subcommands()
    for verb, summary in VERBS.items():
        sub = ArgumentParser()
        add_flags(sub, verb)
        for action in sub._actions:
            if action.dest in ("recipe", "files", "rows", "adapter", "output"):
                setattr(action, "complete", shtab.FILE)  # noqa: B010 - an attribute that shtab reads
        if verb not in ("recipes", "schema", "completion"):
            add_keys(sub)
        verbs.add_subcommand(verb, sub, help=summary)
    print(parser.get_completion_script(f"shtab-{shell}"))
    return 0
