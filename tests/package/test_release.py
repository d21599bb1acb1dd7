"""The release script, in a temporary repository with packages that are not built."""

import re
import subprocess
from pathlib import Path

import pytest

import distribute
import release
from processes import ROOT

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n"

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a checkout")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ddu_ops").mkdir()
    (tmp_path / "ddu_ops" / "_version.py").write_text('__version__ = "0.1.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / ".gitignore").write_text("dist/\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "somebody@example.org")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Begin"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(distribute, "wheel", lambda dist: dist / "X.whl")
    monkeypatch.setattr(distribute, "sdist", lambda dist: dist / "X.tar.gz")
    monkeypatch.setattr(distribute, "try_out", lambda *_: None)
    return tmp_path


def test_a_release(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried out with the version that it gets."""
    tried = []

    def try_out(package: Path, torch: str, tests: list[str]) -> None:
        tried.append((package.name, torch, tests, (repository / "ddu_ops" / "_version.py").read_text()))

    monkeypatch.setattr(distribute, "try_out", try_out)
    release.main(["0.2.0", "--torch", "torch==2.13.0"])
    assert tried == [("X.whl", "torch==2.13.0", [], '__version__ = "0.2.0"\n')]
    assert release.git("log", "-1", "--format=%s", "v0.2.0") == "Release 0.2.0"
    assert release.git("status", "--porcelain") == ""
    text = (repository / "CHANGELOG.md").read_text()
    assert re.search(
        r"^## \[Unreleased\]\n\n## \[0\.2\.0\] - \d{4}-\d\d-\d\d\n\n### Added\n\n- A thing\.\n", text, re.MULTILINE
    )

    with pytest.raises(SystemExit, match="nothing under"):
        release.main(["0.3.0"])


def test_the_first_release_keeps_the_version(repository: Path) -> None:
    release.main(["0.1.0"])
    with pytest.raises(SystemExit, match=r"the tag v0\.1\.0 is there already"):
        release.main(["0.1.0"])


@pytest.mark.parametrize("version", ["0.0.9", "1.2", "v1.2.3", "1.2.3rc1"])
def test_what_is_no_next_version(version: str, repository: Path) -> None:
    with pytest.raises(SystemExit, match="expected a version"):
        release.main([version])


def test_changes_that_are_not_committed(repository: Path) -> None:
    (repository / "CHANGELOG.md").write_text(CHANGELOG + "- Another.\n")
    with pytest.raises(SystemExit, match="not committed"):
        release.main(["0.2.0"])


def test_what_fails_leaves_nothing_behind(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise subprocess.CalledProcessError(1, "python -m ddu_ops")

    monkeypatch.setattr(distribute, "try_out", fails)
    with pytest.raises(subprocess.CalledProcessError):
        release.main(["0.2.0"])
    assert release.git("status", "--porcelain") == ""
    assert release.git("tag", "--list") == ""
    assert (repository / "CHANGELOG.md").read_text() == CHANGELOG


def test_the_changelog_of_this_checkout_can_be_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [9.9.9] - 2099-01-01\n\n### " in release.with_section(text, "9.9.9", "2099-01-01")
