"""Eight schools with any data, its energy written out, and its prior draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm
from pyro_boltzmann.energies.catalogue.posteriors import EIGHT_SCHOOLS_EFFECT, EIGHT_SCHOOLS_ERROR
from pyro_boltzmann.energies.catalogue.target import Target
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["PRIOR_SCALE", "SchoolsPosterior", "draw_schools"]

PRIOR_SCALE = 5.0
"""Of mu (normal) and of tau (half-Cauchy)."""


def draw_schools(num_sets: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    r"""Parameters from the prior of the non-centred program and data from its likelihood.

    :return: :math:`z = (\mu, \log \tau, \eta)` of shape ``(num_sets, 10)`` and y of shape ``(num_sets, 8)``, float64.

    >>> z, y = draw_schools(3)
    >>> z.shape, y.shape
    (torch.Size([3, 10]), torch.Size([3, 8]))
    """
    normal = torch.randn(num_sets, 17, generator=generator, dtype=torch.float64)
    uniform = torch.rand(num_sets, 1, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    # The quantile function of the half-Cauchy law.
    tau = PRIOR_SCALE * torch.tan(0.5 * math.pi * uniform)
    mu, eta = PRIOR_SCALE * normal[:, :1], normal[:, 1:9]
    y = mu + tau * eta + normal.new_tensor(EIGHT_SCHOOLS_ERROR) * normal[:, 9:]
    return torch.cat([mu, tau.log(), eta], -1), y


class SchoolsPosterior(ClosedForm, Target):
    r"""The posterior of the non-centred eight schools given any data y, without running the program.

    With :math:`z = (\mu, l, \eta)`, :math:`\tau = e^l` and up to a constant,

    .. math::

        u(z) = \frac{\mu^2}{50} + \log\Bigl(1 + \frac{\tau^2}{25}\Bigr) - l + \tfrac12 |\eta|^2
        + \sum_j \frac{(y_j - \mu - \tau \eta_j)^2}{2 \sigma_j^2} .

    :param y: measured effects, ``(8,)``; by default those of the catalogue.
    :param error_scale: multiplies the standard errors :math:`\sigma_j`; anything but one is a wrong likelihood.
    :raises ShapeError: for data of another shape.

    >>> SchoolsPosterior()(torch.zeros(3, 10)).shape
    torch.Size([3])
    """

    def __init__(self, y: Tensor | None = None, error_scale: float = 1.0) -> None:
        y = torch.tensor(EIGHT_SCHOOLS_EFFECT) if y is None else y
        sigma = error_scale * torch.tensor(EIGHT_SCHOOLS_ERROR, dtype=torch.float64)
        if y.shape != sigma.shape:
            raise ShapeError(f"expected the measured effects y of shape {tuple(sigma.shape)}, got {tuple(y.shape)}")
        super().__init__("eight_schools_data", 2 + len(y), constants={"y": y, "sigma": sigma})
        self._constant = (
            0.5 * 17 * math.log(2 * math.pi)
            + sigma.log().sum().item()
            + math.log(PRIOR_SCALE)
            + math.log(0.5 * math.pi * PRIOR_SCALE)
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._prior(x) - self.log_likelihood(x)

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, tau, eta = x[..., :1], x[..., 1:2].exp(), x[..., 2:]
        residual = self._residual(x)
        force = residual / self._on("sigma", x)
        gradient = torch.empty_like(x)
        gradient[..., :1] = mu / PRIOR_SCALE**2 + force.sum(-1, keepdim=True)
        pull = 2.0 * torch.sigmoid(2.0 * (x[..., 1:2] - math.log(PRIOR_SCALE))) - 1.0
        gradient[..., 1:2] = pull + tau * (force * eta).sum(-1, keepdim=True)
        gradient[..., 2:] = torch.addcmul(eta, tau, force)
        return self._prior(x) + 0.5 * residual.square().sum(-1), gradient

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Of the data, up to a constant: ``(*batch, 10) -> (*batch)``."""
        return -0.5 * self._residual(x).square().sum(-1)

    def _residual(self, x: Tensor) -> Tensor:
        theta = torch.addcmul(x[..., :1], x[..., 1:2].exp(), x[..., 2:])
        return (theta - self._on("y", x)) / self._on("sigma", x)

    def _prior(self, x: Tensor) -> Tensor:
        mu, log_tau, eta = x[..., 0], x[..., 1], x[..., 2:]
        # log(1 + tau^2 / 25) without the square, which may overflow.
        cauchy = torch.nn.functional.softplus(2.0 * (log_tau - math.log(PRIOR_SCALE)))
        normal = mu.square() / (2 * PRIOR_SCALE**2) + 0.5 * eta.square().sum(-1)
        return normal + cauchy - log_tau + self._constant
