"""Long work says how far it is, short work says nothing: by a clock that the test sets."""

import io
import logging
import sys
import threading

import pytest

from helper import progress
from helper.progress import EVERY, Task, spoken, tracked
from helper.system.logs import RunLog
from helper.system.versions import ROOT
from optim.callbacks.watching import Diverged
from optim.config import RunConfig
from study.comparing.disagreement import DisagreeConfig, disagree
from study.comparing.interpolation import InterpolateConfig, interpolate
from study.measure import MeasureConfig, measure
from study.reporting.report import ReportConfig, report
from study.sweeping.plan import plan
from study.sweeping.waiting import Lines


class Clock:
    """A clock that stands until it is set forward, and looks whether a line is due, as the thread does once a while."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds
        progress._silence.say_if_due()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "clock", found)
    return found


@pytest.fixture
def lines(caplog) -> list[str]:
    """Messages as they come."""
    caplog.set_level(logging.INFO, logger="helper.progress")

    class Messages(list):
        def __eq__(self, other: object) -> bool:
            return [record.getMessage() for record in caplog.records] == other

        def __repr__(self) -> str:
            return repr([record.getMessage() for record in caplog.records])

        __hash__ = None

    return Messages()


def test_short_work_is_silent(clock, lines):
    with Task("measuring", 10, "draws") as task:
        clock.forward(EVERY - 1)
        task.advance(10)
    clock.forward(EVERY)
    assert lines == []


def test_a_line_has_the_work_its_parts_and_the_time_and_comes_once_in_half_a_minute(clock, lines):
    with Task("measuring", 4000, "draws") as task:
        for _ in range(7):
            clock.forward(10)
            task.advance(200)
    first = "measuring: 400/4,000 draws, 30 s so far, about 4 min left"  # 3,600 of 400 in 30 s
    second = "measuring: 1,000/4,000 draws, 60 s so far, about 3 min left"
    assert lines == [first, second]


def test_a_step_of_many_minutes_is_no_silence(clock, lines):
    with Task("hashing"):
        for _ in range(4):
            clock.forward(60)
    assert lines == [f"hashing: {text} so far" for text in ("60 s", "2 min", "3 min", "4 min")]


def test_what_an_earlier_process_has_done_does_not_count_as_speed(clock, lines):
    with Task("training", 100, "steps", done=50) as task:
        task.advance(10)
        clock.forward(30)
    assert lines == ["training: 60/100 steps, 30 s so far, about 2 min left"]


def test_a_line_names_all_that_is_under_way_and_waits_when_something_else_has_spoken(clock, lines):
    with Task("training", 8, "steps") as outer:
        outer.advance()
        clock.forward(20)
        spoken()
        clock.forward(20)
        with Task("test set", 4, "batches"):
            clock.forward(20)
        clock.forward(EVERY)
    assert lines == [
        "training: 1/8 steps, 60 s so far, about 7 min left; test set: 0/4 batches, 20 s so far",
        "training: 1/8 steps, 90 s so far, about 10 min left",
    ]


def test_work_that_ends_by_an_error_and_a_loop_that_is_left_are_over(clock, lines):
    with pytest.raises(ValueError, match="broken"), Task("broken"):
        raise ValueError("broken")
    for _ in tracked(range(5), "left", "parts"):
        break
    clock.forward(100)
    assert lines == []
    assert progress._silence.under_way == []


def test_the_thread_breaks_the_silence_by_itself(monkeypatch, caplog):
    """No faked clock: what stands between two lines is 0 seconds, and the test waits for two of them, however long it takes."""
    heard = threading.Semaphore(0)

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.release()

    handler = Heard()
    monkeypatch.setattr(progress, "EVERY", 0.01)
    caplog.set_level(logging.INFO, logger="helper.progress")
    progress.log.addHandler(handler)
    try:
        with Task("working"):
            assert heard.acquire(timeout=60)
            assert heard.acquire(timeout=60)
    finally:
        progress.log.removeHandler(handler)


def test_only_the_first_process_speaks_and_nobody_where_it_is_not_wanted(clock, lines, monkeypatch):
    with Task("unwanted", shown=False):
        clock.forward(100)
    monkeypatch.setattr(progress, "rank", lambda: 1)
    with Task("second"):
        clock.forward(100)
    assert lines == []


def test_on_a_terminal_there_is_a_bar_and_no_line(clock, lines, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "BAR_AFTER", 0)
    with Task("measuring", 10, "draws") as task:
        task.advance(3)
        task.note(loss="0.5")
        clock.forward(100)
        task.advance(3)
    assert "measuring" in sys.stderr.getvalue()
    assert lines == []


def test_lines_go_into_the_log_of_a_run(clock, tmp_path):
    (tmp_path / "training.log").touch()
    with RunLog(tmp_path / "training.log"), Task("measuring", 2, "draws") as task:
        task.advance()
        clock.forward(31)
    assert "INFO measuring: 1/2 draws, 31 s so far, about 31 s left" in (tmp_path / "training.log").read_text()


# ------------------------------------------------------------------------------------------- what is never silent


@pytest.fixture
def tasks(monkeypatch) -> dict[str, list[Task]]:
    """Tasks that have ended, by their name."""
    found: dict[str, list[Task]] = {}
    end = Task.__exit__

    def ended(task: Task, *error: object) -> None:
        found.setdefault(task.what, []).append(task)
        end(task, *error)

    monkeypatch.setattr(Task, "__exit__", ended)
    return found


QUICK = ("--n_epochs", 1, "--hidden_dims", 8, "--limit_train", 300, "--limit_test", 100, "--batch_size", 100)


def test_every_long_part_of_a_run_is_a_task_and_counts_all_its_parts(train, tasks):
    measured = ("--save_hessian", 1, "--save_jacobian", 1, "--hessian_method", "pyhessian", "-ms", 100, "-mt", 2)
    train(*QUICK, *measured, "--save_spectrum", 1, "--spectrum_steps", 4, "--spectrum_k", 2, "--val_size", 0.2)
    parts = {"training", "training set and SNR", "val set", "test set", "Fisher", "Hessian", "Jacobian", "spectrum"}
    assert tasks.keys() >= parts | {"drawing figures"}
    assert any(name.startswith("reading digits") for name in tasks)
    for name in parts:
        for task in tasks[name]:
            assert task.done == task.total > 0, name
    assert progress._silence.under_way == []


def test_every_command_over_runs_is_made_of_tasks(train, tasks, tmp_path, capsys):
    pair = [train("--mode", mode, *QUICK, "--figures", 0) for mode in ("sparse-scratch", "sparse-finetune")]
    tasks.clear()
    interpolate(InterpolateConfig(points=3), *pair)
    disagree(DisagreeConfig(images=4), *pair)
    measure(MeasureConfig(metrics="jacobian", epochs="all"), *map(str, pair))
    report(ReportConfig(), str(tmp_path))
    assert tasks.keys() >= {
        "lines between weights", "train set", "test set", "cosines", "drawing", "predictions of sparse-scratch 0.9",
        "drawing figures 9 and 10", "writing figures 9 and 10", "measuring", "kept states", "reading runs",
        "tables and figures", "writing the page",
    }  # fmt: skip
    assert all(task.done == task.total for found in tasks.values() for task in found if task.total is not None)


def test_no_other_module_shows_bars_of_its_own():
    for path in [
        *ROOT.glob("*.py"),
        *(file for part in ("helper", "loader", "network", "optim", "study") for file in (ROOT / part).rglob("*.py")),
    ]:
        imported = {line for line in path.read_text().splitlines() if "import" in line and "tqdm" in line}
        assert path.name == "progress.py" or imported <= {"from tqdm.contrib.logging import logging_redirect_tqdm"}, path


def test_a_run_that_is_interrupted_is_over(train, tasks):
    with pytest.raises(Diverged):
        train(*QUICK, "--lr", 1e30, "--debug", 1)
    assert progress._silence.under_way == []


class Waiting:
    """An executor whose jobs do what the test says."""

    def __init__(self, states: dict[str, str]) -> None:
        self.states = states


def test_a_sweep_that_waits_says_what_runs(tmp_path, capsys, clock):
    run, other = plan([RunConfig(results_root=str(tmp_path), random_state=seed) for seed in (1, 2)])
    executor = Waiting({run.name: "queued", other.name: "queued"})
    show = Lines([run, other], executor, clock)
    executor.states[run.name] = "running"
    show()
    clock.now += EVERY - 1
    show()
    run.folder.path.mkdir(parents=True)
    (run.folder.path / "history.csv").write_text("epoch,loss_train\n3,0.5\n")
    clock.now += 1
    show()
    show()
    clock.now += EVERY
    executor.states |= {run.name: "finished", other.name: "running"}
    show()
    show()
    assert capsys.readouterr().out.splitlines() == [
        f"     0 s  0/2  running     {run.name}",
        "    30 s  0/2  1 running (epoch 3/30), 1 queued",
        f"    60 s  1/2  finished    {run.name}",
        f"    60 s  1/2  running     {other.name}",
    ]
