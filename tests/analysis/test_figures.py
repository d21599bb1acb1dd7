"""The script of the README's figure runs, and its taps lie where the network reads."""

import sys
from pathlib import Path

import pytest
import torch

from processes import ROOT

sys.path.insert(0, str(ROOT / "examples"))

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

import network
import perspective_digits

from ddu_ops import viz


def test_the_figure_of_a_network(tmp_path: Path) -> None:
    output = tmp_path / "network.png"
    network.main(["--steps", "2", "--pictures", "16", "--output", str(output)])
    assert output.read_bytes().startswith(b"\x89PNG")


def test_the_taps_are_those_of_the_layers() -> None:
    """In pixels of the picture: the stem has a feature for every second pixel, and the layers start at dilation 2."""
    rates = torch.full((32, 32), 1.5)
    stride, start = network.STRIDE, perspective_digits.START
    pixels = viz.tap_positions(rates, 3, stride, stride * start, stride * start)
    features = viz.tap_positions(rates, 3, 1, start, start)
    torch.testing.assert_close(pixels, stride * features)
