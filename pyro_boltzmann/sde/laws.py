"""Initial laws that torch and Pyro lack: a truncated normal, Maxwellian momenta, products of different coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from pyro.distributions import TorchDistribution
from scipy import special
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["MaxwellianMomentum", "ProductLaw", "TruncatedNormal"]


Law = TypeVar("Law", bound=TorchDistribution)


class TruncatedNormal(TorchDistribution):
    r"""A normal law on an interval, :math:`p(x) \propto e^{-(x - m)^2 / 2 s^2}` for :math:`a \le x \le b`.

    Samples are the inverse of the distribution function, differentiable in all parameters; tails are taken from the
    nearer end, so that an interval far out loses no digits.

    :param loc: :math:`m`.
    :param scale: :math:`s > 0`.
    :param low: :math:`a`.
    :param high: :math:`b > a`.

    >>> law = TruncatedNormal(0.0, 1.0, 0.0, 1.0)
    >>> law.log_prob(torch.tensor(0.5)).exp()
    tensor(1.0314)
    """

    arg_constraints = {  # noqa: RUF012 (the base class declares it this way)
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    has_rsample = True

    def __init__(
        self,
        loc: float | Tensor,
        scale: float | Tensor,
        low: float | Tensor,
        high: float | Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        _check_ordered(self.low, self.high)
        super().__init__(self.loc.shape, torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Any, _instance: TorchDistribution | None = None) -> TruncatedNormal:
        return _expanded(self, _instance, batch_shape, ("loc", "scale", "low", "high"))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        log_density = -0.5 * z.square() - 0.5 * math.log(2.0 * math.pi) - self.scale.log() - self._log_mass()
        return torch.where((value >= self.low) & (value <= self.high), log_density, -math.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=torch.float64, device=self.loc.device)
        a, b, sign = self._ends()
        low = _lower(a)
        z = sign * torch.special.ndtri(low + uniform * (_lower(b) - low))
        x = (self.loc + self.scale * z).to(self.loc.dtype)
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def _ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised ends, mirrored where both lie above the mean, and the sign that mirrors back."""
        a = (self.low.double() - self.loc) / self.scale
        b = (self.high.double() - self.loc) / self.scale
        is_above = a > 0.0
        sign = torch.where(is_above, -1.0, 1.0).double()
        return torch.where(is_above, -b, a), torch.where(is_above, -a, b), sign

    def _log_mass(self) -> Tensor:
        a, b, _ = self._ends()
        log_b = torch.special.log_ndtr(b)
        log_mass: Tensor = log_b + torch.log1p(-(torch.special.log_ndtr(a) - log_b).exp())
        return log_mass.to(self.loc.dtype)


class MaxwellianMomentum(TorchDistribution):
    r"""The size of a Maxwellian momentum, truncated: :math:`p(x) \propto x^2 e^{-x^2 / s^2}` for :math:`a \le x \le b`.

    :math:`x^2 / s^2` has a gamma law of shape 3/2, whose inverse SciPy gives; samples are drawn on the CPU.

    :param width: :math:`s > 0`.
    :param low: :math:`a \ge 0`.
    :param high: :math:`b > a`, infinite for none.

    >>> law = MaxwellianMomentum(1.0, 0.5, 5.0)
    >>> p = torch.linspace(0.5, 5.0, 20_001, dtype=torch.float64)
    >>> round(float(torch.trapezoid(law.log_prob(p).exp(), p)), 6)
    1.0
    """

    arg_constraints = {  # noqa: RUF012 (the base class declares it this way)
        "width": constraints.positive,
        "low": constraints.nonnegative,
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    has_rsample = False

    def __init__(
        self,
        width: float | Tensor,
        low: float | Tensor = 0.0,
        high: float | Tensor = math.inf,
        validate_args: bool | None = None,
    ) -> None:
        self.width, self.low, self.high = broadcast_all(width, low, high)
        _check_ordered(self.low, self.high)
        super().__init__(self.width.shape, torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        if bool(self.high.isinf().any()):
            return constraints.greater_than_eq(self.low)
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Any, _instance: TorchDistribution | None = None) -> MaxwellianMomentum:
        return _expanded(self, _instance, batch_shape, ("width", "low", "high"))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # The integral of x^2 exp(-x^2 / s^2) over the half line is sqrt(pi) s^3 / 4.
        log_all = 3.0 * self.width.log() + 0.5 * math.log(math.pi) - math.log(4.0)
        log_mass = (_upper(self.low, self.width) - _upper(self.high, self.width)).log().to(self.width.dtype)
        log_density = 2.0 * value.log() - (value / self.width).square() - log_all - log_mass
        return torch.where((value >= self.low) & (value <= self.high), log_density, -math.inf)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=torch.float64, device=self.width.device)
        top = _upper(self.high, self.width)
        tail = top + uniform * (_upper(self.low, self.width) - top)
        squares = torch.as_tensor(special.gammainccinv(1.5, tail.cpu().numpy())).to(tail)
        x = (self.width * squares.sqrt()).to(self.width.dtype)
        return torch.minimum(torch.maximum(x, self.low), self.high)


class ProductLaw(TorchDistribution):
    """Independent coordinates, each with a law of its own: event shape ``(d,)``.

    :param laws: distributions of numbers (event shape ``()``), one for each coordinate, whose batch shapes broadcast.
    :raises ValueError: if there are none, or one is not a distribution of numbers.

    >>> import pyro.distributions as dist
    >>> law = ProductLaw([MaxwellianMomentum(1.0, 0.5, 5.0), dist.Uniform(-1.0, 1.0)])
    >>> law.sample((4,)).shape, law.log_prob(torch.tensor([1.0, 0.0])).shape
    (torch.Size([4, 2]), torch.Size([]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the base class declares it this way)

    def __init__(self, laws: Sequence[Any], validate_args: bool | None = None) -> None:
        if not laws or any(tuple(law.event_shape) for law in laws):
            raise ValueError(f"a product needs one distribution of numbers for each coordinate, got {laws}")
        batch = torch.broadcast_shapes(*(law.batch_shape for law in laws))
        self.laws = tuple(law.expand(batch) for law in laws)
        self.has_rsample = all(law.has_rsample for law in laws)
        super().__init__(batch, torch.Size([len(laws)]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.stack([law.support for law in self.laws], -1)

    def expand(self, batch_shape: Any, _instance: TorchDistribution | None = None) -> ProductLaw:
        return ProductLaw([law.expand(batch_shape) for law in self.laws], validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = [law.log_prob(column) for law, column in zip(self.laws, value.unbind(-1), strict=True)]
        return torch.stack(parts).sum(0)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return torch.stack([law.rsample(sample_shape) for law in self.laws], -1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.stack([law.sample(sample_shape) for law in self.laws], -1)


def _lower(z: Tensor) -> Tensor:
    """The normal distribution function; ``torch.special.ndtr`` has no digits left below -8."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * z)


def _upper(x: Tensor, width: Tensor) -> Tensor:
    r""":math:`P(X > x)` of the law that is not truncated, in double precision."""
    u = x.double() / width.double()
    tail = torch.erfc(u) + 2.0 / math.sqrt(math.pi) * u * (-u.square()).exp()
    return torch.where(u.isinf(), 0.0, tail)


def _check_ordered(low: Tensor, high: Tensor) -> None:
    if not bool((low < high).all()):
        raise ValueError(f"a truncated law needs low < high, got {low.tolist()} and {high.tolist()}")


def _expanded(law: Law, instance: TorchDistribution | None, batch_shape: Any, names: tuple[str, ...]) -> Law:
    new: Law = law._get_checked_instance(type(law), instance)  # type: ignore[no-untyped-call]
    batch = torch.Size(batch_shape)
    for name in names:
        setattr(new, name, getattr(law, name).expand(batch))
    TorchDistribution.__init__(new, batch, torch.Size(), validate_args=False)
    new._validate_args = law._validate_args
    return new
