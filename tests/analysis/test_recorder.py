"""The recorder of rates: its counts, that it does not synchronise in a forward, and its outputs."""

import math
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import ddu_ops
from ddu_ops import layers, viz
from ddu_ops.recorder import RateRecorder, lightning_callback


class Rates(ddu_ops.DilationPredictor):
    """A predictor that predicts what it is told."""

    def __init__(self, rates: Any, **options: Any) -> None:
        super().__init__(1, 1, **options)
        self.rates = torch.as_tensor(rates, dtype=torch.float32)

    def forward(self, input: Tensor) -> Tensor:
        return self.rates.to(input.device)


def recorded(rates: Any, calls: int = 1, **options: Any) -> Any:
    predictor = Rates(rates, **options)
    with RateRecorder(predictor, every=1, bins=8, collapse=1.0) as recorder:
        for _ in range(calls):
            predictor(torch.empty(0))
        recorder.step()
    return recorder.history[""]


def test_what_is_counted() -> None:
    """Of the default bounds, 0 and 4, in bins of a half: shares, the mean, and what is at a bound."""
    for calls in (1, 3):
        history = recorded([0.0, 0.02, 0.3, 0.75, 1.0, 2.5, 3.98, 4.0], calls)
        assert history.edges.tolist() == [0.5 * i for i in range(9)]
        assert [8 * share for share in history.histograms[0].tolist()] == [3, 1, 1, 0, 0, 1, 0, 2]
        assert history.mean[0] == pytest.approx(12.55 / 8)
        assert (history.below_half, history.at_lower, history.at_upper) == ([3 / 8], [1 / 8], [2 / 8])
        assert history.not_finite == [0.0]


def test_bounds_that_are_infinite() -> None:
    history = recorded([-9.0, 0.0, 9.0, 0.25], bounds=(-math.inf, math.inf))
    assert (history.edges[0], history.edges[-1]) == (-4, 8)
    assert history.histograms[0].tolist() == [0.25, 0, 0.5, 0, 0, 0, 0, 0.25]  # the outermost bins have the rest
    assert (history.at_lower, history.at_upper, history.below_half) == ([0.0], [0.0], [0.5])
    assert recorded([9.0], bounds=None).edges[-1] == 8


def test_rates_that_are_not_finite_count_apart() -> None:
    history = recorded([1.0, math.nan, math.inf, 1.0])
    assert history.not_finite == [0.5]
    assert history.mean == [1.0]
    assert history.histograms[0].sum() == 1
    nothing = recorded([math.nan])
    assert nothing.not_finite == [1.0]
    assert math.isnan(nothing.mean[0])
    assert nothing.histograms[0].sum() == 0


def model() -> nn.Sequential:
    return nn.Sequential(
        ddu_ops.DynamicDilationConv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        layers.AdaptiveDilationConv2d(4, 4, 3, padding=1),
        layers.DynamicASPP(4, 4, rates=(1, 2)),
    )


def test_every_predictor_of_a_model_at_an_interval() -> None:
    network = model()
    with RateRecorder(network, every=3) as recorder:
        for _ in range(8):
            network(torch.randn(2, 3, 8, 8))
            recorder.step()
    assert list(recorder.history) == ["0.rate", "2.conv.rate", "3.rate"]
    for history in recorder.history.values():
        assert history.steps == [3, 6, 8]  # the last by close()
        assert history.mean == pytest.approx([1.0] * 3)
        assert all(histogram.sum() == pytest.approx(1) for histogram in history.histograms)
    recorder.close()
    network(torch.randn(2, 3, 8, 8))
    assert recorder.history["0.rate"].steps == [3, 6, 8]
    assert not network[0].rate._forward_hooks


def test_only_training_counts() -> None:
    network = model().eval()
    with RateRecorder(network, every=1) as recorder:
        network(torch.randn(2, 3, 8, 8))
        recorder.step()
    assert all(not history.steps for history in recorder.history.values())


def test_numbers_of_steps_that_are_given() -> None:
    network = model()
    with RateRecorder(network, every=100) as recorder:
        for step in (1000, 1050, 1100):
            network(torch.randn(2, 3, 8, 8))
            recorder.step(step)
    assert recorder.history["0.rate"].steps == [1000, 1100]


def test_the_model_computes_and_learns_what_it_did(device: torch.device) -> None:
    def trained(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        network = ddu_ops.DynamicDilationConv2d(3, 4, 3, padding=1).to(device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        recorder = RateRecorder(network, every=1) if watched else None
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.randn(2, 3, 8, 8).to(device)).square().mean().backward()
            optimizer.step()
            if recorder is not None:
                recorder.step()
        return [p.detach() for p in network.parameters()]

    torch.testing.assert_close(trained(True), trained(False))


# ---- Nothing waits for the device ----


def test_a_forward_reads_no_values() -> None:
    """Fake tensors have none: what would wait for a device raises there."""
    with FakeTensorMode():
        network = model()
        recorder = RateRecorder(network)
        for _ in range(2):
            network(torch.randn(2, 3, 8, 8)).sum().backward()
            recorder.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_forward_waits_for_no_gpu() -> None:
    network, images = model().cuda(), torch.randn(2, 3, 8, 8, device="cuda")
    recorder = RateRecorder(network)
    network(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(images)
        recorder.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.read()
    assert recorder.history["0.rate"].mean == pytest.approx([1.0])


def test_a_compiled_model() -> None:
    torch._dynamo.reset()
    network = ddu_ops.DynamicDilationConv2d(3, 4, 3, padding=1)
    with RateRecorder(network, every=2) as recorder:
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        for _ in range(4):
            compiled(torch.randn(2, 3, 8, 8)).sum().backward()
            recorder.step()
        assert recorder.history["rate"].steps == [2, 4]
        assert recorder.history["rate"].mean == pytest.approx([1.0, 1.0])


def test_what_makes_programs_and_transforms_counts_nothing() -> None:
    network, images = ddu_ops.DynamicDilationConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8)
    parameters = dict(network.named_parameters())
    with RateRecorder(network, every=1) as recorder:
        torch.func.grad(lambda p: torch.func.functional_call(network, p, images).sum())(parameters)
        torch.func.vmap(network)(images[None])
        torch.jit.trace(network, images, check_trace=False)
        exported = torch.export.export(network, (images,)).module()
        exported(images)
        torch.fx.symbolic_trace(network)
        recorder.step()
        assert recorder.history["rate"].steps == []


def test_a_model_on_another_device_than_before(device: torch.device) -> None:
    network = ddu_ops.DynamicDilationConv2d(3, 4, 3, padding=1, device="meta")
    with RateRecorder(network, every=1) as recorder:
        network(torch.randn(2, 3, 8, 8, device="meta"))
        network.to_empty(device=device).reset_parameters()
        network(torch.randn(2, 3, 8, 8, device=device))
        recorder.step()
    assert recorder.history["rate"].mean == pytest.approx([1.0])


# ---- A layer that has collapsed ----


@pytest.mark.parametrize(
    "rates, what",
    [
        ([0.1, -0.2, 1.0], "67% of them are below one half"),
        ([4.0, 4.0, 1.0], "67% of them are at their upper bound"),
        ([math.nan, math.inf, 1.0], "67% of them are not finite"),
    ],
    ids=["below", "upper", "nan"],
)
def test_a_layer_that_has_collapsed_is_warned_of_once(rates: list[float], what: str) -> None:
    network = nn.Sequential(Rates(rates), Rates([1.0]))
    with RateRecorder(network, every=1) as recorder:
        for step in range(3):
            network(torch.empty(0))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                recorder.step()
            assert len(caught) == (step == 0)
            if caught:
                assert caught[0].category is RuntimeWarning
                assert caught[0].filename == __file__
                text = f"RateRecorder: the rates of '0' have collapsed: at step 1, {what}"
                assert str(caught[0].message).startswith(text)


def test_the_share_that_counts_as_collapsed() -> None:
    network = Rates([0.1, 0.2, 1.0])
    with RateRecorder(network, every=1, collapse=0.7) as recorder:
        network(torch.empty(0))
        recorder.step()  # a warning would be an error
    network = Rates([0.1, 1.0, 1.0])
    with RateRecorder(network, every=1, collapse=0.3) as recorder:
        network(torch.empty(0))
        with pytest.warns(RuntimeWarning, match="33% of them"):
            recorder.step()


@pytest.mark.parametrize(
    "options, text",
    [
        ({"every": 0}, "every to be at least 1, but got 0"),
        ({"every": 1.5}, "every to be an int, but got 1.5"),
        ({"bins": 0}, "bins to be at least 1, but got 0"),
        ({"collapse": 0.0}, "collapse to be above 0 and at most 1, but got 0.0"),
        ({"collapse": math.nan}, "collapse to be above 0 and at most 1, but got nan"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=rf"^RateRecorder\(\): expected {text}$"):
        RateRecorder(model(), **options)


def test_a_model_without_rates() -> None:
    with pytest.raises(ValueError, match=r"^RateRecorder\(\): expected model to have a DilationPredictor, but got one"):
        RateRecorder(nn.Conv2d(3, 4, 3))


# ---- Where it is shown ----


@pytest.fixture
def close() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.mark.usefixtures("close")
def test_the_picture() -> None:
    predictor = Rates([0.1, 1.0, 3.0, 4.0])
    with RateRecorder(predictor, every=2, bins=8) as recorder:
        for _ in range(6):
            predictor(torch.empty(0))
            recorder.step()
    ax = viz.draw_rates(recorder.history[""])
    assert ax.get_title() == "Below one half: 25%, at a bound: 25%, at step 6"
    assert list(ax.lines[0].get_xdata()) == [1, 3, 5]
    assert ax.lines[0].get_ydata() == pytest.approx([2.025] * 3)
    shares = torch.tensor(ax.collections[0].get_array()).square()
    assert shares[:, 0].tolist() == [0.25, 0, 0.25, 0, 0, 0, 0.25, 0.25]
    ax.figure.canvas.draw()
    _, own = pyplot.subplots()
    assert viz.draw_rates(recorder.history[""], ax=own) is own
    with RateRecorder(predictor) as empty:
        pass
    assert viz.draw_rates(empty.history[""]).get_title() == "No rates were recorded"


class Writer:
    """What a ``SummaryWriter`` is asked for."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.histograms: list[tuple[str, dict[str, Any]]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, []).append((step, value))

    def add_histogram_raw(self, tag: str, **values: Any) -> None:
        self.histograms.append((tag, values))


def test_what_is_written() -> None:
    network, writer = nn.Sequential(Rates([0.25, 1.0, 3.0])), Writer()
    with RateRecorder(network, every=1, bins=4, writer=writer) as recorder:
        for _ in range(2):
            network(torch.empty(0))
            recorder.step()
    for name, value in (("below_half", 1 / 3), ("mean", 4.25 / 3), ("at_upper", 0), ("not_finite", 0)):
        assert writer.scalars[f"rates/0/{name}"] == [(1, pytest.approx(value)), (2, pytest.approx(value))]
    tag, values = writer.histograms[1]
    assert (tag, values["global_step"], values["num"], values["sum"]) == ("rates/0", 2, 3, 4.25)
    assert values["sum_squares"] == 0.0625 + 1 + 9
    assert (values["bucket_limits"], values["bucket_counts"]) == ([1, 2, 3, 4], [1, 1, 0, 1])


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    network = nn.Sequential(Rates([0.25, 1.0, 3.0]))
    with RateRecorder(network, every=1, writer=str(tmp_path)) as recorder:
        for _ in range(2):
            network(torch.empty(0))
            recorder.step()
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("rates/0/mean")] == [1, 2]
    assert [event.step for event in events.Histograms("rates/0")] == [1, 2]


class Trainer:
    """The calls of Lightning's, in their order."""

    def __init__(self, experiment: Any) -> None:
        self.logger = types.SimpleNamespace(experiment=experiment)
        self.global_step = 0

    def fit(self, network: nn.Module, callback: Any, steps: int) -> None:
        callback.on_fit_start(self, network)
        for _ in range(steps):
            network(torch.empty(0))
            self.global_step += 1
            callback.on_train_batch_end(self, network, None, None, 0)
        callback.on_fit_end(self, network)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_the_callback_does_as_lightning_calls_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    stub = types.ModuleType(package)
    stub.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    for name in {package, package.split(".")[0]}:
        monkeypatch.setitem(sys.modules, name, stub)
    network, writer = nn.Sequential(Rates([1.0])), Writer()
    callback = lightning_callback(every=2)
    Trainer(writer).fit(network, callback, 5)
    assert callback.recorder.history["0"].steps == [2, 4, 5]
    assert [step for step, _ in writer.scalars["rates/0/mean"]] == [2, 4, 5]
    assert not network[0]._forward_hooks
    Trainer(None).fit(network, callback, 2)
    assert callback.recorder.history["0"].steps == [2]


def test_lightning_itself(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = ddu_ops.DynamicDilationConv2d(1, 1, 3, padding=1)

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 1, 6, 6)), batch_size=2)
    callback = lightning_callback(every=2)
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), data)
    assert callback.recorder.history["layer.rate"].steps == [2, 4]


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r"^lightning_callback\(\) needs the package lightning or pytorch_lightning: "
    ):
        lightning_callback()
