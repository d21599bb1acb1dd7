"""Builds and tests the checkout with other releases of torch than the pinned one, and prints a table of what came out.

    python tools/torch_versions.py 2.15.0 2.14.1
    python tools/torch_versions.py 2.15.0 --write docs/torch_versions.md -- -q tests/operators

Every release gets a copy of the tracked files and an environment in build/torch/, gigabytes each, which later runs use
again. What follows -- goes to pytest; the default is the whole suite. With --write the rows go into the table of the
page, in place of earlier ones of the same release and device.
"""

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| torch | Python | device | tests | passed | failed | skipped | date |\n" + "| --- " * 8 + "|\n"
DEVICE = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU')"


def copy(folder: Path) -> None:
    """The tracked files, as they are now. What did not change keeps its date, so that it is not compiled again."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.exists() and not (target.exists() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def environment(folder: Path, torch: str) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, f"torch=={torch}"], check=True)
    for name in ("build", "test", "demo"):
        locked = ROOT / "requirements" / "locked" / f"{name}.txt"
        subprocess.run([*install, "--require-hashes", "--requirement", locked], check=True)
    return python


def try_out(torch: str, tests: Sequence[str]) -> str:
    """A row of the table."""
    folder = ROOT / "build" / "torch" / torch
    copy(folder / "checkout")
    python = environment(folder / "venv", torch)
    options = {"cwd": folder / "checkout", "env": os.environ | {"PYTHONPATH": str(folder / "checkout")}, "text": True}
    subprocess.run([python, "setup.py", "--quiet", "build_ext", "--inplace"], check=True, **options)
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", *tests], stdout=subprocess.PIPE, check=False, **options
    )
    print(done.stdout)
    *_, last = done.stdout.splitlines()
    found = {word: re.search(rf"(\d+) {word}", last) for word in ("passed", "failed", "skipped", "error")}
    counts = {word: int(match[1]) if match else 0 for word, match in found.items()}
    if not counts["passed"]:
        raise SystemExit(f"torch {torch}: pytest ended with {done.returncode} and {last!r}")
    device = subprocess.run([python, "-c", DEVICE], capture_output=True, check=True, **options).stdout.strip()
    cells = [
        torch,
        platform.python_version(),
        device,
        " ".join(word for word in tests if not word.startswith("-")) or "all",
        counts["passed"],
        counts["failed"] + counts["error"],
        counts["skipped"],
        datetime.datetime.now(datetime.timezone.utc).date(),
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


def write(page: Path, rows: list[str]) -> None:
    """Into the table of a page, the newest release first."""
    text = page.read_text(encoding="utf-8")
    begin = text.index(HEAD) + len(HEAD)
    end = begin + re.match(r"(?:\|.*\n)*", text[begin:]).end()  # type: ignore[union-attr]  # it matches no rows, too

    def which(row: str) -> list[str]:
        cells = [cell.strip() for cell in row.split("|")]
        return [cells[1], cells[3]]

    kept = [row for row in text[begin:end].splitlines(keepends=True) if which(row) not in map(which, rows)]
    newest_first = sorted([*kept, *rows], key=lambda row: [*map(int, which(row)[0].split("."))], reverse=True)
    page.write_text(text[:begin] + "".join(newest_first) + text[end:], encoding="utf-8")


def main() -> None:
    own, _, tests = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="+", help="releases, such as 2.15.0")
    parser.add_argument("--write", type=Path, help="a page with the table")
    options = parser.parse_args(own.split())
    rows = [try_out(torch, tests.split() or ["-q"]) for torch in options.torch]
    print(HEAD + "".join(rows), end="")
    if options.write:
        write(options.write, rows)


if __name__ == "__main__":
    main()
