"""A data set and a network that bring a flag of their own, each added to a copy of the program: one file, one registry line."""

import subprocess
import sys
from pathlib import Path

import pytest

from optim.folder import RunFolder
from tests.copied import copy_program

STRIPES = '''
import torch

from helper.schema.config import flag
from helper.system.seeds import stream
from loader.dataset import Source
from loader.spec import DatasetSpec, Published, held_out
from loader.splits import balanced_rows


class StripesFlags:
    stripe_height: int = flag(2, "pixels of a stripe", low=1, high=4)


def load(*, stripe_height: int, test_size: float, split_seed: int) -> Source:
    """80 images of 8x8 pixels with stripes across or along."""
    labels = torch.arange(80) % 2
    images = torch.randint(0, 9, (80, 1, 8, 8), generator=stream(0, "stripes"), dtype=torch.uint8)
    bright = torch.arange(8) // stripe_height % 2 == 0
    images[labels == 0] += (200 * bright[:, None]).to(torch.uint8)
    images[labels == 1] += (200 * bright).to(torch.uint8)
    test, train = balanced_rows(labels, round(test_size * 80), stream(split_seed, "test"))
    return Source(images[train], labels[train], images[test], labels[test], ("across", "along"), 255, (0.5,), (0.3,))


def sizes(*, test_size: float) -> Published:
    return held_out(80, test_size, (1, 8, 8), 2)


SPEC = DatasetSpec("stripes", load, sizes, flags=StripesFlags, augmented=True, padding=1)
'''

PLAIN = '''
from torch import nn

from helper.schema.config import flag
from network.spec import NetworkSpec


class PlainFlags:
    plain_units: int = flag(12, "units of the hidden layer", low=2)


class Plain(nn.Module):
    """The classifier is the first of its layers in the order of their names."""

    def __init__(self, n_in: int, n_classes: int, units: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(units, n_classes)
        self.hidden = nn.Linear(n_in, units)

    def forward(self, x):
        return self.classifier(self.hidden(x.flatten(1)).relu())


def build(input_shape: tuple[int, ...], n_classes: int, *, plain_units: int) -> Plain:
    return Plain(input_shape[-1] * input_shape[-2] * input_shape[0], n_classes, plain_units)


def check(*, plain_units: int) -> None:
    if plain_units % 2:
        raise ValueError(f"--plain_units {plain_units}: must be even")


SPEC = NetworkSpec(
    "plain", build, head=lambda network: network.classifier, flags=PlainFlags, check=check,
    sides=(8,), smoke={"plain_units": 4},
)
'''

DRIVER = """
import contextlib, io, sys
import experiment, run

def call(main, *words):
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main([str(word) for word in words])
    except SystemExit as stop:
        assert stop.code in (0, None), (words, stop.code, out.getvalue())
    return out.getvalue()

QUICK = ("--n_epochs", 1, "--batch_size", 20, "--save_fisher", 0, "--save_snr", 0, "--figures", 0, "--lr_milestones", 1)
"""


@pytest.fixture
def program(tmp_path) -> Path:
    """A copy of the program in which something can be added."""
    return copy_program(tmp_path / "program")


def add(program: Path, package: str, name: str, text: str, *, after: str) -> None:
    """One file, and one line in its package's registry, with its import."""
    (program / package / f"{name}.py").write_text(text)
    main = program / package / "main.py"
    registry = main.read_text()
    entry = f"    {after},\n"
    assert registry.count(entry) == 1
    registry = registry.replace(entry, f"{entry}    {name}_spec,\n")
    first = f"from {package}.spec import"
    assert registry.count(first) == 1
    main.write_text(registry.replace(first, f"from {package}.{name} import SPEC as {name}_spec\n{first}"))


def script(program: Path, text: str) -> list[str]:
    """What it prints, line by line, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", DRIVER + text], cwd=program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_data_set_is_one_file_and_one_line(program):
    add(program, "loader", "stripes", STRIPES, after="CIFAR100")
    lines = script(
        program,
        """
flags = ("--loader_name", "stripes", *QUICK)
for more in ((), ("--stripe_height", 1), ("--hidden_dims", 8, "--mode", "sparse-finetune", "--train_noisy", 1)):
    print(call(run.main, *flags, *more).splitlines()[-1])
open("sweep.yaml", "w").write("grid: {loader_name: [stripes, digits], stripe_height: [2, 3], random_state: [5, 6]}")
planned = call(experiment.main, "sweep", "sweep.yaml", "--dry_run", 1, "--images_per_second", 100)
print(planned.count("stripes/mlp-128-64/dense"))
print("stripes" in call(experiment.main, "report", "results"))
print(*(word for word in call(run.main, "--help").split() if word.startswith("--")))
print(call(run.main, *flags, "--loader_name", "digits", "--stripe_height", 1).splitlines()[-1])
print(call(run.main, *flags, "--loader_name", "digits", "--stripe_height", 2).splitlines()[-1])
from loader.main import DataConfig, load_dataset
print(load_dataset(DataConfig(loader_name="stripes")).padding, load_dataset(DataConfig(loader_name="stripes")).augmented)
""",
    )
    plain, other, noisy, planned, reported, flags, digits, again, augmented = lines
    assert plain != other
    assert (Path(plain).parts[1], Path(noisy).parts[1:3]) == ("stripes", ("stripes_noisy", "mlp-8"))
    assert planned == "4"
    assert reported == "True"
    assert "--root --filename --stripe_height --download" in " ".join(w for w in flags.split() if w in FLAGS)
    assert digits == again  # which do not read it
    assert augmented == "1 True"
    assert RunFolder(program / noisy).finished


FLAGS = ("--root", "--filename", "--stripe_height", "--download", "--widen_factor", "--plain_units", "--in_dim")


def test_a_network_is_one_file_and_one_line(program):
    add(program, "network", "plain", PLAIN, after="LENET_SPEC")
    lines = script(
        program,
        """
flags = ("--net_name", "plain", "--limit_train", 60, "--limit_test", 30, *QUICK)
for more in ((), ("--plain_units", 6), ("--mode", "sparse-scratch", "--prune_ratio", 0.5)):
    print(call(run.main, *flags, *more).splitlines()[-1])
open("sweep.yaml", "w").write("grid: {net_name: [plain, mlp], plain_units: [12, 8], random_state: [5, 6]}")
planned = call(experiment.main, "sweep", "sweep.yaml", "--dry_run", 1, "--images_per_second", 100)
print(planned.count("digits/plain"))
print("plain" in call(experiment.main, "report", "results"))
print(*(word for word in call(run.main, "--help").split() if word.startswith("--")))
from pathlib import Path
import torch
from helper.schema.config import FlagError
from network.main import NetworkConfig
(model,) = Path("results/digits/plain/sparse-scratch").glob("*/model.pt")
weights = torch.load(model, weights_only=True)
print(*weights["mask"])
try:
    NetworkConfig(net_name="plain", plain_units=3)
except FlagError as error:
    print(error)
NetworkConfig(plain_units=3)
""",
    )
    usual, other, _, planned, reported, flags, mask, refusal = lines
    assert [Path(path).parts[1:4] for path in (usual, other)] == [
        ("digits", "plain", "dense"), ("digits", "plain-plain_units6", "dense"),
    ]  # fmt: skip
    assert planned != "0"
    assert reported == "True"
    assert "--widen_factor --plain_units --in_dim" in " ".join(w for w in flags.split() if w in FLAGS)
    assert mask == "hidden.weight"  # the head is not masked, though it comes first
    assert refusal == "--plain_units 3: must be even"
