"""Builds the extension ``ddu_ops._C`` from the sources in csrc/build.json. All other settings are in pyproject.toml.

An incremental build in the checkout: ``python setup.py build_ext --inplace``.

DDU_WITH_CUDA      1 requires the CUDA kernels, 0 disables them
DDU_RELEASE        1: a wheel for other machines, whose version and requirements name the torch that it is for
DDU_SANITIZE       names for the compiler's -fsanitize=, set by tools/sanitize.py, which builds into a separate folder
"""

import json
import os
import re
import sysconfig
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent


def switch(name: str) -> bool | None:
    """The value of an environment variable that is a switch."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"expected {name} to be 0, 1 or empty, but got {value!r}")
    return None if value == "" else value == "1"


def with_cuda() -> bool:
    """Whether to build for CUDA: if torch and a toolkit support it; DDU_WITH_CUDA=1 requires it, 0 disables it.

    TORCH_CUDA_ARCH_LIST selects the architectures, and no GPU has to be visible; by default those of the visible GPUs.
    """
    wish = switch("DDU_WITH_CUDA")
    architectures = torch.cuda.is_available() or os.environ.get("TORCH_CUDA_ARCH_LIST")
    missing = [
        name
        for name, found in (
            ("torch built for CUDA", torch.version.cuda),
            ("nvcc (CUDA_HOME)", CUDA_HOME),
            ("visible GPU or TORCH_CUDA_ARCH_LIST", architectures or not torch.version.cuda),
        )
        if not found
    ]
    if wish and missing:
        raise SystemExit(f"DDU_WITH_CUDA=1 needs {' and '.join(missing)}")
    use = wish is not False and not missing
    why = "DDU_WITH_CUDA=0" if wish is False else f"no {' and no '.join(missing)}" if missing else CUDA_HOME
    print(f"ddu_ops: torch {torch.__version__}, CUDA {'on' if use else 'off'} ({why})", flush=True)
    return use


LISTS: dict[str, list[str]] = json.loads((ROOT / "csrc" / "build.json").read_text())
USE_CUDA = with_cuda()
RELEASE = switch("DDU_RELEASE")
SANITIZERS = os.environ.get("DDU_SANITIZE", "")
# One file for every CPython from 3.10 on, what torch sets Py_LIMITED_API to: the extension calls next to nothing
# of Python. A free-threaded one has no limited API.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
CUDA_FLAGS = LISTS["nvcc_flags"]
TORCH = ".".join(torch.__version__.split(".")[:2])  # its C++ interface changes from one minor version to the next


def version() -> str:
    """The version of the package; in a wheel for others with the torch that it is for: 1.2.3+torch2.13.cu130."""
    (public,) = re.findall(r'__version__ = "(.*)"', (ROOT / "ddu_ops" / "_version.py").read_text())
    if not RELEASE:
        return public
    cuda = f"cu{torch.version.cuda.replace('.', '')}" if USE_CUDA else "cpu"
    return f"{public}+torch{TORCH}.{cuda}"


def requirements() -> list[str]:
    return [f"torch=={TORCH}.*" if RELEASE else "torch>=2.11"]


def urls() -> dict[str, str]:
    """Of the repository whose GitHub workflow builds the package: a checkout does not know where it is published."""
    repository = os.environ.get("GITHUB_REPOSITORY")
    if not repository:
        return {}
    home = f"{os.environ['GITHUB_SERVER_URL']}/{repository}"
    return {"Source": home, "Changelog": f"{home}/blob/main/CHANGELOG.md", "Issues": f"{home}/issues"}


class Build(BuildExtension):
    """Keeps the objects in build/, also for an editable install, so that only changed files are compiled again.

    Also records beside the extension which torch it was built for: see ddu_ops/_extension.py.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = f"build/objects{SANITIZERS and '-' + SANITIZERS}"

    def run(self) -> None:
        super().run()
        path = Path(self.get_ext_fullpath("ddu_ops._C"))
        for other in set(path.parent.glob("_C*.so")) - {path}:  # an older build's: Python may prefer its name
            other.unlink()
        record = path.with_name("_built_for.json")
        record.write_text(
            json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda if USE_CUDA else None}) + "\n"
        )


def extension() -> CppExtension:
    parts = ["library", "python", *(["cuda"] if USE_CUDA else [])]
    sources = [f"csrc/{path}" for part in parts for path in LISTS[part]]
    # The same library from any folder, with torch in any other; the last one counts, where torch lies in this folder.
    maps = [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, Path(torch.__file__).parent)]
    flags = [*LISTS["cxx_flags"], "-g0", *maps, *(["-DDDU_WITH_CUDA"] if USE_CUDA else [])]
    link_flags = ["-Wl,--strip-all"] if RELEASE else []
    includes: list[str] = []
    if SANITIZERS:
        flags += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZERS}"]
        link_flags += [f"-fsanitize={SANITIZERS}"]
        if SANITIZERS == "thread":
            includes.append(str(ROOT / "tools" / "threads"))  # its ATen/Parallel.h in place of torch's
        else:
            flags.append("-fsanitize-coverage=trace-pc")
            sources.append("tools/coverage.cpp")
    return (CUDAExtension if USE_CUDA else CppExtension)(
        "ddu_ops._C",
        sources,
        include_dirs=includes,
        extra_compile_args={"cxx": flags, "nvcc": CUDA_FLAGS},
        extra_link_args=link_flags,
        py_limited_api=LIMITED_API,
    )


if __name__ == "__main__":
    setup(
        version=version(),
        install_requires=requirements(),
        project_urls=urls(),
        ext_modules=[extension()],
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {},
    )
