"""Initial weights that fit the mask under which they train."""

import torch
from torch import nn

from helper.mask import Mask


@torch.no_grad()
def scale_to_active_fan_in(network: nn.Module, mask: Mask) -> None:
    """Multiply each masked unit's incoming weights by sqrt(fan-in / active fan-in) (Evci et al. 2022).

    Weights that were drawn with variance 2 / fan-in then have the variance 2 / active fan-in, so that signals keep their size
    from layer to layer however few weights a unit has left. Units without an active weight, and weights without a mask, stay.
    """
    for weight, active in zip(mask.parameters_of(network), mask.values(), strict=True):
        rows = active.to(weight.device).flatten(1)
        left = rows.sum(1)
        factors = (rows.shape[1] / left.double()).sqrt().where(left > 0, 1.0)
        weight.mul_(factors.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)))
