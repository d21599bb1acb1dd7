"""Dynamic dilation unfold and fold in plain PyTorch: slow, readable, on any device and in any precision.

The executable specification: everything else in the package is judged by it, in float64. It computes in the type of
its arguments, half types included, and autograd differentiates it to any order. Arguments are as in
:mod:`ddu_ops.functional` and are not checked.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddu_ops._options import Ints, ints

#: How far a result may be from the reference's, by its type: ``‖result - reference‖ / ‖reference‖``, with the reference
#: computed in float64 from the same, rounded, arguments.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


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
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_unfold` computes.

    Example:
        >>> input, dilation_map = torch.randn(2, 4, 6, 7), torch.ones(2, 1, 4, 5)
        >>> torch.equal(reference.dynamic_dilation_unfold(input, 3, dilation_map), F.unfold(input, 3))
        True
    """
    if input.dim() == 3:
        return dynamic_dilation_unfold(
            input[None], kernel_size, dilation_map[None], stride, padding, dilation, groups, aligned=aligned
        )[0]
    batch, channels, height, width = input.shape
    window = (kernel_size, stride, padding, dilation, groups, aligned)
    image = input.reshape(batch, groups, channels // groups, 1, height * width)
    columns: Tensor | None = None
    for index, inside, weight in _corners(dilation_map.expand(batch, -1, -1, -1), (height, width), *window):
        taps, size = index.shape[2], index.shape[3]
        shape = (batch, groups, channels // groups, taps, size)
        pixels = image.expand(*shape[:4], -1).gather(-1, index.unsqueeze(2).expand(shape))
        corner = torch.where(inside.unsqueeze(2), pixels, 0) * weight.unsqueeze(2)
        columns = corner if columns is None else columns + corner
    assert columns is not None
    return columns.flatten(1, 3)


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
) -> Tensor:
    """What :func:`ddu_ops.dynamic_dilation_fold` computes.

    Example:
        >>> columns, dilation_map = torch.randn(2, 36, 20), torch.ones(2, 1, 4, 5)
        >>> torch.allclose(
        ...     reference.dynamic_dilation_fold(columns, (6, 7), 3, dilation_map), F.fold(columns, (6, 7), 3), atol=1e-5
        ... )
        True
    """
    if columns.dim() == 2:
        return dynamic_dilation_fold(
            columns[None], output_size, kernel_size, dilation_map[None], stride, padding, dilation, groups,
            aligned=aligned,
        )[0]  # fmt: skip
    (batch, rows, size), (height, width) = columns.shape, ints(output_size, 2, "output_size", "reference")
    kernel_h, kernel_w = ints(kernel_size, 2, "kernel_size", "reference")
    taps = kernel_h * kernel_w
    per_group = rows // taps // groups
    window = (kernel_size, stride, padding, dilation, groups, aligned)
    values = columns.reshape(batch, groups, per_group, taps, size)
    image = values.new_zeros(batch, groups, per_group, height * width)
    for index, inside, weight in _corners(dilation_map.expand(batch, -1, -1, -1), (height, width), *window):
        shared = torch.where(inside.unsqueeze(2), values * weight.unsqueeze(2), 0)
        where = index.unsqueeze(2).expand(shared.shape)
        image = image.scatter_add(-1, where.flatten(3), shared.flatten(3))
    return image.flatten(1, 2).unflatten(-1, (height, width))


def _corners(
    dilation_map: Tensor,
    size: tuple[int, int],
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    aligned: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The four neighbours of every tap, one after the other, as tensors ``(B, G, kH * kW, L)``.

    A neighbour is an index into the flattened image, whether it lies inside (the index is 0 where it does not), and
    its bilinear weight. In a window with a rate that is not finite no neighbour is inside and each weight is NaN.
    """
    rates = dilation_map.unflatten(1, (groups, -1))[:, :, :, None, None]  # (B, G, 1 or 2, 1, 1, H_out, W_out)
    rate_h, rate_w = rates[:, :, 0], rates[:, :, -1]
    finite = rate_h.isfinite() & rate_w.isfinite()
    poison = torch.where(finite, 0, rate_h + rate_w) * torch.where(finite, 0.0, torch.nan)  # and its gradient is NaN
    rate_h, rate_w = torch.where(finite, rate_h, 0), torch.where(finite, rate_w, 0)

    y = _positions(rate_h, 0, size[0], kernel_size, stride, padding, dilation, aligned)
    x = _positions(rate_w, 1, size[1], kernel_size, stride, padding, dilation, aligned)
    north, west = y.detach().floor(), x.detach().floor()
    for row, weight_y in ((north, 1 - (y - north)), (north + 1, y - north)):
        for column, weight_x in ((west, 1 - (x - west)), (west + 1, x - west)):
            inside = finite & (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
            index = torch.where(inside, row.long() * size[1] + column.long(), 0)
            weight = weight_y * weight_x + poison
            yield tuple(t.flatten(4).flatten(2, 3) for t in (index, inside, weight))  # type: ignore[misc]


def _positions(
    rate: Tensor,  # (B, G, 1, 1, H_out, W_out)
    axis: int,
    size: int,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    aligned: bool,
) -> Tensor:
    """Where the taps sample along an axis: ``(B, G, kH, 1, H_out, W_out)`` for axis 0, ``(B, G, 1, kW, ...)`` for 1."""
    k, s, p, d = (
        ints(option, 2, "an option", "reference")[axis] for option in (kernel_size, stride, padding, dilation)
    )
    a = 1 if aligned else 0
    # Index and tap run along the dimensions that this axis has among the last four, (kH, kW, H_out, W_out).
    i = torch.arange(rate.shape[4 + axis], dtype=rate.dtype, device=rate.device).view([-1, 1] if axis == 0 else [-1])
    m = torch.arange(k, dtype=rate.dtype, device=rate.device).view([-1, 1, 1, 1] if axis == 0 else [-1, 1, 1])
    position = i * s - p + a * d * (k - 1) / 2 + (m - (k - 1) / 2) * d * rate
    return position.clamp(-2, size + 1)  # as far outside as a position need be
