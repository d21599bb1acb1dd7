"""The reference itself, compared with F.unfold, F.fold, F.grid_sample and loops over the definition."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from cases import (
    CASES,
    Case,
    by_mover,
    by_tap,
    cases,
    derivative,
    flat_map,
    fold_reference,
    make_tensors,
    orders,
    small_cases,
    sum_over_group,
    unfold_reference,
    windows,
)
from ddu_ops import reference

SOME_CASES = [c for c in CASES if c.batch and c.channels]
some_cases = pytest.mark.parametrize("case", SOME_CASES, ids=str)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def position(case: Case, positions: Tensor, axis: int, tap: tuple[int, ...]) -> Tensor:
    """Where a tap lies on an axis, by the formula: ``(B, G, *out)``; offsets as torchvision documents them."""
    k, s, p, d = (option[axis] for option in (case.kernel_size, *case.window[:3]))
    i = torch.arange(case.output_size[axis], dtype=torch.float64).view(-1, *[1] * (case.axes - 1 - axis))
    if case.source == "rates":
        rate = positions[:, min(axis, case.rates - 1) :: case.rates]
        return i * s - p + case.aligned * d * (k - 1) / 2 + (tap[axis] - (k - 1) / 2) * d * rate
    if case.source == "affine":
        row = positions.unflatten(1, (case.groups, case.axes, case.axes + 1))[:, :, axis]
        place = i * s - p + d * (k - 1) / 2 + row[:, :, -1]
        for e, m in enumerate(tap):
            place = place + row[:, :, e] * (m - (case.kernel_size[e] - 1) / 2) * case.dilation[e]
        return place
    number = 0
    for m, k_here in zip(tap, case.kernel_size, strict=True):
        number = number * k_here + m
    channels = [(g * case.taps + number) * case.axes + axis for g in range(case.groups)]
    return i * s - p + tap[axis] * d + positions[:, channels]


def by_taps(case: Case, input: Tensor, positions: Tensor, sampled: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Columns, tap by tap and group by group: ``sampled`` of channels ``(B, C, *size)`` and places ``(B, *out, N)``."""
    per_group = case.channels // case.groups
    columns = []
    for tap in itertools.product(*map(range, case.kernel_size)):
        places = torch.stack([position(case, positions, axis, tap) for axis in range(case.axes)], -1)
        parts = [
            sampled(input[:, g * per_group : (g + 1) * per_group], places[:, g]).flatten(2) for g in range(case.groups)
        ]
        columns.append(torch.cat(parts, 1))
    return torch.stack(columns, 2).flatten(1, 2)


def by_grid_sample(padding_mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    def sampled(image: Tensor, places: Tensor) -> Tensor:
        if image.dim() == 3:
            image, places = image[:, :, None], torch.stack([torch.zeros_like(places), places], -1)[:, None, :, 0]
        axes, size = places.shape[-1], torch.tensor(image.shape[2:])
        if padding_mode == "zeros":  # align_corners may be either; with False an axis of one pixel is no special case
            grid = (2 * places + 1) / size - 1
            return F.grid_sample(image, grid.flip(-1), align_corners=False)
        # One pixel has no corners to align: there every place is that pixel.
        grid = torch.where(size > 1, 2 * places / (size - 1).clamp(min=1) - 1, 0)
        assert grid.shape[-1] == axes
        return F.grid_sample(image, grid.flip(-1), padding_mode=padding_mode, align_corners=True)

    return sampled


def by_neighbours(padding_mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Number by number."""

    def look_up(index: int, size: int) -> int | None:
        if padding_mode == "border":
            return min(max(index, 0), size - 1)
        if padding_mode == "reflection":
            there_and_back = [*range(size), *range(size - 2, 0, -1)]
            return there_and_back[index % len(there_and_back)]
        return index if 0 <= index < size else None

    def sampled(image: Tensor, places: Tensor) -> Tensor:
        axes, size = places.shape[-1], image.shape[2:]
        result = image.new_zeros(*image.shape[:2], *places.shape[1:-1])
        for b, *out in itertools.product(*map(range, places.shape[:-1])):
            place = places[(b, *out)].tolist()
            for upper in itertools.product((0, 1), repeat=axes):
                index = [look_up(math.floor(x) + u, n) for x, u, n in zip(place, upper, size, strict=True)]
                weight = math.prod(x - math.floor(x) if u else 1 - (x - math.floor(x)) for x, u in zip(place, upper))
                if None not in index:
                    result[(b, slice(None), *out)] += weight * image[(b, slice(None), *index)]
        return result

    return sampled


# ---- Values and gradients ----


@some_cases
def test_unfold_is_its_definition(case: Case) -> None:
    """On whole pixels and halves too, beyond the image, on one axis to three."""
    case = replace(case, channels=case.groups)
    input, positions, _ = make_tensors(case)
    expected = by_taps(case, input, positions, by_neighbours(case.padding_mode))
    close(unfold_reference(case, input, positions), expected)


@some_cases
def test_unfold_is_grid_sample(case: Case) -> None:
    """Values, and away from the kinks first derivatives."""
    input, positions, columns = make_tensors(case, kinks=False).requires_grad()
    actual = unfold_reference(case, input, positions)
    expected = by_taps(case, input, positions, by_grid_sample(case.padding_mode))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(result, (input, positions), columns.detach()) for result in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@cases
def test_fold_is_the_adjoint(case: Case) -> None:
    input, positions, columns = make_tensors(case)
    close(
        (unfold_reference(case, input, positions) * columns).sum(),
        (input * fold_reference(case, columns, positions)).sum(),
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.aligned], ids=str)
def test_a_map_of_ones_takes_the_windows_of_a_convolution(case: Case) -> None:
    input, _, columns = make_tensors(case)
    input.requires_grad_()
    ones, expected = flat_map(case, 1.0), windows(case, input)
    assert torch.equal(unfold_reference(case, input, ones), expected)
    (image,) = torch.autograd.grad(expected, input, columns)
    close(fold_reference(case, columns, ones), image)


@pytest.mark.parametrize(
    "case", [c for c in SOME_CASES if c.axes == 2 and c.aligned and c.padding_mode == "zeros"], ids=str
)
def test_a_map_of_ones_is_torch(case: Case) -> None:
    input, _, columns = make_tensors(case)
    options = {"dilation": case.dilation, "padding": case.padding, "stride": case.stride}
    ones = flat_map(case, 1.0)
    assert torch.equal(unfold_reference(case, input, ones), F.unfold(input, case.kernel_size, **options))
    close(fold_reference(case, columns, ones), F.fold(columns, case.size, case.kernel_size, **options))


@pytest.mark.parametrize("case", [c for c in CASES if c.aligned], ids=str)
@pytest.mark.parametrize("rate", [-2.0, 0.0, 0.75, 1.0, 3.0])
def test_offsets_that_put_the_taps_where_a_rate_does(case: Case, rate: float) -> None:
    input = make_tensors(case).input
    by_rate, by_offset = replace(case, source="rates"), replace(case, source="offsets", rates=1)
    close(
        unfold_reference(by_rate, input, flat_map(by_rate, rate)),
        unfold_reference(by_offset, input, flat_map(by_offset, rate)),
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.axes == 1], ids=str)
@pytest.mark.parametrize("axes", [2, 3])
def test_a_line_is_an_image_of_one_row(case: Case, axes: int) -> None:
    """The further axes have one tap and one pixel, so that nothing moves along them, or by nothing."""
    more = axes - 1
    one, none = (1,) * more, (0,) * more
    image = replace(
        case,
        size=one + case.size,
        kernel_size=one + case.kernel_size,
        stride=one + case.stride,
        padding=none + case.padding,
        dilation=one + case.dilation,
    )
    input, positions, columns = make_tensors(case)
    if case.source == "offsets":
        zeros = positions.new_zeros(*by_mover(case, positions).shape[:3], more, *case.output_size)
        moved = torch.cat([zeros, by_mover(case, positions)], 3).reshape(image.positions_shape)
    elif case.source == "affine":
        maps = positions.new_zeros(case.batch, case.groups, axes, axes + 1, *case.output_size)
        maps[:, :, -1, -2:] = by_mover(case, positions)[:, :, 0]
        moved = maps.reshape(image.positions_shape)
    else:
        moved = positions.view(image.positions_shape)
    close(unfold_reference(image, input.view(image.input_shape), moved), unfold_reference(case, input, positions))
    close(
        fold_reference(image, columns, moved).view(case.input_shape),
        fold_reference(case, columns, positions),
    )


# ---- Derivatives ----


@small_cases
@pytest.mark.parametrize("function", [unfold_reference, fold_reference], ids=["unfold", "fold"])
def test_derivatives(function: Callable[..., Tensor], case: Case) -> None:
    input, positions, columns = make_tensors(case, kinks=False).requires_grad()
    leaves = (input, positions) if function is unfold_reference else (columns, positions)
    assert gradcheck(lambda *t: function(case, *t), leaves, check_forward_ad=True)
    assert gradgradcheck(lambda *t: function(case, *t), leaves)


@some_cases
def test_derivatives_beyond_the_last_vanish(case: Case) -> None:
    input, positions, _ = make_tensors(case, kinks=False)
    order = orders(case)[-1]
    assert order not in orders(case, beyond=False)
    assert not derivative(case, lambda p: unfold_reference(case, input, p), positions, order).any()


@pytest.mark.parametrize(
    "name", ["lopsided_two_rates", "line", "volume", "volume_three_rates", "offsets", "affine", "reflection"]
)
def test_a_parameter_that_is_not_finite(name: str) -> None:
    """What it moves is NaN, with its first derivatives; no gradient reaches the input."""
    case = next(c for c in CASES if c.name == name)
    input, positions, columns = make_tensors(case, kinks=False)
    by_mover(case, positions)[0, -1, -1, -1].flatten()[0] = math.inf
    bad = torch.zeros(case.batch, case.groups, case.movers, *case.output_size, dtype=torch.bool)
    bad[0, -1, -1].view(-1)[0] = True
    for order in orders(case):
        values = derivative(case, lambda p: unfold_reference(case, input, p), positions, order)
        missing = bad if sum(order) <= 1 else torch.zeros_like(bad)
        assert torch.equal(by_tap(case, values).isnan(), missing.unsqueeze(2).expand_as(by_tap(case, values)))
        assert torch.equal(sum_over_group(case, values).isnan(), missing.reshape(case.dot_shape))
    leaves = input.requires_grad_(), positions.requires_grad_()
    by_input, by_positions = torch.autograd.grad(unfold_reference(case, *leaves), leaves, columns)
    assert by_input.isfinite().all()
    assert torch.equal(by_mover(case, by_positions).isnan(), bad.unsqueeze(3).expand_as(by_mover(case, positions)))
    assert fold_reference(case, columns, positions).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("source", ["rates", "offsets"])
def test_positions_of_any_size_are_safe(source: str, dtype: torch.dtype) -> None:
    case = Case("huge", 2, 2, (3, 4), (2, 2), dilation=(3, 2), padding=(2, 2), source=source)
    for mode in ("zeros", "border", "reflection"):
        case = replace(case, padding_mode=mode)
        input, positions, columns = make_tensors(case, dtype)
        positions = torch.where(positions < 0, -1, 1) * torch.tensor(torch.finfo(dtype).max, dtype=dtype)
        leaves = input.requires_grad_(), positions.requires_grad_()
        output = unfold_reference(case, *leaves)
        assert all(g.isfinite().all() for g in torch.autograd.grad(output, leaves, columns))
        assert output.abs().max() <= (0 if mode == "zeros" else input.abs().max())


def test_whole_turns_of_a_reflection_are_exact() -> None:
    """However many: a huge position is reduced without rounding."""
    case = Case("turns", 1, 1, (5,), (1,), source="offsets", padding_mode="reflection")
    input = torch.randn(case.input_shape, dtype=torch.float64)
    offsets = torch.linspace(-7, 7, 5, dtype=torch.float64).view(case.positions_shape)
    expected = unfold_reference(case, input, offsets)
    assert torch.equal(unfold_reference(case, input, offsets + 2**40), expected)


@pytest.mark.parametrize("displacement", [1e-300, -1e-300])
@pytest.mark.parametrize("source", ["rates", "offsets"])
def test_a_tiny_displacement_keeps_its_side_of_a_pixel(source: str, displacement: float) -> None:
    case = Case("tiny", 1, 1, (5,), (3,), padding=(1,), source=source)
    input = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64).view(case.input_shape)
    positions = torch.full(case.positions_shape, displacement, dtype=torch.float64)
    slopes = derivative(case, lambda p: unfold_reference(case, input, p), positions, [1])[0, :, 2].tolist()
    below, above = 2.0, 4.0  # of the pixel in the middle
    if source == "rates":  # all taps lie there, the first one on the other side
        assert slopes == ([-below, 0, above] if displacement > 0 else [-above, 0, below])
    else:
        assert slopes[1] == (above if displacement > 0 else below)


# ---- Names ----


def named(kind: str, case: Case) -> Callable[..., Tensor]:
    suffix = {1: "1d", 2: "", 3: "3d"}[case.axes]
    kinds = {"offsets": f"deform_{kind}{case.axes}d", "affine": f"affine_{kind}{case.axes}d"}
    name = kinds.get(case.source, f"dynamic_dilation_{kind}{suffix}")
    return getattr(reference, name)


@cases
def test_the_names_that_models_call(case: Case) -> None:
    """With a batch and without, and for positions that are broadcast."""
    input, positions, columns = make_tensors(case)
    one, middle = positions[:1], positions[(slice(None), slice(None), *[slice(0, 1)] * case.axes)]
    options, modes = (*case.window,), case.by_name
    unfold, expected = named("unfold", case), unfold_reference(case, input, positions)
    assert torch.equal(unfold(input, case.kernel_size, positions, *options, **modes), expected)
    for shared in (one, middle) if case.batch else (middle,):
        expanded = shared.expand(positions.shape)
        actual = unfold(input, case.kernel_size, shared, *options, **modes)
        assert torch.equal(actual, unfold_reference(case, input, expanded))
    for b in range(case.batch):
        assert torch.equal(unfold(input[b], case.kernel_size, positions[b], *options, **modes), expected[b])
    if case.source == "rates":
        fold, expected = named("fold", case), fold_reference(case, columns, positions)
        actual = fold(columns, case.size, case.kernel_size, positions, *options, **modes)
        assert torch.equal(actual, expected)
        for b in range(case.batch):
            actual = fold(columns[b], case.size, case.kernel_size, positions[b], *options, **modes)
            assert torch.equal(actual, expected[b])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_int_means_every_axis(axes: int) -> None:
    case = Case("ints", 1, 2, (7, 6, 5)[:axes], (2,), (2,), (1,), (2,))
    input, positions, columns = make_tensors(case)
    expected = unfold_reference(case, input, positions)
    for two, one in ((2, 1), ([2], [1]), ((2,) * axes, (1,) * axes)):
        assert torch.equal(named("unfold", case)(input, two, positions, two, one, two), expected)
    square = replace(case, size=(6,) * axes)
    _, positions, columns = make_tensors(square)
    for size in (6, [6], (6,) * axes):
        actual = named("fold", square)(columns, size, 2, positions, 2, 1, 2)
        assert torch.equal(actual, fold_reference(square, columns, positions))


@some_cases
def test_positions(case: Case) -> None:
    """The pixel and the displacement that the reference looks a tap up by, against the formula."""
    positions = make_tensors(case).dilation_map
    found = reference.positions(positions, case.source, case.kernel_size, *case.window, case.aligned)
    shape = (case.batch, case.groups, *case.kernel_size, *case.output_size)
    for axis, (pixel, displacement) in enumerate(found):
        assert not pixel.is_floating_point()
        places = (pixel + displacement).expand(shape)
        for tap in itertools.product(*map(range, case.kernel_size)):
            close(places[(slice(None), slice(None), *tap)], position(case, positions, axis, tap))
