"""Where a network and its data lie for computing, and in which memory layout."""

from dataclasses import replace

import torch
from torch import nn

from loader.dataset import Dataset
from network.main import NetworkConfig, facts_of


def laid_out(dataset: Dataset, config: NetworkConfig) -> Dataset:
    """A data set that gives images in the layout that the network takes. Raises what `build_network` does."""
    channels_last = facts_of(config, dataset.input_shape, dataset.n_classes).channels_last
    return dataset if dataset.channels_last == channels_last else replace(dataset, channels_last=channels_last)


def place(network: nn.Module, dataset: Dataset) -> None:
    """Move a network to the device of its data, with its weights in the layout of the images."""
    device = dataset.train.inputs.device
    if dataset.channels_last:
        network.to(device, memory_format=torch.channels_last)
    else:
        network.to(device)
