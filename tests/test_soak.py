"""Memory stays what it was, call after call: a short one of ``make soak``."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import soak

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("device", DEVICES)
def test_memory_is_flat(device: str) -> None:
    rounds, found = soak.soak(4, device)
    assert rounds > 50
    assert min(found[-5:]) - max(found[:5]) < soak.ALLOWED


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept = []
    monkeypatch.setattr(soak, "one_round", lambda rng, device: kept.append(torch.ones(1 << 20)))
    monkeypatch.setattr(soak, "soak", lambda seconds, device, run=soak.soak: run(0.2, device))
    monkeypatch.setattr(sys, "argv", ["soak.py", "--device", "cpu"])
    assert soak.main() == 1
    kept.clear()
    assert "grew by" in capsys.readouterr().out
