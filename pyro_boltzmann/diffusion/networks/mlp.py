"""Residual perceptrons of a state and a noise level: vectors (scores) and scalars (energies)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from pyro_boltzmann.diffusion.networks.embedding import SOFTPLUS_IS_ONE, NoiseEmbedding, variance_of_rows
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.fourier_features import FourierFeatures

__all__ = ["EnergyMLP", "ScoreMLP"]


class ScoreMLP(nn.Module):
    r"""A residual perceptron of :math:`x \in \mathbb{R}^d` and the variance :math:`h` of its noise:

    .. math::

        y = \frac{x}{\sqrt{a^2 + h}}, \quad
        v_0 = \phi(W_0 [y, \sin \omega y, \cos \omega y] + c_0(h)), \quad
        v_l = v_{l-1} + \phi(W_l v_{l-1} + c_l(h)), \quad
        \mathrm{out} = A v_L,

    with :math:`\phi` = SiLU. The inputs are of order one at every noise, and :math:`c_l` are learned from a
    :class:`~pyro_boltzmann.diffusion.networks.NoiseEmbedding`. :math:`A` starts at zero: an untrained network
    corrects nothing.

    :param dim: :math:`d`.
    :param width: the length of each :math:`v_l`.
    :param depth: the number :math:`L` of residual blocks.
    :param out_dim: the length of the result, ``dim`` unless given.
    :param input_scale: :math:`a`, the spread of the target.
    :param num_scalars: also return this many positive numbers (one before training), for example local variances.
    :param num_frequencies: frequencies :math:`\omega` of each coordinate; 0 for none.
    :param finest: the highest of them, in radians for each unit of y (the lowest is 1).
    :param noise_frequencies: frequencies of the log noise level.
    :param finest_noise: the highest of them, in radians for each factor e of noise.
    :param smallest_sigma: the noise below which levels are not told apart.

    Source: the architecture is that of Akhound-Sadegh et al., arXiv 2402.06121, appendix, with the noise in place of
    the time, scaled inputs and a conditioned bias in every block.

    >>> network = ScoreMLP(2)
    >>> network(torch.randn(3, 5, 2), 0.25).shape, network(torch.randn(5, 2), torch.rand(5)).shape
    (torch.Size([3, 5, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        out_dim: int | None = None,
        input_scale: float = 1.0,
        *,
        num_scalars: int = 0,
        num_frequencies: int = 8,
        finest: float = 16.0,
        noise_frequencies: int = 12,
        finest_noise: float = 8.0,
        smallest_sigma: float = 1e-4,
    ) -> None:
        super().__init__()
        if dim < 1 or width < 1 or depth < 0 or not input_scale > 0.0:
            raise ValueError(
                "a perceptron needs dim >= 1, width >= 1, depth >= 0 and input_scale > 0, got "
                f"dim={dim}, width={width}, depth={depth}, input_scale={input_scale}"
            )
        self.dim = dim
        self.input_scale = input_scale
        self.noise = NoiseEmbedding(
            width, smallest_sigma=smallest_sigma, num_frequencies=noise_frequencies, finest=finest_noise
        )
        # The biases of all layers are one product.
        self.biases = nn.Linear(width, (depth + 1) * width)
        self.features = FourierFeatures(num_frequencies, highest=finest)
        self.first = nn.Linear(dim * (1 + self.features.num_features), width, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        self.out_dim = dim if out_dim is None else out_dim
        self.num_scalars = num_scalars
        self.last = nn.Linear(width, self.out_dim + num_scalars)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, variance: float | Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The result, ``(*batch, out_dim)``, at states ``(*batch, dim)``; the variance broadcasts to ``(*batch)``. With
        ``num_scalars`` also the scalars, ``(*batch, num_scalars)``.

        :raises ShapeError: if either shape is wrong.
        """
        if x.dim() < 1 or x.shape[-1] != self.dim:
            raise ShapeError(f"expected states of shape (*batch, {self.dim}), got {tuple(x.shape)}")
        h = variance_of_rows(variance, x)
        y = x.reshape(-1, self.dim) * (self.input_scale**2 + h).rsqrt().to(x.dtype).unsqueeze(-1)
        biases = self.biases(self.noise(h)).chunk(len(self.blocks) + 1, -1)
        inputs = torch.cat([y, self.features(y).flatten(-2)], -1) if self.features.num_features else y
        v = silu(self.first(inputs) + biases[0])
        for block, bias in zip(self.blocks, biases[1:], strict=True):
            v = v + silu(block(v) + bias)
        out: Tensor = self.last(v).reshape(*x.shape[:-1], self.out_dim + self.num_scalars)
        if not self.num_scalars:
            return out
        vector, raw = out.split([self.out_dim, self.num_scalars], -1)
        return vector, softplus(raw + SOFTPLUS_IS_ONE)


class EnergyMLP(ScoreMLP):
    r"""A scalar :math:`f(x, h)`: the perceptron of :class:`ScoreMLP` with one output.

    :param dim: the dimension of x.
    :param width: as for :class:`ScoreMLP`, like ``depth`` and the further keyword arguments.
    :param input_scale: the spread of the target.

    >>> EnergyMLP(2)(torch.randn(3, 5, 2), 0.25).shape
    torch.Size([3, 5])
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 3, input_scale: float = 1.0, **features: Any) -> None:
        super().__init__(dim, width, depth, 1, input_scale, **features)

    def forward(self, x: Tensor, variance: float | Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Scalars ``(*batch)`` at states ``(*batch, dim)``; with ``num_scalars`` a pair, as for :class:`ScoreMLP`."""
        out = super().forward(x, variance)
        return (out[0].squeeze(-1), out[1]) if isinstance(out, tuple) else out.squeeze(-1)
