"""The operators in plain PyTorch: slow, readable, on any device and in any precision.

This is the executable specification: the tests compare everything else in the package with it, in float64. It computes
in the type of its arguments, half types included, and autograd differentiates it to any order. Arguments are as in
:mod:`ddu_ops.functional` and are not checked.

:func:`sample` and :func:`splat` are the windows and their adjoint for any number of axes and any source of positions;
:func:`convolution` uses them. The other functions are these three under their public names. :func:`positions`
computes the positions of the taps.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ddu_ops._options import Ints, integer, ints, windows

#: The largest error allowed for a result, by its type: ``‖result - reference‖ / ‖reference‖``, with the reference
#: computed in float64 from the same, rounded, arguments.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


# ---- The windows and their adjoint, with a batch ----


def sample(
    input: Tensor,
    parameters: Tensor,
    source: str,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """The windows of an image: ``(B, C * K, L)``.

    Args:
        parameters: the parameters of the positions. Their rank determines the number of axes, N.
        source: what the parameters are: ``"rates"``, ``(B, G, *out)`` or ``(B, G * N, *out)``; ``"offsets"``,
            ``(B, G * K * N, *out)``; or ``"affine"``, ``(B, G * N * (N + 1), *out)``.
    """
    batch, channels, *size = input.shape
    groups = integer(groups, "groups", "reference")
    window = kernel_size, stride, padding, dilation
    parameters = parameters.expand(batch, -1, *_grid(size, *window))
    image = input.reshape(batch, groups, channels // groups, 1, math.prod(size))
    columns: Tensor | None = None
    for index, counts, weight in _neighbours(parameters, source, size, *window, groups, aligned, padding_mode):
        shape = (batch, groups, channels // groups, *index.shape[2:])
        pixels = image.expand(*shape[:4], -1).gather(-1, index.unsqueeze(2).expand(shape))
        share = torch.where(counts.unsqueeze(2), pixels, 0) * weight.unsqueeze(2)
        columns = share if columns is None else columns + share
    assert columns is not None
    return columns.flatten(1, 3)


def splat(
    columns: Tensor,
    output_size: Sequence[int],
    parameters: Tensor,
    source: str,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """The adjoint of :func:`sample` with respect to its input: ``(B, C, *output_size)``."""
    batch, rows, places = columns.shape
    groups = integer(groups, "groups", "reference")
    window = kernel_size, stride, padding, dilation
    parameters = parameters.expand(batch, -1, *_grid(output_size, *window))
    taps = math.prod(_per_axis(kernel_size, len(output_size)))
    values = columns.reshape(batch, groups, rows // taps // groups, taps, places)
    image = values.new_zeros(*values.shape[:3], math.prod(output_size))
    for index, counts, weight in _neighbours(parameters, source, output_size, *window, groups, aligned, padding_mode):
        share = torch.where(counts.unsqueeze(2), values * weight.unsqueeze(2), 0)
        image = image.scatter_add(-1, index.unsqueeze(2).expand(share.shape).flatten(3), share.flatten(3))
    return image.flatten(1, 2).unflatten(-1, tuple(output_size))


def _per_axis(value: Ints, axes: int) -> tuple[int, ...]:
    return ints(value, axes, "an option", "reference")


def _grid(size: Sequence[int], *window: Ints) -> tuple[int, ...]:
    return windows(size, *(_per_axis(option, len(size)) for option in window))


# ---- The convolution, with a batch ----


def convolution(
    input: Tensor,
    weight: Tensor,
    parameters: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    source: str,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    parameter_groups: int = 1,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """The convolution, directly from its definition: ``(B, O, *out)``.

    Args:
        weight: ``(O, C / groups, *kernel)``, or one per image, ``(B, O, C / groups, *kernel)``.
        parameters, source: as in :func:`sample`, for ``parameter_groups`` groups of channels.
        bias: ``(O,)`` or ``(B, O)``.
        mask: ``(B, M * K, *out)``, for any number ``M`` of groups of channels.
    """
    axes = parameters.dim() - 2
    groups = integer(groups, "groups", "reference")
    kernel_size = weight.shape[-axes:]
    batch, channels, *size = input.shape
    out, taps = _grid(size, kernel_size, stride, padding, dilation), math.prod(kernel_size)
    options = (stride, padding, dilation, parameter_groups, aligned, padding_mode)
    samples = sample(input, parameters, source, kernel_size, *options).unflatten(1, (channels, taps))
    if mask is not None:
        factors = mask.expand(batch, -1, *out).flatten(2).unflatten(1, (-1, taps))
        samples = samples * factors.repeat_interleave(channels // factors.shape[1], 1)
    kernels = weight if weight.dim() == axes + 3 else weight[None]
    kernels = kernels.expand(batch, *kernels.shape[1:])
    rows = kernels.shape[1]
    inner = channels // groups * taps
    kernels = kernels.reshape(batch, groups, rows // groups, inner)
    result = torch.einsum("bgoi,bgil->bgol", kernels, samples.reshape(batch, groups, inner, math.prod(out)))
    result = result.reshape(batch, rows, *out)
    return result if bias is None else result + bias[(..., *[None] * axes)]


# ---- Where the taps lie ----


def positions(
    parameters: Tensor,
    source: str,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    aligned: bool = True,
) -> list[tuple[Tensor, Tensor]]:
    """The positions of the taps of all windows: for every axis a pixel and the displacement from it.

    A position is the sum of the two. Keeping them apart determines the cell exactly, because an integer can represent a
    pixel of any image and the displacement of a tap is small. Both broadcast to ``(B, G, *kernel_size, *out)``. A
    parameter that is not finite displaces its taps by NaN, and their gradients are NaN, too.
    """
    axes, out = parameters.dim() - 2, parameters.shape[2:]
    kernel, stride, padding, dilation = (_per_axis(option, axes) for option in (kernel_size, stride, padding, dilation))
    reach = max(1, *(d * (k - 1) for d, k in zip(dilation, kernel, strict=True)))
    if source == "rates":
        moved = _poisoned(parameters.unflatten(1, (groups, -1)), 2, reach)[(slice(None),) * 3 + (None,) * axes]
    elif source == "affine":
        whole = _poisoned(parameters.unflatten(1, (groups, -1)), 2, (axes + 1) * reach)
        moved = whole[(slice(None),) * 3 + (None,) * axes].unflatten(2, (axes, axes + 1))
    else:
        moved = _poisoned(parameters.unflatten(1, (groups, *kernel, axes)), 2 + axes, reach).movedim(2 + axes, 2)

    def number(axis: int) -> Tensor:
        """Of the taps along an axis."""
        return torch.arange(kernel[axis], device=moved.device).view(-1, *[1] * (2 * axes - 1 - axis))

    def distance(axis: int) -> Tensor:
        """Of the taps from the window's centre at rate one."""
        return (2 * number(axis) - (kernel[axis] - 1)).to(moved.dtype) * (dilation[axis] / 2)

    found = []
    for axis, (k, s, p, d) in enumerate(zip(kernel, stride, padding, dilation, strict=True)):
        own = moved[:, :, min(axis, moved.shape[2] - 1)]  # one rate moves the taps along all axes
        i = torch.arange(out[axis], device=own.device).view(-1, *[1] * (axes - 1 - axis))
        centre = d * (k - 1) if aligned or source == "affine" else 0  # in halves of a pixel
        if source == "rates":
            found.append((i * s - p + centre // 2, centre % 2 / 2 + distance(axis) * own))
        elif source == "affine":
            displacement = own[:, :, axes]
            for e in range(axes):
                displacement = displacement + distance(e) * own[:, :, e]
            found.append((i * s - p + centre // 2, centre % 2 / 2 + displacement))
        else:
            m = number(axis)
            found.append((i * s - p + m * d, own))
    return found


def _poisoned(parameters: Tensor, dim: int, reach: int) -> Tensor:
    """The parameters; NaN along the whole of ``dim`` where one is not finite, and with them every derivative by them.

    What is finite is kept so small that ``reach`` times as much is finite, too.
    """
    finite = parameters.isfinite().all(dim, keepdim=True)
    limit = torch.finfo(parameters.dtype).max / (2 * reach)
    safe = torch.where(finite, parameters, 0).clamp(-limit, limit)
    return safe + torch.where(finite, 0, parameters) * torch.where(finite, 0.0, math.nan).to(parameters.dtype)


# ---- The pixels around a position ----


def _neighbours(
    parameters: Tensor,
    source: str,
    size: Sequence[int],
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    aligned: bool,
    padding_mode: str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The ``2 ** N`` neighbours of every tap, one after the other, as tensors ``(B, G, K, L)``.

    A neighbour is an index into the flattened image, whether it counts (the index is 0 where it does not), and its
    weight. At a position that is not finite no neighbour counts and each weight is NaN, with its first derivatives.
    """
    axes, poison = [], torch.zeros((), dtype=parameters.dtype, device=parameters.device)
    places = positions(parameters, source, kernel_size, stride, padding, dilation, groups, aligned)
    for (pixel, displacement), n in zip(places, size, strict=True):
        finite = displacement.isfinite()
        poison = poison + torch.where(finite, 0, displacement)
        displacement = torch.where(finite, displacement, 0)
        cell = displacement.detach().floor()
        index = pixel + _integers(cell, n, padding_mode)
        low, high = _look_up(index, n, padding_mode), _look_up(index + 1, n, padding_mode)
        apart = low[0] != high[0]
        fraction = torch.where(apart, displacement - cell, 0)  # of nothing, between a pixel and itself,
        axes.append([(*low, 1 - fraction), (high[0], high[1] & apart, fraction)])  # which counts once
    for corner in itertools.product(*axes):
        index = torch.zeros((), dtype=torch.long, device=parameters.device)
        counts = torch.ones((), dtype=torch.bool, device=parameters.device)
        weight = torch.ones((), dtype=parameters.dtype, device=parameters.device)
        for n, (index_here, counts_here, weight_here) in zip(size, corner, strict=True):
            index, counts, weight = index * n + index_here, counts & counts_here, weight * weight_here
        counts, weight = counts & poison.isfinite(), weight + poison
        index = torch.where(counts, index, 0)
        yield tuple(t.flatten(2 + len(size)).flatten(2, 1 + len(size)) for t in (index, counts, weight))  # type: ignore[misc]


def _integers(cell: Tensor, size: int, padding_mode: str) -> Tensor:
    """Integral floats of any size, as integers that select the same pixels."""
    cell = cell.to(torch.promote_types(cell.dtype, torch.float32))
    if padding_mode == "reflection":
        cell = cell.fmod(_period(size))
    far = 2.0**60
    return cell.clamp(-far, far).long()


def _look_up(index: Tensor, size: int, padding_mode: str) -> tuple[Tensor, Tensor]:
    """The pixel of an axis that an index selects, and whether it counts."""
    if padding_mode == "border":
        index = index.clamp(0, size - 1)
    elif padding_mode == "reflection":
        index = index.remainder(_period(size))
        index = torch.minimum(index, _period(size) - index)
    return index, (index >= 0) & (index < size)


def _period(size: int) -> int:
    """Of an axis that is reflected at the centres of its first and last pixel."""
    return max(2 * (size - 1), 1)


# ---- Sums of windows, with a batch ----


def aggregate(input: Tensor, mask: Tensor, parameters: Tensor, source: str, kernel_size: Ints, *options: Any) -> Tensor:
    """The sum of the taps of every window times the mask ``(B, M * K, *out)``: ``(B, C, *out)``.

    The other arguments of this function and the next two are those of :func:`sample`.
    """
    out, taps = _by_tap(input, parameters, source, kernel_size, *options)
    groups = mask.shape[1] // taps.shape[2]
    factors = mask.expand(taps.shape[0], -1, *out).reshape(taps.shape[0], groups, 1, *taps.shape[2:])
    return (taps.unflatten(1, (groups, -1)) * factors).sum(3).flatten(1, 2).unflatten(2, out)


def correlate(
    query: Tensor,
    input: Tensor,
    parameters: Tensor,
    source: str,
    kernel_size: Ints,
    *options: Any,
    mask_groups: int = 1,
) -> Tensor:
    """Every window times the query ``(B, C, *out)``, summed over each group of channels: ``(B, M * K, *out)``."""
    out, taps = _by_tap(input, parameters, source, kernel_size, *options)
    products = taps * query.flatten(2).unsqueeze(2)
    return products.unflatten(1, (mask_groups, -1)).sum(2).flatten(1, 2).unflatten(2, out)


def max_pool(
    input: Tensor,
    parameters: Tensor,
    source: str,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    aligned: bool = True,
    padding_mode: str = "ignore",
) -> tuple[Tensor, Tensor]:
    """The largest sample of every window and its tap, the first of equal ones: both ``(B, C, *out)``."""
    ignore, axes = padding_mode == "ignore", input.dim() - 2
    window = kernel_size, stride, padding, dilation
    mode = "zeros" if ignore else padding_mode
    out, taps = _by_tap(input, parameters, source, *window, groups, aligned, mode)
    counts = torch.ones_like(taps, dtype=torch.bool)
    if ignore:
        parameters = parameters.expand(taps.shape[0], -1, *out)
        places = positions(parameters, source, *window, groups, aligned)
        for axis, (pixel, displacement) in enumerate(places):
            last, cell = input.shape[2 + axis] - 1, displacement.floor()
            index = pixel + _integers(torch.where(cell.isfinite(), cell, 0), last + 1, mode)
            inside = (index >= 0) & ((index < last) | ((index == last) & (displacement == cell)))
            batch = taps.shape[0]
            inside = (inside | ~displacement.isfinite()).expand(batch, groups, *_per_axis(kernel_size, axes), *out)
            inside = inside.reshape(batch, groups, *taps.shape[2:])
            counts = counts & inside.repeat_interleave(input.shape[1] // groups, 1)
    taps = torch.where(counts, taps, -math.inf)
    values = taps.amax(2)
    number = torch.arange(taps.shape[2], device=taps.device).view(-1, 1)
    last_nan = torch.where(taps.isnan(), number, -1).amax(2)
    first = torch.where(counts & (taps == values.unsqueeze(2)), number, taps.shape[2]).amin(2)
    chosen = torch.where(last_nan >= 0, last_nan, torch.where(first < taps.shape[2], first, -1))
    # The values again, differentiable as the samples that they are.
    sampled = taps.gather(2, chosen.clamp_min(0).unsqueeze(2)).squeeze(2)
    return sampled.unflatten(2, out), chosen.unflatten(2, out)


def _by_tap(
    input: Tensor, parameters: Tensor, source: str, kernel_size: Ints, *options: Any
) -> tuple[tuple[int, ...], Tensor]:
    """The output grid, and samples as ``(B, C, K, L)``."""
    stride, padding, dilation = (*options, *(1, 0, 1)[len(options) :])[:3]
    out = _grid(input.shape[2:], kernel_size, stride, padding, dilation)
    columns = sample(input, parameters, source, kernel_size, *options)
    taps = math.prod(_per_axis(kernel_size, len(out)))
    return out, columns.reshape(input.shape[0], input.shape[1], taps, math.prod(out))


# ---- With a batch or without ----


def _unfold(axes: int, input: Tensor, parameters: Tensor, *options: Any) -> Tensor:
    if input.dim() == axes + 1:
        return sample(input[None], parameters[None], *options)[0]
    return sample(input, parameters, *options)


def _conv(
    axes: int,
    input: Tensor,
    weight: Tensor,
    parameters: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    *options: Any,
) -> Tensor:
    if input.dim() == axes + 1:
        masks = None if mask is None else mask[None]
        return convolution(input[None], weight, parameters[None], bias, masks, *options)[0]
    return convolution(input, weight, parameters, bias, mask, *options)


def _deform_conv(
    axes: int,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    padding_mode: str,
) -> Tensor:
    """The shapes of the weight and the offsets tell how many groups there are."""
    groups = max(input.shape[-axes - 1], 1) // max(weight.shape[-axes - 1], 1)
    offset_groups = offset.shape[-axes - 1] // (axes * math.prod(weight.shape[-axes:]))
    options = ("offsets", stride, padding, dilation, groups, offset_groups, True, padding_mode)
    return _conv(axes, input, weight, offset, bias, mask, *options)


def _fold(axes: int, columns: Tensor, output_size: Ints, parameters: Tensor, *options: Any) -> Tensor:
    size = _per_axis(output_size, axes)
    if columns.dim() == 2:
        return splat(columns[None], size, parameters[None], *options)[0]
    return splat(columns, size, parameters, *options)


# ---- Under the names that models call ----


def dynamic_dilation_unfold1d(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_unfold1d` computes."""
    return _unfold(
        1, input, dilation_map, "rates", kernel_size, stride, padding, dilation, groups, aligned, padding_mode
    )


def dynamic_dilation_unfold(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_unfold` computes.

    Example:
        >>> input, dilation_map = torch.randn(2, 4, 6, 7), torch.ones(2, 1, 4, 5)
        >>> torch.equal(reference.dynamic_dilation_unfold(input, 3, dilation_map), F.unfold(input, 3))
        True
    """
    return _unfold(
        2, input, dilation_map, "rates", kernel_size, stride, padding, dilation, groups, aligned, padding_mode
    )


def dynamic_dilation_unfold3d(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_unfold3d` computes."""
    return _unfold(
        3, input, dilation_map, "rates", kernel_size, stride, padding, dilation, groups, aligned, padding_mode
    )


def dynamic_dilation_fold1d(
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_fold1d` computes."""
    options = ("rates", kernel_size, stride, padding, dilation, groups, aligned, padding_mode)
    return _fold(1, columns, output_size, dilation_map, *options)


def dynamic_dilation_fold(
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_fold` computes.

    Example:
        >>> columns, dilation_map = torch.randn(2, 36, 20), torch.ones(2, 1, 4, 5)
        >>> torch.allclose(
        ...     reference.dynamic_dilation_fold(columns, (6, 7), 3, dilation_map), F.fold(columns, (6, 7), 3), atol=1e-5
        ... )
        True
    """
    options = ("rates", kernel_size, stride, padding, dilation, groups, aligned, padding_mode)
    return _fold(2, columns, output_size, dilation_map, *options)


def dynamic_dilation_fold3d(
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_fold3d` computes."""
    options = ("rates", kernel_size, stride, padding, dilation, groups, aligned, padding_mode)
    return _fold(3, columns, output_size, dilation_map, *options)


def deform_unfold1d(
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.deform_unfold1d` computes."""
    return _unfold(1, input, offset, "offsets", kernel_size, stride, padding, dilation, groups, True, padding_mode)


def deform_unfold2d(
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.deform_unfold2d` computes.

    Example:
        >>> input, offset = torch.randn(2, 4, 6, 7), torch.zeros(2, 18, 4, 5)
        >>> torch.equal(reference.deform_unfold2d(input, 3, offset), F.unfold(input, 3))
        True
    """
    return _unfold(2, input, offset, "offsets", kernel_size, stride, padding, dilation, groups, True, padding_mode)


def deform_unfold3d(
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.deform_unfold3d` computes."""
    return _unfold(3, input, offset, "offsets", kernel_size, stride, padding, dilation, groups, True, padding_mode)


def affine_unfold1d(
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.affine_unfold1d` computes."""
    return _unfold(1, input, theta, "affine", kernel_size, stride, padding, dilation, groups, True, padding_mode)


def affine_unfold2d(
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.affine_unfold2d` computes.

    Example:
        >>> input, theta = torch.randn(2, 4, 6, 7), torch.eye(2, 3).view(1, 6, 1, 1)
        >>> torch.equal(reference.affine_unfold2d(input, 3, theta), F.unfold(input, 3))
        True
    """
    return _unfold(2, input, theta, "affine", kernel_size, stride, padding, dilation, groups, True, padding_mode)


def affine_unfold3d(
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.affine_unfold3d` computes."""
    return _unfold(3, input, theta, "affine", kernel_size, stride, padding, dilation, groups, True, padding_mode)


def dynamic_dilation_conv1d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dilation_groups: int = 1,
    mask: Tensor | None = None,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_conv1d` computes."""
    options = ("rates", stride, padding, dilation, groups, dilation_groups, aligned, padding_mode)
    return _conv(1, input, weight, dilation_map, bias, mask, *options)


def dynamic_dilation_conv2d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dilation_groups: int = 1,
    mask: Tensor | None = None,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_conv2d` computes.

    Example:
        >>> input, weight, dilation_map = torch.randn(2, 4, 6, 7), torch.randn(3, 4, 3, 3), torch.ones(2, 1, 4, 5)
        >>> torch.allclose(
        ...     reference.dynamic_dilation_conv2d(input, weight, dilation_map), F.conv2d(input, weight), atol=1e-5
        ... )
        True
    """
    options = ("rates", stride, padding, dilation, groups, dilation_groups, aligned, padding_mode)
    return _conv(2, input, weight, dilation_map, bias, mask, *options)


def dynamic_dilation_conv3d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dilation_groups: int = 1,
    mask: Tensor | None = None,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_conv3d` computes."""
    options = ("rates", stride, padding, dilation, groups, dilation_groups, aligned, padding_mode)
    return _conv(3, input, weight, dilation_map, bias, mask, *options)


def deform_conv1d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    mask: Tensor | None = None,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.deform_conv1d` computes."""
    return _deform_conv(1, input, offset, weight, bias, mask, stride, padding, dilation, padding_mode)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    mask: Tensor | None = None,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.deform_conv2d` computes.

    Example:
        >>> input, weight, offset = torch.randn(2, 4, 6, 7), torch.randn(3, 4, 3, 3), torch.zeros(2, 18, 4, 5)
        >>> torch.allclose(reference.deform_conv2d(input, offset, weight), F.conv2d(input, weight), atol=1e-5)
        True
    """
    return _deform_conv(2, input, offset, weight, bias, mask, stride, padding, dilation, padding_mode)


def deform_conv3d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    mask: Tensor | None = None,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.deform_conv3d` computes."""
    return _deform_conv(3, input, offset, weight, bias, mask, stride, padding, dilation, padding_mode)


def affine_conv1d(
    input: Tensor,
    weight: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    theta_groups: int = 1,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.affine_conv1d` computes."""
    options = ("affine", stride, padding, dilation, groups, theta_groups, True, padding_mode)
    return _conv(1, input, weight, theta, bias, mask, *options)


def affine_conv2d(
    input: Tensor,
    weight: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    theta_groups: int = 1,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.affine_conv2d` computes.

    Example:
        >>> input, weight, theta = torch.randn(2, 4, 6, 7), torch.randn(3, 4, 3, 3), torch.eye(2, 3).view(1, 6, 1, 1)
        >>> torch.allclose(reference.affine_conv2d(input, weight, theta), F.conv2d(input, weight), atol=1e-5)
        True
    """
    options = ("affine", stride, padding, dilation, groups, theta_groups, True, padding_mode)
    return _conv(2, input, weight, theta, bias, mask, *options)


def affine_conv3d(
    input: Tensor,
    weight: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    theta_groups: int = 1,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    """What :func:`ddu_ops.affine_conv3d` computes."""
    options = ("affine", stride, padding, dilation, groups, theta_groups, True, padding_mode)
    return _conv(3, input, weight, theta, bias, mask, *options)


# ---- Dilated convolution with learnable spacings ----


def dcls_kernel(
    weight: Tensor, positions: Tensor, kernel_size: Ints, sigma: Tensor | None = None, *, version: str = "v1"
) -> Tensor:
    """The dense kernel: see :func:`ddu_ops.dcls.dcls_kernel`. It stores the share of every point in every cell."""
    axes = positions.shape[0]
    size = _per_axis(kernel_size, axes)
    least = 0.27 if version == "gauss" else 1.0
    shares: Tensor | None = None
    for axis, cells in enumerate(size):
        position = positions[axis].unsqueeze(-1)
        whole = position.detach().floor()
        distance = torch.arange(cells, dtype=positions.dtype, device=positions.device) - cells // 2 - whole
        distance = distance - (position - whole)
        width = torch.ones_like(position)
        if sigma is not None:
            raw = sigma[axis].unsqueeze(-1)
            width = torch.where(raw < 0, -raw, raw) + least
        if version == "gauss":
            share = torch.exp(-0.5 * (distance / width).clamp(-100, 100) ** 2)
        else:
            slope = torch.where(distance > 0, 1.0, -1.0).to(distance)
            outside = (distance <= -width) | (distance > width)
            share = torch.where(outside, 0.0, width - slope * distance)
        share = share.reshape(*weight.shape, *([1] * axis), cells, *([1] * (axes - axis - 1)))
        shares = share if shares is None else shares * share
    assert shares is not None
    if version != "v0":
        shares = shares / (shares.sum(tuple(range(-axes, 0)), keepdim=True) + 1e-7)
    return (weight.reshape(*weight.shape, *([1] * axes)) * shares).sum(2)
