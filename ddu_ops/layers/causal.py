"""Causal dilated convolutions along time, for complete signals and for streams."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddu_ops.layers._common import Composed, numbers, rates_of, run
from ddu_ops.layers.blocks import exponential_rates


class CausalConv1d(nn.Conv1d):
    r"""A dilated convolution along time that reads only the present and the past.

    The input is padded with :math:`d (k - 1)` zeros in front, so the output has the same length and no position depends
    on later ones.

    Args:
        in_channels, out_channels, kernel_size, dilation, groups, bias, device, dtype: as in :class:`torch.nn.Conv1d`.

    Shape:
        - input: :math:`(B, C_{in}, T)`. Output: :math:`(B, C_{out}, T)`.

    Example:
        >>> conv = layers.CausalConv1d(4, 6, 2, dilation=8)
        >>> conv(torch.randn(2, 4, 20)).shape
        torch.Size([2, 6, 20])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "CausalConv1d"
        in_channels, out_channels = numbers(name, least=0, in_channels=in_channels, out_channels=out_channels)
        kernel_size, dilation, groups = numbers(name, kernel_size=kernel_size, dilation=dilation, groups=groups)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            dilation=dilation,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def stream(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve the next part of a signal.

        Args:
            input: the part, one or more samples, :math:`(B, C, T)`.
            state: the state that the call for the previous part returned; ``None`` at the start of a signal.

        Returns:
            The output for the part, and the new state: the last :math:`d (k - 1)` inputs.

        Example:
            >>> conv, signal = layers.CausalConv1d(4, 6, 3, dilation=2), torch.randn(1, 4, 20)
            >>> first, state = conv.stream(signal[..., :7])
            >>> second, _ = conv.stream(signal[..., 7:], state)
            >>> torch.allclose(torch.cat([first, second], -1), conv(signal), atol=1e-6)
            True
        """
        past = self.dilation[0] * (self.kernel_size[0] - 1)
        if state is None:
            state = input.new_zeros(input.shape[0], self.in_channels, past)
        whole = torch.cat([state, input], -1)
        return super().forward(whole), whole[..., whole.shape[-1] - past :]

    def forward(self, input: Tensor) -> Tensor:
        return self.stream(input)[0]


class WaveNetBlock(Composed):
    r"""A gated causal convolution with a residual and a skip output.

    Of A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016:
    :math:`z = \tanh(W_f * x) \odot \sigma(W_g * x)`;
    a 1 × 1 convolution of :math:`z` is added to the input, and another one is the skip output of the block.

    Args:
        channels: of the residual path.
        skip_channels: of the skip output.
        kernel_size: Default: 2.
        dilation: Default: 1.
        residual: ``False`` for the last block of a network, whose residual output is not used. Default: ``True``.
        device, dtype: as in :class:`torch.nn.Conv1d`.

    Shape:
        - input: :math:`(B, C, T)`.
        - Output: two tensors, :math:`(B, C, T)` and :math:`(B, C_{skip}, T)`.

    Example:
        >>> block = layers.WaveNetBlock(8, 16, dilation=4)
        >>> residual, skip = block(torch.randn(2, 8, 20))
        >>> residual.shape, skip.shape
        (torch.Size([2, 8, 20]), torch.Size([2, 16, 20]))
    """

    def __init__(
        self,
        channels: int,
        skip_channels: int,
        kernel_size: int = 2,
        dilation: int = 1,
        *,
        residual: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels, skip_channels = numbers("WaveNetBlock", channels=channels, skip_channels=skip_channels)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = CausalConv1d(channels, 2 * channels, kernel_size, dilation, **options)
        self.residual = nn.Conv1d(channels, channels, 1, **options) if residual else None
        self.skip = nn.Conv1d(channels, skip_channels, 1, **options)

    def stream(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Like :meth:`CausalConv1d.stream`, but returns both outputs and the state."""
        gated, state = self.conv.stream(input, state)
        signal, gate = gated.chunk(2, 1)
        z = signal.tanh() * gate.sigmoid()
        return input if self.residual is None else self.residual(z) + input, self.skip(z), state

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        residual, skip, _ = self.stream(input)
        return residual, skip


class WaveNet(Composed):
    r"""A stack of :class:`WaveNetBlock`\ s whose skip outputs are added.

    As in "WaveNet: A Generative Model for Raw Audio": a causal convolution, the blocks, and after the sum of their skip
    outputs a ReLU, a 1 × 1 convolution, a ReLU and another 1 × 1 convolution.

    Args:
        in_channels, out_channels: of the signal and of the output, such as 256 classes of samples.
        channels: of the residual path. Default: 32.
        skip_channels: of the skip outputs. Default: 256.
        rates: the dilation rate of each block. Default: 1, 2, 4, …, 512, three times.
        kernel_size: of the blocks and of the first convolution. Default: 2.
        checkpoint: recomputes each block in the backward and stores only its input. Default: ``False``.
        device, dtype: as in :class:`torch.nn.Conv1d`.

    Shape:
        - input: :math:`(B, C_{in}, T)`. Output: :math:`(B, C_{out}, T)`.

    Example:
        >>> net = layers.WaveNet(1, 10, channels=8, skip_channels=16, rates=layers.exponential_rates(4, cycles=2))
        >>> net(torch.randn(2, 1, 40)).shape
        torch.Size([2, 10, 40])
        >>> receptive_field.trace(net, torch.zeros(1, 1, 40))[""].size  # the first convolution adds one
        (32,)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 32,
        skip_channels: int = 256,
        rates: Sequence[int] = tuple(exponential_rates(10, cycles=3)),
        kernel_size: int = 2,
        checkpoint: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels = numbers("WaveNet", least=0, in_channels=in_channels, out_channels=out_channels)
        channels, skip_channels = numbers("WaveNet", channels=channels, skip_channels=skip_channels)
        rates = rates_of("WaveNet", rates)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.checkpoint = checkpoint
        self.first = CausalConv1d(in_channels, channels, kernel_size, **options)
        self.blocks = nn.ModuleList(
            WaveNetBlock(channels, skip_channels, kernel_size, rate, residual=index < len(rates), **options)
            for index, rate in enumerate(rates, 1)
        )
        self.last = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(skip_channels, skip_channels, 1, **options),
            nn.ReLU(),
            nn.Conv1d(skip_channels, out_channels, 1, **options),
        )

    def stream(self, input: Tensor, state: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The output for the next part of a signal.

        Args:
            input: the part, one or more samples, :math:`(B, C, T)`.
            state: the state that the call for the previous part returned; ``None`` at the start of a signal.

        Returns:
            The output for the part, and the new state: the inputs that every causal convolution keeps.

        Example:
            >>> net, signal = layers.WaveNet(1, 3, rates=(1, 2, 4)), torch.randn(1, 1, 20)
            >>> state, parts = None, []
            >>> for part in signal.split(6, -1):
            ...     output, state = net.stream(part, state)
            ...     parts.append(output)
            >>> torch.allclose(torch.cat(parts, -1), net(signal), atol=1e-6)
            True
        """
        states: list[Any] = [None] * (1 + len(self.blocks)) if state is None else list(state)
        x, states[0] = self.first.stream(input, states[0])
        total: Tensor | None = None
        block: Any
        for index, block in enumerate(self.blocks, 1):
            x, skip, states[index] = run(block.stream, x, states[index], again=self.checkpoint)
            total = skip if total is None else total + skip
        return self.last(total), states

    def forward(self, input: Tensor) -> Tensor:
        return self.stream(input)[0]
