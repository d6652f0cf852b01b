"""A velocity without symmetries: the plain continuous flow."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import silu

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.continuous.network_field import NetworkField
from pyro_boltzmann.transforms.continuous.time_embedding import TimeEmbedding, times_of_rows

__all__ = ["MLPField"]


class MLPField(NetworkField):
    r"""A velocity from a residual perceptron of :math:`x / a` whose biases depend on time,

    .. math:: y^0 = \phi(W_0 x / a + b_0(t)), \quad y^{l} = y^{l-1} + \phi(W_l y^{l-1} + b_l(t)), \quad
        v = a\, (W y^L + b) .

    The last layer starts at zero: an untrained flow moves nothing. The divergence costs ``dim`` products.

    :param dim: the size of x.
    :param width: of the layers.
    :param depth: :math:`L`, layers behind the first.
    :param length_scale: :math:`a`, the spread of the states.
    :param num_frequencies: waves of the time.
    :param finest: the highest frequency of the time, in radians.
    :raises ValueError: for numbers out of range.

    >>> import torch
    >>> MLPField(2, width=16)(0.5, torch.randn(5, 2)).shape
    torch.Size([5, 2])
    """

    takes_times_of_rows = True

    def __init__(
        self,
        dim: int,
        width: int = 64,
        depth: int = 2,
        *,
        length_scale: float = 1.0,
        num_frequencies: int = 6,
        finest: float = 4.0 * math.pi,
    ) -> None:
        super().__init__()
        if dim < 1 or width < 1 or depth < 0 or not 0.0 < length_scale < math.inf:
            raise ValueError(
                "a field needs dim >= 1, width >= 1, depth >= 0 and length_scale > 0, got "
                f"dim={dim}, width={width}, depth={depth}, length_scale={length_scale}"
            )
        self.dim = dim
        self.length_scale = float(length_scale)
        self.embedding = TimeEmbedding(width, num_frequencies=num_frequencies, finest=finest)
        self.biases = nn.Linear(width, (depth + 1) * width)
        self.first = nn.Linear(dim, width, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Velocities of the shape of ``x``, ``(*batch, dim)``; ``t`` broadcasts to ``(*batch)``.

        :raises ShapeError: if a shape is wrong.
        """
        if x.dim() < 1 or x.shape[-1] != self.dim:
            raise ShapeError(f"expected states of shape (*batch, {self.dim}), got {tuple(x.shape)}")
        biases = self.biases(self.embedding(times_of_rows(t, x))).chunk(len(self.blocks) + 1, -1)
        y = silu(self.first(x.reshape(-1, self.dim) / self.length_scale) + biases[0])
        for block, bias in zip(self.blocks, biases[1:], strict=True):
            y = y + silu(block(y) + bias)
        velocity: Tensor = self.length_scale * self.last(y)
        return velocity.reshape(x.shape)
