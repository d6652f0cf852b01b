"""Particles at which the reference and the target energy are known, and the Markov moves that keep it so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient, energy_value
from pyro_boltzmann.energies.reference import NormalEnergy
from pyro_boltzmann.energies.rows import RowMask
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner

__all__ = ["Ensemble", "Kernel", "Moves", "evaluate", "make_kernel", "move", "tempered"]


QUARTER_PERIOD = math.pi / 2
FEW = 2**15
"""Numbers up to which one ``torch.where`` costs less than three operations on their bits."""


class Ensemble(NamedTuple):
    r"""Particles ``x`` ``(*batch, dim)`` with the reference energy :math:`u_0`, the target energy :math:`u`, both
    ``(*batch)``, and their gradients, ``None`` where no move needs them."""

    x: Tensor
    reference: Tensor
    target: Tensor
    reference_gradient: Tensor | None
    target_gradient: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Ensemble:
        """What ``change`` makes of each part that is known."""
        gradients = (None if part is None else change(part) for part in self[3:])
        return Ensemble(change(self.x), change(self.reference), change(self.target), *gradients)

    def rows(self, index: Tensor) -> Ensemble:
        """The particles ``index`` of a flat batch."""
        return self.map(lambda part: part[index])

    def where(self, mask: Tensor, other: Ensemble) -> Ensemble:
        """These particles where ``mask`` says so, those of ``other`` elsewhere."""
        others = iter([part for part in other if part is not None])
        if self.x.numel() > FEW:
            rows = RowMask(mask)
            return self.map(lambda part: rows.select(part, next(others)))
        wide, batch = mask.unsqueeze(-1), mask.dim()
        return self.map(lambda part: torch.where(mask if part.dim() == batch else wide, part, next(others)))

    def reshape(self, *batch: int) -> Ensemble:
        """The same particles with another batch shape."""
        old = self.reference.dim()
        return self.map(lambda part: part.reshape(*batch, *part.shape[old:]))

    @staticmethod
    def cat(parts: list[Ensemble], dim: int = 0) -> Ensemble:
        """Join along a batch dimension."""
        columns = iter(list(zip(*([part for part in one if part is not None] for one in parts), strict=True)))
        return parts[0].map(lambda part: torch.cat(next(columns), dim))

    def state(self) -> dict[str, Tensor]:
        """The parts by name, for a checkpoint."""
        return {f"ensemble.{name}": part for name, part in self._asdict().items() if part is not None}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Ensemble:
        """The inverse of :meth:`state`; a missing part raises ``KeyError``."""
        known = (tensors[f"ensemble.{name}"] for name in cls._fields[:3])
        return cls(*known, *(tensors.get(f"ensemble.{name}") for name in cls._fields[3:]))


class Kernel(NamedTuple):
    r"""A Markov move: ``"hmc"`` with its largest number of leapfrog steps, ``"mala"`` (one step), or ``"rwm"`` (random
    walk, which asks for no gradients)."""

    name: str
    num_steps: int
    jitter: float = 0.2
    """Step sizes are spread uniformly by this fraction, so that no trajectory is periodic in every direction."""

    @property
    def uses_gradients(self) -> bool:
        """Whether the particles must know their gradients."""
        return self.name != "rwm"

    @property
    def target_acceptance(self) -> float:
        """What step sizes are adapted to."""
        return {"hmc": 0.8, "mala": 0.6, "rwm": 0.3}[self.name]

    def initial_step(self, dim: int) -> float:
        """A first guess, in units of the particles' standard deviations."""
        first, power = {"hmc": (0.5, 0.25), "mala": (1.0, 0.25), "rwm": (2.4, 0.5)}[self.name]
        return first / math.pow(dim, power)

    def fitting(self, step_size: float) -> Kernel:
        r"""This kernel with as many steps as a quarter of a period takes, at most.

        In variables in which the density is round, a trajectory of length :math:`\pi / 2` forgets where it began; one
        of length :math:`\pi` ends at the mirror image, and particles that only change places learn nothing.
        """
        return self._replace(num_steps=max(1, min(self.num_steps, math.ceil(QUARTER_PERIOD / step_size))))

    @property
    def largest_step(self) -> float:
        """The step size whose trajectory is a quarter of a period."""
        return QUARTER_PERIOD / self.num_steps if self.name == "hmc" else math.inf


def make_kernel(name: str, num_steps: int) -> Kernel:
    """The kernel of a name; MALA is HMC with one leapfrog step.

    :raises ValueError: for any other name, or a trajectory without steps.
    """
    if name not in ("hmc", "mala", "rwm"):
        raise ValueError(f"kernel must be 'hmc', 'mala' or 'rwm' (random walk), got {name!r}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive number of leapfrog steps, got {num_steps!r}")
    return Kernel(name, num_steps if name == "hmc" else 1)


def evaluate(
    reference: Energy,
    target: Energy,
    x: Tensor,
    gradients: bool,
    known: Ensemble | None = None,
    *,
    on_the_way: bool = False,
) -> Ensemble:
    """Both energies at ``x``, each once, without a graph.

    :param known: an ensemble whose reference part is not needed any more; it is carried along instead of computed.
    :param on_the_way: inside a trajectory, where nobody reads the reference energy: only its gradient need be right.
    """
    if not gradients:
        base = energy_value(reference, x) if known is None else known.reference
        return Ensemble(x, base, energy_value(target, x), None, None)
    u, gradient = energy_and_gradient(target, x)
    if known is not None:
        return Ensemble(x, known.reference, u, known.reference_gradient, gradient)
    if on_the_way and isinstance(reference, NormalEnergy):
        return Ensemble(x, u, u, reference.gradient(x), gradient)
    base, base_gradient = energy_and_gradient(reference, x)
    return Ensemble(x, base, u, base_gradient, gradient)


class Moves(NamedTuple):
    """The particles after a move, and with which probability each was accepted."""

    ensemble: Ensemble
    acceptance: Tensor


def move(
    ensemble: Ensemble,
    reference: Energy,
    target: Energy,
    position: float | Tensor,
    kernel: Kernel,
    step_size: float | Tensor,
    scale: Preconditioner,
) -> Moves:
    r"""One Metropolis-adjusted move of every particle at :math:`u_\lambda = u_0 + \lambda (u - u_0)`.

    Leapfrog trajectories (Neal, arXiv 1206.1901) of ``kernel.num_steps`` steps in the variables of ``scale``; the force
    at their end is the force before the next. A move is rejected where anything is not finite.

    :param position: :math:`\lambda > 0`, a number, or a tensor that broadcasts with ``(*batch)``.
    :param step_size: in the variables of ``scale``; likewise.
    """
    x = ensemble.x
    jittered = 1.0 + kernel.jitter * (2.0 * torch.rand(x.shape[:-1], dtype=x.dtype, device=x.device) - 1.0)
    h = (step_size * jittered).unsqueeze(-1)
    noise = torch.randn_like(x)
    here = tempered(ensemble, position)
    # At the end of the ladder the reference has no say, and is not asked.
    known = ensemble if isinstance(position, float) and position == 1.0 else None
    # A diagonal change of variables goes into the step size, and costs nothing on the way.
    outward, inward = (scale.outward, scale.inward) if scale.is_dense else (_same, _same)
    if not scale.is_dense:
        h = h * scale.factor
    if kernel.name == "rwm":
        after = evaluate(reference, target, torch.addcmul(x, h, outward(noise)), False, known)
        change = tempered(after, position) - here
    else:
        half = 0.5 * h
        momentum = torch.addcmul(noise, half, inward(_force(ensemble, position)), value=-1.0)
        after = ensemble
        for remaining in reversed(range(kernel.num_steps)):
            y = torch.addcmul(after.x, h, outward(momentum))
            after = evaluate(reference, target, y, True, known, on_the_way=remaining > 0)
            momentum = torch.addcmul(momentum, h if remaining else half, inward(_force(after, position)), value=-1.0)
        kinetic = torch.linalg.vecdot(momentum, momentum) - torch.linalg.vecdot(noise, noise)
        change = torch.add(tempered(after, position) - here, kinetic, alpha=0.5)
    # An energy of -inf is no better than one of +inf: the target is undefined there.
    acceptance = torch.exp(-change).clamp_max_(1.0)
    acceptance = torch.where(change > -torch.inf, acceptance, 0.0)
    return Moves(after.where(torch.rand_like(acceptance) < acceptance, ensemble), acceptance)


def _same(x: Tensor) -> Tensor:
    return x


def tempered(ensemble: Ensemble, position: float | Tensor) -> Tensor:
    r""":math:`u_0 + \lambda (u - u_0)`, infinite where the target is."""
    if isinstance(position, float) and position == 1.0:
        return ensemble.target
    difference = ensemble.target - ensemble.reference
    if isinstance(position, float):
        return torch.add(ensemble.reference, difference, alpha=position)
    return ensemble.reference + position * difference


def _force(ensemble: Ensemble, position: float | Tensor) -> Tensor:
    base, gradient = ensemble.reference_gradient, ensemble.target_gradient
    assert base is not None and gradient is not None
    if isinstance(position, float):
        return gradient if position == 1.0 else torch.lerp(base, gradient, position)
    return torch.lerp(base, gradient, position.unsqueeze(-1).to(base).expand_as(base))
