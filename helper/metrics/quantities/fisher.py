"""--save_fisher: trace of the Fisher information."""

from dataclasses import dataclass
from typing import Any

from helper.metrics.estimate import Estimate
from helper.metrics.fisher import FISHER_METHODS, FISHER_METRICS, fisher_trace, usual_metric
from helper.metrics.metric import Metric
from helper.schema.config import Config, FlagError, flag


@dataclass(frozen=True)
class FisherFlags(Config):
    fisher_method: str = flag(
        "spectral", "estimator of the Fisher trace: eigenvectors with random signs, all labels, or sampled labels",
        short="-fd", choices=FISHER_METHODS, identity=False,
    )  # fmt: skip
    fisher_metric: str | None = flag(
        None, "expectation over labels, sampled labels, or the data's own (another quantity); default: what the method is for",
        short="-fm", choices=FISHER_METRICS, identity=False,
    )  # fmt: skip


class Fisher(Metric):
    name = "fisher"
    about = "trace of the Fisher information"
    label, unit, heading = "Fisher trace", "nats per squared parameter", "Tr F"
    short, usual, least = "-sf", True, 0.0
    Flags = FisherFlags
    stopping = ({"fisher_method": ("spectral",), "fisher_metric": (None, "fim")},)
    probing = (
        *stopping,
        {"fisher_method": ("vmap", "ours", "nngeometry"), "fisher_metric": (None, "fim_monte_carlo")},
    )
    batched = ({"fisher_method": ("nngeometry",)},)
    counts_parameters = True

    def measure(self, network, inputs, labels, mask, config, *, generator) -> Estimate:
        return fisher_trace(
            network, inputs, mask, method=config.fisher_method, metric=config.fisher_metric, labels=labels,
            params=config.metric_params, **self.bounds(config), generator=generator,
        )  # fmt: skip

    def check(self, config: Config) -> None:
        try:
            usual_metric(config.fisher_method, config.fisher_metric)
        except ValueError as error:
            raise FlagError(f"--fisher_metric {config.fisher_metric}: {error}") from None

    def chosen(self, config: Config) -> dict[str, Any]:
        metric = usual_metric(config.fisher_method, config.fisher_metric)
        return {"fisher_method": config.fisher_method, "fisher_metric": metric}

    def cure(self, config: Config) -> str:
        if config.fisher_method != "spectral":
            return " (-ms), or all labels: --fisher_method spectral"
        return super().cure(config)

    def draws_of_each(self, config: Config, n_classes: int) -> int:
        return n_classes if config.fisher_method == "exact" else super().draws_of_each(config, n_classes)
