"""Helpers to call operators with invalid arguments and to collect the error texts.

A message is one sentence: the operator as it was called, what it expected, and what it got.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

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

# The same of the operators that have names of their own on other axes, from offsets and from affine maps.
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


def refusals(function: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> str:
    """The error texts of a function for several lists of arguments, one line each."""
    texts = []
    for arguments in calls:
        with pytest.raises(RuntimeError) as caught:
            function(*arguments, **options)
        texts.append(f"{caught.value}\n")
    return "".join(texts)
