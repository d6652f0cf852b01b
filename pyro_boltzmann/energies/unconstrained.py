"""From the support of a density to an unconstrained space: shared by every energy that has a support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.exceptions import EnergyError, ShapeError

__all__ = [
    "UnconstrainedEnergy",
    "as_event_shape",
    "event_support",
    "is_identity",
    "log_abs_det",
    "unconstrained_shape",
]


def as_event_shape(event_shape: int | Sequence[int]) -> torch.Size:
    """``3`` and ``(3,)`` both mean vectors of length three; ``()`` means scalars.

    :raises ShapeError: if a size is not positive.
    """
    shape = torch.Size((event_shape,) if isinstance(event_shape, int) else tuple(event_shape))
    if any(size <= 0 for size in shape):
        raise ShapeError(f"event_shape must be a positive int or a tuple of positive ints, got {tuple(shape)}")
    return shape


def event_support(support: constraints.Constraint, event_shape: torch.Size) -> Any:
    """The same support with ``event_dim == len(event_shape)``.

    :raises ShapeError: if the support needs more event dimensions than there are.
    """
    if is_identity(biject_to(support)):
        support = constraints.real
    missing = len(event_shape) - support.event_dim
    if missing < 0:
        raise ShapeError(
            f"support {support} needs at least {support.event_dim} event dimensions, got event_shape "
            f"{tuple(event_shape)}"
        )
    return constraints.independent(support, missing) if missing else support


def is_identity(transform: Transform) -> bool:
    """Whether the transform does nothing (the bijection of an unconstrained site)."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and all(is_identity(part) for part in transform.parts)


def unconstrained_shape(transform: Transform, event_shape: torch.Size) -> torch.Size:
    """The shape of ``transform.inv(x)`` for ``x`` of shape ``event_shape``."""
    return torch.Size(transform.inverse_shape(event_shape))


def log_abs_det(transform: Transform, z: Tensor, x: Tensor, batch_dim: int) -> Tensor:
    """``log|det dx/dz|`` summed over everything right of the first ``batch_dim`` dimensions."""
    ladj: Tensor = transform.log_abs_det_jacobian(z, x)
    return ladj.flatten(batch_dim).sum(-1) if ladj.dim() > batch_dim else ladj


class UnconstrainedEnergy:
    r"""The energy of :math:`z`, where :math:`x(z)` is a bijection of flat vectors onto the support:

    .. math:: u_z(z) = u(x(z)) / T - \log |\det \partial x / \partial z|

    :param energy: maps ``(*batch, *event)`` to ``(*batch)``.
    :param event_shape: shape of one configuration.
    :param transform: from the unconstrained space to the support.
    :param temperature: :math:`T`.

    >>> import torch
    >>> from torch.distributions import biject_to, constraints
    >>> exponential = UnconstrainedEnergy(lambda x: x, torch.Size(), biject_to(constraints.positive))
    >>> exponential(torch.zeros(3, 1))
    tensor([1., 1., 1.])
    """

    def __init__(self, energy: Energy, event_shape: torch.Size, transform: Transform, temperature: float = 1.0) -> None:
        self.energy = energy
        self.event_shape = event_shape
        self.transform = transform
        self.temperature = temperature
        self.latent_shape = unconstrained_shape(transform, event_shape)
        self.latent_dim = self.latent_shape.numel()

    def unflatten(self, z: Tensor) -> Tensor:
        """``(*batch, latent_dim)`` to ``(*batch, *latent_shape)``.

        :raises ShapeError: if the last dimension is not ``latent_dim``.
        """
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ShapeError(f"expected z of shape (*batch, {self.latent_dim}), got {tuple(z.shape)}")
        return z.reshape(z.shape[:-1] + self.latent_shape)

    def __call__(self, z: Tensor) -> Tensor:
        latent = self.unflatten(z)
        x = self.transform(latent)
        u = self.energy(x)
        batch = z.shape[:-1]
        # Checked here because the log-determinant would broadcast a wrong shape into a right one.
        if not isinstance(u, Tensor) or u.shape != batch:
            got = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise EnergyError(
                f"the energy of x with shape {tuple(x.shape)} must be a tensor of the batch shape {tuple(batch)}, got "
                f"{got}; reduce over the event dimensions only, for example with .sum(-1)"
            )
        if self.temperature != 1.0:
            u = u / self.temperature
        return u if is_identity(self.transform) else u - log_abs_det(self.transform, latent, x, len(batch))
