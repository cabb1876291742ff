"""Examples drawn by guesses of their gradients: the guesses are mixed so that as few draws as possible are needed."""

import pytest
import torch
from scipy import optimize
from torch import nn

from helper.metrics.fisher import fisher_trace
from helper.metrics.importance import AT_FIRST, FIRST_PART, best_mixture, importance_mean, mixed, noise_of, relative_chances
from helper.metrics.sampling import Budget
from helper.metrics.subject import signs
from helper.system.seeds import stream


def positive(*size, seed=0):
    return torch.randn(size, generator=stream(seed, "positive"), dtype=torch.float64).exp()


def test_the_best_mixture_is_the_one_that_the_values_are_made_of():
    chances, truth = positive(200, 4), torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    values, weights = chances @ truth, positive(200, seed=1)
    found = best_mixture(chances, weights, values, torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found, truth, atol=0.02, rtol=0)
    assert noise_of(values, weights, chances @ found) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_no_other_mixture_has_draws_that_vary_less(seed):
    """Against scipy's constrained minimum of the same mean, sum w (y - q)² / q."""
    chances, weights = 0.1 + positive(100, 5, seed=seed), positive(100, seed=seed + 10)
    values = positive(100, seed=seed + 20)

    def spread(parts):
        q = chances @ torch.as_tensor(parts)
        return (weights * (values - q).square() / q).sum().item()

    found = best_mixture(chances, weights, values, torch.full((5,), 0.2, dtype=torch.float64))
    assert found.sum().item() == pytest.approx(1)
    scale = optimize.minimize_scalar(lambda size: spread(size * found), bounds=(0.01, 100), method="bounded").fun
    best = optimize.minimize(lambda x: spread(x), [0.2] * 5, bounds=[(1e-9, None)] * 5, method="L-BFGS-B").fun
    assert scale <= 1.01 * best


def test_noise_with_other_chances_is_foretold_from_draws():
    """The variance of y / q under q by its sum over a population, from draws with other chances."""
    population, n = 50, 40_000
    values, q, p = (positive(population, seed=seed).sqrt() for seed in range(3))
    q, p = q / q.mean(), p / p.mean()
    exact = ((values.square() / q).mean() / values.mean().square() - 1).item()
    rows = torch.multinomial(p, n, replacement=True, generator=stream(0, "rows"))
    assert noise_of(values[rows], 1 / p[rows], q[rows]) == pytest.approx(exact, rel=0.05)


def population_of(follows):
    """(N,) values, (N, 1 + layers) scores: values follow one of them, the others mislead."""
    scores = torch.cat([torch.rand(600, 1, generator=stream(1, "factor"), dtype=torch.float64), positive(600, 3)], 1)
    scores[:, 1:] *= scores[:, :1]
    if follows == "factor":
        values = scores[:, 0]
    elif follows == "layers":
        values = (scores[:, 1:] / scores[:, 1:].mean(0)).sum(1)
    else:
        values = scores[:, follows]
    return values / values.mean(), scores


@pytest.mark.parametrize("budget", [Budget(0.02), Budget(0, 550)])
@pytest.mark.parametrize("follows", ["factor", "layers", 1, 3])
def test_as_few_draws_are_needed_as_with_the_guess_that_is_right(follows, budget):
    """Whichever that is; but for the first eighth, where no precision is asked for."""
    values, scores = population_of(follows)
    generator = stream(0, "draws")

    def draw(rows, k):
        noise = 1 + 0.4 * signs((len(rows), k, 1), generator)
        return values[rows, None, None] * noise * torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def noise(guess):
        return ((1.16 * values.square() / relative_chances(guess)).mean() - 1).item()

    guesses = scores / scores.mean(0)
    first = 0 if budget.rtol else 1 / FIRST_PART
    least = (1 - first) * noise(values) + first * noise(guesses @ mixed(AT_FIRST, torch.full((3,), 1 / 3, dtype=torch.float64)))
    found = [importance_mean(draw, lambda rows: scores[rows], 600, budget, stream(seed, "best")) for seed in range(20)]
    needed = sum(each.n_samples * (each.mean.errors[0] / each.mean.means[0]).item() ** 2 for each in found) / len(found)
    assert 0.95 * least < needed < 1.2 * least
    assert all(each.mean.reliable for each in found)


def test_equal_guesses_give_equal_chances():
    assert torch.equal(relative_chances(torch.ones(3)), torch.ones(3))


def with_long_inputs(n, n_long, value, seed):
    """(n, 8) inputs, of which some have one feature of that value."""
    inputs = torch.randn(n, 8, generator=stream(seed, "inputs"), dtype=torch.float64)
    inputs[torch.randperm(n, generator=stream(seed, "rows"))[:n_long], 3] = value
    return inputs


@pytest.mark.parametrize("budget", [{"rtol": 0.05}, {"rtol": 0, "max_samples": 200}])
@pytest.mark.parametrize(
    ("n", "n_long", "value", "dtype"),
    [
        (5000, 5, -99.0, torch.float64),
        (5000, 5, -99.0, torch.float32),
        (5000, 1, -99.0, torch.float64),
        (3000, 40, 30.0, torch.float64),
    ],
)
def test_a_few_long_inputs_that_hold_much_of_the_trace_are_covered(n, n_long, value, dtype, budget):
    """In float32, guesses are summed in it."""
    with torch.random.fork_rng():
        torch.manual_seed(n_long)
        network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    inputs = with_long_inputs(n, n_long, value, n_long)
    exact = fisher_trace(network, inputs, method="exact", rtol=0).value
    network, inputs = network.to(dtype), inputs.to(dtype)
    found = [fisher_trace(network, inputs, generator=stream(seed, "long"), **budget) for seed in range(80)]
    assert sum(abs(e.value - exact) <= e.half for e in found) >= 72
    assert sum(e.reliable for e in found) >= 72
