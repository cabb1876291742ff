"""`--tracker wandb` with the real package, offline; what it writes is read back from its own log."""

import json
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import wandb
import yaml
from wandb.proto.wandb_internal_pb2 import Record

import optim.trackers.wandb
from helper.schema.config import unflatten
from helper.system.signals import Interrupted
from optim.config import RunConfig
from optim.main import train_run
from optim.trackers.wandb import WandB
from tests.stops import StopsInSecondEpoch
from tests.test_run import rows
from tests.test_tracker import tables

TRACKED = ("--tracker", "wandb")
SHORT = ("--figures", 0, "--n_epochs", 2, "--save_snr", 0, "--save_fisher", 0)
BLOCK, HEADER = 1 << 15, 7  # of LevelDB's log, which a .wandb file is behind its own first bytes


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No settings of the user count."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


def logs(folder: Path) -> list[Path]:
    """The W&B logs in a run folder, once the service has written what it was given."""
    wandb.teardown()
    return sorted((folder / "wandb/wandb").glob("offline-run-*/*.wandb"))


def records(path: Path) -> Iterator[Record]:
    """The records of a W&B log."""
    content, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def items(updates: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{name: [(epoch, value)]} of the only log of a run folder, in its order."""
    (path,) = logs(folder)
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = items(record.history.item)
            for name, value in row.items():
                if isinstance(value, int | float) and not name.startswith("_") and "epoch" in row:
                    found.setdefault(name, []).append((row["epoch"], value))
    return found


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records(logs(folder)[-1]):
        if record.WhichOneof("record_type") == "summary":
            found |= items(record.summary.update)
    return found


def history_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    table = rows(folder, "history")
    columns = {f"history/{name}": [(int(row["epoch"]), float(row[name])) for row in table if row[name]] for name in table[0]}
    return {tag: cells for tag, cells in columns.items() if cells and tag != "history/epoch"}


def of_history(found: dict[str, list]) -> dict[str, list]:
    return {tag: cells for tag, cells in found.items() if tag.startswith("history/")}


def test_every_number_of_the_tables_is_logged_at_its_epoch_with_flags_figures_and_results(train):
    folder = train("--n_epochs", 2, "--metric_every", 1, *TRACKED)
    found = points(folder)
    assert of_history(found) == history_points(folder)
    for row in rows(folder, "snr"):
        assert (int(row["epoch"]), float(row["snr"])) in found[f"snr/fixed/{row['layer']}"]
    fisher = [(int(r["epoch"]), float(r["value"])) for r in rows(folder, "metrics") if r["layer"] == "all"]
    assert sorted(found["fisher/train/all/layers/spectral-fim-rtol0.05/value"]) == sorted(fisher)
    (path,) = logs(folder)
    kinds = {record.WhichOneof("record_type"): record for record in records(path)}
    assert items(kinds["run"].run.config.update).items() >= yaml.safe_load((folder / "config.yaml").read_text()).items()
    assert (kinds["run"].run.project, kinds["run"].run.display_name) == ("price-of-sparsity", folder.name)
    assert kinds["exit"].exit.exit_code == 0
    final = json.loads((folder / "summary.json").read_text())
    assert summary_of(folder)["final/acc_test"] == final["acc_test"]
    assert summary_of(folder)["final/fisher"] == final["metrics"]["fisher"]["value"]
    images = {path.name.split("_")[0] for path in path.parent.glob("files/media/images/figures/*.png")}
    assert images == {path.stem.split("_")[0] for path in (folder / "figures").glob("*.png")}


def test_a_resumed_run_goes_on_in_the_same_wandb_run_with_every_epoch_once(tmp_path):
    flags = {"n_epochs": 3, "limit_train": 200, "batch_size": 50, "figures": 0, "save_snr": 0, "save_fisher": 0}
    config = unflatten(RunConfig, {"tracker": "wandb", "results_root": str(tmp_path), **flags})
    with pytest.raises(Interrupted):
        train_run(config, StopsInSecondEpoch(n_steps=4, steps=2))
    (begun,) = logs(next(tmp_path.glob("*/*/*/*")))
    folder = train_run(config)
    (path,) = logs(folder)  # the first one has nothing that this one lacks
    assert path.name == begun.name == f"run-{(folder / 'wandb/id').read_text()}.wandb"
    assert path != begun
    assert of_history(points(folder)) == history_points(folder)


def test_a_wandb_run_that_has_rows_gets_the_others(tmp_path, monkeypatch):
    """As of a server, which offline there is none of: the run comes back with its numbers."""
    sent: list[dict[str, Any]] = []
    online = SimpleNamespace(summary={"rows_sent/history": 2, "rows_sent/metrics": 1}, log=sent.append, offline=False)
    monkeypatch.setattr(optim.trackers.wandb, "started", lambda folder, place: online)
    folder = tables(tmp_path, epochs=3, measured=[0, 1])
    tracker = WandB(folder, tmp_path / "wandb")
    tracker.epoch(2)
    assert [(row["epoch"], row.get("history/acc_test"), row.get("fisher/train/all/layers/value")) for row in sent] == [
        (1, None, 1.5),
        (2, 0.2, None),
    ]
    assert online.summary["rows_sent/history"] == 3
    tables(tmp_path, epochs=4, measured=[0, 1])
    tracker.epoch(3)
    assert [row["epoch"] for row in sent] == [1, 2, 3]


def test_measurements_of_earlier_epochs_that_come_later_are_logged(train):
    flags = ("--n_epochs", 2, "--save_snr", 0, "--figures", 0, *TRACKED)
    folder = train(*flags)
    train(*flags, "--metric_rtol", 0.02)
    for rtol in (0.05, 0.02):
        assert {step for step, _ in points(folder)[f"fisher/train/all/layers/spectral-fim-rtol{rtol}/value"]} == {0, 2}


def test_a_repeated_run_is_another_wandb_run(train):
    folder = train(*SHORT, *TRACKED)
    before = (folder / "wandb/id").read_text()
    train(*SHORT, "--overwrite", 1)
    assert not list((folder / "wandb").iterdir())
    train(*SHORT, *TRACKED, "--overwrite", 1)
    assert (folder / "wandb/id").read_text() != before
    assert of_history(points(folder)) == history_points(folder)


def test_an_id_that_is_none_is_drawn_anew(tmp_path):
    (tmp_path / "id").write_text("../../x")
    known = optim.trackers.wandb.own_id(tmp_path)
    assert len(known) == 8
    assert optim.trackers.wandb.own_id(tmp_path) == known


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_killed_service_costs_nothing_but_a_warning(train, monkeypatch):
    usual = WandB.send

    def killed_in_epoch_one(tracker: WandB) -> None:
        if len(rows(tracker.folder.path, "history")) == 2:
            for process in psutil.Process().children(recursive=True):
                if "wandb" in process.name():
                    process.send_signal(signal.SIGKILL)
                    process.wait(10)
        usual(tracker)

    monkeypatch.setattr(WandB, "send", killed_in_epoch_one)
    folder = train(*SHORT, "--n_epochs", 3, *TRACKED)
    assert (folder / "summary.json").exists()
    assert (folder / "training.log").read_text().count("--tracker wandb: ") == 1
    assert of_history(points(folder)) == history_points(folder)


@pytest.mark.parametrize("error", [RuntimeError("it is broken"), wandb.errors.CommError("no network"), OSError(28, "full")])
def test_a_package_that_raises_costs_nothing_but_a_warning(train, monkeypatch, error):
    def refuse(**options: object) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", refuse)
    folder = train(*SHORT, *TRACKED)
    assert (folder / "summary.json").exists()
    said = [line for line in (folder / "training.log").read_text().splitlines() if "--tracker wandb" in line]
    assert len(said) == 1
    assert "the tables have everything" in said[0]


def test_where_nobody_is_logged_in_it_is_written_offline_and_nobody_is_asked(train, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("someone was asked"))
    wandb.teardown()
    folder = train(*SHORT, *TRACKED)
    assert "written offline, to be sent by wandb sync" in (folder / "training.log").read_text()
    assert of_history(points(folder)) == history_points(folder)


def test_the_runs_of_a_sweep_are_a_group_unless_the_user_has_one(monkeypatch, tmp_path):
    assert optim.trackers.wandb.join_sweep(tmp_path, "Figure 1") == {"WANDB_RUN_GROUP": "Figure 1"}
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert optim.trackers.wandb.join_sweep(tmp_path, "Figure 1") == {"WANDB_RUN_GROUP": "mine"}
