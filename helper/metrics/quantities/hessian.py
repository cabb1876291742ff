"""--save_hessian and --save_hessian_residual: trace of the Hessian, and of what it has beside its Gauss-Newton part."""

from dataclasses import dataclass

from helper.metrics.estimate import Estimate
from helper.metrics.hessian import HESSIAN_METHODS, hessian_trace
from helper.metrics.metric import ALWAYS, Metric
from helper.schema.config import Config, flag


@dataclass(frozen=True)
class HessianFlags(Config):
    hessian_method: str = flag(
        "auto", "estimator of the Hessian trace; auto: Gauss-Newton where that is exact, else hutchinson",
        choices=HESSIAN_METHODS, identity=False,
    )  # fmt: skip


class Hessian(Metric):
    name = "hessian"
    about = "trace of the Hessian"
    label, unit, heading = "Hessian trace", "nats per squared parameter", "Tr H"
    Flags = HessianFlags
    stopping = ({"hessian_method": ("auto", "gauss_newton", "hutchinson")},)
    probing = ALWAYS
    batched = ({"hessian_method": ("pyhessian", "eigenthings")},)
    counts_parameters = True

    def measure(self, network, inputs, labels, mask, config, *, generator) -> Estimate:
        return hessian_trace(
            network, inputs, labels, mask, method=config.hessian_method, params=config.metric_params,
            **self.bounds(config), generator=generator,
        )  # fmt: skip


class HessianResidual(Metric):
    name = "hessian_residual"
    about = "trace of what the Hessian has beside its Gauss-Newton part"
    label, unit = "trace of Hessian - Gauss-Newton", "nats per squared parameter"
    probing = ALWAYS
    counts_parameters = True

    def measure(self, network, inputs, labels, mask, config, *, generator) -> Estimate:
        return hessian_trace(
            network, inputs, labels, mask, term="residual", params=config.metric_params,
            **self.bounds(config), generator=generator,
        )  # fmt: skip
