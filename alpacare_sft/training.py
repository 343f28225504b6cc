"""Recipe → trainer → adapter: the run from its first lock to its last record."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft import hardware
from alpacare_sft.checkpoints import Checkpoint, newest_whole_checkpoint
from alpacare_sft.data import PreparedData, prepare_data
from alpacare_sft.data.prepare import jsonl
from alpacare_sft.data.report import describe_rows
from alpacare_sft.errors import DataError, ModelError, RecipeError, RunError, StoppedError
from alpacare_sft.model import base_identity, check_adapter, load_base_model, load_tokenizer
from alpacare_sft.recipe.writing import given_values, read_resolved, recipe_differences, recipe_sha256, recipe_yaml
from alpacare_sft.report import save_data_report, save_training_report
from alpacare_sft.run import RunDirectory, check_free_disk, new_directory, write_json, write_text

if TYPE_CHECKING:
    from trl import SFTConfig

    from alpacare_sft.callbacks import Account, StopOnSignal
    from alpacare_sft.recipe import Recipe
    from alpacare_sft.trainer import AnswerSFTTrainer

PACKAGES = (
    "alpacare_sft",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "tokenizers",
    "bitsandbytes",
)
_TOKENIZER_BYTES = 20 * 2**20


def is_main_process() -> bool:
    """Whether this process writes; a launcher gives each its rank."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """One line for a person, from one process."""
    if is_main_process():
        print(message, flush=True)


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
    from alpacare_sft.callbacks import StopOnSignal

    hardware.check_devices()
    threads = hardware.set_threads()
    precision = hardware.resolve_precision(recipe.train)
    recipe = dataclasses.replace(recipe, train={**recipe.train, "fp16": precision.fp16, "bf16": precision.bf16})
    run = RunDirectory(recipe.output_dir)
    with run.lock() if is_main_process() else nullcontext(), StopOnSignal() as stop:
        if overwrite and is_main_process():
            run.clear()
        record = run.read_record()
        if record.get("status") == "done":
            _refuse_other_recipe(run, recipe)
            say(f"{run.path} holds this run, done: nothing to do. --overwrite runs it anew.")
            return record
        if record:
            if recipe.resume == "never":
                raise RunError(
                    f"output_dir: {run.path} holds an unfinished run and resume is never. "
                    "Add --resume auto to go on, or --overwrite to begin anew."
                )
            _refuse_other_recipe(run, recipe)
        for note in recipe.notes:
            say(note)
        say(f"{precision.name} on {hardware.describe_hardware()['device']}, {threads} threads, output in {run.path}")
        with _recorded(run, recipe):
            return _run(recipe, run, stop, precision)


def _refuse_other_recipe(run: RunDirectory, recipe: Recipe) -> None:
    if not run.recipe.exists():
        return
    differences = recipe_differences(read_resolved(run.recipe), recipe)
    if differences:
        told = "\n".join(f"  - {difference}" for difference in differences)
        raise RunError(
            f"output_dir: {run.path} holds a run of another recipe:\n{told}\n"
            "Choose another output_dir, or add --overwrite to replace it."
        )


@contextmanager
def _recorded(run: RunDirectory, recipe: Recipe) -> Iterator[None]:
    """Write the record at the start, and how it ended if that is not `done`."""
    import torch

    if is_main_process():
        write_text(run.recipe, recipe_yaml(recipe))
        run.update_record(
            {
                "status": "running",
                "recipe_sha256": recipe_sha256(recipe),
                "versions": {name: version for name in PACKAGES if (version := _version(name))},
                "git_commit": _git_commit(),
                "hardware": hardware.describe_hardware(),
                "seed": recipe.train["seed"],
                "error": None,
            }
        )
    try:
        yield
    except BaseException as error:
        if isinstance(error, torch.OutOfMemoryError):
            told: BaseException = RunError(_out_of_memory(recipe))
        elif isinstance(error, KeyboardInterrupt):
            told = StoppedError("stopped by SIGINT. Run it again to go on from the last checkpoint.")
        else:
            told = error
        if is_main_process():
            status = "stopped" if isinstance(told, StoppedError) else "failed"
            run.update_record({"status": status, "error": f"{type(told).__name__}: {told}"})
        if told is error:
            raise
        raise told from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the directory that the run was started in, if it is in a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _out_of_memory(recipe: Recipe) -> str:
    train = recipe.train
    size, parts = train["per_device_train_batch_size"], train["gradient_accumulation_steps"]
    hints = []
    if size > 1:
        hints.append(
            f"train.per_device_train_batch_size {max(1, size // 2)} with train.gradient_accumulation_steps "
            f"{parts * 2} (the same step)"
        )
    if train["activation_checkpointing"] is False:
        hints.append("train.activation_checkpointing true (the same loss, about a third slower)")
    hints.append(f"train.max_length below {train['max_length']}")
    if recipe.model.quantization is None:
        hints.append("model.quantization nf4")
    return f"the card's memory is full. The last checkpoint is kept. Change one of: {'; '.join(hints)}."


def _run(recipe: Recipe, run: RunDirectory, stop: StopOnSignal, precision: hardware.Precision) -> dict[str, Any]:
    seconds: dict[str, float] = dict(run.read_record().get("seconds", {}))
    clock = time.monotonic()

    def spent(stage: str) -> None:
        nonlocal clock
        now = time.monotonic()
        seconds[stage] = seconds.get(stage, 0.0) + now - clock
        clock = now

    tokenizer = load_tokenizer(recipe.model)
    with _main_process_first():
        data = prepare_data(recipe, tokenizer)
    if is_main_process():
        refuse_other_data(run, data)
        save_data(run, data, tokenizer)
        run.update_record({"data_sha256": data.sha256, "rows": data.report["rows"]})
    rows = data.report["rows"]
    say(
        f"rows: {rows['train']:,} train, {rows['validation']:,} validation, {rows['test']:,} test of {rows['loaded']:,}"
    )
    spent("data")
    base = load_base_model(recipe.model, precision.dtype)
    identity = base_identity(recipe.model, base)
    spent("model")
    trainer = build_trainer(recipe, run, data, tokenizer, base, precision)
    trainer.add_callback(stop)
    parameters = check_adapter(trainer.model)
    say(f"LoRA: {parameters['trainable']:,} of {parameters['total']:,} parameters are trained")
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
                "parameters": parameters,
                "tokens": {"trained": int(trainer.state.num_input_tokens_seen), "answer": account.answer_tokens},
                "train": _summary(trainer, account),
                "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            }
        )
        save_training_report(run.training_report, record, trainer.state.log_history)
        record = run.update_record({"status": "done"})
        say(_farewell(run, record))
        return record
    return {}


@contextmanager
def _main_process_first() -> Iterator[None]:
    """The first process fills the cache of `datasets`, the others read it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def refuse_other_data(run: RunDirectory, data: PreparedData) -> None:
    """Keep the rows that an unfinished run was begun on.

    Raises:
        RunError: if `data` differs from them.
    """
    before = run.read_record().get("data_sha256")
    if before and run.checkpoints.exists() and before != data.sha256:
        changed = ", ".join(name for name, value in data.sha256.items() if before.get(name) != value)
        raise RunError(
            f"output_dir: {run.path} was begun on other rows ({changed} differ). Give it the rows it began with, "
            "choose another output_dir, or add --overwrite."
        )


def save_data(run: RunDirectory, data: PreparedData, tokenizer: Any) -> None:
    """Write the splits, their report and its page, all of them or none."""
    with new_directory(run.data) as folder:
        for name, rows in data.splits.items():
            write_text(folder / f"{name}.jsonl", jsonl(rows))
        write_json(folder / "report.json", data.report)
        save_data_report(folder / "report.html", {**data.report, **describe_rows(data.splits, tokenizer)})


def build_sft_config(recipe: Recipe, run: RunDirectory, precision: hardware.Precision) -> SFTConfig:
    """`trl.SFTConfig` of a recipe on this machine.

    Raises:
        RecipeError: if upstream refuses a value.
    """
    from trl import SFTConfig

    ours = {
        "output_dir": str(run.checkpoints),
        "completion_only_loss": True,
        "fp16": precision.fp16,
        "bf16": precision.bf16,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "restore_callback_states_from_checkpoint": True,
    }
    if not hardware.has_card():
        ours["dataloader_pin_memory"] = False  # else torch warns at every epoch
    try:
        return SFTConfig(**{**given_values(recipe, "train"), **ours})
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: {' '.join(str(error).split())}") from error


def build_trainer(
    recipe: Recipe, run: RunDirectory, data: PreparedData, tokenizer: Any, base: Any, precision: hardware.Precision
) -> AnswerSFTTrainer:
    """The trainer, its adapter in float32 and its labels compared with the mask.

    Raises:
        ModelError: if the adapter does not fit the model.
        DataError: if the labels are not what the mask says.
    """
    import torch
    from peft import LoraConfig
    from transformers import EarlyStoppingCallback

    from alpacare_sft.callbacks import Account, Terminal
    from alpacare_sft.trainer import AnswerSFTTrainer

    config = build_sft_config(recipe, run, precision)
    stopping = recipe.early_stopping
    early = [EarlyStoppingCallback(stopping.patience, stopping.threshold)] if stopping.patience else []
    try:
        trainer = AnswerSFTTrainer(
            model=base,
            args=config,
            train_dataset=data.splits["train"].select_columns(["input_ids", "completion_mask"]),
            eval_dataset=data.splits["validation"].select_columns(["input_ids", "completion_mask"])
            if recipe.evaluates_during_training
            else None,
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **given_values(recipe, "lora")),
            callbacks=[Account(), *early],
        )
    except ValueError as error:
        message = " ".join(str(error).split())
        if "arget modules" in message or "target_modules" in message:
            raise ModelError(f"lora.target_modules: {message}") from error
        raise
    for name in ("PrinterCallback", "ProgressCallback"):
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == name]:
            trainer.remove_callback(callback)
    trainer.add_callback(Terminal())
    for parameter in trainer.model.parameters():  # TRL casts adapters on a quantized base to bfloat16 (trl#4901)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    check_labels(trainer, data)
    return trainer


def check_labels(trainer: AnswerSFTTrainer, data: PreparedData, num_rows: int = 8) -> None:
    """Compare the labels that reach the model with the completion mask, on the first rows.

    Raises:
        DataError: if a prompt token would be learnt, or an answer token would not.
    """
    if trainer.args.packing or trainer.args.shuffle_dataset:
        return  # rows are joined or reordered, there is no first row to compare
    rows = data.splits["train"].select(range(min(num_rows, len(data.splits["train"]))))
    for index, row in enumerate(rows):
        labels = trainer.data_collator([trainer.train_dataset[index]])["labels"][0].tolist()
        wanted = [
            token if learnt else -100 for token, learnt in zip(row["input_ids"], row["completion_mask"], strict=True)
        ]
        if labels[: len(wanted)] != wanted:
            raise DataError(
                f"row {row['id']}: the labels are not those of its answer. Report this with the versions in use."
            )


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
    set_peft_model_state_dict(trainer.model, load_file(source / "adapter_model.safetensors"))


def save_adapter(trainer: AnswerSFTTrainer, target: Path, identity: Mapping[str, str | None]) -> None:
    """Write the adapter at once, load it back and make sure that it is the one in memory, and alive.

    Raises:
        RunError: if what was written differs, or learnt nothing.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = identity["name"], identity["revision"]
    with new_directory(target) as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        trainer.processing_class.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # upstream's empty card
        written = load_file(folder / "adapter_model.safetensors")
        memory = get_peft_model_state_dict(model, save_embedding_layers=False)
        same = [name for name, value in written.items() if name in memory and torch.equal(value, memory[name].cpu())]
        if not len(same) == len(written) == len(memory):
            raise RunError(f"{len(memory) - len(same)} tensors of the adapter differ on disk. Check the disk.")
        alive = [name for name, value in written.items() if "lora_B" in name and bool(value.abs().max() > 0)]
        if not alive and trainer.state.global_step > 0:
            raise RunError("the adapter learnt nothing: every lora_B is zero. Check train.learning_rate.")


def _summary(trainer: AnswerSFTTrainer, account: Account) -> dict[str, Any]:
    state = trainer.state
    losses = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    evaluations = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    weighted, last = 0.0, 0
    for step, loss in losses:
        weighted, last = weighted + loss * (step - last), step
    tokens = int(state.num_input_tokens_seen)
    stopped_early = state.global_step < state.max_steps
    return {
        "optimizer_steps": state.global_step,
        "seconds": round(account.elapsed_seconds, 3),
        "evaluation_seconds": round(account.evaluation_seconds, 3),
        "tokens_per_second": round(account.tokens_per_second(tokens), 1),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
        "train_loss": weighted / last if last else None,
        "eval_loss": state.best_metric if state.best_metric is not None else (evaluations[-1] if evaluations else None),
        "best_step": state.best_global_step or None,
        "stopped_early": stopped_early,
        "effective_batch_size": trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size,
    }


def _farewell(run: RunDirectory, record: Mapping[str, Any]) -> str:
    train = record["train"]
    loss = f", validation loss {train['eval_loss']:.4f} at step {train['best_step'] or train['optimizer_steps']}"
    return (
        f"done: {train['optimizer_steps']} steps in {train['seconds']:.0f} s, "
        f"{train['tokens_per_second']:,.0f} tokens/s{loss if train['eval_loss'] is not None else ''}\n"
        f"  adapter   {run.adapter}\n  curves    {run.training_report}\n  data      {run.data / 'report.html'}\n"
        f"  record    {run.record}"
    )
