"""Devices, seeds and the hypothesis profile of the suite."""

import hypothesis
import pytest
import torch

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
]


def pytest_configure(config: pytest.Config) -> None:
    for line in TORCH_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
