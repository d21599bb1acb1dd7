"""Sharding of the operators over a mesh of devices, for :class:`torch.distributed.tensor.DTensor`.

Import this module to register the sharding rules: ``import ddu_ops`` alone does not load ``torch.distributed.tensor``.
Every operator and every derivative then runs without communication on tensors that are sharded

- along the batch, or
- along the channels, if each shard has whole groups and their part of the map. With a single group, shards have whole
  channels and the map is replicated; its gradient is then a pending sum (``Partial``).

Operators that are linear also accept pending sums. The same holds for the sums of windows, if each shard of the
channels also has whole groups of the mask, but without pending sums. The convolution and its backward run without
communication

- along the batch, with a replicated weight, whose gradient is a pending sum, or with a weight for each image;
- along the channels of input and output, if each shard has whole groups of the weight and, of the positions and the
  mask, whole groups or the only group, whose gradient is then a pending sum;
- with one group, along the channels of the output, with a replicated input.

Tensors with other placements, such as along the image, or with groups that do not divide evenly, are redistributed
first, in the way that DTensor considers cheapest.

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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._op_schema import OpSchema, OpSpec, OpStrategy, RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.utils._pytree import tree_map, tree_unflatten

Shardings = list[tuple[list[Placement], list[Placement]]]  # of results and arguments, on one dimension of a mesh

# Private to torch; its own operators with such needs, convolution for one, are registered there.
_dispatcher: Any = DTensor._op_dispatcher
_propagator: Any = _dispatcher.sharding_propagator


def _place(op: OpOverload, name: str) -> int:
    return [argument.name for argument in op._schema.arguments].index(name)


class _Arguments:
    """Those of a call, by name."""

    def __init__(self, op: OpOverload, values: Sequence[Any]) -> None:
        self._op, self._values = op, values

    def __getitem__(self, name: str) -> Any:
        place = _place(self._op, name)
        return self._values[place] if place < len(self._values) else 1  # groups: defaults at the end are left out


def _shards(spec: Any, dim: int) -> int:
    """The number of parts that a dimension is split into."""
    return math.prod(spec.mesh.size(i) for i, placement in enumerate(spec.placements) if placement.is_shard(dim))


def _register(
    op: OpOverload,
    shardings: Callable[[_Arguments], Shardings],
    lead: tuple[int, Callable[[_Arguments], int]],
    units: Callable[[_Arguments], int],
    divided: Callable[[_Arguments], Sequence[str]],
) -> None:
    """Registers the placements that an operator supports.

    Args:
        op: the operator.
        shardings: the placements that need no communication.
        lead: the index of the tensor that determines the sharding, among the tensors and among the arguments, and the
            dimension that it is sharded along in a call.
        units: the number of units that are sharded, of which every shard must have equally many.
        divided: the options that are divided by the number of shards if they are larger than one.
    """
    lead_at, lead_dim = lead

    def evenly(strategy: Callable[[OpSchema], OpStrategy], schema: OpSchema) -> OpStrategy:
        given = _Arguments(op, schema.args_schema)
        whole, dim = units(given), lead_dim(given)

        def even(spec: OpSpec) -> bool:
            return whole % _shards(spec.input_spec(lead_at), dim) == 0

        return OpStrategy(list(filter(even, strategy(schema).strategies)))

    def dispatch(op: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Does what DTensor does with an operator, with the groups of the shard in place of all groups."""
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
        schema = sharding.redistribute_schema if sharding.needs_redistribute else call.schema
        given = _Arguments(op, args)
        parts = _shards(schema.args_schema[lead_at], lead_dim(given))
        for name in divided(given):
            if given[name] > 1:
                local_args[_place(op, name)] = given[name] // parts
        return _dispatcher.wrap(op(*local_args, **call.local_kwargs), sharding.output_spec)

    register_sharding(op)(lambda *args: shardings(_Arguments(op, args)))
    # The rest of what it takes, which register_sharding has no argument for: that shards are even; that the kernel size
    # and what follows it decide the shape of the result, so that a placement found for one is not used for another; and
    # that the groups of a shard are fewer.
    strategy = _propagator.op_strategy_funcs[op]
    _propagator.register_op_strategy(op, partial(evenly, strategy), RuntimeSchemaInfo(1, needs_pytree=True))
    _dispatcher._custom_op_handlers[op] = dispatch


# ---- The unfold, the fold and their derivatives ----

# The tensors that the operators return and take, in the order of their schemas. The channels of the positions, "map",
# and of what is shaped like them, "gradient", belong to groups, whatever their source and the number of axes.
_SAMPLE = (["columns"], ["image", "map"])
_SPLAT = (["image"], ["columns", "map"])
_OPERATORS = {
    "unfold": _SAMPLE,
    "sample": _SAMPLE,
    "fold": _SPLAT,
    "splat": _SPLAT,
    "dot": (["gradient"], ["columns", "image", "map"]),
    "unfold_backward": (["image", "gradient"], ["columns", "image", "map"]),
    "sample_backward": (["image", "gradient"], ["columns", "image", "map"]),
}


def _shardings(name: str, args: _Arguments) -> Shardings:
    groups = args["groups"]
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
    pending: Shardings = [
        (
            [Replicate() if tensor == summed else Partial() for tensor in outputs],
            [Partial() if tensor == summed else Replicate() for tensor in inputs],
        )
        for summed in inputs
        if summed != "map"
    ]
    return [each(lambda _: Replicate()), each(lambda _: Shard(0)), each(along_channels.__getitem__), *pending]


def _groups_or_channels(op: OpOverload, args: _Arguments) -> int:
    """Groups, or channels of the only one."""
    if args["groups"] > 1:
        return args["groups"]
    leading = op._schema.arguments[0].name
    channels: int = args[leading].shape[1]
    if leading == "input":
        return channels
    positions = "positions" if "source" in (argument.name for argument in op._schema.arguments) else "dilation_map"
    kernel_size, axes = args["kernel_size"], args[positions].ndim - 2
    return channels // math.prod(kernel_size * axes if len(kernel_size) == 1 else kernel_size)


for _name in _OPERATORS:
    _operator: OpOverload = getattr(torch.ops.ddu, _name).default
    _register(
        _operator,
        partial(_shardings, _name),
        lead=(0, lambda _: 1),
        units=partial(_groups_or_channels, _operator),
        divided=lambda _: ["groups"],
    )

# ---- The sums of windows ----


def _shardings_of_sums(op: OpOverload, args: _Arguments) -> Shardings:
    tensors = [argument.name for argument in op._schema.arguments if "Tensor" in str(argument.type)]
    inputs = [name for name in tensors if args[name] is not None]
    outputs = [result.name for result in op._schema.returns]
    if op is torch.ops.ddu.sums_backward.default:  # an empty tensor is not cut, and stands for what is not asked for
        asked = zip(outputs, args["output_mask"], strict=True)
        outputs = [name if need else "empty" for name, need in asked]

    def sharding(others: Placement, **placements: Placement) -> tuple[list[Placement], list[Placement]]:
        """Of tensors by name."""
        placements["empty"] = Replicate()
        return [placements.get(name, others) for name in outputs], [placements.get(name, others) for name in inputs]

    along_channels = sharding(Shard(1))
    if args["groups"] == 1:
        along_channels = sharding(Shard(1), positions=Replicate(), grad_positions=Partial())
    return [sharding(Replicate()), sharding(Shard(0)), along_channels]


def _groups_of_all(op: OpOverload, args: _Arguments) -> int:
    """Groups that every process has to have as many of: of the positions, where they are several, and of the mask."""
    names = [argument.name for argument in op._schema.arguments]
    positions, kernel_size = args["positions"], args["kernel_size"]
    axes = positions.ndim - 2
    units: int = args[names[0]].shape[1]  # the channels
    if "mask_groups" in names:
        units = args["mask_groups"]
    elif "mask" in names and args["mask"] is not None:
        units = args["mask"].shape[1] // math.prod(kernel_size * axes if len(kernel_size) == 1 else kernel_size)
    return units if args["groups"] == 1 else math.gcd(args["groups"], units)


for _name in ("aggregate", "correlate", "scatter", "sums_backward", "max_pool"):
    _operator = getattr(torch.ops.ddu, _name).default
    _register(
        _operator,
        partial(_shardings_of_sums, _operator),
        lead=(0, lambda _: 1),
        units=partial(_groups_of_all, _operator),
        divided=lambda _, name=_name: ["groups", "mask_groups"] if name == "correlate" else ["groups"],  # type: ignore[misc]
    )

# ---- The convolution ----


def _shardings_of_convolution(op: OpOverload, args: _Arguments) -> Shardings:
    tensors = [argument.name for argument in op._schema.arguments if "Tensor" in str(argument.type)]
    inputs = [name for name in tensors if args[name] is not None]
    if op is torch.ops.ddu.convolution.default:
        outputs = ["output"]
    else:  # an empty tensor is not cut, and in the place of what is not asked for
        asked = zip(op._schema.returns, args["output_mask"], strict=True)
        outputs = [result.name if need else "empty" for result, need in asked]

    def sharding(others: Placement, **placements: Placement) -> tuple[list[Placement], list[Placement]]:
        """Of tensors by name."""
        placements["empty"] = Replicate()
        return [placements.get(name, others) for name in outputs], [placements.get(name, others) for name in inputs]

    weight, bias = _output_channels(args), int("bias" in inputs and args["bias"].ndim == 2)
    of_images: dict[str, Placement] = {} if weight == 1 else {"weight": Replicate(), "grad_weight": Partial()}
    along_batch = sharding(Shard(0), **({} if bias == 1 else {"bias": Replicate()}), **of_images)
    along_channels: dict[str, Placement] = {
        **dict.fromkeys(("weight", "grad_weight"), Shard(weight)),
        "bias": Shard(bias),
        **dict.fromkeys(("output", "grad_output"), Shard(1)),
    }
    several = args["groups"] > 1
    along_channels["grad_input"] = Partial()  # each channel of the output is made of all of the input
    if several:
        along_channels |= dict.fromkeys(("input", "grad_input"), Shard(1))
    for name, groups in (("positions", args["dilation_groups"]), ("mask", _mask_groups(args))):
        along_channels[f"grad_{name}"] = Partial()
        if several and groups > 1:
            along_channels |= dict.fromkeys((name, f"grad_{name}"), Shard(1))
    return [sharding(Replicate()), along_batch, sharding(Replicate(), **along_channels)]


def _output_channels(args: _Arguments) -> int:
    """The dimension of the weight that has them: behind the batch, where every image has a weight of its own."""
    return int(args["weight"].ndim > args["positions"].ndim)


def _mask_groups(args: _Arguments) -> int:
    mask = args["mask"]
    return 1 if mask is None else mask.shape[1] // math.prod(args["weight"].shape[2 - args["positions"].ndim :])


def _groups_or_output_channels(args: _Arguments) -> int:
    """Groups and those of positions and mask, if they are more than the only one; or channels of the output."""
    groups = args["groups"]
    if groups == 1:
        return args["weight"].shape[_output_channels(args)]
    return math.gcd(groups, *(n for n in (args["dilation_groups"], _mask_groups(args)) if n > 1))


for _operator in (torch.ops.ddu.convolution.default, torch.ops.ddu.convolution_backward.default):
    _register(
        _operator,
        partial(_shardings_of_convolution, _operator),
        lead=(_place(_operator, "weight"), _output_channels),
        units=_groups_or_output_channels,
        divided=lambda args: ["groups", "dilation_groups"] if args["groups"] > 1 else [],
    )

# In inference mode these come here as they are, and as they are they would run on the shards.
for _name in torch._C._dispatch_get_all_op_names():
    if _name.startswith("ddu::"):
        _operator = getattr(torch.ops.ddu, _name.removeprefix("ddu::")).default
        if _operator.has_kernel_for_dispatch_key(torch.DispatchKey.CompositeImplicitAutograd):
            _dispatcher._custom_op_handlers[_operator] = lambda op, args, kwargs: op.decompose(*args, **kwargs)
