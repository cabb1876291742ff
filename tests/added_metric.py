"""A metric that is added in a file of its own, as one in helper/metrics/quantities/ is; importing this adds it."""

from dataclasses import dataclass

from helper.metrics.estimate import Estimate
from helper.metrics.main import METRICS
from helper.metrics.metric import Metric
from helper.schema.config import Config, flag


@dataclass(frozen=True)
class PowerFlags(Config):
    weight_power: int = flag(2, "power of the weights that are added up", low=1)


class WeightPower(Metric):
    name = "weight_power_sum"
    about = "sum of a power of the active weights"
    label, unit, heading = "sum of powers of the weights", "power of a parameter", "sum W^n"
    Flags = PowerFlags

    def measure(self, network, inputs, labels, mask, config, *, generator) -> Estimate:
        weights = {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.ndim > 1}
        active = {name: weight * mask[name].to(weight) if name in mask else weight for name, weight in weights.items()}
        sums = {name: weight.double().pow(config.weight_power).sum().item() for name, weight in active.items()}
        by_layer = {name.removesuffix(".weight"): (value, 0.0) for name, value in sums.items()}
        return Estimate(sum(sums.values()), 0.0, len(inputs), "closed form; no example needed", by_layer)

    def samples(self, config: Config) -> None:
        return None  # it looks at none

    def price(self, config: Config, population: int, n_classes: int) -> float:
        return 1000.0 * config.weight_power


METRICS[WeightPower.name] = WeightPower()
