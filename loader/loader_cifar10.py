"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32 pixels in 10 classes."""

import pickle
from pathlib import Path

import torch

from helper.schema.config import flag
from loader.archives import class_names, fingerprint, provide
from loader.dataset import Source
from loader.human_labels import make_human_labels, with_human_labels
from loader.loader_cifar100 import check_labels, read_images
from loader.made_up import labels_in_turn, pixels
from loader.spec import DatasetSpec, Published

ARCHIVE = ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
FILES = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# asymmetric noise (Patrini et al. 2017): truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse
CONFUSED = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}


HUMAN_FILE = "CIFAR-10_human.pt"
HUMAN_SETS = {  # names of CIFAR-10N's labels -> keys in its file
    "aggre": "aggre_label",
    "worst": "worse_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
}


class Cifar10Flags:
    human_set: str = flag(
        "worst",
        "labels of CIFAR-10N: majority of three people, one that was wrong if any was, or the first, second or third",
        choices=HUMAN_SETS,
        when={"train_noisy": (True,), "noise_method": ("human",)},
    )


def leaves(noise_method: str, n_classes: int) -> bool:
    """Whether label noise may give a label beyond the first so many classes."""
    confused = any(one < n_classes <= other for one, other in CONFUSED.items())
    return noise_method == "human" or (noise_method == "asymmetric" and confused)


def load(*, root: str, download: bool, verify_data: bool) -> Source:
    """CIFAR-10 from `ROOT/cifar-10-batches-py`, downloaded if need be.

    Raises:
        DataError: missing, damaged, or not the published files.
    """
    provide(FILES, Path(root), ARCHIVE, download=download, verify_data=verify_data)
    paths = [Path(root, name) for name in FILES]
    names = class_names(paths[-1], "label_names")
    batches = [read_images(path, "labels") for path in paths[:-1]]
    for path, (_, labels) in zip(paths, batches, strict=False):
        check_labels(path, labels, len(names), paths[-1])
    inputs, labels = (torch.cat(tensors) for tensors in zip(*batches[:5], strict=True))
    next_class = torch.tensor([CONFUSED.get(c, c) for c in range(len(names))])
    return Source(
        inputs, labels, *batches[5], names, 255, MEAN, STD, next_class,
        fingerprint=None if verify_data else fingerprint(paths, FILES.values()),
    )  # fmt: skip


def load_noisy(*, root: str, download: bool, verify_data: bool, noise_method: str, human_set: str) -> Source:
    """`load`, with what the kind of noise has to know. Raises DataError: as it, and when that is missing or damaged."""
    source = load(root=root, download=download, verify_data=verify_data)
    if noise_method != "human":
        return source
    return with_human_labels(source, Path(root, HUMAN_FILE), HUMAN_SETS[human_set], "cifar-10-batches-py")


def make_small(root: Path) -> None:
    """Six batches of 100 random images, the names of the classes, and people's labels."""
    (root / "cifar-10-batches-py").mkdir(parents=True)
    *batches, meta = FILES
    for name in batches:
        batch = {"data": pixels(100, 3072), "labels": labels_in_turn(100, 10)}
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    (root / meta).write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}, protocol=2))
    make_human_labels(root / HUMAN_FILE, labels_in_turn(100, 10) * 5, *HUMAN_SETS.values())


CIFAR10 = DatasetSpec(
    "cifar10", load, Published(50_000, 10_000, (3, 32, 32), 10),
    flags=Cifar10Flags, augmented=True, padding=4, load_noisy=load_noisy, leaves=leaves, human_labels=True,
    make_small=make_small,
)  # fmt: skip
