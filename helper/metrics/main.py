"""The metrics by name. A new one is a file in `quantities/` and a line here; flags, tables, figures and prices ask it."""

from helper.metrics.metric import Metric
from helper.metrics.quantities.fisher import Fisher
from helper.metrics.quantities.hessian import Hessian, HessianResidual
from helper.metrics.quantities.jacobian import Jacobian, JacobianTop
from helper.metrics.quantities.sharpness import Sharpness
from helper.metrics.quantities.snr import Snr
from helper.metrics.quantities.spectrum import SpectrumOfState
from helper.schema.registry import by_name

METRICS: dict[str, Metric] = by_name(
    Snr(),
    Fisher(),
    Hessian(),
    HessianResidual(),
    Jacobian(),
    JacobianTop(),
    SpectrumOfState(),
    Sharpness(),
)
