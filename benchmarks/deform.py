"""The deformable convolution beside torchvision's and beside the convolution with a dilation map.

Each row is a layer with smooth offsets of at most a pixel and, unless it says otherwise, with a mask. ``torchvision``
is ``torchvision.ops.deform_conv2d``, with a dash if it is not installed or does not support the layer. ``rate map`` is
``dynamic_dilation_conv2d``, or its like for signals and volumes, of the same shape. The backward computes all
gradients. Results are compared before anything is timed.
"""

from dataclasses import replace

import torch
from torch import Tensor

import ddu_ops
from benchmarks.contenders import torchvision_deform_conv2d
from benchmarks.convolution import STAGES, Calls, Layer, Problem, arguments, run
from benchmarks.workloads import Workload, positions

LAYERS = {
    "cuda": [
        *STAGES,
        *(replace(stage, last=False) for stage in STAGES),
        *(replace(stage, mask=False) for stage in STAGES[:2]),
        Layer(4, 128, (128, 128), stride=2),  # FADC-R50, the first of a stage
        Layer(2, 384, (64, 64), out_channels=128, groups=8, dilation_groups=16),  # the example of NDC
        Layer(1, 64, (60, 80), mask=False),  # ALIKED
        Layer(1, 64, (15, 20), out_channels=128, mask=False),
        Layer(1, 64, (7, 320, 180), mask=False),  # D3Dnet
    ],
    "cpu": [
        replace(STAGES[0], batch=1),
        *STAGES[1:],
        replace(STAGES[0], batch=1, last=False),
        replace(STAGES[0], batch=1, mask=False),
        Layer(1, 64, (60, 80), mask=False),
        Layer(1, 16, (16, 16, 16)),
    ],
}


def problem(layer: Layer, dtype: torch.dtype, device: torch.device) -> Problem:
    groups, taps = layer.dilation_groups, layer.kernel_size**layer.axes
    input, weight, rates, *mask = arguments(layer, dtype, device, mask_groups=groups)
    workload = Workload("offsets", layer.batch * groups, 1, layer.out, layer.kernel_size, "", source="offsets")
    offset = positions(workload, "smooth", device).view(layer.batch, groups * layer.axes * taps, *layer.out)
    tensors = [input, weight, offset.to(dtype).requires_grad_(), rates, *mask]
    options = (layer.stride, layer.kernel_size // 2, 1)
    deform = getattr(ddu_ops, f"deform_conv{layer.axes}d")
    dilate = getattr(ddu_ops, f"dynamic_dilation_conv{layer.axes}d")

    def ours(input: Tensor, weight: Tensor, offset: Tensor, rates: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform(input, offset, weight, None, *options, mask)  # type: ignore[no-any-return]

    def with_map(input: Tensor, weight: Tensor, offset: Tensor, rates: Tensor, mask: Tensor | None = None) -> Tensor:
        return dilate(  # type: ignore[no-any-return]
            input, weight, rates, None, *options, layer.groups, dilation_groups=groups, mask=mask
        )

    calls: Calls = {"ddu_ops": ours, "rate map": with_map}
    theirs = torchvision_deform_conv2d()
    if theirs is not None and layer.axes == 2 and dtype != torch.bfloat16:

        def torchvisions(
            input: Tensor, weight: Tensor, offset: Tensor, rates: Tensor, mask: Tensor | None = None
        ) -> Tensor:
            return theirs(input, offset, weight, None, *options, mask)

        calls["torchvision"] = torchvisions
    return calls, tensors


def main() -> None:
    run("deform", __doc__, LAYERS, problem, ("torchvision", "rate map"))


if __name__ == "__main__":
    main()
