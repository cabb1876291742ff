"""`--tracker mlflow` with the real package and its local store, which is read back by its own client."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

import experiment
import optim.trackers.mlflow
from helper.schema.config import unflatten
from helper.system.signals import Interrupted
from optim.config import RunConfig
from optim.main import train_run
from optim.trackers.mlflow import PARENT, MLflow, Store, join_sweep
from tests.outcome import outcome
from tests.stops import StopsInSecondEpoch
from tests.test_run import rows
from tests.test_tracker import tables
from tests.test_wandb import history_points

TRACKED = ("--tracker", "mlflow")
SHORT = ("--figures", 0, "--n_epochs", 2, "--save_snr", 0, "--save_fisher", 0)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A store with its tables, which take seconds to make."""
    root = tmp_path_factory.mktemp("store")
    Store(root)
    return root / "mlflow.db"


@pytest.fixture(autouse=True)
def local(monkeypatch, tmp_path, empty_store):
    """The local store is there, of which nothing that the user has set counts."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", PARENT))]:
        monkeypatch.delenv(name)
    shutil.copy(empty_store, tmp_path)


def client(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{root.resolve() / 'mlflow.db'}")


def run_of(folder: Path) -> Run:
    return client(folder.parents[3]).get_run(json.loads((folder / "mlflow/run.json").read_text())["run"])


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    run = run_of(folder)
    return [(m.step, m.value) for m in client(folder.parents[3]).get_metric_history(run.info.run_id, name)]


def of_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return {name: points(folder, name) for name in run_of(folder).data.metrics if name.startswith("history/")}


def test_every_number_of_the_tables_is_a_metric_the_flags_are_parameters_and_files_are_artifacts(train):
    folder = train("--n_epochs", 2, "--metric_every", 1, *TRACKED)
    run = run_of(folder)
    assert of_history(folder) == history_points(folder)
    for row in rows(folder, "snr"):
        assert (int(row["epoch"]), float(row["snr"])) in points(folder, f"snr/fixed/{row['layer']}")
    fisher = [(int(r["epoch"]), float(r["value"])) for r in rows(folder, "metrics") if r["layer"] == "all"]
    assert sorted(points(folder, "fisher/train/all/layers/spectral-fim-rtol0.05/value")) == sorted(fisher)
    flags = yaml.safe_load((folder / "config.yaml").read_text())
    assert run.data.params == {name: str(value) for name, value in flags.items()}
    assert (run.info.status, run.info.run_name, run.data.tags["mode"]) == ("FINISHED", folder.name, "dense")
    final = json.loads((folder / "summary.json").read_text())
    assert points(folder, "final/acc_test") == [(2, final["acc_test"])]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in artifacts.glob("figures/*")} == {path.name for path in (folder / "figures").glob("*.png")}
    assert (artifacts / "summary.json").read_text() == (folder / "summary.json").read_text()


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_with_every_epoch_once(tmp_path):
    flags = {"n_epochs": 3, "limit_train": 200, "batch_size": 50, "figures": 0, "save_snr": 0, "save_fisher": 0}
    config = unflatten(RunConfig, {"tracker": "mlflow", "results_root": str(tmp_path), **flags})
    with pytest.raises(Interrupted):
        train_run(config, StopsInSecondEpoch(n_steps=4, steps=2))
    (folder,) = tmp_path.glob("*/*/dense/*")
    begun = run_of(folder)
    assert begun.info.status == "RUNNING"
    assert train_run(config) == folder
    assert run_of(folder).info.run_id == begun.info.run_id
    assert run_of(folder).info.status == "FINISHED"
    seconds = of_history(folder).pop("history/seconds")
    assert [epoch for epoch, _ in seconds] == [0, 1, 2, 3]
    assert points(folder, "history/acc_test") == history_points(folder)["history/acc_test"]


def test_measurements_that_come_later_are_metrics_of_the_same_run(train):
    flags = ("--n_epochs", 2, "--save_snr", 0, "--figures", 0, *TRACKED)
    folder = train(*flags)
    before = run_of(folder).info.run_id
    train(*flags, "--metric_rtol", 0.02)
    assert run_of(folder).info.run_id == before
    for rtol in (0.05, 0.02):
        assert [step for step, _ in points(folder, f"fisher/train/all/layers/spectral-fim-rtol{rtol}/value")] == [0, 2]
    assert len(points(folder, "history/acc_test")) == 3


def test_a_repeated_run_and_one_whose_store_is_gone_are_new_ones(train, tmp_path, empty_store):
    folder = train(*SHORT, *TRACKED)
    ids = [run_of(folder).info.run_id]
    train(*SHORT, *TRACKED, "--overwrite", 1)
    ids.append(run_of(folder).info.run_id)
    shutil.copy(empty_store, tmp_path)
    train(*SHORT, *TRACKED)
    ids.append(run_of(folder).info.run_id)
    client(tmp_path).delete_run(ids[-1])
    train(*SHORT, *TRACKED)
    ids.append(run_of(folder).info.run_id)
    assert len(set(ids)) == 4
    assert of_history(folder) == history_points(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"run": 1}', '{"store": 1, "run": {}}', "\0"])
def test_a_note_of_the_run_that_is_none_counts_as_no_note(tmp_path, text):
    (tmp_path / "a/b/c").mkdir(parents=True)
    folder = tables(tmp_path / "a/b/c/run", epochs=1, measured=[])
    place = folder.path / "mlflow"
    place.mkdir()
    (place / "run.json").write_text(text)
    MLflow(folder, place).epoch(0)
    assert points(folder.path, "history/seconds") == [(0, 1.0)]


def test_the_store_is_made_with_its_experiment_and_not_twice(tmp_path, empty_store, monkeypatch):
    root = tmp_path / "new"

    def faster(store: Store, client: MlflowClient) -> str:
        shutil.copy(empty_store, store.root)  # another run was
        return "1"

    monkeypatch.setattr(Store, "experiment_of", faster)
    Store(root)
    assert (root / "mlflow.db").read_bytes() == empty_store.read_bytes()
    assert [path.name for path in root.iterdir()] == ["mlflow.db"]


# ------------------------------------------------------------------------------------------------- sweeps and failures


def test_the_runs_of_a_sweep_have_one_parent_which_a_repeated_sweep_finds_again(tmp_path):
    (tmp_path / "seeds.yaml").write_text(
        json.dumps({"title": "It's two", "flags": {"n_epochs": 1, "figures": 0, "save_snr": 0, "save_fisher": 0,
                    "limit_train": 100, "tracker": "mlflow"}, "grid": {"random_state": [1]}})
    )  # fmt: skip
    assert outcome(experiment.main, "sweep", tmp_path / "seeds.yaml", "--results_root", tmp_path).code == 0
    assert join_sweep(tmp_path, "It's two") == {PARENT: os.environ.pop(PARENT)}
    (parent,) = client(tmp_path).search_runs([Store(tmp_path).experiment], "tags.sweep LIKE '%'")
    assert (parent.info.run_name, parent.info.status) == ("It's two", "FINISHED")
    (child,) = tmp_path.glob("*/*/dense/*")
    assert run_of(child).data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_sweep_that_no_tracker_can_show_runs_all_the_same(monkeypatch, caplog, tmp_path):
    from optim.trackers.main import join_sweep as join

    def refuse(root: Path) -> None:
        raise sqlite3.OperationalError("the disk is full")

    monkeypatch.setattr(optim.trackers.mlflow, "Store", refuse)
    join("tensorboard,mlflow", tmp_path, "Figure 1")
    assert "--tracker mlflow: OperationalError: the disk is full; its runs are not shown as those of one sweep" in caplog.text
    assert PARENT not in os.environ


@pytest.mark.parametrize("damage", ["no database", "a folder"])
def test_a_store_that_fails_costs_nothing_but_a_warning(train, tmp_path, damage):
    if damage == "no database":
        (tmp_path / "mlflow.db").write_text("no database")
    else:
        (tmp_path / "mlflow.db").unlink()
        (tmp_path / "mlflow.db").mkdir()
    folder = train(*SHORT, *TRACKED)
    assert (folder / "summary.json").exists()
    log = (folder / "training.log").read_text()
    assert log.count("--tracker mlflow: ") == 1
    assert "the tables have everything" in log


def test_a_dead_server_costs_nothing_but_a_warning(train, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    folder = train(*SHORT, *TRACKED)
    assert (folder / "summary.json").exists()
    assert "--tracker mlflow: " in (folder / "training.log").read_text()


def test_names_are_such_as_can_be_searched_for(tmp_path):
    first, again = (join_sweep(tmp_path, "a 'b' \\ c") for _ in range(2))
    assert first == again
