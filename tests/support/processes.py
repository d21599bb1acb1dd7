"""Helpers to run other programs, in particular another Python with the same modules."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
TOOLS = ROOT / "tools"


def run(
    *command: str | Path,
    cwd: Path = ROOT,
    fails: bool = False,
    both: bool = False,
    timeout: float = 900,
    **environment: str,
) -> str:
    """The output of a command, which has to succeed.

    Args:
        fails: it has to fail instead.
        both: include what it writes to stderr.
        environment: additional environment variables.
    """
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
        text=True,
        timeout=timeout,
    )
    assert (done.returncode != 0) == fails, done.stdout + (done.stderr or "")
    return done.stdout


def search_path(*first: str | Path) -> str:
    """For ``PYTHONPATH``: these folders, where this process finds modules, and the checkout."""
    return os.pathsep.join(map(str, [*first, *sys.path, ROOT]))


def python(
    *arguments: str | Path, cwd: Path = SUPPORT, fails: bool = False, both: bool = False, **environment: str
) -> str:
    """The output of another Python, which does not start in the checkout, whose package would always come first."""
    environment = {"PYTHONPATH": search_path(), **environment}
    return run(sys.executable, *arguments, cwd=cwd, fails=fails, both=both, **environment)
