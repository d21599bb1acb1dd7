"""Calls with any arguments, in a process of their own: see fuzzing.py for what they are judged by.

``make fuzz`` tries other ones for as long as one likes. What it found is pinned in test_arithmetic.py and test_errors.py.
"""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzzing
from processes import TOOLS, python, search_path

FUZZ = TOOLS / "fuzz.py"


def figures(output: str) -> dict[str, int]:
    return {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", output.splitlines()[-1])}


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_every_call_is_refused_clearly_or_answered_rightly(device: str) -> None:
    output = python(FUZZ, "--examples", "1500", "--device", device)
    found = figures(output)
    assert found["tried"] >= 1500
    # It would show nothing if the calls were all of one kind.
    assert min(found["answered"], found["refused"]) >= 100
    assert found["shaped"] > 0
    reached = dict(re.findall(r"(\w+_kernel): (\d+) of", output))
    assert bool(reached) == (device == "cuda")
    assert "0" not in reached.values(), reached


# What the judge must not let pass, planted; each line runs in the child before its first call.
FAULTS = {
    "a wrong answer": "fuzzing.as_list = lambda r, of=fuzzing.as_list: [t + 1 for t in of(r)]",
    "half a percent too much": "fuzzing.as_list = lambda r, of=fuzzing.as_list: [t * 1.005 for t in of(r)]",
    "a gradient's sign": "fuzzing.as_list = lambda r, of=fuzzing.as_list: [2 * t.detach() - t for t in of(r)]",
    "an error without a text": "fuzzing.as_list = lambda r: (_ for _ in ()).throw(RuntimeError('oops'))",
    "a crash": "fuzzing.as_list = lambda r: os.abort()",
    "a crash of the GPU": "fuzzing.torch.cuda.is_initialized = lambda: True; fuzzing.torch.cuda.synchronize = broken",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif '--child' in sys.argv:\n    import os, fuzzing\n"
        "    def broken(): raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        f"    {FAULTS[fault]}\n"
    )
    output = python(FUZZ, "--examples", "200", fails=True, PYTHONPATH=search_path(tmp_path))
    found = figures(output)
    assert (found["crashes"] if fault.startswith("a crash") else found["wrong"]) > 0
    assert "Call(name=" in output  # the call is known


def test_a_sum_that_cancels_is_held_against_its_terms() -> None:
    """Columns of float16 are rounded before their sum, the gradient by the rate, cancels: 3.5 percent are left here.

    A weight of zeros is in none of its terms. The judge multiplied with it once, and allowed no error.
    """
    half = torch.float16
    tensors = {
        "grad_output": fuzzing.TensorSpec((1, 1, 1, 1), half, seed=276),
        "input": fuzzing.TensorSpec((1, 2, 1, 2), half, seed=277),
        "weight": fuzzing.TensorSpec((1, 2, 1, 2), half, "all zero"),
        "positions": fuzzing.TensorSpec((1, 1, 1, 1), half, "all zero"),
        "mask": None,
    }
    window = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "dilation_groups": 1}
    options = {
        "aligned": True,
        "padding_mode": "zeros",
        "source": "rates",
        "output_mask": [False, True, False, False],
    }
    call = fuzzing.Call("convolution_backward", tensors | window | options, sensible=True, gradient=True)
    assert fuzzing.judge(call) == "answered"


def test_every_operator_is_tried() -> None:
    """By the arguments of its schema; those of DCLS, which are not of windows, in test_dcls.py."""
    every = {schema.name[5:] for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ddu::")}
    defined = {name for name in every if not name.startswith("dcls_")}
    assert set(fuzzing.NAMES) == defined

    @settings(max_examples=3, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(call=st.tuples(*(fuzzing.calls([name]) for name in sorted(defined))))
    def draw(call: tuple[fuzzing.Call, ...]) -> None:
        assert {one.name for one in call} == defined

    draw()
