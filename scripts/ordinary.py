"""The ordinary way to train and measure a pruned network, written out plainly: what benchmarks and tests compare with.

torchvision's PIL transforms in a DataLoader, torch.nn.utils.prune, float32, contiguous tensors, and a pass of its own for
each of training accuracy, test accuracy and gradient SNR.
"""

import importlib
import re
from types import ModuleType

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset


def import_transforms() -> ModuleType:
    """torchvision.transforms, also where torchvision was built for another torch.

    The Python packages' torchvision is built for CUDA; beside a CPU build of torch its compiled operators do not load, and
    importing it stops where it describes one of them. Declaring those operators lets the Python part in.
    """
    try:
        return importlib.import_module("torchvision.transforms")
    except RuntimeError as error:
        missing = re.fullmatch(r"operator (torchvision::\w+) does not exist", str(error))
        if missing is None:
            raise
        torch.library.define(missing.group(1), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return import_transforms()


class PilImages(TorchDataset):
    """(N, 3, H, W) uint8 images and labels, decoded to PIL and transformed one at a time, as torchvision's data sets do."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform) -> None:
        self.images: numpy.ndarray = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loaders(dataset, batch_size: int, n_workers: int) -> tuple[DataLoader, DataLoader, DataLoader]:
    """(shuffled and augmented training, plain training, plain test) loaders."""
    transforms = import_transforms()
    plain = [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
    size = dataset.input_shape[-1]
    augmented = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip(), *plain]

    def loader(split, steps, shuffle: bool) -> DataLoader:
        images = PilImages(split.inputs, split.labels, transforms.Compose(steps))
        return DataLoader(images, batch_size, shuffle=shuffle, num_workers=n_workers, persistent_workers=n_workers > 0)

    return loader(dataset.train, augmented, True), loader(dataset.train, plain, False), loader(dataset.test, plain, False)


def prunable_modules(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, "weight") of the Linear and Conv2d layers but the last."""
    return [(m, "weight") for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][:-1]


def prune_globally(network: nn.Module, ratio: float) -> None:
    prune.global_unstructured(prunable_modules(network), prune.L1Unstructured, amount=ratio)


def train_epoch(network: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> None:
    network.train()
    for inputs, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()


def accuracy(network: nn.Module, loader: DataLoader) -> float:
    network.eval()
    correct = 0
    with torch.no_grad():
        for inputs, labels in loader:
            correct += (network(inputs).argmax(1) == labels).sum().item()
    return correct / len(loader.dataset)


def gradient_snr(network: nn.Module, loader: DataLoader) -> list[float]:
    """||mean|| / ||std|| over mini-batch gradients of every pruned layer's active weights."""
    network.eval()
    weights = [getattr(module, "weight_orig", module.weight) for module, _ in prunable_modules(network)]
    masks = [getattr(module, "weight_mask", torch.ones_like(module.weight)) for module, _ in prunable_modules(network)]
    gradients: list[list[torch.Tensor]] = [[] for _ in weights]
    for inputs, labels in loader:
        network.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        for stored, weight, mask in zip(gradients, weights, masks, strict=True):
            stored.append(weight.grad[mask.bool()].clone())
    stacks = [torch.stack(stored) for stored in gradients]
    return [(stack.mean(0).norm() / stack.std(0).norm()).item() for stack in stacks]
