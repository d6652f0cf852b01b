"""Networks of particles that respect rotations, reflections, translations and permutations."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_boltzmann.diffusion.networks.embedding import SOFTPLUS_IS_ONE, NoiseEmbedding, variance_of_rows
from pyro_boltzmann.transforms.message_passing import MessagePassing

__all__ = ["EquivariantNetwork", "InvariantNetwork"]


class _NoisedMessagePassing(MessagePassing):
    r"""Messages between particles at a noise level :math:`h`: positions are divided by :math:`\sqrt{a^2 + h}`."""

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
        if width < 1 or depth < 1 or not input_scale > 0.0:
            raise ValueError(
                "a network of particles needs width >= 1, depth >= 1 and input_scale > 0, got "
                f"width={width}, depth={depth}, input_scale={input_scale}"
            )
        noise = NoiseEmbedding(
            width, smallest_sigma=smallest_sigma, num_frequencies=noise_frequencies, finest=finest_noise
        )
        super().__init__(num_particles, spatial_dim, width, depth, noise, num_radial, radius, embedding_name="noise")
        self.input_scale = input_scale

    def at_noise(self, z: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :meth:`forward` returns, at variances that broadcast to ``(*batch)``."""
        h = variance_of_rows(variance, z)
        inverse_scale = (self.input_scale**2 + h).rsqrt().to(z.dtype).unsqueeze(-1)
        return self(z, h, inverse_scale)  # type: ignore[no-any-return]


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

    >>> import torch
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
        self.passing = _NoisedMessagePassing(
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
        message, node, first, last = self.passing.at_noise(z, variance)
        weights = self.weights(message) + self.passing.pairs.of_both(self.node_weights(node))
        vector = self.passing.vectors(weights, first, last).reshape(z.shape)
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

    >>> import torch
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
        self.passing = _NoisedMessagePassing(
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
        message, node, _, _ = self.passing.at_noise(z, variance)
        out: Tensor = self.pair_term(message.sum(0)) + self.particle_term(node.sum(0))
        return out.reshape(z.shape[:-1])


def _zero(linear: nn.Linear, bias: float = 0.0) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, bias)
