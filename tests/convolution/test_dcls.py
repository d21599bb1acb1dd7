"""Kernels with learnable spacings: the operator, its derivatives, and the layers of ``ddu_ops.dcls``."""

import copy
import io
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import ddu_ops
import ddu_ops.flops
from cases import assert_same
from ddu_ops import dcls, decompositions, reference
from ddu_ops.reference import TOLERANCES
from processes import python

VERSIONS = ["v0", "v1", "max", "gauss"]
SIZES = [(7,), (5, 8), (3, 4, 6)]
DTYPES = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "float16_float32": (torch.float16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16_float32": (torch.bfloat16, torch.float32),
}

versions = pytest.mark.parametrize("version", VERSIONS)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
dtypes = pytest.mark.parametrize("dtype, positions_dtype", DTYPES.values(), ids=DTYPES.keys())


class Problem(NamedTuple):
    weight: Tensor
    positions: Tensor
    size: tuple[int, ...]
    sigma: Tensor | None
    version: str

    def kernel(self, of: Callable[..., Tensor] = dcls.dcls_kernel) -> Tensor:
        return of(self.weight, self.positions, self.size, self.sigma, version=self.version)

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.weight, self.positions, self.sigma) if t is not None]

    def function(self) -> Callable[..., Tensor]:
        """Of the tensors, which can be differentiated by."""
        return lambda weight, positions, sigma=None: dcls.dcls_kernel(
            weight, positions, self.size, sigma, version=self.version
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        sigma = None if self.sigma is None else change(self.sigma)
        return self._replace(weight=change(self.weight), positions=change(self.positions), sigma=sigma)


def problem(
    version: str,
    size: tuple[int, ...] = (5, 8),
    dtype: torch.dtype = torch.float64,
    positions_dtype: torch.dtype | None = None,
    *,
    outputs: int = 2,
    inputs: int = 3,
    count: int = 4,
    device: Any = "cpu",
    spread: float = 2.0,
) -> Problem:
    """Positions inside and outside, none of them on a whole cell."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shape = outputs, inputs, count
    weight, positions, sigma = draw(*shape), spread * draw(len(size), *shape), draw(len(size), *shape)
    positions = (positions * 64).floor() / 64 + 1 / 128
    of_positions = lambda t: t.to(positions_dtype or dtype).to(device)  # noqa: E731
    return Problem(
        weight.to(dtype).to(device),
        of_positions(positions),
        size,
        of_positions(sigma) if version in ("max", "gauss") else None,
        version,
    )


def leaves(p: Problem) -> Problem:
    return p.map(lambda t: t.detach().clone().requires_grad_())


def gradients(kernel: Tensor, p: Problem, cotangent: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(kernel, p.tensors(), cotangent))


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (actual.double().cpu() - expected.double().cpu()).norm()
    assert error <= TOLERANCES[dtype] * expected.double().norm().cpu(), f"{error:.2e} of {expected.norm():.2e}"


# ---- values and first derivatives ----


@dtypes
@sizes
@versions
def test_kernel_and_gradients_are_the_references(
    version: str,
    size: tuple[int, ...],
    dtype: torch.dtype,
    positions_dtype: torch.dtype,
    device: torch.device,
) -> None:
    p = leaves(problem(version, size, dtype, positions_dtype, device=device))
    wide = leaves(p.map(lambda t: t.double()))
    kernel, expected = p.kernel(), wide.kernel(reference.dcls_kernel)
    assert kernel.dtype == dtype
    assert kernel.shape == (2, 3, *size)
    assert_near(kernel, expected, dtype)
    cotangent = torch.randn_like(kernel)
    for tensor, ours, right in zip(
        p.tensors(),
        gradients(kernel, p, cotangent),
        gradients(expected, wide, cotangent.double()),
        strict=True,
    ):
        assert ours.dtype == tensor.dtype
        assert_near(ours, right, dtype if dtype in (torch.float64, torch.float32) else ours.dtype)


@versions
def test_many_rows_points_and_cells(version: str, device: torch.device) -> None:
    """Past the tiles and chunks of the kernels."""
    p = leaves(problem(version, (23, 31), torch.float32, outputs=3, inputs=2, count=150, device=device, spread=6))
    wide = leaves(p.map(lambda t: t.double()))
    kernel, expected = p.kernel(), wide.kernel(reference.dcls_kernel)
    assert_near(kernel, expected, torch.float32)
    cotangent = torch.randn_like(kernel)
    for ours, right in zip(gradients(kernel, p, cotangent), gradients(expected, wide, cotangent.double()), strict=True):
        assert_near(ours, right, torch.float32)


@sizes
@versions
def test_each_gradient_alone(version: str, size: tuple[int, ...], device: torch.device) -> None:
    """A gradient that is not asked for is not computed, and the others are the same bits."""
    p = leaves(problem(version, size, device=device))
    cotangent = torch.randn_like(p.kernel())
    for tensor, all_of_them in zip(p.tensors(), gradients(p.kernel(), p, cotangent), strict=True):
        (alone,) = torch.autograd.grad(p.kernel(), tensor, cotangent)
        assert torch.equal(alone, all_of_them)
    needs = [False] * 3
    for gradient in torch.ops.ddu.dcls_kernel_backward(
        cotangent, p.weight, p.positions, p.size, p.sigma, version, needs
    ):
        assert gradient.numel() == 0


def test_v0_is_the_core_interpolation() -> None:
    """A weight of one at a position reads the core's windows of the cells: the adjoint of a sample there."""
    cells = torch.randn(1, 1, 5, 8, dtype=torch.float64)
    p = problem("v0", (5, 8), outputs=1, inputs=1, count=9)
    read = torch.stack(
        [
            (cells * p._replace(weight=F.one_hot(torch.tensor(i), 9).double()[None, None]).kernel()).sum()
            for i in range(9)
        ]
    )
    offset = p.positions[:, 0, 0].T.reshape(1, 18, 1, 1) + torch.tensor([2.0, 4.0] * 9).view(1, 18, 1, 1)
    taps = torch.ones(1, 9, 1, 1, dtype=torch.float64)
    grid = torch.zeros(18).view(1, 9, 2, 1, 1)
    grid[:, :, 1, 0, 0] = torch.arange(9)  # a row of nine taps, each moved back to the corner
    sampled = ddu_ops.deform_unfold2d(
        F.pad(cells, (0, 8, 0, 0)), (1, 9), (offset - grid.view(1, 18, 1, 1)).expand(1, 18, 5, 8)
    )
    assert taps.shape[1] == 9
    torch.testing.assert_close(read, sampled.view(9, 5, 8)[:, 0, 0])


@pytest.mark.parametrize("version", ["v1", "max", "gauss"])
def test_normalised_versions_keep_the_weight(version: str) -> None:
    p = problem(version, (9, 9), spread=1.0)
    torch.testing.assert_close(p.kernel().sum((2, 3)), p.weight.sum(2), rtol=0, atol=1e-5)


def test_max_at_sigma_zero_is_v1() -> None:
    p = problem("v1", (6, 7))
    assert_same(p.kernel(), p._replace(version="max", sigma=torch.zeros_like(p.positions)).kernel())


@pytest.mark.parametrize("version", ["v0", "v1", "max"])
def test_derivatives_at_a_kink_are_from_the_right(version: str, device: torch.device) -> None:
    """By a whole position, and by a sigma of zero, they are those of a little more."""
    p = problem(version, (9, 10), device=device, spread=1.0)  # inside: just outside the sum of the shares is too small
    whole = leaves(p._replace(positions=p.positions.floor(), sigma=None if p.sigma is None else 0 * p.sigma))
    right = leaves(whole._replace(positions=whole.positions + 2**-20))
    if p.sigma is not None:
        right = leaves(right._replace(sigma=whole.sigma + 2**-40))
    cotangent = torch.randn_like(whole.kernel())
    ours, expected = (gradients(q.kernel(), q, cotangent) for q in (whole, right))
    wide = leaves(whole)
    judged = gradients(wide.kernel(reference.dcls_kernel), wide, cotangent)
    for here, beside, judge in zip(ours, expected, judged, strict=True):
        torch.testing.assert_close(here, beside, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(here, judge)


def test_precision_does_not_fall_with_the_size_of_the_kernel(device: torch.device) -> None:
    positions = torch.tensor([[[[0.1]]]], device=device)
    small, large = (
        dcls.dcls_kernel(torch.ones(1, 1, 1, device=device), positions, size, version="v0") for size in (5, 100_001)
    )
    assert torch.equal(small[0, 0], large[0, 0, 49_998:50_003])


@versions
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_position_that_is_not_finite_shows(version: str, value: float, device: torch.device) -> None:
    p = problem(version, device=device)
    p.positions[1, 0, 1, 2] = value
    p = leaves(p)
    kernel = p.kernel()
    assert kernel[0, 1].isnan().all()
    assert kernel.isnan().sum() == kernel[0, 1].numel()
    by_weight, by_positions, *_ = gradients(kernel, p, torch.ones_like(kernel))
    assert by_weight[0, 1, 2].isnan()
    assert by_positions[1, 0, 1, 2].isnan()
    assert by_weight.isnan().sum() == 1


@versions
@pytest.mark.parametrize("value", [1e30, -1e30, 3e38, 2.0**31, -(2.0**63)])
def test_a_finite_position_of_any_size_is_safe(version: str, value: float, device: torch.device) -> None:
    p = problem(version, dtype=torch.float32, device=device)
    p.positions[:, 0, 1, 2] = value
    p = leaves(p)
    kernel = p.kernel()
    without = p._replace(weight=p.weight.detach().clone())
    without.weight[0, 1, 2] = 0
    torch.testing.assert_close(kernel, without.kernel())
    for gradient in gradients(kernel, p, torch.ones_like(kernel)):
        assert gradient.isfinite().all()


@versions
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_nothing_of_something(version: str, shape: tuple[int, ...], device: torch.device) -> None:
    p = leaves(problem(version, outputs=shape[0], inputs=shape[1], count=shape[2], device=device))
    kernel = p.kernel()
    assert kernel.shape == (*shape[:2], 5, 8)
    assert not kernel.any()
    for tensor, gradient in zip(p.tensors(), gradients(kernel, p, torch.ones_like(kernel)), strict=True):
        assert gradient.shape == tensor.shape
    assert_same(torch.ops.ddu.dcls_kernel.default(*p[:4], version=version), kernel)


@versions
def test_any_strides(version: str, device: torch.device) -> None:
    p = problem(version, device=device)
    turned = p.map(lambda t: t.transpose(-1, 0).contiguous().transpose(-1, 0))
    assert not turned.weight.is_contiguous()
    p, turned = leaves(p), turned.map(lambda t: t.requires_grad_())
    assert_same(turned.kernel(), p.kernel())
    cotangent = torch.randn(2, 3, 8, 5, dtype=torch.float64, device=device).transpose(2, 3)
    for ours, right in zip(
        gradients(turned.kernel(), turned, cotangent), gradients(p.kernel(), p, cotangent.contiguous()), strict=True
    ):
        assert_same(ours, right)


@versions
def test_any_number_of_threads_gives_the_same_bits(version: str) -> None:
    p = leaves(problem(version, (17, 17), torch.float32, outputs=64, inputs=1, count=34))
    cotangent = torch.randn_like(p.kernel())
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            kernel = p.kernel()
            results.append([kernel, *gradients(kernel, p, cotangent)])
    finally:
        torch.set_num_threads(before)
    for more in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], more, strict=True))


PEAK = """
import resource, torch
from ddu_ops import dcls
weight = torch.randn({outputs}, 1, {count}, requires_grad=True)
positions = torch.zeros(2, {outputs}, 1, {count}).uniform_(-20, 20).requires_grad_()
sigma = torch.ones_like(positions).requires_grad_()
def step():
    dcls.dcls_kernel(weight, positions, 41, sigma, version="gauss").sum().backward()
small = weight[:1], positions[:, :1], sigma[:, :1]
dcls.dcls_kernel(*small[:2], 41, small[2], version="gauss").sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB")
def test_memory_is_that_of_arguments_and_results() -> None:
    """1681 cells times 500 points of 100 rows would be 321 MiB for one table of shares."""
    code = PEAK.format(outputs=100, count=500)
    grown = int(python("-c", code))
    assert grown < 16 * 1024


# ---- all derivatives ----


@sizes
@versions
def test_gradcheck(version: str, size: tuple[int, ...]) -> None:
    p = leaves(problem(version, size, outputs=1, inputs=2, count=2))
    torch.autograd.gradcheck(
        p.function(), p.tensors(), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@sizes
@versions
def test_gradgradcheck(version: str, size: tuple[int, ...]) -> None:
    p = leaves(problem(version, size, outputs=1, inputs=1, count=2))
    torch.autograd.gradgradcheck(p.function(), p.tensors(), check_fwd_over_rev=True, check_rev_over_rev=True)


@sizes
@versions
def test_steps_in_aten_give_what_the_kernels_give(version: str, size: tuple[int, ...]) -> None:
    """The decomposition, which forward mode and second derivatives go through."""
    table = decompositions()
    p = problem(version, size)
    kernel = p.kernel()
    steps = table[torch.ops.ddu.dcls_kernel.default](*p[:4], version=version)
    torch.testing.assert_close(steps, kernel)
    arguments = torch.randn_like(kernel), *p, [True, True, p.sigma is not None]
    for ours, right in zip(
        table[torch.ops.ddu.dcls_kernel_backward.default](*arguments),
        torch.ops.ddu.dcls_kernel_backward(*arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, right)


@versions
def test_func_transforms(version: str) -> None:
    """A hessian of each of several problems, against one at a time."""
    p = problem(version, (4, 5), outputs=1, inputs=2, count=2)
    several = torch.stack([p.positions, p.positions + 0.25])

    def energy(positions: Tensor) -> Tensor:
        return p._replace(positions=positions).kernel().square().sum()

    mapped = vmap(hessian(energy))(several)
    torch.testing.assert_close(mapped, torch.stack([hessian(energy)(one) for one in several]))
    value, tangent = jvp(energy, (p.positions,), (torch.ones_like(p.positions),))
    torch.testing.assert_close(value, energy(p.positions))
    torch.testing.assert_close(tangent, grad(energy)(p.positions).sum())


@versions
@pytest.mark.parametrize("mapped", [(0, None), (None, 1), (2, 3)], ids=str)
def test_vmap(version: str, mapped: tuple[int | None, int | None]) -> None:
    p = problem(version)
    grown = [
        tensor if dim is None else torch.stack([tensor, tensor + 0.1, tensor - 0.2], dim)
        for tensor, dim in zip((p.weight, p.positions), mapped, strict=True)
    ]
    result = vmap(lambda w, q: p._replace(weight=w, positions=q).kernel(), in_dims=mapped)(*grown)
    for index in range(3):
        weight, positions = (
            tensor if dim is None else tensor.select(dim, index) for tensor, dim in zip(grown, mapped, strict=True)
        )
        torch.testing.assert_close(result[index], p._replace(weight=weight, positions=positions).kernel())


def test_derivatives_ignore_autocast() -> None:
    """Every one of them computes in the types of its forward, and the kernel itself is not rounded."""
    p = leaves(problem("gauss", dtype=torch.float32))
    kernel = p.kernel()

    def second() -> list[Tensor]:
        first = torch.autograd.grad(p.kernel().square().sum(), p.tensors(), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), p.tensors()))

    expected = second()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(p.kernel(), kernel)
        assert_same(second(), expected)


# ---- torch's tools ----


@sizes
@versions
@pytest.mark.parametrize("requires_grad", [False, True], ids=["without_grad", "with_grad"])
def test_opcheck(version: str, size: tuple[int, ...], requires_grad: bool, device: torch.device) -> None:
    p = problem(version, size, torch.float32, device=device)
    p = leaves(p) if requires_grad else p
    torch.library.opcheck(torch.ops.ddu.dcls_kernel.default, p[:4], {"version": version})
    cotangent = torch.randn_like(p.kernel()).detach()
    needs = [True, True, p.sigma is not None]
    torch.library.opcheck(torch.ops.ddu.dcls_kernel_backward.default, (cotangent, *p, needs))
    torch.library.opcheck(torch.ops.ddu.dcls_inside.default, (p.positions, size))


@versions
def test_compiles_with_changing_sizes(version: str) -> None:
    compiled = torch.compile(problem(version).function(), fullgraph=True, dynamic=True)
    for count in (3, 5, 6):
        p = leaves(problem(version, count=count))
        kernel = compiled(*p.tensors())
        torch.testing.assert_close(kernel, p.kernel())
        cotangent = torch.randn_like(kernel)
        for ours, right in zip(gradients(kernel, p, cotangent), gradients(p.kernel(), p, cotangent), strict=True):
            torch.testing.assert_close(ours, right)


def test_a_layer_exports() -> None:
    layer = dcls.Dcls2d(3, 4, 5, dilated_kernel_size=7, padding=3)
    images = torch.export.Dim("images", min=2)
    program = torch.export.export(layer, (torch.randn(2, 3, 9, 8),), dynamic_shapes=({0: images},))
    input = torch.randn(5, 3, 9, 8)
    torch.testing.assert_close(program.module()(input), layer(input))
    program = program.run_decompositions(decompositions())
    names = {n.target.namespace for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}
    assert names == {"aten"}
    torch.testing.assert_close(program.module()(input), layer(input))


@versions
def test_flops(version: str) -> None:
    """Each weight is added to the cells that it may reach: two of an axis in v0 and v1, else all of them."""
    p = leaves(problem(version, (5, 8)))
    with FlopCounterMode(display=False) as counter:
        kernel = p.kernel()
    touched = 4 if version in ("v0", "v1") else 40
    assert counter.get_total_flops() == 2 * p.weight.numel() * touched
    with FlopCounterMode(display=False) as counter:
        kernel.sum().backward()
    products = 1 + 2 * (1 if p.sigma is None else 2)  # the weight's, and for each axis the position's and sigma's
    assert counter.get_total_flops() == products * 2 * p.weight.numel() * touched


# ---- what is refused ----


def refusal(operator: str = "dcls_kernel", **changes: Any) -> str:
    """The text, which is the same on Meta."""
    p = problem("gauss")
    call: dict[str, Any] = p._asdict()
    call["kernel_size"] = call.pop("size")
    if operator == "dcls_kernel_backward":
        call |= {"grad_output": torch.randn(2, 3, 5, 8, dtype=torch.float64), "output_mask": [True] * 3}
    call |= changes
    texts = set()
    for device in ("cpu", "meta"):
        there = {k: v.to(device) if isinstance(v, Tensor) and v.layout == torch.strided else v for k, v in call.items()}
        with pytest.raises(RuntimeError) as caught:
            getattr(torch.ops.ddu, operator)(**there)
        texts.add(str(caught.value).splitlines()[0])
    assert len(texts) == 1, texts
    return texts.pop()


@pytest.mark.parametrize("operator", ["dcls_kernel", "dcls_kernel_backward"])
def test_refusals(operator: str) -> None:
    text = lambda **changes: refusal(operator, **changes).removeprefix(f"{operator}(): expected ")  # noqa: E731
    double: Any = {"dtype": torch.float64}
    assert text(weight=torch.zeros(2, 4, **double)) == "weight of shape (O, I, count), but got (2, 4)"
    expected = "positions of shape (N, 2, 3, 4), with N = 1, 2 or 3 axes, but got "
    assert text(positions=torch.zeros(2, 2, 3, 5, **double)) == expected + "(2, 2, 3, 5)"
    assert text(positions=torch.zeros(4, 2, 3, 4, **double)) == expected + "(4, 2, 3, 4)"
    assert text(positions=torch.zeros(2, 3, 4, **double)) == expected + "(2, 3, 4)"
    assert text(sigma=torch.zeros(1, 2, 3, 4, **double)) == "sigma of shape (2, 2, 3, 4), but got (1, 2, 3, 4)"
    assert text(sigma=None) == "sigma to be a tensor for version 'gauss', but got None"
    assert text(version="v1") == "sigma to be None for version 'v1', but got a tensor"
    assert text(version="v2") == "version to be 'v0', 'v1', 'max' or 'gauss', but got 'v2'"
    assert text(kernel_size=(3, 3, 3)) == "kernel_size to be one or two ints, but got (3, 3, 3)"
    assert text(kernel_size=(3, 0)) == "kernel_size to be at least 1, but got (3, 0)"
    assert "below 2^63" in text(kernel_size=(2**40, 2**40))
    assert text(weight=torch.zeros(2, 3, 4, dtype=torch.int64)).startswith("weight of type float64, float32,")
    assert text(positions=torch.zeros(2, 2, 3, 4)) == (
        "positions of type float64, because weight is float64, but got float32"
    )
    assert text(sigma=torch.zeros(2, 2, 3, 4)) == "sigma of type float64, because positions is float64, but got float32"
    assert "dense tensor" in text(weight=torch.zeros(2, 3, 4, **double).to_sparse())


def test_refusals_of_a_backward() -> None:
    text = lambda **changes: refusal("dcls_kernel_backward", **changes)  # noqa: E731
    wrong = torch.zeros(2, 3, 8, 5, dtype=torch.float64)
    assert text(grad_output=wrong).endswith("grad_output of shape (2, 3, 5, 8), but got (2, 3, 8, 5)")
    assert text(sigma=None, version="v1").endswith("because output_mask asks for its gradient, but got None")


def test_refusals_of_inside() -> None:
    def text(positions: Tensor, size: int) -> str:
        with pytest.raises(RuntimeError) as caught:
            torch.ops.ddu.dcls_inside(positions, size)
        return str(caught.value)

    assert "float64 or float32, but got float16" in text(torch.zeros(2, 3).half(), 3)
    assert "with N = 1, 2 or 3 axes, but got (4, 3)" in text(torch.zeros(4, 3), 3)
    assert "kernel_size to be at least 1" in text(torch.zeros(2, 3), 0)


@settings(max_examples=60)
@given(
    version=st.sampled_from([*VERSIONS, "v2", ""]),
    axes=st.integers(0, 4),
    size=st.lists(st.sampled_from([1, 2, 3, 6, 0, -1, 2**31, 2**62, 2**63 - 1]), min_size=0, max_size=4),
    shape=st.tuples(*[st.integers(0, 3)] * 3),
    sigma=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32]),
    seed=st.integers(0, 3),
)
def test_any_call_is_refused_clearly_or_answered_rightly(
    version: str, axes: int, size: list[int], shape: tuple[int, ...], sigma: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *s: (8 * torch.rand(*s, generator=generator) - 4).to(dtype)  # noqa: E731
    weight, positions, reach = draw(*shape), draw(axes, *shape), draw(axes, *shape) if sigma else None
    large = math.prod(max(n, 1) for n in size) > 2**20
    there = [None if t is None else t.to("meta" if large else "cpu") for t in (weight, positions, reach)]
    kernel, refused = None, ""
    try:
        kernel = torch.ops.ddu.dcls_kernel(*there[:2], size, there[2], version=version)
    except RuntimeError as error:
        refused = str(error)
    if kernel is None:
        assert refused.startswith("dcls_kernel(): expected ")
    elif not large:
        wide = [None if t is None else t.double() for t in there]
        expected = reference.dcls_kernel(wide[0], wide[1], size, wide[2], version=version)  # type: ignore[arg-type]
        assert_near(kernel, expected, dtype)


# ---- layers ----

LAYERS: dict[str, dict[str, Any]] = {
    "Dcls1d": {"dilated_kernel_size": 7, "padding": 3},
    "Dcls2d": {"dilated_kernel_size": 7, "padding": 3, "stride": (2, 1)},
    "Dcls3d": {"dilated_kernel_size": 5, "padding": 2},
    "Dcls2_1d": {"dense_kernel_size": 3, "dilated_kernel_size": 7, "padding": (1, 3)},
    "Dcls3_1d": {"dense_kernel_size": (3, 2), "dilated_kernel_size": 7, "padding": (1, 1, 3)},
    "Dcls3_2d": {"dense_kernel_size": 2, "dilated_kernel_size": (5, 7), "padding": (0, 2, 3)},
}
layers = pytest.mark.parametrize("name", LAYERS)


def make(name: str, version: str, **options: Any) -> Any:
    return getattr(dcls, name)(4, 8, 3, version=version, **LAYERS[name] | options)


def input_of(layer: Any, size: int = 9, **options: Any) -> Tensor:
    return torch.randn(2, layer.in_channels, *[size, size + 1, size + 2][: layer._axes], **options)


def published() -> Any:
    """The package's modules, silenced: it logs at every construction."""
    modules = pytest.importorskip("DCLS.construct.modules")
    modules.logging = type("Silent", (), {"warning": staticmethod(lambda *_: None)})
    return modules


@pytest.mark.parametrize("options", [{}, {"padding_mode": "reflect"}, {"groups": 2, "bias": False}], ids=str)
@versions
@pytest.mark.parametrize("name", ["Dcls1d", "Dcls2d", "Dcls3d", "Dcls3_1d"])
def test_a_published_state_dict_gives_the_published_outputs(name: str, version: str, options: dict[str, Any]) -> None:
    if name == "Dcls3_1d" and version == "v0":
        pytest.skip("not published")
    theirs = getattr(published(), name)(4, 8, 3, version=version, **LAYERS[name] | options)
    with torch.no_grad():
        theirs.P.normal_(0, 2)
        theirs.clamp_parameters()  # some lie on the edge
        if theirs.SIG is not None:
            theirs.SIG.normal_()
    ours = make(name, version, **options)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    input = input_of(ours)
    torch.testing.assert_close(ours(input), theirs(input), rtol=1e-4, atol=1e-5)


@versions
def test_published_gradients(version: str) -> None:
    """Away from the kinks, where the package's derivatives are no one's."""
    theirs = published().Dcls2d(4, 4, 5, dilated_kernel_size=9, groups=4, version=version).double()
    ours = dcls.Dcls2d(4, 4, 5, dilated_kernel_size=9, groups=4, version=version).double()
    with torch.no_grad():
        if theirs.SIG is not None:
            theirs.SIG.normal_()
    ours.load_state_dict(theirs.state_dict())
    input = input_of(ours, dtype=torch.float64)
    for layer in (ours, theirs):
        layer(input).square().sum().backward()
    for (key, mine), right in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, right.grad, msg=key, rtol=1e-5, atol=1e-8)


@versions
@pytest.mark.parametrize("name, size", [("Dcls2d", (5, 9)), ("Dcls3d", (3, 5, 7))])
def test_published_positions_of_kernels_that_are_not_square(name: str, size: tuple[int, ...], version: str) -> None:
    """Converted, and not kept inside, they give what the package gives."""
    theirs = getattr(published(), name)(2, 2, 3, dilated_kernel_size=size, version=version)
    ours = getattr(dcls, name)(2, 2, 3, dilated_kernel_size=size, version=version, keep_inside=False)
    state = theirs.state_dict()
    ours.load_state_dict(state | {"P": dcls.published_positions(state["P"], size, version)})
    input = input_of(ours)
    torch.testing.assert_close(ours(input), theirs(input), rtol=1e-4, atol=1e-5)
    if version == "v1":  # where the mistake is
        ours.load_state_dict(state)
        assert not torch.allclose(ours(input), theirs(input), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("version", ["v0", "max"])
def test_published_even_sizes(version: str) -> None:
    theirs = published().Dcls2d(2, 2, 3, dilated_kernel_size=6, version=version)
    with torch.no_grad():
        theirs.P.uniform_(-3, 3)
    ours = dcls.Dcls2d(2, 2, 3, dilated_kernel_size=6, version=version, keep_inside=False)
    ours.load_state_dict(theirs.state_dict())
    input = input_of(ours)
    torch.testing.assert_close(ours(input), theirs(input), rtol=1e-4, atol=1e-5)


def test_initial_values_are_the_published_ones() -> None:
    for name in ("Dcls2d", "Dcls3_1d"):
        for version in ("v1", "max", "gauss"):
            torch.manual_seed(5)
            theirs = getattr(published(), name)(4, 8, 3, version=version, **LAYERS[name])
            torch.manual_seed(5)
            ours = make(name, version).state_dict()
            for key, value in theirs.state_dict().items():
                assert torch.equal(ours[key], value)


class Block(nn.Module):
    """A block of the published ConvNeXt, whose depthwise convolution has learnable spacings."""

    def __init__(self, dim: int, layer: type[nn.Module]) -> None:
        super().__init__()
        self.dwconv = layer(dim, dim, kernel_count=7, dilated_kernel_size=9, padding=4, groups=dim, version="v0")
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, input: Tensor) -> Tensor:
        x = self.norm(self.dwconv(input).permute(0, 2, 3, 1))
        x = self.gamma * self.pwconv2(F.gelu(self.pwconv1(x)))
        return input + x.permute(0, 3, 1, 2)


class Model(nn.Module):
    """The published keys: ``stages.{i}.{j}.dwconv.{weight,bias,P}``, with one ``P`` to a stage."""

    def __init__(self, layer: type[nn.Module], dims: tuple[int, ...] = (8, 16)) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(before, dim, 2, 2) for before, dim in zip((3, *dims), dims, strict=False)
        )
        self.stages = nn.ModuleList(nn.Sequential(*(Block(dim, layer) for _ in range(2))) for dim in dims)
        for stage in self.stages:
            for block in stage[1:]:
                block.dwconv.P = stage[0].dwconv.P

    def forward(self, input: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            input = stage(downsample(input))
        return input.mean((2, 3))


def test_a_published_convnext_state_dict_gives_the_published_outputs() -> None:
    theirs, ours = Model(published().Dcls2d), Model(dcls.Dcls2d)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.normal_(0, 2 if key.endswith(".P") else 0.3)
        for module in theirs.modules():
            if hasattr(module, "clamp_parameters"):
                module.clamp_parameters()
    assert "stages.1.1.dwconv.P" in theirs.state_dict()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 24)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    assert ours.stages[0][0].dwconv.P is ours.stages[0][1].dwconv.P


@pytest.mark.parametrize("version", ["v1", "gauss"])
def test_a_published_2_1d_state_dict(version: str) -> None:
    """Its two buffers are dropped, and its SIG has 0.73 added, so that the width is what it was."""
    layer = make("Dcls2_1d", version)
    state = dict(layer.state_dict())
    expected = {key: value.clone() for key, value in state.items()}
    if version == "gauss":
        state["SIG"] = torch.randn_like(state["SIG"])
        expected["SIG"] = state["SIG"].abs() + 0.73
    state |= {"DCK.IDX": torch.zeros(1, 3), "DCK.lim": torch.tensor([7])}
    layer.load_state_dict(state)
    torch.testing.assert_close(dict(layer.state_dict()), expected)
    own = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.load_state_dict(own)
    torch.testing.assert_close(dict(layer.state_dict()), own)


@layers
@versions
def test_layers_are_convolutions_with_the_kernel(name: str, version: str) -> None:
    """Every point, at its own dense cell, written out."""
    layer = make(name, version, groups=2).double()
    with torch.no_grad():
        layer.P.normal_(0, 1.5)
        if layer.SIG is not None:
            layer.SIG.normal_()
    dense = layer._dense()
    weight = layer.weight.reshape(8, -1, 3)
    order = {"v0": {1: [0], 2: [0, 1], 3: [0, 2, 1]}}.get(version, {1: [0], 2: [1, 0], 3: [2, 1, 0]})[layer._learned]
    limits = [(-(k // 2), k - 1 - k // 2) for k in layer.dilated_kernel_size]
    positions = torch.stack([layer.P[i].clamp(*limit) for i, limit in zip(order, limits, strict=True)])
    sigma = None if layer.SIG is None else layer.SIG[order].reshape(layer._learned, *weight.shape)
    kernel = reference.dcls_kernel(
        weight, positions.reshape(layer._learned, *weight.shape), layer.dilated_kernel_size, sigma, version=version
    )
    kernel = kernel.reshape(8, 2, *dense, *layer.dilated_kernel_size)
    torch.testing.assert_close(layer.kernel(), kernel)
    input = input_of(layer, dtype=torch.float64)
    conv = (F.conv1d, F.conv2d, F.conv3d)[layer._axes - 1]
    expected = conv(input, kernel, layer.bias, layer.stride, layer.padding, 1, 2)
    torch.testing.assert_close(layer(input), expected)
    torch.testing.assert_close(layer(input[0]), expected[0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("padding_mode", dcls.PADDING_MODES)
@pytest.mark.parametrize("padding", ["same", "valid", (1, 2)], ids=str)
def test_padding_is_that_of_a_convolution(padding: Any, padding_mode: str) -> None:
    layer = dcls.Dcls2d(3, 4, 2, padding=padding, dilated_kernel_size=(4, 5), padding_mode=padding_mode)
    conv = nn.Conv2d(3, 4, (4, 5), padding=padding, padding_mode=padding_mode)
    with torch.no_grad():
        conv.weight.copy_(layer.kernel())
        assert layer.bias is not None and conv.bias is not None
        conv.bias.copy_(layer.bias)
    input = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(layer(input), conv(input))


@layers
@versions
def test_positions_stay_inside_by_themselves(name: str, version: str) -> None:
    """A step that leads far outside, twice: the kernel keeps its weight, and there is nothing to call."""
    layer = make(name, version).double()
    inside = make(name, version).double()
    with torch.no_grad():
        layer.P.normal_(0, 50)
        layer.P[layer.P.abs() < 10] += 20
        inside.load_state_dict(layer.state_dict())
        inside.clamp_parameters()
    torch.testing.assert_close(layer.kernel(), inside.kernel())
    kernel_sum = layer.kernel().flatten(2 + len(layer._dense())).sum(-1)
    torch.testing.assert_close(kernel_sum, layer.weight.sum(-1), rtol=1e-5, atol=1e-5)


@versions
@pytest.mark.parametrize("side", [-1, 1])
def test_a_gradient_that_brings_a_position_back_passes(version: str, side: int) -> None:
    """And one that would drive it further away does not: it comes back as soon as something asks for it."""
    layer = dcls.Dcls1d(1, 1, 1, dilated_kernel_size=5, version=version).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.P.fill_(7.0 * side)
    target = torch.zeros(5, dtype=torch.float64)
    target[2 + side] = 1.0
    ((layer.kernel()[0, 0] - target) ** 2).sum().backward()
    assert layer.P.grad is not None
    assert layer.P.grad.item() * side > 0  # a step against it leads inside
    layer.P.grad = None
    (layer.kernel()[0, 0] * target).sum().backward()
    assert layer.P.grad.item() == 0 or layer.P.grad.item() * side > 0


@versions
def test_positions_outside_are_learned(version: str) -> None:
    """From beyond the edge to where the target is, with nothing but an optimizer."""
    layer = dcls.Dcls1d(1, 1, 1, dilated_kernel_size=9, version=version, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.P.fill_(5.0)
    positions = torch.arange(9.0) - 4
    optimizer = torch.optim.SGD([layer.P], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        ((layer.kernel()[0, 0] * positions).sum() - 1.0).square().backward()  # where its mass lies
        optimizer.step()
    assert abs(layer.P.item() - 1.0) < 0.2


@versions
def test_layers_in_half_types_keep_positions_in_float32(version: str) -> None:
    layer = dcls.Dcls2d(4, 4, 3, dilated_kernel_size=9, groups=4, version=version)
    half = dcls.Dcls2d(4, 4, 3, dilated_kernel_size=9, groups=4, version=version, dtype=torch.bfloat16)
    half.load_state_dict(layer.state_dict())
    assert half.positions().dtype == torch.float32
    assert half.kernel().dtype == torch.bfloat16
    input = input_of(layer)
    assert_near(half(input.bfloat16()), layer.bfloat16().float()(input.bfloat16().float()), torch.bfloat16)


def test_layers_under_autocast() -> None:
    layer = dcls.Dcls2d(4, 4, 3, dilated_kernel_size=9, groups=4)
    input = input_of(layer)
    expected = layer(input)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.kernel().dtype == torch.float32
        result = layer(input)
    assert result.dtype == torch.bfloat16
    assert_near(result, expected, torch.bfloat16)


@pytest.mark.parametrize("keep_inside", [True, False])
def test_layers_compile_with_changing_sizes(keep_inside: bool) -> None:
    layer = dcls.Dcls2d(4, 4, 3, dilated_kernel_size=7, groups=4, padding=3, keep_inside=keep_inside)
    # Where inductor changes the layout of a convolution, it takes strides of the input for constants.
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 11):
        input = input_of(layer, size)
        found = []
        for module in (layer, compiled):
            layer.zero_grad()
            result = module(input)
            result.square().sum().backward()
            found.append([result, *(p.grad for p in layer.parameters())])
        torch.testing.assert_close(found[0], found[1])


@layers
@versions
def test_layers_are_traced_by_fx(name: str, version: str) -> None:
    layer = make(name, version)
    traced = torch.fx.symbolic_trace(layer)
    input = input_of(layer)
    torch.testing.assert_close(traced(input), layer(input))


@versions
def test_layers_are_traced_by_jit(version: str) -> None:
    layer = dcls.Dcls2d(4, 4, 2, groups=4, dilated_kernel_size=9, padding=4, version=version)
    traced = torch.jit.trace(layer, input_of(layer))
    input = input_of(layer, 12)[:1]
    torch.testing.assert_close(traced(input), layer(input))


@versions
def test_copies(version: str) -> None:
    layer = make("Dcls2d", version)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    input = input_of(layer)
    for copied in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(copied(input), layer(input))


def test_gradients_per_sample() -> None:
    layer = dcls.Dcls2d(4, 4, 3, dilated_kernel_size=7, groups=4, padding=3)
    with torch.no_grad():
        layer.P[0, 0] = 9.0  # outside
    images = input_of(layer)
    loss = lambda parameters, image: functional_call(layer, parameters, (image,)).square().sum()  # noqa: E731
    parameters = {key: value.detach() for key, value in layer.named_parameters()}
    mapped = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    for index, image in enumerate(images):
        torch.testing.assert_close({k: v[index] for k, v in mapped.items()}, grad(loss)(parameters, image))


@layers
def test_what_layers_refuse(name: str) -> None:
    def text(**changes: Any) -> str:
        with pytest.raises(ValueError, match=f"^{name}") as caught:
            getattr(dcls, name)(**{"in_channels": 4, "out_channels": 8, "kernel_count": 3, **LAYERS[name], **changes})
        assert f"{name}(): expected " in str(caught.value)
        return str(caught.value)

    assert "in_channels to be a multiple of groups=3, but got 4" in text(groups=3)
    assert "out_channels to be a multiple of groups=4, but got 6" in text(groups=4, out_channels=6)
    assert "kernel_count to be at least 1, but got 0" in text(kernel_count=0)
    assert "version to be one of ('v0', 'v1', 'max', 'gauss'), but got 'v3'" in text(version="v3")
    assert "but got 'mirror'" in text(padding_mode="mirror")
    assert "padding to be at least 0" in text(padding=-1)
    assert "stride to be at least 1" in text(stride=0)
    assert "dilated_kernel_size to be at least 1" in text(dilated_kernel_size=0)
    assert "padding='same'" in text(padding="same", stride=2)
    assert "'full'" in text(padding="full")


def test_layers_say_what_they_are() -> None:
    layer = dcls.Dcls2_1d(4, 8, 3, dense_kernel_size=3, dilated_kernel_size=7, groups=2, keep_inside=False)
    assert repr(layer) == (
        "Dcls2_1d(4, 8, kernel_count=3, dense_kernel_size=(3,), dilated_kernel_size=(7,), stride=(1, 1), "
        "version='gauss', groups=2, keep_inside=False)"
    )


# ---- the sparse form ----


class Sparse(NamedTuple):
    input: Tensor
    factors: Tensor
    shifts: Tensor
    size: tuple[int, ...]

    def sum(self) -> Tensor:
        result: Tensor = torch.ops.ddu.dcls_sparse_sum(*self)
        return result

    def expected(self) -> Tensor:
        """Tap by tap, in float64, from a copy with all the zeros that are ever read."""
        input, factors = self.input.double(), self.factors.double()
        result = torch.zeros(*input.shape[:2], *self.size, dtype=torch.float64, device=input.device)
        for c, channel in enumerate(self.shifts.movedim(0, -1).tolist()):
            for j, shift in enumerate(channel):
                wide = [max(self.size) + abs(s) + n for s, n in zip(shift, input.shape[2:], strict=True)]
                if max(wide) > 1000:
                    continue
                padded = F.pad(input[:, c], [n for w in reversed(wide) for n in (w, w)])
                for axis, (s, w, n) in enumerate(zip(shift, wide, self.size, strict=True)):
                    padded = padded.narrow(1 + axis, w + s, n)
                result[:, c] = result[:, c] + factors[c, j] * padded
        return result


SPARSE_SIZES = {
    "line": ((9,), (7,)),
    "image": ((6, 9), (7, 8)),
    "volume": ((4, 5, 6), (5, 3, 6)),
    "several_tiles": ((35, 40), (37, 41)),
}
sparse_sizes = pytest.mark.parametrize("size, output_size", SPARSE_SIZES.values(), ids=SPARSE_SIZES.keys())


def sparse(
    size: tuple[int, ...] = (6, 9),
    output_size: tuple[int, ...] = (7, 8),
    dtype: torch.dtype = torch.float64,
    device: Any = "cpu",
    *,
    batch: int = 2,
    channels: int = 3,
    taps: int = 11,
) -> Sparse:
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype).to(device)  # noqa: E731
    shifts = torch.randint(-4, 7, (len(size), channels, taps), generator=generator)
    if shifts.numel():
        shifts[0, 0, 0], shifts[-1, -1, -1] = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    return Sparse(draw(batch, channels, *size), draw(channels, taps), shifts.to(device), output_size)


@sparse_sizes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sparse_sum_and_its_gradients(
    size: tuple[int, ...], output_size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    p = sparse(size, output_size, dtype, device, taps=70)
    p = p._replace(input=p.input.requires_grad_(), factors=p.factors.requires_grad_())
    output, expected = p.sum(), p.expected()
    assert output.dtype == dtype
    assert_near(output, expected, dtype)
    cotangent = torch.randn_like(output)
    found = torch.autograd.grad(output, (p.input, p.factors), cotangent)
    right = torch.autograd.grad(expected, (p.input, p.factors), cotangent.double())
    for ours, judge in zip(found, right, strict=True):
        assert_near(ours, judge, dtype)


@sparse_sizes
def test_sparse_form_has_all_derivatives(size: tuple[int, ...], output_size: tuple[int, ...]) -> None:
    size, output_size = (tuple(min(n, 5) for n in sizes) for sizes in (size, output_size))
    p = sparse(size, output_size, batch=1, channels=2, taps=3)
    function = lambda input, factors: Sparse(input, factors, p.shifts, p.size).sum()  # noqa: E731
    of = p.input.requires_grad_(), p.factors.requires_grad_()
    torch.autograd.gradcheck(function, of, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(function, of, check_fwd_over_rev=True, check_rev_over_rev=True)


@sparse_sizes
@pytest.mark.parametrize("requires_grad", [False, True], ids=["without_grad", "with_grad"])
def test_opcheck_of_the_sparse_form(
    size: tuple[int, ...], output_size: tuple[int, ...], requires_grad: bool, device: torch.device
) -> None:
    p = sparse(size, output_size, torch.float32, device)
    input, factors = p.input.requires_grad_(requires_grad), p.factors.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.ddu.dcls_sparse_sum.default, (input, factors, *p[2:]))
    left = torch.randn_like(p.sum()).requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.ddu.dcls_sparse_dot.default, (left, input, p.shifts))


@sparse_sizes
def test_the_sparse_form_in_aten(size: tuple[int, ...], output_size: tuple[int, ...]) -> None:
    p, table = sparse(size, output_size), decompositions()
    output = p.sum()
    torch.testing.assert_close(table[torch.ops.ddu.dcls_sparse_sum.default](*p), output)
    arguments = torch.randn_like(output), p.input, p.shifts
    torch.testing.assert_close(
        table[torch.ops.ddu.dcls_sparse_dot.default](*arguments), torch.ops.ddu.dcls_sparse_dot(*arguments)
    )


@pytest.mark.parametrize("changes", [{"batch": 0}, {"channels": 0}, {"taps": 0}, {"size": (0, 9)}], ids=str)
def test_the_sparse_form_of_nothing(changes: dict[str, Any], device: torch.device) -> None:
    p = sparse(**changes, device=device)
    output = p.sum()
    assert output.shape == (p.input.shape[0], p.input.shape[1], 7, 8)
    assert not output.any()
    result = torch.ops.ddu.dcls_sparse_dot(output, p.input, p.shifts)
    assert result.shape == p.factors.shape
    assert not result.any()


def test_refusals_of_the_sparse_form() -> None:
    def text(operator: str, *arguments: Any) -> str:
        with pytest.raises(RuntimeError) as caught:
            getattr(torch.ops.ddu, operator)(*arguments)
        assert f"{operator}(): expected " in str(caught.value)
        return str(caught.value)

    input, factors, shifts, size = sparse()
    both = lambda *a: {text("dcls_sparse_sum", a[0], factors, *a[1:], size), text("dcls_sparse_dot", input, *a)}  # noqa: E731
    assert all("shifts of shape (2, 3, taps), but got (1, 3, 11)" in t for t in both(input, shifts[:1]))
    assert all("of type int64" in t for t in both(input, shifts.double()))
    assert all("with 1, 2 or 3 axes, but got (3,)" in t for t in both(input[0, :, 0, 0], shifts))
    assert "factors of shape (3, 11)" in text("dcls_sparse_sum", input, factors[:2], shifts, size)
    assert "factors of type float64" in text("dcls_sparse_sum", input, factors.float(), shifts, size)
    assert "2 entries, but got (7,)" in text("dcls_sparse_sum", input, factors, shifts, size[:1])
    assert "at least 0, but got (7, -1)" in text("dcls_sparse_sum", input, factors, shifts, (7, -1))
    assert "below 2^63" in text("dcls_sparse_sum", input, factors, shifts, (2**40, 2**40))
    assert "left of shape (2, 3, ...)" in text("dcls_sparse_dot", input[:1], input, shifts)


@pytest.mark.parametrize("mapped", [(0, None, None), (1, 0, None), (None, 1, 2)], ids=str)
def test_vmap_of_the_sparse_form(mapped: tuple[int | None, ...]) -> None:
    p = sparse()
    grown = [
        tensor if dim is None else torch.stack([tensor, tensor + 1, 2 * tensor], dim)
        for tensor, dim in zip(p[:3], mapped, strict=True)
    ]
    result = vmap(lambda *of: Sparse(*of, p.size).sum(), in_dims=mapped)(*grown)
    for index in range(3):
        one = [t if dim is None else t.select(dim, index) for t, dim in zip(grown, mapped, strict=True)]
        torch.testing.assert_close(result[index], Sparse(*one, p.size).sum())


SPARSE_LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "line": ("Dcls1d", {"dilated_kernel_size": 9, "padding": 4}),
    "image": ("Dcls2d", {"dilated_kernel_size": (9, 7), "padding": (4, 1)}),
    "even": ("Dcls2d", {"dilated_kernel_size": (8, 9), "padding": "same", "bias": False}),
    "reflected": ("Dcls2d", {"dilated_kernel_size": 7, "padding": 3, "padding_mode": "reflect"}),
    "volume": ("Dcls3d", {"dilated_kernel_size": (5, 6, 7), "padding": (2, 0, 3)}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name, options", SPARSE_LAYERS.values(), ids=SPARSE_LAYERS.keys())
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_both_forms_agree(
    name: str, options: dict[str, Any], version: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In value and in every gradient, with positions inside, outside and on the edge."""
    layer = getattr(dcls, name)(4, 4, 3, groups=4, version=version, device=device, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.P.normal_(0, 2)
        layer.P[0, 0] = torch.tensor([9.0, -9.0, layer.dilated_kernel_size[0] // 2])
    input = input_of(layer, dtype=torch.float64, device=device).requires_grad_()
    found = []
    for form in (0.0, math.inf):
        monkeypatch.setattr(dcls, "CELLS_PER_TAP", {"cpu": form, "cuda": form})
        assert layer.is_sparse(input.device) == (form == 0)
        output = layer(input)
        gradients = torch.autograd.grad(output.sin().sum(), [input, *layer.parameters()], create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in gradients), [input, *layer.parameters()])
        found.append([output, layer(input[0]), *gradients, *again])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)


def test_the_sparse_form_is_for_few_weights_on_two_cells_each() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    make = lambda **changes: dcls.Dcls2d(  # noqa: E731
        **{"in_channels": 8, "out_channels": 8, "groups": 8, "kernel_count": 34, "dilated_kernel_size": 17}
        | {"version": "v1"}
        | changes
    )
    assert make().is_sparse(cpu)
    assert make().is_sparse(cuda)
    assert make(version="v0").is_sparse(cpu)
    assert not make().is_sparse(torch.device("meta"))
    for change in (
        {"version": "gauss"}, {"version": "max"}, {"stride": 2}, {"groups": 4}, {"out_channels": 16},
        {"kernel_count": 200}, {"keep_inside": False}, {"dilated_kernel_size": (1, 400)},
    ):  # fmt: skip
        assert not make(**change).is_sparse(cpu)
        assert not make(**change).is_sparse(cuda)


def test_the_sparse_form_shows_what_is_not_finite() -> None:
    layer = dcls.Dcls2d(2, 2, 1, groups=2, dilated_kernel_size=9, padding=4, version="v1")
    assert layer.is_sparse(torch.device("cpu"))
    with torch.no_grad():
        layer.P[0, 0] = math.nan
    output = layer(input_of(layer))
    assert output[:, 0, 3:6, 3:6].isnan().all()
    assert output[:, 1].isfinite().all()


def test_the_sparse_form_under_autocast_and_compile() -> None:
    layer = dcls.Dcls2d(4, 4, 3, groups=4, dilated_kernel_size=9, padding=4, version="v1")
    input = input_of(layer)
    assert layer.is_sparse(input.device)
    expected = layer(input)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(input)
    assert result.dtype == torch.bfloat16
    assert_near(result, expected, torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for size in (9, 12):
        input = input_of(layer, size)
        torch.testing.assert_close(compiled(input), layer(input))


def test_flops_of_the_sparse_form() -> None:
    p = sparse()
    with FlopCounterMode(display=False) as counter:
        output = p._replace(input=p.input.requires_grad_(), factors=p.factors.requires_grad_()).sum()
    assert counter.get_total_flops() == 2 * output.numel() * 11
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * p.input.numel() * 11 + 2 * output.numel() * 11


# ---- training ----


def test_parameter_groups() -> None:
    """As the paper trains: positions five times as fast and without decay, shared ones once; SIG too."""
    model = Model(dcls.Dcls2d)
    model.stages[0][0].dwconv.SIG = nn.Parameter(torch.zeros(1))
    rest, moving = dcls.parameter_groups(model, 1e-3, 0.05)
    assert (rest["lr"], rest["weight_decay"]) == (1e-3, 0.05)
    assert (moving["lr"], moving["weight_decay"]) == (5e-3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in moving["params"]} == {
        "stages.0.0.dwconv.P", "stages.0.0.dwconv.SIG", "stages.1.0.dwconv.P",
    }  # fmt: skip
    assert len(rest["params"]) + len(moving["params"]) == len(names)
    torch.optim.AdamW([rest, moving])


def test_repulsion_loss() -> None:
    model = Model(dcls.Dcls2d)
    expected = []
    for stage in model.stages:
        positions = stage[0].dwconv.P
        count = positions.shape[-1]
        total = torch.tensor(0.0)
        for a in range(count):
            for b in range(a):
                total = total + F.relu(1 - (positions[..., a] - positions[..., b]).norm(dim=0)).sum()
        expected.append(2 * total / (count * (count - 1) * positions.shape[1] * positions.shape[2]))
    loss = dcls.repulsion_loss(model)
    torch.testing.assert_close(loss, torch.stack(expected).mean() ** 2)
    loss.backward()
    assert model.stages[0][0].dwconv.P.grad is not None


def test_repulsion_loss_of_equal_positions_is_finite() -> None:
    positions = torch.zeros(2, 1, 1, 3, requires_grad=True)
    loss = dcls.repulsion_loss([positions])
    assert loss.item() == 1.0
    loss.backward()
    assert positions.grad is not None and positions.grad.isfinite().all()


@pytest.mark.parametrize("model", [nn.Linear(2, 2), dcls.Dcls1d(1, 1, 1)], ids=["none", "no_pair"])
def test_repulsion_loss_of_no_pair_is_zero(model: nn.Module) -> None:
    assert dcls.repulsion_loss(model).item() == 0
