"""The operators in terms of ATen's, for what knows no others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import DispatchKey
from torch._ops import OpOverload

# The kernel, registered for one of these two keys, that is written in terms of other operators: of the public
# operators those of the family, of the family ATen's. It is called without the dispatcher's choice of another.
_WRITTEN_IN_OTHERS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.CompositeExplicitAutograd)


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Decompositions of every operator of the library into ATen operators.

    Compiled and exported programs hold the library's operators as they are. This table takes them apart, exactly: the
    values, types, gradients and errors are those of the kernels, half types are computed in float32 and rounded once,
    and no size becomes a constant. It is meant for backends that know ATen alone; where the operators have kernels,
    those are faster and need less memory. The same functions run, without being asked for, on devices that have no
    kernels.

    Returns:
        A table for :meth:`torch.export.ExportedProgram.run_decompositions`, for the ``decomposition_table`` of
        :func:`torch.fx.experimental.proxy_tensor.make_fx` and for the ``decompositions`` of AOTAutograd. The caller
        may change it.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def forward(self, input, dilation_map):
        ...         return dynamic_dilation_unfold(input, 3, dilation_map, padding=1)
        >>> program = torch.export.export(Model(), (torch.randn(1, 2, 5, 5), torch.rand(1, 1, 5, 5)))
        >>> program = program.run_decompositions(decompositions())
        >>> {node.target.namespace for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
        {'aten'}
    """
    table: dict[OpOverload, Callable[..., Any]] = {}
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("ddu::"):
            continue
        operator = getattr(torch.ops.ddu, name.removeprefix("ddu::")).default
        key = next(k for k in _WRITTEN_IN_OTHERS if operator.has_kernel_for_dispatch_key(k))
        table[operator] = partial(operator._op_dk, key)
    return table
