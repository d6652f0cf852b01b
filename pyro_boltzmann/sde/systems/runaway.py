"""Runaway electrons in a cooling tokamak plasma: momentum, pitch and radius."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.sde.boundaries import Absorbing, Clamped, Reflecting
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.laws import MaxwellianMomentum, ProductLaw
from pyro_boltzmann.sde.systems.collisions import Collisions
from pyro_boltzmann.sde.systems.system import System

__all__ = ["RunawayElectrons", "runaway_electrons", "runaway_initial"]

P_MIN, P_MAX = 0.5, 5.0


class RunawayElectrons(SDE):
    r"""Relativistic electrons, with momentum :math:`p`, cosine of the pitch angle :math:`\xi` and radius :math:`r`, in
    an electric field with collisions, synchrotron radiation and radial diffusion:

    .. math::
        dp &= \Bigl[E \xi - \frac{\gamma p (1 - \xi^2)}{\tau} - C_F + \frac{2 C_A}{p} + C_A'\Bigr] dt
            + \sqrt{2 C_A}\, dW_1, \\
        d\xi &= \Bigl[\frac{E (1 - \xi^2)}{p} + \frac{\xi (1 - \xi^2)}{\tau \gamma} - \frac{2 \xi C_B}{p^2}\Bigr] dt
            + \frac{\sqrt{2 C_B (1 - \xi^2)}}{p}\, dW_2, \\
        dr &= D_0 F'(r)\, e^{-(p/2)^2}\, dt + \sqrt{2 D_0 F(r)\, e^{-(p/2)^2}}\, dW_3, \qquad
            F = \tfrac12 \Bigl(1 + \tanh \frac{r - 1/2}{1/10}\Bigr),

    with :math:`E = E_0 (\tilde T / \hat T)^{3/2}`. Momenta below 1/2 are put there, :math:`\xi` is reflected at
    :math:`\pm 1`, and :math:`r` at 0; electrons that reach ``r_max`` are lost.

    :param field: :math:`E_0`.
    :param radiation_time: :math:`\tau`.
    :param radial_diffusion: :math:`D_0`.
    :param r_max: where electrons are lost.
    :param collisions: the collision functions.

    Source: Yang et al., arXiv 2507.15990, and its repository, from which the constants are.

    >>> RunawayElectrons().coefficients(torch.tensor([[1.0, 0.0, 0.5]]))[0].shape
    torch.Size([1, 3])
    """

    def __init__(
        self,
        field: float = 1.0 / 2000.0,
        radiation_time: float = 6000.0,
        radial_diffusion: float = 0.01,
        r_max: float = 1.0,
        collisions: Collisions | None = None,
    ) -> None:
        self.collisions = collisions or Collisions()
        ratio = self.collisions.initial_temperature / self.collisions.final_temperature
        self.field = field * ratio**1.5
        self.radiation_time, self.radial_diffusion = radiation_time, radial_diffusion
        boundaries = [Clamped(0, low=P_MIN), Reflecting(1, -1.0, 1.0), Reflecting(2, low=0.0), Absorbing(2, high=r_max)]
        super().__init__(self._drift, self._diffusion_by_state, 3, boundaries=boundaries)

    def coefficients(self, x: Tensor, params: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.arguments(x, params)
        p, xi, r = x.unbind(-1)
        rates = self.collisions.rates(p)
        squared_sine = 1.0 - xi.square()
        tanh = ((r - 0.5) * 10.0).tanh()
        outward = self.radial_diffusion * (-0.25 * p.square()).exp()
        force = self.field * xi - rates.gamma * p * squared_sine / self.radiation_time - rates.c_f
        spread = 2.0 * rates.c_a / p + rates.c_a_slope
        turning = squared_sine * (self.field / p + xi / (self.radiation_time * rates.gamma))
        scattering = 2.0 * xi * rates.c_b / p.square()
        drift = [force + spread, turning - scattering, outward * 5.0 * (1.0 - tanh.square())]
        diffusion = [
            (2.0 * rates.c_a).sqrt(),
            (2.0 * rates.c_b * squared_sine.clamp_min(0.0)).sqrt() / p,
            (outward * (1.0 + tanh)).sqrt(),
        ]
        return torch.stack(drift, 0).movedim(0, -1), torch.stack(diffusion, 0).movedim(0, -1)

    def _drift(self, x: Tensor) -> Tensor:
        return self.coefficients(x)[0]

    def _diffusion_by_state(self, x: Tensor) -> Tensor:
        return self.coefficients(x)[1]


def runaway_initial(width: float) -> ProductLaw:
    """Maxwellian momenta on [0.5, 5], pitch uniform on [-1, 1] and radius on [0, 1], independent.

    :param width: of the Maxwellian, see :class:`MaxwellianMomentum`.
    """
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    return ProductLaw([MaxwellianMomentum(width, P_MIN, P_MAX), dist.Uniform(-one, one), dist.Uniform(zero, one)])


def runaway_electrons(width: float = 1.0) -> System:
    """:class:`RunawayElectrons` for the time 20 with steps of 0.005, from :func:`runaway_initial`; tested on
    Maxwellians of other widths.

    The published widths are not known; those of the tests are the project's own.

    >>> sorted(runaway_electrons().tests)
    ['width 0.6', 'width 0.8', 'width 1.2', 'width 1.5']
    """
    return System(
        name="runaway",
        sde=RunawayElectrons(),
        initial=runaway_initial(width),
        time=20.0,
        step_size=0.005,
        tests={f"width {other}": runaway_initial(other) for other in (0.6, 0.8, 1.2, 1.5)},
    )
