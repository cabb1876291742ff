"""How draws become estimates: errors, plans, strata; and what measuring leaves behind (nothing)."""

import copy

import pytest
import torch

from helper.metrics.estimate import Estimate, estimate_of, stratified, two_stage_mean, weighted_mean, with_total
from helper.metrics.fisher import FISHER_METHODS, fisher_trace
from helper.metrics.hessian import HESSIAN_METHODS, hessian_trace
from helper.metrics.jacobian import jacobian_norm
from helper.metrics.sampling import Budget, importance_mean, planned, planned_draws, sample_groups, sample_mean
from helper.metrics.spectrum import spectrum
from helper.metrics.subject import Subject, signs
from helper.utils import stream
from tests.conftest import tiny_conv
from tests.exact import batch, tiny


def test_two_stage_error_is_only_probe_noise_when_everything_is_measured():
    values = torch.randn(10, 4, 1, generator=stream(0, "v"), dtype=torch.float64) + torch.arange(10)[:, None, None] * 100
    _, error = two_stage_mean(values, torch.ones(10), 10)
    assert error.item() == pytest.approx((values.var(1).mean() / 40).sqrt().item())
    _, of_a_sample = two_stage_mean(values, torch.ones(10), 10_000)
    assert of_a_sample.item() > 50


def test_two_stage_error_counts_the_groups_that_were_not_measured_without_the_probes_noise():
    """Three of twelve groups of five examples, two probes each: Cochran 1977, by hand."""
    values = torch.tensor([[1.0, 3.0], [6.0, 4.0], [9.0, 8.0]], dtype=torch.float64)[..., None]
    means, within = [2.0, 5.0, 8.5], (2.0 + 2.0 + 0.5) / 3
    between = sum((mean - 31 / 6) ** 2 for mean in means) / 2
    mean, error = two_stage_mean(values, torch.full((3,), 5.0), 60)
    assert mean.item() == pytest.approx(31 / 6)
    assert error.item() ** 2 == pytest.approx(between / 3 - (between - within / 2) / 12)


def test_an_estimate_gives_every_layer_its_own_value_and_error():
    means, errors = torch.tensor([7.0, 1.0, 6.0]), torch.tensor([0.5, 0.1, 0.4])
    found = estimate_of(means, errors, 30, ["a", "b"], "made up", 1.25)
    assert (found.value, found.standard_error, found.n_samples, found.seconds) == (7.0, 0.5, 30, 1.25)
    assert found.by_layer == {"a": pytest.approx((1.0, 0.1)), "b": pytest.approx((6.0, 0.4))}
    assert torch.equal(with_total(means[1:]), means)


def test_two_stage_error_is_unknown_with_one_probe():
    _, error = two_stage_mean(torch.randn(10, 1, 1), torch.ones(10), 100)
    assert error.isnan().all()


def test_groups_weigh_by_their_examples():
    mean, _ = two_stage_mean(torch.tensor([[[1.0], [1.0]], [[4.0], [4.0]]]), torch.tensor([2.0, 1.0]), 3)
    assert mean.item() == pytest.approx(2.0)


def test_groups_are_nearly_equal_and_without_replacement(generator):
    groups = sample_groups(100, 51, 25, generator)
    assert sorted(map(len, groups)) == [17, 17, 17]
    assert len(torch.cat(groups).unique()) == 51
    assert len(sample_groups(100, 3, 25, generator)) == 2


def test_weighted_draws_have_the_error_of_their_spread():
    """With a census scored the error is std / sqrt(n); with a sample scored the values' own variance comes on top."""
    g = stream(0, "weights")
    values, weights = torch.rand(1000, 1, generator=g, dtype=torch.float64), torch.ones(1000, dtype=torch.float64)
    mean, error = weighted_mean(values, weights, 5000, 5000)
    assert mean.item() == pytest.approx(values.mean().item())
    assert error.item() == pytest.approx((values.var() / 1000).sqrt().item())
    _, double = weighted_mean(values, weights, 500, 5000)
    assert double.item() ** 2 - error.item() ** 2 == pytest.approx((1 / 500 - 1 / 5000) * values.var(correction=0).item())


def test_strata_are_weighted_by_their_sizes():
    a = Estimate(2.0, 0.3, 10, "spectral; every example", {"fc": (1.0, 0.2)}, 1.0)
    b = Estimate(6.0, 0.1, 20, "spectral; importance", {"fc": (5.0, 0.0)}, 2.0)
    both = stratified([a, b], [300, 100])
    assert both == Estimate(
        pytest.approx(3.0),
        pytest.approx((0.225**2 + 0.025**2) ** 0.5),
        30,
        "spectral; every example and importance",
        {"fc": (2.0, pytest.approx(0.15))},
        3.0,
    )


def test_plans_reach_their_target():
    """Both formulas solved: the squared error that a plan will have, by the formulas of the estimates."""
    for population in (300, 10**6):
        for target in (1e-2, 1e-4, 1e-6):
            n, k = planned(2.0, 3.0, target, population, population, 2, fixed=False)
            error = (2 + 3 / k) / n - 2 / population
            assert 0.5 * target < error <= target * (1 + 1e-9) or (n, k) == (population, 2) or n * k >= 10**6
    for rtol in (0.05, 0.01):
        for population in (2000, 50_000, 10**7):
            n, scored = planned_draws(1.0, 0.25, population, 10**9, rtol)
            error = 1.0 * (1 / scored - 1 / population) + 0.25 / n
            assert error == pytest.approx(rtol**2 / 1.25, rel=0.05)
            assert scored <= population


def test_where_every_example_is_measured_each_is_probed_as_often_as_the_target_asks():
    assert planned(2.0, 3.0, 1e-2, 300, 300, 2, fixed=False) == (210, 2)  # 3.5 / (0.01 + 2 / 300)
    assert planned(2.0, 3.0, 1e-4, 300, 300, 2, fixed=False) == (
        300,
        100,
    )  # 3 / 1e-4 draws, the spread between examples is gone
    assert planned(2.0, 3.0, 1e-9, 300, 300, 2, fixed=False) == (300, 3334)  # a million draws at most
    assert planned(2.0, 3.0, 1e-4, 300, 300, 2, fixed=True) == (300, 2)
    assert planned(2.0, 3.0, 1e-4, 300, 200, 2, fixed=False) == (200, 2)


def test_a_simple_random_sample_is_as_large_as_its_pilot_asks_with_a_margin():
    values = torch.rand(100_000, generator=stream(0, "values"), dtype=torch.float64) + 1
    found = sample_mean(lambda rows, k: values[rows][:, None, None], 100_000, Budget(0.01), stream(0, "sample"), exact=True)
    needed = values.var() / (0.01 * values.mean()) ** 2
    assert found.n_samples == pytest.approx(1.25 * needed.item(), rel=0.12)  # 256 draws tell the variance to 6 %
    assert abs(found.means[0] - values.mean()) < 4 * found.errors[0]


def test_an_importance_sample_never_scores_more_than_it_needs():
    scored = 0

    def score(rows):
        nonlocal scored
        scored += len(rows)
        return torch.ones(len(rows))

    def draw(rows, k):
        return torch.rand(len(rows), k, 1, generator=g, dtype=torch.float64) + 1

    g = stream(0, "draws")
    found = importance_mean(draw, score, 10**6, Budget(0.01), g)
    assert found.errors[0] < 0.012 * 1.5
    assert scored < 50_000
    assert int(found.scheme.split()[-1]) <= scored


@pytest.mark.parametrize("n_probes", [None, 2])
def test_weighted_draws_of_a_scored_part_are_about_the_whole_population_and_are_counted(n_probes):
    drawn = 0

    def draw(rows, k):
        nonlocal drawn
        drawn += len(rows) * k
        return torch.ones(len(rows), k, 2, dtype=torch.float64)

    budget = Budget(0, 2000, n_probes)
    found = importance_mean(draw, lambda rows: 1 + (rows % 7).double(), 50_000, budget, stream(0, "scored"))
    assert found.means[0].item() == pytest.approx(2, rel=0.1)  # one for each of two layers
    assert abs(found.means[0] - 2) < 4 * found.errors[0]
    assert found.means[1:].sum().item() == pytest.approx(found.means[0].item())
    assert (found.n_samples, drawn) == (2000, 2000 * (n_probes or 1))
    assert found.scheme == "importance sampling from 8000"


@pytest.mark.parametrize(("population", "probes"), [(300, 4), (1000, 2), (5000, 2)])
def test_of_few_examples_each_is_probed_until_there_are_a_thousand_draws(population, probes):
    asked = []

    def draw(rows, k):
        asked.append((len(rows), k))
        return torch.rand(len(rows), k, 1, generator=g, dtype=torch.float64)

    g = stream(0, "few")
    found = sample_mean(draw, population, Budget(0), g)
    assert asked == [(population, probes)]
    assert found.scheme == f"every example, {probes} probes"


def test_values_that_are_all_zero_are_measured_as_zero():
    def draw(rows, k):
        return torch.zeros(len(rows), k, 2)

    for found in (
        importance_mean(draw, lambda rows: torch.zeros(len(rows)), 5000, Budget(), stream(0, "z")),
        sample_mean(draw, 5000, Budget(), stream(0, "z")),
    ):
        assert found.means.tolist() == found.errors.tolist() == [0, 0, 0]


def test_signs_are_fair_and_independent(generator):
    drawn = signs((2000, 77), generator).double()
    assert set(drawn.unique().tolist()) == {-1, 1}
    assert abs(drawn.mean()) < 4 / drawn.numel() ** 0.5
    correlation = drawn.t() @ drawn / 2000 - torch.eye(77)
    assert correlation.abs().max() < 5.5 / 2000**0.5


def test_the_memory_bound_sets_the_chunk():
    sizes = [Subject(tiny("conv"), batch()[0], memory_mb=m).chunk_size(2.0, 1.0) for m in (0.001, 0.1, 1, 1000)]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 64
    assert Subject(tiny("conv"), batch()[0], batch_size=5).chunk_size(2.0) == 5


def every_measurement(network, inputs, labels):
    for method in FISHER_METHODS:
        fisher_trace(network, inputs, method=method, max_samples=6, rtol=0, generator=stream(0, "f"))
    for method in HESSIAN_METHODS:
        hessian_trace(network, inputs, labels, method=method, max_samples=6, rtol=0, generator=stream(0, "h"))
    hessian_trace(network, inputs, labels, method="hutchinson", term="residual", max_samples=6, generator=stream(0, "r"))
    for method in ("exact", "projection"):
        jacobian_norm(network, inputs, method=method, max_samples=6, generator=stream(0, "j"))
    spectrum(network, inputs, labels, k=1, steps=2, runs=1, generator=stream(0, "s"))


def test_measuring_leaves_no_trace_in_the_network():
    network = tiny_conv()
    network.conv1.eval()
    network.fc.bias.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    random_state = torch.get_rng_state()
    every_measurement(network, *batch())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert (network.training, network.conv1.training, network.bn.training) == (True, False, True)
    assert not network.fc.bias.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
