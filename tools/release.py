"""Makes a release: the version, the changelog, the packages and a smoke test of them, then a commit and a tag.

    python tools/release.py 1.2.3

Nothing is committed unless the wheel passes the self-test in a new environment. You push the commit and the tag
yourself. For the tag, .github/workflows/release.yml builds the packages for every supported torch and attaches them to
a release.
"""

import argparse
import datetime
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import distribute

ROOT = distribute.ROOT
SECTION = "## [Unreleased]\n"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def parse(version: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise SystemExit(f"expected a version such as 1.2.3, but got {version!r}")
    return tuple(map(int, version.split(".")))


def with_section(changelog: str, version: str, date: str) -> str:
    """Moves the unreleased entries to the new version."""
    _, found, rest = changelog.partition(SECTION)
    if not found or not re.match(r"\s*###", rest):
        raise SystemExit("CHANGELOG.md has nothing under [Unreleased]")
    return changelog.replace(SECTION, f"{SECTION}\n## [{version}] - {date}\n", 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="such as 1.2.3")
    parser.add_argument("--torch", default="torch", help="pip requirement of the smoke test, such as torch==2.13.0")
    options = parser.parse_args(arguments)
    version: str = options.version

    version_file, changelog_file = ROOT / "ddu_ops" / "_version.py", ROOT / "CHANGELOG.md"
    before = {path: path.read_text() for path in (version_file, changelog_file)}
    (current,) = re.findall(r'__version__ = "(.*)"', before[version_file])
    if git("status", "--porcelain"):
        raise SystemExit("the checkout has changes that are not committed")
    if git("tag", "--list", f"v{version}"):
        raise SystemExit(f"the tag v{version} is there already")
    # The first release may have the current version of the checkout.
    if parse(version) < parse(current) or (parse(version) == parse(current) and git("tag", "--list", "v*")):
        raise SystemExit(f"expected a version after {current}, but got {version}")

    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    changelog = with_section(before[changelog_file], version, today)
    try:
        changelog_file.write_text(changelog)
        version_file.write_text(before[version_file].replace(f'"{current}"', f'"{version}"'))
        dist = ROOT / "dist"
        dist.mkdir(exist_ok=True)
        packages = [distribute.wheel(dist), distribute.sdist(dist)]
        distribute.try_out(packages[0], options.torch, [])
    except BaseException:
        for path, text in before.items():
            path.write_text(text)
        raise
    git("commit", "--all", "--message", f"Release {version}")
    git("tag", "--annotate", f"v{version}", "--message", f"ddu_ops {version}")
    print(*packages, f"committed and tagged v{version}: git push --follow-tags", sep="\n")


if __name__ == "__main__":
    main()
