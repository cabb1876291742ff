"""A run folder as TensorBoard event files; imported only when asked for, because the package tensorboard is optional.

The tables are the truth: an event file can be written from them at any time, so none is ever repaired or gone on with
by another process. No TensorFlow.
"""

import io
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import RecordWriter
from torch.utils.tensorboard.summary import hparams

from helper.system.files import write_atomic
from helper.untrusted.yaml_text import read_yaml
from optim.folder import RunFolder

FILES = "*tfevents*"  # what TensorBoard takes for an event file
SNR_QUANTITIES = ("snr", "weight_norm", "grad_mean_norm", "grad_std_norm")


def write_events(folder: RunFolder) -> Path:
    """Write all that a run folder holds as one new event file, and empty the former ones.

    Scalars of every epoch in history.csv, figures as PNG at the last of them, the flags as hyperparameters. Killed at any
    moment it leaves at least one whole file; of two, a reader forgets the older one, because the newer starts a session.

    Returns:
        The file, to which `append_epoch` may add.
    Raises:
        OSError: it could not be written; the former files are as they were.
    """
    times, values = end_times(folder), scalars(folder)
    last = max(times)
    former = list(folder.events.glob(FILES))
    # readers take the files in the order of their names, whatever the clock has done since the last one
    newest = max((int(file.suffix[1:]) for file in former if file.suffix[1:].isdecimal()), default=0)
    path = folder.events / f"events.out.tfevents.{max(time.time_ns(), newest + 1)}"
    started = min(times.values())
    events = [
        Event(wall_time=started, file_version="brain.Event:2"),
        Event(wall_time=started, session_log=SessionLog(status=SessionLog.START)),
        *(Event(wall_time=started, summary=summary) for summary in settings(folder)),
        *(scalar_event(epoch, numbers, times[epoch]) for epoch, numbers in values.items()),
        *(image_event(last, figure, times[last]) for figure in sorted(folder.figures.glob("*.png"))),
    ]
    write_atomic(path, records(events))
    for file in former:
        empty(file)
    return path


def empty(file: Path) -> None:
    """Empty a file, and remove it the next time: a TensorBoard that reads it needs to see its end to go on to the next."""
    if file.stat().st_size:
        os.truncate(file, 0)
    else:
        file.unlink()


def append_epoch(path: Path, folder: RunFolder, epoch: int) -> None:
    """Add what the tables hold of one epoch to a file of `write_events`.

    Raises:
        OSError: it could not be written; the file may end in half a record and must not be added to.
    """
    content = records([scalar_event(epoch, scalars(folder)[epoch], end_times(folder)[epoch])])
    with open(path, "ab") as file:
        file.write(content)


def scalars(folder: RunFolder) -> dict[int, dict[str, float]]:
    """{epoch: {tag: value}}, in the order of epochs, of all numbers in the tables and, of a finished run, in its summary.

    Of the epochs that history.csv has: what other tables hold beyond it is of an epoch that was interrupted and comes again.
    """
    values: dict[int, dict[str, float]] = {int(row["epoch"]): {} for row in folder.history().rows}
    for epoch, cells in tagged_cells(folder):
        if epoch in values:
            values[epoch] |= {tag: float(cell) for tag, cell in cells.items() if cell != ""}
    return values


def tagged_cells(folder: RunFolder) -> Iterator[tuple[int, dict[str, Any]]]:
    """(epoch, {tag: text or number}) of every row; TensorBoard makes a group of what has the first word in common."""
    for row in folder.history(noisy=True).rows:
        yield int(row["epoch"]), {f"history/{column}": row[column] for column in row if column != "epoch"}
    for row in folder.snr().rows:
        yield int(row["epoch"]), {f"{name}/{row['mode']}/{row['layer']}": row[name] for name in SNR_QUANTITIES}
    for row in folder.metrics().rows:
        yield int(row["epoch"]), {f"{measurement(row)}/{column}": row[column] for column in ("value", "standard_error")}
    if folder.finished:
        summary = folder.read_summary()
        yield summary["epoch_selected"], {f"final/{name}": number for name, number in final_numbers(summary).items()}


def measurement(row: dict[str, str]) -> str:
    """Tag of a row of metrics.csv: what was measured on what and how, so that no two measurements of a run share one."""
    options = json.loads(row["settings"])
    how = "-".join(value if isinstance(value, str) else f"{name}{value}" for name, value in options.items())
    where = [row["metric"], "", ""] if row["layer"] == "all" else [f"{row['metric']}_by_layer", row["layer"]]
    return "/".join(filter(None, [where[0], row["split"], row["subset"], row["params"], how, where[1]]))


def final_numbers(summary: dict[str, Any]) -> dict[str, float]:
    """The numbers of summary.json and the measured totals with their standard errors."""
    numbers = {name: value for name, value in summary.items() if isinstance(value, (int, float))}
    for name, estimate in summary["metrics"].items():
        numbers |= {name: estimate["value"], f"{name}_standard_error": estimate["standard_error"]}
    return numbers


def settings(folder: RunFolder) -> list[Summary]:
    """The flags of config.yaml as the hyperparameters of a session, which has ended once the run is finished.

    Without torch's description of an experiment, of which TensorBoard would believe the first run's alone: it then finds
    out by itself which flags differ between the runs, and takes every scalar as a metric, `final/...` first.
    """
    _, start, end = hparams(read_yaml(folder.config.read_text()), {})
    return [start, end] if folder.finished else [start]


def end_times(folder: RunFolder) -> dict[int, float]:
    """{epoch: when it ended, in seconds since 1970}: counted back from the table's time stamp, without interruptions."""
    history = folder.history()
    ends = list(itertools.accumulate(float(row["seconds"] or 0) for row in history.rows))
    began = history.path.stat().st_mtime - ends[-1]
    return {int(row["epoch"]): began + end for row, end in zip(history.rows, ends, strict=True)}


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
