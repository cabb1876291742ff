"""Weights as safetensors, which any program reads and none runs: dense, or pruned weights left out as CSR arrays."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from helper.mask import Mask
from helper.system.files import write_atomic
from helper.untrusted.reasons import Unfit

PARTS = ("crow_indices", "col_indices", "values")  # of a matrix in CSR form, as torch.sparse_csr_tensor takes them
SHAPES = "csr_shapes"  # in the file's metadata: JSON of {weight name: shape}


def write_dense(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Tensors by their names. `about`: what the file's metadata say besides."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, save(own, {"format": "pt", **about}))


def write_csr(path: Path, weights: Mapping[str, Tensor], mask: Mask, about: Mapping[str, str]) -> None:
    """Weights of which the masked ones keep their active elements alone.

    A weight becomes a matrix with a row for each output (of a convolution: one of C_in x height x width columns), in three
    arrays `<weight name>.crow_indices`, `.col_indices` (int32 where these suffice) and `.values`; the others are as they are.

    Raises:
        Unfit: a pruned weight is not zero, so that something would be lost.
    """
    tensors = {name: tensor for name, tensor in weights.items() if name not in mask}
    for name, active in mask.items():
        if weights[name][~active].any():
            raise Unfit(f"{name} is not zero where its mask prunes it")
        parts = csr_parts(rows_of(weights[name]), rows_of(active))
        tensors |= {f"{name}.{part}": tensor for part, tensor in zip(PARTS, parts, strict=True)}
    shapes = json.dumps({name: list(weights[name].shape) for name in mask})
    write_dense(path, tensors, {**about, SHAPES: shapes})


def rows_of(weight: Tensor) -> Tensor:
    """(outputs, everything else); a vector is one row."""
    return weight.flatten(1) if weight.ndim > 1 else weight.reshape(1, -1)


def csr_parts(matrix: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(where the rows begin and the last one ends, columns, values) of the active elements, row by row."""
    index = torch.int32 if max(matrix.numel(), matrix.shape[1]) < 2**31 else torch.int64
    ends = active.sum(1).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]).to(index), active.nonzero()[:, 1].to(index), matrix[active]


def dense(crow: Tensor, col: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The tensor of that shape whose rows these arrays hold. Raises Unfit, or what torch does: they hold no such rows."""
    matrix = rows_of(torch.zeros(shape, dtype=values.dtype))
    counts, col = crow.long().diff(), col.long()
    if len(counts) != len(matrix) or crow[0] != 0 or (counts < 0).any() or len(col) != len(values) or crow[-1] != len(col):
        raise Unfit("its rows do not add up")
    if ((col < 0) | (col >= matrix.shape[1])).any():
        raise Unfit("it has columns that are not there")
    matrix[torch.arange(len(matrix)).repeat_interleave(counts), col] = values
    return matrix.reshape(shape)


def read_weights(path: Path) -> dict[str, Tensor]:
    """{name: dense tensor} of a file of either kind.

    Raises:
        FileNotFoundError: there is none. RuntimeError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            shapes = json.loads((file.metadata() or {}).get(SHAPES, "{}"))
        for name, shape in shapes.items():
            tensors[name] = dense(*(tensors.pop(f"{name}.{part}") for part in PARTS), torch.Size(shape))
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise RuntimeError(f"{path} is damaged, or no file of exported weights; export the run again") from error
    return tensors
