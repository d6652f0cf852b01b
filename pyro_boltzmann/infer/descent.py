"""Descent of many rows at once to the minima below them."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient

__all__ = ["descend"]

MEMORY = 8
"""Pairs of steps and gradient differences that each row remembers."""

SHRINK = 0.25
"""What a step is multiplied by that did not go down."""


@torch.no_grad()
def descend(
    energy: Energy, x: Tensor, *, tolerance: float = 1e-5, max_steps: int = 2000, max_length: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Limited-memory BFGS on every row at once: SciPy's minimises one configuration at a time.

    Each row has its own memory. A step is at most ``max_length`` long, and is taken if it lowers the energy; else a
    shorter one is tried next. Rows that have converged are no longer evaluated.

    :param x: ``(n, dim)``, in float64 for small tolerances.
    :param tolerance: of :math:`|\nabla u|`.
    :param max_steps: evaluations of each row, at most.
    :return: the ends ``(n, dim)``, their energies ``(n,)``, and whether :math:`|\nabla u|` is within the tolerance.

    Source: Liu and Nocedal, Math. Programming 45 (1989), 503; the bounded step without a line search is that of Wales
    and Doye, J. Phys. Chem. A 101 (1997), 5111.

    >>> ends, u, converged = descend(lambda x: (x - 1).pow(2).sum(-1), torch.zeros(2, 3).double())
    >>> ends[0], converged
    (tensor([1., 1., 1.], dtype=torch.float64), tensor([True, True]))
    """
    ends = x.clone()
    u_ends, gradient = energy_and_gradient(energy, ends)
    u_ends = u_ends.clone()
    finite = u_ends.isfinite() & gradient.isfinite().all(-1)
    converged = finite & (gradient.norm(dim=-1) <= tolerance)
    rows = (finite & ~converged).nonzero().squeeze(-1)
    state = _State(rows, ends[rows], u_ends[rows], gradient[rows])
    for _ in range(max_steps - 1):
        if len(state.rows) == 0:
            break
        step = state.step(max_length)
        y = state.x + step
        u, gradient = energy_and_gradient(energy, y)
        state.move(y, u, gradient, step)
        done = state.gradient.norm(dim=-1) <= tolerance
        # Steps below rounding lead nowhere.
        stuck = state.scale < 1e-12
        if bool((leaving := done | stuck).any()):
            converged[state.rows[done]] = True
            state.store(ends, u_ends, leaving)
            state.keep(~leaving)
    state.store(ends, u_ends, torch.ones_like(state.rows, dtype=torch.bool))
    return ends, u_ends, converged


class _State:
    """Rows on their way down."""

    def __init__(self, rows: Tensor, x: Tensor, u: Tensor, gradient: Tensor) -> None:
        self.rows, self.x, self.u, self.gradient = rows, x, u, gradient
        self.scale = torch.ones_like(u)
        self.steps = x.new_zeros(MEMORY, *x.shape)
        self.changes = x.new_zeros(MEMORY, *x.shape)
        self.inverse = x.new_zeros(MEMORY, len(x))
        """:math:`1 / (s \\cdot y)`; zero for memories that are empty or not convex, which then do nothing."""
        self.curvature = x.new_full((len(x),), 100.0)
        """:math:`y \\cdot y / s \\cdot y` of the last pair: the scale of the Hessian."""

    def step(self, max_length: float) -> Tensor:
        q = self.gradient.clone()
        factors = []
        for s, y, inverse in zip(self.steps, self.changes, self.inverse, strict=True):
            factor = inverse * (s * q).sum(-1)
            q -= factor.unsqueeze(-1) * y
            factors.append(factor)
        q /= self.curvature.unsqueeze(-1)
        for s, y, inverse, factor in zip(
            self.steps.flip(0), self.changes.flip(0), self.inverse.flip(0), reversed(factors), strict=True
        ):
            q += (factor - inverse * (y * q).sum(-1)).unsqueeze(-1) * s
        length = q.norm(dim=-1)
        bounded = self.scale * (max_length / length.clamp_min(1e-300)).clamp_max(1.0)
        return q.mul_(-bounded.unsqueeze(-1))

    def move(self, y: Tensor, u: Tensor, gradient: Tensor, step: Tensor) -> None:
        """Take the steps that go down, and remember them, the newest first."""
        # At the bottom energies differ by rounding alone; there the gradient decides.
        rounding = 1e-13 * (1.0 + self.u.abs())
        flat = (u - self.u).abs() <= rounding
        lower = torch.where(flat, gradient.norm(dim=-1) < self.gradient.norm(dim=-1), u < self.u)
        taken = lower & u.isfinite() & gradient.isfinite().all(-1)
        change = gradient - self.gradient
        product = (step * change).sum(-1)
        convex = taken & (product > 1e-12 * step.norm(dim=-1) * change.norm(dim=-1))
        for memory, new in ((self.steps, step), (self.changes, change), (self.inverse, 1.0 / product)):
            shifted = torch.cat([new.unsqueeze(0), memory[:-1]])
            wide = convex if memory.dim() == 2 else convex.unsqueeze(-1)
            memory.copy_(torch.where(wide, shifted, memory))
        self.curvature = torch.where(convex, change.square().sum(-1) / product, self.curvature)
        self.x = torch.where(taken.unsqueeze(-1), y, self.x)
        self.u = torch.where(taken, u, self.u)
        self.gradient = torch.where(taken.unsqueeze(-1), gradient, self.gradient)
        self.scale = torch.where(taken, 1.0, SHRINK * self.scale)

    def store(self, ends: Tensor, u_ends: Tensor, which: Tensor) -> None:
        ends[self.rows[which]], u_ends[self.rows[which]] = self.x[which], self.u[which]

    def keep(self, which: Tensor) -> None:
        for name in ("rows", "x", "u", "gradient", "scale", "curvature"):
            setattr(self, name, getattr(self, name)[which])
        for name in ("steps", "changes", "inverse"):
            setattr(self, name, getattr(self, name)[:, which])
