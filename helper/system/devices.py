"""What computes: the device of a run, the cores of a process."""

import os

import torch

from helper.system.environment import whole_number
from helper.system.xla import xla_device


def choose_device(name: str) -> torch.device:
    """The torch device of `--device {cpu, cuda, tpu}`.

    Raises:
        RuntimeError: it is not there.
    """
    if name == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("--device cuda: this PyTorch sees no CUDA device; check the driver, or use --device cpu")
        index, there = whole_number("LOCAL_RANK", 0, low=0), torch.cuda.device_count()
        if index >= there:
            raise RuntimeError(f"--device cuda: process {index} of this machine has no device of its own, of {there} there are")
        return torch.device("cuda", index)
    if name == "tpu":
        return xla_device()
    return torch.device(name)


def available_cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
