"""The loop and what hangs on it, on the digits."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, vmap

import optim.trainer as trainer_module
from helper.mask import Mask
from helper.pruner import prune
from helper.schema.registry import with_options
from helper.system.seeds import stream
from loader.dataset import draw_crops
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim import batches
from optim.callbacks.callback import Callback
from optim.callbacks.recalibration import RecalibrateBatchNorm
from optim.config import TrainConfig
from optim.regularizer import jacobian_penalty
from optim.schedule import SCHEDULES, learning_rate
from optim.trainer import Trainer


class CheckZeros(Callback):
    """Asserts after every step that pruned weights and their optimiser state are exactly zero."""

    def __init__(self, mask: Mask) -> None:
        self.mask, self.steps = mask, 0

    def on_step(self, trainer: Trainer) -> None:
        self.steps += 1
        for weight, keep in zip(self.mask.parameters_of(trainer.network), self.mask.values(), strict=True):
            assert (weight[~keep] == 0).all()
            assert (weight[keep] != 0).all()
            for value in trainer.optimizer.state[weight].values():
                if value is not None and value.shape == weight.shape:
                    assert (value[~keep] == 0).all()


def digits(**flags):
    return load_dataset(DataConfig(limit_train=300, limit_test=50, **flags))


def network(data, **flags) -> nn.Module:
    return build_network(NetworkConfig(**flags), data.input_shape, data.n_classes, stream(0, "init"))


def fit(net, data, callbacks=(), mask=None, **flags) -> Trainer:
    config = TrainConfig(**({"n_epochs": 2, "batch_size": 64} | flags))
    trainer = Trainer(net, data, config, seed=0, callbacks=callbacks, mask=mask)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("net_name", ["mlp", "mnist_lenet"])
@pytest.mark.parametrize("ratio", [0.0, 0.9, 0.999])
@pytest.mark.parametrize(
    "flags",
    [
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"optimizer_name": "adam", "lr": 1e-3, "weight_decay": 0.01},
        {"optimizer_name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "ema": 0.9},
        {"clip_norm": 0.1, "label_smoothing": 0.1, "mix": "mixup"},
        {"reg_type": "jacobian", "reg_weight": 0.1},
        {"precision": "bf16"},
    ],
)
def test_pruned_weights_are_exactly_zero_after_every_step(net_name, ratio, flags, generator):
    data = digits()
    net = network(data, net_name=net_name)
    mask = prune(net, generator, prune_ratio=ratio)
    check = CheckZeros(mask)
    trainer = fit(net.to(memory_format=torch.channels_last), data, [check], mask, **flags)
    assert check.steps == 2 * trainer.steps_per_epoch == 10


OPTIMIZERS = {
    "sgd": ({}, torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": ({"nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": ({"optimizer_name": "adam"}, torch.optim.Adam, {}),
    "adamw": ({"optimizer_name": "adamw"}, torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loop_is_the_optimiser_written_out(name):
    """Two epochs by hand: same order, same steps, same weights to the bit; and the averages of an epoch's steps."""
    flags, optimiser, options = OPTIMIZERS[name]
    data = digits()
    ours = network(data)
    theirs = copy.deepcopy(ours)
    averages = RunningAverages()
    fit(ours, data, [averages], lr=0.01, weight_decay=0.1, lr_milestones="1", **flags)
    optimizer = optimiser(theirs.parameters(), 0.01, weight_decay=0.1, **options)
    losses, correct = torch.zeros(2, 300), torch.zeros(2, 300)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.01 * (0.1 if epoch >= 1 else 1)
        for rows in torch.randperm(300, generator=stream(0, "order", epoch)).split(64):
            optimizer.zero_grad()
            logits, labels = theirs(data.normalise(data.train.inputs[rows])), data.train.labels[rows]
            loss = F.cross_entropy(logits, labels, reduction="none")
            loss.mean().backward()
            optimizer.step()
            losses[epoch, rows], correct[epoch, rows] = loss.detach(), (logits.argmax(1) == labels).float()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    for epoch, means in enumerate(averages.found):
        assert means["loss"] == pytest.approx(losses[epoch].mean().item(), rel=1e-5)
        assert means["acc"] == pytest.approx(correct[epoch].mean().item())


class RunningAverages(Callback):
    """What `--train_eval running` shows of every epoch."""

    def __init__(self) -> None:
        self.found = []

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.sums is not None:
            self.found.append(trainer.sums.means())


def test_a_step_of_regularised_training_is_that_of_its_loss_written_out():
    """Mean cross-entropy + reg_weight / 2 times the mean of C ||v^T J||^2, from whole Jacobians J."""
    data = digits()
    ours = network(data, hidden_dims="8", hidden_act="tanh")
    theirs = copy.deepcopy(ours)
    fit(ours, data, n_epochs=1, batch_size=300, lr=0.5, momentum=0, weight_decay=0, reg_type="jacobian", reg_weight=0.3)
    rows = torch.randperm(300, generator=stream(0, "order", 0))
    inputs = data.normalise(data.train.inputs[rows])
    v = torch.randn(300, 10, generator=stream(0, "step", 0, 0))
    v /= v.norm(dim=1, keepdim=True)
    weights = dict(theirs.named_parameters())
    jacobians = vmap(jacrev(lambda x: functional_call(theirs, weights, (x[None],))[0]))(inputs).flatten(2)
    penalty = 10 * torch.einsum("nc,ncd->nd", v, jacobians).square().sum(1)
    loss = F.cross_entropy(theirs(inputs), data.train.labels[rows]) + 0.3 / 2 * penalty.mean()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for weight, before, gradient in zip(ours.parameters(), weights.values(), gradients, strict=True):
        torch.testing.assert_close(weight - before, -0.5 * gradient, rtol=1e-4, atol=1e-6)


def test_every_step_of_every_epoch_draws_crops_of_its_own(monkeypatch):
    drawn = []

    def draw(n, generator, padding):
        drawn.append(draw_crops(n, generator, padding))
        return drawn[-1]

    monkeypatch.setattr(batches, "draw_crops", draw)
    data = digits(augment="crop_flip")
    fit(network(data), data, n_epochs=2, batch_size=150)
    assert len(drawn) == 4
    assert len({crops.numpy().tobytes() for crops in drawn}) == 4


def test_images_a_second_count_every_image_of_an_epoch_once():
    class Timed(Callback):
        def on_epoch(self, trainer):
            if trainer.epoch:
                assert trainer.images_timed == 300

    data = digits()
    fit(network(data), data, [Timed()])  # 64 + 64 + 64 + 64 + 44


def test_about_ten_states_are_kept_at_the_tenths_of_a_run():
    assert TrainConfig(n_epochs=256).saved_epochs() == {0, 26, 51, 77, 102, 128, 154, 179, 205, 230, 256}
    assert TrainConfig(n_epochs=4).saved_epochs() == {0, 1, 2, 3, 4}


def test_a_state_from_the_middle_of_an_epoch_continues_exactly():
    data = digits(augment="crop_flip")

    class Snapshot(Callback):
        def on_step(self, trainer):
            if (trainer.epoch, trainer.step) == (1, 2):
                self.state = copy.deepcopy(trainer.state())

    snapshot = Snapshot()
    whole = fit(network(data, net_name="mnist_lenet"), data, [snapshot], n_epochs=3)
    trainer = Trainer(network(data, net_name="mnist_lenet"), data, whole.config, seed=0, callbacks=[])
    trainer.load_state(snapshot.state)
    trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), trainer.network.parameters(), strict=True))


class WithDropout(nn.Module):
    """By a module, by a function or by a draw of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.fc1, self.fc2, self.dropout = way, nn.Linear(64, 30), nn.Linear(30, 10), nn.Dropout(0.3)

    def forward(self, x):
        x = self.fc1(x.flatten(1)).relu()
        if self.way == "module":
            x = self.dropout(x)
        elif self.way == "function":
            x = F.dropout(x, 0.3, self.training)
        elif self.training:
            x = x * (torch.rand_like(x) < 0.7)
        return self.fc2(x)


@pytest.mark.parametrize("reg_type", ["none", "jacobian"])
@pytest.mark.parametrize("way", ["module", "function", "own draw"])
def test_what_a_network_draws_is_drawn_again_after_an_interruption_and_shifts_nothing_else(way, reg_type):
    data, states, losses = digits(), [], []

    class Watch(Callback):
        def on_step(self, trainer):
            losses.append(float(trainer.sums.loss))
            if (trainer.epoch, trainer.step) == (1, 2):
                states.append(copy.deepcopy(trainer.state()))

    fresh = WithDropout(way)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = fit(copy.deepcopy(fresh), data, [Watch()], n_epochs=2, reg_type=reg_type)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    trainer = Trainer(copy.deepcopy(fresh), data, whole.config, seed=0, callbacks=[])
    trainer.load_state(states[0])
    trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), trainer.network.parameters(), strict=True))
    trainer = Trainer(copy.deepcopy(fresh), data, whole.config, seed=0, callbacks=[])
    ones = []
    for name in ((0, 0), (0, 0), (0, 1), (1, 0)):
        with trainer.draws("dropout", *name):
            ones.append(torch.rand(9))
    assert torch.equal(ones[0], ones[1])
    assert len({tuple(one.tolist()) for one in ones}) == 3


def test_recalibrated_statistics_are_the_same_whatever_was_drawn_before():
    data, found = digits(), []
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(0.5), nn.BatchNorm1d(9), nn.Linear(9, 10))
    for seed in (0, 1):
        trainer = Trainer(copy.deepcopy(fresh), data, TrainConfig(n_epochs=1), seed=0, callbacks=[])
        torch.manual_seed(seed)
        RecalibrateBatchNorm().recalibrate(trainer)
        found.append(trainer.network[3].running_var)
    assert torch.equal(*found)
    assert not torch.equal(found[0], torch.ones(9))


def test_processes_draw_different_dropout(monkeypatch):
    data, drawn = digits(), []
    trainer = Trainer(network(data), data, TrainConfig(n_epochs=1), seed=0, callbacks=[])
    for rank in (0, 1):
        monkeypatch.setattr(trainer_module, "rank", lambda rank=rank: rank)
        with trainer.draws("dropout", 0, 0):
            drawn.append(torch.rand(9))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_an_epoch_has_added_up_before_a_stop_is_taken_over_by_one_process_only(monkeypatch, rank):
    data = digits()
    state = Trainer(network(data), data, TrainConfig(n_epochs=1), seed=0, callbacks=[]).state()
    state |= {"step": 1, "sums": torch.tensor([128.0, 250.0, 20.0, 280.0])}
    monkeypatch.setattr(trainer_module, "rank", lambda: rank)
    resumed = Trainer(network(data), data, TrainConfig(n_epochs=1), seed=0, callbacks=[])
    resumed.load_state(state)
    assert torch.equal(resumed.sums.packed(), state["sums"] * (rank == 0))


def test_bf16_trains_float32_weights():
    data = digits()
    trainer = fit(network(data, net_name="mnist_lenet"), data, precision="bf16", n_epochs=20, lr=0.1)
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
    predicted = trainer.network.eval()(data.normalise(data.train.inputs)).argmax(1)
    assert (predicted == data.train.labels).float().mean() > 0.9


def test_compiled_training_is_training():
    data = digits()
    plain, compiled = fit(network(data), data), fit(network(data), data, compile=True)
    for a, b in zip(plain.network.parameters(), compiled.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert not any("_orig_mod" in name for name in compiled.state()["network"])


def test_augmentation_reaches_the_network():
    plain, moved = digits(), digits(augment="crop_flip")
    a, b = (fit(network(d, net_name="mnist_lenet"), d).network for d in (plain, moved))
    assert not torch.equal(next(a.parameters()), next(b.parameters()))


# ---------------------------------------------------------------------------------------------------- schedules


def rates(**flags) -> list[float]:
    config = TrainConfig(lr=1.0, **flags)
    return [rate_of(config, epoch, 0) for epoch in range(config.n_epochs)]


def rate_of(config: TrainConfig, epoch: int, step: int) -> float:
    """In epochs of ten steps."""
    schedule = with_options(SCHEDULES[config.lr_schedule], config)
    return learning_rate(schedule, epoch, step, 10, lr=config.lr, warmup_epochs=config.warmup_epochs)


def test_schedules_follow_their_formulas():
    assert rates(n_epochs=6, lr_milestones="2-4") == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(n_epochs=3, lr_schedule="exponential", lr_gamma=0.5) == pytest.approx([1, 0.5, 0.25])
    assert rates(n_epochs=3, lr_schedule="constant") == [1, 1, 1]
    assert rates(n_epochs=4, lr_schedule="cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)])


def test_schedules_are_those_of_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], 0.1)
    for rate in rates(n_epochs=6, lr_milestones="2-4"):
        assert rate == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warm_up_rises_linearly_by_step_to_the_full_rate():
    config = TrainConfig(lr=1.0, n_epochs=5, warmup_epochs=2, lr_schedule="cosine")
    steps = [rate_of(config, epoch, step) for epoch in range(2) for step in range(10)]
    assert steps == pytest.approx([(i + 1) / 20 for i in range(20)])
    after = [rate_of(config, epoch, 0) for epoch in (2, 3, 4)]
    assert after == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 3)) for i in range(3)])  # over the 3 epochs that are left


# -------------------------------------------------------------------------------------------------- regulariser


def test_the_jacobian_penalty_is_unbiased():
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    inputs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    jacobians = torch.stack([torch.autograd.functional.jacobian(net, x) for x in inputs.detach()])
    exact = jacobians.square().sum()
    draws = torch.stack(
        [
            jacobian_penalty(net(inputs), inputs, torch.randn(3, 4, generator=stream(seed, "jacobian")), reg_weight=2).detach()
            for seed in range(2000)
        ]
    )
    error = draws.std() / 2000**0.5
    assert abs(draws.mean() - exact) < 4 * error < 0.2 * exact


def test_the_jacobian_penalty_is_exact_when_directions_do_not_matter():
    """An orthogonal map has C ||v^T J||^2 = C for every unit v."""
    weight = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert jacobian_penalty(inputs @ weight.T, inputs, torch.randn(3, 4), reg_weight=1).item() == pytest.approx(3 * 4 / 2)


def test_regularised_training_shrinks_the_jacobian():
    data = digits()

    def norm(net) -> float:
        inputs = data.normalise(data.train.inputs[:100]).requires_grad_(True)
        noise = torch.randn(20, 100, 10, generator=stream(0, "measure"))
        return sum(jacobian_penalty(net(inputs), inputs, draw, reg_weight=2).item() for draw in noise)

    flags = {"n_epochs": 10, "lr": 0.05}
    plain = fit(network(data), data, **flags).network
    regular = fit(network(data), data, reg_type="jacobian", reg_weight=0.1, **flags).network
    assert norm(regular) < 0.7 * norm(plain)
