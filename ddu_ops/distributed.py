"""Sharding of the operators over a mesh of devices, for :class:`torch.distributed.tensor.DTensor`.

Importing this module registers it; ``import ddu_ops`` does not, for that would load ``torch.distributed.tensor`` for
everyone. Every operator and every derivative then computes without communication on tensors that are sharded

- along the batch, or
- along the channels, where each shard holds whole groups and their part of the map; of a single group, whole channels
  beside a replicated map, whose gradient is then a pending sum (``Partial``);

and passes a pending sum on where it is linear. What is placed in another way, along the image for example, or has
groups that do not divide evenly, is redistributed first, in the cheapest way that DTensor knows.

Example:
    >>> import torch.distributed as dist
    >>> from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
    >>> import ddu_ops.distributed
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> mesh = init_device_mesh("cpu", (1,))
    >>> input = distribute_tensor(torch.randn(2, 8, 5, 5), mesh, [Shard(1)])
    >>> dilation_map = distribute_tensor(torch.full((2, 1, 5, 5), 1.5), mesh, [Replicate()])
    >>> dynamic_dilation_unfold(input, 3, dilation_map, padding=1).placements
    (Shard(dim=1),)
    >>> dist.destroy_process_group()
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._op_schema import OpSchema, OpSpec, OpStrategy, RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.utils._pytree import tree_map, tree_unflatten

# The tensors that the operators return and take, in the order of their schemas. A gradient has the shape of a map.
_SAMPLE = (["columns"], ["image", "map"])
_SPLAT = (["image"], ["columns", "map"])
_OPERATORS = {
    "unfold": _SAMPLE,
    "sample": _SAMPLE,
    "fold": _SPLAT,
    "splat": _SPLAT,
    "dot": (["gradient"], ["columns", "image", "map"]),
    "unfold_backward": (["image", "gradient"], ["columns", "image", "map"]),
}


def _acceptable_shardings(name: str, groups: int) -> list[tuple[list[Placement], list[Placement]]]:
    """The placements on one dimension of a mesh, of results and arguments, that need no communication."""
    outputs, inputs = _OPERATORS[name]

    def each(place: Callable[[str], Placement]) -> tuple[list[Placement], list[Placement]]:
        return [place(tensor) for tensor in outputs], [place(tensor) for tensor in inputs]

    along_channels: dict[str, Placement] = {
        "image": Shard(1),
        "columns": Shard(1),
        "map": Shard(1) if groups > 1 else Replicate(),
        "gradient": Shard(1) if groups > 1 else Partial(),  # a sum over the channels of a group
    }
    # Linear in the image and in the columns: a pending sum of the one is a pending sum of all that depends on it, and
    # no image depends on an image.
    pending: list[tuple[list[Placement], list[Placement]]] = [
        (
            [Replicate() if tensor == summed else Partial() for tensor in outputs],
            [Partial() if tensor == summed else Replicate() for tensor in inputs],
        )
        for summed in inputs
        if summed != "map"
    ]
    return [each(lambda _: Replicate()), each(lambda _: Shard(0)), each(along_channels.__getitem__), *pending]


# Private to torch; its own operators with such needs, convolution for one, are registered there.
_dispatcher: Any = DTensor._op_dispatcher
_propagator: Any = _dispatcher.sharding_propagator


def _shards(spec: Any) -> int:
    """Into how many parts the channels of an image or of columns are cut."""
    return math.prod(spec.mesh.size(i) for i, placement in enumerate(spec.placements) if placement.is_shard(1))


def _register(name: str) -> None:
    op: OpOverload = getattr(torch.ops.ddu, name).default
    names = [argument.name for argument in op._schema.arguments]
    groups_at, kernel_size_at = names.index("groups"), names.index("kernel_size")

    def groups_of(args: tuple[Any, ...]) -> int:
        return args[groups_at] if len(args) > groups_at else 1  # defaults at the end are left out

    def evenly(strategy: Callable[[OpSchema], OpStrategy], schema: OpSchema) -> OpStrategy:
        """Those of a strategy's shardings in which each shard has as many groups, or channels of the only group."""
        args: tuple[Any, ...] = schema.args_schema
        units = groups_of(args)
        if units == 1:
            leading, kernel_size = args[0], args[kernel_size_at]
            taps = 1 if leading.ndim == 4 else kernel_size[0] * kernel_size[-1]
            units = leading.shape[1] // taps

        def even(spec: OpSpec) -> bool:
            return units % _shards(spec.input_spec(0)) == 0

        return OpStrategy(list(filter(even, strategy(schema).strategies)))

    def dispatch(op: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What DTensor does with an operator, but with the groups of the shard in place of all groups."""
        call = _dispatcher.unwrap_to_op_info(op, args, kwargs)
        _propagator.propagate(call)
        sharding = call.output_sharding
        if call.compute_mesh.get_coordinate() is None:  # this process has no part in it
            return _dispatcher.wrap(
                tree_map(lambda spec: torch.empty(0, dtype=spec.tensor_meta.dtype), sharding.output_spec),
                sharding.output_spec,
            )
        if sharding.needs_redistribute:
            _dispatcher.redistribute_local_args(call, sharding.redistribute_schema, False)
        local_args = list(tree_unflatten(list(call.local_args), call.args_tree_spec))
        groups = groups_of(args)
        if groups > 1:
            schema = sharding.redistribute_schema if sharding.needs_redistribute else call.schema
            local_args[groups_at] = groups // _shards(schema.args_schema[0])
        return _dispatcher.wrap(op(*local_args, **call.local_kwargs), sharding.output_spec)

    register_sharding(op)(lambda *args: _acceptable_shardings(name, groups_of(args)))
    # The rest of what it takes, which register_sharding has no argument for: that shards are even; that the kernel size
    # and what follows it decide the shape of the result, so that a placement found for one is not used for another; and
    # that the groups of a shard are fewer.
    strategy = _propagator.op_strategy_funcs[op]
    _propagator.register_op_strategy(op, partial(evenly, strategy), RuntimeSchemaInfo(1, needs_pytree=True))
    _dispatcher._custom_op_handlers[op] = dispatch


for _name in _OPERATORS:
    _register(_name)

# In inference mode these come here as they are, and as they are they would run on the shards.
for _composite in (torch.ops.ddu.dynamic_dilation_unfold.default, torch.ops.ddu.dynamic_dilation_fold.default):
    _dispatcher._custom_op_handlers[_composite] = lambda op, args, kwargs: op.decompose(*args, **kwargs)
