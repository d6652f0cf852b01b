"""A velocity of particles from messages between all pairs of them."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pyro_boltzmann.transforms.continuous.network_field import NetworkField
from pyro_boltzmann.transforms.continuous.time_embedding import TimeEmbedding, times_of_rows
from pyro_boltzmann.transforms.message_passing import MessagePassing

__all__ = ["GraphField"]


class GraphField(NetworkField):
    r"""A velocity that turns, is mirrored and is permuted as the particles are: a flow that keeps every symmetry.

    With messages between the particles at positions :math:`x / a`
    (:class:`~pyro_boltzmann.transforms.MessagePassing`, conditioned on time),

    .. math:: v_i(t, x) = c(t)\, x_i + a \sum_j \frac{w_{ij} (x_i - x_j) + w'_{ij} (x^L_i - x^L_j)}
        {\sqrt{a^2 + |x_i - x_j|^2}}, \qquad w_{ij} = w_{ji} .

    It takes and returns Helmert coordinates (:class:`~pyro_boltzmann.transforms.MeanFreeBasis`); all operations are
    smooth, also where particles meet. :math:`c, w, w'` start at zero: an untrained flow moves nothing. The divergence
    takes one product with the Jacobian for each of the :math:`(N - 1) D` coordinates; training by
    :class:`~pyro_boltzmann.infer.FlowMatching` needs none.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :param width: the length of the messages and node states.
    :param depth: rounds of messages.
    :param length_scale: :math:`a`, the unit of length in which distances of neighbours are about one.
    :param num_radial: features of a distance.
    :param radius: the distance, in units of ``length_scale``, up to which they resolve.
    :param num_frequencies: waves of the time.
    :param finest: the highest frequency of the time, in radians.
    :raises ValueError: for numbers out of range.

    Source: after Satorras, Hoogeboom and Welling, arXiv 2102.09844, equations 3-6; as a flow, Satorras et al., arXiv
    2105.09016, section 3.

    >>> import torch
    >>> field = GraphField(4, 2, width=16, depth=2)
    >>> velocity, divergence = field.velocity_and_divergence(0.5, torch.randn(5, 6))
    >>> velocity.shape, divergence.shape
    (torch.Size([5, 6]), torch.Size([5]))
    """

    takes_times_of_rows = True

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        width: int = 64,
        depth: int = 3,
        *,
        length_scale: float = 1.0,
        num_radial: int = 24,
        radius: float = 5.0,
        num_frequencies: int = 6,
        finest: float = 4.0 * math.pi,
    ) -> None:
        super().__init__()
        if width < 1 or not 0.0 < length_scale < math.inf:
            raise ValueError(
                f"a graph field needs width >= 1 and length_scale > 0, got width={width}, length_scale={length_scale}"
            )
        self.length_scale = float(length_scale)
        embedding = TimeEmbedding(width, num_frequencies=num_frequencies, finest=finest)
        self.passing = MessagePassing(num_particles, spatial_dim, width, depth, embedding, num_radial, radius)
        self.weights = nn.Linear(width, 2)
        self.node_weights = nn.Linear(width, 2, bias=False)
        self.expansion = nn.Linear(width, 1)
        for linear in (self.weights, self.node_weights, self.expansion):
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)

    @property
    def dim(self) -> int:
        """Degrees of freedom, :math:`(N - 1) D`."""
        return self.passing.pairs.dim

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Velocities of the shape of ``x``, ``(*batch, (N - 1) D)``; ``t`` broadcasts to ``(*batch)``.

        :raises ShapeError: if a shape is wrong.
        """
        message, node, first, last = self.passing(x, times := times_of_rows(t, x), 1.0 / self.length_scale)
        weights = self.weights(message) + self.passing.pairs.of_both(self.node_weights(node))
        moved = self.length_scale * self.passing.vectors(weights, first, last)
        expansion: Tensor = self.expansion(self.passing.embedded(times))
        return (moved + expansion * x.reshape(moved.shape)).reshape(x.shape)
