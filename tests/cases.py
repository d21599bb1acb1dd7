"""The problem sizes, the tolerances, the data and the calls that all test files share."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from ddu_ops import _C, DynamicDilationFold, DynamicDilationUnfold, reference
from ddu_ops.reference import TOLERANCES

Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One problem: every size and option of a call."""

    name: str
    batch: int = 2
    channels: int = 3
    size: Pair = (6, 7)
    kernel_size: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    rates: int = 1  # per window: one for both axes, or one for each
    aligned: bool = True

    @property
    def output_size(self) -> Pair:
        extents = zip(self.size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in extents)
        return height, width

    @property
    def taps(self) -> int:
        return math.prod(self.kernel_size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.size)

    @property
    def map_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups * self.rates, *self.output_size)

    @property
    def columns_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels * self.taps, math.prod(self.output_size))

    @property
    def options(self) -> tuple[Any, ...]:
        """What follows the map in a call of any operator."""
        return self.stride, self.padding, self.dilation, self.groups, self.aligned

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("plain"),
    Case("same", padding=(1, 1)),
    Case("lopsided", 2, 4, (9, 6), (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
    Case("lopsided_two_rates", 2, 4, (6, 9), (2, 3), (1, 2), (0, 1), (2, 1), groups=2, rates=2),
    Case("first_tap", padding=(2, 1), dilation=(1, 2), aligned=False),
    Case("first_tap_two_rates", 1, 6, (8, 5), (4, 2), (1, 1), (2, 1), groups=3, rates=2, aligned=False),
    Case("even_kernel", kernel_size=(4, 2), stride=(2, 2), padding=(3, 1)),
    Case("long_stride", 2, 2, (11, 13), stride=(3, 4), padding=(1, 2), rates=2),
    Case("padding_beyond_image", 1, 2, (2, 3), padding=(5, 4), rates=2),
    Case("row", 3, 2, (1, 9), (1, 5), padding=(0, 2)),
    Case("column_of_taps", 1, 4, (9, 1), (5, 1), padding=(2, 0), groups=4, rates=2),
    Case("one_tap", kernel_size=(1, 1), stride=(2, 1)),
    Case("one_pixel", 1, 1, (1, 1), (1, 1)),
    Case("window_around_one_pixel", 2, 2, (1, 1), padding=(1, 1), groups=2),
    Case("wide", 1, 3, (5, 37), (3, 3), padding=(1, 1), groups=3),
    Case("deep", 1, 35, (4, 5), (2, 3), padding=(1, 1), rates=2),
    Case("no_batch", batch=0, padding=(1, 1), rates=2),
    Case("no_channels", channels=0, padding=(1, 1), groups=2),
]

SMALL_CASES = [  # for what takes a loop over entries, like gradcheck
    Case("small", 1, 2, (3, 4), (2, 3), (1, 1), (1, 1)),
    Case("small_groups", 2, 2, (4, 3), (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
    Case("small_two_rates", 1, 2, (3, 3), (3, 2), (1, 2), (1, 1), groups=2, rates=2),
    Case("small_first_tap", 1, 1, (4, 4), (2, 2), (2, 1), (1, 0), (1, 2), rates=2, aligned=False),
]

cases = pytest.mark.parametrize("case", CASES, ids=str)
small_cases = pytest.mark.parametrize("case", SMALL_CASES, ids=str)

DTYPES = {  # input, map
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "float16_float32_map": (torch.float16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16_float32_map": (torch.bfloat16, torch.float32),
}

dtypes = pytest.mark.parametrize("dtype, map_dtype", DTYPES.values(), ids=DTYPES.keys())


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Compares a result of any type with the reference's in float64: the same NaNs, and close by the norm elsewhere."""
    assert expected.dtype == torch.float64
    assert actual.shape == expected.shape
    actual_double, expected = actual.detach().double().cpu(), expected.detach().cpu()
    missing = expected.isnan()
    assert torch.equal(actual_double.isnan(), missing), "NaN in other places than the reference"
    error = (actual_double - expected)[~missing].norm().item()
    scale = expected[~missing].norm().item()
    assert error <= TOLERANCES[actual.dtype] * scale, f"relative error {error / scale if scale else math.inf:.2e}"


def assert_bits(actual: Any, expected: Any) -> None:
    """Two tensors, or two sequences of them, equal in every bit; one NaN is like another."""
    for a, e in zip(as_list(actual), as_list(expected), strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
        a_bits, e_bits = (t.detach().masked_fill(t.isnan(), math.nan).contiguous().view(bits) for t in (a, e))
        assert torch.equal(a_bits, e_bits)


def assert_same(actual: Any, expected: Any) -> None:
    """The same, where additions have an order: on CUDA without deterministic algorithms, as close as the tolerance."""
    for a, e in zip(as_list(actual), as_list(expected), strict=True):
        if a.is_cuda and not torch.are_deterministic_algorithms_enabled():
            assert a.dtype == e.dtype
            assert_near(a, e.double())
        else:
            assert_bits(a, e)


def as_list(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One result or several, as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


class Tensors(NamedTuple):
    """What the operators of one case take."""

    input: Tensor
    dilation_map: Tensor
    columns: Tensor

    def to(self, dtype: torch.dtype) -> "Tensors":
        return Tensors(*(t.detach().to(dtype) for t in self))

    def requires_grad(self) -> "Tensors":
        return Tensors(*(t.detach().requires_grad_() for t in self))


def make_tensors(
    case: Case,
    dtype: torch.dtype = torch.float64,
    map_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    kinks: bool = True,
    seed: int = 0,
) -> Tensors:
    """Arguments of a case, the same on every device.

    The rates lie between -3 and 4, so that windows leave the image on every side, turn over and collapse. With
    ``kinks`` every fifth one is a multiple of one half, so that taps meet whole pixels; without, all taps whose
    place depends on the rate stay away from whole pixels, where the derivative by the rate jumps.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = {"generator": generator, "dtype": torch.float64}
    input, columns = torch.randn(case.input_shape, **normal), torch.randn(case.columns_shape, **normal)
    map_dtype = map_dtype or dtype

    def draw() -> Tensor:
        return (torch.rand(case.map_shape, **normal) * 7 - 3).to(map_dtype)

    dilation_map = draw()
    if kinks:
        dilation_map.flatten()[::5] = (dilation_map.flatten()[::5] * 2).round() / 2
    else:
        for _ in range(200):
            bad = meets_kink(case, dilation_map)
            if not bad.any():
                break
            dilation_map = torch.where(bad, draw(), dilation_map)
        else:
            raise AssertionError(f"no rates away from the kinks for {case}")
    return Tensors(input.to(device, dtype), dilation_map.to(device), columns.to(device, dtype))


def meets_kink(case: Case, dilation_map: Tensor, margin: float = 0.02) -> Tensor:
    """Where a rate puts a tap on a whole pixel, or nearly: a boolean map."""
    rates = dilation_map.double().view(case.batch, case.groups, case.rates, *case.output_size)
    bad = torch.zeros_like(rates, dtype=torch.bool)
    for axis in (0, 1):
        k, d = case.kernel_size[axis], case.dilation[axis]
        rate = rates[:, :, axis if case.rates == 2 else 0]
        for m in range(k):
            offset = (m - (k - 1) / 2) * d
            if offset != 0:
                y = case.aligned * d * (k - 1) / 2 + offset * rate
                bad[:, :, axis if case.rates == 2 else 0] |= (y - y.round()).abs() < margin
    return bad.view(case.map_shape)


def flat_map(case: Case, rate: float, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
    """The same rate everywhere."""
    return torch.full(case.map_shape, rate, dtype=dtype, device=device)


# ---- The calls ----


def unfold(case: Case, input: Tensor, dilation_map: Tensor) -> Tensor:
    return torch.ops.ddu.unfold(input, case.kernel_size, dilation_map, *case.options)


def fold(case: Case, columns: Tensor, dilation_map: Tensor) -> Tensor:
    return torch.ops.ddu.fold(columns, case.size, case.kernel_size, dilation_map, *case.options)


def unfold_backward(case: Case, grad_output: Tensor, input: Tensor, dilation_map: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.ddu.unfold_backward(grad_output, input, case.kernel_size, dilation_map, *case.options)


def sample(case: Case, input: Tensor, dilation_map: Tensor, order: Sequence[int]) -> Tensor:
    return torch.ops.ddu.sample(input, case.kernel_size, dilation_map, *case.options, order)


def splat(case: Case, columns: Tensor, dilation_map: Tensor, order: Sequence[int]) -> Tensor:
    return torch.ops.ddu.splat(columns, case.size, case.kernel_size, dilation_map, *case.options, order)


def dot(case: Case, columns: Tensor, input: Tensor, dilation_map: Tensor, order: Sequence[int]) -> Tensor:
    return torch.ops.ddu.dot(columns, input, case.kernel_size, dilation_map, *case.options, order)


def unfold_reference(case: Case, input: Tensor, dilation_map: Tensor) -> Tensor:
    *options, aligned = case.options
    return reference.dynamic_dilation_unfold(input, case.kernel_size, dilation_map, *options, aligned=aligned)


def fold_reference(case: Case, columns: Tensor, dilation_map: Tensor) -> Tensor:
    *options, aligned = case.options
    return reference.dynamic_dilation_fold(
        columns, case.size, case.kernel_size, dilation_map, *options, aligned=aligned
    )


def orders(case: Case) -> list[list[int]]:
    """Every derivative order that is not zero everywhere, and the first beyond."""
    if case.rates == 1:
        return [[0], [1], [2], [3]]
    return [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [2, 0]]


def derivative(case: Case, function: Callable[[Tensor], Tensor], dilation_map: Tensor, order: Sequence[int]) -> Tensor:
    """The derivative of ``function`` by the rates, all windows at once, taken by autograd.

    Each window depends on its own rates alone, so the direction in which all rates of an axis grow by the same gives
    every window's derivative.
    """
    axis = torch.arange(case.groups * case.rates, device=dilation_map.device).view(-1, 1, 1) % case.rates
    for index, times in enumerate(order):
        direction = (axis == index).to(dilation_map.dtype).expand(dilation_map.shape)
        for _ in range(times):
            function = _directional(function, direction)
    return function(dilation_map)


def _directional(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda dilation_map: torch.func.jvp(function, (dilation_map,), (direction,))[1]


def sum_over_group(case: Case, columns: Tensor) -> Tensor:
    """``(B, C * kH * kW, L)`` summed over the channels and taps of every group: ``(B, G, H_out, W_out)``."""
    per_group = columns.shape[1] // case.groups
    return columns.reshape(case.batch, case.groups, per_group, *case.output_size).sum(2)


# The operators by name, each as a function of its tensors alone: with them, the call that a test is about is one line.
OPERATORS: dict[str, tuple[str, ...]] = {
    "unfold": ("input", "dilation_map"),
    "unfold_backward": ("columns", "input", "dilation_map"),
    "fold": ("columns", "dilation_map"),
    "sample": ("input", "dilation_map"),
    "splat": ("columns", "dilation_map"),
    "dot": ("columns", "input", "dilation_map"),
    "dynamic_dilation_unfold": ("input", "dilation_map"),
    "dynamic_dilation_fold": ("columns", "dilation_map"),
}

operators = pytest.mark.parametrize("name", OPERATORS)


def arguments(name: str, case: Case, tensors: Sequence[Tensor], order: Sequence[int] = ()) -> tuple[Any, ...]:
    """The positional arguments of ``torch.ops.ddu.<name>``; ``tensors`` are those of ``OPERATORS``, in that order."""
    *leading, dilation_map = tensors
    size = [case.size] if name in ("fold", "splat", "dynamic_dilation_fold") else []
    tail = [list(order)] if name in ("sample", "splat", "dot") else []
    return (*leading, *size, case.kernel_size, dilation_map, *case.options, *tail)


def operator(name: str, case: Case, order: Sequence[int] = ()) -> Callable[..., Any]:
    """``torch.ops.ddu.<name>`` with everything but the tensors filled in."""
    return lambda *tensors: getattr(torch.ops.ddu, name)(*arguments(name, case, tensors, order))


def pick(name: str, tensors: Tensors) -> tuple[Tensor, ...]:
    """The tensors that the operator takes, in its order."""
    return tuple(getattr(tensors, argument) for argument in OPERATORS[name])


def first_order(name: str, case: Case) -> list[int]:
    """An order that makes a primitive depend on every tensor that it takes; none for the other operators."""
    if name not in ("sample", "splat", "dot"):
        return []
    return [1] if case.rates == 1 else [0, 1]


# ---- The kernels ----

PATHS = ("fast", "wide", "deterministic")


@contextmanager
def taking(*paths: str) -> Iterator[None]:
    """Calls on CUDA take these of ``PATHS``, where they would not by their sizes: csrc/cuda/launches.h."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms("deterministic" in paths, warn_only=True)
    _C.force_cuda_paths("fast" in paths, "wide" in paths)
    try:
        yield
    finally:
        _C.force_cuda_paths(False, False)
        torch.use_deterministic_algorithms(before)


# ---- The convolution ----

CONVOLUTIONS = ("conv2d", "conv2d_backward", "dynamic_dilation_conv2d")


@dataclass(frozen=True)
class ConvolutionCase(Case):
    """The sizes of a convolution: ``groups`` are the dilation groups."""

    out_channels: int = 4
    conv_groups: int = 1
    bias: bool = True
    mask: bool = True

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.channels // self.conv_groups, *self.kernel_size)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups * self.taps, *self.output_size)

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.conv_groups,
            "dilation_groups": self.groups,
            "aligned": self.aligned,
        }

    def __str__(self) -> str:
        return self.name


def make_arguments(
    case: ConvolutionCase, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", kinks: bool = True
) -> dict[str, Tensor]:
    """The tensors of a call, without those that the case leaves out."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    input, dilation_map, _ = make_tensors(case, dtype, device=device, kinks=kinks)
    arguments = {"input": input, "weight": draw(*case.weight_shape), "dilation_map": dilation_map}
    if case.bias:
        arguments["bias"] = draw(case.out_channels)
    if case.mask:
        arguments["mask"] = draw(*case.mask_shape)
    return arguments


def convolve_reference(case: ConvolutionCase, arguments: dict[str, Tensor]) -> Tensor:
    """Every product of the definition, from the columns of the reference."""
    *options, aligned = case.options
    columns = reference.dynamic_dilation_unfold(
        arguments["input"], case.kernel_size, arguments["dilation_map"], *options, aligned=aligned
    )
    taps = columns.reshape(case.batch, case.channels, case.taps, math.prod(case.output_size))
    if "mask" in arguments:
        per_group = case.channels // case.groups
        mask = arguments["mask"].reshape(case.batch, case.groups, case.taps, math.prod(case.output_size))
        taps = taps * mask.repeat_interleave(per_group, 1)
    inner = case.channels // case.conv_groups * case.taps
    taps = taps.reshape(case.batch, case.conv_groups, inner, math.prod(case.output_size))
    weight = arguments["weight"].reshape(case.conv_groups, case.out_channels // case.conv_groups, inner)
    output = torch.einsum("gok,bgkl->bgol", weight, taps).reshape(case.batch, case.out_channels, *case.output_size)
    return output + arguments["bias"][:, None, None] if "bias" in arguments else output


# ---- A model ----


class Model(nn.Module):
    """Predicts its own rates, unfolds by them, and folds back."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Conv2d(3, 2, 3, padding=1)
        self.unfold = DynamicDilationUnfold(3, padding=1)
        self.weight = nn.Linear(27, 18)
        self.fold = DynamicDilationFold((5, 6), 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        rates = 1.5 + torch.tanh(self.rates(input))
        columns = self.weight(self.unfold(input, rates).transpose(1, 2)).transpose(1, 2)
        return self.fold(columns, rates)


# ---- Drawn cases ----


@st.composite
def drawn_cases(draw: st.DrawFn, max_batch: int = 2, **fixed: Any) -> Case:
    """Small cases of every kind; ``fixed`` are fields of :class:`Case` that the caller chooses."""

    def pair(low: int, high: int) -> Pair:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = fixed.get("groups", draw(st.integers(1, 3)))
    case = Case(
        "drawn",
        batch=draw(st.integers(1, max_batch)),
        channels=groups * draw(st.integers(1, 3)),
        kernel_size=pair(1, 4),
        stride=pair(1, 3),
        padding=pair(0, 2),
        dilation=pair(1, 2),
        groups=groups,
        rates=draw(st.sampled_from([1, 2])),
        aligned=draw(st.booleans()),
    )
    case = replace(case, **fixed)
    spare = pair(0, 4)
    sizes = zip(case.kernel_size, case.padding, case.dilation, spare, strict=True)
    height, width = (max(d * (k - 1) + 1 - 2 * p, 1) + extra for k, p, d, extra in sizes)
    return replace(case, size=(height, width))


seeds = st.integers(0, 2**16)
