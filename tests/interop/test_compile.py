"""torch.compile: what it captures, that it captures everything, and that one capture works for all sizes."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from functorch.compile import default_partition, make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import ddu_ops
from cases import (
    CASES,
    OPERATORS,
    Case,
    ConvolutionCase,
    arguments,
    as_list,
    assert_same,
    convolve,
    first_order,
    keywords,
    make_arguments,
    make_tensors,
    operator,
    operator_name,
    operators,
    pick,
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(nn.Module):
    """Small, and with a gradient into the map."""

    def __init__(self, padding: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.rate = nn.Conv2d(4, groups, 3, padding=padding)
        self.unfold = ddu_ops.DynamicDilationUnfold(3, padding=padding, groups=groups)
        self.weight = nn.Parameter(0.1 * torch.randn(5, 36))

    def forward(self, input: Tensor) -> Tensor:
        return self.weight @ self.unfold(input, F.softplus(self.rate(input)))


def code(module: torch.fx.GraphModule) -> str:
    return module.code.strip() + "\n"


class Graphs:
    """A backend that keeps the text of every graph and runs them as they are."""

    def __init__(self) -> None:
        self.captured: list[str] = []
        self.joint: list[str] = []
        self.forward: list[str] = []
        self.backward: list[str] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.captured.append(code(module))
        backend = aot_autograd(
            fw_compiler=self._keep(self.forward), bw_compiler=self._keep(self.backward), partition_fn=self._partition
        )
        return backend(module, inputs)

    def _partition(self, joint: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        self.joint.append(code(joint))
        return default_partition(joint, inputs, **options)

    @staticmethod
    def _keep(into: list[str]) -> Callable[..., Any]:
        def compiler(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            into.append(code(module))
            return make_boxed_func(module.forward)

        return compiler


def graphs_of(model: Callable[..., Tensor], *inputs: Tensor, dynamic: bool = False) -> Graphs:
    graphs = Graphs()
    output = torch.compile(model, backend=graphs, fullgraph=True, dynamic=dynamic)(*inputs)
    if output.requires_grad:
        output.sum().backward()
    assert len(graphs.captured) == 1
    return graphs


def test_graph_of_a_model() -> None:
    with torch.no_grad():
        graphs = graphs_of(Model(), torch.randn(2, 4, 6, 7))
    assert not graphs.joint
    assert_expected_inline(
        graphs.captured[0],
        """\
def forward(self, L_self_parameters_weight_ : torch.nn.parameter.Parameter, L_self_modules_rate_parameters_weight_ : torch.nn.parameter.Parameter, L_self_modules_rate_parameters_bias_ : torch.nn.parameter.Parameter, L_input_ : torch.Tensor):
    l_self_parameters_weight_ = L_self_parameters_weight_
    l_self_modules_rate_parameters_weight_ = L_self_modules_rate_parameters_weight_
    l_self_modules_rate_parameters_bias_ = L_self_modules_rate_parameters_bias_
    l_input_ = L_input_
    conv2d = torch.conv2d(l_input_, l_self_modules_rate_parameters_weight_, l_self_modules_rate_parameters_bias_, (1, 1), (1, 1), (1, 1), 1);  l_self_modules_rate_parameters_weight_ = l_self_modules_rate_parameters_bias_ = None
    softplus = torch._C._nn.softplus(conv2d);  conv2d = None
    dynamic_dilation_unfold = torch.ops.ddu.dynamic_dilation_unfold(l_input_, (3, 3), softplus, (1, 1), (1, 1), (1, 1), 1, aligned = True, padding_mode = 'zeros');  l_input_ = softplus = None
    matmul = l_self_parameters_weight_ @ dynamic_dilation_unfold;  l_self_parameters_weight_ = dynamic_dilation_unfold = None
    return (matmul,)
""",
    )
    assert_expected_inline(
        graphs.forward[0],
        """\
def forward(self, arg0_1, arg1_1, arg2_1, arg3_1):
    convolution = torch.ops.aten.convolution.default(arg3_1, arg1_1, arg2_1, [1, 1], [1, 1], [1, 1], False, [0, 0], 1);  arg1_1 = arg2_1 = None
    softplus = torch.ops.aten.softplus.default(convolution);  convolution = None
    unfold = torch.ops.ddu.unfold.default(arg3_1, [3, 3], softplus, [1, 1], [1, 1], [1, 1]);  arg3_1 = softplus = None
    transpose = torch.ops.aten.transpose.int(unfold, -2, -1);  unfold = None
    t = torch.ops.aten.t.default(arg0_1);  arg0_1 = None
    clone = torch.ops.aten.clone.default(transpose, memory_format = torch.contiguous_format);  transpose = None
    _unsafe_view = torch.ops.aten._unsafe_view.default(clone, [84, 36]);  clone = None
    mm = torch.ops.aten.mm.default(_unsafe_view, t);  _unsafe_view = t = None
    _unsafe_view_1 = torch.ops.aten._unsafe_view.default(mm, [2, 42, 5]);  mm = None
    transpose_1 = torch.ops.aten.transpose.int(_unsafe_view_1, -2, -1);  _unsafe_view_1 = None
    clone_1 = torch.ops.aten.clone.default(transpose_1, memory_format = torch.contiguous_format);  transpose_1 = None
    return (clone_1,)
""",
    )


def test_joint_graph_of_a_model() -> None:
    graphs = graphs_of(Model(), torch.randn(2, 4, 6, 7, requires_grad=True))
    assert_expected_inline(
        graphs.joint[0],
        """\
def forward(self, primals, tangents):
    primals_1, primals_2, primals_3, primals_4, tangents_1, = fx_pytree.tree_flatten_spec([primals, tangents], self._in_spec)
    convolution = torch.ops.aten.convolution.default(primals_4, primals_2, primals_3, [1, 1], [1, 1], [1, 1], False, [0, 0], 1);  primals_3 = None
    softplus = torch.ops.aten.softplus.default(convolution)
    unfold = torch.ops.ddu.unfold.default(primals_4, [3, 3], softplus, [1, 1], [1, 1], [1, 1])
    transpose = torch.ops.aten.transpose.int(unfold, -2, -1);  unfold = None
    t = torch.ops.aten.t.default(primals_1);  primals_1 = None
    clone = torch.ops.aten.clone.default(transpose, memory_format = torch.contiguous_format);  transpose = None
    _unsafe_view = torch.ops.aten._unsafe_view.default(clone, [84, 36]);  clone = None
    mm = torch.ops.aten.mm.default(_unsafe_view, t)
    _unsafe_view_1 = torch.ops.aten._unsafe_view.default(mm, [2, 42, 5]);  mm = None
    transpose_1 = torch.ops.aten.transpose.int(_unsafe_view_1, -2, -1);  _unsafe_view_1 = None
    clone_1 = torch.ops.aten.clone.default(transpose_1, memory_format = torch.contiguous_format);  transpose_1 = None
    transpose_2 = torch.ops.aten.transpose.int(tangents_1, -2, -1);  tangents_1 = None
    clone_2 = torch.ops.aten.clone.default(transpose_2, memory_format = torch.contiguous_format);  transpose_2 = None
    _unsafe_view_2 = torch.ops.aten._unsafe_view.default(clone_2, [84, 5]);  clone_2 = None
    t_1 = torch.ops.aten.t.default(_unsafe_view_2)
    mm_1 = torch.ops.aten.mm.default(t_1, _unsafe_view);  t_1 = _unsafe_view = None
    t_2 = torch.ops.aten.t.default(mm_1);  mm_1 = None
    t_3 = torch.ops.aten.t.default(t);  t = None
    mm_2 = torch.ops.aten.mm.default(_unsafe_view_2, t_3);  _unsafe_view_2 = t_3 = None
    view = torch.ops.aten.view.default(mm_2, [2, 42, 36]);  mm_2 = None
    t_4 = torch.ops.aten.t.default(t_2);  t_2 = None
    transpose_3 = torch.ops.aten.transpose.int(view, -2, -1);  view = None
    unfold_backward = torch.ops.ddu.unfold_backward.default(transpose_3, primals_4, [3, 3], softplus, [1, 1], [1, 1], [1, 1], 1, True, 'zeros');  transpose_3 = softplus = None
    getitem = unfold_backward[0]
    getitem_1 = unfold_backward[1];  unfold_backward = None
    softplus_backward = torch.ops.aten.softplus_backward.default(getitem_1, convolution, 1, 20);  getitem_1 = convolution = None
    convolution_backward = torch.ops.aten.convolution_backward.default(softplus_backward, primals_4, primals_2, [1], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]);  softplus_backward = primals_4 = primals_2 = None
    getitem_2 = convolution_backward[0]
    getitem_3 = convolution_backward[1]
    getitem_4 = convolution_backward[2];  convolution_backward = None
    add = torch.ops.aten.add.Tensor(getitem, getitem_2);  getitem = getitem_2 = None
    return pytree.tree_unflatten([clone_1, t_4, getitem_3, getitem_4, add], self._out_spec)
""",
    )


def test_graph_with_dynamic_shapes() -> None:
    """No size is left in it."""

    def both_ways(input: Tensor, dilation_map: Tensor) -> Tensor:
        columns = ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map, padding=1)
        return ddu_ops.dynamic_dilation_fold(columns, input.shape[2:], 3, dilation_map, padding=1)

    graphs = graphs_of(both_ways, torch.randn(2, 4, 6, 7, requires_grad=True), torch.rand(2, 1, 6, 7), dynamic=True)
    assert_expected_inline(
        graphs.forward[0],
        """\
def forward(self, primals_1, primals_2, primals_3, primals_4, primals_5, primals_6):
    unfold = torch.ops.ddu.unfold.default(primals_6, [3, 3], primals_4, [1, 1], [1, 1], [1, 1]);  primals_6 = None
    fold = torch.ops.ddu.fold.default(unfold, [primals_2, primals_3], [3, 3], primals_4, [1, 1], [1, 1], [1, 1]);  unfold = None
    return (fold, primals_4, primals_2, primals_3, primals_1, primals_5)
""",
    )
    assert_expected_inline(
        graphs.backward[0],
        """\
def forward(self, primals_2, primals_3, primals_1, primals_5, primals_4, tangents_1):
    sample = torch.ops.ddu.sample.default(tangents_1, primals_4, 'rates', [3, 3], [1, 1], [1, 1], [1, 1], 1, True, 'zeros', [0]);  tangents_1 = None
    splat = torch.ops.ddu.splat.default(sample, [primals_2, primals_3], primals_4, 'rates', [3, 3], [1, 1], [1, 1], [1, 1], 1, True, 'zeros', [0]);  sample = primals_2 = primals_3 = primals_4 = None
    return (None, None, None, None, None, splat)
""",
    )


def test_graph_of_what_the_public_operators_add() -> None:
    """An unbatched call and a map that is broadcast come down to views and the operator."""

    def unbatched(input: Tensor, dilation_map: Tensor) -> Tensor:
        return ddu_ops.dynamic_dilation_unfold(input, (3, 2), dilation_map, 2, (1, 0), groups=2, aligned=False)

    with torch.no_grad():
        one = graphs_of(unbatched, torch.randn(4, 6, 7), torch.rand(2, 3, 3))
        torch._dynamo.reset()
        broadcast = graphs_of(unbatched, torch.randn(3, 4, 6, 7), torch.rand(1, 4, 3, 3))
    assert_expected_inline(
        one.forward[0],
        """\
def forward(self, arg0_1, arg1_1):
    unsqueeze = torch.ops.aten.unsqueeze.default(arg0_1, 0);  arg0_1 = None
    unsqueeze_1 = torch.ops.aten.unsqueeze.default(arg1_1, 0);  arg1_1 = None
    unfold = torch.ops.ddu.unfold.default(unsqueeze_1, [3, 2], unsqueeze, [2, 2], [1, 0], [1, 1], 2, False);  unsqueeze_1 = unsqueeze = None
    squeeze = torch.ops.aten.squeeze.dim(unfold, 0);  unfold = None
    return (squeeze,)
""",
    )
    assert_expected_inline(
        broadcast.forward[0],
        """\
def forward(self, arg0_1, arg1_1):
    expand = torch.ops.aten.expand.default(arg0_1, [3, 4, 3, 3]);  arg0_1 = None
    unfold = torch.ops.ddu.unfold.default(arg1_1, [3, 2], expand, [2, 2], [1, 0], [1, 1], 2, False);  arg1_1 = expand = None
    return (unfold,)
""",
    )


# ---- Without a break, once for all sizes ----

SIZES = [(2, 4, 6, 7), (3, 4, 9, 5), (5, 4, 3, 11), (2, 4, 17, 8), (7, 4, 10, 10)]


def counted(function: Callable[..., Any], backend: str = "aot_eager") -> tuple[Callable[..., Any], Any]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True, dynamic=True), counter


def test_one_compilation_for_all_sizes() -> None:
    model = Model(groups=2).double()
    compiled, counter = counted(model)
    for shape in SIZES:
        input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        results = []
        for call in (compiled, model):
            output = call(input)
            grads = torch.autograd.grad(output.square().sum(), [input, *model.parameters()])
            results.append([output, *grads])
        for actual, expected in zip(*results):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert counter.frame_count == 1


@operators
@pytest.mark.parametrize("requires_grad", [False, True], ids=["forward", "backward"])
def test_one_compilation_of_every_operator(name: str, requires_grad: bool) -> None:
    order = first_order(name, traced := Case("traced", rates=2))
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2, "rates": 2}

    def call(like: Tensor, *tensors: Tensor) -> Any:
        # The size of the image, for the operators that take it, is that of a tensor, as in a model.
        case = replace(traced, size=(like.shape[0], like.shape[1]), **options)
        call = getattr(torch.ops.ddu, operator_name(name, case))
        return call(*arguments(name, case, tensors, order), **keywords(name, case))

    compiled, counter = counted(call)
    # No two of the first sizes are equal: torch.compile takes equal ones for one and the same.
    for batch, height, width in [(3, 13, 17), (2, 11, 8), (5, 6, 13), (4, 10, 10)]:
        case = Case("dynamic", batch, 6, (height, width), **options)
        tensors = [t.requires_grad_(requires_grad) for t in pick(name, make_tensors(case))]
        like = torch.empty(height, width)
        actual, expected = as_list(compiled(like, *tensors)), as_list(operator(name, case, order)(*tensors))
        assert_same(actual, expected)
        if requires_grad:
            grads = [
                torch.autograd.grad(sum(r.square().sum() for r in results), tensors) for results in (actual, expected)
            ]
            for a, e in zip(*grads):
                torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)
    assert counter.frame_count == 1


STATIC = (
    "lopsided", "first_tap_two_rates", "padding_beyond_image", "no_batch", "no_channels", "line", "volume_offsets",
    "border_volume", "reflection_offsets",
)  # fmt: skip


@operators
@pytest.mark.parametrize("case", [case for case in CASES if case.name in STATIC], ids=str)
def test_every_case_compiles(name: str, case: Case) -> None:
    """With static shapes, in one graph, to the same bits."""
    tensors = pick(name, make_tensors(case, torch.float32))
    function = operator(name, case, first_order(name, case))
    compiled = torch.compile(lambda *t: function(*t), backend="aot_eager", fullgraph=True, dynamic=False)
    assert_same(compiled(*tensors), function(*tensors))


def test_a_size_that_does_not_fit_is_refused_while_tracing() -> None:
    compiled = torch.compile(
        lambda x, m: ddu_ops.dynamic_dilation_unfold(x, 3, m, padding=1), backend="aot_eager", fullgraph=True
    )
    with pytest.raises(RuntimeError, match=r"dynamic_dilation_unfold\(\): expected dilation_map of shape"):
        compiled(torch.randn(2, 4, 8, 8), torch.rand(2, 1, 7, 8))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor(dynamic: bool) -> None:
    """The default backend, with gradients."""
    model = Model()
    input = torch.randn(2, 4, 6, 7)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    results = []
    for call in (compiled, model):
        model.zero_grad()
        output = call(input)
        output.square().sum().backward()
        results.append([output, *(p.grad.clone() for p in model.parameters())])
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_export() -> None:
    """A saved program, for sizes other than the ones that it was traced with."""
    model = Model()
    batch, height, width = (torch.export.Dim(name, min=2) for name in ("batch", "height", "width"))
    shapes = {"input": {0: batch, 2: height, 3: width}}
    program = torch.export.export(model, (torch.randn(2, 4, 6, 7),), dynamic_shapes=shapes, strict=True)
    for shape in SIZES:
        input = torch.randn(shape)
        torch.testing.assert_close(program.module()(input), model(input))


def test_compiled_autocast() -> None:
    model = Model()
    input = torch.randn(2, 4, 6, 7)

    def run(call: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return call(input)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    actual, expected = run(compiled), run(model)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected)


def test_every_operator_traces_symbolically() -> None:
    """make_fx with symbolic shapes, as opcheck and export use it."""
    case = Case("traced", 2, 4, (6, 7), padding=(1, 1), groups=2)
    for name in OPERATORS:
        tensors = pick(name, make_tensors(case, torch.float32))
        function = operator(name, case, first_order(name, case))
        traced = make_fx(lambda *t: function(*t), tracing_mode="symbolic")(*tensors)  # noqa: B023
        assert_same(traced(*tensors), function(*tensors))


# ---- In a network ----


class Network(nn.Module):
    """Convolutions around it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = Model()
        self.after = nn.Conv2d(5, 2, 1)

    def forward(self, input: Tensor) -> Tensor:
        features = F.relu(self.before(input))
        return self.after(F.relu(self.middle(features)).unflatten(-1, input.shape[-2:]))


def outcome(call: Callable[[Tensor], Tensor], model: nn.Module, input: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    model.zero_grad()
    leaf = input.clone().requires_grad_()
    output = call(leaf)
    output.square().mean().backward()
    return [output.detach().clone(), leaf.grad, *(p.grad.clone() for p in model.parameters())]


def assert_outcomes(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance / 10)


# Inductor makes an empty graph to hold the memory of the others.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_modes(mode: str, device: torch.device) -> None:
    network = Network().to(device)
    counters.clear()
    compiled = torch.compile(network, mode=mode, fullgraph=True)
    for _ in range(3):  # the third call is the one that a CUDA graph replays
        input = torch.randn(2, 3, 6, 7, device=device)
        assert_outcomes(outcome(compiled, network, input), outcome(network, network, input))
    if device.type == "cuda":
        assert not counters["inductor"]["cudagraph_skips"]


def test_sizes_marked_as_dynamic(device: torch.device) -> None:
    """No more than the sizes that are marked are free, and one compilation does for them."""
    model = Model().to(device)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for shape in [(2, 4, 6, 7), (5, 4, 9, 8), (3, 4, 12, 5)]:
        input = torch.randn(shape, device=device)
        for dim in (0, 2, 3):
            torch._dynamo.mark_dynamic(input, dim)
        with torch.no_grad():
            assert_outcomes([compiled(input)], [model(input)])
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend, gradients", [("aot_eager", True), ("inductor", False)])
def test_sizes_marked_as_dynamic_in_a_network(backend: str, gradients: bool, device: torch.device) -> None:
    """The operators make no size between convolutions a constant.

    With gradients in inductor, torch 2.13 does by itself, around F.unfold or nothing at all: docs/pytorch.md.
    """

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Conv2d(3, 4, 3, padding=1)
            self.middle = ddu_ops.DynamicDilationConv2d(4, 4, 3, padding=1)
            self.after = nn.Conv2d(4, 2, 1)
            nn.init.normal_(self.middle.rate.weight, std=0.2)

        def forward(self, input: Tensor) -> Tensor:
            return self.after(F.relu(self.middle(F.relu(self.before(input)))))

    for network in (Network().to(device), Convolution().to(device)):
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(network, backend=counter, fullgraph=True)
        for shape in [(2, 3, 6, 7), (5, 3, 9, 8), (3, 3, 12, 5)]:
            input = torch.randn(shape, device=device)
            for dim in (0, 2, 3):
                torch._dynamo.mark_dynamic(input, dim)
            if gradients:
                expected = outcome(network, network, input)
                network.zero_grad()
                output = compiled(input)
                output.square().mean().backward()
                assert_outcomes(
                    [output.detach(), *(p.grad for p in network.parameters())], [expected[0], *expected[2:]]
                )
            else:
                with torch.no_grad():
                    assert_outcomes([compiled(input)], [network(input)])
        assert counter.frame_count == 1


def test_autocast_with_gradients(device: torch.device) -> None:
    network = Network().to(device)
    input = torch.randn(2, 3, 6, 7, device=device)

    def under_autocast(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(input: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                return call(input)

        return run

    compiled = torch.compile(network, fullgraph=True)
    actual, expected = (outcome(under_autocast(call), network, input) for call in (compiled, network))
    assert actual[0].dtype == expected[0].dtype == torch.bfloat16
    assert_outcomes(actual, expected, tolerance=3e-2)


# ---- Compiled autograd ----

# It looks at the gradients of all its inputs, leaves or not.
not_leaves = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class CompiledBackward:
    """Compiled autograd that keeps its graphs, and compiles each for all sizes."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, module: torch.fx.GraphModule) -> Any:
        def compiler(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
            self.graphs.append(module)
            return module.forward

        return torch.compile(module, backend=compiler, fullgraph=True, dynamic=True)

    def check(self, function: Callable[..., Any], tensors: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        """The gradients that are wanted are those of the backward that is not compiled."""
        grads = []
        for enable in (False, True):
            leaves = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
            total = torch.stack([r.square().sum() for r in as_list(function(*leaves))]).sum()
            with torch._dynamo.compiled_autograd._enable(self) if enable else contextlib.nullcontext():
                total.backward()
            grads.append([leaf.grad for leaf in leaves if leaf.requires_grad])
        for a, e in zip(*grads, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)

    @property
    def code(self) -> str:
        return "".join(graph.code for graph in self.graphs)


@not_leaves
@operators
def test_compiled_autograd_of_every_operator(name: str, device: torch.device) -> None:
    """The backward of an eager forward, traced and compiled, once for all sizes."""
    backward = CompiledBackward()
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2}
    for rates, wanted in ((1, (True, True, True)), (2, (False, True, True))):
        for size in ((9, 8), (12, 7), (6, 11)):
            case = Case("compiled", 3, 4, size, **options, rates=rates)
            tensors = pick(name, make_tensors(case, device=device, kinks=False))
            backward.check(operator(name, case, first_order(name, case)), tensors, wanted[-len(tensors) :])
    assert "DynamicDilation" in backward.code
    assert len(backward.graphs) <= 4, "a graph for every size"


@not_leaves
@pytest.mark.parametrize("source", ["rates", "offsets", "affine"])
def test_compiled_autograd_of_the_convolution(source: str, device: torch.device) -> None:
    """With every argument, without bias and mask, and where the bias alone is trained."""
    backward = CompiledBackward()
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2, "conv_groups": 2}
    for left_out, wanted in (
        ((), (True, True, True, True, True)),
        ((), (False, True, False, True, False)),
        ((), (False, False, False, True, False)),
        (("bias", "mask"), (True, True, True)),
    ):
        for size in ((9, 8), (12, 7), (6, 11)):
            optional = {name: name not in left_out for name in ("bias", "mask")}
            rates = 2 if source == "rates" else 1
            case = ConvolutionCase("compiled", 3, 4, size, **options, rates=rates, source=source, **optional)
            arguments = make_arguments(case, device=device, kinks=False)

            def function(*tensors: Tensor) -> Tensor:
                return convolve(case, dict(zip(arguments, tensors, strict=True)))  # noqa: B023

            backward.check(function, list(arguments.values()), wanted)
    assert "DynamicDilationConvolutionBackward" in backward.code
    assert len(backward.graphs) <= 8, "a graph for every size"


@not_leaves
def test_compiled_autograd_of_a_network(device: torch.device) -> None:
    network = Network().to(device)
    input = torch.randn(2, 3, 6, 7, device=device)
    expected = outcome(network, network, input)
    with torch._dynamo.config.patch(compiled_autograd=True):
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        assert_outcomes(outcome(compiled, network, input), expected)


# ---- Selective activation checkpointing ----


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE], ids=lambda p: p.name
)
def test_selective_checkpointing(policy: CheckpointPolicy, compiled: bool, device: torch.device) -> None:
    """The unfold is run once, or once more in the backward, as the policy says."""
    model = Model().to(device)
    input = torch.randn(2, 4, 6, 7, device=device)
    expected = outcome(model, model, input)

    def choose(context: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return policy if function == torch.ops.ddu.unfold.default else CheckpointPolicy.PREFER_RECOMPUTE

    def checkpointed(input: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, choose)
        return checkpoint(model, input, use_reentrant=False, context_fn=contexts)

    runs = 2 if policy == CheckpointPolicy.PREFER_RECOMPUTE else 1
    if compiled:
        graphs: list[str] = []

        def keep(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            graphs.append(code(module))
            return make_boxed_func(module.forward)

        backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
        assert_outcomes(outcome(torch.compile(checkpointed, backend=backend, fullgraph=True), model, input), expected)
        assert [graph.count("ops.ddu.unfold.default(") for graph in graphs] == [1, runs - 1]
    else:
        with Counted() as counted:
            assert_outcomes(outcome(checkpointed, model, input), expected)
        assert counted.calls[torch.ops.ddu.unfold.default] == runs


class Counted(TorchDispatchMode):
    """Counts calls of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[function] += 1
        return function(*args, **(kwargs or {}))
