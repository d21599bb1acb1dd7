"""Compare ONNX operators for the translation of the unfold: what onnxruntime supports, its accuracy and speed.

    python -m benchmarks.onnx_operators

``DeformConv`` is the library's own translation. ``GridSample`` takes one grid for all taps; ``GatherElements`` stands
for plain operators: positions, four gathers and a weighted sum.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from onnxscript import ir
from onnxscript import opset20 as op
from torch import Tensor, nn

import ddu_ops
import ddu_ops.onnx

Translation = Callable[..., Any]
SHAPES = [(1, 64, 128, 3), (2, 16, 64, 3), (1, 32, 56, 7), (1, 16, 512, 3)]  # B, C, H = W, k


def ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def dims(of: Any, start: int, end: int) -> Any:
    return op.Slice(op.Shape(of), [start], [end])


def reshape(value: Any, *parts: Any) -> Any:
    return op.Reshape(value, op.Concat(*(ints(part) if isinstance(part, int) else part for part in parts), axis=0))


def with_positions(sample: Callable[..., Any], dtype: type[np.floating]) -> Translation:
    """A translation for one rate, one group and a stride of one, from a function of the taps' places along each axis.

    A place is a tensor (B, 1, kH, kW, H_out, W_out), or with ones in its stead, relative to the centre of its window;
    the centres have whole numbers.
    """
    to = ir.DataType.DOUBLE if dtype is np.float64 else ir.DataType.FLOAT

    def translation(
        input,
        kernel_size: Sequence[int],
        dilation_map,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        aligned: bool = True,
    ):
        rate = op.Unsqueeze(op.Cast(dilation_map, to=to), ints(2, 3))
        places, centres = [], []
        for axis in (0, 1):
            shape, k = [1] * 6, kernel_size[axis]
            shape[2 + axis] = k
            slope = (np.arange(k) - k // 2).astype(dtype).reshape(shape)
            places.append(op.Mul(rate, op.Constant(value=ir.tensor(slope))))
            out = op.Range(op.Constant(value_int=0), op.Squeeze(dims(dilation_map, 2 + axis, 3 + axis)), 1)
            centres.append(reshape(op.Sub(out, ints(padding[axis] - k // 2)), *([-1, 1] if axis == 0 else [1, -1])))
        columns = sample(op.Cast(input, to=to), places, centres, kernel_size, to)
        shaped = reshape(columns, dims(input, 0, 1), input.shape[1] * kernel_size[0] * kernel_size[1], -1)
        return op.CastLike(shaped, input)

    return translation


def grid_sample(input: Any, places: Any, centres: Any, kernel_size: Any, to: Any) -> Any:
    one, two = (op.Cast(ints(value), to=to) for value in (1, 2))
    normalised = []
    for axis in (1, 0):
        position = op.Add(places[axis], op.Cast(centres[axis], to=to))
        size = op.Cast(dims(input, 2 + axis, 3 + axis), to=to)
        normalised.append(op.Sub(op.Div(op.Add(op.Mul(position, two), one), size), one))
    full = op.Max(op.Shape(normalised[0]), op.Shape(normalised[1]))
    grid = op.Concat(*(op.Unsqueeze(op.Expand(n, full), ints(-1)) for n in normalised), axis=-1)
    return op.GridSample(
        input,
        reshape(grid, dims(input, 0, 1), -1, op.Slice(full, [5], [6]), 2),
        align_corners=0,
        mode="linear",
        padding_mode="zeros",
    )


def gathers(input: Any, places: Any, centres: Any, kernel_size: Any, to: Any) -> Any:
    one = op.Cast(ints(1), to=to)
    pixels, weights = [], []
    for axis in (0, 1):
        whole = op.Floor(places[axis])
        high = op.Sub(places[axis], whole)
        at = op.Add(op.Cast(whole, to=ir.DataType.INT64), centres[axis])
        pixels.append(op.Clip(op.Add(at, ints(2)), ints(0), op.Squeeze(op.Add(dims(input, 2 + axis, 3 + axis), 2))))
        weights.append((op.Sub(one, high), high))
    pitch = op.Add(dims(input, 3, 4), ints(4))
    image = reshape(op.Pad(input, ints(0, 0, 2, 2, 0, 0, 2, 2)), dims(input, 0, 2), -1)
    corner = op.Add(op.Mul(pixels[0], pitch), pixels[1])
    columns = None
    for row in (0, 1):
        for column in (0, 1):
            index = op.Add(corner, op.Add(op.Mul(pitch, ints(row)), ints(column)))
            channels = op.Concat(ints(1), dims(input, 1, 2), ints(1), axis=0)
            index = op.Expand(reshape(index, dims(input, 0, 1), 1, -1), channels)
            weight = reshape(op.Mul(weights[0][row], weights[1][column]), dims(input, 0, 1), 1, -1)
            part = op.Mul(op.GatherElements(image, index, axis=2), weight)
            columns = part if columns is None else op.Add(columns, part)
    return columns


CONTENDERS = {
    "DeformConv, float64": ddu_ops.onnx.translations()[torch.ops.ddu.unfold.default],
    "DeformConv, float32": ddu_ops.onnx.translations(torch.float32)[torch.ops.ddu.unfold.default],
    "GridSample, float64": with_positions(grid_sample, np.float64),
    "GridSample, float32": with_positions(grid_sample, np.float32),
    "GatherElements, float32": with_positions(gathers, np.float32),
}


class Unfold(nn.Module):
    """What is exported."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        return ddu_ops.dynamic_dilation_unfold(input, self.k, dilation_map, padding=self.k // 2)


def session(translation: Translation, k: int, *inputs: Tensor) -> Any:
    program = torch.onnx.export(
        Unfold(k).eval(),
        inputs,
        dynamo=True,
        verbose=False,
        opset_version=20,
        custom_translation_table={torch.ops.ddu.unfold.default: translation},
    )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, CPU, one thread, float32 model")
    print("milliseconds (least of 10), relative error against float64\n")
    print("| | " + " | ".join(f"({b}, {c}, {n}, {n}) k={k}" for b, c, n, k in SHAPES) + " |")
    print("| --- |" + " --- |" * len(SHAPES))
    cells: dict[str, list[str]] = {name: [] for name in [*CONTENDERS, "ddu_ops in PyTorch"]}
    for b, c, n, k in SHAPES:
        input = torch.randn(b, c, n, n)
        dilation_map = F.interpolate(torch.rand(b, 1, 8, 8) * 2 + 0.5, size=(n, n), mode="bicubic")
        expected = Unfold(k)(input.double(), dilation_map.double())
        calls: dict[str, Callable[[], Any]] = {}
        for name, translation in CONTENDERS.items():
            made = session(translation, k, input, dilation_map)
            arrays = {i.name: t.numpy() for i, t in zip(made.get_inputs(), (input, dilation_map), strict=True)}
            calls[name] = lambda made=made, arrays=arrays: torch.from_numpy(made.run(None, arrays)[0])
        calls["ddu_ops in PyTorch"] = lambda: Unfold(k)(input, dilation_map)  # noqa: B023
        errors = {name: ((call().double() - expected).norm() / expected.norm()).item() for name, call in calls.items()}
        times = dict.fromkeys(calls, float("inf"))
        for _ in range(10):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name] = min(times[name], time.perf_counter() - start)
        for name in calls:
            cells[name].append(f"{1e3 * times[name]:.1f} ({errors[name]:.0e})")
    for name, row in cells.items():
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
