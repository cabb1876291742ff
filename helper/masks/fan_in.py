"""Initial weights that fit the mask under which they train."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from helper.mask import Mask


@torch.no_grad()
def scale_to_active_fan_in(network: nn.Module, mask: Mask) -> None:
    """Multiply each masked unit's incoming weights by sqrt(fan-in / active fan-in) (Evci et al. 2022).

    Weights that were drawn with variance 2 / fan-in then have the variance 2 / active fan-in, so that signals keep their size
    from layer to layer however few weights a unit has left. Units without an active weight, and weights without a mask, stay.
    """
    groups = {module.weight: module.groups for module in network.modules() if isinstance(module, _ConvTransposeNd)}
    for weight, active in zip(mask.parameters_of(network), mask.values(), strict=True):
        units = by_units(weight, groups.get(weight))
        rows = by_units(active.to(weight.device), groups.get(weight)).flatten(2)
        left = rows.sum(2)
        factors = (rows.shape[2] / left.double()).sqrt().where(left > 0, 1.0)
        units.mul_(factors.to(weight.dtype).view(*left.shape, *[1] * (units.ndim - 2)))


def by_units(weight: Tensor, groups: int | None) -> Tensor:
    """A view (groups, units of each, incoming weights ...) of a weight, or of its mask.

    Args:
        groups: of a transposed convolution, whose weight has its inputs first and its units, the output channels of a group,
            second; None: of any other layer, whose rows are its units.
    """
    return weight.unsqueeze(0) if groups is None else weight.unflatten(0, (groups, -1)).transpose(1, 2)
