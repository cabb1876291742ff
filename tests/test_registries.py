"""A part that is added as README says: one file, one line in a registry, one test. Runs under it are found by what it reads."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import experiment
import optim.main
import run as command_line
from helper.schema.config import Config, all_flags, unflatten
from helper.schema.registry import Readers, reads
from helper.system.seeds import stream
from loader.dataset import Source
from loader.label_noise import METHODS, Noise
from loader.main import DATASETS, DataConfig, Loader, Published, load_dataset
from loader.sizes import Sizes, published_sizes
from loader.splits import balanced_rows
from network.main import NETWORKS, NetworkConfig
from optim.config import RunConfig, TrainConfig
from optim.identity import run_folder
from optim.optimizers import OPTIMIZERS, tensors_kept
from optim.regularizer import REGULARIZERS
from optim.schedule import SCHEDULES
from study.sweeping.cost import data_of
from tests.outcome import Outcome, outcome

QUICK = ("--figures", 0, "--save_fisher", 0, "--save_snr", 0, "--n_epochs", 1, "--batch_size", 20)


def stripes(config: DataConfig) -> Source:
    """60 images of 4x4 pixels with stripes across or along; a share is held out."""
    labels = torch.arange(60) % 2
    images = torch.randint(0, 9, (60, 1, 4, 4), generator=stream(0, "stripes"), dtype=torch.uint8)
    images[labels == 0, :, ::2] += 200
    images[labels == 1, :, :, ::2] += 200
    test, train = balanced_rows(labels, round(config.test_size * 60), stream(config.split_seed, "test"))
    return Source(images[train], labels[train], images[test], labels[test], ("across", "along"), 255, (0.5,), (0.3,))


def plain(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """`depth` Linear layers of `widen_factor` units and a last one."""
    widths = [math.prod(input_shape), *[config.widen_factor] * config.depth]
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], n_classes))


@pytest.fixture
def parts(monkeypatch) -> Iterator[None]:
    """Both in their registries, as functions that declare nothing."""
    monkeypatch.setitem(DATASETS, "stripes", stripes)
    monkeypatch.setitem(NETWORKS, "plain", plain)
    for cache in (load_dataset, data_of, optim.main.load_dataset):
        cache.cache_clear()
    yield
    for cache in (load_dataset, data_of, optim.main.load_dataset):
        cache.cache_clear()


def start(root: Path, *flags: object) -> Outcome:
    found = outcome(command_line.main, *QUICK, *flags, "--results_root", root)
    assert found.code == 0, found.err
    return found


def sweep(tmp_path: Path, grid: dict, *flags: object) -> Outcome:
    (tmp_path / "sweep.yaml").write_text(json.dumps({"grid": grid}))
    return outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", "--results_root", tmp_path / "results", *flags)


# ---------------------------------------------------------------------------------------------- what declares nothing


def test_an_added_data_set_is_asked_for_all_flags(parts, tmp_path):
    small, large, again = (start(tmp_path, "--loader_name", "stripes", "--test_size", size).folder for size in (0.2, 0.5, 0.2))
    assert small != large
    assert again == small
    assert small.parts[-4:-1] == ("stripes", "mlp-128-64", "dense")
    noisy = start(tmp_path, "--loader_name", "stripes_noisy", "--test_size", 0.4).folder
    assert noisy != start(tmp_path, "--loader_name", "stripes", "--train_noisy", 1).folder


def test_an_added_network_is_asked_for_all_flags(parts, tmp_path):
    flags = ("--net_name", "plain", "--limit_train", 60, "--limit_test", 20, "--widen_factor", 6)
    shallow, deep = (start(tmp_path, *flags, "--depth", depth).folder for depth in (1, 2))
    assert {path.parts[-3] for path in (shallow, deep)} == {"plain-depth1-widen_factor6", "plain-depth2-widen_factor6"}
    configs = [unflatten(RunConfig, {"net_name": "plain", "hidden_dims": dims}) for dims in ("8", "9", "128-64")]
    assert len({run_folder(config, None).path for config in configs}) == 3
    child = start(tmp_path, *flags, "--depth", 2, "--mode", "sparse-finetune", "--prune_ratio", 0.5).folder
    assert len(list(deep.parent.iterdir())) == 1  # its parent
    assert child.parts[-3] == deep.parts[-3]


def test_added_parts_are_measured_compared_reported_and_priced(parts, tmp_path):
    root = tmp_path / "results"
    flags = ("--loader_name", "stripes", "--net_name", "plain", "--depth", 1, "--widen_factor", 6)
    runs = [start(root, *flags, "--random_state", seed).folder for seed in (1, 2)]
    assert outcome(experiment.main, "measure", runs[0], "--metrics", "fisher", "-ms", 20).code == 0
    assert outcome(experiment.main, "disagree", *runs).code == 0
    assert outcome(experiment.main, "report", root).code == 0
    grid = {"loader_name": ["stripes", "digits"], "net_name": ["plain", "mlp"], "depth": [1, 2], "widen_factor": 6}
    for more in ((), ("--images_per_second", 100)):
        found = sweep(tmp_path, grid, "--dry_run", 1, *more)
        assert found.code == 0, found.err
        assert "8 runs" in found.out or "6 runs" in found.out
        assert "stripes/plain-depth2-widen_factor6" in found.out


def test_sizes_come_from_the_registry_or_else_from_the_data(parts, monkeypatch):
    config = DataConfig(loader_name="stripes", test_size=0.3, val_size=0.1)
    loaded = Sizes.of(load_dataset(config))
    assert published_sizes(config) == loaded == Sizes(38, 4, 18, (1, 4, 4), 2)
    read = []
    known = Loader(lambda config: read.append(1) or stripes(config), Published(60, None, (1, 4, 4), 2), ("test_size",))
    monkeypatch.setitem(DATASETS, "stripes", known)
    load_dataset.cache_clear()
    assert published_sizes(config) == loaded
    assert not read


def test_an_added_set_that_is_augmented_says_so_itself(parts, monkeypatch):
    assert not DataConfig(loader_name="stripes").augmented
    monkeypatch.setitem(DATASETS, "stripes", Loader(stripes, augmented=True))
    assert load_dataset(DataConfig(loader_name="stripes")).augmented
    assert DataConfig(loader_name="stripes", augment="crop_flip").augment == "auto"


ADDED = {  # registry, flag with the registry's words, flags that its entries may read with another value than the default
    "noise method": (METHODS, "noise_method", {"noise_ratio": 0.1}, {"train_noisy": 1}),
    "optimiser": (OPTIMIZERS, "optimizer_name", {"momentum": 0.5, "nesterov": 1}, {}),
    "schedule": (SCHEDULES, "lr_schedule", {"lr_gamma": 0.5, "lr_milestones": "7"}, {}),
    "regulariser": (REGULARIZERS, "reg_type", {"reg_weight": 3.0}, {}),
    "data set": (DATASETS, "loader_name", {"test_size": 0.5}, {}),
    "network": (
        NETWORKS, "net_name", {"depth": 20, "widen_factor": 1, "hidden_dims": "7", "hidden_act": "tanh", "out_act": "tanh"}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ADDED)
def test_of_an_entry_that_declares_nothing_every_flag_counts_and_of_one_that_does_only_those(monkeypatch, kind):
    registry, word, flags, more = ADDED[kind]

    def number() -> int:
        """Different runs among those with one flag changed, and none."""
        changes = [{}, *({name: value} for name, value in flags.items())]
        configs = [unflatten(RunConfig, more | {word: "added"} | change) for change in changes]
        return len({run_folder(config, None).path.name for config in configs})

    def added(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setitem(registry, "added", added)
    assert number() == 1 + len(flags)
    monkeypatch.setitem(registry, "added", reads()(added))
    assert number() == 1
    monkeypatch.setitem(registry, "added", reads(next(iter(flags)))(added))
    assert number() == 2


# --------------------------------------------------------------------------------------------------- what is declared


class Asked:
    """A configuration that remembers which of its flags are asked for."""

    def __init__(self, config: Config) -> None:
        self.config, self.names = config, set()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return getattr(self.config, name)


def tied(cls: type[Config], word: str) -> set[str]:
    """Flags that count for some words of a registry's flag alone."""
    conditions = {name: field.metadata["flag"].when for name, field in all_flags(cls).items()}
    return {name for name, found in conditions.items() if any(isinstance(one.get(word), Readers) for one in found)}


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_declares_what_it_reads(files, name):
    loader = DATASETS[name]
    for load in filter(None, (loader.load, loader.load_noisy)):
        asked = Asked(DataConfig(loader_name=name, root=str(files), verify_data=False))
        load(asked)
        assert asked.names & tied(DataConfig, "loader_name") == set(loader.reads)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_declares_what_it_reads(name):
    asked = Asked(NetworkConfig(net_name=name))
    NETWORKS[name].build(asked, (1, 8, 8), 10)
    assert asked.names & tied(NetworkConfig, "net_name") == set(NETWORKS[name].reads)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_declares_what_it_reads(name):
    asked = Asked(TrainConfig(lr_schedule=name))
    SCHEDULES[name](asked, 3)
    assert asked.names & tied(TrainConfig, "lr_schedule") == set(SCHEDULES[name].reads)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_declares_what_it_reads(name):
    asked = Asked(TrainConfig(optimizer_name=name))
    OPTIMIZERS[name]([nn.Parameter(torch.zeros(2))], asked)
    assert asked.names & tied(TrainConfig, "optimizer_name") == set(OPTIMIZERS[name].reads)


@pytest.mark.parametrize("name", METHODS)
def test_a_noise_method_declares_what_it_reads(name):
    labels, following = torch.arange(200) % 4, (torch.arange(4) + 1) % 4
    noises = [Noise(ratio, 4, following, labels.flip(0), stream(0, "n")) for ratio in (0.2, 0.6)]
    noisy = [METHODS[name](labels, noise) for noise in noises]
    assert torch.equal(*noisy) == ("noise_ratio" not in METHODS[name].reads)


def test_every_declared_flag_is_one_and_every_tie_names_its_own_flag():
    for word, registry in ((word, registry) for registry, word, _, _ in ADDED.values()):
        for entry in registry.values():
            assert set(getattr(entry, "reads", ())) <= tied(RunConfig, word)
    for name, field in all_flags(RunConfig).items():
        for values in (values for condition in field.metadata["flag"].when for values in condition.values()):
            assert not isinstance(values, Readers) or values.flag == name


def test_tensors_that_an_optimiser_keeps_are_counted_by_asking_it(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", lambda weights, config: torch.optim.RMSprop(weights, config.lr, momentum=0.9))
    kept = {name: tensors_kept(TrainConfig(optimizer_name=name)) for name in OPTIMIZERS}
    assert kept == {"sgd": 1, "adam": 2, "rmsprop": 2}
    assert tensors_kept(TrainConfig(momentum=0)) == 0
