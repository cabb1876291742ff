"""Files from others: nothing in them is run, nothing in them grows, and their names stay text."""

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy
import pandas
import pytest
import torch
import yaml
from PIL import Image

import experiment
import run as command_line
from helper.schema.config import unflatten
from helper.untrusted.arrays import read_arrays
from helper.untrusted.texts import csv_text, one_line
from helper.untrusted.yaml_text import read_yaml
from loader import archives
from loader.archives import DataError, unpack, unpickle
from loader.loader_mnist import read_idx
from loader.main import DataConfig, load_dataset
from optim.checkpoint import DamagedFile, load_state, save_state
from optim.config import RunConfig
from optim.folder import RunFolder
from scripts.made_up_runs import write_run
from tests.edited import edit_summary, vouch
from tests.outcome import Outcome, outcome

QUICK = ("--figures", 0, "--save_fisher", 0, "--n_epochs", 1, "--hidden_dims", 8, "--limit_train", 100, "--limit_test", 50)


def start(root: Path, *flags: object) -> Outcome:
    return outcome(command_line.main, *QUICK, *flags, "--results_root", root)


@pytest.fixture
def evil(tmp_path):
    """An object whose unpickling makes a folder; the test fails when that is there at its end."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    yield Evil()
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished noisy run with a spectrum."""
    root = tmp_path_factory.mktemp("finished")
    spectrum = ("--save_spectrum", 1, "--spectrum_k", 1, "--spectrum_steps", 4, "--spectrum_runs", 1)
    found = start(root, "--train_noisy", 1, *spectrum)
    assert found.code == 0, found.err
    return found.folder


@pytest.fixture
def copied(finished, tmp_path) -> RunFolder:
    """A copy of the finished run that a test may change."""
    root = tmp_path / "results"
    shutil.copytree(finished.parents[3], root)
    folder = RunFolder(root / finished.relative_to(finished.parents[3]))
    text = folder.config.read_text()
    folder.config.write_text(text.replace(f"results_root: {finished.parents[3]}", f"results_root: {root}"))
    vouch(folder.path)
    return folder


# ----------------------------------------------------------------------------------------------------------- pickles


def test_code_in_any_file_of_a_run_is_refused_and_not_run(copied, evil):
    root = copied.path.parents[3]
    buffer = io.BytesIO()
    torch.save({"network": evil, "mask": {}, "epoch": 1}, buffer)
    for payload in (buffer.getvalue(), pickle.dumps(evil)):
        copied.model.write_bytes(payload)
        copied.epoch_state(0).write_bytes(payload)
        vouch(copied.path)
        commands = (
            (experiment.main, "measure", copied.path), (experiment.main, "measure", copied.path, "--epochs", 0),
            (experiment.main, "disagree", copied.path, copied.path), (experiment.main, "interpolate", copied.path, copied.path),
            (command_line.main, *QUICK, "-m", "sparse-finetune", "-pp", copied.model, "--results_root", root),
            (command_line.main, *QUICK, "--mode", "lottery", "--lottery_model_path", copied.model, "--results_root", root),
        )  # fmt: skip
        for main, *words in commands:
            found = outcome(main, *words)
            assert found.code == 1, words
            assert "is damaged or no checkpoint" in found.line
    copied.summary.unlink()
    copied.checkpoint.write_bytes(payload)
    (copied.path / "checkpoint.previous.pt").write_bytes(payload)
    assert start(root, "--train_noisy", 1).code == 0


@pytest.mark.parametrize("name", ["spectrum.npz", "labels.npz"])
def test_arrays_of_objects_are_refused_and_not_unpickled(copied, evil, name):
    numpy.savez(copied.path / name, x=numpy.array([evil], dtype=object), checkpoint=numpy.array(evil, dtype=object))
    vouch(copied.path)
    with pytest.raises(RuntimeError, match="Object arrays cannot be loaded"):
        read_arrays(copied.path / name)
    for main, *words in ((experiment.main, "measure", copied.path, "--metrics", "jacobian", "-ms", 20),
                         (experiment.main, "report", copied.path.parents[3])):  # fmt: skip
        found = outcome(main, *words)
        assert found.code == 0, found.err


def reduced(function: object, *arguments: object) -> type:
    return type("Reduced", (), {"__reduce__": lambda self: (function, arguments)})


@pytest.mark.parametrize(
    ("file", "network"),
    [("cifar-100-python/train", "cifar100"), ("cifar-100-python/meta", "cifar100"),
     ("cifar-10-batches-py/batches.meta", "cifar10"), ("cifar-10-batches-py/test_batch", "cifar10"),
     ("CIFAR-100_human.pt", "cifar100_noisy"), ("CIFAR-10_human.pt", "cifar10_noisy"), ("var_u.mat", "toy"),
     ("train_32x32.mat", "svhn"), ("test_32x32.mat", "svhn"), ("tiny-imagenet-200.zip", "tiny_imagenet"),
     ("MNIST/raw/t10k-labels-idx1-ubyte.gz", "mnist")],
)  # fmt: skip
def test_code_in_any_data_file_is_refused_and_not_run(files, tmp_path, evil, file, network):
    root = shutil.copytree(files, tmp_path / "data")
    buffer = io.BytesIO()
    torch.save({"clean_label": evil, "noisy_label": evil, "worse_label": evil}, buffer)
    for payload in (pickle.dumps({"data": evil}), pickle.dumps(evil, protocol=0), buffer.getvalue()):
        (root / file).write_bytes(payload)
        load_dataset.cache_clear()
        flags = ("--loader_name", network, "--noise_method", "human", "--root", root, "--verify_data", 0, "--download", 0)
        found = start(tmp_path / "results", *flags)
        assert found.code == 1
        assert file in found.line
    assert not (tmp_path / "results").exists()


OBJECTS = {
    "an array of objects": numpy.array([{}, []], dtype=object),
    "a structured array": numpy.zeros(2, dtype=[("a", "i4"), ("b", "O")]),
    "floats": numpy.zeros(3),
    "an enormous array": reduced(numpy.ndarray, (1 << 40,))(),
    "an array function": reduced(numpy.array, [1])(),
    "a dtype that was made up": reduced(numpy.dtype, "O", False, True)(),
    "eval": reduced(eval, "1")(),
    "getattr": reduced(getattr, "x", "upper")(),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_pickles_of_data_files_admit_arrays_of_bytes_and_integers_alone(tmp_path, name):
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": OBJECTS[name]}, protocol=2))
    with pytest.raises(DataError, match="batch is damaged or no data file"):
        unpickle(tmp_path / "batch")


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02]r\xff\xff\xff\x7f.", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"(" * 100_000 + b".", b"].", b"N."],
)
def test_pickles_that_ask_for_memory_or_are_no_dictionary_are_refused(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(DataError, match="batch"):
        unpickle(tmp_path / "batch")


# -------------------------------------------------------------------------------------------------- what would grow


def test_compressed_states_and_arrays_are_refused_before_they_unpack(tmp_path, copied):
    """Deflate makes a thousandth of zeros; what torch.save and numpy.savez write is not compressed."""
    save_state(tmp_path / "a.pt", {"w": torch.zeros(1000)})
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(DamagedFile, match="it is compressed"):
        load_state(tmp_path / "b.pt")
    numpy.savez_compressed(tmp_path / "b.npz", x=numpy.zeros(1000))
    with pytest.raises(RuntimeError, match="it is compressed"):
        read_arrays(tmp_path / "b.npz")


def test_arrays_that_claim_to_be_larger_than_their_file_are_refused(tmp_path):
    numpy.savez(tmp_path / "a.npz", x=numpy.zeros(10))
    content = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(tmp_path / "b.npz", "w") as packed:
        packed.writestr("x.npy", plain.read("x.npy").replace(b"(10,), }        ", b"(9999999999999,)"))
    with pytest.raises(RuntimeError, match="damaged"):
        read_arrays(tmp_path / "b.npz")


def test_a_gzip_file_is_not_read_beyond_the_size_of_a_data_file(tmp_path, monkeypatch):
    monkeypatch.setattr("loader.loader_mnist.MOST_BYTES", 10_000)
    (tmp_path / "images.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\x0f\x42\x40" + bytes(1_000_000)))
    with pytest.raises(DataError, match="damaged"):
        read_idx(tmp_path / "images.gz")


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    ("info", "named"),
    [
        (member("../outside", size=3), "../outside"),
        (member("absolute", size=3), "absolute"),  # the test makes it a whole path
        (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link"),
        (member("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "hard"),
        (member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "device"),
        (member("pipe", type=tarfile.FIFOTYPE), "pipe"),
        (member("large", size=3), "large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_archives_unpack_named_files_of_bounded_size_below_the_root_and_nothing_else(tmp_path, monkeypatch, info, named):
    if named == "large":
        monkeypatch.setattr(archives, "MOST_BYTES", 2)
    if named == "absolute":
        named = info.name = str(tmp_path / named)
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(info, io.BytesIO(b"abc") if info.size else None)
        tar.addfile(member("unasked", size=3), io.BytesIO(b"abc"))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"a\.tar\.gz"):
        unpack(tmp_path / "a.tar.gz", [named], root)
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(root) and not path.is_symlink() for path in new)
    assert not (root / "unasked").exists()
    assert not (tmp_path / "absolute").exists()


# -------------------------------------------------------------------------------------------------------------- YAML


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DOCUMENTS = {
    "a call": "lr: !!python/object/apply:os.mkdir [{ran}]\n",
    "a name": "lr: !!python/name:os.system\n",
    "a module": "lr: !!python/module:this\n",
    "an object": "lr: !!python/object/new:os.mkdir [{ran}]\n",
    "billion laughs": LAUGHS + "lr: *i\n",
    "a thousand laughs in a flag": LAUGHS.split("d:")[0] + "lr: *c\n",
    "an alias of itself": "lr: &a [*a]\n",
    "deep": "lr: " + "[" * 100_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(300)),
    "a tag that does not fit": "lr: !!int x\n",
    "a date that is none": "lr: !!timestamp x\n",
    "bytes": "lr: !!binary x\n",
    "a set": "!!set {{lr, mode}}\n",
    "keys that are lists": "? [lr, mode]\n: 3\n",
    "control characters": "lr: 1\x00\n",
    "no text": "lr: \udcff\n",
    "a list": "- lr\n",
    "nothing": "",
    "many digits": "n_epochs: " + "9" * 10_000 + "\n",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_hostile_yaml_is_refused_in_one_line_wherever_it_is_read(tmp_path, finished, name):
    text = DOCUMENTS[name].replace("{ran}", str(tmp_path / "ran")).replace("{{", "{").replace("}}", "}")
    file = tmp_path / "hostile.yaml"
    file.write_text(text, errors="surrogateescape")
    folder = tmp_path / "results" / finished.relative_to(finished.parents[3])
    folder.mkdir(parents=True)
    for name in ("model.pt", "summary.json"):
        shutil.copy(finished / name, folder)
    shutil.copy(file, folder / "config.yaml")
    (tmp_path / "sweep.yaml").write_text("config: hostile.yaml\ngrid: {random_state: 1}\n")
    commands = [
        (command_line.main, 2, "--config", file), (experiment.main, 2, "sweep", file, "--dry_run"),
        (experiment.main, 2, "sweep", tmp_path / "sweep.yaml", "--dry_run"), (experiment.main, 1, "measure", folder),
        (command_line.main, 1, *QUICK, "--train_noisy", 1, "--results_root", tmp_path / "results"),
        (experiment.main, 1, "report", tmp_path / "results"),
    ]  # fmt: skip
    for main, code, *words in commands:
        found = outcome(main, *words)
        assert (found.code, words) == (code, words), found.err
        assert len(found.line) < 1200
    assert not (tmp_path / "ran").exists()


def test_ordinary_yaml_with_anchors_is_read():
    assert read_yaml("a: &x {lr: 0.1, d: 2020-01-01}\nb:\n  <<: *x\n  lr: 1\n") == {
        "a": {"lr": 0.1, "d": "2020-01-01"}, "b": {"lr": 1, "d": "2020-01-01"},
    }  # fmt: skip
    with pytest.raises(yaml.YAMLError, match="stands twice"):
        read_yaml("a: 1\na: 2\n")


# ------------------------------------------------------------------------------------------- a results tree from others


@pytest.mark.parametrize(
    "other",
    [
        {"matrix": None}, {"matrix": "fisher"}, {"matrix": numpy.zeros(2)}, {"sigma": None}, {"sigma": "wide"},
        {"density": numpy.zeros(0), "grid": numpy.zeros(0)}, {"grid": numpy.zeros(3)}, {"eigenvalues": numpy.zeros((1, 1))},
        {"residuals": numpy.full(1, -1.0)}, {"standard_errors": numpy.full(1, -1.0)}, {"bias": numpy.full(1, numpy.inf)},
        {"density_errors": numpy.zeros(3)}, {"population": None}, {"size": numpy.nan},
        {"eigenvalues": numpy.full(1, numpy.inf)},
    ],
    ids=str,
)  # fmt: skip
def test_a_spectrum_that_is_none_is_named_with_the_cure(copied, other):
    path = copied.spectrum()
    numpy.savez(path, **{name: value for name, value in (read_arrays(path) | other).items() if value is not None})
    vouch(copied.path)
    found = start(copied.path.parents[3], "--train_noisy", 1, "--save_jacobian", 1, "-ms", 10, "--figures", 1)
    assert found.code == 1
    assert f"{path} is damaged" in found.line
    assert "remove it" in found.line


ESCAPE = "\x1b]0;owned\x07\x1b[2J"
NAMES = (
    f"two\nlines{ESCAPE}", "$\\frac{$ <script>x", "=HYPERLINK(1)", f"@{'x' * 230}", "\udcff\u202e\udcfe",
)  # fmt: skip


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A results root with hostile names on every level, pipes, links that lead in circles, and texts in tables."""
    root = tmp_path / "results"
    for seed, name in enumerate(NAMES, 1):
        for mode in ("dense", "sparse-finetune", "sparse-scratch"):
            flags = {"mode": mode, "random_state": seed, "prune_ratio": 0.9, "loader_name": "digits_noisy"}
            folder = write_run(unflatten(RunConfig, flags | {"results_root": str(tmp_path / "made")})).path
            target = Path(os.fsdecode(os.fsencode(root)), name, name, mode, f"{name[:200]}-{seed:08}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, target)
            for table in ("snr", "metrics"):
                text = (target / f"{table}.csv").read_text()
                cell = name.replace("\n", " ").encode(errors="replace").decode().replace('"', "").replace(",", "")
                (target / f"{table}.csv").write_text(text.replace(",layer1", f",{cell} layer"))
            text = name.encode(errors="replace").decode()
            edit_summary(target, lambda summary, text=text: summary["identity"].update({text: text}))
            vouch(target)
    for kind in ("pipe", "loop", "device", "folder"):
        for file in ("summary.json", "config.yaml"):
            path = root / "digits/mlp/dense" / f"{kind}-{file}" / file
            path.parent.mkdir(parents=True)
            other = path.parent / ("config.yaml" if file == "summary.json" else "summary.json")
            other.write_text("{}")
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "loop":
                path.symlink_to(path)
            elif kind == "device":
                path.symlink_to("/dev/zero")
            else:
                path.mkdir()
    (root / "digits/circle").symlink_to(root)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (30, 20)).save(secret)
    for name, file in (("up", "../../../secret.png"), ("absolute", str(secret)), ("zero", "/dev/zero"), ("markup", "a.png")):
        folder = root / "comparisons" / name
        folder.mkdir(parents=True)
        shutil.copy(secret, folder / "a.png")
        figure = {"id": NAMES[1], "file": file, "title": NAMES[0], "caption": NAMES[1]}
        result = {"title": NAMES[0], "runs": [NAMES[1]], "figures": [figure], "numbers": [{"=1+1": "<b>", "n": 1}]}
        (folder / "result.json").write_text(json.dumps(result))
    return root


def test_a_hostile_results_tree_becomes_a_report_in_which_all_of_it_is_text(hostile):
    found = outcome(experiment.main, "report", hostile)
    assert found.code == 0, found.err
    for text in (found.out, found.err):
        assert all(line.isprintable() for line in text.splitlines())
        text.encode("ascii", "backslashreplace")
    page = (hostile / "report/index.html").read_text()
    assert "<script>x" not in page
    for left_out in ("comparisons/up", "comparisons/absolute", "comparisons/zero"):
        assert f"left out {left_out}/result.json: damaged" in found.err
    runs = pandas.read_csv(hostile / "report/runs.csv")
    assert len(runs) == 3 * len(NAMES)
    for table in ("runs", "over_seeds"):
        cells = pandas.read_csv(hostile / f"report/{table}.csv", dtype=str, keep_default_na=False).to_numpy().ravel()
        formulas = [cell for cell in cells if cell.startswith(("=", "+", "-", "@")) and not is_number(cell)]
        assert not formulas
    assert {path.name for path in hostile.parent.iterdir()} == {"results", "made", "secret.png"}  # nothing beside it


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_other_commands_refuse_hostile_folders_in_one_printable_line(hostile):
    folders = [next(hostile.glob("*lines*/*/dense/*")), hostile / "digits/mlp/dense/loop-summary.json",
               hostile / "digits/mlp/dense/pipe-config.yaml", hostile / "digits/mlp/dense/device-config.yaml"]  # fmt: skip
    for folder in folders:
        for words in (("measure", folder), ("interpolate", folder, folder), ("disagree", folder, folder), ("sweep", folder)):
            found = outcome(experiment.main, *words)
            assert found.code in (1, 2), (words, found.err)
            assert found.line.isprintable()


def test_texts_that_a_spreadsheet_would_compute_get_an_apostrophe_and_numbers_stay(tmp_path):
    table = pandas.DataFrame({"=a": ["=1+1", "+x", "-x", "@x", "\tx", "plain"], "n": [-1.5, 2, 3, 4, 5, 6]})
    read = pandas.read_csv(io.StringIO(csv_text(table)))
    assert read["'=a"].tolist() == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "plain"]
    assert read["n"].tolist() == table["n"].tolist()


def test_a_line_for_the_terminal_cannot_steer_it():
    assert one_line("a\nb\x1b[2J \u202e\udcff") == r"a b\x1b[2J \u202e\udcff"
    assert len(one_line("x" * 10**6)) < 1100


def test_flags_with_control_characters_are_refused(tmp_path):
    for text in ("a\nb", "a\x1b[2J", "a\udcff", "a\0"):
        found = outcome(command_line.main, *QUICK, "--results_root", f"{tmp_path}/{text}")
        assert (found.code, "--results_root" in found.line) == (2, True)
    assert not list(tmp_path.iterdir())


def test_nothing_is_asked_of_the_network_for_files_that_are_there(files, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    load_dataset.cache_clear()
    load_dataset(DataConfig(loader_name="cifar100", root=str(files), verify_data=False))
    found = start(tmp_path, "--loader_name", "digits")
    assert found.code == 0
    assert outcome(experiment.main, "report", tmp_path).code == 0
