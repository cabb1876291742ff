"""Fully connected network."""

import itertools

from torch import Tensor, nn

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
