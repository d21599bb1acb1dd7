"""The cases of tests/cpp/test_math.cpp as separate tests: csrc/math, which needs only a compiler."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from processes import ROOT

SOURCE = ROOT / "tests" / "cpp" / "test_math.cpp"
NAMES = re.findall(r"^TEST\((\w+)\)", SOURCE.read_text(encoding="utf-8"), re.MULTILINE)

# Products and sums apart, and every undefined step seen; or fused wherever the compiler finds an instruction for it.
BUILDS = {
    "sanitized": ["-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "fused": ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"],
}


@pytest.fixture(scope="session", params=BUILDS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = [os.environ["CXX"]] if os.environ.get("CXX") else [name for name in ("g++", "c++") if shutil.which(name)]
    if not found:
        pytest.skip("no C++ compiler: neither g++ nor c++, and CXX is not set")
    output = tmp_path_factory.mktemp("cpp") / "test_math"
    warnings = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
    flags = ["-std=c++17", *BUILDS[request.param], *warnings, "-I", str(ROOT / "csrc"), "-o", str(output)]
    done = subprocess.run([*shlex.split(found[0]), str(SOURCE), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", NAMES)
def test_math(program: Path, name: str) -> None:
    done = run(program, name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"passed {name}\n"


def test_every_case_is_here(program: Path) -> None:
    assert run(program, "--list").stdout.split() == NAMES
    assert len(NAMES) > 20


def test_a_name_that_is_none_is_refused(program: Path) -> None:
    assert run(program, "no_such_case").returncode == 2
