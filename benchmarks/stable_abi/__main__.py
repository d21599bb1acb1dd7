"""What LibTorch's stable ABI would give and take away here: builds, checks, times, and tries feature by feature.

    python -m benchmarks.stable_abi --output build/stable_abi                     everything; ddu_ops has to be built
    python -m benchmarks.stable_abi --library build/stable_abi/ddu_stable.so      in another torch: load and check that

``docs/stable_abi.md`` has the results.
"""

import argparse
import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import benchmark

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
TORCH = Path(torch.__file__).parent
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
WINDOW: dict[str, Any] = {
    "kernel_size": [3, 2],
    "stride": [2, 1],
    "padding": [1, 2],
    "dilation": [1, 2],
    "groups": 2,
    "aligned": True,
}


def standard() -> str:
    """The C++ that the headers of this torch are for."""
    return "c++17" if torch.__version__ < "2.12" else "c++20"


def includes() -> list[str]:
    return ["-I", str(CSRC), "-isystem", str(TORCH / "include")]


def target_flag(target: str) -> str:
    major, minor = map(int, target.split("."))
    return f"-DTORCH_TARGET_VERSION={major << 56 | minor << 48:#x}"


def build(output: Path, target: str | None) -> float:
    """Compile ``operators.cpp``, through the stable ABI of a version or else the regular one. Seconds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    flags = [f"-std={standard()}", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-g0"]
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", *([] if target else ["-lc10"])]
    command = [*COMPILER, *flags, *([target_flag(target)] if target else []), *includes()]
    start = time.perf_counter()
    subprocess.run([*command, str(HERE / "operators.cpp"), "-o", str(output), *libraries], check=True)
    return time.perf_counter() - start


def symbols(path: Path) -> tuple[int, int]:
    """How many functions of torch a library needs: plain C ones, and mangled ones of C++."""
    listing = subprocess.run(["nm", "-D", "--undefined-only", path], check=True, capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in listing.splitlines()]
    mangled = [name for name in names if re.match(r"_Z\w*?(2at|3c10|5torch|6caffe2)", name)]
    return sum(re.match(r"(aoti_)?torch_", name) is not None for name in names), len(mangled)


# ---- values


def example(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 4, 9, 8, dtype=dtype, generator=generator).transpose(2, 3)  # (2, 4, 8, 9), strided
    return image, 2.5 * torch.rand(2, 4, 4, 11, dtype=dtype, generator=generator) - 0.5


def results(namespace: str, dtype: torch.dtype) -> list[Tensor]:
    operators = getattr(torch.ops, namespace)
    image, rates = example(dtype)
    args = [WINDOW["kernel_size"], rates, *list(WINDOW.values())[1:]]
    columns = operators.unfold(image, *args)
    return [columns, *operators.unfold_backward(torch.ones_like(columns), image, *args)]


def check(namespace: str, expected: dict[torch.dtype, list[Tensor]]) -> None:
    for dtype, wanted in expected.items():
        for value, right in zip(results(namespace, dtype), wanted, strict=True):
            torch.testing.assert_close(value, right)
    print(f"{namespace}: values and gradients agree with the reference")


def expected_results() -> dict[torch.dtype, list[Tensor]]:
    from ddu_ops import reference

    expected = {}
    for dtype in (torch.float64, torch.float32):
        image, rates = (t.double().requires_grad_() for t in example(dtype))
        columns = reference.dynamic_dilation_unfold(image, dilation_map=rates, **WINDOW)
        gradients = torch.autograd.grad(columns.sum(), (image, rates))
        expected[dtype] = [t.detach().to(dtype) for t in (columns, *gradients)]
    return expected


# ---- time


def microseconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Of each, the least of many medians, taken in turns: what else the machine does only adds."""
    timers = {name: benchmark.Timer("call()", globals={"call": call}) for name, call in calls.items()}
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(20):
        for name, timer in timers.items():
            seen[name].append(1e6 * timer.blocked_autorange(min_run_time=0.05).median)
    return {name: min(medians) for name, medians in seen.items()}


def call_of(operator: Any, gradients: bool = False) -> Callable[[], object]:
    image = torch.randn(1, 1, 4, 4, requires_grad=gradients)
    rates = torch.rand(1, 1, 4, 4).requires_grad_(gradients)
    args = ([3, 3], rates, [1, 1], [1, 1], [1, 1])
    if not gradients:
        return lambda: operator(image, *args)
    grad = torch.ones(1, 9, 16)
    return lambda: torch.autograd.grad(operator(image, *args), (image, rates), grad)


# ---- in Python, what C++ cannot register


def output_shape(image: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> list[Any]:
    def size(k: int) -> Any:
        return (image.shape[2 + k] + 2 * padding[k] - dilation[k] * (kernel_size[k] - 1) - 1) // stride[k] + 1

    return [image.shape[0], image.shape[1] * kernel_size[0] * kernel_size[1], size(0) * size(1)]


def register_fakes() -> None:
    @torch.library.register_fake("ddu_stable::unfold")
    def unfold(
        input, kernel_size, dilation_map, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, aligned=True
    ):
        return input.new_empty(output_shape(input, kernel_size, stride, padding, dilation))

    @torch.library.register_fake("ddu_stable::unfold_backward")
    def unfold_backward(grad_output, input, kernel_size, dilation_map, *rest):
        return torch.empty_like(input, memory_format=torch.contiguous_format), torch.empty_like(dilation_map)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    image, ctx.kernel_size, rates, *ctx.rest = inputs
    ctx.save_for_backward(image, rates)
    ctx.save_for_forward(image, rates)


def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    image, rates = ctx.saved_tensors
    grad_image, grad_rates = torch.ops.ddu_stable.unfold_backward(grad, image, ctx.kernel_size, rates, *ctx.rest)
    return grad_image, None, grad_rates, *[None] * len(ctx.rest)


def register_autograd() -> None:
    torch.library.register_autograd(
        "ddu_stable::unfold", backward, setup_context=lambda ctx, inputs, output: setup_only(ctx, inputs)
    )

    def setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, image, ctx.kernel_size, rates, *ctx.rest = inputs
        ctx.save_for_backward(image, rates)

    def backward_backward(ctx: Any, grad_grad_image: Tensor, grad_grad_rates: Tensor) -> tuple[Any, ...]:
        """By ``grad_output`` and through the image alone: what gradgradcheck by the image needs."""
        image, rates = ctx.saved_tensors
        by_grad = torch.ops.ddu_stable.unfold(grad_grad_image, ctx.kernel_size, rates, *ctx.rest)
        return by_grad, torch.zeros_like(image), *[None] * (2 + len(ctx.rest))

    torch.library.register_autograd("ddu_stable::unfold_backward", backward_backward, setup_context=setup_backward)


def setup_only(ctx: Any, inputs: tuple[Any, ...]) -> None:
    image, ctx.kernel_size, rates, *ctx.rest = inputs
    ctx.save_for_backward(image, rates)


class Unfold(torch.autograd.Function):
    """The operator in a function of Python's, for what ``register_autograd`` refuses. By the image."""

    generate_vmap_rule = False

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return torch.ops.ddu_stable.unfold(*args)

    setup_context = staticmethod(setup_context)
    backward = staticmethod(backward)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: Any) -> Tensor:
        _, rates = ctx.saved_tensors
        return torch.ops.ddu_stable.unfold(tangent, ctx.kernel_size, rates, *ctx.rest)


IMAGE = torch.randn(1, 1, 4, 4, dtype=torch.float64)
RATES = 0.6 + torch.rand(1, 1, 4, 4, dtype=torch.float64) / 8  # all taps within a cell
ARGS = ([3, 3], RATES, [1, 1], [1, 1], [1, 1], 1, True)


def of_image(image: Tensor) -> Tensor:
    return torch.ops.ddu_stable.unfold(image, *ARGS)


def energy(image: Tensor) -> Tensor:
    return of_image(image).square().sum()


# ---- features: each is tried, in C++ by compiling or running, in Python by running

# Bodies and headers that say in C++ what the library does; compiled against the stable headers alone.
SNIPPETS = {
    "a Node of our own": "#include <torch/csrc/autograd/function.h>\nstruct N : torch::autograd::Node {};",
    "SavedVariable": "#include <torch/csrc/autograd/saved_variable.h>",
    "dispatch key guards": "#include <c10/core/impl/LocalDispatchKeySet.h>",
    "autocast's type": "#include <ATen/autocast_mode.h>",
    "SymInt": "#include <c10/core/SymInt.h>",
    "deterministic algorithms": "#include <ATen/Context.h>\n"
    "bool f() { return at::globalContext().deterministicAlgorithms(); }",
    "torch's CPU capability": "#include <ATen/Version.h>\nauto f() { return at::get_cpu_capability(); }",
    "half types": "#include <torch/headeronly/util/BFloat16.h>\n#include <torch/headeronly/util/Half.h>\n"
    "float f(torch::headeronly::Half a, torch::headeronly::BFloat16 b) { return float(a) + float(b); }",
    "tags of operators": "#include <torch/csrc/stable/library.h>\n"
    'STABLE_TORCH_LIBRARY(probe, m) { m.def("f(Tensor x) -> Tensor", {at::Tag::pt2_compliant_tag}); }',
    "parallel_for": "#include <torch/csrc/stable/ops.h>\n"
    "void f() { torch::stable::parallel_for(0, 9, 1, [](int64_t, int64_t) {}); }",
    "device guard": "#include <torch/csrc/stable/accelerator.h>\n"
    "void f() { torch::stable::accelerator::DeviceGuard guard(0); }",
    "current CUDA stream": "#define USE_CUDA\n#include <torch/csrc/stable/c/shim.h>\n"
    "void* f() { void* s = nullptr; aoti_torch_get_current_cuda_stream(0, &s); return s; }",
    "stream of any device": "#include <torch/csrc/stable/accelerator.h>\n"
    "void* f() { return torch::stable::accelerator::getCurrentStream(0).nativeHandle(); }",
}


def compiles(snippet: str, target: str) -> str:
    command = [*COMPILER, f"-std={standard()}", "-fsyntax-only", target_flag(target), *includes(), "-x", "c++", "-"]
    done = subprocess.run(command, input=snippet + "\n", capture_output=True, text=True)
    errors = re.findall(r"error: (.*)", done.stderr)
    return "yes" if done.returncode == 0 else f"no: {errors[0]}"


def a_warning() -> None:
    """On the standard error, where TORCH_WARN's go when an operator is called from Python."""
    with tempfile.TemporaryFile() as seen:
        before = os.dup(2)
        os.dup2(seen.fileno(), 2)
        try:
            torch.ops.ddu_stable.warn(torch.ones(1), "careful")
        finally:
            os.dup2(before, 2)
            os.close(before)
        seen.seek(0)
        assert b"Warning: careful" in seen.read()


def text_of(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0].replace(str(HERE), "...")
    raise AssertionError("no error")


def an_error() -> None:
    text = text_of(lambda: torch.ops.ddu_stable.unfold(torch.ones(1, 1, 4, 4), [3, 3], torch.ones(1, 1, 4, 4)))
    assert text == "expected dilation_map to match the output grid", text


def a_check() -> None:
    text = text_of(lambda: torch.ops.ddu_stable.last_size(torch.tensor(1.0)))
    assert text == "expected a dimension", text


def same_bits_for_any_threads() -> None:
    before = torch.get_num_threads()
    one, many = [], []
    for threads, out in ((1, one), (4, many)):
        torch.set_num_threads(threads)
        out += results("ddu_stable", torch.float32)
    torch.set_num_threads(before)
    assert all(map(torch.equal, one, many))


def meta_of_whole_sizes() -> None:
    assert torch.ops.ddu_stable.zeros_of(torch.ones(2, device="meta"), [3, 4]).shape == (3, 4)


def traced(function: Callable[..., Any], *args: Tensor) -> None:
    """A symbolic trace that holds for other sizes, too."""
    graph = make_fx(function, tracing_mode="symbolic")(*args)
    others = [torch.cat([t, t], -1) for t in args]
    shape, right = graph(*others).shape, function(*others).shape
    assert shape == right, f"traced at {list(args[0].shape)}, it gives {list(shape)} in place of {list(right)}"


def symint_in_a_trace() -> None:
    traced(lambda x: x.new_empty(torch.ops.ddu_stable.zeros_of(x, [x.shape[0], x.shape[1]]).shape), torch.ones(5, 6))


def sizes_in_a_trace() -> None:
    traced(lambda x: x.new_empty(torch.ops.ddu_stable.last_size(x)), torch.ones(5, 6))


def fake_in_a_trace() -> None:
    traced(lambda x, r: torch.ops.ddu_stable.unfold(x, [1, 3], r, [1, 1], [0, 1]), IMAGE, RATES)


def vmap() -> None:
    def rule(info: Any, in_dims: Any, image: Tensor, kernel_size: Any, rates: Tensor, *rest: Any) -> tuple[Tensor, int]:
        image = image.movedim(in_dims[0], 0)
        many = rates.expand(info.batch_size, *rates.shape)
        result = torch.ops.ddu_stable.unfold(image.flatten(0, 1), kernel_size, many.flatten(0, 1), *rest)
        return result.unflatten(0, (info.batch_size, -1)), 0

    torch.library.register_vmap("ddu_stable::unfold", rule)
    images = torch.stack([IMAGE, 2 * IMAGE])
    torch.testing.assert_close(torch.func.vmap(of_image)(images), torch.stack([*map(of_image, images)]))


def autocast() -> None:
    """The library's policy: the image to autocast's type, which has no kernel here, the map to float32."""
    library = torch.library.Library("ddu_stable", "IMPL")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    seen = []

    def cast(image: Tensor, kernel_size: Any, rates: Tensor, *rest: Any) -> Tensor:
        seen.append(torch.get_autocast_dtype("cpu"))
        with torch._C._ExcludeDispatchKeyGuard(key):
            return torch.ops.ddu_stable.unfold(image.float(), kernel_size, rates.float(), *rest)

    library.impl("unfold", cast, "AutocastCPU")
    with torch.autocast("cpu", torch.bfloat16):
        assert of_image(IMAGE).dtype == torch.float32
    assert seen == [torch.bfloat16]
    library._destroy()


def compiled() -> None:
    torch._dynamo.reset()
    function = torch.compile(energy, fullgraph=True, dynamic=True, backend="aot_eager")
    image = IMAGE.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(image), image)
    (right,) = torch.autograd.grad(energy(image), image)
    torch.testing.assert_close(grad, right)


def close(function: Callable[[], Any], right: Callable[[], Any]) -> None:
    torch.testing.assert_close(function(), right())


def function_of_python(image: Tensor) -> Tensor:
    return Unfold.apply(image, *ARGS)


RUNS: dict[str, Callable[[], object]] = {
    "C++: same bits for any number of threads": same_bits_for_any_threads,
    "C++: warning": a_warning,
    "C++: the text of a std::runtime_error, as it was thrown": an_error,
    "C++: the text of a STD_TORCH_CHECK, as it was written": a_check,
    "C++: SymInt in a schema, called with ints": lambda: torch.ops.ddu_stable.zeros_of(torch.ones(2), [3, 4]),
    "C++: Meta kernel, whole sizes": meta_of_whole_sizes,
    "C++: Meta kernel, SymInt argument in a trace": symint_in_a_trace,
    "C++: Meta kernel, symbolic size of a tensor": sizes_in_a_trace,
    "Python: Meta kernel in a symbolic trace": fake_in_a_trace,
    "Python: reverse mode": lambda: torch.autograd.gradcheck(
        lambda x, r: torch.ops.ddu_stable.unfold(x, [3, 3], r, [1, 1], [1, 1]),
        (IMAGE.clone().requires_grad_(), RATES.clone().requires_grad_()),
    ),
    "Python: reverse mode twice": lambda: torch.autograd.gradgradcheck(of_image, IMAGE.clone().requires_grad_()),
    "Python: opcheck": lambda: torch.library.opcheck(
        torch.ops.ddu_stable.unfold.default, (IMAGE.clone().requires_grad_(), *ARGS)
    ),
    "Python: torch.compile, full graph, dynamic": compiled,
    "Python: torch.func.grad": lambda: close(
        lambda: torch.func.grad(energy)(IMAGE),
        lambda: torch.autograd.grad(energy(x := IMAGE.clone().requires_grad_()), x)[0],
    ),
    "Python: vmap": vmap,
    "Python: autocast": autocast,
    "Python: forward mode of the operator": lambda: close(
        lambda: torch.func.jvp(of_image, (IMAGE,), (IMAGE,))[1], lambda: of_image(IMAGE)
    ),
    "Python: forward mode of an autograd.Function around it": lambda: close(
        lambda: torch.func.jvp(function_of_python, (IMAGE,), (IMAGE,))[1], lambda: of_image(IMAGE)
    ),
    "Python: forward over reverse of that": lambda: torch.func.jvp(
        torch.func.grad(lambda x: function_of_python(x).square().sum()), (IMAGE,), (IMAGE,)
    ),
    "Python: that under torch.compile, full graph": lambda: torch.compile(
        function_of_python, fullgraph=True, backend="aot_eager"
    )(IMAGE.clone().requires_grad_()),
}


def tried(run: Callable[[], object]) -> str:
    try:
        with contextlib.redirect_stderr(open(os.devnull, "w")):  # torch prints what crosses its C interface
            run()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        return f"no: {type(error).__name__}: {lines[0][:200]}"
    return "yes"


def everything(output: Path, target: str) -> None:
    import ddu_ops  # the regular library, with autograd in C++

    stable, regular = output / "ddu_stable.so", output / "ddu_regular.so"
    (extension,) = (Path(ddu_ops.__file__).parent).glob("_C.*.so")
    seconds = {stable: build(stable, target), regular: build(regular, None)}
    print(
        "\n| library | built in | bytes | C functions of torch | C++ functions of torch |\n| --- " + "| --- " * 4 + "|"
    )
    for path in (stable, regular, extension):
        took = f"{seconds[path]:.1f} s" if path in seconds else ""
        print(f"| {path.name} | {took} | {path.stat().st_size:,} |", *(f"{n} |" for n in symbols(path)))

    expected = expected_results()
    torch.save(expected, output / "expected.pt")
    for path in (stable, regular):
        torch.ops.load_library(path)
        check(path.stem, expected)

    torch.set_num_threads(1)
    print("\n| call, (1, 1, 4, 4), k = 3 | µs |\n| --- | --- |")
    operators = {name: getattr(torch.ops, name).unfold.default for name in ("ddu", "ddu_regular", "ddu_stable")}
    times = microseconds({f"{name}::unfold": call_of(operator) for name, operator in operators.items()})
    register_fakes()
    register_autograd()
    in_python = "ddu_stable::unfold, autograd in Python"
    times |= microseconds(
        {
            in_python: call_of(operators["ddu_stable"]),
            "ddu::unfold, forward and backward": call_of(operators["ddu"], gradients=True),
            f"{in_python}, forward and backward": call_of(operators["ddu_stable"], gradients=True),
        }
    )
    for name, time_ in times.items():
        print(f"| {name} | {time_:.1f} |")

    print(f"\n| C++ against the stable headers of {target} | compiles |\n| --- | --- |")
    for name, snippet in SNIPPETS.items():
        print(f"| {name} | {compiles(snippet, target)} |")
    print("\n| what was run | works |\n| --- | --- |")
    for name, run in RUNS.items():
        print(f"| {name} | {tried(run)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="2.11", help="the oldest torch that the library is for")
    parser.add_argument("--output", type=Path, default=Path("build/stable_abi"), help="where libraries are built")
    parser.add_argument("--build-only", action="store_true", help="build, for --library in another torch")
    parser.add_argument("--library", type=Path, help="load and check a library built elsewhere, beside its expected.pt")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {' '.join(sys.argv[1:])}"
    )
    if options.library:
        torch.ops.load_library(options.library)
        check(options.library.stem, torch.load(options.library.with_name("expected.pt")))
    elif options.build_only:
        for name, target in (("ddu_stable.so", options.target), ("ddu_regular.so", None)):
            print(f"{name}: {build(options.output / name, target):.1f} s")
    else:
        everything(options.output, options.target)


if __name__ == "__main__":
    main()
