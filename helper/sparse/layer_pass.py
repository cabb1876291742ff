"""What a sparse layer adds to a program: the calls of its passes, with BatchNorms before and behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from helper.sparse.drafts import Draft, Given, Value
from helper.sparse.norm_pass import check_number, norm_fields, norm_sums_fields, statistics_fields
from helper.sparse.plan import PARTS, LayerPlan, Plan
from helper.sparse.program import At, Kind
from helper.sparse.structs import MOMENTS, PAD, SUMS, WINDOW

ROWS_APIECE = 16  # at least, where a weight gradient is divided by rows


def weight_fields(plan: Plan, active: Tensor, weight: At, room: dict[str, At], *, dense: bool) -> dict[str, Any]:
    """Weights as the kernels take them: all of them with the places of the active ones, or these alone."""
    if dense:
        return {"weight": weight, "active": active.data_ptr(), "compact": room["compact"], "values": room["entries"]}
    if plan.in_order:  # it is what is wanted
        return {"values": weight}
    return {"weight": weight, "values": room["entries"]}


def weight_room(plan: Plan, element: int, *, dense: bool) -> dict[str, int]:
    """Bytes that the weights of a plan's entries take, and the active weights on their way there."""
    if plan.in_order and not dense:
        return {"compact": 0, "entries": 0}
    return {"compact": plan.n_active * element if dense else 0, "entries": plan.n_entries * element}


@dataclass(frozen=True)
class Windows:
    """Through which a plan reads, one for each thread; see kernels.cpp."""

    plan: Plan
    channels: int
    pixels: int

    @classmethod
    def of(cls, plan: Plan, channels: int, lanes: int, element: int, widest: int) -> "Windows":
        """Args: widest: pixels of a channel that have to be there at a time."""
        width = plan.source_width
        rows = max(-(-widest // width), WINDOW // (channels * width * lanes * element))
        return cls(plan, channels, min(plan.struct.source_plane, rows * width))

    def room(self, lanes: int, element: int, threads: int) -> int:
        return threads * self.channels * (self.pixels + PAD) * lanes * element

    def fields(self, name: str, to: At) -> dict[str, Any]:
        stride = self.pixels + PAD
        fields = {"to": to, "offsets": self.plan.offsets_in(stride), "channels": self.channels, "room": self.pixels}
        return {f"{name}__{key}": value for key, value in (fields | {"stride": stride}).items()}


def targets(plan: Plan, x: Value) -> tuple[int, ...]:
    """Shape of what a plan makes of its sources."""
    return (x.shape[0], plan.channels, *(plan.image if len(x.shape) == 5 else ()), x.shape[-1])


class LayerPass:
    """Passes of a sparse layer, with a BatchNorm before it, behind it, or both.

    Args:
        plan: of the layer. before, after, relu, keep: see `layers.LanesBlock`.
        given: reads (x, statistics of x, residual); with tensors (weight, bias, weight and bias of `before`).
        places: make room for (outputs, their statistics, what the layer has read), of a shape.
    Attributes:
        outputs: these three; None where there is none. read_again: those of them that a backward pass reads.
        call: where the fields of the forward one begin.
    Raises:
        ValueError: training on one value per channel.
    """

    def __init__(
        self, draft: Draft, given: Given, plan: LayerPlan, before: nn.Module | None, after: nn.Module | None,
        places: Sequence[Any], *, relu: bool, keep: bool,
    ) -> None:  # fmt: skip
        self.given, self.plan, self.before, self.after, self.relu, self.keep = given, plan, before, after, relu, keep
        x = given.values[0]
        inputs = x if before is None else places[2](x.shape) if keep else None  # no smaller than the outputs, as a rule
        y = places[0](targets(plan.forward, x))
        found = None if after is None else places[1]((3, plan.forward.channels))
        self.outputs = y, found, inputs
        self.read_again = (*(() if after is None else (y, found)), inputs)
        self.trained = tuple(norm is not None and norm.training for norm in (before, after))  # they may change their mode
        if after is not None:
            check_number(after, y)
        self.call = self.add_forward(draft)

    def add_forward(self, draft: Draft) -> int:
        """Returns: where the call's fields begin."""
        (x, _, _), (y, found, _), forward, element = self.given.values, self.outputs, self.plan.forward, draft.element
        weight, bias, _, _ = self.given.tensors
        blocks, channels, lanes = *x.shape[:2], x.shape[-1]
        windows = None if self.before is None else Windows.of(forward, channels, lanes, element, forward.widest)
        room = draft.scratch(
            **weight_room(forward, element, dense=self.given.dense),
            moments=0 if found is None else MOMENTS * blocks * forward.struct.n_bands * forward.channels,
            windows=0 if windows is None else windows.room(lanes, element, draft.threads),
        )
        fields = weight_fields(forward, self.plan.active, weight, room, dense=self.given.dense)
        if self.before is not None:
            kept = self.outputs[2] if self.keep else None
            fields |= self.norm_fields(residual=self.given.values[2], y=kept) | windows.fields("windows", room["windows"])
        if found is not None:
            fields |= statistics_fields(self.after, found, self.given.running, room["moments"])
        return draft.program.add(
            Kind.GATHER, plan=forward.address, x=x.at, y=y.at, bias=bias, blocks=blocks, lanes=lanes, **fields
        )

    def norm_fields(self, *, residual: Value | None, y: Value | None) -> dict[str, Any]:
        _, _, *of_norm = self.given.tensors
        return norm_fields(self.given.values[1], *of_norm, residual=residual, y=y, relu=self.relu)

    def backward(
        self, draft: Draft, gradients: Sequence[Value | None], needs: Sequence[bool]
    ) -> tuple[Value | None, Value | None, Value | None]:
        """(gradients of what the layer reads); those of its tensors go to `draft.results`.

        Args:
            gradients: of `outputs`. needs: whether those of its tensors are wanted.
        """
        gradient, factors, more = gradients
        x, statistics, residual = self.given.values
        if gradient is None and statistics is None:
            draft.add_users(more, 1)
            return more, None, None
        whole = draft.zeros(self.outputs[0].shape) if gradient is None else gradient
        needs_x = x.requires or statistics is not None
        of_x = of_statistics = None
        if needs[0] or statistics is not None or factors is not None:
            users = 1 + (residual is not None)
            of_x = draft.take(x.shape, users) if needs_x else None
            of_statistics = None if statistics is None else draft.take(statistics.shape, 1)
            self.add_gradients(draft, whole, factors, more, of_x, of_statistics)
        elif needs_x:
            of_x = self.add_gather(draft, whole, more)
        if self.given.tensors[1] is not None and needs[1]:
            self.leave_bias(draft, whole, factors)
        if gradient is None:
            draft.release(whole)
        return of_x, of_statistics, of_x if residual is not None else None

    def leave_bias(self, draft: Draft, gradient: Value, factors: Value | None) -> None:
        """To PyTorch, which adds up what has to stay until then."""
        needed = gradient if factors is None else factors
        if needed.block is not None:
            needed.block.users = None
        n = gradient.size // gradient.shape[1] * (not self.trained[1]) if factors is not None else None
        draft.of_biases.append((self.given.number, needed, n))

    def add_gather(self, draft: Draft, gradient: Value, more: Value | None) -> Value:
        back, element = self.plan.backward, draft.element
        room = draft.scratch(**weight_room(back, element, dense=self.given.dense))
        of_x = draft.take(self.given.values[0].shape, 1)
        draft.program.add(
            Kind.GATHER, plan=back.address, x=gradient.at, y=of_x.at, more=None if more is None else more.at,
            blocks=gradient.shape[0], lanes=gradient.shape[-1],
            **weight_fields(back, self.plan.active, self.given.tensors[0], room, dense=self.given.dense),
        )  # fmt: skip
        return of_x

    def add_gradients(
        self, draft: Draft, gradient: Value, factors: Value | None, more: Value | None, of_x: Value | None,
        of_statistics: Value | None,
    ) -> None:  # fmt: skip
        """The order of the weights' sums is the plan's."""
        given, (x, _, _), (y, found, inputs) = self.given, self.given.values, self.outputs
        forward, back, element, threads = self.plan.forward, self.plan.backward, draft.element, draft.threads
        blocks, channels, lanes = *x.shape[:2], x.shape[-1]
        kept, normed = inputs if self.keep else None, self.before is not None
        parts, by_rows = division(forward, blocks, between_norms=normed or factors is not None)
        windows = output_windows = None
        if normed and kept is None:
            windows = Windows.of(forward, channels, lanes, element, self.plan.widest[0])
        if factors is not None:
            output_windows = Windows.of(back, forward.channels, lanes, element, self.plan.widest[1])
        room = draft.scratch(
            **weight_room(back, element, dense=given.dense), sums=parts * forward.n_active * element,
            norm_sums=SUMS * blocks * back.struct.n_bands * back.channels,
            windows=0 if windows is None else windows.room(lanes, element, threads),
            output_windows=0 if output_windows is None else output_windows.room(lanes, element, threads),
        )  # fmt: skip
        fields: dict[str, Any] = {}
        if of_x is not None:
            fields = weight_fields(back, self.plan.active, given.tensors[0], room, dense=given.dense)
            fields |= {"back": back.address, "of_inputs": of_x.at, "more": None if more is None else more.at}
        if normed:
            fields |= self.norm_fields(residual=given.values[2] if kept is None else None, y=kept)
            fields |= norm_sums_fields(draft, given.number, of_statistics, room["norm_sums"], training=self.trained[0])
        if factors is not None:
            outputs = {"factors": factors.at, "x": y.at, "mean": found.at, "channels": found.shape[1]}
            outputs |= {"given": int(not self.trained[1])}
            fields |= {f"outputs__{name}": value for name, value in outputs.items()}
            fields |= output_windows.fields("output_windows", room["output_windows"])
        if windows is not None:
            fields |= windows.fields("windows", room["windows"])
        draft.program.add(
            Kind.GRADIENTS, plan=forward.address, x=x.at, g=gradient.at, sums=room["sums"], blocks=blocks, lanes=lanes,
            places=self.plan.active.data_ptr() if given.dense else None,
            gradient=draft.result(given.number, 0, given.n_weights), parts=parts, row_parts=by_rows, **fields,
        )  # fmt: skip


def division(plan: Plan, blocks: int, *, between_norms: bool) -> tuple[int, int]:
    """(parts, parts of the rows) into which the work of a weight gradient is divided, by images and by rows."""
    pieces = max(1, blocks * plan.struct.n_bands)
    if between_norms:  # each part makes its windows, and rows beside its own, itself
        return min(PARTS // 2, pieces), 1
    parts = min(PARTS, pieces)
    return parts, 1 if parts == PARTS else max(1, min(PARTS, plan.channels // ROWS_APIECE))
