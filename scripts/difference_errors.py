#!/usr/bin/env python
"""How far penalties by --reg_method difference are from the exact ones, as a share of the penalty's gradient.

    python scripts/difference_errors.py --root ../shared/data          # about 6 minutes on one core

For several distances of the second point, as shares of the weights' norm; 90 % of the weights pruned, batch size 128, at the
initialisation and after three epochs; with weights, activations and losses in float64 and in float32.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import optim.step_gradient as step_gradient
from helper.mask import Mask
from helper.pruner import prune
from helper.system.seeds import stream
from loader.dataset import Dataset
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import TrainConfig
from optim.trainer import Trainer

BATCH, RATIO, EPOCHS = 128, 0.9, 3
DISTANCES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-5)
NETWORKS = {
    "mlp, tanh": {"hidden_act": "tanh"},
    "mlp, ReLU": {},
    "resnet, ReLU": {"net_name": "resnet", "depth": 20, "widen_factor": 1},
}


class InDoublePrecision(nn.Module):
    """A network in float64 for inputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


def gradient_of(network: nn.Module, mask: Mask, dataset: Dataset, **flags: str | float) -> Tensor:
    """What the update of a first step takes, as one vector in float64."""
    config = TrainConfig(batch_size=BATCH, sparse_step="0", **flags)
    trainer = Trainer(copy.deepcopy(network), dataset, config, seed=0, mask=mask)
    trainer.network.train()
    trainer.gradient.take(trainer.drawing.batch(0, 0, torch.arange(BATCH)))
    trainer.mask_owner.mask_gradients()
    return torch.cat([gradient.flatten().double() for gradient in trainer.mask_owner.gradients_moved()])


def errors(network: nn.Module, mask: Mask, dataset: Dataset, penalty: str) -> list[float]:
    """At every distance: ‖difference - exact‖ / ‖exact‖ of the penalty's part of the gradient."""
    flags = {"reg_type": penalty, "reg_weight": 1.0}
    plain = gradient_of(network, mask, dataset)
    exact, found = gradient_of(network, mask, dataset, **flags) - plain, []
    usual = step_gradient.DISTANCE
    for distance in DISTANCES:
        step_gradient.DISTANCE = distance
        by_difference = gradient_of(network, mask, dataset, **flags, reg_method="difference") - plain
        found.append(float((by_difference - exact).norm() / exact.norm()))
    step_gradient.DISTANCE = usual
    return found


def rows(name: str, dataset: Dataset) -> None:
    network = build_network(NetworkConfig(**NETWORKS[name]), dataset.input_shape, dataset.n_classes, stream(0, "init"))
    mask = prune(network, stream(0, "prune"), prune_ratio=RATIO)
    for epochs in (0, EPOCHS):
        if epochs:
            config = TrainConfig(n_epochs=epochs, batch_size=BATCH, lr=0.05)
            Trainer(network, dataset, config, seed=0, mask=mask).fit()
        for penalty in ("gradient", "fisher"):
            double = InDoublePrecision(copy.deepcopy(network))
            of_double = Mask({f"network.{layer}": active for layer, active in mask.items()})
            for precision, of in (("float64", (double, of_double)), ("float32", (network, mask))):
                found = " | ".join(f"{error:.2g}" for error in errors(*of, dataset, penalty))
                print(f"| {name} | {epochs} | `{penalty}` | {precision} | {found} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of cifar-100-python")
    options = parser.parse_args()
    cifar = DataConfig(
        loader_name="cifar100", root=options.root, verify_data=False, limit_train=1024, limit_test=100, download=False,
        augment="none",
    )  # fmt: skip
    print(f"torch {torch.__version__}; --reg_method difference has {step_gradient.DISTANCE}")
    print(f"\n| network | epochs | penalty | precision | {' | '.join(f'{d:g}' for d in DISTANCES)} |")
    print("|---" * (4 + len(DISTANCES)) + "|")
    for name in NETWORKS:
        rows(name, load_dataset(cifar if "resnet" in name else DataConfig()))


if __name__ == "__main__":
    main()
