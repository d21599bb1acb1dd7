"""The CPU kernels for each instruction set: the same results, within what rounding allows."""

from pathlib import Path

import pytest
import torch

from cases import CASES, TOLERANCES, make_tensors, operator, pick
from processes import python, search_path

CASES_HERE = [case for case in CASES if case.batch and case.channels]
DTYPES_HERE = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def results() -> dict[str, torch.Tensor]:
    """Of every kernel, for every case and type."""
    found = {}
    for case in CASES_HERE:
        for dtype in DTYPES_HERE:
            tensors = make_tensors(case, dtype)
            for name in ("unfold", "unfold_backward"):
                result = operator(name, case)(*pick(name, tensors))
                for i, part in enumerate(result if isinstance(result, tuple) else (result,)):
                    found[f"{name}[{i}] {case} {dtype}"] = part
    return found


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_instruction_sets_agree(capability: str, tmp_path: Path) -> None:
    """The one that this process has chosen, against a process that is told to choose another."""
    program = "import sys, torch, test_capabilities; torch.save(test_capabilities.results(), sys.argv[1])"
    path = search_path(Path(__file__).parent)
    python("-c", program, tmp_path / "results", ATEN_CPU_CAPABILITY=capability, PYTHONPATH=path)
    other = torch.load(tmp_path / "results")
    mine = results()
    assert mine.keys() == other.keys()
    for key, result in mine.items():
        difference = (result.double() - other[key].double()).norm()
        assert difference <= TOLERANCES[result.dtype] * result.double().norm(), key
