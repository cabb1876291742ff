"""Curvature by brute force in float64: whole gradients, Jacobians and Hessians of tiny networks, masked afterwards.

Networks are put in eval mode, not copied: a copy need not be the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.mask import Mask
from helper.metrics.parameters import counted_parameters
from helper.system.seeds import stream
from network.mlp import MLP
from tests.conftest import tiny_conv

N = 24
NETWORKS = ("mlp_relu", "mlp_tanh", "conv")


def tiny(name: str, n_classes: int = 3, bias: bool = True) -> nn.Module:
    """A float64 network that takes (N, 1, 5, 5) inputs, drawn so that its predictions are neither flat nor certain."""
    if name == "conv":
        network = tiny_conv(n_classes, bias)
        network.fc.weight.data *= 4
        return network
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = MLP([25, 12, 10, n_classes], name.removeprefix("mlp_")).double()
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.data *= 2
                module.bias = module.bias if bias else None
    return network


def batch(n_classes: int = 3, n: int = N) -> tuple[Tensor, Tensor]:
    g = stream(0, "batch")
    return torch.randn(n, 1, 5, 5, generator=g, dtype=torch.float64), torch.randint(n_classes, (n,), generator=g)


def random_mask(network: nn.Module, density: float) -> Mask:
    """A mask of the weights, none for density 1."""
    g = stream(0, "mask")
    masks = {n: torch.rand(p.shape, generator=g) < density for n, p in network.named_parameters() if p.ndim > 1}
    for mask in masks.values():
        mask[0] |= torch.rand(mask[0].shape, generator=g) < 0.5  # so that no layer is cut off
        mask[:, 0] = True
    return Mask(masks if density < 1 else {})


def pruned(name: str, n_classes: int, bias: bool, density: float) -> tuple[nn.Module, Mask]:
    network = tiny(name, n_classes, bias)
    mask = random_mask(network, density)
    mask.apply_(network)
    return network, mask


def fitted(network: nn.Module, inputs: Tensor, labels: Tensor, mask=None, steps: int = 60) -> nn.Module:
    """Trained on a batch until its predictions are good but not certain, as the Hessian's noise falls with the residuals."""
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    network.eval()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
        Mask(mask).apply_(network)
    network.zero_grad()
    return network


def keep_of(network: nn.Module, mask, params: str) -> Tensor:
    """Bool vector over all parameters: counted and active."""
    counted = {name for layer in counted_parameters(network, params).values() for name in layer}
    pieces = []
    for name, p in network.named_parameters():
        keep = mask[name] if mask and name in mask else torch.ones_like(p, dtype=torch.bool)
        pieces.append((keep & (name in counted)).flatten())
    return torch.cat(pieces)


def jacobians(network: nn.Module, inputs: Tensor, mask=None, params: str = "layers") -> tuple[Tensor, Tensor]:
    """((N, C, active) derivatives of the logits by the compressed parameter vector, (N, C) probabilities)."""
    network.eval()
    keep = keep_of(network, mask, params)
    rows, probabilities = [], []
    for x in inputs:
        logits = network(x[None])[0]
        gradients = [torch.autograd.grad(f, list(network.parameters()), retain_graph=True, allow_unused=True) for f in logits]
        rows.append(torch.stack([flat(g, network)[keep] for g in gradients]))
        probabilities.append(logits.softmax(0).detach())
    return torch.stack(rows), torch.stack(probabilities)


def flat(gradients: tuple[Tensor | None, ...], network: nn.Module) -> Tensor:
    pairs = zip(gradients, network.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def exact_fisher(network: nn.Module, inputs: Tensor, mask=None, params: str = "layers") -> float:
    """Sum over all labels y of p(y|x) ||grad log p(y|x)||^2, averaged over examples."""
    j, p = jacobians(network, inputs, mask, params)
    scores = j - torch.einsum("nc,ncq->nq", p, j)[:, None]  # grad log p(y|x) = J_y - sum_c p_c J_c
    return (p * scores.square().sum(2)).sum(1).mean().item()


def exact_gauss_newton(network: nn.Module, inputs: Tensor, mask=None, params: str = "layers") -> float:
    j, p = jacobians(network, inputs, mask, params)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("ncq,ncd,ndq->", j, s, j).item() / len(inputs)


def exact_empirical(network: nn.Module, inputs: Tensor, labels: Tensor, mask=None, params: str = "layers") -> float:
    j, p = jacobians(network, inputs, mask, params)
    return torch.einsum("nc,ncq->nq", F.one_hot(labels, p.shape[1]) - p, j).square().sum(1).mean().item()


def hessian_matrix(network: nn.Module, inputs: Tensor, labels: Tensor, mask=None, params: str = "layers") -> Tensor:
    """(active, active) second derivatives of the mean cross-entropy by the compressed parameter vector."""
    network.eval()
    keep = keep_of(network, mask, params)
    parameters = list(network.parameters())
    loss = F.cross_entropy(network(inputs), labels)
    gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True), network)
    rows = []
    for index in keep.nonzero().flatten():
        row = torch.autograd.grad(gradient[index], parameters, retain_graph=True, allow_unused=True)
        rows.append(flat(row, network)[keep])
    return torch.stack(rows)


def exact_hessian(network: nn.Module, inputs: Tensor, labels: Tensor, mask=None, params: str = "layers") -> float:
    return hessian_matrix(network, inputs, labels, mask, params).trace().item()


def input_jacobians(network: nn.Module, inputs: Tensor, output: str = "logits") -> Tensor:
    """(N, C, D)"""
    network.eval()

    def function(x: Tensor) -> Tensor:
        logits = network(x[None])[0]
        return logits.softmax(0) if output == "probabilities" else logits

    return torch.stack([torch.autograd.functional.jacobian(function, x).flatten(1) for x in inputs])
