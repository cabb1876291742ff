"""A run's network and mask: how each mode starts, what is stored, how it is read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from helper.mask import Mask
from helper.masks.control import shuffled
from helper.masks.fan_in import scale_to_active_fan_in
from helper.schema.config import FlagError, replace, unflatten, unknown
from helper.system.files import hash_of
from helper.system.seeds import stream
from helper.untrusted.reasons import Unfit, reason_of
from helper.untrusted.texts import one_line
from helper.untrusted.yaml_text import read_yaml
from loader.dataset import Dataset
from loader.main import load_dataset
from network.init import BY_ACTIVE_FAN_IN
from network.main import build_network
from optim.checkpoint import opened, state_in
from optim.config import RunConfig
from optim.consent import consent
from optim.folder import RunFolder
from optim.pruning import Pruning


@dataclass(frozen=True)
class Stored:
    """Weights with their mask, as model.pt and state_dicts/epoch_<k>.pt hold them."""

    weights: dict[str, Tensor]
    mask: Mask
    epoch: int | None


def model_state(network: nn.Module, mask: Mask, epoch: int) -> dict[str, Any]:
    return {"network": network.state_dict(), "mask": dict(mask), "epoch": epoch}


def load_stored(path: Path) -> Stored:
    """A weights file: one of a run's, or a plain state dict of any origin.

    Raises:
        RuntimeError: missing or damaged. AlteredFile: in the folder of a finished run that has not left it there.
    """
    if not path.exists():
        raise RuntimeError(f"{path} does not exist; give a run folder or a .pt file of weights")
    with opened(path) as file:
        state = state_in(file, path)
        for folder in (RunFolder(path.parent), RunFolder(path.parent.parent)):
            if folder.config.exists() and path in (folder.model, folder.states / path.name):
                folder.check_file(path, hash_of(file))
    if isinstance(state, dict) and "network" in state:
        weights, mask, epoch = state["network"], state.get("mask") or {}, state.get("epoch")
        if tensors(weights) and tensors(mask) and isinstance(epoch, int | None):
            return Stored(weights, Mask(mask), epoch)
    elif state and tensors(state):
        return Stored(state, Mask(), None)
    raise RuntimeError(f"{path} holds no weights: neither a run's file nor a state dict")


def tensors(state: Any) -> bool:
    """Whether something is a mapping of names to tensors."""
    return isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())


def restore(network: nn.Module, origin: Path) -> Stored:
    """Copy the weights of a file into a network; what the file holds.

    Raises:
        RuntimeError: missing, damaged, or another architecture's; one line names the first difference.
    """
    stored = load_stored(origin)
    put_into(network, stored, origin)
    return stored


def put_into(network: nn.Module, stored: Stored, origin: Path) -> None:
    """`restore` of a file that has been read."""
    check_fit(network, stored, origin)
    network.load_state_dict(stored.weights)


def let_go(network: nn.Module) -> None:
    """Free the memory of a network's values, which are to be replaced by those of a file: both need not be there at once.

    Names and shapes stay, which `take_over` compares.
    """
    for value in network.state_dict(keep_vars=True).values():
        value.data = value.data.new_zeros(()).expand(value.shape)


def take_over(network: nn.Module, stored: Stored, origin: Path) -> None:
    """Let a network have the tensors of a file as its own, without a copy of them; parameters stay the objects that they are.

    Raises:
        RuntimeError: as of `restore`.
    """
    check_fit(network, stored, origin)
    for name, value in network.state_dict(keep_vars=True).items():
        value.data = stored.weights[name].to(value)


def check_fit(network: nn.Module, stored: Stored, origin: Path) -> None:
    """Raise RuntimeError, with the first difference, unless a file's weights and mask are of a network's shape."""
    own, weights = network.state_dict(), stored.weights
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            where = "lacks" if name not in weights else "has the unknown"
            raise RuntimeError(f"{origin} {where} {name!r}: was it saved with another --net_name or --depth?")
        if own[name].shape != weights[name].shape:
            raise RuntimeError(
                f"{origin}: {name!r} has shape {tuple(weights[name].shape)} but the network's is {tuple(own[name].shape)}; "
                "was it saved with another --depth, --widen_factor, --hidden_dims or data set?"
            )
    try:
        stored.mask.parameters_of(network)
    except ValueError as error:
        raise RuntimeError(f"{origin}: {error}") from None


@dataclass(frozen=True)
class Origins:
    """The networks and the mask from which a run may begin, as `optim.modes.Beginning` describes them.

    Attributes:
        before: run folders of the runs that it needs, or a weights file in the place of the first, which is dense; the last
            one is its parent. Empty in modes that need none.
        pruning: makes the masks.
    """

    config: RunConfig
    dataset: Dataset
    before: Sequence[Path]
    pruning: Pruning

    def fresh(self, name: str) -> nn.Module:
        generator = stream(self.config.random_state, name)
        return build_network(self.config.network, self.dataset.input_shape, self.dataset.n_classes, generator)

    def dense_solution(self) -> nn.Module:
        return self.restored(weights_file(self.dense_parent()))

    def dense_initialisation(self) -> nn.Module:
        return self.restored(lottery_file(self.config, self.dense_parent()))

    def rewound(self) -> nn.Module:
        if self.config.begins_with_dense_state:
            return self.restored(rewind_file(self.config, self.dense_parent()))
        return self.restored(weights_file(self.before[-1]))

    def dense_parent(self) -> Path:
        if not self.before:
            mode = f"--mode {self.config.mode}"
            raise TypeError(
                f"{mode} asks for the dense parent's weights, and neither its start nor its mask has of_parent=True"
            )
        return self.before[0]

    def restored(self, path: Path) -> nn.Module:
        network = self.fresh("init")
        restore(network, path)
        return network

    def pruned(self, network: nn.Module, score: str | None = None) -> Mask:
        generator = stream(self.config.random_state, "prune")
        return self.pruning.mask(network, self.config.prune.prune_ratio, generator, score=score)

    def pruned_further(self) -> Mask:
        network, n_round = self.fresh("init"), len(self.before)
        stored = restore(network, weights_file(self.before[-1]))
        if n_round == 1:
            return self.pruned(network)  # of a dense run's file no mask counts
        generator = stream(self.config.random_state, "prune", n_round)
        return self.pruning.mask(network, self.config.prune.prune_ratio, generator, within=stored.mask)

    def shuffled(self, mask: Mask) -> Mask:
        return shuffled(mask, stream(self.config.random_state, "shuffle"))

    def whole(self, network: nn.Module) -> Mask:
        return self.pruning.whole(network)

    def fit(self, network: nn.Module, mask: Mask) -> None:
        if self.config.network.initialiser in BY_ACTIVE_FAN_IN:
            scale_to_active_fan_in(network, mask)


class Beginning(NamedTuple):
    """With what a run begins, on the CPU; macs: multiply-accumulates that its mask's scores have taken."""

    network: nn.Module
    mask: Mask
    macs: int


def start(config: RunConfig, dataset: Dataset, before: Sequence[Path]) -> Beginning:
    """Network and mask with which a run of `config.mode` begins (paper, figure 2).

    Args:
        before: run folders of the runs that it needs, or weights of Sol-D in the place of the first; empty: it needs none.
    Raises:
        RuntimeError: a parent's weights are missing, damaged or another architecture's.
        FlagError: there is no such mask of this network, or too few data for its scores.
    """
    pruning = Pruning(config, dataset)
    network, mask = config.mode_spec.start(Origins(config, dataset, before, pruning), config.prune.mask_control)
    return Beginning(network, mask, pruning.macs)


def weights_file(path: Path) -> Path:
    """model.pt of a run folder; a file stands for itself."""
    return RunFolder(path).model if path.is_dir() else path


def lottery_file(config: RunConfig, parent: Path) -> Path:
    """Where Init-D is: --lottery_model_path, or the parent run's state before its first epoch. Raises RuntimeError: none."""
    if config.lottery_model_path:
        path = Path(config.lottery_model_path)
        return RunFolder(path).epoch_state(0) if path.is_dir() else path
    path = RunFolder(parent if parent.is_dir() else parent.parent).epoch_state(0)
    if not path.exists():
        raise RuntimeError(f"{path} does not exist: say with --lottery_model_path where the dense initialisation is")
    return path


def rewind_file(config: RunConfig, dense: Path) -> Path:
    """Where the state of a dense run after --rewind_epoch is.

    Raises:
        RuntimeError: the dense run has not kept it. FlagError: there is none beside what --pretrain_model_path gives.
    """
    folder, epoch = RunFolder(dense if dense.is_dir() else dense.parent), config.prune.rewind_epoch
    path = folder.epoch_state(epoch)
    if path.exists():
        return path
    if config.pretrain_model_path:
        raise FlagError(f"--rewind_epoch {epoch}: {path} does not exist; give a dense run's folder that has it, or --rewind lr")
    epochs = "-".join(map(str, sorted({*folder.kept_epochs(), epoch})))
    raise RuntimeError(
        f"{path} does not exist, and --rewind_epoch {epoch} begins there: train the dense run again, with --load_pretrain 0 "
        f"here or by its own command with --save_epochs {epochs} --overwrite 1"
    )


def load_run(
    path: Path | str, changes: dict[str, Any] | None = None, *, trust_code: bool = False
) -> tuple[nn.Module, Mask, RunConfig]:
    """(network with the selected weights, on the CPU and in eval mode; mask; configuration) of a finished run.

    Args:
        changes: flags that take another value than the stored one, such as where the data files are now.
        trust_code: run the code of a user's own that its files name.
    Raises:
        FlagError: there is such code, and it is not trusted.
        RuntimeError: no such run, an unfinished or damaged one. AlteredFile: files of it are not as it has left them.
    """
    folder = RunFolder(Path(path))
    config = replace(stored_config(folder), **(changes or {}))
    consent(config, folder.path, trust_code=trust_code)
    if not folder.finished:
        raise RuntimeError(f"{folder.path} is not finished; run it to its end first")
    folder.check_files()
    dataset = load_dataset(config.data)
    network = build_network(config.network, dataset.input_shape, dataset.n_classes, torch.Generator())
    stored = restore(network, folder.model)
    stored.mask.parameters_of(network)
    return network.eval(), stored.mask, config


def stored_config(folder: RunFolder) -> RunConfig:
    """The configuration in a run folder.

    Raises:
        RuntimeError: there is none, it is damaged, or of a program with other parts.
    """
    if not folder.config.is_file():
        raise RuntimeError(f"{folder.path} is no run folder: it has no config.yaml")
    try:
        flags = read_yaml(folder.config.read_text(), words=True)
        if not (isinstance(flags, dict) and flags):
            raise Unfit("it holds no flags")
        return unflatten(RunConfig, flags)
    except (yaml.YAMLError, UnicodeDecodeError, Unfit, TypeError, FlagError) as error:
        strange = one_line(", ".join(unknown(RunConfig, flags)), 300) if isinstance(error, FlagError) else ""
        if strange:
            raise RuntimeError(
                f"{folder.config} has {strange}, which no part of this program knows: go on with the program that made the "
                "run, add the part again, or move the run's folder away"
            ) from None
        cause = one_line(error) if isinstance(error, FlagError) else reason_of(error)
        raise RuntimeError(
            f"{folder.config} is damaged: {cause}; put a copy of it back, or move the run's folder away"
        ) from None
