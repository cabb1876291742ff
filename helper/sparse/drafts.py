"""Programs that are being put together: values, and the memory in which they lie."""

import math
from dataclasses import dataclass, field

from helper.sparse.program import Arena, At, Block, Kind, Program, whole

SCRATCH, BACK, KEPT, RESULTS, FIRST = range(5)  # pieces of memory of every program; tensors come from FIRST on


@dataclass(eq=False)
class Value:
    """An activation, statistics, or a gradient of these.

    Attributes:
        block: of an arena, in which it lies.
        requires: whether its gradient is wanted.
    """

    shape: tuple[int, ...]
    at: At
    block: Block | None = None
    requires: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Draft:
    """A program that is being put together.

    Attributes:
        element: bytes of one. arena: of what passes from call to call. scratch_size: bytes that one call takes for itself.
        results: {(part, which of its tensors): where its gradient goes}, in RESULTS. of_biases: gradients that are left to
            PyTorch: of which part's bias, from what, and see `of_bias`.
    """

    precision: str
    element: int
    threads: int
    arena: Arena
    scratch_size: int = 0
    results: dict[tuple[int, int], At] = field(default_factory=dict)
    of_biases: list[tuple[int, Value, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.program, self.results_size = Program(self.precision), 0

    @property
    def size(self) -> int:
        """Bytes of its arena."""
        return self.arena.before + self.arena.size

    def take(self, shape: tuple[int, ...], users: int | None) -> Value:
        """Room for a value; statistics are small, and stay."""
        size = math.prod(shape) * self.element
        block = self.arena.take_small(size) if len(shape) == 2 else self.arena.take(size, users)
        return Value(shape, block.at, block)

    def add_users(self, value: Value, users: int) -> None:
        """So many more will read a value."""
        if value.block is not None and value.block.users is not None:
            value.block.users += users

    def release(self, value: Value | None) -> None:
        if value is not None and value.block is not None:
            self.arena.release(value.block)

    def scratch(self, **sizes: int) -> dict[str, At]:
        """Room for what a call leaves behind for nobody: {name: bytes} -> {name: place}."""
        places, at = {}, 0
        for name, size in sizes.items():
            places[name] = At(SCRATCH, at)
            at += whole(size)
        self.scratch_size = max(self.scratch_size, at)
        return places

    def result(self, part: int, which: int, size: int) -> At:
        """Room for the gradient of a tensor of so many elements, zeros until then."""
        at = At(RESULTS, self.results_size)
        self.results[part, which] = at
        self.results_size += whole(size * self.element)
        return at

    def sum(self, a: Value, b: Value) -> Value:
        """A new value, a + b."""
        y = self.take(a.shape, 1)
        self.program.add(Kind.ADD, y=y.at, x=a.at, g=b.at, lanes=a.size)
        return y

    def zeros(self, shape: tuple[int, ...]) -> Value:
        y = self.take(shape, 1)
        self.program.add(Kind.ADD, y=y.at, lanes=y.size)
        return y


@dataclass(frozen=True)
class Given:
    """What a part's passes are made of.

    Attributes:
        number: of the part, among those of its chain.
        tensors: places of weight and bias of the layer and of the norm. n_weights: elements over which the first extends in
            memory. dense: whether it has those of pruned connections too.
        running: places of running mean and variance of the norm that is to be given statistics.
        values: what it reads; None where there is none.
    """

    number: int
    tensors: tuple[At | None, ...]
    n_weights: int
    dense: bool
    running: tuple[At, At] | None
    values: tuple[Value | None, ...]
