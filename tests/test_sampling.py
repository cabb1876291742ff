"""How draws become estimates: errors, plans, strata; and what measuring leaves behind (nothing)."""

import copy
import math

import pytest
import torch
from scipy import stats

from helper.interval import SKEWED, half_interval
from helper.metrics.estimate import (
    Estimate,
    Mean,
    Sampled,
    estimate_of,
    settled,
    stratified,
    two_stage_mean,
    weighted_mean,
    with_total,
)
from helper.metrics.fisher import FISHER_METHODS, fisher_trace
from helper.metrics.hessian import HESSIAN_METHODS, hessian_trace
from helper.metrics.importance import importance_mean, planned_draws
from helper.metrics.jacobian import jacobian_norm
from helper.metrics.sampling import Budget, SimpleSample, sample_groups, sample_mean
from helper.metrics.scores import LayerInputs, gradient_guesses, outlying
from helper.metrics.softmax import total_variance
from helper.metrics.spectrum import spectrum
from helper.metrics.subject import CACHED, SCORED_AT_ONCE, Subject, signs
from helper.system.seeds import stream
from tests.conftest import tiny_conv
from tests.exact import batch, random_mask, tiny


def test_two_stage_error_is_only_probe_noise_when_everything_is_measured():
    values = torch.randn(10, 4, 1, generator=stream(0, "v"), dtype=torch.float64) + torch.arange(10)[:, None, None] * 100
    _, error, *_ = two_stage_mean(values, torch.ones(10), 10)
    assert error.item() == pytest.approx((values.var(1).mean() / 40).sqrt().item())
    _, of_a_sample, *_ = two_stage_mean(values, torch.ones(10), 10_000)
    assert of_a_sample.item() > 50


def test_two_stage_error_counts_the_groups_that_were_not_measured_without_the_probes_noise():
    """Three of twelve groups of five examples, two probes each: Cochran 1977, by hand."""
    values = torch.tensor([[1.0, 3.0], [6.0, 4.0], [9.0, 8.0]], dtype=torch.float64)[..., None]
    means, within = [2.0, 5.0, 8.5], (2.0 + 2.0 + 0.5) / 3
    between = sum((mean - 31 / 6) ** 2 for mean in means) / 2
    mean, error, *_ = two_stage_mean(values, torch.full((3,), 5.0), 60)
    assert mean.item() == pytest.approx(31 / 6)
    assert error.item() ** 2 == pytest.approx(between / 3 - (between - within / 2) / 12)


def test_an_estimate_gives_every_layer_its_own_value_and_error():
    means, errors = torch.tensor([7.0, 1.0, 6.0]), torch.tensor([0.5, 0.1, 0.4])
    sampled = Sampled(Mean(means, errors, 9.0, 0.1), 30, "by hand")
    found = estimate_of(sampled, ["a", "b"], "made up", 1.25)
    assert (found.estimator, found.degrees, found.skewness) == ("made up; by hand", 9.0, 0.1)
    assert (found.value, found.standard_error, found.n_samples, found.seconds) == (7.0, 0.5, 30, 1.25)
    assert found.by_layer == {"a": pytest.approx((1.0, 0.1)), "b": pytest.approx((6.0, 0.4))}
    assert torch.equal(with_total(means[1:]), means)


def test_two_stage_error_is_unknown_with_one_probe():
    _, error, *_ = two_stage_mean(torch.randn(10, 1, 1), torch.ones(10), 100)
    assert error.isnan().all()


def test_groups_weigh_by_their_examples():
    mean, *_ = two_stage_mean(torch.tensor([[[1.0], [1.0]], [[4.0], [4.0]]]), torch.tensor([2.0, 1.0]), 3)
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
    mean, error, *_ = weighted_mean(values, weights, 5000, 5000)
    assert mean.item() == pytest.approx(values.mean().item())
    assert error.item() == pytest.approx((values.var() / 1000).sqrt().item())
    _, double, *_ = weighted_mean(values, weights, 500, 5000)
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


@pytest.mark.parametrize(
    ("estimators", "both"),
    [
        (["forward passes", "forward passes"], "forward passes"),
        (["a; b; c", "a; b; c"], "a; b; c"),
        (["forward passes; all", "forward passes"], "forward passes; all"),
    ],
)
def test_strata_whose_estimators_say_nothing_of_how_examples_were_drawn_are_put_together_too(estimators, both):
    assert stratified([Estimate(1.0, 0.0, 2, name) for name in estimators], [1, 1]).estimator == both


def planned(across: float, within: float, target: float, population: int, limit: int, *, probes: int | None) -> tuple[int, int]:
    """(examples, probes of each) that reach a target, for a budget of `limit` examples and so many probes, None: any number."""
    return SimpleSample(torch.zeros, population, Budget(0.05, limit, probes), stream(0, "plan"), exact=False).plan(
        across, within, target
    )


def test_plans_reach_their_target():
    """Both formulas solved: the squared error that a plan will have, by the formulas of the estimates."""
    for population in (300, 10**6):
        for target in (1e-2, 1e-4, 1e-6):
            n, k = planned(2.0, 3.0, target, population, population, probes=None)
            error = (2 + 3 / k) / n - 2 / population
            assert 0.5 * target < error <= target * (1 + 1e-9) or (n, k) == (population, 2) or n * k >= 10**6
    for rtol in (0.05, 0.01):
        for population in (2000, 50_000, 10**7):
            n, scored = planned_draws(1.0, 0.25, population, 10**9, rtol)
            error = 1.0 * (1 / scored - 1 / population) + 0.25 / n
            assert error == pytest.approx(rtol**2 / 1.25, rel=0.05)
            assert scored <= population


def test_where_every_example_is_measured_each_is_probed_as_often_as_the_target_asks():
    assert planned(2.0, 3.0, 1e-2, 300, 300, probes=None) == (210, 2)  # 3.5 / (0.01 + 2 / 300)
    assert planned(2.0, 3.0, 1e-4, 300, 300, probes=None) == (
        300,
        100,
    )  # 3 / 1e-4 draws, the spread between examples is gone
    assert planned(2.0, 3.0, 1e-9, 300, 300, probes=None) == (300, 3334)  # a million draws at most
    assert planned(2.0, 3.0, 1e-4, 300, 300, probes=2) == (300, 2)
    assert planned(2.0, 3.0, 1e-4, 300, 200, probes=None) == (200, 2)


def test_a_simple_random_sample_is_as_large_as_its_pilot_asks_with_a_margin():
    values = torch.rand(100_000, generator=stream(0, "values"), dtype=torch.float64) + 1
    found = sample_mean(lambda rows, k: values[rows][:, None, None], 100_000, Budget(0.01), stream(0, "sample"), exact=True)
    needed = values.var() / (0.01 * values.mean()) ** 2
    assert found.n_samples == pytest.approx(1.25 * needed.item(), rel=0.12)  # 256 draws tell the variance to 6 %
    assert abs(found.mean.means[0] - values.mean()) < 4 * found.mean.errors[0]


def test_an_importance_sample_never_scores_more_than_it_needs():
    scored = 0

    def score(rows):
        nonlocal scored
        scored += len(rows)
        return torch.ones(len(rows), 2)

    def draw(rows, k):
        return torch.rand(len(rows), k, 1, generator=g, dtype=torch.float64) + 1

    g = stream(0, "draws")
    found = importance_mean(draw, score, 10**6, Budget(0.01), g)
    assert found.mean.errors[0] < 0.012 * 1.5
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

    def score(rows):
        guess = 1 + (rows % 7).double()
        return torch.stack([guess / 7, guess, guess], 1)

    found = importance_mean(draw, score, 50_000, budget, stream(0, "scored"))
    means, errors, *_ = found.mean
    assert means[0].item() == pytest.approx(2, rel=0.1)  # one for each of two layers
    assert abs(means[0] - 2) < 4 * errors[0]
    assert means[1:].sum().item() == pytest.approx(means[0].item())
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
        importance_mean(draw, lambda rows: torch.zeros(len(rows), 3), 5000, Budget(), stream(0, "z")),
        sample_mean(draw, 5000, Budget(), stream(0, "z")),
    ):
        assert found.mean.means.tolist() == found.mean.errors.tolist() == [0, 0, 0]


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


# ---------------------------------------------------------------------------------- draws that a few large ones decide on


def test_intervals_are_student_t():
    for degrees in (1, 2.5, 5.99, 6, 7.3, 9, 63, 999, 1e6):
        assert half_interval(1.0, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)
    assert half_interval(2.0) == pytest.approx(3.919928)
    assert Estimate(1.0, 2.0, 10, "m; s", degrees=4).half == pytest.approx(2 * 2.776445)


def test_degrees_of_freedom_and_skewness_of_a_sample():
    """Of n of infinitely many examples: n - 1 and the sample's skewness over sqrt(n); of every one, the probes' own."""
    values = stream_of(torch.empty(200, dtype=torch.float64).exponential_, 3)
    of_sample = two_stage_mean(values[:, None, None].expand(-1, 2, -1), torch.ones(200), 10**9)
    assert of_sample.degrees == pytest.approx(199, rel=1e-4)
    assert of_sample.skewness == pytest.approx(stats.skew(values.numpy()) / 200**0.5, rel=0.02)
    noise = stream_of(torch.empty(50, 5, 1, dtype=torch.float64).exponential_, 4)
    of_all = two_stage_mean(noise + 100 * torch.arange(50)[:, None, None], torch.ones(50), 50)
    assert of_all.degrees == pytest.approx(200)
    assert of_all.skewness == pytest.approx(2 / 250**0.5, rel=0.5)
    draws = weighted_mean(values[:, None], torch.ones(200, dtype=torch.float64), 1000, 1000)
    assert (draws.degrees, draws.skewness) == (199, pytest.approx(of_sample.skewness, rel=0.02))


def stream_of(fill, seed):
    return fill(generator=torch.Generator().manual_seed(seed))


def test_skewed_means_have_wider_intervals():
    """As of fewer degrees of freedom; not for the skewness that normal draws show by chance, nor an unknown one."""
    degrees = 1 / (1 / 79 + SKEWED * (0.3**2 - 6 / 79**2))
    for skewness in (0.3, -0.3):
        assert half_interval(2.0, 79, skewness) == pytest.approx(2 * stats.t.ppf(0.975, degrees), rel=1e-4)
    assert half_interval(1.0, 99, 1e6) == pytest.approx(stats.t.ppf(0.975, 1))
    assert half_interval(1.0, math.inf, 0.5) == pytest.approx(stats.t.ppf(0.975, 1 / (SKEWED * 0.25)), rel=1e-4)
    for skewness in (0.0, 2.4 / 79, math.nan):
        assert half_interval(1.0, 79, skewness) == half_interval(1.0, 79)
    assert half_interval(1.0, math.nan, math.nan) == half_interval(1.0)


@pytest.mark.parametrize(
    ("draws", "exact", "covered", "marked"),
    [("normal", 1.0, 0.94, 0.01), ("exponential", 1.0, 0.94, 0.1), ("mild lognormal", math.exp(0.125), 0.94, 0.1),
     ("chi-squared", 1.0, 0.94, 0.5)],
)  # fmt: skip
@pytest.mark.parametrize("n", [64, 100])
def test_intervals_of_a_hundred_skewed_draws_cover_and_are_seldom_marked(draws, exact, covered, marked, n):
    g, size = stream(n, draws), (2000, n)
    values = {
        "normal": lambda: 1 + 0.5 * torch.randn(size, generator=g, dtype=torch.float64),
        "exponential": lambda: torch.empty(size, dtype=torch.float64).exponential_(generator=g),
        "mild lognormal": lambda: (0.5 * torch.randn(size, generator=g, dtype=torch.float64)).exp(),
        "chi-squared": lambda: torch.randn(size, generator=g, dtype=torch.float64).square(),
    }[draws]()
    found = [weighted_mean(row[:, None], torch.ones(n), 10**6, 10**6) for row in values]
    estimates = [
        Estimate(m.means[0].item(), m.errors[0].item(), n, "m; s", degrees=m.degrees, skewness=m.skewness) for m in found
    ]
    assert sum(abs(e.value - exact) <= e.half for e in estimates) >= covered * len(estimates)
    assert sum(not e.reliable for e in estimates) <= marked * len(estimates)


def test_strata_combine_degrees_and_skewness():
    """Of two equal errors: twice the degrees, and the skewness over sqrt(2)."""
    both = stratified([Estimate(1.0, 0.1, 10, "m; s", degrees=9, skewness=0.3)] * 2, [5, 5])
    assert (both.degrees, both.skewness) == (pytest.approx(18), pytest.approx(0.3 / 2**0.5))
    one = stratified([Estimate(1.0, 0.1, 10, "m; s", degrees=9, skewness=0.3), Estimate(1.0, 0.0, 10, "m; s")], [5, 5])
    assert (one.degrees, one.skewness) == (pytest.approx(9), pytest.approx(0.3))
    assert one.reliable
    assert not settled(one.skewness, one.degrees)
    assert not Estimate(1.0, 0.1, 10, "m; s", degrees=999, skewness=0.2).reliable
    assert Estimate(1.0, 0.1, 10, "m; s", degrees=79, skewness=0.3).reliable


def table_of(values, spread, seed=0):
    """(draw, score) for examples with known values and noise, the score being right about them."""
    generator = stream(seed, "noise")

    def draw(rows, k):
        noise = 1 + spread * signs((len(rows), k, 1), generator)
        return (values[rows, None, None] * noise).double()

    def score(rows):
        return torch.stack([values[rows] / values.max(), values[rows]], 1)

    return draw, score


@pytest.mark.parametrize("n_rare", [10, 3, 40])
def test_rare_examples_that_hold_half_of_a_mean_are_found_by_their_scores(n_rare):
    values = torch.ones(50_000)
    values[torch.randperm(50_000, generator=stream(0, "rare"))[:n_rare]] = 50_000 / n_rare
    exact = values.double().mean().item()
    missed = 0
    for seed in range(20):
        draw, score = table_of(values, 0.3, seed)
        for budget in (Budget(0.05), Budget(0, 200)):
            found = importance_mean(draw, score, 50_000, budget, stream(seed, "scores")).mean
            missed += abs(found.means[0] - exact) > half_interval(found.errors[0].item(), found.degrees, found.skewness)
    assert missed <= 5  # of 40; binomial at 5 %: 0.986


@pytest.mark.parametrize(("relative_variance", "n"), [(55, 1000), (270, 1000), (270, 100), (10, 200)])
def test_a_heavy_tail_that_is_drawn_by_chance_is_covered_or_marked(relative_variance, n):
    """Lognormal draws, of which plain t intervals miss more than one in ten."""
    sigma = math.log(1 + relative_variance) ** 0.5
    values = (sigma * torch.randn(50_000, generator=stream(0, "tail"))).exp()
    exact = values.double().mean().item()
    missed_by_t = missed = 0
    for seed in range(200):
        draw, _ = table_of(values, 0.3, seed)
        found = sample_mean(draw, 50_000, Budget(0, n, 2), stream(seed, "uniform")).mean
        distance, error = abs(found.means[0].item() - exact), found.errors[0].item()
        missed_by_t += distance > half_interval(error, found.degrees)
        missed += found.reliable and distance > half_interval(error, found.degrees, found.skewness)
    assert missed_by_t > 20
    assert missed <= 10


def test_a_sample_without_its_rare_large_draws_counts_as_skewed():
    """At least as a gamma distribution of its relative error, and as the cube of a draw's relative deviation."""
    for shape in (0.1, 0.3):
        values = stats.gamma.ppf((torch.arange(400) + 0.5).numpy() / 440, shape)  # the largest tenth is missing
        values = torch.from_numpy(values)
        found = weighted_mean(values[:, None], torch.ones(400), 10**9, 10**9)
        deviation = (values.std() / values.mean()).item()
        assert found.skewness == pytest.approx(max(deviation**3, 2 * deviation) / 20, rel=1e-3)
        assert deviation > 1.5 or shape == 0.3


def test_ordinary_draws_are_not_marked():
    values = torch.rand(5000, generator=stream(0, "v")) + 0.5
    draw, score = table_of(values, 0.5)
    for seed in range(50):
        by_chance = sample_mean(draw, 5000, Budget(0.05), stream(seed, "uniform")).mean
        by_score = importance_mean(draw, score, 5000, Budget(0.05), stream(seed, "score")).mean
        assert by_chance.reliable
        assert by_score.reliable


def test_a_mean_near_zero_is_given_an_absolute_precision():
    """No number of draws has a small error relative to nothing: a few thousand, and the estimate says so."""
    drawn = 0

    def draw(rows, k):
        nonlocal drawn
        drawn += len(rows) * k
        return torch.randn(len(rows), k, 1, generator=g, dtype=torch.float64)

    g = stream(0, "zero")
    found = sample_mean(draw, 50_000, Budget(0.05), g)
    assert "near zero" in found.scheme
    assert drawn < 100_000
    assert found.mean.errors[0] < 0.01


@pytest.mark.parametrize("n_wide", [1, 5, 20])
def test_examples_that_are_unlike_the_others_are_scored_for_sure(n_wide):
    inputs = torch.randn(2000, 8, generator=stream(0, "inputs"))
    rows = torch.randperm(2000, generator=stream(0, "rows"))[:n_wide]
    inputs[rows, 3] = -99.0
    network = torch.nn.Sequential(torch.nn.Linear(8, 3))
    assert outlying(Subject(network, inputs)).tolist() == rows.sort().values.tolist()
    assert len(outlying(Subject(network, inputs[[r for r in range(2000) if r not in rows.tolist()]]))) == 0


def test_scores_are_the_traces_of_a_linear_layer():
    """Tr S times the squared norm of the inputs that meet active weights is the Fisher trace of its weights."""
    network = torch.nn.Sequential(torch.nn.Linear(25, 2, bias=False)).double()
    inputs = batch(2)[0].flatten(1)
    mask = {"0.weight": torch.rand(2, 25, generator=stream(0, "mask")) < 0.5}
    mask["0.weight"][1] = mask["0.weight"][0]
    network[0].weight.data *= mask["0.weight"]
    subject = Subject(network, inputs, mask)
    with LayerInputs(subject) as seen, torch.no_grad():
        scores = seen.scores(total_variance(network(inputs)))
    for row in range(4):
        pair = inputs[[row, row]]
        exact = fisher_trace(network, pair, mask, method="exact", rtol=0, generator=stream(0, "f")).value
        assert scores[row, 1].item() == pytest.approx(2 * exact)  # the mask's columns count both outputs


def guesses_by_hand(network, inputs, mask) -> torch.Tensor:
    """(n, layers) Tr S times the squares of what a layer takes in, those of a channel as often as it meets active weights."""
    taken = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, args, __, name=name: taken.update({name: args[0]}))
    variance = total_variance(network(inputs))
    columns = []
    for name, weight in network.named_parameters():
        if weight.ndim > 1:
            active = mask.get(name, torch.ones_like(weight)).transpose(0, 1).flatten(1).sum(1).double()
            squares = taken[name.removesuffix(".weight")].square().flatten(2 if weight.ndim > 2 else 1)
            columns.append(variance * ((squares.sum(2) if weight.ndim > 2 else squares) @ active))
    return torch.stack(columns, 1)


def relative(guesses: torch.Tensor) -> torch.Tensor:
    return guesses.double() / guesses.double().mean(0)


@pytest.mark.parametrize("density", [1, 0.4])
@pytest.mark.parametrize("largest", [1.0, 1e22, 1e30])
def test_guesses_are_right_for_inputs_whose_squares_float32_cannot_hold(density, largest):
    """One of twenty examples is so large; the others' guesses must not vanish beside it, nor its own be infinite."""
    network = tiny_conv().eval()
    mask = dict(random_mask(network, density))
    inputs = batch(n=20)[0]
    network.fc.weight.data /= largest  # so that the logits stay what they are
    inputs[7] *= largest
    with torch.no_grad():
        expected = guesses_by_hand(copy.deepcopy(network), inputs, mask)
        subject = Subject(network.float(), inputs.float(), mask)
        with subject.measuring():
            found = gradient_guesses(subject, 8, torch.arange(20))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(relative(found[:, 1:]), relative(expected), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("largest", "sums"), [(1.0, ["float32"]), (1e12, ["float32"]), (1e25, ["float32", "float64"])])
def test_guesses_are_summed_in_float64_only_where_they_must_be(monkeypatch, largest, sums):
    taken = []
    norm = torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda x, **how: taken.append(how.get("dtype", x.dtype)) or norm(x, **how))
    network = torch.nn.Sequential(torch.nn.Linear(8, 3))
    network[0].weight.data /= largest
    subject = Subject(network, largest * torch.randn(50, 8, generator=stream(0, "inputs")))
    with subject.measuring():
        gradient_guesses(subject, 64, torch.arange(50))
    assert [str(dtype).removeprefix("torch.") for dtype in taken] == sums


@pytest.mark.parametrize(("side", "chunks"), [(4, 1), (64, 1), (512, SCORED_AT_ONCE)])
def test_a_pass_without_gradients_takes_larger_chunks_only_where_they_stay_in_the_cache(side, chunks):
    """All activations of one example are at least 48 times its pixels here: 3 kB, 0.8 MB and 50 MB."""
    n, size = 4 * SCORED_AT_ONCE, 4
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 24, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    subject = Subject(network, torch.randn(n, 1, side, side, generator=stream(0, "x")))
    assert (size * subject.seen.bytes_per_example > CACHED) == (chunks > 1)
    calls = []
    with subject.measuring():
        network.register_forward_hook(lambda module, args, output: calls.append(len(output)))
        found = subject.map_logits(torch.arange(n), lambda logits: logits[:, 0], size)
    assert (len(calls), len(found)) == (chunks, n)


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
