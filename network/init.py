"""Initialisers: each redraws the weights of a network, whose classifier is `head`, in place from the global generator."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


def kaiming(network: nn.Module, head: nn.Module) -> None:
    """He et al. 2015 normal, fan-out, for ReLU; the classifier N(0, 0.01^2); biases and BatchNorm reset."""
    _redraw(network, lambda weight: nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"))
    nn.init.normal_(head.weight, std=0.01)


def kaiming_fan_in(network: nn.Module, head: nn.Module) -> None:
    """He et al. 2015 normal, fan-in, for ReLU: variance 2 / fan-in; the classifier N(0, 0.01^2); biases and BatchNorm reset."""
    _redraw(network, lambda weight: nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu"))
    nn.init.normal_(head.weight, std=0.01)


def xavier(network: nn.Module, head: nn.Module) -> None:
    """Glorot & Bengio 2010 normal; biases and BatchNorm reset."""
    _redraw(network, nn.init.xavier_normal_)


def none(network: nn.Module, head: nn.Module) -> None:
    """What the layers' constructors drew (PyTorch's defaults) stays."""


def _redraw(network: nn.Module, draw) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm):
            module.reset_parameters()


INITIALISERS = {
    "kaiming": kaiming,
    "kaiming_fan_in": kaiming_fan_in,
    "sparse_kaiming": kaiming_fan_in,
    "xavier": xavier,
    "none": none,
}
BY_ACTIVE_FAN_IN = {"sparse_kaiming": "kaiming_fan_in"}  # -> what it is where there is no mask: the same draw, not scaled
