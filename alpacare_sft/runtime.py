"""What this machine is, and what follows for precision and threads."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping


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


def resolve_precision(train: Mapping[str, Any]) -> Precision:
    """The precision that a recipe asks for, or that suits this machine if it asks for none.

    By compute capability, not by `torch.cuda.is_bf16_supported()`, which also says yes to GPUs
    that only emulate bfloat16, slowly (trl#3616): below 8.0 fp16, from 8.0 on bf16, no GPU
    float32.

    Raises:
        RecipeError: if the recipe asks for what the machine lacks.
    """
    import torch

    gpu = has_gpu(train["use_cpu"])
    major = torch.cuda.get_device_capability()[0] if gpu else 0
    if train["fp16"] and not gpu:
        raise RecipeError(
            "train.fp16 needs a CUDA device, none is in use. Leave precision out of the recipe to let the hardware "
            "decide, or add --train.fp16 false."
        )
    if train["bf16"] and gpu and major < 8:
        raise RecipeError(
            f"train.bf16 needs a GPU of compute capability 8.0 or more, {torch.cuda.get_device_name()} has "
            f"{major}.{torch.cuda.get_device_capability()[1]} and only emulates it. Use train.fp16."
        )
    if train["fp16"] or train["bf16"]:
        return Precision(fp16=bool(train["fp16"]), bf16=bool(train["bf16"]))
    undecided = train["fp16"] is False and train["bf16"] is None
    return Precision(fp16=gpu and major < 8 and undecided, bf16=gpu and major >= 8 and train["bf16"] is None)


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
    if gpus > 1 and "LOCAL_RANK" not in os.environ:
        raise RecipeError(
            f"{gpus} GPUs are visible to one process. Use all: accelerate launch --multi_gpu --num_processes {gpus} "
            "-m alpacare_sft RECIPE; or one: CUDA_VISIBLE_DEVICES=0."
        )


def set_threads() -> int:
    """Use this process's share of the cores, whatever a launcher set (it sets 1); the number used.

    The number of threads changes the order of sums and with it the last bits, so it is recorded.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def describe_hardware(use_cpu: bool = False) -> dict[str, Any]:
    """Device, memory and cores, for the record of a run.

    Args:
        use_cpu: leave out the GPU that is there and was not used.
    """
    import psutil
    import torch

    found: dict[str, Any] = {
        "device": "cpu",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "processes": num_processes(),
    }
    if has_gpu(use_cpu):
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": torch.cuda.get_device_name(),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "device_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return found


def peak_memory_bytes(use_cpu: bool = False) -> int:
    """Largest memory used so far: of the GPU if one is used, else of the process."""
    import torch

    if has_gpu(use_cpu):
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def num_processes() -> int:
    """How many processes a launcher started together; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes; a launcher gives each its rank."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """One line for a person, from one process."""
    if is_main_process():
        print(message, flush=True)
