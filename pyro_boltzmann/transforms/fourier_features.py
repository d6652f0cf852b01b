"""Sines and cosines of numbers, as inputs of networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["FourierFeatures"]


class FourierFeatures(nn.Module):
    r"""Sines and cosines of fixed frequencies, geometric from ``lowest`` to ``highest``:

    .. math:: x \mapsto (\sin \omega_1 x, \dots, \sin \omega_K x, \cos \omega_1 x, \dots, \cos \omega_K x).

    :param num_frequencies: :math:`K \ge 0`; none gives no features.
    :param lowest: :math:`\omega_1`, in radians for each unit of x.
    :param highest: :math:`\omega_K`.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5; Tancik et al., arXiv 2006.10739.

    >>> FourierFeatures(4)(torch.zeros(7, 2)).shape  # each number becomes 2 K
    torch.Size([7, 2, 8])
    """

    frequencies: Tensor

    def __init__(self, num_frequencies: int, lowest: float = 1.0, highest: float = 16.0) -> None:
        super().__init__()
        if num_frequencies < 0 or not 0.0 < lowest <= highest:
            raise ValueError(
                "Fourier features need num_frequencies >= 0 and 0 < lowest <= highest, got "
                f"num_frequencies={num_frequencies}, lowest={lowest}, highest={highest}"
            )
        position = torch.linspace(0.0, 1.0, num_frequencies, dtype=torch.float64)
        frequencies = lowest * (highest / lowest) ** position
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()))

    @property
    def num_features(self) -> int:
        """Features of one number, :math:`2K`."""
        return 2 * len(self.frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(*shape, 2 K)`` of numbers ``(*shape)``."""
        angles = x.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    def extra_repr(self) -> str:
        return f"num_frequencies={len(self.frequencies)}"
