"""Compare time and memory of the operator with ``F.unfold``, the ``grid_sample`` composite and ``deform_conv2d``.

With --core, other axes, sources and padding modes in place of two axes, rates and zeros.

Outputs are compared before anything is timed. The floor is the time in which a copy moves as many bytes as the operator
has to read and write, with the bandwidth measured in the same run.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import ddu_ops
from benchmarks import overhead, report
from benchmarks.contenders import FIXED_RATE, UNLIKE, contenders, convolutions
from benchmarks.measure import Clock, copy_bandwidth, peak_memory, time_all
from benchmarks.workloads import CORE, MAPS, WORKLOADS, Workload, positions

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Of the contenders to each other, ‖a - b‖ / ‖b‖: they compute positions in different ways, and cuDNN multiplies float32
# in tf32. Half types are compared in float32: in a half type the others round positions, of which 16384 pixels leave
# nothing.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}


def main() -> None:
    args = parse_args()
    if args.combine:
        rows, environment = report.combined(args.combine)
        finish(rows, report.table(rows, args.before), environment, args.output)
        return
    device = torch.device(args.device)
    sections = CORE[device.type] if args.core else {"unfold": WORKLOADS[device.type]}
    names = list(dict.fromkeys(workload.name for here in sections.values() for workload in here))
    unknown = [name for name in args.workloads or () if name not in names]
    if unknown:
        raise SystemExit(f"--workloads: expected some of {', '.join(names)}, but got {', '.join(unknown)}")
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    bandwidth = copy_bandwidth(device)
    environment = describe(device, bandwidth)
    for key, value in environment.items():
        print(f"{key}: {value}")
    quiet = not sys.stderr.isatty()

    if args.overhead is not None:
        modes = args.overhead or list(overhead.modes(device))
        rows = list(tqdm(overhead.overhead_rows(modes, device, args.seconds), total=len(modes), disable=quiet))
        finish(rows, overhead.table(rows), environment, args.output)
        return

    chosen = [(s, w) for s in sections for w in sections[s] if not args.workloads or w.name in args.workloads]
    problems = [(s, w, m, d) for s, w in chosen for d in args.dtypes for m in args.maps]
    rows = []
    with tqdm(total=len(problems) * (4 if args.convolution else 2), disable=quiet) as bar:
        for section, workload, map_name, dtype in problems:
            bar.set_description(f"{workload.name} {dtype} {map_name}")
            row = unfold_row(workload, map_name, dtype, device, bandwidth, args.seconds, not args.core, bar.update)
            rows.append({"section": section} | row)
            if args.convolution:
                rows.append(convolution_row(workload, map_name, dtype, device, args.seconds, bar.update))

    finish(rows, report.table(rows, args.before), environment, args.output)


def finish(rows: list[report.Row], text: str, environment: dict[str, Any], output: Path | None) -> None:
    print()
    print(text)
    if output is not None:
        report.save(rows, text, environment, output)
        report.plot(rows, environment, output)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads [%(default)s]")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "float16", "bfloat16"])
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    parser.add_argument("--workloads", nargs="+", help="names of benchmarks/workloads.py [all]")
    parser.add_argument("--core", action="store_true", help="time other axes, sources and padding modes")
    parser.add_argument("--convolution", action="store_true", help="also time the convolution and deform_conv2d")
    parser.add_argument("--overhead", nargs="*", metavar="MODE", help="time only the overhead of a call in each mode")
    parser.add_argument("--seconds", type=float, default=1.0, help="approximate time of each measurement [%(default)s]")
    parser.add_argument(
        "--combine", nargs="+", type=Path, metavar="JSON", help="merge outputs of the same command: the shortest times"
    )
    parser.add_argument("--before", type=Path, metavar="JSON", help="an earlier output: show its times ÷ these")
    parser.add_argument("--output", type=Path, help="path, without suffix, of the .json, .md and .png to write")
    return parser.parse_args()


def describe(device: torch.device, bandwidth: float) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    facts = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "device": name,
        "torch": torch.__version__,
        "ddu_ops": ddu_ops.__version__,
        "copy bandwidth": f"{bandwidth / 1e9:.0f} GB/s, read and written",
    }
    if device.type == "cpu":
        facts["threads"] = str(torch.get_num_threads())
        facts["instruction set"] = torch.backends.cpu.get_cpu_capability()
    return facts


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def tensors(workload: Workload, map_name: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    image = torch.randn(workload.batch, workload.channels, *workload.size, device=device, dtype=dtype)
    return image.requires_grad_(), positions(workload, map_name, device).to(dtype).requires_grad_()


def unfold_row(
    workload: Workload,
    map_name: str,
    dtype_name: str,
    device: torch.device,
    bandwidth: float,
    seconds: float,
    compiled: bool,
    tick: Callable[[], None],
) -> report.Row:
    dtype = DTYPES[dtype_name]
    inputs = tensors(workload, map_name, dtype, device)
    row = compare(contenders(workload, device, compiled), inputs, workload, dtype, device, seconds, tick)
    floor = [1e3 * size / bandwidth for size in workload.floor_bytes(dtype)]
    return {
        "workload": workload.name,
        "size": str(workload),
        "dtype": dtype_name,
        "map": map_name,
        "floor_ms": None if workload.name == "tiny" else floor,
        "columns_bytes": workload.entries * dtype.itemsize,
        "input_bytes": workload.image_entries * dtype.itemsize,
        **row,
    }


def convolution_row(
    workload: Workload,
    map_name: str,
    dtype_name: str,
    device: torch.device,
    seconds: float,
    tick: Callable[[], None],
) -> report.Row:
    dtype = DTYPES[dtype_name]
    image, rates = tensors(workload, map_name, dtype, device)
    fan_in = workload.channels * workload.kernel_size**2
    shape = (workload.channels, workload.channels, workload.kernel_size, workload.kernel_size)
    weight = (torch.randn(shape, device=device) / fan_in**0.5).to(dtype).requires_grad_()
    row = compare(convolutions(), (image, rates, weight), workload, dtype, device, seconds, tick)
    return {
        "section": "convolution",
        "workload": workload.name,
        "size": str(workload),
        "dtype": dtype_name,
        "map": map_name,
        **row,
    }


def compare(
    calls: dict[str, Callable[..., Tensor]],
    inputs: tuple[Tensor, ...],
    workload: Workload,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Milliseconds (forward, backward) and peak memory of each call, after checking that results agree."""
    calls = {name: call for name, call in calls.items() if takes(call, inputs)}
    check(calls, inputs, workload.source)
    clock = Clock(device)
    tiny = workload.name == "tiny"
    plain = tuple(t.detach() for t in inputs)
    forward = {name: partial(call, *plain) for name, call in calls.items()}

    def backward_of(name: str, call: Callable[..., Tensor]) -> Callable[[], object]:
        result = call(*inputs)
        grad = torch.randn_like(result)
        wanted = tuple(t for t in inputs if t is not inputs[1]) if name in FIXED_RATE else inputs
        if tiny:  # both directions: what a step of training pays
            return lambda: torch.autograd.grad(call(*inputs), wanted, grad)
        return lambda: torch.autograd.grad(result, wanted, grad, retain_graph=True)

    def step(name: str, call: Callable[..., Tensor]) -> None:
        backward_of(name, call)()

    memory = {name: peak_memory(partial(step, name, call), device) for name, call in calls.items()}
    forward_ms = time_all(forward, clock, seconds, tiny)
    tick()
    backward_ms = time_all({name: backward_of(name, call) for name, call in calls.items()}, clock, seconds, tiny)
    tick()
    return {"ms": {name: (forward_ms[name], backward_ms[name]) for name in calls}, "memory": memory}


def takes(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> bool:
    """Whether the call supports the type: torchvision does not support bfloat16."""
    try:
        with torch.no_grad():
            call(*inputs)
    except NotImplementedError:
        return False
    return True


def check(calls: dict[str, Callable[..., Tensor]], inputs: tuple[Tensor, ...], source: str) -> None:
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    image, moved, *others = (t.detach().to(dtype) for t in inputs)
    rest = torch.ones_like(moved) if source == "rates" else torch.zeros_like(moved)
    with torch.no_grad():
        first, *names = (name for name in calls if name not in UNLIKE)
        expected = {False: calls[first](image, moved, *others), True: calls[first](image, rest, *others)}
        for name in names:
            fixed = name in FIXED_RATE
            result = calls[name](image, rest if fixed else moved, *others)
            error = ((result - expected[fixed]).float().norm() / expected[fixed].float().norm()).item()
            if not error < CLOSE[dtype]:
                raise SystemExit(f"{name} and {first} do not agree: {error:.1e}")


if __name__ == "__main__":
    main()
