"""The reverse diffusion as a stochastic block: Euler-Maruyama steps with exact path weights."""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
from torch import Generator, Tensor, nn

from pyro_boltzmann.diffusion.schedules import NoiseSchedule
from pyro_boltzmann.energies.held import HeldEnergy
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock
from pyro_boltzmann.stochastic.info import StepInfo
from pyro_boltzmann.stochastic.noise import NoisePart, Parts

__all__ = ["DiffusionField", "ReverseDiffusion", "reverse_diffusion"]

SMALLEST_SPREAD = 1e-6


class DiffusionField(Protocol):
    """What a reverse process asks of a learned (or exact) model of the noised target."""

    def score_and_spread(self, x: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor]:
        r"""The score :math:`\nabla \log p_h(x)`, ``(*batch, dim)``, and the variance of :math:`x_0` given :math:`x_h =
        x`, divided by h: ``(*batch, dim)`` or ``(*batch, 1)``."""


class _LevelEnergy(Protocol):
    @property
    def variance(self) -> float: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class ReverseDiffusion(StochasticBlock):
    r"""Steps of the reverse process between falling noise levels :math:`h_0 > h_1 > \dots > h_n \ge 0`. From
    :math:`h` to :math:`h'`, with :math:`\Delta = h - h'`,

    .. math::
        x' = x + \Delta\, s(x, h) + \sigma_f\, \xi, \qquad
        \sigma_f^2 = \Delta \frac{h'}{h} + \frac{\Delta^2}{h}\, r(x, h), \qquad
        \xi' = \frac{x - x'}{\sqrt{\Delta}}, \qquad
        \log|\det| = \sum \log \sigma_f - \tfrac d2 \log \Delta .

    The way back is the noising process itself, :math:`N(x', \Delta)`, so weights are exact for any score and any
    positive spread :math:`r`. The forward kernel has the first two moments of the law of :math:`x'` given x: that law
    is
    :math:`N(x' ; (h' / h)\, x + (\Delta / h)\, x_0,\ \Delta h' / h)` averaged over :math:`x_0`, whose mean is
    :math:`x + h\, s` (Tweedie) and whose variance is :math:`h\, r`. For a locally Gaussian target of variance
    :math:`c^2`,
    :math:`r = c^2 / (h + c^2)` and :math:`\sigma_f^2 = \Delta (h' + c^2) / (h + c^2)`. It stays positive in the last
    step, to :math:`h' = 0`, where :math:`\Delta h' / h` alone would vanish and take the weights with it.

    :param field: the model of the noised target; an ``nn.Module`` is registered and trained.
    :param dim: dimension of x.
    :param variances: ``(n + 1,)``, falling.
    :param registers_field: whether a module is trained and saved as a part of this block; not for a further stretch of
        a path whose first one has it.
    :param arriving: an energy at the first level whose gradient is minus the field's score, such as a
        :class:`~pyro_boltzmann.diffusion.NoisedEnergy`. Where the block before has computed it, it is not computed
        again (without a graph). The field needs a method ``spread(x, variance)`` then.
    :param max_score: bound on :math:`\sqrt h\, |s| / \sqrt d`; no bound unless given. Weights stay exact.
    :raises ValueError: unless the variances fall and are not negative.

    Sources: Song et al., arXiv 2011.13456 (reverse process); Efron 2011 (Tweedie's formula); the weights are those of
    Wu, Koehler and Noe, arXiv 2002.06707, section 3.

    >>> class Gaussian:  # target N(0, 1): exact, so all weights are equal
    ...     def score_and_spread(self, x, variance):
    ...         return -x / (1 + variance), torch.ones(1) / (1 + variance)
    >>> block = ReverseDiffusion(Gaussian(), 2, [100.0, 10.0, 1.0, 0.0])
    >>> x = torch.randn(4, 2) * 101**0.5
    >>> y, ratio, *_ = block.stream(x)
    >>> log_w = -0.5 * y.square().sum(-1) + ratio + 0.5 * x.square().sum(-1) / 101
    >>> torch.allclose(log_w, log_w[:1], atol=1e-4)
    True
    """

    def __init__(
        self,
        field: DiffusionField,
        dim: int,
        variances: Tensor | list[float],
        *,
        max_score: float | None = None,
        registers_field: bool = True,
        arriving: _LevelEnergy | None = None,
    ) -> None:
        # A copy: the buffer is written to, and callers hand out parts of one tensor.
        levels = torch.as_tensor(variances, dtype=torch.float64).detach().clone()
        if levels.dim() != 1 or len(levels) < 2:
            raise ValueError(f"a reverse process needs two variances or more, got shape {tuple(levels.shape)}")
        super().__init__(dim, (NoisePart("normal", dim),), num_repeats=len(levels) - 1, is_involution=False)
        self._plain: list[DiffusionField] = []
        self._arriving = None if arriving is None else HeldEnergy(arriving)
        if isinstance(field, nn.Module) and registers_field:
            self.field = field
        else:
            self._plain.append(field)
        if max_score is not None and not max_score > 0:
            raise ValueError(f"max_score must be positive or None, got {max_score}")
        self.max_score = max_score
        self.variances: Tensor
        self.register_buffer("variances", levels)
        self._levels: list[float] = []
        self.set_variances(levels)

    def set_variances(self, variances: Tensor) -> None:
        """Other noise levels, as many as before.

        :raises ValueError: unless they fall and are not negative.
        """
        levels = torch.as_tensor(variances, dtype=torch.float64)
        if levels.shape != self.variances.shape:
            raise ValueError(f"expected {len(self.variances)} variances, got shape {tuple(levels.shape)}")
        if not bool((levels.diff() < 0).all()) or not bool(levels[-1] >= 0) or not bool(levels.isfinite().all()):
            raise ValueError(f"the variances of a reverse process must fall and not be negative, got {variances}")
        self.variances.copy_(levels)
        self._levels = []

    @property
    def _field(self) -> DiffusionField:
        return self._plain[0] if self._plain else self.field

    def _levels_of(self, index: int) -> tuple[float, float]:
        if not self._levels:  # read once, because a buffer may live on a GPU
            self._levels = self.variances.tolist()
        return self._levels[index], self._levels[index + 1]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._levels = []

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._levels = []
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _known_score(self, memo: EnergyMemo, index: int) -> Tensor | None:
        """The score at the state of ``memo``, if the block before has computed it."""
        if self._arriving is None or index or not memo.entries or torch.is_grad_enabled():
            return None
        gradient = memo.known_gradient(self._arriving)
        if gradient is None or cast(_LevelEnergy, self._arriving.energy).variance != self._levels_of(0)[0]:
            return None
        return -gradient

    def _forward_kernel(self, x: Tensor, index: int, known: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
        """Mean, standard deviation ``(*batch, dim)`` or ``(*batch, 1)``, and the variance of the way back.

        :param known: the score at x, where it is.
        """
        h, h_next = self._levels_of(index)
        step = h - h_next
        if known is None:
            score, spread = self._field.score_and_spread(x, h)
        else:
            score, spread = known, cast(Any, self._field).spread(x, h)
        # Whatever the model says, the step stays a bijection.
        score = torch.where(score.isfinite(), score, 0.0)
        if self.max_score is not None:
            bound = self.max_score * math.sqrt(self.dim / h)
            # In units of the largest entry, so that no square overflows; at zero there is a gradient too.
            largest = score.abs().amax(-1, keepdim=True).clamp_min(bound)
            square = (score / largest).square().sum(-1, keepdim=True).clamp_min((bound / largest).square())
            score = score * (bound / (largest * square.sqrt()))
        spread = torch.where(spread > SMALLEST_SPREAD, spread, SMALLEST_SPREAD).clamp_max(1.0 / SMALLEST_SPREAD)
        variance = step * (h_next / h) + step * step / h * spread
        return x + step * score, variance.sqrt(), step

    def _log_scale(self, scale: Tensor, step: float) -> Tensor:
        """Log-determinant of a step."""
        total = scale.log().sum(-1)
        if scale.shape[-1] != self.dim:
            total = total * self.dim
        return total - 0.5 * self.dim * math.log(step)

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        known = self._known_score(memo, index)
        mean, scale, step = self._forward_kernel(x, index) if known is None else self._forward_kernel(x, index, known)
        y = mean + scale * noise[0]
        return StepResult(y, ((x - y) / math.sqrt(step),), self._log_scale(scale, step), EnergyMemo())

    def step_inverse(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        h, h_next = self._levels_of(index)
        before = x + math.sqrt(h - h_next) * noise[0]
        mean, scale, step = self._forward_kernel(before, index)
        return StepResult(before, ((x - mean) / scale,), -self._log_scale(scale, step), EnergyMemo())

    def stream_step(
        self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | float, EnergyMemo, StepInfo]:
        result = (self.step_inverse if inverse else self.step)(x, noise, memo, index)
        energy = 0.5 * (noise[0].square() - result.noise[0].square()).sum(-1)
        return result.x, energy + result.ladj, result.memo, result.info

    def sample_noise(self, batch_shape: torch.Size, like: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.randn((*batch_shape, self.noise_dim), dtype=like.dtype, device=like.device, generator=generator)

    def extra_repr(self) -> str:
        h = self.variances
        return f"dim={self.dim}, num_steps={self.num_repeats}, variances={float(h[0]):.4g}..{float(h[-1]):.4g}"


def reverse_diffusion(
    field: DiffusionField, dim: int, schedule: NoiseSchedule, num_steps: int = 200
) -> ReverseDiffusion:
    """A :class:`ReverseDiffusion` from the prior of a schedule to its target, spaced evenly in the log-variance."""
    return ReverseDiffusion(field, dim, schedule.variances(num_steps))
