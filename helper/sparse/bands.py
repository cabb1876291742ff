"""Bands of image rows, whose data is to stay in the cache: how many rows they have, and which ones they read."""

import numpy as np

from helper.sparse.geometry import Axis

BAND = 64  # pixels, or a row of more


def rows_of_bands(width: int) -> int:
    """Of all bands but the last, which may have fewer."""
    return max(1, BAND // width)


def reach_of(rows: Axis, rows_of_band: int) -> np.ndarray:
    """(bands, 2): the first source row that a band of target rows or a later one reads, and that behind all read until then."""
    first = [min((source for _, source in taps), default=rows.n_source) for taps in rows.taps]
    behind = [max((source for _, source in taps), default=-1) + 1 for taps in rows.taps]
    begins = np.arange(0, len(first), rows_of_band)
    least, most = np.minimum.reduceat(first, begins), np.maximum.reduceat(behind, begins)
    ascending = np.minimum.accumulate(least[::-1])[::-1], np.maximum.accumulate(most)
    return np.stack(ascending, axis=1).astype(np.int64)


def widest(reach: np.ndarray) -> int:
    """Of ranges (n, 2), the size of the largest."""
    return int((reach[:, 1] - reach[:, 0]).max(initial=0))


def widest_both(forward: tuple[np.ndarray, np.ndarray], backward: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
    """Pixels of a channel of a layer's inputs, and of its outputs, that a band of outputs takes on the way back, at most.

    It takes what the outputs are made of and the inputs of the bands that are done with it, and itself and what these are
    made of.

    Args:
        forward, backward: (what each band of a plan reads, pixel where each begins and the last one ends).
    """
    (reach, begins), (back_reach, back_begins) = forward, backward
    n, n_back = len(reach), len(back_reach)
    with_it = np.arange(n + 1) * n_back // max(n, 1)  # bands of inputs
    inputs = union(reach, np.stack([back_begins[with_it[:-1]], back_begins[with_it[1:]]], axis=1))
    first = np.append(back_reach[:, 0], begins[-1])[with_it[:-1]]
    behind = np.where(np.diff(with_it) > 0, back_reach[with_it[1:] - 1, 1], 0)
    outputs = union(np.stack([begins[:-1], begins[1:]], axis=1), np.stack([first, behind], axis=1))
    return widest(inputs), widest(outputs)


def union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 1], b[:, 1])], axis=1)
