"""The owner of the mask, with a mode whose mask changes half-way through an epoch, against the same steps written out."""

import copy
import csv
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import run as command_line
from helper.mask import Mask
from helper.metrics.macs import count_macs
from helper.metrics.snr import GradientMoments
from helper.pruner import prune
from helper.schema.config import digest
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.callbacks.callback import Callback
from optim.checkpoint import load_state, save_state
from optim.columns import HISTORY, LATER
from optim.config import TrainConfig
from optim.folder import RunFolder
from optim.mask_owner import MaskOwner
from optim.meter import PASSES
from optim.model import load_stored
from optim.modes import FRESH, MODES, MaskSource, ModeSpec
from optim.trainer import Trainer
from tests.outcome import Outcome, outcome
from tests.several import together
from tests.stops import sigterm_after

N, BATCH = 300, 64  # five steps an epoch, the last one of 44 examples
SEED = 1
AT = (1, 2)  # epoch and completed steps at which the mask changes


class Swap(Callback):
    """After some step, drops the first two active weights of every row and grows the last pruned one."""

    def __init__(self, config: object = None, at: tuple[int, int] = AT) -> None:
        self.at = at

    def on_step(self, trainer: Trainer) -> None:
        if (trainer.epoch, trainer.step) == self.at:
            trainer.mask_owner.change(swapped(trainer.mask_owner.mask))


def swapped(mask: Mask) -> Mask:
    found = {}
    for name, keep in mask.items():
        keep = keep.cpu().clone()
        for row in keep.flatten(1):  # a view
            grown = (~row).nonzero().flatten()[-1:]
            row[row.nonzero().flatten()[:2]] = False
            row[grown] = True
        found[name] = keep
    return Mask(found)


class Watch(Callback):
    """Pruned weights and their part of the optimiser's state are zero after every step, to the bit."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, trainer: Trainer) -> None:
        self.steps += 1
        owner = trainer.mask_owner
        for (name, keep), weight in zip(owner.mask.items(), owner.weights, strict=True):
            assert trainer.network.get_parameter(name) is weight
            for value in (weight, *owner.states_of(weight)):
                assert not value[~keep].any()


def digits():
    return load_dataset(DataConfig(limit_train=N, limit_test=50))


def tiny(data) -> tuple[nn.Module, Mask]:
    network = build_network(NetworkConfig(hidden_dims="9-7"), data.input_shape, data.n_classes, stream(SEED, "init"))
    return network, prune(network, stream(SEED, "prune"), prune_ratio=0.6)


FLAGS = {
    "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "nesterov": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"optimizer_name": "adam", "lr": 0.01, "weight_decay": 0.01},
}


def train(flags: dict, *callbacks: Callback, n_epochs: int = 3) -> Trainer:
    data = digits()
    network, mask = tiny(data)
    config = TrainConfig(n_epochs=n_epochs, batch_size=BATCH, lr_schedule="constant", **flags)
    trainer = Trainer(network, data, config, seed=SEED, callbacks=callbacks, mask=mask)
    trainer.fit()
    return trainer


# ------------------------------------------------------------------------------------- against the steps written out


def steps_written_out(flags: dict, n_epochs: int = 3) -> tuple[dict[str, Tensor], Mask]:
    """Weights and mask after the same training in float64: momentum and Adam as their formulas say, masked by products."""
    data = digits()
    network, mask = tiny(data)
    network = network.double()
    keep = {name: mask[name].double() if name in mask else 1.0 for name, _ in network.named_parameters()}
    weights = {name: (p.detach() * keep[name]).clone() for name, p in network.named_parameters()}
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    t = 0
    for epoch in range(n_epochs):
        batches = torch.randperm(N, generator=stream(SEED, "order", epoch)).split(BATCH)
        for step, rows in enumerate(batches, 1):
            t += 1
            leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
            logits = torch.func.functional_call(network, leaves, (data.normalise(data.train.inputs[rows]).double(),))
            gradients = torch.autograd.grad(F.cross_entropy(logits, data.train.labels[rows]), list(leaves.values()))
            for (name, w), g in zip(weights.items(), gradients, strict=True):
                g = g * keep[name] + flags["weight_decay"] * w
                if flags.get("optimizer_name") == "adam":
                    first[name] = 0.9 * first[name] + 0.1 * g
                    second[name] = 0.999 * second[name] + 0.001 * g * g
                    m, v = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
                    weights[name] = w - flags["lr"] * m / (v.sqrt() + 1e-8)
                else:
                    first[name] = 0.9 * first[name] + g
                    direction = g + 0.9 * first[name] if flags.get("nesterov") else first[name]
                    weights[name] = w - flags["lr"] * direction
            if (epoch, step) == AT:
                after = swapped(mask)
                for name in mask:
                    stays = (mask[name] & after[name]).double()
                    weights[name], first[name], second[name] = (x[name] * stays for x in (weights, first, second))
                    keep[name] = after[name].double()
                mask = after
    return weights, mask


@pytest.mark.parametrize("name", FLAGS)
def test_training_across_a_change_is_the_optimiser_written_out(name):
    watch = Watch()
    trainer = train(FLAGS[name], Swap(), watch)
    assert watch.steps == 15
    weights, mask = steps_written_out(FLAGS[name])
    owner = trainer.mask_owner
    assert owner.version == 1
    assert all(torch.equal(owner.mask[name], keep) for name, keep in mask.items())
    assert not all(torch.equal(owner.mask[name], keep) for name, keep in tiny(digits())[1].items())
    for name, weight in trainer.network.named_parameters():
        torch.testing.assert_close(weight.double(), weights[name], rtol=1e-3, atol=1e-5)
    before = tiny(digits())[1]
    grown = torch.cat([w[owner.mask[name] & ~before[name]] for name, w in zip(before, owner.weights, strict=True)])
    assert len(grown) > 10
    assert (grown != 0).float().mean() > 0.5  # they have moved, but where a pixel is always dark


def test_without_a_change_of_its_own_the_reference_differs():
    """The comparison above can fail: training that never changes its mask is far from it."""
    trainer = train(FLAGS["momentum"])
    weights, _ = steps_written_out(FLAGS["momentum"])
    assert max((w.double() - weights[name]).abs().max() for name, w in trainer.network.named_parameters()) > 0.01


def test_grown_weights_begin_at_zero_with_nothing_left_of_an_earlier_life():
    """Dropped and grown again at once: as new, though weight and momentum were not."""
    data = digits()
    network, mask = tiny(data)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    owner = MaskOwner(network, optimizer, mask, data.input_shape)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    owner.mask_gradients()
    optimizer.step()
    owner.change(swapped(mask))
    owner.change(mask)
    came_back = {name: mask[name] & ~swapped(mask)[name] for name in mask}
    assert sum(int(back.sum()) for back in came_back.values()) > 10
    for (name, back), weight in zip(came_back.items(), owner.weights, strict=True):
        for value in (weight, optimizer.state[weight]["momentum_buffer"]):
            assert not value[back].any()
            assert value[mask[name] & ~back].all()


def test_a_mask_of_other_weights_is_refused_and_nothing_changes():
    data = digits()
    network, mask = tiny(data)
    owner = MaskOwner(network, torch.optim.SGD(network.parameters(), 0.1), mask, data.input_shape)
    before = copy.deepcopy(network.state_dict())
    name = next(iter(mask))
    for other in (
        Mask(),
        Mask({name: mask[name]}),
        Mask({**mask, name: mask[name][:3]}),
        Mask({**mask, "none.weight": mask[name]}),
    ):
        with pytest.raises(ValueError, match="mask"):
            owner.change(Mask(other))
    assert owner.version == 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_training_graph_keeps_its_tensors_across_a_change():
    """On XLA a step that multiplies by the same tensors is the same graph; and a kept mask stays what it was."""
    data = digits()
    network, mask = tiny(data)
    network.to(memory_format=torch.channels_last)
    owner = MaskOwner(network, torch.optim.SGD(network.parameters(), 0.1), mask, data.input_shape)
    kept, addresses = owner.mask, [owner.factor(name).data_ptr() for name in mask]
    owner.change(swapped(mask))
    assert [owner.factor(name).data_ptr() for name in mask] == addresses
    assert all(torch.equal(owner.factor(name), keep.float()) for name, keep in owner.mask.items())
    assert all(torch.equal(kept[name], mask[name]) for name in mask)


# -------------------------------------------------------------------------------------------------- what it has cost


class Costs(Callback):
    """The meter at every epoch, and the sums that it should come to, step by step."""

    def __init__(self) -> None:
        self.macs, self.shares, self.rows = 0, [], []

    def on_gradients(self, trainer: Trainer) -> None:
        n = min(BATCH, N - trainer.step * BATCH)
        mask = trainer.mask_owner.mask
        self.macs += n * PASSES * count_macs(trainer.network, trainer.dataset.input_shape, mask)[1]
        self.shares.append(1 - mask.sparsity)

    def on_epoch(self, trainer: Trainer) -> None:
        self.rows.append((trainer.mask_owner.meter.macs, trainer.mask_owner.meter.density, self.macs, self.shares))
        self.shares = []


def test_cost_and_density_are_sums_over_the_real_steps():
    costs = Costs()
    trainer = train(FLAGS["momentum"], Swap(), costs)
    first, *rows = costs.rows
    assert first[:2] == (0, 1 - tiny(digits())[1].sparsity)
    for macs, density, expected, shares in rows:
        assert macs == expected
        assert density == pytest.approx(sum(shares) / len(shares), rel=1e-12)
    assert len({density for _, density, _, _ in rows}) == 3  # before, across and after the change
    dense, _ = count_macs(trainer.network, trainer.dataset.input_shape)
    assert trainer.mask_owner.meter.macs_dense == 3 * N * PASSES * dense


def test_macs_of_convolutions_count_their_positions_and_of_a_layer_used_twice_both_uses():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(self.conv(x).mean((2, 3))))

    mask = Mask({"conv.weight": torch.arange(18).view(2, 1, 3, 3) < 5})
    assert count_macs(Twice(), (1, 4, 5), mask) == (20 * 18 + 2 * 4, 20 * 5 + 2 * 4)
    assert count_macs(nn.Linear(3, 2), (3,)) == (6, 6)


# ------------------------------------------------------------------------------------------------------ signal to noise


def test_moments_start_anew_when_the_mask_changes(added, tmp_path):
    folder = trained(tmp_path, "--snr_mode", "online")
    counts = {(row["epoch"], row["layer"]): row["n_batches"] for row in folder.snr().rows}
    full = N // BATCH
    assert {counts[epoch, "layers.0"] for epoch in ("1", "3")} == {str(full)}
    assert counts["2", "layers.0"] == str(full - AT[1])  # of the steps after the change
    by_hand = moments_after_the_change()
    for row in (row for row in folder.snr().rows if row["epoch"] == "2"):
        expected = next(one for one in by_hand if one["layer"] == row["layer"])
        assert float(row["grad_mean_norm"]) == pytest.approx(expected["grad_mean_norm"], rel=1e-4)
        assert float(row["weight_norm"]) == pytest.approx(expected["weight_norm"], rel=1e-4)


def moments_after_the_change() -> list[dict]:
    """Of the gradients in the second epoch's last full steps, taken in by the present mask alone."""

    class Collect(Callback):
        moments: GradientMoments | None = None

        def on_gradients(self, trainer: Trainer) -> None:
            if trainer.epoch == AT[0] and trainer.step == AT[1]:
                self.moments = GradientMoments(trainer.network, trainer.mask_owner.mask)
            if trainer.epoch == AT[0] and AT[1] <= trainer.step < N // BATCH:
                self.moments.update([weight.grad for weight in self.moments.weights])

        def on_epoch(self, trainer: Trainer) -> None:
            if trainer.epoch == 2:
                self.rows = self.moments.table()

    collect = Collect()
    train({"lr": 0.1}, Swap(), collect)
    return collect.rows


# ----------------------------------------------------------------------------------------------- whole runs, run.py


NAME = "swapping"
RUN = (
    "--mode", NAME, "--limit_train", N, "--limit_test", 50, "--n_epochs", 3, "--batch_size", BATCH, "--hidden_dims", "9-7",
    "--lr_schedule", "constant", "--figures", 0, "--save_fisher", 0, "--prune_ratio", 0.6, "--random_state", SEED,
    "--save_epochs", "all",
)  # fmt: skip


def fresh_mask(beginning, network: nn.Module) -> Mask:
    return prune(network, stream(SEED, "prune"), prune_ratio=0.6)


SPEC = ModeSpec(NAME, "black", "v", "-.", FRESH, MaskSource(fresh_mask), Swap)


@pytest.fixture
def added(monkeypatch) -> None:
    """A mode whose mask changes within its second epoch."""
    monkeypatch.setitem(MODES, NAME, SPEC)


def start(root: Path, *flags: object) -> Outcome:
    return outcome(command_line.main, *RUN, *flags, "--results_root", root)


def trained(root: Path, *flags: object) -> RunFolder:
    found = start(root, *flags)
    assert found.code == 0, found.err
    return RunFolder(found.folder)


def tables(folder: RunFolder) -> list[dict[str, str]]:
    """History and SNR, without what differs between equal runs."""
    rows = [*folder.history().rows, *folder.snr().rows]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "peak_memory_mb")} for row in rows]


@pytest.fixture
def stopped():
    """stopped(root, epoch, step, *flags) -> the folder of a run that was ended by SIGTERM after so many steps of an epoch."""

    def call(root: Path, epoch: int, step: int, *flags: object, mode: str = NAME) -> RunFolder:
        with sigterm_after(epoch, step):
            assert start(root, *flags).code == 75
        (path,) = root.glob(f"*/*/{mode}/*")
        return RunFolder(path)

    return call


def test_every_state_and_the_summary_have_the_mask_of_their_epoch(added, tmp_path):
    folder = trained(tmp_path, "--select", "test")
    _, before = tiny(digits())
    after = swapped(before)
    for epoch in range(4):
        expected = before if epoch < 2 else after
        stored = load_stored(folder.epoch_state(epoch))
        assert all(torch.equal(stored.mask[name], keep) for name, keep in expected.items()), epoch
        assert not any(stored.weights[name][~keep].any() for name, keep in expected.items())
    summary, selected = folder.read_summary(), load_stored(folder.model)
    assert selected.epoch == summary["epoch_selected"]
    assert summary["sparsity_achieved"] == selected.mask.sparsity
    assert summary["sparsity_by_layer"] == selected.mask.sparsity_by_layer()
    history = folder.history().rows
    assert int(history[-1]["training_macs"]) == summary["training_macs"] < summary["training_macs_dense"]
    assert float(history[1]["density"]) == pytest.approx(1 - before.sparsity)
    assert float(history[3]["density"]) == pytest.approx(1 - after.sparsity)
    assert 1 - after.sparsity < float(history[2]["density"]) < 1 - before.sparsity


def test_the_first_epoch_selected_is_summarised_with_its_own_mask(added, tmp_path, monkeypatch):
    """The last epoch's mask is another."""
    monkeypatch.setattr("optim.callbacks.keeping.SelectBest.on_epoch", keep_the_first)
    folder = trained(tmp_path, "--select", "test")
    summary, (_, before) = folder.read_summary(), tiny(digits())
    assert summary["epoch_selected"] == 1
    assert summary["sparsity_achieved"] == before.sparsity != load_stored(folder.epoch_state(3)).mask.sparsity
    network = build_network(NetworkConfig(hidden_dims="9-7"), (1, 8, 8), 10, stream(SEED, "init"))
    assert summary["macs_active"] == count_macs(network, (1, 8, 8), before)[1]


def keep_the_first(self, trainer: Trainer) -> None:
    if trainer.epoch == 1:
        self.best = trainer.row[self.column]
        self.save(trainer)


@pytest.mark.parametrize("flags", [("--snr_mode", "online"), ("--optimizer_name", "adam", "--lr", 0.01)])
@pytest.mark.parametrize("at", [(1, 1), AT, (1, 3), (2, 1)], ids=str)
def test_a_run_stopped_before_at_or_after_the_change_ends_with_the_same_bits(added, stopped, tmp_path, flags, at):
    whole = trained(tmp_path / "whole", *flags)
    folder = stopped(tmp_path / "stopped", *at, *flags)
    assert load_state(folder.checkpoint)["mask_owner"]["version"] == (at >= AT)
    assert trained(tmp_path / "stopped", *flags) == folder
    assert folder.model.read_bytes() == whole.model.read_bytes()
    assert tables(folder) == tables(whole)
    same = [folder.read_summary()[name] == whole.read_summary()[name] for name in ("training_macs", "sparsity_by_layer")]
    assert all(same)


def test_a_checkpoint_is_refused_under_another_first_mask_and_not_for_its_present_one(added, stopped, tmp_path, monkeypatch):
    folder = stopped(tmp_path, 1, 3)
    other = MaskSource(lambda beginning, network: swapped(fresh_mask(beginning, network)))
    with monkeypatch.context() as patch:
        patch.setitem(MODES, NAME, ModeSpec(NAME, "black", "v", "-.", FRESH, other, Swap))
        found = start(tmp_path)
    assert "began with another mask" in found.line
    assert trained(tmp_path) == folder


# ----------------------------------------------------------------------------------------- what former programs have left


def as_before(folder: RunFolder) -> None:
    """Give a stopped run the files that the program wrote before masks could change: no meter, no columns of it."""
    rows = [{name: cell for name, cell in row.items() if name not in LATER} for row in folder.history(noisy=True).rows]
    for path in folder.path.glob("checkpoint*.pt"):
        state = load_state(path)
        del state["mask_owner"]
        state["tables"]["history"] = digest({"rows": [row for row in rows if int(row["epoch"]) <= state["epoch"]]})
        save_state(path, state)
    names = [name for name in HISTORY if name not in LATER]
    with open(folder.path / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("mode", ["dense", "sparse-scratch"])
@pytest.mark.parametrize("at", [(2, 3), (1, 5)], ids=str)
def test_a_run_stopped_by_a_former_program_goes_on_with_empty_cells_behind_it(stopped, tmp_path, mode, at):
    flags = ("--mode", mode, "--train_eval", "running", "--save_snr", 0)
    whole = trained(tmp_path / "whole", *flags)
    if mode != "dense":
        trained(tmp_path / "stopped", *flags, "--mode", "dense")  # the parent, which is not to be stopped
    folder = stopped(tmp_path / "stopped", *at, *flags, mode=mode)
    as_before(folder)
    assert trained(tmp_path / "stopped", *flags) == folder
    assert folder.model.read_bytes() == whole.model.read_bytes()
    rows, expected = folder.history().rows, whole.history().rows
    for row, other in zip(rows, expected, strict=True):
        old = int(row["epoch"]) <= at[0]
        later = [name for name in LATER if name in other]  # one of them is of noisy labels only
        assert [row[name] for name in later] == ([""] * len(later) if old else [other[name] for name in later])
        assert row["loss_train"] == other["loss_train"]
    assert folder.read_summary()["training_macs"] == whole.read_summary()["training_macs"]


# ---------------------------------------------------------------------------------------------------- several processes


def swap_in_double(name: str, differing: bool) -> dict[str, Tensor]:
    """Weights and mask after training in float64; the second of two processes may ask for another mask."""

    class Other(Swap):
        def on_step(self, trainer: Trainer) -> None:
            if (trainer.epoch, trainer.step) == self.at:
                mask = swapped(trainer.mask_owner.mask)
                second = differing and os.environ.get("RANK") == "1"
                trainer.mask_owner.change(swapped(mask) if second else mask)

    data = digits()
    network, mask = tiny(data)
    network = InDouble(network.double())
    mask = Mask({f"network.{name}": keep for name, keep in mask.items()})
    config = TrainConfig(n_epochs=3, batch_size=BATCH, lr_schedule="constant", **FLAGS[name])
    trainer = Trainer(network, data, config, seed=SEED, callbacks=[Other(), Watch()], mask=mask)
    trainer.fit()
    bits = {f"{name}/mask": keep for name, keep in trainer.mask_owner.mask.items()}
    return {**{name: value.detach() for name, value in network.state_dict().items()}, **bits}


class InDouble(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


@pytest.mark.parametrize(("name", "differing"), [("momentum", False), ("adam", True)])
def test_two_processes_change_the_mask_as_one_does_and_the_first_ones_counts(name, differing):
    alone = swap_in_double(name, False)
    first, second = together(2, swap_in_double, name, differing)
    for key, value in alone.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6)  # losses are in float32
