"""Translations of the operators for ``torch.onnx.export``.

A convolution is ONNX's ``DeformConv`` (opset 19), whose offsets hold the dilation rates, where it has not offsets
itself; the unfold is one whose
weights pick out one tap each. The fold adds up the four neighbours of every tap by ``ScatterElements``. Exporting needs
the packages of ``ddu_ops[onnx]``; onnxruntime has a ``DeformConv`` for CPUs from 1.26 on.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ddu_ops._options import ints

_LIMIT = 2.0**30  # a tap so far away lies outside of every image, and its position is an int32


def translations(dtype: torch.dtype = torch.float64) -> dict[Callable[..., Any], Callable[..., Any]]:
    """ONNX translations of the operators, for opset 19 and above.

    Batch and image size may be dynamic. Rates that are not finite make their windows NaN, as everywhere. In the
    columns of the unfold a pixel that is not finite does so, too, to all taps of the windows that see it, for a
    ``DeformConv`` adds them up, all but one times zero. What the operators check, the exported program does not.

    Args:
        dtype: what the program computes in, ``torch.float64`` or ``torch.float32``. The positions of ``DeformConv``
            are sums of pixels and offsets, so in float32 they lose precision as images grow, about one part in ten
            million of the image's size; but that takes half the time, and is what runtimes other than onnxruntime on
            a CPU may know.

    Returns:
        A table for the ``custom_translation_table`` of :func:`torch.onnx.export`.

    Raises:
        ValueError: for another ``dtype``.
        ModuleNotFoundError: without onnxscript.
        RuntimeError: in the export, for an opset below 19, for a ``padding_mode`` other than ``"zeros"``, for
            operators on one or three axes, and for a convolution with a weight for each image.

    Example:
        >>> import ddu_ops.onnx
        >>> model = DynamicDilationUnfold(3, padding=1).eval()
        >>> program = torch.onnx.export(
        ...     model,
        ...     (torch.randn(1, 2, 5, 5), torch.rand(1, 1, 5, 5)),
        ...     dynamo=True,
        ...     opset_version=19,
        ...     verbose=False,
        ...     custom_translation_table=ddu_ops.onnx.translations(),
        ... )
        >>> "DeformConv" in {node.op_type for node in program.model.graph}
        True
    """
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"translations(): expected dtype to be torch.float64 or torch.float32, but got {dtype}")
    import numpy as np
    from onnxscript import INT64, evaluator, ir, opset19

    op: Any = opset19  # its annotations tell the types of ONNX apart, which no tensor here does
    number = np.float64 if dtype == torch.float64 else np.float32
    to = ir.DataType.DOUBLE if dtype == torch.float64 else ir.DataType.FLOAT

    def real(value: Any) -> Any:
        return op.Constant(value=ir.tensor(np.asarray(value, number)))

    def per_axis(option: Sequence[int]) -> Sequence[int]:
        return ints(option, 2, "an option", "translations")

    def size(tensor: Any, dim: int) -> Any:
        return op.Shape(tensor, start=dim, end=dim + 1)

    def shape(*parts: Any) -> Any:
        ints = (op.Constant(value_ints=[part]) if isinstance(part, int) else part for part in parts)
        return op.Concat(*ints, axis=0)

    def rates_and_unit(dilation_map: Any, groups: int) -> tuple[Any, Any]:
        """The rates, (B, G, 1 or 2, 1, H_out, W_out), all of them finite.

        And what makes up for that, (B, G, 1, 1, H_out, W_out): 1, or NaN for a window with a rate that is not.
        """
        grid = op.Shape(dilation_map, start=2)
        rates = op.Reshape(op.Cast(dilation_map, to=to), shape(size(dilation_map, 0), groups, -1, 1, grid))
        not_finite = op.Or(op.IsNaN(rates), op.IsInf(rates))
        unit = op.ReduceProd(op.Where(not_finite, real(np.nan), real(1)), shape(2))
        return op.Where(not_finite, real(0), rates), unit

    def slopes(kernel_size: Sequence[int], dilation: Sequence[int]) -> Any:
        """How far each tap moves with the rates, (2, kH * kW)."""
        twice: list[Any] = [(2 * np.arange(k) - (k - 1)) * d for k, d in zip(kernel_size, dilation, strict=True)]
        return np.stack(np.meshgrid(*twice, indexing="ij")).reshape(2, -1) / 2

    def of_rates(
        dilation_map: Any, kernel_size: Sequence[int], dilation: Sequence[int], groups: int, aligned: bool
    ) -> tuple[Any, Any]:
        """The offsets that a map means, (B, G, kH * kW, 2, H_out, W_out), and the unit of each window."""
        rates, unit = rates_and_unit(dilation_map, groups)
        # From where the taps of a plain convolution lie: with rates of 1, nowhere, or up to the first of them.
        slope = slopes(kernel_size, dilation)
        shift = -slope if aligned else -np.indices(kernel_size).reshape(2, -1) * np.reshape(dilation, (2, 1))
        offsets = op.Add(
            op.Mul(op.Transpose(rates, perm=[0, 1, 3, 2, 4, 5]), real(slope.T[None, None, :, :, None, None])),
            real(shift.T[None, None, :, :, None, None]),
        )
        return offsets, unit

    def of_offsets(offset: Any, taps: int, groups: int) -> tuple[Any, Any]:
        """The same of offsets, with the unit of each tap, (B, G, 1, kH * kW, H_out, W_out)."""
        grid = op.Shape(offset, start=2)
        offsets = op.Reshape(op.Cast(offset, to=to), shape(size(offset, 0), groups, taps, 2, grid))
        not_finite = op.Or(op.IsNaN(offsets), op.IsInf(offsets))
        unit = op.ReduceProd(op.Where(not_finite, real(np.nan), real(1)), shape(3), keepdims=0)
        return op.Where(not_finite, real(0), offsets), op.Unsqueeze(unit, shape(2))

    def deform_conv(
        input: Any,
        weight: Any,
        bias: Any,
        offsets: Any,
        unit: Any,
        mask: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        offset_groups: int,
    ) -> Any:
        """The convolution with offsets, of ``weight`` and ``bias`` in the type that the program computes in."""
        taps = kernel_size[0] * kernel_size[1]
        mask_groups = 1 if mask is None else mask.shape[1] // taps
        both = math.lcm(offset_groups, mask_groups)
        batch, grid = size(offsets, 0), op.Shape(offsets, start=4)

        def for_both(tensor: Any, of: int, *inner: int) -> Any:
            """Of so many groups, as often as makes it of ``both``: (B, both, *inner, H_out, W_out)."""
            tensor = op.Reshape(tensor, shape(batch, of, 1, *inner, grid))
            return op.Reshape(
                op.Expand(tensor, shape(1, 1, both // of, *(1 for _ in inner), 1, 1)), shape(batch, both, *inner, grid)
            )

        factors = op.Expand(unit, shape(1, 1, 1, taps, 1, 1))
        factors = for_both(factors, offset_groups, taps)
        if mask is not None:
            factors = op.Mul(factors, for_both(op.Cast(mask, to=to), mask_groups, taps))
        offsets = for_both(op.Clip(offsets, real(-_LIMIT), real(_LIMIT)), offset_groups, taps, 2)
        output = op.DeformConv(
            op.Cast(input, to=to),
            weight,
            op.Reshape(offsets, shape(batch, both * taps * 2, grid)),
            bias,
            op.Reshape(factors, shape(batch, both * taps, grid)),
            kernel_shape=list(kernel_size),
            strides=list(stride),
            pads=[*padding, *padding],
            dilations=list(dilation),
            group=groups,
            offset_group=both,
        )
        return op.CastLike(output, input)

    def check(positions: Any, padding_mode: str) -> None:
        """Refuse what has no translation. The exporter itself takes a low opset for the lowest that it has."""
        version = evaluator.default().opset.version
        if version < opset19.version:
            raise RuntimeError(
                f"translations(): expected torch.onnx.export to have opset_version={opset19.version} or above, but it "
                f"translates for opset {version}"
            )
        if padding_mode != "zeros":
            raise RuntimeError(f"translations(): expected padding_mode to be 'zeros', but got {padding_mode!r}")
        if len(positions.shape) != 4:
            raise RuntimeError(
                f"translations(): expected dilation_map or offset to have two axes, but got {len(positions.shape) - 2}"
            )

    # ---- Their annotations tell the exporter what is a tensor and what an attribute.

    def unfold(
        input: Any,
        kernel_size: Sequence[int],
        dilation_map: Any,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
        aligned: bool = True,
        padding_mode: str = "zeros",
    ) -> Any:
        check(dilation_map, padding_mode)
        kernel_size, stride, padding, dilation = map(per_axis, (kernel_size, stride, padding, dilation))
        taps, channels = kernel_size[0] * kernel_size[1], input.shape[1]
        each = real(np.tile(np.eye(taps).reshape(taps, 1, *kernel_size), (channels, 1, 1, 1)))
        window = (kernel_size, stride, padding, dilation)
        moved = of_rates(dilation_map, kernel_size, dilation, groups, aligned)
        columns = deform_conv(input, each, None, *moved, None, *window, channels, groups)
        return op.Reshape(columns, shape(0, 0, -1))

    def convolution(
        input: Any,
        weight: Any,
        positions: Any,
        bias: Any,
        mask: Any,
        source: str,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        dilation_groups: int,
        aligned: bool,
        padding_mode: str,
    ) -> Any:
        check(positions, padding_mode)
        stride, padding, dilation = map(per_axis, (stride, padding, dilation))
        weight_and_bias = (op.Cast(weight, to=to), None if bias is None else op.Cast(bias, to=to))
        if len(weight.shape) != 4:
            raise RuntimeError("translations(): expected weight to be the same for every image, but got one for each")
        kernel_size = list(weight.shape[2:])
        if source == "rates":
            moved = of_rates(positions, kernel_size, dilation, dilation_groups, aligned)
        else:
            moved = of_offsets(positions, math.prod(kernel_size), dilation_groups)
        window = (kernel_size, stride, padding, dilation)
        return deform_conv(input, *weight_and_bias, *moved, mask, *window, groups, dilation_groups)

    def fold(
        columns: Any,
        output_size: INT64,
        kernel_size: Sequence[int],
        dilation_map: Any,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
        aligned: bool = True,
        padding_mode: str = "zeros",
    ) -> Any:
        check(dilation_map, padding_mode)
        kernel_size, stride, padding, dilation = map(per_axis, (kernel_size, stride, padding, dilation))
        taps = kernel_size[0] * kernel_size[1]
        channels, batch = columns.shape[1] // taps, size(columns, 0)
        rates, unit = rates_and_unit(dilation_map, groups)
        # The image has a border of two pixels before and one after it, in which all taps outside of it end.
        bordered = op.Add(output_size, shape(3))
        pitch = op.Gather(bordered, shape(1), axis=0)
        pixels, weights = [], []
        for axis, slope in enumerate(slopes(kernel_size, dilation)):
            reach = dilation[axis] * (kernel_size[axis] - 1) if aligned else 0
            offset = op.Add(
                op.Mul(op.Gather(rates, shape(-axis), axis=2), real(slope[None, None, None, :, None, None])),
                real(reach % 2 / 2),
            )
            offset = op.Clip(offset, real(-_LIMIT), real(_LIMIT))
            whole = op.Floor(offset)
            out = op.Range(0, op.Squeeze(size(dilation_map, 2 + axis)), 1)
            first = op.Sub(op.Mul(out, shape(stride[axis])), shape(padding[axis] - reach // 2))
            first = op.Reshape(first, shape(*((-1, 1) if axis == 0 else (1, -1))))
            place = op.Add(op.Cast(whole, to=ir.DataType.INT64), first)
            image = op.Gather(output_size, shape(axis), axis=0)
            inside = op.And(op.GreaterOrEqual(place, shape(-1)), op.Less(place, image))
            inside = op.And(inside, op.Not(op.IsNaN(unit)))  # of such a window the image gets nothing
            pixels.append(op.Add(op.Where(inside, place, shape(-2)), shape(2)))
            high = op.Sub(offset, whole)
            weights.append((op.Sub(real(1), high), high))
        per_tap = shape(batch, groups, 1, -1)
        corner = op.Add(op.Mul(pixels[0], pitch), pixels[1])
        values = op.Reshape(op.Cast(columns, to=to), shape(batch, groups, channels // groups, -1))
        result = op.Expand(real(0), shape(batch, groups, channels // groups, op.ReduceProd(bordered)))
        for row in (0, 1):
            for column in (0, 1):
                index = op.Add(corner, op.Add(op.Mul(pitch, shape(row)), shape(column)))
                weight = op.Mul(weights[0][row], weights[1][column])
                result = op.ScatterElements(
                    result,
                    op.Expand(op.Reshape(index, per_tap), shape(1, 1, channels // groups, 1)),
                    op.Mul(values, op.Reshape(weight, per_tap)),
                    axis=3,
                    reduction="add",
                )
        result = op.Reshape(result, shape(batch, channels, bordered))
        return op.CastLike(op.Slice(result, shape(2, 2), op.Add(output_size, shape(2)), shape(2, 3)), columns)

    return {
        torch.ops.ddu.unfold.default: unfold,
        torch.ops.ddu.fold.default: fold,
        torch.ops.ddu.convolution.default: convolution,
    }
