"""`--tracker wandb`: a run folder as a run of Weights & Biases.

Where it goes is W&B's own business: `wandb login`, WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY. Where nobody is logged in it is
written offline, and nobody is asked for a key. A resumed run goes on in the W&B run whose id the folder has; which rows that
run has is among its own numbers, so that each is sent once. An offline run has none yet, and is written whole.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import wandb

from helper.system.files import write_atomic
from helper.untrusted.yaml_text import read_yaml
from optim.folder import RunFolder
from optim.trackers.main import Tracker
from optim.trackers.rows import TABLES, NewRows, final_numbers

log = logging.getLogger(__name__)
PROJECT = "price-of-sparsity"
SENT = "rows_sent"  # group of the numbers that say which rows a W&B run has
SECONDS = 30.0  # that may be spent on beginning and on ending


def make(folder: RunFolder, place: Path) -> Tracker:
    return WandB(folder, place)


def join_sweep(root: Path, name: str) -> dict[str, str]:
    return {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", name)}


class WandB(Tracker):
    """One W&B run, with all numbers of the tables over the epochs, the figures, and the flags as its configuration."""

    run: Any = None

    def epoch(self, epoch: int) -> None:
        self.begin()
        self.send()

    def end(self) -> None:
        self.begin()
        self.tables = self.tables.from_the_start()  # measurements may be of earlier epochs
        self.send()
        for numbers in final_numbers(self.folder).values():
            self.run.summary.update(numbers)
        figures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(self.folder.figures.glob("*.png"))}
        if figures:
            self.run.log(figures)
        written = Path(self.run.dir).parent
        self.run.finish(exit_code=0 if self.folder.finished else 1)
        if self.run.offline:
            self.keep_newest(written)
        self.run = None

    def begin(self) -> None:
        """Make the W&B run, or go on with it; nothing where that has been done."""
        if self.run is not None and self.tables.go_on():
            return
        if self.run is None:
            self.run = started(self.folder, self.place)
        self.tables = NewRows(self.folder, {name: int(self.run.summary.get(f"{SENT}/{name}", 0)) for name in TABLES})

    def send(self) -> None:
        """Log what the tables have got since they were read."""
        _, values = self.tables.read()
        for epoch, numbers in values.items():
            if numbers:
                self.run.log({"epoch": epoch, **numbers})
        self.run.summary.update({f"{SENT}/{name}": n for name, n in self.tables.counts.items()})

    def keep_newest(self, newest: Path) -> None:
        """Remove what earlier processes have written offline: the newest one has it all."""
        for path in newest.parent.glob(f"offline-run-*-{self.run.id}"):
            if path != newest:
                shutil.rmtree(path)


def started(folder: RunFolder, place: Path) -> Any:
    """The W&B run of a run folder, offline where nobody is logged in.

    Raises:
        Exception: of W&B's own kinds.
    """
    if wandb.run is not None:  # of a tracker that has failed: its service may be dead
        with contextlib.suppress(OSError, wandb.Error):
            wandb.teardown()
    wandb.setup(settings=wandb.Settings(silent=True))  # or it would ask for a key on a terminal
    mode = os.environ.get("WANDB_MODE")
    options: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT), "id": own_id(place), "name": folder.path.name,
        "job_type": folder.path.parent.name, "dir": str(place), "config": read_yaml(folder.config.read_text()),
        "allow_val_change": True, "resume": "allow", "settings": modest(),
    }  # fmt: skip
    try:
        run = wandb.init(**options, mode=mode)
    except wandb.errors.UsageError:
        if mode:
            raise
        log.info("--tracker wandb: nobody is logged in; written offline, to be sent by wandb sync %s", place / "wandb")
        run = wandb.init(**options, mode="offline")
    run.define_metric("epoch", hidden=True)
    run.define_metric("*", step_metric="epoch")
    return run


def modest() -> wandb.Settings:
    """No output, nothing about the machine, the code or the packages, and no long waits."""
    return wandb.Settings(
        silent=True, console="off", symlink=False, disable_git=True, disable_code=True, save_code=False,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        init_timeout=SECONDS, finish_timeout=SECONDS,
    )  # fmt: skip


def own_id(place: Path) -> str:
    """Of the W&B run that a run folder's tracker writes; drawn when it begins, and again when the run is repeated."""
    path = place / "id"
    known = path.read_text().strip() if path.is_file() else ""
    if not re.fullmatch(r"[a-z0-9]{8}", known):
        known = secrets.token_hex(4)
        write_atomic(path, known)
    return known
