"""Bad input: every row of the table in the contract, the same words on every device, and nothing that crashes.

The texts stand here as they read. A message is one sentence: the operator as it was called, what it expected, and
what it got.
"""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor

import ddu_ops
from cases import OPERATORS, operators

INT64_MAX = 2**63 - 1
DEVICES = ["cpu", "meta"]
MESSAGE = re.compile(r"(\w+)\(\): expected .+, but got .+")

Make = Callable[[str], Tensor]  # of a device


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Make:
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


def expanded(*shape: int) -> Make:
    """Of any size, in the memory of one number."""
    return lambda device: torch.zeros([1] * len(shape), device=device).expand(shape)


# A call of every operator that works; tests replace some of the arguments.
INPUT, MAP, COLUMNS = tensor(2, 4, 8, 8), tensor(2, 1, 8, 8), tensor(2, 36, 64)
WINDOW = {
    "kernel_size": 3,
    "dilation_map": MAP,
    "stride": 1,
    "padding": 1,
    "dilation": 1,
    "groups": 1,
    "aligned": True,
    "padding_mode": "zeros",
}
SOURCED = {
    "positions": MAP,
    "source": "rates",
    **{key: value for key, value in WINDOW.items() if key != "dilation_map"},
}
CALLS: dict[str, dict[str, Any]] = {
    "unfold": {"input": INPUT, **WINDOW},
    "unfold_backward": {"grad_output": COLUMNS, "input": INPUT, **WINDOW},
    "fold": {"columns": COLUMNS, "output_size": [8], **WINDOW},
    "sample": {"input": INPUT, **SOURCED, "order": []},
    "sample_backward": {"grad_output": COLUMNS, "input": INPUT, **SOURCED, "order": []},
    "splat": {"columns": COLUMNS, "output_size": [8, 8], **SOURCED, "order": []},
    "dot": {"columns": COLUMNS, "input": INPUT, **SOURCED, "order": []},
    "dynamic_dilation_unfold": {"input": INPUT, **WINDOW},
    "dynamic_dilation_fold": {"columns": COLUMNS, "output_size": [8], **WINDOW},
}
PUBLIC = ["dynamic_dilation_unfold", "dynamic_dilation_fold"]

# The same of the operators that have names of their own on other axes and by offsets.
LINE, VOLUME = {**WINDOW, "dilation_map": tensor(2, 1, 8)}, {**WINDOW, "dilation_map": tensor(2, 1, 3, 4, 5)}
NAMED: dict[str, dict[str, Any]] = {
    "dynamic_dilation_unfold1d": {"input": tensor(2, 4, 8), **LINE},
    "dynamic_dilation_fold1d": {"columns": tensor(2, 12, 8), "output_size": [8], **LINE},
    "dynamic_dilation_unfold3d": {"input": tensor(2, 4, 3, 4, 5), **VOLUME},
    "dynamic_dilation_fold3d": {"columns": tensor(2, 108, 60), "output_size": [3, 4, 5], **VOLUME},
    "deform_unfold1d": {"input": tensor(2, 4, 8), "offset": tensor(2, 3, 8)},
    "deform_unfold2d": {"input": INPUT, "offset": tensor(2, 18, 8, 8)},
    "deform_unfold3d": {"input": tensor(2, 4, 3, 4, 5), "offset": tensor(2, 81, 3, 4, 5)},
    "affine_unfold1d": {"input": tensor(2, 4, 8), "theta": tensor(2, 2, 8)},
    "affine_unfold2d": {"input": INPUT, "theta": tensor(2, 6, 8, 8)},
    "affine_unfold3d": {"input": tensor(2, 4, 3, 4, 5), "theta": tensor(2, 12, 3, 4, 5)},
}
for _arguments in NAMED.values():
    if "offset" in _arguments or "theta" in _arguments:
        _arguments |= {key: value for key, value in WINDOW.items() if key not in ("dilation_map", "aligned")}


def call(name: str, device: str, **changes: Any) -> Any:
    given = CALLS.get(name) or NAMED[name]
    assert set(changes) <= set(given), "a test of an argument that the operator does not have"
    arguments = {**given, **changes}
    made = {key: value(device) if callable(value) else value for key, value in arguments.items()}
    return getattr(torch.ops.ddu, name)(**made)


def refusal(name: str, device: str, **changes: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        call(name, device, **changes)
    text = str(caught.value)
    match = MESSAGE.fullmatch(text)
    assert match, f"not a message of ours: {text}"
    assert match[1] == name, f"{name} speaks as {match[1]}: {text}"
    return text


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


def lines(*texts: str) -> str:
    return "\n".join(texts) + "\n"


def test_the_calls_work() -> None:
    for name, device in itertools.product([*OPERATORS, *NAMED], DEVICES):
        call(name, device)
    assert set(CALLS) == set(OPERATORS)


# ---- input, columns, grad_output ----


def test_rank_of_the_input() -> None:
    for name in ("unfold", "sample"):
        assert message(name, input=tensor(4, 8, 8)).startswith(f"{name}(): expected input of shape (B, C, H, W), ")
    assert_expected_inline(
        lines(
            message("dynamic_dilation_unfold", input=tensor(8, 8)),
            message("dynamic_dilation_unfold", input=tensor(1, 2, 4, 8, 8)),
            message("dynamic_dilation_unfold", input=tensor()),
            message("unfold", input=tensor(4, 8, 8)),
            message("unfold_backward", input=tensor(4, 8, 8)),
            message("dot", input=tensor(4, 8, 8)),
        ),
        """\
dynamic_dilation_unfold(): expected input of shape (B, C, H, W) or (C, H, W), but got (8, 8)
dynamic_dilation_unfold(): expected input of shape (B, C, H, W) or (C, H, W), but got (1, 2, 4, 8, 8)
dynamic_dilation_unfold(): expected input of shape (B, C, H, W) or (C, H, W), but got ()
unfold(): expected input of shape (B, C, H, W), but got (4, 8, 8)
unfold_backward(): expected input of shape (B, C, H, W), but got (4, 8, 8)
dot(): expected input of shape (B, C, H, W), but got (4, 8, 8)
""",
    )


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


def test_shape_of_columns() -> None:
    assert_expected_inline(
        lines(
            message("dynamic_dilation_fold", columns=tensor(64)),
            message("dynamic_dilation_fold", columns=tensor(2, 4, 9, 64)),
            message("dynamic_dilation_fold", columns=tensor(2, 35, 64)),
            message("dynamic_dilation_fold", columns=tensor(2, 36, 63)),
            message("dynamic_dilation_fold", columns=tensor(36, 63), dilation_map=tensor(1, 8, 8)),
            message("fold", columns=tensor(36, 64)),
            message("fold", columns=tensor(2, 35, 64)),
            message("fold", columns=tensor(2, 36, 65)),
            message("splat", columns=tensor(2, 36, 65)),
            message("dot", columns=tensor(2, 36, 65)),
            message("dot", columns=tensor(2, 35, 64)),
            message("dot", columns=tensor(1, 36, 64)),
            message("dot", columns=tensor(36, 64)),
        ),
        """\
dynamic_dilation_fold(): expected columns of shape (B, C * kH * kW, L) or (C * kH * kW, L), but got (64,)
dynamic_dilation_fold(): expected columns of shape (B, C * kH * kW, L) or (C * kH * kW, L), but got (2, 4, 9, 64)
dynamic_dilation_fold(): expected columns to have a multiple of kH * kW = 9 rows, but got shape (2, 35, 64)
dynamic_dilation_fold(): expected columns of shape (2, 36, 64), but got (2, 36, 63)
dynamic_dilation_fold(): expected columns of shape (36, 64), but got (36, 63)
fold(): expected columns of shape (B, C * kH * kW, L), but got (36, 64)
fold(): expected columns to have a multiple of kH * kW = 9 rows, but got shape (2, 35, 64)
fold(): expected columns of shape (2, 36, 64), but got (2, 36, 65)
splat(): expected columns of shape (2, 36, 64), but got (2, 36, 65)
dot(): expected columns of shape (2, 36, 64), but got (2, 36, 65)
dot(): expected columns of shape (2, 36, 64), but got (2, 35, 64)
dot(): expected columns of shape (2, 36, 64), but got (1, 36, 64)
dot(): expected columns of shape (2, 36, 64), but got (36, 64)
""",
    )


def test_shape_of_grad_output() -> None:
    assert_expected_inline(
        lines(
            message("unfold_backward", grad_output=tensor(36, 64)),
            message("unfold_backward", grad_output=tensor(1, 36, 64)),
            message("unfold_backward", grad_output=tensor(2, 35, 64)),
            message("unfold_backward", grad_output=tensor(2, 36, 63)),
            message("unfold_backward", grad_output=tensor(2, 36, 8, 8)),
            message("unfold_backward", grad_output=tensor()),
        ),
        """\
unfold_backward(): expected grad_output of shape (2, 36, 64), but got (36, 64)
unfold_backward(): expected grad_output of shape (2, 36, 64), but got (1, 36, 64)
unfold_backward(): expected grad_output of shape (2, 36, 64), but got (2, 35, 64)
unfold_backward(): expected grad_output of shape (2, 36, 64), but got (2, 36, 63)
unfold_backward(): expected grad_output of shape (2, 36, 64), but got (2, 36, 8, 8)
unfold_backward(): expected grad_output of shape (2, 36, 64), but got ()
""",
    )


DTYPES = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]


def test_type_of_the_leading_tensor() -> None:
    texts = []
    for dtype in DTYPES:
        bad = {"dtype": dtype}
        texts += [
            everywhere(input=tensor(2, 4, 8, 8, **bad)),
            everywhere(columns=tensor(2, 36, 64, **bad)),
            message("unfold_backward", grad_output=tensor(2, 36, 64, **bad)),
        ]
    assert_expected_inline(
        lines(*texts),
        """\
expected input of type float64, float32, float16 or bfloat16, but got int64
expected columns of type float64, float32, float16 or bfloat16, but got int64
unfold_backward(): expected grad_output of type float64, float32, float16 or bfloat16, but got int64
expected input of type float64, float32, float16 or bfloat16, but got int32
expected columns of type float64, float32, float16 or bfloat16, but got int32
unfold_backward(): expected grad_output of type float64, float32, float16 or bfloat16, but got int32
expected input of type float64, float32, float16 or bfloat16, but got uint8
expected columns of type float64, float32, float16 or bfloat16, but got uint8
unfold_backward(): expected grad_output of type float64, float32, float16 or bfloat16, but got uint8
expected input of type float64, float32, float16 or bfloat16, but got bool
expected columns of type float64, float32, float16 or bfloat16, but got bool
unfold_backward(): expected grad_output of type float64, float32, float16 or bfloat16, but got bool
expected input of type float64, float32, float16 or bfloat16, but got complex64
expected columns of type float64, float32, float16 or bfloat16, but got complex64
unfold_backward(): expected grad_output of type float64, float32, float16 or bfloat16, but got complex64
expected input of type float64, float32, float16 or bfloat16, but got Float8_e4m3fn
expected columns of type float64, float32, float16 or bfloat16, but got Float8_e4m3fn
unfold_backward(): expected grad_output of type float64, float32, float16 or bfloat16, but got Float8_e4m3fn
""",
    )


def test_types_that_do_not_agree() -> None:
    half, double = tensor(2, 4, 8, 8, dtype=torch.float16), tensor(2, 1, 8, 8, dtype=torch.float64)
    assert_expected_inline(
        lines(
            everywhere(dilation_map=tensor(2, 1, 8, 8, dtype=torch.int64)),
            message("unfold", dilation_map=double),
            message("unfold", dilation_map=tensor(2, 1, 8, 8, dtype=torch.float16)),
            message("unfold", input=half, dilation_map=double),
            message("unfold", input=half, dilation_map=tensor(2, 1, 8, 8, dtype=torch.bfloat16)),
            message("dynamic_dilation_unfold", dilation_map=double),
            message("dynamic_dilation_fold", dilation_map=double),
            message("fold", columns=tensor(2, 36, 64, dtype=torch.bfloat16), dilation_map=double),
            message("unfold_backward", grad_output=tensor(2, 36, 64, dtype=torch.float16)),
            message("dot", columns=tensor(2, 36, 64, dtype=torch.float64)),
        ),
        """\
expected dilation_map of type float64, float32, float16 or bfloat16, but got int64
unfold(): expected dilation_map of type float32, for input is float32, but got float64
unfold(): expected dilation_map of type float32, for input is float32, but got float16
unfold(): expected dilation_map of type float16 or float32, for input is float16, but got float64
unfold(): expected dilation_map of type float16 or float32, for input is float16, but got bfloat16
dynamic_dilation_unfold(): expected dilation_map of type float32, for input is float32, but got float64
dynamic_dilation_fold(): expected dilation_map of type float32, for columns is float32, but got float64
fold(): expected dilation_map of type bfloat16 or float32, for columns is bfloat16, but got float64
unfold_backward(): expected grad_output of type float32, for input is float32, but got float16
dot(): expected columns of type float32, for input is float32, but got float64
""",
    )


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_layouts_that_are_not_strided() -> None:
    def coo(*shape: int) -> Make:
        return lambda device: torch.sparse_coo_tensor(torch.zeros(len(shape), 0), [], shape, device=device)

    def csr(*shape: int) -> Make:
        return lambda device: torch.zeros(shape, device=device).to_sparse_csr() if device == "cpu" else torch.empty(
            shape, layout=torch.sparse_csr, device=device
        )  # fmt: skip

    assert_expected_inline(
        lines(
            everywhere(input=coo(2, 4, 8, 8)),
            everywhere(dilation_map=coo(2, 1, 8, 8)),
            everywhere(columns=coo(2, 36, 64)),
            everywhere(grad_output=coo(2, 36, 64)),
            everywhere(columns=csr(2, 36, 64)),
        ),
        """\
expected input to be a dense tensor, but got one of layout Sparse
expected dilation_map to be a dense tensor, but got one of layout Sparse
expected columns to be a dense tensor, but got one of layout Sparse
expected grad_output to be a dense tensor, but got one of layout Sparse
expected columns to be a dense tensor, but got one of layout SparseCsr
""",
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantised_tensors() -> None:
    """On the CPU alone: torch has no quantised Meta tensors."""

    def quantised(*shape: int) -> Make:
        return lambda device: torch.quantize_per_tensor(torch.zeros(shape, device=device), 0.1, 0, torch.quint8)

    assert_expected_inline(
        lines(
            refusal("dynamic_dilation_unfold", "cpu", input=quantised(2, 4, 8, 8)),
            refusal("dynamic_dilation_fold", "cpu", columns=quantised(2, 36, 64)),
            refusal("unfold", "cpu", input=quantised(2, 4, 8, 8)),
            refusal("unfold", "cpu", dilation_map=quantised(2, 1, 8, 8)),
            refusal("unfold_backward", "cpu", grad_output=quantised(2, 36, 64)),
            refusal("fold", "cpu", columns=quantised(2, 36, 64)),
        ),
        """\
dynamic_dilation_unfold(): expected input to be a dense tensor, but got a quantised one
dynamic_dilation_fold(): expected columns to be a dense tensor, but got a quantised one
unfold(): expected input to be a dense tensor, but got a quantised one
unfold(): expected dilation_map to be a dense tensor, but got a quantised one
unfold_backward(): expected grad_output to be a dense tensor, but got a quantised one
fold(): expected columns to be a dense tensor, but got a quantised one
""",
    )


# ---- dilation_map ----


def test_shape_of_the_map() -> None:
    texts = [
        everywhere(dilation_map=tensor(*shape))
        for shape in [
            (2, 1, 7, 8),
            (2, 1, 8, 9),
            (2, 3, 8, 8),
            (2, 0, 8, 8),
            (3, 1, 8, 8),
            (0, 1, 8, 8),
        ]
    ]
    texts += [  # the rank says how many axes there are, where nothing says otherwise
        message(name, dilation_map=tensor(*shape))
        for shape in [(2, 1, 8), (2, 1, 1, 8, 8), ()]
        for name in ("dynamic_dilation_unfold", "dynamic_dilation_fold", "unfold", "unfold_backward", "fold")
    ]
    texts += [
        message(name, positions=tensor(*shape))
        for shape in [(2, 1, 8), (2, 1, 1, 8, 8), ()]
        for name in ("sample", "sample_backward", "splat", "dot")
    ]
    texts += [
        everywhere(dilation_map=tensor(2, 1, 8, 8), groups=4),
        everywhere(dilation_map=tensor(2, 8, 8, 8), groups=2),
        message("unfold", dilation_map=tensor(1, 1, 8, 8)),
        message("fold", dilation_map=tensor(1, 1, 8, 8)),
        message("unfold", dilation_map=tensor(1, 8, 8)),
        message("dynamic_dilation_unfold", input=tensor(4, 8, 8)),
        message("dynamic_dilation_unfold", input=tensor(4, 8, 8), dilation_map=tensor(1, 7, 8)),
        message("dynamic_dilation_fold", columns=tensor(36, 64), dilation_map=tensor(1, 7, 8)),
        message("dynamic_dilation_unfold", dilation_map=tensor(2, 1, 7, 8)),
    ]
    assert_expected_inline(
        lines(*texts),
        """\
expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 8, 9)
expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 3, 8, 8)
expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 0, 8, 8)
expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (3, 1, 8, 8)
expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (0, 1, 8, 8)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 8)
dynamic_dilation_fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 8)
unfold(): expected input of shape (B, C, W), but got (2, 4, 8, 8)
unfold_backward(): expected input of shape (B, C, W), but got (2, 4, 8, 8)
fold(): expected columns of shape (2, 36, 8), but got (2, 36, 64)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 8, 8)
dynamic_dilation_fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 8, 8)
unfold(): expected input of shape (B, C, D, H, W), but got (2, 4, 8, 8)
unfold_backward(): expected input of shape (B, C, D, H, W), but got (2, 4, 8, 8)
fold(): expected columns to have a multiple of kD * kH * kW = 27 rows, but got shape (2, 36, 64)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
dynamic_dilation_fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
unfold_backward(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
sample(): expected input of shape (B, C, W), but got (2, 4, 8, 8)
sample_backward(): expected input of shape (B, C, W), but got (2, 4, 8, 8)
splat(): expected output_size to be one int, but got (8, 8)
dot(): expected input of shape (B, C, W), but got (2, 4, 8, 8)
sample(): expected input of shape (B, C, D, H, W), but got (2, 4, 8, 8)
sample_backward(): expected input of shape (B, C, D, H, W), but got (2, 4, 8, 8)
splat(): expected output_size to be one or three ints, but got (8, 8)
dot(): expected input of shape (B, C, D, H, W), but got (2, 4, 8, 8)
sample(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
sample_backward(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
splat(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
dot(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got ()
expected dilation_map of shape (2, 4, 8, 8) or (2, 8, 8, 8), but got (2, 1, 8, 8)
expected dilation_map of shape (2, 2, 8, 8) or (2, 4, 8, 8), but got (2, 8, 8, 8)
unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
unfold(): expected input of shape (B, C, W), but got (2, 4, 8, 8)
dynamic_dilation_unfold(): expected dilation_map of shape (1, 8, 8) or (2, 8, 8), but got (2, 1, 8, 8)
dynamic_dilation_unfold(): expected dilation_map of shape (1, 8, 8) or (2, 8, 8), but got (1, 7, 8)
dynamic_dilation_fold(): expected dilation_map of shape (1, 8, 8) or (2, 8, 8), but got (1, 7, 8)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
""",
    )


def test_devices_that_differ() -> None:
    assert_expected_inline(
        lines(
            refusal("dynamic_dilation_unfold", "cpu", dilation_map=lambda _: MAP("meta")),
            refusal("dynamic_dilation_unfold", "meta", dilation_map=lambda _: MAP("cpu")),
            refusal("dynamic_dilation_fold", "cpu", dilation_map=lambda _: MAP("meta")),
            refusal("unfold", "cpu", dilation_map=lambda _: MAP("meta")),
            refusal("unfold", "meta", dilation_map=lambda _: MAP("cpu")),
            refusal("fold", "meta", dilation_map=lambda _: MAP("cpu")),
            refusal("unfold_backward", "meta", dilation_map=lambda _: MAP("cpu")),
            refusal("unfold_backward", "meta", grad_output=lambda _: COLUMNS("cpu")),
            refusal("unfold_backward", "cpu", grad_output=lambda _: COLUMNS("meta")),
            refusal("dot", "cpu", columns=lambda _: COLUMNS("meta")),
        ),
        """\
dynamic_dilation_unfold(): expected dilation_map on the device of input, cpu, but got one on meta
dynamic_dilation_unfold(): expected dilation_map on the device of input, meta, but got one on cpu
dynamic_dilation_fold(): expected dilation_map on the device of columns, cpu, but got one on meta
unfold(): expected dilation_map on the device of input, cpu, but got one on meta
unfold(): expected dilation_map on the device of input, meta, but got one on cpu
fold(): expected dilation_map on the device of columns, meta, but got one on cpu
unfold_backward(): expected dilation_map on the device of input, meta, but got one on cpu
unfold_backward(): expected grad_output on the device of input, meta, but got one on cpu
unfold_backward(): expected grad_output on the device of input, cpu, but got one on meta
dot(): expected columns on the device of input, cpu, but got one on meta
""",
    )


# ---- options ----

PAIRS = ["kernel_size", "stride", "padding", "dilation"]


def test_options_out_of_range() -> None:
    texts = []
    for argument in PAIRS:
        texts += [everywhere(**{argument: value}) for value in (-1, [1, -2], [-(2**63)])]
        if argument != "padding":
            texts += [everywhere(**{argument: value}) for value in (0, [0, 1])]
    texts += [everywhere(groups=groups) for groups in (0, -1, -(2**63), 3, 8)]
    assert_expected_inline(
        lines(*texts),
        """\
expected kernel_size to be at least 1, but got (-1, -1)
expected kernel_size to be at least 1, but got (-1,)
expected kernel_size to be at least 1, but got (1, -2)
expected kernel_size to be at least 1, but got (-9223372036854775808,)
expected kernel_size to be at least 1, but got (0, 0)
expected kernel_size to be at least 1, but got (0,)
expected kernel_size to be at least 1, but got (0, 1)
expected stride to be at least 1, but got (-1, -1)
expected stride to be at least 1, but got (-1,)
expected stride to be at least 1, but got (1, -2)
expected stride to be at least 1, but got (-9223372036854775808,)
expected stride to be at least 1, but got (0, 0)
expected stride to be at least 1, but got (0,)
expected stride to be at least 1, but got (0, 1)
expected padding to be at least 0, but got (-1, -1)
expected padding to be at least 0, but got (-1,)
expected padding to be at least 0, but got (1, -2)
expected padding to be at least 0, but got (-9223372036854775808,)
expected dilation to be at least 1, but got (-1, -1)
expected dilation to be at least 1, but got (-1,)
expected dilation to be at least 1, but got (1, -2)
expected dilation to be at least 1, but got (-9223372036854775808,)
expected dilation to be at least 1, but got (0, 0)
expected dilation to be at least 1, but got (0,)
expected dilation to be at least 1, but got (0, 1)
expected groups to be at least 1, but got 0
expected groups to be at least 1, but got -1
expected groups to be at least 1, but got -9223372036854775808
expected groups to divide the 4 channels of columns, but got 3
expected groups to divide the 4 channels of input, but got 3
expected groups to divide the 4 channels of columns, but got 8
expected groups to divide the 4 channels of input, but got 8
""",
    )


def test_output_size_out_of_range() -> None:
    assert_expected_inline(
        lines(
            everywhere(output_size=[-1]),
            everywhere(output_size=[8, -8]),
            everywhere(output_size=[7, 8]),
            everywhere(output_size=[8, 100]),
        ),
        """\
expected output_size to be at least 0, but got (-1, -1)
expected output_size to be at least 0, but got (-1,)
expected output_size to be at least 0, but got (8, -8)
expected dilation_map of shape (2, 1, 7, 8) or (2, 2, 7, 8), but got (2, 1, 8, 8)
expected dilation_map of shape (2, 1, 8, 100) or (2, 2, 8, 100), but got (2, 1, 8, 8)
""",
    )


def test_lists_of_another_length() -> None:
    texts = []
    for argument in [*PAIRS, "output_size"]:
        texts += [everywhere(**{argument: value}) for value in ([], [3, 3, 3], [1] * 5)]
    assert_expected_inline(
        lines(*texts),
        """\
expected kernel_size to be one or two ints, but got ()
expected kernel_size to be one or two ints, but got (3, 3, 3)
expected kernel_size to be one or two ints, but got (1, 1, 1, 1, 1)
expected stride to be one or two ints, but got ()
expected stride to be one or two ints, but got (3, 3, 3)
expected stride to be one or two ints, but got (1, 1, 1, 1, 1)
expected padding to be one or two ints, but got ()
expected padding to be one or two ints, but got (3, 3, 3)
expected padding to be one or two ints, but got (1, 1, 1, 1, 1)
expected dilation to be one or two ints, but got ()
expected dilation to be one or two ints, but got (3, 3, 3)
expected dilation to be one or two ints, but got (1, 1, 1, 1, 1)
expected output_size to be one or two ints, but got ()
expected output_size to be one or two ints, but got (3, 3, 3)
expected output_size to be one or two ints, but got (1, 1, 1, 1, 1)
""",
    )


def test_order() -> None:
    two = tensor(2, 2, 8, 8)
    assert_expected_inline(
        lines(
            everywhere(order=[-1]),
            everywhere(order=[1, 1]),
            everywhere(order=[0, 0, 0]),
            everywhere(order=[1], dilation_map=two),
            everywhere(order=[0, -1], dilation_map=two),
            everywhere(order=[0, 0, 0], dilation_map=two),
        ),
        """\
expected order to be at least 0, but got (-1,)
expected order to have as many entries as a window has rates, 1, but got (1, 1)
expected order to have as many entries as a window has rates, 1, but got (0, 0, 0)
expected order to have as many entries as a window has rates, 2, but got (1,)
expected order to be at least 0, but got (0, -1)
expected order to have as many entries as a window has rates, 2, but got (0, 0, 0)
""",
    )


def test_words() -> None:
    assert_expected_inline(
        lines(
            everywhere(padding_mode="replicate"),
            everywhere(padding_mode="Zeros"),
            everywhere(padding_mode=""),
            everywhere(source="offset"),
            everywhere(source="Affine"),
            everywhere(source=""),
            message("deform_unfold2d", padding_mode="circular"),
        ),
        """\
expected padding_mode to be 'zeros', 'border' or 'reflection', but got 'replicate'
expected padding_mode to be 'zeros', 'border' or 'reflection', but got 'Zeros'
expected padding_mode to be 'zeros', 'border' or 'reflection', but got ''
expected source to be 'rates', 'offsets' or 'affine', but got 'offset'
expected source to be 'rates', 'offsets' or 'affine', but got 'Affine'
expected source to be 'rates', 'offsets' or 'affine', but got ''
deform_unfold2d(): expected padding_mode to be 'zeros', 'border' or 'reflection', but got 'circular'
""",
    )


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


# ---- other axes, offsets, what is broadcast ----


def test_shapes_on_one_axis_and_three() -> None:
    assert_expected_inline(
        lines(
            message("dynamic_dilation_unfold1d", input=tensor(2, 4, 8, 8)),
            message("dynamic_dilation_unfold1d", dilation_map=tensor(2, 2, 8)),
            message("dynamic_dilation_unfold1d", kernel_size=[3, 3]),
            message("dynamic_dilation_unfold1d", kernel_size=11),
            message("dynamic_dilation_fold1d", columns=tensor(2, 11, 8)),
            message("dynamic_dilation_fold1d", output_size=[8, 8]),
            message("dynamic_dilation_unfold3d", input=tensor(3, 4, 5)),
            message("dynamic_dilation_unfold3d", dilation_map=tensor(2, 2, 3, 4, 5)),
            message("dynamic_dilation_unfold3d", dilation_map=tensor(2, 1, 4, 5)),
            message("dynamic_dilation_unfold3d", stride=[1, 1]),
            message("dynamic_dilation_unfold3d", kernel_size=[3, 3, 8]),
            message("dynamic_dilation_fold3d", columns=tensor(2, 107, 60)),
            message("dynamic_dilation_fold3d", columns=tensor(60)),
            message("dynamic_dilation_fold3d", output_size=[3, 4]),
            message("unfold", input=tensor(2, 4, 8), dilation_map=tensor(2, 1, 7)),
            message("unfold", input=tensor(2, 4, 3, 4, 5), dilation_map=tensor(2, 2, 3, 4, 5)),
            message("unfold", input=tensor(2, 4, 2, 3, 4, 5), dilation_map=tensor(2, 1, 2, 3, 4, 5)),
        ),
        """\
dynamic_dilation_unfold1d(): expected input of shape (B, C, W) or (C, W), but got (2, 4, 8, 8)
dynamic_dilation_unfold1d(): expected dilation_map of shape (2, 1, 8), but got (2, 2, 8)
dynamic_dilation_unfold1d(): expected kernel_size to be one int, but got (3, 3)
dynamic_dilation_unfold1d(): expected an output of at least 1, but got 0 from an image of 8, kernel_size=(11,), stride=(1,), padding=(1,), dilation=(1,)
dynamic_dilation_fold1d(): expected columns to have a multiple of kW = 3 rows, but got shape (2, 11, 8)
dynamic_dilation_fold1d(): expected output_size to be one int, but got (8, 8)
dynamic_dilation_unfold3d(): expected input of shape (B, C, D, H, W) or (C, D, H, W), but got (3, 4, 5)
dynamic_dilation_unfold3d(): expected dilation_map of shape (2, 1, 3, 4, 5) or (2, 3, 3, 4, 5), but got (2, 2, 3, 4, 5)
dynamic_dilation_unfold3d(): expected dilation_map of shape (2, 1, 3, 4, 5) or (2, 3, 3, 4, 5), but got (2, 1, 4, 5)
dynamic_dilation_unfold3d(): expected stride to be one or three ints, but got (1, 1)
dynamic_dilation_unfold3d(): expected an output of at least 1 x 1 x 1, but got 3 x 4 x 0 from an image of 3 x 4 x 5, kernel_size=(3, 3, 8), stride=(1, 1, 1), padding=(1, 1, 1), dilation=(1, 1, 1)
dynamic_dilation_fold3d(): expected columns to have a multiple of kD * kH * kW = 27 rows, but got shape (2, 107, 60)
dynamic_dilation_fold3d(): expected columns of shape (B, C * kD * kH * kW, L) or (C * kD * kH * kW, L), but got (60,)
dynamic_dilation_fold3d(): expected output_size to be one or three ints, but got (3, 4)
unfold(): expected dilation_map of shape (2, 1, 8), but got (2, 1, 7)
unfold(): expected dilation_map of shape (2, 1, 3, 4, 5) or (2, 3, 3, 4, 5), but got (2, 2, 3, 4, 5)
unfold(): expected input of shape (B, C, W), (B, C, H, W) or (B, C, D, H, W), but got (2, 4, 2, 3, 4, 5)
""",
    )


def test_shapes_of_offsets() -> None:
    sampled = {"positions": tensor(2, 18, 8, 8), "source": "offsets"}
    assert_expected_inline(
        lines(
            message("deform_unfold1d", offset=tensor(2, 6, 8)),
            message("deform_unfold2d", offset=tensor(2, 9, 8, 8)),
            message("deform_unfold2d", offset=tensor(2, 18, 8, 7)),
            message("deform_unfold2d", groups=2),
            message("deform_unfold2d", input=tensor(4, 8, 8)),
            message("deform_unfold2d", offset=tensor(2, 18, 8, 8, dtype=torch.float64)),
            message("deform_unfold3d", offset=tensor(2, 27, 3, 4, 5)),
            message("sample", **sampled | {"positions": tensor(2, 2, 8, 8)}),
            message("sample", **sampled, order=[1]),
            message("sample_backward", **sampled | {"positions": tensor(2, 18, 7, 8)}),
            message("splat", **sampled | {"positions": tensor(1, 18, 8, 8)}),
            message("dot", **sampled | {"positions": tensor(2, 18, 1, 1)}),
        ),
        """\
deform_unfold1d(): expected offset of shape (2, 3, 8), but got (2, 6, 8)
deform_unfold2d(): expected offset of shape (2, 18, 8, 8), but got (2, 9, 8, 8)
deform_unfold2d(): expected offset of shape (2, 18, 8, 8), but got (2, 18, 8, 7)
deform_unfold2d(): expected offset of shape (2, 36, 8, 8), but got (2, 18, 8, 8)
deform_unfold2d(): expected offset of shape (18, 8, 8), but got (2, 18, 8, 8)
deform_unfold2d(): expected offset of type float32, for input is float32, but got float64
deform_unfold3d(): expected offset of shape (2, 81, 3, 4, 5), but got (2, 27, 3, 4, 5)
sample(): expected positions of shape (2, 18, 8, 8), but got (2, 2, 8, 8)
sample(): expected order to have as many entries as a tap has offsets, 2, but got (1,)
sample_backward(): expected positions of shape (2, 18, 8, 8), but got (2, 18, 7, 8)
splat(): expected positions of shape (2, 18, 8, 8), but got (1, 18, 8, 8)
dot(): expected positions of shape (2, 18, 8, 8), but got (2, 18, 1, 1)
""",
    )


def test_shapes_of_affine_maps() -> None:
    sampled = {"positions": tensor(2, 6, 8, 8), "source": "affine"}
    assert_expected_inline(
        lines(
            message("affine_unfold1d", theta=tensor(2, 6, 8)),
            message("affine_unfold2d", theta=tensor(2, 4, 8, 8)),
            message("affine_unfold2d", theta=tensor(2, 6, 8, 7)),
            message("affine_unfold2d", groups=2),
            message("affine_unfold2d", input=tensor(4, 8, 8)),
            message("affine_unfold2d", theta=tensor(2, 6, 8, 8, dtype=torch.float64)),
            message("affine_unfold3d", theta=tensor(2, 6, 3, 4, 5)),
            message("sample", **sampled | {"positions": tensor(2, 2, 8, 8)}),
            message("sample", **sampled, order=[1]),
            message("dot", **sampled | {"positions": tensor(2, 6, 1, 1)}),
        ),
        """\
affine_unfold1d(): expected theta of shape (2, 2, 8), but got (2, 6, 8)
affine_unfold2d(): expected theta of shape (2, 6, 8, 8), but got (2, 4, 8, 8)
affine_unfold2d(): expected theta of shape (2, 6, 8, 8), but got (2, 6, 8, 7)
affine_unfold2d(): expected theta of shape (2, 12, 8, 8), but got (2, 6, 8, 8)
affine_unfold2d(): expected theta of shape (6, 8, 8), but got (2, 6, 8, 8)
affine_unfold2d(): expected theta of type float32, for input is float32, but got float64
affine_unfold3d(): expected theta of shape (2, 12, 3, 4, 5), but got (2, 6, 3, 4, 5)
sample(): expected positions of shape (2, 6, 8, 8), but got (2, 2, 8, 8)
sample(): expected order to have as many entries as a window has entries of theta, 6, but got (1,)
dot(): expected positions of shape (2, 6, 8, 8), but got (2, 6, 1, 1)
""",
    )


def test_what_models_broadcast_and_the_operators_below_do_not() -> None:
    one, spot = tensor(1, 1, 8, 8), tensor(2, 1, 1, 1)
    for device in DEVICES:
        call("dynamic_dilation_unfold", device, dilation_map=one)
        call("dynamic_dilation_fold", device, dilation_map=spot)
        call("dynamic_dilation_unfold3d", device, dilation_map=tensor(1, 3, 1, 1, 1))
        call("deform_unfold2d", device, offset=tensor(1, 18, 1, 1))
        call("affine_unfold2d", device, theta=tensor(1, 6, 1, 1))
    assert_expected_inline(
        lines(
            *(message(name, dilation_map=made) for name in ("unfold", "fold") for made in (one, spot)),
            *(message(name, positions=made) for name in ("sample", "splat", "dot") for made in (one, spot)),
            message("dynamic_dilation_unfold", dilation_map=tensor(2, 1, 1, 8)),
            message("dynamic_dilation_unfold", dilation_map=tensor(2, 1, 8, 1)),
            message("dynamic_dilation_unfold", groups=2),
            message("deform_unfold2d", offset=tensor(2, 18, 8, 1)),
            message("deform_unfold2d", offset=tensor(2, 1, 1, 1)),
        ),
        """\
unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 1)
fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 1)
sample(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
sample(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 1)
splat(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
splat(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 1)
dot(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (1, 1, 8, 8)
dot(): expected positions of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 1)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 1, 8)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 8, 1)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 2, 8, 8) or (2, 4, 8, 8), but got (2, 1, 8, 8)
deform_unfold2d(): expected offset of shape (2, 18, 8, 8), but got (2, 18, 8, 1)
deform_unfold2d(): expected offset of shape (2, 18, 8, 8), but got (2, 1, 1, 1)
""",
    )


# ---- sizes ----


def test_an_output_below_one_by_one() -> None:
    assert_expected_inline(
        lines(
            everywhere(kernel_size=11),
            everywhere(kernel_size=[3, 11]),
            everywhere(dilation=[5, 1]),
            everywhere(dilation=2**31),
            message("dynamic_dilation_unfold", input=tensor(2, 4, 0, 8), padding=0),
            message("dynamic_dilation_unfold", kernel_size=2**62),
            message("dynamic_dilation_fold", output_size=[0, 8], padding=0),
        ),
        """\
expected an output of at least 1 x 1, but got 0 x 0 from an image of 8 x 8, kernel_size=(11, 11), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
expected columns to have a multiple of kH * kW = 121 rows, but got shape (2, 36, 64)
expected an output of at least 1 x 1, but got 8 x 0 from an image of 8 x 8, kernel_size=(3, 11), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
expected columns to have a multiple of kH * kW = 33 rows, but got shape (2, 36, 64)
expected an output of at least 1 x 1, but got 0 x 8 from an image of 8 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(5, 1)
expected an output of at least 1 x 1, but got 0 x 0 from an image of 8 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(2147483648, 2147483648)
dynamic_dilation_unfold(): expected an output of at least 1 x 1, but got 0 x 6 from an image of 0 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1)
dynamic_dilation_unfold(): expected an output of at least 1 x 1, but got 0 x 0 from an image of 8 x 8, kernel_size=(4611686018427387904, 4611686018427387904), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
dynamic_dilation_fold(): expected an output of at least 1 x 1, but got 0 x 6 from an image of 0 x 8, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1)
""",
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("argument", ["input", "columns", "dilation_map", "positions"])
def test_nested_tensors_are_refused_by_name(argument: str) -> None:
    """As the map of an operator other than the public two, they met words of the dispatcher's."""
    nested = torch.nested.nested_tensor([torch.ones(2, 3, 4), torch.ones(1, 3, 4)])
    for name in (name for name, arguments in CALLS.items() if argument in arguments):
        text = refusal(name, "cpu", **{argument: nested})
        assert text == f"{name}(): expected {argument} to be a dense tensor, but got a nested one"


def test_products_beyond_two_to_the_63() -> None:
    wide = {"kernel_size": 2**31, "padding": 2**30}  # 8 x 8 windows of 2^62 taps
    texts = [
        message("dynamic_dilation_unfold", **wide),
        message("unfold", **wide),
        message("unfold", input=tensor(0, 4, 8, 8), dilation_map=tensor(0, 1, 9, 9), **wide),
        message("unfold", kernel_size=2**32, padding=2**31),
        message("unfold", dilation=2**62),
        message("unfold", dilation=INT64_MAX),
        message("unfold", padding=2**62),
        message("unfold", padding=INT64_MAX),
        message("unfold", input=expanded(2**20, 2**20, 1, 1), kernel_size=2**12, padding=2**11,
                dilation_map=expanded(2**20, 1, 2, 2)),
        message("unfold", input=expanded(2**30, 2**30, 1, 1), kernel_size=3, dilation_map=expanded(2**30, 1, 1, 1)),
        message("fold", output_size=[2**62, 2**62]),
        message("fold", output_size=[INT64_MAX]),
        message("fold", kernel_size=2**32, padding=2**31),
        message("unfold", input=tensor(2, 0, 8, 8), groups=INT64_MAX),
        message("unfold", input=tensor(2, 0, 8, 8), groups=2**62),
    ]  # fmt: skip
    assert_expected_inline(
        lines(*texts),
        """\
dynamic_dilation_unfold(): expected the rows of columns below 2^63, but got 4 * 4611686018427387904
unfold(): expected the rows of columns below 2^63, but got 4 * 4611686018427387904
unfold(): expected the rows of columns below 2^63, but got 4 * 4611686018427387904
unfold(): expected the number of taps below 2^63, but got 4294967296 * 4294967296
unfold(): expected dilation * (kernel_size - 1) below 2^63, but got 4611686018427387904 * 2
unfold(): expected dilation * (kernel_size - 1) below 2^63, but got 9223372036854775807 * 2
unfold(): expected 2 * padding below 2^63, but got 2 * 4611686018427387904
unfold(): expected 2 * padding below 2^63, but got 2 * 9223372036854775807
unfold(): expected the size of columns below 2^63, but got 70368744177664 * 1048576
unfold(): expected the size of the image below 2^63, but got 17179869184 * 1073741824
fold(): expected the number of pixels below 2^63, but got 4611686018427387904 * 4611686018427387904
fold(): expected a padded size below 2^63, but got 9223372036854775807 + 2
fold(): expected the number of taps below 2^63, but got 4294967296 * 4294967296
unfold(): expected the channels of the rates below 2^63, but got 9223372036854775807 * 2
unfold(): expected the channels of the rates below 2^63, but got 4611686018427387904 * 2
""",
    )


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
    texts = []
    for call_it in (
        lambda: ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map, padding=1),
        lambda: ddu_ops.dynamic_dilation_fold(columns, 8, 3, dilation_map, padding=1),
        lambda: ddu_ops.DynamicDilationUnfold(3, padding=1)(input, dilation_map),
        lambda: ddu_ops.DynamicDilationFold((8, 8), 3, padding=1)(columns, dilation_map),
        lambda: ddu_ops.dynamic_dilation_unfold(input, (3, 3, 3), dilation_map, padding=1),
        lambda: ddu_ops.dynamic_dilation_fold(columns, (8, 8, 8), 3, dilation_map, padding=1),
        lambda: ddu_ops.dynamic_dilation_fold(columns, (), 3, dilation_map, padding=1),
    ):
        with pytest.raises(RuntimeError) as caught:
            call_it()
        texts.append(str(caught.value))
    assert_expected_inline(
        lines(*texts),
        """\
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
dynamic_dilation_fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
dynamic_dilation_unfold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
dynamic_dilation_fold(): expected dilation_map of shape (2, 1, 8, 8) or (2, 2, 8, 8), but got (2, 1, 7, 8)
dynamic_dilation_unfold(): expected kernel_size to be one or two ints, but got (3, 3, 3)
dynamic_dilation_fold(): expected output_size to be one or two ints, but got (8, 8, 8)
dynamic_dilation_fold(): expected output_size to be one or two ints, but got ()
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
