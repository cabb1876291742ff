"""Sparse layers are dense ones with zeros, to rounding, in whatever shape; their sums come in one order."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helper.sparse import build, program
from helper.sparse.functional import from_lanes, sparse_layer, to_lanes
from helper.sparse.library import Library, kernels, load
from helper.sparse.plan import layer_plan
from helper.system.versions import ROOT

pytestmark = pytest.mark.compiler
EPSILON = torch.finfo(torch.float32).eps


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masked(layer: nn.Module, density: float, seed: int = 0) -> Tensor:
    """A random mask of a layer, whose pruned weights become zero."""
    mask = torch.rand(layer.weight.shape, generator=seeded(seed)) < density
    with torch.no_grad():
        layer.weight.mul_(mask)
    return mask


def dense(layer: nn.Module, x: Tensor, g: Tensor, mask: Tensor) -> list[Tensor]:
    """[outputs, gradients of inputs, weight and bias]."""
    x = x.detach().requires_grad_()
    y = layer(x)
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    dx, dw, *db = torch.autograd.grad(y, [x, *parameters], g.to(y.dtype))
    return [y.detach(), dx, dw * mask, *db]


def sparse(layer: nn.Module, x: Tensor, g: Tensor, mask: Tensor, lanes: int) -> list[Tensor]:
    x = x.detach().requires_grad_()
    plan = layer_plan(layer, mask, tuple(x.shape[2:]) or (1, 1))
    y = from_lanes(sparse_layer(to_lanes(x, lanes), layer.weight, layer.bias, plan))
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], g)]


def magnitudes(layer: nn.Module, x: Tensor, g: Tensor, mask: Tensor) -> list[Tensor]:
    """What outputs and gradients would be if nothing cancelled: the scale of a float32 sum's rounding."""
    signs = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with torch.no_grad():
        for p in layer.parameters():
            p.abs_()
    found = dense(layer, x.abs(), g.abs(), mask)
    layer.load_state_dict(signs)
    return found


def check_exactness(layer: nn.Module, x: Tensor, mask: Tensor, lanes: int) -> None:
    g = torch.randn(layer(x).shape, generator=seeded(1))
    ours, theirs = sparse(layer, x, g, mask, lanes), dense(layer, x, g, mask)
    assert all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    assert not ours[2][~mask].any()
    layer.double()
    exact, scale = dense(layer, x.double(), g, mask), magnitudes(layer, x.double(), g, mask)
    for a, b, e, m in zip(ours, theirs, exact, scale, strict=True):
        bound = 4 * (b - e).abs().max() + 4 * EPSILON * m.max()
        assert (a - e).abs().max() <= bound


@st.composite
def convolutions(draw) -> tuple[nn.Conv2d, tuple[int, int]]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 2))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * 2))
    stride = draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 6)] * 2), st.sampled_from(["same", "valid"])))
    image = tuple(draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 7)) for k, d in zip(kernel, dilation, strict=True))
    if padding == "same":
        stride = (1, 1)
    sizes = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 9))
    layer = nn.Conv2d(*sizes, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    return layer.to(memory_format=draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))), image


BATCHES = st.sampled_from([(1, 1), (2, 1), (6, 3), (17, 17), (40, 20), (50, 50), (66, 33)])  # (examples, lanes)
DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(convolutions(), BATCHES, DENSITIES, st.integers(0, 99))
def test_a_sparse_convolution_is_the_dense_one_to_rounding(drawn, batch, density, seed):
    (layer, image), (n, lanes) = drawn, batch
    x = torch.randn(n, layer.in_channels, *image, generator=seeded(seed))
    check_exactness(layer, x, masked(layer, density, seed), lanes)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 90), st.booleans(), BATCHES, DENSITIES)
def test_a_sparse_linear_layer_is_the_dense_one_to_rounding(n_in, n_out, bias, batch, density):
    layer, (n, lanes) = nn.Linear(n_in, n_out, bias), batch
    check_exactness(layer, torch.randn(n, n_in, generator=seeded(0)), masked(layer, density), lanes)


LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 4)),
    "grouped": (lambda: nn.Conv2d(4, 4, (3, 1), groups=2, dilation=(2, 1)), (4, 6, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_differences(name):
    make, shape = LAYERS[name]
    layer = make().double()
    mask = masked(layer, 0.4)
    plan = layer_plan(layer, mask, shape[1:] or (1, 1))
    x = torch.randn(6, *shape, generator=seeded(0), dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return sparse_layer(to_lanes(x, 3), weight, bias, plan)

    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias), masked=False)


def narrow(option: str, tmp_path_factory) -> Library:
    """The kernels for a processor that lacks something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", f"g++ {option}")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load.__wrapped__("float")


@pytest.mark.parametrize(("option", "width"), [("-mno-avx512f", 32), ("-mno-avx", 16)])
def test_narrower_vectors_give_the_same_to_rounding(option, width, tmp_path_factory, monkeypatch):
    library = narrow(option, tmp_path_factory)
    assert library.functions.vector_bytes() <= width
    monkeypatch.setattr(program, "kernels", lambda precision: library)
    for n in (1, 7, 16, 50):
        for layer, shape in ((nn.Conv2d(5, 9, 3, padding=1), (5, 6, 11)), (nn.Linear(60, 70), (60,))):
            check_exactness(layer, torch.randn(n, *shape, generator=seeded(n)), masked(layer, 0.3), n)


def test_pruned_weights_do_not_count_and_get_no_gradient():
    layer = nn.Conv2d(3, 4, 3)
    mask = masked(layer, 0.3)
    x, g = torch.randn(5, 3, 6, 6, generator=seeded(0)), torch.randn(5, 4, 4, 4, generator=seeded(1))
    zeros = sparse(layer, x, g, mask, 5)
    with torch.no_grad():
        layer.weight[~mask] = torch.nan
    for a, b in zip(zeros, sparse(layer, x, g, mask, 5), strict=True):
        assert torch.equal(a, b)
    assert not zeros[2][~mask].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_what_active_weights_connect_with_it(value):
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    mask = masked(layer, 0.2)
    x, g = torch.randn(20, 3, 7, 7, generator=seeded(0)), torch.randn(20, 8, 7, 7, generator=seeded(1))
    x[3, 1, 2, 5] = value
    y, dx, dw = sparse(layer, x, g, mask, 20)
    hit = torch.zeros_like(x)
    hit[3, 1, 2, 5] = 1
    reached = nn.functional.conv2d(hit, mask.float(), padding=1) > 0
    assert torch.equal(~y.isfinite(), reached)
    assert torch.equal(y[reached].nan_to_num(), dense(layer, x, g, mask)[0][reached].nan_to_num())
    assert dx.isfinite().all()
    assert torch.equal(~dw.isfinite(), mask & torch.tensor([False, True, False])[:, None, None])


def test_a_whole_mask_passes_on_what_is_not_finite_as_the_dense_layer_does():
    layer = nn.Linear(6, 4)
    x, g = torch.randn(9, 6, generator=seeded(0)), torch.ones(9, 4)
    x[2, 3], x[4, 1], g[7, 2] = torch.inf, torch.nan, -torch.inf
    mask = torch.ones(4, 6, dtype=torch.bool)
    for a, b in zip(sparse(layer, x, g, mask, 9), dense(layer, x, g, mask), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())


@pytest.fixture
def threads():
    """Sets the number of threads for as long as a test takes."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["convolution", "linear"])
def test_results_are_the_same_to_the_bit_with_any_number_of_threads(name, threads):
    layer, shape = (nn.Conv2d(8, 12, 3, padding=1), (8, 9, 9)) if name == "convolution" else (nn.Linear(500, 400), (500,))
    mask = masked(layer, 0.2)
    x = torch.randn(50, *shape, generator=seeded(0))
    g = torch.randn(layer(x).shape, generator=seeded(1))
    threads(1)
    once = sparse(layer, x, g, mask, 25)
    for n in (1, 2, 3, 2):
        threads(n)
        again = sparse(layer, x, g, mask, 25)
        assert all(torch.equal(a, b) for a, b in zip(once[:3], again[:3], strict=True)), n


ONE_RUNTIME = """
import sys
from helper.sparse.compiler import openmp_runtime, openmp_runtimes
if sys.argv[1] == "after scikit-learn":
    import sklearn.cluster
before = openmp_runtimes()
from helper.sparse import build, program
assert build.main() == 0
assert openmp_runtimes() == before, (before, openmp_runtimes())
print(len(before), openmp_runtime())
"""


@pytest.mark.parametrize("when", ["alone", "after scikit-learn"])
def test_kernels_run_in_the_openmp_runtime_of_torch_and_load_no_other(when):
    """scikit-learn brings a runtime of its own."""
    done = subprocess.run([sys.executable, "-c", ONE_RUNTIME, when], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n, path = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert int(n) == (1 if when == "alone" else 2)
    assert Path(path).is_relative_to(Path(torch.__file__).parent)


def test_a_convolution_that_fits_no_pixel_is_refused():
    with pytest.raises(ValueError, match="spans 5 pixels"):
        layer_plan(nn.Conv2d(1, 1, 5), torch.ones(1, 1, 5, 5, dtype=torch.bool), (4, 4))


def test_inputs_that_a_plan_is_not_for_are_refused():
    layer = nn.Conv2d(2, 3, 3)
    plan = layer_plan(layer, torch.ones(3, 2, 3, 3, dtype=torch.bool), (5, 5))
    x = torch.zeros(1, 2, 5, 5, 4)
    with pytest.raises(ValueError, match="not \\(1, 2, 5, 6, 4\\)"):
        sparse_layer(torch.zeros(1, 2, 5, 6, 4), layer.weight, layer.bias, plan)
    with pytest.raises(ValueError, match=r"torch.bfloat16"):
        sparse_layer(x.bfloat16(), layer.weight, layer.bias, plan)
    with pytest.raises(ValueError, match="strides"):
        sparse_layer(x, layer.weight.to(memory_format=torch.channels_last), layer.bias, plan)
    with pytest.raises(ValueError, match="blocks of 3"):
        to_lanes(torch.zeros(4, 2), 3)


def test_the_builder_says_what_it_has_compiled_and_that_it_is_right(capsys):
    assert build.main() == 0
    out = capsys.readouterr().out
    assert str(kernels().path) in out
    assert "OpenMP" in out and "WRONG" not in out  # noqa: PT018
    assert all(name in out for name in build.LAYERS)


def test_the_builder_sees_kernels_that_are_wrong(capsys, monkeypatch):
    monkeypatch.setattr(build, "sparse_layer", lambda *args: sparse_layer(*args) * 1.00001)
    assert build.main() == 1
    assert capsys.readouterr().out.count("WRONG") == len(build.LAYERS)
