"""The pseudo-reversible flow: two networks that are trained to be each other's inverse."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Size, Tensor

from pyro_boltzmann.exceptions import OutsideDomainWarning, ShapeError, SolverError
from pyro_boltzmann.transforms.fused import FusedTransform
from pyro_boltzmann.transforms.polishing import PolishResult, polish
from pyro_boltzmann.transforms.pseudo_reversible_checks import (
    DensityGap,
    Folds,
    MassEstimate,
    density_gap,
    estimate_mass,
    normal_log_prob,
)
from pyro_boltzmann.transforms.standardisation import Standardisation
from pyro_boltzmann.transforms.tanh_network import ConditionalMap, TanhNetwork

__all__ = ["PseudoReversibleFlow", "PseudoReversibleTransform"]

MARGIN = 0.02
"""Share of its width by which the box of the training data is widened on each side: extremes of a sample lie inside
those of its law."""


class PseudoReversibleFlow(ConditionalTransformModule):
    r"""A conditional density :math:`\hat p(y \mid x_0)` and a sampler of it: two networks, each the other's inverse
    only in so far as they learned to be,

    .. math:: \hat p(y \mid x_0) = \mathcal N(h(x_0, y); 0, I)\, \Bigl|\det \frac{\partial h}{\partial y}\Bigr|, \qquad
        y = g(x_0, z), \quad z \sim \mathcal N(0, I),

    .. math:: \mathcal L = \mathbb E\bigl[-\log \hat p(y \mid x_0)\bigr] +
        \lambda\, \mathbb E\bigl\lvert g(x_0, h(x_0, y)) - y \bigr\rvert^2 ,

    both in standardised columns of :math:`x_0` and y, whose constants are buffers. Densities are those of h. Samples
    are those of g, unless they are *polished*: solutions of :math:`h(x_0, y) = z` by Newton's method from g, which
    follow h's density where h does not fold.

    Nothing makes :math:`\int \hat p\, dy = 1`: by the area formula it is
    :math:`\mathbb E_z\,\#\{y : h(x_0, y) = z\}`. A folding h has more, and a loss below the entropy; one that does not
    reach every z has less. :meth:`mass`, :meth:`folds`, :meth:`round_trip` and :meth:`density_gap` measure what is
    hoped for.

    Questions about initial states (and times) outside of the box of the training data, a little widened, are refused;
    with ``outside="warn"`` they are answered with an :class:`~pyro_boltzmann.exceptions.OutsideDomainWarning`, and
    :meth:`extrapolates` tells which rows.

    :param dim: dimension of the state y.
    :param context_dim: dimension of :math:`x_0` (with parameters of the equation behind it, if any); as the state's if
        left out.
    :param hidden_dims: of both networks.
    :param penalty: :math:`\lambda`.
    :param skip: let both networks learn a change of their second argument, in standardised columns. The published
        networks do not; with it every determinant is positive at first.
    :param probes: see :class:`TanhNetwork`: a cheaper, unbiased gradient of the log-determinant for large ``dim``.
    :param time: the one time that the map is for; other times are refused.
    :param takes_time: whether the time is one more number of the context instead.
    :param polished: whether the transforms that :meth:`condition` returns polish their samples.
    :param outside: ``"raise"`` or ``"warn"``.
    :raises ValueError: for settings that are not usable, and for questions outside of the training data.

    Source: Yang et al., arXiv 2306.05580 (SIAM J. Sci. Comput. 46(4), C508), section 3.

    >>> x0 = torch.randn(200, 1)
    >>> y = x0 + torch.randn(200, 1)
    >>> flow = PseudoReversibleFlow(1, hidden_dims=[16])
    >>> flow.standardise(x0, y)
    >>> flow.loss(x0, y).backward()
    >>> flow.log_prob(y, x0).shape, flow.sample(x0).shape
    (torch.Size([200]), torch.Size([200, 1]))
    """

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        hidden_dims: Sequence[int] = (512, 512),
        penalty: float = 100.0,
        skip: bool = False,
        probes: int | None = None,
        time: float | None = None,
        takes_time: bool = False,
        polished: bool = False,
        outside: str = "raise",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not penalty >= 0.0:
            raise ValueError(f"the weight of the reversibility penalty must not be negative, got {penalty}")
        if takes_time and time is not None:
            raise ValueError(f"a flow is for one time or takes the time, not both; got takes_time=True and time={time}")
        if outside not in ("raise", "warn"):
            raise ValueError(f'outside must be "raise" or "warn", got {outside!r}')
        self.dim, self.outside = int(dim), outside
        self.context_dim = self.dim if context_dim is None else int(context_dim)
        self.penalty, self.time, self.takes_time, self.polished = penalty, time, takes_time, polished
        inputs = self.context_dim + int(takes_time)
        self.h: ConditionalMap = TanhNetwork(inputs, self.dim, hidden_dims, skip=skip, probes=probes)
        self.g: ConditionalMap = TanhNetwork(inputs, self.dim, hidden_dims, skip=skip)
        self.context_units = Standardisation(inputs)
        self.units = Standardisation(self.dim)
        self.orientation: Tensor
        self.register_buffer("orientation", torch.zeros((), dtype=torch.long))

    def standardise(self, x0: Tensor, y: Tensor, time: Tensor | float | None = None) -> None:
        """Take the units of all columns from training data ``(n, context_dim)`` and ``(n, dim)``."""
        context, _ = self._context(x0, time, x0.shape[:-1])
        self.context_units.fit(context)
        self.units.fit(y)

    def loss(self, x0: Tensor, y: Tensor, time: Tensor | float | None = None) -> Tensor:
        r""":math:`\mathcal L` over the rows, in nats of the standardised columns; h is evaluated once.

        In training mode the sign that most determinants have is kept as the flow's orientation.
        """
        context, target, _ = self._rows(y, x0, time, is_checked=False)
        z, log_abs_det, sign = self.h.value_and_log_det(context, target)
        if self.training:
            self.orientation.copy_(sign.detach().sum().sign())
        negative = 0.5 * z.square().sum(-1) + 0.5 * self.dim * math.log(2 * math.pi) - log_abs_det
        back = (self.g(context, z) - target).square().sum(-1)
        loss: Tensor = (negative + self.penalty * back).mean()
        return loss

    def log_prob(self, y: Tensor, x0: Tensor, time: Tensor | float | None = None) -> Tensor:
        r""":math:`\log \hat p(y \mid x_0)` of h, ``(*batch)``, for states ``(*batch, dim)`` that broadcast with
        :math:`x_0`. Its mass is not one by construction."""
        context, target, batch = self._rows(y, x0, time)
        z, log_abs_det, _ = self.h.value_and_log_det(context, target)
        return (normal_log_prob(z) + log_abs_det - self.units.log_volume).view(batch)

    def sample(
        self,
        x0: Tensor,
        time: Tensor | float | None = None,
        sample_shape: Size | Sequence[int] = (),
        *,
        polished: bool = False,
    ) -> Tensor:
        """Draws ``(*sample_shape, *batch, dim)`` for initial states ``(*batch, context_dim)``, without a graph.

        :param polished: draw from h's density instead of g's.
        :raises SolverError: if h could not be inverted for some row; :meth:`polish` tells which.
        """
        with torch.no_grad():
            z = self.units.mean.new_empty((*sample_shape, *x0.shape[:-1], self.dim)).normal_()
            if polished:
                return self._accepted(self.polish(z, x0, time))
            context, rows, batch = self._latent_rows(z, x0, time)
            return self.units.original(self.g(context, rows)).view(*batch, self.dim)

    def polish(
        self,
        z: Tensor,
        x0: Tensor,
        time: Tensor | float | None = None,
        *,
        tolerance: float | None = None,
        max_evaluations: int = 30,
    ) -> PolishResult:
        r"""The states with :math:`h(x_0, y) = z`, by Newton's method from :math:`g(x_0, z)`, in double precision.

        A flow of single precision rounds the solutions; the residual of the result is that of what is left. Rows that
        do not converge, and rows where the determinant has the sign that it has on the minority of the data, are
        counted in the result.

        :param z: ``(*batch, dim)``, broadcast with ``x0`` ``(*batch, context_dim)``.
        """
        context, rows, batch = self._latent_rows(z, x0, time)
        with torch.no_grad():
            start = self.g(context, rows)
        is_double = rows.dtype == torch.float64
        h = self.h if is_double else copy.deepcopy(self.h).double()
        context, exact = context.double(), rows.double()
        found = polish(
            h,
            context,
            exact,
            start.double(),
            orientation=int(self.orientation),
            tolerance=tolerance,
            max_evaluations=max_evaluations,
        )
        y, residual = found.y.to(rows.dtype), found.residual
        if not is_double:
            with torch.no_grad():
                residual = (h(context, y.double()) - exact).abs().amax(-1).nan_to_num(nan=torch.inf).to(rows.dtype)
        return PolishResult(
            self.units.original(y).view(*batch, self.dim),
            found.converged.view(batch),
            found.is_fold.view(batch),
            residual.view(batch),
            found.evaluations,
        )

    def condition(self, context: Tensor, time: Tensor | float | None = None) -> PseudoReversibleTransform:
        r"""The transform from z to y at :math:`x_0` = ``context``, ``(*batch, context_dim)``."""
        return PseudoReversibleTransform(self, context, time)

    # What is hoped for, measured ---------------------------------------------------------------------------------

    @torch.no_grad()
    def extrapolates(self, x0: Tensor, time: Tensor | float | None = None) -> Tensor:
        """Whether initial states (and times) lie outside of the box of the training data, widened by 2 % of its width
        on each side, ``(*batch)``.

        What the networks say there was learned nowhere, also where the equation is periodic."""
        context, batch = self._context(x0, time, x0.shape[:-1])
        return self.context_units.outside(context, MARGIN).view(batch)

    @torch.no_grad()
    def round_trip(self, y: Tensor, x0: Tensor, time: Tensor | float | None = None) -> Tensor:
        r""":math:`\max_i |g(x_0, h(x_0, y)) - y|_i`, ``(*batch)``, in standard deviations of the columns of y."""
        context, target, batch = self._rows(y, x0, time)
        difference: Tensor = self.g(context, self.h(context, target)) - target
        return difference.abs().amax(-1).view(batch)

    @torch.no_grad()
    def mass(self, x0: Tensor, time: Tensor | float | None = None, num_samples: int = 4096) -> MassEstimate:
        r""":math:`\int \hat p(y \mid x_0)\, dy` and its standard error, ``(*batch)`` each, by importance sampling: see
        :func:`estimate_mass`."""
        context, batch = self._context(x0, time, x0.shape[:-1])
        self._check_inside(context)
        return estimate_mass(self.h, self.g, self.context_units.standard(context), self.dim, num_samples).view(batch)

    @torch.no_grad()
    def folds(self, y: Tensor, x0: Tensor, time: Tensor | float | None = None) -> Folds:
        """The signs of h's determinants at these states."""
        context, target, _ = self._rows(y, x0, time)
        return Folds.of(self.h.value_and_log_det(context, target)[2])

    @torch.no_grad()
    def density_gap(self, x0: Tensor, num_samples: int = 256, time: Tensor | float | None = None) -> DensityGap:
        r""":math:`\log \hat p_h - \log \hat p_g` at ``num_samples`` draws of g for each of the initial states
        ``(*batch, context_dim)``."""
        z = self.units.mean.new_empty((num_samples, *x0.shape[:-1], self.dim)).normal_()
        context, rows, batch = self._latent_rows(z, x0, time)
        return density_gap(self.h, self.g, context, rows).view(batch)

    # Rows ---------------------------------------------------------------------------------------------------------

    def _rows(
        self, y: Tensor, x0: Tensor, time: Tensor | float | None, *, is_checked: bool = True
    ) -> tuple[Tensor, Tensor, Size]:
        """Standardised contexts and states, a row each, and the batch shape that they had."""
        context, state, batch = self._latent_rows(y, x0, time, is_checked=is_checked)
        return context, self.units.standard(state), batch

    def _latent_rows(
        self, z: Tensor, x0: Tensor, time: Tensor | float | None, *, is_checked: bool = True
    ) -> tuple[Tensor, Tensor, Size]:
        if z.dim() < 1 or z.shape[-1] != self.dim:
            raise ShapeError(f"this flow expects states of shape (*batch, {self.dim}), got {tuple(z.shape)}")
        context, batch = self._context(x0, time, z.shape[:-1])
        if is_checked:
            self._check_inside(context)
        return self.context_units.standard(context), z.expand(*batch, -1).reshape(-1, self.dim), batch

    def _check_inside(self, context: Tensor) -> None:
        """Refuse or flag rows outside of the box of the training data."""
        outside = self.context_units.outside(context.detach(), MARGIN)
        if not bool(outside.any()):
            return
        names = [*(f"x0[{i}]" for i in range(self.context_dim)), *(["time"] if self.takes_time else [])]
        low, high = self.context_units.low.tolist(), self.context_units.high.tolist()
        box = ", ".join(f"{name} in [{a:.6g}, {b:.6g}]" for name, a, b in zip(names, low, high, strict=True))
        message = (
            f"{int(outside.sum())} of {len(outside)} rows lie outside of the training data, {box}, for example "
            f"{[round(value, 6) for value in context[outside][0].tolist()]}; train on data that cover them, or set "
            'outside="warn" to extrapolate'
        )
        if self.outside == "raise":
            raise ValueError(message)
        warnings.warn(message, OutsideDomainWarning, stacklevel=4)

    def _context(self, x0: Tensor, time: Tensor | float | None, batch: Size) -> tuple[Tensor, Size]:
        """Contexts as rows, broadcast against ``batch``."""
        if x0.dim() < 1 or x0.shape[-1] != self.context_dim:
            raise ShapeError(
                f"this flow expects initial states of shape (*batch, {self.context_dim}), got {tuple(x0.shape)}"
            )
        if self.takes_time:
            if time is None:
                raise ValueError("this flow takes the time as an input; pass time=, a number or a tensor (*batch)")
            column = torch.as_tensor(time, dtype=x0.dtype, device=x0.device)
            shape = torch.broadcast_shapes(x0.shape[:-1], column.shape)
            x0 = torch.cat([x0.expand(*shape, -1), column.expand(shape).unsqueeze(-1)], -1)
        elif time is not None and (self.time is None or bool((torch.as_tensor(time) != self.time).any())):
            known = "was built without a time" if self.time is None else f"is for the time {self.time} alone"
            raise ValueError(
                f"this flow {known}, got time={time}; leave it out, or build the flow with takes_time=True"
            )
        try:
            whole = torch.broadcast_shapes(batch, x0.shape[:-1])
        except RuntimeError as error:
            raise ShapeError(
                f"states with batch shape {tuple(batch)} do not broadcast with contexts of batch shape "
                f"{tuple(x0.shape[:-1])}"
            ) from error
        return x0.expand(*whole, -1).reshape(-1, x0.shape[-1]), whole

    @staticmethod
    def _accepted(result: PolishResult) -> Tensor:
        if not bool(result.accepted.all()):
            raise SolverError(
                f"h could not be inverted for {result.num_failed} of {result.converged.numel()} draws, and "
                f"{result.num_folds} solutions lie in a fold; look at them with flow.polish(z, x0), train longer, or "
                "take the sampler's own draws with polished=False"
            )
        return result.y

    def extra_repr(self) -> str:
        return f"dim={self.dim}, context_dim={self.context_dim}, penalty={self.penalty}, polished={self.polished}"


class PseudoReversibleTransform(FusedTransform):
    r"""A pseudo-reversible flow at given initial states, :math:`z \mapsto y`.

    Its inverse is h, and its log-determinant is that of h at y, in both directions: log-probabilities are h's, whoever
    drew the sample. Forward is g, so that going there and back returns only nearly what it began with; polished,
    forward is the solution of :math:`h(x_0, y) = z`, with the gradient of the implicit function.

    :param flow: the networks.
    :param x0: ``(*batch, context_dim)``; z and y broadcast against it.
    :param time: as the flow's methods take it.
    :raises SolverError: from a polished forward pass that does not converge, or ends in a fold.

    >>> import pyro, pyro.distributions as dist
    >>> flow = PseudoReversibleFlow(2, hidden_dims=[8])
    >>> base = dist.Normal(torch.zeros(5, 2), 1.0).to_event(1)
    >>> law = dist.TransformedDistribution(base, [flow.condition(torch.randn(5, 2))])
    >>> law.log_prob(pyro.sample("y", law)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        flow: PseudoReversibleFlow,
        x0: Tensor,
        time: Tensor | float | None = None,
        *,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.flow, self.x0, self.time, self.width = flow, x0, time, flow.dim

    def __call__(self, z: Tensor) -> Tensor:
        if self.flow.polished:
            return super().__call__(z)
        # Not cached: the inverse of a draw of g is what h makes of it, not the z that it was drawn from.
        self.check_width(z)
        return self._forward(z)

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y = self._forward(z)
        return y, -self._log_det(y)[1]

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._log_det(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        cached = self._cached
        if cached is not None and cached.x is x and cached.y is y and cached.key == self._cache_key():
            return cached.ladj
        self.check_width(y)
        return -self._log_det(y)[1]

    def _log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        context, target, batch = self.flow._rows(y, self.x0, self.time)
        z, log_abs_det, _ = self.flow.h.value_and_log_det(context, target)
        return z.view(*batch, self.width), (log_abs_det - self.flow.units.log_volume).view(batch)

    def _forward(self, z: Tensor) -> Tensor:
        flow = self.flow
        context, rows, batch = flow._latent_rows(z, self.x0, self.time)
        if not flow.polished:
            return flow.units.original(flow.g(context, rows)).view(*batch, self.width)
        y = flow._accepted(flow.polish(z, self.x0, self.time))
        if not torch.is_grad_enabled():
            return y
        # One more Newton step changes y by rounding errors, and has the gradient of the implicit function.
        solved = flow.units.standard(y).reshape(-1, self.width)
        with torch.no_grad():
            jacobian = flow.h.value_and_jacobian(context, solved)[1]
        solved = solved - torch.linalg.solve(jacobian, flow.h(context, solved) - rows)
        return flow.units.original(solved).view(*batch, self.width)
