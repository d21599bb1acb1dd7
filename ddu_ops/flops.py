"""Formulas of the operators for :class:`torch.utils.flop_counter.FlopCounterMode`.

Import this module to have the operators counted: ``import ddu_ops`` alone does not, because torch's counter imports
triton.

As with torch's own formulas, a multiply-add counts as two operations, and computing where data lies counts as none.

- An entry of the columns is a weighted sum of the ``2 ** N`` pixels around a position, or is distributed over them:
  ``2 ** N`` multiply-adds.
- A derivative with respect to a parameter of the positions uses other weights, which, like the rest, are computed once
  for all channels of a group. Multiplying it with an entry of the columns and adding the product to the gradient of the
  window or the tap is one more multiply-add.
- A sum of windows takes each sample once, multiplies it by the query, mask and weight that there are, and adds it to
  each of the results.
- A convolution computes its columns, multiplies each entry by the mask, if there is one, and then by as many weights as
  a group has output channels. Its backward counts the steps that ``output_mask`` requests. As in torch's own
  convolution, a bias counts as nothing.
- A kernel with learnable spacings adds each weight to the cells that it can reach: two along every axis, or all of them
  where it has a width. Its backward multiplies each of these with the gradient, once for the weight and once for every
  position and width along an axis. Its sparse form multiplies every output by every tap of its channel, and so does the
  dot that its derivative uses.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

Shape = tuple[int, ...]

# Torch refuses a second formula for an operator, also where this module is only reloaded.
for _operator in [operator for operator in flop_registry if str(operator).startswith("ddu.")]:
    del flop_registry[_operator]

_REDUCE = 1 * 2
_MASK = 1  # nothing is added


def _touch(positions: Shape) -> int:
    """The pixels of an entry, ``2 ** N`` of them."""
    return 2 ** (len(positions) - 2) * 2


def _parameters(positions: Shape, source: str, groups: int) -> int:
    """How many derivatives an entry is multiplied with: by the rates of its window, or by an offset on every axis.

    Those by the entries of an affine map are multiples of the ones by its shifts, made once for all channels.
    """
    return positions[1] // groups if source == "rates" else len(positions) - 2


def _vanishes(positions: Shape, source: str, order: Sequence[int]) -> bool:
    """Whether so high a derivative is zero. By an axis there is one; the one rate moves the taps along all axes."""
    axes = len(positions) - 2
    if source == "affine":  # the entries of a row move the taps along one axis
        order = [sum(order[first : first + axes + 1]) for first in range(0, len(order), axes + 1)]
    one_rate = source == "rates" and len(order) == 1
    return max(order, default=0) > (axes if one_rate else 1)


def _entries(lead: Shape, positions: Shape, window: tuple[Any, ...]) -> int:
    """How many samples a sum of windows takes; ``lead`` has the batch and the channels, ``window`` the kernel size."""
    axes = len(positions) - 2
    kernel = tuple(window[0]) * (axes if len(window[0]) == 1 else 1)
    return lead[0] * lead[1] * math.prod(kernel) * math.prod(positions[2:])


def _factors(*factors: Shape | None) -> int:
    return sum(_MASK for factor in factors if factor is not None)


@register_flop_formula(torch.ops.ddu.aggregate)
def _aggregate(
    input: Shape,
    mask: Shape | None,
    weight: Shape | None,
    taps: Shape | None,
    positions: Shape,
    source: str,
    *window: Any,
    out_shape: Shape,
) -> int:
    # The first factor comes with the sum.
    each = _touch(positions) + _REDUCE + max(_factors(mask, weight) - 1, 0)
    return _entries(input, positions, window) * each


@register_flop_formula(torch.ops.ddu.correlate)
def _correlate(query: Shape, input: Shape, positions: Shape, source: str, *window: Any, out_shape: Shape) -> int:
    return _entries(input, positions, window) * (_touch(positions) + _REDUCE)


@register_flop_formula(torch.ops.ddu.scatter)
def _scatter(
    query: Shape,
    mask: Shape | None,
    weight: Shape | None,
    taps: Shape | None,
    output_size: Any,
    positions: Shape,
    source: str,
    *window: Any,
    out_shape: Shape,
) -> int:
    return _entries(query, positions, window) * (_touch(positions) + _factors(mask, weight))


@register_flop_formula(torch.ops.ddu.sums_backward)
def _sums_backward(
    query: Shape,
    input: Shape,
    mask: Shape | None,
    weight: Shape | None,
    taps: Shape | None,
    positions: Shape,
    source: str,
    *window: Any,
    out_shape: Any,
) -> int:
    by_query, by_input, by_mask, by_weight, by_positions = window[-1]
    touch, factors = _touch(positions), _factors(mask, weight)
    each = touch if by_query or by_mask or by_weight else 0  # the samples
    each += sum(_REDUCE for wanted in (by_query, by_mask, by_weight) if wanted)
    each += factors if by_input or by_positions else 0
    each += touch if by_input else 0
    each += _parameters(positions, source, window[4]) * (touch + _REDUCE) if by_positions else 0
    return _entries(input, positions, window) * each


@register_flop_formula(torch.ops.ddu.max_pool)
def _max_pool(input: Shape, positions: Shape, source: str, *window: Any, out_shape: Any) -> int:
    return _entries(input, positions, window) * _touch(positions)


@register_flop_formula(torch.ops.ddu.unfold)
def _unfold(input: Shape, kernel_size: Any, dilation_map: Shape, *options: Any, out_shape: Shape) -> int:
    return _touch(dilation_map) * math.prod(out_shape)


@register_flop_formula(torch.ops.ddu.fold)
def _fold(
    columns: Shape, output_size: Any, kernel_size: Any, dilation_map: Shape, *options: Any, out_shape: Shape
) -> int:
    return _touch(dilation_map) * math.prod(columns)


@register_flop_formula(torch.ops.ddu.unfold_backward)
def _unfold_backward(
    grad_output: Shape,
    input: Shape,
    kernel_size: Any,
    dilation_map: Shape,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *options: Any,
    out_shape: Any,
) -> int:
    touch = _touch(dilation_map)
    rates = _parameters(dilation_map, "rates", groups)
    return math.prod(grad_output) * (touch + rates * (touch + _REDUCE))


def _order(window: tuple[Any, ...]) -> Sequence[int]:
    """The last option of the family; ``window`` starts with the kernel size. Defaults at the end are left out."""
    return window[7] if len(window) > 7 else ()


@register_flop_formula(torch.ops.ddu.sample)
def _sample(input: Shape, positions: Shape, source: str, *window: Any, out_shape: Shape) -> int:
    return 0 if _vanishes(positions, source, _order(window)) else _touch(positions) * math.prod(out_shape)


@register_flop_formula(torch.ops.ddu.splat)
def _splat(columns: Shape, output_size: Any, positions: Shape, source: str, *window: Any, out_shape: Shape) -> int:
    return 0 if _vanishes(positions, source, _order(window)) else _touch(positions) * math.prod(columns)


@register_flop_formula(torch.ops.ddu.dot)
def _dot(columns: Shape, input: Shape, positions: Shape, source: str, *window: Any, out_shape: Shape) -> int:
    vanishes = _vanishes(positions, source, _order(window))
    return 0 if vanishes else (_touch(positions) + _REDUCE) * math.prod(columns)


@register_flop_formula(torch.ops.ddu.sample_backward)
def _sample_backward(
    grad_output: Shape, input: Shape, positions: Shape, source: str, *window: Any, out_shape: Any
) -> int:
    touch, parameters = _touch(positions), _parameters(positions, source, window[4] if len(window) > 4 else 1)
    stride = len(positions) - 1 if source == "affine" else 1  # from one shift to the next
    order = list(_order(window)) or [0] * (parameters * stride)
    each = 0 if _vanishes(positions, source, order) else touch
    for r in range(parameters):
        raised = [times + (index == (r + 1) * stride - 1) for index, times in enumerate(order)]
        each += 0 if _vanishes(positions, source, raised) else touch + _REDUCE
    return math.prod(grad_output) * each


def _entries_and_product(input: Shape, weight: Shape, positions: Shape) -> tuple[int, int]:
    """The entries of a convolution's columns, and the operations of one product of the size of columns times weight."""
    of_one = weight[-len(positions) :]  # of an image, where each has its own
    windows = input[0] * math.prod(positions[2:])
    return input[1] * math.prod(of_one[2:]) * windows, 2 * math.prod(of_one) * windows


@register_flop_formula(torch.ops.ddu.convolution)
def _convolution(
    input: Shape,
    weight: Shape,
    positions: Shape,
    bias: Shape | None,
    mask: Shape | None,
    *options: Any,
    out_shape: Shape,
) -> int:
    entries, product = _entries_and_product(input, weight, positions)
    return entries * (_touch(positions) + (_MASK if mask is not None else 0)) + product


@register_flop_formula(torch.ops.ddu.convolution_backward)
def _convolution_backward(
    grad_output: Shape,
    input: Shape,
    weight: Shape,
    positions: Shape,
    mask: Shape | None,
    *options: Any,
    out_shape: Any,
) -> int:
    entries, product = _entries_and_product(input, weight, positions)
    source, dilation_groups, (by_input, by_weight, by_positions, by_mask) = options[0], options[5], options[-1]
    touch, parameters = _touch(positions), _parameters(positions, source, dilation_groups)
    modulation = _MASK if mask is not None else 0
    each = products = 0
    if by_weight or by_mask:
        each += touch  # the columns again
    if by_weight:
        each += modulation
        products += 1
    if by_input or by_positions or by_mask:
        products += 1
    if by_mask:
        each += _REDUCE
    if by_input or by_positions:
        each += modulation + touch
    if by_positions:
        each += parameters * (touch + _REDUCE)
    return entries * each + products * product


def _reached(kernel_size: Any, axes: int, version: str) -> int:
    """The cells that a weight is shared out over."""
    sizes = list(kernel_size) * (axes if len(kernel_size) == 1 else 1)
    return math.prod(sizes if version in ("max", "gauss") else [min(2, size) for size in sizes])


@register_flop_formula(torch.ops.ddu.dcls_kernel)
def _dcls_kernel(
    weight: Shape,
    positions: Shape,
    kernel_size: Any,
    sigma: Shape | None = None,
    *,
    version: str = "v1",
    out_shape: Shape,
) -> int:
    return 2 * math.prod(weight) * _reached(kernel_size, positions[0], version)


@register_flop_formula(torch.ops.ddu.dcls_kernel_backward)
def _dcls_kernel_backward(
    grad_output: Shape,
    weight: Shape,
    positions: Shape,
    kernel_size: Any,
    sigma: Shape | None,
    version: str,
    output_mask: Sequence[bool],
    *,
    out_shape: Any,
) -> int:
    products = 1 + positions[0] * sum(output_mask[1:]) if any(output_mask) else 0
    return products * 2 * math.prod(weight) * _reached(kernel_size, positions[0], version)


@register_flop_formula(torch.ops.ddu.dcls_sparse_sum)
def _dcls_sparse_sum(
    input: Shape, factors: Shape, shifts: Shape, output_size: Sequence[int], *, out_shape: Shape
) -> int:
    return 2 * math.prod(out_shape) * factors[1]


@register_flop_formula(torch.ops.ddu.dcls_sparse_dot)
def _dcls_sparse_dot(left: Shape, input: Shape, shifts: Shape, *, out_shape: Shape) -> int:
    return 2 * math.prod(left) * shifts[2]
