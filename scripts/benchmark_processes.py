#!/usr/bin/env python
"""One process against two of torchrun on this machine: how far apart their numbers are, and how fast each trains.

python scripts/benchmark_processes.py --root DATA        # a folder with cifar-100-python
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.system.versions import ROOT
from helper.tables import Table
from optim.folder import RunFolder
from optim.model import load_stored

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
WAYS = {"1 process, 1 thread": ((), 1), "1 process, 2 threads": ((), 2), "2 processes, 1 thread each": (TORCHRUN, 1)}
NETWORKS = {
    "MLP-128-64": ("--net_name", "mlp", "--augment", "none"),
    "LeNet": ("--net_name", "mnist_lenet"),
    "ResNet-20": ("--net_name", "resnet", "--depth", "20", "--widen_factor", "1"),
    "ResNet-20-local": ("--net_name", "resnet", "--depth", "20", "--widen_factor", "1", "--sync_batch_norm", "0"),
}
MEASURED = ("--save_hessian", "1", "--hessian_method", "hutchinson", "--save_jacobian", "1", "-ms", "300")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    data = ("--loader_name", "cifar100", "--root", options.root, "--verify_data", "0", "--limit_train", str(options.images))
    common = (*data, "--limit_test", "500", "--n_epochs", str(options.epochs), "--lr", "0.02", "--figures", "0")
    equal, fast = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.networks:
            network = NETWORKS[name]
            speeds: dict[str, list[float]] = {way: [] for way in WAYS}
            folders: dict[str, RunFolder] = {}
            for round_ in range(options.rounds):
                for way in WAYS:
                    root = Path(scratch, name, way, str(round_))
                    folders[way] = run(way, (*common, *network, *(MEASURED if round_ == 0 else ("--save_fisher", "0"))), root)
                    speeds[way].append(float(folders[way].history().rows[-1]["images_per_second"]))
                if round_ == 0:
                    alone, _, two = folders.values()
                    for when, epoch in (("before training", "0"), ("all epochs", None)):
                        equal.append(f"| {name}, {when} | {' | '.join(differences(alone, two, epoch))} |")
            one = speeds["1 process, 1 thread"]
            for way, found in speeds.items():
                ratios = [b / a for a, b in zip(one, found, strict=True)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                fast.append(f"| {name} | {way} | {statistics.median(found):,.0f} | {spread} |")
    print("| network | training loss | weights | Tr F | Tr H | Jacobian | standard errors | SNR |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(equal))
    print("\n| network | | training, images/s | × |\n|---|---|---|---|")
    print("\n".join(fast))


def run(way: str, flags: tuple[str, ...], root: Path) -> RunFolder:
    launcher, threads = WAYS[way]
    command = [sys.executable, *launcher, str(ROOT / "run.py"), *flags, "--results_root", str(root)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return RunFolder(Path(done.stdout.splitlines()[-1]))


def differences(one: RunFolder, two: RunFolder, epoch: str | None) -> list[str]:
    """Largest relative differences between a run by one process and by two, in one epoch's rows or in all.

    Weights: of the model that was kept, relative to the tensor's largest.
    """
    first, second = (load_stored(folder.model).weights for folder in (one, two))
    floats = [name for name in first if first[name].is_floating_point()]
    weights = max(((first[name] - second[name]).abs().max() / first[name].abs().max()).item() for name in floats)

    def apart(table: Callable[[RunFolder], Table], column: str, **chosen: str) -> str:
        chosen |= {"epoch": epoch} if epoch else {}
        pairs = [(a, b) for a, b in zip(table(one).rows, table(two).rows, strict=True) if chosen.items() <= a.items()]
        numbers = [(float(a[column]), float(b[column])) for a, b in pairs]
        return f"{max(abs(a - b) / abs(a) for a, b in numbers if a):.0e}"

    return [
        apart(RunFolder.history, "loss_train"),
        "" if epoch else f"{weights:.0e}",
        *(apart(RunFolder.metrics, "value", metric=metric) for metric in ("fisher", "hessian", "jacobian")),
        apart(RunFolder.metrics, "standard_error"),
        apart(RunFolder.snr, "snr"),
    ]


if __name__ == "__main__":
    main()
