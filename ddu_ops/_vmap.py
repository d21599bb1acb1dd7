"""``torch.func.vmap`` of the operators.

If all tensors begin with the batch, the mapped dimension is merged into the batch and split off again afterwards.
Tensors that are not mapped are expanded. The weight of a convolution has no batch: if it is mapped, or its gradient is
needed, every image gets its own weight. A dimension of size 0 is replaced by one index of zeros, which is removed from
the result again, because the operator has to run to determine the shape. Composite operators are decomposed first
(csrc/dispatch/composite.cpp).

The first rules are kernels like those of torch's own operators: ``torch.library.register_vmap`` would make a small call
take 1.5 times as long. They are not in C++ because torch ships the header of the current level without the headers that
it includes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

# The rules live as long as this object. It is stored with the operators, which cannot be registered twice, so that
# importing the package again or reloading it replaces the rules.
_kept = vars(torch.ops.ddu)
if "rules_of_vmap" in _kept:
    _kept["rules_of_vmap"]._destroy()
_library = _kept["rules_of_vmap"] = torch.library.Library("ddu", "IMPL")
_key = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)


def _with_one_index(value: Tensor, dim: int) -> Tensor:
    """The rule for a dimension of size 0."""
    return torch.cat([value, value.new_zeros([1 if i == dim else n for i, n in enumerate(value.shape)])], dim)


def _rule(name: str) -> Callable[..., Any]:
    operator = getattr(torch.ops.ddu, name).default

    def rule(*args: Any) -> Any:
        level: Any = _functorch.maybe_current_level()  # an int, here
        tensors = {i: _functorch._unwrap_batched(a, level) for i, a in enumerate(args) if isinstance(a, Tensor)}
        sizes = [value.shape[dim] for value, dim in tensors.values() if dim is not None]
        with torch._C._ExcludeDispatchKeyGuard(_key):
            if not sizes:  # mapped at another level
                return operator(*args)
            size = max(sizes[0], 1)
            if not sizes[0]:
                tensors = {i: (v if d is None else _with_one_index(v, d), d) for i, (v, d) in tensors.items()}
            folded = list(args)
            for i, (value, dim) in tensors.items():
                mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0) if dim else value
                folded[i] = mapped.flatten(0, 1) if mapped.dim() > 1 else mapped
            result = operator(*folded)
            taken_out = [t.unflatten(0, (size, -1)) for t in ([result] if isinstance(result, Tensor) else result)]
            if not sizes[0]:
                taken_out = [t[:0] for t in taken_out]
        mapped_results = tuple(_functorch._add_batch_dim(t, 0, level) for t in taken_out)
        return mapped_results[0] if isinstance(result, Tensor) else mapped_results

    return rule


_FAMILY = ("unfold", "fold", "unfold_backward", "sample", "splat", "dot", "sample_backward")
_SUMS = ("aggregate", "correlate", "scatter", "sums_backward", "max_pool")

for _name in _FAMILY + _SUMS:
    _library.impl(_name, _rule(_name), "FuncTorchBatched")


def _over_nothing_too(rule: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    def either(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size:
            return rule(info, in_dims, *args)
        pairs = zip(args, in_dims, strict=True)  # those of a list are a list
        one = [_with_one_index(a, d) if isinstance(a, Tensor) and d is not None else a for a, d in pairs]
        result, out_dims = rule(info._replace(batch_size=1), in_dims, *one)
        if isinstance(result, Tensor):
            return result.narrow(out_dims, 0, 0), out_dims
        taken_out = zip(result, out_dims, strict=True)
        return tuple(t if d is None else t.narrow(d, 0, 0) for t, d in taken_out), out_dims

    return either


def _register_convolution(name: str) -> None:
    operator = getattr(torch.ops.ddu, name).default
    parameters = [argument.name for argument in operator._schema.arguments]
    backward = "output_mask" in parameters

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size: int = info.batch_size
        given = dict(zip(parameters, args, strict=True))
        dims = dict(zip(parameters, in_dims, strict=True))
        weight = given["weight"]
        plain_rank = given["positions"].dim() - (dims["positions"] is not None)  # of a weight for all images
        per_image = weight.dim() - (dims["weight"] is not None) > plain_rank
        needed = given.get("output_mask", ())
        apart = dims["weight"] is not None or dims.get("bias") is not None or (backward and needed[1])
        batch = given["input"].shape[0 if dims["input"] is None else int(dims["input"] == 0)]

        def fold_in(parameter: str) -> Any:
            value, dim = given[parameter], dims[parameter]
            if not isinstance(value, Tensor):
                return value
            shared = parameter == "weight" and not per_image
            shared |= parameter == "bias" and value.dim() - (dim is not None) == 1
            if shared and not apart:
                return value
            mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            if shared:
                mapped = mapped.unsqueeze(1).expand(size, batch, *mapped.shape[1:])
            return mapped.flatten(0, 1) if mapped.dim() > 1 else mapped

        result = operator(*map(fold_in, parameters))
        split = (size, -1) if size else (0, 0)
        if not backward:
            return result.unflatten(0, split), 0
        taken_out = [value.unflatten(0, split) if need else value for value, need in zip(result, needed, strict=True)]
        if needed[1] and not per_image:
            taken_out[1] = taken_out[1].sum(1)
        return tuple(taken_out), tuple(0 if need else None for need in needed)

    torch.library.register_vmap(operator, _over_nothing_too(rule), lib=_library)


for _name in ("convolution", "convolution_backward"):
    _register_convolution(_name)


def _register_dcls(name: str) -> None:
    """Merges the mapped dimension into the (output) channels, which every tensor has."""
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

    torch.library.register_vmap(operator, rule, lib=_library)


for _name in ("dcls_kernel", "dcls_kernel_backward", "dcls_sparse_sum", "dcls_sparse_dot"):
    _register_dcls(_name)


def _inside(info: Any, in_dims: tuple[int | None, ...], positions: Tensor, kernel_size: Any) -> tuple[Tensor, int]:
    """Positions are independent, so the mapped dimension goes where the operator does not look at it."""
    assert in_dims[0] is not None
    return torch.ops.ddu.dcls_inside(positions.movedim(in_dims[0], -1), kernel_size), -1


torch.library.register_vmap(torch.ops.ddu.dcls_inside.default, _inside, lib=_library)
