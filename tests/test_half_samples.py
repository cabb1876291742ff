"""Bias and error of a sample's eigenvalues against populations whose matrices are all known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap

from helper.metrics.config import MetricConfig
from helper.metrics.half_samples import bias_of, errors_of, same_ranks
from helper.metrics.main import METRICS
from helper.metrics.spectrum import AFFORDABLE, FEWEST, GROUPS, affordable, full_products, half_steps, spectrum
from helper.system.seeds import stream

N = 1200


def network_and_data(kind: type[nn.Module], steps: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 75 parameters fitted to 1,200 examples of different lengths with noisy labels, in float64."""
    g = stream(1, "population")
    inputs = torch.randn(N, 8, generator=g, dtype=torch.float64)
    inputs *= torch.exp(0.3 * torch.randn(N, 1, generator=g, dtype=torch.float64))
    labels = (inputs @ torch.randn(8, 3, generator=g, dtype=torch.float64)).add_(torch.randn(N, 3, generator=g)).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(8, 6), kind(), nn.Linear(6, 3)).double()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network, inputs, labels


def hessians(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """(N, P, P) of every example's loss."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    flat = torch.cat([p.flatten() for p in parameters.values()])

    def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in parameters.values()])
        weights = {name: part.view(p.shape) for part, (name, p) in zip(parts, parameters.items(), strict=True)}
        return F.cross_entropy(functional_call(network, weights, (x[None],)), y[None])

    of_all = vmap(hessian(loss), (None, 0, 0))
    return torch.cat([of_all(flat, x, y) for x, y in zip(inputs.split(100), labels.split(100), strict=True)])


def by_hand(matrices: Tensor, k: int, population: int) -> dict[str, Tensor]:
    """What a sample of matrices says, from whole eigendecompositions."""
    values, vectors = torch.linalg.eigh(matrices.mean(0))
    order = values.abs().argsort(descending=True)[:k]
    values, vectors = values[order], vectors[:, order]
    halves = matrices.tensor_split(2)
    found = torch.stack([same_ranks(values, torch.linalg.eigvalsh(half.mean(0))) for half in halves])
    bias = bias_of(values, found, (len(halves[0]), len(halves[1])), population)
    groups = matrices.tensor_split(min(GROUPS, len(matrices)))
    forms = torch.stack([torch.einsum("pk,pq,qk->k", vectors, group.mean(0), vectors) for group in groups])
    errors = errors_of(forms, torch.tensor([len(group) for group in groups]), bias, population)
    return {"eigenvalues": values, "bias": bias, "corrected": values - bias, "standard_errors": errors}


def sampled(matrices: Tensor, n: int, times: int) -> dict[str, Tensor]:
    """(times,) of the largest eigenvalue of as many samples."""
    g = stream(2, "samples")
    found = [by_hand(matrices[torch.randperm(N, generator=g)[:n]], 1, N) for _ in range(times)]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def covered(found: dict[str, Tensor], exact: Tensor) -> float:
    return ((found["corrected"] - exact).abs() <= 2.05 * found["standard_errors"]).double().mean().item()


@pytest.mark.parametrize(("kind", "steps", "n"), [(nn.Tanh, 300, 120), (nn.Tanh, 20, 121), (nn.ReLU, 1000, 80)])
def test_the_bias_is_removed_and_intervals_cover_the_populations_eigenvalue(kind, steps, n):
    matrices = hessians(*network_and_data(kind, steps))
    exact = torch.linalg.eigvalsh(matrices.mean(0))[-1]
    found = sampled(matrices, n, 200)
    excess = found["eigenvalues"].mean() - exact
    assert excess > 0.08 * exact
    assert abs(found["corrected"].mean() - exact) < excess / 3
    assert covered(found, exact) >= 0.91
    assert found["standard_errors"].mean() < 2.5 * found["corrected"].std()  # and they are no wider than they must be


def test_of_nearly_all_examples_bias_and_error_are_nearly_gone():
    """The finite-population correction: at n = N - 10 a hundredth of the spread is left that 1/n alone would say."""
    matrices = hessians(*network_and_data(nn.Tanh, 100))
    exact = torch.linalg.eigvalsh(matrices.mean(0))[-1]
    g = stream(3, "samples")
    found = [by_hand(matrices[torch.randperm(N, generator=g)[: N - 10]], 1, N) for _ in range(100)]
    distances = torch.cat([(one["corrected"] - exact) / one["standard_errors"] for one in found])
    assert (distances.abs() <= 2.05).double().mean() >= 0.88
    assert all(one["standard_errors"] < 0.01 * exact for one in found)


def test_bias_is_exact_where_it_is_a_multiple_of_1_over_n_and_zero_for_the_population():
    def value(n: int) -> Tensor:
        return torch.tensor([5.0, -2.0]) + torch.tensor([30.0, -8.0]) * (1 / n - 1 / 100)

    for n in (40, 41, 99):
        sizes = (n - n // 2, n // 2)
        halves = torch.stack([value(size) for size in sizes])
        torch.testing.assert_close(value(n) - bias_of(value(n), halves, sizes, 100), value(100))
    assert not bias_of(value(100), torch.stack([value(50)] * 2), (50, 50), 100).any()


def test_ranks_are_counted_from_both_ends():
    values = torch.tensor([5.0, -4.0, 3.0, -1.0, 0.5])
    others = torch.tensor([-3.5, 0.1, 2.5, 6.0, -0.5, 0.4])
    assert same_ranks(values, others).tolist() == pytest.approx([6.0, -3.5, 2.5, -0.5, 0.4])
    assert same_ranks(torch.tensor([2.0, 1.0]), torch.tensor([3.0])).nan_to_num(-9).tolist() == [3.0, -9.0]


@pytest.mark.parametrize("n", [150, 151])
def test_a_sample_and_its_halves_are_measured_as_whole_matrices_would_be(n):
    """Lanczos from the sample's own vectors, with half of the steps, finds the halves' eigenvalues."""
    network, inputs, labels = network_and_data(nn.Tanh, 300)
    found = spectrum(network, inputs, labels, k=3, steps=40, runs=1, max_samples=n, generator=stream(0, "rows"))
    rows = torch.randperm(N, generator=stream(0, "rows"))[:n]
    exact = by_hand(hessians(network, inputs[rows], labels[rows]), 3, N)
    assert (found.n_samples, found.population) == (n, N)
    for name, value in exact.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 31])
def test_of_a_handful_of_examples_nothing_is_promised_and_nothing_breaks(n):
    network, inputs, labels = network_and_data(nn.ReLU, 5)
    found = spectrum(network, inputs, labels, k=2, steps=6, runs=1, max_samples=n, generator=stream(0, "rows"))
    assert found.n_samples == n
    assert torch.isfinite(found.eigenvalues).all()
    assert torch.isnan(found.standard_errors).all() == (n < 4)


def test_a_sample_of_nothing_is_refused():
    network, inputs, labels = network_and_data(nn.ReLU, 1)
    with pytest.raises(ValueError, match="max_samples must be at least 2, not 0"):
        spectrum(network, inputs, labels, k=1, steps=2, runs=1, max_samples=0, generator=stream(0, "rows"))


def test_all_examples_are_measured_up_to_a_stated_number_of_products():
    each = full_products(10, 40, 4)
    assert each == 40 + 10 + 160
    most = AFFORDABLE // each
    assert affordable(most, 10, 40, 4) == most
    fewer = affordable(most + 1, 10, 40, 4)
    assert fewer < most
    assert AFFORDABLE - each - 20 < fewer * (each + half_steps(10, 40)) <= AFFORDABLE
    assert affordable(10**6, 10, 40, 1) > fewer
    assert affordable(10**6, 10, 100_000, 4) == FEWEST


def test_a_price_counts_the_products_that_are_made(monkeypatch):
    made = [0]
    network, inputs, labels = network_and_data(nn.Tanh, 5)
    forward = nn.Sequential.forward

    def counting(self, batch):
        made[0] += len(batch) if self[0].in_features == 8 and len(batch) > 3 else 0
        return forward(self, batch)

    monkeypatch.setattr(nn.Sequential, "forward", counting)
    for samples in (None, 200):
        made[0] = 0
        spectrum(network, inputs, labels, k=3, steps=8, runs=2, max_samples=samples, generator=stream(0, "rows"))
        config = MetricConfig(spectrum_k=3, spectrum_steps=8, spectrum_runs=2, monte_carlo_samples=samples)
        assert made[0] == METRICS["spectrum"].products(config, N)


def print_table() -> None:
    """Bias and coverage for docs/measurements.md: `python -m tests.test_half_samples`."""
    print(f"{'network, examples':34}{'raw bias':>10}{'corrected':>11}{'sd raw':>9}{'corrected':>11}{'SE':>7}{'coverage':>10}")
    for kind, steps in ((nn.Tanh, 20), (nn.Tanh, 300), (nn.ReLU, 100), (nn.ReLU, 1000)):
        matrices = hessians(*network_and_data(kind, steps))
        exact = torch.linalg.eigvalsh(matrices.mean(0))[-1]
        for n in (60, 120, 300, 600, 1000):
            found = sampled(matrices, n, 300)
            raw, corrected = found["eigenvalues"], found["corrected"]
            numbers = (raw.mean() / exact - 1, corrected.mean() / exact - 1, raw.std() / exact, corrected.std() / exact)
            raw_bias, bias, raw_sd, sd = (f"{100 * number:.1f}" for number in numbers)
            error, share = f"{100 * found['standard_errors'].mean() / exact:.1f}", f"{100 * covered(found, exact):.0f}%"
            name = f"{kind.__name__}, {steps} steps, {n} of {N}"
            print(f"{name:34}{raw_bias:>10}{bias:>11}{raw_sd:>9}{sd:>11}{error:>7}{share:>10}", flush=True)


if __name__ == "__main__":
    print_table()
