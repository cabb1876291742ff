"""`experiment.py remove`: whole runs, none that is under way or needed, and nothing half-deleted after a kill."""

import os
import pty
import shutil
import subprocess
import sys

import pytest

import experiment
from helper.schema.config import replace, unflatten
from helper.system.locks import exclusive
from helper.system.sizes import in_words, size_of
from helper.system.versions import ROOT
from optim.chain import runs_before
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study import removal
from tests.outcome import outcome

HOLD = """
import sys
from pathlib import Path
from helper.system.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def config_of(root, **flags) -> RunConfig:
    return unflatten(RunConfig, {"results_root": str(root), "figures": False, **flags})


@pytest.fixture
def family(tmp_path):
    """{name: folder}: a dense run with two children and a chain of three rounds, and another dense run."""
    chain = config_of(tmp_path, mode="iterative", prune_ratio=0.488, prune_step=0.2)
    rounds = [*runs_before(chain), chain]
    assert len(rounds) == 4
    configs = {
        "dense": rounds[0], "first": rounds[1], "second": rounds[2], "last": chain,
        "scratch": config_of(tmp_path, mode="sparse-scratch", prune_ratio=0.9),
        "dynamic": config_of(tmp_path, mode="dynamic", prune_ratio=0.9), "other": config_of(tmp_path, random_state=7),
    }  # fmt: skip
    return {name: write_run(config).path.resolve() for name, config in configs.items()}


def removed(*words):
    return outcome(experiment.main, "remove", "--yes", *words)


def there(family) -> set[str]:
    return {name for name, path in family.items() if path.exists()}


def test_a_run_that_nobody_needs_goes_with_all_of_its_files_and_its_log(family, tmp_path):
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / f"{family['dynamic'].relative_to(tmp_path.resolve()).as_posix().replace('/', '_')}.log"
    log.write_text("exit code 1\n")
    size = in_words(size_of(family["dynamic"]))
    found = removed(family["dynamic"], family["other"])
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[0] == f"{family['dynamic']}: {size}"
    assert found.out.splitlines()[-1].startswith("removed 2 runs, ")
    assert there(family) == family.keys() - {"dynamic", "other"}
    assert not log.exists()
    assert not list(tmp_path.glob(".removed-*"))


@pytest.mark.parametrize(
    ("parent", "children"),
    [("dense", {"first", "second", "last", "scratch"}), ("first", {"second", "last"}), ("second", {"last"})],
)
def test_a_run_that_others_need_stays_unless_they_go_as_well(family, parent, children):
    assert any(str(family[child]) in removed(family[parent]).line for child in children)
    assert there(family) == family.keys()
    if len(children) > 1:
        some = sorted(children)[1:]
        assert "is needed by" in removed(family[parent], *(family[child] for child in some)).line
        assert there(family) == family.keys()
    assert removed(family[parent], "--children", 1).code == 0
    assert there(family) == family.keys() - {parent, *children}


def test_children_that_are_named_need_no_flag(family):
    children = [family[name] for name in ("first", "second", "last", "scratch")]
    assert removed(family["dense"], *children, family["dense"]).code == 0
    assert there(family) == {"dynamic", "other"}


def test_an_unfinished_child_and_one_that_was_given_a_path_need_their_parent(family):
    (family["scratch"] / "summary.json").unlink()
    for name in ("first", "second", "last"):
        shutil.rmtree(family[name])
    assert str(family["scratch"]) in removed(family["dense"]).line
    config = config_of(family["other"].parents[3], mode="sparse-scratch", prune_ratio=0.8)
    child = write_run(config)
    given = replace(config, pretrain_model_path=str(family["other"]))
    text = child.config.read_text() + f"pretrain_model_path: {given.pretrain_model_path}\n"
    child.config.write_text(text)
    child.summary.unlink()
    assert str(child.path) in removed(family["other"]).line


def test_a_damaged_run_that_may_need_a_parent_is_named_and_can_be_removed(family):
    (family["last"] / "config.yaml").write_text("mode: [")
    assert f"whether {family['last']} needs" in removed(family["other"]).line
    assert removed(family["dynamic"]).code == 0
    assert removed(family["last"], family["other"]).code == 0
    assert there(family) == {"dense", "first", "second", "scratch"}


def test_runs_under_way_stay_and_so_do_all_that_are_named_with_them(family):
    command = [sys.executable, "-c", HOLD, str(family["other"])]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert "in use" in removed(family["dynamic"], family["other"]).line
        assert there(family) == family.keys()
        process.stdin.close()
        process.wait()
    assert removed(family["dynamic"], family["other"]).code == 0


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("yes", True), ("n", False), ("", False), ("yess", False)])
def test_it_asks_at_a_terminal(family, monkeypatch, answer, gone):
    master, slave = pty.openpty()
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(master, f"{answer}\n".encode())
        found = outcome(experiment.main, "remove", family["dynamic"])
    os.close(master)
    assert found.code == 0
    assert "Remove 1 run, " in found.out
    assert family["dynamic"].exists() is not gone
    assert ("nothing was removed" in found.out) is not gone


def test_without_a_terminal_it_wants_yes(family, monkeypatch, tmp_path):
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty") as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        found = outcome(experiment.main, "remove", family["dynamic"])
    assert found.code == 2
    assert "--yes" in found.line
    assert there(family) == family.keys()


@pytest.mark.parametrize("what", ["rename", "rmtree"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_leaves_whole_runs_that_have_what_they_need(family, tmp_path, monkeypatch, what, after):
    """Stopped by an exception that nothing catches, where a kill would stop it."""
    whole = {name: size_of(path) for name, path in family.items()}
    calls = []

    def stopped(function):
        def call(*args, **kwargs):
            if len(calls) == after or what == "rmtree":
                if what == "rmtree" and after:
                    (next(tmp_path.glob(".removed-*")) / "0" / "history.csv").unlink()
                raise KeyboardInterrupt
            calls.append(args)
            return function(*args, **kwargs)

        return call

    module = os if what == "rename" else shutil
    config = removal.RemoveConfig(yes=True, children=True)
    with monkeypatch.context() as patch:
        patch.setattr(module, what, stopped(getattr(module, what)))
        with pytest.raises(KeyboardInterrupt):
            removal.remove(config, str(family["dense"]))
    left = there(family)
    for name in left:
        assert size_of(family[name]) == whole[name]
    needs = {"first": {"dense"}, "second": {"dense", "first"}, "last": {"dense", "first", "second"}, "scratch": {"dense"}}
    for name in left:
        assert needs.get(name, set()) <= left
    assert removed(family["dynamic"]).code == 0
    assert not list(tmp_path.glob(".removed-*"))


def test_what_is_no_run_is_refused_and_nothing_goes(family, tmp_path):
    (tmp_path / "report").mkdir()
    with exclusive(tmp_path / "report"):
        pass
    link = tmp_path / "link"
    link.symlink_to(family["dynamic"])
    for path, words in ((tmp_path, "no run folder"), (tmp_path / "report", "no run folder"), (tmp_path / "x", "no run folder"),
                        (link, "is a link")):  # fmt: skip
        found = removed(family["dynamic"], path)
        assert found.code == 1
        assert words in found.line
    assert there(family) == family.keys()
