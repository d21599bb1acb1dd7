"""Devices, seeds and the hypothesis profile of the suite."""

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from cases import taking

os.environ["MPLBACKEND"] = "Agg"  # no window for what is drawn

hypothesis.settings.register_profile(
    "ddu",
    derandomize=True,  # the same examples on every machine and in every run
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],  # fixtures here hold no state
)
hypothesis.settings.load_profile("ddu")


# What torch itself warns of: with warnings as errors, nobody else's may stop a test.
TORCH_WARNINGS = [
    "ignore:`torch.jit.*` is deprecated:DeprecationWarning",  # by parts of torch that still use it
    "ignore:`torch.jit.script` is:FutureWarning:torch.jit._script",  # by forward mode of torch 2.14 and later
    "ignore:.*does not have a deterministic implementation:UserWarning",  # operators of torch that tests use
    "ignore:.*[Pp]rofil.*:UserWarning",  # its profiler, where there is a GPU
    "ignore:TensorFloat32 tensor cores for float32:UserWarning",  # inductor, on a GPU
    "ignore:TypedStorage is deprecated:UserWarning",  # inductor of torch 2.11
    "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning",  # dynamo
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",  # its export
]


def pytest_configure(config: pytest.Config) -> None:
    for line in TORCH_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


# On CUDA, with the paths that calls take: see cases.taking. By default, gradients of the input may come out in other bits
# from run to run there: see cases.assert_same.
CUDA = ["cuda", "cuda_deterministic", "cuda_fast", "cuda_fast_deterministic"]
DEVICES = ["cpu", *CUDA] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    name, *paths = request.param.split("_")
    with taking(*paths):
        yield torch.device(name)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
