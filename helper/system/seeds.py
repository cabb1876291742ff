"""Random streams that do not disturb each other."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator of its own for each (seed, name): using one stream never shifts another."""
    key = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


@contextlib.contextmanager
def global_seed(generator: torch.Generator) -> Iterator[None]:
    """The global generators follow `generator` inside and are as before afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(torch.randint(2**62, (), generator=generator).item())
        yield


@contextlib.contextmanager
def device_seed(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """What a network on a device draws inside follows `generator`; the global generators are as before afterwards.

    Cheap enough for every step, where `global_seed` is not. XLA devices draw by themselves.
    """
    drawn = [torch.default_generator]
    if device.type == "cuda":
        drawn.append(torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index])
    before = [each.get_state() for each in drawn]
    for each in drawn:
        each.manual_seed(generator.initial_seed())
    try:
        yield
    finally:
        for each, state in zip(drawn, before, strict=True):
            each.set_state(state)
