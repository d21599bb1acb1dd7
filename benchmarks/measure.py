"""Measurements: all contenders take turns, so that disturbances affect all of them."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Milliseconds of calls. On CUDA by events, after the caches were cleared; on the CPU by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self.flush = torch.empty(8 * cache, dtype=torch.int8, device=device)

    def time(self, calls: list[Callable[[], object]]) -> list[float]:
        """Of each call, one after the other. On CUDA all are queued first, so that the host's part does not count."""
        if self.device.type == "cuda":
            synchronize(self.device)
            events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in calls]
            for call, (start, end) in zip(calls, events, strict=True):
                self.flush.zero_()
                start.record()
                call()
                end.record()
            synchronize(self.device)
            return [start.elapsed_time(end) for start, end in events]
        times = []
        for call in calls:
            begin = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - begin))
        return times

    def back_to_back(self, call: Callable[[], object], count: int) -> float:
        """Milliseconds a call, of `count` in a row: what it costs to make one, where the work is next to nothing."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(self.device)
        return 1e3 * (time.perf_counter() - start) / count


def time_all(calls: dict[str, Callable[[], object]], clock: Clock, seconds: float, tiny: bool) -> dict[str, float]:
    """Milliseconds of each call: the median of its times on CUDA, the shortest on the CPU (others share that).

    ``tiny`` calls are timed back to back, a millisecond at a time; that time is the host's, on CUDA too.
    """
    count, most = (20, 3000) if tiny else (1, 100)

    def times_of(rounds: int) -> list[list[float]]:
        if tiny:
            return [[clock.back_to_back(call, count) for call in calls.values()] for _ in range(rounds)]
        line = clock.time(list(calls.values()) * rounds)
        return [line[i : i + len(calls)] for i in range(0, len(line), len(calls))]

    longest = max(max(line) for line in times_of(3))  # and warm up
    if tiny:
        count = max(1, min(200, int(1 / longest)))
    rounds = max(5, min(most, int(1e3 * seconds / max(longest * count, 1e-3))))
    times = dict(zip(calls, zip(*times_of(rounds), strict=True), strict=True))
    pick = statistics.median if clock.device.type == "cuda" and not tiny else min
    return {name: pick(line) for name, line in times.items()}


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Peak memory of a call, in bytes beyond what was allocated before."""
    call()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(changes), default=0)


def both_ways(
    calls: dict[str, Callable[[], Tensor]], wanted: Callable[[str], Sequence[Tensor]], clock: Clock, seconds: float
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Milliseconds of each forward, of each backward by the tensors ``wanted`` of it, and bytes of a step."""

    def backward(name: str) -> Callable[[], object]:
        output = calls[name]()
        grad = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, wanted(name), grad, retain_graph=True, allow_unused=True)

    with torch.no_grad():
        forward_ms = time_all(dict(calls), clock, seconds, tiny=False)
    backward_ms: dict[str, float] = {}
    for name in calls:  # one after the other: what each keeps may be large
        backward_ms |= time_all({name: backward(name)}, clock, seconds, tiny=False)
    memory = {name: peak_memory(lambda name=name: backward(name)(), clock.device) for name in calls}  # type: ignore[misc]
    return forward_ms, backward_ms, memory


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, that a large copy moves."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, dtype=torch.int8, device=device)
    target = torch.empty_like(source).copy_(source)
    clock = Clock(device)

    def copy() -> Tensor:
        return target.copy_(source)

    times = clock.time([copy] * 20)
    return 2 * source.numel() / (min(times) * 1e-3)
