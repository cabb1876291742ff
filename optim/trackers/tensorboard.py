"""`--tracker tensorboard`: a run folder as TensorBoard event files. No TensorFlow.

The tables are the truth: an event file can be written from them at any time, so none is ever repaired, and no process goes
on with another one's file.
"""

import io
import os
import time
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import RecordWriter
from torch.utils.tensorboard.summary import hparams

from helper.system.files import write_atomic
from helper.untrusted.yaml_text import read_yaml
from optim.folder import RunFolder
from optim.trackers.main import Tracker
from optim.trackers.rows import NewRows, final_numbers

FILES = "*tfevents*"  # what TensorBoard takes for an event file


def make(folder: RunFolder, place: Path) -> Tracker:
    return TensorBoard(folder, place)


class TensorBoard(Tracker):
    """One event file, written from the tables when a process starts and when the run ends, and added to between."""

    file: Path | None = None  # the one to add to

    def epoch(self, epoch: int) -> None:
        if self.file is None or not self.tables.go_on():
            self.file = self.write_all()
        else:
            self.add_new_rows()

    def end(self) -> None:
        self.file = self.write_all()

    def write_all(self) -> Path:
        """Write all that the run folder holds as one new event file, and empty the former ones.

        Scalars of every epoch in history.csv, figures as PNG at the last of them, the flags as hyperparameters. Killed at
        any moment it leaves at least one whole file; of two, a reader forgets the older one, because the newer starts a
        session.

        Raises:
            OSError: it could not be written; the former files are as they were.
        """
        self.tables = NewRows(self.folder)
        times, values = self.tables.read()
        last = max(times)
        for epoch, numbers in final_numbers(self.folder).items():
            values.setdefault(epoch, {}).update(numbers)
        former = list(self.place.glob(FILES))
        # readers take the files in the order of their names, whatever the clock has done since the last one
        newest = max((int(file.suffix[1:]) for file in former if file.suffix[1:].isdecimal()), default=0)
        path = self.place / f"events.out.tfevents.{max(time.time_ns(), newest + 1)}"
        started = min(times.values())
        events = [
            Event(wall_time=started, file_version="brain.Event:2"),
            Event(wall_time=started, session_log=SessionLog(status=SessionLog.START)),
            *(Event(wall_time=started, summary=summary) for summary in settings(self.folder)),
            *(scalar_event(epoch, numbers, times[epoch]) for epoch, numbers in values.items()),
            *(image_event(last, figure, times[last]) for figure in sorted(self.folder.figures.glob("*.png"))),
        ]
        write_atomic(path, records(events))
        for file in former:
            empty(file)
        return path

    def add_new_rows(self) -> None:
        """Add to the event file what the tables have got since they were read.

        Raises:
            OSError: it could not be written; the file may end in half a record and must not be added to.
        """
        times, values = self.tables.read()
        with open(self.file, "ab") as file:
            file.write(records([scalar_event(epoch, numbers, times[epoch]) for epoch, numbers in values.items()]))


def empty(file: Path) -> None:
    """Empty a file, and remove it the next time: a TensorBoard that reads it needs to see its end to go on to the next."""
    if file.stat().st_size:
        os.truncate(file, 0)
    else:
        file.unlink()


def settings(folder: RunFolder) -> list[Summary]:
    """The flags of config.yaml as the hyperparameters of a session, which has ended once the run is finished.

    Without torch's description of an experiment, of which TensorBoard would believe the first run's alone: it then finds
    out by itself which flags differ between the runs, and takes every scalar as a metric, `final/...` first.
    """
    _, start, end = hparams(read_yaml(folder.config.read_text()), {})
    return [start, end] if folder.finished else [start]


def scalar_event(epoch: int, values: dict[str, float], wall_time: float) -> Event:
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
    return Event(step=epoch, wall_time=wall_time, summary=summary)


def image_event(epoch: int, figure: Path, wall_time: float) -> Event:
    with Image.open(figure) as image:
        width, height = image.size
    content = Summary.Image(width=width, height=height, encoded_image_string=figure.read_bytes())
    summary = Summary(value=[Summary.Value(tag=f"figures/{figure.stem}", image=content)])
    return Event(step=epoch, wall_time=wall_time, summary=summary)


def records(events: Iterable[Event]) -> bytes:
    """Events with the lengths and checksums of the file format."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()
