"""Builds the packages for distribution into dist/, and tests them in a new environment.

python tools/distribute.py wheel              for the torch that is installed, and every CPython from 3.10 on
python tools/distribute.py sdist
python tools/distribute.py try dist/X.whl     in a new environment: the self-test
python tools/distribute.py try dist/X.whl --torch torch==2.13.0 -- -q tests/operators/test_forward.py     and tests
python tools/distribute.py matrix             which wheel in dist/ is for which torch, CUDA and Python, as Markdown
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
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


WHEEL = re.compile(
    r"ddu_ops-[\d.]+\+torch(?P<torch>[\d.]+)\.(?P<cuda>cpu|cu\d+)-cp3(?P<minor>\d+)-(?P<abi>abi3|cp3\d+t)-(?P<platform>\w+)\.whl"
)


def matrix(names: Iterable[str]) -> str:
    """A table of what wheels are for, from their names."""
    rows = []
    for name in names:
        found = WHEEL.fullmatch(name)
        if found is None:
            raise SystemExit(f"expected the name of a wheel that `make wheel` builds, but got {name!r}")
        cuda = "none" if found["cuda"] == "cpu" else f"{found['cuda'][2:-1]}.{found['cuda'][-1]}"
        python = f"3.{found['minor']} " + ("and later" if found["abi"] == "abi3" else "free-threaded")
        version = tuple(map(int, found["torch"].split(".")))
        rows.append((version, cuda, [found["torch"], cuda, python, found["platform"], f"`{name}`"]))
    if not rows:
        raise SystemExit("there is no wheel to list")
    table = [["torch", "CUDA kernels", "CPython", "platform", "wheel"], ["---"] * 5, *(row for *_, row in sorted(rows))]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("wheel")
    commands.add_parser("sdist")
    commands.add_parser("matrix")
    trying = commands.add_parser("try")
    trying.add_argument("--package", type=Path, help="a wheel or a source distribution")
    trying.add_argument("--torch", default="torch", help="requirement for pip, such as torch==2.13.0")
    trying.add_argument("tests", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args(arguments)
    options.dist.mkdir(parents=True, exist_ok=True)
    if options.command == "try":
        wheels = sorted(options.dist.glob("*.whl"), key=lambda path: path.stat().st_mtime)
        try_out(options.package or wheels[-1], options.torch, options.tests)
    elif options.command == "matrix":
        print(matrix(path.name for path in options.dist.glob("*.whl")))
    else:
        print({"wheel": wheel, "sdist": sdist}[options.command](options.dist))


if __name__ == "__main__":
    main()
