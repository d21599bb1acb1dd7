"""What layers have in common: modules for a number of axes, initial values, checkpoints."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.checkpoint import checkpoint

from ddu_ops._options import integer, ints, several
from ddu_ops.modules import _CONVOLUTIONS, _real

# By the number of axes.
CONV: dict[int, Any] = dict(enumerate(_CONVOLUTIONS, 1))
NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MEAN: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
BLUR: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Composed(nn.Module):
    """A module that is made of others, and starts again as they do."""

    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values."""
        reset_children(self)


def reset_children(module: nn.Module) -> None:
    """In the order in which they were made, each once."""
    for child in module.children():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
        else:
            reset_children(child)


def run(function: Callable[..., Any], *arguments: Any, again: bool) -> Any:
    """Call, and keep nothing but the arguments for the backward, which calls ``again``."""
    if again and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)


def conv_norm_relu(conv: nn.Module, channels: int, axes: int, **options: Any) -> list[nn.Module]:
    return [conv, NORM[axes](channels, **options), nn.ReLU()]


def axes_of(name: str, axes: int) -> int:
    """The number of axes that a layer was asked for."""
    number = integer(axes, "axes", name, ValueError)
    if number not in CONV:
        raise ValueError(f"{name}(): expected axes to be 1, 2 or 3, but got {number}")
    return number


def numbers(name: str, *, least: int = 1, **options: Any) -> list[int]:
    """Options that are one number each, as the layer of this name was given them."""
    return [integer(value, option, name, ValueError, least=least) for option, value in options.items()]


def rates_of(name: str, rates: Iterable[Any], *, some: bool = True) -> tuple[int, ...]:
    """The dilation rates of a layer's convolutions, one each."""
    return several(rates, "rates", name, ValueError, least=1, some=some)


def real(name: str, option: str, value: Any) -> float:
    """An option that is a finite number, as the layer of this name was given it."""
    try:
        number = _real(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}(): expected {option} to be a number, but got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}(): expected {option} to be finite, but got {number}")
    return number


def reals(name: str, option: str, value: Any) -> tuple[float, ...]:
    """The same of one number or more."""
    alone = isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0
    found = tuple(real(name, option, entry) for entry in ((value,) if alone else value))
    if not found:
        raise ValueError(f"{name}(): expected {option} to be one number or more, but got {value!r}")
    return found


def numbers_per_axis(name: str, axes: int, *, least: int = 1, **options: Any) -> list[tuple[int, ...]]:
    """Options that are one number for all axes or one per axis, as the layer of this name was given them."""
    return [ints(value, axes, option, name, ValueError, least=least) for option, value in options.items()]


def spread(mean: Tensor, input: Tensor) -> Tensor:
    """One value per channel, over the grid of an input and in its memory format."""
    if has_torch_function((mean, input)):  # fx does not know the format yet
        return handle_torch_function(spread, (mean, input), mean, input)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    grid = mean.expand(-1, -1, *input.shape[2:])
    if last is None or input.is_contiguous() or not input.is_contiguous(memory_format=last):
        return grid.contiguous()
    return grid.contiguous(memory_format=last)
