"""The modules: those that only store options, and what `isinstance` promises of convolutions."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn
from torch.nn.utils import prune

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


# The modules for every number of axes and their functions, with the size of a fold, and the shapes of the arguments at
# three taps and six positions an axis.
WINDOWS = [
    (ddu_ops.DynamicDilationUnfold1d, ddu_ops.dynamic_dilation_unfold1d, [], [(2, 4, 6), (2, 1, 6)]),
    (ddu_ops.DynamicDilationUnfold, ddu_ops.dynamic_dilation_unfold, [], [(2, 4, 6, 6), (2, 1, 6, 6)]),
    (ddu_ops.DynamicDilationUnfold3d, ddu_ops.dynamic_dilation_unfold3d, [], [(2, 4, 6, 6, 6), (2, 1, 6, 6, 6)]),
    (ddu_ops.DynamicDilationFold1d, ddu_ops.dynamic_dilation_fold1d, [6], [(2, 12, 6), (2, 1, 6)]),
    (ddu_ops.DynamicDilationFold, ddu_ops.dynamic_dilation_fold, [6], [(2, 36, 36), (2, 1, 6, 6)]),
    (ddu_ops.DynamicDilationFold3d, ddu_ops.dynamic_dilation_fold3d, [6], [(2, 108, 216), (2, 1, 6, 6, 6)]),
    (ddu_ops.DeformUnfold1d, ddu_ops.deform_unfold1d, [], [(2, 4, 6), (2, 3, 6)]),
    (ddu_ops.DeformUnfold2d, ddu_ops.deform_unfold2d, [], [(2, 4, 6, 6), (2, 18, 6, 6)]),
    (ddu_ops.DeformUnfold3d, ddu_ops.deform_unfold3d, [], [(2, 4, 6, 6, 6), (2, 81, 6, 6, 6)]),
    (ddu_ops.AffineUnfold1d, ddu_ops.affine_unfold1d, [], [(2, 4, 6), (2, 2, 6)]),
    (ddu_ops.AffineUnfold2d, ddu_ops.affine_unfold2d, [], [(2, 4, 6, 6), (2, 6, 6, 6)]),
    (ddu_ops.AffineUnfold3d, ddu_ops.affine_unfold3d, [], [(2, 4, 6, 6, 6), (2, 12, 6, 6, 6)]),
]


@pytest.mark.parametrize("module, function, size, shapes", WINDOWS, ids=[row[0].__name__ for row in WINDOWS])
@pytest.mark.parametrize(
    "word, mode", [("zeros", "zeros"), ("border", "border"), ("replicate", "border"), ("reflect", "reflection")]
)
def test_windows_on_every_number_of_axes(
    module: type[nn.Module],
    function: Callable[..., torch.Tensor],
    size: list[int],
    shapes: list[tuple[int, ...]],
    word: str,
    mode: str,
) -> None:
    leading, positions = (torch.randn(shape) for shape in shapes)
    same = module(*size, 3, padding=1, padding_mode=word)
    assert_same(same(leading, positions), function(leading, *size, 3, positions, padding=1, padding_mode=mode))
    assert ("padding_mode" in repr(same)) == (mode != "zeros")


def test_a_padding_mode_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^DeformUnfold3d\(\): expected padding_mode to be .+, but got 'circular'$"):
        ddu_ops.DeformUnfold3d(3, padding_mode="circular")


def test_options_that_a_call_could_not_take_are_refused_by_the_constructor() -> None:
    with pytest.raises(ValueError, match=r"^DynamicDilationFold\(\): expected padding to be one or two ints, but got"):
        ddu_ops.DynamicDilationFold(6, 3, padding="same")
    with pytest.raises(ValueError, match=r"^DeformUnfold1d\(\): expected padding_mode to be .+, but got \['zeros'\]"):
        ddu_ops.DeformUnfold1d(3, padding_mode=["zeros"])


def test_padding_in_words() -> None:
    input = torch.randn(2, 4, 6, 7)
    assert_same(
        ddu_ops.DynamicDilationUnfold(3, padding="same")(input, torch.ones(2, 1, 6, 7)),
        ddu_ops.dynamic_dilation_unfold(input, 3, 1.0, padding=1),
    )
    even = ddu_ops.DynamicDilationUnfold(2, padding="same")(input, torch.ones(2, 1, 6, 7))
    assert_same(even, torch.nn.functional.unfold(torch.nn.functional.pad(input, (0, 1, 0, 1)), 2))
    with pytest.raises(RuntimeError, match=r"^dynamic_dilation_unfold\(\): expected padding='same' to add as much"):
        ddu_ops.dynamic_dilation_unfold(input, 2, 1.0, padding="same", padding_mode="reflection")


@pytest.mark.parametrize("size", [(7,), (6, 7), (3, 4, 5), (1, 1)], ids=str)
def test_padding_in_words_with_a_border(size: tuple[int, ...]) -> None:
    """Of an even kernel, one pixel more at the end: the first windows of a call with more on both sides."""
    axes = len(size)
    unfold = (ddu_ops.DynamicDilationUnfold1d, ddu_ops.DynamicDilationUnfold, ddu_ops.DynamicDilationUnfold3d)[axes - 1]
    input = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    more = 3 * torch.rand(2, 1, *(n + 3 for n in size), dtype=torch.float64)
    here = (slice(None), slice(None), *[slice(2, -1)] * axes)
    same = unfold(2, padding="same", padding_mode="replicate")(input, more[here])
    around = unfold(2, padding=2, padding_mode="replicate")(input, more)
    expected = around.unflatten(-1, more.shape[2:])[here].flatten(2)
    torch.testing.assert_close(same, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(same)
    grads = (torch.autograd.grad(columns, input, grad)[0] for columns in (same, expected))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


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


# ---- What code asks by ``isinstance`` ----


def of_convolutions(model: nn.Module) -> list[nn.Parameter]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_loops_over_convolutions_find_the_layer() -> None:
    layer = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1)
    assert layer.padding_mode == "zeros"
    assert any(weight is layer.weight for weight in of_convolutions(nn.Sequential(layer)))
    for weight in of_convolutions(layer):
        nn.init.ones_(weight)
    assert layer.weight.eq(1).all()


def test_pruning() -> None:
    layer = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1)
    prune.l1_unstructured(layer, "weight", 0.5)
    assert layer.weight.eq(0).sum() == layer.weight.numel() // 2
    input = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(layer(input), nn.functional.conv2d(input, layer.weight, layer.bias, padding=1))


def test_a_norm_is_fused_into_the_layer() -> None:
    layer, norm = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1).eval(), nn.BatchNorm2d(6).eval()
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    fused = nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
    input, dilation_map = torch.randn(2, 4, 5, 6), torch.rand(2, 1, 5, 6) + 0.5
    assert isinstance(fused, ddu_ops.DynamicDilationConv2d)
    torch.testing.assert_close(fused(input, dilation_map), norm(layer(input, dilation_map)), rtol=1e-4, atol=1e-5)


def test_channels_last_weights() -> None:
    layer = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1)
    input, dilation_map = torch.randn(2, 4, 5, 6), torch.rand(2, 1, 5, 6) + 0.5
    expected = layer(input, dilation_map)
    nn.utils.convert_conv2d_weight_memory_format(layer, torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(input, dilation_map), expected)
