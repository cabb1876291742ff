"""The passes of a chain for inputs of one shape, each a program of kernels."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from helper.sparse.drafts import BACK, FIRST, KEPT, Draft, Given, Value
from helper.sparse.library import PRECISION
from helper.sparse.part import Steps
from helper.sparse.program import PLACES, Arena, At
from helper.sparse.rooms import Rooms, ordinary

SHARE = PLACES["statistics__share"]
TENSORS = 4  # of a part: weight and bias of its layer, and of its norm


@dataclass(frozen=True)
class Backward:
    """A backward pass for gradients of certain outputs.

    Attributes:
        draft: with its program. of_inputs: gradients of the chain's inputs.
    """

    draft: Draft
    of_inputs: list[Value | None]


class Passes:
    """A forward pass, and backward ones for whatever gradients are asked for.

    One piece of memory holds what the forward pass leaves for a backward one, or what passes from part to part where none is
    to come; another one what a call takes for itself.

    Args:
        tensors: of all parts. rooms: for what stays until the backward pass. keep: whether a backward pass is to come.
    Raises:
        ValueError: as `Chain.forward`.
    """

    def __init__(
        self, steps: Steps, rooms: Rooms, inputs: Sequence[Tensor], tensors: Sequence[Tensor | None], *, keep: bool
    ) -> None:
        self.steps, self.rooms, self.keep, self.dtype = steps, rooms, keep, inputs[0].dtype
        self.n_inputs, self.n_tensors, self.threads = len(inputs), len(tensors), torch.get_num_threads()
        self.tensors = [None if t is None else At(FIRST + len(inputs) + i) for i, t in enumerate(tensors)]
        self.sizes = [0 if t is None else extent(t) for t in tensors]
        self.dense = [t is not None and t.dim() > 1 for t in tensors]
        self.norms = [part.finds_for() for part, _ in steps.parts]
        self.norms_at = FIRST + len(inputs) + len(tensors)
        self.outputs_at, places = self.norms_at + len(self.running()), itertools.count(self.norms_at)
        self.running_at = [None if norm is None else (At(next(places)), At(next(places))) for norm in self.norms]
        self.users = Counter(number for _, reads in steps.parts for number in reads if number is not None)
        self.users.update(steps.outputs)
        self.values: list[Value | None] = [Value(tuple(x.shape), At(FIRST + i)) for i, x in enumerate(inputs)]
        if self.dtype not in PRECISION:
            raise ValueError(f"inputs are {self.dtype}: sparse layers are in float32 or in float64")
        for t in (*tensors, *self.running()):
            self.check(t)
        self.draft = self.new_draft(KEPT)
        self.parts = [self.added(i) for i in range(len(steps.parts))]
        found = zip(self.parts, self.norms, strict=True)
        found = [(made, norm) for made, norm in found if norm is not None and norm.training]
        self.training = [norm for _, norm in found]
        shares = ((made.call + SHARE, norm, self.training[i:].count(norm) - 1) for i, (made, norm) in enumerate(found))
        self.shares = [(at, norm, later) for at, norm, later in shares if norm.momentum is None]  # a norm may be there twice
        read = {number for _, reads in steps.parts for number in reads if number is not None}
        self.read_again = {self.values[number] for number in read}.union(*(made.read_again for made in self.parts))
        self.backwards: dict[tuple[bool, ...], Backward] = {}

    def new_draft(self, piece: int) -> Draft:
        return Draft(PRECISION[self.dtype], self.dtype.itemsize, self.threads, Arena(piece))

    def check(self, tensor: Tensor | None) -> None:
        """Raise ValueError where the kernels would not read what a parameter or statistic holds."""
        if tensor is None:
            return
        if tensor.dtype != self.dtype:
            raise ValueError(f"inputs are {self.dtype}, but weights or statistics {tensor.dtype}: sparse layers need the same")
        if tensor.dim() == 1 and not tensor.is_contiguous():
            raise ValueError(f"weights or statistics have stride {tensor.stride(0)}: sparse layers need contiguous vectors")

    def running(self) -> list[Tensor]:
        """Statistics of the norms as they are now."""
        return [t for norm in self.norms if norm is not None for t in (norm.running_mean, norm.running_var)]

    # ------------------------------------------------------------------------------------------------------- forward

    def added(self, i: int) -> Any:
        """The passes of a part, of which the forward one is added to the program."""
        part, reads = self.steps.parts[i]
        values = tuple(None if number is None else self.values[number] for number in reads)
        part.check(values[0].shape)
        first, own = len(self.values), slice(i * TENSORS, (i + 1) * TENSORS)
        weight = own.start
        given = Given(i, tuple(self.tensors[own]), self.sizes[weight], self.dense[weight], self.running_at[i], values)
        places = [partial(self.place, first + k) for k in range(part.n_outputs)]
        made = part.passes(self.draft, given, places, keep=self.keep)
        self.values += made.outputs
        for number, value in enumerate(made.outputs, first):
            if value is None or value.block is None or value.block.users is None:
                continue
            if value in values:  # once more, for whoever reads it after this part
                value.block.users += self.users[number]
            elif not self.users[number]:
                self.draft.release(value)
        for value in values:
            self.draft.release(value)
        return made

    def place(self, number: int, shape: tuple[int, ...]) -> Value:
        """Room for the value of a number: an output is a tensor, others lie in the arena."""
        outputs = self.steps.new_outputs
        if number in outputs:
            return Value(shape, At(self.outputs_at + outputs.index(number)))
        return self.draft.take(shape, None if self.keep else max(1, self.users[number]))

    def forward(
        self, inputs: Sequence[Tensor], tensors: Sequence[Tensor | None]
    ) -> tuple[tuple[Tensor | None, ...], list[Tensor | None]]:
        """(outputs, what a backward pass reads: memory of the pass, and those of the outputs)."""
        values = [self.values[number] for number in self.steps.outputs]
        places = [None if v is None else v.at.piece - self.outputs_at for v in values]
        outputs = [inputs[0].new_empty(v.shape) if places[i] == i else None for i, v in enumerate(values)]
        kept = self.rooms.take(self.draft.size) if self.keep else ordinary(self.draft.size)
        scratch = ordinary(self.draft.scratch_size)
        own = [address(scratch), 0, address(kept) + self.draft.arena.before, 0]
        pieces = [*own, *map(address, (*inputs, *tensors, *self.running(), *outputs))]
        if self.training:
            torch._foreach_add_([norm.num_batches_tracked for norm in self.training], 1)
        shares = [(at, 1 / (float(norm.num_batches_tracked) - later)) for at, norm, later in self.shares]
        self.draft.program.run(pieces, self.threads, shares)
        found = [self.shared(v, inputs, outputs) if y is None else y for v, y in zip(values, outputs, strict=True)]
        return tuple(found), [kept, *(y if v in self.read_again else None for v, y in zip(values, outputs, strict=True))]

    def shared(self, value: Value | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor | None]) -> Tensor | None:
        """The input, or a view of the output, that a value is."""
        if value is None:
            return None
        if value.at.piece < self.outputs_at:
            return inputs[value.at.piece - FIRST]
        return outputs[value.at.piece - self.outputs_at].detach()

    # ------------------------------------------------------------------------------------------------------ backward

    def backward(
        self, gradients: Sequence[Tensor | None], needs: tuple[bool, ...], saved: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Gradients of the inputs and tensors, from those of the outputs.

        Args:
            needs: of which they are wanted. saved: inputs, tensors of all parts, and what `forward` says.
        """
        key = (*(g is not None for g in gradients), *needs)
        if key not in self.backwards:
            self.backwards[key] = self.new_backward(key[: len(gradients)], needs)
        draft, of_inputs = self.backwards[key].draft, self.backwards[key].of_inputs
        before = draft.arena.before
        scratch, passing = ordinary(draft.scratch_size), self.rooms.take(draft.size)
        results = torch.zeros(draft.results_size // self.dtype.itemsize, dtype=self.dtype)
        given, (kept, *outputs) = saved[: len(needs)], saved[len(needs) :]
        own = [address(scratch), address(passing) + before, address(kept) + self.draft.arena.before, address(results)]
        own += [*map(address, given), *[0] * (self.outputs_at - self.norms_at), *map(address, outputs)]
        draft.program.run([*own, *map(address, gradients)], self.threads)

        def tensor_of(value: Value | None) -> Tensor | None:
            if value is None:
                return None
            if value.at.piece >= len(own):
                return gradients[value.at.piece - len(own)]
            first = (before + value.at.offset) // self.dtype.itemsize
            return passing.view(self.dtype)[first : first + value.size].view(value.shape)

        found = [tensor_of(value) for value in of_inputs] + [None] * self.n_tensors
        for (part, which), at in draft.results.items():
            number = self.n_inputs + part * TENSORS + which
            if needs[number]:
                tensor, first = given[number], at.offset // self.dtype.itemsize
                found[number] = results.as_strided(tensor.shape, tensor.stride(), first)
        for part, value, n in draft.of_biases:
            found[self.n_inputs + part * TENSORS + 1] = of_bias(tensor_of(value), n)
        return found

    def new_backward(self, given: Sequence[bool], needs: Sequence[bool]) -> Backward:
        """A backward pass.

        Args:
            given: whether there is a gradient of each output. needs: see `backward`.
        """
        draft, first = self.new_draft(BACK), self.outputs_at + len(self.steps.outputs)
        self.mark(needs)
        found: dict[int, Value] = {}
        for i, (number, there) in enumerate(zip(self.steps.outputs, given, strict=True)):
            if there:
                found[number] = Value(self.values[number].shape, At(first + i))
        numbers = [self.n_inputs]
        for part, _ in self.steps.parts:
            numbers.append(numbers[-1] + part.n_outputs)
        for i in reversed(range(len(self.parts))):
            own = [found.pop(number, None) for number in range(numbers[i], numbers[i + 1])]
            reads, at = self.steps.parts[i][1], self.n_inputs + i * TENSORS
            if not any(own) or not any(v is not None and v.requires for v in self.parts[i].outputs):
                continue
            gradients = self.parts[i].backward(draft, own, needs[at : at + TENSORS])
            for number, gradient in zip(reads, gradients, strict=True):
                if number is not None and gradient is not None:
                    add_to(found, number, gradient, draft, wanted=self.values[number].requires)
            for gradient in own:
                draft.release(gradient)
        of_inputs = [found.get(number) if needs[number] else None for number in range(self.n_inputs)]
        return Backward(draft, of_inputs)

    def mark(self, needs: Sequence[bool]) -> None:
        """Say of every value whether its gradient is wanted."""
        for number in range(self.n_inputs):
            self.values[number].requires = needs[number]
        for i, ((_, reads), made) in enumerate(zip(self.steps.parts, self.parts, strict=True)):
            at = self.n_inputs + i * TENSORS
            own = any(needs[at : at + TENSORS]) or any(n is not None and self.values[n].requires for n in reads)
            for value in made.outputs:
                if value is not None and value not in made.given.values:
                    value.requires = own


def add_to(found: dict[int, Value], number: int, gradient: Value, draft: Draft, *, wanted: bool) -> None:
    """Add a gradient to that of a value."""
    if not wanted:
        return draft.release(gradient)
    if number not in found:
        found[number] = gradient
        return None
    before = found[number]
    found[number] = draft.sum(before, gradient)
    draft.release(before)
    return draft.release(gradient)


def of_bias(value: Tensor, n: int | None) -> Tensor:
    """The gradient of a layer's bias.

    Args:
        value: the gradient of its outputs; or, with n, factors of the norm behind it (see norm.py).
        n: values per channel, 0 where that norm takes the bias away again; None: there is no norm.
    """
    if n is None:
        return value.sum([0, *range(2, value.dim())])
    return value[0] * value[1] * n if n else torch.zeros_like(value[0])


def extent(tensor: Tensor) -> int:
    """Elements of memory from a tensor's first one to its last."""
    return 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
