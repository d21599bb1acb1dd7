"""The workflows of GitHub run for the versions that pyproject.toml and the Makefile name, with no more rights than needed."""

import itertools
import re
from pathlib import Path

import pytest

from processes import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="not in a checkout")


def only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return found


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def oldest_torch() -> str:
    texts = (read("pyproject.toml"), read("setup.py"))  # to build and to run
    (version,) = {version for text in texts for version in re.findall(r'"torch>=([\d.]+)"', text)}
    return f"{version}.0"


def newest_torch() -> str:
    return only(r"^TORCH \?= torch==([\d.]+)$", read("Makefile"))


def jobs(workflow: Path) -> dict[str, str]:
    """Their texts by their names."""
    text = workflow.read_text(encoding="utf-8").split("\njobs:\n")[1]
    parts = re.split(r"^  ([\w-]+):\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def ci() -> dict[str, str]:
    return jobs(ROOT / ".github" / "workflows" / "ci.yml")


def combinations() -> set[tuple[str, str]]:
    """Pairs of a Python and a torch, the one of .ci/run among them."""
    matrix = re.findall(r'- { python: "([\d.]+)", torch: "([\d.]+)" }', ci()["test"])
    assert len(matrix) == ci()["test"].count("- {")
    return {*matrix, (only(r'python-version: "([\d.]+)"', ci()["everything"]), newest_torch())}


def minor(version: str) -> int:
    return int(version.split(".")[1])


def test_the_pythons_are_those_that_the_package_is_for() -> None:
    pythons = sorted({python for python, _ in combinations()}, key=minor)
    assert pythons[0] == only(r'^requires-python = ">=([\d.]+)"$', read("pyproject.toml"))
    assert [minor(python) for python in pythons] == list(range(minor(pythons[0]), minor(pythons[-1]) + 1))
    assert {(python, newest_torch()) for python in pythons} <= combinations()


def test_the_torches_are_the_oldest_and_the_tested_one() -> None:
    torches = {oldest_torch(), newest_torch()}
    assert {torch for _, torch in combinations()} == torches
    pythons = sorted((python for python, _ in combinations()), key=minor)
    assert set(itertools.product((pythons[0], pythons[-1]), torches)) <= combinations()
    released = only(r"^        torch: \[(.*)\]$", jobs(ROOT / ".github" / "workflows" / "release.yml")["wheel"])
    assert set(re.findall(r"[\d.]+", released)) == torches


def test_ci_does_all_that_the_script_does() -> None:
    assert "- run: .ci/run\n" in ci()["everything"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_their_commits(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses: *(.*)", text)
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in uses)
    everywhere = {action for other in WORKFLOWS for action in re.findall(r"uses: *(.*)", other.read_text())}
    assert len({action.split("@")[0] for action in everywhere}) == len(everywhere)  # one version of each


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_and_times_are_bounded(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "\npermissions:\n  contents: read\n\n" in text
    for name, job in jobs(path).items():
        assert re.search(r"^    timeout-minutes: \d+$", job, re.MULTILINE), name
        assert ("permissions:" in job) == (name == "release"), name
        assert job.count("persist-credentials: false") == job.count("actions/checkout@"), name
    assert not re.search(r"index-url|https?://", text)  # where packages come from, the repository's variable says
