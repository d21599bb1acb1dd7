"""Builds the extension ``ddu_ops._C`` from csrc/; everything else is in pyproject.toml.

An incremental build in the checkout: ``python setup.py build_ext --inplace``.
"""

import os
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension


def with_cuda() -> bool:
    """Whether to build for CUDA: if torch and a toolkit are there for it; DDU_WITH_CUDA=1 or 0 forces or forbids it.

    A GPU need not be visible. TORCH_CUDA_ARCH_LIST says which ones to build for; its default is those that are there.
    """
    wish = os.environ.get("DDU_WITH_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"expected DDU_WITH_CUDA to be 0, 1 or empty, but got {wish!r}")
    missing = [
        name
        for name, found in (("torch built for CUDA", torch.version.cuda), ("nvcc (CUDA_HOME)", CUDA_HOME))
        if not found
    ]
    if wish == "1" and missing:
        raise SystemExit(f"DDU_WITH_CUDA=1 needs {' and '.join(missing)}")
    use = wish != "0" and not missing
    why = "DDU_WITH_CUDA=0" if wish == "0" else f"no {' and no '.join(missing)}" if missing else CUDA_HOME
    print(f"ddu_ops: torch {torch.__version__}, CUDA {'on' if use else 'off'} ({why})", flush=True)
    return use


USE_CUDA = with_cuda()
# Names for the compiler's -fsanitize=: tools/sanitize.py sets it, and builds into a folder of its own.
SANITIZERS = os.environ.get("DDU_SANITIZE", "")
SOURCES = sorted(
    str(path)
    for path in Path("csrc").rglob("*")
    if (path.suffix == ".cpp" and "cuda" not in path.parts) or (USE_CUDA and path.suffix in (".cpp", ".cu"))
)


class Build(BuildExtension):
    """Keeps the objects in build/, also for an editable install, so that only what changed is compiled again."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = f"build/objects{SANITIZERS and '-' + SANITIZERS}"


FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",  # no value changes: both let loops be vectorised
    "-fopenmp",
    "-fvisibility=hidden",
    "-g0",
    f"-ffile-prefix-map={Path.cwd()}/=",  # the same library from any folder
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors are returned by inlined functions only
    "-Wno-unused-parameter",
]

LINK_FLAGS: list[str] = []
INCLUDES: list[str] = []
if SANITIZERS:
    FLAGS += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZERS}"]
    LINK_FLAGS += [f"-fsanitize={SANITIZERS}"]
    if SANITIZERS == "thread":
        INCLUDES.append(str(Path("tools/threads").resolve()))  # its ATen/Parallel.h in place of torch's
    else:
        FLAGS.append("-fsanitize-coverage=trace-pc")
        SOURCES.append("tools/coverage.cpp")

CUDA_FLAGS = ["-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden", "--threads=2"]

if USE_CUDA:
    compile_args = {"cxx": [*FLAGS, "-DDDU_WITH_CUDA"], "nvcc": CUDA_FLAGS}
    extension = CUDAExtension(
        "ddu_ops._C", SOURCES, include_dirs=INCLUDES, extra_compile_args=compile_args, extra_link_args=LINK_FLAGS
    )
else:
    extension = CppExtension(
        "ddu_ops._C", SOURCES, include_dirs=INCLUDES, extra_compile_args=FLAGS, extra_link_args=LINK_FLAGS
    )

if __name__ == "__main__":
    setup(ext_modules=[extension], cmdclass={"build_ext": Build})
