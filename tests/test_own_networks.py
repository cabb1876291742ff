"""Networks of a user's own: found out by running them, trained, pruned, measured and reported like any other."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import experiment
import run as command_line
from helper.mask import Mask
from helper.metrics.macs import count_macs, uncounted_macs, uses_of_weights
from helper.own import calls, consent
from helper.pruner import prunable_weights, prune
from helper.system.seeds import stream
from helper.system.versions import ROOT
from network.main import NetworkConfig, build_network, facts_of
from optim.model import load_run
from tests.outcome import outcome
from tests.several import printed, start_runs

EXAMPLE = ROOT / "docs/examples/tiny_vit.py"
VIT = ("--net_name", f"{EXAMPLE}:ViT", "--net_args", "dim=8,depth=1,heads=2", "--limit_train", 200, "--limit_test", 50)
QUICK = ("--n_epochs", 1, "--lr", 0.01, "--lr_milestones", 1, "--batch_size", 50, "--figures", 0)
ATTENTION = "blocks.0.attention.in_proj_weight"
PLAIN = ("--save_fisher", 0, "--save_snr", 0)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory in which nothing is trusted yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(consent, "NAMED", set())
    monkeypatch.setattr(calls, "LOADED", {})
    return tmp_path


def nets(folder: Path, source: str, name: str = "nets.py") -> str:
    """A file of networks with the usual imports; its path."""
    (folder / name).write_text(f"import torch\nfrom torch import nn\nimport torch.nn.functional as F\n\n\n{source}\n")
    return name


def built(word: str, args: str = "", shape: tuple[int, ...] = (1, 8, 8), n_classes: int = 10, seed: int = 0) -> nn.Module:
    consent.trust([word])
    return build_network(NetworkConfig(net_name=word, net_args=args), shape, n_classes, stream(seed, "init"))


def facts(word: str, shape: tuple[int, ...] = (1, 8, 8), n_classes: int = 10):
    consent.trust([word])
    return facts_of(NetworkConfig(net_name=word), shape, n_classes)


# ------------------------------------------------------------------------------------------------------- as any other


def test_the_example_goes_through_every_command(here, capsys):
    """Dense, finetuned, RigL that prunes attention too, measured, interpolated, exported, reported."""
    rigl = ("--prune_also", "attention", "--mask_every", 1)
    runs = {}
    for mode, more in {"dense": (), "sparse-finetune": (), "sparse-scratch": (), "dynamic": rigl}.items():
        flags = ("--prune_ratio", 0.5, "--mode", mode, *more, *PLAIN, "--results_root", "r")
        done = outcome(command_line.main, *VIT, *QUICK, *flags)
        assert done.code == 0, done.err
        runs[mode] = done.folder
        assert done.folder.parts[-3] == "tiny_vit.ViT-depth=1,dim=8,heads=2"
    summaries = {mode: json.loads((runs[mode] / "summary.json").read_text()) for mode in ("dynamic", "sparse-finetune")}
    by_layer = {mode: summary["sparsity_by_layer"] for mode, summary in summaries.items()}
    assert {"patches.weight", "blocks.0.mlp.0.weight", ATTENTION} <= by_layer["dynamic"].keys()
    assert {"head.weight", ATTENTION}.isdisjoint(by_layer["sparse-finetune"])
    assert "head.weight" not in by_layer["dynamic"]
    trusted = ("--trust_code", 1)
    for words in (
        ("measure", runs["dense"], "--metrics", "fisher,hessian,jacobian,snr", "-ms", 20, *trusted),
        ("interpolate", runs["sparse-scratch"], runs["sparse-finetune"], "--points", 3, "--figures", 0, *trusted),
        ("disagree", runs["dense"], runs["dynamic"], "--images", 0, *trusted),
        ("export", runs["dynamic"], "exported", "--onnx", 0),
        ("show", runs["dynamic"]), ("list", "r"), ("report", "r"),
    ):  # fmt: skip
        done = outcome(experiment.main, *words)
        assert done.code == 0, (words, done.err)
    network, mask, _ = load_run(runs["dynamic"], trust_code=True)
    assert all((network.get_parameter(name)[~active] == 0).all() for name, active in mask.items())


def test_a_run_resumes_and_is_found_again_and_another_code_is_another_run(here, capsys):
    word = f"{nets(here, NET)}:Net"
    flags = ("--net_name", word, "--net_args", "width=6", "--limit_train", 100, "--limit_test", 50, *QUICK, *PLAIN)
    first, again = (outcome(command_line.main, *flags, "--results_root", "r") for _ in range(2))
    assert first.code == 0, first.err
    assert first.folder == again.folder
    nets(here, NET + "\nTHEN = 1\n")
    changed = outcome(command_line.main, *flags, "--results_root", "r")
    assert (changed.code, "has changed since this process has imported it: start the program again" in changed.line) == (
        2,
        True,
    )
    calls.LOADED.clear()  # as in a process of its own
    assert outcome(command_line.main, *flags, "--results_root", "r").folder != first.folder


NET = """
class Net(nn.Module):
    def __init__(self, num_classes: int, input_shape, width: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.out = nn.Linear(width * input_shape[1] * input_shape[2], num_classes)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.out(x.view(x.shape[0], -1))
"""


CHANGING = ("--mask_every", 1, "--batch_size", 20)
MASKS = {
    "gradual": CHANGING, "ac-dc": CHANGING, "lottery": (), "at-init": ("--prune_method", "snip"),
    "iterative": ("--prune_ratio", 0.36),
}  # fmt: skip


@pytest.mark.parametrize("mode", MASKS)
def test_modes_and_sparse_steps_work_on_a_network_that_views_its_images(here, mode):
    """`view` of images in the layout that convolutions like would fail: the network gets them in its own."""
    word = f"{nets(here, NET)}:Net"
    flags = ("--net_name", word, "--mode", mode, "--prune_ratio", 0.8, "--sparse_step", 1, "--limit_train", 100)
    done = outcome(command_line.main, *flags, "--limit_test", 50, *QUICK, *PLAIN, *MASKS[mode], "--results_root", "r")
    assert done.code == 0, done.err
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["sparsity_achieved"] > (0.3 if mode in ("iterative", "ac-dc") else 0.5)


def test_processes_train_what_one_does(here):
    word = f"{nets(here, NET)}:Net"
    flags = ("--net_name", word, "--limit_train", 100, "--limit_test", 50, *QUICK, *PLAIN)
    alone = outcome(command_line.main, *flags, "--results_root", "one").folder
    workers = start_runs(2, here / "printed", *flags, "--results_root", "two")
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0], printed(here / "printed")
    several = here / "two" / alone.relative_to("one")
    states = [torch.load(folder / "model.pt", weights_only=True)["network"] for folder in (alone, several)]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-5) for name in states[0])


# ------------------------------------------------------------------------------------------------------- what is found out


def test_the_classifier_is_the_last_executed_layer_with_as_many_outputs_as_classes(here):
    nets(here, """
class Odd(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.logits = nn.Linear(n_classes, n_classes)
        self.first = nn.Linear(64, n_classes)
        self.unused = nn.Linear(2, n_classes)

    def forward(self, x):
        return F.log_softmax(self.logits(F.relu(self.first(x.flatten(1)))), 1)

def fully_convolutional(n_classes):
    layers = [nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, n_classes, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

class ByHand(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.hidden, self.table = nn.Linear(64, 7), nn.Parameter(torch.randn(7, n_classes))

    def forward(self, x):
        return self.hidden(x.flatten(1)) @ self.table
""")  # fmt: skip
    assert facts("nets.py:Odd").head == "logits"
    assert (facts("nets.py:fully_convolutional").head, facts("nets.py:fully_convolutional").batch_norm) == ("2", True)
    assert (facts("nets.py:ByHand").head, facts("nets.py:ByHand").batch_norm) == (None, False)


def test_a_network_without_a_classifier_trains_densely_and_is_pruned_only_whole(here):
    nets(here, """
class ByHand(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.hidden, self.table = nn.Linear(64, 7), nn.Parameter(torch.randn(7, n_classes))

    def forward(self, x):
        return F.relu(self.hidden(x.flatten(1))) @ self.table
""")  # fmt: skip
    flags = ("--net_name", "nets.py:ByHand", "--limit_train", 100, "--limit_test", 50, *QUICK, *PLAIN, "--results_root", "r")
    masked = ("--mode", "at-init", "--prune_ratio", 0.5)
    assert outcome(command_line.main, *flags).code == 0
    assert outcome(command_line.main, *flags, *masked, "--prune_last", 1).code == 0
    done = outcome(command_line.main, *flags, *masked)
    assert (done.code, "none can be left whole; use --prune_last 1" in done.line) == (2, True)
    done = outcome(command_line.main, *flags, "--init_method", "xavier")
    assert (done.code, "no layer that gives the classes; use none" in done.line) == (2, True)


def test_the_layout_of_images_is_the_one_that_a_network_takes(here):
    nets(here, NET + """
def modest(n_classes, input_shape):
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), nn.Flatten(), nn.Linear(144, n_classes))

class Volume(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.out = nn.Conv3d(1, 2, 3), nn.Linear(2, n_classes)

    def forward(self, x):
        return self.out(self.conv(x[:, None]).mean((2, 3, 4)))
""")  # fmt: skip
    assert facts("nets.py:modest", (3, 8, 8)).channels_last
    assert not facts("nets.py:Net", (3, 8, 8)).channels_last
    assert not facts("nets.py:Volume", (3, 8, 8)).channels_last


def test_what_the_factory_draws_stays_and_follows_the_seed_also_by_numpy(here):
    nets(here, """
import random
import numpy

def make(n_classes):
    net = nn.Linear(64, n_classes)
    net.weight.data[0] = torch.from_numpy(numpy.random.rand(64)).float()
    net.weight.data[1, 0] = random.random()
    return nn.Sequential(nn.Flatten(), net)
""")  # fmt: skip
    first, again, other = (built("nets.py:make", seed=seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], other[0])
    assert first[1, 0] != other[1, 0]
    with torch.random.fork_rng():
        torch.manual_seed(torch.randint(2**62, (), generator=stream(0, "init")).item())
        assert torch.equal(first[2:], nn.Linear(64, 10).weight[2:])
    redrawn = build_network(NetworkConfig(net_name="nets.py:make", init_method="kaiming"), (1, 8, 8), 10, stream(0, "init"))
    assert 0.005 < redrawn[1].weight.std() < 0.02  # N(0, 0.01^2): it is the classifier


def test_lazy_layers_and_shapes_of_every_kind_work(here):
    nets(here, """
def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(num_classes))

class Tokens(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.table, self.gru, self.out = nn.Embedding(17, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, n_classes)

    def forward(self, x):
        return self.out(self.gru(self.table(x.flatten(1).long().clamp(0, 16)))[0][:, -1])
""")  # fmt: skip
    assert isinstance(built("nets.py:lazy")[1], nn.Linear)
    assert built("nets.py:Tokens", shape=(12,), n_classes=3)(torch.zeros(4, 12)).shape == (4, 3)


# ------------------------------------------------------------------------------------------------------ masks and cost


class Mixed(nn.Module):
    """A layer of every kind that can be pruned, one that shares its weight, and one whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.other = nn.MultiheadAttention(6, 2, kdim=4, vdim=4, batch_first=True)
        self.keys = nn.Linear(6, 4, bias=False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.back = nn.ConvTranspose1d(6, 6, 2)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.table(x.long()).transpose(1, 2)).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        keys = self.keys(x)
        x = self.other(x, keys, keys)[0]
        return self.head(self.back(self.normed(x).transpose(1, 2)).mean(2))


def test_prunable_weights_are_those_of_layers_and_of_what_is_named_beside():
    network = Mixed()
    plain = {"conv.weight", "attention.out_proj.weight", "other.out_proj.weight", "keys.weight", "back.weight"}
    joint = {"attention.in_proj_weight", *(f"other.{part}_proj_weight" for part in "qkv")}
    assert prunable_weights(network, False, "head").keys() == plain
    assert prunable_weights(network, True, "head").keys() == plain | {"table.weight"}  # by the name that it has first
    assert prunable_weights(network, False, "head", ("attention",)).keys() == plain | joint
    assert prunable_weights(network, False, "head", ("embeddings",)).keys() == plain  # the head has that weight
    network.head = nn.Linear(6, 11)
    assert prunable_weights(network, False, "head", ("embeddings",)).keys() == plain | {"table.weight"}
    for weights in (prunable_weights(network, True, "head", ("attention", "embeddings")),):
        Mask({name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}).apply_(network)
        assert all((network.get_parameter(name) == 0).all() for name in weights)


@pytest.mark.parametrize("head", ["head", None])
@pytest.mark.parametrize("tied", [True, False])
def test_a_fifth_of_the_classifier_stays_whatever_its_weight_is_called(head, tied, generator):
    """Where it is tied to an embedding, that gives the name; without a name it is the last layer."""
    network = Mixed()
    if not tied:
        network.head = nn.Linear(6, 11)
    name = "table.weight" if tied else "head.weight"
    flags = {"prune_method": "random", "prune_last": True, "allocation": "uniform_plus", "head": head}
    counts = prune(network, generator, prune_ratio=0.6, **flags).counts()
    assert (counts["conv.weight"], counts[name]) == (108, 14)  # the first layer whole, and a fifth of 66
    others = {name: n for name, n in counts.items() if name not in ("conv.weight", "table.weight", "head.weight")}
    assert max(others.values()) <= 0.1 * 72  # which have less of theirs


def test_multiply_accumulates_of_every_layer_are_those_by_hand():
    network, n = Mixed(), 5  # tokens
    uses = uses_of_weights(network, (n,))
    assert uses == {
        "conv.weight": n, "attention.in_proj_weight": n, "attention.out_proj.weight": n, "other.q_proj_weight": n,
        "other.k_proj_weight": n, "other.v_proj_weight": n, "other.out_proj.weight": n, "keys.weight": n, "back.weight": n,
        "table.weight": 1, "normed.parametrizations.weight.original1": n,
    }  # fmt: skip
    by_weights = n * (108 + 108 + 36 + 36 + 24 + 24 + 36 + 24 + 72 + 36) + 66
    assert count_macs(network, (n,)) == (by_weights, by_weights)
    attention = 2 * (2 * n * n * 6)  # in each of two layers scores and sums, of 6 channels in all heads
    assert uncounted_macs(network, (n,)) == attention


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv3d(2, 4, 3), (2, 5, 5, 5), 27 * 4 * 2 * 27), (nn.Conv2d(4, 8, 3, groups=4, stride=2), (4, 7, 7), 9 * 8 * 9),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 4, 4), 16 * 2 * 3 * 4), (nn.Linear(3, 5), (6, 3), 6 * 15),
        (nn.Bilinear(3, 3, 2), (3,), 18),
    ],
    ids=["conv3d", "grouped", "transposed", "positions", "bilinear"],
)  # fmt: skip
def test_multiply_accumulates_of_single_layers(layer, shape, macs):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, x) if isinstance(layer, nn.Bilinear) else self.layer(x)

    dense, _ = count_macs(Alone(), shape)
    assert (dense, uncounted_macs(Alone(), shape)) == (macs, 0)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), "parametrizations.weight.original1"),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), "parametrizations.weight.original"),
        (Standardised(2, 3, 3), "weight"),
    ],
    ids=["weight norm", "spectral norm", "standardised"],
)
def test_products_with_a_weight_that_is_computed_count_for_the_one_it_is_computed_from(layer, weight):
    """A spectral norm's own product, of the weight and a buffer, is of no example."""
    assert uses_of_weights(layer, (2, 6, 7)) == {weight: 20}
    assert (count_macs(layer, (2, 6, 7))[0], uncounted_macs(layer, (2, 6, 7))) == (20 * 54, 0)


# ------------------------------------------------------------------------------------------------------------ torchvision


SMALL = """
def small(*, width=3, **more):
    return grown(width, **more)

def grown(width, num_classes=1000):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))
"""


def test_networks_of_a_package_are_given_the_number_of_classes_and_known_by_its_version(here, monkeypatch):
    """As torchvision's: they pass on what they are given, and the number of classes with it."""
    package = here / "site-packages"
    for folder in ("zoo_of_nets", "zoo_of_nets-1.2.dist-info"):
        (package / folder).mkdir(parents=True)
    (package / "zoo_of_nets-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: zoo-of-nets\nVersion: 1.2+cpu\n")
    (package / "zoo_of_nets-1.2.dist-info/top_level.txt").write_text("zoo_of_nets\n")
    nets(package / "zoo_of_nets", SMALL, "__init__.py")
    monkeypatch.syspath_prepend(str(package))
    network = built("zoo_of_nets:small", "width=5", n_classes=7)
    assert [layer.out_features for layer in (network[1], network[2])] == [5, 7]
    assert NetworkConfig(net_name="zoo_of_nets:small").net_code == "zoo-of-nets 1.2"


def test_a_package_that_does_not_import_is_a_line_for_those_who_name_it(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    done = outcome(command_line.main, "--net_name", "torchvision.models:resnet18", *QUICK, "--results_root", "r")
    assert (done.code, "torchvision.models:resnet18: importing it fails: " in done.line) == (1, True)


# ----------------------------------------------------------------------------------------------------- what cannot be done

FORWARD = """
class f(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 10)

    def forward(self, x):
        {}
"""
FROZEN = """
def f():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net[1].bias.requires_grad_(False)
    return net
"""


def giving(network: str, arguments: str = "") -> str:
    return f"def f({arguments}):\n    return {network}"


WRONG = {
    "raises": (
        "def f(n_classes):\n    raise KeyError('width')",
        "the network fails: KeyError: 'width' (nets.py, line 7)",
    ),
    "no network": (giving("[1]"), "gives a list: it has to give a torch.nn.Module"),
    "wrong logits": (
        giving("nn.Sequential(nn.Flatten(), nn.Linear(64, 7))"),
        "gives a tensor of (2, 7) for 2 inputs of (1, 8, 8) and 10 classes",
    ),
    "one example's": (
        FORWARD.format("return self.a(x.flatten())"),
        "in training, the network on 2 inputs of (1, 8, 8) fails: RuntimeError",
    ),
    "a pair": (
        FORWARD.format("y = self.a(x.flatten(1)); return (y, y) if self.training else y"),
        "the network gives a tuple for 2 inputs",
    ),
    "nothing to train": (giving("nn.Flatten()"), "the network has no trainable parameters"),
    "frozen": (FROZEN, "1.bias is frozen: make it a buffer"),
    "half": (giving("nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half()"), "1.weight is torch.float16"),
    "detached": (FORWARD.format("return self.a(x.flatten(1)).detach()"), "the logits have no gradient"),
    "other arguments": (giving("None", "n_classes, width"), "nets.py:f needs width: give --net_args width=..."),
    "three channels": (giving("nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())"), "fails: RuntimeError: Given groups=1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_factory_that_gives_no_network_for_the_data_is_a_line_before_training(here, case):
    source, reason = WRONG[case]
    nets(here, source)
    done = outcome(command_line.main, "--net_name", "nets.py:f", *QUICK, "--results_root", "r")
    assert done.code in (1, 2)
    assert reason in done.line
    assert not Path("r").exists()


def test_what_a_network_lacks_is_told_before_its_parent_is_trained(here):
    nets(here, "def f(n_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))")
    flags = ("--net_name", "nets.py:f", *QUICK, "--results_root", "r", "--mode")
    done = outcome(command_line.main, *flags, "sparse-finetune")
    assert (done.code, "whose weights could be pruned but the classifier's; --prune_last 1" in done.line) == (2, True)
    done = outcome(command_line.main, *flags, "gradual", "--recalibrate_bn", 1, "--prune_last", 1)
    assert (done.code, "nets.py:f has no BatchNorm layers" in done.line) == (2, True)
    assert not Path("r").exists()


# ------------------------------------------------------------------------------------------------------- whose code may run


def marked(folder: Path) -> str:
    """A network whose import leaves a file."""
    leaves = "from pathlib import Path\nPath('ran').touch()\n\n"
    source = leaves + giving("nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))", "n_classes")
    return f"{nets(folder, source)}:f"


def test_reading_a_foreign_run_runs_none_of_its_code_unasked(here):
    flags = ("--net_name", marked(here), "--limit_train", 60, "--limit_test", 40, *QUICK, *PLAIN, "--results_root", "r")
    run = outcome(command_line.main, *flags).folder
    Path("ran").unlink()
    shutil.rmtree("__pycache__", ignore_errors=True)
    fresh = [sys.executable, str(ROOT / "experiment.py")]

    def called(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run([*fresh, *map(str, words)], capture_output=True, text=True, timeout=300)

    for words in (("list", "r"), ("show", run), ("status", "r"), ("report", "r")):
        assert called(*words).returncode == 0
    exported = called("export", run, "exported")
    assert exported.returncode == 0
    assert "no model.onnx" in exported.stderr
    assert "--trust_code 1" in exported.stderr
    for words in (("measure", run), ("disagree", run, run), ("interpolate", run, run)):
        done = called(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "nets.py:f: look at it, then add --trust_code 1" in done.stderr
    assert not Path("ran").exists()
    assert called("measure", run, "--metrics", "fisher", "-ms", 20, "--trust_code").returncode == 0
    assert Path("ran").exists()


def test_a_run_whose_code_is_gone_or_another_is_read_and_not_measured(here):
    flags = ("--net_name", marked(here), "--limit_train", 60, "--limit_test", 40, *QUICK, *PLAIN, "--results_root", "r")
    run = outcome(command_line.main, *flags).folder
    calls.LOADED.clear()
    nets(here, giving("nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes, bias=False))", "n_classes"))
    done = outcome(experiment.main, "measure", run, "--trust_code", 1)
    assert (done.code, "nets.py:f is not the code that this was made with" in done.line) == (2, True)
    Path("nets.py").unlink()
    done = outcome(experiment.main, "measure", run, "--trust_code", 1)
    assert (done.code, "nets.py:f: there is no file nets.py" in done.line) == (2, True)
    for words in (("show", run), ("list", "r"), ("export", run, "exported", "--onnx", 0), ("remove", run, "--yes", 1)):
        assert outcome(experiment.main, *words).code == 0


def test_a_network_is_exported_as_onnx_where_it_is_trusted(here):
    flags = (*VIT, *QUICK, *PLAIN, "--results_root", "r")
    run = outcome(command_line.main, *flags).folder
    done = outcome(experiment.main, "export", run, "exported", "--trust_code", 1)
    assert done.code == 0, done.err
    assert Path("exported/model.onnx").exists() == all(map(importlib.util.find_spec, ("onnx", "onnxscript")))


@pytest.mark.parametrize("flag", [(), ("--config", "more.yaml")])
def test_a_config_file_names_code_in_vain_and_cannot_trust_it_itself(here, flag):
    word = marked(here)
    Path("preset.yaml").write_text(f"net_name: {word}\nlimit_train: 60\nlimit_test: 40\ntrust_code: 1\n")
    Path("more.yaml").write_text("trust_code: 1\n")
    flags = ("--config", "preset.yaml", *flag, *QUICK, *PLAIN, "--results_root", "r")
    done = outcome(command_line.main, *flags)
    assert (done.code, f"--net_name {word}" in done.line, "--trust_code 1" in done.line) == (2, True, True)
    assert not Path("ran").exists()
    for consent_given in (("--trust_code", 1), ("--net_name", word)):
        assert outcome(command_line.main, *flags, *consent_given).code == 0
    assert Path("ran").exists()


def test_a_sweep_runs_what_its_file_names(here):
    word = f"{nets(here, NET)}:Net"
    flags = {"net_name": word, "limit_train": 60, "limit_test": 40, "n_epochs": 1, "lr_milestones": "1", "figures": 0}
    grid = {"net_args": ["width=2", "width=3"]}
    Path("sweep.yaml").write_text(json.dumps({"flags": flags | {"save_snr": 0, "save_fisher": 0}, "grid": grid}))
    priced = outcome(experiment.main, "sweep", "sweep.yaml", "--dry_run", 1, "--results_root", "r")
    assert priced.code == 0, priced.err
    assert "digits/nets.Net-width=3" in priced.out
    done = outcome(experiment.main, "sweep", "sweep.yaml", "--results_root", "r")
    assert done.code == 0, done.err
    assert len(list(Path("r/digits").glob("nets.Net-width=?/dense/*/summary.json"))) == 2
