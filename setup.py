"""Builds the extension ``ddu_ops._C`` from csrc/; everything else is in pyproject.toml.

An incremental build in the checkout: ``python setup.py build_ext --inplace``.
"""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

SOURCES = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))


class Build(BuildExtension):
    """Keeps the objects in build/, also for an editable install, so that only what changed is compiled again."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = "build/objects"

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = "build/objects"


FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",  # no value changes: both let loops be vectorised
    "-fopenmp",
    "-fvisibility=hidden",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors are returned by inlined functions only
    "-Wno-unused-parameter",
]

extension = CppExtension("ddu_ops._C", SOURCES, extra_compile_args=FLAGS)

setup(ext_modules=[extension], cmdclass={"build_ext": Build})
