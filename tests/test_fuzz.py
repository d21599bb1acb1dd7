"""Calls with any arguments, in a process of their own: see fuzzing.py for what they are judged by.

``make fuzz`` tries other ones for as long as one likes. What it found is pinned in test_arithmetic.py and test_errors.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cases import CONVOLUTIONS, OPERATORS

ROOT = Path(__file__).parents[1]


def fuzz(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "fuzz.py"), *options],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def figures(output: str) -> dict[str, int]:
    return {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", output.splitlines()[-1])}


def test_every_call_is_refused_clearly_or_answered_rightly() -> None:
    run = fuzz("--examples", "1500")
    assert run.returncode == 0, run.stdout + run.stderr
    found = figures(run.stdout)
    assert found["tried"] >= 1500
    # It would show nothing if the calls were all of one kind.
    assert min(found["answered"], found["refused"]) >= 100
    assert found["shaped"] > 0


# What the judge must not let pass, planted; each line runs in the child before its first call.
FAULTS = {
    "a wrong answer": "fuzzing.as_list = lambda r, of=fuzzing.as_list: [t + 1 for t in of(r)]",
    "an error without a text": "fuzzing.as_list = lambda r: (_ for _ in ()).throw(RuntimeError('oops'))",
    "a crash": "fuzzing.as_list = lambda r: os.abort()",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif '--child' in sys.argv:\n    import os, fuzzing\n    " + FAULTS[fault] + "\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(Path(__file__).parent), *sys.path])
    run = fuzz("--examples", "20", PYTHONPATH=path)
    assert run.returncode == 1, run.stdout + run.stderr
    found = figures(run.stdout)
    assert (found["crashes"] if fault == "a crash" else found["wrong"]) > 0
    assert "Call(name=" in run.stdout  # the call is known


def test_every_operator_is_tried() -> None:
    """`calls` draws from these tables, by the arguments of the schema."""
    defined = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ddu::")}
    assert defined == {f"ddu::{name}" for name in (*OPERATORS, *CONVOLUTIONS)}
