"""Layers from the literature, composed of convolutions with fixed and with dynamic dilation.

Those that replace a published layer have its names, and load its state.
"""

from ddu_ops.layers.adaptive import AdaptiveDilationConv2d
from ddu_ops.layers.attention import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    DCNv4,
    DilateBlock,
    Involution2d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MultiDilatelocalAttention,
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
    window_attention,
)
from ddu_ops.layers.blocks import (
    DilatedBlock,
    DilatedStack,
    MultiScale,
    RandomDilationConv2d,
    SeparableConv,
    exponential_rates,
    same_padding,
)
from ddu_ops.layers.causal import CausalConv1d, WaveNet, WaveNetBlock
from ddu_ops.layers.frequency import FrequencyAdaptiveConv2d, FrequencyAdaptiveConv3d, FrequencySelection
from ddu_ops.layers.pyramids import (
    ASPP,
    DeepLabV2Head,
    DeepLabV3Head,
    DenseASPP,
    DynamicASPP,
    EfficientASPP,
    Segmenter,
)
from ddu_ops.layers.smoothed import SmoothedDilatedConv2d
from ddu_ops.layers.strides import replace_stride_with_dilation

__all__ = [
    "ASPP",
    "AdaptiveDilationConv2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "CausalConv1d",
    "DCNv4",
    "DeepLabV2Head",
    "DeepLabV3Head",
    "DenseASPP",
    "DilateBlock",
    "DilatedBlock",
    "DilatedStack",
    "DynamicASPP",
    "EfficientASPP",
    "FrequencyAdaptiveConv2d",
    "FrequencyAdaptiveConv3d",
    "FrequencySelection",
    "Involution2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MultiDilatelocalAttention",
    "MultiScale",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "RandomDilationConv2d",
    "Segmenter",
    "SeparableConv",
    "SmoothedDilatedConv2d",
    "WaveNet",
    "WaveNetBlock",
    "exponential_rates",
    "replace_stride_with_dilation",
    "same_padding",
    "window_attention",
]
