"""How many weights of each layer stay. The numbers add up to exactly what is asked for.

An allocation is a function `(shapes, total, *, head, most) -> {name: number}`, or None: all layers are ranked as one, and the
scores decide.

    shapes: {name: shape} of the weights that may be pruned, the first layer's first.
    total: how many of them stay.
    head: the name of the classifier's weight, if it is one of them.
    most: {name: most that can stay}, where some are gone already; default: all of a layer.

    Raises ValueError: there is no such allocation.
"""

import math
from collections.abc import Callable, Mapping

Shapes = Mapping[str, tuple[int, ...]]
LEAST_OF_LAST = 0.2  # of uniform_plus


def uniform(shapes: Shapes, total: int, *, head: str | None = None, most: Mapping[str, int] | None = None) -> dict[str, int]:
    """The same share of every layer."""
    return filled(sizes_of(shapes), total, most or sizes_of(shapes))


def balanced(shapes: Shapes, total: int, *, head: str | None = None, most: Mapping[str, int] | None = None) -> dict[str, int]:
    """The same number in every layer; what does not fit into a small one goes to the others."""
    return filled(dict.fromkeys(shapes, 1), total, most or sizes_of(shapes))


def erk(shapes: Shapes, total: int, *, head: str | None = None, most: Mapping[str, int] | None = None) -> dict[str, int]:
    """Erdos-Renyi-kernel (Evci et al. 2020): a layer's number is proportional to the sum of its shape's sizes.

    Its density is then eps x sum / product. Layers that this would give more than they have are dense, and eps is solved
    again for the others until no other is full.
    """
    return filled({name: sum(shape) for name, shape in shapes.items()}, total, most or sizes_of(shapes))


def uniform_plus(
    shapes: Shapes, total: int, *, head: str | None = None, most: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The first layer whole, at least a fifth of the classifier, the same share of the others (Gale et al. 2019)."""
    sizes = sizes_of(shapes)
    most = dict(most or sizes)
    first = next(iter(shapes))
    counts = {first: most[first]}
    if head in shapes and head != first:
        least = min(math.ceil(LEAST_OF_LAST * sizes[head]), most[head])
        if filled(without(sizes, [first]), max(0, total - counts[first]), without(most, [first]))[head] < least:
            counts[head] = least
    left = total - sum(counts.values())
    if left < 0:
        kept = f"the first layer{' and a fifth of the last' if len(counts) > 1 else ''}, {sum(counts.values())} weights"
        raise ValueError(f"--allocation uniform_plus keeps {kept}, but only {total} are to stay")
    return counts | filled(without(sizes, counts), left, without(most, counts))


ALLOCATIONS: dict[str, Callable[..., dict[str, int]] | None] = {
    "global": None,
    "uniform": uniform,
    "uniform_plus": uniform_plus,
    "erk": erk,
    "balanced": balanced,
}


def sizes_of(shapes: Shapes) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def without(numbers: Mapping[str, int], names: Mapping | list[str]) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if name not in names}


def filled(portions: Mapping[str, int], total: int, most: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to the portions, none above its most, that add up to a total.

    Raises:
        ValueError: the total is more than all the mosts together.
    """
    if total > sum(most.values()):
        raise ValueError(f"{total} weights cannot stay where there are {sum(most.values())}")
    full: dict[str, int] = {}
    while True:
        left, portion = total - sum(full.values()), sum(portions[name] for name in portions if name not in full)
        over = [name for name in portions if name not in full and portions[name] * left > most[name] * portion]
        if not over:
            break
        full |= {name: most[name] for name in over}
    shares = {name: (portions[name] * left, portion) for name in portions if name not in full}
    counts = full | {name: share // whole for name, (share, whole) in shares.items()}
    remainders = sorted(shares, key=lambda name: shares[name][0] % shares[name][1], reverse=True)
    missing = total - sum(counts.values())
    for name in [name for name in remainders if counts[name] < most[name]][:missing]:
        counts[name] += 1
    return {name: counts[name] for name in portions}
