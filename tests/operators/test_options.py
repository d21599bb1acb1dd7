"""Options that tests/robustness/test_contracts.py does not cover."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ddu_ops
from cases import assert_bits
from ddu_ops import layers, receptive_field, viz
from ddu_ops._options import ints

INPUT, WEIGHT, MAP = torch.ones(2, 4, 9, 8), torch.ones(4, 4, 3, 3), torch.ones(2, 1, 9, 8)


def test_the_words_for_the_padding() -> None:
    for value in ("other", 0.5):
        with pytest.raises(RuntimeError) as caught:
            ddu_ops.dynamic_dilation_conv2d(INPUT, WEIGHT, MAP, padding=value)  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"dynamic_dilation_conv2d(): expected padding to be one or two ints, 'valid' or 'same', but got {value!r}"
        )
        with pytest.raises(ValueError, match=r"^DynamicDilationConv2d\(\): .* ints, 'valid' or 'same', but got "):
            ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("axes, takes", [(1, "one int"), (2, "one or two ints"), (3, "one or three ints")])
def test_any_number_of_axes(axes: int, takes: str) -> None:
    assert ints(3, axes, "stride", "f") == ints([3], axes, "stride", "f") == (3,) * axes
    assert ints(range(axes), axes, "stride", "f") == tuple(range(axes))
    for value in ((1,) * (axes + 1), (), None, 1.0, "1"):
        with pytest.raises(RuntimeError) as caught:
            ints(value, axes, "stride", "f")
        assert str(caught.value) == f"f(): expected stride to be {takes}, but got {value!r}"


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, Fraction, np.array])
def test_any_number_for_a_map(number: Callable[[int], float]) -> None:
    expected = ddu_ops.dynamic_dilation_unfold(INPUT, 3, 2.0, padding=1)
    assert_bits(ddu_ops.dynamic_dilation_unfold(INPUT, 3, number(2), padding=1), expected)


def test_the_rates_of_a_pyramid_by_index() -> None:
    layer = layers.DynamicASPP(4, 6, rates=(np.int64(1), 2))
    dilations = [part.dilation for part in layer.modules() if isinstance(part, torch.nn.Conv2d)]
    assert {*dilations} >= {(2, 2)}
    assert all(type(d) is int for each in dilations for d in each)


class Number:
    """A number by ``__index__`` alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))


def attend(number: Callable[[int], Any]) -> torch.Tensor:
    query = torch.linspace(-1, 1, 2 * 4 * 72).view(2, 4, 9, 8)
    heads = {"num_heads": number(2), "groups": number(1)}
    return layers.window_attention(query, query, query, 3, MAP, outside="exclude", **heads)


BY_INDEX: dict[str, Callable[[Callable[[int], Any]], Any]] = {
    "k_list": lambda number: layers.FrequencySelection(4, k_list=(number(2), number(4))).k_list,
    "fs_cfg": lambda number: layers.FrequencyAdaptiveConv2d(4, 4, fs_cfg={"k_list": [number(2)]}).FS.k_list,
    "window_attention": lambda number: attend(number).tolist(),
    "output_stride": lambda number: repr(layers.replace_stride_with_dilation(strided(), number(2))),
    "moved": lambda number: ddu_ops.OffsetPredictor(4, 3, moved=(number(1),)).moved,
    "position": lambda number: viz.effective_receptive_field(
        nn.ConstantPad2d(1, 0.0), torch.ones(1, 1, 5, 5), (number(2), number(-3))
    ).tolist(),
    "pixels": lambda number: receptive_field.pixels((-0.5, 6.5), number(6)),
    "stack_interval": lambda number: receptive_field.stack_interval(
        [receptive_field.Layer(3, padding=1)] * 2, number(8), sizes=[number(9), number(9)]
    ),
    "exponential_rates": lambda number: layers.exponential_rates(number(3), number(2), number(3)),
}


@pytest.mark.parametrize("form", [Number, torch.tensor, np.array, np.int64])
@pytest.mark.parametrize("name", BY_INDEX)
def test_options_of_layers_and_of_analysis_by_index(name: str, form: Callable[[int], Any]) -> None:
    actual, expected = (BY_INDEX[name](number) for number in (form, int))
    assert actual == expected
    assert repr(actual) == repr(expected)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no_order": (lambda: layers.RandomDilationConv2d(4, 4, 3, rates=(2, 1)), "RandomDilationConv2d(): expected rates to be the lowest and the highest, but got (2, 1)"),
    "one_rate": (lambda: layers.RandomDilationConv2d(4, 4, 3, rates=(1,)), "RandomDilationConv2d(): expected rates to be the lowest and the highest, but got (1,)"),
    "no_end": (lambda: layers.RandomDilationConv2d(4, 4, 3, rates=(0, math.inf)), "RandomDilationConv2d(): expected rates to be finite, but got inf"),
    "words": (lambda: layers.RandomDilationConv2d(4, 4, 3, rates=("1", "2")), "RandomDilationConv2d(): expected rates to be a number, but got '1'"),
    "deform_groups": (lambda: layers.FrequencyAdaptiveConv2d(4, 4, deform_groups=3), "FrequencyAdaptiveConv2d(): expected deform_groups to divide in_channels = 4, but got 3"),
    "deform_groups_3d": (lambda: layers.FrequencyAdaptiveConv3d(4, 4, deform_groups=3), "FrequencyAdaptiveConv3d(): expected deform_groups to divide in_channels = 4, but got 3"),
    "groups": (lambda: layers.FrequencyAdaptiveConv2d(4, 6, groups=4, kernel_decompose=None), "FrequencyAdaptiveConv2d(): expected groups to divide in_channels = 4 and out_channels = 6, but got 4"),
    "padding_mode": (lambda: layers.FrequencyAdaptiveConv2d(4, 4, padding_mode=None), "FrequencyAdaptiveConv2d(): expected padding_mode to be a word, but got None"),
    "epsilon": (lambda: layers.FrequencyAdaptiveConv2d(4, 4, epsilon=math.nan), "FrequencyAdaptiveConv2d(): expected epsilon to be finite, but got nan"),
    "epsilon_3d": (lambda: layers.FrequencyAdaptiveConv3d(4, 4, epsilon="0"), "FrequencyAdaptiveConv3d(): expected epsilon to be a number, but got '0'"),
    "k_of_zero": (lambda: layers.FrequencySelection(4, k_list=(0,)), "FrequencySelection(): expected k_list to be at least 1, but got (0,)"),
    "k_alone": (lambda: layers.FrequencySelection(4, k_list=2), "FrequencySelection(): expected k_list to be a list of ints, but got 2"),
    "k_even": (lambda: layers.FrequencySelection(4, k_list=(4,), lp_type="avgpool"), "FrequencySelection(): expected k_list to be odd with lp_type='avgpool', but got (4,)"),
    "spatial_kernel": (lambda: layers.FrequencySelection(4, spatial_kernel=2), "FrequencySelection(): expected spatial_kernel to be odd, but got 2"),
    "init": (lambda: layers.FrequencySelection(4, init=None), "FrequencySelection(): expected init to be a word, but got None"),
    "WaveNet": (lambda: layers.WaveNet(1, 1, rates=()), "WaveNet(): expected rates to be a list of one or more ints, but got ()"),
    "ASPP": (lambda: layers.ASPP(4, 4, ()), "ASPP(): expected rates to be a list of one or more ints, but got ()"),
    "ASPP_none": (lambda: layers.ASPP(4, 4, None), "ASPP(): expected rates to be a list of one or more ints, but got None"),
    "DynamicASPP": (lambda: layers.DynamicASPP(4, 4, ()), "DynamicASPP(): expected rates to be a list of one or more ints, but got ()"),
    "MultiScale": (lambda: layers.MultiScale(4, 4, None), "MultiScale(): expected rates to be a list of ints, but got None"),
    "attention_empty": (lambda: layers.NeighborhoodAttention2d(8, 2, 3, rates=()), "NeighborhoodAttention2d(): expected rates to be one number or more, but got ()"),
    "attention_none": (lambda: layers.NeighborhoodAttention1d(8, 2, 3, rates=None), "NeighborhoodAttention1d(): expected rates to be a number, but got None"),
    "attention_nan": (lambda: layers.NeighborhoodAttention2d(8, 2, 3, rates=(1, math.nan)), "NeighborhoodAttention2d(): expected rates to be finite, but got nan"),
    "dilation": (lambda: layers.MultiDilatelocalAttention(12, 6, dilation=()), "MultiDilatelocalAttention(): expected dilation to be one number or more, but got ()"),
    "offset_scale": (lambda: layers.DCNv4(16, offset_scale=math.inf), "DCNv4(): expected offset_scale to be finite, but got inf"),
    "bound": (lambda: ddu_ops.OffsetPredictor(4, 3, bound="3"), "OffsetPredictor(): expected bound to be a number, but got '3'"),
    "moved": (lambda: ddu_ops.OffsetPredictor(4, 3, moved=1), "OffsetPredictor(): expected moved to be a list of ints, but got 1"),
    "heads": (lambda: layers.window_attention(INPUT, INPUT, INPUT, 3, MAP, num_heads=0), "window_attention(): expected num_heads to be at least 1, but got 0"),
    "output_stride": (lambda: layers.replace_stride_with_dilation(strided(), 0), "replace_stride_with_dilation(): expected output_stride to be at least 1, but got 0"),
    "position": (lambda: viz.effective_receptive_field(nn.Identity(), INPUT, (1, 2, 3)), "effective_receptive_field(): expected position to be a row and a column, but got (1, 2, 3)"),
}  # fmt: skip


@pytest.mark.parametrize("make, text", REFUSED.values(), ids=REFUSED.keys())
def test_what_a_call_could_not_take_is_refused_by_name(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (((8, 9), 3, 1, "same"), (8, 9)),
        (((8, 9), 2, 1, "same"), (8, 9)),
        (((8, 9), 3, 2, "valid"), (3, 4)),
        ((np.array([8, 9]), 3), (6, 7)),
        ((torch.tensor([8, 9]), 3), (6, 7)),
        ((8, np.array([3, 1])), (6, 8)),
        ((np.int64(8), 3), (6,)),
    ],
)
def test_grid_size_of_words_and_arrays(arguments: tuple[Any, ...], expected: tuple[int, ...]) -> None:
    assert ddu_ops.grid_size(*arguments) == expected


@pytest.mark.parametrize(
    "arguments, text",
    [
        (((8, 8), 3, 0), "stride to be at least 1, but got 0"),
        (((8, 8), 0), "kernel_size to be at least 1, but got 0"),
        (((8, 8), 3, 1, -1), "padding to be at least 0, but got -1"),
        (((8, 8), 3, 1, 0, (1, 0)), "dilation to be at least 1, but got (1, 0)"),
        (((8, 8), 3, 2, "same"), "stride to be 1 with padding='same', but got (2, 2)"),
        (((8, 8), 3, 1, "other"), "padding to be one or two ints, 'valid' or 'same', but got 'other'"),
        (((8,) * 4, 3), "size to be one, two or three ints, but got (8, 8, 8, 8)"),
        (((), 3), "size to be one, two or three ints, but got ()"),
    ],
)
def test_grid_size_refuses_by_name(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(RuntimeError, match=rf"^grid_size\(\): expected {re.escape(text)}$"):
        ddu_ops.grid_size(*arguments)
