"""Recipe → trainer → adapter: the story of a run from its first lock to its last record."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from alpacare_sft import runtime
from alpacare_sft.data.prepare import prepare_data
from alpacare_sft.data.report import describe_sources
from alpacare_sft.data.saving import refuse_other_data, save_data
from alpacare_sft.errors import RunError, StoppedError
from alpacare_sft.evaluation.generation import end_token_ids
from alpacare_sft.model.adapter import check_adapter, save_adapter
from alpacare_sft.model.base import base_identity, check_context, check_weights, load_base_model, load_tokenizer
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.recipe.resolved import refuse_removed_keys, settle
from alpacare_sft.reporting.card import save_card
from alpacare_sft.reporting.pages import save_training_report
from alpacare_sft.run.directory import WEIGHTS, RunDirectory, check_free_disk
from alpacare_sft.run.record import effective_batch_size, recorded, summarize_training
from alpacare_sft.run.trained import continue_run
from alpacare_sft.runtime import is_main_process, say
from alpacare_sft.training.checkpoints import Checkpoint, newest_whole_checkpoint
from alpacare_sft.training.config import build_sft_config, build_trainer, check_trackers
from alpacare_sft.training.upstream import check_config, check_launcher

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe
    from alpacare_sft.training.callbacks import StopOnSignal
    from alpacare_sft.training.trainer import AnswerSFTTrainer

_TOKENIZER_BYTES = 20 * 2**20


def train(recipe: Recipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Run a recipe: data, training, adapter. Goes on where an unfinished run of it stopped.

    Args:
        recipe: what to do.
        overwrite: remove what an earlier run left in `output_dir` first.

    Returns:
        The record that `run.json` holds.

    Raises:
        RecipeError: if this machine lacks what the recipe asks for.
        DataError: if the rows are wrong or too few.
        ModelError: if the base model cannot be had or trained.
        RunError: if the run failed, or `output_dir` holds another one.
        StoppedError: if a signal stopped it; a checkpoint was written.
    """
    from alpacare_sft.training.callbacks import StopOnSignal

    check_launcher()
    runtime.check_devices()
    threads = runtime.set_threads()
    recipe = _settle_precision(recipe)
    run = RunDirectory(recipe.output_dir)
    if run.holds_work() and not overwrite:
        recipe = continue_run(run, recipe)
    else:
        refuse_removed_keys(recipe)
    precision = runtime.resolve_precision(recipe.train)
    check_trackers(recipe)
    check_config(build_sft_config(recipe, run, precision))  # what upstream refuses is told before anything is written
    with run.lock() if is_main_process() else nullcontext(), StopOnSignal() as stop:
        with _main_process_first():
            if overwrite and is_main_process():
                run.clear()
            record = run.read_record()
        if record.get("status") == "done" and run.has_adapter():
            say(f"{run.path} holds this run, done: nothing to do. --overwrite runs it anew.")
            return record
        if run.holds_work() and recipe.resume == "never":
            raise RunError(
                f"output_dir: {run.path} holds an unfinished run and resume is never. "
                "Add --resume auto to go on, or --overwrite to begin anew."
            )
        for note in recipe.notes:
            say(note)
        device = runtime.describe_hardware(recipe.train["use_cpu"])["device"]
        say(f"{precision.name} on {device}, {threads} threads, output in {run.path}")
        with recorded(run, recipe):
            return _run(recipe, run, stop, precision)


def _run(recipe: Recipe, run: RunDirectory, stop: StopOnSignal, precision: runtime.Precision) -> dict[str, Any]:
    seconds: dict[str, float] = dict(run.read_record().get("seconds", {}))
    clock = time.monotonic()

    def spent(stage: str) -> None:
        nonlocal clock
        now = time.monotonic()
        seconds[stage] = seconds.get(stage, 0.0) + now - clock
        clock = now

    tokenizer = load_tokenizer(recipe.model)
    check_context(recipe.model, recipe.train["max_length"])
    check_weights(recipe.model)  # before the work on the rows
    with _main_process_first():
        data = prepare_data(recipe, tokenizer)
    if is_main_process():
        refuse_other_data(run, data)
        save_data(run, data, tokenizer)
        run.update_record(
            {"data_sha256": data.sha256, "data_commit": data.report["commit"], "rows": data.report["rows"]}
        )
    rows = data.report["rows"]
    say(
        f"rows: {rows['train']:,} train, {rows['validation']:,} validation, {rows['test']:,} test of {rows['loaded']:,}"
    )
    for note in [*describe_sources(data.report["sources"]), *data.report["unused_sources"]]:
        say(note)
    spent("data")
    base = load_base_model(recipe.model, precision.dtype)
    identity = base_identity(recipe.model, base)
    spent("model")
    trainer = build_trainer(recipe, run, data, tokenizer, base, precision)
    trainer.add_callback(stop)
    parameters = check_adapter(trainer.model)
    say(f"LoRA: {parameters['trainable']:,} of {parameters['total']:,} parameters are trained")
    say(f"each step learns {effective_batch_size(trainer)} rows, over {trainer.args.world_size} process(es)")
    check_free_disk(run.path, _disk_need_bytes(recipe, parameters["trainable"]))
    _train_or_resume(trainer, recipe, run)
    account = trainer.account
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise StoppedError(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, a checkpoint is in "
            f"{run.checkpoints}. Run it again to go on."
        )
    seconds["train"] = account.elapsed_seconds
    clock = time.monotonic()
    if is_main_process():
        save_adapter(trainer, run.adapter, identity)
        spent("save")
        record = run.update_record(
            {
                "base_model": identity,
                "end_token_ids": end_token_ids(base, tokenizer, PromptEncoder(tokenizer, recipe.prompt).end_token_id()),
                "parameters": parameters,
                "tokens": {"trained": int(trainer.state.num_input_tokens_seen), "answer": account.answer_tokens},
                "train": summarize_training(trainer, account),
                "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            }
        )
        save_card(run, recipe)
        save_training_report(run.training_report, record, trainer.state.log_history)
        record = run.update_record({"status": "done"})
        say(_farewell(run, record))
        return record
    return {}


def _settle_precision(recipe: Recipe) -> Recipe:
    """The recipe with the precision that it names, or that suits this machine."""
    precision = runtime.resolve_precision(recipe.train)
    return settle(recipe, train={**recipe.train, "fp16": precision.fp16, "bf16": precision.bf16})


@contextmanager
def _main_process_first() -> Iterator[None]:
    """The first process fills the cache of `datasets`, the others read it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def _disk_need_bytes(recipe: Recipe, trainable: int) -> int:
    """Room for the checkpoints kept at once and the adapter: weights and two moments in float32."""
    kept = (recipe.train["save_total_limit"] or 20) + 1
    return kept * (trainable * 4 * 3 + _TOKENIZER_BYTES) + trainable * 4 + _TOKENIZER_BYTES


def _train_or_resume(trainer: AnswerSFTTrainer, recipe: Recipe, run: RunDirectory) -> None:
    checkpoint, passed_over = newest_whole_checkpoint(run.checkpoints)
    for path, fault in passed_over:
        say(f"{path.name} is passed over: {fault}.")
        if is_main_process():
            shutil.rmtree(path)
    if checkpoint is None:
        trainer.train()
    elif checkpoint.is_complete(recipe.early_stopping.patience):
        say(f"training had ended at step {checkpoint.step}; what was left is to save the adapter.")
        _restore_ended(trainer, checkpoint)
    else:
        if is_main_process() and trainer.args.load_best_model_at_end:
            checkpoint.adopt()
        say(f"going on from step {checkpoint.step} of {checkpoint.state['max_steps']}.")
        trainer.train(resume_from_checkpoint=str(checkpoint.path))


def _restore_ended(trainer: AnswerSFTTrainer, checkpoint: Checkpoint) -> None:
    """Put a trainer where it was when its loop had ended, without taking a step."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    trainer.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))
    trainer._load_callback_state()
    source = checkpoint.best() if trainer.args.load_best_model_at_end else checkpoint.path
    set_peft_model_state_dict(trainer.model, load_file(source / WEIGHTS))


def _farewell(run: RunDirectory, record: Mapping[str, Any]) -> str:
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
