"""What layers have in common: modules for a number of axes, initial values, checkpoints."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddu_ops._options import Ints

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MEAN = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
BLUR = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Composed(nn.Module):
    """A module that is made of others, and starts again as they do."""

    def reset_parameters(self) -> None:
        """Starts again, as a new layer does."""
        reset_children(self)


class StartsAtZero(nn.Module):
    """A convolution whose parameters start at zero.

    It is none of :mod:`torch.nn`'s, so loops that initialise every convolution leave it alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        groups: int = 1,
        *,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        conv = CONV[axes](in_channels, out_channels, kernel_size, stride, padding, groups=groups, device="meta")
        self.axes = axes
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = conv.padding
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(conv.weight.shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[self.axes - 1]
        return convolve(input, self.weight, self.bias, self.stride, self.padding, 1, self.groups)

    def extra_repr(self) -> str:
        out_channels, in_channels = self.weight.shape[:2]
        return f"{self.groups * in_channels}, {out_channels}, kernel_size={self.kernel_size}, groups={self.groups}"


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
    if axes not in CONV:
        raise ValueError(f"{name}(): expected axes to be 1, 2 or 3, but got {axes!r}")
    return axes


def with_rates_of_one(predictor: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """To the state of the layer without a predictor, add that of a predictor whose rates are one."""
    if not any(name.startswith(prefix) for name in state_dict):
        for name, parameter in predictor.named_parameters():
            state_dict[prefix + name] = torch.zeros_like(parameter)
