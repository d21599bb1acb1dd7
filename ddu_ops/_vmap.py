"""``torch.func.vmap`` of the operators.

Where all tensors begin with the batch, the mapped dimension is folded into it and taken out of it again. The weight of
a convolution has no batch, so there it is folded into the channels, and every mapped index is a group of its own. What
is not mapped is expanded. The composite operators are taken apart first (csrc/dispatch/composite.cpp).

The first rules are kernels like those of torch's own operators: ``torch.library.register_vmap`` would add half as much
time again to a small call. They are not in C++, for torch ships the header of the current level without what that
includes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

_library = torch.library.Library("ddu", "IMPL")
_key = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)


def _rule(name: str) -> Callable[..., Any]:
    operator = getattr(torch.ops.ddu, name).default

    def rule(*args: Any) -> Any:
        level: Any = _functorch.maybe_current_level()  # an int, here
        tensors = {i: _functorch._unwrap_batched(a, level) for i, a in enumerate(args) if isinstance(a, Tensor)}
        sizes = [value.shape[dim] for value, dim in tensors.values() if dim is not None]
        with torch._C._ExcludeDispatchKeyGuard(_key):
            if not sizes:  # mapped at another level
                return operator(*args)
            size = sizes[0]
            folded = list(args)
            for i, (value, dim) in tensors.items():
                mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0) if dim else value
                folded[i] = mapped.flatten(0, 1) if mapped.dim() > 1 else mapped
            result = operator(*folded)
            split = (size, -1) if size else (0, 0)
            taken_out = [t.unflatten(0, split) for t in ([result] if isinstance(result, Tensor) else result)]
        mapped_results = tuple(_functorch._add_batch_dim(t, 0, level) for t in taken_out)
        return mapped_results[0] if isinstance(result, Tensor) else mapped_results

    return rule


for _name in ("unfold", "fold", "unfold_backward", "sample", "splat", "dot", "sample_backward"):
    _library.impl(_name, _rule(_name), "FuncTorchBatched")


def _register_convolution(name: str) -> None:
    operator = getattr(torch.ops.ddu, name).default
    parameters = [argument.name for argument in operator._schema.arguments]

    def channels(parameter: str) -> int:
        """The dimension that a tensor has its channels in."""
        return 0 if parameter in ("weight", "bias") else 1

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size: int = info.batch_size

        def fold_in(parameter: str, value: Any, dim: int | None) -> Any:
            if parameter in ("groups", "dilation_groups"):
                return value * size
            if not isinstance(value, Tensor):
                return value
            mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            into = channels(parameter)
            return mapped.movedim(0, into).flatten(into, into + 1) if mapped.dim() > into + 1 else mapped

        def take_out(value: Tensor, dim: int) -> Tensor:
            return value.unflatten(dim, (size, value.shape[dim] // max(size, 1)))

        result = operator(*map(fold_in, parameters, args, in_dims))
        if isinstance(result, Tensor):
            return take_out(result, 1), 1
        needed = args[parameters.index("output_mask")]
        dims = [
            channels(parameter.name.removeprefix("grad_")) if need else None
            for parameter, need in zip(operator._schema.returns, needed, strict=True)
        ]
        return tuple(
            value if dim is None else take_out(value, dim) for value, dim in zip(result, dims, strict=True)
        ), tuple(dims)

    torch.library.register_vmap(operator, rule)


for _name in ("conv2d", "conv2d_backward"):
    _register_convolution(_name)


def _register_dcls(name: str) -> None:
    """The mapped dimension is folded into the (output) channels, which every tensor has."""
    operator = getattr(torch.ops.ddu, name).default
    parameters = [argument.name for argument in operator._schema.arguments]

    def rows(parameter: str) -> int:
        """The dimension of the channels."""
        return int(parameter.removeprefix("grad_") in ("positions", "sigma", "input", "left", "shifts"))

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any, **options: Any) -> tuple[Any, Any]:
        size: int = info.batch_size

        def fold_in(parameter: str, value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            into = rows(parameter)
            return mapped.movedim(0, into).flatten(into, into + 1) if mapped.dim() > into + 1 else mapped

        def take_out(value: Tensor, dim: int) -> Tensor:
            return value.unflatten(dim, (size, value.shape[dim] // max(size, 1)))

        result = operator(*map(fold_in, parameters, args, in_dims), **options)
        if isinstance(result, Tensor):
            into = 1 if name == "dcls_sparse_sum" else 0
            return take_out(result, into), into
        needed = args[parameters.index("output_mask")]
        dims = [
            rows(parameter.name) if need else None
            for parameter, need in zip(operator._schema.returns, needed, strict=True)
        ]
        return tuple(
            value if dim is None else take_out(value, dim) for value, dim in zip(result, dims, strict=True)
        ), tuple(dims)

    torch.library.register_vmap(operator, rule)


for _name in ("dcls_kernel", "dcls_kernel_backward", "dcls_sparse_sum", "dcls_sparse_dot"):
    _register_dcls(_name)


def _inside(info: Any, in_dims: tuple[int | None, ...], positions: Tensor, kernel_size: Any) -> tuple[Tensor, int]:
    """Every position for itself: the mapped dimension goes where it is not looked at."""
    assert in_dims[0] is not None
    return torch.ops.ddu.dcls_inside(positions.movedim(in_dims[0], -1), kernel_size), -1


torch.library.register_vmap(torch.ops.ddu.dcls_inside.default, _inside)
