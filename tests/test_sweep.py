"""The sweep command: a pool of run.py processes, what it skips, resumes, reports and repeats."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import experiment
from helper.progress import duration
from helper.schema.config import unflatten
from helper.system.locks import exclusive, in_use
from helper.system.versions import ROOT
from helper.tables import last_row
from helper.untrusted.texts import one_line
from optim.config import RunConfig
from optim.folder import RunFolder
from study.sweeping import cost, executor
from study.sweeping.cost import makespan
from study.sweeping.executor import BLOCKED, FAILED, FINISHED, INTERRUPTED, QUEUED, LocalPool
from study.sweeping.job import Job, failed_before
from study.sweeping.waiting import LiveTable
from study.titles import read_titles, title_of, write_title
from tests.outcome import outcome

QUICK = "figures: 0, n_epochs: 2, save_snr: 0, save_fisher: 0, lr_milestones: 1, hidden_dims: 8"


@pytest.fixture
def sweep(tmp_path, capfd):
    """sweep(text, *flags) -> (exit code, what was printed); results under the test's own folder."""

    def call(text: str, *flags: object) -> tuple[int, str]:
        file = tmp_path / "sweep.yaml"
        file.write_text(text)
        with pytest.raises(SystemExit) as stop:
            experiment.main(["sweep", str(file), "--results_root", str(tmp_path / "results"), *map(str, flags)])
        captured = capfd.readouterr()
        return stop.value.code, captured.out + captured.err

    return call


def summaries(root) -> list[dict]:
    return [json.loads(path.read_text()) for path in root.glob("results/*/*/*/*/summary.json")]


GRID = f"flags: {{{QUICK}}}\ngrid: {{mode: [sparse-finetune, sparse-scratch], prune_ratio: 0.8}}"


def test_a_sweep_runs_everything_once_and_finds_it_the_next_time(sweep, tmp_path):
    code, printed = sweep(GRID, "--jobs", 2)
    assert code == 0
    assert "3 runs" in printed
    assert "3 finished" in printed
    assert sorted(s["mode"] for s in summaries(tmp_path)) == ["dense", "sparse-finetune", "sparse-scratch"]
    started = [line.split()[-1].split("/")[2] for line in printed.splitlines() if " running " in line]
    assert started == ["dense", "sparse-finetune", "sparse-scratch"]  # the parent first
    code, printed = sweep(GRID)
    assert (code, "3 finished, 0 to do" in printed) == (0, True)
    assert " running " not in printed
    code, printed = sweep(GRID, "--dry_run", "--prune_ratio", "0.8,0.9")
    assert "5 runs: 3 finished, 2 to do" in printed


def test_the_title_of_a_sweeps_file_heads_its_study_in_the_report(sweep, tmp_path):
    assert sweep(f"title: Sparse <b>digits</b>, small\n{GRID}")[0] == 0
    with pytest.raises(SystemExit):
        experiment.main(["report", str(tmp_path / "results")])
    page = (tmp_path / "results/report/index.html").read_text()
    assert "Sparse &lt;b&gt;digits&lt;/b&gt;, small: digits, mlp-8 (" in page
    sweep(f"title: Another title\n{GRID}")
    titles, damaged = read_titles(tmp_path / "results")
    assert ({title: len(runs) for title, runs in titles.items()}, damaged) == ({"Another title": 3}, [])
    code, printed = sweep(f"title: [1, 2]\n{GRID}", "--dry_run", 1)
    assert (code, "title: expected a text" in printed) == (2, True)


@pytest.mark.parametrize(
    ("flags", "given", "drawn"), [("", (), False), ("figures: 1, ", (), True), ("", ("--figures", 1), True)]
)  # fmt: skip
def test_a_sweep_draws_figures_of_each_run_where_it_is_asked(sweep, tmp_path, flags, given, drawn):
    quick = QUICK.removeprefix("figures: 0, ")
    assert sweep(f"flags: {{{flags}{quick}}}\ngrid: {{random_state: 1}}", *given)[0] == 0
    assert bool(list(tmp_path.glob("results/*/*/*/*/figures/*.png"))) == drawn


def test_titles_are_of_the_runs_they_share_and_damaged_ones_are_named(tmp_path):
    write_title(tmp_path, "few", ["a", "b"])
    write_title(tmp_path, "many", ["a", "b", "c"])
    write_title(tmp_path, "none", ["z"])
    (tmp_path / "sweeps/bad.json").write_text('{"title": 1, "runs": []}')
    (tmp_path / "sweeps/worse.json").write_bytes(b"\xff{")
    titles, damaged = read_titles(tmp_path)
    assert title_of(["a", "b", "c"], titles) == "many; few"
    assert title_of(["y"], titles) == ""
    assert [path for path, _ in damaged] == ["sweeps/bad.json", "sweeps/worse.json"]


def test_a_measurement_asked_for_later_is_added_to_finished_runs(sweep, tmp_path):
    grid = f"flags: {{{QUICK}}}\ngrid: {{random_state: [1]}}"
    sweep(grid)
    code, printed = sweep(grid, "--save_jacobian", 1)
    assert (code, "1 to do" in printed) == (0, True)
    assert "jacobian" in summaries(tmp_path)[0]["metrics"]
    assert "0 to do" in sweep(grid, "--save_jacobian", 1)[1]
    (folder,) = tmp_path.glob("results/*/*/*/*")
    with pytest.raises(SystemExit):
        experiment.main(["measure", str(folder), "--metrics", "jacobian", "--metric_rtol", "0.2"])
    assert "0 to do" in sweep(grid, "--save_jacobian", 1)[1]  # the first way of measuring is still there


def test_failures_are_reported_with_their_log_block_their_children_and_wait_for_retry(sweep, tmp_path):
    bad = f"flags: {{{QUICK}}}\ngrid:\n  - {{mode: sparse-scratch, lr: 1.0e+30}}\n  - {{random_state: 5}}"
    code, printed = sweep(bad)
    assert code == 1
    assert "1 failed" in printed
    assert "1 blocked" in printed
    assert "1 finished" in printed  # the others go on
    assert "not finite in epoch 1" in printed
    assert "--lr 1e+30" in printed  # the command
    code, printed = sweep(bad)
    assert code == 1
    assert "failed the last time" in printed
    assert " running " not in printed
    code, printed = sweep(bad, "--retry")
    assert code == 1
    assert " running " in printed


def test_a_dry_run_lists_and_estimates_and_leaves_nothing_behind(sweep, tmp_path):
    code, printed = sweep(GRID, "--dry_run", 1, "--jobs", 2)
    assert code == 0
    assert "3 runs: 3 to do" in printed
    assert "about" in printed
    assert "without start-up" in printed
    assert not (tmp_path / "results").exists()


def test_a_dry_run_without_the_data_says_what_is_missing(sweep, tmp_path):
    code, printed = sweep("flags: {loader_name: cifar100, root: nowhere}\ngrid: {net_name: resnet}", "--dry_run", 1)
    assert code == 0
    assert "no estimate: nowhere/cifar-100-python/train is missing" in printed


def test_a_dry_run_without_the_device_lists_the_runs(sweep):
    code, printed = sweep("flags: {device: cuda}\ngrid: {random_state: [1, 2]}", "--dry_run", 1)
    assert code == 0
    assert "2 runs: 2 to do" in printed
    assert ("no estimate: --device cuda" in printed) or torch.cuda.is_available()


class BusyMachine:
    """Clocks of a machine whose cores go to other processes for nine tenths of the time, in a step of a millisecond an example.

    Two threads take half of what one does. In all steps but every `undisturbed`th one of them waits for the other, which is
    not running, and its own clock goes on for a while.
    """

    def __init__(self, undisturbed: int) -> None:
        self.undisturbed, self.wall, self.own, self.steps = undisturbed, 0.0, 0.0, 0

    def step(self, rows: torch.Tensor) -> None:
        self.steps += 1
        taken = 0.001 * len(rows)
        if torch.get_num_threads() == 2:
            taken = taken / 2 + (0 if self.steps % self.undisturbed == 0 else 0.01 + 3 * taken)
        self.own += taken
        self.wall += 10 * taken


@pytest.mark.parametrize("batch_size", [1, 64, 10**6])
@pytest.mark.parametrize(("undisturbed", "expected"), [(2, 0.0005), (10**9, 0.001)])
def test_a_step_on_a_busy_machine_is_priced_as_on_a_quiet_one(monkeypatch, batch_size, undisturbed, expected):
    """If threads disturb each other in every step, the price is that of one thread, and no hours."""
    machine = BusyMachine(undisturbed)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: machine.wall)
    monkeypatch.setattr(cost.time, "thread_time", lambda: machine.own)
    dataset = cost.data_of(unflatten(RunConfig, {}).data)
    with cost.threads(2):
        assert cost.seconds_per_example(machine.step, dataset, batch_size) == pytest.approx(expected, rel=0.01)
    assert machine.own < 40  # seconds, of steps of up to 1.4: it does not take long


def test_steps_of_another_device_are_timed_by_the_clock_on_the_wall():
    """While it works, the thread of this process waits."""
    assert cost.clock_of(torch.device("cpu")) is cost.time.thread_time
    assert cost.clock_of(torch.device("cuda")) is cost.clock_of(torch.device("xla")) is cost.time.perf_counter


@pytest.mark.parametrize(
    ("flags", "given", "expected"),
    [
        (("--jobs", 3), None, 5),  # of 16 cores
        (("--jobs", 40), None, 1),
        (("--jobs", 2), "4", 4),
        (("--jobs", 8), "4", 2),
        (("--jobs", 2), "4,2", 4),  # of nested loops the outermost
        (("--jobs", 2), " 3 , 1", 3),
        (("--jobs", 2), "", 8),
        (("--jobs", 2), "99999999999999", 8),
        (("--executor", "slurm", "--slurm_time", 60, "--slurm_cpus", 6), None, 6),
        (("--executor", "slurm", "--slurm_time", 60), None, 1),
    ],
)
def test_steps_are_timed_with_the_threads_that_jobs_have(sweep, monkeypatch, flags, given, expected):
    seen = []
    monkeypatch.setattr(executor, "available_cores", lambda: 16)
    monkeypatch.setattr(cost, "SPEEDS", {})
    monkeypatch.setattr(cost, "seconds_per_example", lambda *_: seen.append(torch.get_num_threads()) or 1.0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    code, printed = sweep("grid: {random_state: 1}", "--dry_run", 1, *flags)
    assert (code, seen, torch.get_num_threads()) == (0, [expected] * 3, before)
    assert f"{expected} thread{'s' if expected > 1 else ''}" in printed


@pytest.mark.parametrize("value", ["4,x", "0", "-2", "2.5", "four", "4,,2", "4\x1b[31m"])
@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_a_malformed_number_of_threads_is_told_in_one_line(tmp_path, monkeypatch, value, flags):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    (tmp_path / "sweep.yaml").write_text("flags: {n_epochs: 1}\ngrid: {random_state: 1}")
    found = outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", "--results_root", tmp_path / "results", *flags)
    assert found.code == 1
    assert f"OMP_NUM_THREADS={one_line(value)}: expected a whole number of at least 1, or several" in found.line
    assert not list(tmp_path.glob("results/digits*"))


def test_sweeps_refuse_wrong_flags_in_one_line(sweep):
    code, printed = sweep("grid: {random_state: 1}", "--jobs", 0)
    assert (code, printed.count("\n")) == (2, 1)
    code, printed = sweep("grid: {prune_ration: 1}")
    assert (code, printed.count("\n")) == (2, 1)
    assert "did you mean prune_ratio?" in printed
    code, printed = sweep("grid: {random_state: 1}", "--lrr", 0.1)
    assert (code, printed.count("\n")) == (2, 1)


def test_an_interrupted_sweep_saves_its_runs_and_goes_on(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(f"flags: {{{QUICK.replace('n_epochs: 2', 'n_epochs: 300')}}}\ngrid: {{random_state: [1, 2, 3]}}")
    command = [sys.executable, ROOT / "experiment.py", "sweep", file, "--jobs", "2", "--results_root", tmp_path / "results"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("results/*/*/*/*/checkpoint.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "2 interrupted" in printed
    assert "1 queued" in printed
    epochs = [int(last_row(path)["epoch"]) for path in tmp_path.glob("results/*/*/*/*/history.csv")]
    assert len(epochs) == 2
    assert all(epoch < 300 for epoch in epochs)
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert "3 finished" in again.stdout
    resumed = [log for log in tmp_path.glob("results/logs/*.log") if "resuming after" in log.read_text()]
    assert len(resumed) == 2


# --------------------------------------------------------------------------------------------------- the executor


def stand_in(tmp_path, name: str, script: str) -> Job:
    """A job that runs a line of Python instead of run.py."""

    class Script(Job):
        @property
        def command(self) -> list[str]:
            return [sys.executable, "-c", script]

    return Script(name, (), RunFolder(tmp_path / name), tmp_path / f"{name}.log")


def work_off(pool: LocalPool) -> None:
    while any(state in (QUEUED, "running") for state in pool.states.values()):
        pool.poll()
        time.sleep(0.01)


def test_children_start_after_their_parent_and_not_after_a_failed_one(tmp_path):
    order = tmp_path / "order"
    pool = LocalPool(3)
    pool.submit(stand_in(tmp_path, "child", f"open({str(order)!r}, 'a').write('child ')"), ["parent"])
    pool.submit(stand_in(tmp_path, "parent", f"import time; time.sleep(0.3); open({str(order)!r}, 'a').write('parent ')"))
    pool.submit(stand_in(tmp_path, "bad", "raise SystemExit(3)"))
    pool.submit(stand_in(tmp_path, "orphan", "pass"), ["bad"])
    pool.submit(stand_in(tmp_path, "grandchild", "pass"), ["orphan"])
    work_off(pool)
    assert order.read_text() == "parent child "
    expected = {"child": FINISHED, "parent": FINISHED, "bad": FAILED, "orphan": BLOCKED, "grandchild": BLOCKED}
    assert pool.states == expected
    assert (tmp_path / "bad.log").read_text().endswith("\nexit code 3\n")


def test_no_more_processes_run_than_allowed_and_the_cores_are_shared_out(tmp_path):
    pool = LocalPool(2, n_devices=2)
    script = "import os, time; print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)"
    for name in "abcde":
        pool.submit(stand_in(tmp_path, name, script))
    most = 0
    while any(state in (QUEUED, "running") for state in pool.states.values()):
        pool.poll()
        most = max(most, sum(state == "running" for state in pool.states.values()))
        time.sleep(0.01)
    assert most == 2
    printed = {(tmp_path / f"{name}.log").read_text().splitlines()[-1] for name in "abcde"}
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert printed == {f"{threads} 0", f"{threads} 1"}


def test_a_full_pool_looks_only_at_what_runs(tmp_path):
    pool = LocalPool(1)
    pool.submit(stand_in(tmp_path, "first", "import time; time.sleep(1)"))
    pool.submit(stand_in(tmp_path, "second", "pass"))
    pool.poll()
    waiting, pool.jobs = pool.jobs, None  # looking through those that wait would fail
    pool.poll()
    pool.jobs = waiting
    work_off(pool)
    assert pool.states == {"first": FINISHED, "second": FINISHED}


def test_a_killed_run_counts_as_interrupted_not_as_failed(tmp_path):
    pool = LocalPool(1)
    pool.submit(stand_in(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"))
    work_off(pool)
    assert pool.states == {"killed": INTERRUPTED}


def test_children_of_a_killed_run_are_not_waited_for(tmp_path):
    pool = LocalPool(1)
    pool.submit(stand_in(tmp_path, "killed", "import os; os.kill(os.getpid(), 15)"))
    pool.submit(stand_in(tmp_path, "child", "pass"), ["killed"])
    work_off(pool)
    assert pool.states == {"killed": INTERRUPTED, "child": INTERRUPTED}


def test_a_crash_is_a_failure(tmp_path):
    pool = LocalPool(1)
    crash = stand_in(tmp_path, "crash", "import os; print('no newline', end='', flush=True); os.kill(os.getpid(), 11)")
    pool.submit(crash)
    work_off(pool)
    assert pool.states == {"crash": FAILED}
    assert failed_before(crash)


def test_a_run_that_another_process_holds_is_waited_for(tmp_path):
    pool = LocalPool(1)
    pool.submit(stand_in(tmp_path, "busy", "pass"))
    with exclusive(tmp_path / "busy"):
        assert in_use(tmp_path / "busy")
        pool.poll()
        assert pool.states == {"busy": QUEUED}
    work_off(pool)
    assert pool.states == {"busy": FINISHED}


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ("3,0.5,0.75,0.625", ("3/30", "0.500", "0.750", "0.625")),
        ("3,0.5,0.75,0.625\n4,,,\n5,,,", ("5/30", "0.500", "0.750", "0.625")),  # the newest that is known
        ("3,0.5,0.75,0.625\n4,0.4,0.875,", ("4/30", "0.400", "0.875", "0.625")),
        ("3,,,", ("3/30",)),
    ],
)
def test_the_live_table_shows_epochs_and_accuracies_of_running_runs(rows, shown, tmp_path):
    from rich.console import Console

    from study.sweeping.plan import plan

    (run,) = plan([RunConfig(results_root=str(tmp_path))])
    folder = run.folder.path
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(f"epoch,loss_train,acc_train,acc_test\n{rows}\n")
    pool = LocalPool(1)
    pool.states = {run.name: "running"}
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(LiveTable([run], pool, console).table())
    text = console.export_text()
    for words in ("0/1 finished", "1 running", *shown):
        assert words in text
    assert "nan" not in text


def test_makespan_follows_parents_and_slots():
    assert makespan([4, 4, 1, 1], [None, None, 0, 1], 2) == 5
    assert makespan([4, 4, 1, 1], [None, None, 0, 1], 1) == 10
    assert makespan([4, 1], [None, 0], 2) == 5
    assert makespan([], [], 2) == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(12, "12 s"), (240, "4 min"), (7500, "2 h 05 min"), (3 * 86400 + 4 * 3600, "3 d 4 h")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
