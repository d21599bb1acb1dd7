"""Frequency-adaptive dilated convolution, against the published formulas on ``grid_sample``."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddu_ops import layers


def random_state(module: nn.Module) -> nn.Module:
    """In float64, with every parameter and statistic away from where it starts."""
    module = module.double().eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if "running_var" in name else nn.init.normal_(tensor, std=0.3)
    return module


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# ---- The published formulas ----


def bands(x: Tensor, k_list: tuple[int, ...], lp_type: str) -> list[Tensor]:
    """The low passes, each with the loops and sums of its definition."""
    axes = x.dim() - 2
    size = x.shape[2:]
    if lp_type == "avgpool":
        found = []
        for k in k_list:
            padded = F.pad(x, [k // 2] * 4, mode="replicate")
            found.append(sum(padded[..., i : i + size[0], j : j + size[1]] for i in range(k) for j in range(k)) / k**2)
        return found
    if lp_type == "laplacian":
        align, found, level = size[0] % 2 == 1, [], x
        for _ in k_list:
            level = F.interpolate(level, [-(-n // 2) for n in level.shape[2:]], mode="bilinear", align_corners=align)
            found.append(F.interpolate(level, size, mode="bilinear", align_corners=align))
        return found
    found = []
    for k in k_list:
        low = x
        for axis, n in enumerate(size):
            places = torch.arange(n, dtype=torch.float64)
            matrix = torch.exp(-2j * math.pi / n * torch.outer(places, places)) / math.sqrt(n)
            kept = [(i - n // 2) % n for i in range(round(n / 2 - n / (2 * k)), round(n / 2 + n / (2 * k)))]
            keep = torch.zeros(n, dtype=torch.float64)
            keep[kept] = 1
            through = matrix.conj() @ torch.diag(keep).to(matrix.dtype) @ matrix
            low = torch.movedim(torch.movedim(low.to(matrix.dtype), axis + 2, -1) @ through.mT, -1, axis + 2)
        found.append(low.real)
    assert axes in (2, 3)
    return found


def select(module: Any, x: Tensor, source: Tensor) -> Tensor:
    convolve = F.conv2d if x.dim() == 4 else F.conv3d

    def weighted(band: Tensor, conv: Any) -> Tensor:
        g = module.spatial_group
        raw = convolve(source, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2, groups=g)
        weights = 2 * torch.sigmoid(raw) if module.act == "sigmoid" else torch.softmax(raw, 1) * g
        return band * weights.repeat_interleave(band.shape[1] // g, 1)

    convs = list(module.freq_weight_conv_list)
    low = [x, *bands(x, module.k_list, module.lp_type)]
    parts = [weighted(a - b, conv) for a, b, conv in zip(low, low[1:], convs)]
    return sum(parts) + (weighted(low[-1], convs[-1]) if module.lowfreq_att else low[-1])


def sampled(x: Tensor, places: Tensor, padding_mode: str) -> Tensor:
    """At places (B, *out, axes), in pixels, slowest axis first."""
    size = torch.tensor(x.shape[2:], dtype=x.dtype)
    grid = (2 * places / (size - 1) - 1).flip(-1)
    return F.grid_sample(x, grid, padding_mode=padding_mode, align_corners=True)


def modulated(
    x: Tensor, kernels: Tensor, bias: Tensor | None, spread: Tensor, mask: Tensor, stride: tuple[int, ...], centre: int,
    groups: int, padding_mode: str,
) -> Tensor:  # fmt: skip
    """The sum over the taps q of W(q) mask(q) x(p + (1 + s) q), with kernels per image (B, O, I, ...)."""
    axes = x.dim() - 2
    out = spread.shape[2:]
    steps = [torch.arange(n, dtype=x.dtype) * s + centre for n, s in zip(out, stride)]
    p = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1)
    taps = list(itertools.product(*(range(-(k // 2), k // 2 + 1) for k in kernels.shape[-axes:])))
    channels = x.shape[1] // groups
    total = torch.zeros(x.shape[0], kernels.shape[1], *out, dtype=x.dtype)
    for group in range(groups):
        part = slice(group * channels, (group + 1) * channels)
        for t, q in enumerate(taps):
            at = p + (1 + spread[:, group]).unsqueeze(-1) * torch.tensor(q, dtype=x.dtype)
            values = sampled(x[:, part], at, padding_mode) * mask[:, group * len(taps) + t].unsqueeze(1)
            weight = kernels[(..., *(i + k // 2 for i, k in zip(q, kernels.shape[-axes:])))][:, :, part]
            total += torch.einsum("boi,bi...->bo...", weight, values)
    return total if bias is None else total + bias.view(1, -1, *(1,) * axes)


def attention(module: Any, x: Tensor) -> tuple[Tensor, ...]:
    h = x.flatten(2).mean(2)
    h = h @ module.fc.weight.flatten(1).mT
    if hasattr(module, "bn"):
        h = (h - module.bn.running_mean) / (module.bn.running_var + 1e-5).sqrt() * module.bn.weight + module.bn.bias
    else:
        centred = h - h.mean(1, keepdim=True)
        h = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * module.norm.weight + module.norm.bias
    heads = (getattr(module, name) for name in ("channel_fc", "filter_fc", "spatial_fc"))
    return tuple(torch.sigmoid(h.relu() @ head.weight.flatten(1).mT + head.bias) for head in heads if head is not None)


def gains(c: Tensor, f: Tensor, axes: int) -> Tensor:
    return torch.einsum("bi,bo->boi", 2 * c, 2 * f)[(..., *(None,) * axes)]


def dct2(x: Tensor, inverse: bool = False) -> Tensor:
    """As torch_dct has it: not normalised, X_k = 2 Σ x_n cos(π k (2 n + 1) / 2 N)."""
    n = x.shape[-1]
    k = torch.arange(n, dtype=x.dtype)
    matrix = 2 * torch.cos(math.pi * torch.outer(k, 2 * k + 1) / (2 * n))
    matrix = torch.linalg.inv(matrix) if inverse else matrix
    return matrix @ x @ matrix.mT


def published(layer: Any, x: Tensor) -> Tensor:
    """FADC for images, step by step."""
    half, d = layer.kernel_size[0] // 2, layer.dilation[0]
    groups = layer.deform_groups
    mode = {"repeat": "replicate", "zero": "constant"}.get(layer.padding_mode)

    def pad(x: Tensor) -> Tensor:
        return F.pad(x, [half] * 4, mode=mode) if mode else x

    def conv(module: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, module.weight, module.bias, layer.stride, 0 if mode else half)

    if hasattr(layer, "FS") and layer.pre_fs:
        x = select(layer.FS, x, x)
    b, mean = x.shape[0], layer.weight.mean((2, 3), keepdim=True)
    rest = layer.weight - mean
    if layer.kernel_decompose is None:
        kernels = layer.weight.expand(b, -1, -1, -1, -1)
    elif layer.kernel_decompose == "both":
        (c1, f1), (c2, f2, *s2) = attention(layer.OMNI_ATT1, x), attention(layer.OMNI_ATT2, x)
        if s2:
            k = layer.kernel_size[0]
            rest = dct2(dct2(rest) * (2 * s2[0].view(b, 1, 1, k, k)), inverse=True)
        kernels = mean * gains(c1, f1, 2) + rest * gains(c2, f2, 2)
    else:
        gain = gains(*attention(layer.OMNI_ATT, x), 2)
        kernels = mean + rest * gain if layer.kernel_decompose == "high" else mean * gain + rest
    raw = conv(layer.conv_offset, pad(x))
    spread = (torch.relu(raw + 1) - 1) * d if layer.use_zero_dilation else raw.abs() * d
    if hasattr(layer, "FS") and not layer.pre_fs:
        align = x.shape[-1] % 2 == 1
        x = select(layer.FS, x, F.interpolate(spread, x.shape[2:], mode="bilinear", align_corners=align))
    x = pad(x)
    mask = torch.sigmoid(conv(layer.conv_mask, x))
    if hasattr(layer, "conv_mask_mean_level"):
        level = torch.sigmoid(conv(layer.conv_mask_mean_level, x))
        mask = mask * level.repeat_interleave(mask.shape[1] // groups, 1)
    if layer.groups > 1:  # as a dense kernel
        o, i = layer.weight.shape[:2]
        dense = torch.zeros(b, o, i * layer.groups, *layer.kernel_size, dtype=x.dtype)
        for g in range(layer.groups):
            rows, columns = slice(g * o // layer.groups, (g + 1) * o // layer.groups), slice(g * i, (g + 1) * i)
            dense[:, rows, columns] = kernels[:, rows]
        kernels = dense
    return modulated(x, kernels, layer.bias, spread, mask, layer.stride, half if mode else 0, groups, "zeros")


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dilation": 2, "stride": 2},
    {"bias": False, "deform_groups": 2},
    {"padding_mode": "zero"},
    {"padding_mode": "none"},
    {"kernel_decompose": "high"},
    {"kernel_decompose": "low"},
    {"kernel_decompose": None, "groups": 2},
    {"sp_att": True, "deform_groups": 2},
    {"pre_fs": False},
    {"pre_fs": False, "deform_groups": 2, "stride": 2, "fs_cfg": {"k_list": [2], "spatial_group": 2}},
    {"use_zero_dilation": True},
    {"use_dct": True},
    {"fs_cfg": None},
    {"fs_cfg": {"k_list": [3, 5], "lp_type": "avgpool"}},
    {"fs_cfg": {"k_list": [2, 4], "lp_type": "laplacian", "spatial_group": 2, "act": "softmax"}},
    {"kernel_size": 5, "deform_groups": 2},
]


@pytest.mark.parametrize("size", [(8, 11), (9, 6)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_is_the_published_formula(options: dict[str, Any], size: tuple[int, int]) -> None:
    layer = random_state(layers.FrequencyAdaptiveConv2d(4, 6, **options))
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    expected = published(layer, x)
    close(layer(x), expected)
    assert expected.shape[2:] == tuple(-(-n // layer.stride[0]) for n in size)


@pytest.mark.parametrize("options", [{}, {"bias": True, "base_dilation": 2}, {"use_position_att": True}, {"padding_mode": "zeros", "deform_groups": 2}], ids=str)  # fmt: skip
def test_volumes_are_the_published_formula(options: dict[str, Any]) -> None:
    layer: Any = random_state(layers.FrequencyAdaptiveConv3d(4, 6, **options))
    x = torch.randn(2, 4, 5, 6, 7, dtype=torch.float64)
    selected = select(layer.fs, x, x)
    mean = layer.weight.mean((2, 3, 4), keepdim=True)
    low, (c, f, *s) = attention(layer.ada_kern.omni_low, selected), attention(layer.ada_kern.omni_high, selected)
    kernels = mean * gains(*low, 3) + (layer.weight - mean) * gains(c, f, 3)
    if s:
        kernels = kernels * 2 * s[0].view(2, 1, 1, 3, 3, 3)
    padded = F.pad(selected, [1] * 6, mode="replicate")
    raw, logits = (F.conv3d(padded, m.weight, m.bias) for m in (layer.adadr.conv_offset, layer.adadr.conv_mask))
    expected = modulated(
        selected, kernels, layer.bias, raw.abs() * layer.base_dilation, torch.sigmoid(logits), (1, 1, 1), 0,
        layer.deform_groups, layer.padding_mode,
    )  # fmt: skip
    close(layer(x), expected)


# ---- Starting and loading ----


def test_it_starts_as_published() -> None:
    """At the rate of the dilation, with half of every tap, whole bands, and gains that are not one."""
    layer = layers.FrequencyAdaptiveConv2d(4, 6, dilation=3, kernel_decompose=None, epsilon=0.0).eval()
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(layer.FS(x), x)
    torch.testing.assert_close(layer.rate(x), torch.full((2, 1, 9, 9), 3.0))
    inside = (..., slice(3, 6), slice(3, 6))
    expected = F.conv2d(x, layer.weight, padding=3, dilation=3) / 2
    torch.testing.assert_close(layer(x)[inside], expected[inside], rtol=1e-4, atol=1e-5)
    assert layer.weight.abs().max() <= 1 / 6
    assert layers.FrequencyAdaptiveConv2d(4, 6, dilation=2).conv_offset.bias.item() == pytest.approx(0.5001)
    volume = layers.FrequencyAdaptiveConv3d(4, 6, epsilon=0.0)
    x = torch.randn(1, 4, 5, 5, 5)
    expected = F.conv3d(F.pad(x, [1] * 6, mode="replicate"), volume.weight) / 2
    torch.testing.assert_close(volume(x), expected, rtol=1e-4, atol=1e-5)


def test_a_loop_that_initialises_convolutions_leaves_rates_masks_and_bands_alone() -> None:
    layer = layers.FrequencyAdaptiveConv2d(4, 6, fs_cfg={"global_selection": True}).apply(
        lambda module: nn.init.normal_(module.weight) if isinstance(module, nn.Conv2d) else None
    )
    x = torch.randn(2, 4, 9, 9)
    assert (layer.rate(x) - 1).abs().max() < 2e-4
    torch.testing.assert_close(layer.FS(x), x)


# Names and shapes of the published class, for 32 channels.
ATTENTION = {
    "fc.weight": (16, 32, 1, 1), "bn.weight": (16,), "bn.bias": (16,), "bn.running_mean": (16,), "bn.running_var": (16,),
    "bn.num_batches_tracked": (), "channel_fc.weight": (32, 16, 1, 1), "channel_fc.bias": (32,),
    "filter_fc.weight": (48, 16, 1, 1), "filter_fc.bias": (48,),
}  # fmt: skip
COMMON = {
    "weight": (48, 32, 3, 3), "conv_offset.weight": (1, 32, 3, 3), "conv_offset.bias": (1,),
    "conv_mask.weight": (9, 32, 3, 3), "conv_mask.bias": (9,), "dilated_offset": (1, 1, 18, 1, 1),
}  # fmt: skip
SELECTION = {f"FS.freq_weight_conv_list.{i}.{name}": shape for i in range(3) for name, shape in (("weight", (1, 32, 3, 3)), ("bias", (1,)))}  # fmt: skip
BOTH = {f"OMNI_ATT{i}.{name}": shape for i in (1, 2) for name, shape in ATTENTION.items()}
STATES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "both": ({"bias": False}, {**COMMON, **SELECTION, **BOTH}),
    "bias": ({}, {**COMMON, **SELECTION, **BOTH, "bias": (48,)}),
    "high": ({"bias": False, "kernel_decompose": "high"}, {**COMMON, **SELECTION, **{f"OMNI_ATT.{n}": s for n, s in ATTENTION.items()}}),
    "none": ({"bias": False, "kernel_decompose": None, "fs_cfg": None}, COMMON),
    "sp_att": (
        {"bias": False, "kernel_decompose": None, "fs_cfg": None, "sp_att": True},
        {**COMMON, "conv_mask_mean_level.weight": (1, 32, 3, 3), "conv_mask_mean_level.bias": (1,)},
    ),
    "dct": (
        {"bias": False, "use_dct": True},
        {**COMMON, **SELECTION, **BOTH, "OMNI_ATT2.spatial_fc.weight": (9, 16, 1, 1), "OMNI_ATT2.spatial_fc.bias": (9,)},
    ),
    "global": (
        {"bias": False, "kernel_decompose": None, "fs_cfg": {"k_list": [2, 4], "global_selection": True}},
        {
            **COMMON, **SELECTION,
            **{f"FS.global_selection_conv_{part}.{name}": shape for part in ("real", "imag") for name, shape in (("weight", (1, 32, 1, 1)), ("bias", (1,)))},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("options, shapes", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize("prefix", ["", "backbone.layer2.0.conv2."])
def test_published_states_load(options: dict[str, Any], shapes: dict[str, tuple[int, ...]], prefix: str) -> None:
    layer = layers.FrequencyAdaptiveConv2d(32, 48, 3, padding=1, **options)
    model: nn.Module = layer
    for name in reversed(prefix.split(".")[:-1]):
        model = nn.ModuleDict({name: model})
    state = {prefix + name: torch.rand(shape) for name, shape in shapes.items()}
    model.load_state_dict(state)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, state[prefix + name].to(tensor.dtype))
    assert prefix + "dilated_offset" in state  # the caller's own is as it was


def test_published_states_of_volumes_load() -> None:
    trunk = {
        "fc.weight": (16, 4, 1, 1, 1), "norm.weight": (16,), "norm.bias": (16,), "channel_fc.weight": (4, 16, 1, 1, 1),
        "channel_fc.bias": (4,), "filter_fc.weight": (6, 16, 1, 1, 1), "filter_fc.bias": (6,),
    }  # fmt: skip
    shapes = {
        "weight": (6, 4, 3, 3, 3),
        **{f"fs.freq_weight_conv_list.{i}.{n}": s for i in range(3) for n, s in (("weight", (1, 4, 3, 3, 3)), ("bias", (1,)))},
        **{f"ada_kern.{part}.{name}": shape for part in ("omni_low", "omni_high") for name, shape in trunk.items()},
        "adadr.conv_offset.weight": (1, 4, 3, 3, 3), "adadr.conv_offset.bias": (1,),
        "adadr.conv_mask.weight": (27, 4, 3, 3, 3), "adadr.conv_mask.bias": (27,),
        "adadr.kzs_idx": (27,), "adadr.kys_idx": (27,), "adadr.kxs_idx": (27,),
    }  # fmt: skip
    layer = layers.FrequencyAdaptiveConv3d(4, 6)
    state = {name: torch.rand(shape) for name, shape in shapes.items()}
    layer.load_state_dict(state)
    assert set(layer.state_dict()) == {name for name in shapes if not name.endswith("_idx")}


# ---- The spectrum ----


@pytest.mark.parametrize("channels", [4, 6])
def test_a_weighted_spectrum_is_the_published_one(channels: int) -> None:
    """Shifted along all axes, channels included, which the predictors of its weights see."""
    module: Any = random_state(layers.FrequencySelection(channels, (2,), False, global_selection=True, spatial_group=2))
    x = torch.randn(3, channels, 6, 7, dtype=torch.float64)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"))
    parts = []
    for part, conv in (
        (spectrum.real, module.global_selection_conv_real),
        (spectrum.imag, module.global_selection_conv_imag),
    ):
        weights = 2 * torch.sigmoid(F.conv2d(part, conv.weight, conv.bias, groups=2))
        parts.append(part * weights.repeat_interleave(channels // 2, 1))
    box = torch.zeros(6, 7, dtype=torch.float64)
    box[round(1.5) : round(4.5), round(1.75) : round(5.25)] = 1
    low = torch.fft.ifft2(torch.fft.ifftshift(torch.complex(*parts) * box), norm="ortho").real
    conv = module.freq_weight_conv_list[0]
    weights = 2 * torch.sigmoid(F.conv2d(x, conv.weight, conv.bias, padding=1, groups=2))
    close(module(x), (x - low) * weights.repeat_interleave(channels // 2, 1) + low)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_spectrum_of_half_types_is_computed_in_float32(dtype: torch.dtype) -> None:
    layer = layers.FrequencyAdaptiveConv2d(4, 6, dtype=dtype)
    x = torch.randn(2, 4, 8, 8, dtype=dtype)
    assert layer(x).dtype == dtype
    assert layer.rate(x).dtype == torch.float32
    torch.testing.assert_close(layer.FS(x), x, rtol=0.02, atol=0.02)


def test_more_than_64_groups_stand_for_all_channels() -> None:
    assert layers.FrequencySelection(70, spatial_group=65).spatial_group == 70


REFUSED = {
    "FrequencySelection(): expected lp_type to be 'freq' or 'avgpool' or 'laplacian', but got 'max'": {"lp_type": "max"},
    "FrequencySelection(): expected lp_type to be 'freq', but got 'avgpool'": {"lp_type": "avgpool", "axes": 3},
    "FrequencySelection(): expected axes to be 2, but got 3": {"global_selection": True, "axes": 3},
    "FrequencySelection(): expected act to be 'sigmoid' or 'softmax', but got 'relu'": {"act": "relu"},
    "FrequencySelection(): expected spatial to be 'conv', but got None": {"spatial": None},
    "FrequencySelection(): expected spatial_group to divide in_channels = 4, but got 3": {"spatial_group": 3},
    "FrequencyAdaptiveConv2d(): expected kernel_size to be odd, but got (3, 2)": {"kernel_size": (3, 2)},
    "FrequencyAdaptiveConv2d(): expected kernel_decompose to be 'both', 'high', 'low' or None, but got 'mean'": {"kernel_decompose": "mean"},
    "FrequencyAdaptiveConv2d(): expected groups to be 1 with kernel_decompose='both', but got 2": {"groups": 2},
    "FrequencyAdaptiveConv3d(): expected padding_mode to be 'border' or 'zeros', but got 'repeat'": {"padding_mode": "repeat"},
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_there_is_not_is_refused_by_name(text: str) -> None:
    name = text.partition("(")[0]
    channels = (4,) if name == "FrequencySelection" else (4, 6)
    with pytest.raises(ValueError, match=name) as caught:
        getattr(layers, name)(*channels, **REFUSED[text])
    assert str(caught.value) == text


def test_it_learns() -> None:
    """Every parameter has a gradient that is not zero."""
    for layer, shape in (
        (layers.FrequencyAdaptiveConv2d(4, 6, use_dct=True, sp_att=True), (2, 4, 9, 9)),
        (layers.FrequencyAdaptiveConv3d(4, 6, bias=True, use_position_att=True), (2, 4, 9, 9, 9)),
    ):
        x = torch.randn(shape)
        for _ in range(2):  # in front of heads that start at zero, gradients come after a step
            layer.zero_grad()
            layer(x).square().sum().backward()
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter -= 1e-3 * parameter.grad
        for name, parameter in layer.named_parameters():
            assert parameter.grad.abs().sum() > 0, name


# ---- As other layers ----


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.FrequencyAdaptiveConv2d(4, 6, use_dct=True), (2, 4, 9, 8)),
        (layers.FrequencyAdaptiveConv3d(4, 6), (2, 4, 5, 6, 7)),
    ],
    ids=["images", "volumes"],
)
def test_compiled_under_autocast_and_exported(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    torch._dynamo.reset()
    compiled = torch.compile(layer.train(), backend="aot_eager", fullgraph=True)
    for run in (layer, compiled):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = run(x)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())
    layer.eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    torch.testing.assert_close(half.float(), layer(x), rtol=0.1, atol=0.03)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_a_pyramid_is_compiled_for_any_size() -> None:
    torch._dynamo.reset()
    select = random_state(layers.FrequencySelection(4, lp_type="laplacian", spatial_group=1))
    compiled = torch.compile(select, backend="aot_eager", fullgraph=True, dynamic=True)
    for height, width in ((8, 9), (12, 7), (9, 9)):
        x = torch.randn(2, 4, height, width, dtype=torch.float64)
        close(compiled(x), select(x))
