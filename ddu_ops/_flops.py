"""What :class:`torch.utils.flop_counter.FlopCounterMode` counts for the operators.

As for torch's own, a multiply-add is two operations, and finding out where data lies counts for nothing. An entry of
the columns is a sum of four pixels by their bilinear weights, or is shared out over them: 4 multiply-adds. A derivative
by a rate has other weights, found as the others are once for all channels of a group; its product with an entry of the
columns, added to the gradient of the window, is one more. A convolution makes its columns, multiplies each entry by the
mask, if there is one, and then by as many weights as a group has channels of the output; its backward takes the steps
that ``output_mask`` asks for. As in torch's own convolution, a bias counts for nothing.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = tuple[int, ...]

_TOUCH = 4 * 2  # the four pixels of an entry
_REDUCE = 1 * 2
_MASK = 1  # nothing is added


def _count(columns: Shape, each: int, options: tuple[Any, ...]) -> int:
    """``options`` of the call are those after the map; the last of six is the order of a derivative."""
    order = options[5] if len(options) == 6 else ()
    vanishes = max(order, default=0) > (2 if len(order) == 1 else 1)
    return 0 if vanishes else each * math.prod(columns)


@register_flop_formula([torch.ops.ddu.unfold, torch.ops.ddu.sample])
def _sample(input: Shape, kernel_size: Any, dilation_map: Shape, *options: Any, out_shape: Shape) -> int:
    return _count(out_shape, _TOUCH, options)


@register_flop_formula([torch.ops.ddu.fold, torch.ops.ddu.splat])
def _splat(
    columns: Shape, output_size: Any, kernel_size: Any, dilation_map: Shape, *options: Any, out_shape: Shape
) -> int:
    return _count(columns, _TOUCH, options)


@register_flop_formula(torch.ops.ddu.dot)
def _dot(columns: Shape, input: Shape, kernel_size: Any, dilation_map: Shape, *options: Any, out_shape: Shape) -> int:
    return _count(columns, _TOUCH + _REDUCE, options)


@register_flop_formula(torch.ops.ddu.unfold_backward)
def _unfold_backward(
    grad_output: Shape, input: Shape, kernel_size: Any, dilation_map: Shape, *options: Any, out_shape: Any
) -> int:
    rates = dilation_map[1] // options[3]  # by the groups
    return _count(grad_output, _TOUCH + rates * (_TOUCH + _REDUCE), options)


def _entries_and_product(input: Shape, weight: Shape, dilation_map: Shape) -> tuple[int, int]:
    """The entries of a convolution's columns, and the operations of one product of the size of columns times weight."""
    positions = input[0] * math.prod(dilation_map[2:])
    return input[1] * math.prod(weight[2:]) * positions, 2 * math.prod(weight) * positions


@register_flop_formula(torch.ops.ddu.conv2d)
def _conv2d(
    input: Shape,
    weight: Shape,
    dilation_map: Shape,
    bias: Shape | None,
    mask: Shape | None,
    *options: Any,
    out_shape: Shape,
) -> int:
    entries, product = _entries_and_product(input, weight, dilation_map)
    return entries * (_TOUCH + (_MASK if mask is not None else 0)) + product


@register_flop_formula(torch.ops.ddu.conv2d_backward)
def _conv2d_backward(
    grad_output: Shape,
    input: Shape,
    weight: Shape,
    dilation_map: Shape,
    mask: Shape | None,
    *options: Any,
    out_shape: Any,
) -> int:
    entries, product = _entries_and_product(input, weight, dilation_map)
    dilation_groups, (by_input, by_weight, by_map, by_mask) = options[4], options[-1]
    modulation = _MASK if mask is not None else 0
    each = products = 0
    if by_weight or by_mask:
        each += _TOUCH  # the columns again
    if by_weight:
        each += modulation
        products += 1
    if by_input or by_map or by_mask:
        products += 1
    if by_mask:
        each += _REDUCE
    if by_input or by_map:
        each += modulation + _TOUCH
    if by_map:
        each += dilation_map[1] // dilation_groups * (_TOUCH + _REDUCE)
    return entries * each + products * product
