"""What happens beside the training loop: the account, the signals, and what a person sees."""

from __future__ import annotations

import math
import signal
import sys
import time
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from alpacare_sft.errors import RunError, StoppedError
from alpacare_sft.runtime import num_processes, peak_memory_bytes
from alpacare_sft.training.batches import Batch
from alpacare_sft.training.recovery import Recovery

if TYPE_CHECKING:
    from alpacare_sft.training.trainer import AnswerSFTTrainer


# The scaler halves its factor at each: 20 times is from 65,536 to 0.06, far below what any gradient needs.
MOST_SKIPPED = 20


class Account(TrainerCallback, ExportableState):
    """Throughput: seconds and tokens that checkpoints hold, so that they sum over resumes, and rows per step.

    Checkpoints name the class, so it keeps its name.
    """

    def __init__(self, seconds: float = 0.0, evaluation_seconds: float = 0.0, answer_tokens: int = 0) -> None:
        self.seconds = seconds
        self.evaluation_seconds = evaluation_seconds
        self.answer_tokens = answer_tokens
        self.batch: dict[str, int] = {}
        self.memory: dict[str, Any] = {}
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self._since: float | None = None
        self.recovery = Recovery()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Start the clock, and go on with the forwards that fitted."""
        self._since = time.monotonic()
        self.batch = asdict(Batch.of(args))  # not as the checkpoint has it
        self.recovery = Recovery(**self.memory)
        self.recovery.apply(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Count the steps that the fp16 scaler skipped.

        Raises:
            RunError: if it skipped `MOST_SKIPPED` in a row.
        """
        skipped = bool(getattr(optimizer, "step_was_skipped", False))
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise RunError(
                f"fp16 overflowed in each of the {MOST_SKIPPED} steps up to step {state.global_step}: they changed "
                "nothing. Checkpoints before them stay. Where the GPU has bfloat16 add --train.fp16 false; else "
                "lower train.learning_rate, or set model.dtype: float32."
            )

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        self.seconds, self._since = self.elapsed_seconds, None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **_: Any
    ) -> None:
        """Keep evaluation apart, so that tokens per second speak of training."""
        self.evaluation_seconds += metrics.get("eval_runtime", 0.0)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds in the training loop, over all sessions of the run."""
        return self.seconds + (time.monotonic() - self._since if self._since is not None else 0.0)

    def tokens_per_second(self, tokens: int) -> float:
        """Speed of training, evaluation left out."""
        return tokens / max(self.elapsed_seconds - self.evaluation_seconds, 1e-9)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; see `ExportableState`."""
        values = {
            "seconds": self.elapsed_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "answer_tokens": self.answer_tokens,
        }
        memory = vars(self.recovery)
        kept = {"batch": self.batch, "memory": memory, "skipped_steps": self.skipped_steps}
        return {"args": values, "attributes": kept}


class StopOnSignal(TrainerCallback):
    """SIGTERM, SIGINT and the end of the time finish the step, save a checkpoint and end the loop.

    Used as a context manager around a run. Before the loop there is nothing to save, and a signal
    raises `StoppedError` at once. A second signal acts as if this class were not there.

    Args:
        stop_after_seconds: of this process's life; the longest time between two steps so far, in which a checkpoint
            may have been written and an evaluation made, is left twice.
    """

    def __init__(self, stop_after_seconds: float | None = None) -> None:
        import psutil

        lived = time.time() - psutil.Process().create_time()  # from here on by a clock that nobody sets
        self.end = math.inf if stop_after_seconds is None else time.monotonic() + stop_after_seconds - lived
        self.longest_seconds = 0.0
        self._last = math.inf
        self.requested = False
        self.in_loop = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, self._previous[number])
        self.requested = True
        if not self.in_loop:
            raise StoppedError(f"stopped by {signal.Signals(number).name} before training began. Run it again.")
        name = signal.Signals(number).name
        print(f"\n{name}: finishing this step and saving a checkpoint.", file=sys.stderr, flush=True)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """From here on a signal waits for the end of the step."""
        self.in_loop = True
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask the trainer to save and stop; all processes agree on the step."""
        now = time.monotonic()
        self.longest_seconds, self._last = max(self.longest_seconds, now - self._last), now
        requested = self.requested or now + 2 * self.longest_seconds >= self.end
        if num_processes() > 1:
            from accelerate.utils import reduce

            requested = bool(reduce(torch.tensor(float(requested), device=args.device), reduction="sum") > 0)
        if requested:
            self.requested = True
            control.should_save = control.should_training_stop = True


class Terminal(TrainerCallback):
    """A progress bar on a terminal; in a log one line every `logging_steps`."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.loss = ""
        self._start: tuple[float, int, int] = (0.0, 0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the bar, if a person is there to see it."""
        self._start = (time.monotonic(), state.num_input_tokens_seen, state.global_step)
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        from rich.console import Console

        self.progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self.task = self.progress.add_task("", total=state.max_steps, completed=state.global_step, told="")
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self.progress is not None and self.task is not None:
            told = f"{self.loss}{self._speed(state):,.0f} tokens/s"
            self.progress.update(self.task, completed=state.global_step, told=told)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Tell losses as they come."""
        if not state.is_world_process_zero:
            return
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.4f}  "
            if self.progress is None:
                left = self._seconds_left(state)
                rate = f"learning rate {logs['learning_rate']:.2e}"
                print(f"{step}  {self.loss}{rate}  {self._speed(state):,.0f} tokens/s  {left} left", flush=True)
        elif "eval_loss" in logs:
            line = f"{step}  validation loss {logs['eval_loss']:.4f}"
            (print(line, flush=True) if self.progress is None else self.progress.console.print(line))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the bar as it stands, and give the terminal back."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _speed(self, state: TrainerState) -> float:
        began, tokens, _ = self._start
        return float(state.num_input_tokens_seen - tokens) / max(time.monotonic() - began, 1e-9)

    def _seconds_left(self, state: TrainerState) -> str:
        began, _, step = self._start
        each = (time.monotonic() - began) / max(state.global_step - step, 1)
        minutes, seconds = divmod(int(each * (state.max_steps - state.global_step)), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def summarize_training(trainer: AnswerSFTTrainer) -> dict[str, Any]:
    """The section `train` of a record: steps, speed, memory and losses."""
    state, account = trainer.state, trainer.account
    losses = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    evaluations = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    last_evaluation = max(evaluations, default=None)
    weighted, last = 0.0, 0
    for step, loss in losses:
        weighted, last = weighted + loss * (step - last), step
    tokens = int(state.num_input_tokens_seen)
    return {
        "optimizer_steps": state.global_step,
        "seconds": round(account.elapsed_seconds, 3),
        "evaluation_seconds": round(account.evaluation_seconds, 3),
        "tokens_per_second": round(account.tokens_per_second(tokens), 1),
        "peak_memory_bytes": peak_memory_bytes(trainer.args.use_cpu),
        "train_loss": weighted / last if last else None,
        "eval_loss": evaluations.get(state.best_global_step or last_evaluation),
        "best_step": state.best_global_step or None,
        "stopped_early": state.global_step < state.max_steps,
        "effective_batch_size": Batch.of(trainer.args).rows,
        "out_of_memory": account.recovery.describe(),
        "skipped_steps": account.skipped_steps,
    }
