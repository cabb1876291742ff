"""Code of a user's own: what names it, which version it is, the arguments that it gets, and that it runs only where named."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from helper.own import calls, consent
from helper.own.calls import OwnCodeError, arguments_for, canonical_arguments, imported
from helper.own.references import canonical, is_reference, label_of, path_label, read_reference, version_of
from helper.schema.config import FlagError, unflatten
from optim.config import RunConfig
from optim.identity import run_folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory, where nothing is trusted yet and no version is remembered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(consent, "NAMED", set())
    monkeypatch.setattr(calls, "LOADED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


# --------------------------------------------------------------------------------------------------------------- names


def test_references_are_words_with_a_module_and_a_name(here):
    assert [word for word in ("mlp", "a:b", "a:", ":b", "x/y.py:f", "digits_noisy") if is_reference(word)] == [
        "a:b",
        "x/y.py:f",
    ]
    assert canonical("./nets/../my.py:f") == canonical(f"{here}/my.py:f") == "my.py:f"
    assert canonical("mlp") == "mlp"
    assert [label_of(word) for word in ("mlp", "a.b:C", "x/my.py:make.small")] == ["mlp", "a.b.C", "my.make.small"]
    assert path_label("my.py:f", "path=a/../b,x=1") == "my.f-path=a-..-b,x=1"
    assert "/" not in path_label("my.py:f", "a=" + "/" * 200)


@pytest.mark.parametrize("word", ["a b:f", "a:f g", "a..b:f", "a:f()", "1a:f"])
def test_what_is_no_name_is_refused_in_a_line(refuse, word):
    line = refuse("--net_name", word)
    assert "expected MODULE:NAME" in line


# ------------------------------------------------------------------------------------------------------------- version


def test_a_files_version_is_that_of_its_content_and_of_what_it_imports_beside_it(here):
    write(here / "parts" / "__init__.py")
    write(here / "parts" / "block.py", "WIDTH = 1")
    write(here / "other.py", "import json")
    write(here / "my.py", "import torch", "from parts import block", "def f(): pass")
    first = version_of("my.py:f")
    write(here / "other.py", "import sys")  # which nobody imports
    assert version_of("my.py:f") == first
    write(here / "parts" / "block.py", "WIDTH = 2")
    second = version_of("my.py:f")
    write(here / "parts" / "__init__.py", "from . import late")
    write(here / "parts" / "late.py", "X = 1")
    third = version_of("my.py:f")
    write(here / "parts" / "late.py", "X = 2")
    fourth = version_of("my.py:f")
    write(here / "my.py", "import torch", "from parts import block", "def f(): return 1")
    assert len({first, second, third, fourth, version_of("my.py:f")}) == 5


def test_the_same_files_elsewhere_are_the_same_version(here):
    for folder in ("a", "b"):
        write(here / folder / "my.py", "import beside")
        write(here / folder / "beside.py", "X = 1")
    assert version_of("a/my.py:f") == version_of("b/my.py:f")


def test_a_packages_version_is_its_own_and_no_module_is_imported_for_it(here, monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    found = version_of("torchvision.models:resnet18")
    assert found == f"torchvision {importlib.metadata.version('torchvision').partition('+')[0]}"
    assert "torchvision.models" not in sys.modules
    assert version_of("json.decoder:JSONDecoder").startswith("python 3.")


def test_a_module_that_is_not_installed_is_told_apart_by_its_content(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    write(here / "mine" / "__init__.py", "raise SystemExit('imported')")
    write(here / "mine" / "nets.py", "def f(): pass")
    first = version_of("mine.nets:f")
    write(here / "mine" / "nets.py", "def f(): return 1")
    assert version_of("mine.nets:f") != first
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("gone.py:f", "there is no file gone.py"), ("no_such_module:f", "there is no module no_such_module; is it installed"),
        ("torch.no_such_part:f", "there is no module torch.no_such_part"),
        ("lying_here:f", "for the file here give lying_here.py:f"),
        ("wrong.py:f", "wrong.py, line 2: "), ("folder.py:f", "folder.py is no file of at most 4 MiB"),
    ],
)  # fmt: skip
def test_a_module_that_is_not_there_is_refused_in_a_line(here, refuse, word, reason):
    write(here / "lying_here.py", "def f(): pass")
    write(here / "wrong.py", "x = 1", "def f(:")
    (here / "folder.py").mkdir()
    assert reason in refuse("--net_name", word)


def test_identity_names_code_by_label_arguments_and_content_and_not_by_its_place(here):
    for folder in ("a", "b"):
        write(here / folder / "my.py", "def f(): pass")

    def name(word: str, **flags) -> str:
        return run_folder(unflatten(RunConfig, {"net_name": word, **flags}), None).path.as_posix()

    assert name("a/my.py:f") == name("b/my.py:f") == name("./a/../a/my.py:f")
    assert name("a/my.py:f", net_args="b=1, a=2") == name("a/my.py:f", net_args="a=2,b=1")
    folders = {name("a/my.py:f"), name("a/my.py:g"), name("a/my.py:f", net_args="a=1"), name("a/my.py:f", init_method="xavier")}
    first = name("a/my.py:f")
    write(here / "a" / "my.py", "def f(): return 1")
    assert len({*folders, name("a/my.py:f")}) == 5
    assert name("b/my.py:f") == first
    assert name("b/my.py:f", init_method="none") == first
    assert "/my.f-a=1/" in name("a/my.py:f", net_args="a=1")


def test_a_stored_configuration_keeps_the_version_with_which_it_was_made(here):
    write(here / "my.py", "def f(): pass")
    config = unflatten(RunConfig, {"net_name": "my.py:f"})
    write(here / "my.py", "def f(): return 1")
    again = unflatten(RunConfig, {"net_name": "my.py:f", "net_code": config.network.net_code})
    assert run_folder(again, None) == run_folder(config, None)
    consent.trust(["my.py:f"])
    with pytest.raises(FlagError, match=r"my.py:f is not the code that this was made with.*leave --net_code out"):
        imported("my.py:f", config.network.net_code)


# ------------------------------------------------------------------------------------------------------------- consent


def test_code_is_imported_only_once_it_has_been_named(here):
    write(here / "my.py", "from pathlib import Path", "Path('ran').touch()", "def f(): return 7")
    with pytest.raises(FlagError, match=r"my.py:f is code that only a file names"):
        imported("my.py:f")
    assert not Path("ran").exists()
    consent.trust(["mlp", "my.py:f"])
    assert {"my.py:f"} == consent.NAMED
    assert imported("my.py:f")() == 7
    with pytest.raises(FlagError, match="only a file names"):
        imported("my.py:g")


# ----------------------------------------------------------------------------------------------------------- arguments


def test_arguments_are_sorted_and_each_is_given_once():
    assert canonical_arguments(" b = 2, a=x y ,") == "a=x y,b=2"
    assert canonical_arguments("") == ""
    for text in ("a", "a=1,a=2", "1=2", "=3"):
        with pytest.raises(ValueError, match="expected"):
            canonical_arguments(text)


def test_arguments_are_typed_by_annotation_then_default_then_yaml():
    def make(n, flag: bool, share: float, name: str, maybe: int | None = 3, widths: tuple[int, ...] = (), k=0.5, free=None):
        pass

    text = canonical_arguments("n=010,flag=0,share=1,name=1e3,maybe=null,widths=8-4,k=2,free=yes")
    found = arguments_for("m:make", make, "net_args", text, {})
    assert found == {
        "n": 10, "flag": False, "share": 1.0, "name": "1e3", "maybe": None, "widths": (8, 4), "k": 2.0, "free": "yes",
    }  # fmt: skip
    assert [type(found[key]) for key in ("n", "share", "k")] == [int, float, float]
    assert arguments_for("m:make", lambda n: n, "net_args", "n=1.5", {}) == {"n": 1.5}
    assert arguments_for("m:make", lambda **more: more, "net_args", "n=null", {"c": 2}) == {"n": None, "c": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dim=x", "--net_args dim=x: expected an integer"), ("din=3", "m:make takes no din, but dim; did you mean dim?"),
        ("dim=1.5", "expected an integer"), ("", "m:make needs dim: give --net_args dim=..."),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_a_line(text, reason):
    def make(n_classes: int, dim: int):
        pass

    with pytest.raises(FlagError) as refusal:
        arguments_for("m:make", make, "net_args", canonical_arguments(text), {"n_classes": 3})
    assert reason in str(refusal.value)


# ----------------------------------------------------------------------------------------------------- how it may fail


@pytest.mark.parametrize(
    ("lines", "kind", "reason"),
    [
        (["import no_such"], OwnCodeError, "fails: ModuleNotFoundError: No module named 'no_such' (my.py, line 1)"),
        (["x = 1", "1 / 0"], OwnCodeError, "importing it fails: ZeroDivisionError: division by zero (my.py, line 2)"),
        (["def ff(): pass"], FlagError, "my.py has no f; did you mean ff?"),
        (["f = 3"], FlagError, "my.py:f is a int and no function"),
        (["from torch import nn", "f = nn.Linear(2, 2)"], FlagError, "my.py:f is a Linear and no function or class"),
    ],
)  # fmt: skip
def test_code_that_fails_is_a_line_with_its_place(here, lines, kind, reason):
    write(here / "my.py", *lines)
    consent.trust(["my.py:f"])
    with pytest.raises(kind) as failure:
        imported("my.py:f")
    assert reason in str(failure.value)


def test_a_module_that_is_torn_off_by_an_exit_is_not_kept(here):
    write(here / "my.py", "raise ValueError('no')")
    consent.trust(["my.py:f"])
    for _ in range(2):
        with pytest.raises(OwnCodeError, match="no"):
            imported("my.py:f")
    assert not [name for name in sys.modules if getattr(sys.modules[name], "__file__", None) == str(here / "my.py")]


def test_files_import_what_lies_beside_them_in_a_process_of_their_own(here):
    write(here / "there" / "my.py", "import beside_it", "def f(): return beside_it.X")
    write(here / "there" / "beside_it.py", "X = 5")
    code = "from helper.own import calls, consent; consent.trust(['there/my.py:f']); print(calls.imported('there/my.py:f')())"
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": root}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"


def test_references_are_read_back_from_their_word(here):
    assert read_reference("a/my.py:make").word == "a/my.py:make"
    assert read_reference("torchvision.models:resnet18").is_file is False
