"""Runs that saw different subsets of one data set: which examples each saw, and which it predicts rightly."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helper.progress import tracked
from loader.dataset import Dataset, Split
from loader.main import DataConfig, load_dataset
from optim.placement import laid_out
from study.comparing.comparison import WHERE_DATA_ARE
from study.comparing.disagreement import logits_of
from study.comparing.subset_scores import Outcomes, by_subset
from study.runs import LoadedRun, StoredRun, open_run

SUBSET = ("limit_train", "split_seed", "val_size", "limit_test")  # data flags that say which examples a run sees
SEEDS = ("random_state", "parent", "lottery", "data_files", "split_seed", "limit_test")  # of an identity: what repeats a kind
CHUNK = 4096  # examples hashed at once


@dataclass(frozen=True)
class Pool:
    """The examples that some run was trained on.

    Attributes:
        dataset: whole. places: (M,) of the examples, among its training examples and after them those for tests.
        given, true: (M,) labels that the runs were given, and the true ones.
    """

    dataset: Dataset
    places: Tensor
    given: Tensor
    true: Tensor

    def inputs(self, rows: Sequence[int]) -> Tensor:
        """(n, ...) of some of the examples, as the data set holds them."""
        n = len(self.dataset.train)
        places = self.places[list(rows)].tolist()
        parts = [(self.dataset.train, place) if place < n else (self.dataset.test, place - n) for place in places]
        return torch.cat([split[slice(row, row + 1)].inputs for split, row in parts])


@dataclass(frozen=True)
class Kind:
    """Runs that differ in their seeds and in which subset of one size they saw, and what they say of the pool's examples.

    Of several sizes the larger subsets, whose runs are better at any example, would have more of those that saw one: what is
    owed to the size would count as memorised.
    """

    name: str
    runs: list[StoredRun]
    outcomes: Outcomes


@dataclass(frozen=True)
class Answer:
    """What one run says of all examples of the whole data set.

    Attributes:
        options: those that runs of other seeds and subsets have as well. parent: such of its dense parent; empty: it has none.
        seen: (N,) bool. given: (N,) its labels of those that it saw, else -1. predicted: (N,) classes.
    """

    run: StoredRun
    options: dict[str, Any]
    parent: dict[str, Any]
    seen: Tensor
    given: Tensor
    predicted: Tensor


def open_kinds(
    paths: Sequence[Path | str], device: str, root: str | None, batch_size: int, *, trust_code: bool = False
) -> tuple[list[Kind], Pool]:
    """The kinds of runs in the order in which they are given, dense ones first, and the examples that they are about.

    Raises:
        RuntimeError: not finished runs, or such that share no data.
    """
    data = None if root is None else {"root": root, "download": False}
    first, whole, places, answers = None, None, {}, []
    for path in tracked(list(dict.fromkeys(map(str, paths))), "predictions", "runs"):
        run = open_run(path, device, data, trust_code=trust_code)
        if first is None:
            first, whole = run, whole_of(run.config.data)
            places = {key: place for place, key in enumerate([*keys_of(whole.train), *keys_of(whole.test)])}
        check_same_data(first, run)
        answers.append(answer_of(run, whole, places, batch_size))
    given = given_labels(answers)
    chosen = (given >= 0).nonzero().flatten()
    true = torch.cat([whole.train.true_labels, whole.test.true_labels])
    return kinds_of(answers, chosen, given[chosen]), Pool(whole, chosen, given[chosen], true[chosen])


def whole_of(config: DataConfig) -> Dataset:
    """A data set with all of its examples, without label noise."""
    flags = {"limit_train": None, "limit_test": None, "val_size": 0.0, "train_noisy": False, "augment": "none"}
    return load_dataset(dataclasses.replace(config, **flags, loader_name=config.loader_name.removesuffix("_noisy")))


def keys_of(split: Split) -> list[bytes]:
    """What an example is known by, whatever its place: its content and its true label. Equal ones are one example."""
    found = []
    for start in range(0, len(split), CHUNK):
        part = split[slice(start, start + CHUNK)]
        rows, labels = part.inputs.cpu().flatten(1).numpy(), part.true_labels.tolist()
        hashes = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
        found += [content + label.to_bytes(4, "big") for content, label in zip(hashes, labels, strict=True)]
    return found


def answer_of(run: LoadedRun, whole: Dataset, places: Mapping[bytes, int], batch_size: int) -> Answer:
    """Raises RuntimeError: what the run saw is not known, or not in the whole data set; its network gives no numbers."""
    if isinstance(run.folder.read_summary()["identity"].get("parent"), str):
        raise RuntimeError(
            f"{run.folder.path} has a dense parent that was given as a file, and which examples that saw is not known; give "
            "runs without --pretrain_model_path"
        )
    rows = [places.get(key) for key in keys_of(run.dataset.train)]
    if None in rows:
        raise RuntimeError(f"{run.folder.path} was trained on examples that the first run's data set does not have")
    n = len(whole.train) + len(whole.test)
    seen, given = torch.zeros(n, dtype=torch.bool), torch.full((n,), -1)
    seen[rows] = True
    given[rows] = run.dataset.train.labels.cpu()
    device = next(run.network.parameters()).device
    own = laid_out(whole, run.config.network)
    batches = (inputs.to(device) for split in (own.train, own.test) for inputs, _, _ in own.batches(split, batch_size))
    logits = logits_of(run.network, batches)
    if not torch.isfinite(logits).all():
        raise RuntimeError(f"{run.folder.path}: the network gives values that are not finite; has its training diverged?")
    identity = run.folder.read_summary()["identity"]
    options, parent = repeated(identity), repeated(identity.get("parent", {}))
    return Answer(StoredRun(run.folder, run.config), options, parent, seen, given, logits.argmax(1).cpu())


def repeated(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an identity that all runs of a kind have."""
    return {name: value for name, value in identity.items() if name not in SEEDS}


def check_same_data(first: LoadedRun, run: LoadedRun) -> None:
    """Raise RuntimeError, naming the flag, where two runs were not trained on examples of one data set."""
    for field in dataclasses.fields(DataConfig):
        name, (mine, theirs) = field.name, (getattr(one.config.data, field.name) for one in (first, run))
        if name not in (*WHERE_DATA_ARE, *SUBSET, "augment") and mine != theirs:
            raise RuntimeError(
                f"{first.folder.path} has --{name} {mine} and {run.folder.path} --{name} {theirs}: they share no data; give "
                f"runs whose data flags differ in {', '.join(f'--{flag}' for flag in SUBSET[:2])} alone"
            )


def given_labels(answers: Sequence[Answer]) -> Tensor:
    """(N,) the labels that the runs were given, -1 of examples that none saw. Raises RuntimeError: they contradict."""
    labels = answers[0].given.clone()
    for answer in answers:
        both = answer.seen & (labels >= 0)
        if (labels[both] != answer.given[both]).any():
            raise RuntimeError(
                f"{answers[0].run.folder.path} and {answer.run.folder.path} were given different labels of the same examples: "
                "label noise is drawn anew for each subset; give runs without --train_noisy, or with --noise_method human"
            )
        labels = torch.where(answer.seen, answer.given, labels)
    return labels


def kinds_of(answers: Sequence[Answer], chosen: Tensor, given: Tensor) -> list[Kind]:
    """Kinds by the options of their runs, each named by mode and sparsity, and by what else tells it from the others.

    Args:
        chosen: (M,) places of the examples. given: (M,) their labels.
    """
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(str([sorted(part.items()) for part in (answer.options, answer.parent)]), []).append(answer)
    told = differing([answer.options for answer in answers])
    told_of_parents = differing([answer.parent for answer in answers if answer.parent])
    kinds = []
    for group in groups.values():
        run, options, parent = group[0].run, group[0].options, group[0].parent
        words = [f"{flag} {options[flag]}" for flag in told if flag in options]
        words += [f"{flag} {parent[flag]} in its dense parent" for flag in told_of_parents if flag in parent]
        name = ", ".join([run.name, *words])
        seen = torch.stack([answer.seen[chosen] for answer in group]).numpy()
        right = torch.stack([answer.predicted[chosen] == given for answer in group]).numpy().astype(float)
        kinds.append(Kind(name, [answer.run for answer in group], by_subset(seen, right)))
    return sorted(kinds, key=lambda kind: kind.runs[0].config.mode_spec.has_mask)


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Flags of which not all have the same value, but for those that a run is named by anyway."""
    names = sorted({name for one in options for name in one} - {"mode", "prune_ratio"})
    return [name for name in names if len({str(one.get(name)) for one in options}) > 1]
