"""The table that a release shows: which wheel is for which torch, CUDA and Python."""

from pathlib import Path

import pytest

import distribute

CPU = "ddu_ops-0.1.0+torch2.13.cpu-cp310-abi3-linux_x86_64.whl"
CUDA = "ddu_ops-0.1.0+torch2.13.cu130-cp310-abi3-linux_x86_64.whl"
OLDER = "ddu_ops-0.1.0+torch2.9.cpu-cp313-cp313t-linux_x86_64.whl"


def test_a_row_for_each_wheel_by_version() -> None:
    lines = distribute.matrix([CUDA, CPU, OLDER]).splitlines()
    assert lines == [
        "| torch | CUDA kernels | CPython | platform | wheel |",
        "| --- | --- | --- | --- | --- |",
        f"| 2.9 | none | 3.13 free-threaded | linux_x86_64 | `{OLDER}` |",
        f"| 2.13 | 13.0 | 3.10 and later | linux_x86_64 | `{CUDA}` |",
        f"| 2.13 | none | 3.10 and later | linux_x86_64 | `{CPU}` |",
    ]


@pytest.mark.parametrize("names", [[], ["ddu_ops-0.1.0-cp310-abi3-linux_x86_64.whl"], ["other-1.0.whl"]])
def test_nothing_is_left_out_in_silence(names: list[str]) -> None:
    with pytest.raises(SystemExit, match="wheel"):
        distribute.matrix(names)


def test_the_command_reads_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / CPU).touch()
    distribute.main(["--dist", str(tmp_path), "matrix"])
    assert CPU in capsys.readouterr().out
