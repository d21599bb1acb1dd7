"""A short set of calls on CUDA for a checker of memory accesses: every operator, type and path once, on small sizes."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cases import CASES, OPERATORS, PART_OF_A_PACKET, Case, first_order, make_tensors, operator, pick

# Besides the tests' table: large enough (2^20 entries of columns) for the fast kernels, see csrc/cuda/unfold_cuda.cpp.
LARGER = [
    Case("tiles", 1, 72, (40, 45), padding=(1, 1)),
    Case("tiles_groups", 2, 72, (32, 39), (3, 2), padding=(1, 1), groups=2, rates=2),
    Case("large_kernel", 1, 32, (27, 26), (7, 7), padding=(3, 3)),
    Case("far", 1, 24, (64, 96), padding=(6, 8), dilation=(6, 8)),
    PART_OF_A_PACKET,
]


def main() -> None:
    device = torch.device("cuda")
    count = 0
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        for case in [*CASES, *LARGER]:
            for dtype in (torch.float32, torch.float16, torch.float64):
                tensors = make_tensors(case, dtype, device=device)
                rates = tensors.dilation_map.view(-1)
                rates[:3] = torch.tensor([float("nan"), float("inf"), 1e30])[: len(rates)]
                for name in OPERATORS:
                    for order in {(), tuple(first_order(name, case))}:
                        operator(name, case, order)(*pick(name, tensors))
                        count += 1
    torch.cuda.synchronize()
    print(f"{count} calls")


if __name__ == "__main__":
    main()
