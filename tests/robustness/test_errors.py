"""Invalid arguments: the error texts, the same on every device, and no crashes."""

import itertools
import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor

import ddu_ops
from cases import OPERATORS, operators
from refusals import CALLS, COLUMNS, DEVICES, INPUT, MESSAGE, NAMED, Make, call, expanded, refusal, refusals, tensor

INT64_MAX = 2**63 - 1
PUBLIC = ["dynamic_dilation_unfold", "dynamic_dilation_fold"]
PAIRS = ["kernel_size", "stride", "padding", "dilation"]


def message(name: str, **changes: Any) -> str:
    """The refusal of a call, which must be the same on every device."""
    texts = {refusal(name, device, **changes) for device in DEVICES}
    assert len(texts) == 1, texts
    return texts.pop()


def everywhere(**changes: Any) -> str:
    """The refusal by every operator that has the arguments, without the operator's name.

    All words there are for it, where an operator on columns has others than one on an input. A map is the positions of
    the family, and stands in its messages under that name.
    """
    texts, names = set(), 0
    for name, arguments in CALLS.items():
        positions = "dilation_map" if "dilation_map" in arguments else "positions"
        given = {positions if key == "dilation_map" else key: value for key, value in changes.items()}
        if set(given) <= set(arguments):
            names += 1
            text = message(name, **given).removeprefix(f"{name}(): ")
            texts.add(re.sub(f"^expected {positions} ", "expected dilation_map ", text))
    assert names
    assert len(texts) <= 2, texts
    return "\n".join(sorted(texts))


def test_the_calls_work() -> None:
    for name, device in itertools.product([*OPERATORS, *NAMED], DEVICES):
        call(name, device)
    assert set(CALLS) == set(OPERATORS)


# ---- What is refused, and how ----


def sparse(layout: torch.layout, *shape: int) -> Make:
    def make(device: str) -> Tensor:
        if device == "meta" and layout == torch.sparse_csr:
            return torch.empty(shape, layout=layout, device=device)
        if layout == torch.sparse_csr:
            return torch.zeros(shape).to_sparse_csr()
        return torch.sparse_coo_tensor(torch.zeros(len(shape), 0), [], shape, device=device)

    return make


def quantised(*shape: int) -> Make:
    return lambda device: torch.quantize_per_tensor(torch.zeros(shape, device=device), 0.1, 0, torch.quint8)


# The names that the table uses for arguments; a tuple is a tensor of that shape.
WORDS: dict[str, Any] = {
    "expanded": expanded,
    "coo": lambda *shape: sparse(torch.sparse_coo, *shape),
    "csr": lambda *shape: sparse(torch.sparse_csr, *shape),
    "quantised": quantised,
    "on_cpu": lambda *shape: lambda device: torch.zeros(shape),
    "on_meta": lambda *shape: lambda device: torch.zeros(shape, device="meta"),
}
for _name in ("int64", "int32", "uint8", "bool", "complex64", "float8_e4m3fn", "float64", "float16", "bfloat16"):
    WORDS[_name] = partial(tensor, dtype=getattr(torch, _name))

# Operators | the arguments that replace those of CALLS and NAMED | the text after "expected". `*` is every operator that has
# the arguments, with the text of operators on columns and of others separated by //, in order. "on" selects a device.
TABLE = """
# rank of the input
unfold, sample, unfold_backward, dot | input=(4, 8, 8) | input of shape (B, C, H, W), but got (4, 8, 8)
dynamic_dilation_unfold | input=(8, 8) | input of shape (B, C, H, W) or (C, H, W), but got (8, 8)
dynamic_dilation_unfold | input=(1, 2, 4, 8, 8) | input of shape (B, C, H, W) or (C, H, W), but got (1, 2, 4, 8, 8)
dynamic_dilation_unfold | input=() | input of shape (B, C, H, W) or (C, H, W), but got ()

# shape of columns
dynamic_dilation_fold | columns=(64,) | columns of shape (B, C * kH * kW, L) or (C * kH * kW, L), but got (64,)
dynamic_dilation_fold | columns=(2, 4, 9, 64) | columns of shape (B, C * kH * kW, L) or (C * kH * kW, L), but got (2, 4, 9, 64)
dynamic_dilation_fold, fold | columns=(2, 35, 64) | columns to have a multiple of kH * kW = 9 rows, but got shape (2, 35, 64)
dynamic_dilation_fold | columns=(2, 36, 63) | columns of shape (2, 36, 64), but got (2, 36, 63)
dynamic_dilation_fold | columns=(36, 63), dilation_map=(1, 8, 8) | columns of shape (36, 64), but got (36, 63)
fold | columns=(36, 64) | columns of shape (B, C * kH * kW, L), but got (36, 64)
fold, splat, dot | columns=(2, 36, 65) | columns of shape (2, 36, 64), but got (2, 36, 65)
dot | columns=(2, 35, 64) | columns of shape (2, 36, 64), but got (2, 35, 64)
dot | columns=(1, 36, 64) | columns of shape (2, 36, 64), but got (1, 36, 64)
dot | columns=(36, 64) | columns of shape (2, 36, 64), but got (36, 64)

# shape of grad_output
unfold_backward | grad_output=(36, 64) | grad_output of shape (2, 36, 64), but got (36, 64)
unfold_backward | grad_output=(1, 36, 64) | grad_output of shape (2, 36, 64), but got (1, 36, 64)
unfold_backward | grad_output=(2, 35, 64) | grad_output of shape (2, 36, 64), but got (2, 35, 64)
unfold_backward | grad_output=(2, 36, 63) | grad_output of shape (2, 36, 64), but got (2, 36, 63)
unfold_backward | grad_output=(2, 36, 8, 8) | grad_output of shape (2, 36, 64), but got (2, 36, 8, 8)
unfold_backward | grad_output=() | grad_output of shape (2, 36, 64), but got ()

# type of the leading tensor
* | input=int64(2, 4, 8, 8) | input of type float64, float32, float16 or bfloat16, but got int64
* | columns=int64(2, 36, 64) | columns of type float64, float32, float16 or bfloat16, but got int64
unfold_backward | grad_output=int64(2, 36, 64) | grad_output of type float64, float32, float16 or bfloat16, but got int64
* | input=int32(2, 4, 8, 8) | input of type float64, float32, float16 or bfloat16, but got int32
* | columns=int32(2, 36, 64) | columns of type float64, float32, float16 or bfloat16, but got int32
unfold_backward | grad_output=int32(2, 36, 64) | grad_output of type float64, float32, float16 or bfloat16, but got int32
* | input=uint8(2, 4, 8, 8) | input of type float64, float32, float16 or bfloat16, but got uint8
* | columns=uint8(2, 36, 64) | columns of type float64, float32, float16 or bfloat16, but got uint8
unfold_backward | grad_output=uint8(2, 36, 64) | grad_output of type float64, float32, float16 or bfloat16, but got uint8
* | input=bool(2, 4, 8, 8) | input of type float64, float32, float16 or bfloat16, but got bool
* | columns=bool(2, 36, 64) | columns of type float64, float32, float16 or bfloat16, but got bool
unfold_backward | grad_output=bool(2, 36, 64) | grad_output of type float64, float32, float16 or bfloat16, but got bool
* | input=complex64(2, 4, 8, 8) | input of type float64, float32, float16 or bfloat16, but got complex64
* | columns=complex64(2, 36, 64) | columns of type float64, float32, float16 or bfloat16, but got complex64
unfold_backward | grad_output=complex64(2, 36, 64) | grad_output of type float64, float32, float16 or bfloat16, but got complex64
* | input=float8_e4m3fn(2, 4, 8, 8) | input of type float64, float32, float16 or bfloat16, but got Float8_e4m3fn
* | columns=float8_e4m3fn(2, 36, 64) | columns of type float64, float32, float16 or bfloat16, but got Float8_e4m3fn
unfold_backward | grad_output=float8_e4m3fn(2, 36, 64) | grad_output of type float64, float32, float16 or bfloat16, but got Float8_e4m3fn

# types that do not agree
* | dilation_map=int64(2, 1, 8, 8) | dilation_map of type float64, float32, float16 or bfloat16, but got int64
unfold, dynamic_dilation_unfold | dilation_map=float64(2, 1, 8, 8) | dilation_map of type float32, because input is float32, but got float64
unfold | dilation_map=float16(2, 1, 8, 8) | dilation_map of type float32, because input is float32, but got float16
unfold | input=float16(2, 4, 8, 8), dilation_map=float64(2, 1, 8, 8) | dilation_map of type float16 or float32, because input is float16, but got float64
unfold | input=float16(2, 4, 8, 8), dilation_map=bfloat16(2, 1, 8, 8) | dilation_map of type float16 or float32, because input is float16, but got bfloat16
dynamic_dilation_fold | dilation_map=float64(2, 1, 8, 8) | dilation_map of type float32, because columns is float32, but got float64
fold | columns=bfloat16(2, 36, 64), dilation_map=float64(2, 1, 8, 8) | dilation_map of type bfloat16 or float32, because columns is bfloat16, but got float64
unfold_backward | grad_output=float16(2, 36, 64) | grad_output of type float32, because input is float32, but got float16
dot | columns=float64(2, 36, 64) | columns of type float32, because input is float32, but got float64

# layouts that are not strided
* | input=coo(2, 4, 8, 8) | input to be a dense tensor, but got one of layout Sparse
* | dilation_map=coo(2, 1, 8, 8) | dilation_map to be a dense tensor, but got one of layout Sparse
* | columns=coo(2, 36, 64) | columns to be a dense tensor, but got one of layout Sparse
* | grad_output=coo(2, 36, 64) | grad_output to be a dense tensor, but got one of layout Sparse
* | columns=csr(2, 36, 64) | columns to be a dense tensor, but got one of layout SparseCsr

# quantised tensors
dynamic_dilation_unfold on cpu, unfold on cpu | input=quantised(2, 4, 8, 8) | input to be a dense tensor, but got a quantised one
dynamic_dilation_fold on cpu, fold on cpu | columns=quantised(2, 36, 64) | columns to be a dense tensor, but got a quantised one
unfold on cpu | dilation_map=quantised(2, 1, 8, 8) | dilation_map to be a dense tensor, but got a quantised one
unfold_backward on cpu | grad_output=quantised(2, 36, 64) | grad_output to be a dense tensor, but got a quantised one

# shape of the map
*, dynamic_dilation_unfold | dilation_map=(2, 1, 7, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
* | dilation_map=(2, 1, 8, 9) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 8, 9)
* | dilation_map=(2, 3, 8, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 3, 8, 8)
* | dilation_map=(2, 0, 8, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 0, 8, 8)
* | dilation_map=(3, 1, 8, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (3, 1, 8, 8)
* | dilation_map=(0, 1, 8, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (0, 1, 8, 8)
dynamic_dilation_unfold, dynamic_dilation_fold | dilation_map=(2, 1, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 8)
unfold, unfold_backward | dilation_map=(2, 1, 8) | input of shape (B, C, W), but got (2, 4, 8, 8)
fold | dilation_map=(2, 1, 8) | columns of shape (2, 36, 8), but got (2, 36, 64)
dynamic_dilation_unfold, dynamic_dilation_fold | dilation_map=(2, 1, 1, 8, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 8, 8)
unfold, unfold_backward | dilation_map=(2, 1, 1, 8, 8) | input of shape (B, C, D, H, W), but got (2, 4, 8, 8)
fold | dilation_map=(2, 1, 1, 8, 8) | columns to have a multiple of kD * kH * kW = 27 rows, but got shape (2, 36, 64)
dynamic_dilation_unfold, dynamic_dilation_fold, unfold, unfold_backward, fold | dilation_map=() | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
sample, sample_backward, dot | positions=(2, 1, 8) | input of shape (B, C, W), but got (2, 4, 8, 8)
splat | positions=(2, 1, 8) | output_size to be one int, but got (8, 8)
sample, sample_backward, dot | positions=(2, 1, 1, 8, 8) | input of shape (B, C, D, H, W), but got (2, 4, 8, 8)
splat | positions=(2, 1, 1, 8, 8) | output_size to be one or three ints, but got (8, 8)
sample, sample_backward, splat, dot | positions=() | positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
* | dilation_map=(2, 1, 8, 8), groups=4 | dilation_map of shape (2, 4, 8, 8) or (2, 8, 8, 8), but got (2, 1, 8, 8)
* | dilation_map=(2, 8, 8, 8), groups=2 | dilation_map of shape (2, 2, 8, 8) or (2, 4, 8, 8), but got (2, 8, 8, 8)
unfold, fold | dilation_map=(1, 1, 8, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
unfold | dilation_map=(1, 8, 8) | input of shape (B, C, W), but got (2, 4, 8, 8)
dynamic_dilation_unfold | input=(4, 8, 8) | input with a batch dimension, because dilation_map of shape (2, 1, 8, 8) has one, but got shape (4, 8, 8)
dynamic_dilation_unfold | input=(4, 8, 8), dilation_map=(1, 7, 8) | dilation_map of shape (1, 8, 8) or (2, 8, 8), but got (1, 7, 8)
dynamic_dilation_fold | columns=(36, 64), dilation_map=(1, 7, 8) | dilation_map of shape (1, 8, 8) or (2, 8, 8), but got (1, 7, 8)

# devices that differ
dynamic_dilation_unfold on cpu, unfold on cpu | dilation_map=on_meta(2, 1, 8, 8) | dilation_map on the device of input, cpu, but got one on meta
dynamic_dilation_unfold on meta, unfold on meta, unfold_backward on meta | dilation_map=on_cpu(2, 1, 8, 8) | dilation_map on the device of input, meta, but got one on cpu
dynamic_dilation_fold on cpu | dilation_map=on_meta(2, 1, 8, 8) | dilation_map on the device of columns, cpu, but got one on meta
fold on meta | dilation_map=on_cpu(2, 1, 8, 8) | dilation_map on the device of columns, meta, but got one on cpu
unfold_backward on meta | grad_output=on_cpu(2, 36, 64) | grad_output on the device of input, meta, but got one on cpu
unfold_backward on cpu | grad_output=on_meta(2, 36, 64) | grad_output on the device of input, cpu, but got one on meta
dot on cpu | columns=on_meta(2, 36, 64) | columns on the device of input, cpu, but got one on meta

# options out of range
* | kernel_size=-1 | kernel_size to be at least 1, but got (-1, -1) // kernel_size to be at least 1, but got (-1,)
* | kernel_size=[1, -2] | kernel_size to be at least 1, but got (1, -2)
* | kernel_size=[-(2**63)] | kernel_size to be at least 1, but got (-9223372036854775808,)
* | kernel_size=0 | kernel_size to be at least 1, but got (0, 0) // kernel_size to be at least 1, but got (0,)
* | kernel_size=[0, 1] | kernel_size to be at least 1, but got (0, 1)
* | stride=-1 | stride to be at least 1, but got (-1, -1) // stride to be at least 1, but got (-1,)
* | stride=[1, -2] | stride to be at least 1, but got (1, -2)
* | stride=[-(2**63)] | stride to be at least 1, but got (-9223372036854775808,)
* | stride=0 | stride to be at least 1, but got (0, 0) // stride to be at least 1, but got (0,)
* | stride=[0, 1] | stride to be at least 1, but got (0, 1)
* | padding=-1 | padding to be at least 0, but got (-1, -1) // padding to be at least 0, but got (-1,)
* | padding=[1, -2] | padding to be at least 0, but got (1, -2)
* | padding=[-(2**63)] | padding to be at least 0, but got (-9223372036854775808,)
* | dilation=-1 | dilation to be at least 1, but got (-1, -1) // dilation to be at least 1, but got (-1,)
* | dilation=[1, -2] | dilation to be at least 1, but got (1, -2)
* | dilation=[-(2**63)] | dilation to be at least 1, but got (-9223372036854775808,)
* | dilation=0 | dilation to be at least 1, but got (0, 0) // dilation to be at least 1, but got (0,)
* | dilation=[0, 1] | dilation to be at least 1, but got (0, 1)
* | groups=0 | groups to be at least 1, but got 0
* | groups=-1 | groups to be at least 1, but got -1
* | groups=-(2**63) | groups to be at least 1, but got -9223372036854775808
* | groups=3 | groups to divide the 4 channels of columns, but got 3 // groups to divide the 4 channels of input, but got 3
* | groups=8 | groups to divide the 4 channels of columns, but got 8 // groups to divide the 4 channels of input, but got 8

# output_size out of range
* | output_size=[-1] | output_size to be at least 0, but got (-1, -1) // output_size to be at least 0, but got (-1,)
* | output_size=[8, -8] | output_size to be at least 0, but got (8, -8)
* | output_size=[7, 8] | dilation_map of shape (2, 1, 7, 8) or (2, 2, 7, 8), but got (2, 1, 8, 8)
* | output_size=[8, 100] | dilation_map of shape (2, 1, 8, 100) or (2, 2, 8, 100), but got (2, 1, 8, 8)

# lists of another length
* | kernel_size=[] | kernel_size to be one or two ints, but got ()
* | kernel_size=[3, 3, 3] | kernel_size to be one or two ints, but got (3, 3, 3)
* | kernel_size=[1, 1, 1, 1, 1] | kernel_size to be one or two ints, but got (1, 1, 1, 1, 1)
* | stride=[] | stride to be one or two ints, but got ()
* | stride=[3, 3, 3] | stride to be one or two ints, but got (3, 3, 3)
* | stride=[1, 1, 1, 1, 1] | stride to be one or two ints, but got (1, 1, 1, 1, 1)
* | padding=[] | padding to be one or two ints, but got ()
* | padding=[3, 3, 3] | padding to be one or two ints, but got (3, 3, 3)
* | padding=[1, 1, 1, 1, 1] | padding to be one or two ints, but got (1, 1, 1, 1, 1)
* | dilation=[] | dilation to be one or two ints, but got ()
* | dilation=[3, 3, 3] | dilation to be one or two ints, but got (3, 3, 3)
* | dilation=[1, 1, 1, 1, 1] | dilation to be one or two ints, but got (1, 1, 1, 1, 1)
* | output_size=[] | output_size to be one or two ints, but got ()
* | output_size=[3, 3, 3] | output_size to be one or two ints, but got (3, 3, 3)
* | output_size=[1, 1, 1, 1, 1] | output_size to be one or two ints, but got (1, 1, 1, 1, 1)

# order
* | order=[-1] | order to be at least 0, but got (-1,)
* | order=[1, 1] | order to have as many entries as a window has rates, 1, but got (1, 1)
* | order=[0, 0, 0] | order to have as many entries as a window has rates, 1, but got (0, 0, 0)
* | order=[1], dilation_map=(2, 2, 8, 8) | order to have as many entries as a window has rates, 2, but got (1,)
* | order=[0, -1], dilation_map=(2, 2, 8, 8) | order to be at least 0, but got (0, -1)
* | order=[0, 0, 0], dilation_map=(2, 2, 8, 8) | order to have as many entries as a window has rates, 2, but got (0, 0, 0)

# words
* | padding_mode='replicate' | padding_mode to be 'zeros', 'border' or 'reflection', but got 'replicate'
* | padding_mode='Zeros' | padding_mode to be 'zeros', 'border' or 'reflection', but got 'Zeros'
* | padding_mode='' | padding_mode to be 'zeros', 'border' or 'reflection', but got ''
* | source='offset' | source to be 'rates', 'offsets' or 'affine', but got 'offset'
* | source='Affine' | source to be 'rates', 'offsets' or 'affine', but got 'Affine'
* | source='' | source to be 'rates', 'offsets' or 'affine', but got ''
deform_unfold2d | padding_mode='circular' | padding_mode to be 'zeros', 'border' or 'reflection', but got 'circular'

# shapes on one axis and three
dynamic_dilation_unfold1d | input=(2, 4, 8, 8) | input of shape (B, C, W) or (C, W), but got (2, 4, 8, 8)
dynamic_dilation_unfold1d | dilation_map=(2, 2, 8) | dilation_map of shape (2, 1, 8), but got (2, 2, 8)
dynamic_dilation_unfold1d | kernel_size=[3, 3] | kernel_size to be one int, but got (3, 3)
dynamic_dilation_unfold1d | kernel_size=11 | an output of at least 1, but got 0 from an image of 8, kernel_size=(11,), stride=(1,), padding=(1,), dilation=(1,)
dynamic_dilation_fold1d | columns=(2, 11, 8) | columns to have a multiple of kW = 3 rows, but got shape (2, 11, 8)
dynamic_dilation_fold1d | output_size=[8, 8] | output_size to be one int, but got (8, 8)
dynamic_dilation_unfold3d | input=(3, 4, 5) | input of shape (B, C, D, H, W) or (C, D, H, W), but got (3, 4, 5)
dynamic_dilation_unfold3d | dilation_map=(2, 2, 3, 4, 5) | dilation_map of shape (2, 1, 3, 4, 5) or (2, 3, 3, 4, 5), but got (2, 2, 3, 4, 5)
dynamic_dilation_unfold3d | dilation_map=(2, 1, 4, 5) | dilation_map of shape (2, 1, 3, 4, 5) or (2, 3, 3, 4, 5), but got (2, 1, 4, 5)
dynamic_dilation_unfold3d | stride=[1, 1] | stride to be one or three ints, but got (1, 1)
dynamic_dilation_unfold3d | kernel_size=[3, 3, 8] | an output of at least 1 x 1 x 1, but got 3 x 4 x 0 from an image of 3 x 4 x 5, kernel_size=(3, 3, 8), stride=(1, 1, 1), padding=(1, 1, 1), dilation=(1, 1, 1)
dynamic_dilation_fold3d | columns=(2, 107, 60) | columns to have a multiple of kD * kH * kW = 27 rows, but got shape (2, 107, 60)
dynamic_dilation_fold3d | columns=(60,) | columns of shape (B, C * kD * kH * kW, L) or (C * kD * kH * kW, L), but got (60,)
dynamic_dilation_fold3d | output_size=[3, 4] | output_size to be one or three ints, but got (3, 4)
unfold | input=(2, 4, 8), dilation_map=(2, 1, 7) | dilation_map of shape (2, 1, 8), but got (2, 1, 7)
unfold | input=(2, 4, 3, 4, 5), dilation_map=(2, 2, 3, 4, 5) | dilation_map of shape (2, 1, 3, 4, 5) or (2, 3, 3, 4, 5), but got (2, 2, 3, 4, 5)
unfold | input=(2, 4, 2, 3, 4, 5), dilation_map=(2, 1, 2, 3, 4, 5) | input of shape (B, C, W), (B, C, H, W) or (B, C, D, H, W), but got (2, 4, 2, 3, 4, 5)

# shapes of offsets
deform_unfold1d | offset=(2, 6, 8) | offset of shape (2, 3, 8), but got (2, 6, 8)
deform_unfold2d | offset=(2, 9, 8, 8) | offset of shape (2, 18, 8, 8), but got (2, 9, 8, 8)
deform_unfold2d | offset=(2, 18, 8, 7) | offset of shape (2, 18, 8, 8), but got (2, 18, 8, 7)
deform_unfold2d | groups=2 | offset of shape (2, 36, 8, 8), but got (2, 18, 8, 8)
deform_unfold2d | input=(4, 8, 8) | input with a batch dimension, because offset of shape (2, 18, 8, 8) has one, but got shape (4, 8, 8)
deform_unfold2d | offset=float64(2, 18, 8, 8) | offset of type float32, because input is float32, but got float64
deform_unfold3d | offset=(2, 27, 3, 4, 5) | offset of shape (2, 81, 3, 4, 5), but got (2, 27, 3, 4, 5)
sample | positions=(2, 2, 8, 8), source='offsets' | positions of shape (2, 18, 8, 8), but got (2, 2, 8, 8)
sample | positions=(2, 18, 8, 8), source='offsets', order=[1] | order to have as many entries as a tap has offsets, 2, but got (1,)
sample_backward | positions=(2, 18, 7, 8), source='offsets' | positions of shape (2, 18, 8, 8), but got (2, 18, 7, 8)
splat | positions=(1, 18, 8, 8), source='offsets' | positions of shape (2, 18, 8, 8), but got (1, 18, 8, 8)
dot | positions=(2, 18, 1, 1), source='offsets' | positions of shape (2, 18, 8, 8), but got (2, 18, 1, 1)

# shapes of affine maps
affine_unfold1d | theta=(2, 6, 8) | theta of shape (2, 2, 8), but got (2, 6, 8)
affine_unfold2d | theta=(2, 4, 8, 8) | theta of shape (2, 6, 8, 8), but got (2, 4, 8, 8)
affine_unfold2d | theta=(2, 6, 8, 7) | theta of shape (2, 6, 8, 8), but got (2, 6, 8, 7)
affine_unfold2d | groups=2 | theta of shape (2, 12, 8, 8), but got (2, 6, 8, 8)
affine_unfold2d | input=(4, 8, 8) | input with a batch dimension, because theta of shape (2, 6, 8, 8) has one, but got shape (4, 8, 8)
affine_unfold2d | theta=float64(2, 6, 8, 8) | theta of type float32, because input is float32, but got float64
affine_unfold3d | theta=(2, 6, 3, 4, 5) | theta of shape (2, 12, 3, 4, 5), but got (2, 6, 3, 4, 5)
sample | positions=(2, 2, 8, 8), source='affine' | positions of shape (2, 6, 8, 8), but got (2, 2, 8, 8)
sample | positions=(2, 6, 8, 8), source='affine', order=[1] | order to have as many entries as a window has entries of theta, 6, but got (1,)
dot | positions=(2, 6, 1, 1), source='affine' | positions of shape (2, 6, 8, 8), but got (2, 6, 1, 1)

# what models broadcast and the operators below do not
unfold, fold | dilation_map=(1, 1, 8, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
unfold, fold | dilation_map=(2, 1, 1, 1) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 1)
sample, splat, dot | positions=(1, 1, 8, 8) | positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
sample, splat, dot | positions=(2, 1, 1, 1) | positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 1)
dynamic_dilation_unfold | dilation_map=(2, 1, 1, 8) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 8)
dynamic_dilation_unfold | dilation_map=(2, 1, 8, 1) | dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 8, 1)
dynamic_dilation_unfold | groups=2 | dilation_map of shape (2, 2, 8, 8) or (2, 4, 8, 8), but got (2, 1, 8, 8)
deform_unfold2d | offset=(2, 18, 8, 1) | offset of shape (2, 18, 8, 8), but got (2, 18, 8, 1)
deform_unfold2d | offset=(2, 1, 1, 1) | offset of shape (2, 18, 8, 8), but got (2, 1, 1, 1)

# an output below one by one
* | kernel_size=11 | an output of at least 1 x 1, but got 0 x 0 from an image of 8 x 8, kernel_size=(11, 11), stride=(1, 1), padding=(1, 1), dilation=(1, 1) // columns to have a multiple of kH * kW = 121 rows, but got shape (2, 36, 64)
* | kernel_size=[3, 11] | an output of at least 1 x 1, but got 8 x 0 from an image of 8 x 8, kernel_size=(3, 11), stride=(1, 1), padding=(1, 1), dilation=(1, 1) // columns to have a multiple of kH * kW = 33 rows, but got shape (2, 36, 64)
* | dilation=[5, 1] | an output of at least 1 x 1, but got 0 x 8 from an image of 8 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(5, 1)
* | dilation=2**31 | an output of at least 1 x 1, but got 0 x 0 from an image of 8 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(2147483648, 2147483648)
dynamic_dilation_unfold | input=(2, 4, 0, 8), padding=0 | an output of at least 1 x 1, but got 0 x 6 from an image of 0 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1)
dynamic_dilation_unfold | kernel_size=2**62 | an output of at least 1 x 1, but got 0 x 0 from an image of 8 x 8, kernel_size=(4611686018427387904, 4611686018427387904), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
dynamic_dilation_fold | output_size=[0, 8], padding=0 | an output of at least 1 x 1, but got 0 x 6 from an image of 0 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1)

# products beyond 2^63
dynamic_dilation_unfold, unfold | kernel_size=2**31, padding=2**30 | the rows of columns below 2^63, but got 4 * 4611686018427387904
unfold | input=(0, 4, 8, 8), dilation_map=(0, 1, 9, 9), kernel_size=2**31, padding=2**30 | the rows of columns below 2^63, but got 4 * 4611686018427387904
unfold, fold | kernel_size=2**32, padding=2**31 | the number of taps below 2^63, but got 4294967296 * 4294967296
unfold | dilation=2**62 | dilation * (kernel_size - 1) below 2^63, but got 4611686018427387904 * 2
unfold | dilation=2**63 - 1 | dilation * (kernel_size - 1) below 2^63, but got 9223372036854775807 * 2
unfold | padding=2**62 | 2 * padding below 2^63, but got 2 * 4611686018427387904
unfold | padding=2**63 - 1 | 2 * padding below 2^63, but got 2 * 9223372036854775807
unfold | input=expanded(1048576, 1048576, 1, 1), kernel_size=4096, padding=2048, dilation_map=expanded(1048576, 1, 2, 2) | the size of columns below 2^63, but got 70368744177664 * 1048576
unfold | input=expanded(1073741824, 1073741824, 1, 1), kernel_size=3, dilation_map=expanded(1073741824, 1, 1, 1) | the size of the image below 2^63, but got 17179869184 * 1073741824
fold | output_size=[2**62, 2**62] | the number of pixels below 2^63, but got 4611686018427387904 * 4611686018427387904
fold | output_size=[2**63 - 1] | a padded size below 2^63, but got 9223372036854775807 + 2
unfold | input=(2, 0, 8, 8), groups=2**63 - 1 | the channels of the rates below 2^63, but got 9223372036854775807 * 2
unfold | input=(2, 0, 8, 8), groups=2**62 | the channels of the rates below 2^63, but got 4611686018427387904 * 2
"""
SECTIONS = dict(re.findall(r"^# (.*)\n((?:.+\n)+)", TABLE, re.MULTILINE))


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("section", SECTIONS)
def test_the_words_of(section: str) -> None:
    for row in SECTIONS[section].splitlines():
        names, arguments, text = row.split(" | ")
        changes = eval(f"dict({arguments})", {"__builtins__": {"dict": dict}, **WORDS})
        changes = {key: tensor(*value) if isinstance(value, tuple) else value for key, value in changes.items()}
        for name in names.split(", "):
            name, _, device = name.partition(" on ")
            if name == "*":
                assert everywhere(**changes) == "\n".join(f"expected {words}" for words in text.split(" // ")), row
            else:
                actual = refusal(name, device, **changes) if device else message(name, **changes)
                assert actual == f"{name}(): expected {text}", row


def test_what_models_broadcast() -> None:
    """And the operators below do not: see the table."""
    for device in DEVICES:
        call("dynamic_dilation_unfold", device, dilation_map=tensor(1, 1, 8, 8))
        call("dynamic_dilation_fold", device, dilation_map=tensor(2, 1, 1, 1))
        call("dynamic_dilation_unfold3d", device, dilation_map=tensor(1, 3, 1, 1, 1))
        call("deform_unfold2d", device, offset=tensor(1, 18, 1, 1))
        call("affine_unfold2d", device, theta=tensor(1, 6, 1, 1))


def test_an_input_of_too_many_axes_or_none() -> None:
    """Where no argument tells how many there are to be, the message names all that there can be."""
    deep, positions = tensor(1, 2, 8, 8, 8, 8), tensor(1, 1, 8, 8, 8, 8)
    for name in ("unfold", "unfold_backward", "sample", "dot"):
        given = "dilation_map" if "dilation_map" in CALLS[name] else "positions"
        for input, got in ((deep, "(1, 2, 8, 8, 8, 8)"), (tensor(2, 4), "(2, 4)")):
            shapes = "(B, C, W), (B, C, H, W) or (B, C, D, H, W)"
            expected = f"{name}(): expected input of shape {shapes}, but got {got}"
            assert message(name, input=input, **{given: positions}) == expected
    # A map of two axes tells.
    assert "input of shape (B, C, H, W), but got" in message("unfold", input=deep)


@pytest.mark.parametrize("mode", ["border", "reflection"])
def test_an_image_without_pixels_has_no_border(mode: str) -> None:
    text = f"expected padding_mode 'zeros' for an image without pixels, {{}}, but got '{mode}'"
    empty = {"padding_mode": mode, "kernel_size": 1, "padding": 1}
    for name in ("unfold", "dynamic_dilation_unfold", "sample"):
        positions = "positions" if name == "sample" else "dilation_map"
        changes = {"input": tensor(2, 4, 0, 8), positions: tensor(2, 1, 2, 10)}
        assert message(name, **changes, **empty) == f"{name}(): {text.format('0 x 8')}"
    for name in ("fold", "dynamic_dilation_fold", "splat"):
        positions = "positions" if name == "splat" else "dilation_map"
        changes = {"columns": tensor(2, 4, 20), "output_size": [8, 0], positions: tensor(2, 1, 10, 2)}
        assert message(name, **changes, **empty) == f"{name}(): {text.format('8 x 0')}"
    assert message("deform_unfold1d", input=tensor(2, 4, 0), offset=tensor(2, 1, 2), **empty).endswith(text.format("0"))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("argument", ["input", "columns", "dilation_map", "positions"])
def test_nested_tensors_are_refused_by_name(argument: str) -> None:
    """As the map of an operator other than the public two, they met words of the dispatcher's."""
    nested = torch.nested.nested_tensor([torch.ones(2, 3, 4), torch.ones(1, 3, 4)])
    for name in (name for name, arguments in CALLS.items() if argument in arguments):
        text = refusal(name, "cpu", **{argument: nested})
        assert text == f"{name}(): expected {argument} to be a dense tensor, but got a nested one"


# ---- Whatever else ----

ABSURD_INTS = [-(2**63), -(2**31), -1, 0, 1, 2**31 - 1, 2**31, 2**32 + 1, 2**62, INT64_MAX]
ABSURD = [
    *ABSURD_INTS,
    [],
    [1, 2, 3],
    [1] * 100,
    *([value, 1] for value in ABSURD_INTS),
    *([1, value] for value in ABSURD_INTS),
    [2**31, 2**31],
    [2**62, INT64_MAX],
]


def outcome(name: str, device: str, **changes: Any) -> Any:
    """What a call comes to: the shapes of its results, or its words of refusal."""
    try:
        result = call(name, device, **changes)
    except RuntimeError as error:
        text = str(error)
        assert MESSAGE.fullmatch(text), text
        assert text.startswith(f"{name}(): ")
        return text
    return [r.shape for r in ([result] if isinstance(result, Tensor) else result)]


@operators
@pytest.mark.parametrize("argument", [*PAIRS, "groups", "output_size", "order"])
def test_no_number_is_too_absurd(name: str, argument: str) -> None:
    if argument not in CALLS[name]:
        assert argument in ("output_size", "order")
        return
    for value in ABSURD:
        if argument == "groups" and not isinstance(value, int):
            continue
        if argument in ("output_size", "order") and isinstance(value, int):
            value = [value]
        cpu, meta = (outcome(name, device, **{argument: value}) for device in DEVICES)
        assert cpu == meta


@operators
def test_no_pair_of_numbers_is_too_absurd(name: str) -> None:
    """Two arguments at a time: overflows that one alone does not reach."""
    values = [2**30, 2**31, 2**61, 2**62, INT64_MAX]
    for (first, second), a, b in itertools.product(itertools.combinations(PAIRS, 2), values, values):
        cpu, meta = (outcome(name, device, **{first: a, second: b}) for device in DEVICES)
        assert cpu == meta
        assert isinstance(cpu, str) or ((first, second) == ("padding", "dilation") and a == b)  # which fits the map


@operators
@pytest.mark.parametrize("argument", ["input", "columns", "grad_output", "dilation_map", "positions"])
def test_no_shape_is_too_absurd(name: str, argument: str) -> None:
    if argument not in CALLS[name]:
        return
    good = CALLS[name][argument]("cpu").shape
    shapes = [good[:n] for n in range(len(good))] + [(*good, 1), (0,) * len(good), (1,) * len(good)]
    for index, size in itertools.product(range(len(good)), (0, 1, 2**31, 2**61)):
        if (argument, index, size) != ("input", 1, 2**31):  # so many channels are fine, but for their 10 TB of columns
            shapes.append((*good[:index], size, *good[index + 1 :]))
    for shape in shapes:
        if math.prod(shape) >= 2**63:
            continue
        cpu, meta = (outcome(name, device, **{argument: expanded(*shape)}) for device in DEVICES)
        assert cpu == meta


def test_numbers_beyond_int64_never_reach_the_operator() -> None:
    for name, argument in itertools.product(PUBLIC, [*PAIRS, "groups"]):
        with pytest.raises((RuntimeError, TypeError, OverflowError)):
            call(name, "cpu", **{argument: 2**63})


def test_arguments_of_the_wrong_kind() -> None:
    for name in OPERATORS:
        for argument in CALLS[name]:
            with pytest.raises((RuntimeError, TypeError)):
                call(name, "cpu", **{argument: "three"})
            if argument != "aligned":  # torch reads None as False there
                with pytest.raises((RuntimeError, TypeError)):
                    call(name, "cpu", **{argument: None})


def test_options_that_are_huge_and_fit() -> None:
    """Strides, paddings and dilations far beyond the image that still describe a window of it."""
    image = torch.randn(1, 1, 4, 5, dtype=torch.float64)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for stride in (2**31, 2**62, INT64_MAX):
        columns = torch.ops.ddu.unfold(image, 1, one, stride)
        assert torch.equal(columns, image[..., :1, :1].flatten(2))
        assert torch.equal(torch.ops.ddu.fold(columns, [4, 5], 1, one, stride).sum(), columns.sum())
    for dilation in (2**31, 2**62, INT64_MAX):  # which one tap has no use for
        maps = torch.ones(1, 1, 4, 5, dtype=torch.float64)
        assert torch.equal(torch.ops.ddu.unfold(image, 1, maps, dilation=dilation), image.flatten(2))
    for power in (20, 31, 40, 61):
        # Two taps 2^power apart around the pixel; rate 0 brings both back to it, a tiny rate to its neighbours.
        window = {"kernel_size": [1, 2], "padding": [0, 2 ** (power - 1)], "dilation": [1, 2**power]}
        for rate in (0.0, 2.0 ** (1 - power), 1.0):
            maps = torch.full((1, 1, 4, 5), rate, dtype=torch.float64)
            columns = torch.ops.ddu.unfold(image, dilation_map=maps, **window).view(2, 4, 5)
            padded = torch.nn.functional.pad(image[0, 0], (1, 1))
            left, right = {0.0: (image[0, 0],) * 2, 1.0: (image[0, 0] * 0,) * 2}.get(
                rate, (padded[:, :-2], padded[:, 2:])
            )
            assert torch.equal(columns, torch.stack([left, right]))


# ---- The public functions speak the same way ----


def test_the_python_functions() -> None:
    input, columns, dilation_map = INPUT("cpu"), COLUMNS("cpu"), tensor(2, 1, 7, 8)("cpu")
    fold = ddu_ops.dynamic_dilation_fold
    assert_expected_inline(
        refusals(ddu_ops.dynamic_dilation_unfold, (input, 3, dilation_map), (input, (3, 3, 3), dilation_map), padding=1)
        + refusals(fold, *((columns, size, 3, dilation_map) for size in (8, (8, 8, 8), ())), padding=1)
        + refusals(ddu_ops.DynamicDilationUnfold(3, padding=1), (input, dilation_map))
        + refusals(ddu_ops.DynamicDilationFold((8, 8), 3, padding=1), (columns, dilation_map)),
        """\
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
dynamic_dilation_unfold(): expected kernel_size to be one or two ints, but got (3, 3, 3)
dynamic_dilation_fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
dynamic_dilation_fold(): expected output_size to be one or two ints, but got (8, 8, 8)
dynamic_dilation_fold(): expected output_size to be one or two ints, but got ()
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
dynamic_dilation_fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
""",
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_with_gradients_and_in_inference_mode(name: str) -> None:
    """Checks do not depend on which layers of the dispatcher a call passes."""
    changes = {"dilation_map": tensor(2, 1, 7, 8)}
    expected = message(name, **changes)
    leading = next(iter(CALLS[name]))

    def with_grad(device: str) -> Tensor:
        return CALLS[name][leading](device).requires_grad_()

    assert message(name, **changes, **{leading: with_grad}) == expected
    with torch.inference_mode():
        assert message(name, **changes) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert message(name, **changes) == expected


def test_a_refused_call_leaves_no_trace() -> None:
    """After an error the same thread goes on."""
    for _ in range(3):
        message("unfold", dilation_map=tensor(2, 1, 7, 8))
        call("unfold", "cpu")


# ---- Schemas: part of the public interface ----


def test_schemas() -> None:
    schemas = [str(getattr(torch.ops.ddu, name).default._schema) for name in [*OPERATORS, *NAMED]]
    assert_expected_inline(
        "\n".join(schemas),
        """\
ddu::unfold(Tensor input, int[1] kernel_size, Tensor dilation_map, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::unfold_backward(Tensor grad_output, Tensor input, int[1] kernel_size, Tensor dilation_map, int[1] stride, int[1] padding, int[1] dilation, int groups, bool aligned, str padding_mode) -> (Tensor grad_input, Tensor grad_dilation_map)
ddu::fold(Tensor columns, SymInt[] output_size, int[1] kernel_size, Tensor dilation_map, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::sample(Tensor input, Tensor positions, str source, int[1] kernel_size, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, bool aligned=True, str padding_mode="zeros", int[] order=[]) -> Tensor
ddu::sample_backward(Tensor grad_output, Tensor input, Tensor positions, str source, int[1] kernel_size, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, bool aligned=True, str padding_mode="zeros", int[] order=[]) -> (Tensor grad_input, Tensor grad_positions)
ddu::splat(Tensor columns, SymInt[] output_size, Tensor positions, str source, int[1] kernel_size, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, bool aligned=True, str padding_mode="zeros", int[] order=[]) -> Tensor
ddu::dot(Tensor columns, Tensor input, Tensor positions, str source, int[1] kernel_size, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, bool aligned=True, str padding_mode="zeros", int[] order=[]) -> Tensor
ddu::dynamic_dilation_unfold(Tensor input, int[2] kernel_size, Tensor dilation_map, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::dynamic_dilation_fold(Tensor columns, SymInt[2] output_size, int[2] kernel_size, Tensor dilation_map, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::dynamic_dilation_unfold1d(Tensor input, int[1] kernel_size, Tensor dilation_map, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, *, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::dynamic_dilation_fold1d(Tensor columns, SymInt[1] output_size, int[1] kernel_size, Tensor dilation_map, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, *, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::dynamic_dilation_unfold3d(Tensor input, int[3] kernel_size, Tensor dilation_map, int[3] stride=1, int[3] padding=0, int[3] dilation=1, int groups=1, *, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::dynamic_dilation_fold3d(Tensor columns, SymInt[3] output_size, int[3] kernel_size, Tensor dilation_map, int[3] stride=1, int[3] padding=0, int[3] dilation=1, int groups=1, *, bool aligned=True, str padding_mode="zeros") -> Tensor
ddu::deform_unfold1d(Tensor input, int[1] kernel_size, Tensor offset, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, *, str padding_mode="zeros") -> Tensor
ddu::deform_unfold2d(Tensor input, int[2] kernel_size, Tensor offset, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *, str padding_mode="zeros") -> Tensor
ddu::deform_unfold3d(Tensor input, int[3] kernel_size, Tensor offset, int[3] stride=1, int[3] padding=0, int[3] dilation=1, int groups=1, *, str padding_mode="zeros") -> Tensor
ddu::affine_unfold1d(Tensor input, int[1] kernel_size, Tensor theta, int[1] stride=[1], int[1] padding=[0], int[1] dilation=[1], int groups=1, *, str padding_mode="zeros") -> Tensor
ddu::affine_unfold2d(Tensor input, int[2] kernel_size, Tensor theta, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, *, str padding_mode="zeros") -> Tensor
ddu::affine_unfold3d(Tensor input, int[3] kernel_size, Tensor theta, int[3] stride=1, int[3] padding=0, int[3] dilation=1, int groups=1, *, str padding_mode="zeros") -> Tensor""",
    )
