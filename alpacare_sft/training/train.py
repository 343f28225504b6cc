"""Recipe → trainer → adapter: the story of a run from its first lock to its last record."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.data.load import describe_sources
from alpacare_sft.data.prepare import PreparedData, prepare_data
from alpacare_sft.data.report import refuse_other_data, save_data
from alpacare_sft.errors import AlpacareError, RunError, StoppedError, first_line
from alpacare_sft.evaluation.generation import end_token_ids
from alpacare_sft.model.adapter import check_adapter, save_adapter, trainable_digests
from alpacare_sft.model.base import base_identity, check_context, check_weights, load_base_model, load_tokenizer
from alpacare_sft.model.cpu_layout import block_frozen_layers
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.recipe.resolved import refuse_removed_keys, settle
from alpacare_sft.reporting.card import save_card
from alpacare_sft.reporting.pages import save_training_report
from alpacare_sft.run.directory import WEIGHTS, RunDirectory, check_free_disk
from alpacare_sft.run.record import recorded
from alpacare_sft.run.trained import continue_run
from alpacare_sft.runtime import is_main_process, prepared_process, say
from alpacare_sft.training.batches import Batch, describe_batch, refuse_other_batch
from alpacare_sft.training.checkpoints import (
    STATE,
    Checkpoint,
    copy_checkpoints,
    ended_training,
    forget_copy,
    newest_whole_checkpoint,
    restore_checkpoints,
    saved_batch,
)
from alpacare_sft.training.config import build_sft_config, build_trainer, check_config, check_launcher, check_trackers
from alpacare_sft.training.plan import Plan, find_target

if TYPE_CHECKING:
    from trl import SFTConfig

    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.training.callbacks import StopOnSignal
    from alpacare_sft.training.trainer import AnswerSFTTrainer

_NEVER = "holds an unfinished run and resume is never. Add --resume auto to go on, or --overwrite to begin anew."
_TOKENIZER_BYTES = 20 * 2**20


@prepared_process()
def train(
    recipe: Recipe, *, overwrite: bool = False, stop_after_seconds: float | None = None, force: bool = False
) -> dict[str, Any]:
    """Run a recipe: data, training, adapter. Goes on where an unfinished run of it stopped.

    Args:
        recipe: what to do.
        overwrite: remove what an earlier run left in `output_dir` first.
        stop_after_seconds: of this process's life, after which a checkpoint is there and `StoppedError` is raised.
        force: begin even where the memory that is planned is more than there is.

    Returns:
        The record that `run.json` holds.

    Raises:
        RecipeError: if this machine lacks what the recipe asks for.
        DataError: if the rows are wrong or too few.
        ModelError: if the base model cannot be had or trained.
        RunError: if the run failed, or `output_dir` holds another one.
        StoppedError: if a signal or the time stopped it; a checkpoint was written.
    """
    from alpacare_sft.training.callbacks import StopOnSignal

    check_launcher()
    runtime.check_devices()
    threads = runtime.set_threads()
    run = RunDirectory(recipe.output_dir)
    recipe = _resolve(recipe, run, overwrite)
    precision = runtime.resolve_precision(recipe.train)
    config = build_sft_config(recipe, run, precision)
    check_config(config)  # what upstream refuses late is reported before anything is written
    with run.lock() if is_main_process() else nullcontext(), StopOnSignal(stop_after_seconds) as stop:
        with _main_process_first():
            if is_main_process():
                _clear(run, recipe, overwrite)
            record = run.read_record()
        if record.get("status") == "done" and run.has_adapter():
            say(f"{run.path}: this run is complete; use --overwrite to start over.")
            return record
        if run.holds_work() and recipe.resume == "never":
            raise RunError(f"output_dir: {run.path} {_NEVER}")
        device = runtime.describe_hardware(recipe.train.use_cpu)["device"]
        for note in (*recipe.notes, f"{precision.name} on {device}, {threads} threads, output in {run.path}"):
            say(note)
        with recorded(run, recipe, batch=dataclasses.asdict(Batch.of(config))):
            return _run(recipe, run, config, stop, force)


def _clear(run: RunDirectory, recipe: Recipe, overwrite: bool) -> None:
    """Remove what an earlier run left if that is wanted, and an adapter that is not as it was written.

    Raises:
        RunError: if such an adapter is all that is left of the training.
    """
    if overwrite:
        run.clear()
        if recipe.checkpoints.copy_to:
            forget_copy(run, recipe.checkpoints.copy_to)
    elif run.has_adapter() and (damaged := run.damaged("adapter/")):
        if recipe.resume == "never" or newest_whole_checkpoint(run.checkpoints)[0] is None:
            raise RunError(
                f"{run.path}: {', '.join(damaged)} not as written, and there is no checkpoint to make the adapter "
                "again from. Put the file back, or add --overwrite to train anew."
            )
        say(f"{run.path}: {', '.join(damaged)} not as written: the adapter is made again from its last checkpoint.")
        shutil.rmtree(run.adapter)


def _resolve(recipe: Recipe, run: RunDirectory, overwrite: bool) -> Recipe:
    """The recipe with what follows from this machine, and from the run that its directory holds."""
    if recipe.checkpoints.copy_to and recipe.resume == "auto" and not overwrite and runtime.num_processes() == 1:
        restore_checkpoints(run, recipe.checkpoints.copy_to)
    precision = runtime.resolve_precision(recipe.train)
    recipe = settle(recipe, train=dataclasses.replace(recipe.train, fp16=precision.fp16, bf16=precision.bf16))
    if run.holds_work() and not overwrite:
        recipe = continue_run(run, recipe)
        refuse_other_batch(run, recipe.train)
    else:
        refuse_removed_keys(recipe)
    check_trackers(recipe)
    return recipe


def _run(recipe: Recipe, run: RunDirectory, config: SFTConfig, stop: StopOnSignal, force: bool) -> dict[str, Any]:
    clock = _StageClock(run.read_record().get("seconds", {}))
    tokenizer = load_tokenizer(recipe.model)
    check_context(recipe.model, recipe.max_length)
    check_weights(recipe.model)  # before the work on the rows
    data = _prepare_rows(recipe, run, tokenizer)
    before: dict[str, Any] = run.read_record().get("compute", {}) if run.holds_work() else {}
    most_tokens = before["most_tokens"] if before else _check_memory(recipe, data, force)
    clock.end("data")
    precision = runtime.resolve_precision(recipe.train)
    base = load_base_model(recipe.model, precision.dtype)
    identity = base_identity(recipe.model, base)
    clock.end("model")
    trainer = build_trainer(recipe, config, data, tokenizer, base)
    trainer.add_callback(stop)
    if place := recipe.checkpoints.copy_to:
        trainer.after_save = partial(copy_checkpoints, run, place)
    if trainer.packer and most_tokens:
        trainer.packer.most_tokens = min(trainer.packer.most_tokens, most_tokens)
    parameters, untrained = check_adapter(trainer.model), trainable_digests(trainer.model)
    say(f"LoRA: {parameters['trainable']:,} of {parameters['total']:,} parameters are trained")
    say(describe_batch(Batch.of(config)))
    check_free_disk(run.path, _disk_need_bytes(recipe, parameters["trainable"]))
    may_block = precision.name == "fp32" and runtime.num_processes() == 1 and not recipe.train.torch_compile
    num_blocked = block_frozen_layers(trainer.model, before.get("layers_in_blocks")) if may_block else 0
    if is_main_process():  # what decides the order of sums, and must not change when the run goes on
        run.update_record({"compute": {"most_tokens": most_tokens, "layers_in_blocks": num_blocked}})
    _train_or_resume(trainer, recipe, run)
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise StoppedError(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, a checkpoint is in "
            f"{run.checkpoints}. Run it again to go on."
        )
    if not is_main_process():
        return {}
    clock.end("train", trainer.account.elapsed_seconds)
    save_adapter(trainer, run, identity, untrained)
    clock.end("save")
    encoder = PromptEncoder(tokenizer, recipe.prompt)
    facts = {
        "base_model": identity,
        "end_token_ids": end_token_ids(base, tokenizer, encoder.end_token_id()),
        "default_system": encoder.default_system(),
        "parameters": parameters,
        "seconds": {stage: round(value, 3) for stage, value in clock.seconds.items()},
    }
    return _complete(recipe, run, trainer, facts)


def _complete(recipe: Recipe, run: RunDirectory, trainer: AnswerSFTTrainer, facts: dict[str, Any]) -> dict[str, Any]:
    """Record, card and report of a training whose adapter is saved."""
    from alpacare_sft.training.callbacks import summarize_training

    tokens = {"trained": trainer.state.num_input_tokens_seen, "answer": trainer.account.answer_tokens}
    record = run.update_record({**facts, "tokens": tokens, "train": summarize_training(trainer)})
    save_card(run, recipe)
    save_training_report(run.training_report, record, trainer.state.log_history)
    run.seal(*(path for path in run.adapter.rglob("*") if path.is_file() and path.name not in ("README.md", STATE)))
    record = run.update_record({"status": "done"})
    (run.adapter / STATE).unlink()
    say(_summary(run, record))
    return record


class _StageClock:
    """Seconds of each stage, summed over resumes."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = dict(seconds)
        self.since = time.monotonic()

    def end(self, stage: str, total: float | None = None) -> None:
        """A stage ends here; `total` is its sum where something else has measured it."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.since if total is None else total
        self.since = now


def _prepare_rows(recipe: Recipe, run: RunDirectory, tokenizer: Any) -> PreparedData:
    with _main_process_first():
        data = prepare_data(recipe, tokenizer)
    rows = data.report["rows"]
    if is_main_process():
        refuse_other_data(run, data)
        save_data(run, data, tokenizer)
        run.update_record({"data_sha256": data.sha256, "data_commit": data.report["commit"], "rows": rows})
    say(
        f"rows: {rows['train']:,} train, {rows['validation']:,} validation, {rows['test']:,} test of {rows['loaded']:,}"
    )
    for note in [*describe_sources(data.report["sources"]), *data.report["unused_sources"]]:
        say(note)
    return data


def _check_memory(recipe: Recipe, data: PreparedData, force: bool) -> int | None:
    """Refuse what cannot fit; the tokens of a forward that can, where `forward.rows` asks for them.

    Several processes may share the weights out among them, which is not planned for.
    """
    if runtime.num_processes() > 1:
        return None
    try:
        plan = Plan(recipe, find_target(None, recipe.train.use_cpu), data)
        if not force:
            plan.refuse_what_cannot_fit()
        return plan.most_tokens() if recipe.forward.rows else None
    except AlpacareError:
        raise
    except Exception as error:  # operations without a rule for tensors that have no contents; training needs none
        say(f"memory is not planned for, as this model's step cannot be traced: {first_line(error)}.")
        return None


@contextmanager
def _main_process_first() -> Iterator[None]:
    """The first process fetches what is not cached yet, the others read it."""
    if runtime.num_processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def _disk_need_bytes(recipe: Recipe, trainable: int) -> int:
    """Room for the checkpoints that exist at once and the adapter: weights and two moments in float32."""
    number = (recipe.train.save_total_limit or 20) + 1
    return number * (trainable * 4 * 3 + _TOKENIZER_BYTES) + trainable * 4 + _TOKENIZER_BYTES


def _train_or_resume(trainer: AnswerSFTTrainer, recipe: Recipe, run: RunDirectory) -> None:
    if ended := ended_training(run):
        _restore_ended(trainer, ended, ended.path)
        return
    with _main_process_first():
        checkpoint, skipped = newest_whole_checkpoint(run.checkpoints)
        for path, fault in skipped:
            say(f"{path.name} is skipped: {fault}.")
            if is_main_process():
                shutil.rmtree(path)
        if checkpoint and is_main_process() and trainer.args.load_best_model_at_end:
            checkpoint.adopt()
    if checkpoint is None:
        trainer.train()
    elif checkpoint.is_complete(recipe.early_stopping.patience):
        best = checkpoint.best() if trainer.args.load_best_model_at_end else checkpoint.path
        _restore_ended(trainer, checkpoint, best)
    else:
        say(f"going on from step {checkpoint.step} of {checkpoint.state['max_steps']}.")
        written, now = saved_batch(checkpoint.state), Batch.of(trainer.args)
        if written and Batch(**written) != now:
            say(
                f"the checkpoint was written with {Batch(**written)}, now it is {now}: rows and schedule stay, "
                "the draws of dropout differ."
            )
        trainer.train(resume_from_checkpoint=str(checkpoint.path))


def _restore_ended(trainer: AnswerSFTTrainer, ended: Checkpoint, weights: Path) -> None:
    """Put a trainer where it was when its loop had ended, without taking a step."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    say(f"training had ended at step {ended.step}; what was left is to save the adapter.")
    trainer.state = TrainerState.load_from_json(str(ended.path / STATE))
    trainer._load_callback_state()
    set_peft_model_state_dict(trainer.model, load_file(weights / WEIGHTS))


def _summary(run: RunDirectory, record: Mapping[str, Any]) -> str:
    train = record["train"]
    loss = ""
    if train["eval_loss"] is not None:
        loss = f", validation loss {train['eval_loss']:.4f} at step {train['best_step'] or train['optimizer_steps']}"
    return (
        f"done: {train['optimizer_steps']} steps in {train['seconds']:.0f} s, "
        f"{train['tokens_per_second']:,.0f} tokens/s{loss}\n"
        f"  adapter   {run.adapter}\n  curves    {run.training_report}\n  data      {run.data / 'report.html'}\n"
        f"  record    {run.record}"
    )
