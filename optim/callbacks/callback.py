"""What hangs on the training loop. It lies below the trainer and the modes, so that a mode can bring a callback of its own."""

from typing import Any


class Callback:
    """Events of the loop; each gets the `optim.trainer.Trainer`."""

    def on_start(self, trainer: Any) -> None:
        """Before anything, also of a resumed run."""

    def before_epoch(self, trainer: Any) -> None:
        """Before the first step of an epoch, or of what is left of one."""

    def before_step(self, trainer: Any) -> None:
        """Before the forward pass; `trainer.step` steps of the epoch are done. The mask may be changed."""

    def on_gradients(self, trainer: Any) -> None:
        """After the backward pass; pruned weights have their gradients where they are needed. The mask may be changed."""

    def needs_dense_gradient(self, trainer: Any) -> bool:
        """Whether `on_gradients` of the step under way will read the gradients of pruned weights."""
        return False

    def touches_network(self, trainer: Any, event: str) -> bool:
        """Whether an event of the step under way reads or changes weights, gradients or the optimiser's state.

        Where no callback does, a step may keep them of the active weights alone, see `optim.active_weights`.

        Args:
            event: before_step, on_gradients or on_step.
        """
        return getattr(type(self), event) is not getattr(Callback, event)

    def on_step(self, trainer: Any) -> None:
        """After the optimiser step. The mask may be changed."""

    def on_epoch(self, trainer: Any) -> None:
        """After an epoch, and once before the first step; `trainer.row` takes what history.csv shows.

        The network is the one that is evaluated and kept, which `--ema` makes another than the trained one.
        """

    def on_epoch_end(self, trainer: Any) -> None:
        """After `on_epoch` of all callbacks; the network is the one that training goes on with."""

    def on_interruption(self, trainer: Any) -> None:
        """`on_epoch` was interrupted somewhere, and the trainer is again where the epoch's last step left it."""

    def final_after(self, trainer: Any, epoch: int) -> bool:
        """Of a callback that changes the mask: whether after an epoch as many weights are pruned as in the end."""
        return True

    def on_end(self, trainer: Any) -> None:
        """After the last epoch; the network is the one that is kept."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Called before `on_start` of a resumed run, with what `state` gave, if that was anything."""
