"""An end that is asked for at a chosen place, where a real signal comes at some moment."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from helper.processes import interruption
from helper.system.signals import Signals
from optim.callbacks.watching import Progress
from optim.trainer import Trainer


class StopsInSecondEpoch(Signals):
    """Asks for an end after some steps of the second epoch of `n_steps` each.

    A run looks for signals after the initialisation, after each step and after each epoch; looks inside of passes over the
    data do not count.
    """

    looks = 0
    received = property(lambda self: self.look(), lambda self, value: None)

    def __init__(self, n_steps: int, steps: int) -> None:
        super().__init__()
        self.last = 1 + n_steps + 1 + steps

    def look(self) -> str | None:
        if interruption._heeded is self:
            return None
        self.looks += 1
        return "SIGTERM" if self.looks >= self.last else None


@contextlib.contextmanager
def sigterm_after(epoch: int, step: int | None = None) -> Iterator[None]:
    """Inside, a run of this process gets SIGTERM after an epoch; with `step` after so many steps of the one that follows it."""
    event = "on_epoch" if step is None else "on_step"
    usual = getattr(Progress, event)

    def stop(self: Progress, trainer: Trainer) -> None:
        usual(self, trainer)
        if trainer.epoch == epoch and step in (None, trainer.step):
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Progress, event, stop):
        yield


@dataclass
class Forwards:
    """Examples that went through a network's forward passes, and how many of them after the signal."""

    examples: int = 0
    after: int = 0


@contextlib.contextmanager
def signal_at(kind: type[nn.Module], example: int | None = None, number: int = signal.SIGTERM) -> Iterator[Forwards]:
    """Inside, this process sends itself a signal when so many examples have gone into networks of a kind; None: never."""
    counted = Forwards()

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not isinstance(module, kind):
            return
        sent = example is not None and counted.examples >= example
        counted.examples += len(inputs[0])
        counted.after += sent * len(inputs[0])
        if not sent and example is not None and counted.examples >= example:
            os.kill(os.getpid(), number)

    handle = register_module_forward_pre_hook(count)
    try:
        yield counted
    finally:
        handle.remove()
