"""An exactly invertible conditional flow in place of an SDE's integration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Generator, Tensor
from torch.nn import functional

from pyro_boltzmann.sde.flow_map_base import FlowMapBase, Transitions

if TYPE_CHECKING:
    from pyro_boltzmann.sde.flow_map_program import FlowMapProgram
    from pyro_boltzmann.sde.flow_map_transition import FlowMapTransition
    from pyro_boltzmann.sde.pushing import MarginalLogProb, Pushed

__all__ = ["FlowMap", "Mass", "RoundTrip"]


class RoundTrip(NamedTuple):
    """What came back from a state's way to the latent and back ``(*batch, d)``, and the largest error of each row in
    units of the diffusion length ``(*batch)``."""

    state: Tensor
    error: Tensor


class Mass(NamedTuple):
    """An estimate of a total mass and its standard error, ``(*batch)``."""

    value: Tensor
    std_error: Tensor


class FlowMap(FlowMapBase):
    r"""The law of the state of an SDE at time t given its initial state, :math:`p_t(y \mid x_0, c)`, as one bijection,

    .. math::
        y = \mathrm{fold}\bigl(x_0 + \delta(t)\,[\mu(x_0, t, c) + L(t)\, F(z;\ x_0, t, c)]\bigr), \qquad
        z \sim \mathcal N(0, I), \qquad \delta(t) = \delta_{\bar t}\,\sqrt{t / \bar t} .

    :math:`\mu` is affine in :math:`x_0`, c and, if the drift is given, points of its deterministic flow
    (:class:`LinearPath`: exact for Gaussian laws, and for short times), F is a chain of
    :class:`~pyro_boltzmann.transforms.SplineCouplings`, the identity at first, and *fold* brings the result into the
    domain (:class:`Walls`). With the diffusion, :math:`\delta` is local. So the density is normalised and positive,
    and samples and density are those of one law. Where trajectories end on absorbing boundaries, a second head gives
    :math:`P(\text{exit} \mid x_0, t, c)`, and y is the state of the survivors.

    Train it with :func:`~pyro_boltzmann.infer.fit_flow_map`. Questions outside the ranges of the training data are
    refused; with ``outside="warn"`` they are answered with an :class:`OutsideDomainWarning`, and :meth:`is_outside`
    tells which rows.

    :param event_dim: the dimension d of the state.
    :param time: the time of all transitions, or ``(low, high)`` for a map of every time in between.
    :param drift: ``drift(x)``, or ``drift(x, c)`` with ``param_dim > 0``; a module's parameters are not trained.
    :param diffusion: a number, ``(d,)``, ``(d, d)`` or a function like the drift. Where it is given, the widths
        :math:`\delta` follow it (:class:`LocalScale`), and the exit head starts from the odds of Brownian motion
        (:class:`ExitHead`).
    :param boundaries: of the SDE.
    :param periods: for each coordinate, the period of the *law of the increment* as a function of :math:`x_0`, or
        ``None``: for periodic drifts whose states are not wrapped. Coordinates with a :class:`Periodic` boundary have
        that one.
    :param param_dim: dimension of the parameters c.
    :param width: of the network that embeds :math:`(x_0, t, c)`.
    :param coupling_width: of the couplings' networks.
    :param num_layers: couplings; by default two rounds over the coordinates.
    :param num_bins: of each spline.
    :param harmonics: of the periodic features.
    :param drift_steps: Runge-Kutta steps of the deterministic flow.
    :param num_images: copies of the domain on each side between two mirrors: see :class:`Walls`.
    :param dropout: share of hidden units left out in training.
    :param outside: ``"raise"`` or ``"warn"``.
    :raises ValueError: for settings that are not usable, and for questions outside the training domain.
    :raises ShapeError: if states, times or parameters have the wrong shape.

    The problem is that of Yang et al., arXiv 2306.05580; this map is ours.

    >>> flow_map = FlowMap(2, time=1.0)
    >>> x0 = torch.zeros(5, 2)
    >>> y = flow_map.sample(x0, 1.0)
    >>> y.shape, flow_map.log_prob(y, x0, 1.0).shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    @classmethod
    def for_sde(cls, sde: Any, time: float | tuple[float, float], **settings: Any) -> FlowMap:
        """A map for an equation, with its dimension, drift, boundaries and parameters; with its diffusion where that
        depends on the state or trajectories are absorbed.

        :param sde: an :class:`~pyro_boltzmann.sde.SDE`.
        :param settings: the others of :class:`FlowMap`, or replacements, such as ``drift=None``.
        """
        of_sde = {"drift": sde.drift, "boundaries": sde.boundaries, "param_dim": sde.param_dim}
        if callable(sde.diffusion) or sde.absorbing:
            of_sde["diffusion"] = sde.diffusion
        return cls(sde.event_dim, time, **{**of_sde, **settings})

    def log_prob(self, y: Tensor, x0: Tensor, time: float | Tensor, params: Tensor | None = None) -> Tensor:
        r""":math:`\log p_t(y \mid x_0, c)`, given survival where trajectories can exit; ``-inf`` outside the domain.

        :param y: states ``(*shape, d)``.
        :param x0: initial states ``(*batch, d)``, which broadcast against y.
        :param time: a number, or times that broadcast to ``(*batch)``.
        :param params: ``(*batch, param_dim)``.
        """
        self.check_state(y)
        return self.density(y, self.start(x0, time, params))

    def joint_log_prob(
        self, y: Tensor, exited: Tensor, x0: Tensor, time: float | Tensor, params: Tensor | None = None
    ) -> Tensor:
        r""":math:`\log P(\text{exit})` where ``exited``, else :math:`\log P(\text{stay}) + \log p_t(y \mid x_0, c)`.

        :param exited: which trajectories have ended, ``(*shape)``; their y does not matter.
        """
        self.check_state(y)
        start = self.start(x0, time, params)
        logits = self.logits(start)
        # Any state of the domain in place of those that do not matter, so that no gradient is NaN.
        inside = torch.where(exited.unsqueeze(-1), self.fold(start.x0, start), y)
        stay = functional.logsigmoid(-logits) + self.density(inside, start)
        return torch.where(exited, functional.logsigmoid(logits), stay)

    def exit_probability(self, x0: Tensor, time: float | Tensor, params: Tensor | None = None) -> Tensor:
        r""":math:`P(\text{exit before } t \mid x_0, c)`, ``(*batch)``; zero without absorbing boundaries."""
        return self.logits(self.start(x0, time, params)).sigmoid()

    @torch.no_grad()
    def sample(
        self, x0: Tensor, time: float | Tensor, params: Tensor | None = None, *, generator: Generator | None = None
    ) -> Tensor:
        """One final state for each initial state, ``(*batch, d)``: of survivors, where trajectories can exit."""
        start = self.start(x0, time, params)
        z = torch.randn(start.x0.shape, generator=generator, dtype=start.x0.dtype, device=start.x0.device)
        return self.fold(self.free_state(z, start), start)

    def transport(self, z: Tensor, x0: Tensor, time: float | Tensor, params: Tensor | None = None) -> Tensor:
        """Standard normal ``z`` ``(*shape, d)`` to final states, differentiable in everything."""
        self.check_state(z, "latents")
        start = self.start(x0, time, params)
        return self.fold(self.free_state(z, start), start)

    def is_outside(self, x0: Tensor, time: float | Tensor, params: Tensor | None = None) -> Tensor:
        """Which rows lie outside the training domain, ``(*batch)``."""
        x0, t, params = self.arguments(x0, time, params)
        return self.domain.is_outside(x0, t, params).expand(x0.shape[:-1])

    def recentre(self, data: Transitions) -> None:
        """Take errors of the mean out of a trained map: see :func:`~pyro_boltzmann.sde.recentring.recentre`."""
        from pyro_boltzmann.sde.recentring import recentre

        recentre(self, data)

    # As Pyro programs and distributions -------------------------------------------------------------------------

    def condition(self, x0: Tensor, time: float | Tensor, params: Tensor | None = None) -> FlowMapTransition:
        """The law of the (surviving) state as a distribution with batch shape ``(*batch)`` and event shape ``(d,)``."""
        from pyro_boltzmann.sde.flow_map_transition import FlowMapTransition

        return FlowMapTransition(self, x0, time, params)

    def model(self, initial: dist.TorchDistribution, time: float | Tensor) -> FlowMapProgram:
        """A Pyro program that draws ``x0`` and ``x``: see :class:`FlowMapProgram`."""
        from pyro_boltzmann.sde.flow_map_program import FlowMapProgram

        return FlowMapProgram(self, initial, time)

    def push(self, initial: Any, time: float | Tensor, num_samples: int, params: Tensor | None = None) -> Pushed:
        """Draws from an initial law carried to time t: see :func:`~pyro_boltzmann.sde.pushing.push`."""
        from pyro_boltzmann.sde.pushing import push

        return push(self, initial, time, num_samples, params)

    def marginal_log_prob(
        self, y: Tensor, initial: Any, time: float | Tensor, num_samples: int = 1000, params: Tensor | None = None
    ) -> MarginalLogProb:
        """The density of the state for an initial law: see :func:`~pyro_boltzmann.sde.pushing.marginal_log_prob`."""
        from pyro_boltzmann.sde.pushing import marginal_log_prob

        return marginal_log_prob(self, y, initial, time, num_samples, params)

    # Checks -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def round_trip(self, y: Tensor, x0: Tensor, time: float | Tensor, params: Tensor | None = None) -> RoundTrip:
        """Map y to the latent and forth again. Where states have several preimages, y itself is taken; atoms come back
        as they are."""
        self.check_state(y)
        start = self.start(x0, time, params)
        z, _ = self.base(self.preimages(y, start).u[0], start)
        back = self.fold(self.free_state(z, start), start)
        return RoundTrip(back, ((back - y) / start.scale).abs().amax(-1))

    @torch.no_grad()
    def mass(self, x0: Tensor, time: float | Tensor, num_samples: int = 10_000, params: Tensor | None = None) -> Mass:
        r"""Total mass :math:`\int p_t(y \mid x_0)\,dy` by importance sampling: one, less what images leave out.

        The proposal has independent Student coordinates (three degrees of freedom) around the mean of as many draws of
        the map, with their standard deviations: its tails are heavier than any of the map, so weights are bounded.

        :raises ValueError: if the law has atoms, which are no density.
        """
        if self.walls.has_atoms:
            raise ValueError("a law with atoms on clamped ends is no density, so its integral is less than one")
        start = self.start(x0, time, params)
        z = torch.randn(num_samples, *start.x0.shape, dtype=start.x0.dtype, device=start.x0.device)
        draws = self.fold(self.free_state(z, start), start)
        proposal = dist.StudentT(3.0, draws.mean(0), draws.std(0)).to_event(1)
        y = proposal.sample((num_samples,))
        weights = (self.density(y, start) - proposal.log_prob(y)).double().exp()
        return Mass(weights.mean(0), weights.std(0) / math.sqrt(num_samples))

    @torch.no_grad()
    def left_out(
        self, x0: Tensor, time: float | Tensor, num_samples: int = 10_000, params: Tensor | None = None
    ) -> Tensor:
        """Share of draws beyond the images that a density between two mirrors (or on a circle) adds up, ``(*batch)``:
        what is missing from its mass. See :class:`Walls`."""
        start = self.start(x0, time, params)
        z = torch.randn(num_samples, *start.x0.shape, dtype=start.x0.dtype, device=start.x0.device)
        return 1.0 - self.walls.reach(self.free_state(z, start)).to(z.dtype).mean(0)
