"""``python -m ddu_ops``: reports what is installed and how it was compiled, and runs a self-test.

The self-test compares every operator with the reference, in every type and on every device, for about ten seconds. The
exit status is 0 if all agree. Please include the output in bug reports.
"""

import argparse
import platform
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ddu_ops import _C, __version__, reference

TYPES = {  # of the image, and of the map
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "float16, float32 map": (torch.float16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16, float32 map": (torch.bfloat16, torch.float32),
}


def environment() -> Iterator[tuple[str, str]]:
    """The facts that a bug report needs, as pairs of a name and a text."""
    build = _C.build()
    yield "ddu_ops", __version__
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()
    yield "compiled", f"{build['compiler']}, C++ {build['c++']}, torch {build['torch']}, CUDA {build['cuda'] or 'none'}"
    chosen, torchs = build["cpu_capability"], torch.backends.cpu.get_cpu_capability()
    yield "cpu", f"{chosen} (torch: {torchs}), {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, architecture {major}{minor}"


def devices() -> list[str]:
    """The devices that are present and that the extension was compiled for."""
    found = range(torch.cuda.device_count()) if _C.build()["cuda"] else range(0)
    return ["cpu", *(f"cuda:{index}" for index in found)]


def disagreement(rng: random.Random, dtype: torch.dtype, map_dtype: torch.dtype, device: str) -> str | None:
    """Tries all operators on a random problem; returns the name of one that differs from the reference, if any."""
    groups, rates, kernel_size = rng.randint(1, 2), rng.randint(1, 2), (rng.randint(1, 4), rng.randint(1, 4))
    stride, dilation, aligned = rng.randint(1, 2), rng.randint(1, 2), rng.random() < 0.7
    padding_mode = rng.choice(("zeros", "border", "reflection"))
    size = (rng.randint(8, 40), rng.randint(8, 40))
    batch, channels = rng.randint(1, 2), groups * rng.choice([1, 3, 8, 20])
    height, width = ((n + 2 - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel_size, strict=True))

    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    rows = channels * kernel_size[0] * kernel_size[1]
    input = torch.randn((batch, channels, *size), generator=generator).to(device, dtype)
    columns = torch.randn((batch, rows, height * width), generator=generator).to(device, dtype)
    # Rates that all types can tell apart.
    dilation_map = torch.randint(-64, 128, (batch, groups * rates, height, width), generator=generator) / 32
    dilation_map = dilation_map.to(device, map_dtype)

    options = (stride, 1, dilation, groups)
    later: dict[str, Any] = {"aligned": aligned, "padding_mode": padding_mode}
    wide = [t.double().requires_grad_() for t in (input, dilation_map, columns)]
    unfolded = reference.dynamic_dilation_unfold(wide[0], kernel_size, wide[1], *options, **later)
    folded = reference.dynamic_dilation_fold(wide[2], size, kernel_size, wide[1], *options, **later)
    by_input, by_map = torch.autograd.grad(unfolded, wide[:2], wide[2].detach())
    by_rate = by_map.unflatten(1, (groups, rates))[:, :, 0]

    window = (kernel_size, dilation_map, *options, aligned, padding_mode)
    family = (dilation_map, "rates", kernel_size, *options, aligned, padding_mode)
    order = [1] + [0] * (rates - 1)
    ops = torch.ops.ddu
    grad_input, grad_map = ops.unfold_backward(columns, input, *window)
    unbatched = (kernel_size, dilation_map[0], *options)
    pairs = {
        "unfold": (ops.unfold(input, *window), unfolded),
        "dynamic_dilation_unfold": (ops.dynamic_dilation_unfold(input[0], *unbatched, **later), unfolded[0]),
        "sample": (ops.sample(input, *family), unfolded),
        "fold": (ops.fold(columns, size, *window), folded),
        "dynamic_dilation_fold": (ops.dynamic_dilation_fold(columns[0], size, *unbatched, **later), folded[0]),
        "splat": (ops.splat(columns, size, *family), folded),
        "unfold_backward, the image": (grad_input, by_input),
        "unfold_backward, the map": (grad_map, by_map),
        "dot": (ops.dot(columns, input, *family, order), by_rate),
    }
    for name, (actual, expected) in pairs.items():
        error, scale = (actual.double() - expected).norm().item(), expected.norm().item()
        if not error <= reference.TOLERANCES[actual.dtype] * scale:
            return f"{name} is wrong by {error / scale if scale else error:.1e}"
    return None


def self_test(seconds: float) -> bool:
    """Prints a line for every device and type; returns whether all agree with the reference."""
    runs = [(device, name) for device in devices() for name in TYPES]
    good = True
    for device, name in runs:
        rng, end, count, wrong = random.Random(0), time.monotonic() + seconds / len(runs), 0, None
        while wrong is None and (count == 0 or time.monotonic() < end):
            wrong = disagreement(rng, *TYPES[name], device)
            count += 1
        print(f"{device:8} {name:22} {wrong or f'{count} problems, all operators agree with the reference'}")
        good = good and wrong is None
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report and returns the exit status."""
    parser = argparse.ArgumentParser("python -m ddu_ops", description="Versions, how it was compiled, a self-test.")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the self-test")
    seconds: float = parser.parse_args(arguments).seconds
    for name, text in environment():
        print(f"{name:8} {text}")
    good = self_test(seconds)
    print("self-test passed" if good else "self-test FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
