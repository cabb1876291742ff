"""A part that is added as README says: one file, one line in a registry, one test. Runs under it are found by what it reads."""

import functools
import itertools
import json
import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import experiment
import optim.main
import run as command_line
from helper.schema.config import Config, all_flags, flatten, unflatten
from helper.schema.registry import Readers, functions_of, options_of, with_options
from helper.system.seeds import stream
from loader.dataset import Source
from loader.label_noise import METHODS
from loader.main import DATASETS, DataConfig, Sizes, load_dataset, published_sizes
from loader.spec import DatasetSpec, held_out
from loader.splits import balanced_rows
from network.main import NETWORKS, NetworkConfig
from network.spec import NetworkSpec
from optim.config import RunConfig, TrainConfig
from optim.identity import run_folder
from optim.mixing import MIXES
from optim.optimizers import OPTIMIZERS, tensors_kept
from optim.regularizer import REGULARIZERS, OfOutputs
from optim.schedule import SCHEDULES
from study.sweeping.cost import data_of
from tests.conftest import NETWORKS_TRIED, small_network
from tests.outcome import Outcome, outcome

QUICK = ("--figures", 0, "--save_fisher", 0, "--save_snr", 0, "--n_epochs", 1, "--batch_size", 20)


def stripes(*, test_size: float, split_seed: int) -> Source:
    """60 images of 4x4 pixels with stripes across or along; a share is held out."""
    labels = torch.arange(60) % 2
    images = torch.randint(0, 9, (60, 1, 4, 4), generator=stream(0, "stripes"), dtype=torch.uint8)
    images[labels == 0, :, ::2] += 200
    images[labels == 1, :, :, ::2] += 200
    test, train = balanced_rows(labels, round(test_size * 60), stream(split_seed, "test"))
    return Source(images[train], labels[train], images[test], labels[test], ("across", "along"), 255, (0.5,), (0.3,))


def plain(input_shape: tuple[int, ...], n_classes: int, *, depth: int, widen_factor: int) -> nn.Module:
    """`depth` Linear layers of `widen_factor` units and a last one."""
    widths = [math.prod(input_shape), *[widen_factor] * depth]
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], n_classes))


@pytest.fixture
def parts(monkeypatch) -> Iterator[None]:
    """Both in their registries, with no more said of them than has to be."""
    monkeypatch.setitem(DATASETS, "stripes", DatasetSpec("stripes", stripes))
    head = operator.itemgetter(-1)
    monkeypatch.setitem(NETWORKS, "plain", NetworkSpec("plain", plain, head=head, images=False))
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


# ---------------------------------------------------------------------------------------------- with nothing but what is needed


def test_runs_of_an_added_data_set_are_told_apart_by_the_flags_that_it_reads(parts, tmp_path):
    small, large, again = (start(tmp_path, "--loader_name", "stripes", "--test_size", size).folder for size in (0.2, 0.5, 0.2))
    assert small != large
    assert again == small
    assert small.parts[-4:-1] == ("stripes", "mlp-128-64", "dense")
    noisy = start(tmp_path, "--loader_name", "stripes_noisy", "--test_size", 0.4).folder
    assert noisy != start(tmp_path, "--loader_name", "stripes", "--train_noisy", 1).folder


def test_runs_of_an_added_network_are_told_apart_by_the_flags_that_it_reads(parts, tmp_path):
    flags = ("--net_name", "plain", "--limit_train", 60, "--limit_test", 20, "--widen_factor", 6)
    shallow, deep = (start(tmp_path, *flags, "--depth", depth).folder for depth in (1, 2))
    assert {path.parts[-3] for path in (shallow, deep)} == {"plain-depth1-widen_factor6", "plain-depth2-widen_factor6"}
    configs = [unflatten(RunConfig, {"net_name": "plain", "hidden_dims": dims}) for dims in ("8", "9", "128-64")]
    assert len({run_folder(config, None).path for config in configs}) == 1
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

    def load(*, test_size: float, split_seed: int) -> Source:
        read.append(1)
        return stripes(test_size=test_size, split_seed=split_seed)

    known = DatasetSpec("stripes", load, lambda *, test_size: held_out(60, test_size, (1, 4, 4), 2))
    monkeypatch.setitem(DATASETS, "stripes", known)
    load_dataset.cache_clear()
    assert published_sizes(config) == loaded
    assert not read


def test_an_added_set_that_is_augmented_says_so_itself(parts, monkeypatch):
    assert not DataConfig(loader_name="stripes").augmented
    monkeypatch.setitem(DATASETS, "stripes", DatasetSpec("stripes", stripes, augmented=True))
    assert load_dataset(DataConfig(loader_name="stripes")).augmented
    assert DataConfig(loader_name="stripes", augment="crop_flip").augment == "auto"


ADDED = {  # registry, flag with the registry's words, flags that its entries may read with another value than the default
    "noise method": (METHODS, "noise_method", {"noise_ratio": 0.1}, {"train_noisy": 1}),
    "optimiser": (OPTIMIZERS, "optimizer_name", {"momentum": 0.5, "nesterov": 1}, {}),
    "schedule": (SCHEDULES, "lr_schedule", {"lr_gamma": 0.5, "lr_milestones": "7"}, {}),
    "regulariser": (REGULARIZERS, "reg_type", {"reg_weight": 3.0}, {}),
    "mix": (MIXES, "mix", {"mix_alpha": 0.5}, {}),
    "data set": (DATASETS, "loader_name", {"test_size": 0.5}, {}),
    "network": (
        NETWORKS, "net_name", {"depth": 20, "widen_factor": 1, "hidden_dims": "7", "hidden_act": "tanh", "out_act": "tanh"}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ADDED)
def test_flags_count_that_an_entry_names_and_all_of_them_if_it_takes_any(monkeypatch, kind):
    registry, word, flags, more = ADDED[kind]

    def number() -> int:
        """Different runs among those with one flag changed, and none."""
        changes = [{}, *({name: value} for name, value in flags.items())]
        configs = [unflatten(RunConfig, more | {word: "added"} | change) for change in changes]
        return len({run_folder(config, None).path.name for config in configs})

    def enter(function: Callable) -> None:
        monkeypatch.setitem(registry, "added", SPECS[kind](function) if kind in SPECS else function)

    enter(taking("**options"))
    assert number() == 1 + len(flags)
    enter(taking())
    assert number() == 1
    enter(taking(f"*, {next(iter(flags))}"))
    assert number() == 2
    enter(functools.partial(taking("data, *, " + ", ".join(flags)), "given"))
    assert number() == 1 + len(flags)


SPECS = {
    "regulariser": OfOutputs,
    "data set": lambda load: DatasetSpec("added", load),
    "network": lambda build: NetworkSpec("added", build, head=lambda network: network),
}


def taking(parameters: str = "") -> Callable:
    """A function with these parameters that does nothing."""
    return eval(f"lambda {parameters}: None")


def test_a_function_gets_the_flags_that_it_names_and_no_others():
    config = TrainConfig(momentum=0.3, n_epochs=7)
    assert options_of(taking("a, *, momentum, n_epochs"), config) == {"momentum": 0.3, "n_epochs": 7}
    assert options_of(taking("a, momentum"), config) == {}
    assert options_of(taking("a, *, lr, **more"), config) == flatten(config)
    assert options_of(taking("*, momentum, loader_name"), RunConfig(train=config)) == {"momentum": 0.3, "loader_name": "digits"}
    assert with_options(lambda a, *, n_epochs: a + n_epochs, config)(1) == 8
    with pytest.raises(TypeError, match="'momentun', but TrainConfig has no such flag"):
        options_of(taking("*, momentun"), config)


# ------------------------------------------------------------------------------------------------- what is read


def tied(cls: type[Config], word: str) -> set[str]:
    """Flags that count for some words of a registry's flag alone."""
    conditions = {name: field.metadata["flag"].when for name, field in all_flags(cls).items()}
    return {name for name, found in conditions.items() if any(isinstance(one.get(word), Readers) for one in found)}


READ = {  # the flags of each registry that only some of its entries read, entry by entry
    "data set": {
        "digits": {"test_size", "split_seed"}, "toy": {"test_size", "split_seed", "root", "filename"},
        **dict.fromkeys(("mnist", "fmnist", "svhn", "tiny_imagenet", "cifar100"), ("root", "download", "verify_data")),
        "cifar10": {"root", "download", "verify_data", "human_set"},
        "npz": {"test_size", "split_seed", "root", "filename"},
        "folder": {"test_size", "split_seed", "root", "image_size", "image_cache"},
    },
    "network": {
        "mlp": {"hidden_dims", "hidden_act", "out_act"}, "resnet": {"depth", "widen_factor"}, "preresnet": {"depth"},
        "wide_resnet": {"depth", "widen_factor", "dropRate"},
        "densenet": {"depth", "growthRate", "compressionRate", "dropRate", "dense_block"},
        **dict.fromkeys(("mnist_lenet", "alexnet", "mnist_alexnet", "vgg11", "vgg13_bn"), ()),
    },
    "schedule": {"stepwise": {"lr_milestones", "lr_gamma"}, "exponential": {"lr_gamma"}, "cosine": (), "constant": ()},
    "optimiser": {"sgd": {"momentum", "nesterov"}, "adam": (), "adamw": ()},
    "noise method": {
        "symmetric": {"noise_ratio"}, "symmetric_inclusive": {"noise_ratio"}, "asymmetric": {"noise_ratio"}, "human": (),
    },
    "regulariser": {"jacobian": {"reg_weight"}, "fisher": {"reg_weight"}, "gradient": {"reg_weight"}},
    "mix": {"none": (), "mixup": {"mix_alpha"}, "cutmix": {"mix_alpha"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_the_flags_that_count_with_an_entry_are_those_that_it_reads(kind):
    registry, word, _, _ = ADDED[kind]
    flags = all_flags(RunConfig)
    found = {}
    for entry in registry:
        found[entry] = {
            name for name in tied(RunConfig, word)
            if any(entry in condition[word] for condition in flags[name].metadata["flag"].when if word in condition)
        }  # fmt: skip
    assert {entry: found[entry] for entry in READ[kind]} == {entry: set(names) for entry, names in READ[kind].items()}


@pytest.mark.parametrize("name", NETWORKS_TRIED)
def test_a_network_says_whether_it_has_batch_norm(name):
    network, _ = small_network(name)
    assert NETWORKS[name].batch_norm == any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_an_added_network_that_says_nothing_may_have_batch_norm(parts):
    words = all_flags(TrainConfig)["sync_batch_norm"].metadata["flag"].when[0]["net_name"]
    assert {"resnet", "vgg11_bn", "plain"} <= set(words)
    assert {"mlp", "mnist_lenet", "vgg11"}.isdisjoint(words)
    assert len(words) == len(set(words)) < len(NETWORKS)


def test_every_flag_that_an_entry_reads_is_one_and_every_tie_names_its_own_flag():
    configs = {"loader_name": DataConfig(), "noise_method": DataConfig(), "net_name": NetworkConfig()}
    for registry, word, _, _ in ADDED.values():
        for entry in registry.values():
            for function in functions_of(entry):
                options_of(function, configs.get(word, TrainConfig()))
    for name, field in all_flags(RunConfig).items():
        for values in (values for condition in field.metadata["flag"].when for values in condition.values()):
            assert not isinstance(values, Readers) or values.flag == name


def test_tensors_that_an_optimiser_keeps_are_counted_by_asking_it(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", lambda weights, *, lr: torch.optim.RMSprop(weights, lr, momentum=0.9))
    kept = {name: tensors_kept(with_options(OPTIMIZERS[name], TrainConfig())) for name in OPTIMIZERS}
    assert kept == {"sgd": 1, "adam": 2, "adamw": 2, "rmsprop": 2}
    assert TrainConfig(optimizer_name="adamw", ema=0.9).tensors_kept() == 3
    assert tensors_kept(with_options(OPTIMIZERS["sgd"], TrainConfig(momentum=0))) == 0
