"""Compare the sums of windows with their alternatives: ``python -m benchmarks.sums``.

For each task: the time of the forward and of the backward with all gradients, and their memory beyond the arguments.
``floor`` is the time in which a copy moves the arguments and results of the forward. Results are compared before
anything is timed.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ddu_ops
from benchmarks.measure import Clock, both_ways, copy_bandwidth
from benchmarks.workloads import Workload, smooth

Calls = dict[str, Callable[..., Tensor]]
Work = tuple[str, str, Calls, list[Tensor]]  # name, size, contenders, arguments

FLEX = os.environ.get("DDU_FLEX", "") == "1"  # flex_attention takes long to compile

# Batch, channels, size, groups or heads, kernel size.
SIZES: dict[str, dict[str, list[tuple[int, int, int, int, int]]]] = {
    "cuda": {
        "aggregate": [(64, 128, 56, 4, 3), (64, 256, 28, 8, 3), (64, 512, 14, 16, 3)],
        "attention": [(32, 96, 56, 3, 3), (8, 96, 56, 3, 7), (32, 192, 28, 6, 3), (32, 192, 28, 6, 7)],
        "involution": [(32, 64, 56, 4, 7), (32, 128, 28, 8, 7)],
        "depthwise": [(32, 96, 56, 1, 7), (32, 384, 14, 1, 7)],
        "pooling": [(8, 64, 112, 1, 3)],
    },
    "cpu": {
        "aggregate": [(1, 64, 56, 4, 3), (2, 16, 64, 2, 3), (1, 32, 28, 2, 7)],
        "attention": [(1, 72, 56, 3, 3), (1, 96, 28, 3, 7)],
        "involution": [(1, 64, 56, 4, 7)],
        "depthwise": [(1, 96, 56, 1, 7), (1, 384, 14, 1, 7)],
        "pooling": [(1, 64, 112, 1, 3)],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.sums", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="[float16 on CUDA, else float32]")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU [%(default)s]")
    parser.add_argument("--work", nargs="+", choices=list(SIZES["cpu"]), default=list(SIZES["cpu"]))
    parser.add_argument("--layouts", nargs="+", choices=["last", "first"], default=["last", "first"])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement, about [%(default)s]")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype or ("float16" if device.type == "cuda" else "float32"))
    bandwidth = copy_bandwidth(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} thread(s)"
    print(f"{name}, {dtype}, torch {torch.__version__}, {bandwidth / 1e9:.0f} GB/s copied")
    print("| work | channels | size | contender | forward ms | ÷ floor | backward ms | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for layout in args.layouts:
        for work in args.work:
            for case in SIZES[device.type][work]:
                for row in rows(WORK[work](case, layout, dtype, device), layout, device, bandwidth, args.seconds):
                    print(row, flush=True)


def rows(work: Work, layout: str, device: torch.device, bandwidth: float, seconds: float) -> Iterator[str]:
    name, size, calls, tensors = work
    check(calls, tensors)
    bound = {key: partial(call, *tensors) for key, call in calls.items()}
    forward_ms, backward_ms, memory = both_ways(bound, lambda _: tensors, Clock(device), seconds)
    with torch.no_grad():
        result = next(iter(bound.values()))()
    floor = 1e3 * sum(t.numel() * t.element_size() for t in [*tensors, result]) / bandwidth
    for key in calls:
        yield (
            f"| {name} | {layout} | {size} | {key} | {forward_ms[key]:.4f} | {forward_ms[key] / floor:.2f} | "
            f"{backward_ms[key]:.4f} | {memory[key] / 2**20:.0f} |"
        )


def check(calls: Calls, tensors: list[Tensor]) -> None:
    """Those that compute the same: a name in brackets says that a contender does not know rates."""
    with torch.no_grad():
        ours = next(iter(calls.values()))(*tensors).float()
        for name, call in calls.items():
            if not name.startswith("("):
                error = ((call(*tensors).float() - ours).norm() / ours.norm()).item()
                assert error < 0.05, f"{name}: {error:.1e}"


def draw(*shape: int, layout: str, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    tensor = torch.randn(shape, device=device, dtype=dtype) * scale
    if layout == "last":
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.requires_grad_()


# ---- The work ----


def aggregate(case: tuple[int, ...], layout: str, dtype: torch.dtype, device: torch.device) -> Work:
    batch, channels, size, groups, k = case
    make: Any = partial(draw, layout=layout, dtype=dtype, device=device)
    tensors = [
        make(batch, channels, size, size),
        make(batch, 2 * groups * k * k, size, size, scale=2),
        make(batch, groups * k * k, size, size),
    ]

    def ours(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return ddu_ops.deform_aggregate2d(input, mask, k, offset, 1, k // 2, 1, groups)

    def by_unfold(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        columns = ddu_ops.deform_unfold2d(input, k, offset, 1, k // 2, 1, groups)
        columns = columns.view(batch, groups, channels // groups, k * k, size * size)
        mask = mask.reshape(batch, groups, k * k, size * size)
        return torch.einsum("bgctl,bgtl->bgcl", columns, mask).reshape(input.shape)

    return "aggregate, offsets", str(case), {"ours": ours, "our unfold and einsum": by_unfold}, tensors


def scores(query: Tensor, key: Tensor, rates: Tensor, k: int, heads: int) -> Tensor:
    return ddu_ops.dynamic_dilation_correlate2d(query, key, k, rates, 1, k // 2, mask_groups=heads)


def rates_of(batch: int, size: int, device: torch.device) -> Tensor:
    return smooth(Workload("rates", batch, 1, (size, size), 3, "a map for every image"), device)


def attention(case: tuple[int, ...], layout: str, dtype: torch.dtype, device: torch.device) -> Work:
    batch, channels, size, heads, k = case
    make: Any = partial(draw, layout=layout, dtype=dtype, device=device)
    rates = rates_of(batch, size, device).to(dtype).requires_grad_()
    shape = (batch, heads, channels // heads)
    tensors = [make(*(batch, channels, size, size), scale=0.5) for _ in range(3)]

    def ours(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        weights = scores(query, key, rates, k, heads).unflatten(1, (heads, k * k)).softmax(2).flatten(1, 2)
        return ddu_ops.dynamic_dilation_aggregate2d(value, weights, k, rates, 1, k // 2)

    def products(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        weights = torch.einsum("bhcl,bhctl->bhtl", query.reshape(*shape, -1), keys).softmax(2)
        return torch.einsum("bhtl,bhctl->bhcl", weights, values).reshape(query.shape)

    def by_unfold(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        unfold = ddu_ops.dynamic_dilation_unfold
        columns = (unfold(x, k, rates, 1, k // 2).view(*shape, k * k, -1) for x in (key, value))
        return products(query, *columns)

    def fixed(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        columns = (F.unfold(x, k, padding=k // 2).view(*shape, k * k, -1) for x in (key, value))
        return products(query, *columns)

    calls: Calls = {"ours": ours, "our unfold and einsum": by_unfold, "(F.unfold and einsum)": fixed}
    if FLEX and device.type == "cuda":
        calls["(flex_attention)"] = flex(shape, size, k)
    return "attention", str(case), calls, [*tensors, rates]


def flex(shape: tuple[int, int, int], size: int, k: int) -> Callable[..., Tensor]:
    """A neighbourhood of fixed size, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(b: Any, h: Any, q: Any, kv: Any) -> Any:
        rows, columns = (q // size - kv // size).abs(), (q % size - kv % size).abs()
        return (rows <= k // 2) & (columns <= k // 2)

    mask = create_block_mask(near, None, None, size**2, size**2)
    compiled = torch.compile(flex_attention)

    def call(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        parts = (x.reshape(*shape, -1).transpose(2, 3).contiguous() for x in (query, key, value))
        return compiled(*parts, block_mask=mask).transpose(2, 3).reshape(query.shape)  # type: ignore[no-any-return]

    return call


def involution(case: tuple[int, ...], layout: str, dtype: torch.dtype, device: torch.device) -> Work:
    batch, channels, size, groups, k = case
    make: Any = partial(draw, layout=layout, dtype=dtype, device=device)
    tensors = [make(batch, channels, size, size), make(batch, groups * k * k, size, size)]

    def ours(input: Tensor, mask: Tensor) -> Tensor:
        return ddu_ops.dynamic_dilation_aggregate2d(input, mask, k, 1.0, 1, k // 2)

    def by_unfold(input: Tensor, mask: Tensor) -> Tensor:
        columns = F.unfold(input, k, padding=k // 2).view(batch, groups, channels // groups, k * k, -1)
        return (columns * mask.reshape(batch, groups, 1, k * k, -1)).sum(3).reshape(input.shape)

    return "involution", str(case), {"ours": ours, "F.unfold": by_unfold}, tensors


def depthwise(case: tuple[int, ...], layout: str, dtype: torch.dtype, device: torch.device) -> Work:
    batch, channels, size, _, k = case
    make: Any = partial(draw, layout=layout, dtype=dtype, device=device)
    rates = rates_of(batch, size, device).to(dtype).requires_grad_()
    weight = torch.randn(channels, 1, k, k, device=device, dtype=dtype).requires_grad_()

    def ours(input: Tensor, weight: Tensor, rates: Tensor) -> Tensor:
        factors = weight.flatten(1).expand(batch, -1, -1)
        return torch.ops.ddu.aggregate(  # type: ignore[no-any-return]
            input, None, factors, None, rates, "rates", (k, k), (1, 1), (k // 2, k // 2)
        )

    def by_unfold(input: Tensor, weight: Tensor, rates: Tensor) -> Tensor:
        columns = ddu_ops.dynamic_dilation_unfold(input, k, rates, 1, k // 2).view(batch, channels, k * k, -1)
        return torch.einsum("bctl,ct->bcl", columns, weight.flatten(1)).reshape(input.shape)

    def fixed(input: Tensor, weight: Tensor, rates: Tensor) -> Tensor:
        return F.conv2d(input, weight, padding=k // 2, groups=channels)

    calls: Calls = {"ours": ours, "our unfold and einsum": by_unfold, "(F.conv2d)": fixed}
    return "depthwise", str(case), calls, [make(batch, channels, size, size), weight, rates]


def pooling(case: tuple[int, ...], layout: str, dtype: torch.dtype, device: torch.device) -> Work:
    batch, channels, size, _, k = case
    rates = rates_of(batch, size, device).to(dtype).requires_grad_()

    def ours(input: Tensor, rates: Tensor) -> Tensor:
        return ddu_ops.dynamic_dilation_max_pool2d(input, k, rates, 1, k // 2, padding_mode="zeros")  # type: ignore[return-value]

    def by_unfold(input: Tensor, rates: Tensor) -> Tensor:
        columns = ddu_ops.dynamic_dilation_unfold(input, k, rates, 1, k // 2)
        return columns.view(batch, channels, k * k, -1).amax(2).view(input.shape)

    def fixed(input: Tensor, rates: Tensor) -> Tensor:
        return F.max_pool2d(input, k, 1, k // 2)

    calls: Calls = {"ours": ours, "our unfold and amax": by_unfold, "(F.max_pool2d)": fixed}
    input = draw(batch, channels, size, size, layout=layout, dtype=dtype, device=device)
    return "pooling", str(case), calls, [input, rates]


WORK: dict[str, Callable[..., Work]] = {
    "aggregate": aggregate,
    "attention": attention,
    "involution": involution,
    "depthwise": depthwise,
    "pooling": pooling,
}


if __name__ == "__main__":
    main()
