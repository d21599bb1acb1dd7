"""The closed formulas, against what the gradient says."""

import pytest
import torch
from torch import Tensor

import ddu_ops
from ddu_ops.receptive_field import Layer, interval, pixels, size, stack_interval

STACKS = {
    "one": [Layer(3)],
    "even": [Layer((4, 2), (2, 1), (1, 0), (1, 3))],
    "fixed": [Layer(3, dilation=1, padding=1), Layer(3, dilation=2, padding=2), Layer(3, dilation=3, padding=3)],
    "strides": [Layer(3, 2, 1), Layer((3, 5), 2, 1), Layer(3, 1, 1)],
    "rates": [Layer(3, padding=1, rate=1.5), Layer(3, padding=1, rate=-2.25), Layer(2, rate=0.3)],
    "first_tap": [Layer(3, padding=2, rate=1.5, aligned=False), Layer((2, 3), dilation=2, aligned=False)],
}
stacks = pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS.keys())


def apply(layers: list[Layer], image: Tensor, maps: list[Tensor | None] | None = None) -> Tensor:
    """With weights of one, so that no gradient cancels."""
    for index, layer in enumerate(layers):
        weight = torch.ones(1, 1, *(layer.along(axis)[0] for axis in (0, 1)), dtype=torch.float64)
        window = (layer.stride, layer.padding, layer.dilation)
        height, width = (
            (image.shape[2 + axis] + 2 * p - d * (k - 1) - 1) // s + 1
            for axis in (0, 1)
            for k, s, p, d in [layer.along(axis)]
        )
        rates = torch.full((1, 1, height, width), layer.rate, dtype=torch.float64)
        if maps is not None and maps[index] is not None:
            rates = maps[index].view(1, 1, -1, 1).expand(1, 1, height, width)
        image = ddu_ops.dynamic_dilation_conv2d(image, weight, rates, None, *window, aligned=layer.aligned)
    return image


def touched(layers: list[Layer], side: int, maps: list[Tensor | None] | None = None) -> tuple[Tensor, tuple[int, int]]:
    """Where the gradient of an output position in the middle is not zero, and that position."""
    image = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    output = apply(layers, image, maps)
    middle = output.shape[2] // 2, output.shape[3] // 2
    (gradient,) = torch.autograd.grad(output[0, 0, middle[0], middle[1]], image)
    return gradient[0, 0] > 0, middle


def extent(mask: Tensor, axis: int) -> tuple[int, int]:
    found = mask.any(1 - axis).nonzero().flatten()
    return int(found[0]), int(found[-1])


@stacks
@pytest.mark.parametrize("axis", [0, 1])
def test_the_gradient_reaches_as_far(layers: list[Layer], axis: int) -> None:
    """A bound that the gradient attains: every stack ends in taps with weight on its outermost pixels."""
    mask, middle = touched(layers, 64)
    first, last = extent(mask, axis)
    low, high = stack_interval(layers, middle[axis], axis)
    if len(layers) == 1 or all(layer.rate == 1 for layer in layers):
        assert (first, last) == (low, high)
    else:
        # A layer's reach is rounded out to whole pixels, but the pixel there may be read by a tap that lies before it.
        assert low <= first
        assert last <= high
        assert (high - low) - (last - first) <= len(layers)


@stacks
def test_the_size_of_fixed_rates_is_the_width_of_the_interval(layers: list[Layer]) -> None:
    for axis in (0, 1):
        low, high = stack_interval(layers, 7, axis)
        if all(layer.rate == 1 and layer.aligned for layer in layers):
            assert high - low + 1 == size(layers, axis)
        assert high - low + 1 >= size(layers, axis) - 1


def test_maps() -> None:
    """Rates that differ from row to row: the gradient stays within the interval, and the interval is tight."""
    layers = [Layer(3, padding=1)] * 2
    rates = torch.linspace(0.5, 4, 64, dtype=torch.float64)
    mask, (row, _) = touched(layers, 64, [rates, rates])
    first, last = extent(mask, 0)
    low, high = stack_interval(layers, row, dilation_maps=[rates, rates])
    assert low <= first <= low + 1
    assert high - 1 <= last <= high
    by_largest = stack_interval([Layer(3, padding=1, rate=4.0)] * 2, row)
    assert by_largest[0] < low
    assert high < by_largest[1]
    assert stack_interval(layers, 62, dilation_maps=[rates, rates], sizes=[64, 64])[1] == 63


def test_one_tap_between_pixels() -> None:
    assert interval(Layer(3, padding=1), (4, 4), rate=0.25) == (3.75, 4.25)
    assert pixels((3.75, 4.25)) == (3, 5)
    mask, (row, _) = touched([Layer(3, padding=1, rate=0.25)], 9)
    assert extent(mask, 0) == (row - 1, row + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_maps_of_every_type(dtype: torch.dtype) -> None:
    rates = torch.tensor([1.0, 2.0, 3.0]).to(dtype)
    with torch.inference_mode():
        assert stack_interval([Layer(3, padding=1)], 1, dilation_maps=[rates]) == (-1, 3)


def test_nothing_to_read() -> None:
    """No positions, none in the map, none with a rate that is finite, and windows outside of the image."""
    layers = [Layer(3, padding=1)]
    assert stack_interval(layers, 0, dilation_maps=[torch.ones(0)]) == (0, -1)
    assert stack_interval(layers, 9, dilation_maps=[torch.ones(4)]) == (0, -1)
    assert stack_interval(layers, 1, dilation_maps=[torch.tensor([1.0, torch.nan, torch.inf])]) == (0, -1)
    assert stack_interval([Layer(3), Layer(1, padding=9)], 0, sizes=[5, 5]) == (0, -1)
    partly = torch.tensor([1.0, torch.nan, 1.0])
    assert stack_interval([Layer(3, padding=1)] * 2, 1, dilation_maps=[partly, torch.ones(3)]) == (-1, 3)


def test_bad_lengths() -> None:
    with pytest.raises(ValueError, match=r"^stack_interval\(\): expected dilation_maps to be as many as the layers, 1"):
        stack_interval([Layer(3)], 0, dilation_maps=[])
    with pytest.raises(ValueError, match=r"^stack_interval\(\): expected sizes to be as many as the layers, 1, but"):
        stack_interval([Layer(3)], 0, sizes=[4, 4])
