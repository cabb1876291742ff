"""Options that estimators share; each has a dataclass of its own beside it, whose fields are its keyword arguments."""

from dataclasses import dataclass

from torch import nn

from helper.metrics.sampling import Budget
from helper.metrics.subject import Examples, Subject


@dataclass(frozen=True)
class Limits:
    """How much is measured at most, and how much of it at once.

    max_samples: most examples (or draws, where they are drawn by importance); default: all.
    batch_size, memory_mb: bounds on what is computed at once.
    progress: show how far it is: a bar on a terminal, else a log line every half a minute.
    """

    max_samples: int | None = None
    batch_size: int | None = None
    memory_mb: float = 1000
    progress: bool = False

    def subject(self, network: nn.Module, inputs: Examples, mask=None, params: str | None = None) -> Subject:
        """The network as these options have it measured. params: None where no derivative by parameters is wanted."""
        at_once = {"batch_size": self.batch_size, "memory_mb": self.memory_mb, "progress": self.progress}
        return Subject(network, inputs, mask, params=params, **at_once)


@dataclass(frozen=True)
class Options(Limits):
    """Of a mean over examples.

    rtol: relative standard error asked for, where an estimator can promise one; 0: every example is measured.
    n_probes: random draws for each example, at least 2; default: as few as an error needs.
    """

    rtol: float = 0.05
    n_probes: int | None = None

    @property
    def budget(self) -> Budget:
        return Budget(self.rtol, self.max_samples, self.n_probes)

    @property
    def budget_of_all(self) -> Budget:
        """Of an estimator that stops at no precision."""
        return Budget(0, self.max_samples, self.n_probes)


@dataclass(frozen=True)
class ParameterOptions(Options):
    """Of derivatives by parameters.

    params: `layers` (every weight and bias but those of normalisations), `weights` (without biases) or `all`.
    """

    params: str = "layers"
