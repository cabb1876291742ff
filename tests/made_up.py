"""Random data files in the layouts of the published ones, a few hundred examples each."""

import gzip
import pickle
from pathlib import Path

import numpy
import torch
from scipy.io import savemat

from loader.loader_mnist import FASHION_MNIST, MNIST, NAMES

N_TRAIN, N_TEST = 400, 200


def write_all(root: Path) -> None:
    for write in (write_cifar100, write_cifar10, write_mnist, write_toy, write_human):
        write(root)


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, n in (("train", N_TRAIN), ("test", N_TEST)):
        fine = cifar_labels(n)
        batch = {"data": pixels(n), "fine_labels": fine, "coarse_labels": [label // 5 for label in fine]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": [f"class{i}" for i in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))


def cifar_labels(n: int) -> list[int]:
    return [i % 100 for i in range(n)]


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": pixels(100), "labels": [i % 10 for i in range(100)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": [f"class{i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_mnist(root: Path) -> None:
    for published in (MNIST, FASHION_MNIST):
        folder = root / published["folder"]
        folder.mkdir(parents=True)
        for name in NAMES:
            n = N_TRAIN if name.startswith("train") else N_TEST
            if "images" in name:
                content = idx_header(n, 28, 28) + pixels(n, 784).tobytes()
            else:
                content = idx_header(n) + bytes(i % 10 for i in range(n))
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))


def idx_header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + numpy.array(sizes, dtype=">i4").tobytes()


def write_toy(root: Path) -> None:
    bits = numpy.random.default_rng(0).integers(0, 2, (256, 12), dtype=numpy.uint8)
    savemat(root / "var_u.mat", {"F": bits, "y": bits.sum(1, keepdims=True).T > 6})


def write_human(root: Path, clean: list[int] | None = None) -> None:
    clean = numpy.array(clean or cifar_labels(N_TRAIN))
    noisy = numpy.where(numpy.arange(N_TRAIN) % 4 == 0, (clean + 1) % 100, clean)
    torch.save({"clean_label": clean, "noisy_label": noisy}, root / "CIFAR-100_human.pt")


def pixels(n: int, width: int = 3072) -> numpy.ndarray:
    return numpy.random.default_rng(n).integers(0, 256, (n, width), dtype=numpy.uint8)
