"""One step of a simulation: Euler-Maruyama, Milstein, and a Runge-Kutta method for additive noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_boltzmann.sde.equation import SDE, diffusion_jacobian, is_matrix

__all__ = ["SCHEMES", "Euler", "Milstein", "RungeKutta", "Scheme", "scheme_of"]

Step = float | Tensor
"""A step of time: one number, or ``(*batch, 1)``."""


class Scheme(ABC):
    """One step :math:`x \\mapsto y`, a function of the state and of standard normal numbers.

    :cvar name: what :func:`simulate` calls it.
    :cvar num_normals: standard normal vectors that a step takes.
    """

    name: str
    num_normals: int = 1

    def check(self, sde: SDE, x: Tensor, params: Tensor | None) -> None:  # noqa: B027 (Euler takes all)
        """Refuse an equation for whose noise the scheme is not made, judging by a few states.

        :param x: ``(n, d)``.
        :raises ValueError: if the noise does not allow the scheme.
        """

    @abstractmethod
    def step(
        self, sde: SDE, x: Tensor, dt: Step, noise: tuple[Tensor, ...], params: Tensor | None = None
    ) -> tuple[Tensor, float | Tensor]:
        """The next state, before boundaries, and the diffusion at ``x``.

        :param x: ``(*batch, d)``.
        :param dt: the step of time, a number or ``(*batch, 1)``.
        :param noise: ``num_normals`` tensors like ``x``.
        """


class Euler(Scheme):
    r"""Euler-Maruyama, of strong order 1/2 (1 for additive noise) and weak order 1:

    .. math:: y = x + b(x)\, h + \sigma(x) \sqrt h\, \xi .

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations (1992), section 10.2.
    """

    name = "euler"

    def step(
        self, sde: SDE, x: Tensor, dt: Step, noise: tuple[Tensor, ...], params: Tensor | None = None
    ) -> tuple[Tensor, float | Tensor]:
        drift, diffusion = sde.coefficients(x, params)
        return _add_noise(_add(x, drift, dt), x, diffusion, noise[0], _sqrt(dt)), diffusion


class Milstein(Scheme):
    r"""Milstein's scheme, of strong order 1 and weak order 1, where each coordinate has a noise of its own whose size
    depends on no other coordinate:

    .. math:: y_i = x_i + b_i h + \sigma_i \sqrt h\, \xi_i + \tfrac12 \sigma_i \sigma_i' h\, (\xi_i^2 - 1) .

    The derivative is taken by autograd.

    Source: Kloeden and Platen (1992), section 10.3.
    """

    name = "milstein"

    def check(self, sde: SDE, x: Tensor, params: Tensor | None) -> None:
        jacobian = diffusion_jacobian(sde, x, params)
        if jacobian is None or bool((jacobian - torch.diag_embed(jacobian.diagonal(dim1=-2, dim2=-1))).any()):
            raise ValueError(
                "scheme='milstein' needs a diffusion (*batch, d) whose i-th entry depends on x_i alone, "
                "and this one mixes coordinates; use scheme='euler'"
            )

    def step(
        self, sde: SDE, x: Tensor, dt: Step, noise: tuple[Tensor, ...], params: Tensor | None = None
    ) -> tuple[Tensor, float | Tensor]:
        if sde.has_constant_diffusion:
            return Euler().step(sde, x, dt, noise, params)
        drift, diffusion, slope = _with_slope(sde, x, params)
        y = _add_noise(_add(x, drift, dt), x, diffusion, noise[0], _sqrt(dt))
        if slope is not None:
            y = y + (0.5 * dt) * (diffusion * slope) * (noise[0].square() - 1.0)
        return y, diffusion


class RungeKutta(Scheme):
    r"""Roessler's SRA1 for additive noise, of strong order 3/2 and weak order 2, with two drifts a step:

    .. math:: I = \sqrt h\, \xi, \quad J = \tfrac12 h^{3/2} (\xi + \zeta / \sqrt3), \quad
        k_1 = b(x), \quad k_2 = b\bigl(x + \tfrac34 h k_1 + \tfrac32 \sigma J / h\bigr), \quad
        y = x + h\,\bigl(\tfrac13 k_1 + \tfrac23 k_2\bigr) + \sigma I .

    The second drift is taken at a point that may lie outside the domain of a boundary.

    Source: Roessler, SIAM J. Numer. Anal. 48 (2010), 922 (SRA1).
    """

    name = "runge_kutta"
    num_normals = 2

    def check(self, sde: SDE, x: Tensor, params: Tensor | None) -> None:
        if sde.has_constant_diffusion:
            return
        jacobian = diffusion_jacobian(sde, x, params)
        if jacobian is None or bool(jacobian.any()):
            raise ValueError(
                "scheme='runge_kutta' needs additive noise, a diffusion that does not depend on the state; use "
                "scheme='euler' or, if the noise of each coordinate depends on that coordinate alone, 'milstein'"
            )

    def step(
        self, sde: SDE, x: Tensor, dt: Step, noise: tuple[Tensor, ...], params: Tensor | None = None
    ) -> tuple[Tensor, float | Tensor]:
        first, diffusion = sde.coefficients(x, params)
        root = _sqrt(dt)
        mean_noise = torch.add(noise[0], noise[1], alpha=1.0 / math.sqrt(3.0))
        between = _add_noise(_add(x, first, 0.75 * dt), x, diffusion, mean_noise, 0.75 * root)
        second, _ = sde.coefficients(between, params)
        y = _add(_add(x, first, dt / 3.0), second, dt * (2.0 / 3.0))
        return _add_noise(y, x, diffusion, noise[0], root), diffusion


SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (Euler(), Milstein(), RungeKutta())}
"""The schemes by name."""


def scheme_of(name: str) -> Scheme:
    """The scheme of this name.

    :raises ValueError: for an unknown name, listing those there are.

    >>> scheme_of("euler").num_normals
    1
    """
    if name not in SCHEMES:
        raise ValueError(f"there is no scheme {name!r}; choose one of {', '.join(sorted(SCHEMES))}")
    return SCHEMES[name]


def _with_slope(sde: SDE, x: Tensor, params: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Drift, diffusion and :math:`\partial\sigma_i / \partial x_i`, with a graph where the caller's own needs one."""
    if torch.is_grad_enabled() and not x.requires_grad:
        drift, diffusion = sde.coefficients(x, params)
        assert isinstance(diffusion, Tensor)
        with torch.set_grad_enabled(diffusion.requires_grad):
            *_, slope = _with_slope(sde, x.detach().requires_grad_(), params)
        return drift, diffusion, slope
    keeps_graph = torch.is_grad_enabled()
    at = x if keeps_graph else x.detach().requires_grad_()
    with torch.enable_grad():
        drift, diffusion = sde.coefficients(at, params)
        assert isinstance(diffusion, Tensor)
        slope = None
        if diffusion.requires_grad:
            (slope,) = torch.autograd.grad(diffusion.sum(), at, create_graph=keeps_graph, allow_unused=True)
    return (drift, diffusion, slope) if keeps_graph else (drift.detach(), diffusion.detach(), slope)


def _sqrt(dt: Step) -> Step:
    return dt.sqrt() if isinstance(dt, Tensor) else math.sqrt(dt)


def _add(x: Tensor, y: Tensor, factor: Step) -> Tensor:
    return torch.addcmul(x, y, factor) if isinstance(factor, Tensor) else torch.add(x, y, alpha=factor)


def _add_noise(y: Tensor, x: Tensor, diffusion: float | Tensor, noise: Tensor, factor: Step) -> Tensor:
    """``y + factor * diffusion @ noise``, in place: ``y`` is a sum that nothing else holds."""
    if not isinstance(diffusion, Tensor):
        size = diffusion * factor
        return y.addcmul_(noise, size) if isinstance(size, Tensor) else y.add_(noise, alpha=size)
    if is_matrix(diffusion, x):
        noise = (diffusion @ noise.unsqueeze(-1)).squeeze(-1)
        return y.addcmul_(noise, factor) if isinstance(factor, Tensor) else y.add_(noise, alpha=factor)
    if isinstance(factor, Tensor):
        return y.addcmul_(diffusion * factor, noise)
    return y.addcmul_(diffusion, noise, value=factor)
