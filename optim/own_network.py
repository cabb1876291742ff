"""What a run asks of a network of a user's own, told before anything is trained."""

import io
import logging
import pickle

import torch

from helper.metrics.macs import count_macs
from helper.processes.group import world_size
from helper.pruner import prunable_weights
from helper.schema.config import FlagError
from loader.dataset import Dataset
from network.main import build_network, facts_of
from optim.config import RunConfig

log = logging.getLogger(__name__)


def check_network(config: RunConfig, dataset: Dataset) -> None:
    """Raise FlagError where a network of a user's own cannot do what the flags ask of it. All processes have to call this."""
    word, spec, masks = config.network.net_name, config.network.spec, config.prune
    if not spec.own:
        return
    facts = facts_of(config.network, dataset.input_shape, dataset.n_classes)
    if config.train.recalibrate_bn and not facts.batch_norm:
        raise FlagError(f"--recalibrate_bn 1: {word} has no BatchNorm layers; leave it out")
    if config.mode_spec.has_mask and not masks.prune_last and facts.head is None:
        raise FlagError(
            f"--mode {config.mode}: no linear or convolution layer of {word} gives the {dataset.n_classes} classes, so none "
            "can be left whole; use --prune_last 1"
        )
    network = build_network(config.network, dataset.input_shape, dataset.n_classes, torch.Generator())
    if config.mode_spec.has_mask and not prunable_weights(network, masks.prune_last, facts.head, masks.beside_layers):
        more = "" if masks.prune_last else " but the classifier's; --prune_last 1 prunes that"
        raise FlagError(f"--mode {config.mode}: {word} has no linear or convolution layer whose weights could be pruned{more}")
    if world_size() > 1:
        check_sendable(word, network)


def check_sendable(word: str, network: torch.nn.Module) -> None:
    """Raise FlagError where the first process could not give a network to the others."""
    try:
        pickle.dump(network, io.BytesIO())
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        cure = "make what it holds from functions and classes of its module, or train it in one process"
        raise FlagError(f"{word}: the network cannot be given to other processes ({error}): {cure}") from None


def report_uncounted(config: RunConfig, dataset: Dataset) -> None:
    """Log what multiply-accumulates of a network leave out, if that is anything."""
    facts = facts_of(config.network, dataset.input_shape, dataset.n_classes)
    if facts.uncounted:
        network = build_network(config.network, dataset.input_shape, dataset.n_classes, torch.Generator())
        counted, _ = count_macs(network, dataset.input_shape)
        log.info(
            "cost counts %s multiply-accumulates with weights an example, not %s in products without, such as attention's",
            f"{counted:,}", f"{facts.uncounted:,}",
        )  # fmt: skip
