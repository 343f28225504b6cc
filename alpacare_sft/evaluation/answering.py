"""What one model answers and how well it predicts the references, written down as it comes."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from alpacare_sft.errors import RunError
from alpacare_sft.evaluation.generation import Answer, generate_answers
from alpacare_sft.run.directory import write_text
from alpacare_sft.runtime import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alpacare_sft.recipe.loading import Recipe

Encoded = Mapping[str, Any]


@dataclass(frozen=True)
class Questions:
    """What every model is asked.

    Attributes:
        rows: encoded, references whole: `input_ids`, `completion_mask` and `prompt_tokens`.
        general: encoded rows of no medical content, for the loss alone.
        wants_answers: whether a score needs written answers.
        wants_losses: whether the loss on the references is asked for.
        learnt_end: token that training taught to end an answer with.
    """

    rows: Sequence[Encoded]
    general: Sequence[Encoded]
    wants_answers: bool
    wants_losses: bool
    learnt_end: int

    def num_beyond(self, context: int | None, max_new_tokens: int) -> int:
        """Rows of which a reference, or an answer of full length, goes past what the model has positions for."""
        answer = max_new_tokens if self.wants_answers else 0
        ends = [max(len(row["input_ids"]), row["prompt_tokens"] + answer) for row in self.rows]
        return sum(end > (context or end) for end in ends)

    def fingerprint(self, *told: Any) -> str:
        """Hash of the rows' token ids and of what else decides the answers; the general rows never change."""
        ids = [[list(row["input_ids"]), row["prompt_tokens"]] for row in self.rows]
        return hashlib.sha256(json.dumps([ids, *told], sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class AnswerSheet:
    """Answers and losses of one model in a file that grows row by row, so that a stop loses one batch.

    Attributes:
        path: JSON Lines; the first holds the fingerprint, see `open`.
        losses: mean negative log-likelihood of a reference by row, teacher forced, in nats a token.
        answers: by row.
        general_losses: as `losses`, of the general rows.
        merge: how the adapter was joined to the base, once that is known.
        seconds: spent on all of it, stops left out.
    """

    path: Path
    losses: dict[int, float] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)
    general_losses: dict[int, float] = field(default_factory=dict)
    merge: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any]) -> AnswerSheet:
        """The sheet at a path, with what it holds that is of the same fingerprint.

        A line that a stop left half-written is taken away, and a sheet that is damaged in its middle is begun anew.

        Args:
            path: of the sheet, which need not exist.
            fingerprint: `model`, of all that decides a loss, and `generate`, what decides an answer besides.
        """
        sheet = cls(path)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        first, *lines = text[: text.rfind("\n") + 1].split("\n")[:-1] or [""]
        kept: list[dict[str, Any]] = []
        try:
            found = json.loads(first)["fingerprint"]
            if found["model"] == fingerprint["model"]:
                kept = [line for line in map(json.loads, lines) if found == fingerprint or "text" not in line]
            for line in kept:
                sheet._take(line)
        except (ValueError, TypeError, KeyError):
            sheet, kept = cls(path), []
        if dropped := sum('"text"' in line for line in lines) - sum("text" in line for line in kept):
            say(f"{path}: {dropped} answers were written with other settings or versions, and are asked for anew.")
        whole = "".join(_line(line) for line in ({"fingerprint": fingerprint}, *kept))
        if whole != text:
            write_text(path, whole)
        return sheet

    def lacks(self, questions: Questions) -> bool:
        """Whether something is left to ask."""
        return bool(
            (questions.wants_losses and len(self.losses) < len(questions.rows))
            or (questions.wants_answers and len(self.answers) < len(questions.rows))
            or len(self.general_losses) < len(questions.general)
        )

    def _take(self, line: Mapping[str, Any]) -> None:
        kept = dict(line)
        self.seconds += kept.pop("seconds", 0.0)
        match kept:
            case {"merge": merge}:
                self.merge = merge
            case {"general": row, "loss": loss}:
                self.general_losses[row] = loss
            case {"row": row, "loss": loss}:
                self.losses[row] = loss
            case {"row": row, **answer}:
                self.answers[row] = Answer(**answer)

    def add(self, file: TextIO, line: dict[str, Any]) -> None:
        """Keep one line, in memory and, flushed, in the file."""
        self._take(line)
        file.write(_line(line))
        file.flush()


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def fill_sheet(
    sheet: AnswerSheet,
    questions: Questions,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    who: str,
    merge: dict[str, Any],
) -> None:
    """Ask a model what its sheet lacks.

    Args:
        sheet: continued in place.
        questions: what to ask.
        model: on its device, in evaluation mode.
        tokenizer: of the model.
        recipe: `generate`, and the seed of `train` for sampled answers.
        who: `base` or `adapter`, for the progress bar.
        merge: how the adapter was joined to the base.
    """
    references = questions.rows if questions.wants_losses else []
    num_answers = len(questions.rows) if questions.wants_answers else 0
    with sheet.path.open("a", encoding="utf-8", newline="\n") as file, _progress() as bar:
        say(f"{who}: {len(references)} references, {len(questions.general)} general rows, {num_answers} answers")
        began = time.perf_counter()

        def add(line: dict[str, Any]) -> None:
            nonlocal began
            now = time.perf_counter()
            sheet.add(file, {**line, "seconds": round(now - began, 4)})
            began = now

        if merge:
            add({"merge": merge})
        for name, what, rows, known in (
            ("row", "references", references, sheet.losses),
            ("general", "general rows", questions.general, sheet.general_losses),
        ):
            for index in bar.track(range(len(rows)), description=f"{who}: {what}"):
                if index not in known:
                    loss = reference_loss(model, rows[index])
                    if not math.isfinite(loss):
                        raise RunError(
                            f"{who}: the loss on {what} is {loss} at number {index + 1}, so nothing can be said of it. "
                            "In fp16 a model may overflow: score it on the CPU with --train.use_cpu true."
                        )
                    add({name: index, "loss": loss})
        if questions.wants_answers:
            prompts = [row["input_ids"][: row["prompt_tokens"]] for row in questions.rows]
            task = bar.add_task(f"{who}: answers", total=len(prompts), completed=len(sheet.answers))
            known_answers = frozenset(sheet.answers)
            found = generate_answers(
                model, tokenizer, prompts, recipe.generate,
                seed=recipe.train["seed"], answered=known_answers, learnt_end=questions.learnt_end,
            )  # fmt: skip
            for index, answer in found:
                add({"row": index, **asdict(answer)})
                bar.advance(task)


@torch.inference_mode()
def reference_loss(model: PreTrainedModel, row: Encoded) -> float:
    """Mean negative log-likelihood of a row's learnt tokens, in nats a token."""
    ids = torch.tensor([row["input_ids"]], device=model.device)
    count = sum(row["completion_mask"])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, -count:]))


@contextmanager
def told_memory() -> Iterator[None]:
    """Turn a GPU that is full into an error that says what is kept and what to lower.

    Raises:
        RunError: if it is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            "the GPU's memory is full. What was answered is kept; lower generate.batch_size, then run it again."
        ) from error


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
