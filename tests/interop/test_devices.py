"""Devices other than the CPU and CUDA: which kernels run, and that there is one warning.

Each test is a process of its own, for what makes a device cannot be unmade.
"""

import importlib.util
import os
from functools import partial
from pathlib import Path

import pytest

from processes import SUPPORT, python, search_path

pytestmark = pytest.mark.filterwarnings("default")


run = partial(python, both=True)


def test_a_device_without_kernels(tmp_path: Path) -> None:
    """Every test of `private_device.py`; one warning, in the first."""
    tests = SUPPORT / "private_device.py"
    output = run("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", tests, PRIVATE_DEVICE=str(tmp_path))
    assert " passed" in output
    assert output.count("Warning: ddu_ops") == 1, output
    assert "built without kernels for device 'foreign': its operators run in terms of ATen's" in output


ON_ANOTHER_DEVICE = """
import sys
import torch
from cases import Case, assert_near, make_tensors, unfold, unfold_reference

device = sys.argv[1]
if device == "lazy":
    import torch._lazy
    import torch._lazy.ts_backend
    torch._lazy.ts_backend.init()
elif device == "xla":
    import torch_xla
case = Case("case", 2, 4, padding=(1, 1), groups=2, rates=2)
tensors = make_tensors(case, kinks=False)
for _ in range(2):
    leaves = [t.detach().to(device).requires_grad_() for t in tensors[:2]]
    wide = [t.detach().requires_grad_() for t in tensors[:2]]
    actual, expected = unfold(case, *leaves), unfold_reference(case, *wide)
    assert actual.device.type == device
    assert_near(actual.cpu(), expected)
    grads = torch.autograd.grad(actual, leaves, tensors.columns.to(device))
    for a, e in zip(grads, torch.autograd.grad(expected, wide, tensors.columns)):
        assert a.device.type == device
        assert_near(a.cpu(), e)
"""


without_xla = pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")


@pytest.mark.parametrize("device", ["lazy", pytest.param("xla", marks=without_xla)])
def test_a_device_that_traces(device: str) -> None:
    """They have no views of their own: the CPU's kernels run."""
    output = run("-c", ON_ANOTHER_DEVICE, device, PJRT_DEVICE="CPU")
    assert output.count("Warning: ddu_ops") == 1, output
    assert f"built without kernels for device '{device}': its operators run on the CPU" in output


@pytest.mark.skipif(
    "DDU_WITHOUT_CUDA" not in os.environ,
    reason="DDU_WITHOUT_CUDA, the folder of a build without CUDA on a machine with a GPU: tools/gpu.sh makes one",
)
def test_cuda_tensors_in_a_build_without_cuda() -> None:
    paths = search_path(os.environ["DDU_WITHOUT_CUDA"])
    output = run("-c", ON_ANOTHER_DEVICE, "cuda", PYTHONPATH=paths)
    assert output.count("Warning: ddu_ops") == 1, output
    assert "built without kernels for device 'cuda': its operators run in terms of ATen's" in output


PLAIN = """
import torch
import ddu_ops

image, dilation_map = torch.randn(1, 2, 5, 5, requires_grad=True), torch.rand(1, 1, 5, 5)
ddu_ops.dynamic_dilation_unfold(image, 3, dilation_map, padding=1).sum().backward()
torch.ops.ddu.unfold(image.to("meta"), 3, dilation_map.to("meta"), padding=1)
function = ddu_ops.decompositions()[torch.ops.ddu.unfold.default]
function(image, [3, 3], dilation_map, [1, 1], [1, 1])
"""


def test_no_warning_where_there_are_kernels_or_a_decomposition_was_asked_for() -> None:
    assert "Warning: ddu_ops" not in run("-c", PLAIN)
