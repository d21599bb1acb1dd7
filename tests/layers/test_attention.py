"""Layers that sum over windows, each against a plain implementation."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import assert_near
from ddu_ops.layers import attention as layers


def double(module: nn.Module) -> nn.Module:
    """In float64, with parameters that are all away from where they start."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


# ---- DilateFormer ----


class PlainDilateAttention(nn.Module):
    """The definition, by ``nn.Unfold``: a group of heads after the other."""

    def __init__(self, dim: int, num_heads: int, dilation: tuple[int, ...], kernel_size: int) -> None:
        super().__init__()
        self.num_heads, self.dilation, self.kernel_size = num_heads, dilation, kernel_size
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, input: Tensor) -> Tensor:
        batch, height, width, dim = input.shape
        head = dim // self.num_heads
        qkv = self.qkv(input.permute(0, 3, 1, 2)).view(batch, 3, len(self.dilation), -1, height * width)
        parts = []
        for group, rate in enumerate(self.dilation):
            query, key, value = qkv[:, :, group].unbind(1)
            padding = rate * (self.kernel_size - 1) // 2
            keys, values = (
                F.unfold(x.unflatten(-1, (height, width)), self.kernel_size, rate, padding).view(
                    batch, -1, head, self.kernel_size**2, height * width
                )
                for x in (key, value)
            )
            scores = (query.view(batch, -1, head, 1, height * width) * keys).sum(2) * head**-0.5
            parts.append((scores.softmax(2).unsqueeze(2) * values).sum(3).flatten(1, 2))
        return self.proj(torch.cat(parts, 1).view(batch, dim, height, width).permute(0, 2, 3, 1))


class PlainDilateBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PlainDilateAttention(dim, num_heads, (1, 2, 3), 3)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, input: Tensor) -> Tensor:
        rows = (input + self.pos_embed(input)).permute(0, 2, 3, 1)
        rows = rows + self.attn(self.norm1(rows))
        rows = rows + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(rows))))  # type: ignore[operator]
        return rows.permute(0, 3, 1, 2)


@pytest.mark.parametrize("predict", [False, True])
def test_dilateformers_block_loads_its_state_and_gives_its_outputs(predict: bool) -> None:
    plain = double(PlainDilateBlock(12, 6))
    block = layers.DilateBlock(12, 6, cpe_per_block=True, predict=predict).double()
    block.load_state_dict(plain.state_dict())
    input = torch.randn(2, 12, 7, 6, dtype=torch.float64)
    assert_near(block(input), plain(input))


def test_a_block_trains_its_rates() -> None:
    torch.manual_seed(0)
    block = layers.DilateBlock(12, 6, predict=True)
    optimizer = torch.optim.Adam(block.parameters(), 3e-3)
    input, target = torch.randn(2, 12, 9, 9), torch.randn(2, 12, 9, 9)
    losses = []
    for _ in range(15):
        loss = F.mse_loss(block(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert block.attn.rate is not None
    assert (block.attn.rate(input) != 1).any()


# ---- Neighbourhood attention ----


def plain_attention(layer: Any, input: Tensor, rate: int, exclude: bool) -> Tensor:
    """Tap by tap, by shifts of the padded keys and values."""
    axes, heads = input.dim() - 2, layer.num_heads
    query, key, value = (t.unflatten(1, (heads, -1)) for t in layer.qkv(input).chunk(3, 1))
    reach = [k // 2 * rate for k in layer.kernel_size]
    sides = [side for r in reversed(reach) for side in (r, r)]
    padded = [F.pad(x, sides) for x in (key, value, torch.ones_like(key[:, :1, :1]))]
    scores, values = [], []
    for tap in torch.cartesian_prod(*map(torch.arange, layer.kernel_size)).view(-1, axes).tolist():
        place = [slice(t * rate, t * rate + n) for t, n in zip(tap, input.shape[2:], strict=True)]
        k, v, inside = (x[(..., *place)] for x in padded)
        score = (query * k).sum(2) * query.shape[2] ** -0.5
        if layer.position_bias is not None:
            score = score + layer.position_bias[:, len(scores)].view(-1, *[1] * axes)
        scores.append(score.masked_fill(inside[:, :, 0] == 0, -math.inf) if exclude else score)
        values.append(v)
    weights = torch.stack(scores).softmax(0)
    return layer.proj((weights.unsqueeze(3) * torch.stack(values)).sum(0).flatten(1, 2))


@pytest.mark.parametrize("outside", ["zero", "exclude"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_neighborhood_attention_is_its_definition(axes: int, outside: str) -> None:
    make = getattr(layers, f"NeighborhoodAttention{axes}d")
    layer = double(make(8, 4, (5, 3, 3)[:axes], rates=2, outside=outside, position_bias=True))
    input = torch.randn(2, 8, *(7, 6, 5)[:axes], dtype=torch.float64)
    assert_near(layer(input), plain_attention(layer, input, 2, outside == "exclude"))


def test_a_map_multiplies_the_rates_of_the_heads() -> None:
    layer = layers.NeighborhoodAttention2d(8, 4, 3, rates=(1, 2))
    other = layers.NeighborhoodAttention2d(8, 4, 3, rates=(2, 4))
    other.load_state_dict(layer.state_dict() | {"rates": other.rates})
    input = torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(layer(input, torch.full((2, 1, 6, 7), 2.0)), other(input))


def test_a_predicted_map_starts_at_one() -> None:
    layer = layers.NeighborhoodAttention2d(8, 4, 3, predict=True)
    plain = layers.NeighborhoodAttention2d(8, 4, 3)
    plain.load_state_dict(layer.state_dict(), strict=False)
    input = torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(layer(input), plain(input))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dim": 9}, "num_heads to divide the 9 channels"),
        ({"kernel_size": 4}, "kernel_size to be odd"),
        ({"rates": (1, 2, 3)}, "as many rates as divide the 4 heads"),
        ({"outside": "inside"}, "outside to be 'zero' or 'exclude'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layers.NeighborhoodAttention2d(**({"dim": 8, "num_heads": 4} | arguments))


# ---- DCNv4 ----


def plain_dcnv4(layer: layers.DCNv4, input: Tensor, height: int, width: int) -> Tensor:
    """Tap by tap, by ``F.grid_sample``, in the order of the published kernel: x outside, y inside."""
    k, group, scale = layer.kernel_size, layer.group, layer.offset_scale
    value = layer.value_proj(input) if layer.value_proj is not None else input
    image = value.transpose(1, 2).unflatten(2, (height, width)).unflatten(1, (group, -1)).flatten(0, 1)
    predicted = layer.offset_mask(input)[..., : 3 * group * layer.points]
    predicted = predicted.view(len(input), height, width, group, -1).permute(0, 3, 1, 2, 4).flatten(0, 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    r = (layer.dilation * (k - 1)) >> 1
    places = [(i, j) for i in range(k) for j in range(k)]
    if layer.remove_center:
        places.remove((k // 2, k // 2))
    total = torch.zeros_like(image)
    for p, (i, j) in enumerate(places):
        px = x - layer.pad + r + scale * (-r + i * layer.dilation + predicted[..., 2 * p])
        py = y - layer.pad + r + scale * (-r + j * layer.dilation + predicted[..., 2 * p + 1])
        grid = torch.stack([2 * px / (width - 1) - 1, 2 * py / (height - 1) - 1], -1)
        factor = predicted[..., 2 * layer.points + p].unsqueeze(1)
        total = total + factor * F.grid_sample(image, grid, align_corners=True)
    rows = total.unflatten(0, (-1, group)).flatten(1, 2).flatten(2).transpose(1, 2)
    if layer.center_feature_scale:
        share = (rows @ layer.center_feature_scale_proj_weight.T + layer.center_feature_scale_proj_bias).sigmoid()
        share = share.repeat_interleave(layer.channels // group, 2)
        rows = rows * (1 - share) + value * share
    return layer.output_proj(rows) if layer.output_proj is not None else rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"offset_scale": 1.5, "remove_center": True},
        {"kernel_size": 5, "pad": 4, "dilation": 2, "group": 1},
        {"center_feature_scale": True, "output_bias": False},
        {"without_pointwise": True},
    ],
    ids=str,
)
def test_dcnv4_is_its_definition(options: dict[str, Any]) -> None:
    layer = double(layers.DCNv4(16, **({"group": 2} | options)))
    input = torch.randn(2, 42, 16, dtype=torch.float64)
    assert_near(layer(input, (6, 7)), plain_dcnv4(layer, input, 6, 7))  # type: ignore[arg-type]


def test_dcnv4_has_the_published_state() -> None:
    layer = layers.DCNv4(64, group=4, dw_kernel_size=3, center_feature_scale=True)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "center_feature_scale_proj_weight": (4, 64),
        "center_feature_scale_proj_bias": (4,),
        "offset_mask.weight": (112, 64),
        "offset_mask.bias": (112,),
        "offset_mask_dw.weight": (64, 1, 3, 3),
        "offset_mask_dw.bias": (64,),
        "value_proj.weight": (64, 64),
        "value_proj.bias": (64,),
        "output_proj.weight": (64, 64),
        "output_proj.bias": (64,),
    }


@pytest.mark.parametrize("stride", [1, 2])
def test_dcnv4_takes_any_stride(stride: int) -> None:
    layer = layers.DCNv4(16, group=2, stride=stride)
    input = torch.randn(2, 49, 16)
    side = (7 - 1) // stride + 1
    assert layer(input).shape == (2, side**2, 16)


# ---- Involution ----


@pytest.mark.parametrize("stride", [1, 2])
def test_involution_is_its_definition(stride: int) -> None:
    layer = double(layers.Involution2d(32, 5, stride)).train(False)
    assert {"conv1.conv.weight", "conv1.bn.running_var", "conv2.conv.weight", "conv2.conv.bias"} <= set(
        layer.state_dict()
    )
    input = torch.randn(2, 32, 8, 6, dtype=torch.float64)
    pooled = input if stride == 1 else F.avg_pool2d(input, stride)
    kernels = layer.conv2(layer.conv1(pooled)).view(2, 2, 1, 25, -1)  # type: ignore[operator]
    columns = F.unfold(input, 5, padding=2, stride=stride).view(2, 2, 16, 25, -1)
    want = (kernels * columns).sum(3).view(2, 32, 8 // stride, 6 // stride)
    assert_near(layer(input), want)


# ---- Pooling ----


@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pooling_starts_as_torchs_and_learns_its_rates(kind: str, axes: int) -> None:
    pool = getattr(layers, f"{kind}{axes}d")(3, 2, 1, groups=2)
    input = torch.randn(2, 4, *(7, 9, 8)[:axes])
    result = pool(input)
    torch.testing.assert_close(result, getattr(nn, f"{kind}{axes}d")(3, 2, 1)(input))
    result.square().sum().backward()
    assert pool.rate.grad.shape == (2,)
    assert pool.rate.grad.abs().min() > 0
