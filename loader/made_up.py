"""Random examples for data files that are made up in the layout of the published ones, such as those of the smoke test."""

import numpy

N_TRAIN, N_TEST = 400, 200


def pixels(n: int, width: int) -> numpy.ndarray:
    """(n, width) bytes."""
    return numpy.random.default_rng(n).integers(0, 256, (n, width), dtype=numpy.uint8)


def labels_in_turn(n: int, n_classes: int) -> list[int]:
    return [i % n_classes for i in range(n)]
