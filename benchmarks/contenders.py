"""Who is timed: the operator, and what people use in its place. All take (input, dilation_map, kernel_size)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import ddu_ops

Contender = Callable[[Tensor, Tensor, int], Tensor]


def dynamic_dilation_unfold(input: Tensor, dilation_map: Tensor, kernel_size: int) -> Tensor:
    return ddu_ops.dynamic_dilation_unfold(input, kernel_size, dilation_map, padding=kernel_size // 2)


def unfold(input: Tensor, dilation_map: Tensor, kernel_size: int) -> Tensor:
    """One rate for everything: it takes no notice of the map."""
    return F.unfold(input, kernel_size, padding=kernel_size // 2)


def grid_sample(input: Tensor, dilation_map: Tensor, kernel_size: int) -> Tensor:
    """The same samples by ``F.grid_sample``, all taps in one grid, whose order makes the result columns."""
    batch, _, height, width = input.shape
    taps = kernel_size**2
    tap = torch.arange(kernel_size, device=input.device) - (kernel_size - 1) / 2
    rates = dilation_map.view(batch, 1, 1, height, width)
    shape = (batch, kernel_size, kernel_size, height, width)
    y = torch.arange(height, device=input.device).view(-1, 1) + tap.view(-1, 1, 1, 1) * rates
    x = torch.arange(width, device=input.device) + tap.view(-1, 1, 1) * rates
    grid = torch.stack([(2 * x.expand(shape) + 1) / width - 1, (2 * y.expand(shape) + 1) / height - 1], -1)
    grid = grid.view(batch, taps * height, width, 2).to(input.dtype)
    return F.grid_sample(input, grid, align_corners=False).view(batch, -1, height * width)


def contenders(device: torch.device) -> dict[str, Contender]:
    found: dict[str, Contender] = {
        "ddu": dynamic_dilation_unfold,
        "F.unfold": unfold,
        "grid_sample": grid_sample,
    }
    if device.type == "cuda":
        torch._dynamo.reset()  # each size is compiled for itself
        found["grid_sample, compiled"] = torch.compile(grid_sample, dynamic=False)
    return found


# As a convolution: (input, dilation_map, weight), weight (C_out, C, k, k).

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def ddu_convolution(input: Tensor, dilation_map: Tensor, weight: Tensor) -> Tensor:
    columns = dynamic_dilation_unfold(input, dilation_map, weight.shape[-1])
    return (weight.flatten(1) @ columns).unflatten(-1, input.shape[-2:])


def unfold_convolution(input: Tensor, dilation_map: Tensor, weight: Tensor) -> Tensor:
    columns = unfold(input, dilation_map, weight.shape[-1])
    return (weight.flatten(1) @ columns).unflatten(-1, input.shape[-2:])


def conv2d(input: Tensor, dilation_map: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(input, weight, padding=weight.shape[-1] // 2)


def deform_convolution(input: Tensor, dilation_map: Tensor, weight: Tensor) -> Tensor:
    """Offsets that all say the same: (D - 1) times the tap's distance from the centre."""
    from torchvision.ops import deform_conv2d

    kernel_size = weight.shape[-1]
    tap = torch.arange(kernel_size, device=input.device, dtype=dilation_map.dtype) - (kernel_size - 1) / 2
    pairs = torch.stack(torch.meshgrid(tap, tap, indexing="ij"), -1).view(1, -1, 1, 1)
    offsets = ((dilation_map - 1) * pairs).to(input.dtype)
    return deform_conv2d(input, offsets, weight, padding=kernel_size // 2)


def convolutions() -> dict[str, Convolution]:
    found: dict[str, Convolution] = {
        "ddu + matmul": ddu_convolution,
        "F.unfold + matmul": unfold_convolution,
        "F.conv2d": conv2d,
    }
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError):  # not there, or built for another torch
        return found
    return found | {"torchvision deform_conv2d": deform_convolution}


FIXED_RATE = {"F.unfold", "F.unfold + matmul", "F.conv2d"}  # they compute something else where the map is not one
