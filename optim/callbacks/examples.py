"""What becomes of the training examples: how many steps have shown, and how often each has been forgotten."""

from typing import Any

import torch
from torch import Tensor

from helper.processes.first import broadcast_from_first
from helper.processes.group import rank
from helper.processes.sharing import sum_over_processes
from helper.untrusted.arrays import write_arrays
from optim.callbacks.callback import Callback
from optim.folder import RunFolder
from optim.trainer import Trainer


class CountExamples(Callback):
    """Examples that an epoch's steps have trained on, and of them the mislabelled ones, for history.csv."""

    def __init__(self) -> None:
        self.n, self.noisy = 0, torch.zeros(1, dtype=torch.int64)  # one value, as a scalar would be a graph of its own on XLA
        self.former: tuple[int, Tensor] | None = None  # of the epoch whose row is being made

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return False

    def on_start(self, trainer: Trainer) -> None:
        self.mislabelled = trainer.dataset.train.noisy if trainer.dataset.noisy else None
        self.noisy = self.noisy.to(trainer.device)  # where it is added to without a wait

    def before_epoch(self, trainer: Trainer) -> None:
        self.former = None

    def on_step(self, trainer: Trainer) -> None:
        self.n += trainer.batch.n
        if self.mislabelled is not None:
            self.noisy = self.noisy + self.mislabelled[trainer.batch.rows].sum()

    def on_epoch(self, trainer: Trainer) -> None:
        self.former = (self.n, self.noisy)
        if trainer.epoch > trainer.first_epoch:
            trainer.row["examples"] = self.n
            if self.mislabelled is not None:
                trainer.row["examples_noisy"] = int(self.noisy)
        self.n, self.noisy = 0, torch.zeros(1, dtype=torch.int64).to(trainer.device)

    def on_interruption(self, trainer: Trainer) -> None:
        self.n, self.noisy = self.former or (self.n, self.noisy)

    def state(self) -> dict[str, Any]:
        return {"n": self.n, "noisy": int(self.noisy)} if self.n else {}

    def load_state(self, state: dict[str, Any]) -> None:
        self.n, self.noisy = int(state["n"]), torch.tensor([int(state["noisy"])])


class CountForgetting(Callback):
    """Forgetting events (Toneva et al. 2019): an example is classified wrongly in a step, and was right when it came before.

    Of the logits that the training steps have, of augmented inputs and while the weights move, by the given labels.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.counts: dict[str, Tensor] = {}
        self.former: dict[str, Tensor] = {}  # of the epoch whose passes are under way

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return False

    def on_start(self, trainer: Trainer) -> None:
        n = len(trainer.dataset.train)
        nothing = {
            "forgotten": torch.zeros(n, dtype=torch.int32),
            "learned": torch.zeros(n, dtype=torch.bool),
            "known": torch.zeros(n, dtype=torch.bool),  # right when it came last
            "seen": torch.zeros(2, n, dtype=torch.uint8),  # in the epoch under way: wrong, right; this process's part
        }
        self.counts = {name: self.counts.get(name, counts) for name, counts in nothing.items()}

    def before_epoch(self, trainer: Trainer) -> None:
        self.former = {}

    def on_step(self, trainer: Trainer) -> None:
        batch = trainer.batch
        right = (trainer.outputs.argmax(1) == batch.examples.labels).cpu()
        self.counts["seen"][right.long(), batch.rows[batch.own].cpu()] = 1

    def on_epoch(self, trainer: Trainer) -> None:
        self.former, counts = self.counts, self.counts
        wrong, right = sum_over_processes(counts["seen"]).bool()
        self.counts = {
            "forgotten": counts["forgotten"] + (counts["known"] & wrong).int(),
            "learned": counts["learned"] | right,
            "known": (counts["known"] & ~wrong) | right,
            "seen": torch.zeros_like(counts["seen"]),
        }

    def on_interruption(self, trainer: Trainer) -> None:
        self.counts = self.former or self.counts

    def on_end(self, trainer: Trainer) -> None:
        arrays = {name: self.counts[name].numpy() for name in ("forgotten", "learned")}
        arrays |= {"index": trainer.dataset.train.indices.cpu().numpy(), "epochs": trainer.config.n_epochs}
        broadcast_from_first(write_arrays, self.folder.forgetting, arrays)

    def state(self) -> dict[str, Any]:
        return self.counts | {"seen": sum_over_processes(self.counts["seen"])}

    def load_state(self, state: dict[str, Any]) -> None:
        self.counts = dict(state)
        if rank() > 0:  # the first one has what all have seen
            self.counts["seen"] = torch.zeros_like(state["seen"])
