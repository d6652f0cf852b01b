"""How the equation of a flow is integrated: fixed steps whose gradient is exact, or adaptive ones with the adjoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyro_boltzmann.exceptions import SolverError

__all__ = ["METHODS", "SolverSettings", "runge_kutta_step", "solve_adaptive", "solve_fixed"]

State = tuple[Tensor, ...]
RightHandSide = Callable[[float | Tensor, State], State]
Step = Callable[[float, float, State], State]


@dataclass(frozen=True)
class Tableau:
    r"""An explicit Runge-Kutta method of at most one earlier stage for each stage: stage i is taken at
    :math:`x + h a_i k_{i-1}`, and the step is :math:`x + h \sum_i b_i k_i`."""

    order: int
    nodes: tuple[float, ...]
    weights: tuple[float, ...]


METHODS = {
    "euler": Tableau(1, (0.0,), (1.0,)),
    "midpoint": Tableau(2, (0.0, 0.5), (0.0, 1.0)),
    "rk4": Tableau(4, (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""The fixed-step methods by name."""

MAX_ADAPTIVE_STEPS = 10_000


@dataclass(frozen=True)
class SolverSettings:
    """How a :class:`ContinuousTransform` integrates; its arguments of the same names are described there.

    :raises ValueError: for values out of range.
    """

    num_steps: int = 20
    method: str = "rk4"
    solver: str = "dto"
    checkpointed: bool = False
    rtol: float = 1e-5
    atol: float = 1e-6

    def __post_init__(self) -> None:
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"num_steps must be a positive integer, got {self.num_steps!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.solver not in ("dto", "otd"):
            raise ValueError(
                f'solver must be "dto" (fixed steps) or "otd" (adaptive steps and adjoint), got {self.solver!r}'
            )
        if not (0.0 < self.rtol < 1.0 and 0.0 < self.atol < math.inf):
            raise ValueError(f"rtol and atol must be positive, got rtol={self.rtol}, atol={self.atol}")

    @property
    def order(self) -> int:
        """The order of the fixed-step method: errors fall as this power of the step."""
        return METHODS[self.method].order

    @property
    def finer(self) -> tuple[SolverSettings, float]:
        """Settings of a better solution, and what the difference to it is multiplied by to give the error."""
        if self.solver == "otd":
            return replace(self, rtol=0.01 * self.rtol, atol=0.01 * self.atol), 1.0
        return replace(self, num_steps=2 * self.num_steps), 2.0**self.order / (2.0**self.order - 1.0)

    @property
    def description(self) -> str:
        """In words."""
        if self.solver == "otd":
            return f"adaptive steps of rtol={self.rtol:g}, atol={self.atol:g}"
        return f"{self.num_steps} {self.method} steps"

    @property
    def remedy(self) -> str:
        """What to do where they are not good enough."""
        if self.solver == "otd":
            finer = f"configure(rtol={0.1 * self.rtol:g}, atol={0.1 * self.atol:g})"
            return f"Tighten the tolerances ({finer}), and see error_estimate(x)"
        return (
            f"Take more steps (configure(num_steps={2 * self.num_steps})), and see error_estimate(x); or "
            'configure(divergence="jacobian") for weights that are exact with these steps'
        )


def runge_kutta_step(rhs: RightHandSide, method: str, t: float, h: float, state: State) -> State:
    """One step of length ``h`` (negative: back in time) from time ``t``.

    >>> step = runge_kutta_step(lambda t, s: (s[0],), "rk4", 0.0, 0.1, (torch.ones(1),))
    >>> round(float(step[0]), 4)  # exp(0.1)
    1.1052
    """
    tableau = METHODS[method]
    slope: State = ()
    total = state
    for node, weight in zip(tableau.nodes, tableau.weights, strict=True):
        at = state if node == 0.0 else tuple(x + (h * node) * k for x, k in zip(state, slope, strict=True))
        slope = rhs(t + node * h, at)
        if weight:
            total = tuple(x + (h * weight) * k for x, k in zip(total, slope, strict=True))
    return total


def solve_fixed(
    step: Step,
    state: State,
    start: float,
    end: float,
    num_steps: int,
    checkpointed_for: Sequence[nn.Parameter] | None = None,
) -> State:
    """``num_steps`` equal steps from time ``start`` to ``end``.

    :param checkpointed_for: remember the first state of each step alone, and compute the rest again in the backward
        pass, for the gradients of these parameters and of the state.
    """
    h = (end - start) / num_steps
    for k in range(num_steps):
        t = start + k * h
        if checkpointed_for is not None and torch.is_grad_enabled():
            apply: Any = _CheckpointedStep.apply
            state = apply(step, t, h, len(state), *state, *checkpointed_for)
        else:
            state = step(t, h, state)
    return state


class _CheckpointedStep(torch.autograd.Function):
    """A step without a graph of its own, at one and a half times the cost of a step with one.

    ``torch.utils.checkpoint`` gives the same gradients; but a divergence is itself a backward pass, which makes it
    compute a step anew for each of its stages: five times the cost.
    """

    @staticmethod
    def forward(ctx: Any, step: Step, t: float, h: float, num_states: int, *tensors: Tensor) -> State:
        ctx.step = (step, t, h, num_states)
        ctx.parameters = tensors[num_states:]
        ctx.save_for_backward(*tensors)
        return step(t, h, tensors[:num_states])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        step, t, h, num_states = ctx.step
        state = tuple(x.detach().requires_grad_() for x in ctx.saved_tensors[:num_states])
        with torch.enable_grad():
            after = step(t, h, state)
        found = torch.autograd.grad(after, [*state, *ctx.parameters], gradients, allow_unused=True)
        return None, None, None, None, *found


def solve_adaptive(
    rhs: RightHandSide,
    state: State,
    start: float,
    end: float,
    rtol: float,
    atol: float,
    parameters: Sequence[nn.Parameter],
) -> State:
    """Adaptive steps of Dormand and Prince; where gradients are enabled they come from the adjoint equation.

    :raises SolverError: if the steps become too many or too small, or the state is not finite at the start.
    """
    x = state[0]
    bad = ~x.isfinite().all(-1)
    if bool(bad.any()):
        raise SolverError(
            f"{int(bad.sum())} of {bad.numel()} rows are NaN or infinite where the adaptive solver starts; leave them "
            "out, or take fixed steps (solver='dto'), which return NaN for these rows alone"
        )
    if x.numel() == 0:  # no step could be chosen
        return state

    def at_fixed_times(t: Tensor, state: State) -> State:
        return rhs(t.detach(), state)  # nobody asks for the gradient of the ends

    times = torch.tensor([start, end], dtype=state[0].dtype, device=state[0].device)
    settings: dict[str, Any] = {"rtol": rtol, "atol": atol, "options": {"max_num_steps": MAX_ADAPTIVE_STEPS}}
    try:
        if torch.is_grad_enabled():
            path = torchdiffeq.odeint_adjoint(
                at_fixed_times,
                state,
                times,
                adjoint_params=tuple(parameters),
                adjoint_options={"norm": "seminorm"},
                **settings,
            )
        else:
            path = torchdiffeq.odeint(at_fixed_times, state, times, **settings)
    except AssertionError as error:
        raise SolverError(
            f"the adaptive solver gave up ({error}): some trajectories of this batch are too steep for rtol={rtol}, "
            f"atol={atol}. Loosen them, or take fixed steps (solver='dto'), which flag such trajectories one by one"
        ) from error
    return tuple(part[-1] for part in path)
