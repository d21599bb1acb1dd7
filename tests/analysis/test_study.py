"""The studies of the documentation: they run, and their findings hold."""

import gzip
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
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


@pytest.fixture
def brain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    import brain

    return brain


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


@pytest.mark.parametrize("name", ["microscopy", "brain"])
def test_u_nets_start_alike(name: str, microscopy: ModuleType, brain: ModuleType) -> None:
    """Those with the weights of a kernel of 3, in all of these, and what moves the taps moves none at first."""
    study, unets = {"microscopy": microscopy, "brain": brain}[name].STUDY, microscopy.unets
    job = unets.Job(unets.PLAIN, "AdamW", 3e-3, seed=0, steps=1, pictures=1, device="cpu")
    input = torch.randn(2, 1, *[16] * study.axes)
    plain = unets.make(study, job).eval()
    expected = plain(input)
    for variant in (unets.RATES, "rate per axis", unets.OFFSETS, "deformable convolution, at a pace of 0.1"):
        network = unets.make(study, job._replace(name=variant)).eval()
        weights = network.state_dict()
        for key, weight in plain.state_dict().items():
            assert torch.equal(weights[key], weight)
        torch.testing.assert_close(network(input), expected, rtol=1e-4, atol=1e-5)
    for wider, variant in unets.WIDER.items():
        counts = [unets.parameters(unets.make(study, job._replace(name=other))) for other in (wider, variant)]
        assert counts[1] <= counts[0] < 1.05 * counts[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_networks_than_there_is_time_for(microscopy: ModuleType, workers: int) -> None:
    assert list(microscopy.unets.digits.side_by_side(abs, [-1, -2, -3], workers, seconds=0)) == [1]
    assert list(microscopy.unets.digits.side_by_side(abs, [-1, -2, -3], workers)) == [1, 2, 3]


def test_starting_beside_the_kink(microscopy: ModuleType) -> None:
    """Rates at 1.0001, offsets at 0.0001, factors at 1 all the same."""
    unets = microscopy.unets
    rates = unets.VARIANTS["rate map, starting at 1.0001"](2, 3, 3).rate(torch.randn(1, 3, 5, 5))
    torch.testing.assert_close(rates, torch.full_like(rates, 1.0001), rtol=0, atol=1e-7)
    offset, mask = unets.VARIANTS["deformable convolution, starting at 0.0001"](3, 3, 3).offset(
        torch.randn(1, 3, 5, 5, 5)
    )
    assert (offset == unets.BESIDE).all()
    assert (mask == 1).all()


def in_small(module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The table of what the whole study writes, with one fold and one setting."""
    unets = module.unets
    monkeypatch.setattr(unets, "SETTINGS", unets.SETTINGS[:1])
    monkeypatch.setattr(module, "STUDY", module.STUDY._replace(folds=1))
    module.main(small(folder))
    assert len(json.loads((folder / "out.json").read_text())) == len(unets.VARIANTS) + len(unets.MAIN)
    return (folder / "out.md").read_text(encoding="utf-8")


def test_microscopy_in_small(microscopy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("stardist") is None:
        pytest.skip("stardist is not installed, which has the image")
    image, classes = microscopy.image_and_classes()
    assert image.shape == classes.shape == (512, 512)
    assert classes.unique().tolist() == [0, 1, 2]
    monkeypatch.setattr(microscopy, "CROP", 32)
    assert "| rate map, bfloat16 |" in in_small(microscopy, tmp_path, monkeypatch)


def test_reading_a_volume(brain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first axis is the fastest in the file; another type is refused."""
    monkeypatch.setattr(brain, "SHAPE", (2, 3, 4))
    header = bytearray(352)
    header[40:48] = np.array([3, 2, 3, 4], "<i2").tobytes()
    header[70:72] = np.array([2], "<i2").tobytes()
    header[108:112] = np.array([352], "<f4").tobytes()
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(bytes(header) + bytes(range(24))))
    volume = brain.read(path)
    assert volume.shape == (2, 3, 4)
    assert [volume[1, 0, 0], volume[0, 1, 0], volume[0, 0, 1]] == [1, 2, 6]
    header[70] = 16
    path.write_bytes(gzip.compress(bytes(header)))
    with pytest.raises(ValueError, match=r"expected .*volume.nii.gz to have \(2, 3, 4\) bytes, but got"):
        brain.read(path)


def test_brain_in_small(brain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("nilearn") is None:
        pytest.skip("nilearn is not installed, which has the volumes")
    image, classes = brain.image_and_classes()
    assert image.shape == classes.shape
    brightness = [image[classes == tissue].mean().item() for tissue in range(3)]
    assert brightness == sorted(brightness)  # white matter is the brightest
    (crops, _), (_, truth) = brain.make_pictures(0, seed=0, count=2)
    assert crops.shape == (2, 1, *[brain.CROP] * 3)
    assert torch.equal(truth[0], classes.chunk(2, 1)[0])
    monkeypatch.setattr(brain, "CROP", 8)
    assert "| rate map, bfloat16 |" in in_small(brain, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["default", "pace 1"])
def test_all_heads_start_alike(name: str, three_sizes: ModuleType) -> None:
    """The initial weights are those of the fixed head, and so is the output."""
    job = three_sizes.Job("fixed", "AdamW", 3e-3, seed=0, steps=1, pictures=1, device="cpu")
    input = torch.randn(2, 1, 64, 64)
    expected = three_sizes.make(job).eval()(input)
    torch.testing.assert_close(three_sizes.make(job._replace(name=name)).eval()(input), expected, rtol=1e-5, atol=1e-5)
