"""Which parameters count: every weight and bias but a normalisation's, wherever it lives; and what is left out is said."""

import pytest
import torch
from torch import Tensor, nn

from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.parameters import counted_parameters, uncounted
from helper.metrics.snr import GradientMoments
from tests.conftest import NETWORKS_TRIED, small_network, tiny_conv
from tests.exact import batch


def by_names(network: nn.Module, inputs: Tensor, names: list[str]) -> float:
    """Tr F over the named parameters by brute force, one backward pass for each example and class."""
    parameters, total = [network.get_parameter(name) for name in names], 0.0
    for x in inputs:
        log_p = network(x[None])[0].log_softmax(0)
        for value in log_p:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True)
            total += value.exp().item() * sum(g.square().sum().item() for g in gradients)
    return total / len(inputs)


class Bare(nn.Module):
    """Parameters of its own, with and without a module beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.full((25,), 1.5)), nn.Parameter(torch.ones(25))
        self.fc, self.norm = nn.Linear(25, 3), nn.LayerNorm(25)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(x.flatten(1)) * self.scale + self.bias))


class Own(nn.LayerNorm):
    """Derived from a normalisation."""


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(5, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x.flatten(1, 2))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(5, 1, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2)
        return self.fc(self.attention(x, x, x)[0].mean(1))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.words((x.flatten(1) > 0).long() + 2 * (x.flatten(1) > 1)).mean(1))


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Bilinear(25, 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.pairs(x.flatten(1), x.flatten(1).abs())


LSTM = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"]
ATTENTION = ["attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight", "attention.out_proj.bias"]
FC = ["fc.weight", "fc.bias"]
GIVEN = {  # network, counted as `layers`, left out
    "one dimension": (
        nn.Sequential(nn.Flatten(1, 2), nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(12, 3)),
        ["1.weight", "1.bias", "4.weight", "4.bias"],
        ["2.weight", "2.bias"],
    ),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.GroupNorm(2, 2), nn.Flatten(), nn.Linear(98, 3)),
        ["0.weight", "0.bias", "3.weight", "3.bias"],
        ["1.weight", "1.bias"],
    ),
    "three dimensions": (
        nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), nn.Flatten(), nn.PReLU(), nn.Linear(18, 3)),
        ["1.weight", "1.bias", "3.weight", "4.weight", "4.bias"],
        [],
    ),
    "bare parameters": (Bare(), ["scale", "bias", *FC], ["norm.weight", "norm.bias"]),
    "derived normalisations": (
        nn.Sequential(nn.Flatten(), Own(25), nn.RMSNorm(25), nn.Linear(25, 3)),
        ["3.weight", "3.bias"],
        ["1.weight", "1.bias", "2.weight"],
    ),
    "LSTM": (Recurrent(), [*LSTM, *FC], []),
    "attention": (Attention(), [*ATTENTION, *FC], []),
    "embedding": (Words(), ["words.weight", *FC], []),
    "bilinear": (Pairs(), ["pairs.weight", "pairs.bias"], []),
}


@pytest.mark.parametrize("name", GIVEN)
def test_every_weight_and_bias_counts_but_a_normalisations(name):
    network, counted, left_out = GIVEN[name]
    network, (inputs, labels) = network.double().eval(), batch(n=5)
    found = fisher_trace(network, inputs, method="exact")
    assert found.value == pytest.approx(by_names(network, inputs, counted), rel=1e-9)
    assert sorted(found.left_out) == sorted(left_out)
    assert sum(value for value, _ in found.by_layer.values()) == pytest.approx(found.value)
    assert "" not in found.by_layer
    weights = [n for n in counted if not n.rpartition(".")[2].startswith("bias") and not n.endswith("in_proj_bias")]
    of_weights = fisher_trace(network, inputs, method="exact", params="weights")
    assert of_weights.value == pytest.approx(by_names(network, inputs, weights), rel=1e-9)
    assert set(of_weights.left_out) == {n for n, _ in network.named_parameters()} - set(weights)
    whole = fisher_trace(network, inputs, method="exact", params="all")
    assert whole.value == pytest.approx(by_names(network, inputs, counted + left_out), rel=1e-9)
    assert whole.left_out == ()
    assert hessian_trace(network, inputs, labels, rtol=0, n_probes=2).left_out == found.left_out
    assert set(GradientMoments(network).names) == set(weights)


@pytest.mark.parametrize("name", NETWORKS_TRIED)
def test_the_projects_networks_count_what_they_did(name):
    """Weights and biases of Linear and Conv2d, under the names of their layers."""
    network, _ = small_network(name)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    found = counted_parameters(network, "layers")
    assert list(found) == list(layers)
    for layer, module in layers.items():
        assert list(found[layer]) == [f"{layer}.{kind}" for kind, _ in module.named_parameters()]
    assert list(counted_parameters(network, "weights")) == list(layers)
    assert [n.removesuffix(".weight") for n in GradientMoments(network).names] == list(layers)
    assert len(uncounted(network, "layers")) == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def test_tensors_that_are_no_parameters_are_named():
    network = tiny_conv()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    network.fc.register_forward_hook(lambda module, args, output: output * scale)
    assert (
        fisher_trace(network, batch()[0], method="exact").left_out[-1].startswith("a tensor of shape () that is no parameter")
    )


def test_parameters_without_a_gradient_do_not_count_and_complex_ones_are_refused():
    network, inputs = tiny_conv().eval(), batch()[0]
    expected = fisher_trace(network, inputs, method="exact", params="all")
    network.fc.steps = nn.Parameter(torch.zeros((), dtype=torch.long), requires_grad=False)
    found = fisher_trace(network, inputs, method="exact", params="all")
    assert (found.value, found.left_out) == (expected.value, ())
    network.fc.phase = nn.Parameter(torch.zeros((), dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"fc\.phase is complex"):
        fisher_trace(network, inputs)


def test_a_run_says_what_it_leaves_out(train):
    few = ("--limit_train", 64, "--n_epochs", 1, "--lr_milestones", 1, "--figures", 0)
    log = (train("--net_name", "resnet", "--depth", 8, *few) / "training.log").read_text()
    assert log.count("--metric_params layers leaves out bn.weight, bn.bias, ") == 1
