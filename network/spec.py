"""What a network says about itself, in its own file: everything that the rest of the program asks about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from helper.schema.config import FlagError


@dataclass(frozen=True)
class Facts:
    """What is known of a network once its inputs and classes are.

    Attributes:
        batch_norm: whether it has, or may have, BatchNorm layers.
        channels_last: whether it takes images, and has its weights, in that layout.
        head: name of the classifier, of a network whose spec does not know it; None: it has none.
        uncounted: multiply-accumulates of an example in products with no weight, such as attention's.
    """

    batch_norm: bool
    channels_last: bool = True
    head: str | None = None
    uncounted: int = 0


@dataclass(frozen=True)
class NetworkSpec:
    """One architecture. Of its functions, the keyword-only parameters name the flags that they read.

    Attributes:
        name: on the command line.
        build: (input_shape, n_classes, *, flags) -> a network that maps (N, *input_shape) inputs to (N, n_classes) logits.
        head: which of its layers is the classifier, which `--prune_last 0` leaves whole; None: of a user's own, it has none.
        folder: its name in run folders, with flags in braces; None: its name and the flags that are changed.
        revision: raised when the name comes to mean another network: runs of the former one are then other runs.
        flags: a class whose fields are flags that no other network declares.
        check: raises ValueError when its flags do not make a network; the message names them.
        images: whether it takes images alone, (channels, height, width); else any inputs.
        sides: of the square images that it takes; empty: any images whose height and width are `least_side` or more.
        batch_norm: whether such networks have, or may have, BatchNorm layers.
        find: (input_shape, n_classes, *, flags) -> its `Facts`, of a user's own code; None: the spec knows them.
        smoke: flags that make it small, and use all of its own.
    """

    name: str
    build: Callable[..., nn.Module]
    head: Callable[[nn.Module], nn.Module | None]
    folder: str | None = None
    revision: int = 1
    flags: type | None = None
    check: Callable[..., None] | None = None
    images: bool = True
    sides: tuple[int, ...] = ()
    least_side: int = 1
    batch_norm: bool = True
    find: Callable[..., Facts] | None = None
    smoke: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether it is code of a user's own."""
        return self.find is not None

    @property
    def functions(self) -> tuple[Callable, ...]:
        """Those that read flags."""
        return (self.build,) if self.check is None else (self.build, self.check)

    def check_inputs(self, input_shape: tuple[int, ...]) -> None:
        """Raise FlagError unless it takes such inputs."""
        if self.images and len(input_shape) != 3:
            raise FlagError(f"--net_name {self.name} takes images, and this data set has none; use --net_name mlp")
        found = "x".join(map(str, input_shape[1:]))
        if self.images and min(input_shape[1:]) < self.least_side:
            least = f"{self.least_side}x{self.least_side}"
            raise FlagError(f"--net_name {self.name} takes images of at least {least} pixels, not {found}")
        if self.sides and input_shape[1:] not in [(side, side) for side in self.sides]:
            *first, last = [f"{side}x{side}" for side in self.sides]
            raise FlagError(f"--net_name {self.name} takes images of {', '.join(first)} or {last} pixels, not {found}")

    def head_of(self, network: nn.Module) -> nn.Module | None:
        """The classifier; None: a network of a user's own has none. TypeError: `head` gives no layer of it with a weight."""
        try:
            head = self.head(network)
        except (AttributeError, LookupError, TypeError) as error:
            raise TypeError(f"the head of --net_name {self.name} is not to be found: {error}") from error
        if self.own and head is None:
            return None
        if head not in network.modules() or not isinstance(getattr(head, "weight", None), Tensor):
            raise TypeError(f"the head of --net_name {self.name} is no layer with a weight in the network that it builds")
        return head

    def head_name(self, network: nn.Module) -> str | None:
        """The name of the classifier among the layers of a network; None, and TypeError: as of `head_of`."""
        head = self.head_of(network)
        if head is None:
            return None
        return next(name for name, module in network.named_modules() if module is head)
