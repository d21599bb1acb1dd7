r"""Closed formulas for the receptive field of a layer and of a stack, with fixed and with dynamic rates.

A layer with kernel size :math:`k`, stride :math:`s`, padding :math:`p`, dilation :math:`d` and the rate :math:`D` of a
position reads, for output position :math:`i` along an axis, between

.. math::
    c - \tfrac{k - 1}{2} d \, |D| \quad \text{and} \quad c + \tfrac{k - 1}{2} d \, |D|, \qquad
    c = i \, s - p + d \, \tfrac{k - 1}{2},

where bilinear taps touch the whole pixels on either side of both ends. In a stack of layers these half widths add up,
each multiplied by the strides of the layers below it; the formulas for fixed rates are those of A. Araujo, W. Norris
and J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ddu_ops._options import Ints, ints, one_or_more

Interval = tuple[float, float]

_OPTIONS = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True)
class Layer:
    """The window of a layer, and the largest rate that it has; 1 for a plain convolution.

    Args:
        kernel_size, stride, padding, dilation: as of the layer, an int or a pair (height, width).
        rate: the rate; of a dynamic layer the largest absolute one, as in ``dilation_map.abs().max().item()``.
        aligned: as in :func:`~ddu_ops.dynamic_dilation_unfold`.

    Example:
        >>> receptive_field.Layer(3, padding=1, rate=2.5)
        Layer(kernel_size=3, stride=1, padding=1, dilation=1, rate=2.5, aligned=True)
    """

    kernel_size: Ints
    stride: Ints = 1
    padding: Ints = 0
    dilation: Ints = 1
    rate: float = 1.0
    aligned: bool = True

    def __post_init__(self) -> None:
        for name in _OPTIONS:
            object.__setattr__(self, name, one_or_more(getattr(self, name), 2, name, "Layer", ValueError))

    def along(self, axis: int) -> tuple[int, int, int, int]:
        """Kernel size, stride, padding and dilation along the height (0) or the width (1)."""
        kernel_size, stride, padding, dilation = (
            ints(getattr(self, name), 2, name, "Layer", ValueError)[axis] for name in _OPTIONS
        )
        return kernel_size, stride, padding, dilation


def interval(layer: Layer, position: Interval, axis: int = 0, rate: float | None = None) -> Interval:
    """What a layer reads for the output positions between two, taps that lie between pixels taken as they are.

    Args:
        layer: the layer.
        position: the first and the last output position.
        axis: 0 for the height, 1 for the width.
        rate: the rate to use in the place of the layer's.

    Returns:
        The first and the last place of a tap, in pixels of the layer's input. It may lie outside.

    Example:
        >>> receptive_field.interval(receptive_field.Layer(3, padding=1), (4, 4), rate=2.5)
        (1.5, 6.5)
    """
    kernel_size, stride, padding, dilation = layer.along(axis)
    reach = dilation * (kernel_size - 1) / 2
    centre = reach if layer.aligned else 0.0
    spread = reach * abs(layer.rate if rate is None else rate)
    first, last = (i * stride - padding + centre for i in position)
    return first - spread, last + spread


def pixels(places: Interval, size: int | None = None) -> tuple[int, int]:
    """The pixels that bilinear samples between two places can touch, cut off at the edges of the image.

    Example:
        >>> receptive_field.pixels((1.5, 6.5))
        (1, 7)
        >>> receptive_field.pixels((-0.5, 6.5), size=6)
        (0, 5)
    """
    first, last = math.floor(places[0]), math.ceil(places[1])
    return (first, last) if size is None else (max(first, 0), min(last, size - 1))


def size(layers: Sequence[Layer], axis: int = 0) -> float:
    r"""Width of what one output position reads, in pixels.

    It is :math:`1 + \sum_l (k_l - 1) \, d_l \, |D_l| \prod_{m < l} s_m`, exactly so where no tap lies between pixels.
    With the largest rates of dynamic layers it is the largest receptive field that they have anywhere.

    Args:
        layers: the stack, the layer that reads the image first.
        axis: 0 for the height, 1 for the width.

    Example:
        >>> stack = [receptive_field.Layer(3, dilation=d) for d in (1, 2, 4)]
        >>> receptive_field.size(stack)
        15.0
        >>> receptive_field.size([receptive_field.Layer(3, rate=1.5)] * 3)
        10.0
    """
    total, step = 1.0, 1
    for layer in layers:
        kernel_size, stride, _, dilation = layer.along(axis)
        total += (kernel_size - 1) * dilation * abs(layer.rate) * step
        step *= stride
    return total


def stack_interval(
    layers: Sequence[Layer],
    position: int,
    axis: int = 0,
    dilation_maps: Sequence[Tensor | None] | None = None,
    sizes: Sequence[int] | None = None,
) -> tuple[int, int]:
    """The first and the last pixel of the image that an output position of a stack can read.

    From the top down: what a position reads of a layer's input are positions of the layer below. Where the map of a
    layer is given, the rates between them decide, position by position; without maps, the layers' own rates do. It is
    a bound: a pixel in between may be skipped (gridding) or carry no weight.

    Args:
        layers: the stack, the layer that reads the image first.
        position: of the output, along the axis.
        axis: 0 for the height, 1 for the width.
        dilation_maps: for each layer ``None`` or its rates along the axis, :math:`(n)`, one for each of its output
            positions; of a two-dimensional map, the largest rate of every row or column.
        sizes: of each layer's input along the axis; then what lies outside is left out.

    Returns:
        The first and the last pixel; (0, -1) if there are none: where all windows lie outside, or their rates are not
        finite.

    Raises:
        ValueError: for maps or sizes that are not as many as the layers.

    Example:
        >>> layers = [receptive_field.Layer(3, padding=1)] * 2
        >>> receptive_field.stack_interval(layers, 8)
        (6, 10)
        >>> rates = torch.linspace(1, 3, 17)
        >>> receptive_field.stack_interval(layers, 8, dilation_maps=[rates, rates])
        (4, 13)
    """
    maps = [None] * len(layers) if dilation_maps is None else list(dilation_maps)
    extents: list[int | None] = [None] * len(layers) if sizes is None else list(sizes)
    for name, given in (("dilation_maps", maps), ("sizes", extents)):
        if len(given) != len(layers):
            raise ValueError(
                f"stack_interval(): expected {name} to be as many as the layers, {len(layers)}, but got {len(given)}"
            )
    first = last = position
    for layer, rates, extent in reversed(list(zip(layers, maps, extents, strict=True))):
        if rates is None:
            places = interval(layer, (first, last), axis)
        else:
            positions = range(max(first, 0), min(last, len(rates) - 1) + 1)
            finite = ((i, float(rates[i])) for i in positions if math.isfinite(rates[i]))
            reads = [interval(layer, (i, i), axis, rate) for i, rate in finite]
            if not reads:
                return 0, -1
            places = min(low for low, _ in reads), max(high for _, high in reads)
        first, last = pixels(places, extent)
        if first > last:
            return 0, -1
    return first, last
