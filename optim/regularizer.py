"""Penalties that are added to the training loss: what each of them is, its weight, and how that changes while training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from helper.schema.config import Config
from helper.schema.registry import with_options
from helper.schema.values import number, one_of

# ------------------------------------------------------------------------------------------------- of the outputs


@dataclass(frozen=True)
class OfOutputs:
    """A penalty on what the network gives for its inputs.

    Attributes:
        penalty: (logits, inputs, noise) -> its sum over the examples, with the weight in it; see `jacobian_penalty`.
        differentiates: whether it takes a derivative by the inputs itself, so that the step differentiates twice, and costs
            as much more as `optim/step_price.py` says of one such derivative.
    """

    penalty: Callable[..., Tensor]
    differentiates: bool = False

    @property
    def functions(self) -> tuple[Callable, ...]:
        return (self.penalty,)


def jacobian_penalty(logits: Tensor, inputs: Tensor, noise: Tensor, *, reg_weight: float) -> Tensor:
    """reg_weight / 2 times an unbiased estimate of the sum over examples of ||d logits / d inputs||_F^2, differentiable.

    One random direction v on the unit sphere of the C logits for each example: C ||v^T J||^2 has mean ||J||_F^2.

    Args:
        logits: (N, C), computed from `inputs` with gradients on.
        inputs: (N, ...) normalised inputs, requiring gradients.
        noise: (N, C) independent normal numbers.
    Source: Hoffman, Roberts & Yaida 2019, algorithm 1 with one projection.
    """
    direction = noise.to(logits.device, logits.dtype)
    direction = direction / direction.norm(dim=1, keepdim=True)
    (rows,) = torch.autograd.grad(logits, inputs, direction, create_graph=True)
    return reg_weight / 2 * (logits.shape[1] * rows.float().square().sum())


# ----------------------------------------------------------------------------------------------- of the gradient


@dataclass(frozen=True)
class OfGradient:
    """reg_weight / 2 times the squared norm of the gradient of a mini-batch's mean loss by the active weights.

    Attributes:
        drawn: of the loss with labels that are drawn from the network's own predictions; otherwise of the loss that is
            minimised, without penalties.
    """

    drawn: bool

    @property
    def functions(self) -> tuple[Callable, ...]:
        return (gradient_term,)


def gradient_term(own: Sequence[Tensor], whole: Sequence[Tensor], *, reg_weight: float) -> Tensor:
    """A term of which the derivative is that of reg_weight / 2 · ‖whole‖², and not its value.

    Args:
        own: this process's part of the gradient, differentiable. whole: the sum over all processes, zero for pruned weights.
    """
    return reg_weight * sum((a * b).sum() for a, b in zip(own, whole, strict=True))


REGULARIZERS = {
    "jacobian": OfOutputs(jacobian_penalty, differentiates=True),
    "fisher": OfGradient(drawn=True),  # Jastrzebski et al. 2021
    "gradient": OfGradient(drawn=False),  # Barrett & Dherin 2021
}
Penalty = OfOutputs | OfGradient


# ---------------------------------------------------------------------------------------- weights and their schedules


class Weighted(NamedTuple):
    """A penalty of a run, its weight in the steps that have it, and the schedule of that, as `schedule_word` gives it."""

    name: str
    penalty: Penalty
    weight: float
    schedule: str

    def weight_at(self, progress: float) -> float:
        """Args:
        progress: share of all steps that are done, in [0, 1).
        """
        return self.weight * factor(self.schedule, progress)


def weighted_penalties(config: Config) -> list[Weighted]:
    """Those of `--reg_type`, in the registry's order: where every K-th step has them, each with K times its weight."""
    weights, schedules = values_by_penalty(config.reg_weights), values_by_penalty(config.reg_schedules)
    names = [name for name in config.reg_type.split(",") if name != "none"]
    times = config.reg_every
    of_each = [
        (times * float(weights.get(name, config.reg_weight)), schedules.get(name, config.reg_schedule)) for name in names
    ]
    return [Weighted(name, REGULARIZERS[name], *rest) for name, rest in zip(names, of_each, strict=True)]


def penalty_function(weighted: Weighted, progress: float, config: Config) -> Callable[..., Tensor]:
    """The function of a penalty with its flags and its weight at a moment."""
    (function,) = weighted.penalty.functions
    options = with_options(function, config)
    if "reg_weight" in options.keywords:
        options.keywords["reg_weight"] = weighted.weight_at(progress)
    return options


def factor(schedule: str, progress: float) -> float:
    """By which a weight is multiplied after a share of training."""
    kind, _, share = schedule.partition(":")
    return {"constant": 1.0, "linear": 1.0 - progress, "until": float(progress < float(share or 0))}[kind]


def schedule_word(value: str) -> str:
    """Canonical text of a schedule. Raises ValueError: it is none."""
    text = str(value).strip()
    if text in ("constant", "linear"):
        return text
    kind, _, share = text.partition(":")
    try:
        found = float(number(share)) if kind == "until" else 0.0
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise ValueError("expected constant, linear, or until:SHARE with a share of training in (0, 1], such as until:0.3")
    return f"until:{found!r}"


def weight_word(value: str) -> str:
    """Canonical text of a weight. Raises ValueError: it is no number."""
    return repr(float(number(value)))


def by_penalty(convert: Callable[[str], str]) -> Callable[[str], str]:
    """Converts texts such as `fisher:-0.1,jacobian:0.01` into their canonical form."""

    def converted(text: str) -> str:
        found = {}
        for part in str(text).split(","):
            name, colon, value = part.strip().partition(":")
            one_of(REGULARIZERS, name)
            if not colon or name in found:
                raise ValueError("expected each penalty once with a colon before its value, such as fisher:VALUE")
            found[name] = convert(value)
        return ",".join(f"{name}:{found[name]}" for name in REGULARIZERS if name in found)

    return converted


def values_by_penalty(text: str | None) -> dict[str, str]:
    """{penalty: value} of a canonical text."""
    return dict(part.split(":", 1) for part in text.split(",")) if text else {}
