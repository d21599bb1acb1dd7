"""Compare the sums of windows with their alternatives: ``python -m benchmarks.sums``.

For each task: the time of the forward and of the backward with all gradients, the peak memory of both, and how much of
that is neither result nor gradient. ``floor`` is the time in which a copy moves the arguments and results of the
forward, or the arguments, ``grad_output`` and gradients of the backward. ``ours ÷`` divides the figures of ddu_ops by
those of the contender. Results are compared before anything is timed, except for contenders in brackets, which have
fixed rates. ``--compiled`` adds contenders that need a compiler: ``flex_attention`` with a neighbourhood mask on CUDA,
and ``F.unfold`` where rates are fixed.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config

import ddu_ops
from benchmarks.measure import Clock, both_ways, copy_bandwidth
from benchmarks.workloads import Workload, smooth

Calls = dict[str, Callable[..., Tensor]]
Work = tuple[Calls, list[Tensor]]  # contenders, arguments
Case = tuple[int, int, int, int, int]  # batch, channels, size, groups or heads, kernel size

STAGES = {
    "cuda": [(64, 128, 56, 4, 3), (64, 256, 28, 8, 3), (64, 512, 14, 16, 3)],  # of DCNv4
    "cpu": [(1, 64, 56, 4, 3), (2, 16, 64, 2, 3), (1, 32, 28, 2, 7)],
}
SIZES: dict[str, dict[str, list[Case]]] = {
    "cuda": {
        "aggregate": STAGES["cuda"],
        "correlate": STAGES["cuda"],
        "attention": [(32, 96, 56, 3, 3), (8, 96, 56, 3, 7), (32, 192, 28, 6, 3), (32, 192, 28, 6, 7)],
        "fixed": [(32, 72, 56, 3, 3)],
        "involution": [(32, 64, 56, 4, 7), (32, 128, 28, 8, 7)],
        "depthwise": [(32, 96, 56, 1, 7), (32, 384, 14, 1, 7)],
        "pooling": [(8, 64, 112, 1, 3)],
    },
    "cpu": {
        "aggregate": STAGES["cpu"],
        "correlate": STAGES["cpu"],
        "attention": [(1, 72, 56, 3, 3), (1, 96, 28, 3, 7)],
        "fixed": [(1, 72, 56, 3, 3)],
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
    parser.add_argument("--compiled", action="store_true", help="also what is compiled, which takes its time")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement, about [%(default)s]")
    parser.add_argument("--output", type=Path, help="write this .md")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    functorch_config.donated_buffer = False  # a compiled backward may run again
    dtype = getattr(torch, args.dtype or ("float16" if device.type == "cuda" else "float32"))
    bandwidth = copy_bandwidth(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} thread(s)"
    lines = [
        f"`python -m benchmarks.sums {' '.join(sys.argv[1:])}`: {name}, {dtype}, torch {torch.__version__}, "
        f"{bandwidth / 1e9:.0f} GB/s copied",
        "",
        "| work | channels | size | contender | forward ms | ÷ floor | backward ms | ÷ floor | MiB | neither result "
        "nor gradient, MiB | ours ÷: forward / backward / MiB |",
        "|" + " --- |" * 11,
    ]
    print("\n".join(lines), flush=True)
    for layout in args.layouts:
        for kind in args.work:
            for case in SIZES[device.type][kind]:
                for title, make in WORK[kind].items():
                    calls, tensors = make(case, layout=layout, dtype=dtype, device=device, compiled=args.compiled)
                    start = f"| {title} | {layout} | {case} |"
                    for row in rows(calls, tensors, title, device, bandwidth, args.seconds):
                        lines.append(f"{start} {row}")
                        print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


def rows(
    calls: Calls, tensors: list[Tensor], title: str, device: torch.device, bandwidth: float, seconds: float
) -> Iterator[str]:
    check(calls, tensors, title)
    bound = {key: partial(call, *tensors) for key, call in calls.items()}
    forward_ms, backward_ms, memory = both_ways(bound, lambda _: tensors, Clock(device), seconds)
    with torch.no_grad():
        result = size_of(calls["ours"](*tensors))
    given = sum(map(size_of, tensors))
    floors = [1e3 * size / bandwidth for size in (given + result, 2 * given + result)]
    kept = 2 * result + given  # with grad_output
    ours = (forward_ms["ours"], backward_ms["ours"], memory["ours"])
    for key in calls:
        theirs = (forward_ms[key], backward_ms[key], memory[key])
        ratios = " / ".join(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))
        yield (
            f"{key} | {theirs[0]:.4f} | {theirs[0] / floors[0]:.2f} | {theirs[1]:.4f} | {theirs[1] / floors[1]:.2f} | "
            f"{theirs[2] / 2**20:.1f} | {max(theirs[2] - kept, 0) / 2**20:.1f} | {ratios} |"
        )


def size_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def check(calls: Calls, tensors: list[Tensor], title: str) -> None:
    with torch.no_grad():
        ours = calls["ours"](*tensors).float()
        for name, call in calls.items():
            if not name.startswith("("):
                error = ((call(*tensors).float() - ours).norm() / ours.norm()).item()
                assert error < 0.05, f"{title}, {name}: {error:.1e}"


def draw(*shape: int, layout: str, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    tensor = torch.randn(shape, device=device, dtype=dtype) * scale
    if layout == "last":
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.requires_grad_()


# ---- The work ----


def windows(
    case: Case, source: str, dtype: torch.dtype, device: torch.device, make: Any
) -> tuple[Tensor, Callable[..., Any], tuple[Any, ...]]:
    """Rates or offsets; the functions of a source by their stems; the options of a window, in their order."""
    batch, _, size, groups, k = case
    if source == "rates":
        positions = rates_of(batch, size, device).to(dtype).requires_grad_()
        return positions, lambda stem: getattr(ddu_ops, f"dynamic_dilation_{stem}"), (1, k // 2)
    positions = make(batch, 2 * groups * k * k, size, size, scale=2)
    return positions, lambda stem: getattr(ddu_ops, f"deform_{stem}"), (1, k // 2, 1, groups)


def aggregate(case: Case, *, source: str, layout: str, dtype: torch.dtype, device: torch.device, **_: bool) -> Work:
    batch, channels, size, groups, k = case
    make: Any = partial(draw, layout=layout, dtype=dtype, device=device)
    positions, function, options = windows(case, source, dtype, device, make)

    def ours(input: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return function("aggregate2d")(input, mask, k, positions, *options)  # type: ignore[no-any-return]

    def by_unfold(input: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        columns = function(unfold_of(source))(input, k, positions, *options)
        columns = columns.view(batch, groups, channels // groups, k * k, size * size)
        mask = mask.reshape(batch, groups, k * k, size * size)
        return torch.einsum("bgctl,bgtl->bgcl", columns, mask).reshape(input.shape)

    calls: Calls = {"ours": ours, "our unfold and einsum": by_unfold}
    return calls, [make(batch, channels, size, size), make(batch, groups * k * k, size, size), positions]


def correlate(case: Case, *, source: str, layout: str, dtype: torch.dtype, device: torch.device, **_: bool) -> Work:
    batch, channels, size, groups, k = case
    make: Any = partial(draw, layout=layout, dtype=dtype, device=device)
    positions, function, options = windows(case, source, dtype, device, make)

    def ours(query: Tensor, input: Tensor, positions: Tensor) -> Tensor:
        correlated: Tensor = function("correlate2d")(query, input, k, positions, *options, mask_groups=groups)
        return correlated

    def by_unfold(query: Tensor, input: Tensor, positions: Tensor) -> Tensor:
        columns = function(unfold_of(source))(input, k, positions, *options)
        columns = columns.view(batch, groups, channels // groups, k * k, size * size)
        query = query.reshape(batch, groups, channels // groups, size * size)
        return torch.einsum("bgcl,bgctl->bgtl", query, columns).reshape(batch, -1, size, size)

    calls: Calls = {"ours": ours, "our unfold and einsum": by_unfold}
    return calls, [make(batch, channels, size, size), make(batch, channels, size, size), positions]


def unfold_of(source: str) -> str:
    return "unfold" if source == "rates" else "unfold2d"


def rates_of(batch: int, size: int, device: torch.device) -> Tensor:
    return smooth(Workload("rates", batch, 1, (size, size), 3, "a map for every image"), device)


def attend(query: Tensor, key: Tensor, value: Tensor, rates: Tensor, k: int, heads: int, groups: int = 1) -> Tensor:
    window = (k, rates, 1, k // 2, 1, groups)
    scores = ddu_ops.dynamic_dilation_correlate2d(query, key, *window, mask_groups=heads)
    weights = scores.unflatten(1, (heads, k * k)).softmax(2).flatten(1, 2)
    return ddu_ops.dynamic_dilation_aggregate2d(value, weights, *window)


def products(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention to columns, ``(batch, heads, channels of a head, taps, positions)``."""
    weights = torch.einsum("bhcl,bhctl->bhtl", query.reshape(*keys.shape[:3], -1), keys).softmax(2)
    return torch.einsum("bhtl,bhctl->bhcl", weights, values).reshape(query.shape)


def attention(case: Case, *, layout: str, dtype: torch.dtype, device: torch.device, compiled: bool) -> Work:
    batch, channels, size, heads, k = case
    rates = rates_of(batch, size, device).to(dtype).requires_grad_()
    shape = (batch, heads, channels // heads, k * k, -1)

    def ours(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        return attend(query, key, value, rates, k, heads)

    def by_unfold(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        unfold = ddu_ops.dynamic_dilation_unfold
        return products(query, *(unfold(x, k, rates, 1, k // 2).view(shape) for x in (key, value)))

    def fixed(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        return products(query, *(F.unfold(x, k, padding=k // 2).view(shape) for x in (key, value)))

    calls: Calls = {"ours": ours, "our unfold and einsum": by_unfold, "(F.unfold and einsum)": fixed}
    if compiled and device.type == "cuda":
        calls["(flex_attention)"] = flex(case)
    return calls, [*queries(case, layout, dtype, device), rates]


def queries(case: Case, layout: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Also keys and values."""
    batch, channels, size, _, _ = case
    return [draw(batch, channels, size, size, layout=layout, dtype=dtype, device=device, scale=0.5) for _ in range(3)]


def flex(case: Case) -> Callable[..., Tensor]:
    """A neighbourhood of fixed size. What comes channels-last it takes without a copy."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, _, size, heads, k = case

    def near(b: Any, h: Any, q: Any, kv: Any) -> Any:
        rows, columns = (q // size - kv // size).abs(), (q % size - kv % size).abs()
        return (rows <= k // 2) & (columns <= k // 2)

    mask = create_block_mask(near, None, None, size**2, size**2)
    torch._dynamo.reset()  # each size is compiled for itself
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        rows = (x.permute(0, 2, 3, 1).reshape(batch, size**2, heads, -1) for x in (query, key, value))
        parts = (x.transpose(1, 2) for x in rows)
        attended: Tensor = compiled(*parts, block_mask=mask)
        return attended.transpose(1, 2).reshape(batch, size, size, -1).permute(0, 3, 1, 2)

    return call


def fixed_attention(case: Case, *, layout: str, dtype: torch.dtype, device: torch.device, compiled: bool) -> Work:
    """DilateFormer's: the rates 1, 2, 3 for a third of the heads each."""
    batch, channels, _, heads, k = case
    fixed = (1, 2, 3)
    rates = torch.tensor(fixed, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    shape = (batch, heads // len(fixed), channels // heads, k * k, -1)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, rates, k, heads, len(fixed))

    def by_unfold(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        for group, rate in enumerate(fixed):
            q, *others = (x.chunk(len(fixed), 1)[group] for x in (query, key, value))
            columns = (F.unfold(x, k, rate, rate * (k // 2)).view(shape) for x in others)
            outputs.append(products(q, *columns))
        return torch.cat(outputs, 1)

    calls: Calls = {"ours": ours, "F.unfold and einsum": by_unfold}
    if compiled:
        torch._dynamo.reset()
        calls["F.unfold and einsum, compiled"] = torch.compile(by_unfold, dynamic=False)
    return calls, queries(case, layout, dtype, device)


def involution(case: Case, *, layout: str, dtype: torch.dtype, device: torch.device, compiled: bool) -> Work:
    batch, channels, size, groups, k = case
    make: Any = partial(draw, layout=layout, dtype=dtype, device=device)
    tensors = [make(batch, channels, size, size), make(batch, groups * k * k, size, size)]

    def ours(input: Tensor, mask: Tensor) -> Tensor:
        return ddu_ops.dynamic_dilation_aggregate2d(input, mask, k, 1.0, 1, k // 2)

    def by_unfold(input: Tensor, mask: Tensor) -> Tensor:
        columns = F.unfold(input, k, padding=k // 2).view(batch, groups, channels // groups, k * k, -1)
        return (columns * mask.reshape(batch, groups, 1, k * k, -1)).sum(3).reshape(input.shape)

    calls: Calls = {"ours": ours, "F.unfold": by_unfold}
    if compiled:
        torch._dynamo.reset()
        calls["F.unfold, compiled"] = torch.compile(by_unfold, dynamic=False)
    return calls, tensors


def depthwise(case: Case, *, layout: str, dtype: torch.dtype, device: torch.device, **_: bool) -> Work:
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
    return calls, [make(batch, channels, size, size), weight, rates]


def pooling(case: Case, *, layout: str, dtype: torch.dtype, device: torch.device, **_: bool) -> Work:
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
    return calls, [input, rates]


WORK: dict[str, dict[str, Callable[..., Work]]] = {
    "aggregate": {f"aggregate, {source}": partial(aggregate, source=source) for source in ("offsets", "rates")},
    "correlate": {f"correlate, {source}": partial(correlate, source=source) for source in ("offsets", "rates")},
    "attention": {"attention": attention},
    "fixed": {"attention, fixed rates": fixed_attention},
    "involution": {"involution": involution},
    "depthwise": {"depthwise": depthwise},
    "pooling": {"max pooling": pooling},
}


if __name__ == "__main__":
    main()
