"""Penalties on the gradient and sharpness-aware steps, against whole Hessians in double precision, and against plain steps."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import experiment
import optim.step_gradient as step_gradient_module
from helper.mask import Mask
from helper.metrics.macs import count_macs
from helper.schema.config import FlagError, identity, unflatten
from helper.system.seeds import stream
from loader.dataset import Dataset
from loader.main import DataConfig, Sizes, load_dataset
from network.main import NetworkConfig, build_network
from optim.batches import Batch
from optim.budget import Costs
from optim.callbacks.callback import Callback
from optim.config import RunConfig, TrainConfig
from optim.model import start
from optim.regularizer import factor
from optim.step_gradient import drawn_labels
from optim.step_price import mean_passes
from optim.trainer import Trainer
from study.sweeping.cost import timed_penalties
from study.sweeping.plan import expand, plan
from study.sweeping.work import work_of
from tests.outcome import TIMING, outcome
from tests.stops import sigterm_after
from tests.test_updating import config_of, finished, run

N = 24  # examples of the step that is written out
SMOOTH = {"label_smoothing": 0.1}


class Tiny(nn.Module):
    """Convolution, BatchNorm, dropout if wanted, and two linear layers in double precision; smooth."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(1, 2, 3, stride=3), nn.BatchNorm2d(2), nn.Dropout(dropout)
        self.hidden, self.last = nn.Linear(8, 5), nn.Linear(5, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x.double()))).flatten(1)
        return self.last(self.dropout(torch.tanh(self.hidden(x))))


def tiny(seed: int = 0, **options: float) -> tuple[Tiny, Mask]:
    torch.manual_seed(seed)
    network = Tiny(**options)
    shapes = {name: network.get_parameter(name).shape for name in ("conv.weight", "hidden.weight")}
    mask = Mask({name: torch.rand(shape, generator=stream(seed, name)) < 0.6 for name, shape in shapes.items()})
    with torch.no_grad():
        for name, active in mask.items():
            network.get_parameter(name).mul_(active)
    return network, mask


def digits(**flags: Any) -> Dataset:
    return load_dataset(DataConfig(limit_train=300, limit_test=50, **flags))


def trainer_for(network: nn.Module, mask: Mask | None = None, data: Dataset | None = None, **flags: Any) -> Trainer:
    config = TrainConfig(**({"n_epochs": 2, "batch_size": 50, "sparse_step": "0"} | flags))
    return Trainer(network, data or digits(), config, seed=0, callbacks=[], mask=mask)


def same(a: nn.Module, b: nn.Module) -> bool:
    """To the bit, statistics too."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def step_gradient(network: nn.Module, mask: Mask | None, **flags: Any) -> tuple[Tensor, Trainer, Batch]:
    """(what the first step's update takes, zero for pruned weights; of a copy of the network; its examples)."""
    trainer = trainer_for(copy.deepcopy(network), mask, **flags)
    trainer.network.train()
    batch = trainer.drawing.batch(0, 0, torch.arange(N))
    trainer.gradient.take(batch)
    trainer.mask_owner.mask_gradients()
    return flat(trainer.mask_owner.gradients_moved()), trainer, batch


class Whole:
    """Gradient and Hessian of a batch's mean loss by all parameters, from autograd's own loop over rows."""

    def __init__(self, network: nn.Module, mask: Mask, batch: Batch, labels: Tensor, smoothing: float = 0.0) -> None:
        self.network = copy.deepcopy(network).train()
        self.batch, self.labels, self.smoothing = batch, labels, smoothing
        self.names = [name for name, _ in network.named_parameters()]
        self.active = flat(mask.get(name, torch.ones_like(p)) for name, p in network.named_parameters()).double()
        self.at = flat(network.parameters()).detach()

    def loss(self, vector: Tensor) -> Tensor:
        shapes = [self.network.get_parameter(name).shape for name in self.names]
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(self.names, parts, shapes, strict=True)}
        logits = torch.func.functional_call(self.network, weights, (self.batch.inputs,))
        return F.cross_entropy(logits, self.labels, label_smoothing=self.smoothing)

    def gradient(self, at: Tensor | None = None) -> Tensor:
        """By the active weights."""
        return torch.autograd.functional.jacobian(self.loss, self.at if at is None else at) * self.active

    def of_penalty(self) -> Tensor:
        """Half the gradient of the squared norm of the gradient."""
        return torch.autograd.functional.hessian(self.loss, self.at) @ self.gradient() * self.active


def labels_drawn(network: nn.Module, batch: Batch) -> Tensor:
    p = copy.deepcopy(network).train()(batch.inputs).softmax(1)
    uniform = torch.rand(N, generator=stream(0, "fisher", 0, 0))
    return torch.tensor([int((p[i].cumsum(0) < uniform[i]).sum()) for i in range(N)])


# -------------------------------------------------------------------------------------- against whole Hessians


@pytest.mark.parametrize("weight", [0.3, -2.0])
@pytest.mark.parametrize("name", ["gradient", "fisher"])
def test_a_penaltys_gradient_is_the_hessian_times_the_gradient_of_active_weights(name, weight):
    network, mask = tiny()
    found, trainer, batch = step_gradient(network, mask, reg_type=name, reg_weight=weight, **SMOOTH)
    loss = Whole(network, mask, batch, batch.examples.labels, 0.1)
    penalised = loss if name == "gradient" else Whole(network, mask, batch, labels_drawn(network, batch))
    torch.testing.assert_close(found, loss.gradient() + weight * penalised.of_penalty(), rtol=1e-9, atol=1e-12)
    assert penalised.of_penalty().norm() > 1e-3 * loss.gradient().norm()
    plain = step_gradient(network, mask, **SMOOTH)[1].network
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.network.state_dict().values(), plain.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["gradient", "fisher", "gradient,fisher"])
def test_a_difference_is_the_derivative_but_for_its_distance(name, monkeypatch):
    """Of a smooth network: ten times nearer, it is ten times as exact."""
    network, mask = tiny()
    flags = {"reg_type": name, "reg_weight": -0.5, **SMOOTH}
    plain, usual, _ = step_gradient(network, mask, **SMOOTH)
    exact, _, _ = step_gradient(network, mask, **flags)
    found, trainer, _ = step_gradient(network, mask, **flags, reg_method="difference")
    assert (found - exact).norm() < 0.05 * (exact - plain).norm()
    monkeypatch.setattr(step_gradient_module, "DISTANCE", step_gradient_module.DISTANCE / 10)
    nearer, _, _ = step_gradient(network, mask, **flags, reg_method="difference")
    assert (nearer - exact).norm() == pytest.approx(0.1 * (found - exact).norm().item(), rel=0.1)
    assert same(trainer.network, usual.network)  # weights are back, and BatchNorm has seen one batch


@pytest.mark.parametrize("radius", [1e-3, 0.5])
def test_a_sharpness_aware_step_takes_the_gradient_from_its_radius_up_the_slope(radius):
    network, mask = tiny()
    found, trainer, batch = step_gradient(network, mask, sharpness_aware=radius)
    loss = Whole(network, mask, batch, batch.examples.labels)
    up = loss.gradient()
    torch.testing.assert_close(found, loss.gradient(loss.at + radius * up / up.norm()), rtol=1e-9, atol=1e-12)
    plain = step_gradient(network, mask)[1].network
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.network.state_dict().values(), plain.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("method", ["exact", "difference"])
def test_penalties_add_up_each_with_its_own_weight(method):
    network, mask = tiny()
    weights = {"jacobian": 0.02, "fisher": -0.7, "gradient": 0.3}
    plain, _, _ = step_gradient(network, mask)
    alone = [
        step_gradient(network, mask, reg_type=name, reg_weight=weight, reg_method=method)[0] - plain
        for name, weight in weights.items()
    ]
    text = ",".join(f"{name}:{weight}" for name, weight in weights.items())
    together, _, _ = step_gradient(network, mask, reg_type="gradient,jacobian,fisher", reg_weights=text, reg_method=method)
    torch.testing.assert_close(together, plain + sum(alone), rtol=1e-8, atol=1e-11)


def test_a_sharpness_aware_step_looks_for_the_penalised_loss_as_well():
    """The gradient of both points is that of loss and penalty, with the same labels drawn."""
    network, mask = tiny()
    flags = {"reg_type": "fisher,jacobian", "reg_weight": 0.4}
    up, _, _ = step_gradient(network, mask, **flags)
    moved = copy.deepcopy(network)
    parts = (0.1 * up / up.norm()).split([p.numel() for p in moved.parameters()])
    with torch.no_grad():
        for weight, part in zip(moved.parameters(), parts, strict=True):
            weight.add_(part.view(weight.shape))
    expected, _, _ = step_gradient(moved, mask, **flags)
    found, _, _ = step_gradient(network, mask, **flags, sharpness_aware=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Draws(nn.Module):
    """A linear layer behind dropout, which keeps what it has dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.seen = nn.Linear(64, 10), list[bytes]()

    def forward(self, x: Tensor) -> Tensor:
        kept = F.dropout(torch.ones_like(x.flatten(1)), 0.5, self.training)
        self.seen.append(kept.numpy().tobytes())
        return self.last(x.flatten(1) * kept)


@pytest.mark.parametrize("flags", [{"sharpness_aware": 0.1}, {"reg_type": "gradient", "reg_method": "difference"}], ids=str)
def test_all_passes_of_a_step_draw_the_same(flags):
    trainer = trainer_for(Draws(), n_epochs=1, **flags)
    seen = trainer.network.seen
    seen.clear()  # of what was looked up before training
    trainer.fit()
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) == trainer.steps_per_epoch == 6


def test_drawn_labels_have_the_networks_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    counts = drawn_labels(logits.expand(10_000, 4), uniform).bincount(minlength=4)
    torch.testing.assert_close(counts / 10_000, logits[0].softmax(0), rtol=0, atol=2e-4)
    assert drawn_labels(logits, torch.tensor([1.0])).item() == 3  # rounding may leave the sum below


# ---------------------------------------------------------------------------------------- when there is nothing to do

NOTHING = [
    {"reg_type": "fisher,gradient,jacobian", "reg_weight": 0.0},
    {"reg_type": "fisher", "reg_weight": 0.0, "reg_method": "difference"},
    {"sharpness_aware": 0.0},
]


@pytest.mark.parametrize("flags", NOTHING, ids=str)
def test_without_weight_or_radius_the_run_is_the_plain_one_to_the_bit(flags):
    data = digits(augment="crop_flip")
    config = NetworkConfig(net_name="resnet", depth=8, widen_factor=1)
    trainers = []
    for each in ({}, flags):
        network = build_network(config, data.input_shape, data.n_classes, stream(0, "init"))
        trainers.append(trainer_for(network, data=data, **each))
        trainers[-1].fit()
    assert same(*(trainer.network for trainer in trainers))
    assert trainers[0].mask_owner.meter.macs == trainers[1].mask_owner.meter.macs


class StateAt(Callback):
    def __init__(self, epoch: int, step: int) -> None:
        self.moment = (epoch, step)

    def on_step(self, trainer: Trainer) -> None:
        if (trainer.epoch, trainer.step) == self.moment:
            self.state = copy.deepcopy(trainer.state())


def test_a_penalty_that_is_removed_leaves_the_plain_run():
    """From the share on, to the bit: 7 of 12 steps have it."""
    network, mask = tiny()
    config = TrainConfig(n_epochs=2, batch_size=50, reg_type="fisher", reg_weight=-1.0, reg_schedule="until:0.55")
    removed = StateAt(1, 1)
    penalised = Trainer(copy.deepcopy(network), digits(), config, seed=0, callbacks=[removed], mask=mask)
    penalised.fit()
    plain = trainer_for(copy.deepcopy(network), mask)
    plain.load_state(removed.state)
    plain.fit()
    assert same(plain.network, penalised.network)
    one = sum(300 * macs for macs in [3 * count_macs(network, (1, 8, 8), mask)[1]] * 2)
    assert penalised.mask_owner.meter.macs == one + 6 * 350 * count_macs(network, (1, 8, 8), mask)[1]
    assert plain.mask_owner.meter.macs == penalised.mask_owner.meter.macs


def test_schedules_are_factors_by_the_share_of_training():
    moments = (0.0, 0.25, 0.3, 0.9)
    assert [factor("constant", share) for share in moments] == [1, 1, 1, 1]
    assert [factor("until:0.3", share) for share in moments] == [1, 1, 0, 0]
    assert [factor("linear", share) for share in moments] == pytest.approx([1, 0.75, 0.7, 0.1])


RESUMED = {
    "linear": ("--reg_type", "fisher,jacobian", "--reg_weights", "fisher:-0.1", "--reg_schedule", "linear"),
    "removed": ("--reg_type", "gradient", "--reg_method", "difference", "--reg_schedule", "until:0.6"),
    "sharpness-aware": (
        "--sharpness_aware", 0.1, "--mode", "dynamic", "--mask_every", 4, "--reg_type", "fisher", "--reg_method", "difference",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_ends_with_the_same_bits(name, tmp_path):
    line = ("--mode", "dense", "--net_name", "resnet", "--depth", 8, "--widen_factor", 1, *RESUMED[name])
    whole = finished(tmp_path / "whole", *line)
    with sigterm_after(1, 3):
        assert run(tmp_path / "stopped", *line).code == 75
    stopped = finished(tmp_path / "stopped", *line)
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    for mine, theirs in zip(stopped.history().rows, whole.history().rows, strict=True):
        assert all(mine[column] == theirs[column] for column in mine if column not in TIMING)


# -------------------------------------------------------------------------------------------------------- what it costs

PASSES = [
    ({}, 3), ({"sharpness_aware": 0.1}, 6),
    ({"reg_type": "jacobian"}, 6), ({"reg_type": "jacobian", "reg_weight": 0}, 3),
    ({"reg_type": "jacobian", "sharpness_aware": 0.1}, 12), ({"reg_type": "jacobian", "reg_schedule": "until:0.25"}, 3.75),
    ({"reg_type": "jacobian,fisher"}, 12), ({"reg_type": "jacobian,gradient", "reg_method": "difference"}, 11),
    ({"reg_type": "gradient"}, 9), ({"reg_type": "fisher"}, 9), ({"reg_type": "fisher,gradient"}, 15),
    ({"reg_type": "gradient", "reg_method": "difference"}, 6), ({"reg_type": "fisher", "reg_method": "difference"}, 8),
    ({"reg_type": "gradient", "reg_method": "difference", "sharpness_aware": 0.1}, 12),
    ({"reg_type": "fisher", "reg_every": 2}, 6), ({"reg_type": "fisher", "reg_every": 2, "reg_method": "difference"}, 5.5),
    ({"reg_type": "gradient", "reg_every": 2, "sharpness_aware": 0.1}, 12),
    ({"reg_type": "fisher", "reg_schedule": "until:0.25"}, 4.5), ({"reg_type": "fisher", "reg_weight": 0}, 3),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "passes"), PASSES, ids=str)
def test_passes_are_counted_in_steps_plans_and_budgets(flags, passes):
    assert mean_passes(TrainConfig(**flags)) == passes
    network, mask = tiny()
    trainer = trainer_for(network, mask, **flags, n_epochs=4)
    trainer.fit()
    dense, active = count_macs(network, (1, 8, 8), mask)
    assert trainer.mask_owner.meter.macs == 4 * 300 * passes * active
    assert trainer.mask_owner.meter.macs_dense == 4 * 300 * passes * dense
    sizes = Sizes(300, 0, 50, (1, 8, 8), 10)
    (usual,), (planned,) = (plan(expand({"n_epochs": 4, "save_fisher": 0, **more})) for more in ({}, flags))
    assert work_of(planned, sizes).training == pytest.approx(passes / 3 * work_of(usual, sizes).training)
    config = config_of(mode="at-init", prune_ratio=0.8, **flags)
    dataset = load_dataset(config.data)
    costs = Costs(config, start(config, dataset, None), dataset)
    usual = Costs(config_of(mode="at-init", prune_ratio=0.8), costs.beginning, dataset)
    assert costs.of(4) - costs.beginning.macs == pytest.approx(passes / 3 * (usual.of(4) - costs.beginning.macs))
    assert costs.dense == usual.dense


@pytest.mark.parametrize("name", ["gradient", "fisher", "jacobian"])
def test_every_third_step_has_a_penalty_of_three_times_the_weight(name):
    """The others are plain ones, to the bit; over all steps the penalty has its weight on average."""
    network, mask = tiny()
    found = {}
    for label, flags in {
        "lazy": {"reg_type": name, "reg_weight": 0.2, "reg_every": 3},
        "thrice": {"reg_type": name, "reg_weight": 0.6},
        "plain": {},
    }.items():
        trainer = trainer_for(copy.deepcopy(network), mask, **flags)
        trainer.network.train()
        for epoch, step in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)):  # six steps an epoch
            trainer.gradient.take(trainer.drawing.batch(epoch, step, torch.arange(N)))
            found[label, epoch, step] = flat(trainer.mask_owner.gradients_moved())
    for (label, *moment), gradient in found.items():
        if label == "lazy":
            like = "thrice" if moment in ([0, 0], [0, 3], [1, 0]) else "plain"
            torch.testing.assert_close(gradient, found[like, *moment], rtol=1e-12, atol=1e-14)
            assert not torch.allclose(gradient, found["plain" if like == "thrice" else "thrice", *moment], rtol=1e-6)


class Straight(nn.Module):
    """A convolution and two linear layers in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv2d(1, 2, 3), nn.Linear(72, 5), nn.Linear(5, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(torch.tanh(self.conv(x.double())).flatten(1))))


class Multiplied(TorchDispatchMode):
    """Multiply-accumulates of all products and convolutions inside, as PyTorch's own counter has them."""

    macs = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result, count = function(*args, **(kwargs or {})), flop_registry.get(function._overloadpacket)
        self.macs += count(*args, **(kwargs or {}), out_val=result) // 2 if count else 0
        return result


@pytest.mark.parametrize(
    ("flags", "first", "last"),
    [
        ({}, 1, 0),
        ({"reg_type": "gradient", "reg_method": "difference"}, 2, 0),
        ({"reg_type": "jacobian"}, 0, 1),
        ({"reg_type": "jacobian", "sharpness_aware": 0.1}, 0, 2),
        ({"reg_type": "jacobian,gradient", "reg_method": "difference"}, 1, 1),
    ],
    ids=str,
)
def test_passes_are_those_that_a_step_multiplies(flags, first, last):
    """But for gradients that nothing needs: by the inputs of the first layer, and by what the last one is given back."""
    trainer = trainer_for(Straight(), **flags)
    batch = trainer.drawing.batch(0, 0, torch.arange(N))
    with Multiplied() as done:
        trainer.gradient.take(batch)
    layers = {"conv": 18 * 36, "hidden": 360, "last": 50}  # of an example forward
    left_out = first * layers["conv"] + last * layers["last"]
    assert done.macs == N * (mean_passes(TrainConfig(**flags)) * sum(layers.values()) - left_out)


@pytest.mark.parametrize("flags", [{"sharpness_aware": 0.1}, {"reg_type": "jacobian"}], ids=str)
def test_a_budget_buys_half_as_many_epochs_of_steps_that_cost_twice_as_much(flags, tmp_path):
    line = ("--mode", "at-init", "--prune_ratio", 0.5, "--train_budget", 2)
    more = [word for name, value in flags.items() for word in (f"--{name}", value)]
    usual, costly = (finished(tmp_path, *line, *words) for words in ((), more))
    epochs, fewer = (folder.read_summary()["epochs"] for folder in (usual, costly))
    assert abs(epochs - 2 * fewer) <= 1
    macs = [folder.read_summary()["training_macs"] for folder in (usual, costly)]
    assert macs[1] == pytest.approx(macs[0], rel=0.5 / fewer)


@pytest.mark.parametrize("reg_type", ["jacobian", "jacobian,fisher"])
def test_a_sweep_does_not_time_passes_that_it_counts(reg_type):
    assert timed_penalties(RunConfig(train=TrainConfig(reg_type=reg_type))) == "none"


# ------------------------------------------------------------------------------------------------------ flags, identity


def test_equal_spellings_are_one_run():
    def of(**flags: Any) -> dict[str, Any]:
        return identity(unflatten(RunConfig, flags))

    assert of(reg_type="jacobian") == {"reg_type": "jacobian"}
    assert of(reg_type="jacobian", reg_weight=0.5) == {"reg_type": "jacobian", "reg_weight": 0.5}
    assert of(reg_type="fisher,jacobian") == of(reg_type="jacobian, fisher") == {"reg_type": "jacobian,fisher"}
    assert of(reg_type="fisher", reg_weights="fisher:-0.1") == of(reg_type="fisher", reg_weight="-0.1")
    both = of(reg_type="fisher,jacobian", reg_weights="fisher:-0.1,jacobian:0.010")
    assert both == of(reg_type="fisher,jacobian", reg_weights="fisher:-1e-1")
    assert both == of(reg_type="fisher,jacobian", reg_weight=-0.1, reg_weights="jacobian:0.01")
    assert of(reg_type="fisher,jacobian", reg_weights="fisher:2,jacobian:2") == of(reg_type="fisher,jacobian", reg_weight=2)
    assert of(reg_type="fisher", reg_schedules="fisher:until:.5") == of(reg_type="fisher", reg_schedule="until:0.50")
    assert of(reg_schedule="linear", reg_method="difference", reg_weights="fisher:1") == {}
    assert of(reg_type="jacobian", reg_method="difference") == {"reg_type": "jacobian"}
    assert of(reg_every=2) == {}
    assert of(reg_type="fisher", reg_every=1) == {"reg_type": "fisher"}
    assert of(sharpness_aware=0.05) == {"sharpness_aware": 0.05}


def test_penalties_of_a_sweeps_command_line_stay_together(tmp_path):
    """Weights are a dimension of the sweep, and a text with commas is one value of its flag."""
    (tmp_path / "sweep.yaml").write_text("grid: {reg_weight: [-0.5, 0.5], reg_type: 'fisher,jacobian'}")
    flags = ("--reg_weights", "jacobian:0.01", "--reg_schedules", "fisher:until:0.3,jacobian:linear")
    root = tmp_path / "results"
    found = outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", *flags, "--results_root", root, "--dry_run", 1)
    assert found.code == 0, found.err
    assert len({line.split("/")[-1] for line in found.out.splitlines() if "/dense/" in line}) == 2


REFUSED = [
    ({"reg_type": "fischer"}, "did you mean fisher"),
    ({"reg_type": "none,fisher"}, "none stands alone"),
    ({"reg_type": "fisher", "reg_weight": "nan"}, "--reg_weight nan"),
    ({"reg_type": "fisher", "reg_weights": "jacobian:1"}, "jacobian is none of --reg_type fisher"),
    ({"reg_type": "fisher", "reg_weights": "fisher"}, "such as fisher:VALUE"),
    ({"reg_type": "fisher", "reg_weights": "fisher:1,fisher:2"}, "each penalty once"),
    ({"reg_type": "fisher", "reg_weights": "fisher:inf"}, "--reg_weights fisher:inf"),
    ({"reg_type": "fisher", "reg_weights": "fisher:x"}, "expected a number"),
    ({"reg_type": "fisher", "reg_schedule": "until:0"}, "until:SHARE with a share of training in (0, 1]"),
    ({"reg_type": "fisher", "reg_schedule": "until"}, "until:SHARE"),
    ({"reg_type": "fisher", "reg_every": 0}, "--reg_every 0"),
    ({"reg_type": "fisher", "reg_schedule": "cosine"}, "expected constant, linear"),
    ({"sharpness_aware": -1}, "--sharpness_aware -1"),
    ({"compile": 1, "reg_type": "gradient"}, "use --compile 0, or --reg_method difference"),
    ({"compile": 1, "reg_type": "fisher", "reg_method": "difference"}, "and --reg_type fisher needs more; use --compile 0"),
    ({"compile": 1, "reg_type": "fisher,jacobian", "reg_method": "difference"}, "and --reg_type jacobian needs more"),
    ({"sparse_step": "1", "reg_type": "gradient"}, "--sparse_step 1 --reg_type gradient"),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=str)
def test_what_contradicts_is_refused(flags, words):
    with pytest.raises(FlagError) as error:
        TrainConfig(**flags)
    assert words in str(error.value)


@pytest.mark.compiler
def test_a_line_says_that_steps_are_dense_where_they_differentiate_twice(tmp_path):
    line = ("--mode", "at-init", "--hidden_dims", "40-30", "--n_epochs", 1, "--lr_milestones", 1)
    twice = finished(tmp_path, *line, "--reg_type", "fisher,jacobian")
    assert "steps are dense: --reg_type jacobian,fisher is differentiated twice" in twice.log.read_text()
    for flags in (("--reg_type", "fisher", "--reg_method", "difference"), ("--sharpness_aware", 0.1)):
        folder = finished(tmp_path, *line, *flags, "--sparse_step", 1)
        assert folder.read_summary()["sparse_step"]["layers"] == ["layers.0", "layers.2"]


def test_a_step_of_several_passes_diverges_with_the_usual_line(tmp_path):
    found = run(tmp_path, "--mode", "dense", "--reg_type", "fisher", "--reg_weight", -1e30)
    assert found.code == 1
    assert "not finite" in found.line
