"""Memory does not grow from call to call: a short run of ``make soak``."""

from pathlib import Path

import pytest
import torch

import soak
from processes import TOOLS, python, search_path

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")

# In a process of its own: what other tests have freed would take up a leak, and none would show.
PROGRAM = """
import soak, torch
{leak}
rounds = iter(range(200))
made, found = soak.soak({device!r}, lambda part: 200 - rounds.__length_hint__() < 200 * part and next(rounds) >= 0)
assert made == 200
print(max(soak.growth(found).values()))
"""


def growth(device: str, leak: str = "") -> int:
    return int(python("-c", PROGRAM.format(device=device, leak=leak), PYTHONPATH=search_path(TOOLS)))


@pytest.mark.parametrize("device", DEVICES)
def test_memory_is_flat(device: str) -> None:
    assert growth(device) < soak.ALLOWED


def test_a_leak_is_seen() -> None:
    kept = "kept = []; soak.one_round = lambda rng, device: kept.append(torch.ones(1 << 18))"
    assert growth("cpu", kept) > soak.ALLOWED
