"""Compare time and memory of the convolution with columns and with torch's convolution at fixed rates.

Each row is a layer with a smooth map, and with a mask unless it says otherwise. "columns" is the unfold, the product
with the mask and the matrix product; its result has the layout of the input. Results are compared before anything is
timed. Times are forward / backward.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import ddu_ops
from benchmarks.measure import Clock, both_ways
from benchmarks.workloads import Workload, smooth


@dataclass(frozen=True)
class Layer:
    """A layer whose windows keep the size of the image, or part of it."""

    batch: int
    channels: int
    size: tuple[int, ...]
    kernel_size: int = 3
    out_channels: int = 0  # as many as the input has
    groups: int = 1
    dilation_groups: int = 1
    stride: int = 1
    mask: bool = True
    last: bool = True  # channels

    @property
    def axes(self) -> int:
        return len(self.size)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple((n - 1) // self.stride + 1 for n in self.size)

    def __str__(self) -> str:
        words = [str((self.batch, self.channels, *self.size)), f"k={self.kernel_size}"]
        words += [f"to {self.out_channels}"] if self.out_channels else []
        words += [f"groups={self.groups}"] if self.groups > 1 else []
        words += [f"dilation_groups={self.dilation_groups}"] if self.dilation_groups > 1 else []
        words += [f"stride={self.stride}"] if self.stride > 1 else []
        words += [] if self.mask else ["no mask"]
        words += [] if self.last else ["channels first"]
        return " ".join(words)


STAGES = [Layer(4, 64, (128, 128)), Layer(4, 128, (64, 64)), Layer(4, 256, (32, 32)), Layer(4, 512, (16, 16))]
LAYERS = {
    "cuda": [
        *STAGES,
        *(replace(stage, last=False) for stage in STAGES[:2]),
        *(replace(stage, mask=False) for stage in STAGES[:2]),
        Layer(4, 128, (64, 64), kernel_size=7),
        Layer(4, 256, (32, 32), groups=8),
        Layer(4, 256, (32, 32), dilation_groups=8),
        Layer(4, 128, (64, 64), stride=2),
        Layer(2, 64, (16, 16)),
        Layer(2, 64, (64, 64), kernel_size=1),
        Layer(1, 32, (64, 64, 64)),
    ],
    "cpu": [
        Layer(1, 64, (64, 64)),
        Layer(1, 64, (64, 64), last=False),
        Layer(1, 64, (64, 64), mask=False),
        Layer(1, 256, (16, 16), groups=8),
        Layer(1, 16, (16, 16, 16)),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.convolution", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="[%(default)s]")
    parser.add_argument("--tf32", action="store_true", help="float32 on tensor cores, in each of the contenders")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU [%(default)s]")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of rows, from 0 [all]")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement, about [%(default)s]")
    parser.add_argument("--output", type=Path, help="write this .md")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.tf32
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} thread(s)"
    lines = [
        f"`python -m benchmarks.convolution {' '.join(sys.argv[1:])}`: {name}, torch {torch.__version__}, "
        f"ddu_ops {ddu_ops.__version__}.",
        "Forward / backward: milliseconds of ddu_ops, and these ÷ those of the others; MiB of a step.",
        "",
        "| layer | type | ms | ÷ columns | ÷ fixed rates | MiB | columns MiB | fixed rates MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    layers = LAYERS[device.type]
    for dtype in args.dtypes:
        for number in args.layers or range(len(layers)):
            lines.append(row(layers[number], dtype, device, args.seconds))
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


def row(layer: Layer, dtype: str, device: torch.device, seconds: float) -> str:
    calls, tensors = problem(layer, getattr(torch, dtype), device)
    with torch.no_grad():
        ours, columns, _ = (call().float() for call in calls.values())
    error = ((ours - columns).norm() / columns.norm()).item()
    assert error < 0.02, f"{layer} {dtype}: {error:.1e}"
    forward_ms, backward_ms, memory = both_ways(
        calls, lambda name: tensors[:2] if name == "fixed rates" else tensors, Clock(device), seconds
    )
    ms = list(zip(forward_ms.values(), backward_ms.values(), strict=True))
    ratios = [" / ".join(f"{a / b:.2f}" for a, b in zip(ms[0], other, strict=True)) for other in ms[1:]]
    sizes = " | ".join(f"{size / 2**20:.0f}" for size in memory.values())
    return f"| {layer} | {dtype} | {ms[0][0]:.3f} / {ms[0][1]:.3f} | {ratios[0]} | {ratios[1]} | {sizes} |"


def problem(
    layer: Layer, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    batch, channels, groups, axes, k = layer.batch, layer.channels, layer.groups, layer.axes, layer.kernel_size
    outputs, taps, padding = layer.out_channels or layer.channels, layer.kernel_size**layer.axes, layer.kernel_size // 2
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    layout = formats[axes] if layer.last else torch.contiguous_format
    input = torch.randn(batch, channels, *layer.size, device=device, dtype=dtype).contiguous(memory_format=layout)
    weight = torch.randn(outputs, channels // groups, *[k] * axes, device=device) / math.sqrt(channels // groups * taps)
    weight = weight.to(dtype).contiguous(memory_format=layout)
    rates = smooth(Workload("rates", batch * layer.dilation_groups, 1, layer.out, 3, "a map for every group"), device)
    rates = rates.reshape(batch, layer.dilation_groups, *layer.out)
    tensors = [input, weight, rates]
    if layer.mask:
        tensors.append(torch.rand(batch, taps, *layer.out, device=device).to(dtype))
    for tensor in tensors:
        tensor.requires_grad_()
    mask = tensors[3] if layer.mask else None
    convolve = getattr(ddu_ops, f"dynamic_dilation_conv{axes}d")
    unfold = getattr(ddu_ops, "dynamic_dilation_unfold" + ("" if axes == 2 else f"{axes}d"))
    options = (layer.stride, padding, 1)

    def by_columns() -> Tensor:
        columns = unfold(input, k, rates, *options, layer.dilation_groups)
        if mask is not None:
            columns = columns.view(batch, channels, taps, -1) * mask.view(batch, 1, taps, -1)
        columns = columns.view(batch, groups, channels * taps // groups, -1)
        result = weight.reshape(groups, outputs // groups, -1) @ columns
        return result.view(batch, outputs, *layer.out).contiguous(memory_format=layout)

    return {
        "ddu_ops": partial(
            convolve, input, weight, rates, None, *options, groups, dilation_groups=layer.dilation_groups, mask=mask
        ),
        "columns": by_columns,
        "fixed rates": partial(getattr(F, f"conv{axes}d"), input, weight, None, *options, groups),
    }, tensors


if __name__ == "__main__":
    main()
