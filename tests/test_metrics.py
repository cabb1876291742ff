"""The evaluation pass, gradient moments and shares under label noise, against their definitions."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from helper.mask import Mask
from helper.metrics.evaluation import batch_sums, evaluate, no_sums
from helper.metrics.parameters import full_precision
from helper.metrics.snr import GradientMoments
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.measuring import evaluate_training
from tests.conftest import tiny_conv
from tests.exact import batch, random_mask


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


def test_weights_of_every_kind_have_an_snr_and_an_unused_one_has_none():
    network = torch.nn.Sequential(torch.nn.Flatten(1, 2), torch.nn.LSTM(5, 3, batch_first=True)).double()
    network.fc, network.spare = torch.nn.Linear(3, 3).double(), torch.nn.Conv1d(2, 2, 1).double()
    network.forward = lambda x: network.fc(network[1](network[0](x))[0][:, -1])
    inputs, labels = batch()
    moments = GradientMoments(network)
    evaluate(network, batches(inputs, labels, labels, 8), moments=moments, batch_size=8)
    rows = {row["layer"]: row for row in moments.table()}
    assert list(rows) == ["1.weight_ih_l0", "1.weight_hh_l0", "fc", "spare"]
    assert all(rows[layer]["snr"] > 0 for layer in list(rows)[:3])
    assert rows["spare"]["grad_mean_norm"] == 0
    assert rows["spare"]["snr"] != rows["spare"]["snr"]
    stack = [
        torch.autograd.grad(F.cross_entropy(network(inputs[i : i + 8]), labels[i : i + 8]), network[1].weight_ih_l0)[0]
        for i in (0, 8, 16)
    ]
    assert rows["1.weight_ih_l0"]["grad_mean_norm"] == pytest.approx(torch.stack(stack).mean(0).norm().item(), rel=1e-9)


def test_one_batch_gives_no_snr():
    moments = GradientMoments(tiny_conv())
    inputs, labels = batch()
    evaluate(moments_network := tiny_conv(), batches(inputs, labels, labels, 24), moments=moments, batch_size=99)
    assert moments.table() == []
    assert moments_network.training


def test_noisy_columns_are_counts_and_not_means_of_means():
    labels, true = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 0, 1, 1])
    predicted, losses = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    logits = torch.nn.functional.one_hot(predicted, 3).float()
    found = no_sums(noisy=True)
    for i in (slice(0, 2), slice(2, 4), slice(4, 5)):
        found = found + batch_sums(logits[i], losses[i], labels[i], true[i], noisy=True)
    log_p = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).log_softmax(0)
    assert found.means() == {
        "loss": pytest.approx(3),
        "acc": pytest.approx(3 / 5),
        "entropy": pytest.approx(-(log_p.exp() * log_p).sum().item()),
        "loss_clean": pytest.approx(8 / 3),
        "loss_noisy": pytest.approx(3.5),
        "acc_clean": pytest.approx(2 / 3),
        "acc_generalized": 0.5,
        "acc_memorized": 0.5,
    }


def test_noisy_columns_without_noise_are_nan_where_there_is_nothing():
    labels = torch.tensor([0, 1])
    means = batch_sums(torch.eye(2), torch.ones(2), labels, labels, noisy=True).means()
    assert means["acc_clean"] == 1
    assert means["acc_memorized"] != means["acc_memorized"]
