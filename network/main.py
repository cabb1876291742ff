"""Options, registry and builder of the networks: `build_network(NetworkConfig, input_shape, n_classes, generator)`."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from helper.own.references import WithReferences, canonical, path_label, version_of
from helper.schema.config import Config, FlagError, flag, flatten, identity
from helper.schema.registry import EntriesThat, by_name, with_options, with_own_flags
from helper.system.seeds import global_seed
from network.alexnet import ALEXNET_SPEC, MNIST_ALEXNET_SPEC
from network.densenet import DENSENET_SPEC
from network.init import INITIALISERS
from network.mlp import MLP_SPEC
from network.mnist_lenet import LENET_SPEC
from network.own import ANY, own_network
from network.preresnet import PRERESNET_SPEC
from network.resnet import RESNET_SPEC
from network.spec import Facts, NetworkSpec
from network.vgg import VGG_SPECS
from network.wide_resnet import WIDE_RESNET_SPEC

NETWORKS: dict[str, NetworkSpec] = by_name(
    MLP_SPEC,
    RESNET_SPEC,
    LENET_SPEC,
    PRERESNET_SPEC,
    WIDE_RESNET_SPEC,
    *VGG_SPECS,
    DENSENET_SPEC,
    ALEXNET_SPEC,
    MNIST_ALEXNET_SPEC,
)
KNOWN = WithReferences(NETWORKS, own_network, ANY)
WITH_BATCH_NORM = EntriesThat(KNOWN, lambda spec: spec.batch_norm)  # or that may have it


@dataclass(frozen=True)
@with_own_flags(KNOWN, word="net_name", after="net_name")
class NetworkConfig(Config):
    """Network: architecture and initialisation; inputs and classes are taken from the data."""

    net_name: str = flag(
        "mlp", "architecture, or code of your own (docs/own.md)", short="-nt", choices=KNOWN, convert=canonical
    )
    in_dim: int | None = flag(
        None, "input values of an example; only checked against the data; default: the data's", short="-in", identity=False
    )
    out_dim: int | None = flag(None, "classes; only checked against the data; default: the data's", short="-ot", identity=False)
    init_method: str | None = flag(
        None, "how weights are drawn; none: PyTorch's way; sparse_kaiming: for the weights that the mask leaves each unit; "
        "default: kaiming, and none for networks of your own", short="-im", choices=INITIALISERS,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spec.own and self.net_code is None:
            self._set("net_code", version_of(self.net_name))
        if self.init_method == self.usual_init:
            self._set("init_method", None)
        if self.spec.check is None:
            return
        try:
            with_options(self.spec.check, self)()
        except ValueError as error:
            raise FlagError(str(error)) from None

    @property
    def spec(self) -> NetworkSpec:
        return KNOWN[self.net_name]

    @property
    def usual_init(self) -> str:
        return "none" if self.spec.own else "kaiming"

    @property
    def initialiser(self) -> str:
        """The word of INITIALISERS by which weights are drawn."""
        return self.init_method or self.usual_init

    @property
    def label(self) -> str:
        """The architecture in a word, as run folders are named: `resnet32x4`, `mlp-128-64`."""
        if self.spec.own:
            return path_label(self.net_name, self.net_args)
        if self.spec.folder:
            return self.spec.folder.format(**flatten(self)).rstrip("-")
        changed = {name: value for name, value in identity(self).items() if name not in ("net_name", "init_method")}
        return "-".join([self.net_name, *(f"{name}{value}" for name, value in changed.items())])


def build_network(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int, generator: torch.Generator) -> nn.Module:
    """A freshly drawn network on the CPU that maps (N, *input_shape) float inputs to (N, n_classes) logits.

    Raises:
        FlagError: the architecture does not take such inputs, or --in_dim/--out_dim contradict the data.
        TypeError: its head is no layer of it, or has not as many outputs as there are classes.
        OwnCodeError: one of a user's own fails.
    """
    for name, found in (("in_dim", math.prod(input_shape)), ("out_dim", n_classes)):
        if getattr(config, name) not in (None, found):
            raise FlagError(f"--{name} {getattr(config, name)}: the data has {found}; leave the flag out")
    spec = config.spec
    spec.check_inputs(input_shape)
    with global_seed(generator):
        network = with_options(spec.build, config)(input_shape, n_classes)
        head = spec.head_of(network)
        if isinstance(head, (nn.Linear, nn.Conv2d)) and len(head.weight) != n_classes and not spec.own:
            raise TypeError(f"the head of --net_name {spec.name} gives {len(head.weight)} logits for {n_classes} classes")
        if head is None and config.initialiser != "none":
            raise FlagError(f"--init_method {config.initialiser}: {spec.name} has no layer that gives the classes; use none")
        INITIALISERS[config.initialiser](network, head)
    return network


def facts_of(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int) -> Facts:
    """What is known of such a network; one of a user's own is built and run to see. Raises as `build_network`."""
    find = config.spec.find
    return Facts(config.spec.batch_norm) if find is None else with_options(find, config)(input_shape, n_classes)
