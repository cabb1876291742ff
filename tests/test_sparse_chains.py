"""Chains of sparse layers: all of their kernels in one call, in memory that they share."""

import copy
import errno
import itertools
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helper.sparse.chain import Chain
from helper.sparse.layers import LanesBlock, LanesLayer
from helper.sparse.program import Arena, Block
from helper.sparse.rooms import Rooms
from helper.sparse.view import View
from helper.system.versions import ROOT
from network.resnet import ResNet
from tests.test_sparse import seeded, threads  # noqa: F401
from tests.test_sparse_view import check_view, sparse_masks

pytestmark = pytest.mark.compiler


def chains_of(view: View) -> list[Chain]:
    return [child for child in view.in_training.module.children() if isinstance(child, Chain)]


def test_a_resnet_is_one_chain_up_to_its_pooling():
    network = ResNet(3, 5, 14)
    chains = chains_of(View(network, sparse_masks(network), (3, 8, 8)))
    assert [len(chain.parts) for chain in chains] == [13 + 2 + 3]  # convolutions, shortcuts', norms by themselves


class Shared(nn.Module):
    """Values with several readers: norms, sums, layers, and what is no part of a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2 if i == 0 else 4, 4, 3, padding=1) for i in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.fc = nn.Linear(4, 3)
        for norm in self.norms:
            nn.init.uniform_(norm.bias, 0.5, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norms[0](self.convs[0](x))
        b, c = self.norms[1](a), F.relu(self.norms[2](a))
        d = self.convs[1](b) + self.convs[2](b) * torch.exp(-b)
        e = F.relu(self.norms[3](self.convs[3](d)) + a) + c
        return self.fc((self.convs[4](e) + e).mean((2, 3)))


@pytest.mark.parametrize("n", [1, 6, 34])
def test_values_that_several_read_get_the_gradient_of_all(n):
    check_view(Shared().double(), (2, 7, 5), n=n)


def gradients(function, network: nn.Module, x: Tensor, targets: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(function(x), targets)
    return [loss.detach(), *torch.autograd.grad(loss, [x, *network.parameters()], materialize_grads=True)]


def masked(found: list[Tensor], network: nn.Module, masks: dict[str, Tensor]) -> list[Tensor]:
    """Gradients, without those of pruned weights."""
    keep = [masks.get(name.removesuffix(".weight"), torch.tensor(1)) for name, _ in network.named_parameters()]
    return found[:2] + [gradient * mask for gradient, mask in zip(found[2:], keep, strict=True)]


def check_gradients(network: nn.Module, input_shape: tuple[int, ...], *, backward_in_eval: bool = False) -> None:
    """Loss and gradients of two steps, with respect to inputs too, are those of the dense network."""
    masks, dense = sparse_masks(network), copy.deepcopy(network)
    view, x = View(network, masks, input_shape), torch.randn(20, *input_shape, generator=seeded(0)).double()

    def outputs(function, module: nn.Module, x: Tensor) -> Tensor:
        y = function(x)
        module.train(not backward_in_eval)
        return y

    for _ in range(2):
        network.train()
        dense.train()
        ours = gradients(partial(outputs, view, network), network, x, torch.arange(20) % 3)
        theirs = masked(gradients(partial(outputs, dense, dense), dense, x, torch.arange(20) % 3), dense, masks)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_inputs_get_their_gradient_too():
    check_gradients(ResNet(3, 5, 8).double(), (3, 8, 8))


def test_passes_that_are_under_way_at_once_do_not_touch_each_other():
    network = ResNet(3, 5, 8).double().eval()
    view = View(network, sparse_masks(network), (3, 8, 8))
    inputs = torch.randn(2, 12, 3, 8, 8, generator=seeded(0)).double()
    alone = [torch.autograd.grad(view(x).square().sum(), list(network.parameters())) for x in inputs]
    losses = [view(x).square().sum() for x in inputs]
    for again in range(2):  # a graph that is kept gives the same once more
        for loss, expected in zip(losses, alone, strict=True):
            found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=not again)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_of_some_tensors_alone_are_those_of_all():
    network = ResNet(3, 5, 8).double()
    view, x = View(network, sparse_masks(network), (3, 8, 8)), torch.randn(12, 3, 8, 8).double()
    chosen = [p for name, p in network.named_parameters() if "conv2" in name]
    state = copy.deepcopy(network.state_dict())
    whole = torch.autograd.grad(view(x).square().sum(), list(network.parameters()))
    by_id = {id(p): g for p, g in zip(network.parameters(), whole, strict=True)}
    network.load_state_dict(state)
    some = torch.autograd.grad(view(x).square().sum(), chosen)
    assert all(torch.equal(g, by_id[id(p)]) for p, g in zip(chosen, some, strict=True))


class Chained(nn.Module):
    """What `calls` makes of three convolutions and two norms, averaged over the image."""

    def __init__(self, calls) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2 if i == 0 else 4, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.fc = nn.Linear(4, 3)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.calls(x, *self.convs, *self.norms).mean((2, 3)))


def test_a_layer_whose_outputs_get_no_gradient_leaves_that_of_its_inputs_alone():
    def calls(x, conv1, conv2, conv3, norm1, norm2):
        a = conv1(x)
        y = conv2(a)
        return conv3(a) + y.detach()

    check_gradients(Chained(calls).double(), (2, 7, 5))


def test_the_mode_of_a_norm_in_the_backward_pass_does_not_matter():
    def calls(x, conv1, conv2, conv3, norm1, norm2):
        return F.relu(norm2(conv2(F.relu(norm1(conv1(x))))))

    check_gradients(Chained(calls).double(), (2, 7, 5), backward_in_eval=True)


def test_a_norm_whose_outputs_nobody_reads_updates_its_statistics():
    def calls(x, conv1, conv2, conv3, norm1, norm2):
        y = torch.tanh(conv1(x))
        F.relu(norm1(y))
        return norm2(conv3(conv2(y)))

    network = Chained(calls).double()
    masks, dense = sparse_masks(network), copy.deepcopy(network)
    x = torch.randn(20, 2, 7, 5, generator=seeded(0)).double()
    assert torch.allclose(View(network, masks, (2, 7, 5))(x), dense(x))
    for ours, theirs in zip(network.buffers(), dense.buffers(), strict=True):
        assert torch.allclose(ours, theirs)


def test_a_norm_that_is_called_twice_averages_over_both():
    def calls(x, conv1, conv2, conv3, norm1, norm2):
        norm1.momentum = None
        return conv3(F.relu(norm1(conv2(F.relu(norm1(conv1(x)))))) + norm2(x[:, :1].expand(-1, 4, -1, -1)))

    check_view(Chained(calls).double(), (2, 7, 5))


def test_a_norm_that_is_called_twice_sees_batches_in_the_order_of_its_calls():
    def calls(x, conv1, conv2, conv3, norm1, norm2):
        y = conv1(x)
        first, second = norm1(y), norm1(conv2(y))
        return conv3(norm2(torch.sigmoid(second) + first))

    check_view(Chained(calls).double(), (2, 7, 5))


@pytest.mark.parametrize("relu", [True, False])
def test_a_sum_that_one_layer_alone_reads_is_made_again_on_the_way_back(relu):
    def calls(x, conv1, conv2, conv3, norm1, norm2):
        a = norm1(conv1(x))
        a = norm2(conv2(a)) + a
        return conv3(F.relu(a) if relu else a)

    check_gradients(Chained(calls).double(), (2, 7, 5))


@pytest.mark.parametrize("change", [F.hardtanh_, lambda x: F.elu(x, inplace=True)])
def test_what_no_backward_pass_reads_may_be_changed_in_place(change):
    def calls(x, conv1, conv2, conv3, norm1, norm2):
        return change(norm1(conv1(x))) + conv3(change(norm2(conv2(x.repeat(1, 2, 1, 1)))))

    check_view(Chained(calls).double(), (2, 7, 5))


def test_a_backward_pass_reads_what_autograd_has_saved():
    network = ResNet(3, 5, 8).double().eval()
    view, x = View(network, sparse_masks(network), (3, 8, 8)), torch.randn(12, 3, 8, 8, generator=seeded(0)).double()
    expected = torch.autograd.grad(view(x).square().sum(), list(network.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        loss = view(x).square().sum()
    view(-x).square().sum().backward()  # in the memory of the former, if nobody has that any more
    found = torch.autograd.grad(loss, list(network.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, expected, strict=True))


def test_tensors_that_replace_others_are_read_as_they_are():
    layer, x = nn.Conv2d(2, 4, 3, bias=False).double(), torch.randn(1, 2, 6, 5, 16).double()
    block = LanesBlock(LanesLayer(layer, torch.ones(4, 2, 3, 3, dtype=torch.bool)))
    chain = Chain([(block, (0, None, None))], 1, (1,))
    without = chain(x)[0]
    layer.bias = nn.Parameter(torch.arange(4.0).double())
    assert torch.allclose(chain(x)[0], without + layer.bias.view(4, 1, 1, 1))
    layer.bias = nn.Parameter(torch.arange(8.0).double()[::2])
    with pytest.raises(ValueError, match="contiguous"):
        chain(x)
    layer.bias = nn.Parameter(torch.arange(4.0))
    with pytest.raises(ValueError, match="need the same"):
        chain(x)


def test_weights_with_gaps_in_memory_have_gradients_of_their_layout():
    layer = nn.Linear(6, 4, bias=False)
    layer.weight = nn.Parameter(torch.randn(4, 12).double()[:, ::2])
    block, x = LanesBlock(LanesLayer(layer, torch.ones(4, 6, dtype=torch.bool))), torch.randn(1, 6, 16).double()
    (found,) = torch.autograd.grad(block(x).square().sum(), layer.weight)
    (expected,) = torch.autograd.grad(layer(x[0].T).square().sum(), layer.weight)
    assert torch.allclose(found, expected, rtol=1e-4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 5), st.booleans()), max_size=40))
def test_blocks_of_an_arena_that_are_in_use_do_not_overlap(steps):
    arena, used = Arena(0), list[Block]()
    for size, which, small in steps:
        if which and used:
            arena.release(used.pop(which % len(used)))
        used.append(arena.take_small(size) if small else arena.take(size, 1))
        assert used[-1].size >= size
    ranges = sorted((block.at.offset, block.at.offset + block.size) for block in used)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ranges))
    assert all(-arena.before <= begin and end <= arena.size for begin, end in ranges)
    for block in used:
        arena.release(block)
    kept = [block for block in used if block.users is None]
    assert sum(room for _, room in arena.free) == arena.size
    assert sum(block.size for block in kept) <= arena.before


def test_memory_that_is_given_back_is_used_again():
    arena = Arena(0)
    first = arena.take(1000, 2)
    arena.release(first)
    assert arena.take(1000, 1).at != first.at  # it still has a reader
    arena.release(first)
    assert arena.take(900, 1).at == first.at
    assert arena.size == 2 * 1024


def test_memory_is_taken_again_when_no_view_of_it_is_left():
    rooms, size = Rooms(), 3 << 20
    whole = rooms.take(size)
    whole.fill_(1)
    address, part = whole.data_ptr(), whole[100:200]
    del whole
    other = rooms.take(size)
    assert other.data_ptr() != address
    other.fill_(2)
    assert (part == 1).all()
    del part
    assert rooms.take(size).data_ptr() == address
    kept = rooms.take(size)
    del rooms
    assert kept.fill_(3).eq(3).all()  # who has it keeps it


def test_memory_that_the_system_has_not_is_asked_of_pytorch(monkeypatch):
    def none(*args, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("helper.sparse.rooms.mmap.mmap", none)
    found = Rooms().take(5 << 20)
    assert found.fill_(1).sum() == 5 << 20


AFTER_LOADING = """
import re
from pathlib import Path
import torch
from helper.sparse.rooms import Rooms
from helper.system.memory import keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 2**10

assert keep_freed_memory()
loaded = [torch.ones(40 << 20, dtype=torch.uint8) for _ in range(6)]
last = torch.ones(1 << 20)  # so that what is freed below is no end of the heap
loaded.clear()
before = resident()
room = Rooms().take(160 << 20).fill_(1)
assert resident() < before, (before, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_what_loading_has_left_in_the_heap_makes_way_for_it():
    subprocess.run([sys.executable, "-c", AFTER_LOADING], check=True, cwd=ROOT)


def test_a_backward_pass_takes_the_threads_of_its_forward_pass(threads):  # noqa: F811
    network = ResNet(3, 5, 8).double()
    view, x = View(network, sparse_masks(network), (3, 8, 8)), torch.randn(64, 3, 8, 8, generator=seeded(0)).double()
    found = []
    for before, after in ((1, 1), (1, 7), (7, 1)):
        threads(before)
        loss = view(x).square().sum()
        threads(after)
        found.append(torch.autograd.grad(loss, [p for p in network.parameters() if p.dim() == 4]))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
