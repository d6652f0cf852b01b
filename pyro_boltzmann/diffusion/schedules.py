"""Noise schedules of variance-exploding diffusions: how the variance of the noise grows with time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "CosineSchedule",
    "GeometricSchedule",
    "LinearSchedule",
    "NoiseSchedule",
    "PowerSchedule",
    "QuadraticSchedule",
    "noise_schedule",
]

Spacing = Literal["log_variance", "time"]


@dataclass(frozen=True)
class NoiseSchedule(ABC):
    r"""The variance :math:`h(t)` of the noise at time :math:`t \in [0, 1]`, from the target to the prior:

    .. math:: x_t = x_0 + \sqrt{h(t)}\, z, \qquad h(0) = 0, \quad h' = g^2 > 0, \quad h(1) \approx \sigma_{\max}^2 .

    Every schedule is built from the same two numbers. All results are float64, whatever comes in.

    :param sigma_min: the noise below which the target is not blurred any more. Grids and random variances that are
        even in the log-variance begin at its square.
    :param sigma_max: the noise of the prior.
    :raises ValueError: unless ``0 < sigma_min < sigma_max``.

    Source: Song et al., arXiv 2011.13456, section 3.4 (variance exploding); Akhound-Sadegh et al., arXiv 2402.06121.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"a noise schedule needs 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min} and "
                f"sigma_max={self.sigma_max}"
            )
        if not self.sigma_min**2 < self.max_variance:
            raise ValueError(
                f"sigma_min={self.sigma_min} is too close to sigma_max={self.sigma_max}: its square must lie below the "
                f"largest variance {self.max_variance:.6g}; lower sigma_min"
            )

    @property
    def max_variance(self) -> float:
        """:math:`h(1)`, the variance of the prior beyond the target's own."""
        return self.sigma_max**2

    def variance(self, t: float | Tensor) -> Tensor:
        """:math:`h(t)`, a float64 tensor of the shape of ``t``.

        :raises ValueError: if a time lies outside [0, 1].
        """
        return self._variance(_within(t, 1.0, "a time"))

    def rate(self, t: float | Tensor) -> Tensor:
        r""":math:`h'(t) = g(t)^2`, the squared diffusion coefficient, a float64 tensor of the shape of ``t``.

        :raises ValueError: if a time lies outside [0, 1].
        """
        return self._rate(_within(t, 1.0, "a time"))

    def time(self, variance: float | Tensor) -> Tensor:
        """The time at which the noise has this variance: the inverse of :meth:`variance`.

        :raises ValueError: if a variance lies outside [0, :attr:`max_variance`].
        """
        return self._time(_within(variance, self.max_variance, "a variance"))

    def variances(self, num_steps: int, spacing: Spacing = "log_variance", *, smallest: float | None = None) -> Tensor:
        r"""Where a reverse process stops: ``num_steps + 1`` variances, falling from :math:`h(1)` to exactly 0.

        :param num_steps: the number of steps.
        :param spacing: ``"log_variance"`` falls by one factor each step from :math:`h(1)` to ``smallest`` and then to 0
            in the last step; ``"time"`` is :math:`h` of equal steps of time.
        :param smallest: the last positive variance, :math:`\sigma_{\min}^2` unless given (``"log_variance"`` only).
        :raises ValueError: for less than one step, an unknown spacing, or a ``smallest`` not in (0, :math:`h(1)`).

        >>> LinearSchedule(0.1, 1.0).variances(3)
        tensor([1.0000, 0.1000, 0.0100, 0.0000], dtype=torch.float64)
        >>> LinearSchedule(0.1, 1.0).variances(4, "time")
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
        """
        if num_steps < 1:
            raise ValueError(f"a reverse process needs at least one step, got num_steps={num_steps}")
        if _known(spacing) == "time":
            if smallest is not None:
                raise ValueError("equal steps of time leave no choice of the smallest variance; leave it out")
            h = self._variance(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64))
        else:
            low = self.sigma_min**2 if smallest is None else smallest
            if not 0.0 < low < self.max_variance:
                raise ValueError(f"smallest must lie between 0 and h(1) = {self.max_variance:.6g}, got {low}")
            logs = torch.linspace(math.log(self.max_variance), math.log(low), num_steps, dtype=torch.float64)
            h = torch.cat([logs.exp(), logs.new_zeros(1)])
        h[0], h[-1] = self.max_variance, 0.0
        return h

    def split_times(self, increment: float, grid: int = 1000) -> Tensor:
        r"""Times :math:`0 = \tau_0 < \tau_1 < \dots < \tau_n = 1` between which the variance grows by ``increment``.

        Each :math:`\tau_{k+1}` is the first multiple of ``1 / grid`` with
        :math:`h(\tau_{k+1}) - h(\tau_k) \ge \Delta`; what is left at the end is the last interval.

        :param increment: :math:`\Delta > 0`.
        :param grid: the number of cells of [0, 1].
        :raises ValueError: if either is not positive.

        Source: OuYang et al., arXiv 2409.09787, section 4 (bootstrapping).

        >>> LinearSchedule(0.1, 1.0).split_times(0.3)
        tensor([0.0000, 0.3000, 0.6000, 0.9000, 1.0000], dtype=torch.float64)
        """
        if not increment > 0.0 or grid < 1:
            raise ValueError(f"increment and grid must be positive, got increment={increment} and grid={grid}")
        h = self._variance(torch.arange(grid + 1, dtype=torch.float64) / grid)
        # A sum that rounding left just below its grid point still counts as reached.
        slack = 1e-12 * self.max_variance
        cells, last = [0], 0
        while last < grid:
            last = min(int(torch.searchsorted(h, h[last] + increment - slack)), grid)
            cells.append(last)
        return torch.tensor(cells, dtype=torch.float64) / grid

    def random_variances(
        self,
        shape: tuple[int, ...],
        law: Spacing = "log_variance",
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""Independent positive variances for training, a float64 tensor of shape ``shape``.

        :param law: ``"log_variance"``: :math:`\log h` is uniform between :math:`\log \sigma_{\min}^2` and
            :math:`\log h(1)`. ``"time"``: :math:`h(t)` of a uniform time.
        :raises ValueError: for an unknown law.

        >>> h = GeometricSchedule(0.1, 10.0).random_variances((1000,), generator=torch.Generator().manual_seed(0))
        >>> bool((h >= 0.01).all() and (h <= 100.0).all())
        True
        """
        if device is None:
            device = "cpu" if generator is None else generator.device
        # Uniform on (0, 1], so that no variance is zero.
        uniform = 1.0 - torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        if _known(law) == "time":
            return self._variance(uniform)
        low, high = 2.0 * math.log(self.sigma_min), math.log(self.max_variance)
        return (low + (high - low) * uniform).exp().clamp_max(self.max_variance)

    @abstractmethod
    def _variance(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _rate(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, variance: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class GeometricSchedule(NoiseSchedule):
    r"""Noise that grows by one factor in equal times, :math:`\rho = \sigma_{\max} / \sigma_{\min}`:

    .. math:: h(t) = \sigma_{\min}^2 (\rho^{2t} - 1), \qquad h'(t) = 2 \log\rho\; \sigma_{\min}^2\, \rho^{2t},
        \qquad h(1) = \sigma_{\max}^2 - \sigma_{\min}^2 .

    Source: Song et al., arXiv 2011.13456; Akhound-Sadegh et al., arXiv 2402.06121.

    >>> schedule = GeometricSchedule(0.1, 10.0)
    >>> schedule.variance(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ 0.0000,  0.9900, 99.9900], dtype=torch.float64)
    >>> schedule.time(0.99)
    tensor(0.5000, dtype=torch.float64)
    """

    @property
    def max_variance(self) -> float:
        r""":math:`h(1) = \sigma_{\max}^2 - \sigma_{\min}^2`."""
        return (self.sigma_max - self.sigma_min) * (self.sigma_max + self.sigma_min)

    @property
    def _twice_log_ratio(self) -> float:
        return 2.0 * math.log(self.sigma_max / self.sigma_min)

    def _variance(self, t: Tensor) -> Tensor:
        return self.sigma_min**2 * (self._twice_log_ratio * t).expm1()

    def _rate(self, t: Tensor) -> Tensor:
        k = self._twice_log_ratio
        return k * self.sigma_min**2 * (k * t).exp()

    def _time(self, variance: Tensor) -> Tensor:
        return (variance / self.sigma_min**2).log1p() / self._twice_log_ratio


@dataclass(frozen=True)
class PowerSchedule(NoiseSchedule):
    r"""Variance as a power of time,

    .. math:: h(t) = \sigma_{\max}^2\, t^p, \qquad h'(t) = p\, \sigma_{\max}^2\, t^{p-1}, \qquad
        h(1) = \sigma_{\max}^2 .

    :param power: :math:`p > 0`.

    >>> PowerSchedule(0.1, 2.0, power=3.0).variance(0.5)
    tensor(0.5000, dtype=torch.float64)
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"the power of a schedule must be positive, got power={self.power}")

    def _variance(self, t: Tensor) -> Tensor:
        return self.max_variance * t.pow(self.power)

    def _rate(self, t: Tensor) -> Tensor:
        return self.power * self.max_variance * t.pow(self.power - 1.0)

    def _time(self, variance: Tensor) -> Tensor:
        return (variance / self.max_variance).pow(1.0 / self.power)


@dataclass(frozen=True)
class LinearSchedule(PowerSchedule):
    r"""Variance proportional to time, :math:`h(t) = \sigma_{\max}^2\, t`: Brownian motion.

    >>> LinearSchedule(0.1, 2.0).rate(0.3)
    tensor(4., dtype=torch.float64)
    """

    power: float = 1.0


@dataclass(frozen=True)
class QuadraticSchedule(PowerSchedule):
    r"""Standard deviation proportional to time, :math:`h(t) = \sigma_{\max}^2\, t^2`.

    >>> QuadraticSchedule(0.1, 2.0).variance(0.5)
    tensor(1., dtype=torch.float64)
    """

    power: float = 2.0


@dataclass(frozen=True)
class CosineSchedule(NoiseSchedule):
    r"""Variance that starts and ends slowly,

    .. math:: h(t) = \sigma_{\max}^2\, \frac{1 - \cos \pi t}{2} = \sigma_{\max}^2 \sin^2 \frac{\pi t}{2},
        \qquad h'(t) = \frac{\pi}{2}\, \sigma_{\max}^2 \sin \pi t, \qquad h(1) = \sigma_{\max}^2 .

    The rate vanishes at both ends; with :math:`\sigma_{\max}` as the unit of length :math:`\cos(\pi t / 2)` is the
    signal of the variance-preserving cosine schedule.

    Source: after Nichol and Dhariwal, arXiv 2102.09672, section 3.2.

    >>> CosineSchedule(0.1, 2.0).variance(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 2.0000, 4.0000], dtype=torch.float64)
    """

    def _variance(self, t: Tensor) -> Tensor:
        return self.max_variance * (0.5 * math.pi * t).sin().square()

    def _rate(self, t: Tensor) -> Tensor:
        # sin(pi t) from the nearer end, so that the rate at t = 1 is 0 and not negative.
        return 0.5 * math.pi * self.max_variance * (math.pi * torch.minimum(t, 1.0 - t)).sin()

    def _time(self, variance: Tensor) -> Tensor:
        sine = (variance / self.max_variance).sqrt()
        # By its tangent: the arc sine alone loses half of the digits near t = 1.
        cosine = ((self.max_variance - variance) / self.max_variance).sqrt()
        return torch.atan2(sine, cosine) / (0.5 * math.pi)


_SCHEDULES: dict[str, type[NoiseSchedule]] = {
    "cosine": CosineSchedule,
    "geometric": GeometricSchedule,
    "linear": LinearSchedule,
    "power": PowerSchedule,
    "quadratic": QuadraticSchedule,
}


def noise_schedule(name: str, sigma_min: float, sigma_max: float) -> NoiseSchedule:
    """The schedule of this name: ``cosine``, ``geometric``, ``linear``, ``power`` (cubic) or ``quadratic``.

    :raises ValueError: for an unknown name, listing those there are.

    >>> noise_schedule("geometric", 0.01, 3.0)
    GeometricSchedule(sigma_min=0.01, sigma_max=3.0)
    """
    if name not in _SCHEDULES:
        raise ValueError(f"there is no noise schedule {name!r}; choose one of {', '.join(sorted(_SCHEDULES))}")
    return _SCHEDULES[name](sigma_min, sigma_max)


def _known(spacing: str) -> str:
    if spacing not in ("log_variance", "time"):
        raise ValueError(f"expected 'log_variance' or 'time', got {spacing!r}")
    return spacing


def _within(value: float | Tensor, high: float, what: str) -> Tensor:
    """``value`` in float64, checked to lie in [0, high] up to the rounding of its own dtype, and put there."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    exact = tensor.to(torch.float64)
    slack = high * (torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0)
    if not bool(((exact >= -slack) & (exact <= high + slack)).all()):
        worst = exact[~((exact >= -slack) & (exact <= high + slack))].flatten()[0].item()
        raise ValueError(f"{what} must lie in [0, {high:.6g}], got {worst:.6g}")
    return exact.clamp(0.0, high)
