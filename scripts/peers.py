"""Other libraries' estimates of the same traces, used as their documentation shows; for tests and benchmarks.

Each takes a network in eval mode, a batch, and a mask of its weights (pruned coordinates are left out where the library
lets them be), and gives one draw of the trace over the weights and biases of Linear and Conv2d layers.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helper.metrics.parameters import active, counted_parameters, default_dtype
from network.resnet import BasicBlock, ResNet


def counted(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for ps in counted_parameters(network, "layers").values() for name, p in ps.items()}


def keep_vector(network: nn.Module, mask) -> Tensor:
    """Bool vector over the counted parameters."""
    return torch.cat([active(p, name, mask).flatten() for name, p in counted(network).items()])


def nngeometry_trace(network: nn.Module, inputs: Tensor, mask, batch_size: int = 100) -> float:
    """FIM_MonteCarlo with PMatDiag, one trial: labels sampled from the prediction, one for each example."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object.pspace import PMatDiag

    collection, modules = LayerCollection(), dict(network.named_modules())
    for layer in counted_parameters(network, "layers"):
        collection.add_layer_from_model(network, modules[layer])
    loader = DataLoader(TensorDataset(inputs, torch.zeros(len(inputs), dtype=torch.long)), batch_size=batch_size)
    network.requires_grad_(True)
    diagonal = FIM_MonteCarlo(
        network, loader, PMatDiag, variant="classif_logits", trials=1, layer_collection=collection
    ).get_diag()
    return diagonal[keep_vector(network, mask)].sum().item()


def backpack_trace(network: nn.Module, inputs: Tensor, labels: Tensor, mask, *, exact: bool = False) -> float:
    """BackPACK's diagonal Gauss-Newton: DiagGGNMC with one sample for each example, or DiagGGNExact.

    Args:
        network: as `for_backpack` makes it.
        mask: of the original network, whose weights are in the same order.
    """
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact, DiagGGNMC

    loss = extend(nn.CrossEntropyLoss())
    with default_dtype(inputs.dtype), backpack(DiagGGNExact() if exact else DiagGGNMC(mc_samples=1)):
        loss(network(inputs), labels).backward()
    masks = iter((mask or {}).values())
    total = torch.zeros((), dtype=torch.float64)
    for parameter in counted(network).values():
        diagonal = parameter.diag_ggn_exact if exact else parameter.diag_ggn_mc
        if mask and parameter.ndim > 1:
            keep = next(masks, None)
            diagonal = diagonal if keep is None else diagonal * keep
        total += diagonal.double().sum()
    network.zero_grad()
    return total.item()


def for_backpack(network: ResNet) -> nn.Module:
    """The same function from modules only, with a copy of the weights: BackPACK sees no functional calls."""
    from backpack import extend
    from backpack.custom_module.branching import Parallel
    from backpack.custom_module.scale_module import ScaleModule

    network = copy.deepcopy(network).requires_grad_(True)
    parts: list[nn.Module] = [network.conv, network.bn, nn.ReLU()]
    for block in network.blocks:
        assert isinstance(block, BasicBlock)
        branch = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
        shortcut = ScaleModule(1.0) if isinstance(block.shortcut, nn.Identity) else block.shortcut
        parts += [Parallel(branch, shortcut), nn.ReLU()]
    return extend(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.fc)).eval()


class PyHessianDraws:
    """Single draws v^T H v of PyHessian's Hutchinson estimator on one batch, probes zero on pruned coordinates."""

    def __init__(self, network: nn.Module, inputs: Tensor, labels: Tensor, mask) -> None:
        from pyhessian import hessian
        from pyhessian.utils import hessian_vector_product

        network = copy.deepcopy(network).requires_grad_(False)
        self.parameters = counted(network)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.keep = {name: active(p, name, mask) for name, p in self.parameters.items()}
        self.operator = hessian(network, F.cross_entropy, data=(inputs, labels), cuda=False)
        network.zero_grad(set_to_none=True)
        self.product = hessian_vector_product

    def __call__(self) -> float:
        v = [(torch.randint(2, k.shape) * 2 - 1) * k for k in self.keep.values()]
        v = [one.to(p.dtype) for one, p in zip(v, self.parameters.values(), strict=True)]
        products = self.product(self.operator.gradsH, self.operator.params, v)
        return sum((a * b).sum().item() for a, b in zip(v, products, strict=True))


def equal_batches(inputs: Tensor, labels: Tensor, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """The batch in parts of one size, which fit in memory; as it is where it cannot be parted equally."""
    size = size if len(inputs) % size == 0 else len(inputs)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def hutch_plus_plus(network: nn.Module, inputs: Tensor, labels: Tensor, mask, n_products: int, seed: int) -> float:
    """hessian-eigenthings' Hutch++ on one batch, over the active coordinates."""
    from hessian_eigenthings.algorithms.trace import trace

    from helper.metrics.matrices import active_operator
    from helper.metrics.subject import Subject

    subject = Subject(network, inputs, mask)
    with subject.measuring():
        operator = active_operator(subject, equal_batches(inputs, labels), len(labels), "hessian")
        return trace(operator, num_matvecs=n_products, method="hutch++", seed=seed).estimate


def curvlinops_trace(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    mask,
    n_products: int,
    *,
    method: str = "xtrace",
    matrix: str = "hessian",
) -> float:
    """curvlinops' XTrace, Hutch++ or Hutchinson on its Hessian or Gauss-Newton operator of one batch."""
    import curvlinops
    from curvlinops import GGNLinearOperator, HessianLinearOperator, SubmatrixLinearOperator

    operators = {"hessian": HessianLinearOperator, "gauss_newton": GGNLinearOperator}
    parameters = [p.requires_grad_(True) for p in counted(network).values()]
    batches = equal_batches(inputs, labels)
    operator = operators[matrix](network, nn.CrossEntropyLoss(), parameters, batches, check_deterministic=False)
    keep = keep_vector(network, mask)
    if not keep.all():
        rows = keep.nonzero().flatten().tolist()
        operator = SubmatrixLinearOperator(operator, rows, rows)
    methods = {"xtrace": curvlinops.xtrace, "hutch++": curvlinops.hutchpp_trace, "hutchinson": curvlinops.hutchinson_trace}
    return methods[method](operator, n_products).item()
