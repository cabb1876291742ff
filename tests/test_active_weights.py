"""Active weights that are held apart move as dense ones do, to the bit, and their checkpoints fit dense runs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.sparse.functional import sparse_layer, to_lanes
from helper.sparse.layers import LanesLayer
from helper.sparse.plan import layer_plan
from helper.sparse.view import View
from loader.main import load_dataset
from optim.callbacks.callback import Callback
from optim.checkpoint import load_state, save_state
from optim.config import RunConfig
from optim.mask_owner import MaskOwner
from optim.model import start
from optim.optimizers import adam, adamw, sgd
from optim.trainer import Trainer
from tests.stops import sigterm_after
from tests.test_sparse_step import words
from tests.test_updating import config_of, finished, run

pytestmark = pytest.mark.compiler
OPTIMIZERS = {
    "sgd": lambda p: sgd(p, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0),
    "decay": lambda p: sgd(p, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.03),
    "momentum": lambda p: sgd(p, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.03),
    "nesterov": lambda p: sgd(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.03),
    "adam": lambda p: adam(p, lr=0.01, weight_decay=0.03),
    "adamw": lambda p: adamw(p, lr=0.01, weight_decay=0.3),
}


def random_mask(shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def owner_of(network: nn.Module, mask: Tensor, name: str) -> MaskOwner:
    return MaskOwner(network, OPTIMIZERS[name](network.parameters()), Mask({"weight": mask}), (50,))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_of_vectors_is_the_dense_update_to_the_bit(name):
    """Also across changes of the mask, and wherever a vector's end is no multiple of a register."""
    network, mask = nn.Linear(50, 37), random_mask((37, 50), 0.2, 0)
    dense, apart = (owner_of(copy.deepcopy(network), mask, name) for _ in range(2))
    for step in range(12):
        if step in (4, 8):
            mask = random_mask((37, 50), 0.3, step)
            dense.change(mask_of(mask))
            apart.change(mask_of(mask))
        if step != 6:  # which is a dense one for both
            layer = LanesLayer(apart.network, mask)
            apart.hold({"": next(iter(apart.active.held), layer)})
        else:
            apart.hold({})
        gradient = torch.randn(37, 50, generator=torch.Generator().manual_seed(step))
        dense.weights[0].grad = gradient.clone()
        if step == 6:
            apart.weights[0].grad = gradient.clone()
        for held in apart.active.held.values():
            held.values.grad = gradient[mask]
        for owner in (dense, apart):
            owner.network.bias.grad = gradient[:, 0].clone()
            owner.mask_gradients()
            owner.optimizer.step()
            owner.updated()
            owner.optimizer.zero_grad()
    apart.hold({})
    assert torch.equal(apart.weights[0], dense.weights[0])
    assert len(dense.states_of(dense.weights[0])) == {"sgd": 0, "decay": 0, "adam": 2, "adamw": 2}.get(name, 1)
    for mine, theirs in zip(apart.states_of(apart.weights[0]), dense.states_of(dense.weights[0]), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine[~mask].any()


def mask_of(mask: Tensor) -> Mask:
    return Mask({"weight": mask})


# ---------------------------------------------------------------------------------------------------- whole training

MLP = {"hidden_dims": "40-30", "prune_ratio": 0.8, "limit_train": 160, "lr": 0.05, "sparse_step": "1"}
MODES = {
    "at-init": {"mode": "at-init"},
    "gradual": {"mode": "gradual", "mask_begin": 2, "mask_end": 12, "mask_every": 5},
    "RigL": {"mode": "dynamic", "growth": "gradient", "mask_every": 4, "mask_end": 12},
    "SET": {"mode": "dynamic", "growth": "random", "mask_every": 4, "mask_end": 12},
}


class Touches(Callback):
    """Lets every step have dense gradients and states."""

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return True


class Counts(Callback):
    """How many layers are held in each step."""

    def __init__(self) -> None:
        self.held: list[int] = []

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return False

    def on_step(self, trainer: Trainer) -> None:
        self.held.append(len(trainer.mask_owner.active.held))


def trainer_of(config: RunConfig, *callbacks: Callback) -> Trainer:
    dataset = load_dataset(config.data)
    network, mask, _ = start(config, dataset, None)
    updater = config.mode_spec.updater
    callbacks = [*([updater(config)] if updater else []), *callbacks]
    return Trainer(network, dataset, config.train, seed=config.random_state, callbacks=callbacks, mask=mask)


def same(a: Trainer, b: Trainer) -> bool:
    """Whether networks and optimisers are the same to the bit."""
    for trainer in (a, b):
        trainer.mask_owner.hold({})
    mine, theirs = a.optimizer.state_dict()["state"], b.optimizer.state_dict()["state"]
    pairs = [*zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)]
    pairs += [(mine[i][key], theirs[i][key]) for i in theirs for key in theirs[i] if theirs[i][key] is not None]
    return mine.keys() == theirs.keys() and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"nesterov": True},
        {"optimizer_name": "adam", "lr": 0.01},
        {"clip_norm": 0.3},
        {"ema": 0.9},
        {"sharpness_aware": 0.1},
        {"reg_type": "fisher,gradient", "reg_method": "difference", "reg_weight": -0.1},
        {"optimizer_name": "adamw", "lr": 0.01, "clip_norm": 0.3, "ema": 0.9, "mix": "mixup", "label_smoothing": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_holds_active_weights_apart_is_the_run_that_does_not(mode, flags):
    config, counts = config_of(**MLP | MODES[mode] | flags), Counts()
    apart, dense = trainer_of(config, counts), trainer_of(config, Touches())
    apart.fit()
    dense.fit()
    not_held = {"at-init": [], "gradual": list(range(7)), "RigL": [4, 8], "SET": [4, 8]}
    assert [step for step, n in enumerate(counts.held) if not n] == not_held[mode]
    assert counts.held[-1] == 2
    assert not dense.mask_owner.active.held
    assert same(apart, dense)


class Shrink(Callback):
    """Changes a weight itself, once."""

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return event == "on_step" and trainer.step == 3

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 3:
            with torch.no_grad():
                trainer.network.layers[0].weight.mul_(0.9)

    def on_epoch(self, trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.network.layers[2].weight.mul_(0.8)


def test_what_somebody_else_does_to_the_network_counts():
    config, counts = config_of(**MLP, mode="at-init"), Counts()
    apart, dense = trainer_of(config, Shrink(), counts), trainer_of(config, Shrink(), Touches())
    apart.fit()
    dense.fit()
    assert 2 in counts.held
    assert same(apart, dense)


class StopAt(Callback):
    """Ends training, as a signal does."""

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return False

    def on_step(self, trainer: Trainer) -> None:
        if (trainer.epoch, trainer.step) == (1, 3):
            raise KeyboardInterrupt


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("holds_first", [True, False])
@pytest.mark.parametrize("holds_then", [True, False])
def test_checkpoints_of_vectors_and_of_dense_tensors_go_on_alike(mode, holds_first, holds_then, tmp_path):
    config = config_of(**MLP | MODES[mode])
    whole = trainer_of(config, Touches())
    whole.fit()
    first = trainer_of(config, StopAt(), *([] if holds_first else [Touches()]))
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    save_state(tmp_path / "state.pt", first.state())
    state = load_state(tmp_path / "state.pt")
    assert {name: value.shape for name, value in state["network"].items()} == {
        name: value.shape for name, value in whole.network.state_dict().items()
    }
    n_vectors = sum(value["momentum_buffer"].dim() == 1 for value in state["optimizer"]["state"].values())
    assert n_vectors == (5 if holds_first else 3)  # three biases
    then = trainer_of(config, *([] if holds_then else [Touches()]))
    then.load_state(state)
    then.fit()
    assert same(then, whole)


def test_a_dense_trainer_goes_on_from_vectors():
    """To rounding, because its steps are dense ones."""
    config = config_of(**MLP, mode="at-init")
    dense = config_of(**MLP | {"sparse_step": "0"}, mode="at-init")
    first, whole, then = trainer_of(config, StopAt()), trainer_of(dense), trainer_of(dense)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    then.load_state({name: value for name, value in first.state().items() if name != "sparse_step"})
    whole.fit()
    then.fit()
    assert not then.mask_owner.active.held
    for a, b in zip(then.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_vectors_of_another_mask_are_refused():
    config = config_of(**MLP, mode="at-init")
    first = trainer_of(config, StopAt())
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    state = first.state()
    state["optimizer"]["state"][0]["momentum_buffer"] = state["optimizer"]["state"][0]["momentum_buffer"][1:]
    with pytest.raises(ValueError, match=r"numbers for \d+ weights of layers.0.weight"):
        trainer_of(config).load_state(state)


@pytest.mark.parametrize("mode", ["at-init", "RigL"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_run_ends_with_the_same_bits(mode, threads, tmp_path):
    line, before = words(MLP | MODES[mode]), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = finished(tmp_path / "whole", *line)
        with sigterm_after(1, 3):
            assert run(tmp_path / "stopped", *line).code == 75
        stopped = finished(tmp_path / "stopped", *line)
    finally:
        torch.set_num_threads(before)
    assert "resuming after 1 epochs and 3 steps" in stopped.log.read_text()
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    assert whole.read_summary()["sparse_step"]["layers"] == ["layers.0", "layers.2"]


# ----------------------------------------------------------------------------------- which layers can be held apart


class Reads(nn.Module):
    """Two linear layers, and a third use of one of them or of its weight."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b, self.c = how, nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        if how == "tied":
            self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        if self.how == "by its weight":
            return nn.functional.linear(x, self.b.weight)
        if self.how == "of three dimensions":
            return self.b(x[:, None])[:, 0]
        return self.c(self.b(x) if self.how == "twice" else x)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("once", ["a", "b"]), ("twice", ["a", "b"]), ("tied", ["a"]), ("by its weight", ["a"]), ("of three dimensions", ["a"])],
)
def test_a_weight_that_others_read_stays_dense(how, expected):
    network = Reads(how)
    masks: dict[str, Any] = {name: random_mask((8, 8), 0.3, 0) for name in ("a", "b")}
    assert list(View(network, masks, (8,)).linear_layers) == expected


def test_weights_that_are_fixed_or_lie_otherwise_in_memory_stay_dense():
    network = Reads("once")
    network.a.weight.requires_grad_(False)
    network.b.weight = nn.Parameter(network.b.weight.detach().t())
    masks = {name: random_mask((8, 8), 0.3, 0) for name in ("a", "b", "c")}
    assert list(View(network, masks, (8,)).linear_layers) == ["c"]


# -------------------------------------------------------------------------------------------------------- one layer


@pytest.mark.parametrize(("n", "lanes"), [(1, 1), (40, 40), (40, 8)])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_a_layer_of_a_vector_is_the_layer_of_its_weight(n, lanes, density):
    layer, mask = nn.Linear(70, 90), random_mask((90, 70), density, 0)
    plan = layer_plan(layer, mask, (1, 1))
    x, g = torch.randn(n, 70), torch.randn(n // lanes, 90, lanes)
    values = layer.weight.detach()[mask].requires_grad_()
    found = []
    for weight in (layer.weight, values):
        laid_out = to_lanes(x, lanes).requires_grad_()
        y = sparse_layer(laid_out, weight, layer.bias, plan)
        found.append([y, *torch.autograd.grad(y, [laid_out, weight, layer.bias], g)])
    found[0][2] = found[0][2][mask]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_vector_of_another_length_is_refused():
    layer = nn.Linear(6, 5)
    plan = layer_plan(layer, torch.eye(5, 6, dtype=torch.bool), (1, 1))
    with pytest.raises(ValueError, match="strides"):
        sparse_layer(torch.zeros(1, 6, 4), torch.zeros(6), layer.bias, plan)
