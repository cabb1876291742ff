"""--eval_every K: the same run bit for bit, with losses and accuracies of some epochs alone, and readers that know of it."""

import json
import math
import re

import pandas
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import run as command_line
from helper.plotter.columns import read_columns
from helper.plotter.training import noisy_performance, performance
from helper.progress import Task
from helper.schema.config import FlagError, unflatten
from helper.tables import newest_cells
from loader.main import published_sizes
from network.mlp import MLP
from optim.checkpoint import load_latest
from optim.columns import SPLIT_COLUMNS
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import stored_config
from optim.trackers.rows import NewRows
from optim.train_config import TrainConfig
from study.reporting.aggregate import curves
from study.sweeping.plan import PlannedRun, plan
from study.sweeping.work import passes_to_come, work_of
from tests.outcome import TIMING, outcome
from tests.stops import sigterm_after

TRAINING = ("loss_train", "acc_train", "entropy_train", *SPLIT_COLUMNS)
OTHERS = ("loss_val", "acc_val", "loss_test", "acc_test")
FLAGS = (
    "--figures", 0, "--n_epochs", 5, "--lr_milestones", "3", "--limit_train", 160, "--limit_test", 80, "--val_size", 0.25,
    "--batch_size", 32, "--hidden_dims", "8", "--save_fisher", 0, "--save_snr", 0, "--save_epochs", "all",
)  # fmt: skip
CHANGING = ("--mode", "dynamic", "--mask_every", 2, "--mask_end", 0.8)
RUNS = {
    "dense": (),
    "label noise": ("--train_noisy", 1),
    "averaged weights": ("--ema", 0.9),
    "a mask that changes": CHANGING,
    "statistics anew after a change": (
        *CHANGING, "--net_name", "resnet", "--depth", 8, "--widen_factor", 1, "--recalibrate_bn", 1, "--sparse_step", 0,
    ),
    "SNR of the steps": ("--save_snr", 1, "--snr_mode", "online"),
    "by a budget": ("--mode", "sparse-scratch", "--train_budget", 0.5),
    "a round": ("--mode", "iterative", "--prune_step", 0.5, "--prune_ratio", 0.5, "--rewind_epoch", 1),
}  # fmt: skip


def flags_of(name: str) -> tuple:
    """Of one of RUNS: FLAGS without those that it has itself, and without those that its network does not know."""
    own = RUNS[name]
    given = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True))
    left_out = [*own[::2], *(["--hidden_dims"] if "--net_name" in own else [])]
    return (*own, *(word for flag, value in given.items() if flag not in left_out for word in (flag, value)))


def history(folder) -> dict[int, dict[str, str]]:
    """{epoch: its row}, without what differs between equal runs."""
    rows = RunFolder(folder).history(noisy=True).rows
    return {int(row["epoch"]): {name: cell for name, cell in row.items() if name not in TIMING} for row in rows}


def filled(folder, column: str) -> set[int]:
    return {epoch for epoch, row in history(folder).items() if row[column]}


def equal(a, b) -> bool:
    """Of two states: the same keys, types, shapes and bits."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def state_of(folder) -> dict:
    """Everything that the last checkpoint holds, the hashes of all kept weights too, but for the hash of history.csv."""
    return {name: value for name, value in load_latest(RunFolder(folder).checkpoint).items() if name != "tables"}


def evaluated_by_hand(every: int, last: int, first: int = 0) -> set[int]:
    return {first, last} | {epoch for epoch in range(first, last) if epoch % every == 0}


def check_same_but_for_rows(plain, sparing, evaluated: set[int]) -> None:
    assert plain.name == sparing.name
    assert equal(state_of(plain), state_of(sparing))
    whole = history(plain)
    assert history(sparing) == {
        epoch: row if epoch in evaluated else row | dict.fromkeys((*TRAINING, *OTHERS), "") for epoch, row in whole.items()
    }
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (plain, sparing)]
    names = [name for name in summaries[0] if name.startswith(("acc_", "loss_"))]
    assert "acc_test" in names
    assert [summaries[0][name] for name in names] == [summaries[1].get(name) for name in names]


# ------------------------------------------------------------------------------------------------------------ the run


@pytest.mark.parametrize("every", [3, 9])
@pytest.mark.parametrize("name", RUNS)
def test_it_changes_no_weight_and_leaves_cells_empty_between_evaluated_epochs(name, every, train, tmp_path):
    plain = train(*flags_of(name), root=tmp_path / "plain")
    sparing = train(*flags_of(name), "--eval_every", every, root=tmp_path / "sparing")
    epochs = sorted(history(plain))
    assert filled(sparing, "acc_test") == evaluated_by_hand(every, epochs[-1], epochs[0])
    check_same_but_for_rows(plain, sparing, filled(sparing, "acc_test"))


@pytest.mark.compiler
def test_sparse_steps_are_the_same_without_a_pass_between_them(train, tmp_path):
    flags = (*FLAGS, *CHANGING, "--prune_ratio", 0.95, "--sparse_step", 1)
    plain, sparing = train(*flags, root=tmp_path / "a"), train(*flags, "--eval_every", 4, root=tmp_path / "b")
    check_same_but_for_rows(plain, sparing, {0, 4, 5})


@pytest.mark.parametrize(("epoch", "step"), [(0, None), (1, 2), (3, None), (4, 3)])
def test_a_run_that_was_interrupted_anywhere_ends_the_same(epoch, step, train, tmp_path):
    plain = train(*FLAGS, root=tmp_path / "plain")
    words = (*FLAGS, "--eval_every", 3, "--results_root", tmp_path / "sparing")
    with sigterm_after(epoch, step):
        assert outcome(command_line.main, *words).code == 75
    check_same_but_for_rows(plain, outcome(command_line.main, *words).folder, {0, 3, 5})


@pytest.mark.parametrize(
    ("before", "after", "evaluated"), [(3, 1, {0, 3, 4, 5}), (1, 4, {0, 1, 2, 3, 4, 5}), (2, 9, {0, 2, 5})]
)
def test_a_run_goes_on_with_another_one_and_has_rows_of_both(before, after, evaluated, train, tmp_path):
    plain = train(*FLAGS, root=tmp_path / "plain")
    words = (*FLAGS, "--results_root", tmp_path / "both", "--eval_every")
    with sigterm_after(3):
        assert outcome(command_line.main, *words, before).code == 75
    both = outcome(command_line.main, *words, after).folder
    check_same_but_for_rows(plain, both, evaluated)
    assert stored_config(RunFolder(both)).train.eval_every == after


def test_a_finished_run_stays_as_it_is_with_another_one(train):
    folder = train(*FLAGS, "--eval_every", 3)
    before = (folder / "history.csv").read_bytes()
    assert train(*FLAGS) == folder
    assert (folder / "history.csv").read_bytes() == before


def test_averages_of_the_steps_cost_nothing_and_are_there_after_every_epoch(train, tmp_path):
    flags = (*FLAGS, "--train_eval", "running")
    plain, sparing = train(*flags, root=tmp_path / "a"), train(*flags, "--eval_every", 3, root=tmp_path / "b")
    assert filled(sparing, "loss_train") == set(range(6))
    assert filled(sparing, "acc_val") == filled(sparing, "loss_test") == {0, 3, 5}
    empty = dict.fromkeys(OTHERS, "")
    assert history(sparing) == {e: row | ({} if e in (0, 3, 5) else empty) for e, row in history(plain).items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_epoch_whose_snr_is_due_has_the_training_columns_by_the_way(precision, train, tmp_path):
    flags = (*FLAGS, "--save_snr", 1, "--snr_every", 2, "--snr_precision", precision)
    plain, sparing = train(*flags, root=tmp_path / "a"), train(*flags, "--eval_every", 3, root=tmp_path / "b")
    assert filled(sparing, "entropy_train") == {0, 2, 3, 4, 5}
    assert filled(sparing, "acc_test") == {0, 3, 5}
    assert RunFolder(plain).snr().rows == RunFolder(sparing).snr().rows
    whole = history(plain)
    for epoch, row in history(sparing).items():
        assert {name: cell for name, cell in row.items() if cell}.items() <= whole[epoch].items()


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "often", ""])
def test_what_is_no_number_of_epochs_is_refused(value, refuse):
    assert f"--eval_every {value}" in refuse("--eval_every", value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--select", "val", "--val_size", 0.1), "--eval_every 2 --select val"),
        (("--select", "test"), "--eval_every 2 --select test"),
        (("--save_best", 1), "--eval_every 2 --select test"),
        (("--select", "test", "--mode", "sparse-finetune"), "--eval_every 2 --select test"),
    ],
)
def test_the_best_of_all_epochs_is_not_looked_for_among_some(flags, words, refuse):
    """Which one is kept would depend on a flag that does not count in a run's name."""
    line = refuse(*flags, "--eval_every", 2)
    assert words in line
    assert "use --eval_every 1, or --select last" in line


def test_every_epoch_is_evaluated_where_the_best_is_looked_for():
    assert TrainConfig(select="test", eval_every=1).evaluates(7)
    with pytest.raises(FlagError, match="--eval_every 7"):
        TrainConfig(select="val", eval_every=7)


# ------------------------------------------------------------------------------------------------------------ readers


@pytest.mark.parametrize("running", [(), ("--train_eval", "running")])
def test_a_line_of_the_log_tells_what_the_epoch_has(running, train):
    folder = train(*FLAGS, *running, "--eval_every", 3)
    lines = re.findall(r"epoch (\d)/5  lr \S+(.*)  \S+ s$", (folder / "training.log").read_text(), re.MULTILINE)
    train_part, test_part = (rf"  {name} loss \d\.\d{{4}} acc \d\.\d{{4}}" for name in ("train", "test"))
    between = train_part if running else ""
    assert [int(epoch) for epoch, _ in lines] == list(range(6))
    for epoch, told in lines:
        assert re.fullmatch(train_part + test_part if int(epoch) in (0, 3, 5) else between, told), (epoch, told)


def test_a_bar_shows_the_newest_of_every_number(train, monkeypatch):
    shown = []
    monkeypatch.setattr(Task, "note", lambda task, **values: shown.append(values))
    folder = train(*FLAGS, "--train_eval", "running", "--eval_every", 3)
    rows = history(folder)
    columns = {"loss": "loss_train", "train": "acc_train", "test": "acc_test"}
    newest = {"loss": range(6), "train": range(6), "test": (0, 0, 0, 3, 3, 5)}
    assert shown == [
        {name: f"{float(rows[newest[name][epoch]][column]):.3f}" for name, column in columns.items()} for epoch in range(6)
    ]


@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_is_not_finite_ends_the_run_in_its_own_epoch(every, tmp_path):
    flags = (*FLAGS, "--hidden_dims", "8-8", "--lr", 1e30, "--eval_every", every, "--results_root", tmp_path)
    found = outcome(command_line.main, *flags)
    assert found.code == 1
    assert "the training loss or a weight is not finite in epoch 1:" in found.line


def test_the_newest_of_every_column_is_known_while_a_run_goes_on(tmp_path):
    path = tmp_path / "history.csv"
    assert newest_cells(path) == {}
    path.write_text("epoch,loss_train,acc_train,acc_test,loss_val\n3,0.5,0.75,0.625,\n4,0.4,,,\n5,,,,\n")
    assert newest_cells(path) == {"epoch": "5", "loss_train": "0.4", "acc_train": "0.75", "acc_test": "0.625"}
    path.write_text("epoch,loss_train\n3,0.5\n4")
    assert newest_cells(path) == {}


def test_lines_of_figures_go_through_the_epochs_that_are_there(train):
    folder = train(*FLAGS, "--train_noisy", 1, "--eval_every", 2)
    table = read_columns(folder / "history.csv")
    drawn = [line for figure in (performance(table), noisy_performance(table)) for axis in figure.axes for line in axis.lines]
    assert len(drawn) == 7 + 6
    for line in drawn:
        assert line.get_xdata().tolist() == [0, 2, 4, 5]
        assert not any(map(math.isnan, line.get_ydata()))


def test_curves_over_seeds_are_of_the_epochs_that_all_have(train):
    folders = [train(*FLAGS, "--random_state", seed, "--eval_every", every) for seed, every in ((1, 1), (2, 2), (3, 4))]
    tables = [pandas.read_csv(folder / "history.csv") for folder in folders]
    curve = curves(tables, "acc_test")
    assert curve["epoch"].tolist() == [0, 4, 5]
    means = [sum(float(history(folder)[epoch]["acc_test"]) for folder in folders) / 3 for epoch in (0, 4, 5)]
    assert curve["mean"].tolist() == pytest.approx(means)


def test_trackers_are_told_no_number_of_an_epoch_that_has_none(train):
    folder = RunFolder(train(*FLAGS, "--eval_every", 3))
    _, values = NewRows(folder).read()
    assert {epoch for epoch, numbers in values.items() if "history/acc_test" in numbers} == {0, 3, 5}
    assert all("history/lr" in numbers for numbers in values.values())
    assert all(math.isfinite(number) for numbers in values.values() for number in numbers.values())


# -------------------------------------------------------------------------------------------------------------- price


def planned(folder) -> PlannedRun:
    (run,) = plan([stored_config(RunFolder(folder))], fingerprint=lambda data: None)
    return run


class Evaluated:
    """Images that went through MLPs in eval mode, but for the two that a network is tried on."""

    def __enter__(self) -> "Evaluated":
        self.images = 0
        self.handle = register_module_forward_pre_hook(self.count)
        return self

    def count(self, module, inputs) -> None:
        if isinstance(module, MLP) and not module.training and len(inputs[0]) > 2:
            self.images += len(inputs[0])

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


PRICED = {
    "every third epoch": ("--eval_every", 3),
    "more than there are": ("--eval_every", 9),
    "with SNR between": ("--eval_every", 3, "--save_snr", 1, "--snr_every", 2),
    "with SNR throughout": ("--eval_every", 3, "--save_snr", 1),
    "averages of the steps": ("--eval_every", 2, "--train_eval", "running"),
}


@pytest.mark.parametrize("flags", PRICED.values(), ids=PRICED)
def test_the_images_of_a_runs_passes_are_those_that_it_is_priced_by(flags, tmp_path):
    words = (*FLAGS, *flags, "--results_root", tmp_path)
    with Evaluated() as before, sigterm_after(3):
        assert outcome(command_line.main, *words).code == 75
    (path,) = tmp_path.glob("*/*/*/*/")
    run = planned(path)
    left = work_of(run, published_sizes(run.config.data))
    with Evaluated() as after:
        assert outcome(command_line.main, *words).code == 0
    assert after.images == left.forward + left.gradient > 0
    for file in ("checkpoint.pt", "summary.json"):
        (path / file).unlink()
    whole = work_of(run, published_sizes(run.config.data))
    assert before.images + after.images == whole.forward + whole.gradient


def configured(**flags) -> RunConfig:
    return unflatten(RunConfig, flags)


def test_evaluated_epochs_are_counted_exactly():
    config = configured(n_epochs=100, eval_every=30, save_snr=False)
    assert passes_to_come(config, -1).other == [0, 30, 60, 90, 100]
    assert passes_to_come(config, 60).other == [90, 100]
    assert passes_to_come(config, 99).training == [100]
    assert passes_to_come(config, 100).other == []


def test_a_run_that_two_of_a_sweep_want_has_the_epochs_of_both():
    """Four is what divides 12, 8 and 20."""
    ways = [configured(mode="dense", eval_every=every, n_epochs=24) for every in (12, 8, 20)]
    (run,) = plan(ways, fingerprint=lambda data: None)
    assert run.config.train.eval_every == 4
    (run,) = plan([ways[0], ways[0]], fingerprint=lambda data: None)
    assert run.config.train.eval_every == 12
