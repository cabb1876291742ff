"""--save_sharpness: the largest eigenvalue of the Hessian."""

from dataclasses import dataclass

from torch import Tensor

from helper.metrics.estimate import Estimate
from helper.metrics.metric import Metric
from helper.metrics.price import PRODUCT
from helper.metrics.sharpness import SAMPLES, STEPS, followed_eigenvalue, products
from helper.metrics.spectrum import half_steps
from helper.schema.config import Config, flag


@dataclass(frozen=True)
class SharpnessFlags(Config):
    sharpness_steps: int = flag(STEPS, "Lanczos steps for the largest eigenvalue", low=2, identity=False)


class Sharpness(Metric):
    """Eigenvalues of subsets do not add up to that of all, so that of label noise none are measured."""

    name = "sharpness"
    about = "largest eigenvalue of the Hessian, at little cost"
    label, unit = "largest eigenvalue of the Hessian", "nats per squared parameter"
    Flags = SharpnessFlags
    counts_parameters = True
    by_subset = False

    def measure(self, *measured, generator) -> Estimate:
        return self.measure_next(None, *measured, generator=generator)[0]

    def measure_next(self, former, network, inputs, labels, mask, config, *, generator) -> tuple[Estimate, Tensor]:
        return followed_eigenvalue(
            network, inputs, labels, mask, former=former, steps=config.sharpness_steps, params=config.metric_params,
            **self.bounds_of_sample(config), generator=generator,
        )  # fmt: skip

    def samples(self, config: Config) -> int:
        return config.monte_carlo_samples or SAMPLES

    def price(self, config: Config, population: int, n_classes: int) -> float:
        n, steps = min(population, self.samples(config)), config.sharpness_steps
        return PRODUCT * products(n, steps, halved=half_steps(1, steps) if n < population else 0)
