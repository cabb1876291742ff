"""`--tracker mlflow`: a run folder as a run of MLflow.

The store is `mlflow.db` with `mlartifacts/` in the folder of all run folders, or what MLFLOW_TRACKING_URI says. A resumed run
goes on in the MLflow run whose id the folder has; which rows that run has is among its tags, so that each is sent once.
"""

import contextlib
import json
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # before it is imported: a run must not wait for a dead server
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import alembic  # noqa: F401  (which the store needs, and MLflow imports late)
import sqlalchemy  # noqa: F401
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from helper.system.files import write_atomic
from helper.untrusted.texts import one_line
from helper.untrusted.yaml_text import read_yaml
from optim.folder import RunFolder
from optim.trackers.main import Tracker
from optim.trackers.rows import NewRows, final_numbers

EXPERIMENT = "price-of-sparsity"
PARENT = "PRICE_OF_SPARSITY_MLFLOW_PARENT"  # environment variable: the id of a sweep's MLflow run
SENT = "rows_sent"  # tag that says which rows an MLflow run has
MOST_METRICS, MOST_PARAMS, LONGEST = 900, 100, 6000  # that MLflow takes at once, and characters of a value
TABLES = ("history.csv", "snr.csv", "metrics.csv", "config.yaml", "summary.json")

logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table that it makes


def make(folder: RunFolder, place: Path) -> Tracker:
    return MLflow(folder, place)


def join_sweep(root: Path, name: str) -> dict[str, str]:
    """The MLflow run that is the parent of a sweep's: the one of that name, or a new one."""
    store = Store(root)
    found = store.client.search_runs([store.experiment], f"tags.sweep = '{quoted(name)}'", max_results=1)
    parent = found[0] if found else store.client.create_run(store.experiment, run_name=name, tags={"sweep": quoted(name)})
    if not found:
        store.client.set_terminated(parent.info.run_id)  # it does nothing itself; its children have states of their own
    return {PARENT: parent.info.run_id}


def quoted(name: str) -> str:
    """A name as the value of a tag that can be searched for."""
    return one_line(name, 200).replace("'", "’").replace("\\", "/")


class Store:
    """Where the runs of a results root go.

    Attributes:
        uri: of the store. experiment: id of the experiment, which is made where it is not there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or f"sqlite:///{self.root / 'mlflow.db'}"
        if not given:
            if not (self.root / "mlflow.db").exists():
                self.make_local()
            check_database(self.root / "mlflow.db")
        self.client = MlflowClient(tracking_uri=self.uri)
        self.experiment = self.experiment_of(self.client)

    def experiment_of(self, client: MlflowClient) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = client.get_experiment_by_name(name)
        if known is not None:
            return known.experiment_id
        local = self.uri.startswith("sqlite:") and "MLFLOW_TRACKING_URI" not in os.environ
        return client.create_experiment(name, (self.root / "mlartifacts").as_uri() if local else None)

    def make_local(self) -> None:
        """The local store with its experiment, which appears as a whole: several runs may want to make it at once."""
        self.root.mkdir(parents=True, exist_ok=True)
        unfinished = self.root / f".mlflow.{os.getpid()}.new"
        try:
            self.experiment_of(MlflowClient(tracking_uri=f"sqlite:///{unfinished}"))
            if not (self.root / "mlflow.db").exists():
                os.link(unfinished, self.root / "mlflow.db")
        except FileExistsError:
            pass  # another run was faster
        finally:
            unfinished.unlink(missing_ok=True)


def check_database(path: Path) -> None:
    """Raise sqlite3.Error where a file is no database that can be read: MLflow would try again for minutes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


class MLflow(Tracker):
    """One MLflow run, with the flags as parameters, all numbers of the tables as metrics, tables and figures as artifacts."""

    run: str | None = None  # its id

    def epoch(self, epoch: int) -> None:
        self.begin()
        self.send()

    def end(self) -> None:
        self.begin()
        self.tables = self.tables.from_the_start()  # measurements may be of earlier epochs
        self.send()
        self.send_final()
        for path in [self.folder.path / name for name in TABLES if (self.folder.path / name).exists()]:
            self.client.log_artifact(self.run, str(path))
        for path in sorted(self.folder.figures.glob("*.png")):
            self.client.log_artifact(self.run, str(path), "figures")
        self.client.set_terminated(self.run, "FINISHED" if self.folder.finished else "FAILED")

    def begin(self) -> None:
        """Make the MLflow run, or go on with it; nothing where that has been done."""
        if self.run is not None and self.tables.go_on():
            return
        store = Store(self.folder.path.parents[3])
        self.client = store.client
        known = self.known_run(store.uri)
        self.run = known.info.run_id if known else self.new_run(store)
        self.tables = NewRows(self.folder, json.loads(known.data.tags.get(SENT, "{}")) if known else {})

    def known_run(self, uri: str) -> Any:
        """The MLflow run that the folder has had in this store; None where there is none any more."""
        path = self.place / "run.json"
        try:
            stored = json.loads(path.read_text())
            run = self.client.get_run(str(stored["run"])) if stored["store"] == uri else None
        except (OSError, ValueError, LookupError, TypeError, MlflowException):
            return None
        return run if run and run.info.lifecycle_stage == "active" else None

    def new_run(self, store: Store) -> str:
        parent = os.environ.get(PARENT)
        tags = {"mode": self.folder.path.parent.name, **({"mlflow.parentRunId": parent} if parent else {})}
        run = self.client.create_run(store.experiment, run_name=self.folder.path.name, tags=tags).info.run_id
        write_atomic(self.place / "run.json", json.dumps({"store": store.uri, "run": run}))
        flags = read_yaml(self.folder.config.read_text())
        params = [Param(name, str(value)[:LONGEST]) for name, value in flags.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(run, params=params[start : start + MOST_PARAMS])
        return run

    def send(self) -> None:
        """Log what the tables have got since they were read."""
        times, values = self.tables.read()
        metrics = [
            Metric(tag, number, round(1000 * times[epoch]), epoch)
            for epoch, numbers in values.items()
            for tag, number in numbers.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run, metrics=metrics[start : start + MOST_METRICS])
        self.client.log_batch(self.run, tags=[RunTag(SENT, json.dumps(self.tables.counts))])

    def send_final(self) -> None:
        when = round(1000 * self.folder.summary.stat().st_mtime) if self.folder.finished else 0
        for epoch, numbers in final_numbers(self.folder).items():
            self.client.log_batch(self.run, metrics=[Metric(tag, number, when, epoch) for tag, number in numbers.items()])
