"""Stochastic differential equations: drift, diffusion and what happens at the edge of the domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde.boundaries import Absorbing, Boundary, Folding, check_boundaries

if TYPE_CHECKING:
    from pyro_boltzmann.sde.program import SDEProgram

__all__ = ["SDE", "Coefficient", "diffusion_jacobian", "is_matrix"]

Coefficient = Callable[..., Tensor]
"""``f(x)``, or ``f(x, c)`` with parameters, of states ``(*batch, d)``."""


class SDE:
    r"""An autonomous stochastic differential equation in the sense of Ito,

    .. math:: dX = b(X, c)\, dt + \sigma(X, c)\, dW, \qquad X \in \mathbb R^d .

    Coefficients are called on whole batches. Simulation stores low-dimensional states coordinate by coordinate; a drift
    that stacks its columns as ``torch.stack(columns, 0).movedim(0, -1)`` keeps that order and is the fastest.

    :param drift: maps ``(*batch, d)`` to ``(*batch, d)``; with ``param_dim > 0`` it is called as ``drift(x, c)`` with
        parameters ``(*batch, param_dim)``.
    :param diffusion: a number; a tensor ``(d,)``; a callable like the drift, which returns ``(*batch, d)`` (each
        coordinate has noise of its own); or a tensor ``(d, d)``, or a callable that returns ``(*batch, d, d)``.
    :param event_dim: the dimension :math:`d` of the state (not, as in torch's distributions, a number of axes).
    :param boundaries: :class:`Periodic`, :class:`Reflecting`, :class:`Clamped` and :class:`Absorbing` rules.
    :param param_dim: the dimension of the parameters, 0 for none.
    :raises ShapeError: if a constant diffusion has a shape that is none of those above; on evaluation, if a
        coefficient returns a wrong one.
    :raises ValueError: if boundaries contradict each other.

    >>> pendulum = SDE(lambda x: torch.stack([x[..., 1], -x[..., 0].sin()], -1), torch.tensor([0.0, 0.1]), 2)
    >>> drift, diffusion = pendulum.coefficients(torch.tensor([[0.0, 1.0]]))
    >>> drift, diffusion
    (tensor([[1., -0.]]), tensor([0.0000, 0.1000]))
    >>> pendulum
    SDE(event_dim=2, noise=constant diagonal)
    """

    def __init__(
        self,
        drift: Coefficient,
        diffusion: float | Tensor | Coefficient,
        event_dim: int,
        *,
        boundaries: Sequence[Boundary] = (),
        param_dim: int = 0,
    ) -> None:
        if event_dim < 1 or param_dim < 0:
            raise ValueError(f"expected event_dim >= 1 and param_dim >= 0, got {event_dim} and {param_dim}")
        check_boundaries(boundaries, event_dim)
        self.drift = drift
        self.diffusion = diffusion if callable(diffusion) else _constant(diffusion, event_dim)
        self.event_dim = event_dim
        self.boundaries = tuple(boundaries)
        self.param_dim = param_dim

    @property
    def absorbing(self) -> tuple[Absorbing, ...]:
        """The boundaries at which trajectories end."""
        return tuple(boundary for boundary in self.boundaries if isinstance(boundary, Absorbing))

    @property
    def has_constant_diffusion(self) -> bool:
        """Whether the diffusion was given as a number or a tensor."""
        return not callable(self.diffusion)

    def coefficients(self, x: Tensor, params: Tensor | None = None) -> tuple[Tensor, float | Tensor]:
        """Drift ``(*batch, d)`` and diffusion: a number, ``(d,)``, ``(*batch, d)``, or matrices with one axis more
        than ``x`` (:func:`is_matrix`).

        Equations whose drift and diffusion share work override this method.

        :raises ShapeError: if a coefficient returns a wrong shape, or parameters are missing.
        """
        arguments = self.arguments(x, params)
        drift = self.drift(*arguments)
        _check_shape("drift", drift, [x.shape])
        return drift, self._diffusion(arguments)

    def arguments(self, x: Tensor, params: Tensor | None) -> tuple[Tensor, ...]:
        """What the coefficients are called with.

        :raises ShapeError: if the state or the parameters have the wrong dimension.
        """
        if x.dim() < 1 or x.shape[-1] != self.event_dim:
            raise ShapeError(f"states must have shape (*batch, {self.event_dim}), got {tuple(x.shape)}")
        if self.param_dim == 0:
            if params is not None:
                raise ShapeError("this equation has no parameters; pass param_dim= to SDE, or leave params out")
            return (x,)
        if params is None or params.dim() < 1 or params.shape[-1] != self.param_dim:
            came = None if params is None else tuple(params.shape)
            raise ShapeError(f"params must have shape (*batch, {self.param_dim}), got {came}")
        return x, params

    def fold(self, x: Tensor) -> Tensor:
        """Bring states back into the domain: all boundaries but absorbing ones. In place, unless a graph is kept."""
        keeps_graph = torch.is_grad_enabled() and x.requires_grad
        for boundary in self.boundaries:
            if isinstance(boundary, Folding):
                folded = boundary.fold(x[..., boundary.index])
                if keeps_graph:
                    x = x.clone()
                x[..., boundary.index] = folded
        return x

    def model(self, initial: Any, time: float, num_steps: int, *, scheme: str = "euler", name: str = "x") -> SDEProgram:
        """This simulation as a Pyro program: see :class:`SDEProgram`."""
        from pyro_boltzmann.sde.program import SDEProgram

        return SDEProgram(self, initial, time, num_steps, scheme=scheme, name=name)

    def __repr__(self) -> str:
        if callable(self.diffusion):
            noise = "by state"
        elif isinstance(self.diffusion, float):
            noise = f"{self.diffusion:g}"
        else:
            noise = f"constant {'diagonal' if self.diffusion.dim() == 1 else 'matrix'}"
        rest = "".join(f", {boundary}" for boundary in self.boundaries)
        params = f", param_dim={self.param_dim}" if self.param_dim else ""
        return f"{type(self).__name__}(event_dim={self.event_dim}, noise={noise}{params}{rest})"

    def _diffusion(self, arguments: tuple[Tensor, ...]) -> float | Tensor:
        x = arguments[0]
        if isinstance(self.diffusion, float):
            return self.diffusion
        if isinstance(self.diffusion, Tensor):
            constant = self.diffusion.to(x)
            return constant if constant.dim() == 1 else constant.expand(*[1] * (x.dim() - 1), -1, -1)
        value = self.diffusion(*arguments)
        _check_shape("diffusion", value, [x.shape, (*x.shape, self.event_dim)])
        return value


def is_matrix(diffusion: float | Tensor, x: Tensor) -> bool:
    """Whether the diffusion at states ``x`` mixes the noises of several coordinates."""
    return isinstance(diffusion, Tensor) and diffusion.dim() == x.dim() + 1


def diffusion_jacobian(sde: SDE, x: Tensor, params: Tensor | None = None) -> Tensor | None:
    r""":math:`\partial\sigma_i / \partial x_j` at each of a few states, ``None`` if the diffusion is a matrix.

    :param x: ``(n, d)``.
    :return: ``(n, d, d)``.
    """
    if not callable(sde.diffusion):
        mixes = isinstance(sde.diffusion, Tensor) and sde.diffusion.dim() == 2
        return None if mixes else x.new_zeros(*x.shape, sde.event_dim)
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        _, value = sde.coefficients(x, params)
        assert isinstance(value, Tensor)
        if is_matrix(value, x):
            return None
        rows = []
        for i in range(sde.event_dim):
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value[:, i].sum(), x, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(x) if gradient is None else gradient)
    return torch.stack(rows, 1)


def _constant(diffusion: float | Tensor, event_dim: int) -> float | Tensor:
    if not isinstance(diffusion, Tensor) or diffusion.dim() == 0:
        number = float(diffusion)
        if not math.isfinite(number):
            raise ValueError(f"the diffusion must be finite, got {number}")
        return number
    _check_shape("diffusion", diffusion, [(event_dim,), (event_dim, event_dim)])
    if not bool(diffusion.isfinite().all()):
        raise ValueError("the diffusion must be finite, got a tensor with inf or NaN")
    return diffusion.detach()


def _check_shape(name: str, value: object, shapes: Sequence[Sequence[int]]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) not in [tuple(shape) for shape in shapes]:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ShapeError(f"the {name} must have shape {expected}, got {came}")
