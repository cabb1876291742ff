"""Options and registry of the measurements: `METRICS[name](network, inputs, labels, mask, config, ...) -> Estimate`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from helper.config import Config, flag
from helper.metrics.estimate import Estimate
from helper.metrics.fisher import FISHER_METHODS, FISHER_METRICS, fisher_trace
from helper.metrics.hessian import HESSIAN_METHODS, hessian_trace
from helper.metrics.parameters import PARAMS


@dataclass(frozen=True)
class MetricConfig(Config):
    """Measurements: which quantities, how often, with which estimators; they do not change the run."""

    save_snr: bool = flag(True, "signal-to-noise ratio of the gradients after every epoch", short="-ss", identity=False)
    save_fisher: bool = flag(True, "trace of the Fisher information", short="-sf", identity=False)
    save_hessian: bool = flag(False, "trace of the Hessian", identity=False)
    metric_every: int = flag(0, "measure every K epochs; 0: initial and selected weights", low=0, identity=False)
    metric_params: str = flag(
        "layers", "parameters counted: Linear and Conv2d, their weights only, or all with BatchNorm",
        choices=PARAMS, identity=False,
    )  # fmt: skip
    metric_split: str = flag("train", "examples that measurements are about", choices=("train", "test"), identity=False)
    fisher_method: str = flag(
        "nngeometry", "estimator of the Fisher trace", short="-fd", choices=FISHER_METHODS, identity=False
    )
    fisher_metric: str = flag(
        "fim_monte_carlo", "labels drawn from the prediction, or all of them",
        short="-fm", choices=FISHER_METRICS, identity=False,
    )  # fmt: skip
    hessian_method: str = flag("pyhessian", "estimator of the Hessian trace", choices=HESSIAN_METHODS, identity=False)
    monte_carlo_samples: int = flag(1000, "examples measured", short="-ms", low=2, identity=False)
    monte_carlo_trials: int = flag(5, "label draws or probe vectors for each of them", short="-mt", low=2, identity=False)
    batch_size_fisher: int = flag(100, "examples in a measured batch", short="-bf", low=1, identity=False)

    def due(self, epoch: int) -> bool:
        """Whether an epoch is one to measure on the way."""
        return epoch == 0 or (self.metric_every > 0 and epoch % self.metric_every == 0)

    def wanted(self) -> list[str]:
        """Names in METRICS that are switched on."""
        return [name for name in METRICS if getattr(self, f"save_{name}")]


def measure_fisher(network: nn.Module, inputs: Tensor, labels: Tensor, mask, config: MetricConfig, **common: Any) -> Estimate:
    return fisher_trace(
        network, inputs, mask, method=config.fisher_method, metric=config.fisher_metric, **_options(config), **common
    )


def measure_hessian(network: nn.Module, inputs: Tensor, labels: Tensor, mask, config: MetricConfig, **common: Any) -> Estimate:
    return hessian_trace(network, inputs, labels, mask, method=config.hessian_method, **_options(config), **common)


# (network, inputs, labels, mask, config, population=, generator=) -> Estimate
METRICS: dict[str, Callable[..., Estimate]] = {"fisher": measure_fisher, "hessian": measure_hessian}
OWN_SETTINGS = {"fisher": ("fisher_method", "fisher_metric"), "hessian": ("hessian_method",)}
SETTINGS = ("monte_carlo_samples", "monte_carlo_trials", "batch_size_fisher")


def settings(name: str, config: MetricConfig) -> str:
    """The options that a measurement depends on, as the JSON text of the `settings` column."""
    return json.dumps({key: getattr(config, key) for key in (*OWN_SETTINGS[name], *SETTINGS)}, sort_keys=True)


def _options(config: MetricConfig) -> dict[str, Any]:
    return {
        "max_samples": config.monte_carlo_samples,
        "n_probes": config.monte_carlo_trials,
        "batch_size": config.batch_size_fisher,
        "params": config.metric_params,
    }
