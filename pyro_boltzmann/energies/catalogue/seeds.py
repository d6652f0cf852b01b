"""The seeds data: a random-effects logistic regression."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm
from pyro_boltzmann.energies.catalogue.posteriors import PosteriorTarget

__all__ = ["SEEDS_GERMINATED", "SEEDS_TOTAL", "Seeds", "seeds"]

# Nested quadrature, stable to 1e-9 under refinement.
LOG_Z = -73.406179304
MEAN_ENERGY = 71.739006
SEEDS_GERMINATED = (10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3)
SEEDS_TOTAL = (39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7)
# Aegyptiaco 73 or 75, bean or cucumber.
SEEDS_VARIETY = (0,) * 11 + (1,) * 10
SEEDS_EXTRACT = (0,) * 5 + (1,) * 6 + (0,) * 5 + (1,) * 5


def seeds(total: Tensor, variety: Tensor, extract: Tensor, germinated: Tensor | None = None) -> Tensor:
    r"""Germination of seeds on 21 plates, with a random effect for each plate.

    .. math::

        \tau \sim \mathrm{Gamma}(0.01, 0.01), \quad \alpha_0, \alpha_1, \alpha_2, \alpha_{12} \sim N(0, 10^2), \quad
        b_j \sim N(0, 1 / \tau), \quad r_j \sim \mathrm{Binomial}(n_j, p_j), \\
        \mathrm{logit}\, p_j = \alpha_0 + \alpha_1 x_{1j} + \alpha_2 x_{2j} + \alpha_{12} x_{1j} x_{2j} + b_j

    The likelihood has its binomial coefficients. Unconstrained, the first coordinate is :math:`\log \tau`.

    :param total: :math:`n_j`, shape ``(21,)``.
    :param variety: :math:`x_1`, 0 or 1.
    :param extract: :math:`x_2`, 0 or 1.
    :param germinated: :math:`r_j`; drawn from the model when ``None``.
    :return: the random effects :math:`b`.

    Source: Crowder (1978), Applied Statistics 27, table 3; the model is that of the BUGS examples, volume 1.

    >>> target = Seeds()
    >>> seeds(**target.data).shape, int(target.data["germinated"].sum())
    (torch.Size([21]), 424)
    """
    tau = pyro.sample("tau", dist.Gamma(0.01, 0.01))
    base = pyro.sample("alpha_0", dist.Normal(0.0, 10.0))
    by_variety = pyro.sample("alpha_1", dist.Normal(0.0, 10.0))
    by_extract = pyro.sample("alpha_2", dist.Normal(0.0, 10.0))
    by_both = pyro.sample("alpha_12", dist.Normal(0.0, 10.0))
    with pyro.plate("plates", len(total), dim=-1):
        effect: Tensor = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
        x1, x2 = variety.to(effect), extract.to(effect)
        logits = base + by_variety * x1 + by_extract * x2 + by_both * (x1 * x2) + effect
        seen = None if germinated is None else germinated.to(effect)
        pyro.sample("germinated", dist.Binomial(total.to(effect), logits=logits), obs=seen)
    return effect


class Seeds(ClosedForm, PosteriorTarget):
    r"""The posterior of :func:`seeds` in 26 dimensions.

    The coordinates are :math:`(\log \tau, \alpha_0, \alpha_1, \alpha_2, \alpha_{12}, b_1, \dots, b_{21})`.

    Its energy is written out, which saves running the program; with :math:`\eta_j = \mathrm{logit}\, p_j` and
    :math:`l = \log \tau` it is, up to a constant,

    .. math::

        u = 0.01 (e^l - l) + \tfrac{1}{200} \sum_k \alpha_k^2 + \tfrac12 e^l \sum_j b_j^2 - \tfrac{21}{2} l
        + \sum_j \left[ n_j \log(1 + e^{\eta_j}) - r_j \eta_j \right].

    Given :math:`\tau` and the four means of the factorial design, plates are independent. So :math:`\log Z` is a nested
    quadrature: over each :math:`b_j`, over four means that only the wide prior couples, and over :math:`l`.

    >>> target = Seeds()
    >>> target.dim, round(target.log_z, 5)
    (26, -73.40618)
    """

    def __init__(self) -> None:
        data = {
            "total": SEEDS_TOTAL,
            "variety": SEEDS_VARIETY,
            "extract": SEEDS_EXTRACT,
            "germinated": SEEDS_GERMINATED,
        }
        super().__init__(
            "seeds",
            seeds,
            {name: torch.tensor(values, dtype=torch.float32) for name, values in data.items()},
            26,
            log_z=LOG_Z,
            log_z_origin="exact",
            log_z_note="nested quadrature: each random effect, then the four cell means, then log tau",
            mean_energy=MEAN_ENERGY,
            bounds=((-1.0, 8.0), (-1.5, 0.5)),
        )
        n, x1, x2, r = (self.data[name].double() for name in data)
        # From alpha and b to the logits.
        self._derived["design"] = torch.cat([torch.stack([torch.ones_like(n), x1, x2, x1 * x2]), torch.eye(21)])
        log_choices = torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)
        self._constant = (
            math.lgamma(0.01)
            - 0.01 * math.log(0.01)
            + 4 * math.log(10.0)
            + 0.5 * 25 * math.log(2 * math.pi)
            - log_choices.sum().item()
        )

    def __call__(self, x: Tensor) -> Tensor:
        logits = x[..., 1:] @ self._on("design", x)
        likelihood = self._on("total", x) * torch.nn.functional.softplus(logits) - self._on("germinated", x) * logits
        return likelihood.sum(-1) + self._prior(x)

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        design, n, r = (self._on(name, x) for name in ("design", "total", "germinated"))
        logits = x[..., 1:] @ design
        u = (n * torch.nn.functional.softplus(logits) - r * logits).sum(-1) + self._prior(x)
        gradient = torch.empty_like(x)
        gradient[..., 1:] = torch.addcmul(-r, n, logits.sigmoid()) @ design.mT
        b, tau = x[..., 5:], x[..., 0].exp()
        gradient[..., 0] = tau * (0.01 + 0.5 * b.square().sum(-1)) - (0.01 + 10.5)
        gradient[..., 1:5].add_(x[..., 1:5], alpha=0.01)
        gradient[..., 5:].addcmul_(tau.unsqueeze(-1), b)
        return u, gradient

    def _prior(self, x: Tensor) -> Tensor:
        log_tau, alpha, b = x[..., 0], x[..., 1:5], x[..., 5:]
        scaled = log_tau.exp() * (0.01 + 0.5 * b.square().sum(-1))
        return scaled - (0.01 + 10.5) * log_tau + 0.005 * alpha.square().sum(-1) + self._constant
