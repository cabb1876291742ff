"""Sweeps as jobs of SLURM, without one: flags, grouping, records, what a job does on its node. tests/slurm has the real one."""

import json
import os
import pickle
import signal
import stat
import sys
import threading
import time

import pytest

import experiment
from helper.schema.config import FlagError
from helper.system.locks import IN_USE, exclusive
from optim.folder import RunFolder
from study.sweeping import slurm, slurm_task
from study.sweeping.executor import BLOCKED, FAILED, FINISHED, INTERRUPTED, QUEUED, RUNNING
from study.sweeping.job import Job, failed_before, first_line
from study.sweeping.slurm import SlurmQueue, arrays, launch_line
from study.sweeping.slurm_jobs import Known, Submission, cancel_line, latest_tasks, read_submissions, record_folder, tasks_in
from study.sweeping.slurm_options import SlurmConfig, minutes_of, options_of
from study.sweeping.slurm_task import RunTask, threads

# ---------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("4:00:00", 240), ("0:0:1", 1), ("2-0", 2880), ("1-12:30", 2190), ("1-0:0:1", 1441)],
)
def test_time_limits_are_whole_minutes_rounded_up(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "0:00:00", "4h", "-5", "1:2:3:4", "1-", "1-2:3:4:5", "1.5", "٣", "4:00:00\nx"])
def test_other_words_are_no_time_limit(text):
    with pytest.raises(FlagError, match=r"(?s)--slurm_time .*expected a time"):
        SlurmConfig(slurm_time=text)


def test_free_options_go_to_sbatch_and_those_of_the_sweep_are_refused():
    assert options_of("--exclude=node[1-3] exclusive mail_type='END FAIL'") == {
        "exclude": "node[1-3]",
        "exclusive": True,
        "mail-type": "END FAIL",
    }
    for text in ("array=0-3", "--dependency=afterok:1", "no-requeue", "-p tiny", "a='b\nc'", "'"):
        with pytest.raises(FlagError, match="--slurm_options"):
            SlurmConfig(slurm_options=text)


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(*flags) -> the one line with which a sweep ends, and its exit code."""

    def call(*flags: object) -> tuple[int, str]:
        file = tmp_path / "sweep.yaml"
        file.write_text("grid: {random_state: [1, 2]}")
        words = ["sweep", str(file), "--results_root", str(tmp_path / "results"), *map(str, flags)]
        with pytest.raises(SystemExit) as stop:
            experiment.main(words)
        (line,) = capsys.readouterr().err.splitlines()
        return stop.value.code, line

    return call


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--slurm_partition", "gpu"], "--slurm_partition needs --executor slurm"),
        (["--watch", 0], "--watch needs --executor slurm"),
        (["--max_array_parallelism", 3], "--max_array_parallelism needs --executor slurm"),
        (["--executor", "slurm"], "--executor slurm needs --slurm_time"),
        (["--executor", "slurm", "--slurm_time", 9, "--jobs", 2], "--max_array_parallelism bounds"),
        (["--executor", "slurm", "--slurm_time", 2, "--slurm_signal_delay", 120], "must be below --slurm_time 2"),
        (["--executor", "slurm", "--slurm_time", 9, "--slurm_gpus", 1], "--slurm_gpus 1: needs --device cuda"),
        (["--executor", "slurm", "--slurm_time", 9, "--device", "cuda"], "--device cuda needs --slurm_gpus 1"),
        (["--executor", "slurm", "--slurm_time", 9, "--slurm_mem", "much"], "expected an amount such as 16G"),
        (["--executor", "slrum"], "did you mean slurm?"),
    ],
)
def test_contradictions_are_refused_in_one_line(refused, flags, words):
    code, line = refused(*flags)
    assert (code, words in line) == (2, True), line


def test_without_slurm_the_flag_is_answered_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="there is no sbatch on this machine"):
        SlurmQueue(SlurmConfig(slurm_time="9"), tmp_path)


# -------------------------------------------------------------------------------------------- grouping and submissions


def test_runs_that_wait_for_the_same_are_one_array_and_large_ones_are_split():
    jobs = {"p1": None, "p2": None, "free": None, "a": "p1", "b": "p2", "c": "p1", "d": "p1"}
    assert arrays(jobs, 10) == [(None, ["p1", "p2", "free"]), ("p1", ["a", "c", "d"]), ("p2", ["b"])]
    assert arrays(jobs, 2) == [(None, ["p1", "p2"]), (None, ["free"]), ("p1", ["a", "c"]), ("p1", ["d"]), ("p2", ["b"])]
    many = {f"parent{i}": None for i in range(100)} | {f"child{i}": f"parent{i % 100}" for i in range(9900)}
    assert len(arrays(many, 1000)) == 1 + 100


def test_records_say_which_run_is_in_which_task_and_the_newest_counts(tmp_path):
    old, new = Submission("b" * 16, ("run/a", "run/b"), None, 1.0, "7"), Submission("a" * 16, ("run/b",), "run/p", 2.0, "8")
    for submission in (old, new):
        submission.write(tmp_path)
    assert read_submissions(tmp_path) == ([old, new], [])
    tasks = latest_tasks([old, new])
    assert {name: task.submission.task_id(task.index) for name, task in tasks.items()} == {"run/a": "7_0", "run/b": "8"}


def test_damaged_records_and_names_outside_of_the_results_root_are_left_out(tmp_path):
    folder = record_folder(tmp_path)
    good = Submission("good", ("a/b/c/d",), None)
    good.write(tmp_path)
    fields = {"key": "x", "runs": ["a"], "after": None, "submitted": 1.0, "job": "1"}
    texts = ["", "{", "[]", "null", '"text"', "[" * 100_000, json.dumps({"runs": 3})]
    changes = [{"runs": ["../../etc"]}, {"runs": ["/etc"]}, {"runs": []}, {"runs": [3]}, {"after": "../p"}, {"job": "1 2; rm"},
               {"job": 5}, {"submitted": "now"}, {"key": "y"}, {"more": 1}, {"runs": ["a\0b"]}]  # fmt: skip
    for index, text in enumerate([*texts, *(json.dumps(fields | change) for change in changes)]):
        (folder / f"bad{index}.json").write_text(text)
    (folder / "x.json").write_bytes(b"\xff\xfe")
    os.mkfifo(folder / "pipe.json")
    submissions, damaged = read_submissions(tmp_path)
    assert submissions == [good]
    assert len(damaged) == len(texts) + len(changes) + 2


def test_the_answer_of_squeue_is_read_line_by_line():
    text = "12_0|sweep-k1|RUNNING|None\n12_3|sweep-k1|PENDING|Dependency\n9|sweep-k2|COMPLETED|None\n10|other|RUNNING|None\n?\n"
    assert tasks_in(text) == {
        ("k1", 0): Known("12_0", "RUNNING", "None"),
        ("k1", 3): Known("12_3", "PENDING", "Dependency"),
        ("k2", 0): Known("9", "COMPLETED", "None"),
    }
    assert cancel_line(["12_0", "12_3", "9"]) == "scancel 12 9"


# ------------------------------------------------------------------------------------------------- the executor


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Commands of SLURM that number submissions, refuse arrays above `limit`, and answer with the file `squeue`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "limit").write_text("100")
    (tmp_path / "squeue").write_text("")
    scripts = {
        "srun": "",
        "squeue": f"cat {tmp_path}/squeue",
        "scontrol": "echo 'MaxArraySize            = 4'",
        "sbatch": f"""
            tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
            if [ $(( ${{tasks:-0}} + 1 )) -gt $(cat {tmp_path}/limit) ]; then
                echo "sbatch: error: AssocMaxSubmitJobLimit: job submit limit" >&2; exit 1
            fi
            cp "$1" {tmp_path}/script$(ls {tmp_path}/script* 2>/dev/null | wc -l)
            echo "Submitted batch job $(ls {tmp_path}/script* | wc -l)"
        """,
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "QUERY_SHARE", 1e9)  # every poll asks
    return tmp_path


def job(root, name: str) -> Job:
    return Job(name, ("--random_state", "1"), RunFolder(root / name), root / "logs" / f"{name}.log")


def queue_of(root, jobs: dict[str, str | None], **flags) -> SlurmQueue:
    queue = SlurmQueue(SlurmConfig(slurm_time="9", **flags), root)
    queue.poll_seconds = 0.0
    for name, after in jobs.items():
        queue.submit(job(root, name), [after] if after else [])
    return queue


def scripts(folder) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("script*"))]


def answer(folder, *tasks: tuple[int, int, str]) -> None:
    """Let squeue tell of (submission's number from 1, index, state)."""
    submissions = {submission.job: submission for submission in read_submissions(folder / "results")[0]}
    lines = [
        f"{submission.task_id(i)}|sweep-{submission.key}|{s}|None" for n, i, s in tasks for submission in [submissions[str(n)]]
    ]
    (folder / "squeue").write_text("\n".join(lines))


def test_children_depend_on_exactly_their_parents_task_and_flags_reach_sbatch(stand_in):
    jobs = {"p": None, "q": None, "a": "p", "b": "q", "c": "p"}
    flags = {"slurm_partition": "gpu", "slurm_options": "exclude=n7", "slurm_setup": "module load x", "slurm_cpus": 3}
    queue_of(stand_in / "results", jobs, max_array_parallelism=2, slurm_signal_delay=77, **flags).poll()
    parents, of_p, of_q = scripts(stand_in)
    assert "--array=0-1%2\n" in parents
    assert "dependency" not in parents
    assert "--dependency=afterok:1_0\n" in of_p
    assert "--array=0-1%2\n" in of_p
    assert "--dependency=afterok:1_1\n" in of_q
    assert "--array" not in of_q
    for words in ("--partition=gpu", "--exclude=n7", "--kill-on-invalid-dep=yes", "--requeue", "--time=9", "USR2@77",
                  "--cpus-per-task=3", "\nmodule load x\n"):  # fmt: skip
        assert all(words in script for script in scripts(stand_in)), words


def test_a_chain_is_an_array_for_each_generation_and_every_run_depends_on_its_parents_task(stand_in):
    chains = {f"{chain}{k}": f"{chain}{k - 1}" if k else None for k in range(4) for chain in "ab"}
    queue_of(stand_in / "results", chains).poll()
    dependencies = [line for script in scripts(stand_in) for line in script.splitlines() if "--dependency" in line]
    assert dependencies == [f"#SBATCH --dependency=afterok:{task}" for task in ("1_0", "1_1", "2", "3", "4", "5")]
    assert [s.runs for s in read_submissions(stand_in / "results")[0]] == [
        ("a0", "b0"), ("a1",), ("b1",), ("a2",), ("b2",), ("a3",), ("b3",)
    ]  # fmt: skip


def test_a_failure_in_a_chain_blocks_all_that_come_after_it(stand_in, status):
    root, name = stand_in / "results", "data/net/mode/{}".format
    queue = queue_of(root, {name(k): name(k - 1) if k else None for k in range(4)})
    queue.poll()
    made_up_run(root, "1", epoch=3, log="$ run.py\nboom\nexit code 1\n")
    log = job(root, name(1)).log
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(first_line(job(root, name(1))) + "\nexit code 1\n")
    answer(stand_in, (1, 0, "COMPLETED"), (2, 0, "FAILED"), (3, 0, "CANCELLED"), (4, 0, "CANCELLED"))
    queue.poll()
    assert list(queue.states.values()) == [FINISHED, FAILED, BLOCKED, BLOCKED]
    assert queue.done
    assert "1 failed, 2 blocked" in status(root)[0]


def test_a_chain_whose_parent_was_cancelled_is_interrupted_and_not_blocked(stand_in, status):
    root, name = stand_in / "results", "data/net/mode/{}".format
    queue_of(root, {name(k): name(k - 1) if k else None for k in range(3)}).poll()
    answer(stand_in, (1, 0, "CANCELLED"), (2, 0, "CANCELLED"), (3, 0, "CANCELLED"))
    assert "3 interrupted" in status(root)[0]
    for key, run, after in (("k1", "x", "y"), ("k2", "y", "x")):  # made-up records that wait for each other
        Submission(key, (name(run),), name(after), 9e9, "77").write(root)
    assert "5 interrupted" in status(root)[0]


def test_a_second_sweep_takes_up_jobs_and_submits_only_what_slurm_no_longer_has(stand_in):
    jobs, root = {"p": None, "q": None, "a": "p", "b": "q"}, stand_in / "results"
    queue_of(root, jobs).poll()
    assert len(scripts(stand_in)) == 3
    answer(stand_in, (1, 0, "RUNNING"), (1, 1, "CANCELLED"), (2, 0, "PENDING"))
    second = queue_of(root, jobs)
    second.poll()
    assert second.states == {"p": RUNNING, "q": QUEUED, "a": QUEUED, "b": QUEUED}
    again, child = scripts(stand_in)[3:]
    assert "--array" not in again
    assert "--dependency=afterok:4\n" in child
    assert second.stop()[-1].split() == ["scancel", "1", "2", "4", "5"]


def test_states_follow_slurm_and_what_runs_leave_behind(stand_in):
    root = stand_in / "results"
    queue = queue_of(root, dict.fromkeys(("done", "bad")) | {"child": "bad", "late": "done"})
    queue.poll()
    with open(job(root, "bad").log, "a") as log:
        log.write("\nexit code 1\n")
    answer(stand_in, (1, 0, "COMPLETED"), (1, 1, "FAILED"), (2, 0, "CANCELLED"), (3, 0, "RUNNING"))
    queue.poll()
    assert queue.states == {"done": FINISHED, "bad": FAILED, "child": BLOCKED, "late": RUNNING}
    answer(stand_in, (3, 0, "PENDING"))  # requeued
    queue.poll()
    assert queue.states["late"] == QUEUED
    answer(stand_in)  # forgotten
    queue.poll()
    assert queue.states["late"] == INTERRUPTED
    assert queue.done
    assert queue.stop() == []


def test_a_job_that_breaks_around_its_run_says_why_and_waits_for_retry(stand_in):
    root = stand_in / "results"
    queue = queue_of(root, {"run": None})
    queue.poll()
    (root / "logs/slurm/1_0_log.out").write_text("slurmstepd: error: no such python\n")
    answer(stand_in, (1, 0, "FAILED"))
    queue.poll()
    assert queue.states == {"run": FAILED}
    assert "no such python" in job(root, "run").log.read_text()
    assert failed_before(job(root, "run"))


def test_what_slurm_does_not_accept_waits_here_until_there_is_room(stand_in, caplog):
    root, jobs = stand_in / "results", {"p": None} | {f"r{i}": None for i in range(6)} | {"child": "r5"}
    queue = queue_of(root, {"p": None})
    queue.poll()
    answer(stand_in, (1, 0, "RUNNING"))
    (stand_in / "limit").write_text("0")
    second = queue_of(root, jobs)
    second.poll()
    assert "SLURM accepts no more jobs now" in caplog.text
    assert len(second.waiting) == 7
    left = [path.name for path in (root / "logs/slurm").iterdir() if path.suffix in (".pkl", ".sh") and not path.is_symlink()]
    assert sorted(left) == ["1_submission.sh", "1_submitted.pkl"]  # of what was refused nothing is left
    assert len(read_submissions(root)[0]) == 1
    assert not second.done
    (stand_in / "limit").write_text("2")  # an array of four is halved until it fits
    second.next_submission = 0.0
    second.poll()
    assert second.waiting == []
    sizes = [1 + int(s.split("--array=0-")[1].split("%")[0]) if "--array" in s else 1 for s in scripts(stand_in)[1:]]
    assert sizes == [2, 2, 2, 1]
    assert "afterok:4_1\n" in scripts(stand_in)[-1]


def test_a_sweep_that_does_not_watch_is_done_once_slurm_has_everything(stand_in):
    queue = queue_of(stand_in / "results", {"p": None, "a": "p"}, watch=False)
    assert not queue.done
    queue.poll()
    assert queue.done


def test_a_sweep_that_only_submits_says_how_to_cancel_and_a_second_one_submits_nothing(stand_in, capsys):
    file, root = stand_in / "sweep.yaml", stand_in / "results"
    file.write_text("grid: {mode: sparse-scratch, prune_ratio: [0.8, 0.9]}")
    words = ["sweep", str(file), "--executor", "slurm", "--slurm_time", "9", "--watch", "0", "--results_root", str(root)]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            experiment.main(words)
        printed = capsys.readouterr().out
        assert stop.value.code == 0
        assert "3 runs are left to SLURM" in printed
        assert "    scancel 1 2\n" in printed
        answer(stand_in, (1, 0, "PENDING"), (2, 0, "PENDING"), (2, 1, "PENDING"))
    assert len(scripts(stand_in)) == 2


# -------------------------------------------------------------------------------------------- a job on its node


@pytest.fixture
def node(tmp_path, monkeypatch):
    """node(script, processes=1, grace=20, limit=False) -> (exit code of the job, its log) for Python code in run.py's place.

    limit: the time limit is near once every process has printed `ready`.
    """
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setattr(slurm_task, "LATE_SIGNAL_SECONDS", 0.1)
    monkeypatch.setattr(slurm_task, "BUSY_SECONDS", 0.1)
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    log = tmp_path / "log"

    def call(script: str, processes: int = 1, grace: float = 20, limit: bool = False) -> tuple[int, str]:
        log.write_text("$ run.py\n")
        file = tmp_path / "script.py"
        file.write_text(script)
        task = RunTask(tuple(launch_line([sys.executable, str(file)], processes)), str(log), processes, grace, IN_USE)

        def as_submitit_does(*_) -> None:
            assert pickle.loads(pickle.dumps(task.checkpoint())).function == task
            raise SystemExit(255)

        def limit_when_ready() -> None:
            while log.read_text().count("ready") < processes:
                time.sleep(0.02)
            os.kill(task.process.pid, signal.SIGUSR2)  # SLURM signals every process
            os.kill(os.getpid(), signal.SIGUSR2)

        signal.signal(signal.SIGUSR2, as_submitit_does)
        if limit:
            threading.Thread(target=limit_when_ready, daemon=True).start()
        try:
            task()
        except SystemExit as stop:
            return stop.code, log.read_text()
        return 0, log.read_text()

    yield call
    for number, handler in former.items():
        signal.signal(number, handler)


SAVES = """
import os, signal, sys, time
def save(*_):
    open(f'{{__file__}}.saved.{{os.getpid()}}', 'w').close()
    print('saved', flush=True)
    sys.exit({code})
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(60)
"""


def test_a_job_ends_as_its_run_does(node):
    assert node("print('fine')")[0] == 0
    code, log = node("raise SystemExit(3)")
    assert (code, log.endswith("\nexit code 3\n")) == (3, True)
    code, log = node("import os; os.kill(os.getpid(), 9)")
    assert (code, log.endswith("\nexit code -9\n")) == (137, True)
    code, log = node("raise SystemExit(75)")
    assert (code, log.splitlines()[-1]) == (75, "interrupted: the same sweep submits it again")


def test_at_the_time_limit_the_run_saves_before_its_job_is_requeued(node):
    code, log = node(SAVES.format(code=75), limit=True)
    assert (code, log.splitlines()[-1]) == (255, "saved")


def test_a_run_that_ends_at_the_time_limit_is_not_repeated(node):
    assert node(SAVES.format(code=0), limit=True)[0] == 0
    code, log = node(SAVES.format(code=3), limit=True)
    assert (code, log.endswith("exit code 3\n")) == (3, True)


def test_several_processes_under_torchrun_all_save_before_their_job_is_requeued(node, tmp_path):
    code, log = node(SAVES.format(code=75), processes=2, limit=True)
    assert (code, len(list(tmp_path.glob("script.py.saved.*")))) == (255, 2), log  # in the log their lines may mix


def test_a_launcher_that_nobody_asked_to_end_has_failed():
    task = RunTask(("torchrun",), "log", 2, 1.0, IN_USE)
    task.asked = False
    assert not task.interrupted(1)
    task.asked = True
    assert task.interrupted(1)
    assert not task.interrupted(0)


def test_a_run_that_does_not_save_in_time_is_killed_and_its_job_requeued(node):
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    code, log = node(script, grace=0.3, limit=True)
    assert (code, "is killed" in log) == (255, True)


def test_a_run_outlives_the_signal_that_slurm_sends_to_every_process(node):
    assert node("import os; os.kill(os.getpid(), 12)")[0] == 0


def test_a_run_that_another_process_holds_is_waited_for(node, tmp_path):
    script = f"import os; p = {str(tmp_path / 'once')!r}; os.path.exists(p) or (open(p, 'w'), print({IN_USE!r}), exit(1))"
    code, log = node(script)
    assert (code, log.count(IN_USE), log.count("SLURM job 5 on")) == (0, 1, 2)


def test_the_allocated_cores_are_shared_by_the_processes(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert threads(1)["OMP_NUM_THREADS"] == "6"
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert threads(2) == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    assert threads(8)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", " ")
    assert threads(1)["OMP_NUM_THREADS"] == "6"


@pytest.mark.parametrize(
    ("name", "value"), [("SLURM_CPUS_PER_TASK", "4(x2)"), ("SLURM_CPUS_PER_TASK", "0"), ("SLURM_CPUS_ON_NODE", "all")]
)
def test_a_number_of_cores_that_is_none_fails_the_job_in_one_line(node, monkeypatch, name, value):
    for variable in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    code, log = node("print('started')")
    assert code == 1
    assert "Traceback" not in log
    assert "started" not in log.replace("not started", "")
    *_, reason, last = filter(None, log.splitlines())
    assert reason.startswith(f"not started: the environment has {name}={value}: expected a whole number of at least 1")
    assert last == "exit code 1"


def test_several_gpus_train_under_torchrun():
    assert launch_line(["python", "run.py", "--lr", "1"], 1) == ["python", "run.py", "--lr", "1"]
    words = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4", "run.py", "--lr", "1"]
    assert launch_line(["python", "run.py", "--lr", "1"], 4) == words


# ------------------------------------------------------------------------------------------------------- status


@pytest.fixture
def status(capsys):
    """status(root, *flags) -> the lines that `experiment.py status` prints."""

    def call(root, *flags: str) -> list[str]:
        with pytest.raises(SystemExit) as stop:
            experiment.main(["status", str(root), *flags])
        assert stop.value.code == 0
        return capsys.readouterr().out.splitlines()

    return call


def made_up_run(root, name: str, *files: str, epoch: int | None = None, log: str | None = None) -> None:
    folder = root / "data/net/mode" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("lr: 0.1\nn_epochs: 30\n")
    for file in files:
        (folder / file).write_bytes(b"PK\5\6" + bytes(18) if file == "model.pt" else b"{}")
    if epoch is not None:
        (folder / "history.csv").write_text("epoch,lr\n" + "".join(f"{i},0.1\n" for i in range(epoch + 1)))
    if log is not None:
        (root / "logs").mkdir(exist_ok=True)
        (root / "logs" / f"data_net_mode_{name}.log").write_text(log)


def snapshot(root) -> dict:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


def test_status_tells_every_state_and_changes_nothing(stand_in, status):
    root = stand_in / "results"
    made_up_run(root, "whole", "summary.json", "model.pt", epoch=30)
    made_up_run(root, "held", ".lock", epoch=12)
    made_up_run(root, "bad", epoch=3, log="$ run.py\nboom\nexit code 1\n")
    made_up_run(root, "stopped", epoch=4, log="$ run.py\n")
    made_up_run(root, "going", epoch=5, log="$ run.py\n")
    (root / "logs/data_net_mode_early.log").write_text("$ run.py\nno data\nexit code 1\n")
    name = "data/net/mode/{}".format
    Submission("k1", (name("going"), name("next"), name("lost")), None, 1.0, "7").write(root)
    Submission("k2", (name("orphan"),), name("bad"), 2.0, "8").write(root)
    (stand_in / "squeue").write_text("7_0|sweep-k1|RUNNING|None\n7_1|sweep-k1|PENDING|Priority\n")
    before = snapshot(root)
    with exclusive(root / "data/net/mode/held"):
        lines = status(root)
    assert lines[0] == f"9 runs under {root}: 2 running, 1 queued, 1 finished, 2 failed, 1 blocked, 2 interrupted"
    assert {tuple(line.split()[:3]) for line in lines[2:]} == {
        ("running", "epoch", "5/30"), ("running", "epoch", "12/30"), ("failed", "epoch", "3/30"),
        ("failed", "data_net_mode_early", f"{root}/logs/data_net_mode_early.log"),
    }  # fmt: skip
    assert any("job 7_0" in line and line.endswith("going.log") for line in lines)
    assert len(status(root, "--all")) == 2 + 9
    after = snapshot(root)
    lock = root / "data/net/mode/held/.lock"  # held by the test itself, which rewrote it
    assert {k: v for k, v in after.items() if k not in (lock,)} == {k: v for k, v in before.items() if k not in (lock,)}


def test_status_without_slurm_does_not_guess_what_its_jobs_do(tmp_path, status, monkeypatch):
    Submission("k1", ("a/b/c/d",), None, 1.0, "7").write(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = status(tmp_path)
    assert lines[0].endswith("1 unknown")
    assert "SLURM does not answer" in lines[1]


def test_status_prints_hostile_names_harmlessly_and_survives_damage(stand_in, status):
    root = stand_in / "results"
    made_up_run(root, "red\x1b[31m\nfailed x\u202e", ".lock", epoch=1, log="exit code 1\n")
    made_up_run(root, "broken", log="exit code 1\n")
    folder = root / "data/net/mode/broken"
    (folder / "history.csv").write_bytes(b"\xff\x00,\n")
    (folder / "config.yaml").write_bytes(os.urandom(5000))
    os.mkfifo(root / "logs/pipe.log")
    made_up_run(root, "piped")
    os.mkfifo(root / "data/net/mode/piped/.lock")
    os.symlink(root, root / "data/net/mode/loop")
    (root / "logs/slurm/records").mkdir(parents=True)
    (root / "logs/slurm/records/bad\x1b[2J.json").write_text("{")
    lines = status(root)
    text = "\n".join(lines)
    assert lines[0].endswith("2 failed, 2 interrupted")
    assert all(character.isprintable() for line in lines for character in line)
    assert "left out, since it is damaged" in text
    assert len(lines) == 3 + 2
    assert sum(line.startswith("failed") for line in lines) == 2


def test_status_of_no_folder_is_one_line(tmp_path):
    with pytest.raises(RuntimeError, match="is no folder"):
        experiment.main(["status", str(tmp_path / "nowhere")])
