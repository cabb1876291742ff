"""Fully connected network."""

import itertools
import math

from torch import Tensor, nn

from helper.schema.config import flag
from helper.schema.values import dashed, dashed_values
from network.spec import NetworkSpec

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "identity": nn.Identity}


class MLP(nn.Module):
    """Flattened inputs -> hidden layers -> logits.

    Args:
        widths: units of every layer, from the flattened input to the logits.
        hidden_act, out_act: names in ACTIVATIONS; `out_act` acts on the logits.
    """

    def __init__(self, widths: list[int], hidden_act: str = "relu", out_act: str = "identity") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[hidden_act]()]
        layers[-1] = ACTIVATIONS[out_act]()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class MLPFlags:
    hidden_dims: str = flag("128-64", "units of the hidden layers, such as 10-7-5-4-3", short="-hd", convert=dashed)
    hidden_act: str = flag("relu", "activation of the hidden layers", short="-ha", choices=ACTIVATIONS)
    out_act: str = flag("identity", "activation of the output layer", short="-oa", choices=ACTIVATIONS)


def build(input_shape: tuple[int, ...], n_classes: int, *, hidden_dims: str, hidden_act: str, out_act: str) -> MLP:
    widths = [math.prod(input_shape), *dashed_values(hidden_dims), n_classes]
    return MLP(widths, hidden_act, out_act)


MLP_SPEC = NetworkSpec(
    "mlp", build, head=lambda network: network.layers[-2], folder="mlp-{hidden_dims}", flags=MLPFlags,
    images=False, batch_norm=False, smoke={"hidden_dims": "20-10", "hidden_act": "tanh", "out_act": "identity"},
)  # fmt: skip
