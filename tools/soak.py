"""Random calls for a given time, to check that the memory of the process and of the GPU does not grow.

    python tools/soak.py --seconds 300 --device cpu

Every round draws a problem and runs forward, backward, the gradient of a gradient, a graph that is dropped halfway and
a call that is refused. Memory is measured after every twentieth of the time except the first, when caches are filled.
The exit status is 1 if it grew.
"""

import argparse
import gc
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import ddu_ops

ALLOWED = 16 << 20  # bytes: what an allocator may keep more or less of


def resident(device: str) -> dict[str, int]:
    """Bytes that the process holds, and that tensors on the GPU have."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {"process": pages * resource.getpagesize()}
    if device == "cuda":
        found["GPU"] = torch.cuda.memory_allocated()
    return found


def one_round(rng: random.Random, device: str) -> None:
    dtype = rng.choice([torch.float64, torch.float32, torch.float16, torch.bfloat16])
    groups, kernel_size = rng.choice([1, 2]), rng.choice([1, 2, 3])
    size = rng.choice([8, 17, 40])
    shape = (rng.choice([1, 2]), groups * rng.choice([1, 3, 8]), size, size + kernel_size)
    input = torch.randn(shape, device=device).to(dtype).requires_grad_()
    out = (size + 2 - kernel_size + 1, size + 2 + 1)
    dilation_map = (torch.rand((shape[0], groups, *out), device=device) * 3).to(dtype).requires_grad_()
    columns = ddu_ops.dynamic_dilation_unfold(input, kernel_size, dilation_map, padding=1, groups=groups)
    kind = rng.randrange(4)
    if kind == 0:
        columns.float().square().sum().backward()
    elif kind == 1:
        gradients = torch.autograd.grad(columns.float().sum(), (input, dilation_map), create_graph=True)
        torch.autograd.grad(gradients[1].float().square().sum(), (input, dilation_map), allow_unused=True)
    elif kind == 2:
        ddu_ops.dynamic_dilation_fold(columns, shape[2:], kernel_size, dilation_map, padding=1, groups=groups)
    else:
        try:
            ddu_ops.dynamic_dilation_unfold(input, kernel_size, dilation_map[..., 1:], padding=1, groups=groups)
        except RuntimeError:
            return
        raise AssertionError("a map of the wrong size was taken")


def soak(device: str, more: Callable[[float], bool]) -> tuple[int, list[dict[str, int]]]:
    """How many rounds there were, and the memory after every twentieth of the way but the first.

    ``more(part)`` says whether another round belongs to the first ``part`` of the way, of one.
    """
    rng = random.Random(0)
    rounds, found = 0, []
    for part in range(1, 21):
        while more(part / 20):
            one_round(rng, device)
            rounds += 1
        if part > 1:
            found.append(resident(device))
    return rounds, found


def growth(found: list[dict[str, int]]) -> dict[str, int]:
    """The lowest of the last quarter against the highest of the first: a leak lifts both, noise does not."""
    return {name: min(f[name] for f in found[-5:]) - max(f[name] for f in found[:5]) for name in found[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    start = time.monotonic()
    rounds, found = soak(arguments.device, lambda part: time.monotonic() - start < arguments.seconds * part)
    for name in found[0]:
        print(f"memory in MiB, {name}:", " ".join(f"{f[name] / 2**20:.1f}" for f in found))
    grown = growth(found)
    changes = ", ".join(f"{name} {bytes_ / 2**20:+.1f} MiB" for name, bytes_ in grown.items())
    print(f"{rounds} rounds in {arguments.seconds:.0f} s on {arguments.device}: {changes}")
    return 1 if max(grown.values()) > ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
