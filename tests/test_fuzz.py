"""Whatever stands in flags, YAML and files: a documented exit code, one line, no traceback, no hang.

FUZZ_EXAMPLES=1000 tries more, other ones at every call; in an ordinary run the examples are always the same.
"""

import builtins
import io
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import experiment
import run as command_line
import study.sweeping.dry_run
from helper.schema.config import all_flags, unflatten
from helper.untrusted.yaml_text import read_yaml
from loader.main import load_dataset
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_folder, stored_options
from study.sweeping.cost import Cost
from study.sweeping.work import Work
from tests.edited import edit_summary, vouch
from tests.outcome import Outcome, outcome

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SECONDS = 60  # after which an example hangs
EXPECTED = (OSError,)  # whose line has a path and a cure; any other type of exception in a line is a bug


def fuzz(share: float):
    """Settings of a test that takes `share` of 100 examples in an ordinary run."""
    return settings(
        max_examples=max(1, round(share * (EXAMPLES or 100))), deadline=None, derandomize=not EXAMPLES, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(number, frame):
        raise AssertionError(f"it takes more than {SECONDS} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def documented(main, *words: object) -> Outcome:
    """The outcome of a command, which has to be one that the README knows."""
    with no_hang():
        found = outcome(main, *words)
    assert found.code in (0, 1, 2, 75), found
    if found.code in (1, 2):
        line = found.line
        named = re.search(r"error: (\w+): ", line)
        kind = getattr(builtins, named[1], None) if named else None
        assert not (isinstance(kind, type) and not issubclass(kind, EXPECTED)), line
        assert line.isprintable()
        assert len(line) < 3000
    return found


# ---------------------------------------------------------------------------------------------------- configuration


NAMES = sorted(set(all_flags(RunConfig)) - {"debug", "root"})
CHOICES = sorted({c for f in all_flags(RunConfig).values() for c in f.metadata["flag"].choices or ()})
ODD = (
    "", "0", "1", "-1", "nan", "inf", "1e400", "1e-400", "0.5", "5.5", "null", "~", "[]", "{}", "1-2", "2-1", "all", "none",
    "a\nb", "\x1b[2J", "../..", "0x10", "1_000", "9" * 5000, "٣", "½", "1:30", "!!int 3", "*a", "<<", "=",
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(ODD), st.sampled_from(CHOICES), st.integers().map(str), st.floats().map(str), st.text(max_size=12),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.dates(), st.binary(max_size=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6,
)  # fmt: skip
FLAGS = st.lists(st.tuples(st.sampled_from(NAMES), WORDS), max_size=4)


@pytest.fixture
def stand_in(tmp_path_factory):
    """run.main that trains nothing, but stores the configuration, reads it back and finds the same run by it."""

    def train_run(config: RunConfig, signals: object) -> Path:
        folder = run_folder(config, None)
        stored = unflatten(RunConfig, read_yaml(yaml.safe_dump(stored_options(config), sort_keys=False)))
        assert run_folder(stored, None) == folder
        return folder.path

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        patch.setattr(command_line, "train_run", train_run)
        patch.setattr(study.sweeping.dry_run, "cost_of", lambda run: Cost(Work(), 1.0))
        yield


@fuzz(0.5)
@given(flags=FLAGS)
def test_any_flags(stand_in, flags):
    documented(command_line.main, *(f"--{name}={value}" for name, value in flags))


@fuzz(0.5)
@given(words=st.lists(WORDS | st.sampled_from([f"--{name}" for name in NAMES]), max_size=5))
def test_any_words(stand_in, words):
    documented(command_line.main, *words)
    documented(experiment.main, *words)


@fuzz(1.0)
@given(content=st.dictionaries(st.sampled_from(NAMES) | WORDS, VALUES, max_size=4) | VALUES)
def test_any_values_in_a_yaml_file(stand_in, content):
    Path("any.yaml").write_text(yaml.safe_dump(content))
    documented(command_line.main, "--config", "any.yaml")


YAML_LIKE = st.text(st.sampled_from("ab: -[]{}&*!|>?,#%@`'\"\n\t01.~<\0é"), max_size=40)


@fuzz(0.5)
@given(
    text=YAML_LIKE,
    head=st.sampled_from(["", "lr: ", "grid: ", "flags: ", "config: ", "grid:\n  - ", "!!int ", "lr: !!python/name:"]),
)
def test_any_text_in_a_yaml_file(stand_in, text, head):
    Path("any.yaml").write_text(head + text)
    documented(command_line.main, "--config", "any.yaml")
    documented(experiment.main, "sweep", "any.yaml", "--dry_run")


CLEAN = st.sampled_from(
    [name for name in NAMES if name not in ("loader_name", "device", "train_noisy", "test_size", "val_size")]
)


@fuzz(0.7)
@given(
    flags=st.dictionaries(CLEAN, st.one_of(VALUES, st.integers(0, 5)), max_size=2),
    grid=st.dictionaries(CLEAN, st.lists(st.integers(0, 5) | WORDS, max_size=2) | VALUES, max_size=3),
)
def test_any_sweep(stand_in, flags, grid):
    Path("sweep.yaml").write_text(yaml.safe_dump({"flags": flags, "grid": grid}))
    documented(experiment.main, "sweep", "sweep.yaml", "--dry_run")


@fuzz(0.5)
@given(
    command=st.sampled_from(sorted(experiment.COMMANDS)),
    words=st.lists(WORDS, max_size=3),
    flags=st.lists(st.tuples(st.sampled_from(["metrics", "epochs", "points", "images", "title", "jobs"]), WORDS), max_size=2),
)
def test_any_command(stand_in, command, words, flags):
    documented(experiment.main, command, *words, *(f"--{name}={value}" for name, value in flags))


# -------------------------------------------------------------------------------------------------------------- files


def mutate(content: bytes, draw) -> bytes:
    """Truncate, flip, cut out, repeat, overwrite, or replace by something else."""
    if not content:
        return draw(st.binary(max_size=20))
    at = draw(st.integers(0, len(content) - 1))
    some = draw(st.integers(1, 64))
    kind = draw(st.sampled_from(["truncate", "flip", "cut", "repeat", "overwrite", "digit", "replace"]))
    if kind == "truncate":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if kind == "cut":
        return content[:at] + content[at + some :]
    if kind == "repeat":
        return content[:at] + content[at : at + some] * 3 + content[at:]
    if kind == "overwrite":
        return content[:at] + draw(st.binary(min_size=some, max_size=some)) + content[at + some :]
    if kind == "digit":
        places = [m.start() for m in re.finditer(rb"[0-9]", content[:20_000])] or [0]
        at = draw(st.sampled_from(places))
        return (
            content[:at]
            + draw(st.sampled_from([b"9" * 40, b"-1", b"nan", b"x", b"", b"1e999", b"[", b'"']))
            + content[at + 1 :]
        )
    return draw(
        st.sampled_from([b"", b"{}", b"[]", b"null", b"\0" * 100, b"epoch\n1\n", b"\x80\x02N.", b"PK\x05\x06" + bytes(18)])
    )


QUICK = (
    "--figures", 0, "--save_fisher", 0, "--n_epochs", 2, "--lr_milestones", 1, "--hidden_dims", 4, "--limit_train", 40,
    "--limit_test", 20, "--batch_size", 10, "--save_epochs", "all",
)  # fmt: skip
MODES = ("dense", "sparse-finetune", "sparse-scratch")


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    """{finished, half done: a results root with a dense run and two sparse ones}; with one comparison of either kind."""
    root = tmp_path_factory.mktemp("trees") / "finished"
    for mode in MODES:
        assert outcome(command_line.main, *QUICK, "--mode", mode, "--results_root", root).code == 0
    folders = [next(root.glob(f"*/*/{mode}/*")) for mode in MODES]
    for words in (
        ("interpolate", folders[2], folders[1], "--points", 3, "--figures", 0),
        ("disagree", *folders[:2], "--images", 0),
    ):
        assert outcome(experiment.main, *words).code == 0
    half = root.with_name("half done")
    shutil.copytree(root, half)
    for folder in half.glob("digits/*/*/*"):
        (folder / "summary.json").unlink()
        (folder / "checkpoint.previous.pt").replace(folder / "checkpoint.pt")  # an epoch earlier
        shutil.copy(folder / "checkpoint.pt", folder / "checkpoint.previous.pt")
    return {"finished": root, "half done": half}


def copy_one(trees: dict[str, Path], root: Path, data: st.DataObject) -> None:
    """Put one of the trees at `root`, in place of what stands there."""
    origin = trees[data.draw(st.sampled_from(sorted(trees)))]
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(origin, root)


@fuzz(0.12)
@given(data=st.data())
def test_any_damage_to_any_file_of_a_run(trees, tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "damaged"
    copy_one(trees, root, data)
    kinds = {path.name: path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"}
    path = kinds[data.draw(st.sampled_from(sorted(kinds)))]
    path.write_bytes(mutate(path.read_bytes(), data.draw))
    mode = next((mode for mode in MODES if mode in path.parts), "sparse-scratch")
    folders = {mode: next(root.glob(f"*/*/{mode}/*")) for mode in MODES}
    scratch, finetune = folders["sparse-scratch"], folders["sparse-finetune"]
    commands = [
        (command_line.main, *QUICK, "--mode", mode, "--results_root", root),
        (command_line.main, *QUICK, "--mode", mode, "--results_root", root, "--save_fisher", 1, "-ms", 10, "--figures", 1),
        (experiment.main, "measure", folders[mode], "--metrics", "jacobian", "-ms", 10, "--epochs", "all"),
        (experiment.main, "report", root), (experiment.main, "interpolate", scratch, finetune, "--points", 3, "--figures", 0),
        (experiment.main, "disagree", folders["dense"], finetune, "--images", 0),
    ]  # fmt: skip
    documented(*data.draw(st.sampled_from(commands)))


SETS = {
    "cifar-100-python/train": "cifar100", "cifar-100-python/meta": "cifar100", "cifar-10-batches-py/batches.meta": "cifar10",
    "cifar-10-batches-py/data_batch_1": "cifar10", "CIFAR-100_human.pt": "cifar100_noisy", "var_u.mat": "toy",
    "MNIST/raw/train-images-idx3-ubyte.gz": "mnist", "MNIST/raw/t10k-labels-idx1-ubyte.gz": "mnist",
}  # fmt: skip


@fuzz(1.0)
@given(data=st.data())
def test_any_damage_to_any_data_file(files, tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "damaged data"
    if not root.exists():
        shutil.copytree(files, root)
    name = data.draw(st.sampled_from(sorted(SETS)))
    content = (files / name).read_bytes()
    (root / name).write_bytes(mutate(content, data.draw))
    load_dataset.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command_line, "train_run", lambda config, signals: load_dataset(config.data).name)
            flags = (
                "--loader_name",
                SETS[name],
                "--noise_method",
                "human",
                "--root",
                root,
                "--verify_data",
                0,
                "--download",
                0,
            )
            found = documented(command_line.main, *flags)
        assert found.code == 0 or name.rpartition("/")[2] in found.line or "train" in found.line
    finally:
        (root / name).write_bytes(content)
        load_dataset.cache_clear()


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=5), st.just(torch.zeros(2)),
              st.just(torch.zeros(4, 64)), st.just(torch.zeros(0, dtype=torch.bool))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@fuzz(0.12)
@given(data=st.data())
def test_any_content_of_sound_states_summaries_and_arrays(trees, tmp_path_factory, data):
    """Files that are whole, and hold something else than this program writes."""
    root = tmp_path_factory.getbasetemp() / "made up"
    copy_one(trees, root, data)
    folder = next(root.glob("*/*/dense/*"))
    name = data.draw(st.sampled_from(["checkpoint.pt", "model.pt", "state_dicts/epoch_0.pt", "summary.json", "spectrum.npz"]))
    path = folder / name
    if name.endswith(".pt"):
        state = torch.load(path, weights_only=True)
        inner = data.draw(st.sampled_from([None, *(key for key, value in state.items() if isinstance(value, dict) and value)]))
        target = state if inner is None else state[inner]
        key = data.draw(st.sampled_from(sorted(target)))
        target[key] = data.draw(PLAIN)
        torch.save(state, path)
    elif name == "summary.json":
        if path.exists():
            content = st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=4),
                lambda i: st.lists(i) | st.dictionaries(st.text(max_size=3), i),
                max_leaves=3,
            )
            key = data.draw(st.sampled_from(sorted(RunFolder(folder).read_summary())))
            value = data.draw(content)
            edit_summary(folder, lambda summary: summary.update({key: value}))
    else:
        arrays = {
            k: numpy.zeros(data.draw(st.integers(0, 3))) for k in ("checkpoint", "density", "grid", "eigenvalues", "matrix")
        }
        buffer = io.BytesIO()
        numpy.savez(buffer, **arrays)
        path.write_bytes(buffer.getvalue())
    if name != "summary.json" and (folder / "summary.json").exists() and data.draw(st.booleans()):
        vouch(folder)
    commands = [
        (command_line.main, *QUICK, "--results_root", root),
        (command_line.main, *QUICK, "--results_root", root, "--save_fisher", 1, "-ms", 10, "--figures", 1),
        (command_line.main, *QUICK, "--results_root", root, "--mode", "lottery"),
        (experiment.main, "measure", folder, "--metrics", "jacobian", "-ms", 10), (experiment.main, "report", root),
    ]  # fmt: skip
    documented(*data.draw(st.sampled_from(commands)))
