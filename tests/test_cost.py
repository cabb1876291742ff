"""What a sweep is said to take, against counts by hand and against runs that were really made."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

import experiment
from helper.metrics.macs import count_macs
from helper.schema.config import FlagError, unflatten
from loader import loader_digits
from loader.main import DATASETS, DataConfig, Sizes, load_dataset, published_sizes
from network.main import build_network
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import stored_config
from study.sweeping import cost
from study.sweeping.cost import STEP, Cost, Reference, Speeds, choose_reference, makespan
from study.sweeping.dry_run import prices
from study.sweeping.plan import PlannedRun, plan
from study.sweeping.sweep_options import SweepConfig
from study.sweeping.work import FORWARD, Work, disk_of, measured_epochs, state_images, work_of
from tests.conftest import OWN_FILES, PUBLISHED

TRAIN, TEST = 1438, 359  # digits


def planned(root="nowhere", **flags) -> PlannedRun:
    """The last run that some flags plan: not its dense parent."""
    return plan([unflatten(RunConfig, {"results_root": str(root), **flags})], fingerprint=lambda data: None)[-1]


@pytest.fixture
def price(tmp_path, capsys):
    """price(text of a file, ..., flags=()) -> what the priced dry run prints; results under the test's own folder."""

    def call(*texts: str, flags=(), rate: float = 100.0) -> str:
        files = [tmp_path / f"{index}.yaml" for index in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text)
        words = [*files, "--dry_run", 1, "--images_per_second", rate, "--results_root", tmp_path / "results", *flags]
        with pytest.raises(SystemExit) as stop:
            experiment.main(["sweep", *map(str, words)])
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        return captured.out

    return call


def line_of(printed: str, name: str) -> list[str]:
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
    return line.replace(" M ", " ").split()[1:]


# ---------------------------------------------------------------------------------------------------------- sizes


def test_every_data_set_has_its_published_sizes():
    assert all(DataConfig(loader_name=name).published for name in PUBLISHED)
    assert [name for name in DATASETS if not DataConfig(loader_name=name).published] == list(OWN_FILES)


@pytest.mark.parametrize(
    "flags",
    [
        {}, {"test_size": 0.35, "val_size": 0.1}, {"limit_train": 301, "limit_test": 50, "val_size": 0.3},
        {"loader_name": "toy"}, {"loader_name": "toy_noisy", "val_size": 0.2},
    ],
)  # fmt: skip
def test_sizes_without_reading_are_those_of_the_loaded_data(flags, tmp_path):
    config = DataConfig(root=str(tmp_path), **flags)
    assert published_sizes(config) == Sizes.of(load_dataset(config))


def test_sizes_of_some_classes_are_the_share_rounded_up():
    sizes = published_sizes(DataConfig(limit_classes=3, val_size=0.1))
    train, test = math.ceil(1438 * 3 / 10), math.ceil(359 * 3 / 10)
    assert (sizes.train, sizes.val, sizes.test, sizes.n_classes) == (train - 43, 43, test, 3)


@pytest.mark.real_data
@pytest.mark.parametrize("flags", [{}, {"limit_classes": 7, "val_size": 0.1}])
def test_published_sizes_are_those_of_the_real_files(flags, data_root):
    config = DataConfig(loader_name="cifar100", root=str(data_root), verify_data=False, **flags)
    assert published_sizes(config) == Sizes.of(load_dataset(config))


def test_the_digits_are_those_that_scikit_learn_gives():
    bunch, source = load_digits(), loader_digits.load(test_size=0.2, split_seed=0)
    assert source.train_inputs.sum() + source.test_inputs.sum() == bunch.images.sum()
    found = {(tuple(x.flatten().tolist()), int(y)) for x, y in zip(source.test_inputs, source.test_labels, strict=True)}
    assert found <= {(tuple(map(int, x)), int(y)) for x, y in zip(bunch.data, bunch.target, strict=True)}
    assert (len(source.train_labels), len(source.test_labels)) == (TRAIN, TEST)


# ---------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("flags", "forward", "gradient"),
    [
        ({}, 4 * TEST, 4 * TRAIN),  # epoch 0 and three more
        ({"save_snr": 0}, 4 * (TEST + TRAIN), 0),
        ({"snr_mode": "online"}, 4 * (TEST + TRAIN), 0),
        ({"snr_mode": "online", "train_eval": "running"}, 4 * TEST + TRAIN, 0),
        ({"val_size": 0.1}, 4 * (TEST + 144), 4 * (TRAIN - 144)),
    ],
)
def test_passes_over_the_images_are_counted(flags, forward, gradient):
    run = planned(mode="sparse-scratch", n_epochs=3, lr_milestones="1", save_fisher=0, **flags)
    work = work_of(run, published_sizes(run.config.data))
    assert (work.training, work.forward, work.gradient, work.measuring) == (
        3 * (TRAIN - 144 if "val_size" in flags else TRAIN), forward, gradient, 0,
    )  # fmt: skip
    assert work.images == pytest.approx(work.training + forward / 3 + gradient)


def test_of_a_run_that_has_begun_the_epochs_to_come_are_left(tmp_path):
    run = planned(tmp_path, n_epochs=10, lr_milestones="1", metric_every=4)
    whole = work_of(run, published_sizes(run.config.data))
    run.folder.path.mkdir(parents=True)
    run.folder.checkpoint.touch()
    (run.folder.path / "history.csv").write_text("epoch\n" + "".join(f"{epoch}\n" for epoch in range(7)))  # 0..6
    left = work_of(run, published_sizes(run.config.data))
    assert (left.training, left.forward, left.gradient) == (4 * TRAIN, 4 * TEST, 4 * TRAIN)
    assert left.measuring == pytest.approx(whole.measuring * 2 / 4)  # 8 and 10 of 0, 4, 8 and 10


def test_a_run_with_more_epochs_than_its_budget_was_expected_to_allow_has_none_to_come(tmp_path):
    run = planned(tmp_path, mode="sparse-scratch", train_budget=0.5, n_epochs=4, lr_milestones="1")
    run.folder.path.mkdir(parents=True)
    run.folder.checkpoint.touch()
    (run.folder.path / "history.csv").write_text("epoch\n" + "".join(f"{epoch}\n" for epoch in range(100)))
    left = work_of(run, published_sizes(run.config.data))
    assert (left.training, left.forward, left.gradient) == (0, 0, 0)


def test_states_are_measured_at_the_start_on_the_way_and_at_the_end():
    assert measured_epochs(planned(n_epochs=10, metric_every=5).config) == [0, 5, 10]
    assert measured_epochs(planned(n_epochs=10).config) == [0, 10]


EXACT = 4 * 10 * 1000  # four forward passes a label, ten labels, the 1,000 examples of an estimator that stops at no precision
PRECISE = 4 * (256 + 1.25 / 0.05**2)  # a pilot's draws and those that 5 % take, four forward passes each


@pytest.mark.parametrize(
    ("flags", "forward_passes"),
    [
        ({}, PRECISE + 1024),
        ({"metric_rtol": 0.1}, 4 * (256 + 1.25 / 0.1**2) + 1024),
        ({"metric_split": "test"}, PRECISE + TEST),  # all of them are scored
        ({"metric_rtol": 0}, 4 * TRAIN),
        ({"metric_rtol": 0, "limit_train": 300}, 4 * 300 * 4),  # 1,000 draws at least
        ({"monte_carlo_samples": 200}, 4 * 200 + 1024),
        ({"fisher_method": "exact"}, EXACT),
        ({"fisher_method": "vmap", "monte_carlo_trials": 3}, 4 * 3 * 1000),
        ({"fisher_method": "exact", "train_noisy": 1}, 2 * EXACT),  # true and wrong labels apart
        ({"fisher_method": "exact", "train_noisy": 1, "metric_split": "test"}, 4 * 10 * TEST),
        ({"fisher_method": "exact", "save_jacobian": 1}, EXACT + PRECISE + 1024),
        # products of two training steps: 40 and 4 runs of 40, 10 for residuals; of 500 images 20 for the halves
        ({"save_fisher": 0, "save_spectrum": 1}, 3 * 2 * TRAIN * (40 * (1 + 4) + 10)),
        ({"save_fisher": 0, "save_spectrum": 1, "monte_carlo_samples": 500}, 3 * 2 * 500 * (40 * (1 + 4) + 10 + 20)),
    ],
)
def test_a_state_is_priced_by_its_draws(flags, forward_passes):
    config = planned(**flags).config
    assert state_images(config, published_sizes(config.data)) == pytest.approx(forward_passes / 3)


# ----------------------------------------------------------------------------------------------------------- hours


def test_passes_are_timed_each_by_its_own_speed(monkeypatch):
    run = planned(n_epochs=3, lr_milestones="1", save_fisher=0)
    monkeypatch.setattr(cost, "measured_speeds", lambda config: Speeds(train=1.0, forward=1e-3, gradient=1e-6))
    found = cost.cost_of(run)
    assert found.seconds == pytest.approx(3 * TRAIN + 1e-3 * 4 * TEST + 1e-6 * 4 * TRAIN, rel=1e-12)
    assert found.work == work_of(run, published_sizes(run.config.data))


def test_the_table_of_prices_adds_up_images_hours_and_bytes():
    small, big = planned(hidden_dims="8"), planned(hidden_dims="16")
    work = Work(training=2.5e6, forward=3e6, gradient=0.5e6, measuring=0.1e6, bytes=30_000_000, files=12)
    printed = prices([small, big, big], [Cost(work, 1800.0), Cost(work, 5400.0), Cost(work, 0.0)])  # the last one is finished
    assert line_of(printed, "digits/mlp-8") == ["1", "2.5", "1.5", "0.1", "0.50", "30", "12"]
    assert line_of(printed, "digits/mlp-16") == ["1", "2.5", "1.5", "0.1", "1.50", "30", "12"]
    assert line_of(printed, "total") == ["2", "5.0", "3.0", "0.2", "2.00", "60", "24"]


def test_the_reference_is_the_network_with_most_to_train_and_a_step_is_no_larger_than_the_data():
    big, small = planned(hidden_dims="1024-1024", n_epochs=1), planned(hidden_dims="512-512", n_epochs=40)
    assert choose_reference([big, small], 500.0, None).name == "digits/mlp-512-512"
    few = planned(hidden_dims="4", limit_train=50)
    reference = choose_reference([big, few], 500.0, None)
    assert reference.speed(few, published_sizes(few.config.data)) == pytest.approx(50 / STEP)


def test_hours_are_images_over_the_speed_and_children_wait_for_their_parent(price):
    grid = "flags: {n_epochs: 5, lr_milestones: 1, save_fisher: 0}\ngrid: {mode: sparse-scratch, prune_ratio: [0.5, 0.8, 0.9]}"
    printed = price(grid, flags=("--jobs", 2), rate=20)
    seconds = (5 * TRAIN + 6 * TRAIN + 6 * TEST / 3) / 20  # of each of the four runs
    runs, training, evaluation, _, hours, _, _ = line_of(printed, "digits/mlp-128-64")
    assert (runs, training, evaluation) == ("4", f"{20 * TRAIN / 1e6:.1f}", f"{24 * (TRAIN + TEST / 3) / 1e6:.1f}")
    assert float(hours) == pytest.approx(4 * seconds / 3600, abs=0.006)
    assert makespan([seconds] * 4, [None, 0, 0, 0], 2) == pytest.approx(3 * seconds)  # the parent; two; one
    assert f"about {round(3 * seconds / 60)} min with --jobs 2" in printed


def test_another_network_is_as_much_faster_as_it_multiplies_less_but_no_step_is_below_its_least_time():
    big, small, tiny = (planned(hidden_dims=dims) for dims in ("1024-1024", "512-512", "4"))
    sizes = published_sizes(big.config.data)

    def macs(run: PlannedRun) -> int:
        return count_macs(build_network(run.config.network, (1, 8, 8), 10, torch.Generator()), (1, 8, 8))[0]

    reference = choose_reference([small, big, tiny], 500.0, None)
    assert reference == Reference("digits/mlp-1024-1024", 500.0, macs(big))
    assert reference.speed(big, sizes) == 500
    assert reference.speed(small, sizes) == pytest.approx(500 * macs(big) / macs(small))
    assert reference.speed(tiny, sizes) == pytest.approx(128 / STEP)
    assert choose_reference([small, big], 500.0, "digits/mlp-512-512").macs == macs(small)


def test_several_files_share_their_runs_and_no_data_is_needed(price):
    flags = "flags: {loader_name: cifar100, root: nowhere, net_name: resnet, depth: 8, widen_factor: 1, sparse_step: 0}\n"
    printed = price(
        flags + "grid: {mode: sparse-finetune, random_state: [1, 2]}", flags + "grid: {mode: lottery, random_state: [2, 3]}"
    )
    assert line_of(printed, "cifar100/resnet8x1")[:2] == ["7", f"{7 * 30 * 50_000 / 1e6:.1f}"]  # three parents
    assert "names are those of the published data files" in printed
    assert "no estimate" not in printed


# ------------------------------------------------------------------------------------------------------------ disk


FIGURES = {"mode": "sparse-finetune", "n_epochs": 3, "optimizer_name": "adam", "lr": 0.001}
ROWS = {
    "loader_name": "digits_noisy", "net_name": "resnet", "depth": 8, "widen_factor": 1, "n_epochs": 2,
    "limit_train": 256, "metric_every": 1, "save_hessian": 1, "metric_rtol": 0.3, "figures": 0,
}  # fmt: skip
FEW = {
    "n_epochs": 80, "eval_every": 40, "save_epochs": "none", "hidden_dims": "4", "limit_train": 160, "save_snr": 0,
    "save_fisher": 0, "figures": 0,
}  # fmt: skip
STATES = {"hidden_dims": "600-600", "n_epochs": 2, "limit_train": 256, "save_fisher": 0, "figures": 0}


@pytest.mark.parametrize(
    ("flags", "within"),
    [
        (FIGURES, 0.15), (ROWS, 0.15), (FEW, 0.15), (STATES, 0.02), (STATES | {"momentum": 0}, 0.02),
        (STATES | {"optimizer_name": "adam", "lr": 0.001}, 0.02), (STATES | {"mode": "sparse-scratch", "sparse_step": 0}, 0.02),
        pytest.param(STATES | {"mode": "sparse-scratch"}, 0.02, marks=pytest.mark.compiler),
        pytest.param(STATES | {"mode": "gradual", "mask_begin": 0, "mask_end": 0.25}, 0.02, marks=pytest.mark.compiler),
        (STATES | {"mode": "sparse-scratch", "snr_mode": "online"}, 0.02),
    ],
)  # fmt: skip
def test_a_finished_run_has_the_files_and_nearly_the_bytes_that_were_said(train, flags, within):
    folder = train(*(word for name, value in flags.items() for word in (f"--{name}", value)), "--lr_milestones", 1)
    config = stored_config(RunFolder(folder))
    files = [path for path in folder.rglob("*") if path.is_file()]
    said, n_files = disk_of(config, published_sizes(config.data))
    assert len(files) == n_files
    assert sum(path.stat().st_size for path in files) == pytest.approx(said, rel=within)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"images_per_second": 100}, "it needs --dry_run 1"),
        ({"reference": "a/b", "dry_run": 1}, "--reference says what --images_per_second"),
        ({"images_per_second": 0, "dry_run": 1}, "--images_per_second 0: must be at least"),
        ({"images_per_second": "fast", "dry_run": 1}, "--images_per_second fast: expected a number"),
        ({"images_per_second": "nan", "dry_run": 1}, "--images_per_second nan: expected a number"),
    ],
)
def test_speeds_that_make_no_price_are_refused(flags, words):
    with pytest.raises(FlagError, match=words):
        SweepConfig(**flags)


def test_a_reference_that_the_sweep_has_not_is_refused_with_those_it_has():
    with pytest.raises(FlagError, match=r"no run of the sweep is one of digits/mlp-128-64; did you mean digits/mlp-128-64\?"):
        choose_reference([planned()], 100.0, "digits/mlp-128-32")


def test_work_adds_up():
    assert Work(1, 3, 2, 1, 10, 2) + Work(1, 0, 0, 0, 5, 1) == Work(2, 3, 2, 1, 15, 3)
    assert Work(training=1, forward=3, gradient=2, measuring=4).images == pytest.approx(1 + 3 * FORWARD + 2 + 4)
