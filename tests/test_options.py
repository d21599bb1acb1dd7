"""Numbers in the place of options: whatever ``operator.index`` takes, one or one per axis, for everything public."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddu_ops
from cases import assert_bits
from ddu_ops import layers, viz
from ddu_ops._options import ints


class Number:
    """A number by ``__index__`` alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


NUMBERS: list[Callable[[int], Any]] = [np.int64, Number, torch.tensor, np.array]
PER_AXIS: list[Callable[[int], Any]] = [
    lambda value: np.array([value, value]),
    lambda value: (np.int32(value),),
    lambda value: [np.uint32(value), value],
]
ONE = {"groups", "dilation_groups", "in_channels", "out_channels", "size"}  # never one per axis

# Two values of every option, the first its default here.
WINDOW = {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 2), "dilation": (1, 2)}
CONVOLUTION = {name: values for name, values in WINDOW.items() if name != "kernel_size"}

GROUPS = {"groups": (1, 2), "dilation_groups": (1, 2)}


def grid(kernel_size: int = 3, stride: int = 1, padding: int = 1, dilation: int = 1, **_: int) -> tuple[int, int]:
    height, width = ((n + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for n in (9, 8))
    return height, width


def dilation_map(groups: int = 1, **options: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, groups, *grid(**options), generator=generator) * 3


def columns(kernel_size: int = 3, **options: int) -> Tensor:
    height, width = grid(kernel_size, **options)
    return torch.randn(2, 4 * kernel_size**2, height * width, generator=torch.Generator().manual_seed(0))


def image() -> Tensor:
    return torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))


def weight(groups: int = 1, **_: int) -> Tensor:
    return torch.randn(4, 4 // groups, 3, 3, generator=torch.Generator().manual_seed(0))


class Function:
    """A function of options, and what it takes beside them."""

    def __init__(self, name: str, call: Callable[..., Any], options: dict[str, tuple[int, int]], tensors: Any) -> None:
        self.name, self.call, self.options, self.tensors = name, call, options, tensors


FUNCTIONS = [
    Function(
        "dynamic_dilation_unfold",
        ddu_ops.dynamic_dilation_unfold,
        {**WINDOW, "groups": (1, 2)},
        lambda **o: {"input": image(), "dilation_map": dilation_map(**o)},
    ),
    Function(
        "dynamic_dilation_fold",
        ddu_ops.dynamic_dilation_fold,
        {**WINDOW, "groups": (1, 2)},
        lambda **o: {"columns": columns(**o), "output_size": (9, 8), "dilation_map": dilation_map(**o)},
    ),
    Function(
        "dynamic_dilation_fold",
        ddu_ops.dynamic_dilation_fold,
        {"output_size": (5, 6)},
        lambda output_size, **_: {
            "columns": torch.ones(1, 9, output_size**2),
            "kernel_size": 3,
            "padding": 1,
            "dilation_map": torch.full((1, 1, output_size, output_size), 1.5),
        },
    ),
    Function(
        "dynamic_dilation_conv2d",
        ddu_ops.dynamic_dilation_conv2d,
        {**CONVOLUTION, **GROUPS},
        lambda groups, dilation_groups, **o: {
            "input": image(),
            "weight": weight(groups),
            "dilation_map": dilation_map(dilation_groups, **o),
        },
    ),
    Function(
        "deform_unfold2d",
        ddu_ops.deform_unfold2d,
        {**WINDOW, "groups": (1, 2)},
        lambda kernel_size, groups, **o: {
            "input": image(),
            "offset": dilation_map(2 * groups * kernel_size**2, kernel_size=kernel_size, **o),
        },
    ),
    Function(
        "deform_conv2d",
        ddu_ops.deform_conv2d,
        CONVOLUTION,
        lambda **o: {"input": image(), "weight": weight(), "offset": dilation_map(18, **o)},
    ),
    Function(
        "to_offsets",
        ddu_ops.to_offsets,
        {"kernel_size": (3, 2), "dilation": (1, 2), "dilation_groups": (1, 2)},
        lambda **_: {"dilation_map": dilation_map(2)},
    ),
]


def module(make: Callable[..., nn.Module], *arguments: Callable[..., Tensor]) -> Callable[..., Any]:
    def call(**options: Any) -> Any:
        torch.manual_seed(0)
        made = make(**options)
        plain = {name: int(np.asarray(value).flat[0]) for name, value in options.items() if not isinstance(value, str)}
        return made(*(argument(**plain) for argument in arguments))

    return call


MODULES = [
    Function(
        "DynamicDilationUnfold",
        module(ddu_ops.DynamicDilationUnfold, lambda **_: image(), dilation_map),
        {**WINDOW, "groups": (1, 2)},
        lambda **_: {},
    ),
    Function(
        "DynamicDilationFold",
        module(lambda **o: ddu_ops.DynamicDilationFold((9, 8), **o), columns, dilation_map),
        {**WINDOW, "groups": (1, 2)},
        lambda **_: {},
    ),
    Function(
        "DilationPredictor",
        module(lambda **o: ddu_ops.DilationPredictor(4, **o), lambda **_: image()),
        WINDOW,
        lambda **_: {},
    ),
    Function(
        "DynamicDilationConv2d",
        module(ddu_ops.DynamicDilationConv2d, lambda **_: image()),
        {"in_channels": (4, 4), "out_channels": (4, 6), **WINDOW, **GROUPS},
        lambda **_: {},
    ),
    Function(
        "DynamicDilationConv2d",  # which the layer is made of, and names
        module(lambda **o: layers.AdaptiveDilationConv2d(4, 6, **o), lambda **_: image()),
        {**WINDOW, **GROUPS},
        lambda **_: {},
    ),
    Function(
        "DynamicASPP",
        module(lambda **o: layers.DynamicASPP(**o, rates=(np.int64(1), 2)), lambda **_: image()),
        {"in_channels": (4, 4), "out_channels": (4, 6)},
        lambda **_: {},
    ),
    Function(
        "tap_positions",
        viz.tap_positions,
        WINDOW,
        lambda **o: {"dilation_map": dilation_map(**o)[0]},
    ),
    Function("gridding_pattern", viz.gridding_pattern, {"size": (9, 7)}, lambda **_: {"rates": [2]}),
]


def each(functions: list[Function]) -> Any:
    pairs = [(function, option) for function in functions for option in function.options]
    return pytest.mark.parametrize("function, option", pairs, ids=lambda value: getattr(value, "name", value))


def same(actual: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert_bits(actual, expected)
    else:
        assert actual == expected


@each(FUNCTIONS + MODULES)
def test_a_number_by_index(function: Function, option: str) -> None:
    options = {name: values[0] for name, values in function.options.items()}
    for value in function.options[option]:
        plain = {**options, option: value}
        tensors = function.tensors(**plain)
        expected = function.call(**tensors, **plain)
        for form in NUMBERS if option in ONE else NUMBERS + PER_AXIS:
            same(function.call(**tensors, **{**plain, option: form(value)}), expected)


@pytest.mark.parametrize("value", [1.5, "3", None, (1.5, 2), [None], (), (1, 2, 3), 1j], ids=repr)
@each(FUNCTIONS + MODULES)
def test_what_is_no_number_is_refused_by_name(function: Function, option: str, value: Any) -> None:
    options = {name: values[0] for name, values in function.options.items()}
    tensors = function.tensors(**options)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        function.call(**tensors, **{**options, option: value})
    takes = "an int" if option in ONE else "one or two ints"
    assert str(caught.value).startswith(f"{function.name}(): expected {option} to be {takes}")
    assert str(caught.value).endswith(f"but got {value!r}")


def test_the_words_for_the_padding() -> None:
    for value in ("other", 0.5):
        with pytest.raises(RuntimeError) as caught:
            ddu_ops.dynamic_dilation_conv2d(image(), weight(), dilation_map(), padding=value)  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"dynamic_dilation_conv2d(): expected padding to be one or two ints, 'valid' or 'same', but got {value!r}"
        )
        with pytest.raises(ValueError, match=r"^DynamicDilationConv2d\(\): .* ints, 'valid' or 'same', but got "):
            ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=value)  # type: ignore[arg-type]


@each(FUNCTIONS)
def test_a_compiled_function_of_a_number_that_changes(function: Function, option: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function.call, backend="aot_eager", fullgraph=True)
    options = {name: values[0] for name, values in function.options.items()}
    first, second = function.options[option]
    for value in (first, second, first):
        tensors = function.tensors(**{**options, option: value})
        for given in [value] if option in ONE else [value, (value, value)]:
            same(
                compiled(**tensors, **{**options, option: given}),
                function.call(**tensors, **{**options, option: value}),
            )


@pytest.mark.parametrize("axes, takes", [(1, "one int"), (2, "one or two ints"), (3, "one or three ints")])
def test_any_number_of_axes(axes: int, takes: str) -> None:
    assert ints(3, axes, "stride", "f") == ints([3], axes, "stride", "f") == (3,) * axes
    assert ints(range(axes), axes, "stride", "f") == tuple(range(axes))
    for value in ((1,) * (axes + 1), (), None, 1.0, "1"):
        with pytest.raises(RuntimeError) as caught:
            ints(value, axes, "stride", "f")
        assert str(caught.value) == f"f(): expected stride to be {takes}, but got {value!r}"


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, Fraction])
def test_any_number_for_a_map(number: Callable[[int], Any]) -> None:
    expected = ddu_ops.dynamic_dilation_unfold(image(), 3, 2.0, padding=1)
    assert_bits(ddu_ops.dynamic_dilation_unfold(image(), 3, number(2), padding=1), expected)
