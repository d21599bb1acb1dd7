"""A short set of calls on CUDA for a memory checker: every operator, type and kernel, on small sizes.

Fails if a kernel was not reached. ``--part 2 8`` makes the second eighth of the calls, beside others, and only prints
what these have not reached.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from cases import (
    CASES,
    FUSED_CONVOLUTIONS,
    OPERATORS,
    PACKET_CASES,
    Case,
    ConvolutionCase,
    convolve,
    first_order,
    make_arguments,
    make_tensors,
    operator,
    pick,
    taking,
)
from ddu_ops import _C

# Besides the tests' table: channels that end inside a packet, in all types; no image.
SMALL = [
    *CASES,
    Case("part_of_a_packet", 1, 31, (9, 8), padding=(1, 1)),
    Case("no_pixels", 1, 3, (0, 4), padding=(2, 1), rates=2),
    # Channels for one to four packets of a thread, where the image is copied into packets.
    *(
        Case(f"{channels}_channels_{source}_{len(size)}", 1, channels, size, source=source, padding_mode=mode)
        for channels in (12, 40)
        for size, source in [((5, 4, 6), "rates"), *itertools.product([(5, 4, 6), (6, 7)], ["offsets", "affine"])]
        for mode in ("zeros", "reflection")
    ),
]
# Large enough (2^20 entries of columns) for the fast kernels by themselves. What the windows of the last one reach does
# not fit shared memory.
LARGER = [
    Case("tiles", 1, 72, (40, 45), padding=(1, 1)),
    Case("tiles_groups", 2, 72, (32, 39), (3, 2), padding=(1, 1), groups=2, rates=2),
    Case("large_kernel", 1, 32, (27, 26), (7, 7), padding=(3, 3)),
    Case("far", 1, 24, (64, 96), padding=(6, 8), dilation=(6, 8)),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs=2, type=int, default=(1, 1), metavar=("NUMBER", "PARTS"))
    number, parts = parser.parse_args().part
    small = itertools.product(SMALL, [(), ("fast",), ("wide",), ("fast", "wide")])
    calls: list[tuple[tuple[str, ...], Callable[[], int]]] = [
        *((paths, partial(call_dcls, dtype)) for paths in [(), ("fast",), ("wide",)] for dtype in DTYPES),
        *(
            ((*paths, *deterministic), partial(call_operators, case, dtype))
            for case, paths in [*small, *((case, ()) for case in LARGER)]
            for deterministic, dtype in itertools.product([(), ("deterministic",)], DTYPES)
        ),
        *(
            ((), partial(call_sums, case, dtype))
            for case, dtype in itertools.product([*CASES, *PACKET_CASES], DTYPES)
            if case.batch and case.channels
        ),
        *(
            ((), partial(call_convolution, case, dtype, tf32))
            for case, dtype, tf32 in itertools.product(FUSED_CONVOLUTIONS, DTYPES, (False, True))
            if dtype == torch.float32 or not tf32
        ),
    ]
    count = 0
    for paths, call in calls[number - 1 :: parts]:
        with taking(*paths):
            count += call()
    torch.cuda.synchronize()
    launches = _C.cuda_launches()
    print(f"{count} calls, {sum(launches.values())} launches of {len(launches)} kernels")
    if missed := sorted(name for name, number in launches.items() if number == 0):
        message = "never launched: " + ", ".join(missed)
        if parts == 1:
            raise SystemExit(message)
        print(message)


def call_dcls(dtype: torch.dtype) -> int:
    """Kernels with learnable spacings and their sparse form, on one axis to three, with their gradients."""
    count = 0
    for size in ((9,), (7, 30), (3, 4, 5)):
        weight = torch.randn(3, 2, 70, dtype=dtype, device="cuda").requires_grad_()
        positions = (4 * torch.randn(len(size), 3, 2, 70, device="cuda")).to(dtype)
        positions.view(-1)[:4] = torch.tensor([float("nan"), float("inf"), 3e4, -3e4])
        positions, sigma = positions.requires_grad_(), torch.randn_like(positions).requires_grad_()
        for version in ("v1", "gauss"):
            reach = sigma if version == "gauss" else None
            kernel = torch.ops.ddu.dcls_kernel(weight, positions, size, reach, version=version)
            kernel.backward(torch.randn_like(kernel))
        shifts = torch.randint(-9, 9, (len(size), 3, 70), device="cuda")
        shifts[0, 0, :2] = torch.tensor([2**63 - 1, -(2**63)])
        input = torch.randn(2, 3, *size, dtype=dtype, device="cuda").requires_grad_()
        factors = torch.randn(3, 70, dtype=dtype, device="cuda").requires_grad_()
        output = torch.ops.ddu.dcls_sparse_sum(input, factors, shifts, [n + 3 for n in size])
        output.backward(torch.randn_like(output))
        count += 6
    return count


def call_operators(case: Case, dtype: torch.dtype) -> int:
    tensors = make_tensors(case, dtype, device="cuda")
    rates = tensors.dilation_map.view(-1)
    rates[:3] = torch.tensor([float("nan"), float("inf"), 1e30])[: len(rates)]
    calls = [(name, order) for name in OPERATORS for order in {(), tuple(first_order(name, case))}]
    for name, order in calls:
        operator(name, case, order)(*pick(name, tensors))
    return len(calls)


def call_sums(case: Case, dtype: torch.dtype) -> int:
    """All contractions, with a weight and without, and pooling, forward and backward."""
    tensors = make_tensors(case, dtype, device="cuda")
    positions = tensors.dilation_map.detach()
    positions.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), 1e30])[: positions.numel()]
    window = (case.source, case.kernel_size, *case.options)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device="cuda").requires_grad_()

    query = leaf(case.batch, case.channels, *case.output_size)
    input, positions = tensors.input.detach().requires_grad_(), positions.requires_grad_()
    groups = [groups for groups in (case.groups, 2 * case.groups) if case.channels % (8 * groups) == 0] or [1]
    for mask_groups, weight in itertools.product(groups, (None, leaf(case.batch, case.channels, case.taps))):
        mask = leaf(case.batch, mask_groups * case.taps, *case.output_size)
        torch.ops.ddu.aggregate(input, mask, weight, None, positions, *window).sum().backward()
        fixed = torch.ops.ddu.aggregate(input, mask.detach(), weight, None, positions.detach(), *window)
        torch.autograd.grad(fixed.sum(), input)
        torch.ops.ddu.correlate(query, input, positions, *window, mask_groups).sum().backward()
    torch.ops.ddu.max_pool(input, positions, *window)[0].sum().backward()
    return 6 * len(groups) + 1


def call_convolution(case: ConvolutionCase, dtype: torch.dtype, tf32: bool) -> int:
    """In both layouts, forward and backward."""
    torch.backends.cudnn.allow_tf32 = tf32
    for layout in (torch.contiguous_format, {2: torch.channels_last, 3: torch.channels_last_3d}.get(case.axes)):
        if layout is None:
            continue
        arguments = make_arguments(case, dtype, "cuda")
        rates = arguments[case.positions_name].view(-1)
        rates[:3] = torch.tensor([float("nan"), float("inf"), 1e30])[: len(rates)]
        arguments["input"] = arguments["input"].to(memory_format=layout)
        with taking("fast"):
            convolve(case, {name: tensor.requires_grad_() for name, tensor in arguments.items()}).sum().backward()
    return 2


if __name__ == "__main__":
    main()
