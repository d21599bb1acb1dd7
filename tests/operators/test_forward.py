"""Values of every operator: against the reference, against F.unfold and F.fold, and on rates of every kind."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import ddu_ops
from cases import (
    CASES,
    OPERATORS,
    Case,
    Tensors,
    assert_near,
    assert_same,
    by_mover,
    by_tap,
    cases,
    derivative,
    dot,
    dtypes,
    first_order,
    flat_map,
    fold,
    fold_reference,
    make_tensors,
    operator,
    operator_name,
    operators,
    orders,
    pick,
    sample,
    splat,
    sum_over_group,
    unfold,
    unfold_backward,
    unfold_reference,
    windows,
)
from ddu_ops import reference

SAME = Case("same", padding=(1, 1))


# ---- Against the reference ----


@cases
@dtypes
def test_unfold(case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device) -> None:
    input, dilation_map, _ = make_tensors(case, dtype, map_dtype, device)
    actual = unfold(case, input, dilation_map)
    assert actual.dtype == dtype
    assert actual.shape == case.columns_shape
    assert actual.is_contiguous()
    assert_near(actual, unfold_reference(case, input.double(), dilation_map.double()))


@cases
@dtypes
def test_fold(case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device) -> None:
    _, dilation_map, columns = make_tensors(case, dtype, map_dtype, device)
    actual = fold(case, columns, dilation_map)
    assert actual.dtype == dtype
    assert actual.shape == case.input_shape
    assert actual.is_contiguous()
    assert_near(actual, fold_reference(case, columns.double(), dilation_map.double()))


ORDERED = [(case, order) for case in CASES for order in orders(case)]
ordered = pytest.mark.parametrize(
    "case, order", ORDERED, ids=[f"{case}-order_{'_'.join(map(str, order))}" for case, order in ORDERED]
)


@ordered
def test_the_family_of_derivatives(case: Case, order: list[int], device: torch.device) -> None:
    check_the_family(
        case, order, (torch.float32, torch.float64), make_tensors(case, torch.float32, device=device, kinks=False)
    )


HALF_CASES = (
    *("lopsided", "lopsided_two_rates", "deep", "line", "volume", "offsets", "affine", "volume_affine"),
    *("border_volume", "reflection"),
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.name in HALF_CASES], ids=str)
def test_the_family_of_derivatives_in_half(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    for order in orders(case):
        check_the_family(case, order, (dtype,), make_tensors(case, dtype, device=device, kinks=False))


def check_the_family(case: Case, order: list[int], dtypes: Sequence[torch.dtype], tensors: Tensors) -> None:
    """``sample``, ``splat`` and ``dot`` of one order against autograd of the reference."""
    input, dilation_map, columns = tensors.to(torch.float64)
    samples = derivative(case, lambda rates: unfold_reference(case, input, rates), dilation_map, order)
    shares = derivative(case, lambda rates: fold_reference(case, columns, rates), dilation_map, order)
    for dtype in dtypes:
        input, dilation_map, columns = tensors.to(dtype)
        assert_near(sample(case, input, dilation_map, order), samples)
        assert_near(splat(case, columns, dilation_map, order), shares)
        products = dot(case, columns, input, dilation_map, order)
        assert products.shape == case.dot_shape
        assert_near(products, sum_over_group(case, columns.double() * samples))


BEYOND = [
    (Case("line", size=(7,)), [[2], [100], [2**62]]),
    (Case("image", padding=(1, 1)), [[3], [4], [100], [2**62]]),
    (Case("image_two_rates", padding=(1, 1), rates=2), [[2, 1], [1, 2], [2, 2], [0, 2**62]]),
    (Case("volume", size=(4, 3, 5)), [[4], [100], [2**62]]),
    (Case("volume_three_rates", size=(4, 3, 5), rates=3), [[1, 2, 0], [2, 1, 1], [0, 0, 2**62]]),
    (Case("line_offsets", size=(7,), source="offsets"), [[2], [2**62]]),
    (Case("volume_offsets", size=(4, 3, 5), source="offsets"), [[1, 2, 0], [2, 1, 1], [2**62, 0, 0]]),
    (Case("line_affine", size=(7,), source="affine"), [[2, 0], [1, 1], [2**62, 2**62]]),
    (Case("affine", source="affine"), [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 2**62, 2**62], [0, 0, 1, 2, 0, 0]]),
]


@pytest.mark.parametrize("case, beyond", BEYOND, ids=[str(case) for case, _ in BEYOND])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_orders_beyond_are_zero(case: Case, beyond: list[list[int]], padding_mode: str, device: torch.device) -> None:
    case = replace(case, padding_mode=padding_mode)
    input, positions, columns = make_tensors(case, torch.float32, device=device)
    for order in beyond:
        assert torch.equal(sample(case, input, positions, order), torch.zeros_like(columns))
        assert torch.equal(splat(case, columns, positions, order), torch.zeros_like(input))
        assert not dot(case, columns, input, positions, order).any()


@cases
def test_order_zero_is_the_operator_itself(case: Case, device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(case, torch.float32, device=device)
    for order in ([], [0] * case.parameters):
        assert_same(sample(case, input, dilation_map, order), unfold(case, input, dilation_map))
        assert_same(splat(case, columns, dilation_map, order), fold(case, columns, dilation_map))


# ---- Against F.unfold and F.fold ----

TORCH_CASES = [
    case for case in CASES if case.axes == 2 and case.padding_mode == "zeros" and case.aligned and case.batch
    and case.channels
]  # fmt: skip
torch_cases = pytest.mark.parametrize("case", TORCH_CASES, ids=str)
ALIGNED_CASES = [case for case in CASES if case.aligned]
aligned_cases = pytest.mark.parametrize("case", ALIGNED_CASES, ids=str)


@torch_cases
@dtypes
def test_a_map_of_ones_is_unfold(case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device) -> None:
    input = make_tensors(case, dtype, map_dtype, device).input
    expected = F.unfold(input, case.kernel_size, case.dilation, case.padding, case.stride)
    assert_same(unfold(case, input, flat_map(case, 1.0, map_dtype, device)), expected)


@aligned_cases
@dtypes
def test_a_map_of_ones_takes_the_windows_of_a_convolution(
    case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device
) -> None:
    """On any number of axes, from offsets of zero too, and whatever lies outside."""
    input, _, columns = make_tensors(case, dtype, map_dtype, device)
    ones = flat_map(case, 1.0, map_dtype, device)
    assert_same(unfold(case, input, ones), windows(case, input))
    image = input.double().requires_grad_()
    expected = torch.autograd.grad(windows(case, image), image, columns.double())[0]
    assert_near(fold(case, columns, ones), expected)


def test_a_map_of_ones_is_unfold_on_extreme_values(device: torch.device) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        info = torch.finfo(dtype)
        values = [info.max, info.min, info.tiny, -info.tiny, 0.0, info.smallest_normal / 2]
        input = torch.tensor(values, dtype=dtype, device=device).repeat(7).view(1, 1, 6, 7)
        case = Case("extreme", 1, 1, padding=(1, 1))
        actual = unfold(case, input, flat_map(case, 1.0, dtype, device))
        assert torch.equal(actual, F.unfold(input, 3, padding=1))


@torch_cases
@dtypes
def test_a_map_of_ones_is_fold(case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device) -> None:
    ones = flat_map(case, 1.0, map_dtype, device)
    columns = make_tensors(case, dtype, map_dtype, device).columns
    options = (case.size, case.kernel_size, case.dilation, case.padding, case.stride)
    assert_near(fold(case, columns, ones), F.fold(columns.double(), *options))
    small = torch.randint(-4, 5, case.columns_shape, device=device).to(dtype)  # every order of additions is exact
    assert torch.equal(fold(case, small, ones), F.fold(small, *options))


def unfold_with_rate(case: Case, input: Tensor, rate: int) -> Tensor:
    """What a constant integer rate gives, by F.unfold and slicing alone."""
    if rate == 0:  # the centre of every window, which must be a pixel, on every tap
        taps = unfold_with_rate(case, input, 1).unflatten(1, (-1, *case.kernel_size))
        (kernel_h, kernel_w), centre_h, centre_w = case.kernel_size, case.kernel_size[0] // 2, case.kernel_size[1] // 2
        assert kernel_h % 2 and kernel_w % 2
        return taps[:, :, centre_h : centre_h + 1, centre_w : centre_w + 1].expand_as(taps).flatten(1, 3)
    if rate < 0:
        taps = unfold_with_rate(case, input, -rate).unflatten(1, (-1, *case.kernel_size))
        return taps.flip(2, 3).flatten(1, 3)
    grown = tuple(d * rate for d in case.dilation)
    reach = [d * (rate - case.aligned) * (k - 1) for d, k in zip(case.dilation, case.kernel_size)]
    assert all(r % 2 == 0 for r in reach)
    before = [p + r // 2 for p, r in zip(case.padding, reach)]  # padding that centres the grown window
    after = [b + 64 for b in before]
    padded = F.pad(input, (before[1], after[1], before[0], after[0]))
    columns = F.unfold(padded, case.kernel_size, grown, 0, case.stride)
    out = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(padded.shape[2:], grown, case.kernel_size, case.stride)]
    out_h, out_w = case.output_size
    return columns.unflatten(2, out)[..., :out_h, :out_w].flatten(2)


@pytest.mark.parametrize("rate", [-3, -2, -1, 0, 2, 3, 5])
@pytest.mark.parametrize(
    "case",
    [
        Case("same", padding=(1, 1)),
        Case("lopsided", 2, 4, (9, 6), (3, 5), (2, 1), (1, 3), (1, 1), groups=2),
        Case("two_rates", 1, 2, (7, 8), (5, 3), (1, 2), (2, 0), (1, 2), rates=2),
        Case("first_tap", 1, 2, (7, 8), (3, 1), (2, 1), (1, 0), aligned=False),
        Case("even_kernel", 1, 2, (7, 8), (2, 4), (1, 1), (1, 2), (2, 2), aligned=False),
    ],
    ids=str,
)
def test_a_whole_rate_is_unfold_with_that_dilation(case: Case, rate: int, device: torch.device) -> None:
    if rate == 0 and case.name == "even_kernel":
        case = Case("odd_kernel", 1, 2, (7, 8), (1, 3), (1, 1), (1, 2), (2, 2))  # the centre must be a pixel
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        input = make_tensors(case, dtype, device=device).input
        if rate == 0 and not case.aligned:
            centre = F.pad(input, (case.padding[1], 64, case.padding[0], 64))[..., :: case.stride[0], :: case.stride[1]]
            centre = centre[..., : case.output_size[0], : case.output_size[1]].flatten(2)
            expected = centre.repeat_interleave(case.taps, 1)
        else:
            expected = unfold_with_rate(case, input, rate)
        assert_same(unfold(case, input, flat_map(case, rate, dtype, device)), expected)


def test_a_rate_per_axis_is_a_dilation_per_axis(device: torch.device) -> None:
    case = Case("rate_per_axis", 1, 2, (9, 10), padding=(1, 1), rates=2)
    input = make_tensors(case, torch.float32, device=device).input
    dilation_map = torch.tensor([2.0, 3.0], device=device).view(1, 2, 1, 1).expand(case.map_shape)
    assert_same(unfold(case, input, dilation_map), F.unfold(input, 3, dilation=(2, 3), padding=(2, 3)))


@pytest.mark.parametrize("case", [case for case in CASES if case.source == "rates"], ids=str)
def test_rates_are_affine_maps(case: Case, device: torch.device) -> None:
    """One for all axes, or one for each; gradients pass through them."""
    case = replace(case, aligned=True)
    input, dilation_map, _ = make_tensors(case, device=device, kinks=False)
    dilation_map.requires_grad_()
    theta = ddu_ops.theta_from_rates(dilation_map, groups=case.groups)
    expected = unfold(case, input, dilation_map)
    actual = unfold(replace(case, source="affine", rates=1), input, theta)
    assert_near(actual, expected)
    cotangent = torch.randn_like(expected)
    assert_near(
        torch.autograd.grad(actual, dilation_map, cotangent)[0],
        torch.autograd.grad(expected, dilation_map, cotangent)[0],
    )


@pytest.mark.parametrize("case", [case for case in CASES if case.source == "affine"], ids=str)
def test_affine_maps_are_offsets_of_the_taps(case: Case, device: torch.device) -> None:
    input, theta, _ = make_tensors(case, device=device, kinks=False)
    places = reference.positions(theta, "affine", case.kernel_size, *case.window)
    resting = reference.positions(flat_map(case, 1.0, device=device), "affine", case.kernel_size, *case.window)
    offsets = torch.stack([moved - rest for (_, moved), (_, rest) in zip(places, resting, strict=True)], 2 + case.axes)
    moved = replace(case, source="offsets")
    assert_near(unfold(case, input, theta), unfold(moved, input, offsets.reshape(moved.positions_shape)))


def test_a_rate_an_angle_and_a_shift(device: torch.device) -> None:
    """The window turns from x to y, after it is stretched, and moves as a whole; within the frames of a volume."""
    rates = torch.tensor([2.0, 3.0], dtype=torch.float64, device=device).view(1, 2, 1, 1)
    angle = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64, device=device)
    shift = torch.tensor([0.25, -1.5], dtype=torch.float64, device=device).view(1, 2, 1, 1)
    theta = ddu_ops.theta_from_rates(rates, angle, shift)
    (_, down), (_, right) = reference.positions(theta, "affine", 3)
    for m, n in itertools.product(range(3), repeat=2):
        y, x = 2.0 * (m - 1), 3.0 * (n - 1)
        assert_close(down[0, 0, m, n].item(), 0.25 + math.cos(0.3) * y + math.sin(0.3) * x)
        assert_close(right[0, 0, m, n].item(), -1.5 - math.sin(0.3) * y + math.cos(0.3) * x)
    volume = ddu_ops.theta_from_rates(
        torch.cat([torch.ones_like(rates[:, :1]), rates], 1)[..., None], angle[..., None]
    ).view(3, 4)
    assert_close(volume[1:, 1:3], theta.view(2, 3)[:, :2])
    assert volume[0].tolist() == [1, 0, 0, 0]
    assert not volume[:, 3].any()
    for bad, name in (
        (lambda: ddu_ops.theta_from_rates(rates.repeat(1, 2, 1, 1)), "dilation_map"),
        (lambda: ddu_ops.theta_from_rates(rates, angle[0]), "angle"),
        (lambda: ddu_ops.theta_from_rates(rates[:, :1, 0], angle[:, :, 0]), "angle"),
        (lambda: ddu_ops.theta_from_rates(rates, shift=angle), "shift"),
    ):
        with pytest.raises(RuntimeError, match=rf"^theta_from_rates\(\): expected {name} "):
            bad()


@pytest.mark.parametrize("angled", [False, True])
def test_windows_fill_boxes(angled: bool, device: torch.device) -> None:
    """The taps lie on the centres of the cells that a box is divided into, wherever the window was."""
    case = Case("boxes", 2, 4, (7, 9), (3, 2), (2, 1), (1, 0), (1, 2), groups=2, source="affine")
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.groups, 5 if angled else 4, *case.output_size)
    boxes = (torch.rand(shape, generator=generator, dtype=torch.float64) * 6).to(device)
    theta = ddu_ops.theta_from_boxes(boxes.flatten(1, 2), case.kernel_size, *case.window)
    assert theta.shape == case.positions_shape
    x, y, width, height = boxes[:, :, :4].unbind(2)
    angle = boxes[:, :, 4] if angled else torch.zeros_like(x)
    (row, down), (column, right) = reference.positions(theta, "affine", case.kernel_size, *case.window)
    for m, n in itertools.product(*map(range, case.kernel_size)):
        v, u = ((m + 0.5) / 3 - 0.5) * height, ((n + 0.5) / 2 - 0.5) * width
        assert_close((row + down)[:, :, m, n], y + angle.sin() * u + angle.cos() * v)
        assert_close((column + right)[:, :, m, n], x + angle.cos() * u - angle.sin() * v)
    plain = torch.rand(1, 4, 5, 6, device=device)
    by_word, by_number = (ddu_ops.theta_from_boxes(plain, 3, padding=padding) for padding in ("same", 1))
    assert torch.equal(by_word, by_number)
    with pytest.raises(
        RuntimeError, match=r"^theta_from_boxes\(\): expected boxes of shape \(B, 8, H_out, W_out\) or "
    ):
        ddu_ops.theta_from_boxes(boxes.flatten(1, 2)[:, 1:], case.kernel_size, *case.window)


@pytest.mark.parametrize("case", [case for case in CASES if case.source == "rates"], ids=str)
def test_rates_are_offsets_of_the_taps(case: Case, device: torch.device) -> None:
    """`to_offsets` says with which, on every axis and in every mode; gradients pass through them."""
    input, dilation_map, _ = make_tensors(case, device=device, kinks=False)
    dilation_map.requires_grad_()
    options = {"dilation": case.dilation, "dilation_groups": case.groups, "aligned": case.aligned}
    offset = ddu_ops.to_offsets(dilation_map, case.kernel_size, **options)
    expected = unfold(case, input, dilation_map)
    moved = unfold(replace(case, source="offsets", rates=1, aligned=True), input, offset)
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)
    if expected.numel():
        grads = (torch.autograd.grad(t.square().sum(), dilation_map, retain_graph=True)[0] for t in (moved, expected))
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)


def test_a_rate_per_group(device: torch.device) -> None:
    case = Case("rate_per_group", 1, 4, (9, 10), padding=(1, 1), groups=2)
    input = make_tensors(case, torch.float32, device=device).input
    dilation_map = torch.tensor([1.0, 2.0], device=device).view(1, 2, 1, 1).expand(case.map_shape)
    near, far = F.unfold(input[:, :2], 3, padding=1), F.unfold(input[:, 2:], 3, dilation=2, padding=2)
    assert_same(unfold(case, input, dilation_map), torch.cat([near, far], 1))


# ---- Rates of every kind ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("rates", [1, 2])
def test_a_huge_rate_samples_zero(dtype: torch.dtype, sign: int, rates: int, device: torch.device) -> None:
    case = Case("huge", 1, 2, (5, 6), (3, 3), padding=(1, 1), dilation=(1, 2), rates=rates)
    input = make_tensors(case, dtype, device=device).input
    for rate in (100.0, 2.0**15, 2.0**31, 2.0**32, 2.0**63, 2.0**64, torch.finfo(dtype).max):
        rate = min(rate, torch.finfo(dtype).max)
        taps = unfold(case, input, flat_map(case, sign * rate, dtype, device)).unflatten(1, (-1, 3, 3))
        expected = torch.zeros_like(taps)
        centre = unfold(case, input, flat_map(case, 0.0, dtype, device)).unflatten(1, (-1, 3, 3))
        expected[:, :, 1, 1] = centre[:, :, 1, 1]  # which no rate moves
        assert torch.equal(taps, expected)


@dtypes
def test_every_huge_rate_agrees_with_the_reference(
    dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device
) -> None:
    case = Case("huge", 1, 2, (5, 6), (3, 2), padding=(1, 1), rates=2)
    input, dilation_map, columns = make_tensors(case, dtype, map_dtype, device)
    exponents = torch.arange(dilation_map.numel(), device=device).view(case.map_shape) * 2 - 10
    rates = torch.exp2(exponents.double()).clamp(max=torch.finfo(map_dtype).max).to(map_dtype)
    rates = rates.flatten()[torch.randperm(rates.numel())].view(case.map_shape) * dilation_map.sign()
    assert_near(unfold(case, input, rates), unfold_reference(case, input.double(), rates.double()))
    assert_near(fold(case, columns, rates), fold_reference(case, columns.double(), rates.double()))


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("source", ["rates", "offsets", "affine"])
@pytest.mark.parametrize("size", [(5,), (1, 4), (3, 2, 4)], ids=str)
@dtypes
def test_every_finite_position_is_safe(
    size: tuple[int, ...],
    source: str,
    padding_mode: str,
    dtype: torch.dtype,
    map_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """With zeros it gives 0, with the others some value of the image.

    The terms of an affine map may cancel, so they give some value of the image or 0 with zeros, too.
    """
    case = Case("huge", 2, 2, size, (2,), padding=(1,), dilation=(2,), source=source, padding_mode=padding_mode)
    input, positions, columns = make_tensors(case, dtype, map_dtype, device)
    sign = torch.where(positions < 0, -1, 1).to(map_dtype)
    largest = torch.finfo(map_dtype).max
    for huge in (2.0**31, 2.0**32, 2.0**53, 2.0**63, 2.0**64, largest):
        huge = sign * min(huge, largest)
        outside = unfold(case, input, huge)
        if padding_mode == "zeros" and source != "affine":
            assert not outside.any()
        assert outside.isfinite().all()
        assert outside.abs().max() <= input.abs().max()
        gradients = unfold_backward(case, columns, input, huge)
        assert all(gradient.isfinite().all() for gradient in gradients)
        if padding_mode != "reflection" and source != "affine":
            assert not gradients[1].any()


def with_bad_positions(case: Case, tensors: Tensors) -> Tensors:
    """Positions with a NaN, an inf, a -inf and, given several parameters, some of which only one is bad."""
    positions = tensors.dilation_map.clone()
    places = math.prod(case.output_size)
    flat = positions.view(case.batch, -1, places)
    flat[0, 0, 0], flat[0, 0, places // 3], flat[-1, -1, places // 2] = math.nan, math.inf, -math.inf
    flat[-1, -1, places - 1] = math.nan
    return tensors._replace(dilation_map=positions)


def bad_movers(case: Case, positions: Tensor) -> Tensor:
    """What a parameter moves that is not finite, windows or taps: ``(B, G, 1 or K, *out)``, boolean."""
    return ~by_mover(case, positions).isfinite().all(3)


BAD_CASES = [
    Case("one_rate", 2, 4, (5, 6), padding=(1, 1), groups=2),
    Case("two_rates", 2, 4, (5, 6), (2, 3), padding=(1, 1), groups=2, rates=2),
    Case("one_tap", 2, 2, (5, 6), (1, 1)),
    Case("first_tap", 2, 2, (5, 6), (3, 1), padding=(1, 0), rates=2, aligned=False),
    Case("line", 2, 4, (9,), (3,), padding=(1,), groups=2),
    Case("volume_three_rates", 1, 4, (3, 4, 3), (2, 1, 3), padding=(1, 0, 1), groups=2, rates=3),
    Case("offsets", 2, 4, (4, 5), (2, 3), groups=2, source="offsets"),
    Case("volume_offsets", 2, 2, (3, 2, 3), (2, 1, 2), padding=(1, 0, 0), source="offsets"),
    Case("affine", 2, 4, (4, 5), (2, 3), groups=2, source="affine"),
    Case("volume_affine", 2, 2, (3, 2, 3), (2, 1, 2), padding=(1, 0, 0), source="affine", padding_mode="border"),
    Case("border", 2, 4, (5, 6), padding=(1, 1), groups=2, padding_mode="border"),
    Case("reflection_offsets", 2, 4, (4, 3), (2, 2), groups=2, source="offsets", padding_mode="reflection"),
]
bad_cases = pytest.mark.parametrize("case", BAD_CASES, ids=str)


@bad_cases
@dtypes
def test_what_a_parameter_moves_that_is_not_finite_is_nan(
    case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device
) -> None:
    """By a rate its whole window, the centre too; by an offset its tap alone."""
    tensors = with_bad_positions(case, make_tensors(case, dtype, map_dtype, device, kinks=False))
    input, positions, columns = tensors
    bad = bad_movers(case, positions)
    assert bad.any() and not bad.all()

    actual = unfold(case, input, positions)
    taps = by_tap(case, actual)
    assert torch.equal(taps.isnan(), bad.unsqueeze(2).expand_as(taps))
    assert_near(actual, unfold_reference(case, input.double(), positions.double()))

    healthy = by_tap(case, columns).masked_fill(bad.unsqueeze(2), 0).view(columns.shape)
    image = fold(case, columns, positions)
    assert not image.isnan().any()
    assert_near(image, fold_reference(case, columns.double(), positions.double()))
    assert_same(image, fold(case, healthy, positions))  # what is bad adds nothing

    for order in orders(case, beyond=False):
        if any(order):
            assert torch.equal(dot(case, columns, input, positions, order).isnan(), bad.flatten(1, 2))
            assert torch.equal(sample(case, input, positions, order).isnan(), actual.isnan())
            assert not splat(case, columns, positions, order).isnan().any()


@bad_cases
@dtypes
def test_gradients_at_a_parameter_that_is_not_finite(
    case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device
) -> None:
    tensors = with_bad_positions(case, make_tensors(case, dtype, map_dtype, device, kinks=False))
    input, positions, columns = tensors
    bad = bad_movers(case, positions)
    bad_positions = bad.unsqueeze(3).expand_as(by_mover(case, positions)).reshape(positions.shape)

    grad_input, grad_positions = unfold_backward(case, columns, input, positions)
    assert not grad_input.isnan().any()
    assert torch.equal(grad_positions.isnan(), bad_positions)

    wide = tensors.to(torch.float64).requires_grad()
    expected = torch.autograd.grad(
        unfold_reference(case, wide.input, wide.dilation_map), wide[:2], wide.columns.detach()
    )
    assert_near(grad_input, expected[0])
    assert_near(grad_positions, expected[1])

    leaves = tensors.requires_grad()
    actual = torch.autograd.grad(unfold(case, leaves.input, leaves.dilation_map), leaves[:2], columns)
    assert_same(actual, (grad_input, grad_positions))

    by_columns, by_positions = torch.autograd.grad(
        fold(case, leaves.columns, leaves.dilation_map), (leaves.columns, leaves.dilation_map), input
    )
    taps = by_tap(case, by_columns)
    assert torch.equal(taps.isnan(), bad.unsqueeze(2).expand_as(taps))
    assert torch.equal(by_positions.isnan(), bad_positions)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_every_rate_bad(value: float, device: torch.device) -> None:
    case = Case("bad", 1, 2, (4, 4), padding=(1, 1))
    input, _, columns = make_tensors(case, torch.float32, device=device)
    dilation_map = flat_map(case, value, torch.float32, device)
    assert unfold(case, input, dilation_map).isnan().all()
    grad_input, grad_map = unfold_backward(case, columns, input, dilation_map)
    assert torch.equal(grad_input, torch.zeros_like(input))
    assert grad_map.isnan().all()


def test_values_of_the_input_that_are_not_finite_stay_where_they_are(device: torch.device) -> None:
    case = Case("nan_input", 1, 1, (5, 5), (1, 1))
    input = torch.zeros(case.input_shape, device=device)
    input[0, 0, 2, 2] = math.nan
    shown = unfold(case, input, flat_map(case, 1.0, torch.float32, device)).isnan().view(5, 5)
    near = torch.zeros(5, 5, dtype=torch.bool, device=device)
    near[1:3, 1:3] = True  # the pixel itself and the taps that have it as a neighbour
    assert shown[2, 2]
    assert not shown[~near].any()


def test_a_position_on_the_border_or_beyond_gives_zero(device: torch.device) -> None:
    case = Case("border", 1, 1, (1, 4), (1, 2), padding=(0, 0), aligned=False)
    input = torch.ones(case.input_shape, dtype=torch.float64, device=device)
    # The second tap of the last window lies at 2 + D / 2, the first at 2 - D / 2.
    for rate, first, second in ((2.0, 1.0, 1.0), (3.0, 1.0, 0.5), (4.0, 1.0, 0.0), (5.0, 0.5, 0.0), (6.0, 0.0, 0.0)):
        window = unfold(case, input, flat_map(case, rate, device=device))[0, :, 2]
        assert window.tolist() == [first, second]


@pytest.mark.parametrize("source", ["rates", "offsets", "affine"])
@pytest.mark.parametrize("axes, axis", [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_precision_does_not_fall_with_the_size_of_the_image(
    axes: int, axis: int, source: str, dtype: torch.dtype, device: torch.device
) -> None:
    size, step = 2**24 + 2**20, 2**20  # a float32 position has no fraction left here

    def along(value: int) -> tuple[int, ...]:
        return tuple(value if a == axis else 1 for a in range(axes))

    case = Case("long", 1, 1, along(size), along(3), along(step), source=source)
    image = (torch.arange(size, dtype=torch.int32, device=device) % 16).to(dtype).view(case.input_shape)
    columns = unfold(case, image, flat_map(case, 0.75, dtype, device))
    expected = torch.tensor([0.25, 1.0, 1.75], dtype=dtype, device=device)
    assert torch.equal(columns[0], expected.view(3, 1).expand(columns.shape[1:]))


# ---- What the public operators add ----


@cases
def test_public_operators_are_those_below_them(case: Case, device: torch.device) -> None:
    input, positions, columns = make_tensors(case, torch.float32, device=device)
    assert_same(operator("dynamic_dilation_unfold", case)(input, positions), unfold(case, input, positions))
    assert_same(operator("dynamic_dilation_fold", case)(columns, positions), fold(case, columns, positions))


@pytest.mark.parametrize("case", [c for c in CASES if c.axes == 2 and c.source == "rates"], ids=str)
def test_public_functions_are_the_operators(case: Case, device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(case, torch.float32, device=device)
    actual = ddu_ops.dynamic_dilation_unfold(input, case.kernel_size, dilation_map, *case.window, **case.by_name)
    assert_same(actual, unfold(case, input, dilation_map))
    actual = ddu_ops.dynamic_dilation_fold(
        columns, case.size, case.kernel_size, dilation_map, *case.window, **case.by_name
    )
    assert_same(actual, fold(case, columns, dilation_map))


@cases
def test_unbatched(case: Case, device: torch.device) -> None:
    input, positions, columns = make_tensors(case, torch.float32, device=device)
    for b in range(case.batch):
        actual = operator("dynamic_dilation_unfold", case)(input[b], positions[b])
        assert_same(actual, unfold(case, input, positions)[b])
        assert actual.is_contiguous()
        if case.source == "rates":
            actual = operator("dynamic_dilation_fold", case)(columns[b], positions[b])
            assert_same(actual, fold(case, columns, positions)[b])


@pytest.mark.parametrize(
    "name", ["line", "volume_three_rates", "line_offsets", "offsets", "volume_offsets", "affine", "volume_affine"]
)
def test_positions_of_batch_one_are_broadcast(name: str, device: torch.device) -> None:
    case = next(c for c in CASES if c.name == name)
    input, positions, columns = make_tensors(case, device=device)
    one, call = positions[:1].clone().requires_grad_(), operator("dynamic_dilation_unfold", case)
    many = one.detach().repeat(case.batch, *[1] * (1 + case.axes))
    assert_same(call(input, one.detach()), unfold(case, input, many))
    (by_one,) = torch.autograd.grad(call(input, one), one, columns)  # summed over the batch
    assert_near(by_one, unfold_backward(case, columns, input, many)[1].sum(0, keepdim=True))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_map_of_batch_one_is_broadcast(batch: int, device: torch.device) -> None:
    case = Case("broadcast", batch, 4, padding=(1, 1), groups=2, rates=2)
    input, _, columns = make_tensors(case, torch.float64, device=device)
    one = make_tensors(Case("one", 1, 4, padding=(1, 1), groups=2, rates=2), device=device).dilation_map
    many = one.repeat(batch, 1, 1, 1)
    actual = ddu_ops.dynamic_dilation_unfold(input, 3, one, padding=1, groups=2)
    assert_same(actual, unfold(case, input, many))
    actual = ddu_ops.dynamic_dilation_fold(columns, case.size, 3, one, padding=1, groups=2)
    assert_same(actual, fold(case, columns, many))

    leaf = one.clone().requires_grad_()  # the gradient is summed over the batch
    by_one = torch.autograd.grad(ddu_ops.dynamic_dilation_unfold(input, 3, leaf, padding=1, groups=2), leaf, columns)
    assert_near(by_one[0], unfold_backward(case, columns, input, many)[1].sum(0, keepdim=True))


def test_an_int_a_pair_and_a_list_of_one_mean_the_same(device: torch.device) -> None:
    case = Case("ints", 2, 3, (9, 8), (2, 2), (2, 2), (1, 1), (2, 2))
    input, dilation_map, columns = make_tensors(case, torch.float32, device=device)
    expected = unfold(case, input, dilation_map), fold(case, columns, dilation_map)
    for two, one in ((2, 1), ([2], [1]), ([2, 2], [1, 1]), ((2, 2), (1, 1))):
        columns_out = ddu_ops.dynamic_dilation_unfold(input, two, dilation_map, two, one, two)
        image = ddu_ops.dynamic_dilation_fold(columns, case.size, two, dilation_map, two, one, two)
        assert_same((columns_out, image), expected)
    square = Case("square", 2, 3, (8, 8), padding=(1, 1))
    _, dilation_map, columns = make_tensors(square, torch.float32, device=device)
    for size in (8, [8], (8, 8)):
        image = ddu_ops.dynamic_dilation_fold(columns, size, 3, dilation_map, padding=1)
        assert_same(image, fold(square, columns, dilation_map))


def test_arguments_by_name_and_by_default(device: torch.device) -> None:
    case = Case("defaults")
    input, dilation_map, columns = make_tensors(case, torch.float32, device=device)
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "aligned": True, "padding_mode": "zeros"}
    actual = ddu_ops.dynamic_dilation_unfold(input=input, kernel_size=3, dilation_map=dilation_map, **defaults)
    assert_same(actual, ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map))
    actual = ddu_ops.dynamic_dilation_fold(
        columns=columns, output_size=case.size, kernel_size=3, dilation_map=dilation_map, **defaults
    )
    assert_same(actual, ddu_ops.dynamic_dilation_fold(columns, case.size, 3, dilation_map))
    for name in ("unfold", "dynamic_dilation_unfold"):
        assert_same(getattr(torch.ops.ddu, name)(input, 3, dilation_map), unfold(case, input, dilation_map))
    for name in ("fold", "dynamic_dilation_fold"):
        assert_same(
            getattr(torch.ops.ddu, name)(columns, case.size, 3, dilation_map), fold(case, columns, dilation_map)
        )
    assert_same(torch.ops.ddu.sample(input, dilation_map, "rates", 3), unfold(case, input, dilation_map))
    assert_same(torch.ops.ddu.splat(columns, case.size, dilation_map, "rates", 3), fold(case, columns, dilation_map))
    with pytest.raises(TypeError):
        ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map, 1, 0, 1, 1, True)  # aligned is by name alone


# ---- Where it runs ----


THREAD_CASES = [
    Case("one_rate", 2, 6, (33, 31), padding=(1, 1), groups=2),
    Case("two_rates", 2, 6, (33, 31), padding=(1, 1), groups=2, rates=2),
    Case("line", 2, 6, (1023,), padding=(1,), groups=2),
    Case("volume", 2, 6, (9, 11, 10), (2, 3, 2), padding=(1, 1, 0), groups=2, rates=3, padding_mode="reflection"),
    Case("offsets", 2, 6, (23, 21), padding=(1, 1), groups=2, source="offsets", padding_mode="border"),
    Case("affine", 2, 6, (23, 21), padding=(1, 1), groups=2, source="affine"),
]


@operators
@pytest.mark.parametrize("case", THREAD_CASES, ids=str)
def test_the_number_of_threads_changes_no_bit(name: str, case: Case) -> None:
    threads = torch.get_num_threads()
    tensors = pick(name, make_tensors(case, torch.float32))
    results = []
    try:
        for number in (1, 2, 3, 5):
            torch.set_num_threads(number)
            results.append(operator(name, case, first_order(name, case))(*tensors))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert_same(result, results[0])


@operators
def test_a_call_repeated_gives_the_same_bits(name: str, device: torch.device) -> None:
    case = Case("repeated", 2, 6, (17, 15), padding=(1, 1), groups=2, rates=2)
    tensors = pick(name, make_tensors(case, torch.float32, device=device))
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (operator(name, case)(*tensors) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert_same(first, second)


@operators
def test_arguments_are_left_as_they_were(name: str, device: torch.device) -> None:
    tensors = pick(name, make_tensors(SAME, torch.float32, device=device))
    copies = [t.clone() for t in tensors]
    operator(name, SAME)(*tensors)
    assert_same(tensors, copies)


def test_every_operator_is_in_the_table() -> None:
    """But the convolutions, the sums of windows and DCLS, which have tests of their own."""
    others = ("conv", "aggregate", "correlate", "scatter", "sums_backward", "max_pool", "dcls")
    names = {
        schema.name.removeprefix("ddu::") for schema in torch._C._jit_get_all_schemas() if schema.name[:5] == "ddu::"
    }
    tested = {operator_name(name, case) for name in OPERATORS for case in CASES}
    assert {name for name in names if not any(other in name for other in others)} == tested
