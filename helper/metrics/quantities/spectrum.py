"""--save_spectrum: top eigenvalues and spectral density of the curvature."""

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from helper.metrics.metric import Metric
from helper.metrics.price import PRODUCT
from helper.metrics.spectrum import MATRICES, Spectrum, affordable, full_products, half_steps, spectrum
from helper.schema.config import Config, FlagError, flag


@dataclass(frozen=True)
class SpectrumFlags(Config):
    spectrum_matrix: str = flag("hessian", "matrix whose spectrum is measured", choices=MATRICES, identity=False)
    spectrum_k: int = flag(10, "eigenvalues of largest magnitude", low=1, identity=False)
    spectrum_steps: int = flag(40, "Lanczos steps", low=1, identity=False)
    spectrum_runs: int = flag(4, "starting vectors of the spectral density", low=1, identity=False)


class SpectrumOfState(Metric):
    """Not one number with an error but arrays with errors of three kinds, in a file for each state.

    So it has no rows in metrics.csv, and of label noise no subsets, whose eigenvalues do not add up to those of all.
    """

    name = "spectrum"
    about = "top eigenvalues and spectral density of the curvature"
    label, unit = "eigenvalue", "nats per squared parameter"
    Flags = SpectrumFlags
    counts_parameters = True
    by_subset = False
    file = "spectrum.npz"

    def measure(self, network, inputs, labels, mask, config, *, generator) -> Spectrum:
        return spectrum(
            network, inputs, labels, mask, matrix=config.spectrum_matrix, k=config.spectrum_k, steps=config.spectrum_steps,
            runs=config.spectrum_runs, params=config.metric_params, **self.bounds_of_sample(config),
            generator=generator,
        )  # fmt: skip

    def check(self, config: Config) -> None:
        if config.spectrum_steps < config.spectrum_k:
            raise FlagError(f"--spectrum_steps {config.spectrum_steps}: must be at least --spectrum_k {config.spectrum_k}")

    def samples(self, config: Config) -> int | None:
        """None: as many as are affordable."""
        return config.monte_carlo_samples

    def price(self, config: Config, population: int, n_classes: int) -> float:
        return PRODUCT * self.products(config, population)

    def products(self, config: Config, population: int) -> int:
        """Products of an example with a vector: of all examples, or of a sample and its halves."""
        k, steps, runs = config.spectrum_k, config.spectrum_steps, config.spectrum_runs
        n = min(population, self.samples(config) or affordable(population, k, steps, runs))
        return n * (full_products(k, steps, runs) + (half_steps(k, steps) if n < population else 0))


def arrays_of(found: Spectrum) -> dict[str, Any]:
    """{name: array or number} of a spectrum, as spectrum.npz holds them."""
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in values.items()}


def words_of(found: Spectrum) -> str:
    """The largest eigenvalue, what it is of, and what its errors are."""
    top, residual = found.eigenvalues[0], found.residuals[0]
    if found.n_samples == found.population:
        return f"largest eigenvalue {top:.5g} of all {found.population} examples (residual of Lanczos {residual:.1g})"
    return (
        f"largest eigenvalue {found.corrected[0]:.5g}, standard error {found.standard_errors[0]:.2g}, from {found.n_samples} "
        f"of {found.population} examples, which have {top:.5g} themselves (bias {found.bias[0]:.2g}, residual of Lanczos "
        f"{residual:.1g}); more with --monte_carlo_samples"
    )
