"""The closed formulas for receptive fields, compared with the gradient."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddu_ops
from ddu_ops import viz
from ddu_ops.receptive_field import Layer, coverage, field, interval, pixels, size, stack_interval, trace
from networks import ResNet50

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


# ---- Jump, start and size; traced models ----


@pytest.mark.parametrize("rate, size", [(1, 3), (2, 5), (4, 9), (8, 17), (16, 33)])
def test_the_size_of_one_layer(rate: int, size: int) -> None:
    assert field(Layer(3, dilation=rate)).size == (size,)


@pytest.mark.parametrize(
    "layers, size",
    [
        ([Layer(2, dilation=2**i) for i in range(8)], 256),
        ([Layer(2, dilation=2**i) for i in range(10)] * 3, 3070),
        ([Layer(3, dilation=2**i) for i in range(6)], 127),
    ],
    ids=["WaveNet", "three cycles of WaveNet", "exponential"],
)
def test_the_size_of_known_stacks(layers: list[Layer], size: int) -> None:
    assert field(layers).size == (size,)


def test_jump_and_start_follow_the_recurrence() -> None:
    layers = [Layer((7, 3, 5), 2, (3, 1, 0), (1, 2, 1)), Layer(2, 2), Layer(3, (1, 2, 3), 1, 2)]
    found = field(layers)
    for axis in range(3):
        jump, size, start = 1, 1, 0.0
        for layer in layers:
            k, s, p, d = layer.along(axis)
            size += (k - 1) * d * jump
            start += (d * (k - 1) / 2 - p) * jump
            jump *= s
        assert (found.jump[axis], found.size[axis], found.start[axis]) == (jump, size, start)


def test_layers_of_different_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^field\(\): expected layers with one number of axes, but got \[2, 3\]"):
        field([Layer((3, 3)), Layer((3, 3, 3))])
    with pytest.raises(ValueError, match=r"^Layer\(\): expected stride to be one or three ints, but got \(1, 2\)"):
        Layer((3, 3, 3), (1, 2))


@pytest.mark.parametrize(
    "form", [np.int64, torch.tensor, lambda n: [n], lambda n: (np.int32(n),) * 2, lambda n: [n] * 3]
)
def test_options_of_a_layer_by_index(form: Callable[[int], Any]) -> None:
    assert Layer(form(3), form(2), form(1), form(4)).along(0) == (3, 2, 1, 4)
    assert Layer(3, form(2)).along(1) == (3, 2, 0, 1)


@pytest.mark.parametrize("value", [1.5, "3", None, (1.5, 2), [None], (), (1,) * 4, 1j], ids=repr)
@pytest.mark.parametrize("option", ["kernel_size", "stride", "padding", "dilation"])
def test_options_of_a_layer_that_are_no_numbers(option: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^Layer\(\): expected {option} to be an int, or one for each of one to three axes, but got "
    ) as caught:
        Layer(**{"kernel_size": 3, option: value})
    assert str(caught.value).endswith(f"but got {value!r}")


class Branches(nn.Module):
    """An encoder and a decoder, with a skip connection, on any number of axes."""

    def __init__(self, axes: int, up: str) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[axes - 1]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        self.stem = nn.Sequential(conv(1, 2, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(pool(2), conv(2, 2, 3, padding=2, dilation=2))
        if up == "transposed":
            self.up = transposed(2, 2, 2, stride=2)
        else:
            self.up = nn.Upsample(scale_factor=2, mode=up)
        self.head = conv(4, 1, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        skip = self.stem(input)
        return self.head(torch.cat([skip, self.up(self.down(skip))], 1))


def reads(model: nn.Module, image: Tensor, place: tuple[int, ...]) -> Tensor:
    """Where the gradient of an output position is not zero, with weights that do not cancel."""
    model = model.double().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    image = torch.ones(image.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(image)[(0, 0, *place)], image)
    return gradient[0].abs().sum(0).nonzero()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("up", ["transposed", "nearest", "linear"])
def test_a_traced_model_reads_no_more_than_the_field(axes: int, up: str) -> None:
    """And at some position as much, for all positions between two of the coarse ones have the same bound."""
    up = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes] if up == "linear" else up
    model = Branches(axes, up)
    image = torch.zeros(1, 1, *(24,) * axes)
    found = trace(model, image)[""]
    assert found.jump == (1,) * axes
    low, high = 99.0, -99.0
    for place in (11, 12):
        pixels = reads(model, image, (place,) * axes)
        for axis in range(axes):
            assert pixels[:, axis].min() >= place + found.first[axis]
            assert pixels[:, axis].max() <= place + found.last[axis]
        low, high = min(low, pixels[:, 0].min() - place), max(high, pixels[:, 0].max() - place)
    assert (low, high) == (found.first[0], found.last[0])


def test_a_traced_stack_is_the_formula() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 4, 3, padding="same", dilation=(2, 3), padding_mode="replicate"), nn.Flatten(2), nn.Unflatten(2, (16, 16)),
    )  # fmt: skip
    layers = [Layer(7, 2, 3), Layer(3, 2, 1), Layer((3, 3), 1, (2, 3), (2, 3))]
    found = trace(model)
    assert found[""] == found["6"] == field(layers)
    assert found["3"] == trace(model[:4])[""]
    assert model.training


def test_a_bottleneck_network() -> None:
    """The output of the fourth stage of a ResNet-50: its stem reads 11 pixels, its stages 24, 56, 176 and 160 more."""
    found = trace(ResNet50())
    assert found["layer1"].size == (35, 35)
    assert found["layer4"].size == (427, 427)
    assert found["layer4"].jump == (32, 32)
    assert found["layer4"].aligned
    assert found[""].size == (math.inf, math.inf)


def test_dynamic_layers_count_with_the_rates_that_they_have() -> None:
    layer = ddu_ops.DynamicDilationConv2d(2, 2, 3, padding=1, per_axis=True)
    assert trace(layer)[""] == field(Layer((3, 3), padding=1))
    with torch.no_grad():
        layer.rate.bias.copy_(torch.tensor([5.0, 15.0]))
    height, width = layer.rate(torch.zeros(1, 2, 1, 1)).flatten().tolist()
    assert trace(layer)[""].size == (1 + 2 * math.ceil(height), 1 + 2 * math.ceil(width))
    offsets = torch.zeros(1, 18, 9, 9)
    offsets[0, 4, 3, 3], offsets[0, 5, 2, 2] = -3.5, 2.0

    class Deform(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return ddu_ops.deform_unfold2d(input, 3, offsets, padding=1)

    found = trace(Deform(), torch.zeros(1, 1, 9, 9))[""]
    assert (found.first, found.last) == ((-5, -1), (1, 3))


def test_what_happens_to_channels_moves_nothing() -> None:
    """Norms, attention over channels, layers on the last axis, parts of the channels and their order."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)])
            self.linear = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())

        def forward(self, input: Tensor) -> Tensor:
            x = self.conv(input)
            for norm in self.norms:
                x = norm(x)
            x = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            first, second = x.chunk(2, 1)
            x = torch.cat([second.softmax(1) * x[:, :4], first.mean(1, keepdim=True)], 1)
            return torch.stack([x[:, 0], x[:, 1:].sum(1)], 1).relu_()

    assert trace(Mixed())[""] == field(Layer((3, 3), padding=1))


def test_branches_that_are_not_aligned() -> None:
    class Shifted(nn.Module):
        def __init__(self, *convs: nn.Module) -> None:
            super().__init__()
            self.convs = nn.ModuleList(convs)

        def forward(self, input: Tensor) -> Tensor:
            first, second = (conv(input) for conv in self.convs)
            return first + second[..., : first.shape[-1]]

    assert not trace(Shifted(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=2)))[""].aligned
    assert trace(Shifted(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 5, padding=2)))[""].aligned
    with pytest.raises(ValueError, match=r"^trace\(\): expected the branches that add puts together to have one jump"):
        trace(Shifted(nn.Conv1d(1, 1, 3, 2), nn.Conv1d(1, 1, 3)))
    with pytest.raises(ValueError, match=r"^trace\(\): expected input to be a tensor, because the model has no conv"):
        trace(nn.ReLU())


# ---- Coverage ----


@pytest.mark.parametrize(
    "rates, size, covered, share, hdc",
    [
        ([2, 2, 2, 2], 17, 9, 0.28, 2),
        ([2, 3, 2, 3], 21, 19, 0.82, 4),
        ([1, 2, 5], 17, 17, 1, 2),
        ([1, 2, 9], 25, 21, 0.71, 5),
        ([1, 2, 3], 13, 13, 1, 2),
        ([2, 4, 8], 29, 15, 0.27, 4),
        ([1, 2, 4, 8, 16, 32], 127, 127, 1, 2),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:coverage")
def test_coverage_of_known_rates(rates: list[int], size: int, covered: int, share: float, hdc: int) -> None:
    found = coverage(rates)
    assert (found.size, found.covered, found.hdc, round(found.share(), 2)) == (size, covered, hdc, share)
    assert found.hdc_holds == (hdc <= 3)
    assert sum(found.multiplicity) == 3 ** len(rates)
    pattern = viz.gridding_pattern(rates, size=127)
    line = pattern[63, 63 - size // 2 : 64 + size // 2] / pattern[63, 63] * found.multiplicity[size // 2]
    assert line.round().int().tolist() == list(found.multiplicity)


def test_the_two_criteria_disagree() -> None:
    with pytest.warns(
        UserWarning, match=r"^coverage\(\): HDC's criterion passes the rates \[2, 2, 2, 2\], M_2 = 2 for"
    ):
        assert coverage([2, 2, 2, 2]).hdc_holds
    assert coverage([2, 3, 2, 3]).holes == (1, 19)  # both refuse: no warning


def test_coverage_with_strides_is_what_the_gradient_reaches() -> None:
    layers = [Layer(3, 2, dilation=2), Layer(2, 1, dilation=3), Layer(4, 2)]
    convs = [nn.Conv1d(1, 1, k, s, 0, d, bias=False).double() for k, s, _, d in (layer.along(0) for layer in layers)]
    for conv in convs:
        nn.init.ones_(conv.weight)
    image = torch.zeros(1, 1, 40, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(nn.Sequential(*convs)(image)[0, 0, 0], image)
    found = coverage(layers)
    assert gradient[0, 0, : found.size].int().tolist() == list(found.multiplicity)
    assert found.hdc is None
    assert coverage([2]).hdc is None
    with pytest.raises(ValueError, match=r"^coverage\(\): expected rates to be whole numbers, but got Layer\("):
        coverage([Layer(3, rate=1.5)])
