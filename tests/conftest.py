"""Tiny networks, data files of the published layouts made up on the spot, and runs of the command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import run as command_line
from helper.system.seeds import stream
from helper.system.versions import ROOT
from loader.main import DATASETS, DataConfig
from network.main import NETWORKS, NetworkConfig, build_network
from tests.kernels.counts import compiler_version, recorded_version
from tests.slurm.cluster import missing_programs

REAL_DATA = os.environ.get("DATA_ROOT")


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
LEFT_OUT = {}  # marker -> why
if not REAL_DATA:
    LEFT_OUT["real_data"] = "DATA_ROOT is not set: the tests on the real CIFAR-100 files were left out"
if not (BROWSER and DRIVER) and not os.environ.get("REQUIRE_BROWSER"):
    LEFT_OUT["browser"] = "chromium or chromedriver is missing (scripts/chromium.sh): the tests in a browser were left out"
if shutil.which("g++") is None:
    LEFT_OUT["compiler"] = "g++ is missing: the tests of the sparse kernels were left out"
CHECKERS = ("valgrind", "clang++", "aarch64-linux-gnu-g++", "qemu-aarch64")
if not (all(map(shutil.which, CHECKERS)) or os.environ.get("REQUIRE_CHECKERS")):
    LEFT_OUT["checkers"] = (
        f"{', '.join(CHECKERS)} are not all there (scripts/checkers.sh): "
        "the tests of the sparse kernels on other processors, by clang and under valgrind were left out"
    )
if LEFT_OUT.keys().isdisjoint(("compiler", "checkers")) and compiler_version() != recorded_version():
    LEFT_OUT["counts"] = f"instructions were counted with g++ {recorded_version()}: their test was left out"
TPU_PYTHON = ROOT / ".venv-tpu/bin/python"
if not (TPU_PYTHON.exists() or os.environ.get("REQUIRE_TPU")):
    LEFT_OUT["tpu"] = "there is no .venv-tpu (scripts/test_tpu.sh): the tests of --device tpu were left out"

if missing_programs() and not os.environ.get("REQUIRE_SLURM"):
    LEFT_OUT["slurm"] = "SLURM or munge is missing (scripts/slurm.sh): the tests with jobs of SLURM were left out"
MOUNT = ("unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "probe", "/tmp")
if shutil.which("unshare") is None or subprocess.run(MOUNT, stderr=subprocess.DEVNULL).returncode:
    LEFT_OUT["mounts"] = "no file system can be mounted here (unshare): the test with a full one was left out"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in LEFT_OUT)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_terminal_summary(terminalreporter, exitstatus, config: pytest.Config) -> None:
    for reason in LEFT_OUT.values():
        terminalreporter.write_line(reason)


@pytest.fixture
def data_root() -> Path:
    """The folder of the real data; a test that asks for it fails when the files are not there."""
    root = Path(REAL_DATA)
    assert (root / "cifar-100-python/train").exists(), f"DATA_ROOT={root} has no cifar-100-python/train"
    return root


SLOPPY_COMPILER = '#!/bin/sh\necho "$@" >> "{log}"\nexec g++ "$@" -O0\n'  # last words count


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of an empty cache of sparse kernels, with a compiler that writes down its calls and does not optimise."""
    compiler = tmp_path / "compiler"
    compiler.write_text(SLOPPY_COMPILER.format(log=tmp_path / "calls"))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/price-of-sparsity"


def compilations(cache: Path) -> int:
    log = cache.parent.parent / "calls"
    return sum(" -c " in line for line in log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def generator() -> torch.Generator:
    return stream(0, "test")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A root with small made-up files of every published layout."""
    root = tmp_path_factory.mktemp("data")
    for spec in DATASETS.values():
        if spec.make_small is not None:
            spec.make_small(root)
    return root


@pytest.fixture(autouse=True)
def _same_logging_and_hooks():
    hook = sys.excepthook
    yield
    sys.excepthook = hook


OWN_FILES = {"folder": (3, 8, 8), "npz": (1, 8, 8)}  # data sets of a user's own files -> shape of an example that `files` has
PUBLISHED = [name for name in DATASETS if name not in OWN_FILES]


def input_shape_of(name: str) -> tuple[int, ...]:
    """Of the examples of a data set in `files`."""
    return OWN_FILES[name] if name in OWN_FILES else DataConfig(loader_name=name).published.input_shape


NETWORKS_TRIED = [name for name in NETWORKS if not name.startswith(("vgg13", "vgg16", "vgg19"))]  # the others are alike


def small_network(name: str, **flags: object) -> tuple[nn.Module, tuple[int, int, int]]:
    """(a network of the registry with its smallest flags, or with others, the shape of the smallest images that it takes)."""
    spec = NETWORKS[name]
    side = spec.sides[0] if spec.sides else max(8, spec.least_side)
    config = NetworkConfig(net_name=name, **{**spec.smoke, **flags})
    return build_network(config, (1, side, side), 10, torch.Generator()), (1, side, side)


@pytest.fixture
def train(tmp_path, capsys):
    """train(*flags) -> run folder, in this process; results under the test's own folder."""

    def call(*flags: object, root: Path = tmp_path) -> Path:
        command_line.main([*map(str, flags), "--results_root", str(root)])
        return Path(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.fixture
def refuse(capsys):
    """refuse(*flags) -> the one line with which run.py refuses them; checks exit code 2."""

    def call(*flags: object) -> str:
        with pytest.raises(SystemExit) as stop:
            command_line.main(list(map(str, flags)))
        lines = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2
        assert len(lines) == 1, lines
        return lines[0]

    return call


def shell(*flags: object, **kwargs) -> subprocess.CompletedProcess:
    """run.py in a process of its own."""
    command = [sys.executable, str(ROOT / "run.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)


class TinyConv(nn.Module):
    """Convolution, BatchNorm, ReLU, residual addition, pooling, Linear: what a ResNet has, in 200 parameters."""

    def __init__(self, n_classes: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(4, n_classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.conv1(x)))
        y = torch.relu(self.conv2(y) + y)
        return self.fc(y.mean((2, 3)))


def tiny_conv(n_classes: int = 3, bias: bool = True) -> TinyConv:
    """A TinyConv in float64 whose BatchNorm has seen data, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = TinyConv(n_classes, bias).double().train()
        network(torch.randn(64, 1, 5, 5, dtype=torch.float64))
    return network
