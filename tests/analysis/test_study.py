"""The studies of the documentation: they run, and their findings hold."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from processes import ROOT

pytest.importorskip("sklearn")  # of requirements/demo.txt
pytest.importorskip("tqdm")

EXAMPLES = ROOT / "examples"


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


@pytest.fixture
def microscopy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("PIL")
    monkeypatch.syspath_prepend(EXAMPLES)
    import microscopy

    return microscopy


def test_the_border_of_nuclei(microscopy: ModuleType) -> None:
    """Two that touch have a border between them, and one that is cut by the edge of the image has none there."""
    labels = torch.zeros(6, 8)
    labels[:4, 1:4], labels[:4, 4:7] = 1, 2
    assert microscopy.classes_of(labels).tolist() == [
        [0, 2, 1, 2, 2, 1, 2, 0],
        [0, 2, 1, 2, 2, 1, 2, 0],
        [0, 2, 1, 2, 2, 1, 2, 0],
        [0, 2, 2, 2, 2, 2, 2, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_networks_of_the_microscope_start_alike(microscopy: ModuleType) -> None:
    """Those with the weights of a 3 x 3 convolution, which move nothing at first."""
    job = microscopy.Job(microscopy.PLAIN, "AdamW", 3e-3, seed=0, steps=1, pictures=1, device="cpu")
    input = torch.randn(2, 1, 32, 32)
    plain = microscopy.make(job).eval()
    expected = plain(input)
    for name in (microscopy.RATES, "rate per axis", "deformable"):
        network = microscopy.make(job._replace(name=name)).eval()
        assert network.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
        torch.testing.assert_close(network(input), expected, rtol=1e-4, atol=1e-5)
    wider = microscopy.make(job._replace(name=microscopy.WIDER))
    assert microscopy.parameters(wider) >= microscopy.parameters(microscopy.make(job._replace(name=microscopy.RATES)))


def test_microscopy_in_small(microscopy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("stardist") is None:
        pytest.skip("stardist is not installed, which has the image")
    monkeypatch.setattr(microscopy, "SETTINGS", microscopy.SETTINGS[:1])
    monkeypatch.setattr(microscopy, "FOLDS", 1)
    image, classes = microscopy.image_and_classes()
    assert image.shape == classes.shape == (512, 512)
    assert classes.unique().tolist() == [0, 1, 2]
    microscopy.main(small(tmp_path))
    assert len(json.loads((tmp_path / "out.json").read_text())) == len(microscopy.VARIANTS) + len(microscopy.MAIN)
    assert "| rate map, bfloat16 |" in (tmp_path / "out.md").read_text()


@pytest.mark.parametrize("name", ["default", "pace 1"])
def test_all_heads_start_alike(name: str, three_sizes: ModuleType) -> None:
    """The initial weights are those of the fixed head, and so is the output."""
    job = three_sizes.Job("fixed", "AdamW", 3e-3, seed=0, steps=1, pictures=1, device="cpu")
    input = torch.randn(2, 1, 64, 64)
    expected = three_sizes.make(job).eval()(input)
    torch.testing.assert_close(three_sizes.make(job._replace(name=name)).eval()(input), expected, rtol=1e-5, atol=1e-5)
