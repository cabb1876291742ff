"""--save_jacobian and --save_jacobian_top: norms of the input-output Jacobian."""

from dataclasses import dataclass

from helper.metrics.estimate import Estimate
from helper.metrics.jacobian import JACOBIAN_METHODS, JACOBIAN_OUTPUTS, jacobian_norm
from helper.metrics.metric import ALWAYS, Metric
from helper.schema.config import Config, flag


@dataclass(frozen=True)
class JacobianFlags(Config):
    jacobian_method: str = flag("projection", "random projections, or every output", choices=JACOBIAN_METHODS, identity=False)
    jacobian_output: str = flag("logits", "outputs that are differentiated", choices=JACOBIAN_OUTPUTS, identity=False)


class Jacobian(Metric):
    name = "jacobian"
    about = "squared norm of the input-output Jacobian"
    label, unit, heading = "squared Jacobian norm", "per squared normalised input", "Jacobian"
    least = 0.0
    Flags = JacobianFlags
    stopping = ALWAYS
    probing = ({"jacobian_method": ("projection",)},)

    def measure(self, network, inputs, labels, mask, config, *, generator) -> Estimate:
        return jacobian_norm(
            network, inputs, method=config.jacobian_method, output=config.jacobian_output,
            **self.bounds(config), generator=generator,
        )  # fmt: skip


class JacobianTop(Metric):
    name = "jacobian_top"
    about = "largest singular value of the input-output Jacobian"
    label, unit = "largest singular value of the Jacobian", "per normalised input"
    least = 0.0
    reads = ("jacobian_output",)
    stopping = ALWAYS

    def measure(self, network, inputs, labels, mask, config, *, generator) -> Estimate:
        return jacobian_norm(
            network, inputs, method="exact", norm="spectral", output=config.jacobian_output,
            **self.bounds(config), generator=generator,
        )  # fmt: skip
