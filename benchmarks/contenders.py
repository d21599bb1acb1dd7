"""The operator and the alternatives that it is compared with.

Windows have odd kernels, stride 1 and padding by half the kernel. As unfolds, all take (input, positions) and their
options by name: kernel_size, source and padding_mode.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import ddu_ops
from benchmarks.workloads import Workload

Contender = Callable[..., Tensor]

FUNCTIONS = {
    "rates": (ddu_ops.dynamic_dilation_unfold1d, ddu_ops.dynamic_dilation_unfold, ddu_ops.dynamic_dilation_unfold3d),
    "offsets": (ddu_ops.deform_unfold1d, ddu_ops.deform_unfold2d, ddu_ops.deform_unfold3d),
}


def ddu(
    input: Tensor, positions: Tensor, kernel_size: int, source: str = "rates", padding_mode: str = "zeros"
) -> Tensor:
    function = FUNCTIONS[source][input.dim() - 3]
    return function(input, kernel_size, positions, padding=kernel_size // 2, padding_mode=padding_mode)


def ddu_in_two_axes(
    input: Tensor, positions: Tensor, kernel_size: int, source: str = "rates", padding_mode: str = "zeros"
) -> Tensor:
    """A signal as an image of height one."""
    return ddu_ops.dynamic_dilation_unfold(
        input.unsqueeze(2),
        (1, kernel_size),
        positions.unsqueeze(2),
        padding=(0, kernel_size // 2),
        padding_mode=padding_mode,
    )


def ddu_of_zeros(
    input: Tensor, positions: Tensor, kernel_size: int, source: str = "rates", padding_mode: str = "zeros"
) -> Tensor:
    """The same call with zeros outside the image: other values at the borders."""
    return ddu(input, positions, kernel_size, source)


def unfold(
    input: Tensor, positions: Tensor, kernel_size: int, source: str = "rates", padding_mode: str = "zeros"
) -> Tensor:
    """One rate for everything: it takes no notice of the positions."""
    return F.unfold(input, kernel_size, padding=kernel_size // 2)


def sampling_grid(input: Tensor, positions: Tensor, kernel_size: int, source: str, align_corners: bool) -> Tensor:
    """Where the taps lie, as ``F.grid_sample`` takes it: ``(B, taps, *out, N)``."""
    batch, _, *size = input.shape
    axes = len(size)
    if source == "rates":
        parameters = positions.view(batch, *[1] * axes, 1, *size)
    else:
        parameters = positions.view(batch, *[kernel_size] * axes, axes, *size)
    tap = torch.arange(kernel_size, device=input.device) - (kernel_size - 1) / 2
    along = []
    for axis, n in enumerate(size):
        place = torch.arange(n, device=input.device).view(-1, *[1] * (axes - 1 - axis))
        taps = tap.view(-1, *[1] * (2 * axes - 1 - axis))
        parameter = parameters.select(1 + axes, 0 if source == "rates" else axis)
        at = place + taps * parameter if source == "rates" else place + taps + parameter
        normalised = 2 * at / max(n - 1, 1) - 1 if align_corners else (2 * at + 1) / n - 1
        along.append(normalised.expand(batch, *[kernel_size] * axes, *size))
    return torch.stack(along[::-1], -1).flatten(1, axes).to(input.dtype)


def grid_sample(
    input: Tensor, positions: Tensor, kernel_size: int, source: str = "rates", padding_mode: str = "zeros"
) -> Tensor:
    """The same samples by ``F.grid_sample``, all taps in one grid, whose order makes the result columns."""
    align_corners = padding_mode == "reflection"  # at the centres of pixels, which the other modes have no part in
    grid = sampling_grid(input, positions, kernel_size, source, align_corners)
    if input.dim() == 3:  # it takes images and volumes
        input, grid = input.unsqueeze(2), F.pad(grid, (0, 1))
    else:
        grid = grid.flatten(1, 2)
    batch, channels = input.shape[:2]
    samples = F.grid_sample(input, grid, padding_mode=padding_mode, align_corners=align_corners)
    return samples.view(batch, channels * kernel_size ** (positions.dim() - 2), -1)


def grid_sample_by_taps(
    input: Tensor, positions: Tensor, kernel_size: int, source: str = "rates", padding_mode: str = "zeros"
) -> Tensor:
    """A call of ``F.grid_sample`` for each tap, as the published FADC samples in three dimensions."""
    align_corners = padding_mode == "reflection"
    grids = sampling_grid(input, positions, kernel_size, source, align_corners).unbind(1)
    samples = [F.grid_sample(input, grid, padding_mode=padding_mode, align_corners=align_corners) for grid in grids]
    return torch.stack(samples, 2).flatten(3).flatten(1, 2)


def contenders(workload: Workload, device: torch.device, compiled: bool = True) -> dict[str, Contender]:
    """Those that there are for a workload, with its options."""
    found: dict[str, Contender] = {"ddu": ddu}
    if workload.axes == 1:
        found["ddu, height one"] = ddu_in_two_axes
    if workload.padding_mode != "zeros":
        found["ddu, zeros"] = ddu_of_zeros
    elif workload.axes == 2:
        found["F.unfold"] = unfold
    found["grid_sample"] = grid_sample
    if workload.axes == 3:
        found["grid_sample by taps"] = grid_sample_by_taps
    if device.type == "cuda" and compiled:
        torch._dynamo.reset()  # each size is compiled for itself
        found["grid_sample, compiled"] = torch.compile(grid_sample, dynamic=False)
    options = {
        "kernel_size": workload.kernel_size,
        "source": workload.source,
        "padding_mode": workload.padding_mode,
    }
    return {name: partial(call, **options) for name, call in found.items()}


# As a convolution: (input, dilation_map, weight), weight (C_out, C, k, k).

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def ddu_convolution(input: Tensor, dilation_map: Tensor, weight: Tensor) -> Tensor:
    columns = ddu(input, dilation_map, weight.shape[-1])
    return (weight.flatten(1) @ columns).unflatten(-1, input.shape[-2:])


def unfold_convolution(input: Tensor, dilation_map: Tensor, weight: Tensor) -> Tensor:
    columns = unfold(input, dilation_map, weight.shape[-1])
    return (weight.flatten(1) @ columns).unflatten(-1, input.shape[-2:])


def conv2d(input: Tensor, dilation_map: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(input, weight, padding=weight.shape[-1] // 2)


def torchvision_deform_conv2d() -> Callable[..., Tensor] | None:
    """``torchvision.ops.deform_conv2d``, where there is one for this torch."""
    try:
        from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError):  # not there, or built for another torch
        return None
    return deform_conv2d  # type: ignore[no-any-return]


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
    if torchvision_deform_conv2d() is not None:
        found["torchvision deform_conv2d"] = deform_convolution
    return found


# What computes something else, wherever the taps are not at rest, and everywhere.
FIXED_RATE = {"F.unfold", "F.unfold + matmul", "F.conv2d"}
UNLIKE = {"ddu, zeros"}
