"""The modules: they hold options and nothing else."""

import copy
import io
import pickle

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

import ddu_ops
from cases import assert_same

MODULES = {
    "unfold": (ddu_ops.DynamicDilationUnfold((3, 2), (2, 1), (1, 0), 2, 2, aligned=False), (2, 4, 8, 7)),
    "fold": (ddu_ops.DynamicDilationFold((8, 7), (3, 2), (2, 1), (1, 0), 2, 2, aligned=False), (2, 24, 15)),
}
modules = pytest.mark.parametrize("module, shape", MODULES.values(), ids=MODULES.keys())


def arguments(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape), torch.rand(2, 4, 3, 5) * 3


@modules
def test_forward_is_the_function(module: nn.Module, shape: tuple[int, ...]) -> None:
    leading, dilation_map = arguments(shape)
    options = ((3, 2), dilation_map, (2, 1), (1, 0), 2, 2)
    if isinstance(module, ddu_ops.DynamicDilationFold):
        expected = ddu_ops.dynamic_dilation_fold(leading, (8, 7), *options, aligned=False)
    else:
        expected = ddu_ops.dynamic_dilation_unfold(leading, *options, aligned=False)
    assert_same(module(leading, dilation_map), expected)
    assert_same(module(leading[0], dilation_map[0]), expected[0])


@modules
def test_state(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert not module.state_dict()
    assert not list(module.parameters())
    assert not list(module.buffers())
    module.load_state_dict({}, strict=True)


@modules
def test_copies(module: nn.Module, shape: tuple[int, ...]) -> None:
    leading, dilation_map = arguments(shape)
    expected = module(leading, dilation_map)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.serialization.safe_globals([type(module)]):  # weights_only is the default
        saved = torch.load(file)
    for duplicate in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module)), saved):
        assert repr(duplicate) == repr(module)
        assert_same(duplicate(leading, dilation_map), expected)


def test_defaults_are_the_functions() -> None:
    input, columns, dilation_map = torch.randn(2, 3, 6, 7), torch.randn(2, 27, 20), torch.rand(2, 1, 4, 5)
    assert_same(
        ddu_ops.DynamicDilationUnfold(3)(input, dilation_map),
        ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map),
    )
    assert_same(
        ddu_ops.DynamicDilationFold((6, 7), 3)(columns, dilation_map),
        ddu_ops.dynamic_dilation_fold(columns, (6, 7), 3, dilation_map),
    )


def test_repr() -> None:
    lines = [*(module for module, _ in MODULES.values())]
    lines += [ddu_ops.DynamicDilationUnfold(3), ddu_ops.DynamicDilationFold(8, 3)]
    assert_expected_inline(
        "\n".join(map(repr, lines)),
        """\
DynamicDilationUnfold(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), dilation=2, groups=2, aligned=False)
DynamicDilationFold(output_size=(8, 7), kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), dilation=2, groups=2, aligned=False)
DynamicDilationUnfold(kernel_size=3, stride=1, padding=0, dilation=1, groups=1, aligned=True)
DynamicDilationFold(output_size=8, kernel_size=3, stride=1, padding=0, dilation=1, groups=1, aligned=True)""",
    )
