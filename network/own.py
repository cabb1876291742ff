"""Networks of a user's own, `--net_name MODULE:FACTORY`: what is asked of a `NetworkSpec` is found out by running one."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from helper.metrics.macs import uncounted_macs
from helper.metrics.parameters import UNFIT
from helper.own.calls import OwnCodeError, arguments_for, canonical_arguments, imported, own_code, parameters_of, seeded
from helper.schema.config import flag
from network.spec import Facts, NetworkSpec

ANY = "MODULE:FACTORY"  # stands for all of them where networks are listed
LINEAR = (nn.Linear, _ConvNd)
CLASSIFIER = "own_classifier"  # attribute of a network: the name of its head, which goes along with copies of it


class OwnFlags:
    net_args: str = flag(
        "", "arguments of a factory of your own, such as dim=64,depth=2; typed by what it says of them",
        convert=canonical_arguments, whole=True,
    )  # fmt: skip
    net_code: str | None = flag(
        None, "version of that code: of a package name and version, of files a hash; another one is refused; default: found out"
    )


@functools.cache
def own_network(word: str) -> NetworkSpec:
    """The spec of a factory, which is run when a network is built and no sooner."""

    def build(input_shape: tuple[int, ...], n_classes: int, *, net_args: str, net_code: str | None) -> nn.Module:
        network = made(word, net_args, net_code, input_shape, n_classes)
        setattr(network, CLASSIFIER, facts(word, net_args, net_code, input_shape, n_classes).head)
        return network

    def head(network: nn.Module) -> nn.Module | None:
        name = getattr(network, CLASSIFIER)
        return None if name is None else network.get_submodule(name)

    def find(input_shape: tuple[int, ...], n_classes: int, *, net_args: str, net_code: str | None) -> Facts:
        return facts(word, net_args, net_code, input_shape, n_classes)

    return NetworkSpec(word, build, head, flags=OwnFlags, images=False, find=find)


def made(word: str, net_args: str, net_code: str | None, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """What the factory gives, on the CPU, drawn from the global generators.

    Raises:
        FlagError: arguments that it does not take. OwnCodeError: it fails, or gives no network that can be trained.
    """
    factory = imported(word, net_code)
    arguments = arguments_for(word, factory, "net_args", net_args, offered(word, factory, input_shape, n_classes))
    with seeded(torch.initial_seed()), own_code(word, "making the network"):
        network = factory(**arguments)
    if not isinstance(network, nn.Module):
        raise OwnCodeError(f"{word} gives a {type(network).__name__}: it has to give a torch.nn.Module")
    network = network.cpu()
    if any(is_lazy(parameter) for parameter in network.parameters()):
        run(word, network, example(input_shape))
    check_parameters(word, network)
    return network.train()


def offered(word: str, factory: Callable[..., nn.Module], input_shape: tuple[int, ...], n_classes: int) -> dict[str, Any]:
    """What a factory may ask for; one that passes any argument on, as torchvision's do, gets `num_classes`."""
    names = parameters_of(word, factory)
    known = {"n_classes": n_classes, "num_classes": n_classes, "input_shape": tuple(input_shape)}
    named = {name: value for name, value in known.items() if name in names}
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
    return named if not passes_on or {"n_classes", "num_classes"} & named.keys() else named | {"num_classes": n_classes}


def check_parameters(word: str, network: nn.Module) -> None:
    """Raise OwnCodeError where there is nothing to train, or something that is not saved as a tensor of this program's."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise OwnCodeError(f"{word}: the network has no trainable parameters")
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise OwnCodeError(f"{word}: {name} is {parameter.dtype}: parameters have to be torch.float32")
        if not parameter.requires_grad:
            raise OwnCodeError(f"{word}: {name} is frozen: make it a buffer, as all parameters are trained")
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise OwnCodeError(f"{word}: {name} in the network's state_dict is no tensor, and could not be saved")


@functools.cache
def facts(word: str, net_args: str, net_code: str | None, input_shape: tuple[int, ...], n_classes: int) -> Facts:
    """Of a network that is made for this and forgotten.

    The last executed layer that has as many outputs as there are classes is taken for the classifier.

    Raises:
        OwnCodeError: in training or evaluation it fails, or gives something else than logits.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        network = made(word, net_args, net_code, input_shape, n_classes)
        called = []
        layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LINEAR)}
        for name, layer in layers.items():
            layer.register_forward_hook(lambda layer, inputs, output, name=name: called.append(name))
        for mode in (True, False):
            called.clear()
            check_logits(word, run(word, network.train(mode), example(input_shape)), input_shape, n_classes)
        heads = [name for name in called if outputs_of(layers[name]) == n_classes]
        with own_code(word, "a forward pass of one example"):
            uncounted = uncounted_macs(network, input_shape)
        batch_norm = any(isinstance(module, _BatchNorm) for module in network.modules())
        return Facts(batch_norm, takes_channels_last(network, input_shape), heads[-1] if heads else None, uncounted)


def takes_channels_last(network: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether a network, which this may leave in another layout, computes in it: `x.view(len(x), -1)` does not."""
    inputs = example(input_shape)
    if inputs.ndim != 4:
        return False
    try:
        network.to(memory_format=torch.channels_last)
        for mode in (True, False):
            network.train(mode)(inputs.contiguous(memory_format=torch.channels_last))
    except UNFIT:
        return False
    return True


def outputs_of(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def example(input_shape: tuple[int, ...]) -> Tensor:
    """Two inputs of zeros, which are also tokens of any vocabulary."""
    return torch.zeros(2, *input_shape)


def run(word: str, network: nn.Module, inputs: Tensor) -> Any:
    mode = "training" if network.training else "evaluation"
    with own_code(word, f"in {mode}, the network on {len(inputs)} inputs of {tuple(inputs.shape[1:])}"):
        return network(inputs)


def check_logits(word: str, logits: Any, input_shape: tuple[int, ...], n_classes: int) -> None:
    """Raise OwnCodeError for anything but differentiable logits (2, classes)."""
    found = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if not isinstance(logits, Tensor) or logits.shape != (2, n_classes):
        raise OwnCodeError(
            f"{word}: the network gives {found} for 2 inputs of {tuple(input_shape)} and {n_classes} classes: it has to give "
            f"logits of (2, {n_classes})"
        )
    if not logits.is_floating_point() or not logits.requires_grad:
        raise OwnCodeError(f"{word}: the logits have no gradient by the network's parameters: are they detached?")
