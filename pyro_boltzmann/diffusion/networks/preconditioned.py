"""Energies and scores of noised targets whose ends are right by construction; a network learns what lies between."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_boltzmann.diffusion.networks.embedding import SOFTPLUS_IS_ONE, NoiseEmbedding, variance_of_rows
from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient, energy_value
from pyro_boltzmann.energies.held import HeldEnergy
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["PreconditionedEnergy", "PreconditionedScore"]

# Below this the target is left out of the sum. Where that holds for a whole batch, it is not evaluated.
SMALLEST_GATE = 1e-7


class _Preconditioner(nn.Module):
    """What energies and scores share: the target, the wide Gaussian, and how much of each there is."""

    center: Tensor
    data_scale: Tensor
    gate_scale: Tensor
    level: Tensor

    def __init__(
        self,
        network: nn.Module,
        energy: Energy | HeldEnergy | None,
        dim: int,
        gate_scale: float,
        data_scale: float,
        center: float | Tensor,
        smallest_sigma: float,
    ) -> None:
        super().__init__()
        if dim < 1 or not gate_scale > 0.0 or not data_scale > 0.0:
            raise ValueError(
                "preconditioning needs dim >= 1, gate_scale > 0 and data_scale > 0, got "
                f"dim={dim}, gate_scale={gate_scale}, data_scale={data_scale}"
            )
        if energy is not None and not callable(energy):
            raise TypeError(f"an energy must be callable, (*batch, dim) -> (*batch); got {type(energy).__name__}")
        self.network = network
        # Everything is hidden, annealed energies too: the target is never trained.
        self.target = energy if energy is None or isinstance(energy, HeldEnergy) else HeldEnergy(energy)
        self.dim = dim
        middle = torch.as_tensor(center, dtype=torch.get_default_dtype())
        if middle.dim() > 1 or middle.numel() not in (1, dim):
            raise ShapeError(f"center must be a number or a tensor of shape ({dim},), got {tuple(middle.shape)}")
        self.register_buffer("center", middle.expand(dim).clone())
        self.register_buffer("data_scale", torch.tensor(float(data_scale)))
        self.register_buffer("gate_scale", torch.tensor(float(gate_scale)))
        self.register_buffer("level", torch.tensor(0.0))
        # A network with scalars gives the spread itself.
        self.spread_of_noise = None if getattr(network, "num_scalars", 0) else _LogSpread()
        if self.target is not None:
            self.gate_embedding = NoiseEmbedding(16, smallest_sigma=smallest_sigma)
            self.gate_rate = nn.Linear(16, 1)
            nn.init.zeros_(self.gate_rate.weight)
            nn.init.constant_(self.gate_rate.bias, SOFTPLUS_IS_ONE)

    def place(self, center: Tensor, data_scale: float, gate_scale: float, level: float = 0.0) -> None:
        """Move to where the target lives: other values for ``center``, ``data_scale`` and ``gate_scale``.

        :param level: an energy that is usual there, from which an energy's bend is measured.
        """
        with torch.no_grad():
            self.center.copy_(center)
            self.data_scale.fill_(data_scale)
            self.gate_scale.fill_(gate_scale)
            self.level.fill_(level)

    def gate(self, variance: float | Tensor) -> Tensor:
        r"""How much of the target there is at these variances, :math:`\gamma(h) = e^{-k(h)\, h / c^2}`, in float64.

        :math:`k(h) > 0` is learned as a function of :math:`\log h` and starts at one. Exactly 1 at :math:`h = 0`;
        below 1e-7 it is 0, and so it is without a target.
        """
        h = self._in_double(variance)
        if self.target is None:
            return torch.zeros_like(h)
        rate = nn.functional.softplus(self.gate_rate(self.gate_embedding(h)).squeeze(-1))
        gate = (-(h / self.gate_scale.double().square()) * rate.to(torch.float64)).exp()
        return torch.where(gate > SMALLEST_GATE, gate, 0.0)

    def amplitude(self, variance: float | Tensor) -> Tensor:
        r"""The size of the network's part at these variances, in float64,

        .. math:: \alpha(h) = \frac{\sigma}{\sigma + c}\, \frac{s}{\sqrt{s^2 + h}}, \qquad \sigma = \sqrt{h},

        which vanishes at both ends. The first factor is 1 where there is no target to fall back on.
        """
        h, scale = self._in_double(variance), self.data_scale.double()
        wide = scale * (scale.square() + h).rsqrt()
        sigma = h.sqrt()
        return wide if self.target is None else wide * sigma / (sigma + self.gate_scale)

    def _in_double(self, variance: float | Tensor) -> Tensor:
        return torch.as_tensor(variance, dtype=torch.float64, device=self.center.device)

    def _coefficients(self, variance: float | Tensor, x: Tensor) -> _Coefficients:
        if x.dim() < 1 or x.shape[-1] != self.dim:
            raise ShapeError(f"expected states of shape (*batch, {self.dim}), got {tuple(x.shape)}")
        return _Coefficients(self, variance_of_rows(variance, x), x)

    def _ask(self, x: Tensor, at: _Coefficients) -> tuple[Tensor, Tensor | None]:
        """The network at states and noise in units of the target's spread: its main output, and scalars if any."""
        y = (x - self.center) / self.data_scale
        out: Any = self.network(y, at.variance / self.data_scale.double().square())
        return out if isinstance(out, tuple) else (out, None)

    def _spread(self, scalars: Tensor | None, at: _Coefficients, shape: torch.Size) -> Tensor:
        if scalars is None:
            assert self.spread_of_noise is not None
            scalars = self.spread_of_noise(at.variance.reshape(-1)).exp()
            scalars = scalars.reshape(1 if len(scalars) == 1 else (*shape[:-1], 1))
        base = self.data_scale.square() / at.wide
        # Both ends are known: 1 without noise, and the Gaussian's with much.
        return base.unsqueeze(-1) * scalars ** at.amplitude.unsqueeze(-1)

    def extra_repr(self) -> str:
        target = None if self.target is None else self.target.energy
        scales = f"gate_scale={float(self.gate_scale):.4g}, data_scale={float(self.data_scale):.4g}"
        return f"target={target!r}, dim={self.dim}, {scales}"


class _LogSpread(nn.Module):
    """A learned function of the noise level alone, zero before training."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = NoiseEmbedding(16)
        self.linear = nn.Linear(16, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, variance: Tensor) -> Tensor:
        """``(rows,)`` to ``(rows,)``."""
        out: Tensor = self.linear(self.embedding(variance)).squeeze(-1)
        return out


class _Coefficients:
    """Functions of the noise level in the dtype of x, one for each row or one for all."""

    def __init__(self, owner: _Preconditioner, h: Tensor, x: Tensor) -> None:
        batch = x.shape[:-1]

        def like(tensor: Tensor) -> Tensor:
            # One number for all rows becomes a tensor without dimensions.
            return tensor.to(x.dtype).reshape(() if len(h) == 1 else batch)

        gate = owner.gate(h)
        self.variance = like(h) if len(h) > 1 else h[0]
        self.gate = like(gate)
        self.rest = like(1.0 - gate)
        self.amplitude = like(owner.amplitude(h))
        self.wide = like(h + owner.data_scale**2)
        self.narrow = like(h + owner.gate_scale**2)
        self.needs_target = owner.target is not None and bool((self.gate > 0).any())


class PreconditionedEnergy(_Preconditioner):
    r"""The energy :math:`u_\theta(x, h) \approx -\log (e^{-u} * N(0, h))(x)` of a target under noise:

    .. math::

        u_\theta(x, h) = \gamma(h)\, \bar u(x)
            + (1 - \gamma(h)) \left[ \frac{|x - m|^2}{2 (h + s^2)} + \frac d2 \log 2\pi (h + s^2) - \log Z \right]
            + \alpha(h)\, f_\theta(x, h) .

    Without noise it is the target's own energy, with much noise the Gaussian :math:`Z\, N(m, (h + s^2) I)`, whatever
    the network :math:`f_\theta` says (:meth:`gate`, :meth:`amplitude`). :math:`\log Z` is learned; :math:`s` and
    :math:`m` are the spread and the mean of the target, roughly.

    The target is bent where it is more than b above a level that is usual there (0 until :meth:`place` sets it):
    with :math:`v = u - \mathrm{level}`, v becomes :math:`b + b \log(v / b)` for :math:`v > b`. So the energy stays
    finite where :math:`u = \infty`, and forces stay moderate (:math:`b\, \nabla \log v`) where particles collide. Rows
    whose gradient is not finite get none from the target.

    The target is held outside the module tree: not trained, not in ``state_dict``, shared by ``deepcopy``. Its
    evaluations are counted, and saved where :math:`\gamma = 0` for a whole batch. With ``energy=None`` the gate is 0,
    and the network is full-sized without noise.

    :param network: :math:`f_\theta(x, h)`, ``(*batch, dim)`` and a variance to ``(*batch)``, for example
        :class:`EnergyMLP` or :class:`InvariantNetwork`.
    :param energy: the target :math:`u`, or ``None``.
    :param dim: :math:`d`.
    :param gate_scale: :math:`c`, the noise that begins to blur the target: the width of a mode.
    :param data_scale: :math:`s`.
    :param center: :math:`m`, a number or ``(dim,)``.
    :param log_z: the first guess of :math:`\log Z`.
    :param max_energy: :math:`b > 0`.
    :param smallest_sigma: the noise below which the gate's rate does not tell levels apart.
    :raises ValueError: for sizes that are not positive.

    >>> from pyro_boltzmann.diffusion import EnergyMLP
    >>> u = lambda x: (x.square() - 1).square().sum(-1)
    >>> model = PreconditionedEnergy(EnergyMLP(2), u, 2, gate_scale=0.3, data_scale=1.0)
    >>> x = torch.tensor([[0.5, 2.0]])
    >>> bool(model.energy(x, 0.0) == u(x))
    True
    >>> model.score(x, 1.0).shape
    torch.Size([1, 2])

    Source: networks that contain the target are in Phillips et al., arXiv 2402.06320; the noise is that of
    Akhound-Sadegh et al., arXiv 2402.06121.
    """

    def __init__(
        self,
        network: nn.Module,
        energy: Energy | HeldEnergy | None,
        dim: int,
        *,
        gate_scale: float,
        data_scale: float,
        center: float | Tensor = 0.0,
        log_z: float = 0.0,
        max_energy: float = 1e4,
        smallest_sigma: float = 1e-4,
    ) -> None:
        super().__init__(network, energy, dim, gate_scale, data_scale, center, smallest_sigma)
        if not max_energy > 0.0:
            raise ValueError(f"max_energy must be positive, got {max_energy}")
        self.max_energy = max_energy
        self.log_z = nn.Parameter(torch.tensor(float(log_z)))

    def forward(self, x: Tensor, variance: float | Tensor) -> Tensor:
        """:meth:`energy`."""
        return self.energy(x, variance)

    def energy(self, x: Tensor, variance: float | Tensor) -> Tensor:
        r""":math:`u_\theta(x, h)` of shape ``(*batch)`` for states ``(*batch, dim)``.

        :param variance: :math:`h`, a number or a tensor that broadcasts to ``(*batch)``.
        :raises ShapeError: if a shape is wrong.
        """
        return self._value(x, self._coefficients(variance, x))[0]

    def energy_and_spread(self, x: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`energy` and the spread of :meth:`score_and_spread` in one pass, without a gradient."""
        at = self._coefficients(variance, x)
        value, scalars = self._value(x, at)
        return value, self._spread(scalars, at, x.shape)

    def spread(self, x: Tensor, variance: float | Tensor) -> Tensor:
        """The spread of :meth:`score_and_spread` alone, which costs nothing of the target."""
        at = self._coefficients(variance, x)
        return self._spread(self._ask(x, at)[1], at, x.shape)

    def _value(self, x: Tensor, at: _Coefficients) -> tuple[Tensor, Tensor | None]:
        smooth, scalars = self._smooth_part(x, at)
        if not at.needs_target:
            return smooth, scalars
        y = x
        if torch.is_grad_enabled() and x.requires_grad:
            y = x.view_as(x)
            y.register_hook(_finite_rows)
        return smooth + at.gate * self._bent(energy_value(self._energy, y)), scalars

    def score(self, x: Tensor, variance: float | Tensor) -> Tensor:
        r""":math:`-\nabla_x u_\theta(x, h)`, of the shape of ``x``.

        One gradient; without a graph under ``torch.no_grad()``, and with one for the network's parameters (and for
        ``x`` where it requires a gradient) otherwise.

        :param variance: as for :meth:`energy`.
        """
        return self.energy_and_score(x, variance)[1]

    def energy_and_score(self, x: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`energy` and :meth:`score` in one pass, which costs one value and one gradient of the target a row."""
        return self._evaluate(x, self._coefficients(variance, x))[:2]

    def score_and_spread(self, x: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`score`, and the variance of the unnoised state given x in units of h, ``(*batch, 1)`` or more. A
        network that returns positive scalars with its energy gives the spread; otherwise it is a function of h."""
        at = self._coefficients(variance, x)
        _, score, scalars = self._evaluate(x, at)
        return score, self._spread(scalars, at, x.shape)

    def _evaluate(self, x: Tensor, at: _Coefficients) -> tuple[Tensor, Tensor, Tensor | None]:
        keeps_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            y = x if keeps_graph and x.requires_grad else x.detach().requires_grad_()
            u, scalars = self._smooth_part(y, at)
            (gradient,) = torch.autograd.grad(u.sum(), y, create_graph=keeps_graph)
        if not keeps_graph:
            u, scalars = u.detach(), None if scalars is None else scalars.detach()
        if at.needs_target:
            # A graph of the target is needed for second derivatives in x alone, since it has nothing to learn.
            with torch.set_grad_enabled(keeps_graph and x.requires_grad):
                value, slope = energy_and_gradient(self._energy, x)
            u = u + at.gate * self._bent(value)
            gradient = gradient + (at.gate * self._bending(value)).unsqueeze(-1) * _finite_rows(slope)
        return u, -gradient, scalars

    @property
    def _energy(self) -> Energy:
        return cast(HeldEnergy, self.target).energy

    def _smooth_part(self, x: Tensor, at: _Coefficients) -> tuple[Tensor, Tensor | None]:
        """The Gaussian and the network, and the network's scalars."""
        square = (x - self.center).square().sum(-1)
        gaussian = 0.5 * square / at.wide + 0.5 * self.dim * (2.0 * math.pi * at.wide).log() - self.log_z
        residual, scalars = self._ask(x, at)
        _check_output(residual, x.shape[:-1])
        total: Tensor = at.rest * gaussian + at.amplitude * residual
        return total, scalars

    def _bent(self, u: Tensor) -> Tensor:
        b, above = self.max_energy, u - self.level
        finite = above.clamp_max(torch.finfo(u.dtype).max)
        return torch.where(above > b, self.level + b + b * (finite.clamp_min(b) / b).log(), u)

    def _bending(self, u: Tensor) -> Tensor:
        """The derivative of :meth:`_bent`."""
        return self.max_energy / (u - self.level).clamp(self.max_energy, torch.finfo(u.dtype).max)


class PreconditionedScore(_Preconditioner):
    r"""The score :math:`s_\theta(x, h) \approx \nabla \log (e^{-u} * N(0, h))(x)` of a target under noise:

    .. math::

        s_\theta(x, h) = -\gamma(h)\, \frac{\nabla u(x)}{\sqrt{1 + |\nabla u(x)|^2 / F^2}}
            - (1 - \gamma(h))\, \frac{x - m}{h + s^2}
            + \frac{\alpha(h)}{\sqrt{h + c^2}}\, f_\theta(x, h) .

    Without noise it is the target's own force, bounded smoothly by :math:`F`; with much noise that of the Gaussian
    :math:`N(m, (h + s^2) I)`. It need not be a gradient, and costs one gradient of the target and no backward pass.
    With ``energy=None`` the gate is 0, and the network is full-sized without noise.

    The target is held outside the module tree, as for :class:`PreconditionedEnergy`.

    :param network: :math:`f_\theta(x, h)`, to ``(*batch, dim)``, for example :class:`ScoreMLP` or
        :class:`EquivariantNetwork` (a pair of a vector and scalars is understood).
    :param energy: the target :math:`u`, or ``None``.
    :param dim: :math:`d`.
    :param gate_scale: :math:`c`, the noise that begins to blur the target: the width of a mode.
    :param data_scale: :math:`s`.
    :param center: :math:`m`, a number or ``(dim,)``.
    :param max_force: :math:`F`, or ``None`` for no bound.
    :param smallest_sigma: the noise below which the gate's rate does not tell levels apart.
    :raises ValueError: for sizes that are not positive.

    >>> from pyro_boltzmann.diffusion import ScoreMLP
    >>> u = lambda x: 0.5 * x.square().sum(-1)
    >>> model = PreconditionedScore(ScoreMLP(2), u, 2, gate_scale=0.3, data_scale=1.0, max_force=None)
    >>> model.score(torch.tensor([[0.5, 2.0]]), 0.0).tolist()
    [[-0.5, -2.0]]
    """

    def __init__(
        self,
        network: nn.Module,
        energy: Energy | HeldEnergy | None,
        dim: int,
        *,
        gate_scale: float,
        data_scale: float,
        center: float | Tensor = 0.0,
        max_force: float | None = 1e3,
        smallest_sigma: float = 1e-4,
    ) -> None:
        super().__init__(network, energy, dim, gate_scale, data_scale, center, smallest_sigma)
        if max_force is not None and not max_force > 0.0:
            raise ValueError(f"max_force must be positive or None, got {max_force}")
        self.max_force = max_force

    def forward(self, x: Tensor, variance: float | Tensor) -> Tensor:
        """:meth:`score`."""
        return self.score(x, variance)

    def score(self, x: Tensor, variance: float | Tensor) -> Tensor:
        r""":math:`s_\theta(x, h)`, of the shape of ``x``.

        :param x: states ``(*batch, dim)``.
        :param variance: :math:`h`, a number or a tensor that broadcasts to ``(*batch)``.
        :raises ShapeError: if a shape is wrong.
        """
        return self.score_and_scalars(x, variance)[0]

    def score_and_scalars(self, x: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor | None]:
        """:meth:`score`, and the scalars ``(*batch, k)`` of a network that returns them, else ``None``."""
        return self._evaluate(x, self._coefficients(variance, x))

    def score_and_spread(self, x: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`score`, and the variance of the unnoised state given x in units of h, ``(*batch, 1)`` or more. A
        network that returns positive scalars with its vector gives the spread; otherwise it is a function of h."""
        at = self._coefficients(variance, x)
        score, scalars = self._evaluate(x, at)
        return score, self._spread(scalars, at, x.shape)

    def _evaluate(self, x: Tensor, at: _Coefficients) -> tuple[Tensor, Tensor | None]:
        residual, scalars = self._ask(x, at)
        _check_output(residual, x.shape)
        outward = (at.rest / at.wide).unsqueeze(-1) * (x - self.center)
        score = (at.amplitude * at.narrow.rsqrt()).unsqueeze(-1) * residual - outward
        if at.needs_target:
            score = score - at.gate.unsqueeze(-1) * self._force(x)
        return score, scalars

    def _force(self, x: Tensor) -> Tensor:
        # Parameters see the target's gradient as a constant; a graph is needed where x has one.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            _, gradient = energy_and_gradient(cast(HeldEnergy, self.target).energy, x)
            gradient = _finite_rows(gradient)
            if self.max_force is None:
                return gradient
            # The largest entry is divided out first, because the square of a huge force overflows.
            largest = gradient.detach().abs().amax(-1, keepdim=True).clamp_min(self.max_force)
            excess = (gradient / largest).square().sum(-1, keepdim=True)
            return gradient / largest / (excess + (self.max_force / largest).square()).sqrt() * self.max_force


def _finite_rows(gradient: Tensor) -> Tensor:
    """The gradient with rows of zeros where an entry is not finite."""
    return torch.where(gradient.isfinite().all(-1, keepdim=True), gradient, 0.0)


def _check_output(out: Tensor, expected: torch.Size) -> None:
    if out.shape != expected:
        raise ShapeError(
            f"the network must return a tensor of shape {tuple(expected)}, got {tuple(out.shape)}; an energy has one "
            "number for each row (EnergyMLP, InvariantNetwork), a score the shape of x (ScoreMLP, EquivariantNetwork)"
        )
