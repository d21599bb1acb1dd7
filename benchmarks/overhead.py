"""The overhead of a call with almost no work, in every mode of PyTorch, compared with ``F.unfold`` in the same mode.

A mode is a function that takes what is called, an image and a map, and returns a call without arguments.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.contenders import ddu, unfold
from benchmarks.measure import Clock, time_all
from benchmarks.report import Row, row_of
from benchmarks.workloads import WORKLOADS, positions

Function = Callable[[Tensor, Tensor], Tensor]
Call = Callable[[], object]
Mode = Callable[[Function, Tensor, Tensor], Call]

# Plain functions: what torch.compile has to look at before a call is what it would be in a model.
CONTENDERS: dict[str, Function] = {
    "ddu": lambda image, rates: ddu(image, rates, 3),
    "F.unfold": lambda image, rates: unfold(image, rates, 3),
}
VMAPPED = 4  # items


def eager(function: Function, image: Tensor, rates: Tensor) -> Call:
    return partial(function, image, rates)


def inference(function: Function, image: Tensor, rates: Tensor) -> Call:
    return torch.inference_mode()(partial(function, image, rates))


def autocast(function: Function, image: Tensor, rates: Tensor) -> Call:
    device = image.device.type
    return torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16)(eager(function, image, rates))


def gradients(function: Function, image: Tensor, rates: Tensor, of_map: bool = True) -> Call:
    """Forward and backward. ``F.unfold`` takes no notice of the map."""
    leaves = (image.clone().requires_grad_(), rates.clone().requires_grad_(of_map))
    wanted, grad = leaves[: 1 + of_map], torch.ones_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), wanted, grad, allow_unused=True)


def compiled(function: Function, image: Tensor, rates: Tensor, then: Mode = eager, **options: str) -> Call:
    torch._dynamo.reset()
    return then(torch.compile(function, fullgraph=True, **options), image, rates)


def func_grad(function: Function, image: Tensor, rates: Tensor) -> Call:
    return partial(torch.func.grad(lambda image: function(image, rates).sum()), image)


def vmap(function: Function, image: Tensor, rates: Tensor) -> Call:
    return partial(torch.func.vmap(function), *(t.expand(VMAPPED, *t.shape).clone() for t in (image, rates)))


def vmap_of_grad(function: Function, image: Tensor, rates: Tensor) -> Call:
    return vmap(torch.func.grad(lambda image, rates: function(image, rates).sum()), image, rates)


def traced(function: Function, image: Tensor, rates: Tensor) -> Call:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace` is deprecated", DeprecationWarning)
        return eager(torch.jit.trace(function, (image, rates)), image, rates)


def exported(function: Function, image: Tensor, rates: Tensor) -> Call:
    class Model(nn.Module):
        def forward(self, image: Tensor, rates: Tensor) -> Tensor:
            return function(image, rates)

    return eager(torch.export.export(Model(), (image, rates)).module(), image, rates)


def cuda_graph(function: Function, image: Tensor, rates: Tensor) -> Call:
    function(image, rates)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(image, rates)
    return graph.replay


MODES: dict[str, Mode] = {
    "eager": eager,
    "inference mode": inference,
    "autocast": autocast,
    "gradient by the image": partial(gradients, of_map=False),
    "both gradients": gradients,
    "torch.func.grad": func_grad,
    "torch.vmap": vmap,
    "torch.vmap of grad": vmap_of_grad,
    "torch.compile": compiled,
    "torch.compile, both gradients": partial(compiled, then=gradients),
    "torch.jit.trace": traced,
    "torch.export": exported,
}
CUDA_MODES: dict[str, Mode] = {
    "torch.compile, reduce-overhead": partial(compiled, mode="reduce-overhead"),
    "CUDA graph": cuda_graph,
}


def modes(device: torch.device) -> dict[str, Mode]:
    return MODES | CUDA_MODES if device.type == "cuda" else MODES


def overhead_rows(names: list[str], device: torch.device, seconds: float) -> Iterator[Row]:
    (tiny,) = (workload for workload in WORKLOADS[device.type] if workload.name == "tiny")
    image = torch.randn(tiny.batch, tiny.channels, *tiny.size, device=device)
    rates = positions(tiny, "random", device)
    for name in names:
        make = modes(device)[name]
        calls = {contender: make(function, image, rates) for contender, function in CONTENDERS.items()}
        yield {"mode": name, "size": str(tiny), "ms": time_all(calls, Clock(device), seconds, tiny=True)}


def table(rows: list[Row]) -> str:
    """Markdown. Microseconds a call."""
    first, second = CONTENDERS
    lines = [row_of(["mode", f"{first} µs", f"{second} µs", f"÷ {second}"]), row_of(["---"] * 4)]
    for row in rows:
        a, b = (row["ms"][name] for name in CONTENDERS)
        lines.append(row_of([row["mode"], f"{1e3 * a:.1f}", f"{1e3 * b:.1f}", f"{a / b:.2f}"]))
    return "\n".join([*lines, ""])
