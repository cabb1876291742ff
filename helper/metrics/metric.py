"""What a metric says of itself: its flags, how it is measured, and what it is called, priced and tabulated by."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.metrics.estimate import Estimate
from helper.metrics.price import price_of_all, price_of_precision
from helper.metrics.sampling import Budget
from helper.metrics.subject import Examples
from helper.schema.config import Condition, Config, flag_fields

PUBLISHED_SAMPLES = 1000  # examples of the estimators that no precision stops, where --monte_carlo_samples does not say
USUAL_TRIALS = 5  # draws for each example of those, where --monte_carlo_trials does not say
ALWAYS: tuple[Condition, ...] = ({},)
NEVER: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class NoFlags(Config):
    """Of a metric that has no flags but its switch."""


class Metric:
    """A quantity of one state of a network, measured where `--save_NAME` is 1.

    `config` is always a `MetricConfig`: the flags that all metrics share and every metric's own. Conditions are as in the
    `when` of a flag; one of them is enough.

    Attributes:
        name: in its switch, in the column `metric`, in `experiment.py measure --metrics`.
        about: what it is, for the help of its switch. short: the switch's short form.
        usual: whether it is measured where nobody says, but on a TPU.
        label, unit: what its axes show. heading: of the report's columns; empty where the report has none.
        least: no value is below it.
        Flags: its own flags. reads: names of other metrics' flags that it reads as well.
        stopping: when its estimator stops at --metric_rtol.
        probing: when it takes several random draws of each example, as --monte_carlo_trials says.
        batched: when the result depends on the batches, as that of some libraries does.
        counts_parameters: whether it depends on --metric_params.
        by_itself: whether a state is all it takes: not for what comes out of the training's own passes.
        by_subset: whether clean and mislabelled examples are measured apart.
        file: of the run folder, where its values are.
    """

    name: str
    about: str
    label: str
    unit: str = ""
    short: str | None = None
    usual = False
    heading = ""
    least = -math.inf
    Flags: type[Config] = NoFlags
    reads: tuple[str, ...] = ()
    stopping = NEVER
    probing = NEVER
    batched = NEVER
    counts_parameters = False
    by_itself = True
    by_subset = True
    file = "metrics.csv"

    def __init_subclass__(cls) -> None:
        for attribute in ("name", "about", "label"):
            if not hasattr(cls, attribute):
                raise TypeError(f"the metric {cls.__name__} has no {attribute}, which every metric needs")

    def measure(
        self, network: nn.Module, inputs: Examples, labels: Tensor, mask: Mask, config: Config, *, generator: torch.Generator
    ) -> Estimate:
        """The value of a network for some examples, and its error.

        Args:
            network: in any mode, on any device. inputs: (N, ...) as it takes them; labels: (N,) as they are given.
            mask: pruned coordinates do not count.
            generator: of all that is drawn at random.
        Raises:
            ValueError: it cannot be measured of such a network.
        """
        raise NotImplementedError

    def measure_next(self, former: Any, *measured: Any, generator: torch.Generator) -> tuple[Estimate, Any]:
        """`measure` of a network that has moved on, and what the next measurement of the run may begin with.

        Args:
            former: what the last one gave; None at first. A checkpoint keeps it: tensors and plain values.
            measured: what `measure` takes.
        """
        return self.measure(*measured, generator=generator), None

    def check(self, config: Config) -> None:
        """Raise FlagError where its flags contradict each other."""

    # ------------------------------------------------------------------------------------- what its flags come to

    @property
    def switch(self) -> str:
        return f"save_{self.name}"

    @property
    def flags(self) -> list[str]:
        """Names of the flags that not all metrics share and it reads."""
        return [*(field.name for field in flag_fields(self.Flags)), *self.reads]

    def stops(self, config: Config) -> bool:
        return holds(self.stopping, config)

    def probes(self, config: Config) -> bool:
        return holds(self.probing, config)

    def counted(self, config: Config) -> str:
        """The `params` column: which parameters are counted; empty where it is not about parameters."""
        return config.metric_params if self.counts_parameters else ""

    def samples(self, config: Config) -> int | None:
        """Most examples that are measured; None: all, or as many as a precision takes."""
        return config.monte_carlo_samples or (None if self.stops(config) else PUBLISHED_SAMPLES)

    def bounds(self, config: Config) -> dict[str, Any]:
        """The arguments of an estimator that say how much is measured, and how much of it at once."""
        return {"rtol": config.metric_rtol, "n_probes": config.monte_carlo_trials, **self.bounds_of_sample(config)}

    def bounds_of_sample(self, config: Config) -> dict[str, Any]:
        """Those of them that an estimator takes which neither stops at a precision nor draws for each example."""
        at_once = {"batch_size": config.batch_size_fisher, "memory_mb": config.metric_memory_mb}
        return {"max_samples": self.samples(config), **at_once, "progress": True}

    def chosen(self, config: Config) -> dict[str, Any]:
        """{flag: value} of `flags`, as far as they decide its value."""
        return {name: getattr(config, name) for name in self.flags}

    def settings(self, config: Config) -> str:
        """The options that decide its value, as the JSON text of the `settings` column.

        One that does not act on it is left out, as one that has no value: what only bounds a chunk, a precision that the
        estimator does not stop at.
        """
        found = self.chosen(config) | {"samples": self.samples(config)}
        found |= {"rtol": config.metric_rtol} if self.stops(config) else {}
        found |= {"trials": config.monte_carlo_trials} if self.probes(config) else {}
        found |= {"batch_size": config.batch_size_fisher} if holds(self.batched, config) else {}
        return json.dumps({name: value for name, value in found.items() if value is not None}, sort_keys=True)

    def cure(self, config: Config) -> str:
        """What to change, after `Measure more examples`, where a few large draws decide on a value."""
        return ": a larger -ms, or none, and --metric_rtol 0"

    # ------------------------------------------------------------------------------------------- price and figures

    def price(self, config: Config, population: int, n_classes: int) -> float:
        """What one measurement takes, in images of a training step."""
        budget = Budget(config.metric_rtol, self.samples(config), config.monte_carlo_trials)
        if self.stops(config):
            return price_of_precision(budget, population)
        return price_of_all(min(population, self.samples(config) or population), self.draws_of_each(config, n_classes))

    def draws_of_each(self, config: Config, n_classes: int) -> int:
        """Draws for each example, of an estimator that no precision stops."""
        return config.monte_carlo_trials or USUAL_TRIALS

    @property
    def axis(self) -> str:
        """What stands beside a figure's axis."""
        return f"{self.label}\n({self.unit})" if self.unit else self.label


def holds(conditions: Sequence[Condition], config: Config) -> bool:
    """Whether one of some conditions is met."""
    return any(all(getattr(config, flag) in values for flag, values in one.items()) for one in conditions)
