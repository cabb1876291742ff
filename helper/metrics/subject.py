"""What is measured: a network, its counted parameters and mask, and its examples in chunks."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.metrics.in_place import HALF, measured, refuse_network, unwrapped, without_prefix
from helper.metrics.operations import ForwardPass, observe
from helper.metrics.parameters import UNFIT, counted_parameters, explained, uncounted
from helper.processes.sharing import gather_from_processes, own_share
from helper.progress import Task

AT_ONCE = 8192  # examples whose random numbers are drawn together: the same ones whatever the chunks
LARGEST_CHUNK = 64  # more examples at once are no faster: activations fall out of the cache
LIBRARY_COPIES = 6  # of an example's activations and parameters that the libraries take, about
SCORED_AT_ONCE = 4  # chunks of a pass without gradients, which keeps no activations
CACHED = 1 << 26  # bytes of all activations of a chunk, above which more chunks at once fall out of a processor's cache


class Examples(Protocol):
    """A tensor of (N, ...) examples, or anything that gives rows of one, such as inputs normalised on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Tensor: ...


class Subject:
    """A network as an estimator sees it: inside `measuring()` in eval mode and differentiable, outside as it was.

    Args:
        mask: parameter name -> bool tensor; pruned coordinates do not count.
        params: which parameters count, see `counted_parameters`; None: no derivative by parameters is wanted.
        batch_size: most examples at once; None: what is fast.
        memory_mb: most MiB that a chunk may take, as far as that can be told from its activations.
        progress: show how far it is, see helper/progress.py.
    Raises:
        ValueError: fewer than 2 examples, a mask of another network, outputs that are not finite, not (N, C), not each
            example's own, or that depend on another network's parameters instead of the counted ones.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Examples,
        mask=None,
        *,
        params: str | None = "layers",
        batch_size: int | None = None,
        memory_mb: float = 1000,
        progress: bool = False,
    ) -> None:
        if isinstance(inputs, (list, tuple)):
            raise ValueError(f"inputs must be a tensor or an array of (N, ...) examples, not a {type(inputs).__name__}")
        if len(inputs) < 2:
            raise ValueError(f"a measurement needs at least 2 examples, not {len(inputs)}")
        self.network, self.inputs = unwrapped(network), from_numpy(inputs)
        mask = without_prefix(mask, network, self.network)
        refuse_network(self.network)
        Mask(mask).parameters_of(self.network)  # refuses one that does not fit
        self.mask, self.params = mask, params
        self.layers = counted_parameters(self.network, params) if params else {}
        first = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        first = self.inputs[torch.arange(2)] if first is None else first
        self.device, self.dtype = first.device, torch.float32 if first.dtype in HALF else first.dtype
        self.batch_size, self.memory_mb, self.progress = batch_size, memory_mb, progress
        with self.measuring():
            self.seen = self.forward_pass()
            self.refuse_outputs()
            if params:
                self.refuse_one_class()
                self.refuse_parameters()

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        """The network is ready to be measured inside, and afterwards as it was, to the bit."""
        return measured(self.network, self.device)

    def forward_pass(self) -> ForwardPass:
        """What the network does with two examples.

        Raises:
            ValueError: it fails.
        """
        try:
            return observe(self.network, self.rows(torch.arange(2)))
        except UNFIT as error:
            raise ValueError(f"the network fails on a batch of 2 examples: {explained(error)}") from error

    def refuse_outputs(self) -> None:
        """Raise ValueError when outputs are no logits, or an example's depend on the others or on chance."""
        if len(self.seen.output) != 2 or self.seen.output[0] != 2:
            shape = self.seen.output or "no tensor"
            raise ValueError(
                f"the network must map (N, ...) inputs to (N, C) logits; 2 examples give {shape}. Examples lie along the first "
                "dimension: a time-major network (batch_first=False) is measured in a module that transposes its inputs"
            )
        batches = [torch.arange(len(self.example)), *torch.arange(len(self.example)).split(1)]
        try:
            together, *each = (self.network(self.rows(rows)).detach() for rows in batches)
        except UNFIT as error:
            raise ValueError(f"the network fails on batches of other sizes than 2: {explained(error)}") from error
        alone = torch.cat(each)
        if not torch.isfinite(together).all():
            raise ValueError("the network gives values that are not finite; has its training diverged?")
        largest = together.abs().max().item()
        if together.shape != alone.shape or not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * largest):
            raise ValueError(
                "the logits of an example change with the others in its batch, or from call to call: is a module in training "
                "mode that the network does not register, or are its inputs time-major?"
            )

    def refuse_one_class(self) -> None:
        """Raise ValueError where a softmax has nothing to choose from."""
        if self.n_classes == 1:
            raise ValueError("one logit: a softmax needs at least two classes, such as (N, 2) logits [0, f(x)]")

    def refuse_parameters(self) -> None:
        """Raise ValueError when the logits have no gradient by what counts, or one by others' parameters instead."""
        counted = {name for parameters in self.layers.values() for name in parameters}
        reached, foreign = counted & self.seen.reached, self.seen.foreign
        if self.seen.hidden or (reached and not (foreign and counted - reached)):
            return
        missing = next(name for ps in self.layers.values() for name in ps if name not in reached)
        if not foreign:
            raise ValueError(
                f"the logits have no gradient by any counted parameter, such as {missing}: is it used, or detached?"
            )
        raise ValueError(
            f"the logits do not depend on {missing} but on a tensor of shape {foreign[0]} that is no parameter of the network; "
            "it calls another network's modules, as the copy of one whose functions are bound to the original does: "
            "build it anew and load the weights, or measure the original"
        )

    @property
    def n_classes(self) -> int:
        return self.seen.output[1]

    @property
    def example(self) -> Tensor:
        """(3, ...) inputs to try things on, or 2 where there are no more."""
        return self.rows(torch.arange(min(3, len(self.inputs))))

    @property
    def left_out(self) -> tuple[str, ...]:
        """What has a gradient and is not counted: names of parameters, and tensors that are no parameters of the network."""
        others = (f"a tensor of shape {shape} that is no parameter of the network" for shape in self.seen.foreign)
        return (*uncounted(self.network, self.params), *others)

    @property
    def used(self) -> set[str]:
        """Names of the counted parameters that the logits depend on; all where that is not known."""
        counted = {name for parameters in self.layers.values() for name in parameters}
        return counted if self.seen.hidden else counted & self.seen.reached

    def labels_of(self, labels: Tensor, rows: Tensor) -> Tensor:
        """(n,) classes on the network's device."""
        return labels[rows.to(labels.device)].to(self.device, torch.long)

    def checked_labels(self, labels: Tensor | numpy.ndarray | None) -> Tensor:
        """(N,) classes as a tensor.

        Raises:
            ValueError: there is not one class for each input, or one that the network does not have.
        """
        labels = from_numpy(labels)
        if not isinstance(labels, Tensor) or labels.shape != (len(self.inputs),):
            found = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(
                f"labels must be a tensor or an array with one class for each of {len(self.inputs)} inputs, not {found}"
            )
        if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels must be integers, not {labels.dtype}: of each input its class, 0 to {self.n_classes - 1}")
        for label in (labels.min().item(), labels.max().item()):
            if not 0 <= label < self.n_classes:
                raise ValueError(f"label {label}: the network has logits for classes 0 to {self.n_classes - 1}")
        return labels

    def rows(self, rows: Tensor) -> Tensor:
        """(n, ...) inputs on the network's device, floating-point ones in its type."""
        if isinstance(self.inputs, Tensor):
            rows = rows.to(self.inputs.device)
        found = self.inputs[rows].to(self.device)
        return found.to(self.dtype) if found.is_floating_point() else found

    def chunk_size(self, activations: float, parameters: float = 0, other: float = 0) -> int:
        """Examples at once within the memory bound, where each takes so many copies of its activations and parameters.

        Args:
            other: further bytes that each takes.
        """
        n_parameters = sum(p.numel() for ps in self.layers.values() for p in ps.values())
        each = activations * self.seen.bytes_per_example + parameters * n_parameters * self.dtype.itemsize + other
        fits = int(self.memory_mb * 2**20 / each)
        return max(1, min(fits, self.batch_size or LARGEST_CHUNK))

    def library_batch(self, n: int) -> int:
        """Examples in a batch of a library: at least 30 batches where -bf does not say, for the spread between them."""
        return self.batch_size or max(1, min(100, n // 30, self.chunk_size(LIBRARY_COPIES, LIBRARY_COPIES)))

    def chunks(self, rows: Tensor, size: int, steps: int, what: str) -> Iterator[tuple[slice, Tensor]]:
        """(positions in `rows`, inputs) of one chunk after the other; `steps` draws of each example count as progress.

        Of several processes each gets its share of the rows; `joined` puts together what they make of them.
        """
        own = own_share(len(rows))
        with Task(what, (own.stop - own.start) * steps, "draws", shown=self.progress) as task:
            for start in range(own.start, own.stop, size):
                part = slice(start, min(start + size, own.stop))
                yield part, self.rows(rows[part])
                task.advance((part.stop - part.start) * steps)

    @torch.no_grad()
    def map_logits(self, rows: Tensor, function: Callable[[Tensor], Tensor], size: int) -> Tensor:
        """A function of the logits, (n, C) -> (n, ...), of many examples, without gradients."""
        crowded = self.device.type == "cpu" and size * self.seen.bytes_per_example > CACHED
        chunks = self.chunks(rows, size if crowded else size * SCORED_AT_ONCE, 1, "scoring")
        return gather_from_processes([function(self.network(inputs)).cpu() for _, inputs in chunks])


def from_numpy(values: Any) -> Any:
    """A tensor for a NumPy array; anything else as it is."""
    if not isinstance(values, numpy.ndarray):
        return values
    return torch.from_numpy(values if values.flags.writeable and min(values.strides, default=0) >= 0 else values.copy())


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """A generator on the CPU that only this measurement draws from.

    None: one seeded with 0, so that the same call gives the same number. Torch's global generator and one of another device
    give its seed.
    """
    if generator is None:
        return torch.Generator().manual_seed(0)
    if generator is torch.default_generator or generator.device.type != "cpu":
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        return torch.Generator().manual_seed(int(seed))
    return generator


def signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent +1 and -1, int8, on the CPU."""
    n = math.prod(shape)
    words = torch.randint(-(2**63), 2**63 - 1, (-(-n // 64),), generator=generator)
    bits = words.view(torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return (bits.flatten()[:n].to(torch.int8) * 2 - 1).view(shape)
