"""What :class:`torch.utils.flop_counter.FlopCounterMode` counts for the operators.

As for torch's own, a multiply-add is two operations, and finding out where data lies counts for nothing. An entry of
the columns is a sum of four pixels by their bilinear weights, or is shared out over them: 4 multiply-adds. A derivative
by a rate has other weights, found as the others are once for all channels of a group; its product with an entry of the
columns, added to the gradient of the window, is one more.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = tuple[int, ...]

_TOUCH = 4 * 2  # the four pixels of an entry
_REDUCE = 1 * 2


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
