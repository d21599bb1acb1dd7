"""``torch.func.vmap`` of the operators: one rule for all, for all their tensors begin with the batch.

The mapped dimension is folded into the batch and taken out of it again; what is not mapped is expanded. The composite
operators are taken apart first (csrc/dispatch/composite.cpp).
"""

from typing import Any

import torch
from torch import Tensor


def _register(name: str) -> None:
    operator = getattr(torch.ops.ddu, name).default

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        size: int = info.batch_size

        def fold_in(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            return mapped.flatten(0, 1) if mapped.dim() > 1 else mapped

        def take_out(value: Tensor) -> Tensor:
            return value.unflatten(0, (size, -1) if size else (0, 0))

        result = operator(*map(fold_in, args, in_dims), **kwargs)
        if isinstance(result, Tensor):
            return take_out(result), 0
        return tuple(map(take_out, result)), (0,) * len(result)

    torch.library.register_vmap(operator, rule)


for _name in ("unfold", "fold", "unfold_backward", "sample", "splat", "dot"):
    _register(_name)
