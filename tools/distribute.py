"""Builds the packages for distribution into dist/, and tests them in a new environment.

python tools/distribute.py wheel              for the torch that is installed, and every CPython from 3.10 on
python tools/distribute.py sdist
python tools/distribute.py try dist/X.whl     in a new environment: the self-test
python tools/distribute.py try dist/X.whl --torch torch==2.13.0 -- -q tests/operators/test_forward.py     and tests
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Excluded when the tests are copied, so that only the installed package can be imported.
NOT_BESIDE_THE_TESTS = ("ddu_ops", "setup.py", "build*", "dist", "*.egg-info", ".*", "__pycache__")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, env=os.environ | environment, check=True)


def wheel(dist: Path, source: Path = ROOT) -> Path:
    """Uses the objects in build/, but nothing else of an earlier build."""
    for stale in (source / "build").glob("lib*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory() as new:
        build = ("bdist_wheel", "--bdist-dir", f"{new}/tree", "--dist-dir", f"{new}/dist")
        run(sys.executable, "setup.py", "--quiet", *build, cwd=source, DDU_RELEASE="1")
        (result,) = Path(new, "dist").glob("*.whl")
        return Path(shutil.move(result, dist / result.name))


def sdist(dist: Path) -> Path:
    with tempfile.TemporaryDirectory() as new:
        run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", new)
        (result,) = Path(new).glob("*.tar.gz")
        return Path(shutil.move(result, dist / result.name))


def environment(folder: Path, package: Path, torch: str, *requirements: str) -> Path:
    """The Python of a new environment with torch, the package and locked requirements."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, torch)
    for name in requirements:
        run(*install, "--require-hashes", "--requirement", ROOT / "requirements" / "locked" / f"{name}.txt")
    run(*install, package)
    return python


def try_out(package: Path, torch: str, tests: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = environment(folder / "venv", package.resolve(), torch, *(["build", "test", "demo"] if tests else []))
        run(python, "-m", "ddu_ops", "--seconds", "5", cwd=folder)
        if tests:
            ignored = shutil.ignore_patterns(*NOT_BESIDE_THE_TESTS)
            shutil.copytree(ROOT, folder / "tests_of_it", ignore=ignored)
            run(python, "-m", "pytest", *tests, cwd=folder / "tests_of_it")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("wheel")
    commands.add_parser("sdist")
    trying = commands.add_parser("try")
    trying.add_argument("--package", type=Path, help="a wheel or a source distribution")
    trying.add_argument("--torch", default="torch", help="requirement for pip, such as torch==2.13.0")
    trying.add_argument("tests", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args(arguments)
    options.dist.mkdir(parents=True, exist_ok=True)
    if options.command == "try":
        wheels = sorted(options.dist.glob("*.whl"), key=lambda path: path.stat().st_mtime)
        try_out(options.package or wheels[-1], options.torch, options.tests)
    else:
        print({"wheel": wheel, "sdist": sdist}[options.command](options.dist))


if __name__ == "__main__":
    main()
