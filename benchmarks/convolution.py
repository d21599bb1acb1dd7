"""Compare time and memory of the convolution with columns and with torch's convolution at fixed rates.

Each row is a layer with a smooth map, and with a mask unless it says otherwise. "columns" is the unfold, the product
with the mask and the matrix product; its result has the layout of the input. Results are compared before anything is
timed. Times are forward / backward.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import ddu_ops
from benchmarks.measure import Clock, both_ways
from benchmarks.workloads import Workload, smooth

Calls = dict[str, Callable[..., Tensor]]  # of the arguments
Problem = tuple[Calls, list[Tensor]]  # contenders and arguments
SAME = {"columns", "torchvision"}  # contenders that compute what ddu_ops does


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

    @property
    def layout(self) -> torch.memory_format:
        if not self.last:
            return torch.contiguous_format
        return torch.channels_last if self.axes == 2 else torch.channels_last_3d

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
    run("convolution", __doc__, LAYERS, problem, ("columns", "fixed rates"))


def run(
    module: str,
    description: str | None,
    table: dict[str, list[Layer]],
    make: Callable[[Layer, torch.dtype, torch.device], Problem],
    others: Sequence[str],
) -> None:
    """Time the layers of a table, ddu_ops beside the others, as the command line says."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{module}", description=description)
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
    columns = ["layer", "type", "ms", *(f"÷ {o}" for o in others), "MiB", *(f"{o} MiB" for o in others)]
    lines = [
        f"`python -m benchmarks.{module} {' '.join(sys.argv[1:])}`: {name}, torch {torch.__version__}, "
        f"ddu_ops {ddu_ops.__version__}.",
        "Forward / backward: milliseconds of ddu_ops, and these ÷ those of the others; MiB of a step.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + " --- |" * len(columns),
    ]
    print("\n".join(lines), flush=True)
    layers = table[device.type]
    for dtype in args.dtypes:
        for number in args.layers or range(len(layers)):
            calls, tensors = make(layers[number], getattr(torch, dtype), device)
            figures = row(calls, tensors, others, f"{layers[number]} {dtype}", Clock(device), args.seconds)
            lines.append(f"| {layers[number]} | {dtype} | {' | '.join(figures)} |")
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


def row(
    calls: Calls, tensors: list[Tensor], others: Sequence[str], name: str, clock: Clock, seconds: float
) -> list[str]:
    check(calls, tensors, name)
    bound = {name: partial(call, *tensors) for name, call in calls.items()}
    forward_ms, backward_ms, memory = both_ways(bound, lambda _: tensors, clock, seconds)
    ms = {name: (forward_ms[name], backward_ms[name]) for name in calls}
    ours = ms["ddu_ops"]
    ratios = [" / ".join(f"{a / b:.2f}" for a, b in zip(ours, ms[o], strict=True)) if o in ms else "–" for o in others]
    sizes = [f"{memory[o] / 2**20:.0f}" if o in memory else "–" for o in ("ddu_ops", *others)]
    return [f"{ours[0]:.3f} / {ours[1]:.3f}", *ratios, *sizes]


def check(calls: Calls, tensors: list[Tensor], name: str) -> None:
    """What is timed, and in float32 the others that compute the same; these compute positions in their own type."""
    exact = [t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    with torch.no_grad():
        ours = calls["ddu_ops"](*exact)
        results = {other: calls[other](*exact) for other in SAME & set(calls)}
        results["ddu_ops"] = calls["ddu_ops"](*tensors).to(ours.dtype)
        for other, result in results.items():
            error = ((ours - result).norm() / ours.norm()).item()
            bound = 0.02 if other == "ddu_ops" else 2e-3  # rounded to a half type; with products in tf32
            assert error < bound, f"{name}, {other}: {error:.1e}"


def problem(layer: Layer, dtype: torch.dtype, device: torch.device) -> Problem:
    tensors = arguments(layer, dtype, device)
    batch, channels, groups, axes, k = layer.batch, layer.channels, layer.groups, layer.axes, layer.kernel_size
    outputs, taps = layer.out_channels or channels, k**axes
    convolve = getattr(ddu_ops, f"dynamic_dilation_conv{axes}d")
    fixed = getattr(F, f"conv{axes}d")
    unfold = getattr(ddu_ops, "dynamic_dilation_unfold" + ("" if axes == 2 else f"{axes}d"))
    options = (layer.stride, k // 2, 1)

    def ours(input: Tensor, weight: Tensor, rates: Tensor, mask: Tensor | None = None) -> Tensor:
        return convolve(  # type: ignore[no-any-return]
            input, weight, rates, None, *options, groups, dilation_groups=layer.dilation_groups, mask=mask
        )

    def by_columns(input: Tensor, weight: Tensor, rates: Tensor, mask: Tensor | None = None) -> Tensor:
        columns = unfold(input, k, rates, *options, layer.dilation_groups)
        if mask is not None:
            columns = columns.view(batch, channels, taps, -1) * mask.view(batch, 1, taps, -1)
        columns = columns.view(batch, groups, channels * taps // groups, -1)
        result = weight.reshape(groups, outputs // groups, -1) @ columns
        return result.view(batch, outputs, *layer.out).contiguous(memory_format=layer.layout)

    def at_fixed_rates(input: Tensor, weight: Tensor, rates: Tensor, mask: Tensor | None = None) -> Tensor:
        return fixed(input, weight, None, *options, groups)  # type: ignore[no-any-return]

    return {"ddu_ops": ours, "columns": by_columns, "fixed rates": at_fixed_rates}, tensors


def arguments(layer: Layer, dtype: torch.dtype, device: torch.device, mask_groups: int = 1) -> list[Tensor]:
    """Input, weight, rates and, if it has one, the mask of a layer; they require gradients."""
    batch, fan_in = layer.batch, layer.channels // layer.groups
    window = [layer.kernel_size] * layer.axes
    input = torch.randn(batch, layer.channels, *layer.size, device=device, dtype=dtype)
    weight = torch.randn(layer.out_channels or layer.channels, fan_in, *window, device=device)
    weight = (weight / math.sqrt(fan_in * math.prod(window))).to(dtype)
    rates = smooth(Workload("rates", batch * layer.dilation_groups, 1, layer.out, 3, "a map for every group"), device)
    tensors = [*(t.contiguous(memory_format=layer.layout) for t in (input, weight))]
    tensors.append(rates.reshape(batch, layer.dilation_groups, *layer.out))
    if layer.mask:
        tensors.append(torch.rand(batch, mask_groups * math.prod(window), *layer.out, device=device).to(dtype))
    return [tensor.requires_grad_() for tensor in tensors]


if __name__ == "__main__":
    main()
