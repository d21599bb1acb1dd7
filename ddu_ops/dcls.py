"""Dilated convolution with learnable spacings (DCLS): kernels with few weights at learned, fractional positions.

The layers of I. Khalfaoui-Hassani, T. Pellegrini and T. Masquelier, "Dilated convolution with learnable spacings",
ICLR 2023, and "Dilated Convolution with Learnable Spacings: beyond bilinear interpolation", 2023, with the arguments,
parameters and state dicts of the package ``DCLS``. They differ from the package in the following:

- The positions stay inside the kernel automatically, without a call after every step.
- Kernels that are not square: the package centres ``P[0]`` with the size of the first axis, whichever axis ``P[0]`` is.
  Here every axis has its own centre. :func:`published_positions` converts.
- Kernels of an even size: the package allows positions up to one cell beyond the last, where weight is lost. Here they
  stop at the last cell, unless ``keep_inside=False``.
- With version ``gauss`` the package's ``Dcls2_1d`` adds 1 to ``|SIG|``, the other layers 0.27. Here all add 0.27; a
  state dict of the package's ``Dcls2_1d``, which is recognised by its buffers, is converted when it is loaded.
- With version ``max``, ``SIG`` starts at 0, where the gradient of ``|SIG|`` is 0 in the package, so that it never
  moves. Here the derivative is the one from the right, as at every kink.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops import _extension
from ddu_ops._options import Ints, integer, ints
from ddu_ops.functional import PADDING_WORDS, at_least_float32

_extension.require()

VERSIONS = ("v0", "v1", "max", "gauss")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

#: The sparse form is used if the kernel has at least this many cells for each of its taps; a weight is two taps along
#: each axis. By device; on other devices the kernel is always dense.
CELLS_PER_TAP = {"cpu": 2.0, "cuda": 1.0}

#: The initial value of SIG, for the versions that have it.
_INITIAL_SIG = {"gauss": 0.23, "max": 0.0}


def dcls_kernel(
    weight: Tensor, positions: Tensor, kernel_size: Ints, sigma: Tensor | None = None, *, version: str = "v1"
) -> Tensor:
    r"""Spread weights at fractional positions over a dense kernel.

    A weight is distributed over the cells around its position. With :math:`x_a` the distance of a cell from the
    position along axis :math:`a`, the share is

    ======== ============================================================== ==================================
    version  share                                                          divided by the sum over all cells
    ======== ============================================================== ==================================
    v0       :math:`\prod_a \max(0, 1 - |x_a|)`                             no: what falls outside is lost
    v1       :math:`\prod_a \max(0, 1 - |x_a|)`                             yes
    max      :math:`\prod_a \max(0, 1 + |\sigma_a| - |x_a|)`                yes
    gauss    :math:`\exp(-\frac12 \sum_a (x_a / (0.27 + |\sigma_a|))^2)`    yes
    ======== ============================================================== ==================================

    where 1e-7 is added to the sum. The interpolations v0, v1 and max are from the first paper and its package, gauss
    is from the second.

    Memory is proportional to the arguments and the result, also for first-order gradients; higher orders need a table
    with an entry for every point and cell of an axis. Derivatives of any order exist. At a kink, those with respect to
    positions and ``sigma`` are the ones from the right. Autocast does not change how the kernel is computed, so that
    positions and small weights are not rounded.

    Args:
        weight: the weights.
        positions: their positions in cells, relative to the cell ``kernel_size // 2``, slowest axis first. They may be
            float32 if the weight has a half type. A position that is not finite makes the kernel of its channels NaN.
        kernel_size: of the dense kernel: an int, or one for each of the :math:`N = 1, 2, 3` axes.
        sigma: the width of each weight, in cells, in the type of the positions. Only for the versions max and gauss.
        version: ``"v0"``, ``"v1"``, ``"max"`` or ``"gauss"``.

    Shape:
        - weight: :math:`(O, I, \text{count})`.
        - positions, sigma: :math:`(N, O, I, \text{count})`.
        - Output: :math:`(O, I, *\text{kernel\_size})`, of the type of the weight.

    Raises:
        RuntimeError: if an argument has the wrong shape, type or device, for an unknown version, and if sigma is
            missing or the version does not use it.

    Example:
        >>> weight = torch.tensor([[[1.0, 2.0]]])
        >>> positions = torch.tensor([[[[-1.0, 0.5]]]])
        >>> dcls.dcls_kernel(weight, positions, 5, version="v0")
        tensor([[[0., 1., 1., 1., 0.]]])
    """
    tensors = (weight, positions, sigma)
    if has_torch_function(tensors):  # fx does not know the sizes yet
        given = weight, positions, kernel_size, sigma
        result: Tensor = handle_torch_function(dcls_kernel, tensors, *given, version=version)
        return result
    axes = min(len(kernel_size), 3) if isinstance(kernel_size, Sequence) else 1  # the operator knows how many there are
    size = ints(kernel_size, axes, "kernel_size", "dcls_kernel")
    return torch.ops.ddu.dcls_kernel(weight, positions, size, sigma, version=version)


def _order(version: str, axes: int) -> tuple[int, ...]:
    """For each axis, slowest first, its place in ``P``, as the package has it."""
    if version == "v0":
        return ((0,), (0, 1), (0, 2, 1))[axes - 1]
    return tuple(reversed(range(axes)))


def published_positions(positions: Tensor, kernel_size: Ints, version: str) -> Tensor:
    """Convert a parameter ``P`` of the package ``DCLS`` for the layers here, for kernels that are not square.

    The package centres ``P[i]`` with the size of axis ``i`` of the kernel, but uses it as the position along another
    axis. The result denotes the same cells; for square kernels it has the same numbers.

    Args:
        positions: ``P``, :math:`(N, O, I, ..., count)`, in the order of the package, which is kept.
        kernel_size: ``dilated_kernel_size``.
        version: of the layer.

    Example:
        >>> dcls.published_positions(torch.zeros(2, 1, 1, 1), (9, 5), "gauss").flatten()
        tensor([ 2., -2.])
    """
    axes = positions.shape[0]
    size = ints(kernel_size, axes, "kernel_size", "published_positions")
    shifts = [0] * axes
    for axis, place in enumerate(_order(version, axes)):
        shifts[place] = size[place] // 2 - size[axis] // 2
    shift = torch.tensor(shifts, dtype=positions.dtype, device=positions.device)
    return positions + shift.reshape(-1, *[1] * (positions.dim() - 1))


class _Dcls(nn.Module):
    """A convolution along all axes, whose kernel is dense along the first ones and sparse along the learned ones."""

    _axes: int
    _learned: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: Ints,
        padding: Ints | str,
        dense_kernel_size: Ints | None,
        dilated_kernel_size: Ints,
        groups: int,
        bias: bool,
        padding_mode: str,
        version: str,
        keep_inside: bool,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__

        def tuple_of(value: Any, axes: int, argument: str, least: int, words: Sequence[str] = ()) -> tuple[int, ...]:
            return ints(value, axes, argument, name, ValueError, words=words, least=least)

        def number(value: Any, argument: str) -> int:
            return integer(value, argument, name, ValueError, least=1)

        self.in_channels = number(in_channels, "in_channels")
        self.out_channels = number(out_channels, "out_channels")
        self.kernel_count = number(kernel_count, "kernel_count")
        self.groups = number(groups, "groups")
        for argument in ("in_channels", "out_channels"):
            if getattr(self, argument) % self.groups:
                raise ValueError(
                    f"{name}(): expected {argument} to be a multiple of groups={groups}, "
                    f"but got {getattr(self, argument)}"
                )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"{name}(): expected padding_mode to be one of {PADDING_MODES}, but got {padding_mode!r}")
        if version not in VERSIONS:
            raise ValueError(f"{name}(): expected version to be one of {VERSIONS}, but got {version!r}")
        dense = self._axes - self._learned
        if dense:
            self.dense_kernel_size = tuple_of(dense_kernel_size, dense, "dense_kernel_size", 1)
        self.dilated_kernel_size = tuple_of(dilated_kernel_size, self._learned, "dilated_kernel_size", 1)
        self.stride = tuple_of(stride, self._axes, "stride", 1)
        self.padding_mode = padding_mode
        self.version = version
        self.keep_inside = keep_inside
        if isinstance(padding, str):
            if padding not in PADDING_WORDS:
                tuple_of(padding, self._axes, "padding", 0, PADDING_WORDS)  # says so
            if padding == "same" and set(self.stride) != {1}:
                raise ValueError(f"{name}(): expected stride to be 1 for padding='same', but got {stride!r}")
            self.padding: tuple[int, ...] | str = padding
        else:
            self.padding = tuple_of(padding, self._axes, "padding", 0, PADDING_WORDS)

        options: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = self.out_channels, self.in_channels // self.groups, *self._dense(), self.kernel_count
        self.weight = nn.Parameter(torch.empty(shape, **options))
        self.P = nn.Parameter(torch.empty(self._learned, *shape, **options))
        if version in _INITIAL_SIG:
            self.SIG: nn.Parameter | None = nn.Parameter(torch.empty(self._learned, *shape, **options))
        else:
            self.register_parameter("SIG", None)
        if bias:
            self.bias: nn.Parameter | None = nn.Parameter(torch.empty(self.out_channels, **options))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _dense(self) -> tuple[int, ...]:
        return self.dense_kernel_size if self._axes > self._learned else ()

    def _limits(self) -> Tensor:
        """The package's, of every entry of P along its first dimension: of shape (N, 1, ...)."""
        size = self.dilated_kernel_size
        numbers = [0] * self._learned
        for axis, place in enumerate(_order(self.version, self._learned)):
            numbers[place] = size[axis] // 2
        limits = torch.tensor(numbers, dtype=self.P.dtype, device=self.P.device).view(-1, *[1] * (self.P.dim() - 1))
        if hasattr(self.P, "device_mesh"):  # a parameter in shards
            from torch.distributed.tensor import distribute_tensor

            limits = distribute_tensor(limits, self.P.device_mesh)
        return limits

    def reset_parameters(self) -> None:
        """Reset the parameters to random initial values."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        with torch.no_grad():
            if self._dense():
                self.P.uniform_(-1, 1).mul_(self._limits())
            else:
                self.P.normal_(0, 0.5)
                self.clamp_parameters()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, _INITIAL_SIG[self.version])

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        """Clamp the parameter ``P`` to the kernel, as training loops for the package do after every step.

        This is optional here: the forward clamps the positions that it reads.
        """
        limits = self._limits()
        self.P.copy_(torch.minimum(torch.maximum(self.P, -limits), limits))

    def positions(self) -> Tensor:
        """The positions of the weights: ``P``, slowest axis first, inside the kernel: :math:`(N, O, I, ..., count)`."""
        positions = self._slowest_first(self.P)
        if self.keep_inside:
            positions = torch.ops.ddu.dcls_inside(positions, self.dilated_kernel_size)
        return positions

    def _slowest_first(self, parameter: Tensor) -> Tensor:
        """P or SIG with the axes in the order of the kernel."""
        order = _order(self.version, self._learned)
        parameter = at_least_float32(parameter)
        in_order = order == tuple(range(self._learned))
        return parameter if in_order else torch.stack([parameter[place] for place in order])

    def kernel(self) -> Tensor:
        """The dense kernel, in the layout of ``F.conv``: :math:`(O, I, *dense, *dilated)`."""
        positions, sigma = self.positions(), None
        if self.SIG is not None:
            sigma = self._flat(self._slowest_first(self.SIG), 2)
        kernel = dcls_kernel(
            self._flat(self.weight, 1), self._flat(positions, 2), self.dilated_kernel_size, sigma, version=self.version
        )
        return kernel.unflatten(1, (-1, *self._dense())) if self._dense() else kernel

    def is_sparse(self, device: torch.device) -> bool:
        """Whether the forward samples its input at the positions instead of building a dense kernel.

        Both forms compute the same. The sparse form is for depthwise layers of stride 1 in the versions v0 and v1,
        whose weights cover only the cells next to their positions; it is faster if these are a small part of all cells.
        """
        sizes = self.dilated_kernel_size
        taps = 2**self._learned * self.kernel_count
        return (
            self._axes == self._learned
            and self.version in ("v0", "v1")
            and self.keep_inside
            and self.in_channels == self.out_channels == self.groups
            and set(self.stride) == {1}
            and min(sizes) > 1
            and math.prod(sizes) >= CELLS_PER_TAP.get(device.type, math.inf) * taps
        )

    def _sparse_forward(self, input: Tensor, pads: Sequence[int]) -> Tensor:
        """The sum over the cells around every position, each a tap; ``pads`` as of ``F.pad``."""
        batched = input.dim() == self._axes + 2
        input = input if batched else input.unsqueeze(0)
        positions = self.positions().squeeze(2)  # (N, C, count)
        whole = positions.detach().floor()
        fraction = positions - whole
        weight = self.weight.squeeze(1)
        if self.version == "v1":
            weight = weight / (1 + 1e-7)  # inside, the shares sum up to one
        # A position that is not finite moves nothing: its fraction is NaN, and shows.
        cells = whole.nan_to_num(0, 0, 0).long()
        corners = torch.arange(2**self._axes, device=input.device).view(-1, 1, 1)
        factors, shifts, output_size = weight.to(positions.dtype).unsqueeze(0), [], []
        for axis, (size, kernel) in enumerate(zip(input.shape[2:], self.dilated_kernel_size, strict=True)):
            last_first = self._axes - 1 - axis
            before, after = pads[2 * last_first : 2 * last_first + 2]
            shares = torch.stack([1 - fraction[axis], fraction[axis]])
            factors = (factors.unsqueeze(1) * shares).flatten(0, 1)  # (corners, C, count)
            shifts.append(cells[axis] + (kernel // 2 - before) + (corners >> last_first & 1))
            output_size.append(size + before + after - kernel + 1)
        result: Tensor = torch.ops.ddu.dcls_sparse_sum(
            input,
            factors.movedim(0, 1).flatten(1).to(self.weight.dtype),
            torch.stack(shifts).movedim(1, 2).flatten(2),
            output_size,
        )
        if self.bias is not None:
            result = result + self.bias.to(result.dtype).view(-1, *[1] * self._axes)
        return result if batched else result.squeeze(0)

    def _flat(self, tensor: Tensor, channels: int) -> Tensor:
        """With the dense axes taken for channels, which are at this dimension."""
        return tensor.flatten(channels, -2) if self._dense() else tensor

    def _pads(self) -> list[int]:
        """For ``F.pad``: last axis first, before and after."""
        sizes = *self._dense(), *self.dilated_kernel_size
        if self.padding == "same":
            each = [((size - 1) // 2, (size - 1) - (size - 1) // 2) for size in sizes]
        elif isinstance(self.padding, str):
            each = [(0, 0)] * self._axes
        else:
            each = [(size, size) for size in self.padding]
        return [size for pair in reversed(each) for size in pair]

    def forward(self, input: Tensor) -> Tensor:
        padding: tuple[int, ...] | str | int = self.padding
        pads = self._pads()
        if self.padding_mode != "zeros":
            input, padding, pads = F.pad(input, pads, mode=self.padding_mode), 0, [0] * len(pads)
        # torch.jit.trace cannot record a size that it computes among others.
        if self.is_sparse(input.device) and torch._C._get_tracing_state() is None:
            return self._sparse_forward(input, pads)
        conv = (F.conv1d, F.conv2d, F.conv3d)[self._axes - 1]
        result: Tensor = conv(input, self.kernel(), self.bias, self.stride, padding, 1, self.groups)
        return result

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}"]
        if self._dense():
            parts.append(f"dense_kernel_size={self.dense_kernel_size}")
        parts.append(f"dilated_kernel_size={self.dilated_kernel_size}, stride={self.stride}, version={self.version!r}")
        parts += [f"padding={self.padding!r}"] if self.padding != (0,) * self._axes else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode!r}"] if self.padding_mode != "zeros" else []
        parts += ["keep_inside=False"] if not self.keep_inside else []
        return ", ".join(parts)


_ARGS = r"""
    Args:
        in_channels, out_channels, stride, padding, groups, bias, padding_mode: as in :class:`torch.nn.{conv}`.
        kernel_count: number of weights{per_cell}.{dense_argument}
        dilated_kernel_size: size of the kernel that they lie in{learned}. Default: 1.
        version: how a weight is shared out over cells: see :func:`dcls_kernel`. Default: ``"gauss"``.
        keep_inside: reads positions outside the kernel as those on its edge; a gradient that brings them back passes.
            Default: ``True``.
        device, dtype: as in :class:`torch.nn.{conv}`.

    Attributes:
        weight: the weights, :math:`(O, I / \text{{groups}}, {dense_shape}\text{{count}})`.
        P: their positions, relative to the centre of the kernel, :math:`({axes}, O, I / \text{{groups}},
            {dense_shape}\text{{count}})`. {order}
        SIG: of the versions max and gauss, their reach, like ``P``; else ``None``.
        bias: :math:`(O)`, or ``None``.

    Shape:
        As of :class:`torch.nn.{conv}`, with {sizes} for ``kernel_size``.

    Raises:
        ValueError: for an argument that does not fit.

    Example:
        >>> layer = dcls.{name}(4, 8, kernel_count=3, {example})
        >>> layer(torch.randn(2, 4, {size})).shape
        torch.Size([2, 8, {size}])
    """


def _documented(cls: type[_Dcls]) -> type[_Dcls]:
    """The rest of the docstring, which says the same of all layers in its own numbers."""
    axes, learned = cls._axes, cls._learned
    dense = axes - learned
    assert cls.__doc__ is not None
    orders = {
        1: "",
        2: "In version v0 the order of the axes is rows, columns, in the others columns, rows.",
        3: "In version v0 the order of the axes is depth, width, height, in the others width, height, depth.",
    }
    cls.__doc__ = (
        cls.__doc__.rstrip()
        + "\n"
        + _ARGS.format(
            name=cls.__name__,
            conv=f"Conv{axes}d",
            per_cell=" of every cell of the dense axes" if dense else "",
            dense_argument="\n        dense_kernel_size: size of the kernel along the first axes. Default: 1."
            if dense
            else "",
            learned=f" along the last {'axis' if learned == 1 else 'axes'}" if dense else "",
            dense_shape=r"*\text{dense}, " if dense else "",
            axes=learned,
            order=orders[learned],
            sizes="``dense_kernel_size`` and ``dilated_kernel_size``" if dense else "``dilated_kernel_size``",
            example=("dense_kernel_size=3, " if dense else "") + "dilated_kernel_size=7, padding='same'",
            size=", ".join(["9"] * axes),
        )
    )
    return cls


class _DclsNd(_Dcls):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilated_kernel_size: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        keep_inside: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            None,
            dilated_kernel_size,
            groups,
            bias,
            padding_mode,
            version,
            keep_inside,
            device,
            dtype,
        )


class _DclsNMd(_Dcls):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dense_kernel_size: Ints = 1,
        dilated_kernel_size: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        keep_inside: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            dense_kernel_size,
            dilated_kernel_size,
            groups,
            bias,
            padding_mode,
            version,
            keep_inside,
            device,
            dtype,
        )


@_documented
class Dcls1d(_DclsNd):
    """A 1-D convolution with learnable spacings: few weights, at learned positions in a large kernel."""

    _axes, _learned = 1, 1


@_documented
class Dcls2d(_DclsNd):
    """A 2-D convolution with learnable spacings: few weights, at learned positions in a large kernel.

    The package's argument ``use_implicit_gemm`` is accepted and ignored.
    """

    _axes, _learned = 2, 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilated_kernel_size: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        use_implicit_gemm: bool = True,
        *,
        keep_inside: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            dilated_kernel_size,
            groups,
            bias,
            padding_mode,
            version,
            keep_inside=keep_inside,
            device=device,
            dtype=dtype,
        )


@_documented
class Dcls3d(_DclsNd):
    """A 3-D convolution with learnable spacings: few weights, at learned positions in a large kernel."""

    _axes, _learned = 3, 3


@_documented
class Dcls2_1d(_DclsNMd):  # noqa: N801
    """A 2-D convolution whose kernel is dense along the height and has learned positions along the width.

    The package's ``|SIG| + 1`` of version gauss becomes ``|SIG| + 0.27`` when a state dict of it is loaded.
    """

    _axes, _learned = 2, 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The package stores two buffers of its own with this layer, and with no other.
        published = [state_dict.pop(f"{prefix}DCK.{name}", None) for name in ("IDX", "lim")]
        if published[0] is not None and self.version == "gauss":
            state_dict[f"{prefix}SIG"] = state_dict[f"{prefix}SIG"].abs() + (1.0 - 0.27)
        super()._load_from_state_dict(state_dict, prefix, *args)


@_documented
class Dcls3_1d(_DclsNMd):  # noqa: N801
    """A 3-D convolution whose kernel is dense along depth and height and has learned positions along the width."""

    _axes, _learned = 3, 1


@_documented
class Dcls3_2d(_DclsNMd):  # noqa: N801
    """A 3-D convolution whose kernel is dense along the depth and has learned positions along height and width."""

    _axes, _learned = 3, 2


# ---- training ----


def layers(model: nn.Module) -> Iterator[_Dcls]:
    """The layers of this module in a model."""
    return (module for module in model.modules() if isinstance(module, _Dcls))


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, *, pace: float = 5.0
) -> list[dict[str, Any]]:
    """Group the parameters of a model for an optimiser: positions and widths learn faster and do not decay.

    As in the ConvNeXt of the DCLS paper, ``P`` has five times the learning rate and no weight decay, which would pull
    the positions to the centre. The same applies to ``SIG``, which is a width. A parameter that layers share is listed
    once.

    Args:
        model: the model to train.
        lr, weight_decay: of all other parameters.
        pace: the factor of ``lr`` for ``P`` and ``SIG``.

    Returns:
        Two groups, the other parameters first.

    Example:
        >>> groups = dcls.parameter_groups(dcls.Dcls2d(4, 4, 3, groups=4, dilated_kernel_size=7), lr=0.1)
        >>> [(len(group["params"]), group["lr"]) for group in groups]
        [(2, 0.1), (2, 0.5)]
    """
    moving = {id(parameter) for layer in layers(model) for parameter in (layer.P, layer.SIG) if parameter is not None}
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) not in moving], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in moving], "lr": pace * lr, "weight_decay": 0.0},
    ]


def repulsion_loss(positions: nn.Module | Iterable[Tensor]) -> Tensor:
    r"""A loss that pushes apart positions closer than one cell, as in the training of the DCLS paper's ConvNeXt.

    It is the square of the mean, over the parameters :math:`P`, of

    .. math::
        \frac{2}{O \, I \, n \, (n - 1)} \sum_{o, i} \sum_{a < b} \max(0, 1 - \lVert p_a - p_b \rVert)

    with :math:`n` weights in each of the :math:`O \times I` kernels.

    Args:
        positions: a model, of which every ``P`` counts once; or the parameters themselves, :math:`(N, ..., n)`.

    Returns:
        A 0-d tensor; zero if there are no positions, or no pairs.

    Example:
        >>> dcls.repulsion_loss([torch.tensor([[[[0.0, 0.5, 3.0]]]])])
        tensor(0.0278)
    """
    if isinstance(positions, nn.Module):
        positions = {id(layer.P): layer.P for layer in layers(positions)}.values()
    each = []
    for parameter in positions:
        count = parameter.shape[-1]
        if count > 1:
            first, second = torch.triu_indices(count, count, 1, device=parameter.device)
            distances = torch.linalg.vector_norm(parameter[..., first] - parameter[..., second], dim=0)
            each.append(F.relu(1 - distances).mean())
        else:
            each.append(parameter.sum() * 0)
    return torch.stack(each).mean() ** 2 if each else torch.zeros(())
