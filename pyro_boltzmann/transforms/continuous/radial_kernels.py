"""Functions of a distance or of time as sums of kernels: normalised Gaussians, and a constant."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["ConstantKernel", "GaussianKernels", "RadialKernels", "smooth_distance"]

_FLOOR = 1e-6
_REACH = 7.5
"""Beyond so many widths the exponential stands still at 4e-25, for denormal numbers cost ten times the arithmetic."""


class RadialKernels(nn.Module):
    r""":math:`K` kernels :math:`\kappa_k`, whose sums with given weights come with their derivatives."""

    num_kernels: int
    """:math:`K`."""

    def derivatives(self, distance: Tensor, weights: Tensor, order: int) -> tuple[Tensor, ...]:
        r""":math:`F^{(n)}_m(d) = \sum_k W_{mk}\, \kappa_k^{(n)}(d)` for :math:`n = 0, \dots` ``order``, each
        ``(M, *shape)``, of distances ``(*shape)`` and weights ``(M, K)``."""
        raise NotImplementedError

    def pair_forces(self, difference: Tensor, weights: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        r"""Pair vectors :math:`f(d) r` with :math:`f = \text{constant} + \sum_k W_k \kappa_k`, and the divergence
        :math:`2 \sum (D f + f' |r|^2 / d)` of what they do to the particles, with :math:`d` of :func:`smooth_distance`.

        :param difference: :math:`r`, ``(D, rows, P)``.
        :param weights: :math:`W`, ``(1, K)``.
        :param constant: a scalar.
        :return: tensors ``(D, rows, P)`` and ``(rows,)``.
        """
        square, distance = smooth_distance(difference)
        force, slope = self.derivatives(distance, weights, 1)
        total = force[0] + constant
        local = torch.addcmul(len(difference) * total, slope[0], square / distance)
        return total * difference, 2.0 * local.sum(-1)


def smooth_distance(difference: Tensor) -> tuple[Tensor, Tensor]:
    r"""The squares :math:`|r|^2` and :math:`d = \sqrt{|r|^2 + 10^{-6}}`, ``(*shape)``, of vectors ``(D, *shape)``.

    >>> smooth_distance(torch.zeros(3, 1))
    (tensor([0.]), tensor([0.0010]))
    """
    square = difference.square().sum(0)
    return square, (square + _FLOOR).sqrt()


class GaussianKernels(RadialKernels):
    r"""Gaussians that share one unit between them,

    .. math::

        \kappa_k(d) = \frac{e_k}{10^{-6} + s}, \qquad e_k = e^{-(d - \mu_k)^2 / \gamma_k^2}, \qquad s = \sum_l e_l,

    with all derivatives in closed form: where :math:`F = A / (10^{-6} + s)` and :math:`A = \sum_k W_k e_k`,

    .. math:: F^{(n)} = \Bigl(A^{(n)} - \sum_{m=1}^{n} \tbinom{n}{m}\, s^{(m)} F^{(n - m)}\Bigr) \Big/ (10^{-6} + s).

    Far beyond the outermost centres all kernels vanish.

    :param centres: :math:`\mu`, ``(K,)``.
    :param widths: :math:`\gamma > 0`, ``(K,)`` or a number; stored as logarithms.
    :param trainable_centres: make :math:`\mu` a parameter; otherwise a buffer.
    :param trainable_widths: make :math:`\log \gamma` a parameter; otherwise a buffer.
    :raises ValueError: if a width is not positive, or the centres are not a vector.

    >>> kernels = GaussianKernels.uniform(50, 0.0, 8.0, 0.5)
    >>> d = torch.linspace(0.0, 8.0, 5)
    >>> bool((kernels(d).sum(-1) - 1.0).abs().max() < 1e-5)
    True
    >>> value, slope = kernels.derivatives(d, torch.ones(1, 50), order=1)
    >>> value.shape, bool(slope.abs().max() < 1e-5)
    (torch.Size([1, 5]), True)

    Source: J. Koehler, L. Klein and F. Noe, Equivariant flows, arXiv 2006.02425 (2020); their code adds the square of
    :math:`s` to the floor where the square of the sum of both is right.
    """

    centres: Tensor
    log_widths: Tensor

    def __init__(
        self,
        centres: Tensor,
        widths: Tensor | float,
        *,
        trainable_centres: bool = False,
        trainable_widths: bool = False,
    ) -> None:
        super().__init__()
        gamma = torch.as_tensor(widths, dtype=centres.dtype).expand(centres.shape)
        if centres.dim() != 1 or len(centres) < 1 or not bool((gamma > 0.0).all()):
            raise ValueError(
                "Gaussian kernels need a vector of centres and positive widths, got centres of shape "
                f"{tuple(centres.shape)} and widths down to {float(gamma.min()) if gamma.numel() else 'none'}"
            )
        self.num_kernels = len(centres)
        for name, value, is_trainable in (
            ("centres", centres, trainable_centres),
            ("log_widths", gamma.log(), trainable_widths),
        ):
            if is_trainable:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, value.detach().clone())

    @classmethod
    def uniform(cls, num_kernels: int, low: float, high: float, width: float, **trainable: bool) -> Self:
        r"""Centres evenly spaced on ``[low, high]``, all of one width: :math:`[0, 8]` and 0.5 for the distances of
        DW-4, :math:`[0, 1]` and 0.3 for time."""
        return cls(torch.linspace(low, high, num_kernels), width, **trainable)

    @classmethod
    def lennard_jones(cls, num_kernels: int = 50, **trainable: bool) -> Self:
        r"""Centres close to each other where Lennard-Jones particles touch: with :math:`s` uniform on :math:`[0, 1]`,
        :math:`\mu = 32 ((s - \tfrac{1.5}{16}) / 2)^2` and
        :math:`\gamma = 0.3 + 48 ((\tfrac{\mu}{16} - \tfrac{1.5}{16}) / 2)^2`.

        Source: the baseline of V. G. Satorras et al., E(n) equivariant normalizing flows, arXiv 2105.09016 (2021).
        """
        shift = 1.5 / 16.0
        centres = (32.0 * ((torch.linspace(0.0, 1.0, num_kernels) - shift) / 2.0).square()).sort().values
        return cls(centres, 0.3 + 48.0 * ((centres / 16.0 - shift) / 2.0).square(), **trainable)

    @classmethod
    def lennard_jones_time(cls, num_kernels: int = 10, **trainable: bool) -> Self:
        r"""The time kernels that go with :meth:`lennard_jones`: uniform, :math:`\gamma = (0.3 + (t - \tfrac12)^2 / 2) /
        \sqrt{K}`."""
        centres = torch.linspace(0.0, 1.0, num_kernels)
        return cls(centres, (0.3 + 0.5 * (centres - 0.5).square()) / num_kernels**0.5, **trainable)

    def forward(self, values: Tensor) -> Tensor:
        """All kernels ``(*shape, K)`` of values ``(*shape)``."""
        gap = ((values.unsqueeze(-1) - self.centres) * (-self.log_widths).exp()).clamp(-_REACH, _REACH)
        bump = (-(gap * gap)).exp()
        return bump / (_FLOOR + bump.sum(-1, keepdim=True))

    def derivatives(self, distance: Tensor, weights: Tensor, order: int) -> tuple[Tensor, ...]:
        """As :meth:`RadialKernels.derivatives`, up to the second.

        :raises ValueError: for higher derivatives.
        """
        if not 0 <= order <= 2:
            raise ValueError(f"Gaussian kernels have their derivatives 0, 1 and 2 in closed form, got order={order}")
        inverse = (-self.log_widths).exp()
        gap = torch.addcmul(-self.centres * inverse, distance.reshape(-1, 1), inverse).clamp(-_REACH, _REACH)
        bump = (-(gap * gap)).exp()
        # The rows of one matrix product: the sum s, then all A_m; with a factor 1 / gamma for each derivative.
        columns = torch.cat([torch.ones_like(weights[:1]), weights]).mT
        sums = [bump @ columns]
        if order >= 1:
            slope = gap * bump
            sums.append(slope @ (-2.0 * inverse.unsqueeze(-1) * columns))
        if order >= 2:
            sums.append((4.0 * gap * slope - 2.0 * bump) @ (inverse.square().unsqueeze(-1) * columns))
        rows = [total.mT for total in sums]
        scale = (_FLOOR + rows[0][:1]).reciprocal()
        found = [rows[0][1:] * scale]
        if order >= 1:
            found.append((rows[1][1:] - rows[1][:1] * found[0]) * scale)
        if order >= 2:
            found.append((rows[2][1:] - 2.0 * rows[1][:1] * found[1] - rows[2][:1] * found[0]) * scale)
        return tuple(one.reshape(len(weights), *distance.shape) for one in found)


class ConstantKernel(nn.Module):
    """One kernel that is one at all times: in place of time kernels it makes a field independent of time.

    >>> ConstantKernel()(torch.tensor(0.3))
    tensor([1.])
    """

    num_kernels = 1

    def forward(self, values: Tensor) -> Tensor:
        """Ones, ``(*shape, 1)``."""
        return torch.ones_like(values).unsqueeze(-1)
