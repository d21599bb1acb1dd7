"""Options as callers pass them: ints, one for all axes or one per axis, slowest axis first."""

import reprlib
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, SupportsIndex

import torch
from torch.overrides import has_torch_function

#: One number for all axes or one per axis. A number is anything that ``operator.index`` accepts, such as NumPy's ints.
Ints = SupportsIndex | Sequence[SupportsIndex]


def integer(
    value: Any, name: str, function: str, error: type[Exception] = RuntimeError, *, least: int | None = None
) -> int:
    """An int. A symbolic one is replaced by its current value."""
    number = _index(value)
    if number is None:
        raise error(f"{function}(): expected {name} to be an int, but got {described(value, function)}")
    _check(least, (number,), number, name, function, error)
    return number


def ints(
    value: Any,
    axes: int,
    name: str,
    function: str,
    error: type[Exception] = RuntimeError,
    *,
    words: Sequence[str] = (),
    least: int | None = None,
    symbolic: bool = False,
) -> tuple[int, ...]:
    """An int for every axis: on two axes ``3``, ``(3,)`` and ``(3, 3)`` mean the same.

    Args:
        name, function: the names of the argument and of the function, for the message.
        words: strings that the argument may also be, for the message.
        least: the smallest value, checked by modules; functions leave this check to the operators.
        symbolic: keep symbolic numbers, including those of ``torch.jit.trace``, which are tensors.
    """
    if not symbolic and least is None:  # a faster path for the usual forms
        try:
            if type(value) is tuple and len(value) == axes:
                return tuple(map(index, value))
            return (index(value),) * axes
        except TypeError:
            pass
    numbers = _numbers(value, symbolic)
    if numbers is not None and len(numbers) in (1, axes):
        _check(least, numbers, value, name, function, error)
        return numbers if len(numbers) == axes else numbers * axes
    count = "one int" if axes == 1 else f"one or {('two', 'three')[axes - 2]} ints"
    takes = " or ".join(", ".join([count, *map(repr, words)]).rsplit(", ", 1))
    got = described(value, function) if numbers is None else repr(numbers)
    raise error(f"{function}(): expected {name} to be {takes}, but got {got}")


def require_tensor(value: Any, name: str, function: str, takes: str = "a tensor") -> None:
    """Refuses what is not a tensor. The dispatcher would print every number of an array."""
    if isinstance(value, torch.Tensor) or has_torch_function((value,)):  # such as an fx proxy
        return
    raise RuntimeError(f"{function}(): expected {name} to be {takes}, but got {described(value, function, name)}")


def described(value: Any, function: str, name: str | None = None) -> str:
    """Describes a wrong argument: by its value, or an array by its shape; with the order if two may be swapped.

    Args:
        name: the name of the argument if a tensor was expected.
    """
    array = isinstance(getattr(value, "shape", None), tuple) and getattr(value, "ndim", 0) > 0
    operator = getattr(torch.ops.ddu, function, None)
    names = [] if operator is None else [a.name for a in operator.default._schema.arguments if not a.kwarg_only]
    order = f"; the order of the arguments is {', '.join(names)}"
    if array:
        kind = "tensor" if isinstance(value, torch.Tensor) else f"{type(value).__module__}.{type(value).__name__}"
        got = f"a {kind} of shape {tuple(value.shape)}"
        if name is None:
            return got + order * bool(names)
        return got + "; torch.from_numpy() makes a tensor of it" * (kind == "numpy.ndarray")
    got = reprlib.repr(value)
    return got + order * (name is not None and name in names[1:] and not isinstance(value, str))


def windows(
    size: Iterable[int],
    kernel_size: Iterable[int],
    stride: Iterable[int],
    padding: Iterable[int],
    dilation: Iterable[int],
) -> tuple[int, ...]:
    """The number of windows on every axis, as in ``F.unfold``."""
    axes = zip(size, kernel_size, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def one_or_more(
    value: Any,
    axes: int,
    name: str,
    function: str,
    error: type[Exception] = RuntimeError,
    *,
    least: int | None = None,
) -> Ints:
    """The same, but a single number stays a number."""
    numbers = ints(value, axes, name, function, error, least=least)
    return numbers[0] if _index(value) is not None else numbers


def several(
    value: Any,
    name: str,
    function: str,
    error: type[Exception] = RuntimeError,
    *,
    least: int | None = None,
    some: bool = False,
) -> tuple[int, ...]:
    """A list of ints of any length.

    Args:
        some: refuse an empty list.
    """
    numbers = None if _index(value) is not None else _numbers(value, False)
    if numbers is None or (some and not numbers):
        raise error(f"{function}(): expected {name} to be a list of {'one or more ' * some}ints, but got {value!r}")
    if numbers:
        _check(least, numbers, numbers, name, function, error)
    return numbers


def length_of_ints(value: Any) -> int:
    """The number of ints; 0 if an entry is not an int."""
    return len(_numbers(value, False) or ())


def _check(
    least: int | None, numbers: Sequence[int], value: Any, name: str, function: str, error: type[Exception]
) -> None:
    if least is not None and min(numbers) < least:
        raise error(f"{function}(): expected {name} to be at least {least}, but got {value}")


def _numbers(value: Any, symbolic: bool) -> tuple[int, ...] | None:
    """All ints, or ``None`` if an entry is not an int."""
    number = _index(value, symbolic)
    if number is not None:
        return (number,)
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return None
    numbers = []
    for entry in value:
        number = _index(entry, symbolic)
        if number is None:
            return None
        numbers.append(number)
    return tuple(numbers)


def _index(value: Any, symbolic: bool = False) -> int | None:
    if symbolic and isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]
    if symbolic and isinstance(value, torch.Tensor) and torch._C._get_tracing_state() is not None:
        return value  # type: ignore[return-value]
    try:
        return index(value)
    except TypeError:
        # While fx traces, a number may be a proxy.
        return value if isinstance(value, torch.fx.Proxy) else None  # type: ignore[return-value]
