"""Builds the extension twice, in two folders, and compares the results; prints which sections differ."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path) -> Path:
    """Copies the tracked files in their current state."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=folder, check=True)
    (extension,) = (folder / "ddu_ops").glob("_C*.so")
    return extension


def sections(extension: Path) -> dict[str, str]:
    """The hash of each section that is loaded."""
    listing = subprocess.run(["objdump", "-h", extension], capture_output=True, text=True, check=True).stdout
    data = extension.read_bytes()
    found = {}
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) == 7 and fields[0].isdigit():
            size, offset = int(fields[2], 16), int(fields[5], 16)
            found[fields[1]] = hashlib.sha256(data[offset : offset + size]).hexdigest()
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "one", Path(name) / "another" / "and_deeper"]
        extensions = [build(folder) for folder in folders]
        hashes = [hashlib.sha256(extension.read_bytes()).hexdigest() for extension in extensions]
        print(*hashes, sep="\n")
        if hashes[0] == hashes[1]:
            print("the same")
            return 0
        one, another = (sections(extension) for extension in extensions)
        print("different:", *(name for name in one.keys() | another.keys() if one.get(name) != another.get(name)))
        return 1


if __name__ == "__main__":
    sys.exit(main())
