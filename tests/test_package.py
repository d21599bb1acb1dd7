"""What users get: a wheel with what it should have, an import that asks nobody, locked tools."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LISTS = sorted((ROOT / "requirements").glob("*.txt"))

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a checkout")


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_what_it_should_and_nothing_else(tmp_path: Path) -> None:
    """Built from the objects that are there, into folders of its own."""
    build = ["build", "--build-lib", str(tmp_path / "lib")]
    wheel = ["bdist_wheel", "--bdist-dir", str(tmp_path / "wheel"), "--dist-dir", str(tmp_path)]
    run(sys.executable, "setup.py", "--quiet", *build, *wheel)
    (archive,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(archive).namelist())
    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "ddu_ops").glob("*.py*") if path.suffix in (".py", ".pyi")
    }
    extension = {name for name in names if re.fullmatch(r"ddu_ops/_C\.[\w.-]*\.?(so|pyd)", name)}
    assert len(extension) == 1
    version = re.search(r"\d+\.\d+\.\d+", (ROOT / "ddu_ops" / "_version.py").read_text())
    assert version
    info = f"ddu_ops-{version[0]}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE")}
    assert names == sources | extension | metadata | {"ddu_ops/py.typed"}
    assert "Requires-Dist: torch>=2.11\n" in zipfile.ZipFile(archive).read(f"{info}/METADATA").decode()


PROGRAM = """
import sys
import torch  # whatever it does itself
def audit(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "subprocess.", "os.system", "os.exec", "os.posix_spawn")):
        raise SystemExit(f"{event}{arguments}")
sys.addaudithook(audit)
import ddu_ops, ddu_ops.__main__
ddu_ops.dynamic_dilation_unfold(torch.ones(1, 1, 3, 3), 3, torch.ones(1, 1, 1, 1))
"""


def test_the_import_opens_no_socket_and_starts_no_process() -> None:
    run(sys.executable, "-c", PROGRAM, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))


def test_the_hook_sees_a_socket() -> None:
    program = PROGRAM.replace("import ddu_ops,", "import socket; socket.socket(); import ddu_ops,")
    with pytest.raises(AssertionError, match=r"socket\.__new__"):
        run(sys.executable, "-c", program, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_tool_is_locked_by_its_hash(path: Path) -> None:
    """`make lock` writes the files that are installed, in requirements/locked, from those that people edit."""
    locked = (path.parent / "locked" / path.name).read_text()
    entries = re.split(r"\n(?=\S)", locked.strip())
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    pinned = {re.split(r"[ ;\\]", entry)[0].lower() for entry in entries}
    for line in path.read_text().splitlines():
        wanted = re.split(r"[ ;#]", line)[0].lower()
        name = re.split(r"[<>=]", wanted)[0]
        versions = {entry for entry in pinned if entry.startswith(f"{name}==")}
        assert not wanted or (versions and ("==" not in wanted or wanted in versions)), (
            f"{wanted} is not locked: run `make lock`"
        )
