"""How a flow map is put together: conditions, the chain of maps, and the constants that data give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde.boundaries import Absorbing, Boundary, Clamped, Periodic
from pyro_boltzmann.sde.drift_path import drift_path, marked_steps
from pyro_boltzmann.sde.exit_head import ExitHead
from pyro_boltzmann.sde.linear_path import LinearPath
from pyro_boltzmann.sde.local_scale import LocalScale
from pyro_boltzmann.sde.start_features import StartFeatures, TimeFeatures
from pyro_boltzmann.sde.training_domain import TrainingDomain
from pyro_boltzmann.sde.walls import Preimages, Walls
from pyro_boltzmann.transforms.spline_couplings import SplineCouplings

__all__ = ["FlowMapBase", "Start", "Transitions"]

_NEAR, _FEWEST_NEAR = 0.02, 20
"""Share of the states off a clamped end that tell the density at it, and the fewest that do."""


class Transitions(Protocol):
    """Ends of trajectories: ``x0`` and ``state`` ``(n, d)``, ``time`` a number or ``(n,)``, ``exited`` ``(n,)`` or
    ``None``, ``params`` ``(n, param_dim)`` or ``None``."""

    @property
    def x0(self) -> Tensor: ...
    @property
    def time(self) -> Any: ...
    @property
    def state(self) -> Tensor: ...
    @property
    def exited(self) -> Tensor | None: ...
    @property
    def params(self) -> Tensor | None: ...


class Start(NamedTuple):
    """What a flow map derives from initial states, times and parameters, whatever the final state.

    :ivar x0: ``(*batch, d)``.
    :ivar scale: diffusion lengths, ``(*batch, d)``.
    :ivar shift: of the linear path, ``(*batch, d)``.
    :ivar lower: of the linear path, ``(*batch, d, d)`` or ``(d, d)``.
    :ivar embedding: ``(*batch, width)``.
    :ivar terms: of the couplings.
    :ivar ratios: distances to absorbing ends in units of the noise, ``(*batch, K)``; ``None`` without diffusion.
    :ivar centre: mean of the latent, ``(*batch, d)``; zero unless :meth:`FlowMap.recentre` was called.
    """

    x0: Tensor
    scale: Tensor
    shift: Tensor
    lower: Tensor
    embedding: Tensor
    terms: list[Tensor]
    ratios: Tensor | None = None
    centre: Tensor | float = 0.0


class FlowMapBase(nn.Module):
    """The parts of a :class:`FlowMap`, which documents the settings."""

    scale_unit: Tensor
    atom_scale: Tensor
    centre_slope: Tensor
    centre_offset: Tensor

    def __init__(
        self,
        event_dim: int,
        time: float | tuple[float, float],
        *,
        drift: Callable[..., Tensor] | None = None,
        diffusion: float | Tensor | Callable[..., Tensor] | None = None,
        boundaries: Sequence[Boundary] = (),
        periods: Sequence[float | None] | None = None,
        param_dim: int = 0,
        width: int = 128,
        coupling_width: int = 64,
        num_layers: int | None = None,
        num_bins: int = 8,
        harmonics: int = 2,
        drift_steps: int = 8,
        num_images: int = 2,
        dropout: float = 0.0,
        outside: str = "raise",
    ) -> None:
        super().__init__()
        shortest, longest = (time, time) if isinstance(time, int | float) else time
        if not (0.0 < shortest <= longest < math.inf):
            raise ValueError(f"time must be positive, or (low, high) with 0 < low <= high, got {time}")
        if outside not in ("raise", "warn"):
            raise ValueError(f'outside must be "raise" or "warn", got {outside!r}')
        if event_dim < 1 or param_dim < 0 or harmonics < 1:
            raise ValueError(
                f"expected event_dim >= 1, param_dim >= 0 and harmonics >= 1, got {event_dim}, {param_dim}, {harmonics}"
            )
        self.event_dim, self.param_dim, self.outside = event_dim, param_dim, outside
        self.times = (float(shortest), float(longest))
        self.drift_steps = drift_steps
        self._drift = (drift,)  # a tuple keeps a module out of the module tree
        self.walls = Walls(boundaries, event_dim, num_images=num_images)
        marks = [] if drift is None else marked_steps(drift_steps)
        self.local: LocalScale | None = None
        if diffusion is not None:
            self.local = LocalScale(diffusion, event_dim, self.walls, [mark / drift_steps for mark in marks])
        self.periods = _periods(periods, boundaries, event_dim)
        time_features = TimeFeatures(longest, is_fixed=shortest == longest)
        self.features = StartFeatures(
            event_dim,
            self.walls,
            self.periods,
            time_features,
            param_dim=param_dim,
            harmonics=harmonics,
            num_points=len(marks),
        )
        periodic = [i for i, period in enumerate(self.periods) if period is not None]
        ends = [self.walls.domain(i) for i in range(event_dim)]
        self.domain = TrainingDomain(event_dim, self.times, param_dim, periodic, ends=ends)
        self.linear = LinearPath(self.features.num_linear, event_dim, time_features.num_features)
        self.embed = nn.Sequential(
            nn.Linear(self.features.num_features, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.couplings = SplineCouplings(
            event_dim, width, num_layers=num_layers, width=coupling_width, num_bins=num_bins, dropout=dropout
        )
        self.exit: ExitHead | None = None
        if any(isinstance(boundary, Absorbing) for boundary in boundaries):
            self.exit = ExitHead(width, 0 if self.local is None else len(self.local.ends))
        self.register_buffer("scale_unit", torch.ones(event_dim))
        self.register_buffer("atom_scale", torch.zeros(event_dim))
        self.register_buffer("centre_slope", torch.zeros(event_dim, width))
        self.register_buffer("centre_offset", torch.zeros(event_dim))

    @torch.no_grad()
    def standardise(self, data: Transitions, *, margin: float = 0.02) -> None:
        """Become the affine fit to data: take scales, linear path, share of exits and training domain from them.

        The state dict has them all. What the couplings had learned is forgotten.

        :param margin: by which the ranges of the data are widened to the training domain, as a share of their widths.
        :raises ShapeError: if the data do not fit the map.
        :raises ValueError: if times lie outside those of the map, fewer than two trajectories have stayed, or the
            deterministic flow overflows.
        """
        x0, t, params = self.arguments(data.x0, data.time, data.params)
        shortest, longest = self.domain.times
        if not bool(((t >= shortest) & (t <= longest)).all()):
            raise ValueError(
                f"the map is for times in {list(self.times)}, the data have times from {float(t.min()):.6g} to "
                f"{float(t.max()):.6g}; build it with FlowMap(..., time=(low, high))"
            )
        features = self.features
        features.x_mean.copy_(x0.mean(0))
        features.x_scale.copy_(_positive_std(x0))
        if params is not None:
            features.param_mean.copy_(params.mean(0))
            features.param_scale.copy_(_positive_std(params))
        self.domain.margin = margin
        self.domain.observe(x0, t, params)
        stayed = torch.ones_like(x0[:, 0], dtype=torch.bool) if data.exited is None else ~data.exited
        if int(stayed.sum()) < 2:
            raise ValueError("a flow map needs at least two trajectories that have not exited to learn from")
        root = (t / self.times[1]).sqrt().unsqueeze(-1).expand(len(x0), 1)
        change = self.change(data.state, x0)[stayed] / root[stayed]
        self.scale_unit.copy_(_positive_std(change))
        self._observe_atoms(data.state[stayed])
        path = self.path(x0, t, params)
        lost = float((~path.isfinite().flatten(1).all(-1)).double().mean())
        if lost > 0.0:
            raise ValueError(
                f"the deterministic flow of the drift overflows from {lost:.3%} of the initial states with "
                f"drift_steps={self.drift_steps}: the drift is too stiff for them; take more steps, or drift=None"
            )
        if self.local is not None:
            self.local.observe(x0, t, params, path)
        scale, _ = self.lengths(x0, t, params, path)
        linear = features.linear(x0, params, path, scale)[stayed]
        self.couplings.reset()
        self.centre_slope.zero_()
        self.centre_offset.zero_()
        self.linear.regress(linear, self.change(data.state, x0)[stayed] / scale[stayed])
        if self.exit is not None and data.exited is not None:
            self.exit.reset((float(data.exited.sum()) + 0.5) / (len(x0) + 1.0))

    def _observe_atoms(self, state: Tensor) -> None:
        r"""Lengths on the far side of clamped ends such that the density of u does not jump there: a mass m on an end,
        spread as :math:`\delta\,\mathrm{Exp}(1)`, has the density :math:`m / \delta` at it, and on the near side it is
        that of the data that are closest."""
        self.atom_scale.zero_()
        for index, fold in self.walls.folds.items():
            if not isinstance(fold, Clamped):
                continue
            column = state[:, index]
            gaps = [column - fold.low] if fold.low is not None else []
            gaps += [fold.high - column] if fold.high is not None else []
            gap = torch.stack(gaps).amin(0)
            free = gap[gap > 0.0].sort().values
            mass = 1.0 - len(free) / len(gap)
            nearest = max(_FEWEST_NEAR, round(_NEAR * len(free)))
            if mass > 0.0 and len(free) >= nearest:
                near = float(free[nearest - 1]) * len(gap) / nearest  # one over the density at the end
                self.atom_scale[index] = mass * near

    def lengths(self, x0: Tensor, t: Tensor, params: Tensor | None, path: Tensor) -> tuple[Tensor, Tensor | None]:
        r"""Diffusion lengths :math:`\delta` ``(*batch, d)``, and ratios as in :class:`Start`.

        Without a diffusion, :math:`\delta = \delta_{\bar t} \sqrt{t / \bar t}`, the standard deviation of the
        increments of the data; with one, that of the noise along the path, where it is less (:class:`LocalScale`).
        """
        whole = self.scale_unit * (t / self.times[1]).sqrt().unsqueeze(-1)
        if self.local is None:
            return whole.expand(x0.shape), None
        local: tuple[Tensor, Tensor] = self.local(x0, t.expand(x0.shape[:-1]), params, path, whole)
        return local

    def change(self, y: Tensor, x0: Tensor) -> Tensor:
        """From the initial to the final state, the short way round where states are wrapped."""
        change = y - x0
        for index, fold in self.walls.folds.items():
            if isinstance(fold, Periodic):
                period = self.periods[index]
                assert period is not None
                change = change.index_copy(
                    -1,
                    torch.tensor([index], device=y.device),
                    change[..., [index]] - period * (change[..., [index]] / period).round(),
                )
        return change

    def start(self, x0: Tensor, time: float | Tensor, params: Tensor | None = None) -> Start:
        """What the map derives from the conditions; the training domain is checked."""
        x0, t, params = self.arguments(x0, time, params)
        self.domain.check(x0, t, params, self.outside)
        return self.unchecked_start(x0, t, params)

    def unchecked_start(self, x0: Tensor, t: Tensor, params: Tensor | None, path: Tensor | None = None) -> Start:
        """The same for what :meth:`arguments` returned; ``path`` saves the deterministic flow."""
        batch = x0.shape[:-1]
        path = self.path(x0, t, params) if path is None else path
        scale, ratios = self.lengths(x0, t, params, path)
        embedding = self.embed(self.features(x0, t.expand(batch), params, path, scale))
        centre = embedding @ self.centre_slope.T + self.centre_offset
        # Where one time is for all rows, one matrix is too.
        shift, lower = self.linear.coefficients(self.features.linear(x0, params, path, scale), self.features.time(t))
        return Start(x0, scale, shift, lower, embedding, self.couplings.context_terms(embedding), ratios, centre)

    def arguments(
        self, x0: Tensor, time: float | Tensor, params: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Initial states ``(*batch, d)`` and parameters, broadcast to one batch, and times ``()`` or ``(*batch)``.

        :raises ShapeError: if they do not fit the map.
        """
        self.check_state(x0, "initial states")
        t = torch.as_tensor(time, dtype=x0.dtype, device=x0.device)
        if (params is None) != (self.param_dim == 0) or (params is not None and params.shape[-1] != self.param_dim):
            came = None if params is None else tuple(params.shape)
            raise ShapeError(f"params must have shape (*batch, {self.param_dim}) (None if 0), got {came}")
        batch = torch.broadcast_shapes(x0.shape[:-1], t.shape, () if params is None else params.shape[:-1])
        if params is not None:
            params = params.expand(*batch, self.param_dim)
        return x0.expand(*batch, self.event_dim), t if t.dim() == 0 else t.expand(batch), params

    def check_state(self, x: Tensor, name: str = "states") -> None:
        """:raises ShapeError: unless ``x`` is ``(*batch, d)`` in the precision of the map."""
        if x.dim() < 1 or x.shape[-1] != self.event_dim:
            raise ShapeError(f"{name} must have shape (*batch, {self.event_dim}), got {tuple(x.shape)}")
        if x.dtype != self.scale_unit.dtype:
            raise ShapeError(
                f"the map computes in {self.scale_unit.dtype}, but {name} are {x.dtype}; convert them, or the map with "
                ".double() or .float()"
            )

    def path(self, x0: Tensor, t: Tensor, params: Tensor | None) -> Tensor:
        """Points of the deterministic flow ``(*batch, points, d)``, the last at t; for a map without drift,
        :math:`x_0`."""
        drift = self._drift[0]
        if drift is None:
            return x0.unsqueeze(-2)
        return drift_path(drift, x0, t.expand(x0.shape[:-1]), params, self.walls, self.drift_steps)

    # The chain z -> w -> u -> y ---------------------------------------------------------------------------------

    def free_state(self, z: Tensor, start: Start) -> Tensor:
        """From the standard normal to u, the state before the walls; ``(*shape, d)``."""
        w, _ = self.couplings(z + start.centre, start.terms)
        u, _ = self.linear(w, start.shift, start.lower)
        state: Tensor = start.x0 + start.scale * u
        return state

    def base(self, u: Tensor, start: Start) -> tuple[Tensor, Tensor]:
        """From u back to the standard normal, with the log-determinant."""
        w, ladj_linear = self.linear.inverse((u - start.x0) / start.scale, start.shift, start.lower)
        z, ladj = self.couplings.inverse(w, start.terms)
        return z - start.centre, ladj + ladj_linear - start.scale.log().sum(-1)

    def free_density(self, u: Tensor, start: Start) -> Tensor:
        """The log-density of u, ``(*shape, d)`` to ``(*shape)``."""
        z, ladj = self.base(u, start)
        log_prob: Tensor = ladj - 0.5 * z.square().sum(-1) - 0.5 * self.event_dim * math.log(2.0 * math.pi)
        return log_prob

    def density(self, y: Tensor, start: Start, *, dequantised: bool = False) -> Tensor:
        """The log-density of the state of survivors, ``(*shape, d)`` to ``(*shape)``."""
        preimages = self.preimages(y, start, dequantised=dequantised)
        terms = self.free_density(preimages.u, start) + preimages.log_weight
        return terms[0] if len(terms) == 1 else terms.logsumexp(0)

    def preimages(self, y: Tensor, start: Start, *, dequantised: bool = False) -> Preimages:
        """What u may be for states ``(*shape, d)``; see :meth:`Walls.unfold`."""
        return self.walls.unfold(y, start.scale, dequantised=dequantised, beyond=self._beyond(start))

    def dequantise(self, y: Tensor, start: Start) -> Tensor:
        """States on clamped ends spread beyond them; see :meth:`Walls.dequantise`."""
        return self.walls.dequantise(y, self._beyond(start))

    def _beyond(self, start: Start) -> Tensor:
        """Over short times the diffusion length, which depends on the initial state, is the better one."""
        return torch.where(self.atom_scale > 0.0, torch.minimum(self.atom_scale, start.scale), start.scale)

    def fold(self, u: Tensor, start: Start) -> Tensor:
        """From u to the state, ``(*shape, d)``."""
        return self.walls.fold(u, start.scale)

    def logits(self, start: Start) -> Tensor:
        """Of the exit, ``(*batch)``; minus infinity without absorbing boundaries."""
        if self.exit is None:
            return start.embedding.new_full(start.embedding.shape[:-1], -math.inf)
        logits: Tensor = self.exit(start.embedding, start.ratios)
        return logits


def _periods(
    periods: Sequence[float | None] | None, boundaries: Sequence[Boundary], event_dim: int
) -> list[float | None]:
    result: list[float | None] = [None] * event_dim if periods is None else list(periods)
    if len(result) != event_dim or not all(period is None or period > 0.0 for period in result):
        raise ValueError(f"periods must be {event_dim} positive numbers or None, got {periods}")
    for boundary in boundaries:
        if isinstance(boundary, Periodic):
            assert boundary.low is not None and boundary.high is not None
            result[boundary.index] = boundary.high - boundary.low
        elif result[boundary.index] is not None:
            raise ValueError(f"coordinate {boundary.index} has a period and {boundary}; drop one of them")
    return result


def _positive_std(x: Tensor) -> Tensor:
    """Standard deviation of each column, one for columns that do not vary."""
    std = x.std(0)
    return torch.where(std > 0.0, std, torch.ones_like(std))
