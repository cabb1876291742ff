"""Several processes choose the same examples, and those that one process chooses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.batches import Batch, Drawing
from optim.callbacks.examples import CountExamples, CountForgetting
from optim.folder import RunFolder
from optim.subsets.config import SubsetConfig
from optim.subsets.main import Subset
from optim.train_config import TrainConfig
from optim.trainer import Trainer
from tests.several import together


def trained(method: str, augment: str, folder: str) -> tuple[list[list[int]], dict[str, Tensor], dict[str, Tensor], int]:
    """(rows of every step, weights, counts of forgetting, mislabelled examples that the last epoch has shown)."""
    dataset = load_dataset(DataConfig("digits_noisy", limit_train=70, augment=augment))
    network = build_network(NetworkConfig(net_name="mlp", hidden_dims="16"), (1, 8, 8), 10, stream(0, "init"))
    config = SubsetConfig(train_subset=True, subset_ratio=0.4, subset_method=method)
    subset = Subset(config, n_epochs=3, seed=3, scores=torch.linspace(0, 3, 70, dtype=torch.float64))
    counts, forgetting, shown = CountExamples(), CountForgetting(RunFolder(folder)), []
    forgetting.on_end = lambda trainer: None
    usual = Drawing.batch

    def recorded(drawing: Drawing, *args: Any) -> Batch:
        batch = usual(drawing, *args)
        shown.append(batch.rows.tolist())
        return batch

    Drawing.batch = recorded
    try:
        trainer = Trainer(
            network, dataset, TrainConfig(batch_size=23, n_epochs=3), seed=3, callbacks=[counts, forgetting], subset=subset
        )
        trainer.fit()
    finally:
        Drawing.batch = usual
    return shown, trainer.network.state_dict(), forgetting.counts, trainer.row["examples_noisy"]


@pytest.mark.parametrize(("method", "augment"), [("loss", "crop_flip"), ("reducible_fisher", "none"), ("uniform", "crop_flip")])
def test_processes_choose_the_same_and_train_what_one_does(method, augment, tmp_path):
    shown, weights, forgetting, noisy = trained(method, augment, str(tmp_path))
    assert [len(rows) for rows in shown] == [9, 9, 9, 1] * 3
    for other in together(2, trained, method, augment, str(tmp_path)):
        assert other[0] == shown
        assert other[3] == noisy
        for name, tensor in weights.items():
            torch.testing.assert_close(other[1][name], tensor, rtol=1e-4, atol=1e-5)
        for name in ("forgotten", "learned"):
            assert torch.equal(other[2][name], forgetting[name])
