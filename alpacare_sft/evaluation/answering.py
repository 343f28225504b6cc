"""What one model answers and how well it predicts the references, written down as it comes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alpacare_sft.errors import RunError
from alpacare_sft.evaluation.generation import Answer, generate_answers
from alpacare_sft.run.directory import json_sha256
from alpacare_sft.run.json_lines import ResponseCache
from alpacare_sft.runtime import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alpacare_sft.recipe.loading import Recipe

Encoded = Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationRequests:
    """What every model is asked.

    Attributes:
        rows: encoded, references whole: `input_ids`, `completion_mask` and `prompt_tokens`.
        general: encoded rows of no medical content, for the loss alone.
        wants_answers: whether a score needs written answers.
        wants_losses: whether the loss on the references is asked for.
        answer_end: token that training taught to end an answer with.
    """

    rows: Sequence[Encoded]
    general: Sequence[Encoded]
    wants_answers: bool
    wants_losses: bool
    answer_end: int

    def num_beyond(self, context: int | None, max_new_tokens: int) -> int:
        """Rows of which a reference, or an answer of full length, goes past what the model has positions for."""
        answer = max_new_tokens if self.wants_answers else 0
        ends = [max(len(row["input_ids"]), row["prompt_tokens"] + answer) for row in self.rows]
        return sum(end > (context or end) for end in ends)

    def fingerprint(self, *context: Any) -> str:
        """Hash of the rows' token ids and of what else decides the answers; the general rows never change."""
        ids = [[list(row["input_ids"]), row["prompt_tokens"]] for row in self.rows]
        return json_sha256([ids, *context], default=str)


@dataclass
class ModelResponses:
    """Answers and losses of one model, in a file that grows row by row, so that a stop loses one batch.

    Attributes:
        path: of the responses; see `ResponseCache`.
        losses: mean negative log-likelihood of a reference by row, teacher forced, in nats a token.
        answers: by row.
        general_losses: as `losses`, of the general rows.
        merge: how the adapter was joined to the base, once that is known.
        seconds: spent on all of it, stops left out.
        outdated: answers in the file that were written with other settings or versions.
        fingerprints: by kind of responses, a hash of all that decides it.
    """

    path: Path
    losses: dict[int, float] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)
    general_losses: dict[int, float] = field(default_factory=dict)
    merge: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    outdated: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)
    _cache: ResponseCache = field(default_factory=lambda: ResponseCache(None))

    @classmethod
    def open(cls, path: Path, model: str, generate: Mapping[str, Any]) -> ModelResponses:
        """The responses at a path: those that are of the same model and settings.

        Args:
            path: of the file, which need not exist.
            model: hash of all that decides a loss.
            generate: what decides an answer besides.
        """
        answer = json_sha256([model, generate])
        responses = cls(path, fingerprints=dict.fromkeys(("loss", "general", "merge"), model) | {"answer": answer})
        responses._cache = ResponseCache(path)
        for key, entry in responses._cache.entries.items():
            kind, number, fingerprint = [*key.split(":"), "", ""][:3]
            if responses.fingerprints.get(kind) == fingerprint:
                responses._take(kind, number, entry)
            else:
                responses.outdated += kind == "answer"
        return responses

    def lacks(self, requests: EvaluationRequests) -> bool:
        """Whether something is left to ask."""
        lacks_answers = requests.wants_answers and len(self.answers) < len(requests.rows)
        if lacks_answers and self.outdated and not self.answers:
            say(
                f"{self.path}: {self.outdated} answers were written with other settings or versions, and are requested "
                "again."
            )
        return bool(
            lacks_answers
            or (requests.wants_losses and len(self.losses) < len(requests.rows))
            or len(self.general_losses) < len(requests.general)
        )

    def add(self, kind: str, index: int, entry: Mapping[str, Any]) -> None:
        """Keep one responses: `loss`, `general`, `answer`, or `merge`."""
        self._take(kind, str(index), entry)
        self._cache.add(f"{kind}:{index}:{self.fingerprints[kind]}", entry)

    def _take(self, kind: str, number: str, entry: Mapping[str, Any]) -> None:
        values = dict(entry)
        seconds = values.pop("seconds", 0.0)
        try:
            if kind == "merge":
                self.merge = values
            elif kind == "answer":
                self.answers[int(number)] = Answer(**values)
            else:
                (self.losses if kind == "loss" else self.general_losses)[int(number)] = float(values["loss"])
        except (ValueError, TypeError, KeyError):
            return  # damaged: requested again
        self.seconds += seconds


def collect_responses(
    responses: ModelResponses,
    requests: EvaluationRequests,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    who: str,
    merge: dict[str, Any],
) -> None:
    """Have a model answer what is not answered yet.

    Args:
        responses: continued in place.
        requests: what the model is given.
        model: on its device, in evaluation mode.
        tokenizer: of the model.
        recipe: `generate`, and the seed of `train` for sampled answers.
        who: `base` or `adapter`, for the progress bar.
        merge: how the adapter was joined to the base.
    """
    references = requests.rows if requests.wants_losses else []
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in requests.rows] if requests.wants_answers else []
    say(f"{who}: {len(references)} references, {len(requests.general)} general rows, {len(prompts)} answers")
    began = time.perf_counter()

    def add(kind: str, index: int, entry: dict[str, Any]) -> None:
        nonlocal began
        now = time.perf_counter()
        responses.add(kind, index, {**entry, "seconds": round(now - began, 4)})
        began = now

    with _progress() as bar:
        if merge:
            add("merge", 0, merge)
        for kind, what, rows, known in (
            ("loss", "references", references, responses.losses),
            ("general", "general rows", requests.general, responses.general_losses),
        ):
            for index in bar.track(range(len(rows)), description=f"{who}: {what}"):
                if index not in known:
                    add(kind, index, {"loss": _finite_loss(model, rows[index], f"{who}: the loss on {what}", index)})
        if prompts:
            task = bar.add_task(f"{who}: answers", total=len(prompts), completed=len(responses.answers))
            written = generate_answers(
                model, tokenizer, prompts, recipe.generate,
                seed=recipe.train.seed, answered=frozenset(responses.answers), answer_end=requests.answer_end,
            )  # fmt: skip
            for index, answer in written:
                add("answer", index, asdict(answer))
                bar.advance(task)


def _finite_loss(model: PreTrainedModel, row: Mapping[str, Any], what: str, index: int) -> float:
    loss = reference_loss(model, row)
    if not math.isfinite(loss):
        raise RunError(
            f"{what} is {loss} at number {index + 1}, so nothing can be said of it. In fp16 a model may overflow: "
            "score it on the CPU with --train.use_cpu true."
        )
    return loss


@torch.inference_mode()
def reference_loss(model: PreTrainedModel, row: Encoded) -> float:
    """Mean negative log-likelihood of a row's tokens in the loss, in nats a token."""
    ids = torch.tensor([row["input_ids"]], device=model.device)
    count = sum(row["completion_mask"])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, -count:]))


@contextmanager
def memory_faults_reported() -> Iterator[None]:
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
