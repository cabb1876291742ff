"""Options and registry of the measurements: `METRICS[name](network, inputs, labels, mask, config, ...) -> Estimate`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from helper.metrics.estimate import Estimate
from helper.metrics.fisher import FISHER_METHODS, FISHER_METRICS, fisher_trace, usual_metric
from helper.metrics.hessian import HESSIAN_METHODS, hessian_trace
from helper.metrics.jacobian import JACOBIAN_METHODS, JACOBIAN_OUTPUTS, jacobian_norm
from helper.metrics.parameters import PARAMS
from helper.metrics.spectrum import MATRICES, Spectrum, spectrum
from helper.metrics.subject import Examples
from helper.schema.config import Config, FlagError, flag

SNR_MODES = ("fixed", "online")
PUBLISHED_SAMPLES = 1000  # examples of the estimators that no precision stops, where --monte_carlo_samples does not say
PARAMETER_METRICS = ("fisher", "hessian", "hessian_residual", "spectrum")  # derivatives by the parameters


def measured(*names: str) -> list[dict[str, tuple]]:
    """The conditions under which one of these quantities is measured."""
    return [{f"save_{name}": (True,)} for name in names]


ANYTHING = measured(*PARAMETER_METRICS, "jacobian", "jacobian_top")
STOPPING = [  # at a precision, see `stops`
    {"save_fisher": (True,), "fisher_method": ("spectral",), "fisher_metric": (None, "fim")},
    {"save_hessian": (True,), "hessian_method": ("auto", "gauss_newton", "hutchinson")},
    *measured("jacobian", "jacobian_top"),
]
PROBED = [  # with several random draws of each example
    {"save_fisher": (True,), "fisher_method": ("spectral",), "fisher_metric": (None, "fim")},
    {"save_fisher": (True,), "fisher_method": ("vmap", "ours", "nngeometry"), "fisher_metric": (None, "fim_monte_carlo")},
    *measured("hessian", "hessian_residual"),
    {"save_jacobian": (True,), "jacobian_method": ("projection",)},
]


@dataclass(frozen=True)
class MetricConfig(Config):
    """Measurements: which quantities, how often, with which estimators; they do not change the run."""

    save_snr: bool | None = flag(
        None, "signal-to-noise ratio of the gradients after every epoch; default: 1, on tpu 0", short="-ss", identity=False
    )
    snr_mode: str = flag(
        "fixed", "gradients of a pass at fixed weights, or of the training steps themselves, which costs nothing",
        choices=SNR_MODES, when=measured("snr"), identity=False,
    )  # fmt: skip
    save_fisher: bool | None = flag(None, "trace of the Fisher information; default: 1, on tpu 0", short="-sf", identity=False)
    save_hessian: bool = flag(False, "trace of the Hessian", identity=False)
    save_hessian_residual: bool = flag(False, "trace of what the Hessian has beside its Gauss-Newton part", identity=False)
    save_jacobian: bool = flag(False, "squared norm of the input-output Jacobian", identity=False)
    save_jacobian_top: bool = flag(False, "largest singular value of the input-output Jacobian", identity=False)
    save_spectrum: bool = flag(False, "top eigenvalues and spectral density of the curvature", identity=False)
    metric_every: int = flag(0, "measure every K epochs; 0: initial and selected weights", low=0, when=ANYTHING, identity=False)
    metric_params: str = flag(
        "layers", "parameters counted: every weight and bias but those of normalisations, the weights among them, or all",
        choices=PARAMS, when=measured(*PARAMETER_METRICS), identity=False,
    )  # fmt: skip
    metric_split: str = flag(
        "train", "examples that measurements are about", choices=("train", "test"), when=ANYTHING, identity=False
    )
    metric_rtol: float = flag(
        0.05, "relative standard error asked for, where an estimator can promise one; 0: measure every example",
        low=0, when=STOPPING, identity=False,
    )  # fmt: skip
    metric_memory_mb: int = flag(1000, "most MiB of a chunk of examples", low=1, when=ANYTHING, identity=False)
    fisher_method: str = flag(
        "spectral", "estimator of the Fisher trace: eigenvectors with random signs, all labels, or sampled labels",
        short="-fd", choices=FISHER_METHODS, when=measured("fisher"), identity=False,
    )  # fmt: skip
    fisher_metric: str | None = flag(
        None, "expectation over labels, sampled labels, or the data's own (another quantity); default: what the method is for",
        short="-fm", choices=FISHER_METRICS, when=measured("fisher"), identity=False,
    )  # fmt: skip
    hessian_method: str = flag(
        "auto", "estimator of the Hessian trace; auto: Gauss-Newton where that is exact, else hutchinson",
        choices=HESSIAN_METHODS, when=measured("hessian"), identity=False,
    )  # fmt: skip
    jacobian_method: str = flag(
        "projection", "random projections, or every output", choices=JACOBIAN_METHODS, when=measured("jacobian"), identity=False
    )
    jacobian_output: str = flag(
        "logits", "outputs that are differentiated",
        choices=JACOBIAN_OUTPUTS, when=measured("jacobian", "jacobian_top"), identity=False,
    )  # fmt: skip
    spectrum_matrix: str = flag(
        "hessian", "matrix whose spectrum is measured", choices=MATRICES, when=measured("spectrum"), identity=False
    )
    spectrum_k: int = flag(10, "eigenvalues of largest magnitude", low=1, when=measured("spectrum"), identity=False)
    spectrum_steps: int = flag(40, "Lanczos steps", low=1, when=measured("spectrum"), identity=False)
    spectrum_runs: int = flag(4, "starting vectors of the spectral density", low=1, when=measured("spectrum"), identity=False)
    monte_carlo_samples: int | None = flag(
        None, "most examples measured; default: as many as --metric_rtol needs, 1000 where it does not act",
        short="-ms", low=2, when=ANYTHING, identity=False,
    )  # fmt: skip
    monte_carlo_trials: int | None = flag(
        None, "label draws or probe vectors for each of them; default: as few as an error needs, 5 labels",
        short="-mt", low=2, when=PROBED, identity=False,
    )  # fmt: skip
    batch_size_fisher: int | None = flag(
        None, "most examples in a chunk; default: what fits --metric_memory_mb, a thirtieth of -ms for the libraries",
        short="-bf", low=1, when=ANYTHING, identity=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spectrum_steps < self.spectrum_k:
            raise FlagError(f"--spectrum_steps {self.spectrum_steps}: must be at least --spectrum_k {self.spectrum_k}")
        try:
            usual_metric(self.fisher_method, self.fisher_metric)
        except ValueError as error:
            raise FlagError(f"--fisher_metric {self.fisher_metric}: {error}") from None

    def anything(self) -> bool:
        """Whether any quantity but the SNR is to be measured."""
        return bool(self.wanted()) or self.save_spectrum

    def due(self, epoch: int) -> bool:
        """Whether an epoch is one to measure on the way."""
        return epoch == 0 or (self.metric_every > 0 and epoch % self.metric_every == 0)

    def wanted(self) -> list[str]:
        """Names in METRICS that are switched on."""
        return [name for name in METRICS if getattr(self, f"save_{name}")]

    def budget(self, *, stops: bool = True) -> dict[str, Any]:
        """The arguments that say how much is measured, of an estimator that stops at a precision or one that does not."""
        samples = self.monte_carlo_samples or (None if stops else PUBLISHED_SAMPLES)
        bounds = {"batch_size": self.batch_size_fisher, "memory_mb": self.metric_memory_mb, "progress": True}
        return {"rtol": self.metric_rtol, "max_samples": samples, "n_probes": self.monte_carlo_trials, **bounds}


def measure_fisher(network: nn.Module, inputs: Examples, labels: Tensor, mask, config: MetricConfig, **common: Any) -> Estimate:
    return fisher_trace(
        network, inputs, mask, method=config.fisher_method, metric=config.fisher_metric, labels=labels,
        params=config.metric_params, **config.budget(stops=stops("fisher", config)), **common,
    )  # fmt: skip


def measure_hessian(
    network: nn.Module, inputs: Examples, labels: Tensor, mask, config: MetricConfig, **common: Any
) -> Estimate:
    return hessian_trace(
        network, inputs, labels, mask, method=config.hessian_method, params=config.metric_params,
        **config.budget(stops=stops("hessian", config)), **common,
    )  # fmt: skip


def measure_residual(
    network: nn.Module, inputs: Examples, labels: Tensor, mask, config: MetricConfig, **common: Any
) -> Estimate:
    return hessian_trace(
        network, inputs, labels, mask, term="residual", params=config.metric_params, **config.budget(stops=False), **common
    )


def measure_jacobian(
    network: nn.Module, inputs: Examples, labels: Tensor, mask, config: MetricConfig, **common: Any
) -> Estimate:
    return jacobian_norm(
        network, inputs, method=config.jacobian_method, output=config.jacobian_output, **config.budget(), **common
    )


def measure_jacobian_top(
    network: nn.Module, inputs: Examples, labels: Tensor, mask, config: MetricConfig, **common: Any
) -> Estimate:
    return jacobian_norm(
        network, inputs, method="exact", norm="spectral", output=config.jacobian_output, **config.budget(), **common
    )


def measure_spectrum(
    network: nn.Module, inputs: Examples, labels: Tensor, mask, config: MetricConfig, **common: Any
) -> Spectrum:
    bounds = {key: config.budget()[key] for key in ("max_samples", "batch_size", "memory_mb", "progress")}
    return spectrum(
        network, inputs, labels, mask, matrix=config.spectrum_matrix, k=config.spectrum_k, steps=config.spectrum_steps,
        runs=config.spectrum_runs, params=config.metric_params, **bounds, **common,
    )  # fmt: skip


# (network, inputs, labels, mask, config, generator=) -> Estimate; the spectrum, which is no single number, is apart
METRICS: dict[str, Callable[..., Estimate]] = {
    "fisher": measure_fisher,
    "hessian": measure_hessian,
    "hessian_residual": measure_residual,
    "jacobian": measure_jacobian,
    "jacobian_top": measure_jacobian_top,
}
BY_INPUTS = ("jacobian", "jacobian_top")  # derivatives by the inputs: no parameters are counted
LIBRARIES = ("nngeometry", "pyhessian", "eigenthings")  # whose result depends on the batch


def stops(name: str, config: MetricConfig) -> bool:
    """Whether the estimator of a metric stops at --metric_rtol."""
    if name == "fisher":
        return config.fisher_method == "spectral" and config.fisher_metric != "empirical"
    if name == "hessian":
        return config.hessian_method not in LIBRARIES
    return name in BY_INPUTS


def probes(name: str, config: MetricConfig) -> bool:
    """Whether a metric takes several random draws of each example, which --monte_carlo_trials can say the number of."""
    if name == "fisher":
        sampled = usual_metric(config.fisher_method, config.fisher_metric)
        return (
            sampled == ("fim" if config.fisher_method == "spectral" else "fim_monte_carlo") and config.fisher_method != "exact"
        )
    return name in ("hessian", "hessian_residual") or (name == "jacobian" and config.jacobian_method == "projection")


def settings(name: str, config: MetricConfig) -> str:
    """The options that a measurement depends on, as the JSON text of the `settings` column.

    One that does not act on it is left out, as one that has no value: what only bounds a chunk, a precision that the
    estimator does not stop at.
    """
    own: dict[str, Any] = {}
    if name == "fisher":
        metric = usual_metric(config.fisher_method, config.fisher_metric)
        own = {"fisher_method": config.fisher_method, "fisher_metric": metric}
    elif name == "hessian":
        own = {"hessian_method": config.hessian_method}
    elif name == "jacobian":
        own = {"jacobian_method": config.jacobian_method, "jacobian_output": config.jacobian_output}
    elif name == "jacobian_top":
        own = {"jacobian_output": config.jacobian_output}
    elif name == "spectrum":
        own = {key: getattr(config, key) for key in ("spectrum_matrix", "spectrum_k", "spectrum_steps", "spectrum_runs")}
    own |= {"samples": config.budget(stops=stops(name, config) or name == "spectrum")["max_samples"]}
    own |= {"rtol": config.metric_rtol} if stops(name, config) else {}
    own |= {"trials": config.monte_carlo_trials} if probes(name, config) else {}
    own |= {"batch_size": config.batch_size_fisher} if not set(own.values()).isdisjoint(LIBRARIES) else {}
    return json.dumps({key: value for key, value in own.items() if value is not None}, sort_keys=True)


def counted(name: str, config: MetricConfig) -> str:
    """The `params` column: which parameters a measurement counts; empty where it is not about parameters."""
    return "" if name in BY_INPUTS else config.metric_params


def tensors_of(found: Spectrum) -> dict[str, Any]:
    """{name: array or number} of a spectrum, as spectrum.npz holds them."""
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in values.items()}
