"""The studies of the documentation: they run, and what they found holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("sklearn")  # of requirements/demo.txt
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the studies train each network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def three_sizes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    import three_sizes

    monkeypatch.setattr(three_sizes, "CHANNELS", 16)
    return three_sizes


def small(folder: Path, *more: str) -> list[str]:
    options = [
        "--steps",
        "3",
        "--pictures",
        "10",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--results",
        str(folder / "out"),
    ]
    return [*options, *more]


def test_rates_of_a_head_do_not_collapse(three_sizes: ModuleType) -> None:
    """In the first steps, where smaller rates pay. With a pace of 1 two thirds of them fall below a half."""
    job = three_sizes.Job("default", "AdamW", 3e-3, seed=0, steps=60, pictures=60, device="cpu")
    scores = three_sizes.train(job)
    assert scores["rate"] > 0.8
    assert scores["below a half"] < 0.05


def test_three_sizes_in_small(three_sizes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(three_sizes, "VARIANTS", {name: three_sizes.VARIANTS[name] for name in three_sizes.MAIN})
    monkeypatch.setattr(three_sizes, "SETTINGS", three_sizes.SETTINGS[:2])
    three_sizes.main(small(tmp_path))
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3 * 2 * 2
    assert "| default, bfloat16 |" in (tmp_path / "out.md").read_text()


def test_perspective_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    import perspective_digits

    perspective_digits.main(small(tmp_path, "--output", str(tmp_path / "out.png")))
    assert len(json.loads((tmp_path / "out.json").read_text())) == len(perspective_digits.VARIANTS)
    assert (tmp_path / "out.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["default", "pace 1"])
def test_all_heads_start_alike(name: str, three_sizes: ModuleType) -> None:
    """The initial weights are those of the fixed head, and so is the output."""
    job = three_sizes.Job("fixed", "AdamW", 3e-3, seed=0, steps=1, pictures=1, device="cpu")
    input = torch.randn(2, 1, 64, 64)
    expected = three_sizes.make(job).eval()(input)
    torch.testing.assert_close(three_sizes.make(job._replace(name=name)).eval()(input), expected, rtol=1e-5, atol=1e-5)
