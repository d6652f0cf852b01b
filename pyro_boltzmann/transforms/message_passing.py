"""Messages between particles: the trunk of all networks here that respect their symmetries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pyro_boltzmann.transforms.particle_pairs import ParticlePairs, RadialFeatures

__all__ = ["MessagePassing"]


class MessagePassing(nn.Module):
    r"""Messages :math:`e_{ij} = e_{ji}` between all pairs of particles, node states :math:`v_i`, and moving positions.

    Positions are first multiplied by a scale. With :math:`f` the :class:`RadialFeatures` of the current positions
    :math:`x^l`, the products :math:`x^l_{ij} \cdot x^0_{ij}`, and biases :math:`c_l(s)` of a scalar condition :math:`s`
    such as a noise level or a time, for :math:`l = 0, \dots, L - 1`

    .. math::

        e^l_{ij} &= e^{l-1}_{ij} + \phi\bigl(A_l e^{l-1}_{ij} + B_l f_{ij} + C_l (v_i + v_j) + c_l(s)\bigr) \\
        v^l_i &= v^{l-1}_i + \phi\bigl(D_l \textstyle\sum_j e^l_{ij} + E_l v^{l-1}_i\bigr) \\
        x^{l+1}_i &= x^l_i + N^{-1/2} \textstyle\sum_j \tanh(w_l \cdot e^l_{ij})\,
            (x^l_i - x^l_j) / \sqrt{1 + |x^l_i - x^l_j|^2} .

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :param width: the length of the messages and node states.
    :param depth: :math:`L`, rounds of messages.
    :param embedding: maps the condition, ``(rows,)`` or ``(1,)``, to vectors ``(..., width)``.
    :param num_radial: features of a distance.
    :param radius: the distance, after scaling, up to which they resolve.
    :param embedding_name: the name under which the embedding's parameters are kept.
    :raises ValueError: for a width or depth below one.

    Source: after Satorras, Hoogeboom and Welling, arXiv 2102.09844, equations 3-6.

    >>> embedding = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 16))
    >>> passing = MessagePassing(4, 2, width=16, depth=2, embedding=embedding)
    >>> message, node, first, last = passing(torch.randn(5, 6), torch.zeros(1))
    >>> message.shape, node.shape, last.shape
    (torch.Size([6, 5, 16]), torch.Size([4, 5, 16]), torch.Size([6, 5, 2]))
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        width: int,
        depth: int,
        embedding: nn.Module,
        num_radial: int = 24,
        radius: float = 5.0,
        *,
        embedding_name: str = "embedding",
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(
                f"a network of particles needs width >= 1 and depth >= 1, got width={width}, depth={depth}"
            )
        self.pairs = ParticlePairs(num_particles, spatial_dim)
        self.width = width
        self.radial = RadialFeatures(num_radial, radius)
        self._embedding_name = embedding_name
        self.add_module(embedding_name, embedding)
        self.biases = nn.Linear(width, depth * width)
        later = range(depth - 1)
        self.distances = nn.ModuleList(
            [nn.Linear(num_radial + (layer > 0), width, bias=False) for layer in range(depth)]
        )
        self.messages = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in later])
        self.gathers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in later])
        self.moves = nn.ModuleList([nn.Linear(width, 1, bias=False) for _ in later])
        self.sums = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.nodes = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in later])
        for weight in self.moves.parameters():
            nn.init.xavier_uniform_(weight, gain=0.1)

    def embedded(self, condition: Tensor) -> Tensor:
        """The embedding's vectors, ``(rows, width)`` or ``(1, width)``, for a condition ``(rows,)`` or ``(1,)``."""
        vectors: Tensor = self.get_submodule(self._embedding_name)(condition)
        return vectors

    def forward(
        self, z: Tensor, condition: Tensor, scale: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Messages ``(P, rows, width)``, node states ``(N, rows, width)``, and the first and the last positions' pair
        differences, ``(P, rows, D)`` each, at Helmert coordinates ``(*batch, (N - 1) D)``.

        :param z: coordinates; the batch is flattened to rows.
        :param condition: one scalar, ``(1,)``, or one for each row, ``(rows,)``.
        :param scale: what positions are multiplied by: a number, or ``(1, 1)`` or ``(rows, 1)``.
        :raises ShapeError: if the last dimension of ``z`` is not ``(N - 1) D``.
        """
        first = self.pairs.differences(self.pairs.columns(z) * scale)
        biases = self.biases(self.embedded(condition)).chunk(len(self.sums), -1)
        difference, square = first, first.square().sum(-1)
        message = silu(self.distances[0](self.radial(square)) + biases[0])
        node = silu(self.sums[0](self.pairs.of_each(message)))
        for layer, bias in enumerate(biases[1:]):
            pull = self.moves[layer](message).tanh() * (1.0 + square).rsqrt().unsqueeze(-1)
            moved = self.pairs.forces(pull * difference) / self.pairs.num_particles**0.5
            difference = difference + self.pairs.differences(moved)
            square = difference.square().sum(-1)
            # A bounded product, so that the features stay of order one at every distance.
            aligned = (difference * first).sum(-1, keepdim=True)
            features = torch.cat([self.radial(square), aligned / (1.0 + aligned.square()).sqrt()], -1)
            update = self.messages[layer](message) + self.distances[layer + 1](features)
            message = message + silu(update + self.pairs.of_both(self.gathers[layer](node)) + bias)
            node = node + silu(self.sums[layer + 1](self.pairs.of_each(message)) + self.nodes[layer](node))
        return message, node, first, difference

    def vectors(self, weights: Tensor, first: Tensor, last: Tensor) -> Tensor:
        r"""A vector for each particle, from two symmetric weights for each pair,

        .. math:: s_i = \sum_j \frac{w_{ij} (x_i - x_j) + w'_{ij} (x^L_i - x^L_j)}{\sqrt{1 + |x_i - x_j|^2}},

        in Helmert coordinates, ``(rows, (N - 1) D)``: its centre of mass is zero.

        :param weights: :math:`(w, w')`, ``(P, rows, 2)``.
        :param first: :math:`x_i - x_j` of the first positions, as :meth:`forward` returns them, like ``last``.
        """
        w, w_last = weights.unbind(-1)
        inverse = (1.0 + first.square().sum(-1)).rsqrt()
        pair_vectors = (w * inverse).unsqueeze(-1) * first + (w_last * inverse).unsqueeze(-1) * last
        return self.pairs.rows(self.pairs.forces(pair_vectors))
