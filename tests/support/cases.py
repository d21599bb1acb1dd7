"""The problem sizes, the tolerances, the data and the calls that all test files share."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import ddu_ops
from ddu_ops import _C, DynamicDilationFold, DynamicDilationUnfold, reference
from ddu_ops.reference import TOLERANCES

Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One problem: every size and option of a call.

    The size of the image says how many axes there are; the options of a window that have one entry mean it for all.
    """

    name: str
    batch: int = 2
    channels: int = 3
    size: tuple[int, ...] = (6, 7)
    kernel_size: tuple[int, ...] = (3,)
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    rates: int = 1  # per window: one for all axes, or one for each
    aligned: bool = True
    source: str = "rates"  # or "offsets", a displacement of every tap on every axis, or "affine", a map of the window
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        for name in ("kernel_size", "stride", "padding", "dilation"):
            value = getattr(self, name)
            if len(value) != self.axes:
                assert len(value) == 1
                object.__setattr__(self, name, value * self.axes)
        assert self.source == "rates" or (self.rates == 1 and self.aligned), "of rate maps only"

    @property
    def axes(self) -> int:
        return len(self.size)

    @property
    def output_size(self) -> tuple[int, ...]:
        extents = zip(self.size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in extents)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel_size)

    @property
    def movers(self) -> int:
        """How many things of a window and group move on their own: the window, or every tap."""
        return self.taps if self.source == "offsets" else 1

    @property
    def parameters(self) -> int:
        """How many numbers move one: an offset for every axis, a matrix and a shift, or the rates."""
        return {"offsets": self.axes, "affine": self.axes * (self.axes + 1), "rates": self.rates}[self.source]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.size)

    @property
    def positions_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups * self.movers * self.parameters, *self.output_size)

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Of a rate map."""
        assert self.source == "rates"
        return self.positions_shape

    @property
    def dot_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups * self.movers, *self.output_size)

    @property
    def columns_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels * self.taps, math.prod(self.output_size))

    @property
    def window(self) -> tuple[Any, ...]:
        """What follows the positions in a call of a public operator."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def by_name(self) -> dict[str, Any]:
        """What a public operator takes by name alone."""
        aligned = {"aligned": self.aligned} if self.source == "rates" else {}
        return {**aligned, "padding_mode": self.padding_mode}

    @property
    def options(self) -> tuple[Any, ...]:
        """What follows the positions in a call of an operator that is not public."""
        return *self.window, self.aligned, self.padding_mode

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
    # One axis and three
    Case("line", 2, 4, (13,), (3,), (2,), (1,), (2,), groups=2),
    Case("line_first_tap", 1, 9, (11,), (4,), padding=(2,), groups=3, aligned=False),
    Case("line_no_batch", 0, 2, (5,)),
    Case("volume", 2, 4, (3, 5, 4), (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), groups=2),
    Case("volume_three_rates", 2, 2, (4, 3, 5), (3, 2, 3), (2, 1, 1), (1, 1, 0), (1, 2, 1), groups=2, rates=3),
    Case("volume_first_tap", 1, 3, (3, 4, 2), (1, 2, 3), (1, 1, 2), (0, 1, 3), (2, 1, 2), rates=3, aligned=False),
    Case("volume_deep", 1, 17, (2, 3, 3), (2, 2, 1), padding=(1, 0, 0)),
    Case("voxel", 2, 2, (1, 1, 1), padding=(1,), groups=2),
    Case("volume_no_channels", 1, 0, (3, 2, 4), (2,), groups=2, rates=3),
    # An offset for every tap
    Case("line_offsets", 2, 4, (13,), (3,), (2,), (1,), (2,), groups=2, source="offsets"),
    Case("offsets", 2, 4, (6, 9), (2, 3), (1, 2), (0, 1), (2, 1), groups=2, source="offsets"),
    Case("offsets_deep", 1, 35, (4, 5), (3, 2), (2, 1), (1, 0), source="offsets"),
    Case("offsets_no_batch", 0, 3, (4, 5), source="offsets"),
    Case("offsets_no_channels", 2, 0, (4, 5), groups=2, source="offsets"),
    Case("volume_offsets", 2, 4, (3, 5, 4), (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), groups=2, source="offsets"),
    # An affine map for every window
    Case("line_affine", 2, 4, (13,), (3,), (2,), (1,), (2,), groups=2, source="affine"),
    Case("affine", 2, 4, (6, 9), (2, 3), (1, 2), (0, 1), (2, 1), groups=2, source="affine"),
    Case("affine_deep", 1, 35, (4, 5), (3, 2), (2, 1), (1, 0), source="affine"),
    Case("affine_no_batch", 0, 3, (4, 5), source="affine"),
    Case("affine_no_channels", 2, 0, (4, 5), groups=2, source="affine"),
    Case("volume_affine", 2, 4, (3, 5, 4), (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), groups=2, source="affine"),
    # What lies outside
    Case("border", 2, 4, (5, 6), (3, 2), (2, 1), (1, 2), (1, 2), groups=2, padding_mode="border"),
    Case("border_line", 2, 3, (7,), padding=(3,), aligned=False, padding_mode="border"),
    Case("border_volume", 1, 4, (3, 2, 4), (2, 3, 3), padding=(1, 1, 0), groups=2, rates=3, padding_mode="border"),
    Case("border_offsets", 2, 4, (5, 4), (2, 3), (1, 2), (1, 1), groups=2, source="offsets", padding_mode="border"),
    Case("border_affine", 2, 4, (5, 4), (2, 3), (1, 2), (1, 1), groups=2, source="affine", padding_mode="border"),
    Case("border_one_pixel", 1, 2, (1, 1), padding=(1, 1), rates=2, padding_mode="border"),
    Case("reflection", 2, 4, (6, 5), (2, 3), (1, 2), (2, 1), (2, 1), groups=2, rates=2, padding_mode="reflection"),
    Case("reflection_line", 2, 3, (4,), (5,), padding=(3,), dilation=(2,), padding_mode="reflection"),
    Case("reflection_volume", 1, 4, (2, 4, 3), (3, 2, 3), padding=(1, 0, 1), groups=2, padding_mode="reflection"),
    Case("reflection_one_row", 2, 2, (1, 5), (3, 3), padding=(1, 1), padding_mode="reflection"),
    Case("reflection_kernel_beyond_image", 1, 2, (2, 3), (4, 5), padding=(2, 3), rates=2, padding_mode="reflection"),
    Case("reflection_offsets", 2, 4, (5, 4), (2, 3), groups=2, source="offsets", padding_mode="reflection"),
    Case("reflection_affine", 2, 4, (5, 4), (2, 3), groups=2, source="affine", padding_mode="reflection"),
    Case("reflection_volume_affine", 1, 2, (2, 1, 3), (2, 2, 2), padding=(1,), source="affine",
         padding_mode="reflection"),
    Case("reflection_volume_offsets", 1, 2, (2, 1, 3), (2, 2, 2), padding=(1,), source="offsets",
         padding_mode="reflection"),
]  # fmt: skip

# Channels in whole packets of 16 bytes, which the kernels for sums on CUDA take: more positions than a tile has, more taps
# than are sorted together, pixels further apart than a box of them.
PACKET_CASES = [
    Case("packets", 2, 16, (9, 11), padding=(1, 1)),
    Case("packets_lopsided", 1, 32, (10, 9), (3, 2), (1, 2), (1, 0), (1, 2), groups=2, rates=2),
    Case("packets_first_tap", 1, 40, (5, 4), padding=(1, 1), aligned=False),
    Case("packets_many_taps", 1, 24, (9, 10), (5, 5), padding=(2, 2)),
    Case("packets_apart", 1, 16, (40, 48), padding=(20, 24), dilation=(20, 24)),
    Case("packets_line", 2, 16, (70,), padding=(1,)),
    Case("packets_volume", 1, 16, (3, 5, 6), padding=(1, 1, 1), groups=2, rates=3),
    Case("packets_offsets", 2, 32, (7, 12), padding=(1, 1), groups=2, source="offsets"),
    Case("packets_volume_offsets", 1, 8, (3, 4, 5), (2, 3, 2), padding=(1, 1, 0), source="offsets"),
    Case("packets_affine", 2, 32, (7, 9), (3, 2), padding=(1, 1), groups=2, source="affine"),
    Case("packets_affine_volume", 1, 16, (3, 5, 4), padding=(1, 1, 1), source="affine"),
    Case("packets_border", 1, 16, (6, 9), padding=(1, 1), groups=2, padding_mode="border"),
    Case("packets_reflection", 1, 16, (9, 5), padding=(1, 1), source="offsets", padding_mode="reflection"),
]
SMALL_CASES = [  # for what takes a loop over entries, like gradcheck
    Case("small", 1, 2, (3, 4), (2, 3), (1, 1), (1, 1)),
    Case("small_groups", 2, 2, (4, 3), (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
    Case("small_two_rates", 1, 2, (3, 3), (3, 2), (1, 2), (1, 1), groups=2, rates=2),
    Case("small_first_tap", 1, 1, (4, 4), (2, 2), (2, 1), (1, 0), (1, 2), rates=2, aligned=False),
    Case("small_line", 2, 2, (5,), (3,), (2,), (1,), groups=2),
    Case("small_volume", 1, 1, (2, 3, 2), (2, 1, 2), padding=(1, 0, 0)),
    Case("small_volume_three_rates", 1, 2, (2, 2, 3), (2, 2, 1), (1, 1, 2), groups=2, rates=3),
    Case("small_line_offsets", 1, 2, (4,), (2,), groups=2, source="offsets"),
    Case("small_offsets", 1, 2, (3, 2), (2, 1), padding=(1, 0), groups=2, source="offsets"),
    Case("small_volume_offsets", 1, 1, (2, 2, 2), (1, 2, 1), source="offsets"),
    Case("small_line_affine", 1, 2, (4,), (2,), groups=2, source="affine"),
    Case("small_affine", 1, 2, (3, 2), (2, 1), padding=(1, 0), groups=2, source="affine"),
    Case("small_volume_affine", 1, 1, (2, 2, 2), (1, 2, 2), source="affine"),
    Case("small_border_affine", 1, 1, (2, 3), (2, 2), source="affine", padding_mode="border"),
    Case("small_border", 1, 2, (3, 2), (2, 3), padding=(1, 1), rates=2, padding_mode="border"),
    Case("small_reflection", 1, 2, (2, 3), (3, 2), padding=(1, 1), padding_mode="reflection"),
    Case("small_reflection_offsets", 1, 1, (2, 3), (2, 2), source="offsets", padding_mode="reflection"),
]

cases = pytest.mark.parametrize("case", CASES, ids=str)
small_cases = pytest.mark.parametrize("case", SMALL_CASES, ids=str)

DTYPES = {  # input, positions
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "float16_float32_map": (torch.float16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16_float32_map": (torch.bfloat16, torch.float32),
}

dtypes = pytest.mark.parametrize("dtype, map_dtype", DTYPES.values(), ids=DTYPES.keys())


def assert_near(actual: Tensor, expected: Tensor, times: float = 1) -> None:
    """Compares a result of any type with the reference's in float64: the same NaNs, and close by the norm elsewhere.

    So many ``times`` the tolerance of the type.
    """
    assert expected.dtype == torch.float64
    assert actual.shape == expected.shape
    actual_double, expected = actual.detach().double().cpu(), expected.detach().cpu()
    missing = expected.isnan()
    assert torch.equal(actual_double.isnan(), missing), "NaN in other places than the reference"
    error = (actual_double - expected)[~missing].norm().item()
    scale = expected[~missing].norm().item()
    assert error <= times * TOLERANCES[actual.dtype] * scale, (
        f"relative error {error / scale if scale else math.inf:.2e}"
    )


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
    """What the operators of one case take; in the place of the map the offsets, where they are the case's source."""

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

    The rates lie between -3 and 4, so that windows leave the image on every side, turn over and collapse; offsets
    between -5 and 5, entries of affine maps between -2 and 2. With ``kinks`` every fifth one, or affine map, is a
    multiple of one half, so that taps meet whole pixels; without, all taps whose place depends on it stay away from whole pixels, where the derivative jumps.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = {"generator": generator, "dtype": torch.float64}
    input, columns = torch.randn(case.input_shape, **normal), torch.randn(case.columns_shape, **normal)
    map_dtype = map_dtype or dtype

    low, high = {"rates": (-3, 4), "offsets": (-5, 5), "affine": (-2, 2)}[case.source]

    def draw() -> Tensor:
        return (torch.rand(case.positions_shape, **normal) * (high - low) + low).to(map_dtype)

    positions = draw()
    if kinks and case.source == "affine":
        windows = by_mover(case, positions)[:, :, 0].movedim(2, -1).flatten(0, -2)
        windows[::5] = (windows[::5] * 2).round() / 2
        shape = (case.batch, case.groups, *case.output_size, case.parameters)
        positions = windows.view(shape).movedim(-1, 2).flatten(1, 2)
        positions = positions.contiguous()
    elif kinks:
        positions.flatten()[::5] = (positions.flatten()[::5] * 2).round() / 2
    else:
        for _ in range(200):
            bad = meets_kink(case, positions)
            if not bad.any():
                break
            positions = torch.where(bad, draw(), positions)
        else:
            raise AssertionError(f"no positions away from the kinks for {case}")
    return Tensors(input.to(device, dtype), positions.to(device), columns.to(device, dtype))


def meets_kink(case: Case, positions: Tensor) -> Tensor:
    """Where a rate or an offset puts a tap on a whole pixel, or nearly: boolean, in the shape of the positions."""

    margin = 0.005 if case.source == "affine" else 0.02  # an affine map moves all taps along all axes

    def near(places: Tensor) -> Tensor:
        return (places - places.round()).abs() < margin

    if case.source == "affine":
        places = reference.positions(positions.double(), "affine", case.kernel_size, *case.window)
        taps = tuple(range(2, 2 + case.axes))
        windows = torch.stack([near(moved).sum(taps) > 0 for _, moved in places]).any(0)
        return windows.unsqueeze(2).expand(-1, -1, case.parameters, *case.output_size).flatten(1, 2)

    if case.source == "offsets":
        return near(positions.double())
    rates = positions.double().view(case.batch, case.groups, case.rates, *case.output_size)
    bad = torch.zeros_like(rates, dtype=torch.bool)
    for axis, (k, d) in enumerate(zip(case.kernel_size, case.dilation, strict=True)):
        own = min(axis, case.rates - 1)
        for m in range(k):
            offset = (m - (k - 1) / 2) * d
            if offset != 0:
                bad[:, :, own] |= near(case.aligned * d * (k - 1) / 2 + offset * rates[:, :, own])
    return bad.view(positions.shape)


def flat_map(case: Case, rate: float, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
    """The same rate everywhere; or the offsets, or affine maps, that put every tap where that rate would."""
    if case.source == "affine":
        theta = rate * torch.eye(case.axes, case.axes + 1).flatten().repeat(case.groups).view(1, -1, *[1] * case.axes)
        return theta.repeat(case.batch, 1, *case.output_size).to(device, dtype)
    if case.source == "rates":
        return torch.full(case.map_shape, rate, dtype=dtype, device=device)
    places = [
        (torch.arange(k, dtype=torch.float64) - (k - 1) / 2) * d * (rate - 1)
        for k, d in zip(case.kernel_size, case.dilation, strict=True)
    ]
    offsets = torch.stack(torch.meshgrid(*places, indexing="ij"), -1).flatten().repeat(case.groups)
    return offsets.view(1, -1, *[1] * case.axes).repeat(case.batch, 1, *case.output_size).to(device, dtype)


def by_mover(case: Case, positions: Tensor) -> Tensor:
    """Positions as ``(B, G, 1 or K, parameters, *out)``."""
    return positions.reshape(case.batch, case.groups, case.movers, case.parameters, *case.output_size)


def by_tap(case: Case, columns: Tensor) -> Tensor:
    """Columns as ``(B, G, C / G, K, *out)``."""
    return columns.reshape(case.batch, case.groups, case.channels // case.groups, case.taps, *case.output_size)


def windows(case: Case, input: Tensor) -> Tensor:
    """The columns of a map of ones, by slices alone."""
    for axis, (n, p) in enumerate(zip(case.size, case.padding, strict=True)):
        index = torch.arange(-p, n + p, device=input.device)
        if case.padding_mode == "border":
            index = index.clamp(0, n - 1)
        elif case.padding_mode == "reflection":
            index = torch.tensor([_reflected(int(i), n) for i in index], device=input.device)
        inside = (index >= 0) & (index < n)
        input = input.index_select(2 + axis, index.where(inside, 0))
        input = input.where(inside.view(-1, *[1] * (case.axes - 1 - axis)), 0)
    for axis, (k, s, d) in enumerate(zip(case.kernel_size, case.stride, case.dilation, strict=True)):
        input = input.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    taps = range(2 + case.axes, 2 + 2 * case.axes)
    return input.permute(0, 1, *taps, *range(2, 2 + case.axes)).reshape(case.columns_shape)


def _reflected(index: int, size: int) -> int:
    if size == 1:
        return 0
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


# ---- The calls ----


def unfold(case: Case, input: Tensor, positions: Tensor) -> Tensor:
    return operator("unfold", case)(input, positions)


def fold(case: Case, columns: Tensor, positions: Tensor) -> Tensor:
    return operator("fold", case)(columns, positions)


def unfold_backward(case: Case, grad_output: Tensor, input: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    return operator("unfold_backward", case)(grad_output, input, positions)


def sample(case: Case, input: Tensor, positions: Tensor, order: Sequence[int]) -> Tensor:
    return operator("sample", case, order)(input, positions)


def splat(case: Case, columns: Tensor, positions: Tensor, order: Sequence[int]) -> Tensor:
    return operator("splat", case, order)(columns, positions)


def dot(case: Case, columns: Tensor, input: Tensor, positions: Tensor, order: Sequence[int]) -> Tensor:
    return operator("dot", case, order)(columns, input, positions)


def unfold_reference(case: Case, input: Tensor, positions: Tensor) -> Tensor:
    return reference.sample(input, positions, case.source, case.kernel_size, *case.options)


def fold_reference(case: Case, columns: Tensor, positions: Tensor) -> Tensor:
    return reference.splat(columns, case.size, positions, case.source, case.kernel_size, *case.options)


def orders(case: Case, *, beyond: bool = True) -> list[list[int]]:
    """Every derivative order that is not zero everywhere, of affine maps of three axes some; and the first ``beyond``."""
    if case.source == "affine":
        each = [[0] * entry + [1] + [0] * (case.axes - entry) for entry in range(case.axes + 1)]
        rows = itertools.product([[0] * (case.axes + 1), *each], repeat=case.axes)
        every = [list(itertools.chain(*order)) for order in rows]
        if case.axes == 3:
            every = [order for order in every if sum(order) < 2] + [order for order in every if sum(order) > 1][::11]
        first = [2] + [0] * (case.parameters - 1), [1] * (case.axes + 1) + [0] * (case.parameters - case.axes - 1)
        return every + list(first) * beyond
    if case.parameters == 1:
        last = 1 if case.source == "offsets" else case.axes  # one rate moves the taps along all axes
        return [[n] for n in range(last + 1 + beyond)]
    found = [list(order) for order in itertools.product((0, 1), repeat=case.parameters)]
    twice = [[2 * (axis == a) for axis in range(case.parameters)] for a in range(case.parameters)]
    return found + twice[::-1] * beyond


def shift_of(case: Case, axis: int) -> int:
    """The parameter that moves a tap along an axis alone: its offset, or the shift of an affine map."""
    return axis if case.source == "offsets" else axis * (case.axes + 1) + case.axes


def by_position(case: Case, order: Sequence[int]) -> list[int]:
    """How often an order differentiates by the positions along each axis, or by the parameter that moves them."""
    each = case.axes + 1 if case.source == "affine" else 1  # parameters that move a tap along an axis
    return [sum(order[first : first + each]) for first in range(0, len(order), each)]


def derivative(case: Case, function: Callable[[Tensor], Tensor], positions: Tensor, order: Sequence[int]) -> Tensor:
    """The derivative of ``function`` by the parameters of the positions, all at once, taken by autograd.

    Each window depends on its own rates alone, each tap on its own offsets, so the direction in which all parameters of
    an axis grow by the same gives everyone's derivative.
    """
    axis = torch.arange(positions.shape[1], device=positions.device).view(-1, *[1] * case.axes) % case.parameters
    for index, times in enumerate(order):
        direction = (axis == index).to(positions.dtype).expand(positions.shape)
        for _ in range(times):
            function = _directional(function, direction)
    return function(positions)


def _directional(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda positions: torch.func.jvp(function, (positions,), (direction,))[1]


def sum_over_group(case: Case, columns: Tensor) -> Tensor:
    """``(B, C * K, L)`` summed over the channels of every group and what moves together: ``(B, G, *out)``.

    With offsets every tap moves on its own: ``(B, G * K, *out)``.
    """
    taps = by_tap(case, columns).sum(2)
    return (taps if case.source == "offsets" else taps.sum(2)).reshape(case.dot_shape)


# What the operators compute, by name, each a function of its tensors alone: with them, the call that a test is about is
# one line. Which operator that is depends on the case: see ``operator_name``.
OPERATORS: dict[str, tuple[str, ...]] = {
    "unfold": ("input", "dilation_map"),
    "unfold_backward": ("columns", "input", "dilation_map"),
    "fold": ("columns", "dilation_map"),
    "sample": ("input", "dilation_map"),
    "sample_backward": ("columns", "input", "dilation_map"),
    "splat": ("columns", "dilation_map"),
    "dot": ("columns", "input", "dilation_map"),
    "dynamic_dilation_unfold": ("input", "dilation_map"),
    "dynamic_dilation_fold": ("columns", "dilation_map"),
}

operators = pytest.mark.parametrize("name", OPERATORS)

FAMILY = ("sample", "splat", "dot", "sample_backward")  # take the positions of any source, its name, and an order


def operator_name(name: str, case: Case) -> str:
    """The operator that computes ``name`` on as many axes and from such positions as the case has."""
    if case.source != "rates":
        kind = "deform" if case.source == "offsets" else "affine"
        names = {
            "unfold": "sample",
            "unfold_backward": "sample_backward",
            "fold": "splat",
            "dynamic_dilation_unfold": f"{kind}_unfold{case.axes}d",
            "dynamic_dilation_fold": "splat",  # no other folds by them
        }
        return names.get(name, name)
    return name + {1: "1d", 2: "", 3: "3d"}[case.axes] if name.startswith("dynamic_dilation_") else name


def arguments(name: str, case: Case, tensors: Sequence[Tensor], order: Sequence[int] = ()) -> tuple[Any, ...]:
    """The positional arguments of the operator; ``tensors`` are those of ``OPERATORS``, in that order."""
    name = operator_name(name, case)
    *leading, positions = tensors
    size = [case.size] if name in ("fold", "splat") or name.startswith("dynamic_dilation_fold") else []
    if name in FAMILY:
        return (*leading, *size, positions, case.source, case.kernel_size, *case.options, list(order))
    options = case.window if is_public(name) else case.options
    return (*leading, *size, case.kernel_size, positions, *options)


def keywords(name: str, case: Case) -> dict[str, Any]:
    """The other arguments of the operator."""
    return case.by_name if is_public(operator_name(name, case)) else {}


def is_public(name: str) -> bool:
    return name.startswith(("dynamic_dilation_", "deform_", "affine_"))


def operator(name: str, case: Case, order: Sequence[int] = ()) -> Callable[..., Any]:
    """The operator with everything but the tensors filled in."""
    call, named = getattr(torch.ops.ddu, operator_name(name, case)), keywords(name, case)
    return lambda *tensors: call(*arguments(name, case, tensors, order), **named)


def pick(name: str, tensors: Tensors) -> tuple[Tensor, ...]:
    """The tensors that the operator takes, in its order."""
    return tuple(getattr(tensors, argument) for argument in OPERATORS[name])


def first_order(name: str, case: Case) -> list[int]:
    """An order that makes a primitive depend on every tensor that it takes; none for the other operators.

    A derivative but where it would not depend on the positions any more, having none but one axis.
    """
    if name not in FAMILY:
        return []
    if case.source == "rates" and case.rates == 1:
        return [int(case.axes > 1)]
    return [0] * (case.parameters - 1) + [int(case.axes > 1 or case.rates > 1)]


# ---- The kernels ----

PATHS = ("fast", "wide", "deterministic")


@contextmanager
def taking(*paths: str) -> Iterator[None]:
    """Calls on CUDA take these of ``PATHS``, where they would not by their sizes: csrc/backends/cuda/launches.h."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms("deterministic" in paths, warn_only=True)
    _C.force_cuda_paths("fast" in paths, "wide" in paths)
    try:
        yield
    finally:
        _C.force_cuda_paths(False, False)
        torch.use_deterministic_algorithms(before)


# ---- The convolution ----

STRICT_CONVOLUTIONS = ("convolution", "convolution_backward")
CONVOLUTIONS = (
    *STRICT_CONVOLUTIONS,
    *(f"{stem}{axes}d" for stem in ("dynamic_dilation_conv", "deform_conv", "affine_conv") for axes in (1, 2, 3)),
)


@dataclass(frozen=True)
class ConvolutionCase(Case):
    """The sizes of a convolution: ``groups`` are those of the positions."""

    out_channels: int = 4
    conv_groups: int = 1
    bias: bool = True
    mask: bool = True
    mask_groups: int = 0  # 0: as many as of the positions
    per_image: bool = False  # a weight, and a bias, for each image

    @property
    def weight_shape(self) -> tuple[int, ...]:
        shape = (self.out_channels, self.channels // self.conv_groups, *self.kernel_size)
        return (self.batch, *shape) if self.per_image else shape

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels) if self.per_image else (self.out_channels,)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        return (self.batch, (self.mask_groups or self.groups) * self.taps, *self.output_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def positions_name(self) -> str:
        """What the public function calls the positions."""
        return {"rates": "dilation_map", "offsets": "offset", "affine": "theta"}[self.source]

    @property
    def function(self) -> str:
        """The name of the public function."""
        kind = {"rates": "dynamic_dilation", "offsets": "deform", "affine": "affine"}[self.source]
        return f"{kind}_conv{self.axes}d"

    @property
    def keywords(self) -> dict[str, Any]:
        """The options of the public function."""
        window = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        of_positions = {"rates": "dilation_groups", "affine": "theta_groups"}.get(self.source)  # the shapes tell others
        groups = {"groups": self.conv_groups, of_positions: self.groups} if of_positions else {}
        return {**window, **groups, **self.by_name}

    @property
    def strict_options(self) -> tuple[Any, ...]:
        """Those of the operators that are not public, behind the tensors."""
        window = (self.source, self.stride, self.padding, self.dilation)
        return *window, self.conv_groups, self.groups, self.aligned, self.padding_mode

    def __str__(self) -> str:
        return self.name


# For the kernels without columns on CUDA: channels in whole packets, and whatever else ends inside of what they work on
# at a time: 32 positions, 64 or 32 channels, 32 or 64 outputs.
FUSED_CONVOLUTIONS = [
    ConvolutionCase("part_of_a_step", 2, 40, (9, 11), padding=(1, 1), out_channels=21),
    ConvolutionCase("several_steps", 1, 144, (5, 6), padding=(1, 1), aligned=False, mask=False, out_channels=100),
    ConvolutionCase("runs", 2, 64, (7, 10), (3, 2), (2, 1), (1, 0), groups=2, conv_groups=2, rates=2, mask_groups=4,
                    out_channels=80),
    ConvolutionCase("groups", 2, 64, (6, 7), padding=(1, 1), conv_groups=4, out_channels=32, bias=False),
    ConvolutionCase("many_rates", 1, 96, (6, 7), padding=(1, 1), groups=6, conv_groups=3, rates=2, mask_groups=3,
                    out_channels=72, padding_mode="reflection"),
    ConvolutionCase("per_image", 3, 32, (6, 7), groups=2, per_image=True, out_channels=70, padding_mode="border"),
    ConvolutionCase("one_window", 2, 32, (3, 3), out_channels=16),
    ConvolutionCase("one_tap", 1, 32, (9, 8), (1,), (2, 1), out_channels=24),
    ConvolutionCase("many_taps", 1, 32, (12, 13), (7, 5), padding=(3, 2), dilation=(1, 2), out_channels=8),
    ConvolutionCase("line", 2, 48, (70,), (4,), (2,), (4,), rates=1, out_channels=16, padding_mode="reflection"),
    ConvolutionCase("offsets", 2, 64, (8, 9), padding=(1, 1), groups=2, conv_groups=2, source="offsets", mask_groups=4,
                    out_channels=48),
    ConvolutionCase("offsets_per_image", 2, 32, (6, 5), (2, 3), groups=2, source="offsets", per_image=True,
                    mask=False, out_channels=33, padding_mode="reflection"),
    ConvolutionCase("line_offsets", 2, 32, (37,), padding=(1,), source="offsets", out_channels=16),
    ConvolutionCase("affine", 2, 64, (8, 9), padding=(1, 1), groups=2, conv_groups=2, source="affine", mask_groups=4,
                    out_channels=48),
    ConvolutionCase("affine_per_image", 2, 32, (6, 5), (2, 3), groups=2, source="affine", per_image=True,
                    mask=False, out_channels=33, padding_mode="reflection"),
    ConvolutionCase("line_affine", 2, 32, (37,), padding=(1,), source="affine", out_channels=16),
    ConvolutionCase("volume_affine", 1, 32, (3, 4, 5), (2, 2, 3), groups=2, source="affine", out_channels=24),
    ConvolutionCase("volume", 2, 32, (4, 5, 6), (2, 3, 2), padding=(1, 1, 0), rates=3, out_channels=36),
    ConvolutionCase("volume_few_outputs", 1, 64, (3, 5, 4), padding=(1,), groups=2, conv_groups=2, out_channels=32,
                    padding_mode="border"),
    ConvolutionCase("volume_offsets", 1, 32, (3, 4, 5), (2, 2, 3), groups=2, source="offsets", out_channels=24),
    # So many warps that a block takes none to share a sum.
    ConvolutionCase("many_warps", 1, 256, (62, 62), (1, 2), conv_groups=16, out_channels=16 * 24),
    ConvolutionCase("many_warps_and_outputs", 1, 256, (62, 62), (2, 1), conv_groups=16, out_channels=16 * 40),
    ConvolutionCase("volume_many_warps", 1, 256, (16, 17, 15), (1, 2, 1), conv_groups=16, out_channels=16 * 24),
    ConvolutionCase("volume_many_outputs", 1, 256, (16, 17, 15), (2, 1, 1), conv_groups=16, out_channels=16 * 40),
]  # fmt: skip


def make_arguments(
    case: ConvolutionCase, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", kinks: bool = True
) -> dict[str, Tensor]:
    """The tensors of a call, without those that the case leaves out."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    input, positions, _ = make_tensors(case, dtype, device=device, kinks=kinks)
    arguments = {"input": input, "weight": draw(*case.weight_shape), case.positions_name: positions}
    if case.bias:
        arguments["bias"] = draw(*case.bias_shape)
    if case.mask:
        arguments["mask"] = draw(*case.mask_shape)
    return arguments


def convolve(case: ConvolutionCase, arguments: dict[str, Tensor], **options: Any) -> Tensor:
    """By the public function."""
    result: Tensor = getattr(ddu_ops, case.function)(**arguments, **case.keywords, **options)
    return result


def convolve_reference(case: ConvolutionCase, arguments: dict[str, Tensor]) -> Tensor:
    result: Tensor = getattr(reference, case.function)(**arguments, **case.keywords)
    return result


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
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = fixed.get("groups", draw(st.integers(1, 3)))
    source = fixed.get("source", draw(st.sampled_from(["rates", "offsets", "affine"])))
    source = "rates" if "rates" in fixed or not fixed.get("aligned", True) else source
    of_rates = source == "rates"
    kernel_size, padding, dilation = each(1, 4 if axes < 3 else 3), each(0, 2), each(1, 2)
    sizes = zip(kernel_size, padding, dilation, each(0, 4 if axes < 3 else 2), strict=True)
    case = Case(
        "drawn",
        batch=draw(st.integers(1, max_batch)),
        channels=groups * draw(st.integers(1, 3)),
        size=tuple(max(d * (k - 1) + 1 - 2 * p, 1) + spare for k, p, d, spare in sizes),
        kernel_size=kernel_size,
        stride=each(1, 3),
        padding=padding,
        dilation=dilation,
        groups=groups,
        rates=draw(st.sampled_from([1, axes])) if of_rates else 1,
        aligned=draw(st.booleans()) if of_rates else True,
        source=source,
        padding_mode=draw(st.sampled_from(["zeros", "border", "reflection"])),
    )
    return replace(case, **fixed)


seeds = st.integers(0, 2**16)
