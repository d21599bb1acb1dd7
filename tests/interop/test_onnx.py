"""Models exported to ONNX, run by onnxruntime and compared with PyTorch."""

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddu_ops.layers
from cases import (
    DTYPES,
    Case,
    ConvolutionCase,
    assert_near,
    convolve_reference,
    fold,
    fold_reference,
    make_arguments,
    make_tensors,
    unfold,
    unfold_reference,
)
from ddu_ops import DynamicDilationUnfold, dynamic_dilation_fold

onnxruntime = pytest.importorskip("onnxruntime", minversion="1.26")  # the first with a DeformConv for CPUs
pytest.importorskip("onnxscript")

import ddu_ops.onnx  # noqa: E402

# What torch.export says of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")

Run = Callable[..., Tensor]


def any_size(tensor: Tensor) -> dict[int, Any]:
    """Of all that is not a channel."""
    return {dim: torch.export.Dim.DYNAMIC for dim in range(tensor.dim()) if dim != 1}


def exported(
    model: nn.Module,
    *inputs: Tensor,
    dtype: torch.dtype = torch.float64,
    opset: int = 19,
    sizes: Any = None,
    nodes: dict[str, int] | None = None,
) -> Run:
    """A model in onnxruntime, for any batch and, unless it is said otherwise, any size of the image.

    ``nodes`` are how many there have to be of some operators.
    """
    program = torch.onnx.export(
        model.eval(),
        inputs,
        dynamo=True,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=sizes or tuple(map(any_size, inputs)),
        custom_translation_table=ddu_ops.onnx.translations(dtype),
    )
    assert program is not None
    assert {imported.domain: imported.version for imported in program.model_proto.opset_import} == {"": opset}
    operators = Counter(node.op_type for node in program.model.graph.all_nodes())
    assert {name: operators[name] for name in nodes or {}} == (nodes or {})
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [input.name for input in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        arrays = dict(zip(names, [t.detach().numpy() for t in tensors], strict=True))
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


class Unfold(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        return unfold(self.case, input, dilation_map)


OPTIONS = [
    Case("same", 2, 3, (6, 7), padding=(1, 1)),
    Case("two_rates", 2, 4, (9, 8), (3, 2), (2, 1), (1, 0), (1, 2), groups=2, rates=2),
    Case("first_tap", 2, 4, (7, 8), (2, 3), (1, 1), (2, 1), (2, 1), groups=2, aligned=False),
]


OF_RATES = [
    *OPTIONS,
    Case("signal", 2, 4, (9,), (4,), (2,), (3,), (1,), groups=2),
    Case("border", 2, 3, (6, 7), (3, 2), padding=(2, 1), padding_mode="border"),
    Case("reflection", 2, 4, (6, 7), padding=(1, 1), groups=2, rates=2, padding_mode="reflection"),
    Case("signal_reflection", 2, 4, (9,), (3,), padding=(1,), padding_mode="reflection"),
    Case("volume", 2, 4, (5, 6, 7), (3, 2, 3), (1, 2, 1), (1, 0, 2), (1, 1, 2), groups=2, rates=3),
    Case("volume_border", 2, 2, (5, 6, 7), padding=(1, 1, 1), aligned=False, padding_mode="border"),
    Case("volume_reflection", 1, 2, (5, 6, 7), padding=(1, 1, 1), padding_mode="reflection"),
]
OF_OTHERS = [
    replace(case, name=f"{source}_{case.name}", source=source, rates=1, aligned=True)
    for source in ("offsets", "affine")
    for case in OF_RATES
    if case.name != "first_tap"
]


def opset_of(case: Case) -> int:
    return 20 if case.axes == 3 or case.padding_mode != "zeros" else 19


@pytest.mark.parametrize("case", [*OF_RATES, *OF_OTHERS], ids=str)
def test_unfold(case: Case) -> None:
    """At sizes other than the one it was exported with; among the positions are ones that are huge and not finite."""
    kind = "DeformConv" if opset_of(case) == 19 else "GridSample"
    input, positions, _ = make_tensors(case, torch.float32)
    run = exported(Unfold(case), input, positions, opset=opset_of(case), nodes={kind: 1})
    for batch, size in ((case.batch, case.size), (1, (11, 8, 6)), (5, (8, 15, 7))):
        other = replace(case, batch=batch, size=size[: case.axes])
        input, positions, _ = make_tensors(other, torch.float32)
        at = (0, 0, *[1] * (case.axes - 1), 2)
        for value in (None, torch.nan, torch.inf, -torch.inf, 3e38, -1e30, 1e9, -0.0):
            if value is not None:
                positions[at] = value
            actual = run(input, positions)
            assert actual.dtype == torch.float32
            assert_near(actual, unfold_reference(other, input.double(), positions.double()))


class Fold(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, columns: Tensor, dilation_map: Tensor) -> Tensor:
        return fold(self.case, columns, dilation_map)


@pytest.mark.parametrize("case", OF_RATES, ids=str)
def test_fold(case: Case) -> None:
    """For any batch; the size of the image is an argument here."""
    _, dilation_map, columns = make_tensors(case, torch.float32)
    run = exported(Fold(case), columns, dilation_map, sizes=({0: torch.export.Dim.DYNAMIC},) * 2)
    at = (0, 0, *[1] * (case.axes - 1), 2)
    for batch in (case.batch, 1, 5):
        other = replace(case, batch=batch)
        _, dilation_map, columns = make_tensors(other, torch.float32)
        for rate in (None, torch.nan, torch.inf, 3e38, -1e30, 1e9, -0.0):
            if rate is not None:
                dilation_map[at] = rate
            actual = run(columns, dilation_map)
            assert actual.dtype == torch.float32
            assert_near(actual, fold_reference(other, columns.double(), dilation_map.double()))


class BothWays(nn.Module):
    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        columns = ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map, padding=1)
        return dynamic_dilation_fold(columns, input.shape[2:], 3, dilation_map, padding=1)


def test_fold_to_the_size_of_its_input() -> None:
    model = BothWays()
    run = exported(model, torch.randn(2, 3, 6, 7), torch.rand(2, 1, 6, 7))
    for shape in ((1, 3, 9, 5), (4, 3, 4, 12)):
        input, dilation_map = torch.randn(shape), 2 * torch.rand(shape[0], 1, *shape[2:])
        torch.testing.assert_close(run(input, dilation_map), model(input, dilation_map), rtol=1e-5, atol=1e-5)


# onnxruntime has no NumPy type for bfloat16, in which a model's arguments could be given.
@pytest.mark.parametrize("name", [name for name in DTYPES if not name.startswith("bfloat16")])
def test_types(name: str) -> None:
    case = OPTIONS[0]
    tensors = make_tensors(case, *DTYPES[name])[:2]
    actual = exported(Unfold(case), *tensors, opset=20)(*tensors)
    assert actual.dtype == tensors[0].dtype
    assert_near(actual, unfold_reference(case, *(t.double() for t in tensors)))


def test_precision_does_not_fall_with_the_size_of_the_image() -> None:
    """In float64; in float32 positions are rounded, and that is all."""
    case = Case("long", 1, 2, (1, 50_000), (1, 3), padding=(0, 1))
    input, dilation_map, _ = make_tensors(case, torch.float32, kinks=False)
    expected = unfold_reference(case, input.double(), dilation_map.double())
    assert_near(exported(Unfold(case), input, dilation_map)(input, dilation_map), expected)
    narrow = exported(Unfold(case), input, dilation_map, dtype=torch.float32)(input, dilation_map)
    torch.testing.assert_close(narrow.double(), expected, rtol=0, atol=0.1)


class Convolution(nn.Module):
    """Of constant weights, so that only what has a batch is an input of the program, unless these have one."""

    def __init__(self, case: ConvolutionCase, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.case = case
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(
        self,
        input: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        weight, bias = (self.weight, self.bias) if weight is None else (weight, bias)
        named = {self.case.positions_name: positions}
        function = getattr(ddu_ops, self.case.function)
        return function(input, weight=weight, bias=bias, mask=mask, **named, **self.case.keywords)


def varying(case: ConvolutionCase) -> list[str]:
    """The arguments that are inputs of the program."""
    names = ["input", case.positions_name, *["mask"] * case.mask]
    return [*names, "weight", "bias"] if case.per_image else names


CONVOLUTIONS = [
    ConvolutionCase("plain", 2, 3, (6, 7), padding=(1, 1), bias=False, mask=False),
    ConvolutionCase("bias", 2, 4, (6, 7), (2, 3), (1, 1), (2, 1), (2, 1), aligned=False, mask=False),
    ConvolutionCase("depthwise", 2, 4, (6, 7), padding=(1, 1), conv_groups=4, out_channels=8, bias=False),
    ConvolutionCase(
        "both_groups", 2, 12, (9, 8), (3, 2), (2, 1), (1, 0), (1, 2), groups=3, rates=2, out_channels=6, conv_groups=2
    ),
    ConvolutionCase("mask_groups", 2, 12, (6, 7), padding=(1, 1), groups=2, mask_groups=3),
    ConvolutionCase("offsets", 2, 4, (6, 7), (2, 3), (1, 2), (2, 1), (2, 1), bias=False, mask=False, source="offsets"),
    ConvolutionCase(
        "offsets_groups", 2, 12, (6, 7), padding=(1, 1), groups=2, conv_groups=2, mask_groups=3, source="offsets"
    ),
    ConvolutionCase("affine", 2, 12, (6, 7), padding=(1, 1), groups=2, conv_groups=2, mask_groups=3, source="affine"),
    ConvolutionCase("signal", 2, 12, (9,), (3,), padding=(1,), groups=2, conv_groups=2, mask_groups=3),
    ConvolutionCase("signal_offsets", 2, 4, (9,), (3,), (2,), (2,), (2,), groups=2, mask_groups=2, source="offsets"),
    ConvolutionCase("border", 2, 4, (6, 7), padding=(1, 1), conv_groups=2, mask=False, padding_mode="border"),
    ConvolutionCase("reflection", 2, 4, (6, 7), padding=(1, 1), source="offsets", padding_mode="reflection"),
    ConvolutionCase(
        "volume", 1, 12, (5, 6, 7), padding=(1, 1, 1), groups=2, conv_groups=2, mask_groups=3, padding_mode="zeros"
    ),
    ConvolutionCase("per_image", 2, 4, (6, 7), padding=(1, 1), conv_groups=2, per_image=True),
]


BOTH_GROUPS = next(case for case in CONVOLUTIONS if case.name == "both_groups")


def tensors_of(case: ConvolutionCase, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], list[Tensor]]:
    """All arguments, and those of the program."""
    arguments = make_arguments(case, dtype)
    return arguments, in_order(case, arguments)


def in_order(case: ConvolutionCase, arguments: dict[str, Tensor]) -> list[Tensor]:
    """The arguments of the program."""
    return [arguments[key] for key in varying(case)]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case: ConvolutionCase) -> None:
    """For other sizes than it was exported with; rates that are huge or not finite."""
    arguments, inputs = tensors_of(case)
    constant = [key for key in ("weight", "bias") if key in arguments and key not in varying(case)]
    model = Convolution(case, arguments["weight"], arguments.get("bias"))
    by_columns = opset_of(case) == 20 or case.per_image
    nodes = {"DeformConv": int(opset_of(case) == 19), "MatMul": int(by_columns), "Gemm": 0, "Conv": 0}
    batched = {0: torch.export.Dim.DYNAMIC}
    sizes = tuple(batched if key in ("weight", "bias") else any_size(arguments[key]) for key in varying(case))
    run = exported(model, *inputs, opset=opset_of(case), sizes=sizes, nodes=nodes)
    at = (0, 0, *[1] * (case.axes - 1), 2)
    for batch, size in ((case.batch, case.size), (1, (11, 8, 6)), (5, (8, 15, 7))):
        other = replace(case, batch=batch, size=size[: case.axes])
        arguments = tensors_of(other)[0] | {key: arguments[key] for key in constant}
        for rate in (None, torch.nan, torch.inf, -torch.inf, 3e38, -1e30, 1e9, -0.0, 1.0):
            if rate == 1:
                arguments[case.positions_name] = torch.ones_like(arguments[case.positions_name])
            elif rate is not None:
                arguments[case.positions_name][at] = rate
            actual = run(*in_order(case, arguments))
            assert actual.dtype == torch.float32
            assert_near(actual, convolve_reference(other, {key: t.double() for key, t in arguments.items()}))


def test_convolution_of_what_is_not_finite() -> None:
    """A pixel and an entry of the mask: in the same places as by the reference."""
    case = BOTH_GROUPS
    arguments, inputs = tensors_of(case)
    run = exported(Convolution(case, arguments["weight"], arguments["bias"]), *inputs)
    for key, value in (("input", torch.nan), ("mask", torch.nan)):
        given = {name: tensor.clone() for name, tensor in arguments.items()}
        given[key][0, 3, 1, 2] = value
        expected = convolve_reference(case, {name: t.double() for name, t in given.items()})
        assert 0 < expected.isnan().sum() < expected.numel()
        assert_near(run(*in_order(case, given)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_types_of_the_convolution(dtype: torch.dtype) -> None:
    case = BOTH_GROUPS
    arguments, inputs = tensors_of(case, dtype)
    actual = exported(Convolution(case, arguments["weight"], arguments["bias"]), *inputs, opset=20)(*inputs)
    assert actual.dtype == dtype
    assert_near(actual, convolve_reference(case, {key: t.double() for key, t in arguments.items()}))


class Layers(nn.Module):
    """Predict their rates, the one its mask, too; behind a convolution of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = ddu_ops.DynamicDilationConv2d(4, 8, 3, stride=2, padding=1, dilation_groups=2, per_axis=True)
        self.third = ddu_ops.layers.AdaptiveDilationConv2d(8, 4, 3, padding="same", groups=2)
        for module in self.modules():
            if isinstance(module, ddu_ops.DilationPredictor):
                nn.init.normal_(module.weight, std=0.2)

    def forward(self, input: Tensor) -> Tensor:
        return self.third(self.second(self.first(input).relu()).relu())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_model_of_convolutions(dtype: torch.dtype) -> None:
    model = Layers()
    run = exported(model, torch.randn(2, 3, 8, 9), dtype=dtype, nodes={"DeformConv": 2})
    for shape in ((2, 3, 8, 9), (1, 3, 16, 11), (3, 3, 5, 20)):
        input = torch.randn(shape)
        torch.testing.assert_close(run(input), model(input), rtol=1e-4, atol=1e-4)


class Network(nn.Module):
    """Predicts its rates between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.rate = nn.Conv2d(4, 2, 3, padding=1)
        self.unfold = DynamicDilationUnfold(3, padding=1, groups=2)
        self.weight = nn.Parameter(0.1 * torch.randn(4, 36))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, input: Tensor) -> Tensor:
        features = self.first(input).relu()
        columns = self.unfold(features, F.softplus(self.rate(features)))
        return self.last((self.weight @ columns).unflatten(-1, input.shape[-2:]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_model(dtype: torch.dtype) -> None:
    model = Network()
    run = exported(model, torch.randn(2, 3, 8, 9), dtype=dtype)
    for shape in ((2, 3, 8, 9), (1, 3, 16, 11), (3, 3, 5, 20)):
        input = torch.randn(shape)
        torch.testing.assert_close(run(input), model(input), rtol=1e-4, atol=1e-4)


def test_an_export_without_a_table() -> None:
    """Importing the module registers the translations, and importing it again changes nothing."""
    importlib.reload(ddu_ops.onnx)
    model, input = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1).eval(), torch.randn(2, 4, 7, 6)
    nn.init.normal_(model.rate.weight)
    program = torch.onnx.export(model, (input,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (output,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(input), rtol=1e-4, atol=1e-4)


def test_an_export_without_the_import_says_where_the_translations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ddu_ops.onnx")
    inputs = (torch.randn(1, 2, 5, 5), torch.rand(1, 1, 5, 5))
    with pytest.warns(
        UserWarning, match=r"dynamic_dilation_unfold\(\) has no ONNX translation before `import ddu_ops.onnx`"
    ):
        torch.onnx.export(DynamicDilationUnfold(3, padding=1).eval(), inputs, dynamo=True, verbose=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, None], ids=str)
def test_a_type_that_deform_conv_does_not_compute_in(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"translations\(\): expected dtype to be torch.float64 or torch.float32"):
        ddu_ops.onnx.translations(dtype)


@pytest.mark.parametrize("opset", [16, 17, 18])
@pytest.mark.parametrize("name", ["unfold", "fold", "convolution"])
def test_an_opset_without_deform_conv_is_refused(name: str, opset: int) -> None:
    """The exporter took it for its own lowest one, and wrote a file that no runtime accepts."""
    case = OPTIONS[0]
    input, dilation_map, columns = make_tensors(case, torch.float32)
    model, inputs = {
        "unfold": (Unfold(case), (input, dilation_map)),
        "fold": (Fold(case), (columns, dilation_map)),
        "convolution": (ddu_ops.DynamicDilationConv2d(3, 4, 3, padding=1), (input,)),
    }[name]
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(model, *inputs, opset=opset, sizes=({},) * len(inputs))
    assert "expected torch.onnx.export to have opset_version=19 or above, but it translates for opset 18" in str(
        caught.value
    )


@pytest.mark.parametrize("case", [case for case in OF_RATES if opset_of(case) == 20], ids=str)
def test_an_opset_without_a_grid_sample_of_volumes_is_refused(case: Case) -> None:
    tensors = make_tensors(case, torch.float32)[:2]
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(Unfold(case), *tensors, sizes=({},) * 2)
    assert "opset_version=20 or above for three axes and padding modes other than 'zeros', but it" in str(caught.value)


class Sample(nn.Module):
    """The derivative by the offset down."""

    def forward(self, input: Tensor, offset: Tensor) -> Tensor:
        return torch.ops.ddu.sample(input, offset, "offsets", [3], padding=[1], order=[1, 0])


def test_a_derivative_is_refused_by_name() -> None:
    given = make_tensors(replace(OPTIONS[0], source="offsets"), torch.float32)[:2]
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(Sample(), *given, sizes=({},) * 2)
    assert "translations(): expected order to be of the value itself, but got (1, 0)" in str(caught.value)
