"""Memory stays what it was, call after call: a short one of ``make soak``."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import soak

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


def rounds(device: str, count: int) -> list[int]:
    """The memory on the way."""
    left = iter(range(count))
    made, found = soak.soak(device, lambda part: count - left.__length_hint__() < count * part and next(left) >= 0)
    assert made == count
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_memory_is_flat(device: str) -> None:
    assert soak.growth(rounds(device, 200)) < soak.ALLOWED


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(soak, "one_round", lambda rng, device: kept.append(torch.ones(1 << 18)))
    assert soak.growth(rounds("cpu", 200)) > soak.ALLOWED
