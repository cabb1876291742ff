"""A small trained ResNet as other libraries see it: nngeometry, PyHessian, hessian-eigenthings, BackPACK, curvlinops."""

import numpy
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.spectrum import spectrum
from helper.schema.config import unflatten
from helper.system.seeds import global_seed, stream
from loader.main import load_dataset
from optim.config import RunConfig
from optim.main import train_run
from optim.model import load_run
from scripts import peers

N = 32
SETTINGS = {
    "net_name": "resnet", "depth": 8, "widen_factor": 1, "limit_train": 500, "n_epochs": 3, "lr_milestones": "2", "lr": 0.05,
    "batch_size": 50, "save_snr": 0, "save_fisher": 0, "figures": 0, "prune_ratio": 0.8,
}  # fmt: skip


@pytest.fixture(scope="module", params=["dense", "sparse-finetune"])
def trained(request, tmp_path_factory):
    """(network in float64, mask, inputs, labels) of digits that it begins to know: labels have no heavy tails yet."""
    settings = SETTINGS | {"mode": request.param, "results_root": str(tmp_path_factory.mktemp("peers"))}
    network, mask, config = load_run(train_run(unflatten(RunConfig, settings)))
    train = load_dataset(config.data)
    rows = torch.arange(N)
    assert (network(train.examples(train.train)[rows]).argmax(1) == train.train.labels[rows]).double().mean() > 0.7
    return network.double(), mask, train.examples(train.train)[rows].double(), train.train.labels[rows]


@pytest.fixture(scope="module")
def ours(trained) -> float:
    network, mask, inputs, _ = trained
    return fisher_trace(network, inputs, mask, method="exact", generator=stream(0, "exact")).value


def spread(draw, n: int, seed: int = 0) -> tuple[float, float]:
    """Mean of n draws and its standard error."""
    with global_seed(stream(seed, "peer")):
        values = torch.tensor([draw() for _ in range(n)], dtype=torch.float64)
    return values.mean().item(), (values.std() / n**0.5).item()


def test_every_method_of_ours_agrees_with_the_exact_one(trained, ours):
    network, mask, inputs, labels = trained
    options = {"rtol": 0, "generator": stream(0, "methods")}
    for method, n_probes in (("spectral", 10), ("vmap", 40), ("ours", 8), ("nngeometry", 40)):
        estimate = fisher_trace(network, inputs, mask, method=method, n_probes=n_probes, **options)
        assert abs(estimate.value - ours) < 4 * estimate.standard_error < 0.8 * ours, method
    for method, n_probes in (("auto", 10), ("hutchinson", 10), ("pyhessian", 40), ("eigenthings", 45)):
        estimate = hessian_trace(network, inputs, labels, mask, method=method, n_probes=n_probes, batch_size=16, **options)
        assert abs(estimate.value - ours) < 4 * estimate.standard_error < 0.9 * ours, method


def test_backpack_agrees(trained, ours):
    network, mask, inputs, labels = trained
    converted = peers.for_backpack(network)
    torch.testing.assert_close(converted(inputs), network(inputs))
    assert peers.backpack_trace(converted, inputs, labels, mask, exact=True) == pytest.approx(ours, rel=1e-9)
    value, error = spread(lambda: peers.backpack_trace(converted, inputs, labels, mask), 60)
    assert abs(value - ours) < 4 * error < 0.8 * ours


def test_nngeometry_agrees(trained, ours):
    network, mask, inputs, _ = trained
    single = network.float()  # its own Monte-Carlo code makes float32 tensors
    value, error = spread(lambda: peers.nngeometry_trace(single, inputs.float(), mask), 60)
    network.double()
    assert abs(value - ours) < 4 * error < 0.8 * ours


def test_pyhessian_agrees(trained, ours):
    value, error = spread(peers.PyHessianDraws(trained[0], trained[2], trained[3], trained[1]), 150)
    assert abs(value - ours) < 4 * error < 0.9 * ours


def test_hessian_eigenthings_agrees(trained, ours):
    network, mask, inputs, labels = trained
    values = torch.tensor([peers.hutch_plus_plus(network, inputs, labels, mask, 30, seed) for seed in range(6)])
    assert abs(values.mean().item() - ours) < 4 * values.std().item() / 6**0.5 < 0.8 * ours


@pytest.mark.parametrize(("matrix", "method"), [("hessian", "xtrace"), ("gauss_newton", "xtrace"), ("gauss_newton", "hutch++")])
def test_curvlinops_agrees(trained, ours, matrix, method):
    network, mask, inputs, labels = trained
    value, error = spread(lambda: peers.curvlinops_trace(network, inputs, labels, mask, 30, method=method, matrix=matrix), 5)
    assert abs(value - ours) < 4 * error + 0.02 * ours
    assert error < 0.1 * ours


def test_top_eigenvalues_are_those_of_curvlinops_operator(trained):
    """By SciPy's Lanczos on an independent operator."""
    from curvlinops import HessianLinearOperator

    network, mask, inputs, labels = trained
    found = spectrum(network, inputs, labels, mask, k=2, steps=50, runs=1, generator=stream(0, "spectrum"))
    parameters = [p.requires_grad_(True) for p in peers.counted(network).values()]
    operator = HessianLinearOperator(network, nn.CrossEntropyLoss(), parameters, [(inputs, labels)], check_deterministic=False)
    keep = peers.keep_vector(network, mask)

    def product(v: numpy.ndarray) -> numpy.ndarray:
        return ((operator @ (torch.from_numpy(v.ravel()) * keep)) * keep).detach().numpy()

    matrix = LinearOperator((len(keep), len(keep)), matvec=product, dtype=numpy.float64)
    exact = eigsh(matrix, k=2, which="LM", tol=1e-6, return_eigenvectors=False)
    assert sorted(found.eigenvalues.tolist()) == pytest.approx(sorted(exact.tolist()), rel=1e-4)
