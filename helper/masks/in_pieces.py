"""The choice of the highest of many numbers, without a copy of them all: the same as by sorting them.

The bound between those that go and those that stay is found between two numbers of a sample (Floyd and Rivest 1975). Of equal
numbers at the bound those go that `torch.topk` would take: it selects by std::nth_element, whose exchanges, each pass of them
at once, are done here with places alone.
"""

import functools
import math
from collections.abc import Callable, Iterator

import numpy
import torch
from torch import Tensor

from helper.masks.numbers import PIECE, Numbers

FEW = 1 << 22  # numbers that may be copied, with their places and in 64 bits, for which topk needs 64 MiB
SAMPLE = 1 << 16
ALWAYS_SELECTS = 64  # topk sorts where it takes no more than one of so many


def highest(numbers: Numbers, count: int) -> list[Tensor]:
    """For each of the numbers' tensors a bool tensor of its shape: the `count` highest."""
    n_gone = numbers.n - count
    if n_gone == 0:
        return numbers.above(-numpy.inf, equal=True)
    bound = nth_lowest(numbers, n_gone)
    stays = numbers.above(bound, equal=False)
    if sum(int(part.count_nonzero()) for part in stays) == count:
        return stays
    stays, gone = numbers.above(bound, equal=True), taken_by_topk(numbers, n_gone, bound)
    for part, end in zip(stays, numbers.ends, strict=True):
        own = gone[(gone >= end - part.numel()) & (gone < end)] - (end - part.numel())
        part.view(-1).numpy()[own] = False
    return stays


# ------------------------------------------------------------------------------------------------- the bound


def nth_lowest(numbers: Numbers, n: int) -> numpy.number:
    """The n-th lowest, counted from 1; none is NaN."""
    low, high, below, left, spread = -numpy.inf, numpy.inf, 0, numbers.n, 4.0
    while left > FEW:
        step = -(-left // SAMPLE)
        sample = numpy.sort(numpy.concatenate([piece[::step].copy() for piece in within(numbers, low, high)]))
        at, error = (n - below) / left * len(sample), spread * math.sqrt(len(sample)) / 2
        first, last = (sample[min(max(int(place), 0), len(sample) - 1)] for place in (at - error, at + error))
        spread = 0.0  # from now on the two are one, which at least is no more between the bounds
        under = over = 0
        for piece in numbers.pieces():
            under += int(numpy.count_nonzero(piece < first))
            over += int(numpy.count_nonzero(piece > last))
        if n <= under:
            high, left = numpy.nextafter(first, -numpy.inf), under - below
        elif n > numbers.n - over:
            low, left, below = numpy.nextafter(last, numpy.inf), left + below - (numbers.n - over), numbers.n - over
        elif first == last:
            return first
        else:
            low, high, left, below = first, last, numbers.n - over - under, under
    found = numpy.concatenate(list(within(numbers, low, high)))
    return numpy.partition(found, n - below - 1)[n - below - 1]


def within(numbers: Numbers, low: float, high: float) -> Iterator[numpy.ndarray]:
    """Pieces of those between two bounds, these included."""
    everything = low == -numpy.inf and high == numpy.inf
    for piece in numbers.pieces():
        yield piece if everything else piece[(piece >= low) & (piece <= high)]


# ------------------------------------------------------------------------------------------------- equal numbers


def taken_by_topk(numbers: Numbers, k: int, bound: numpy.number) -> numpy.ndarray:
    """Places of those that equal the bound and that `torch.topk(..., k, largest=False)` of the numbers takes."""
    found = None if numbers.n <= FEW or k * ALWAYS_SELECTS <= numbers.n or not selects() else selected(numbers, k, bound)
    if found is None:
        places = numpy.arange(numbers.size, dtype=numbers.kind_of_place) if numbers.everything else numbers.places()
        all_of_them = torch.from_numpy(numpy.concatenate(list(numbers.pieces())))
        found = places[torch.topk(all_of_them, k, largest=False).indices.numpy()]
        found = found[numbers.at(found) == bound]
    return found


@functools.cache
def selects() -> bool:
    """Whether this PyTorch's topk takes the same of equal numbers as `selected`; otherwise it has to be asked."""
    for divisor, k in ((2, 900), (13, 400), (31, 77)):
        numbers = Numbers([torch.arange(997) * 389 % 997 // divisor], None, absolute=False)
        values, indices = torch.topk(torch.from_numpy(numbers.flats[0]), k, largest=False)
        bound = values.max().item()
        found = selected(numbers, k, bound)
        if found is None or set(found.tolist()) != set(indices[values == bound].tolist()):
            return False
    return True


def selected(numbers: Numbers, k: int, bound: numpy.number) -> numpy.ndarray | None:
    """Places of those that equal the k-th lowest number and are among the first k after libstdc++'s std::nth_element.

    None: it would turn to another way, as it does where the parts stay large.
    """
    order, found = Order(numbers, None if numbers.everything else numbers.places(), numbers.n), []
    for _ in range(2 * (numbers.n.bit_length() - 1)):
        if order.size <= 3:
            break
        pivot = order.pivot_to_front()
        cut, left, right = order.exchanges(pivot)
        if cut < k:
            if pivot == bound:
                gone = order.exchanged(0, cut, left, right)
                found.append(gone[numbers.at(gone) == bound])
            order, k = Order(numbers, order.exchanged(cut, order.size, right, left), order.size - cut), k - cut
        else:
            order = Order(numbers, order.exchanged(0, cut, left, right), cut)
    if order.size > 3:
        return None
    rest, values = order.part(0, order.size), order.values(0, order.size)
    last = rest[numpy.argsort(values, kind="stable")[:k]]
    return numpy.concatenate([*found, last[numbers.at(last) == bound]])


class Order:
    """What is left of the sequence that is selected from, as places of numbers.

    Args:
        places: by position; None: every number is in its own place yet.
    """

    def __init__(self, numbers: Numbers, places: numpy.ndarray | None, size: int) -> None:
        self.numbers, self.places, self.size = numbers, places, size
        self.moved: dict[int, int] = {}  # {position: place}, before `places`

    def part(self, start: int, end: int) -> numpy.ndarray:
        """Places of the positions from a first to before a last one."""
        if self.places is None:
            found = numpy.arange(start, end, dtype=self.numbers.kind_of_place)
        else:
            found = self.places[start:end].copy()
        for position, place in self.moved.items():
            if start <= position < end:
                found[position - start] = place
        return found

    def values(self, start: int, end: int) -> numpy.ndarray:
        if self.places is None and not any(start <= position < end for position in self.moved):
            return self.numbers.span(start, end)
        return self.numbers.at(self.part(start, end))

    def pivot_to_front(self) -> numpy.number:
        """Exchange the median of the second, the middle and the last number with the first; its value."""
        positions = (1, self.size // 2, self.size - 1)
        a, b, c = (self.values(position, position + 1)[0] for position in positions)
        up, up_to_last, to_last = a < b, a < c, b < c  # of equal numbers the one that std::nth_element takes
        median = (1 if to_last else 2 if up_to_last else 0) if up else (0 if up_to_last else 2 if to_last else 1)
        position = positions[median]
        self.moved = {0: int(self.part(position, position + 1)[0]), position: int(self.part(0, 1)[0])}
        return (a, b, c)[median]

    def exchanges(self, pivot: numpy.number) -> tuple[int, numpy.ndarray, numpy.ndarray]:
        """Of the exchanges that part all but the first number: (where the right part begins, left positions, right ones)."""
        starts = range(1, self.size, PIECE)
        counts = numpy.zeros((len(starts), 2), numpy.int64)  # of those that are not lower, and not higher
        for row, start in zip(counts, starts, strict=True):
            values = self.values(start, min(start + PIECE, self.size))
            row[:] = numpy.count_nonzero(values >= pivot), numpy.count_nonzero(values <= pivot)
        from_left, to_right = counts[:, 0].cumsum(), counts[:, 1].sum() - counts[:, 1].cumsum()
        meeting = int(numpy.argmax(from_left > to_right))  # the piece in which the two scans meet
        left = self.positions(starts[: meeting + 1], lambda values: values >= pivot)
        right = self.positions(starts[meeting:], lambda values: values <= pivot)[::-1]
        n = min(len(left), len(right))
        n = int(numpy.count_nonzero(left[:n] < right[:n]))
        return int(min([*left[n : n + 1], *right[max(n - 1, 0) : n]])), left[:n], right[:n]

    def positions(self, starts: range, those: Callable[[numpy.ndarray], numpy.ndarray]) -> numpy.ndarray:
        """Positions of some of the numbers, in some pieces."""
        found = []
        for start in starts:
            own = numpy.flatnonzero(those(self.values(start, min(start + PIECE, self.size))))
            found.append((own + start).astype(self.numbers.kind_of_place))
        return numpy.concatenate(found)

    def exchanged(self, start: int, end: int, to: numpy.ndarray, source: numpy.ndarray) -> numpy.ndarray:
        """`part`, after numbers have come from positions elsewhere to some in it."""
        found = self.part(start, end)
        for first in range(0, len(to), PIECE):
            some = source[first : first + PIECE]
            places = some.copy() if self.places is None else self.places[some]
            for position, place in self.moved.items():
                places[some == position] = place
            found[to[first : first + PIECE] - start] = places
        return found
