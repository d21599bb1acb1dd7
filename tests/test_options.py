"""Options: what tests/test_contracts.py, which gives numbers of every form to everything public, does not ask."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

import ddu_ops
from cases import assert_bits
from ddu_ops import layers
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


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, Fraction])
def test_any_number_for_a_map(number: Callable[[int], float]) -> None:
    expected = ddu_ops.dynamic_dilation_unfold(INPUT, 3, 2.0, padding=1)
    assert_bits(ddu_ops.dynamic_dilation_unfold(INPUT, 3, number(2), padding=1), expected)


def test_the_rates_of_a_pyramid_by_index() -> None:
    layer = layers.DynamicASPP(4, 6, rates=(np.int64(1), 2))
    dilations = [part.dilation for part in layer.modules() if isinstance(part, torch.nn.Conv2d)]
    assert {*dilations} >= {(2, 2)}
    assert all(type(d) is int for each in dilations for d in each)
