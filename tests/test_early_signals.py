"""A signal before there is anything to save: exit code 75 and one line, wherever it comes."""

import os
import signal
import subprocess
import sys

import pytest

from helper.system.versions import ROOT

# the program sends itself a signal where a module is looked for the first time
AT_IMPORT = """
import os, runpy, signal, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.{number})

sys.meta_path.insert(0, Sender())
sys.argv = {words!r}
sys.path.insert(0, '.')
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# run.py in a process that is sent a signal just before a function's result is used
AT_CALL = """
import os, signal, run
called = {function}
def asked(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return called(*args, **kwargs)
{function} = asked
run.main({words!r})
"""
INERT = ["--momentum", "0.5", "--optimizer_name", "adam", "--n_epochs", "1", "--lr_milestones", "1"]
NOTE = "run.py: --momentum 0.5 has no effect with"


def ended(code: str, **variables: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("helper.command_line.help", "SIGTERM"),
        ("torch", "SIGINT"),
        ("numpy", "SIGUSR1"),
        ("torch.nn", "SIGUSR2"),
        ("optim.main", "SIGTERM"),
    ],
)
def test_a_signal_while_a_run_imports_ends_it_with_one_line(module, number, tmp_path):
    words = ["run.py", "--results_root", str(tmp_path / "results")]
    code, out, err = ended(AT_IMPORT.format(module=module, number=number, words=words))
    assert (code, out, err) == (75, "", f"run.py: {number}: stopped; the same command goes on from there\n")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("command", "module"),
    [("status", "helper.command_line.help"), ("status", "torch"), ("status", "study.sweeping.status"), ("report", "pandas")],
)
def test_a_signal_while_a_command_imports_ends_it_with_one_line(command, module, tmp_path):
    code, out, err = ended(AT_IMPORT.format(module=module, number="SIGTERM", words=["experiment.py", command, str(tmp_path)]))
    assert (code, out, err) == (75, "", "experiment.py: SIGTERM: stopped; the same command goes on from there\n")


def test_of_several_processes_that_import_the_first_one_speaks(tmp_path):
    code = AT_IMPORT.format(module="torch", number="SIGTERM", words=["run.py", "--results_root", str(tmp_path)])
    assert ended(code, RANK="1", WORLD_SIZE="2") == (75, "", "")
    assert ended(code, RANK="0", WORLD_SIZE="2")[2].startswith("run.py: SIGTERM: stopped")


@pytest.mark.parametrize("function", ["run.parse", "run.without_effect", "run.log_to_stderr", "run.train_run"])
def test_a_signal_before_the_first_look_for_one_is_not_lost(function, tmp_path):
    """Also after a line has been printed: who has read one may count on an orderly end."""
    root = tmp_path / "results"
    code, out, err = ended(AT_CALL.format(function=function, words=[*INERT, "--results_root", str(root)]))
    assert (code, out) == (75, "")
    note, end = err.splitlines()
    assert note.startswith(NOTE)
    assert end == "run.py: SIGTERM: stopped; the same command goes on from there"
    assert list(root.glob("*/*/*/*/state_dicts/*")) == []


def test_one_who_reads_the_first_line_may_ask_for_an_end(tmp_path):
    command = [sys.executable, "run.py", *INERT, "--n_epochs", "3000", "--results_root", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith(NOTE)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 75
    assert said.splitlines()[-1].startswith("run.py: SIGTERM: stopped")


def test_a_program_that_is_imported_leaves_the_signals_alone():
    code = "import signal, run, experiment; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    assert ended(code)[:2] == (0, "True\n")
