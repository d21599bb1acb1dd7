"""The package: contents of the wheel, an import without side effects, locked tools."""

import json
import os
import re
import runpy
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import ddu_ops
import distribute
import processes
from processes import ROOT, run

LISTS = sorted((ROOT / "requirements").glob("*.txt"))

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a checkout")


def python(*arguments: str, package: Path = ROOT) -> str:
    """Another Python, with the package of that folder."""
    return processes.python(*arguments, cwd=package, PYTHONPATH=os.pathsep.join([str(package), *sys.path]))


@pytest.mark.parametrize("wish, said", [("", r"CUDA off \(no visible GPU or TORCH_CUDA_ARCH_LIST\)"), ("1", None)])
def test_a_build_for_cuda_needs_architectures(
    wish: str, said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/usr/local/cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("DDU_WITH_CUDA", wish)
    if said is None:
        with pytest.raises(SystemExit, match=r"^DDU_WITH_CUDA=1 needs visible GPU or TORCH_CUDA_ARCH_LIST$"):
            runpy.run_path(str(ROOT / "setup.py"))
    else:
        runpy.run_path(str(ROOT / "setup.py"))
        assert re.search(said, capsys.readouterr().out)


def test_the_wheel_has_what_it_should_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the objects that are there."""
    monkeypatch.setenv("DDU_WITH_CUDA", "1" if ddu_ops._C.build()["cuda"] else "0")  # as the build that is there
    path = distribute.wheel(tmp_path)
    archive = zipfile.ZipFile(path)
    public = re.search(r"\d+\.\d+\.\d+", (ROOT / "ddu_ops" / "_version.py").read_text())
    assert public
    minor = ".".join(torch.__version__.split(".")[:2])
    with_cuda = torch.version.cuda if ddu_ops._C.build()["cuda"] else None
    cuda = f"cu{with_cuda.replace('.', '')}" if with_cuda else "cpu"
    version = f"{public[0]}+torch{minor}.{cuda}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    tag, suffix = "cp310-abi3", ".abi3.so"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):  # it has no limited API: a wheel for this one alone
        this = f"cp{sys.version_info.major}{sys.version_info.minor}"
        tag, suffix = f"{this}-{this}t", sysconfig.get_config_var("EXT_SUFFIX")
    assert path.name == f"ddu_ops-{version}-{tag}-{platform}.whl"

    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "ddu_ops").rglob("*.py*") if path.suffix in (".py", ".pyi")
    }
    extension, record, info = f"ddu_ops/_C{suffix}", "ddu_ops/_built_for.json", f"ddu_ops-{version}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE")}
    assert set(archive.namelist()) == sources | metadata | {extension, record, "ddu_ops/py.typed"}
    assert f"Requires-Dist: torch=={minor}.*\n" in archive.read(f"{info}/METADATA").decode()
    built_for = json.loads(archive.read(record))
    assert built_for == {"torch": torch.__version__, "cuda": with_cuda}

    archive.extract(extension, tmp_path)
    assert ".symtab" not in run("objdump", "--section-headers", str(tmp_path / extension))


@pytest.mark.skipif(os.environ.get("DDU_PACKAGES") != "1", reason="takes minutes: DDU_PACKAGES=1")
def test_the_source_distribution_builds_the_same(tmp_path: Path) -> None:
    wheel, sources = distribute.wheel(tmp_path), distribute.sdist(tmp_path)
    with tarfile.open(sources) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    (tmp_path / "again").mkdir()
    again = distribute.wheel(tmp_path / "again", folder)
    assert again.name == wheel.name
    one, other = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert sorted(one.namelist()) == sorted(other.namelist())
    differ = [name for name in one.namelist() if one.read(name) != other.read(name)]
    assert differ == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be broken; the path to import it from."""
    shutil.copytree(ROOT / "ddu_ops", tmp_path / "ddu_ops", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


WITHOUT = """
import sys
import warnings

# An editable install would find the parts of the checkout that are missing here.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ddu_ops
(warning,) = caught
print(warning.category.__name__, warning.message)

import torch
assert ddu_ops.reference.dynamic_dilation_unfold(torch.ones(1, 1, 3, 3), 3, torch.ones(1, 1, 1, 1)).numel() == 9
for statement in ("from ddu_ops import dynamic_dilation_unfold", "import ddu_ops.modules", "ddu_ops.layers"):
    try:
        exec(statement)
    except ImportError as error:
        assert str(error) == str(warning.message)
    else:
        raise AssertionError(statement)
try:
    ddu_ops.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
"""
MEND = r"run `pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall --no-binary ddu_ops ddu_ops`"


def extension_of(package: Path) -> Path:
    (extension,) = (package / "ddu_ops").glob("_C*.so")
    return extension


def test_built_for_another_torch(package: Path) -> None:
    (package / "ddu_ops" / "_built_for.json").write_text('{"torch": "2.99.1+cu199", "cuda": "19.9"}')
    text = python("-c", WITHOUT, package=package)
    installed = re.escape(torch.__version__)
    assert re.fullmatch(
        rf"RuntimeWarning ddu_ops was built for torch 2\.99\.1\+cu199, but torch {installed} is installed: {MEND}\n",
        text,
    )


def test_not_built(package: Path) -> None:
    extension_of(package).unlink()
    text = python("-c", WITHOUT, package=package)
    assert re.fullmatch(rf"RuntimeWarning the extension of ddu_ops is not built: {MEND}\n", text)


def test_not_built_in_a_checkout(package: Path) -> None:
    """There it is the checkout that has to be built."""
    extension_of(package).unlink()
    (package / "setup.py").touch()
    text = python("-c", WITHOUT, package=package)
    assert text.endswith(f": run `pip install --no-build-isolation --no-deps -e {package}`\n")


@pytest.mark.parametrize("recorded", [True, False])
def test_what_does_not_load(package: Path, recorded: bool) -> None:
    extension_of(package).write_bytes(b"no library")
    if not recorded:
        (package / "ddu_ops" / "_built_for.json").unlink()
    text = python("-c", WITHOUT, package=package)
    built = re.escape(torch.__version__) if recorded else "of unknown version"
    assert re.fullmatch(
        rf"RuntimeWarning ddu_ops, built for torch {built}, CUDA [\w.]+, does not load where torch .* is installed "
        rf"\(.*: (file too short|invalid ELF header)\): {MEND}\n",
        text,
    )


def test_the_import_is_quiet_and_brings_nothing_along() -> None:
    """What takes time to import, torch has imported already, or is left until it is needed."""
    program = "import sys, torch; before = set(sys.modules); import ddu_ops; print(*sorted(set(sys.modules) - before))"
    text = python("-W", "error", "-c", program)
    new = {name for name in text.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert "ddu_ops.functional" in new
    assert {name for name in new if not re.match(r"ddu_ops\b", name)} == set()


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
    python("-c", PROGRAM)


def test_the_hook_sees_a_socket() -> None:
    program = PROGRAM.replace("import ddu_ops,", "import socket; socket.socket(); import ddu_ops,")
    with pytest.raises(AssertionError, match=r"socket\.__new__"):
        python("-c", program)


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
