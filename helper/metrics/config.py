"""`MetricConfig`: the flags that all metrics share, with the switch and the own flags of each."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from helper.metrics.main import METRICS
from helper.metrics.metric import ALWAYS, Metric
from helper.metrics.parameters import PARAMS
from helper.schema.config import Condition, Config, Flag, flag, flag_fields, hints_of


def beside_switch(metric: Metric, conditions: Iterable[Condition] = ALWAYS) -> list[Condition]:
    """Conditions that hold where a metric is measured."""
    return [{metric.switch: (True,), **condition} for condition in conditions]


MEASURED = [condition for metric in METRICS.values() if metric.by_itself for condition in beside_switch(metric)]
COUNTING = [condition for metric in METRICS.values() if metric.counts_parameters for condition in beside_switch(metric)]
STOPPING = [condition for metric in METRICS.values() for condition in beside_switch(metric, metric.stopping)]
PROBING = [condition for metric in METRICS.values() for condition in beside_switch(metric, metric.probing)]


@dataclass(frozen=True)
class SharedFlags(Config):
    """Those that say when, of which parameters and examples, and how precisely all metrics are measured."""

    metric_every: int = flag(0, "measure every K epochs; 0: initial and selected weights", low=0, when=MEASURED, identity=False)
    metric_params: str = flag(
        "layers", "parameters counted: every weight and bias but those of normalisations, the weights among them, or all",
        choices=PARAMS, when=COUNTING, identity=False,
    )  # fmt: skip
    metric_split: str = flag(
        "train", "examples that measurements are about", choices=("train", "test"), when=MEASURED, identity=False
    )
    metric_rtol: float = flag(
        0.05, "relative standard error asked for, where an estimator can promise one; 0: measure every example",
        low=0, when=STOPPING, identity=False,
    )  # fmt: skip
    metric_memory_mb: int = flag(1000, "most MiB of a chunk of examples", low=1, when=MEASURED, identity=False)


@dataclass(frozen=True)
class AmountFlags(Config):
    """Those that bound how much is measured."""

    monte_carlo_samples: int | None = flag(
        None, "most examples measured; default: as many as --metric_rtol needs, 1000 where it does not act",
        short="-ms", low=2, when=MEASURED, identity=False,
    )  # fmt: skip
    monte_carlo_trials: int | None = flag(
        None, "label draws or probe vectors for each of them; default: as few as an error needs, 5 labels",
        short="-mt", low=2, when=PROBING, identity=False,
    )  # fmt: skip
    batch_size_fisher: int | None = flag(
        None, "most examples in a chunk; default: what fits --metric_memory_mb, a thirtieth of -ms for the libraries",
        short="-bf", low=1, when=MEASURED, identity=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Measurements(Config):
    """What is asked of a `MetricConfig`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for metric in METRICS.values():
            metric.check(self)

    def wanted(self) -> list[Metric]:
        """What is measured of a state: all that is switched on but what comes out of the training's own passes."""
        return [metric for metric in METRICS.values() if metric.by_itself and getattr(self, metric.switch)]

    def tabulated(self) -> list[Metric]:
        """Those of `wanted` that have rows in metrics.csv."""
        return [metric for metric in self.wanted() if metric.file == Metric.file]

    def due(self, epoch: int, first: int = 0) -> bool:
        """Whether an epoch is one to measure on the way; the first one, before any step, is."""
        return epoch == first or (self.metric_every > 0 and epoch % self.metric_every == 0)


Fields = dict[str, tuple[Any, dataclasses.Field]]  # {flag: (its type, the field)}


def switch_of(metric: Metric) -> Fields:
    text = f"{metric.about}; default: 1, on tpu 0" if metric.usual else metric.about
    field = flag(None if metric.usual else False, text, short=metric.short, identity=False)
    return {metric.switch: (bool | None if metric.usual else bool, field)}


def fields_of(cls: type[Config]) -> Fields:
    return {field.name: (hints_of(cls)[field.name], field) for field in flag_fields(cls)}


def own_fields(metric: Metric) -> Fields:
    """Its own flags, which act where it or another metric that reads them is measured and never change a run's weights."""
    found = {}
    for name, (kind, field) in fields_of(metric.Flags).items():
        spec: Flag = field.metadata["flag"]
        readers = [other for other in METRICS.values() if name in other.flags]
        when = [condition for reader in readers for condition in beside_switch(reader, spec.when)]
        spec = dataclasses.replace(spec, when=tuple(when), identity=False)
        found[name] = (kind, dataclasses.field(default=field.default, metadata={"flag": spec}))
    return found


def all_fields() -> Fields:
    """In the order of --help: what is measured, what all that share, their own flags, how much."""
    found: Fields = {}
    for metric in METRICS.values():
        found |= switch_of(metric) | ({} if metric.by_itself else own_fields(metric))
    found |= fields_of(SharedFlags)
    for metric in METRICS.values():
        found |= own_fields(metric)
    return found | fields_of(AmountFlags)


MetricConfig = dataclasses.make_dataclass(
    "MetricConfig",
    [(name, kind, field) for name, (kind, field) in all_fields().items()],
    bases=(Measurements,),
    namespace={
        "__doc__": "Measurements: which quantities, how often, with which estimators; they do not change the run.",
        "__module__": __name__,
    },
    frozen=True,
)
