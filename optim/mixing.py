"""Training on pairs of examples: (inputs, their partners' inputs, generator) -> (mixed inputs, how much of each is its own).

The share is a tensor without dimensions on the inputs' device, one for the whole batch; the labels count by it in the loss.
The generator is the same in every process, and so is what is drawn.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from helper.schema.config import Config
from helper.schema.registry import with_options


def mixup(inputs: Tensor, partners: Tensor, generator: torch.Generator, *, mix_alpha: float) -> tuple[Tensor, Tensor]:
    """Weighted sums of both (Zhang et al. 2018)."""
    share = drawn_share(mix_alpha, generator).to(inputs)
    return torch.lerp(partners, inputs, share), share


def cutmix(inputs: Tensor, partners: Tensor, generator: torch.Generator, *, mix_alpha: float) -> tuple[Tensor, Tensor]:
    """Images with a box of their partner's, cut off at the edge; the share is that of the pixels (Yun et al. 2019).

    Args:
        inputs: (N, C, H, W).
    """
    size = torch.tensor(inputs.shape[2:])
    half = (size * (1 - drawn_share(mix_alpha, generator)).sqrt()).long() // 2
    centre = (torch.rand(2, generator=generator, dtype=torch.float64) * size).long()
    low, high = (centre - half).clamp(min=0), torch.minimum(centre + half, size)
    share = 1 - (high - low).prod() / size.prod()
    low, high = low.to(inputs.device), high.to(inputs.device)
    rows, columns = (torch.arange(n, device=inputs.device) for n in inputs.shape[2:])
    box = inside(rows, low[0], high[0])[:, None] & inside(columns, low[1], high[1])
    return torch.where(box, partners, inputs), share.to(inputs)


def inside(places: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (places >= low) & (places < high)


def drawn_share(alpha: float, generator: torch.Generator) -> Tensor:
    """A number from Beta(alpha, alpha), in float64.

    A ratio of gamma variables, whose logarithms are added: a small alpha gives numbers next to 0 or 1, and never 0 / 0.
    """
    gamma = torch._standard_gamma(torch.full((2,), alpha + 1, dtype=torch.float64), generator)
    uniform = 1 - torch.rand(2, dtype=torch.float64, generator=generator)
    logarithms = gamma.log() + uniform.log() / alpha  # gamma(alpha) = gamma(alpha + 1) · uniform^(1 / alpha)
    return torch.sigmoid(logarithms[0] - logarithms[1])


MIXES = {
    "none": None,
    "mixup": mixup,
    "cutmix": cutmix,
}


def mix_of(config: Config) -> Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None:
    """What `--mix` does with inputs and their partners'; None: nothing."""
    mix = MIXES[config.mix]
    return None if mix is None else with_options(mix, config)
