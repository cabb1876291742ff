"""Options, registry and builder of the networks: `build_network(NetworkConfig, input_shape, n_classes, generator)`."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from helper.schema.config import Config, FlagError, flag, flatten, identity
from helper.schema.registry import Readers, with_options
from helper.schema.values import dashed, dashed_values
from helper.system.seeds import global_seed
from network.init import INITIALISERS
from network.mlp import ACTIVATIONS, MLP
from network.mnist_lenet import LeNet
from network.resnet import ResNet, blocks_per_stage


@dataclass(frozen=True)
class Architecture:
    """An entry of NETWORKS, where a builder alone does not say enough."""

    build: Callable[..., nn.Module]  # (input_shape, n_classes, *, the flags that it reads)
    label: str | None = None  # with flags in braces, as run folders are named; default: the name, and flags that are changed
    revision: int = 1  # raised when the name comes to mean another network: runs of the former one are then other runs
    batch_norm: bool = True  # whether such networks have BatchNorm layers

    @property
    def functions(self) -> tuple[Callable, ...]:
        return (self.build,)


def build_mlp(input_shape: tuple[int, ...], n_classes: int, *, hidden_dims: str, hidden_act: str, out_act: str) -> nn.Module:
    widths = [math.prod(input_shape), *dashed_values(hidden_dims), n_classes]
    return MLP(widths, hidden_act, out_act)


def build_resnet(input_shape: tuple[int, ...], n_classes: int, *, depth: int, widen_factor: int) -> nn.Module:
    return ResNet(image_channels("resnet", input_shape), n_classes, depth, widen_factor)


def build_lenet(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    channels = image_channels("mnist_lenet", input_shape)
    try:
        return LeNet(channels, n_classes, input_shape[-1])
    except ValueError as error:
        raise FlagError(str(error)) from None


NETWORKS: dict[str, Architecture | Callable] = {
    "mlp": Architecture(build_mlp, "mlp-{hidden_dims}", batch_norm=False),
    "resnet": Architecture(build_resnet, "resnet{depth}x{widen_factor}", revision=2),
    "mnist_lenet": Architecture(build_lenet, revision=2, batch_norm=False),
}


def read_by_some(name: str) -> dict[str, Readers]:
    """`when` of a flag that not all networks read."""
    return {"net_name": Readers(name, NETWORKS)}


class WithBatchNorm(Collection):
    """The words of NETWORKS whose networks have, or may have, BatchNorm layers, for `when`."""

    def __contains__(self, word: object) -> bool:
        return word in NETWORKS and getattr(NETWORKS[word], "batch_norm", True)

    def __iter__(self) -> Iterator[str]:
        return (word for word in NETWORKS if word in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class NetworkConfig(Config):
    """Network: architecture and initialisation; inputs and classes are taken from the data."""

    net_name: str = flag("mlp", "architecture", short="-nt", choices=NETWORKS)
    hidden_dims: str = flag(
        "128-64",
        "units of the hidden layers, such as 10-7-5-4-3",
        short="-hd",
        convert=dashed,
        when=read_by_some("hidden_dims"),
    )
    hidden_act: str = flag(
        "relu", "activation of the hidden layers", short="-ha", choices=ACTIVATIONS, when=read_by_some("hidden_act")
    )
    out_act: str = flag(
        "identity", "activation of the output layer", short="-oa", choices=ACTIVATIONS, when=read_by_some("out_act")
    )
    depth: int = flag(
        32, "layers: 6n+2 below 54 (basic blocks), 9n+2 from there (bottlenecks)", short="-dp", when=read_by_some("depth")
    )
    widen_factor: int = flag(
        4, "multiplies the channels of all convolutions", short="-wf", low=1, when=read_by_some("widen_factor")
    )
    in_dim: int | None = flag(
        None, "input values of an example; only checked against the data; default: the data's", short="-in", identity=False
    )
    out_dim: int | None = flag(None, "classes; only checked against the data; default: the data's", short="-ot", identity=False)
    init_method: str = flag("kaiming", "how weights are drawn; none: PyTorch's way", short="-im", choices=INITIALISERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            blocks_per_stage(self.depth)
        except ValueError as error:
            if self.net_name == "resnet":
                raise FlagError(str(error)) from None

    @property
    def architecture(self) -> Architecture:
        entry = NETWORKS[self.net_name]
        return entry if isinstance(entry, Architecture) else Architecture(entry)

    @property
    def revision(self) -> int:
        """Which of the networks that have had its name."""
        return self.architecture.revision

    @property
    def label(self) -> str:
        """The architecture in a word, as run folders are named: `resnet32x4`, `mlp-128-64`."""
        if self.architecture.label:
            return self.architecture.label.format(**flatten(self)).rstrip("-")
        changed = {name: value for name, value in identity(self).items() if name not in ("net_name", "init_method")}
        return "-".join([self.net_name, *(f"{name}{value}" for name, value in changed.items())])


def build_network(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int, generator: torch.Generator) -> nn.Module:
    """A freshly drawn network on the CPU that maps (N, *input_shape) float inputs to (N, n_classes) logits.

    Raises:
        FlagError: the architecture does not take such inputs, or --in_dim/--out_dim contradict the data.
    """
    for name, found in (("in_dim", math.prod(input_shape)), ("out_dim", n_classes)):
        if getattr(config, name) not in (None, found):
            raise FlagError(f"--{name} {getattr(config, name)}: the data has {found}; leave the flag out")
    with global_seed(generator):
        network = with_options(config.architecture.build, config)(input_shape, n_classes)
        INITIALISERS[config.init_method](network)
    return network


def image_channels(name: str, input_shape: tuple[int, ...]) -> int:
    if len(input_shape) != 3:
        raise FlagError(f"--net_name {name} takes images, and this data set has none; use --net_name mlp")
    return input_shape[0]
