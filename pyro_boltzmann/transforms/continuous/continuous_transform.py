"""Continuous flows: the bijection that a velocity field makes of its points between the times 0 and 1."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pyro_boltzmann.energies.tracing import is_tracing
from pyro_boltzmann.exceptions import ShapeError, SolverError
from pyro_boltzmann.transforms.continuous.divergence import (
    Hutchinson,
    exact_divergence,
    hutchinson_divergence,
    value_and_jacobian,
)
from pyro_boltzmann.transforms.continuous.network_field import NetworkField
from pyro_boltzmann.transforms.continuous.solvers import (
    SolverSettings,
    State,
    Step,
    runge_kutta_step,
    solve_adaptive,
    solve_fixed,
)
from pyro_boltzmann.transforms.fused import FusedTransform

__all__ = ["ContinuousTransform", "SolverErrors"]

LOG_DENSITY_TOLERANCE = 0.01
"""Errors of the log-density above this matter: the mean error shifts log Z, by more than the standard error that 10,000
draws with an ESS of one half have. Their variance multiplies the ESS by exp(-variance), which is the smaller harm."""
CHECKED_ROWS = 64
ROWS_WORTH_A_CHECK = 1000
BLOCK = 2**13
"""Numbers in the states that are integrated at a time where no graph is kept, or in their Jacobians where these come
from autograd: with more of them networks of 13 particles leave the cache and take up to twice as long."""
FEWEST_ROWS, FEWEST_JACOBIANS = 32, 8

Dynamics = Callable[[float | Tensor, Tensor], tuple[Tensor, Tensor]]


class SolverErrors(NamedTuple):
    """Estimated errors of a solution, computed minus exact.

    :ivar state: the norm of the error of the end state, ``(*batch)``.
    :ivar log_det: the error of the log-determinant, ``(*batch)``.
    """

    state: Tensor
    log_det: Tensor

    @property
    def rms_log_det(self) -> float:
        """The root mean square of ``log_det``: an upper bound of what it shifts log Z by, to first order."""
        return float(self.log_det.double().square().mean().sqrt())

    @property
    def ess_factor(self) -> float:
        """What the errors multiply the effective sample size of importance weights by, if they are independent of the
        weights and normal: exp(-variance)."""
        return float((-self.log_det.double().var(correction=0)).exp())


class ContinuousTransform(FusedTransform):
    r"""The flow of a velocity field,

    .. math:: \frac{dx}{dt} = v(t, x), \qquad \log |\det \partial x(1) / \partial x(0)| = \int_0^1 \nabla \cdot v \, dt,

    from :math:`x(0)`, a draw of the base, to :math:`x(1)`. The inverse integrates backwards. Both are inverse to each
    other, and the log-determinant is right, up to the error of the solver only: :meth:`error_estimate` tells it, and
    large batches without a graph (the draws of :func:`~pyro_boltzmann.importance_sample`) are checked on a few rows
    after each change of the parameters, with a warning where log-densities are off by more than 0.01.

    Two ways to integrate. ``"dto"``, discretise then optimise: a fixed number of Runge-Kutta steps, whose gradient is
    that of the discrete map, exactly. ``"otd"``, optimise then discretise: adaptive steps of Dormand and Prince, whose
    gradient comes from the adjoint equation, in constant memory. Train with the first; :meth:`configure` changes any of
    this later, so that a trained flow can be evaluated with more steps or with the second.

    Trajectories that leave the range of floats come back as NaN with a warning; ``importance_sample`` gives them weight
    zero and counts them as diverged. The adaptive solver raises instead.

    :param field: a :class:`VelocityField`, or any module ``(t, x) -> velocity``.
    :param dim: the size of x.
    :param num_steps: of ``"dto"``.
    :param method: of ``"dto"``: ``"rk4"``, ``"midpoint"`` or ``"euler"``.
    :param solver: ``"dto"`` or ``"otd"``.
    :param divergence: ``"exact"``: the field's own, in closed form where it has one. ``"autograd"``: the trace of the
        Jacobian from autograd, whatever the field knows. ``"jacobian"``, for ``"dto"``: no divergence but the
        log-determinant of each discrete step's Jacobian, at the price of ``"autograd"``: exact for the map that is
        computed, so that weights of draws are exact for any number of steps that are injective; rows where the
        determinant of a step is not positive come back as NaN. ``"hutchinson"`` or a :class:`Hutchinson`: an unbiased
        estimate where a graph is recorded, that is in training, for losses linear in it such as reverse and forward
        KL. Without a graph the exact divergence is taken: importance weights must not be made of noise, whose
        exponential is biased.
    :param checkpointed: remember one state for each step of ``"dto"`` and compute the rest again in the backward pass.
        As with the adjoint, gradients then reach x and the field's parameters, once differentiable.
    :param rtol: relative tolerance of ``"otd"``, like ``atol``, the absolute one, for the root mean square of a batch.
    :param checked: whether large batches are checked.
    :raises ValueError: for unknown names or numbers out of range.
    :raises TypeError: if the field is no module.
    :raises ShapeError: if the field has another dimension, or returns another shape than it got.

    Source: Chen et al., arXiv 1806.07366, theorem 1 and section 2; Onken and Ruthotto, arXiv 2005.13420, on the two
    orders of discretising.

    >>> class Pull(nn.Module):
    ...     def forward(self, t, x):
    ...         return -x
    >>> with torch.no_grad():
    ...     ContinuousTransform(Pull(), 2).call_and_ladj(torch.ones(1, 2))  # exp(-1) and -2
    (tensor([[0.3679, 0.3679]]), tensor([-2.0000]))
    """

    def __init__(
        self,
        field: nn.Module,
        dim: int,
        num_steps: int = 20,
        *,
        method: str = "rk4",
        solver: str = "dto",
        divergence: str | Hutchinson = "exact",
        checkpointed: bool = False,
        rtol: float = 1e-5,
        atol: float = 1e-6,
        checked: bool = True,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        if not isinstance(field, nn.Module):
            raise TypeError(f"field must be a module (t, x) -> velocity, got {type(field).__name__}")
        known = getattr(field, "dim", None)
        if dim < 1 or known not in (None, dim):
            raise ShapeError(f"the field {type(field).__name__} works in dimension {known}, the transform in {dim}")
        self.width = int(dim)
        self.field = field
        self.checked = checked
        self._checked_keys: dict[float, Any] = {}
        self._has_warned = False
        self.configure(
            num_steps=num_steps,
            method=method,
            solver=solver,
            checkpointed=checkpointed,
            rtol=rtol,
            atol=atol,
            divergence=divergence,
        )

    def configure(self, *, divergence: str | Hutchinson | None = None, **settings: Any) -> Self:
        """Change how the equation is integrated: any of the constructor's arguments on that, by name.

        :raises ValueError: for unknown names or numbers out of range, or ``"jacobian"`` with ``"otd"``.
        :raises TypeError: for other arguments.
        """
        changed = replace(getattr(self, "settings", SolverSettings()), **settings)
        chosen = getattr(self, "divergence", "exact") if divergence is None else divergence
        chosen = Hutchinson() if chosen == "hutchinson" else chosen
        if not isinstance(chosen, Hutchinson) and chosen not in ("exact", "autograd", "jacobian"):
            raise ValueError(
                'divergence must be "exact", "autograd", "jacobian", "hutchinson" or a Hutchinson(...), got '
                f"{divergence!r}"
            )
        if chosen == "jacobian" and changed.solver == "otd":
            raise ValueError('divergence="jacobian" is that of fixed steps; take solver="dto" or divergence="exact"')
        self.settings, self.divergence = changed, chosen
        self._checked_keys = {}
        self.clear_cache()
        return self

    @property
    def num_steps(self) -> int:
        """Steps of ``"dto"``."""
        return self.settings.num_steps

    # The bijection -----------------------------------------------------------------------------------------------

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._flow(x, 0.0, 1.0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._flow(y, 1.0, 0.0)

    def _flow(self, x: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        own = next((p.dtype for p in self.field.parameters() if p.is_floating_point()), x.dtype)
        if x.dtype != own:
            raise ShapeError(
                f"the field {type(self.field).__name__} computes in {own}, but points are {x.dtype}; convert them, or "
                "the flow with .double() or .float()"
            )
        if torch.is_grad_enabled():
            return self._flagged(*self._solve(x, start, end, self.settings))
        y, ladj = self._solve_by_blocks(x, start, end, self.settings)
        self._check(x, ladj, start, end)
        return self._flagged(y, ladj)

    def _solve_by_blocks(self, x: Tensor, start: float, end: float, settings: SolverSettings) -> tuple[Tensor, Tensor]:
        """Without a graph: a divergence from autograd takes ``dim`` times the memory of the velocity."""
        size = max(FEWEST_ROWS, BLOCK // self.width)
        if settings.solver == "dto" and self._takes_jacobians:
            size = max(FEWEST_JACOBIANS, BLOCK // self.width**2)
        blocks = [self._solve(rows, start, end, settings) for rows in x.reshape(-1, self.width).split(size)]
        y, ladj = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return y.reshape(x.shape), ladj.reshape(x.shape[:-1])

    def _solve(self, x: Tensor, start: float, end: float, settings: SolverSettings) -> tuple[Tensor, Tensor]:
        state = (x, x.new_zeros(x.shape[:-1]))
        dynamics = self._dynamics(x)

        def rhs(t: float | Tensor, state: State) -> State:
            return dynamics(t, state[0])

        parameters = [p for p in self.field.parameters() if p.requires_grad]
        if settings.solver == "otd":
            y, ladj = solve_adaptive(rhs, state, start, end, settings.rtol, settings.atol, parameters)
            return y, ladj
        step: Step = partial(runge_kutta_step, rhs, settings.method)
        if self.divergence == "jacobian":
            step = partial(_step_with_jacobian, self._velocity, settings.method)
        kept = parameters if settings.checkpointed else None
        y, ladj = solve_fixed(step, state, start, end, settings.num_steps, kept)
        return y, ladj

    @property
    def _takes_jacobians(self) -> bool:
        is_automatic = isinstance(self.field, NetworkField) or not hasattr(self.field, "velocity_and_divergence")
        return is_automatic or self.divergence in ("autograd", "jacobian")

    def _velocity(self, t: float | Tensor, x: Tensor) -> Tensor:
        velocity: Tensor = self.field(t, x)
        if velocity.shape != x.shape:
            raise ShapeError(
                f"the field {type(self.field).__name__} returned velocities of shape {tuple(velocity.shape)} for "
                f"points of shape {tuple(x.shape)}; they must agree"
            )
        return velocity

    def _dynamics(self, x: Tensor) -> Dynamics:
        """Velocity and divergence, or its estimate with noise that belongs to this solve."""
        if isinstance(self.divergence, Hutchinson) and torch.is_grad_enabled():
            noise = self.divergence.draw(x)
            return lambda t, x: hutchinson_divergence(partial(self._velocity, t), x, noise)
        own = getattr(self.field, "velocity_and_divergence", None)
        if own is None or self.divergence == "autograd":
            return lambda t, x: exact_divergence(partial(self._velocity, t), x)
        return own  # type: ignore[no-any-return]

    # Its errors --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def error_estimate(self, x: Tensor, *, inverse: bool = False) -> SolverErrors:
        r"""Estimated errors of this solution at each row, by doubling the steps: with a method of order p,

        .. math:: y_n - y_\infty \approx \frac{2^p}{2^p - 1} (y_n - y_{2n}),

        for end state and log-determinant alike. For the adaptive solver, the difference to a solution with a hundredth
        of its tolerances. The log-density of given points (``inverse``) is off by about as much. The weight of a draw
        is off by less, since what was drawn comes from the discrete map and not from the flow: by the distance to
        :meth:`discrete_log_det`, and with ``divergence="jacobian"`` not at all.

        :param x: ``(*batch, dim)``, start states; end states with ``inverse``.
        """
        self.check_width(x)
        finer, factor = self.settings.finer
        start, end = (1.0, 0.0) if inverse else (0.0, 1.0)
        y, ladj = self._solve_by_blocks(x, start, end, self.settings)
        y_finer, ladj_finer = self._solve_by_blocks(x, start, end, finer)
        return SolverErrors((factor * (y - y_finer)).norm(dim=-1), factor * (ladj - ladj_finer))

    def discrete_log_det(self, x: Tensor) -> Tensor:
        r""":math:`\log|\det|` of the map that is computed, ``(*batch)``, rather than of the flow that it approximates:
        from the Jacobian of all steps together, at a cost in memory that suits tests and small batches.

        :raises ValueError: for ``"otd"``, whose steps depend on the batch.

        >>> class Pull(nn.Module):
        ...     def forward(self, t, x):
        ...         return -x
        >>> coarse = ContinuousTransform(Pull(), 1, num_steps=4, method="euler")
        >>> float(coarse.discrete_log_det(torch.ones(1, 1)))  # 4 log(3/4), where the flow has -1
        -1.150728...
        """
        self.check_width(x)
        if self.settings.solver == "otd":
            raise ValueError('adaptive steps make no map of each row alone; configure(solver="dto") first')
        jacobian = value_and_jacobian(lambda x: self._solve(x, 0.0, 1.0, self.settings)[0], x)[1]
        log_det: Tensor = torch.linalg.slogdet(jacobian).logabsdet
        return log_det

    def _check(self, x: Tensor, ladj: Tensor, start: float, end: float) -> None:
        """Warn where log-densities are off, judged on a few rows: by half as many steps, or where there is no half and
        for the adaptive solver by a finer solution."""
        if not self.checked or self._is_discrete or ladj.numel() < ROWS_WORTH_A_CHECK or is_tracing():
            return
        key = self._cache_key()[1]
        if key == self._checked_keys.get(start):
            return
        self._checked_keys[start] = key
        every = ladj.numel() // CHECKED_ROWS
        rows, found = x.reshape(-1, self.width)[::every], ladj.flatten()[::every]
        good = found.isfinite() & rows.isfinite().all(-1)
        rows, found = rows[good], found[good]
        if not len(rows):
            return
        settings = self.settings
        coarse = settings.num_steps // 2
        if settings.solver == "dto" and coarse:
            rough = self._solve(rows, start, end, replace(settings, num_steps=coarse))[1]
            error = (rough - found) / ((settings.num_steps / coarse) ** settings.order - 1.0)
        else:
            finer, factor = settings.finer
            try:
                error = factor * (found - self._solve(rows, start, end, finer)[1])
            except SolverError:
                error = torch.full_like(found, torch.inf)
        # A row that only the other solution loses is off by more than can be told.
        rms = float(error.double().nan_to_num(nan=torch.inf).square().mean().sqrt())
        if rms > LOG_DENSITY_TOLERANCE:
            warnings.warn(
                f"log-densities of this continuous flow are off by about {rms:.2g} with {settings.description}; "
                f"weights, log Z and its error may be wrong by as much. {settings.remedy}",
                UserWarning,
                stacklevel=5,
            )

    @property
    def _is_discrete(self) -> bool:
        """Whether log-determinants are those of the discrete map, which no check concerns."""
        return self.settings.solver == "dto" and self.divergence == "jacobian"

    def _flagged(self, y: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        """NaN in all of a row and its log-determinant, where one of them is not finite."""
        if is_tracing() or bool((y.detach().sum() + ladj.detach().sum()).isfinite()):
            return y, ladj
        bad = ~(y.isfinite().all(-1) & ladj.isfinite())
        if bool(bad.any()) and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{int(bad.sum())} of {bad.numel()} trajectories left the range of floats and come back as NaN: the "
                f"field is too steep for {self.settings.num_steps} {self.settings.method} steps. Take more steps, or a "
                "lower learning rate",
                UserWarning,
                stacklevel=4,
            )
        return torch.where(bad.unsqueeze(-1), torch.nan, y), torch.where(bad, torch.nan, ladj)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_checked_keys": {}}


def _step_with_jacobian(
    velocity: Callable[[float | Tensor, Tensor], Tensor], method: str, t: float, h: float, state: State
) -> State:
    """One step, with the log-determinant of its own Jacobian; NaN where a step turns the space inside out."""

    def rhs(t: float | Tensor, state: State) -> State:
        return (velocity(t, state[0]),)

    x, ladj = state
    y, jacobian = value_and_jacobian(lambda x: runge_kutta_step(rhs, method, t, h, (x,))[0], x)
    sign, step_ladj = torch.linalg.slogdet(jacobian)
    return y, ladj + torch.where(sign > 0, step_ladj, torch.nan)
