"""Networks of particles that respect rotations, reflections, translations and permutations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from pyro_boltzmann.diffusion.networks.embedding import SOFTPLUS_IS_ONE, NoiseEmbedding, variance_of_rows
from pyro_boltzmann.transforms.particle_pairs import ParticlePairs, RadialFeatures

__all__ = ["EquivariantNetwork", "InvariantNetwork"]


class _MessagePassing(nn.Module):
    r"""Messages :math:`e_{ij} = e_{ji}` between all pairs of particles, node states :math:`v_i`, and moving positions.

    Positions are divided by :math:`\sqrt{a^2 + h}`. With :math:`f` the :class:`RadialFeatures` of the current
    positions :math:`x^l` and the products :math:`x^l_{ij} \cdot x^0_{ij}`, for :math:`l = 0, \dots, L - 1`

    .. math::

        e^l_{ij} &= e^{l-1}_{ij} + \phi\bigl(A_l e^{l-1}_{ij} + B_l f_{ij} + C_l (v_i + v_j) + c_l(h)\bigr) \\
        v^l_i &= v^{l-1}_i + \phi\bigl(D_l \textstyle\sum_j e^l_{ij} + E_l v^{l-1}_i\bigr) \\
        x^{l+1}_i &= x^l_i + N^{-1/2} \textstyle\sum_j \tanh(w_l \cdot e^l_{ij})\,
            (x^l_i - x^l_j) / \sqrt{1 + |x^l_i - x^l_j|^2} .

    :meth:`forward` returns messages ``(P, rows, width)``, node states ``(N, rows, width)``, and the first and the last
    positions' pair differences, ``(P, rows, D)`` each.
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        width: int,
        depth: int,
        input_scale: float,
        num_radial: int,
        radius: float,
        noise_frequencies: int,
        finest_noise: float,
        smallest_sigma: float,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1 or not input_scale > 0.0:
            raise ValueError(
                "a network of particles needs width >= 1, depth >= 1 and input_scale > 0, got "
                f"width={width}, depth={depth}, input_scale={input_scale}"
            )
        self.pairs = ParticlePairs(num_particles, spatial_dim)
        self.width = width
        self.input_scale = input_scale
        self.radial = RadialFeatures(num_radial, radius)
        self.noise = NoiseEmbedding(
            width, smallest_sigma=smallest_sigma, num_frequencies=noise_frequencies, finest=finest_noise
        )
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

    def forward(self, z: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h = variance_of_rows(variance, z)
        inverse_scale = (self.input_scale**2 + h).rsqrt().to(z.dtype).unsqueeze(-1)
        first = self.pairs.differences(self.pairs.columns(z) * inverse_scale)
        biases = self.biases(self.noise(h)).chunk(len(self.sums), -1)
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


class EquivariantNetwork(nn.Module):
    r"""A vector for each particle that turns, is mirrored and is permuted as the particles are.

    It sums vectors along the pairs with symmetric weights,

    .. math:: s_i = \sum_j \frac{w_{ij} (x_i - x_j) + w'_{ij} (x^L_i - x^L_j)}{\sqrt{1 + |x_i - x_j|^2}},
        \qquad w_{ij} = w_{ji},

    where :math:`x^L` are positions that were moved by message passing. The gradient of every function of the
    distances has this form, so nothing is lost for scores, and half of the messages of a directed graph are saved.
    The centre of mass of the vectors is zero by construction. All operations are smooth, also where particles meet.

    It takes and returns Helmert coordinates (:class:`~pyro_boltzmann.transforms.MeanFreeBasis`). :math:`w, w'` start
    at zero: an untrained network corrects nothing.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D`.
    :param width: the length of the messages and node states.
    :param depth: rounds of messages.
    :param num_scalars: also return this many positive invariant numbers (one before training), for example a local
        variance.
    :param input_scale: the unit of length in which distances of neighbours are about one.
    :param num_radial: features of a distance.
    :param radius: the distance, in units of ``input_scale``, up to which they resolve.
    :param noise_frequencies: frequencies of the log noise level.
    :param finest_noise: the highest of them, in radians for each factor e of noise.
    :param smallest_sigma: the noise below which levels are not told apart.

    Source: after Satorras, Hoogeboom and Welling, arXiv 2102.09844, equations 3-6.

    >>> network = EquivariantNetwork(4, 2)
    >>> network(torch.randn(3, 5, 6), 0.25).shape
    torch.Size([3, 5, 6])
    >>> vector, scalars = EquivariantNetwork(4, 2, num_scalars=1)(torch.randn(5, 6), torch.rand(5))
    >>> vector.shape, scalars.shape
    (torch.Size([5, 6]), torch.Size([5, 1]))
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        width: int = 64,
        depth: int = 3,
        *,
        num_scalars: int = 0,
        input_scale: float = 1.0,
        num_radial: int = 24,
        radius: float = 5.0,
        noise_frequencies: int = 12,
        finest_noise: float = 8.0,
        smallest_sigma: float = 1e-4,
    ) -> None:
        super().__init__()
        if num_scalars < 0:
            raise ValueError(f"num_scalars must not be negative, got {num_scalars}")
        self.passing = _MessagePassing(
            num_particles,
            spatial_dim,
            width,
            depth,
            input_scale,
            num_radial,
            radius,
            noise_frequencies,
            finest_noise,
            smallest_sigma,
        )
        self.num_scalars = num_scalars
        self.weights = nn.Linear(width, 2)
        self.node_weights = nn.Linear(width, 2, bias=False)
        _zero(self.weights)
        nn.init.zeros_(self.node_weights.weight)
        if num_scalars:
            self.scalars = nn.Linear(width, num_scalars)
            _zero(self.scalars, bias=SOFTPLUS_IS_ONE)

    def forward(self, z: Tensor, variance: float | Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Vectors of the shape of ``z``, ``(*batch, (N - 1) D)``, and the scalars ``(*batch, num_scalars)`` if any.

        :raises ShapeError: if a shape is wrong.
        """
        pairs = self.passing.pairs
        message, node, first, last = self.passing(z, variance)
        w, w_last = (self.weights(message) + pairs.of_both(self.node_weights(node))).unbind(-1)
        inverse = (1.0 + first.square().sum(-1)).rsqrt()
        pair_vectors = (w * inverse).unsqueeze(-1) * first + (w_last * inverse).unsqueeze(-1) * last
        vector = pairs.rows(pairs.forces(pair_vectors)).reshape(z.shape)
        if not self.num_scalars:
            return vector
        scalars = softplus(self.scalars(node.mean(0)))
        return vector, scalars.reshape(*z.shape[:-1], self.num_scalars)


class InvariantNetwork(nn.Module):
    r"""A scalar of the particles that no rotation, reflection, translation or permutation changes:

    .. math:: f(x, h) = \sum_{i<j} a \cdot e_{ij} + \sum_i b \cdot v_i + c,

    from the messages and node states of the same network as :class:`EquivariantNetwork`, whose arguments it shares. It
    is smooth, also where particles meet, so it may serve as an energy: its gradient is a score, and can itself be
    differentiated. :math:`a, b, c` start at zero.

    :param num_particles: :math:`N \ge 2`; further arguments as for :class:`EquivariantNetwork`.
    :param spatial_dim: :math:`D`.

    >>> InvariantNetwork(4, 2)(torch.randn(3, 5, 6), 0.25).shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        width: int = 64,
        depth: int = 3,
        *,
        input_scale: float = 1.0,
        num_radial: int = 24,
        radius: float = 5.0,
        noise_frequencies: int = 12,
        finest_noise: float = 8.0,
        smallest_sigma: float = 1e-4,
    ) -> None:
        super().__init__()
        self.passing = _MessagePassing(
            num_particles,
            spatial_dim,
            width,
            depth,
            input_scale,
            num_radial,
            radius,
            noise_frequencies,
            finest_noise,
            smallest_sigma,
        )
        self.pair_term = nn.Linear(width, 1)
        self.particle_term = nn.Linear(width, 1, bias=False)
        _zero(self.pair_term)
        nn.init.zeros_(self.particle_term.weight)

    def forward(self, z: Tensor, variance: float | Tensor) -> Tensor:
        """Scalars ``(*batch)`` at Helmert coordinates ``(*batch, (N - 1) D)``.

        :raises ShapeError: if a shape is wrong.
        """
        message, node, _, _ = self.passing(z, variance)
        out: Tensor = self.pair_term(message.sum(0)) + self.particle_term(node.sum(0))
        return out.reshape(z.shape[:-1])


def _zero(linear: nn.Linear, bias: float = 0.0) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, bias)
