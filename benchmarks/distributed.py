"""Compare several processes with one: results, the time of a step, and the number of collectives.

    torchrun --nproc-per-node 2 -m benchmarks.distributed --output benchmarks/results/distributed_cuda

A GPU for every process and NCCL where there are as many; the CPU and gloo otherwise. Parameters and gradients are
compared in float64 before anything is timed in float32. A step of training has the whole batch on one process and its
part on each of several; a step of DTensor is forward and backward of the unfold alone. Every process also does the
whole, at the same time: that is the time of one process.
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import ddu_ops.distributed
from benchmarks import report
from benchmarks.measure import synchronize

Step = Callable[[], object]
ROUNDS, STEPS = 5, 5  # the shortest of so many rounds of so many steps


def main() -> None:
    args = parse_args()
    world_size = int(os.environ["WORLD_SIZE"])
    cuda = args.device == "cuda" or (args.device is None and torch.cuda.device_count() >= world_size)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    mesh = init_device_mesh(device.type, (world_size,))
    torch.manual_seed(0)
    torch.backends.cudnn.deterministic = True

    rows = [train(name, parallel, mesh, device, args) for name, parallel in PARALLEL.items()]
    rows += [unfold(name, *sharding, mesh, device, args) for name, sharding in shardings(args.channels).items()]
    if dist.get_rank() == 0:
        name = torch.cuda.get_device_name(device) if cuda else "CPU"
        facts = {
            "command": f"torchrun --nproc-per-node {world_size} -m benchmarks.distributed " + " ".join(sys.argv[1:]),
            "device": f"{world_size} x {name}, {dist.get_backend()}",
            "torch": torch.__version__,
            "ddu_ops": ddu_ops.__version__,
            "input": f"({args.batch}, {args.channels}, {args.size}, {args.size}) k=3",
        }
        lines = [report.row_of(list(rows[0])), report.row_of(["---"] * len(rows[0]))]
        lines += [report.row_of(list(row.values())) for row in rows]
        text = "\n".join([*(f"- {key}: {value}" for key, value in facts.items()), "", *lines, ""])
        print(text)
        if args.output:
            args.output.with_suffix(".md").write_text(text)
    dist.destroy_process_group()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.distributed", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="height and width [%(default)s]")
    parser.add_argument("--output", type=Path, help="write this .md")
    return parser.parse_args()


def row(name: str, difference: float, whole: Step, part: Step, device: torch.device) -> dict[str, str]:
    alone, together = shortest(whole, device), shortest(part, device)
    return {
        "": name,
        "one process": f"{alone:.2f} ms",
        f"{dist.get_world_size()} processes": f"{together:.2f} ms",
        "times as fast": f"{alone / together:.2f}",
        "collectives a step": str(collectives(part, device)),
        "difference in float64": f"{difference:.1e}",
    }


def shortest(step: Step, device: torch.device) -> float:
    """Milliseconds a step, of the slowest process."""
    times = []
    for _ in range(1 + ROUNDS):  # the first warms up
        synchronize(device)
        dist.barrier()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start) / STEPS)
    longest = torch.tensor(min(times[1:]), device=device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.item()


def collectives(step: Step, device: torch.device) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as events:
        step()
        synchronize(device)
    return sum(event.count for event in events.key_averages() if event.key.startswith("c10d::"))


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


# ---- Training ----


class Block(nn.Module):
    """A convolution that predicts the rates it unfolds with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rates = nn.Conv2d(channels, 1, 3, padding=1)
        self.unfold = ddu_ops.DynamicDilationUnfold(3, padding=1)
        self.weight = nn.Linear(9 * channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        columns = self.unfold(input, 1.5 + torch.tanh(self.rates(input)))
        result = self.weight(columns.transpose(1, 2)).transpose(1, 2)
        return input + torch.relu(result.unflatten(-1, input.shape[-2:]))


def shard_blocks(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    for block in model:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


PARALLEL: dict[str, Callable[[nn.Sequential, DeviceMesh], nn.Module]] = {
    "DistributedDataParallel": lambda model, mesh: DistributedDataParallel(model),
    "fully_shard": shard_blocks,
}


def train(
    name: str,
    parallel: Callable[[nn.Sequential, DeviceMesh], nn.Module],
    mesh: DeviceMesh,
    device: torch.device,
    args: argparse.Namespace,
) -> dict[str, str]:
    difference = 0.0
    for dtype in (torch.float64, torch.float32):
        shape = (args.batch, args.channels, args.size, args.size)
        images = torch.randn(shape, device=device, dtype=dtype)
        dist.broadcast(images, 0)
        alone = nn.Sequential(*(Block(args.channels) for _ in range(3))).to(device, dtype)
        for parameter in alone.parameters():
            dist.broadcast(parameter.detach(), 0)
        together = copy.deepcopy(alone)
        whole = training_step(alone, images)
        part = training_step(parallel(together, mesh), images[dist.get_rank() :: dist.get_world_size()])
        if dtype == torch.float64:
            for _ in range(3):
                whole(), part()
            pairs = zip(together.parameters(), alone.parameters(), strict=True)
            difference = max(relative(full(a.detach()), e.detach()) for a, e in pairs)
    return row(name, difference, whole, part, device)


def training_step(model: nn.Module, images: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    return step


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


# ---- DTensor ----


def shardings(channels: int) -> dict[str, tuple[int, list[Shard | Replicate]]]:
    """Groups, and the placements of image, map and columns."""
    return {
        "DTensor, batch": (1, [Shard(0), Shard(0), Shard(0)]),
        "DTensor, channel groups": (channels // 8, [Shard(1), Shard(1), Shard(1)]),
        "DTensor, channels of one group": (1, [Shard(1), Replicate(), Shard(1)]),
    }


def unfold(
    name: str,
    groups: int,
    placements: list[Shard | Replicate],
    mesh: DeviceMesh,
    device: torch.device,
    args: argparse.Namespace,
) -> dict[str, str]:
    difference = 0.0
    for dtype in (torch.float64, torch.float32):
        options = {"device": device, "dtype": dtype}
        image = torch.randn(args.batch, args.channels, args.size, args.size, **options)
        rates = 0.5 + 2 * torch.rand(args.batch, groups, args.size, args.size, **options)
        grad = torch.randn(args.batch, 9 * args.channels, args.size**2, **options)
        shards = [distribute_tensor(t, mesh, [p]) for t, p in zip((image, rates, grad), placements, strict=True)]
        plain = [t.full_tensor() for t in shards]  # the first process's, for all
        whole, part = (unfold_step(*tensors, groups=groups) for tensors in (plain, shards))
        if dtype == torch.float64:
            pairs = zip(part(), whole(), strict=True)
            difference = max(relative(full(a.detach()), e.detach()) for a, e in pairs)
    return row(name, difference, whole, part, device)


def unfold_step(image: Tensor, rates: Tensor, grad: Tensor, groups: int) -> Callable[[], tuple[Tensor, ...]]:
    leaves = (image.requires_grad_(), rates.requires_grad_())

    def step() -> tuple[Tensor, ...]:
        columns = ddu_ops.dynamic_dilation_unfold(image, 3, rates, padding=1, groups=groups)
        return columns, *torch.autograd.grad(columns, leaves, grad)

    return step


if __name__ == "__main__":
    main()
