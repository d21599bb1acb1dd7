"""The operators in terms of ATen's, for backends that know no others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import DispatchKey
from torch._ops import OpOverload

# The keys of kernels that call other operators: those of public operators call the family, those of the family call
# ATen. They are called directly, so that the dispatcher does not select another kernel.
_WRITTEN_IN_OTHERS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.CompositeExplicitAutograd)


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Return decompositions of every operator of the library into ATen operators.

    Compiled and exported programs contain the library's operators as they are. This table decomposes them exactly: the
    values, types, gradients and errors are those of the kernels, half types are computed in float32 and rounded once,
    and no size becomes a constant. It is meant for backends that support only ATen; where the operators have kernels,
    those are faster and need less memory. On devices without kernels the same functions run automatically.

    Returns:
        A table for :meth:`torch.export.ExportedProgram.run_decompositions`, for the ``decomposition_table`` of
        :func:`torch.fx.experimental.proxy_tensor.make_fx` and for the ``decompositions`` of AOTAutograd. It is a new
        dictionary, which the caller may change.

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
