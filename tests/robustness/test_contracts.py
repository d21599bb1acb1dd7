"""What holds for everything public, stated in docs/guarantees.md: one test for each contract, over the names in public.py.

What is peculiar to one function or module is tested beside it.
"""

import copy
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune

import ddu_ops
from cases import as_list, assert_bits, assert_same
from ddu_ops.reference import TOLERANCES
from processes import python
from public import (
    ANALYSIS,
    APART,
    CONVERTED,
    LINEAR,
    NUMBERS,
    OPTIONS,
    OWN_PARAMETERS,
    PREDICTED_ELSEWHERE,
    SIDE,
    SUBJECTS,
    Subject,
    axes_of,
    lively,
    names,
    of,
)

halves = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)


def subjects(*kinds: str) -> Any:
    return pytest.mark.parametrize("subject", of(*kinds))


def test_every_public_name_is_held_to_the_contracts() -> None:
    called = {subject.name.split(" with ")[0] for subject in SUBJECTS.values()}
    missing = {*names()} - called - {*ANALYSIS} - {*APART}
    assert not missing, "tests/support/public.py does not know how to call these"
    assert not ({*ANALYSIS, *APART, *OPTIONS} - {*names()}), (
        "tests/support/public.py has entries for names that are gone"
    )


# ---- A backward takes the types of its forward, whatever autocast says around it ----


def total(output: Any) -> Tensor:
    """The sum of all that a call gives; there may be several tensors, and none for what was not asked for."""
    return torch.stack([o.float().sum() for o in as_list(output) if o is not None]).sum()


def gradients(call: Callable[..., Tensor], tensors: Sequence[Tensor], backward: Any = None) -> list[Tensor]:
    """Of a loss that overflows in float16; of the parameters of a module, too."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    wanted = [*leaves, *(call.parameters() if isinstance(call, nn.Module) else [])]
    squares = [o.square() for o in as_list(call(*leaves)) if o is not None]
    with backward or nullcontext():
        grads = torch.autograd.grad(total(squares) * 1e6, wanted, allow_unused=True)
    return [g for g in grads if g is not None]


def in_float32(call: Callable[..., Tensor], half: torch.dtype) -> Callable[..., Tensor]:
    """A block that is kept in float32 inside a region of autocast."""

    def block(*tensors: Tensor) -> Tensor:
        kind = tensors[0].device.type
        with torch.autocast(kind, half), torch.autocast(kind, enabled=False):
            return call(*tensors)

    return block


def on(device: torch.device, subject: Subject) -> tuple[Any, list[Tensor]]:
    call = subject.function()
    return call.to(device) if isinstance(call, nn.Module) else call, [t.to(device) for t in subject.arguments()]


def backwards(subject: Subject, autocast: torch.autocast) -> tuple[Any, ...]:
    """What may be around the backward of a block in float32."""
    return (None,) if subject.name in LINEAR else (None, autocast)


@halves
@subjects("function", "module")
def test_a_block_in_float32_has_gradients_in_float32(subject: Subject, half: torch.dtype, device: torch.device) -> None:
    call, tensors = on(device, subject)
    expected = gradients(call, tensors)
    assert expected
    for context in backwards(subject, torch.autocast(device.type, half)):
        assert_same(gradients(in_float32(call, half), tensors, context), expected[: len(tensors)])
        assert_same(gradients(call, tensors, context), expected)  # with those of the parameters


@subjects("function", "module")
def test_a_compiled_block_in_float32_has_gradients_in_float32(subject: Subject, device: torch.device) -> None:
    torch._dynamo.reset()
    call, tensors = on(device, subject)
    compiled = torch.compile(in_float32(call, torch.float16), backend="aot_eager", fullgraph=True)
    for context in backwards(subject, torch.autocast(device.type, torch.float16)):
        assert_same(gradients(compiled, tensors, context), gradients(call, tensors)[: len(tensors)])


@halves
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda input: F.conv2d(input, torch.ones(4, 4, 3, 3, device=input.device)),
        lambda input: F.unfold(input, 3),
        lambda input: F.fold(input.flatten(2), 4, 1),
    ],
    ids=["conv2d", "unfold", "fold"],
)
def test_so_do_torchs_own(call: Any, compiled: bool, half: torch.dtype, device: torch.device) -> None:
    torch._dynamo.reset()
    block = in_float32(call, half)
    run = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
    tensors = [torch.randn(2, 4, 4, 4, device=device)]
    for context in (None, torch.autocast(device.type, half)):
        assert_same(gradients(run, tensors, context), gradients(call, tensors))


@halves
@subjects("function", "module")
def test_autocast_around_a_call_and_its_backward(subject: Subject, half: torch.dtype, device: torch.device) -> None:
    """Gradients have the types of what they belong to, and are finite."""
    call, tensors = on(device, subject)
    leaves = [t.requires_grad_() for t in tensors]
    with torch.autocast(device.type, half):
        grads = torch.autograd.grad(total(call(*leaves)), leaves, allow_unused=True)
    assert grads[0] is not None
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads if g is not None)


@halves
def test_so_does_torchs_own_no_linear(half: torch.dtype, device: torch.device) -> None:
    """Its backward is made of products, which autocast takes in its own type; it is so within LINEAR, too."""
    call, tensors = nn.Linear(4, 4, device=device), [torch.randn(2, 4, device=device)]
    actual = gradients(in_float32(call, half), tensors, torch.autocast(device.type, half))
    assert not torch.equal(actual[0], gradients(call, tensors)[0])


# ---- An option that is a number ----


class Number:
    """A number by ``__index__`` alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


FORMS: list[Callable[[int], Any]] = [np.int64, Number, torch.tensor, np.array]
FORMS_PER_AXIS: list[Callable[[int, int], Any]] = [
    lambda value, axes: np.array([value] * axes),
    lambda value, axes: (np.int32(value),),
    lambda value, axes: [np.uint32(value), *[value] * (axes - 1)],
]


def forms(value: int, axes: int, per_axis: bool) -> list[Any]:
    several = [form(value, axes) for form in FORMS_PER_AXIS] if per_axis else []
    return [form(value) for form in FORMS] + several


def each_option(*kinds: str, tensors_alone: bool = False) -> Any:
    """Every option that is a number, of everything that needs no optional tensors."""
    pairs = [
        pytest.param(subject, option, id=f"{subject.name}-{option}")
        for subject in (parameter.values[0] for parameter in of(*kinds))
        if " with " not in subject.name
        for option in subject.numbers
        if option in NUMBERS
    ]
    return pytest.mark.parametrize("subject, option", pairs)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # of Conv2d
@each_option("function", "module", "reference")
def test_a_number_by_index(subject: Subject, option: str) -> None:
    for value in subject.values(option):
        tensors = subject.arguments(**{option: value})
        expected = subject.function(**{option: value})(*tensors)
        for form in forms(value, subject.axes, subject.numbers[option]):
            assert_bits(subject.function(**{option: form})(*tensors), expected)


COUNTS = {1: "one int", 2: "one or two ints", 3: "one or three ints"}
TITLES = {subject.title for subject in SUBJECTS.values()}


def not_a_number(value: Any, option: str, takes: str) -> str:
    ours = "|".join(sorted(TITLES | {name.split(".")[-1] for name in ANALYSIS}))
    return rf"^({ours})\(\): expected {option} to be {takes}.*, but got {re.escape(repr(value))}$"


@pytest.mark.parametrize("value", [1.5, "3", None, (1.5, 2), [None], (), (1, 2, 3, 4), 1j], ids=repr)
@each_option("function", "module")
def test_what_is_no_number_is_refused_by_name(subject: Subject, option: str, value: Any) -> None:
    if value is None and option in subject.optional:
        pytest.skip("it may be left out")
    takes = COUNTS[subject.axes] if subject.numbers[option] else "an int"
    with pytest.raises((RuntimeError, ValueError), match=not_a_number(value, option, takes)):
        subject.function(**{option: value})(*subject.arguments())


@each_option("module")
def test_a_module_refuses_what_its_call_could_not_take(subject: Subject, option: str) -> None:
    """In the words of the operators, which refuse the same in a call."""
    least = 0 if option in ("padding", "output_size", "in_channels", "out_channels") else 1
    for value in (least - 1, -5):
        with pytest.raises(ValueError, match=rf"^\w+\(\): expected {option} to be .*, but got {value}$"):
            subject.function(**{option: value})


def all_numbers(subject: Subject, which: int) -> dict[str, int]:
    return {option: NUMBERS[option][which] for option in subject.numbers if option in NUMBERS}


@subjects("function")
def test_a_compiled_function_of_numbers_that_change(subject: Subject) -> None:
    torch._dynamo.reset()

    def call(numbers: dict[str, Any], *tensors: Tensor) -> Any:
        return subject.function(**numbers)(*tensors)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for which in (0, 1, 0):
        numbers = all_numbers(subject, which)
        tensors = subject.arguments(**numbers)
        assert_bits(compiled(numbers, *tensors), call(numbers, *tensors))
        pairs = {name: (n,) * subject.axes if subject.numbers[name] else n for name, n in numbers.items()}
        assert_bits(compiled(pairs, *tensors), call(numbers, *tensors))


def of_tensors(call: Callable[..., Any], count: int) -> Callable[..., Any]:
    """With as many arguments, which fx counts."""
    return {
        1: lambda a: call(a),
        2: lambda a, b: call(a, b),
        3: lambda a, b, c: call(a, b, c),
        4: lambda a, b, c, d: call(a, b, c, d),
        5: lambda a, b, c, d, e: call(a, b, c, d, e),
        6: lambda a, b, c, d, e, f: call(a, b, c, d, e, f),
    }[count]


class Calls(nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(*tensors)


def exported(call: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    free = tuple(dict.fromkeys(range(t.dim()), torch.export.Dim.AUTO) for t in tensors)
    return torch.export.export(Calls(call), tensors, dynamic_shapes=(free,)).module()


TRACERS: dict[str, Callable[[Callable[..., Any], tuple[Tensor, ...]], Callable[..., Any]]] = {
    "fx": lambda call, tensors: torch.fx.symbolic_trace(
        call if isinstance(call, nn.Module) else of_tensors(call, len(tensors))
    ),
    "jit.trace": lambda call, tensors: torch.jit.trace(call, tensors, check_trace=False),
    "compile": lambda call, tensors: torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True),
    "export": exported,
}
tracers = pytest.mark.parametrize("tracer", TRACERS)
traced_numbers_become_constants = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@tracers
@traced_numbers_become_constants
@subjects("function")
def test_numbers_that_are_sizes(subject: Subject, tracer: str) -> None:
    """Symbolic where the tracer has such numbers."""
    torch._dynamo.reset()

    def call(sizes: Tensor, *tensors: Tensor) -> Any:
        numbers = {name: sizes.shape[1 + i] for i, name in enumerate(all_numbers(subject, 0))}
        return subject.function(**numbers)(*tensors)

    for which in (0, 1):
        numbers = all_numbers(subject, which)
        tensors = subject.arguments(**numbers)
        sizes = torch.empty(0, *numbers.values())
        assert_bits(TRACERS[tracer](call, (sizes, *tensors))(sizes, *tensors), subject.function(**numbers)(*tensors))


@tracers
@traced_numbers_become_constants
@subjects("module")
def test_modules_trace(subject: Subject, tracer: str) -> None:
    torch._dynamo.reset()
    call, tensors = subject.function(), subject.arguments()
    traced = TRACERS[tracer](call, tensors)
    assert_bits(traced(*tensors), call(*tensors))
    if tracer == "fx":  # it keeps no type
        half, call = (part.to(torch.bfloat16) for part in (traced, call))
        tensors = subject.arguments(torch.bfloat16)
        assert_bits(half(*tensors), call(*tensors))
        assert_bits(pickle.loads(pickle.dumps(half))(*tensors), call(*tensors))


# ---- Modules are made as torch's own are ----


@pytest.fixture
def defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def state(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


@subjects("module")
def test_made_without_memory_and_filled_later(subject: Subject) -> None:
    """As large models are made: on ``meta``, emptied, and reset to what a new module holds."""
    torch.manual_seed(1)
    expected = subject.make()
    if not state(expected):
        pytest.skip("it has no state")
    module = subject.make(device="meta")
    assert {t.device.type for t in state(module)} == {"meta"}
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(1)
    module.reset_parameters()  # type: ignore[operator]
    assert list(module.state_dict()) == list(expected.state_dict())
    for a, e in zip(state(module), state(expected), strict=True):
        assert torch.equal(a, e)
    tensors = subject.arguments()
    assert_bits(module.eval()(*tensors), expected.eval()(*tensors))  # in training some drop or draw


@subjects("module")
def test_reset_by_a_walk_over_the_modules(subject: Subject) -> None:
    """As FSDP has it done: every module that has ``reset_parameters`` resets its own."""
    with torch.device("meta"):
        module = subject.make()
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.constant_(parameter, torch.nan)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
    assert all(t.isfinite().all() for t in state(module))


@subjects("module")
def test_skip_init(subject: Subject) -> None:
    if not state(subject.make()):
        pytest.skip("it has no state")
    module = nn.utils.skip_init(subject.target, **subject.options)  # type: ignore[arg-type]
    module.load_state_dict(subject.make().state_dict())
    module(*subject.arguments())


@subjects("module")
@pytest.mark.usefixtures("defaults")
def test_device_and_dtype(subject: Subject) -> None:
    def kinds(module: nn.Module) -> set[tuple[str, torch.dtype]]:
        return {(t.device.type, t.dtype) for t in state(module) if t.is_floating_point()}

    has_state = bool(state(subject.make()))
    if has_state:
        assert kinds(subject.make()) == {("cpu", torch.float32)}
        assert kinds(subject.make(device="meta", dtype=torch.bfloat16)) == {("meta", torch.bfloat16)}
    torch.set_default_dtype(torch.float64)
    assert kinds(subject.make()) <= {("cpu", torch.float64)}
    subject.make()(*subject.arguments(torch.float64))
    tensors = [t.to("meta") for t in subject.arguments(torch.float64)]
    torch.set_default_device("meta")
    assert kinds(subject.make()) <= {("meta", torch.float64)}
    assert total(subject.make()(*tensors)).is_meta


@subjects("module")
def test_copies_have_the_results(subject: Subject) -> None:
    module, tensors = subject.function(), subject.arguments()
    expected = module(*tensors)
    fresh = lively(subject.make().eval())
    fresh.load_state_dict(module.state_dict())
    assert_bits(copy.deepcopy(module)(*tensors), expected)
    assert_bits(fresh(*tensors), expected)
    assert repr(fresh) == repr(module)


def predicted(module: nn.Module) -> list[Tensor]:
    return [parameter for _, part in ddu_ops.predictors(module) for parameter in part.parameters()]


@subjects("module")
def test_loops_over_torchs_layers_leave_predictors_alone(subject: Subject) -> None:
    """By the type of a module, as those of torchvision, or by the name of its class, as that of DCGAN."""

    def by_type(module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.ones_(module.bias)

    def by_name(module: nn.Module) -> None:
        if "Conv" in type(module).__name__ and hasattr(module, "weight"):
            nn.init.normal_(module.weight)

    module = subject.make()
    new = [parameter.detach().clone() for parameter in predicted(module)]
    elsewhere = [module.get_parameter(name) for name in PREDICTED_ELSEWHERE.get(subject.name, ())]
    assert all(parameter.eq(0).all() != any(parameter is e for e in elsewhere) for parameter in predicted(module))
    for initialise in (by_type, by_name):
        module.apply(initialise)
    assert all(map(torch.equal, predicted(module), new))
    for parameter in module.parameters():  # one after another, as for transformers
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for _, part in ddu_ops.predictors(module):
        part.reset_parameters()  # type: ignore[operator]
    assert all(map(torch.equal, predicted(module), new))


@subjects("module")
def test_every_parameter_is_a_layers_of_torch_or_a_predictors(subject: Subject) -> None:
    """So groups for weight decay that are made by the type of a module miss nothing but what ``predictors`` finds."""
    module = subject.make()
    known = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Linear)
    own = next((own for name, own in OWN_PARAMETERS.items() if subject.name.startswith(name)), ())
    assert {name for name, _ in module.named_parameters(recurse=False)} >= {*own}
    grouped = [p for m in module.modules() if isinstance(m, known) for p in m.parameters(recurse=False)]
    grouped += [module.get_parameter(name) for name in own]
    assert {id(p) for p in module.parameters()} == {id(p) for p in grouped + predicted(module)}
    assert len([*module.parameters()]) == len(grouped + predicted(module))


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@subjects("module")
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")  # of torch's convolutions, too, on a CPU
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")  # which nothing changes here
def test_fully_sharded(subject: Subject) -> None:
    """Made on ``meta``, sharded, emptied and reset: its results and its gradients."""
    expected = subject.make().eval()
    with torch.device("meta"):
        module = subject.make().eval()
    fully_shard(module, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    module.to_empty(device="cpu")
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
    with torch.no_grad():
        for own, other in zip(module.parameters(), expected.parameters(), strict=True):
            own.to_local().copy_(other)  # type: ignore[attr-defined]
    tensors = subject.arguments()
    outputs = [either(*tensors) for either in (module, expected)]
    assert_bits(*outputs)
    if total(outputs[0]).requires_grad:
        for output in outputs:
            total(output).backward()
        for own, other in zip(module.parameters(), expected.parameters(), strict=True):
            assert (own.grad is None) == (other.grad is None)
            if own.grad is not None and other.grad is not None:
                assert_bits(own.grad.to_local(), other.grad)  # type: ignore[attr-defined]


# ---- A conversion is exact or refuses by name, and doing it twice is doing it once ----


class Subclass:
    """Of a convolution of any number of axes: what its author changed."""

    @staticmethod
    def renamed(base: type[nn.Module]) -> type[nn.Module]:
        return type("Renamed", (base,), {"statistics": lambda self: self.weight.mean()})

    @staticmethod
    def standardised(base: type[nn.Module]) -> type[nn.Module]:
        def forward(self: Any, input: Tensor) -> Tensor:
            return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)

        return type("Standardised", (base,), {"forward": forward})

    @staticmethod
    def padded(base: type[nn.Module]) -> type[nn.Module]:
        def convolve(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return base._conv_forward(self, F.pad(input, (0, 1)), weight, bias)  # type: ignore[operator]

        return type("Padded", (base,), {"_conv_forward": convolve})

    @staticmethod
    def halved(base: type[nn.Module]) -> type[nn.Module]:
        return type("Halved", (base,), {"__call__": lambda self, input: base.__call__(self, input) / 2})

    @staticmethod
    def scaled_when_read(base: type[nn.Module]) -> type[nn.Module]:
        def read(self: Any, name: str) -> Any:
            value = nn.Module.__getattr__(self, name)
            return 2 * value if name == "weight" else value

        return type("ScaledWhenRead", (base,), {"__getattr__": read})


def hooked(register: str) -> Callable[[nn.Module], nn.Module]:
    def add(conv: nn.Module) -> nn.Module:
        getattr(conv, register)(lambda *_: None)
        return conv

    return add


def with_weight(size: int) -> Callable[[nn.Module], nn.Module]:
    def replace(conv: nn.Module) -> nn.Module:
        conv.weight = nn.Parameter(torch.randn(conv.weight.shape[:2] + (size,) * (conv.weight.dim() - 2)))
        return conv

    return replace


def with_stride(stride: int) -> Callable[[nn.Module], nn.Module]:
    def change(conv: nn.Module) -> nn.Module:
        conv.stride = (stride,) * (conv.weight.dim() - 2)
        return conv

    return change


def patched(conv: nn.Module) -> nn.Module:
    conv.forward = torch.sin  # type: ignore[method-assign]
    return conv


def compiled_in_place(conv: nn.Module) -> nn.Module:
    conv.compile(backend="eager")
    return conv


def pruned(conv: nn.Module) -> nn.Module:
    return prune.l1_unstructured(conv, "weight", 0.5)


def lazy(called: bool) -> Callable[[type[nn.Module]], nn.Module]:
    def make(base: type[nn.Module]) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that lazy modules may change
            conv = getattr(nn, f"Lazy{base.__name__}")(4, 3, padding=1)
        if called:
            conv(torch.randn(2, 4, *(5,) * axes_of(base.__name__)))
        return conv

    return make


Make = Callable[[type[nn.Module]], nn.Module]

SAME: dict[str, Make] = {
    "plain": lambda base: base(4, 4, 3, padding=1),
    "even": lambda base: base(4, 6, 2, stride=2, bias=False),
    "grouped": lambda base: base(4, 4, 3, padding="same", groups=4, dilation=2),
    "replicate": lambda base: base(4, 4, 3, padding=1, padding_mode="replicate"),
    "reflect": lambda base: base(4, 4, 3, padding=1, padding_mode="reflect"),
    "point": lambda base: base(4, 6, 1),
    "float64": lambda base: base(4, 4, 3, padding=1, dtype=torch.float64),
    "bfloat16": lambda base: base(4, 4, 3, padding=1, dtype=torch.bfloat16),
    "frozen": lambda base: base(4, 4, 3).requires_grad_(False),
    "renamed": lambda base: Subclass.renamed(base)(4, 4, 3),
    "lazy, called": lazy(called=True),
    "compiled": lambda base: compiled_in_place(base(4, 4, 3)),
    "pruned for good": lambda base: prune.remove(pruned(base(4, 4, 3)), "weight"),
    "stride set later": lambda base: with_stride(2)(base(4, 4, 3)),
}
OTHER: dict[str, tuple[Make, str]] = {
    "standardised": (lambda base: Subclass.standardised(base)(4, 4, 3), "Standardised with forward"),
    "padded": (lambda base: Subclass.padded(base)(4, 4, 3), "Padded with _conv_forward"),
    "halved": (lambda base: Subclass.halved(base)(4, 4, 3), "Halved with __call__"),
    "scaled": (lambda base: Subclass.scaled_when_read(base)(4, 4, 3), "ScaledWhenRead with __getattr__"),
    "lazy": (lazy(called=False), "LazyConv"),
    "patched": (lambda base: patched(base(4, 4, 3)), "with forward of its own"),
    "pruned": (lambda base: pruned(base(4, 4, 3)), "forward_pre_hooks of its own"),
    "weight_norm": (lambda base: parametrizations.weight_norm(base(4, 4, 3)), "weight of its own"),
    "spectral_norm": (lambda base: nn.utils.spectral_norm(base(4, 4, 3)), "forward_pre_hooks of its own"),
    "circular": (lambda base: base(4, 4, 3, padding=1, padding_mode="circular"), "padding_mode .*'circular'"),
    "complex": (lambda base: base(4, 4, 3, dtype=torch.complex64), "float64, .* but got complex64"),
    "another weight": (lambda base: with_weight(5)(base(4, 4, 3)), "have a weight of the shape"),
    "linear": (lambda base: nn.Linear(4, 4), "but got Linear"),
    "predictor": (lambda base: ddu_ops.DilationPredictor(4, 3), "but got DilationPredictor"),
    "transposed": (lambda base: getattr(nn, f"ConvTranspose{base.__name__[-2:]}")(4, 4, 3), "but got ConvTranspose"),
    **{
        hook: (lambda base, hook=hook: hooked(f"register_{hook}")(base(4, 4, 3)), "hooks of its own")
        for hook in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    },
}
CONVERSIONS = [
    pytest.param(
        partial(value.from_conv, **OPTIONS.get(name, {}), **CONVERTED.get(name, {})),
        getattr(nn, f"Conv{axes_of(name)}d"),
        id=name,
    )
    for name, value in names().items()
    if hasattr(value, "from_conv")
]
conversions = pytest.mark.parametrize("convert, base", CONVERSIONS)


@conversions
@pytest.mark.parametrize("what", SAME)
def test_a_conversion_is_exact(convert: Callable[..., nn.Module], base: type[nn.Module], what: str) -> None:
    conv = SAME[what](base)
    layer = convert(conv)
    input = torch.randn(2, 4, *(6,) * axes_of(base.__name__), dtype=conv.weight.dtype)
    actual, expected = layer(input).double(), conv(input).double()
    assert (actual - expected).norm() <= 3 * TOLERANCES[conv.weight.dtype] * expected.norm()
    assert convert(layer) is layer
    assert [p.requires_grad for p in conv.parameters()] == [
        layer.get_parameter(n).requires_grad for n in conv.state_dict()
    ]


@conversions
@pytest.mark.parametrize("what", OTHER)
def test_a_conversion_refuses_by_name(convert: Callable[..., nn.Module], base: type[nn.Module], what: str) -> None:
    make, message = OTHER[what]
    with pytest.raises((TypeError, ValueError), match=rf"^from_conv\(\): expected conv to .*{message}"):
        convert(make(base))


# ---- Transforms over a dimension of size 0 ----

torch_cannot = "torch's own convolution, which predicts the rates, has another shape there"


def over(call: Callable[..., Any], tensors: tuple[Tensor, ...], mapped: tuple[bool, ...], size: int) -> Any:
    stacked = [t.expand(size, *t.shape) if m else t for t, m in zip(tensors, mapped, strict=True)]
    return torch.func.vmap(call, tuple(0 if m else None for m in mapped))(*stacked)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@subjects("function", "module")
def test_nothing_to_map_over(subject: Subject, transform: str) -> None:
    call, tensors = subject.function(), subject.arguments()
    if isinstance(call, nn.Module) and list(call.parameters()):
        assert torch.func.vmap(nn.Conv2d(4, 4, 3))(torch.ones(0, 2, 4, 6, 6)).shape != (0, 2, 4, 4, 4)
        pytest.skip(torch_cannot)
    every = tuple(range(len(tensors)))
    mapped = [tuple(i == one for i in every) for one in every] + [tuple(True for _ in every)]
    run: Callable[..., Any] = {
        "vmap": call,
        "grad": torch.func.grad(lambda *leaves: total(call(*leaves)), every),
        "jvp": lambda *leaves: torch.func.jvp(call, leaves, leaves),
    }[transform]
    for chosen in mapped:
        actual = over(run, tensors, chosen, 0)
        expected = over(run, tensors, chosen, 2)
        for a, e in zip(*([r] if isinstance(r, Tensor) else list(r) for r in (actual, expected)), strict=True):
            assert a.shape == (0, *e.shape[1:])
            assert a.dtype == e.dtype


@subjects("function")
def test_what_is_not_mapped_over_nothing_has_no_gradient(subject: Subject) -> None:
    """It has one of zeros."""
    call = subject.function()
    leaves = [t.requires_grad_() for t in subject.arguments()]
    for one in range(len(leaves)):
        mapped = tuple(i == one for i in range(len(leaves)))
        grads = torch.autograd.grad(total(over(call, tuple(leaves), mapped, 0)), leaves)
        assert all(g.eq(0).all() and g.shape == t.shape for g, t in zip(grads, leaves, strict=True))


# ---- Analysis and pictures ----


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    pyplot.close("all")


analyses = pytest.mark.parametrize("name", ANALYSIS)


def drawn(result: Any) -> Any:
    """What it gives, once it has been drawn where it is a picture."""
    figure = getattr(result, "figure", None)
    if figure is None and hasattr(result, "canvas"):
        figure = result
    if figure is not None:
        figure.canvas.draw()
        return None
    return result


def looked_at(dtype: torch.dtype = torch.float32, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    return image.to(device, dtype), (torch.rand(SIDE, SIDE, generator=generator) * 3).to(device, dtype)


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@analyses
def test_analysis_of_every_type_with_and_without_gradients(
    name: str, dtype: torch.dtype, context: Callable[[], Any], device: torch.device
) -> None:
    expected = drawn(ANALYSIS[name].call(*looked_at(dtype, device)))
    with context():
        actual = drawn(ANALYSIS[name].call(*(t.clone() for t in looked_at(dtype, device))))
    if isinstance(expected, Tensor):
        assert_same(actual, expected)
        assert actual.dtype in (torch.float32, torch.float64)
    else:
        assert actual == expected


def with_shapes(image: tuple[int, ...], rates: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.rand(image), torch.rand(rates)


NOTHING: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "no images": lambda: with_shapes((0, 3, SIDE, SIDE), (SIDE, SIDE)),
    "no channels": lambda: with_shapes((2, 0, SIDE, SIDE), (SIDE, SIDE)),
    "no rows": lambda: with_shapes((2, 3, 0, SIDE), (0, SIDE)),
    "no pixels": lambda: with_shapes((2, 3, 0, 0), (0, 0)),
    "one pixel": lambda: with_shapes((1, 1, 1, 1), (1, 1)),
    "rates that are not finite": lambda: (looked_at()[0], torch.full((SIDE, SIDE), torch.nan)),
    "rates of zero": lambda: (looked_at()[0], torch.zeros(SIDE, SIDE)),
    "windows in the padding": lambda: (looked_at()[0], torch.full((SIDE, SIDE), 1e6)),
}


@pytest.mark.parametrize("what", NOTHING)
@analyses
def test_analysis_of_nothing(name: str, what: str) -> None:
    """It works, or says what it can't take in the words of an operator or of its own."""
    try:
        drawn(ANALYSIS[name].call(*NOTHING[what]()))
    except (RuntimeError, ValueError) as error:
        assert re.match(r"\w+\(\): expected ", str(error))  # noqa: PT017  # most succeed


OF_ANALYSIS = [(name, option) for name, analysis in ANALYSIS.items() for option in analysis.numbers]
numbers_of_analysis = pytest.mark.parametrize("name, option", OF_ANALYSIS)
ODD = {"kernel_size": (3, 5), "size": (9, 7)}  # of what has a middle


@numbers_of_analysis
def test_analysis_takes_a_number_by_index(name: str, option: str) -> None:
    of_middle = "size" in ANALYSIS[name].numbers
    for value in ODD[option] if of_middle else NUMBERS[option]:
        expected = drawn(ANALYSIS[name].call(*looked_at(), **{option: value}))
        for form in forms(value, 2, not of_middle):
            actual = drawn(ANALYSIS[name].call(*looked_at(), **{option: form}))
            assert torch.equal(actual, expected) if isinstance(expected, Tensor) else actual == expected


@pytest.mark.parametrize("value", [1.5, "3", None, (1.5, 2), (), (1, 2, 3, 4)], ids=repr)
@numbers_of_analysis
def test_analysis_refuses_what_is_no_number_by_name(name: str, option: str, value: Any) -> None:
    with pytest.raises((RuntimeError, ValueError), match=not_a_number(value, option, ANALYSIS[name].takes)):
        ANALYSIS[name].call(*looked_at(), **{option: value})


# ---- Imports ----

USE = """
import sys, threading, os, warnings
warnings.simplefilter("error")
import torch
from torch.utils.flop_counter import FlopCounterMode

input, rates, weight = torch.rand(2, 4, 6, 6), torch.rand(2, 1, 6, 6), torch.rand(4, 4, 3, 3)

def use():
    import ddu_ops, ddu_ops.distributed, ddu_ops.flops
    leaves = [t.clone().requires_grad_() for t in (input, rates, weight)]
    with FlopCounterMode(display=False) as counter:
        columns = ddu_ops.dynamic_dilation_unfold(leaves[0], 3, leaves[1], padding=1)
        image = ddu_ops.dynamic_dilation_conv2d(leaves[0], leaves[2], leaves[1], padding=1)
    torch.autograd.grad(columns.sum() + image.sum(), leaves)
    rules = [
        torch.func.vmap(lambda x, d: ddu_ops.dynamic_dilation_unfold(x, 3, d, padding=1))(input, rates),
        torch.func.vmap(lambda w: ddu_ops.dynamic_dilation_conv2d(input, w, rates, padding=1))(weight[None])[0],
    ]
    assert torch.equal(rules[0], columns) and torch.equal(rules[1], image)
    assert counter.get_total_flops() > 0
    return counter.get_total_flops()

def ours():
    return [name for name in sys.modules if name == "ddu_ops" or name.startswith("ddu_ops.")]
"""
IMPORTS = {
    "twice": "flops = use()\nfor name in ours():\n    if name != 'ddu_ops._C': del sys.modules[name]\nassert use() == flops",
    "with its extension": "flops = use()\nfor name in ours(): del sys.modules[name]\nassert use() == flops",
    "reload": (
        "import importlib\nflops = use()\nfinders = len(sys.meta_path)\n"
        "for name in ours():\n    if name != 'ddu_ops._C': importlib.reload(sys.modules[name])\n"
        "assert use() == flops and len(sys.meta_path) == finders"
    ),
    "reload before anything else": (
        "import importlib, ddu_ops\nfinders = len(sys.meta_path)\nimportlib.reload(ddu_ops)\n"
        "assert len(sys.meta_path) == finders\nuse()"
    ),
    "in a thread": (
        "failed = []\nthreading.excepthook = failed.append\nthread = threading.Thread(target=use)\n"
        "thread.start(); thread.join()\nassert not failed, failed\nuse()"
    ),
    "before a fork": (
        "import ddu_ops\nchild = os.fork()\nif child == 0:\n    use()\n    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\nuse()"
    ),
    "in a fork": (
        "child = os.fork()\nif child == 0:\n    use()\n    os._exit(0)\nassert os.waitpid(child, 0)[1] == 0\nuse()"
    ),
}


@pytest.mark.parametrize("how", IMPORTS)
def test_imported(how: str) -> None:
    if "fork" in how and (not hasattr(os, "fork") or torch.cuda.is_available()):
        pytest.skip("no fork here, or none that torch would differentiate in")
    python("-c", USE + IMPORTS[how])
