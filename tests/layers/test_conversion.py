"""Models converted to adaptive layers in one call, and back."""

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from expecttest import assert_expected_inline
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import ddu_ops
import networks
from ddu_ops import adapt, layers, to_fixed

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "ResNet-50": (lambda: networks.ResNet50(4), (2, 3, 64, 48), 17),
    "ConvNeXt": (networks.ConvNeXt, (2, 3, 32, 32), 5),
    "DeepLabV3": (networks.DeepLabV3, (2, 3, 32, 24), 6),
    "3-D UNet": (networks.UNet3d, (1, 1, 8, 12, 10), 3),
    "WaveNet": (networks.Causal, (2, 1, 40), 6),
}
models = pytest.mark.parametrize("make, shape, count", MODELS.values(), ids=MODELS.keys())
sources = pytest.mark.parametrize("source", ["rates", "offsets", "affine"])
ADAPTIVE = (
    ddu_ops.DynamicDilationConv1d, ddu_ops.DynamicDilationConv2d, ddu_ops.DynamicDilationConv3d,
    ddu_ops.DeformConv1d, ddu_ops.DeformConv2d, ddu_ops.DeformConv3d,
    ddu_ops.AffineConv1d, ddu_ops.AffineConv2d, ddu_ops.AffineConv3d,
)  # fmt: skip


def adaptive(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, ADAPTIVE)]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


# ---- Fixed to adaptive ----


@models
@sources
def test_a_model_starts_with_the_results_that_it_had(
    make: Callable[[], nn.Module], shape: tuple[int, ...], count: int, source: str
) -> None:
    """In training, too, and with the gradients of the parameters that it had."""
    model, input = make().double(), torch.randn(shape, dtype=torch.float64)
    plain = copy.deepcopy(model)
    adapted = adapt(model, source=source)
    assert adapted.model is model
    assert len(adapted.changes) == len(adaptive(model)) == count
    assert model.training
    outputs = []
    for m in (model, plain):
        torch.manual_seed(0)  # of dropout
        outputs.append(m(input))
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for name, parameter in plain.named_parameters():
        actual, expected = model.get_parameter(name).grad, parameter.grad
        assert actual is not None
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9, msg=name)
    assert all(parameter.grad is not None for parameter in adapted.added)
    close(model.eval()(input), plain.eval()(input))


def test_the_layers_of_a_resnet_that_are_replaced() -> None:
    model = networks.ResNet50(4)
    adapt(model)
    stages = {f"layer{stage}.{block}.conv2" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)}
    assert set(adaptive(model)) == {"conv1"} | stages


def test_layers_are_chosen_by_name_type_and_predicate() -> None:
    def chosen(**options: Any) -> list[str]:
        model = nn.ModuleDict({"a1": nn.Conv1d(2, 2, 5), "a2": nn.Conv2d(2, 2, 3), "b2": nn.Conv2d(2, 2, 1), "b3": nn.ConvTranspose2d(2, 2, 3), "c": nn.Conv2d(2, 2, (1, 3))})  # fmt: skip
        adapt(model, **options)
        return adaptive(model)

    assert chosen() == ["a1", "a2", "c"]
    assert chosen(names="a*") == ["a1", "a2"]
    assert chosen(names=["a1", "[bc]"]) == ["a1", "c"]
    assert chosen(types=nn.Conv2d) == ["a2", "c"]
    assert chosen(where=lambda name, conv: name.startswith("b") or conv.kernel_size == (5,)) == ["a1", "b2"]


def test_nothing_to_replace_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1))
    with pytest.warns(UserWarning, match=r"^adapt\(\): no layer was replaced, because none is selected by names"):
        assert not adapt(model, "layer9").changes
    assert adaptive(model) == []


def test_options_go_to_the_new_layers() -> None:
    model = adapt(nn.Sequential(nn.Conv2d(4, 4, 3)), bounds=(0.5, 3.0), per_axis=True, dilation_groups=2).model
    assert model[0].rate.bounds == (0.5, 3.0)
    assert model[0].rate.out_channels == 4
    assert adapt(nn.Conv2d(4, 4, 3), source="offsets", mask=None).model.offset.mask is None
    with pytest.raises(
        ValueError, match=r"^adapt\(\): expected source to be 'rates', 'offsets' or 'affine', but got 'taps'$"
    ):
        adapt(model, source="taps")


def shipped(package: str, name: str) -> nn.Module:
    """A model of torchvision or timm, without trained weights."""
    if package == "timm":
        return pytest.importorskip("timm").create_model(name, num_classes=5)
    try:
        from torchvision import models
    except (ImportError, RuntimeError):  # not there, or built for another torch
        pytest.skip("torchvision is not installed")
    options = {"weights_backbone": None} if name.startswith("deeplab") else {}
    return models.get_model(name, weights=None, num_classes=5, **options)


@pytest.mark.parametrize(
    "package, name, count",
    [
        ("torchvision", "resnet50", 17),
        ("torchvision", "convnext_tiny", 19),
        ("torchvision", "deeplabv3_resnet50", 21),
        ("timm", "convnext_tiny", 19),
    ],
)
def test_a_model_that_is_shipped(package: str, name: str, count: int) -> None:
    """It starts with its results, learns, is exported and goes back."""
    model, input = shipped(package, name).eval(), torch.randn(2, 3, 64, 64)
    before, expected = repr(model), results_of(model(input))
    adapted = adapt(model)
    assert len(adapted.changes) == count
    close(results_of(model(input)), expected)
    close(results_of(torch.export.export(model, (input,)).module()(input)), expected)
    results_of(model.train()(input)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapted.added)
    to_fixed(model, input)
    assert repr(model) == before


def results_of(output: Tensor | dict[str, Tensor]) -> Tensor:
    return output["out"] if isinstance(output, dict) else output


@sources
def test_parameters_hooks_type_and_mode_are_kept(source: str) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    conv.mark = "a user's"
    weight, bias, calls = conv.weight, conv.bias, []
    handles = [
        conv.register_forward_hook(lambda *_: calls.append("forward")),
        conv.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True),
        conv.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    model = nn.Sequential(conv)
    input = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    expected = model(input).detach()
    calls.clear()
    layer: Any = adapt(model, source=source).model[0]
    assert layer.weight is weight
    assert layer.bias is bias
    assert not layer.weight.requires_grad
    assert not layer.training
    assert layer.mark == "a user's"
    assert layer.padding_mode == "reflection"
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    output = model(input)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert calls == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    model(input).sum().backward()
    assert len(calls) == 3


def test_a_model_on_meta() -> None:
    with torch.device("meta"):
        model = networks.ResNet50(4)
    adapt(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_layers_in_several_places_and_tied_weights_stay_so() -> None:
    shared, tied = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    tied.weight = shared.weight
    model: Any = nn.Sequential(shared, nn.ReLU(), shared, tied)
    adapted = adapt(model)
    assert model[0] is model[2]
    assert isinstance(model[0], ddu_ops.DynamicDilationConv2d)
    assert model[3].weight is model[0].weight
    assert [change.name for change in adapted.changes] == ["0", "3"]


def test_a_model_that_is_a_layer() -> None:
    conv = nn.Conv3d(2, 2, 3)
    adapted = adapt(conv)
    assert isinstance(adapted.model, ddu_ops.DynamicDilationConv3d)
    assert adapted.model.weight is conv.weight


def test_adapting_twice_is_adapting_once() -> None:
    model = adapt(networks.DeepLabV3()).model
    before = repr(model)
    nn.init.ones_(model.get_submodule("backbone.0").rate.bias)
    for source in ("rates", "offsets", "affine"):
        again = adapt(model, source=source)
        assert again.changes == ()
        assert again.added == []
    assert repr(model) == before
    assert model.get_submodule("backbone.0").rate.bias.item() == 1


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_kept_is_refused_by_name() -> None:
    """All of it at once, and the model is as it was."""
    own = nn.Conv2d(4, 4, 3)
    own.forward = lambda input: input  # type: ignore[method-assign]
    pruned = nn.Conv2d(4, 4, 3)
    prune.l1_unstructured(pruned, "weight", 0.5)
    refused = {
        "circular": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padding_mode .* but got 'circular'"),
        "subclass": (Standardised(4, 4, 3), "but got Standardised with forward of its own"),
        "own": (own, "but got Conv2d with forward of its own"),
        "causal": (layers.CausalConv1d(4, 4, 3), "but got CausalConv1d with forward"),
        "parametrised": (parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "but got .*"),
        "old_norm": (nn.utils.weight_norm(nn.Conv2d(4, 4, 3)), "parameters weight and bias, but got weight_g, weight_v, too"),
        "pruned": (pruned, "parameters weight and bias, but got weight_mask, weight_orig, too"),
        "lazy": (nn.LazyConv2d(4, 3), "but got LazyConv2d with"),
    }  # fmt: skip
    model = nn.ModuleDict({"plain": nn.Conv2d(4, 4, 3), **{name: conv for name, (conv, _) in refused.items()}})
    before = repr(model)
    with pytest.raises(TypeError, match=r"^adapt\(\): expected layers whose results can be kept, but got\n") as caught:
        adapt(model)
    assert repr(model) == before
    _, *lines, last = str(caught.value).splitlines()
    assert len(lines) == len(refused)
    for line, (name, (_, text)) in zip(lines, refused.items()):
        assert line.startswith(f"  {name}: ")
        assert re.search(text, line), line
    assert last == "Leave them out by names or where."
    assert adaptive(adapt(model, where=lambda name, _: name not in refused).model) == ["plain"]


def test_the_table() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv1d(2, 2, 3)))
    assert_expected_inline(
        str(adapt(model)),
        """\
layer  was     is
0      Conv2d  DynamicDilationConv2d  28 new parameters
1.0    Conv1d  DynamicDilationConv1d  7 new parameters""",
    )
    assert str(adapt(nn.Conv2d(3, 8, 3))).splitlines()[1].startswith("(the model)  Conv2d")


def test_the_new_parameters_are_a_group_of_their_own() -> None:
    model = networks.DeepLabV3()
    before = list(model.parameters())
    adapted = adapt(model)
    rest, new = adapted.parameter_groups(lr=1e-4, weight_decay=0.0)
    assert [id(p) for p in rest["params"]] == [id(p) for p in before]
    assert {id(p) for p in rest["params"] + new["params"]} == {id(p) for p in model.parameters()}
    optimizer = torch.optim.AdamW(adapted.parameter_groups(lr=1e-4), lr=1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]


def steps(model: nn.Module, adapted: ddu_ops.conversion.Conversion, count: int, device: str = "cpu") -> list[float]:
    """Of training with bfloat16 autocast, on one batch."""
    optimizer = torch.optim.AdamW(adapted.parameter_groups(lr=1e-2), lr=1e-3)
    input, labels = torch.randn(4, 3, 32, 32, device=device), torch.arange(4, device=device)
    losses = []
    for _ in range(count):
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(model(input).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "device, backend",
    [
        ("cpu", "aot_eager"),  # quicker to compile; a network on inductor is test_compile.py's
        pytest.param("cuda", "inductor", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ],
)
def test_a_compiled_resnet_trains_with_autocast(device: str, backend: str) -> None:
    torch._dynamo.reset()
    adapted = adapt(networks.ResNet50(4).to(device))
    losses = steps(torch.compile(adapted.model, backend=backend, fullgraph=True), adapted, 10, device)
    assert losses[-1] < losses[0]
    rates = [adapted.model.get_submodule(change.name).rate for change in adapted.changes]
    assert all(rate.weight.abs().sum() > 0 for rate in rates)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@models
@pytest.mark.usefixtures("one_process")
def test_a_model_in_several_processes(make: Callable[[], nn.Module], shape: tuple[int, ...], count: int) -> None:
    """No parameter is left without a gradient, which would be an error there in the second step."""
    adapted = adapt(make())
    model = nn.parallel.DistributedDataParallel(adapted.model)
    optimizer = torch.optim.AdamW(adapted.parameter_groups(lr=1e-2), lr=1e-3)
    before = [parameter.clone() for parameter in adapted.added]
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(shape)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(parameter, old) for parameter, old in zip(adapted.added, before, strict=True))


@pytest.mark.parametrize("make, shape", [MODELS[name][:2] for name in MODELS if name != "ResNet-50"])  # it trains above
@sources
def test_an_adapted_model_compiles(make: Callable[[], nn.Module], shape: tuple[int, ...], source: str) -> None:
    """In one graph, with its gradients. Without dropout, whose seed a compiler does not keep."""
    torch._dynamo.reset()
    model, input = adapt(make(), source=source).model.double(), torch.randn(shape, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    outputs = model(input), compiled(input)
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


@models
def test_an_adapted_model_is_exported(make: Callable[[], nn.Module], shape: tuple[int, ...], count: int) -> None:
    model, input = adapt(make()).model.eval(), torch.randn(shape)
    program = torch.export.export(model, (input,))
    close(program.module()(input), model(input))
    names = [node.target for node in program.graph.nodes if "dynamic_dilation_conv" in str(node.target)]
    assert len(names) == count


@models
@sources
def test_a_checkpoint_from_before_the_conversion(
    make: Callable[[], nn.Module], shape: tuple[int, ...], count: int, source: str
) -> None:
    """It loads as it is: what predicts is then as it is in a new layer, though it was trained."""
    plain, input = make().eval(), torch.randn(shape)
    model = adapt(make().eval(), source=source).model
    for _, predictor in ddu_ops.predictors(model):
        for parameter in predictor.parameters():
            nn.init.normal_(parameter)
    trained = copy.deepcopy(model.state_dict())
    assert not torch.allclose(model(input), plain(input), rtol=1e-3, atol=1e-4)
    model.load_state_dict(plain.state_dict())
    close(model(input), plain(input))
    # Its own state loads as ever, and one that has nothing of a layer leaves its predictor alone.
    model.load_state_dict(trained)
    model.load_state_dict({}, strict=False)
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    first = next(iter(ddu_ops.predictors(model)))[0]
    with pytest.raises(RuntimeError, match=rf"Missing key.*{first}\.bias"):
        model.load_state_dict({name: value for name, value in trained.items() if name != f"{first}.bias"})


def test_the_state_of_an_adapted_model() -> None:
    model, other = (adapt(networks.DeepLabV3()).model.eval() for _ in range(2))
    other.load_state_dict(model.state_dict())
    input = torch.randn(1, 3, 32, 24)
    assert torch.equal(other(input), model(input))


# ---- Adaptive to fixed ----


@models
def test_a_model_that_was_not_trained_becomes_what_it_was(
    make: Callable[[], nn.Module], shape: tuple[int, ...], count: int
) -> None:
    model, input = make(), torch.randn(shape)
    before, expected = repr(model), copy.deepcopy(model).eval()(input)
    adapt(model)
    converted = to_fixed(model, input)
    assert converted.model is model
    assert len(converted.changes) == count
    assert repr(model) == before
    close(model.eval()(input), expected)


def with_rates(rate: float, *arguments: Any, **options: Any) -> Any:
    """A layer with this rate everywhere."""
    kind = options.pop("kind", ddu_ops.DynamicDilationConv2d)
    layer = kind(*arguments, bounds=(-math.inf, math.inf), pace=1.0, **options).double()
    nn.init.constant_(layer.rate.bias, rate - 1)
    return layer


FIXED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "wider": (lambda: with_rates(3.0, 4, 6, 3, padding=1), {"dilation": (3, 3), "padding": (3, 3)}),
    "narrower": (lambda: with_rates(0.5, 4, 6, 3, 2, 4, 4, 2), {"dilation": (2, 2), "padding": (2, 2), "stride": (2, 2)}),
    "same": (lambda: with_rates(2.0, 4, 6, 3, padding="same"), {"dilation": (2, 2), "padding": "same"}),
    "valid": (lambda: with_rates(2.0, 4, 6, 3, padding="valid"), {"dilation": (2, 2), "padding": (1, 1)}),
    "border": (lambda: with_rates(2.0, 4, 6, 3, padding=1, padding_mode="border"), {"padding_mode": "replicate"}),
    "reflection": (lambda: with_rates(2.0, 4, 6, 3, padding=1, padding_mode="reflection"), {"padding_mode": "reflect"}),
    "line": (lambda: with_rates(2.0, 4, 6, 5, padding=2, kind=ddu_ops.DynamicDilationConv1d), {"dilation": (2,), "padding": (4,)}),
    "volume": (lambda: with_rates(2.0, 4, 6, (3, 1, 3), padding=1, kind=ddu_ops.DynamicDilationConv3d), {"dilation": (2, 1, 2), "padding": (2, 1, 2)}),
    "groups": (lambda: with_rates(2.0, 4, 6, 3, padding=1, dilation_groups=2, per_axis=True, bias=False), {"dilation": (2, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("make, options", FIXED.values(), ids=FIXED.keys())
def test_a_layer_of_one_rate_is_the_convolution_of_that_dilation(
    make: Callable[[], Any], options: dict[str, Any]
) -> None:
    layer = make()
    axes = len(layer.kernel_size)
    input = torch.randn(2, 4, *(12,) * axes, dtype=torch.float64)
    expected = layer(input)
    weight, calls = layer.weight, []
    layer.register_forward_hook(lambda *_: calls.append(1))
    model: Any = nn.Sequential(layer)
    converted = to_fixed(model, input)
    conv = model[0]
    assert type(conv) is (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    assert conv.weight is weight
    assert {key: getattr(conv, key) for key in options} == options
    assert not hasattr(conv, "aligned")
    calls.clear()
    torch.testing.assert_close(conv(input), expected)
    assert calls == [1]
    assert converted.changes[0].note.endswith("output changed by 0.0%")
    assert converted.added == []


def test_each_axis_has_its_dilation() -> None:
    layer = with_rates(2.0, 4, 6, 3, padding=1, per_axis=True)
    nn.init.constant_(layer.rate.bias[1:], 0.0)
    input = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    expected = layer(input)
    conv: Any = to_fixed(layer, input).model
    assert (conv.dilation, conv.padding) == ((2, 1), (2, 1))
    torch.testing.assert_close(conv(input), expected)


def moving() -> Any:
    layer = with_rates(2.0, 4, 6, 3, padding=1)
    nn.init.normal_(layer.rate.weight)
    return layer


STAY: dict[str, Callable[[], Any]] = {
    r"^rates \d.\d\d ± \d.\d\d \(-.* to .*\): stays, \d.\d\d from dilation \d$": moving,
    r"^rates 1.60 ± 0.00 \(1.60 to 1.60\): stays, 0.40 from dilation 2$": lambda: with_rates(1.6, 4, 6, 3, padding=1),
    r"^rates 2.00 ± 0.00 .*: stays, no padding centres the windows of dilation 2$": lambda: with_rates(2.0, 4, 6, 4, padding=1),
    r"^rates 0.50 ± 0.00 .*: stays, no padding centres the windows of dilation 1$": lambda: with_rates(0.5, 4, 6, 3, dilation=2),
    r"^rates 0.00 ± 0.00 .*: stays, 1.00 from dilation 1$": lambda: with_rates(0.0, 4, 6, 3, padding=1),
    r"^stays: its windows are not centred \(aligned=False\)$": lambda: with_rates(1.0, 4, 6, 3, padding=1, aligned=False),
}  # fmt: skip


@pytest.mark.parametrize("text", STAY)
def test_layers_that_stay_say_why(text: str) -> None:
    model = nn.Sequential(STAY[text]())
    layer = model[0]
    (change,) = to_fixed(model, torch.randn(2, 4, 12, 12, dtype=torch.float64)).changes
    assert model[0] is layer is change.after
    assert re.search(text, change.note), change.note


class Shifted(ddu_ops.DynamicDilationConv2d):
    def forward(self, input: Tensor, dilation_map: Any = None, mask: Tensor | None = None) -> Tensor:
        return super().forward(input, dilation_map, mask) + 1


def patched() -> Any:
    layer = with_rates(1.0, 4, 6, 3, padding=1)
    own = layer.forward
    layer.forward = lambda input: own(input) + 1
    return layer


def pruned() -> Any:
    return prune.l1_unstructured(with_rates(1.0, 4, 6, 3, padding=1), "weight", 0.5)


def with_watched_predictor() -> Any:
    layer = with_rates(1.0, 4, 6, 3, padding=1)
    layer.rate.register_forward_hook(lambda *_: None)
    return layer


def without_finite_rates() -> Any:
    layer = with_rates(1.0, 4, 6, 3, padding=1)
    nn.init.constant_(layer.rate.bias, math.nan)
    return layer


OWN: dict[str, tuple[Callable[[], Any], str]] = {
    "subclass": (lambda: with_rates(1.0, 4, 6, 3, padding=1, kind=Shifted), "stays: it is a Shifted with forward of its own"),
    "patched": (patched, "stays: it is a DynamicDilationConv2d with forward of its own"),
    "parametrised": (lambda: parametrizations.weight_norm(with_rates(1.0, 4, 6, 3, padding=1)), "stays: it has parametrizations, too"),
    "pruned": (pruned, "stays: it has weight_mask, weight_orig, too"),
    "watched": (with_watched_predictor, "stays: its predictor has hooks, which would be lost"),
    "not finite": (without_finite_rates, "stays: its rates are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("make, note", OWN.values(), ids=OWN.keys())
def test_layers_whose_results_a_convolution_would_not_have_stay(make: Callable[[], Any], note: str) -> None:
    model = nn.Sequential(make())
    layer, input = model[0], torch.randn(2, 4, 9, 9, dtype=torch.float64)
    expected = model(input)
    (change,) = to_fixed(model, input).changes
    assert change.note == note
    assert model[0] is layer is change.after
    torch.testing.assert_close(model(input), expected, equal_nan=True)


def test_a_hook_that_changes_the_output_is_kept_and_is_no_loss() -> None:
    model = nn.Sequential(with_rates(2.0, 4, 6, 3, padding=1))
    model[0].register_forward_hook(lambda module, args, output: output + 100)
    input = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    expected = model(input)
    (change,) = to_fixed(model, input).changes
    assert type(model[0]) is nn.Conv2d
    assert change.note.endswith("output changed by 0.0%")
    torch.testing.assert_close(model(input), expected)


def test_images_that_are_unbatched_empty_or_none() -> None:
    input = torch.randn(4, 9, 9, dtype=torch.float64)
    layer = with_rates(2.0, 4, 6, 3, padding=1, per_axis=True)
    expected = layer(input)
    conv = to_fixed(layer, input).model
    assert type(conv) is nn.Conv2d
    torch.testing.assert_close(conv(input), expected)
    for images in (input[None][:0], [input[None][:0]] * 2):
        (change,) = to_fixed(with_rates(2.0, 4, 6, 3, padding=1), images).changes
        assert change.note == "stays: its images are empty"
    for nothing in (None, 3, "images"):
        with pytest.raises(TypeError, match=r"^to_fixed\(\): expected images to be a batch or several, but got "):
            to_fixed(layer, nothing)  # type: ignore[arg-type]


def test_layers_that_are_not_looked_at() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.given = ddu_ops.DynamicDilationConv2d(4, 4, 3, padding=1, predict=False)
            self.unused = ddu_ops.DynamicDilationConv2d(4, 4, 3)
            self.used = ddu_ops.DynamicDilationConv2d(4, 4, 3)

        def forward(self, input: Tensor) -> Tensor:
            return self.used(self.given(input, 1.0))

    model = Skips()
    converted = to_fixed(model, [torch.randn(1, 4, 9, 9), torch.randn(2, 4, 7, 7)], names="[gu]*n*")
    assert [(change.name, change.note) for change in converted.changes] == [
        ("given", "stays: it predicts no rates, they are given in every call"),
        ("unused", "stays: the model did not call it"),
    ]
    assert adaptive(model) == ["given", "unused", "used"]
    assert model.training


def test_layers_that_are_called_with_a_mask_stay() -> None:
    model = layers.AdaptiveDilationConv2d(4, 4, 3, padding=1)
    (change,) = to_fixed(model, torch.randn(1, 4, 9, 9)).changes
    assert (change.name, change.note) == ("conv", "stays: its calls bring a map or a mask")
    assert adaptive(model) == ["conv"]


def test_what_is_lost_is_measured() -> None:
    layer = with_rates(1.05, 4, 6, 3, padding=1)
    batches = [torch.randn(n, 4, 9, 9, dtype=torch.float64) for n in (1, 3)]
    before = torch.cat([layer(batch) for batch in batches])
    converted = to_fixed(layer, iter(batches))
    after = torch.cat([converted.model(batch) for batch in batches])
    change = ((after - before).norm() / before.norm()).item()
    assert change > 0.01
    assert converted.changes[0].note == (
        f"rates 1.05 ± 0.00 (1.05 to 1.05), dilation 1, output changed by {change:.1%}"
    )
    assert (
        to_fixed(with_rates(1.05, 4, 6, 3), batches, tolerance=0.01)
        .changes[0]
        .note.endswith("stays, 0.05 from dilation 1")
    )
