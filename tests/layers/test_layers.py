"""Layers from the literature, against formulas and plain implementations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddu_ops
import networks
from cases import assert_same
from ddu_ops import layers, receptive_field

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def with_norms_of_its_own(module: nn.Module) -> nn.Module:
    """As trained: norms that are not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor in (norm.weight, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                nn.init.normal_(tensor)
    return module.eval()


def gradients(module: nn.Module, input: Tensor) -> list[Tensor]:
    output = module(input)
    return [output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))]


def calls_in_backward(module: nn.Module, part: nn.Module, input: Tensor) -> int:
    calls = []
    handle = part.register_forward_hook(lambda *_: calls.append(1))
    loss = module(input).sum()
    before = len(calls)
    loss.backward()
    handle.remove()
    return len(calls) - before


# ---- Blocks ----


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding_is_torchs(axes: int, kernel_size: int, dilation: int) -> None:
    input, weight = torch.randn(1, 2, *(9,) * axes), torch.randn(3, 2, *(kernel_size,) * axes)
    padded = F.pad(input, layers.same_padding(kernel_size, dilation, axes))
    output = CONVOLVE[axes](padded, weight, dilation=dilation)
    assert output.shape[2:] == input.shape[2:]
    close(output, CONVOLVE[axes](input, weight, padding="same", dilation=dilation))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, 4])
def test_a_separable_convolution_is_two(axes: int, kernel_size: int) -> None:
    layer = layers.SeparableConv(4, 6, kernel_size, padding="same", dilation=2, axes=axes)
    input = torch.randn(2, 4, *(7,) * axes)
    depthwise, point = layer.state_dict()["0.weight"], layer.state_dict()["1.weight"]
    product = torch.einsum("oc...,cz...->oc...", point, depthwise)  # of both, as one dense convolution
    close(layer(input), CONVOLVE[axes](input, product, layer[1].bias, padding="same", dilation=2))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("fuse", ["cat", "sum", "mean"])
@pytest.mark.parametrize("separable", [False, True])
def test_convolutions_side_by_side(axes: int, fuse: str, separable: bool) -> None:
    layer = layers.MultiScale(4, 7, (1, 2, 3), fuse=fuse, separable=separable, axes=axes)
    input = torch.randn(2, 4, *(9,) * axes)
    outputs = []
    for rate, branch in zip((1, 2, 3), layer.branches):
        if separable:
            outputs.append(branch(input))
            assert branch[0].dilation == (rate,) * axes
        else:
            outputs.append(CONVOLVE[axes](input, branch.weight, branch.bias, padding=rate, dilation=rate))
    stacked = {"cat": lambda: torch.cat(outputs, 1), "sum": lambda: sum(outputs), "mean": lambda: sum(outputs) / 3}
    close(layer(input), stacked[fuse]())
    assert layer(input).shape == (2, 7, *(9,) * axes)


def test_branches_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^MultiScale\(\): expected fuse to be 'cat', 'sum' or 'mean', but got 'max'"):
        layers.MultiScale(4, 4, (1, 2), fuse="max")
    with pytest.raises(ValueError, match=r"^MultiScale\(\): expected rates to be at least one, and with fuse='cat' no"):
        layers.MultiScale(4, 1, (1, 2))
    with pytest.raises(ValueError, match=r"^DeepLabV2Head\(\): expected rates to be at least one"):
        layers.DeepLabV2Head(4, 4, ())
    with pytest.raises(ValueError, match=r"^MultiScale\(\): expected axes to be 1, 2 or 3, but got 4"):
        layers.MultiScale(4, 4, (1, 2), axes=4)
    with pytest.raises(ValueError, match=r"^MultiScale\(\): expected groups to be 1 where separable, but got 2"):
        layers.MultiScale(4, 4, (1, 2), groups=2, separable=True)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"residual": False}, {"norm": False}, {"blur": True}, {"groups": 2}], ids=str)
def test_a_stack_is_its_list(axes: int, options: dict[str, Any]) -> None:
    stack = with_norms_of_its_own(layers.DilatedStack(4, [1, 4, (1, 2)], axes=axes, **options))
    input = torch.randn(2, 4, *(9,) * axes)
    expected = input
    for block in stack:
        x = block.norm(block.conv(expected))
        if options.get("blur"):
            ones = torch.ones(4, 1, *(3,) * axes)
            total = CONVOLVE[axes](x, ones, padding=1, groups=4)
            x = total / CONVOLVE[axes](torch.ones_like(x), ones, padding=1, groups=4)
        expected = F.relu(x + expected if options.get("residual", True) else x)
    close(stack(input), expected)
    assert [[conv.dilation[0] for conv in block.conv.branches] for block in stack] == [[1], [4], [1, 2]]
    assert all((conv.bias is None) == options.get("norm", True) for block in stack for conv in block.conv.branches)


def test_a_gradual_stack_reads_as_far_as_its_rates() -> None:
    stack = layers.DilatedStack(2, range(1, 6), axes=1)
    rates = [receptive_field.Layer(3, dilation=rate) for rate in range(1, 6)]
    assert receptive_field.trace(stack)[""].size == receptive_field.field(rates).size == (31,)


CHECKPOINTED: dict[str, tuple[Callable[..., nn.Module], Callable[[Any], nn.Module], tuple[int, ...]]] = {
    "DilatedStack": (lambda **o: layers.DilatedStack(4, [1, 2], **o), lambda m: m[1].conv, (2, 4, 9, 9)),
    "ASPP": (lambda **o: layers.ASPP(4, 6, (1, 2), dropout=0, **o), lambda m: m.convs[1], (2, 4, 9, 9)),
    "DynamicASPP": (lambda **o: layers.DynamicASPP(4, 6, (1, 2), dropout=0, **o), lambda m: m.convs[1], (2, 4, 9, 9)),
    "DenseASPP": (lambda **o: layers.DenseASPP(4, (1, 2), dropout=0, **o), lambda m: m.ASPP_2.conv1, (2, 4, 9, 9)),
    "WaveNet": (lambda **o: layers.WaveNet(4, 6, rates=(1, 2), **o), lambda m: m.blocks[0].residual, (2, 4, 20)),
}


@pytest.mark.parametrize("make, part, shape", CHECKPOINTED.values(), ids=CHECKPOINTED.keys())
def test_a_checkpointed_layer_computes_again_and_the_same(
    make: Callable[..., nn.Module], part: Callable[[Any], nn.Module], shape: tuple[int, ...]
) -> None:
    input = torch.randn(shape)
    plain, again = make(), make(checkpoint=True)
    again.load_state_dict(plain.state_dict())
    for actual, expected in zip(gradients(again, input), gradients(plain, input)):
        assert torch.equal(actual, expected)
    assert calls_in_backward(plain, part(plain), input) == 0
    assert calls_in_backward(again, part(again), input) == 1
    with torch.no_grad():
        again(input)


def test_random_rates() -> None:
    layer = layers.RandomDilationConv2d(4, 6, 3, padding="same", rates=(1.0, 3.0), dilation_groups=2).eval()
    input = torch.randn(3, 4, 9, 8)
    expected = ddu_ops.dynamic_dilation_conv2d(input, layer.weight, 2.0, layer.bias, padding=1, dilation_groups=2)
    assert_same(layer(input), expected)
    layer.train()
    same = input[:1].expand(3, -1, -1, -1)
    first, second, third = layer(same)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)
    given = torch.full((1, 2, 1, 1), 1.5)
    assert_same(layer(input, given), ddu_ops.dynamic_dilation_conv2d(input, layer.weight, given, layer.bias, padding=1, dilation_groups=2))  # fmt: skip


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": "valid"}, {"padding": (1, 0), "stride": 2}], ids=str
)
def test_random_rates_everywhere(options: dict[str, Any]) -> None:
    """Of a ramp, a tap reads its place: so the output tells the rate."""
    layer = layers.RandomDilationConv2d(1, 1, 3, bias=False, rates=(0.5, 1.0), everywhere=True, **options)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[0, 0, 1, 0], layer.weight[0, 0, 1, 2] = -0.5, 0.5
    ramp = torch.arange(20.0).expand(1, 1, 20, 20)
    rates = layer(ramp)[0, 0, 1:-1, 1:-1].detach()
    assert rates.shape[0] >= 7
    assert rates.min() >= 0.5 - 1e-5
    assert rates.max() <= 1 + 1e-5
    assert rates.std() > 0.1


# ---- Along time ----


@pytest.mark.parametrize("kernel_size, dilation, groups", [(1, 1, 1), (2, 8, 2), (3, 2, 1)])
def test_a_causal_convolution_reads_the_past(kernel_size: int, dilation: int, groups: int) -> None:
    conv = layers.CausalConv1d(4, 6, kernel_size, dilation, groups)
    signal = torch.randn(2, 4, 20)
    output = conv(signal)
    reach = dilation * (kernel_size - 1)
    assert_same(output, F.conv1d(F.pad(signal, (reach, 0)), conv.weight, conv.bias, dilation=dilation, groups=groups))
    changed = signal.clone()
    changed[..., 11:] += 1
    assert torch.equal(conv(changed)[..., :11], output[..., :11])


PARTS = {"one by one": [1] * 20, "uneven": [7, 1, 12], "at once": [20]}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.CausalConv1d(3, 6, 3, 2, groups=3),
        lambda: layers.WaveNet(3, 5, channels=4, skip_channels=6, rates=(1, 2, 4, 1, 2, 4), kernel_size=3),
    ],
    ids=["conv", "net"],
)
def test_streaming_equals_the_whole(make: Callable[[], Any], parts: list[int]) -> None:
    module, signal = make().double(), torch.randn(2, 3, 20, dtype=torch.float64)
    state, outputs = None, []
    for part in signal.split(parts, -1):
        output, state = module.stream(part, state)
        assert output.shape[-1] == part.shape[-1]
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, -1), module(signal), rtol=0, atol=1e-12)


def test_wavenet_is_its_formula() -> None:
    net = layers.WaveNet(1, 5, channels=4, skip_channels=6, rates=layers.exponential_rates(3, cycles=2)).double()
    signal = torch.randn(2, 1, 30, dtype=torch.float64)

    def causal(x: Tensor, conv: nn.Conv1d, rate: int) -> Tensor:
        return F.conv1d(F.pad(x, (rate, 0)), conv.weight, conv.bias, dilation=rate)

    x, total = causal(signal, net.first, 1), torch.zeros(())
    for block, rate in zip(net.blocks, (1, 2, 4, 1, 2, 4)):
        gated = causal(x, block.conv, rate)
        z = torch.tanh(gated[:, :4]) * torch.sigmoid(gated[:, 4:])
        total = total + F.conv1d(z, block.skip.weight, block.skip.bias)
        if block.residual is not None:
            x = x + F.conv1d(z, block.residual.weight, block.residual.bias)
    expected = F.conv1d(total.relu(), net.last[1].weight, net.last[1].bias)
    expected = F.conv1d(expected.relu(), net.last[3].weight, net.last[3].bias)
    torch.testing.assert_close(net(signal), expected, rtol=0, atol=1e-12)
    net(signal).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())  # nothing that is not used


def test_wavenets_of_the_paper_read_as_far_as_they_say() -> None:
    """Rates 1 to 128 read 256 samples, three cycles of 1 to 512 read 3070; the first convolution adds one."""
    for rates, size in ((layers.exponential_rates(8), 256), (None, 3070)):
        given = {} if rates is None else {"rates": rates}
        net = layers.WaveNet(1, 1, channels=1, skip_channels=1, **given)
        found = receptive_field.trace(net)[""]
        assert (found.size, found.last) == ((size + 1,), (0,))


# ---- Pyramids ----


def test_a_pyramid_is_torchvisions() -> None:
    """It loads its state by its names, in all of its forms, and computes the same."""
    theirs = with_norms_of_its_own(networks.ASPP(4, (1, 2, 3), 6))
    input = torch.randn(2, 4, 9, 10)
    for ours in (layers.ASPP(4, 6, (1, 2, 3)), layers.DynamicASPP(4, 6, (1, 2, 3))):
        ours.load_state_dict(theirs.state_dict())
        close(ours.eval()(input), theirs(input))
    names = set(theirs.state_dict())
    assert set(layers.ASPP(4, 6, (1, 2, 3)).state_dict()) == names
    assert set(layers.DynamicASPP(4, 6, (1, 2, 3)).state_dict()) == names | {"rate.weight", "rate.bias"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_deeplab_head_is_torchvisions(dynamic: bool) -> None:
    theirs = with_norms_of_its_own(networks.deeplab_head(4, 5))
    ours = layers.DeepLabV3Head(4, 5, (1, 2), channels=8, dynamic=dynamic)
    ours.load_state_dict(theirs.state_dict())
    input = torch.randn(2, 4, 9, 10)
    close(ours.eval()(input), theirs(input))


def test_the_rates_are_one_after_a_state_without_them() -> None:
    head = layers.DynamicASPP(4, 6, (1, 2))
    nn.init.ones_(head.rate.bias)
    head.load_state_dict(networks.ASPP(4, (1, 2), 6).state_dict())
    assert (head.rate(torch.randn(1, 4, 5, 5)) == 1).all()
    state = head.state_dict()
    del state["rate.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "rate.bias"'):
        head.load_state_dict(state)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("kind", [layers.ASPP, layers.DynamicASPP])
def test_a_pyramid_on_other_axes(axes: int, kind: Any) -> None:
    head: Any = with_norms_of_its_own(kind(4, 6, (1, 2), axes=axes))
    input = torch.randn(2, 4, *(7,) * axes)
    point, *dilated, mean = head.convs
    branches = [F.relu(point[1](CONVOLVE[axes](input, point[0].weight)))]
    for rate, branch in zip((1, 2), dilated):
        branches.append(F.relu(branch[1](CONVOLVE[axes](input, branch[0].weight, padding=rate, dilation=rate))))
    whole = input.mean(list(range(2, axes + 2)), keepdim=True)
    branches.append(F.relu(mean[2](mean[1](whole))).expand_as(branches[0]))
    close(head(input), head.project(torch.cat(branches, 1)))


def test_the_branches_of_deeplab_v3_plus_are_separable() -> None:
    head = layers.ASPP(4, 6, (2,), separable=True)
    assert {name: tuple(p.shape) for name, p in head.convs[1].named_parameters()} == {
        "0.0.weight": (4, 1, 3, 3), "0.1.weight": (6, 4, 1, 1), "1.weight": (6,), "1.bias": (6,),
    }  # fmt: skip
    assert receptive_field.trace(head)["convs.1"].size == (5, 5)


def test_dynamic_branches_share_one_rate(device: torch.device) -> None:
    """Twice the rate is twice the dilation of every branch."""
    head = with_norms_of_its_own(layers.DynamicASPP(4, 6, (1, 2, 3), pace=1.0, bounds=None)).to(device)
    twice = with_norms_of_its_own(layers.ASPP(4, 6, (2, 4, 6))).to(device)
    twice.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("rate")})
    nn.init.ones_(head.rate.bias)
    input = torch.randn(2, 4, 16, 16, device=device)
    inside = (..., slice(6, 10), slice(6, 10))  # the windows keep the centres of the smaller ones
    close(head(input)[inside], twice(input)[inside])
    head.train()(input).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_dense_pyramid_is_its_formula() -> None:
    head = with_norms_of_its_own(layers.DenseASPP(4, (2, 3), hidden=6, growth=5))
    assert list(head.state_dict())[:5] == [
        "ASPP_2.conv1.weight", "ASPP_2.conv1.bias", "ASPP_2.norm2.weight", "ASPP_2.norm2.bias", "ASPP_2.norm2.running_mean",
    ]  # fmt: skip
    assert "ASPP_3.norm1.weight" in head.state_dict()
    features = input = torch.randn(2, 4, 9, 9)
    for rate, block in ((2, head.ASPP_2), (3, head.ASPP_3)):
        x = block.norm1(features) if rate == 3 else features
        x = F.conv2d(x.relu(), block.conv1.weight, block.conv1.bias)
        x = F.conv2d(block.norm2(x).relu(), block.conv2.weight, block.conv2.bias, padding=rate, dilation=rate)
        features = torch.cat([x, features], 1)
    close(head(input), features)
    assert head.out_channels == features.shape[1] == 14
    assert head.ASPP_3.norm1.momentum == head.ASPP_2.norm2.momentum == 3e-4
    with pytest.raises(ValueError, match=r"^DenseASPP\(\): expected rates to differ, because .*, but got \(3, 3\)$"):
        layers.DenseASPP(4, (3, 3))


def test_the_cascade_of_dense_pyramids() -> None:
    """Alone it reads a third of the pixels in its reach; the connections past its branches fill in more."""
    found = receptive_field.coverage([3, 6, 12, 18, 24])
    assert (found.size, found.covered) == (127, 43)
    assert receptive_field.trace(layers.DenseASPP(1))[""].size == (127, 127)


def test_a_reduced_pyramid_is_three_convolutions() -> None:
    head = with_norms_of_its_own(layers.EfficientASPP(4, 6, 2, (1, 3)))
    input = torch.randn(2, 4, 9, 9)
    x = head[1](F.conv2d(input, head[0].weight)).relu()
    x = torch.cat([F.conv2d(x, b.weight, padding=r, dilation=r) for r, b in zip((1, 3), head[3].branches)], 1)
    close(head(input), head[7](F.conv2d(head[4](x).relu(), head[6].weight)).relu())
    assert x.shape[1] == 4


def test_a_segmenter_enlarges_what_its_head_says() -> None:
    net = layers.Segmenter(nn.Conv2d(3, 4, 3, 4, 1), layers.DeepLabV2Head(4, 5))
    input = torch.randn(2, 3, 16, 20)
    expected = F.interpolate(net.head(net.backbone(input)), (16, 20), mode="bilinear")
    assert_same(net(input), expected)


# ---- Smoothing ----


@pytest.mark.parametrize("interaction", ["shared", "group"])
@pytest.mark.parametrize("dilation, size", [(1, (5, 5)), (2, (7, 8)), (3, (9, 11))])
def test_smoothing_starts_as_the_plain_convolution(interaction: str, dilation: int, size: tuple[int, int]) -> None:
    layer = layers.SmoothedDilatedConv2d(4, 6, 3, dilation, interaction=interaction)
    input = torch.randn(2, 4, *size)
    close(layer(input), F.conv2d(input, layer.conv.weight, layer.conv.bias, padding=dilation, dilation=dilation))
    added = sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in layer.conv.parameters())
    assert added == ((2 * dilation - 1) ** 2 if interaction == "shared" else dilation**4)


def test_a_shared_filter_reads_every_channel_alike() -> None:
    layer = layers.SmoothedDilatedConv2d(3, 6, 3, 2)
    nn.init.normal_(layer.smoothing)
    input = torch.randn(2, 3, 8, 8)
    smooth = torch.cat([F.conv2d(input[:, c : c + 1], layer.smoothing[None, None], padding=1) for c in range(3)], 1)
    close(layer(input), F.conv2d(smooth, layer.conv.weight, layer.conv.bias, padding=2, dilation=2))


def test_grids_mix_as_the_matrix_says() -> None:
    d = 3
    layer = layers.SmoothedDilatedConv2d(2, 4, 3, d, interaction="group")
    nn.init.normal_(layer.smoothing)
    input = torch.randn(1, 2, 9, 9)
    plain = F.conv2d(input, layer.conv.weight, layer.conv.bias, padding=d, dilation=d)
    grids = [plain[..., i // d :: d, i % d :: d] for i in range(d * d)]
    output = layer(input)
    for i in range(d * d):
        expected = sum(layer.smoothing[j, i] * grids[j] for j in range(d * d))
        close(output[..., i // d :: d, i % d :: d], expected)


def test_smoothing_refuses_what_it_is_not_for() -> None:
    with pytest.raises(ValueError, match=r"^SmoothedDilatedConv2d\(\): expected kernel_size to be odd, but got 2"):
        layers.SmoothedDilatedConv2d(4, 4, 2)
    with pytest.raises(
        ValueError, match=r"^SmoothedDilatedConv2d\(\): expected interaction to be 'shared' or 'group', "
    ):
        layers.SmoothedDilatedConv2d(4, 4, interaction="both")


# ---- Strides ----


@pytest.mark.parametrize("output_stride, rates", [(8, [1, 1, 2, 4]), (16, [1, 1, 1, 2]), (32, [1, 1, 1, 1])])
def test_dilation_in_the_place_of_strides(output_stride: int, rates: list[int]) -> None:
    """The coarse output is part of the fine one. The first block of a stage has the rate of the stage before."""
    net = with_norms_of_its_own(networks.ResNet50(4)).double()
    input = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    coarse = net.features(input)
    assert layers.replace_stride_with_dilation(net, output_stride) is net
    fine, step = net.features(input), 32 // output_stride
    torch.testing.assert_close(fine[..., ::step, ::step], coarse)
    for stage in range(4):
        blocks = getattr(net, f"layer{stage + 1}")
        assert [block.conv2.dilation[0] for block in blocks[1:]] == [rates[stage]] * (len(blocks) - 1)
        assert blocks[0].conv2.dilation[0] == rates[max(stage - 1, 0)]


@pytest.mark.parametrize(
    "model, shape",
    [
        (nn.Sequential(nn.Conv1d(2, 3, 5, 2, 2), nn.MaxPool1d(3, 2, 1), nn.Conv1d(3, 2, 4, 1, 2)), (1, 2, 33)),
        (nn.Sequential(nn.Conv3d(2, 3, 3, 2, 1), nn.AvgPool3d(2), nn.Conv3d(3, 2, 1)), (1, 2, 16, 16, 16)),
        (nn.Sequential(nn.Conv2d(2, 3, 3, (2, 1), 1), nn.Conv2d(3, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, padding="same")), (1, 2, 9, 9)),
        (nn.Sequential(nn.Conv2d(2, 3, 2, 2), ddu_ops.DynamicDilationConv2d(3, 3, 3, 2, 1), ddu_ops.DynamicDilationConv2d(3, 2, 3, padding=1)), (1, 2, 16, 16)),
    ],
    ids=["line", "volume", "each axis", "dynamic"],
)  # fmt: skip
def test_strides_of_every_kind_of_layer(model: nn.Module, shape: tuple[int, ...]) -> None:
    model, input = model.double().eval(), torch.randn(shape, dtype=torch.float64)
    coarse, jump = model(input), receptive_field.trace(model, input)[""].jump
    layers.replace_stride_with_dilation(model, 2, input)
    assert set(receptive_field.trace(model, input)[""].jump) == {2}
    steps = [slice(None, None, int(j) // 2) for j in jump]
    fine = model(input)[(..., *steps)]
    torch.testing.assert_close(fine[(..., *(slice(n) for n in coarse.shape[2:]))], coarse)


def test_strides_that_cannot_be_replaced() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, 2, 1)

        def forward(self, input: Tensor) -> Tensor:
            return F.max_pool2d(self.conv(input), 2)

    refused = {
        "output_stride to be a product of strides, but got 3, which '1' steps over from 2 to 4": (
            nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.Conv2d(1, 1, 2, 2)), 3),
        "modules that can be dilated, but got '1', of type AvgPool2d": (
            nn.Sequential(nn.Conv2d(1, 1, 4, 4), nn.AvgPool2d(2)), 1),
        "modules that can be dilated, but got '1', of type ConvTranspose2d": (
            nn.Sequential(nn.Conv2d(1, 1, 4, 4), nn.ConvTranspose2d(1, 1, 2, 2)), 1),
        "strides to be those of modules, but got others in front of ''": (Pools(), 1),
    }  # fmt: skip
    for text, (model, output_stride) in refused.items():
        before = repr(model)
        with pytest.raises(ValueError, match=r"^replace_stride_with_dilation\(\): ") as caught:
            layers.replace_stride_with_dilation(model, output_stride)
        assert str(caught.value) == f"replace_stride_with_dilation(): expected {text}"
        assert repr(model) == before
