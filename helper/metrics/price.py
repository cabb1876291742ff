"""What measuring takes, before it is done, in images of a training step."""

import math

from helper.metrics.importance import DRAW_COST, SCORED_PER_DRAW
from helper.metrics.sampling import LEAST_DRAWS, MARGIN, PILOT, Budget

FORWARD = 1 / 3  # of a training step: one of its three products of every layer
PRODUCT = 2  # training steps that a product of the Hessian with a vector takes
NOISE = 1.0  # variance of a weighted draw relative to the squared trace: 0.2 of networks that have memorised, 2 early on


def price_of_all(n_examples: int, draws: int) -> float:
    """Of a fixed number of draws of each example."""
    return FORWARD * DRAW_COST * n_examples * draws


def price_of_precision(budget: Budget, population: int) -> float:
    """Of an estimator that stops at a precision, `rtol`: a pilot, the draws that it plans, the scores that choose them."""
    if budget.rtol == 0:
        n_examples = min(population, budget.max_samples or population)
        return price_of_all(n_examples, budget.n_probes or max(1, math.ceil(LEAST_DRAWS / population)))
    needed = PILOT + NOISE * MARGIN / budget.rtol**2
    draws = min(needed, budget.max_samples or needed) * (budget.n_probes or 1)
    scored = min(population, SCORED_PER_DRAW * PILOT)
    return FORWARD * (DRAW_COST * draws + scored)
