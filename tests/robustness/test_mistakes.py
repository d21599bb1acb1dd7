"""Common mistakes of new users: each is refused with one sentence that names the layer and the argument.

No array is printed with its numbers, and where two arguments may be swapped the sentence says their order.
"""

import re

import numpy as np
import pytest
import torch
from expecttest import assert_expected_inline

import ddu_ops
import public
from ddu_ops import layers
from public import Subject
from refusals import refusals

INPUT, MAP, WEIGHT = torch.zeros(2, 4, 8, 8), torch.ones(2, 1, 8, 8), torch.zeros(5, 4, 3, 3)
OFFSET = torch.zeros(2, 18, 8, 8)


def test_arguments_that_are_no_tensors() -> None:
    unfold, conv = ddu_ops.dynamic_dilation_unfold, ddu_ops.dynamic_dilation_conv2d
    assert_expected_inline(
        refusals(unfold, (1.5, 3, MAP), (INPUT.numpy(), 3, MAP), (INPUT, 3, MAP.numpy()), (INPUT, 3.0, MAP))
        + refusals(conv, (INPUT, WEIGHT.numpy(), 1), (INPUT, 3, 1), (INPUT, WEIGHT, None), (INPUT, WEIGHT, 1, [0.5]))
        + refusals(conv, (INPUT, WEIGHT, 1), mask=np.ones((2, 9, 8, 8)))
        + refusals(ddu_ops.deform_conv2d, (INPUT, 0.0, WEIGHT), (INPUT, OFFSET, "weight"))
        + refusals(ddu_ops.dynamic_dilation_fold, ([[1.0]], 8, 3, MAP), (INPUT, MAP, 3, 1))
        + refusals(ddu_ops.dynamic_dilation_aggregate2d, (INPUT, None, 3, MAP), (INPUT, MAP, 3, "map"))
        + refusals(ddu_ops.deform_correlate2d, (INPUT, INPUT.numpy(), 3, OFFSET), (INPUT, INPUT, 3, 1.0)),
        """\
dynamic_dilation_unfold(): expected input to be a tensor, but got 1.5
dynamic_dilation_unfold(): expected input to be a tensor, but got a numpy.ndarray of shape (2, 4, 8, 8); torch.from_numpy() makes a tensor of it
dynamic_dilation_unfold(): expected dilation_map to be a tensor or a number, but got a numpy.ndarray of shape (2, 1, 8, 8); torch.from_numpy() makes a tensor of it
dynamic_dilation_unfold(): expected kernel_size to be one or two ints, but got 3.0
dynamic_dilation_conv2d(): expected weight to be a tensor, but got a numpy.ndarray of shape (5, 4, 3, 3); torch.from_numpy() makes a tensor of it
dynamic_dilation_conv2d(): expected weight to be a tensor, but got 3; the order of the arguments is input, weight, dilation_map, bias, stride, padding, dilation, groups
dynamic_dilation_conv2d(): expected dilation_map to be a tensor or a number, but got None; the order of the arguments is input, weight, dilation_map, bias, stride, padding, dilation, groups
dynamic_dilation_conv2d(): expected bias to be a tensor or None, but got [0.5]; the order of the arguments is input, weight, dilation_map, bias, stride, padding, dilation, groups
dynamic_dilation_conv2d(): expected mask to be a tensor or None, but got a numpy.ndarray of shape (2, 9, 8, 8); torch.from_numpy() makes a tensor of it
deform_conv2d(): expected offset to be a tensor, but got 0.0; the order of the arguments is input, offset, weight, bias, stride, padding, dilation, mask
deform_conv2d(): expected weight to be a tensor, but got 'weight'
dynamic_dilation_fold(): expected columns to be a tensor, but got [[1.0]]
dynamic_dilation_fold(): expected output_size to be one or two ints, but got a tensor of shape (2, 1, 8, 8); the order of the arguments is columns, output_size, kernel_size, dilation_map, stride, padding, dilation, groups
dynamic_dilation_aggregate2d(): expected mask to be a tensor, but got None; the order of the arguments is input, mask, kernel_size, dilation_map, stride, padding, dilation, groups
dynamic_dilation_aggregate2d(): expected dilation_map to be a tensor or a number, but got 'map'
deform_correlate2d(): expected input to be a tensor, but got a numpy.ndarray of shape (2, 4, 8, 8); torch.from_numpy() makes a tensor of it
deform_correlate2d(): expected offset to be a tensor, but got 1.0; the order of the arguments is query, input, kernel_size, offset, stride, padding, dilation, groups
""",
    )


def test_arguments_in_the_order_of_another_function() -> None:
    """``F.unfold`` takes its dilation third, a deformable convolution its weight third."""
    unfold = ddu_ops.dynamic_dilation_unfold
    assert_expected_inline(
        refusals(unfold, (INPUT, (3, 3), (1, 1), (1, 1)), (INPUT, MAP, 3), (INPUT, 3, 1, MAP))
        + refusals(ddu_ops.deform_unfold2d, (INPUT, OFFSET, 3))
        + refusals(ddu_ops.dynamic_dilation_conv2d, (INPUT, MAP, WEIGHT), padding=1)
        + refusals(ddu_ops.deform_conv2d, (INPUT, WEIGHT, OFFSET), padding=1),
        """\
dynamic_dilation_unfold(): expected dilation_map to be a tensor or a number, but got (1, 1); the order of the arguments is input, kernel_size, dilation_map, stride, padding, dilation, groups
dynamic_dilation_unfold(): expected kernel_size to be one or two ints, but got a tensor of shape (2, 1, 8, 8); the order of the arguments is input, kernel_size, dilation_map, stride, padding, dilation, groups
dynamic_dilation_unfold(): expected stride to be one or two ints, but got a tensor of shape (2, 1, 8, 8); the order of the arguments is input, kernel_size, dilation_map, stride, padding, dilation, groups
deform_unfold2d(): expected offset to be a tensor, but got 3; the order of the arguments is input, kernel_size, offset, stride, padding, dilation, groups
dynamic_dilation_conv2d(): expected dilation_map of shape (2, 1, 3, 3) or (2, 2, 3, 3), but got (5, 4, 3, 3); the order of the arguments is input, weight, dilation_map
deform_conv2d(): expected offset of shape (2, 128, 3, 3), but got (5, 4, 3, 3); the order of the arguments is input, offset, weight
""",
    )


def test_an_image_without_a_batch_and_a_map_with_one() -> None:
    image = INPUT[0]
    assert_expected_inline(
        refusals(ddu_ops.dynamic_dilation_unfold, (image, 3, MAP), (image, 3, MAP[:1]), padding=1)
        + refusals(ddu_ops.dynamic_dilation_conv2d, (image, WEIGHT, MAP), padding=1)
        + refusals(ddu_ops.deform_conv2d, (image, OFFSET, WEIGHT), padding=1)
        + refusals(ddu_ops.dynamic_dilation_max_pool2d, (image, 3, MAP), padding=1)
        + refusals(ddu_ops.dynamic_dilation_fold, (torch.zeros(36, 64), 8, 3, MAP), padding=1),
        """\
dynamic_dilation_unfold(): expected input with a batch dimension, because dilation_map of shape (2, 1, 8, 8) has one, but got shape (4, 8, 8)
dynamic_dilation_unfold(): expected input with a batch dimension, because dilation_map of shape (1, 1, 8, 8) has one, but got shape (4, 8, 8)
dynamic_dilation_conv2d(): expected input with a batch dimension, because dilation_map of shape (2, 1, 8, 8) has one, but got shape (4, 8, 8)
deform_conv2d(): expected input with a batch dimension, because offset of shape (2, 18, 8, 8) has one, but got shape (4, 8, 8)
dynamic_dilation_max_pool2d(): expected input with a batch dimension, because dilation_map of shape (2, 1, 8, 8) has one, but got shape (4, 8, 8)
dynamic_dilation_fold(): expected columns with a batch dimension, because dilation_map of shape (2, 1, 8, 8) has one, but got shape (36, 64)
""",
    )


# Layers that begin with a layer of torch's, whose words are those of torch's users, or that any channels will do for.
def predicts(subject: Subject) -> bool:
    return any(True for _ in ddu_ops.predictors(subject.make())) and not subject.name.startswith(
        ("layers.DilateBlock", "layers.NeighborhoodAttention", "layers.MultiDilatelocalAttention")
    )


PREDICTING = [case for case in public.of("module") if predicts(case.values[0])]


@pytest.mark.parametrize("subject", PREDICTING)
def test_wrong_channels_are_those_of_the_layer(subject: Subject) -> None:
    """Its predictor, which reads them first, spoke of its own weight."""
    input, *others = subject.arguments()
    layer, wrong = subject.function(), torch.cat([input] * 3, 1)
    got = re.escape(str(tuple(wrong.shape)))
    expected = rf"{subject.title}\(\): expected input with {input.shape[1]} channels, but got shape {got}"
    with pytest.raises(RuntimeError, match=f"^{expected}$"):
        layer(wrong, *others)
    with pytest.raises(RuntimeError, match=rf"^{subject.title}\(\): expected input to be a tensor, but got a numpy"):
        layer(input.numpy(), *others)


def test_every_layer_with_a_predictor_is_asked() -> None:
    names = {case.values[0].title for case in PREDICTING}
    assert names >= {"DynamicDilationConv2d", "DeformConv2d", "AdaptiveDilationConv2d", "DynamicASPP"}
    assert names >= {layers.FrequencyAdaptiveConv2d.__name__, layers.FrequencyAdaptiveConv3d.__name__}
