"""Label smoothing, clipped gradients, mixed examples and averaged weights, against their formulas; exact after a stop."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.mask import Mask
from helper.metrics.evaluation import evaluate
from helper.pruner import prune
from helper.schema.config import FlagError, identity, replace, unflatten
from helper.system.seeds import stream
from loader.dataset import Dataset, crop_and_flip, draw_crops
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.callbacks.callback import Callback
from optim.config import RunConfig, TrainConfig
from optim.mixing import cutmix, drawn_share, mixup
from optim.model import load_run
from optim.trainer import Trainer
from tests.outcome import TIMING
from tests.stops import sigterm_after
from tests.test_active_weights import trainer_of
from tests.test_updating import config_of, finished, run

ONE_STEP = {"n_epochs": 1, "batch_size": 300, "lr": 0.5, "momentum": 0, "weight_decay": 0}


def digits(**flags: Any) -> Dataset:
    return load_dataset(DataConfig(limit_train=300, limit_test=50, **flags))


def network(data: Dataset, **flags: Any) -> nn.Module:
    return build_network(NetworkConfig(**flags), data.input_shape, data.n_classes, stream(0, "init"))


def fit(net: nn.Module, data: Dataset, *callbacks: Callback, mask: Mask | None = None, **flags: Any) -> Trainer:
    config = TrainConfig(**({"n_epochs": 2, "batch_size": 64} | flags))
    trainer = Trainer(net, data, config, seed=0, callbacks=callbacks, mask=mask)
    trainer.fit()
    return trainer


def same(a: nn.Module, b: nn.Module) -> bool:
    """To the bit, statistics too."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def first_rows(data: Dataset) -> Tensor:
    return torch.randperm(len(data.train), generator=stream(0, "order", 0))


def soft(labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return (1 - smoothing) * F.one_hot(labels, 10) + smoothing / 10


def assert_a_step_of(loss: Tensor, before: nn.Module, after: nn.Module) -> None:
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    for weight, former, gradient in zip(after.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight - former, -0.5 * gradient, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------- labels and mixtures


def test_a_step_with_smoothed_labels_is_that_of_its_loss_written_out():
    data = digits()
    ours = network(data, hidden_dims="8")
    theirs = copy.deepcopy(ours)
    fit(ours, data, **ONE_STEP, label_smoothing=0.2)
    logits, labels = theirs(data.normalise(data.train.inputs)), soft(data.train.labels, 0.2)
    assert_a_step_of(-(labels * logits.log_softmax(1)).sum(1).mean(), theirs, ours)


def test_losses_that_are_averaged_while_training_are_of_the_given_labels():
    """Whatever the training loss makes of them, the column is the cross-entropy."""
    data, found = digits(), []

    class Watch(Callback):
        def on_epoch(self, trainer: Trainer) -> None:
            if trainer.sums is not None:
                found.append(float(trainer.sums.means()["loss"]))

    ours = network(data)
    expected = F.cross_entropy(ours(data.normalise(data.train.inputs)), data.train.labels).item()
    fit(ours, data, Watch(), **ONE_STEP, label_smoothing=0.9, train_eval="running")
    assert found == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_step_on_mixed_examples_is_that_of_its_loss_written_out(augment):
    data = digits(augment=augment)
    ours = network(data, hidden_dims="8")
    theirs = copy.deepcopy(ours)
    fit(ours, data, **ONE_STEP, mix="mixup", mix_alpha=2.0, label_smoothing=0.1)
    rows, generator = first_rows(data), stream(0, "mix", 0, 0)
    partners, share = torch.randperm(300, generator=generator), drawn_share(2.0, generator).item()
    assert 0.01 < share < 0.99
    images = data.train.inputs[rows]
    if augment == "crop_flip":
        images = crop_and_flip(images, draw_crops(300, stream(0, "step", 0, 0)))
    inputs, labels = data.normalise(images), soft(data.train.labels[rows], 0.1)
    logits = theirs(share * inputs + (1 - share) * inputs[partners])
    labels = share * labels + (1 - share) * labels[partners]
    assert_a_step_of(-(labels * logits.log_softmax(1)).sum(1).mean(), theirs, ours)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_their_distribution(alpha):
    shares = torch.stack([drawn_share(alpha, stream(seed, "share")) for seed in range(3000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * (variance / 3000) ** 0.5
    squares = (shares - 0.5).square()
    assert abs(squares.mean() - variance) < 4 * squares.std() / 3000**0.5 < 0.1 * variance


def test_a_small_alpha_mixes_hardly_anything_and_gives_numbers():
    shares = torch.stack([drawn_share(1e-4, stream(seed, "share")) for seed in range(200)])
    assert ((shares < 1e-6) | (shares > 1 - 1e-6)).sum() > 190
    assert 50 < (shares > 0.5).sum() < 150


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 11), (2, 1, 1)])
def test_cutmix_takes_a_box_and_counts_its_pixels(shape):
    own, partners, seen = torch.zeros(4, *shape), torch.ones(4, *shape), set()
    for seed in range(60):
        mixed, share = cutmix(own, partners, stream(seed, "cutmix"), mix_alpha=1.0)
        assert torch.equal(mixed, mixed[:1, :1].expand_as(mixed))
        box = mixed[0, 0]
        rows, columns = box.amax(1), box.amax(0)
        assert torch.equal(box, rows[:, None] * columns)
        for line in (rows, columns):
            assert (line.diff().abs().sum() + line[0] + line[-1]) in (0, 2)  # in one piece
        assert share.item() == pytest.approx(1 - box.mean().item(), abs=1e-6)
        seen.add(share.item())
    assert len(seen) > (10 if shape[1] > 1 else 0)


def test_a_mixture_with_itself_is_the_example():
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(cutmix(x, x, stream(0, "m"), mix_alpha=1.0)[0], x)
    torch.testing.assert_close(mixup(x, x, stream(0, "m"), mix_alpha=1.0)[0], x)


def test_mixing_shifts_no_other_draw():
    """Crops, and the noise of a penalty, are those of the run without it."""
    data, seen = digits(augment="crop_flip"), []
    trainers = [Trainer(network(data), data, TrainConfig(mix=mix), seed=0, callbacks=[]) for mix in ("none", "mixup", "cutmix")]
    for trainer in trainers:
        batch = trainer.drawing.batch(0, 3, torch.arange(40))
        seen.append((batch.examples.inputs, torch.randn(9, generator=batch.generator)))
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


# --------------------------------------------------------------------------------------------- clipped gradients


class Gradients(Callback):
    """What every update takes, and which step it is of."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_step(self, trainer: Trainer) -> None:
        self.found.append(torch.cat([weight.grad.flatten() for weight in trainer.network.parameters()]).double())


def test_gradients_of_active_weights_together_are_clipped(generator):
    data = digits()
    fresh = network(data)
    mask = prune(fresh, generator, prune_ratio=0.9)
    whole, clipped = Gradients(), Gradients()
    fit(copy.deepcopy(fresh), data, whole, mask=mask, lr=0.0, sparse_step="0")
    norms = [gradient.norm().item() for gradient in whole.found]
    most = sorted(norms)[len(norms) // 2] * 1.0001
    fit(copy.deepcopy(fresh), data, clipped, mask=mask, lr=0.0, clip_norm=most, sparse_step="0")
    for before, after, norm in zip(whole.found, clipped.found, norms, strict=True):
        torch.testing.assert_close(after, before * min(1.0, most / norm), rtol=1e-5, atol=1e-9)
        assert after.norm() <= most * 1.00001
    assert min(norms) < most < max(norms)


def test_a_bound_that_no_gradient_reaches_changes_no_bit():
    data = digits()
    fresh = network(data)
    assert same(fit(copy.deepcopy(fresh), data).network, fit(copy.deepcopy(fresh), data, clip_norm=1e6).network)
    assert not same(fit(copy.deepcopy(fresh), data).network, fit(copy.deepcopy(fresh), data, clip_norm=1e-2).network)


# --------------------------------------------------------------------------------------------------- averaged weights


class Averages(Callback):
    """The average of all states so far, by its formula; and what the network is after every epoch and in the end."""

    def __init__(self, decay: float) -> None:
        self.decay, self.average, self.shown, self.trained = decay, {}, [], []

    def on_gradients(self, trainer: Trainer) -> None:
        """After a change of the mask: weights that are zero now have been dropped, or have come back."""
        for name in trainer.mask_owner.mask if self.average else ():
            self.average[name] *= trainer.network.get_parameter(name).detach() != 0

    def on_step(self, trainer: Trainer) -> None:
        state = {name: value.double() for name, value in trainer.network.state_dict().items() if value.is_floating_point()}
        for name, value in state.items():
            self.average[name] = self.decay * self.average.get(name, value) + (1 - self.decay) * value

    def on_epoch(self, trainer: Trainer) -> None:
        self.shown.append({name: value.clone() for name, value in trainer.network.state_dict().items()})
        if trainer.epoch:
            self.compare(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.trained.append({name: value.clone() for name, value in trainer.network.state_dict().items()})

    def on_end(self, trainer: Trainer) -> None:
        self.compare(trainer)

    def compare(self, trainer: Trainer) -> None:
        state = trainer.network.state_dict()
        assert self.average.keys() <= state.keys()
        for name, value in self.average.items():
            torch.testing.assert_close(state[name].double(), value, rtol=1e-4, atol=1e-6)
        for name, active in trainer.mask_owner.mask.items():
            assert not state[name][~active].any()


@pytest.mark.parametrize("flags", [{}, {"optimizer_name": "adam", "lr": 0.01}, {"momentum": 0.0}], ids=str)
def test_the_average_follows_its_formula_and_the_trained_network_is_the_usual_one(flags):
    data = digits()
    fresh = network(data, net_name="resnet", depth=8, widen_factor=1)
    with_average, plain, flags = Averages(0.9), Averages(0.0), {"lr": 0.05} | flags
    ours, usual = fit(copy.deepcopy(fresh), data, with_average, ema=0.9, **flags), fit(fresh, data, plain, **flags)
    assert same(ours.network, usual.network)
    for mine, theirs in zip(with_average.trained, plain.trained, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert any(not torch.equal(a, b) for a, b in zip(with_average.shown[1].values(), plain.shown[1].values(), strict=True))


@pytest.mark.parametrize("flags", [{}, {"optimizer_name": "adamw", "lr": 0.01}], ids=str)
@pytest.mark.parametrize("mode", ["gradual", "dynamic", "at-init"])
def test_the_average_of_masked_weights_follows_the_mask(mode, flags):
    """What is dropped is zero in it, and what comes back starts there."""
    more = {} if mode == "at-init" else {"mask_every": 4, "mask_end": 20}
    usual = {"mode": mode, "hidden_dims": "40-30", "prune_ratio": 0.8, "ema": 0.8, "sparse_step": "0"}
    config = config_of(**usual | more | flags)
    averages = Averages(0.8)
    trainer = trainer_of(config, averages)
    trainer.fit()
    assert len(averages.shown) == 4
    assert (trainer.mask_owner.version > 2) == (mode != "at-init")


def test_the_kept_network_is_the_average_that_the_tables_are_of(tmp_path):
    flags = ("--ema", 0.95, "--n_epochs", 3, "--net_name", "resnet", "--depth", 8, "--widen_factor", 1, "--save_epochs", "all")
    folder = finished(tmp_path, "--mode", "dense", *flags)
    kept, _, config = load_run(folder.path)
    data = load_dataset(config.data)
    row = folder.history().rows[-1]
    for split, rows in (("train", data.train), ("test", data.test)):
        means = evaluate(kept, data.batches(rows, 50))
        assert float(row[f"loss_{split}"]) == pytest.approx(means["loss"], rel=1e-5)
        assert folder.read_summary()[f"acc_{split}"] == pytest.approx(means["acc"])
    state, last = torch.load(folder.checkpoint, weights_only=True), kept.state_dict()
    assert any(not torch.equal(value, last[name]) for name, value in state["network"].items())


def test_selection_is_among_the_averages(tmp_path):
    """The kept weights are those of the state after the selected epoch, which is an average too."""
    flags = ("--ema", 0.9, "--select", "val", "--val_size", 0.2, "--save_epochs", "all", "--lr", 2.0)
    folder = finished(tmp_path, "--mode", "dense", *flags, "--n_epochs", 4)
    epoch = folder.read_summary()["epoch_selected"]
    kept, state = (torch.load(path, weights_only=True)["network"] for path in (folder.model, folder.epoch_state(epoch)))
    assert all(torch.equal(kept[name], state[name]) for name in kept)


# ------------------------------------------------------------------------------------------------- exact after a stop

OPTIONS = {
    "adamw": ("--optimizer_name", "adamw", "--lr", 0.01, "--weight_decay", 0.1),
    "smoothed labels": ("--label_smoothing", 0.1),
    "clipped": ("--clip_norm", 0.5),
    "mixup": ("--mix", "mixup", "--mix_alpha", 0.4),
    "cutmix": ("--mix", "cutmix", "--augment", "crop_flip"),
    "average": ("--ema", 0.9, "--net_name", "resnet", "--depth", 8, "--widen_factor", 1),
    "all of them": (
        "--optimizer_name", "adamw", "--lr", 0.01, "--label_smoothing", 0.1, "--clip_norm", 0.5, "--mix", "cutmix",
        "--ema", 0.9, "--mode", "dynamic", "--mask_every", 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "step"), [*((name, 3) for name in OPTIONS), ("average", None), ("all of them", None)])
def test_an_interrupted_run_ends_with_the_same_bits(name, step, tmp_path):
    line = ("--mode", "dense", *OPTIONS[name])
    whole = finished(tmp_path / "whole", *line)
    with sigterm_after(1, step):
        assert run(tmp_path / "stopped", *line).code == 75
    stopped = finished(tmp_path / "stopped", *line)
    assert f"resuming after 1 epochs and {step or 0} steps" in stopped.log.read_text()
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    for mine, theirs in zip(stopped.history().rows, whole.history().rows, strict=True):
        assert all(mine[name] == theirs[name] for name in mine if name not in TIMING)


def test_averaged_statistics_of_another_network_are_refused():
    data = digits()
    one = fit(network(data, net_name="resnet", depth=8, widen_factor=1), data, n_epochs=1, ema=0.9)
    state = one.state()
    state["average"].popitem()
    fresh = Trainer(network(data, net_name="resnet", depth=8, widen_factor=1), data, one.config, seed=0, callbacks=[])
    with pytest.raises(ValueError, match="averaged statistics"):
        fresh.load_state(state)


# ------------------------------------------------------------------------------------------------- flags and identity

ON = {"label_smoothing": 0.1, "clip_norm": 1.0, "mix": "mixup", "ema": 0.99, "optimizer_name": "adamw"}


@pytest.mark.parametrize("name", ON)
def test_an_option_counts_when_it_is_on_and_not_before(name):
    usual = identity(RunConfig())
    assert name not in usual
    assert identity(unflatten(RunConfig, {name: ON[name]})) == usual | {name: ON[name]}
    assert identity(replace(RunConfig(), mix_alpha=0.3)) == usual
    assert identity(replace(RunConfig(), mix="cutmix", mix_alpha=0.3)) == usual | {"mix": "cutmix", "mix_alpha": 0.3}


REFUSED = [
    ({"clip_norm": 0}, "--clip_norm 0: must be above 0"),
    ({"clip_norm": -1}, "--clip_norm -1"),
    ({"mix": "mixup", "mix_alpha": 0}, "--mix_alpha 0: must be above 0"),
    ({"mix": "mixip"}, "did you mean mixup"),
    ({"label_smoothing": 1}, "--label_smoothing 1"),
    ({"ema": 1}, "--ema 1"),
    ({"mix": "cutmix", "train_eval": "running"}, "--train_eval running --mix cutmix"),
    ({"ema": 0.9, "train_eval": "running"}, "--train_eval running --ema 0.9"),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED)
def test_what_contradicts_is_refused(flags, words):
    with pytest.raises(FlagError) as error:
        TrainConfig(**flags)
    assert words in str(error.value)


def test_boxes_of_what_is_no_image_are_refused_before_anything_is_written(tmp_path):
    found = run(tmp_path, "--mode", "dense", "--loader_name", "toy", "--mix", "cutmix")
    assert found.code == 2
    assert "--mix cutmix needs images" in found.line
    assert "use --mix mixup" in found.line
    assert not list(tmp_path.rglob("config.yaml"))
    assert len(list(itertools.islice(tmp_path.rglob("*"), 1))) == 0
