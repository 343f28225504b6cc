"""The process: its settings while this package works in it; the machine, and what follows for precision and threads."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

    from alpacare_sft.recipe.upstream_sections import TrainSection


# OpenMP reads these once, when torch is imported. A waiting thread that spins takes its core from whatever else runs,
# one that sleeps at once wakes late: on two cores training took 1.14 times as long with threads that sleep at once,
# 1.02 times with these.
# torch's allocator takes huge pages: a training step of 8 rows on two cores was 1.2 times as fast, at 2 rows equal.
_BEFORE_TORCH = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000", "THP_MEM_ALLOC_ENABLE": "1"}
# What reports to others: TRL 1.16 sends a note of each run, datasets 5.2 of each file it reads. Each library reads its
# variable once, at import, into the constant beside it.
_REPORTS = {
    "HF_HUB_DISABLE_TELEMETRY": ("1", "huggingface_hub.constants", True),
    "HF_UPDATE_DOWNLOAD_COUNTS": ("0", "datasets.config", False),
}
# What torch was built with, in its own words: libraries of kernels and their versions.
_LIBRARIES = re.compile(r"(?:Math Kernel Library Version|MKL-DNN|OpenBLAS|OpenMP|CUDA Runtime|CuDNN) v?[\d.]+\d")
_PROGRESS_BARS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "transformers.utils.logging",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "datasets.utils.tqdm",
}
_QUIET_LOGGERS = {
    # bitsandbytes 0.50 tells of an optional kernel at import, on machines that never quantize.
    "bitsandbytes.backends.cpu.ops": logging.ERROR,
    # datasets 5.2 prints what it raises; our error names the line as well.
    "datasets.packaged_modules": logging.CRITICAL,
}


# C0 and C1 without tab and line feed, and the bidirectional controls (UAX #9).
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def prepared_process() -> Iterator[None]:
    """Settings of this process while a public function runs; also a decorator, and may be nested.

    Afterwards warning filters, levels of loggers, progress bars, constants of libraries and the number of
    threads are the caller's again. What is read only once stays as it was set: variables that a library reads
    when it is imported, and the C library's treatment of freed memory.
    """
    set_import_variables()
    keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # peft 0.21 and trl 1.16 read transformers' old name of activation checkpointing.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # accelerate 1.15 sets this at its first import, which may have been inside an earlier call.
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim.lr_scheduler")
        _set_loggers(stack)
        _stop_reports(stack)
        if not sys.stderr.isatty():
            _hide_progress_bars(stack)
        if "TOKENIZERS_PARALLELISM" not in os.environ:  # else tokenizers warns at each later fork, as of a data loader
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            stack.callback(os.environ.pop, "TOKENIZERS_PARALLELISM", None)
        if torch := sys.modules.get("torch"):
            stack.callback(torch.set_num_threads, torch.get_num_threads())
        yield


def set_import_variables() -> None:
    """Set the variables that libraries read once, when they are imported."""
    early = {} if "torch" in sys.modules else _BEFORE_TORCH
    hidden = {} if sys.stderr.isatty() else dict.fromkeys(_PROGRESS_BARS, "1")
    for name, value in (early | hidden).items():
        os.environ.setdefault(name, value)
    for name, (off, _, _) in _REPORTS.items():
        os.environ[name] = off


def _set_loggers(stack: ExitStack) -> None:
    """Silence what upstream tells its developers; `Trainer` sets the level of transformers' loggers besides."""
    quiet = {logging.getLogger(name): level for name, level in _QUIET_LOGGERS.items()}
    loggers = (logging.root, *logging.root.manager.loggerDict.values())
    stack.callback(_set_levels, {logger: logger.level for logger in loggers if isinstance(logger, logging.Logger)})
    _set_levels(quiet)


def _set_levels(levels: Mapping[logging.Logger, int]) -> None:
    for logger, level in levels.items():
        if logger.level != level:  # setting a level walks through all loggers
            logger.setLevel(level)


def _stop_reports(stack: ExitStack) -> None:
    for constant, (_, name, off) in _REPORTS.items():
        if module := sys.modules.get(name):
            stack.callback(setattr, module, constant, getattr(module, constant))
            setattr(module, constant, off)


def _hide_progress_bars(stack: ExitStack) -> None:
    for name in _PROGRESS_BARS.values():
        module: Any = sys.modules.get(name)
        if module and module.is_progress_bar_enabled():
            module.disable_progress_bar()
            stack.callback(module.enable_progress_bar)


def keep_freed_memory() -> None:
    """Let the C library keep the blocks that tensors free, where it knows how (glibc).

    It gives each large block back to the kernel, which must then clear and map it anew at the next use: half
    of a CPU training's page faults.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h; a threshold of -1 is none, the largest `int` would be 2 GiB
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        set_option(mmap_max, 0)
        set_option(trim_threshold, -1)


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a training run: at most one of the two is true, neither is float32."""

    fp16: bool
    bf16: bool

    @property
    def name(self) -> str:
        """`fp16`, `bf16` or `fp32`."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "fp32"

    @property
    def dtype(self) -> str:
        """The torch dtype of frozen weights."""
        return {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[self.name]


def resolve_precision(train: TrainSection) -> Precision:
    """The precision that a recipe asks for, or that suits this machine if it asks for none.

    By compute capability, not by `torch.cuda.is_bf16_supported()`, which also says yes to GPUs
    that only emulate bfloat16, slowly (trl#3616): below 8.0 fp16, from 8.0 on bf16, no GPU
    float32.

    Raises:
        RecipeError: if the recipe asks for what the machine lacks.
    """
    import torch

    gpu = has_gpu(train.use_cpu)
    major = torch.cuda.get_device_capability()[0] if gpu else 0
    if train.fp16 and not gpu:
        raise RecipeError(
            "train.fp16 needs a CUDA device, none is in use. Leave precision out of the recipe to let the hardware "
            "decide, or add --train.fp16 false."
        )
    if train.bf16 and gpu and major < 8:
        raise RecipeError(
            f"train.bf16 needs a GPU of compute capability 8.0 or more, {torch.cuda.get_device_name()} has "
            f"{major}.{torch.cuda.get_device_capability()[1]} and only emulates it. Use train.fp16."
        )
    if train.fp16 or train.bf16:
        return Precision(fp16=bool(train.fp16), bf16=bool(train.bf16))
    undecided = train.fp16 is False and train.bf16 is None
    return Precision(fp16=gpu and major < 8 and undecided, bf16=gpu and major >= 8 and train.bf16 is None)


def has_gpu(use_cpu: bool = False) -> bool:
    """Whether a CUDA device is there, and used."""
    import torch

    return torch.cuda.is_available() and not use_cpu


def check_devices() -> None:
    """Refuse one process that sees several GPUs: TRL trains on one a process.

    Raises:
        RecipeError: with the launcher's command.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus > 1 and local_rank() is None:
        raise RecipeError(
            f"{gpus} GPUs are visible to one process. Use all: accelerate launch --multi_gpu --num_processes {gpus} "
            "-m alpacare_sft RECIPE; or one: CUDA_VISIBLE_DEVICES=0."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left; the context of other CUDA errors is lost."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and should_reduce_batch_size(error)
    )


def free_memory() -> None:
    """Give back what a failed forward held; after the `except` block, whose traceback holds its tensors."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def set_threads() -> int:
    """Use this process's share of the cores, whatever a launcher set (it sets 1); the number used.

    The number of threads changes the order of sums and with it the last bits, so it is recorded.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def _processor() -> str:
    """Name of the processor; Linux alone keeps it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _driver() -> str | None:
    """Version of the card's driver; Linux alone keeps it in a file."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        return next(iter(re.findall(r"\b\d{3}\.\d[\d.]*", text)), None)
    return None


def describe_hardware(use_cpu: bool = False) -> dict[str, Any]:
    """Device, memory and cores, for the record of a run.

    Args:
        use_cpu: leave out the GPU that is there and was not used.
    """
    import psutil
    import torch

    facts: dict[str, Any] = {
        "device": "cpu",
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": _LIBRARIES.findall(torch.__config__.show()),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "processes": num_processes(),
        # torch was imported before this package could set them
        "settings_without_effect": [name for name in _BEFORE_TORCH if name not in os.environ],
    }
    if has_gpu(use_cpu):
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": torch.cuda.get_device_name(),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "device_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "driver": _driver(),
        }
    return facts


def peak_memory_bytes(use_cpu: bool = False) -> int:
    """Largest memory used so far: of the GPU if one is used, else of the process."""
    import torch

    if has_gpu(use_cpu):
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def num_processes() -> int:
    """How many processes a launcher started together; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int | None:
    """Rank of this process on its machine; None without a launcher."""
    rank = os.environ.get("LOCAL_RANK")
    return None if rank is None else int(rank)


def is_main_process() -> bool:
    """Whether this process writes; a launcher gives each its rank."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """One line for a person, from one process."""
    if is_main_process():
        print(printable(message), flush=True)


def open_console() -> Console:
    """A console whose tables and texts hold nothing that is not `printable`; its own colours stay."""
    from rich.console import Console
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    return PrintableConsole()


def holds_half_character(text: str) -> bool:
    """Whether a text holds a lone surrogate, which no UTF-8 can: of a terminal in another encoding, or of JSON."""
    return re.search("[\ud800-\udfff]", text) is not None


def printable(text: str) -> str:
    """Text without the signs that a terminal takes for orders: control characters, and those that turn its direction.

    Text of rows, files and the Hub stands in messages. Line breaks and tabs stay.
    """
    return _ORDERS.sub("\ufffd", text)
