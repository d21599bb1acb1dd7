"""The benchmarks run and write their results. The times themselves are not tested."""

import json
import sys
from pathlib import Path

import pytest
import torch

from processes import ROOT

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
sys.path.append(str(ROOT))

from benchmarks import __main__ as benchmark
from benchmarks import convolution, deform, overhead, sums


def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result"
    options = "--device cpu --seconds 0.01 --workloads C2 --dtypes float32 bfloat16 --maps smooth --convolution"
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options.split(), "--output", str(output)])
    benchmark.main()

    result = json.loads(output.with_suffix(".json").read_text())
    assert result["environment"]["command"] == f"python -m benchmarks {options} --output {output}"
    assert [(row["section"], row["dtype"]) for row in result["rows"]] == [
        (section, dtype) for dtype in ("float32", "bfloat16") for section in ("unfold", "convolution")
    ]
    for row in result["rows"]:
        assert all(time > 0 for times in row["ms"].values() for time in times)
        assert all(size > 0 for size in row["memory"].values())
    printed = capsys.readouterr().out
    assert "### unfold" in printed
    assert "| floor ms | ÷ floor | ddu ms | F.unfold ms |" in printed
    assert output.with_suffix(".md").read_text().endswith(printed[printed.index("### unfold") :].rstrip("\n") + "\n")
    assert output.with_suffix(".png").stat().st_size > 10_000


def test_an_unknown_workload_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cpu", "--workloads", "C2", "nonsense"])
    with pytest.raises(SystemExit, match=r"--workloads: expected some of C1, C2, .*, tiny, but got nonsense"):
        benchmark.main()
    assert capsys.readouterr().out == ""


def test_a_short_run_of_other_axes_sources_and_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contenders take the same samples, and a run is held against an earlier one."""
    output = tmp_path / "core"
    command = [
        "benchmarks",
        "--device",
        "cpu",
        "--core",
        "--seconds",
        "0.01",
        "--dtypes",
        "float32",
        "--maps",
        "random",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output)])
    benchmark.main()

    rows = {(row["section"], row["size"]): row for row in json.loads(output.with_suffix(".json").read_text())["rows"]}
    assert {section for section, _ in rows} == {"one axis", "three axes", "offsets", "padding modes"}
    contenders = {section: set(row["ms"]) for (section, _), row in rows.items()}
    assert contenders["one axis"] == {"ddu", "ddu, height one", "grid_sample"}
    assert contenders["three axes"] == {"ddu", "grid_sample", "grid_sample by taps"}
    assert {"ddu", "ddu, zeros", "grid_sample"} <= contenders["padding modes"]
    assert {"F.unfold"} <= set.union(*(set(row["ms"]) for (section, _), row in rows.items() if section == "offsets"))

    # Each is as fast as itself.
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--combine", f"{output}.json", "--before", f"{output}.json"])
    capsys.readouterr()
    benchmark.main()
    printed = capsys.readouterr().out
    assert printed.count("| before ÷ now |") == 4
    assert printed.count("| 1.00 / 1.00 |") >= len(rows)


def test_runs_are_combined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"section": "unfold", "workload": "S1", "size": "(1, 1, 1, 1)", "dtype": "float32", "map": "smooth"}
    for name, ours, theirs in (("a", [1.0, 5.0], [9.0, 9.0]), ("b", [2.0, 4.0], [8.0, 10.0])):
        measured = {
            "floor_ms": [0.5, 1.0],
            "ms": {"ddu": ours, "F.unfold": theirs},
            "memory": {"ddu": 1, "F.unfold": 2},
        }
        text = json.dumps({"environment": {"command": "x", "device": "y"}, "rows": [row | measured]})
        (tmp_path / f"{name}.json").write_text(text)
    runs = [str(tmp_path / f"{name}.json") for name in "ab"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--combine", *runs, "--output", str(tmp_path / "c")])
    benchmark.main()
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["rows"][0]["ms"] == {"ddu": [1.0, 4.0], "F.unfold": [8.0, 9.0]}
    assert result["environment"]["times"] == "the least of 2 runs"


def test_a_short_run_of_overheads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "overhead"
    modes = list(overhead.modes(torch.device("cpu")))
    wanted = [mode for mode in modes if "compile" not in mode]  # which takes a compiler and its time
    command = ["benchmarks", "--device", "cpu", "--seconds", "0.01", "--output", str(output), "--overhead", *wanted]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()

    rows = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [row["mode"] for row in rows] == wanted
    assert all(time > 0 for row in rows for time in row["ms"].values())
    printed = capsys.readouterr().out
    assert all(f"| {mode} |" in printed for mode in wanted)
    assert output.with_suffix(".md").read_text().endswith(printed[printed.index("| mode") :].rstrip("\n") + "\n")


def test_a_short_run_of_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of work, whose contenders agree."""
    output = tmp_path / "sums.md"
    options = f"--device cpu --seconds 0.001 --layouts last --output {output}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.sums", *options.split()])
    monkeypatch.setattr(sums, "SIZES", {"cpu": {work: [case[-1]] for work, case in sums.SIZES["cpu"].items()}})
    sums.main()
    assert capsys.readouterr().out == output.read_text()
    rows = [line.split(" | ") for line in output.read_text().splitlines()[4:]]
    assert {row[0].removeprefix("| ") for row in rows} == {title for work in sums.WORK.values() for title in work}
    assert all(row[10] == "1.00 / 1.00 / 1.00 |" for row in rows if row[3] == "ours")
    for row in rows:
        forward, _, backward, _, memory, beyond = map(float, row[4:10])
        assert min(forward, backward, memory) > 0
        assert beyond < memory


def test_a_short_run_of_the_convolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "convolution.md"
    options = f"--device cpu --seconds 0.001 --layers 3 4 --output {output}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.convolution", *options.split()])
    convolution.main()
    lines = output.read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == [
        "| (1, 256, 16, 16) k=3 groups=8",
        "| (1, 16, 16, 16, 16) k=3",
    ]


def test_a_short_run_of_the_deformable_convolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "deform.md"
    options = f"--device cpu --seconds 0.001 --layers 6 7 --output {output}"
    monkeypatch.setattr(sys, "argv", ["benchmarks.deform", *options.split()])
    deform.main()
    lines = [line.split(" | ") for line in output.read_text().splitlines()]
    assert lines[3] == [
        "| layer",
        "type",
        "ms",
        "÷ torchvision",
        "÷ rate map",
        "MiB",
        "torchvision MiB",
        "rate map MiB |",
    ]
    assert [line[0] for line in lines[-2:]] == ["| (1, 64, 60, 80) k=3 no mask", "| (1, 16, 16, 16, 16) k=3"]
    assert lines[-1][3] == "–"  # torchvision has no volumes
