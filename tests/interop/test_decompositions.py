"""The operators taken apart into ATen's: the kernels' values, gradients and errors, in graphs of ATen alone.

The tests of the kernels run here again, with every operator taken apart as soon as it is called.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from test_backward import (  # noqa: F401
    test_a_tiny_displacement_keeps_a_tap_on_its_side_of_a_pixel,
    test_every_order_of_the_family,
    test_gradients_of_nothing,
    test_one_sided_derivatives_are_the_references,
    test_rates_beyond_the_image_have_no_gradient,
    test_second_order_against_the_reference,
    test_the_derivative_by_the_position_is_the_one_from_the_right,
)
from test_backward import test_fold as test_gradients_of_fold  # noqa: F401
from test_backward import test_unfold as test_gradients_of_unfold  # noqa: F401
from test_forward import (  # noqa: F401
    test_a_huge_rate_samples_zero,
    test_a_map_of_ones_is_unfold_on_extreme_values,
    test_a_position_on_the_border_or_beyond_gives_zero,
    test_every_huge_rate_agrees_with_the_reference,
    test_every_rate_bad,
    test_fold,
    test_gradients_at_a_parameter_that_is_not_finite,
    test_orders_beyond_are_zero,
    test_precision_does_not_fall_with_the_size_of_the_image,
    test_the_family_of_derivatives,
    test_the_family_of_derivatives_in_half,
    test_unfold,
    test_values_of_the_input_that_are_not_finite_stay_where_they_are,
    test_what_a_parameter_moves_that_is_not_finite_is_nan,
)
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

import ddu_ops
from cases import FAMILY, Case, as_list, first_order, make_tensors, operator, operators, pick, sample, unfold
from refusals import call, refusal

# torch says so of the kernels that `taken_apart` replaces.
pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")


@contextlib.contextmanager
def taken_apart() -> Iterator[set[str]]:
    """The CPU with the decompositions in the place of its kernels; gives the names of those that were called."""
    called = set()

    def counted(operator: OpOverload, function: Callable[..., Any]) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            called.add(operator._schema.name.removeprefix("ddu::"))
            return function(*args, **kwargs)

        return kernel

    with torch.library._scoped_library("ddu", "IMPL") as library:
        for operator_, function in ddu_ops.decompositions().items():
            if operator_.has_kernel_for_dispatch_key(torch.DispatchKey.CPU):
                library.impl(operator_, counted(operator_, function), "CPU", allow_override=True)
        yield called


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The CPU, taken apart: overrides the fixture of the tests imported above."""
    with taken_apart() as called:
        yield torch.device("cpu")
    assert called


def test_the_table_is_complete_and_the_callers_own() -> None:
    table = ddu_ops.decompositions()
    defined = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ddu::")}
    assert {operator._schema.name for operator in table} == defined
    table.clear()
    assert ddu_ops.decompositions()


def test_a_tap_lies_in_the_cell_of_exact_arithmetic(device: torch.device) -> None:
    """Where a rounded product would reach the next pixel, and the derivative by the rate would be the next cell's."""
    case = Case("cell", 1, 1, (1, 8), (1, 7), padding=(0, 3))
    input = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 5.0, 0.0, 0.0]).view(case.input_shape)
    third = torch.tensor(1 / 3)
    for rate in (third, torch.nextafter(third, torch.tensor(0.0)), torch.nextafter(third, torch.tensor(1.0))):
        dilation_map = torch.zeros(case.map_shape) + rate
        single = sample(case, input, dilation_map, [1])
        double = sample(case, input.double(), dilation_map.double(), [1])
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-6)


# ---- Errors ----


@operators
def test_errors(name: str) -> None:
    """With the words of the kernels."""
    leading = next(iter(argument for argument in ("grad_output", "columns", "input") if argument in _arguments(name)))
    positions = "positions" if name in FAMILY else "dilation_map"
    for changes in (
        {leading: lambda device: torch.zeros(2, 3, device=device)},
        {positions: lambda device: torch.zeros(2, 1, 7, 8, device=device)},
        {positions: lambda device: torch.zeros(2, 1, 8, 8, dtype=torch.float64, device=device)},
        {"kernel_size": 0},
        {"groups": 3},
    ):
        expected = refusal(name, "cpu", **changes)
        with taken_apart():
            assert refusal(name, "cpu", **changes) == expected
    with taken_apart() as called:
        call(name, "cpu")
    assert called


def _arguments(name: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.ddu, name).default._schema.arguments]


# ---- Graphs ----

WINDOW = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2, "rates": 2}


def namespaces(graph: torch.fx.Graph) -> set[str]:
    return {node.target.namespace for node in graph.nodes if isinstance(node.target, OpOverload)}


@pytest.mark.parametrize("name", ["dynamic_dilation_unfold", "dynamic_dilation_fold", "unfold_backward", "dot"])
def test_make_fx(name: str) -> None:
    """A graph of ATen alone, for sizes that it was not traced with."""
    traced = Case("traced", 3, 4, (9, 11), **WINDOW)
    order = first_order(name, traced)

    def at_size(case: Case) -> Callable[..., Any]:
        # The size of the image, for the operators that take it, is that of a tensor, as in a model.
        def run(like: Tensor, *tensors: Tensor) -> Any:
            sized = Case("sized", size=(like.shape[0], like.shape[1]), **WINDOW)
            return operator(name, sized, order)(*tensors)

        return run

    graph = make_fx(at_size(traced), decomposition_table=ddu_ops.decompositions(), tracing_mode="symbolic")(
        torch.empty(traced.size), *pick(name, make_tensors(traced, torch.float32))
    )
    assert namespaces(graph.graph) == {"aten"}
    for batch, size in ((3, (9, 11)), (5, (6, 7)), (2, (14, 8))):
        case = Case("other", batch, 4, size, **WINDOW)
        tensors = pick(name, make_tensors(case, torch.float32))
        actual = as_list(graph(torch.empty(size), *tensors))
        expected = as_list(operator(name, case, order)(*tensors))
        for a, e in zip(actual, expected):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
            assert a.stride() == e.stride()


class BothWays(nn.Module):
    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        columns = ddu_ops.dynamic_dilation_unfold(input, 3, F.softplus(dilation_map), padding=1)
        return ddu_ops.dynamic_dilation_fold(columns, input.shape[2:], 3, dilation_map, padding=1)


SIZES = [(2, 4, 6, 7), (3, 4, 9, 5), (7, 4, 10, 10)]


@pytest.mark.parametrize("beside", ["alone", "beside torch's own"])
def test_exported_program(beside: str) -> None:
    model = BothWays()
    batch, height, width = (torch.export.Dim(name, min=2) for name in ("batch", "height", "width"))
    sizes = {0: batch, 2: height, 3: width}
    program = torch.export.export(
        model, (torch.randn(2, 4, 6, 7), torch.rand(2, 1, 6, 7)), dynamic_shapes=(sizes, sizes), strict=True
    )
    opaque = program.run_decompositions()
    assert {str(n.target) for n in opaque.graph.nodes if getattr(n.target, "namespace", "") == "ddu"} == {
        "ddu.unfold.default",
        "ddu.fold.default",
    }
    table = ddu_ops.decompositions()
    if beside != "alone":
        table = {**core_aten_decompositions(), **table}
    taken_apart = program.run_decompositions(table)
    assert namespaces(taken_apart.graph) == {"aten"}
    if beside != "alone":
        for node in taken_apart.graph.nodes:
            assert not isinstance(node.target, OpOverload) or torch.Tag.core in node.target.tags, node.target
    for shape in SIZES:
        input, dilation_map = torch.randn(shape), torch.randn(shape[0], 1, *shape[2:])
        torch.testing.assert_close(
            taken_apart.module()(input, dilation_map), model(input, dilation_map), rtol=1e-4, atol=1e-4
        )


def test_inductor() -> None:
    """Forward and backward in ATen alone, compiled once for all sizes."""
    seen: list[set[str]] = []

    def compile_fx(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(namespaces(module.graph))
        return compile_fx_inner(module, inputs)

    torch._dynamo.reset()
    decompositions = {**select_decomp_table(), **ddu_ops.decompositions()}
    backend = aot_autograd(fw_compiler=compile_fx, bw_compiler=compile_fx, decompositions=decompositions)
    model = BothWays()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for shape in SIZES:
        tensors = [torch.randn(shape), torch.randn(shape[0], 1, *shape[2:])]
        results = []
        for function in (compiled, model):
            leaves = [t.clone().requires_grad_() for t in tensors]
            output = function(*leaves)
            results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        for actual, expected in zip(*results):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()
    assert len(seen) == 2
    assert all(names <= {"aten", "prims", "inductor"} for names in seen), seen


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = ddu_ops.DynamicDilationConv2d(4, 3, 3, padding=1, dilation_groups=2)
        nn.init.normal_(self.layer.rate.weight, std=0.1)

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:
        return self.layer(input, mask=mask)


def test_the_convolution() -> None:
    """Exported and taken apart; the backward, too, in what AOTAutograd traces."""
    model = Convolution()
    batch, height, width = (torch.export.Dim(name, min=2) for name in ("batch", "height", "width"))
    sizes = {0: batch, 2: height, 3: width}
    example = torch.randn(2, 4, 6, 7), torch.rand(2, 18, 6, 7)
    program = torch.export.export(model, example, dynamic_shapes=(sizes, sizes))
    assert "ddu" in namespaces(program.run_decompositions().graph)
    taken_apart = program.run_decompositions(ddu_ops.decompositions())
    assert namespaces(taken_apart.graph) == {"aten"}
    for shape in SIZES:
        input, mask = torch.randn(shape), torch.rand(shape[0], 18, *shape[2:])
        torch.testing.assert_close(taken_apart.module()(input, mask), model(input, mask), rtol=1e-4, atol=1e-4)

    seen: list[set[str]] = []

    def compile_fx(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(namespaces(module.graph))
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compile_fx, bw_compiler=compile_fx, decompositions=ddu_ops.decompositions())
    results = []
    for function in (torch.compile(model, backend=backend, fullgraph=True), model):
        model.zero_grad()
        leaves = [t.clone().requires_grad_() for t in example]
        function(*leaves).square().sum().backward()
        results.append([t.grad.clone() for t in (*leaves, *model.parameters())])
    torch._dynamo.reset()
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert seen == [{"aten"}, {"aten"}]


def test_a_decomposition_called_by_itself() -> None:
    """On ordinary tensors, without a word of warning: it was asked for."""
    case = Case("called", 2, 4, padding=(1, 1), groups=2)
    input, dilation_map, _ = make_tensors(case, torch.float32)
    function = ddu_ops.decompositions()[torch.ops.ddu.unfold.default]
    actual = function(input, case.kernel_size, dilation_map, *case.options)
    torch.testing.assert_close(actual, unfold(case, input, dilation_map))
