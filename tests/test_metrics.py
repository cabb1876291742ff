"""Measurements against brute force in float64 on tiny networks, and against each other."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from helper.mask import Mask
from helper.metrics.estimate import sample_groups, two_stage_mean
from helper.metrics.evaluation import evaluate
from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.memorization import noisy_means, noisy_sums
from helper.metrics.parameters import counted_parameters, full_precision
from helper.metrics.snr import GradientMoments
from helper.utils import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.measuring import evaluate_training
from tests.conftest import tiny_conv

N = 24


def batch(n_classes: int = 3, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    g = stream(0, "batch")
    return torch.randn(n, 1, 5, 5, generator=g, dtype=torch.float64), torch.randint(n_classes, (n,), generator=g)


def random_mask(network, density: float) -> Mask:
    g = stream(0, "mask")
    return Mask({n: torch.rand(p.shape, generator=g) < density for n, p in network.named_parameters() if p.ndim > 1})


def masked(network, mask):
    mask.apply_(network)
    return network


def keep_of(network, mask, params) -> torch.Tensor:
    """Bool vector over all parameters: counted and active."""
    counted = {name for layer in counted_parameters(network, params).values() for name in layer}
    pieces = []
    for name, p in network.named_parameters():
        keep = mask[name] if mask and name in mask else torch.ones_like(p, dtype=torch.bool)
        pieces.append((keep & (name in counted)).flatten())
    return torch.cat(pieces)


def exact_fisher(network, inputs, mask, params) -> float:
    """Sum over all labels y of p(y|x) ||grad log p(y|x)||^2, averaged over examples."""
    network = copy.deepcopy(network).eval()
    keep = keep_of(network, mask, params)
    total = 0.0
    for x in inputs:
        log_p = network(x[None]).log_softmax(1)[0]
        for value in log_p:
            gradient = torch.autograd.grad(value, list(network.parameters()), retain_graph=True)
            total += value.exp().item() * torch.cat([g.flatten() for g in gradient])[keep].square().sum().item()
    return total / len(inputs)


def exact_hessian(network, inputs, labels, mask, params) -> float:
    network = copy.deepcopy(network).eval()
    keep = keep_of(network, mask, params)
    parameters = list(network.parameters())
    loss = F.cross_entropy(network(inputs), labels)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    trace = 0.0
    for index in keep.nonzero().flatten():
        row = torch.autograd.grad(gradient[index], parameters, retain_graph=True)
        trace += torch.cat([g.flatten() for g in row])[index].item()
    return trace


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("density", "params"), [(1.0, "layers"), (0.5, "weights"), (0.05, "all")])
def test_fisher_trace_is_that_of_brute_force(n_classes, bias, density, params):
    network = tiny_conv(n_classes, bias)
    mask = random_mask(network, density)
    masked(network, mask)
    inputs, _ = batch(n_classes)
    exact = exact_fisher(network, inputs, mask, params)
    summed = fisher_trace(network, inputs, mask, metric="fim", params=params, batch_size=7, generator=stream(0, "f"))
    assert summed.value == pytest.approx(exact, rel=1e-9)
    assert summed.standard_error == pytest.approx(0, abs=1e-9)
    sampled = fisher_trace(network, inputs, mask, n_probes=40, params=params, batch_size=12, generator=stream(0, "f"))
    assert abs(sampled.value - exact) < 4 * sampled.standard_error < 0.5 * exact
    assert sum(value for value, _ in sampled.by_layer.values()) == pytest.approx(sampled.value)


@pytest.mark.parametrize("method", ["pyhessian", "eigenthings"])
@pytest.mark.parametrize(("density", "params"), [(1.0, "layers"), (0.5, "weights"), (0.05, "all")])
def test_hessian_trace_is_that_of_brute_force(method, density, params):
    network = tiny_conv()
    mask = random_mask(network, density)
    masked(network, mask)
    inputs, labels = batch()
    exact = exact_hessian(network, inputs, labels, mask, params)
    estimate = hessian_trace(
        network, inputs, labels, mask, method=method, n_probes=300, params=params, batch_size=12, generator=stream(0, "h")
    )
    assert abs(estimate.value - exact) < 4 * estimate.standard_error < 0.9 * exact
    assert sum(value for value, _ in estimate.by_layer.values()) == pytest.approx(estimate.value)


def test_both_hessian_libraries_give_the_same_draws():
    network = tiny_conv()
    inputs, labels = batch()
    a, b = (
        hessian_trace(network, inputs, labels, method=method, generator=stream(0, "h")).value
        for method in ("pyhessian", "eigenthings")
    )
    assert a == pytest.approx(b, rel=1e-9)


def test_hessian_and_fisher_traces_agree_on_a_piecewise_linear_network():
    network = tiny_conv()
    inputs, labels = batch()
    assert exact_hessian(network, inputs, labels, None, "layers") == pytest.approx(
        exact_fisher(network, inputs, None, "layers"), rel=1e-9
    )


def test_measuring_leaves_no_trace_in_the_network():
    network = tiny_conv()
    network.conv1.eval()
    network.fc.bias.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    random_state = torch.get_rng_state()
    inputs, labels = batch()
    fisher_trace(network, inputs, generator=stream(0, "f"))
    hessian_trace(network, inputs, labels, generator=stream(0, "h"))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert (network.training, network.conv1.training, network.bn.training) == (True, False, True)
    assert not network.fc.bias.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert not network.conv2._forward_hooks
    assert torch.equal(random_state, torch.get_rng_state())


def test_estimates_of_a_subset_cover_the_population():
    """95 % intervals from 16 of 64 examples, two label draws each, over 1,000 repetitions on a tiny linear classifier."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3)).double()
    inputs, _ = batch(n=64)
    exact = exact_fisher(network, inputs, None, "layers")
    # the per-example draws of fisher_trace, vectorised: for a linear classifier ||p - e_y||^2 (||x||^2 + 1)
    p = network(inputs).softmax(1).detach()
    squares = inputs.flatten(1).square().sum(1) + 1
    hits = 0
    for repetition in range(1000):
        g = stream(repetition, "cover")
        rows = torch.randperm(64, generator=g)[:16]
        labels = torch.multinomial(p[rows], 2, replacement=True, generator=g)
        draws = ((p[rows, None] - F.one_hot(labels, 3)).square().sum(2) * squares[rows, None])[..., None]
        mean, error = two_stage_mean(draws, torch.ones(16), 64)
        hits += abs(mean.item() - exact) < 2.13 * error.item()  # Student's t for 15 degrees of freedom
    assert 925 <= hits <= 975


def test_two_stage_error_is_only_probe_noise_when_everything_is_measured():
    values = torch.randn(10, 4, 1, generator=stream(0, "v"), dtype=torch.float64) + torch.arange(10)[:, None, None] * 100
    _, error = two_stage_mean(values, torch.ones(10), 10)
    assert error.item() == pytest.approx((values.var(1).mean() / 40).sqrt().item())
    _, of_a_sample = two_stage_mean(values, torch.ones(10), 10_000)
    assert of_a_sample.item() > 50


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
    with pytest.raises(ValueError, match="at least 2 examples"):
        sample_groups(1, 10, 5, generator)


def test_the_sum_over_labels_holds_on_a_confident_network():
    """In float32, with predictions so sure that 1 - p rounds to nothing."""
    network = tiny_conv(10).float()
    network.fc.weight.data *= 200
    inputs, _ = batch(10)
    summed = fisher_trace(network, inputs.float(), metric="fim", generator=stream(0, "f"))
    assert summed.value == pytest.approx(exact_fisher(network.double(), inputs, None, "layers"), rel=1e-4)


def test_networks_that_give_nan_are_refused():
    network = tiny_conv()
    network.fc.bias.data[0] = torch.nan
    inputs, labels = batch()
    with pytest.raises(ValueError, match="not finite"):
        fisher_trace(network, inputs, generator=stream(0, "f"))
    with pytest.raises(ValueError, match="not finite"):
        hessian_trace(network, inputs, labels, generator=stream(0, "h"))


# ------------------------------------------------------------------------------------------- the evaluation pass


def batches(inputs, labels, true_labels, size):
    return [(inputs[i : i + size], labels[i : i + size], true_labels[i : i + size]) for i in range(0, len(inputs), size)]


@pytest.mark.parametrize("size", [5, 8, 24])
def test_evaluation_weighs_every_example_alike_whatever_the_batches(size):
    network = tiny_conv()
    inputs, labels = batch()
    means = evaluate(network, batches(inputs, labels, labels, size))
    assert network.training
    logits = network.eval()(inputs)
    p = logits.softmax(1)
    assert means["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert means["acc"] == (logits.argmax(1) == labels).double().mean().item()
    assert means["entropy"] == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-6)


def test_gradient_moments_are_those_of_the_stacked_gradients():
    network = tiny_conv()
    mask = random_mask(network, 0.5)
    inputs, labels = batch()
    moments = GradientMoments(network, mask)
    evaluate(network, batches(inputs, labels, labels, 5), moments=moments, batch_size=5)  # the short last batch is dropped
    network.eval()
    for row in moments.table():
        name = f"{row['layer']}.weight"
        weight, keep = network.get_parameter(name), mask[name]
        stack = torch.stack(
            [
                torch.autograd.grad(F.cross_entropy(network(inputs[i : i + 5]), labels[i : i + 5]), weight)[0][keep]
                for i in range(0, 20, 5)
            ]
        )
        assert row["n_batches"] == 4
        assert row["grad_mean_norm"] == pytest.approx(stack.mean(0).norm().item(), rel=1e-9)
        assert row["grad_std_norm"] == pytest.approx(stack.std(0).norm().item(), rel=1e-9)
        assert row["snr"] == pytest.approx((stack.mean(0).norm() / stack.std(0).norm()).item(), rel=1e-9)
        assert row["weight_norm"] == pytest.approx(weight[keep].norm().item())


def test_pure_noise_has_an_snr_of_one_over_root_batches():
    network = torch.nn.Linear(100, 100)
    moments = GradientMoments(torch.nn.Sequential(network))
    for index in range(25):
        moments.update([torch.randn(100, 100, generator=stream(index, "noise"))])
    assert moments.table()[0]["snr"] == pytest.approx(0.2, rel=0.05)


def test_snr_does_not_depend_on_the_order_of_a_file():
    """Batches of consecutive patterns of the toy set are no random mini-batches: their SNR would be half."""
    data = load_dataset(DataConfig(loader_name="toy"))
    shuffled = dataclasses.replace(data, train=data.train[torch.randperm(len(data.train), generator=stream(0, "shuffle"))])
    network = build_network(NetworkConfig(hidden_dims="16"), data.input_shape, 2, stream(0, "init"))
    a, b = (evaluate_training(network, Mask(), d, 128, seed=0, snr=True)[1] for d in (data, shuffled))
    for ordered, mixed in zip(a, b, strict=True):
        assert 0.6 < ordered["snr"] / mixed["snr"] < 1.7
    in_order = GradientMoments(network)
    evaluate(network, data.batches(data.train, 128), moments=in_order, batch_size=128)
    assert in_order.table()[0]["grad_std_norm"] > 1.5 * a[0]["grad_std_norm"]


def test_full_precision_changes_tf32_and_autocast_only():
    enabled = torch.backends.cudnn.enabled
    with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        assert torch.backends.cudnn.enabled == enabled
        assert not torch.backends.cudnn.allow_tf32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert torch.backends.cudnn.allow_tf32


def test_one_batch_gives_no_snr():
    moments = GradientMoments(tiny_conv())
    inputs, labels = batch()
    evaluate(moments_network := tiny_conv(), batches(inputs, labels, labels, 24), moments=moments, batch_size=99)
    assert moments.table() == []
    assert moments_network.training


def test_noisy_columns_are_counts_and_not_means_of_means():
    labels, true = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 0, 1, 1])
    predicted, losses = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    rows = [noisy_sums(losses[i : i + 2], predicted[i : i + 2], labels[i : i + 2], true[i : i + 2]) for i in (0, 2, 4)]
    means = noisy_means(torch.stack(rows).sum(0).tolist(), 5)
    assert means == {
        "loss_clean": pytest.approx(8 / 3),
        "loss_noisy": pytest.approx(3.5),
        "acc_clean": pytest.approx(2 / 3),
        "acc_generalized": 0.5,
        "acc_memorized": 0.5,
    }


def test_noisy_columns_without_noise_are_nan_where_there_is_nothing():
    labels = torch.tensor([0, 1])
    means = noisy_means(noisy_sums(torch.ones(2), labels, labels, labels).tolist(), 2)
    assert means["acc_clean"] == 1
    assert means["acc_memorized"] != means["acc_memorized"]
