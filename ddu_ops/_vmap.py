"""``torch.func.vmap`` of the operators: one rule for all, for all their tensors begin with the batch.

The mapped dimension is folded into the batch and taken out of it again; what is not mapped is expanded. The composite
operators are taken apart first (csrc/dispatch/composite.cpp).

The rules are kernels like those of torch's own operators: ``torch.library.register_vmap`` would add half as much time
again to a small call. They are not in C++ for torch ships the header of the current level without what it includes.
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


for _name in ("unfold", "fold", "unfold_backward", "sample", "splat", "dot"):
    _library.impl(_name, _rule(_name), "FuncTorchBatched")
