"""The library without Python: built and installed by CMake, found and used by the programs of examples/cpp.

`make packages` runs all of it; without DDU_PACKAGES=1, only what takes no compiler.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import processes
from processes import ROOT

LISTS = json.loads((ROOT / "csrc" / "build.json").read_text())
PRESETS = [
    preset["name"]
    for preset in json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]
    if not preset.get("hidden")
]

builds = pytest.mark.skipif(os.environ.get("DDU_PACKAGES") != "1", reason="takes minutes: DDU_PACKAGES=1")


def run(*command: str | Path, fails: bool = False, **environment: str) -> str:
    """The environment's own tools first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return processes.run(*command, fails=fails, both=True, **{"PATH": path, **environment})


def configure(preset: str) -> str:
    return run("cmake", "--preset", preset, f"-DPython3_EXECUTABLE={sys.executable}")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    configure("release")
    run("cmake", "--build", "--preset", "release")
    prefix = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", "build/cmake/release", "--prefix", prefix)
    return prefix


@pytest.fixture(scope="session")
def examples(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    run("cmake", "-S", "examples/cpp", "-B", folder, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", folder)
    return folder


def test_every_source_is_listed_once() -> None:
    listed = [path for part in ("library", "cuda", "python") for path in LISTS[part]]
    csrc = ROOT / "csrc"
    there = {str(path.relative_to(csrc)) for path in csrc.rglob("*") if path.suffix in (".cpp", ".cu")}
    assert len(listed) == len(set(listed))
    assert set(listed) == there
    stems = {Path(path).with_suffix("") for path in listed}
    assert len(stems) == len(listed), "setuptools names an object by its source, without the suffix"
    assert {path for path in there if path.endswith(".cu") or "cuda" in path} == set(LISTS["cuda"])


@builds
@pytest.mark.parametrize("preset", PRESETS)
def test_the_preset_configures(preset: str) -> None:
    assert f"build/cmake/{preset}" in configure(preset)


@builds
def test_the_tests_of_the_maths(installed: Path) -> None:
    """`installed` for the build; tests/cpp/test_cpp.py shows them one by one."""
    assert "100% tests passed" in run("ctest", "--preset", "release")


@builds
def test_what_is_installed(installed: Path) -> None:
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    config = {"config", "config-version", "targets", "targets-release"}
    assert {re.sub(r"^lib\w*/", "lib/", name) for name in files} == {
        "include/ddu_ops/ddu_ops.h",
        "lib/libddu_ops.so",
        *(f"lib/cmake/ddu_ops/ddu_ops-{name}.cmake" for name in config),
    }


@builds
def test_the_header_is_all_of_the_interface(installed: Path) -> None:
    (library,) = installed.rglob("libddu_ops.so")
    symbols = run("nm", "--dynamic", "--defined-only", "--demangle", library)
    names = {f"{name}{suffix}" for name in ("unfold", "fold") for suffix in ("1d", "", "3d")}
    of_axes = ["conv", "max_pool", *(f"{kind}_{name}" for kind in ("deform", "affine") for name in ("unfold", "conv"))]
    of_axes += [f"{source}{name}" for source in ("", "deform_", "affine_") for name in ("aggregate", "correlate")]
    names |= {f"{name}{axes}d" for name in of_axes for axes in (1, 2, 3)}
    assert set(re.findall(r" T ddu::(\w+)\(", symbols)) == names


@builds
def test_training_in_cpp(examples: Path) -> None:
    assert re.fullmatch(r"loss .* -> .*, half of the rates are within 0\.00\d+\n", run(examples / "train_map"))


@builds
def test_an_exported_model_in_cpp(examples: Path, tmp_path: Path) -> None:
    run(sys.executable, "examples/cpp/export_model.py", tmp_path, PYTHONPATH=processes.search_path())
    assert run(examples / "run_model", tmp_path).startswith("output of 9600 values, at most ")


@builds
def test_the_linker_keeps_the_registrations(examples: Path) -> None:
    """Of a program that names nothing of the library's."""
    program = examples / "run_model"
    assert "ddu" not in run("nm", "--dynamic", "--undefined-only", "--demangle", program)
    assert re.search(r"NEEDED.*libddu_ops\.so", run("objdump", "-p", program))


@builds
def test_another_torch_is_refused(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "TorchConfig.cmake").write_text("")
    (tmp_path / "TorchConfigVersion.cmake").write_text(
        "set(PACKAGE_VERSION 2.99.0)\nset(PACKAGE_VERSION_COMPATIBLE ON)\n"
    )
    command = ("cmake", "-S", "examples/cpp", "-B", tmp_path / "build", "-G", "Ninja", f"-DTorch_DIR={tmp_path}")
    text = run(*command, f"-DCMAKE_PREFIX_PATH={installed}", fails=True)
    version = torch.__version__.split("+")[0]
    assert re.search(rf"it\s+was\s+built\s+with\s+torch\s+{re.escape(version)},\s+but\s+got\s+2\.99\.0\s+in", text)


@builds
def test_from_python(installed: Path) -> None:
    (library,) = installed.rglob("libddu_ops.so")
    program = f"""
import torch
torch.ops.load_library({str(library)!r})
columns = torch.ops.ddu.dynamic_dilation_unfold(torch.ones(1, 1, 3, 3), [3, 3], torch.ones(1, 1, 1, 1))
assert torch.equal(columns, torch.ones(1, 9, 1))
"""
    run(sys.executable, "-c", program)


@builds
def test_cuda_needs_a_torch_for_it(tmp_path: Path) -> None:
    if torch.version.cuda:
        pytest.skip("torch is built for CUDA")
    command = ("cmake", "-S", ".", "-B", tmp_path, f"-DPython3_EXECUTABLE={sys.executable}", "-DDDU_WITH_CUDA=ON")
    assert "needs a torch built for CUDA" in run(*command, fails=True)
