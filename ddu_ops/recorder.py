"""Watch the dilation rates of a model while it trains.

Rates can leave their useful range unnoticed, because the loss still falls. A :class:`RateRecorder` counts the rates of
every :class:`~ddu_ops.DilationPredictor` of a model during the forward, on their device, and reads the counts at an
interval. It records a histogram for each layer over the steps, and the share of rates that are below one half or at a
bound, and warns once if a layer has collapsed. :func:`ddu_ops.viz.draw_rates` plots the record.
"""

import math
import warnings
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ddu_ops._options import integer
from ddu_ops.modules import DilationPredictor

#: A rate is at a bound if its distance from it is less than this fraction of the distance between one and the bound.
AT_A_BOUND = 0.01


@dataclass
class RateHistory:
    r"""The record of one layer, with one entry for each interval.

    Attributes:
        edges: the edges of the bins, :math:`(\text{bins} + 1)`. The outermost bins also count rates beyond them.
        steps: the last step of each interval.
        histograms: the share of the finite rates in each bin, :math:`(\text{bins})` each.
        mean: the mean of the finite rates.
        below_half: the share of rates with an absolute value below one half, whose windows hardly extend beyond the
            pixels next to their centre.
        at_lower, at_upper: the share of rates at each bound; 0 if there is no bound.
        not_finite: the share of rates that are NaN or infinite.
    """

    edges: Tensor
    steps: list[int] = field(default_factory=list)
    histograms: list[Tensor] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    below_half: list[float] = field(default_factory=list)
    at_lower: list[float] = field(default_factory=list)
    at_upper: list[float] = field(default_factory=list)
    not_finite: list[float] = field(default_factory=list)


# Shares of the rates, and what a warning says of them.
_COLLAPSED = {
    "below_half": "below one half",
    "at_lower": "at their lower bound",
    "at_upper": "at their upper bound",
    "not_finite": "not finite",
}
_SHARES = tuple(_COLLAPSED)


class _Layer:
    """Counts on the device, in one row: the bins, what ``_SHARES`` names, all rates, their sum and that of squares."""

    def __init__(self, name: str, predictor: DilationPredictor, bins: int) -> None:
        self.name, self.bins = name, bins
        lower, upper = predictor.bounds or (0.0, math.inf)
        self.bounds = lower, upper
        low = lower if math.isfinite(lower) else -4.0
        high = upper if math.isfinite(upper) else 8.0
        self.range = low, high
        self.history = RateHistory(torch.linspace(low, high, bins + 1))
        self.counts = self._empty(predictor.weight.device)
        self.collapsed = False

    def _empty(self, device: torch.device) -> Tensor:
        exact = torch.float32 if device.type == "mps" else torch.float64
        return torch.zeros(self.bins + len(_SHARES) + 3, dtype=exact, device=device)

    def hook(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if module.training and isinstance(output, Tensor) and not _is_traced(output):
            self.add(output.detach())

    @torch.no_grad()
    def add(self, rates: Tensor) -> None:
        """Counts them, without a word to the host."""
        if rates.device != self.counts.device:
            self.counts = self._empty(rates.device)
        rates = rates.flatten().to(self.counts.dtype)
        (low, high), (lower, upper) = self.range, self.bounds
        finite = rates.isfinite()
        kept = torch.where(finite, rates, 0.0)
        place = ((kept - low) * (self.bins / (high - low))).clamp(0, self.bins - 1).long()
        counts = torch.zeros_like(self.counts[: self.bins]).scatter_add_(0, place, finite.to(self.counts.dtype))
        shares = (
            (kept.abs() < 0.5) & finite,
            (kept <= lower + AT_A_BOUND * (1 - lower)) & finite,
            (kept >= upper - AT_A_BOUND * (upper - 1)) & finite,
            ~finite,
        )
        sums = [share.sum() for share in shares] + [torch.ones_like(kept).sum(), kept.sum(), kept.square().sum()]
        self.counts.add_(torch.cat([counts, torch.stack([s.to(self.counts.dtype) for s in sums])]))


def _is_traced(output: Tensor) -> bool:
    """Whether what sees the tensor makes a program that is to have no counts in it, or maps over it."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    traced = torch._C._get_tracing_state() is not None
    return traced or output.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(output)


class RateRecorder:
    """Record the dilation rates of a model while it trains.

    Every forward in training mode counts, without synchronising the device; :meth:`step` reads the counts at the
    interval ``every``. Forwards that are repeated by checkpointing count again, which does not change the shares. To
    record a compiled model, create the recorder before calling ``torch.compile``. Nothing is counted under the
    transforms of ``torch.func``, nor in programs made by ``torch.export`` and ``torch.jit.trace``.

    Args:
        model: a model or a layer. Every :class:`~ddu_ops.DilationPredictor` in it is recorded.
        every: number of steps between records. Default: 100.
        bins: number of bins of the histograms, which extend from bound to bound, or to -4 and 8 without bounds.
            Default: 64.
        collapse: a layer has collapsed if more than this share of its rates is below one half or at one bound.
            Default: 0.5.
        writer: a TensorBoard ``SummaryWriter``, or another object with ``add_scalar`` and ``add_histogram_raw``, that
            also receives the records; or the folder of a new ``SummaryWriter``. Default: none.

    Attributes:
        history: a :class:`RateHistory` for each layer, by its name in the model.

    Raises:
        ValueError: if the model has no predictor, or an option is out of range.

    Example:
        >>> model = torch.nn.Sequential(DynamicDilationConv2d(3, 4, 3, padding=1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with recorder.RateRecorder(model, every=2) as rates:
        ...     for _ in range(4):
        ...         loss = model(torch.randn(1, 3, 8, 8)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         rates.step()
        >>> rates.history["0.rate"].steps
        [2, 4]
        >>> rates.history["0.rate"].below_half
        [0.0, 0.0]
    """

    def __init__(
        self, model: nn.Module, *, every: int = 100, bins: int = 64, collapse: float = 0.5, writer: Any = None
    ) -> None:
        self.every = integer(every, "every", "RateRecorder", ValueError)
        bins = integer(bins, "bins", "RateRecorder", ValueError)
        for name, value in (("every", self.every), ("bins", bins)):
            if value < 1:
                raise ValueError(f"RateRecorder(): expected {name} to be at least 1, but got {value}")
        if not 0 < collapse <= 1:
            raise ValueError(f"RateRecorder(): expected collapse to be above 0 and at most 1, but got {collapse}")
        self.collapse = collapse
        self._layers = [
            _Layer(name, part, bins) for name, part in model.named_modules() if isinstance(part, DilationPredictor)
        ]
        if not self._layers:
            raise ValueError("RateRecorder(): expected model to have a DilationPredictor, but got one without")
        parts = dict(model.named_modules())
        self._handles = [parts[layer.name].register_forward_hook(layer.hook) for layer in self._layers]
        self._writer, self._owns_writer = writer, isinstance(writer, str)
        if self._owns_writer:
            from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

            self._writer = SummaryWriter(writer)
        self._step = self._read_at = 0

    @property
    def history(self) -> dict[str, RateHistory]:
        return {layer.name: layer.history for layer in self._layers}

    def step(self, step: int | None = None) -> None:
        """Count a step and, at the interval, read the counts. Call it after each step of the optimiser.

        Args:
            step: the number of the step. Default: the last number plus one.
        """
        self._step = self._step + 1 if step is None else step
        if self._step - self._read_at >= self.every:
            self.read()

    def read(self) -> None:
        """Make a record of the counts since the last one. This synchronises the device."""
        self._read_at = self._step
        for device in {layer.counts.device for layer in self._layers}:
            layers = [layer for layer in self._layers if layer.counts.device == device]
            rows = torch.stack([layer.counts for layer in layers]).cpu().double()  # in one copy
            for layer, row in zip(layers, rows, strict=True):
                layer.counts.zero_()
                self._record(layer, row)

    def _record(self, layer: _Layer, row: Tensor) -> None:
        histogram, shares, (total, rates, squares) = row.split([layer.bins, len(_SHARES), 3])
        if not total:
            return
        history, finite = layer.history, histogram.sum().item()
        history.steps.append(self._step)
        history.histograms.append((histogram / max(finite, 1)).float())
        history.mean.append(rates.item() / finite if finite else math.nan)
        for name, share in zip(_SHARES, (shares / total).tolist(), strict=True):
            getattr(history, name).append(share)
        self._warn(layer)
        if self._writer is not None and finite:
            tag = f"rates/{layer.name}"
            for name in ("mean", *_SHARES):
                self._writer.add_scalar(f"{tag}/{name}", getattr(history, name)[-1], self._step)
            low, high = layer.range
            self._writer.add_histogram_raw(
                tag,
                min=low,
                max=high,
                num=finite,
                sum=rates.item(),
                sum_squares=squares.item(),
                bucket_limits=history.edges[1:].tolist(),
                bucket_counts=histogram.tolist(),
                global_step=self._step,
            )

    def _warn(self, layer: _Layer) -> None:
        for name, where in _COLLAPSED.items():
            share = getattr(layer.history, name)[-1]
            if share > self.collapse and not layer.collapsed:
                layer.collapsed = True
                warnings.warn(
                    f"RateRecorder: the rates of {layer.name!r} have collapsed: at step {self._step}, {share:.0%} of "
                    f"them are {where}. A smaller pace, or a smaller learning rate of the predictor, keeps them behind "
                    "the weights.",
                    RuntimeWarning,
                    stacklevel=5,  # whoever calls step() or close()
                )

    def close(self) -> None:
        """Make the last record and remove the recorder from the model. Further calls have no effect."""
        if self._handles:
            self.read()
            for handle in self._handles:
                handle.remove()
            self._handles = []
            if self._owns_writer:
                self._writer.close()

    def __enter__(self) -> "RateRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def lightning_callback(**options: Any) -> Any:
    """Create a callback for a Lightning ``Trainer`` that records the rates during ``fit``.

    If the trainer has a TensorBoard logger, records are also written there. Needs the package ``lightning`` or
    ``pytorch_lightning``.

    Args:
        options: the options of :class:`RateRecorder`.

    Returns:
        A ``Callback``. Its ``recorder`` is the :class:`RateRecorder` of the last fit.

    Raises:
        ImportError: if neither package is installed.

    Example::

        callback = ddu_ops.recorder.lightning_callback(every=50)
        lightning.Trainer(max_epochs=10, callbacks=[callback]).fit(module, loader)
        ddu_ops.viz.draw_rates(callback.recorder.history["head.rate"])
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise ImportError(
                "lightning_callback() needs the package lightning or pytorch_lightning: run `pip install lightning`"
            ) from None

    class RateCallback(Callback):  # type: ignore[misc]  # of a package without types here
        recorder: RateRecorder | None = None

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            experiment = getattr(trainer.logger, "experiment", None)
            writer = experiment if hasattr(experiment, "add_histogram_raw") else None
            self.recorder = RateRecorder(pl_module, **{"writer": writer, **options})

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            assert self.recorder is not None
            self.recorder.step(trainer.global_step)

        def on_fit_end(self, *_: Any) -> None:
            assert self.recorder is not None
            self.recorder.close()

        def on_exception(self, *_: Any) -> None:
            if self.recorder is not None:
                self.recorder.close()

    return RateCallback()
