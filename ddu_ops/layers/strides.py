"""Dilation in place of strides, to keep the resolution."""

from typing import Any

from torch import Tensor, nn

from ddu_ops._options import integer, ints
from ddu_ops.receptive_field import traced


def replace_stride_with_dilation(model: nn.Module, output_stride: int, input: Tensor | None = None) -> nn.Module:
    r"""Limit the output stride of a network by replacing strides with dilation.

    The method of DeepLab and of F. Yu, V. Koltun and T. Funkhouser, "Dilated Residual Networks", CVPR 2017. The stride
    of a layer is removed if its output positions would be more than ``output_stride`` pixels apart, and dilation and
    padding of all later layers are multiplied by it. Weights do not change, and the output at every :math:`f`-th
    position, where :math:`f` is the stride that was removed, is the same as before. For a ResNet the result is that of
    torchvision's ``replace_stride_with_dilation``, including the first block of a stage, which keeps the dilation of
    the previous stage.

    Args:
        model: changed in place. Its convolutions, including dynamic ones, and pooling layers have to be modules; their
            order is determined by running the model (:func:`ddu_ops.receptive_field.trace`).
        output_stride: the largest distance between two positions of the output, in pixels of the image.
        input: an image to run the model on. Default: zeros that fit its first convolution.

    Returns:
        The model.

    Raises:
        ValueError: if ``output_stride`` is not a product of the strides, and for operators that cannot be dilated, with
            their names: average pooling and transposed convolutions after a stride that is removed, and strides outside
            of modules. The model is then unchanged.

    Example:
        >>> net = torch.nn.Sequential(*(torch.nn.Conv2d(c, 8, 3, stride=2, padding=1) for c in (3, 8, 8)))
        >>> image = torch.randn(1, 3, 32, 32)
        >>> coarse = net(image)
        >>> net = layers.replace_stride_with_dilation(net, output_stride=4)
        >>> net[2]
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        >>> torch.allclose(net(image)[..., ::2, ::2], coarse, atol=1e-6)
        True
    """
    name = "replace_stride_with_dilation"
    output_stride = integer(output_stride, "output_stride", name, ValueError, least=1)
    modules = dict(model.named_modules())
    before, _ = traced(model, input)
    changed: list[tuple[nn.Module, dict[str, Any]]] = []
    for key, field in before.items():
        module = modules[key]
        if not hasattr(module, "kernel_size") or not hasattr(module, "stride"):
            continue
        axes = len(field.jump)
        stride, kernel = (ints(getattr(module, option), axes, option, name) for option in ("stride", "kernel_size"))
        factors, strides = [], []
        for jump, s in zip(field.jump, stride, strict=True):
            left = min(jump, output_stride)
            if jump % left or left < output_stride < left * s:
                raise ValueError(
                    f"{name}(): expected output_stride to be a product of strides, but got {output_stride}, which "
                    f"{key!r} steps over from {float(left):g} to {float(left * s):g}"
                )
            factors.append(int(jump / left))
            strides.append(s if left * s <= output_stride else 1)
        if tuple(strides) == stride and set(factors) == {1}:
            continue
        dilated = set(factors) != {1} and set(kernel) != {1}
        if getattr(module, "transposed", False) or (dilated and not hasattr(module, "dilation")):
            kind = type(module).__name__
            raise ValueError(f"{name}(): expected modules that can be dilated, but got {key!r}, of type {kind}")
        options: dict[str, Any] = {"stride": tuple(strides)}
        if dilated:
            for option in ("dilation", "padding"):
                if not isinstance(getattr(module, option), str):
                    values = ints(getattr(module, option), axes, option, name)
                    options[option] = tuple(value * f for value, f in zip(values, factors, strict=True))
            if "padding" in options and hasattr(module, "_reversed_padding_repeated_twice"):
                options["_reversed_padding_repeated_twice"] = [p for p in reversed(options["padding"]) for _ in (0, 1)]
        changed.append((module, options))
    former = [(module, {option: getattr(module, option) for option in options}) for module, options in changed]
    for module, options in changed:
        vars(module).update(options)
    _, after = traced(model, input)
    far = [key for key, field in after.items() if max(field.jump) > output_stride]
    if far:
        for module, options in former:
            vars(module).update(options)
        raise ValueError(f"{name}(): expected strides to be those of modules, but got others in front of {far[0]!r}")
    return model
