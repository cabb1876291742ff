"""Sanity checks of masks (Su et al. 2020; Frankle et al. 2021): does it matter which weights of a layer are active?"""

import torch

from helper.mask import Mask


def shuffled(mask: Mask, generator: torch.Generator) -> Mask:
    """Every layer keeps its number of active weights, at random places. The generator is on the CPU."""
    places = {name: torch.randperm(active.numel(), generator=generator).to(active.device) for name, active in mask.items()}
    return Mask({name: active.flatten()[places[name]].view(active.shape) for name, active in mask.items()})
