"""Runs tests or other programs with an extension that is built with the compiler's sanitizers.

    python tools/sanitize.py address -m pytest tests      AddressSanitizer and UndefinedBehaviorSanitizer
    python tools/sanitize.py thread -m pytest tests       ThreadSanitizer, of the parallel loops on the CPU
    python tools/sanitize.py address tools/fuzz.py --seconds 600

The remaining arguments are a command line for Python. The extension and the package are built into build/address or
build/thread, which comes first on the path; the extension in the checkout is not changed. Any report ends the process.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
OPTIONS = {
    "ASAN_OPTIONS": ":".join(
        (
            "detect_leaks=0",  # an interpreter leaves much behind on purpose; `make soak` watches memory
            "allocator_may_return_null=1",  # what is too large is refused, as without
            "max_allocation_size_mb=6144",
        )
    ),
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
}


def build(kind: str) -> Path:
    folder = ROOT / "build" / kind
    environment = os.environ | {"DDU_SANITIZE": SANITIZERS[kind], "DDU_WITH_CUDA": "0"}
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder


def runtime(name: str) -> str:
    """A library of the compiler's: it has to be there before Python is."""
    compiler = os.environ.get("CXX", "c++")
    return subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    if len(sys.argv) < 3 or sys.argv[1] not in SANITIZERS:
        print(__doc__)
        return 2
    kind, *command = sys.argv[1:]
    folder = build(kind)
    library = {"address": "libasan.so", "thread": "libtsan.so"}[kind]
    # The second one: AddressSanitizer looks for what throws exceptions when it starts.
    preload = f"{runtime(library)}:{runtime('libstdc++.so.6')}"
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    # `python -m` would put the checkout, with its own extension, before the path; and no other is to be tested.
    check = f"import sys, ddu_ops; assert ddu_ops.__file__.startswith({str(folder)!r}), ddu_ops.__file__"
    if command[0] == "-m":
        program = f"sys.argv[:] = {command[1:]!r}; import runpy; runpy.run_module(sys.argv[0], run_name='__main__')"
    else:
        program = f"sys.argv[:] = {command!r}; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    launch = [sys.executable, "-c", f"import sys; sys.path[0] = {str(folder)!r}; {check}; {program}"]
    if kind == "thread":  # it knows no addresses that are as random as newer kernels make them
        launch = ["setarch", platform.machine(), "--addr-no-randomize", *launch]
    return subprocess.run(
        launch, env=os.environ | OPTIONS | {"LD_PRELOAD": preload, "PYTHONPATH": path}, check=False
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
