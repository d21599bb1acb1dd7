"""Translations of the operators to ONNX. Importing this module registers them for ``torch.onnx.export``.

On one and two axes a convolution becomes ONNX's ``DeformConv`` (opset 19), with offsets computed from the dilation
rates, and an unfold becomes a ``DeformConv`` whose weights select one tap each. On three axes, and with a padding mode
other than zeros, an unfold becomes a ``GridSample`` (opset 20). There, and with a weight for each image, a convolution
becomes an unfold and a ``MatMul``. The fold adds the neighbours of every tap with ``ScatterElements``. Exporting needs
the packages of ``ddu_ops[onnx]``; onnxruntime has a ``DeformConv`` for CPUs from 1.26 on.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ddu_ops import reference
from ddu_ops._options import ints

_LIMIT = 2.0**30  # a tap so far away lies outside of every image, and its position is an int32


def translations(dtype: torch.dtype = torch.float64) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ONNX translations of the operators.

    They need opset 19 or above; for three axes and padding modes other than zeros, 20 or above. Batch and image size
    may be dynamic. As everywhere, rates and offsets that are not finite make the taps that they move NaN. In the
    columns of an unfold, a pixel that is not finite makes all taps of every window that contains it NaN, because a
    ``DeformConv`` sums them, all but one multiplied by zero. The exported program does not check its arguments.

    Importing the module registers the translations for the default ``dtype``. Pass this table for the other.

    Args:
        dtype: the type that the program computes in, ``torch.float64`` or ``torch.float32``. The positions of
            ``DeformConv`` are sums of pixels and offsets, and those of ``GridSample`` are divided by the size, so in
            float32 they lose precision as images grow, about one ten-millionth of the size of the image. float32 takes
            half the time, and may be the only type that runtimes other than onnxruntime on a CPU support.

    Returns:
        A table for the ``custom_translation_table`` of :func:`torch.onnx.export`.

    Raises:
        ValueError: for another ``dtype``.
        ModuleNotFoundError: if onnxscript is not installed.
        RuntimeError: during the export, if the opset is too low, and for derivatives.

    Example:
        >>> import ddu_ops.onnx
        >>> model = DynamicDilationUnfold(3, padding=1).eval()
        >>> program = torch.onnx.export(
        ...     model,
        ...     (torch.randn(1, 2, 5, 5), torch.rand(1, 1, 5, 5)),
        ...     dynamo=True,
        ...     opset_version=19,
        ...     verbose=False,
        ... )
        >>> "DeformConv" in {node.op_type for node in program.model.graph}
        True
    """
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"translations(): expected dtype to be torch.float64 or torch.float32, but got {dtype}")
    import numpy as np
    from onnxscript import INT64, evaluator, ir, opset19, opset20

    op: Any = opset19  # its annotations tell the types of ONNX apart, which no tensor here does
    op20: Any = opset20
    number = np.float64 if dtype == torch.float64 else np.float32
    to = ir.DataType.DOUBLE if dtype == torch.float64 else ir.DataType.FLOAT

    def real(value: Any) -> Any:
        return op.Constant(value=ir.tensor(np.asarray(value, number)))

    def size(tensor: Any, dim: int) -> Any:
        return op.Shape(tensor, start=dim, end=dim + 1)

    def shape(*parts: Any) -> Any:
        ints = (op.Constant(value_ints=[part]) if isinstance(part, int) else part for part in parts)
        return op.Concat(*ints, axis=0)

    def in_full(axes: int, *options: Sequence[int]) -> list[tuple[int, ...]]:
        return [ints(option, axes, "an option", "translations") for option in options]

    def taps_of(kernel_size: Sequence[int], source: str, **options: Any) -> tuple[Any, Any]:
        """Where the taps of the first window lie with parameters of zero, and how far one moves them: each (N, K).

        Of an affine map, the identity.
        """
        axes, taps = len(kernel_size), math.prod(kernel_size)
        ones = torch.ones(axes if source == "rates" else axes * taps, dtype=torch.float64)
        ones = torch.eye(axes, axes + 1, dtype=torch.float64).flatten() if source == "affine" else ones
        ones = ones.view(1, -1, *[1] * axes)

        def places(parameters: torch.Tensor) -> Any:
            along = reference.positions(parameters, source, kernel_size, **options)
            full = [(pixel + moved).expand(1, 1, *kernel_size, *[1] * axes) for pixel, moved in along]
            return torch.stack([place.flatten() for place in full]).numpy()

        first = places(0 * ones)
        return first, places(ones) - first

    def moved_taps(positions: Any, source: str, slope: Any, groups: int) -> tuple[Any, Any]:
        """How far the taps are moved, (B, G, K, N, *out), where a parameter is not finite not at all.

        And what makes up for that, (B, G, K or 1, 1, *out): 1, or NaN for what such a parameter moves.
        """
        axes, taps = slope.shape
        parts = (1, -1) if source != "offsets" else (taps, axes)
        grid = op.Shape(positions, start=2)
        parameters = op.Reshape(op.Cast(positions, to=to), shape(size(positions, 0), groups, *parts, grid))
        not_finite = op.Or(op.IsNaN(parameters), op.IsInf(parameters))
        unit = op.ReduceProd(op.Where(not_finite, real(np.nan), real(1)), shape(3))
        parameters = op.Where(not_finite, real(0), parameters)
        if source == "affine":  # rows of matrix and shift, times the taps' places and one
            rows = op.Reshape(parameters, shape(size(positions, 0), groups, axes, axes + 1, -1))
            places = real(np.concatenate([slope.T, np.ones((taps, 1))], axis=1))
            moved = op.Einsum(rows, places, equation="bgnel,te->bgtnl")
            return op.Reshape(moved, shape(size(positions, 0), groups, taps, axes, grid)), unit
        return op.Mul(parameters, real(slope.T.reshape(1, 1, taps, axes, *[1] * axes))), unit

    def per_tap(values: Any, axes: int) -> Any:
        """(N, K) -> (1, 1, K, N, 1, ...)."""
        return real(values.T.reshape(1, 1, *values.T.shape, *[1] * axes))

    def for_groups(values: Any, of: int, groups: int, axes: int) -> Any:
        """(B, of, K or 1, N or 1, *out), for as many groups of channels, -> the same for ``groups``, a multiple."""
        if of == groups:
            return values
        inner = op.Shape(values, start=2)
        each = op.Reshape(values, shape(size(values, 0), of, 1, inner))
        each = op.Expand(each, shape(1, 1, groups // of, *[1] * (2 + axes)))
        return op.Reshape(each, shape(size(values, 0), groups, inner))

    def deform_conv(
        input: Any,
        weight: Any,
        bias: Any,
        moved: Any,
        factors: Any,
        out: Any,
        source: str,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        position_groups: int,
        aligned: bool,
    ) -> Any:
        """The convolution of an image or a signal, of ``weight`` and ``bias`` in the type that the program computes in.

        ``moved`` is what moved_taps makes of the positions, ``factors`` those of the taps, (B, G, K, 1, *out), or
        None, and ``out`` the size of the output. A signal is an image of height one, also in the output.
        """
        axes, taps = len(kernel_size), math.prod(kernel_size)
        first, _ = taps_of(kernel_size, source, dilation=dilation, aligned=aligned)
        plain, _ = taps_of(kernel_size, "offsets", dilation=dilation)
        offsets = op.Clip(op.Add(moved, per_tap(first - plain, axes)), real(-_LIMIT), real(_LIMIT))
        if axes == 1:
            input, offsets = op.Unsqueeze(input, shape(2)), op.Concat(op.Mul(offsets, real(0)), offsets, axis=3)
            out = shape(1, out)
        if factors is not None:
            factors = op.Reshape(factors, shape(0, position_groups * taps, out))
        two = 2 - axes
        return op.DeformConv(
            op.Cast(input, to=to),
            weight,
            op.Reshape(offsets, shape(0, position_groups * taps * 2, out)),
            bias,
            factors,
            kernel_shape=[1] * two + list(kernel_size),
            strides=[1] * two + list(stride),
            pads=2 * ([0] * two + list(padding)),
            dilations=[1] * two + list(dilation),
            group=groups,
            offset_group=position_groups,
        )

    def along_axis(out: Any, stride: int, axis: int, axes: int) -> Any:
        """Where the windows begin, less where the first one does: int64, along an axis of the output grid."""
        index = op.Range(0, op.Squeeze(out), 1)
        return op.Reshape(op.Mul(index, shape(stride)), shape(-1, *[1] * (axes - 1 - axis)))

    def reflected(position: Any, period: Any, fmod: int) -> Any:
        """A position, of any type, in an axis that is reflected at the centres of its outermost pixels."""
        position = op.Mod(op.Abs(position), period, fmod=fmod)
        return op.Min(position, op.Sub(period, position))

    def period_of(image: Any) -> Any:
        return op.Max(op.Mul(op.Sub(image, shape(1)), shape(2)), shape(1))

    def grid_samples(
        input: Any,
        moved: Any,
        out: Sequence[Any],
        source: str,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        aligned: bool,
        padding_mode: str,
    ) -> Any:
        """The samples of all taps, (B * G, C / G, ...), the taps one after the other; ``out`` as in deform_conv."""
        axes, along = len(kernel_size), []
        first, _ = taps_of(kernel_size, source, padding=padding, dilation=dilation, aligned=aligned)
        for axis in range(axes):
            image = size(input, 2 + axis)
            start = op.Cast(along_axis(out[axis], stride[axis], axis, axes), to=to)
            place = op.Gather(moved, shape(axis), axis=3)
            if padding_mode == "reflection":
                period = op.Cast(period_of(image), to=to)
                place = op.Mod(place, period, fmod=1)
            else:
                place = op.Clip(place, real(-_LIMIT), real(_LIMIT))
            place = op.Add(op.Add(place, per_tap(first[axis : axis + 1], axes)), start)
            if padding_mode == "reflection":
                place = reflected(place, period, 1)
            place = op.Sub(op.Div(op.Add(op.Mul(place, real(2)), real(1)), op.Cast(image, to=to)), real(1))
            along.append(op.Unsqueeze(place, shape(-1)))
        pixels = input
        if axes == 1:
            pixels, along = op.Unsqueeze(input, shape(2)), [op.Mul(along[0], real(0)), *along]
        items = op.Mul(size(moved, 0), shape(groups))
        rest = out[1:] if axes > 1 else out
        return op20.GridSample(
            op.Reshape(op.Cast(input, to=to), shape(items, input.shape[1] // groups, op.Shape(pixels, start=2))),
            op.Reshape(op.Concat(*along[::-1], axis=-1), shape(items, -1, *rest, max(axes, 2))),
            align_corners=0,
            mode="linear",
            padding_mode="zeros" if padding_mode == "zeros" else "border",
        )

    def check(needs: int = opset19.version) -> None:
        """Refuses an opset that is too low, which the exporter itself replaces with the lowest that it has."""
        version = evaluator.default().opset.version
        if version < needs:
            of = "" if needs == opset19.version else " for three axes and padding modes other than 'zeros'"
            raise RuntimeError(
                f"translations(): expected torch.onnx.export to have opset_version={needs} or above{of}, but it "
                f"translates for opset {version}"
            )

    def columns_of(
        input: Any,
        positions: Any,
        source: str,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        aligned: bool,
        padding_mode: str,
    ) -> Any:
        """The columns, (B, C * K, L), in the type that the program computes in."""
        axes = len(positions.shape) - 2
        kernel_size, stride, padding, dilation = in_full(axes, kernel_size, stride, padding, dilation)
        window = (kernel_size, stride, padding, dilation)
        sampled = axes == 3 or padding_mode != "zeros"
        check(opset20.version if sampled else opset19.version)
        taps, channels = math.prod(kernel_size), input.shape[1]
        _, slope = taps_of(kernel_size, source, dilation=dilation, aligned=aligned)
        moved, unit = moved_taps(positions, source, slope, groups)
        out = [size(positions, 2 + axis) for axis in range(axes)]
        if sampled:
            columns = grid_samples(input, moved, out, source, *window, groups, aligned, padding_mode)
        else:
            each = np.eye(taps).reshape(taps, 1, *[1] * (2 - axes), *kernel_size)
            weight = real(np.tile(each, (channels, 1, 1, 1)))
            columns = deform_conv(
                input, weight, None, moved, None, shape(*out), source, *window, channels, groups, aligned
            )
        # What is not finite makes NaN of the taps that it moves, and of them alone.
        by_tap = op.Reshape(columns, shape(size(positions, 0), groups, channels // groups, taps, -1))
        factors = op.Reshape(unit, shape(size(positions, 0), groups, 1, taps if source == "offsets" else 1, -1))
        return op.Reshape(op.Mul(by_tap, factors), shape(size(positions, 0), channels * taps, -1))

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
        window = (kernel_size, stride, padding, dilation)
        columns = columns_of(input, dilation_map, "rates", *window, groups, aligned, padding_mode)
        return op.CastLike(columns, input)

    def sample(
        input: Any,
        positions: Any,
        source: str,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
        aligned: bool = True,
        padding_mode: str = "zeros",
        order: Sequence[int] = (),
    ) -> Any:
        if any(order):
            raise RuntimeError(f"translations(): expected order to be of the value itself, but got {tuple(order)}")
        window = (kernel_size, stride, padding, dilation)
        columns = columns_of(input, positions, source, *window, groups, aligned, padding_mode)
        return op.CastLike(columns, input)

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
        axes = len(positions.shape) - 2
        per_image = len(weight.shape) == axes + 3
        kernel_size = tuple(weight.shape[-axes:])
        stride, padding, dilation = in_full(axes, stride, padding, dilation)
        window = (kernel_size, stride, padding, dilation)
        taps, out = math.prod(kernel_size), op.Shape(positions, start=2)
        channels = weight.shape[-axes - 2]  # of the output
        weight, bias = op.Cast(weight, to=to), None if bias is None else op.Cast(bias, to=to)
        mask_groups = 1 if mask is None else mask.shape[1] // taps
        if mask is not None:
            mask = op.Reshape(op.Cast(mask, to=to), shape(size(mask, 0), mask_groups, taps, 1, out))
        if axes == 3 or padding_mode != "zeros" or per_image:
            batch, rows = size(positions, 0), input.shape[1] * taps
            columns = columns_of(input, positions, source, *window, dilation_groups, aligned, padding_mode)
            if mask is not None:
                by_group = op.Reshape(columns, shape(batch, mask_groups, input.shape[1] // mask_groups, taps, -1))
                columns = op.Mul(by_group, op.Reshape(mask, shape(batch, mask_groups, 1, taps, -1)))
            items = size(weight, 0) if per_image else 1
            output = op.MatMul(
                op.Reshape(weight, shape(items, groups, channels // groups, rows // groups)),
                op.Reshape(columns, shape(batch, groups, rows // groups, -1)),
            )
            output = op.Reshape(output, shape(batch, channels, -1))
            if bias is not None:
                output = op.Add(output, op.Reshape(bias, shape(-1, channels, 1)))
            return op.CastLike(op.Reshape(output, shape(batch, channels, out)), input)
        check()
        _, slope = taps_of(kernel_size, source, dilation=dilation, aligned=aligned)
        moved, factors = moved_taps(positions, source, slope, dilation_groups)
        both = math.lcm(dilation_groups, mask_groups)
        moved = for_groups(moved, dilation_groups, both, axes)
        factors = for_groups(factors, dilation_groups, both, axes)
        if mask is None:
            factors = op.Expand(factors, shape(1, 1, taps, 1, *[1] * axes))
        else:
            factors = op.Mul(factors, for_groups(mask, mask_groups, both, axes))
        if axes == 1:
            weight = op.Unsqueeze(weight, shape(2))
        output = deform_conv(input, weight, bias, moved, factors, out, source, *window, groups, both, aligned)
        if axes == 1:
            output = op.Squeeze(output, shape(2))
        return op.CastLike(output, input)

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
        check()
        axes = len(dilation_map.shape) - 2
        kernel_size, stride, padding, dilation = in_full(axes, kernel_size, stride, padding, dilation)
        taps = math.prod(kernel_size)
        channels, batch = columns.shape[1] // taps, size(columns, 0)
        first, slope = taps_of(kernel_size, "rates", padding=padding, dilation=dilation, aligned=aligned)
        moved, unit = moved_taps(dilation_map, "rates", slope, groups)
        # The image has a border of two pixels before and one after it, in which all taps outside of it end.
        bordered = op.Add(output_size, shape(3))
        finite = op.Not(op.IsNaN(unit))  # of other windows the image gets nothing
        neighbours = []
        for axis in range(axes):
            image = op.Gather(output_size, shape(axis), axis=0)
            whole_first = np.floor(first[axis : axis + 1])
            offset = op.Gather(moved, shape(axis), axis=3)
            if padding_mode == "reflection":
                offset = op.Mod(offset, op.Cast(period_of(image), to=to), fmod=1)
            else:
                offset = op.Clip(offset, real(-_LIMIT), real(_LIMIT))
            offset = op.Add(offset, per_tap(first[axis : axis + 1] - whole_first, axes))
            whole = op.Floor(offset)
            start = along_axis(size(dilation_map, 2 + axis), stride[axis], axis, axes)
            low = op.Add(op.Cast(op.Add(whole, per_tap(whole_first, axes)), to=ir.DataType.INT64), start)
            high = op.Sub(offset, whole)
            pair = []
            for pixel, weight in ((low, op.Sub(real(1), high)), (op.Add(low, shape(1)), high)):
                if padding_mode == "border":
                    pixel = op.Max(shape(0), op.Min(pixel, op.Sub(image, shape(1))))
                elif padding_mode == "reflection":
                    pixel = reflected(pixel, period_of(image), 0)
                inside = op.And(op.GreaterOrEqual(pixel, shape(0)), op.Less(pixel, image))
                pair.append((op.Add(op.Where(op.And(inside, finite), pixel, shape(-2)), shape(2)), weight))
            neighbours.append(pair)
        one_row = shape(batch, groups, 1, -1)
        values = op.Reshape(op.Cast(columns, to=to), shape(batch, groups, channels // groups, -1))
        result = op.Expand(real(0), shape(batch, groups, channels // groups, op.ReduceProd(bordered)))
        for corner in itertools.product(*neighbours):
            index, weight = corner[0]
            for axis, (pixel, factor) in enumerate(corner[1:], start=1):
                pitch = op.Gather(bordered, shape(axis), axis=0)
                index, weight = op.Add(op.Mul(index, pitch), pixel), op.Mul(weight, factor)
            result = op.ScatterElements(
                result,
                op.Expand(op.Reshape(index, one_row), shape(1, 1, channels // groups, 1)),
                op.Mul(values, op.Reshape(weight, one_row)),
                axis=3,
                reduction="add",
            )
        result = op.Reshape(result, shape(batch, channels, bordered))
        ends = op.Add(output_size, shape(2))
        return op.CastLike(op.Slice(result, shape(*[2] * axes), ends, shape(*range(2, 2 + axes))), columns)

    return {
        torch.ops.ddu.unfold.default: unfold,
        torch.ops.ddu.sample.default: sample,
        torch.ops.ddu.fold.default: fold,
        torch.ops.ddu.convolution.default: convolution,
    }


def _register() -> None:
    """Registers the translations, so that exports need no table, as long as torch has this private registry."""
    try:
        from torch.onnx._internal.exporter import _registration
        from torch.onnx._internal.exporter._torchlib import _torchlib_registry

        known, meta = _torchlib_registry._registry, _registration.OnnxDecompMeta
        own = [meta(function, operator, None) for operator, function in translations().items()]
    except (ImportError, AttributeError, TypeError):
        return
    known[:] = [entry for entry in known if not str(entry.fx_target).startswith("ddu.")] + own


_register()
