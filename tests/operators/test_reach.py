"""Which CUDA kernels are counted and reached: a check covers only the code that it runs."""

import re

import pytest
import torch

from cases import Case, make_tensors, taking, unfold
from ddu_ops import _C
from processes import ROOT, TOOLS, python

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_every_kernel_is_launched_through_its_count() -> None:
    text = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.cu"))
    kernels = set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text))
    assert len(kernels) == text.count("__global__") > 0
    assert set(re.findall(r"\bcounted<(\w+)", text)) == kernels
    assert not re.findall(rf"(?<!\bcounted<)\b(?:{'|'.join(kernels)})<", text)


def test_a_build_for_cuda_names_its_kernels() -> None:
    names = _C.cuda_launches()
    assert bool(names) == bool(_C.build()["cuda"])
    assert all(re.fullmatch(r"\w+_kernel<.+>", name) for name in names)


@needs_cuda
def test_a_launch_is_counted_and_the_fast_kernels_can_be_forced() -> None:
    case = Case("small", padding=(1, 1))
    tensors = make_tensors(case, torch.float32, device="cuda")

    def launched() -> set[str]:
        before = _C.cuda_launches()
        unfold(case, tensors.input, tensors.dilation_map)
        return {name for name, count in _C.cuda_launches().items() if count == before[name] + 1}

    assert launched() == {"sample_kernel<float, int, 2, true>"}
    with taking("wide"):
        assert launched() in (
            {"sample_kernel<float, long int, 2, false>"},
            {"sample_kernel<float, long, 2, false>"},
        )  # gcc's name, clang's
    with taking("fast"):
        assert launched() == {"sample_tile_kernel<float, 1, true>"}
    assert launched() == {"sample_kernel<float, int, 2, true>"}


@needs_cuda
def test_the_calls_for_a_memory_checker_reach_every_kernel() -> None:
    python(TOOLS / "sanitized_calls.py")
