"""The Boltzmann density of an energy, as a whole Pyro program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_boltzmann.energies.evaluation import Energy, energy_value
from pyro_boltzmann.energies.tempered import check_temperature
from pyro_boltzmann.energies.unconstrained import (
    UnconstrainedEnergy,
    as_event_shape,
    event_support,
    is_identity,
    unconstrained_shape,
)
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["BoltzmannModel"]


class BoltzmannModel:
    r"""The Boltzmann distribution :math:`p(x) = e^{-u(x)/T} / Z` as a Pyro program with one latent site.

    The program is a tilted reference,

    .. math:: x \sim r, \qquad \mathtt{factor}\bigl(-u(x)/T - \log r(x)\bigr),

    so that the log-probability of its trace is exactly :math:`-u(x)/T`, and the reference :math:`r` cancels: it only
    serves algorithms that must draw or initialise something. This spelling gives the right :math:`\log Z` in all of
    Pyro's inference algorithms: ELBOs, importance sampling, HMC and NUTS, ``Predictive`` with a guide.

    :math:`u = +\infty` (a hard wall) means log-probability :math:`-\infty`. NaN passes through to whoever weighs the
    draws. Neither the energy nor its parameters are registered anywhere, so SVI cannot train the target.

    :param energy: maps ``(*batch, *event_shape)`` to ``(*batch)``; evaluations are counted.
    :param event_shape: shape of one configuration; an int means a vector.
    :param support: constraint that configurations satisfy.
    :param reference: distribution with batch shape ``()`` and event shape ``event_shape``; its support is used. The
        default is the standard normal, pushed to the support through ``biject_to(support)``.
    :param temperature: :math:`T > 0`.
    :param name: of the latent site.
    :param dtype: of the default reference; ``None`` follows ``torch.get_default_dtype()`` at each call.
    :param device: of the default reference; ``None`` follows torch's default device.
    :raises EnergyError: on call, if the energy returns a wrong shape; at once, if the temperature is not positive.
    :raises ShapeError: if the shapes of event, support and reference do not fit.

    >>> import torch, pyro.poutine as poutine
    >>> model = BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> trace = poutine.trace(poutine.condition(model, {"x": torch.tensor([2.0, 0.0])})).get_trace()
    >>> trace.log_prob_sum()
    tensor(-2.)
    """

    def __init__(
        self,
        energy: Energy,
        event_shape: int | Sequence[int],
        *,
        support: constraints.Constraint = constraints.real_vector,
        reference: Any = None,
        temperature: float = 1.0,
        name: str = "x",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not callable(energy):
            raise TypeError(f"an energy must be callable, (*batch, *event) -> (*batch); got {type(energy).__name__}")
        self.energy = energy
        self.event_shape = as_event_shape(event_shape)
        self.temperature = check_temperature(temperature)
        self.name = name
        self.dtype = dtype
        self.device = device
        self.support = event_support(support, self.event_shape)
        self._reference = reference
        self._default_references: dict[tuple[torch.dtype, torch.device], _PushedNormal] = {}
        if reference is not None:
            self._check_reference(reference, support)
            self.support = reference.support
        self._transform = biject_to(self.support)
        self._unconstrained = UnconstrainedEnergy(energy, self.event_shape, self._transform, self.temperature)
        self.latent_dim = self._unconstrained.latent_dim
        is_bare = is_identity(self._transform) and len(self.event_shape) == 1 and self.temperature == 1.0
        self._unconstrained_energy = energy if is_bare else self._unconstrained

    @property
    def unconstrained_energy(self) -> Energy:
        r""":math:`u(x(z))/T - \log|\det \partial x/\partial z|` of flat vectors.

        It maps ``(*batch, latent_dim)`` to ``(*batch)``, and is the same object at each access: the bare energy itself
        where there is nothing to add.
        """
        return self._unconstrained_energy

    @property
    def reference(self) -> Any:
        """The distribution that the program draws from."""
        if self._reference is not None:
            return self._reference
        dtype = torch.get_default_dtype() if self.dtype is None else self.dtype
        device = torch.get_default_device() if self.device is None else torch.device(self.device)
        if (dtype, device) not in self._default_references:
            shape = unconstrained_shape(self._transform, self.event_shape)
            zeros = torch.zeros(shape, dtype=dtype, device=device)
            # Without validation: a point on the edge of the support has weight zero and is no error.
            normal = dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(len(shape))
            reference = _PushedNormal(normal, [self._transform], validate_args=False)
            reference.pushed_support = self.support
            self._default_references[dtype, device] = reference
        return self._default_references[dtype, device]

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Map ``z``, shape ``(*batch, latent_dim)``, to ``{name: x}`` with ``x`` of ``(*batch, *event_shape)``."""
        return {self.name: self._transform(self._unconstrained.unflatten(z))}

    def __call__(self) -> Tensor:
        reference = self.reference
        x: Tensor = pyro.sample(self.name, reference)
        u = energy_value(self.energy, x, len(self.event_shape)) / self.temperature
        log_reference = reference.log_prob(x)
        # Where the reference underflows to density 0, inf - inf must not turn a weight of zero into NaN.
        is_empty = (log_reference == -torch.inf) & (u > -torch.inf)
        log_tilt = torch.where(is_empty, -torch.inf, -u - log_reference)
        # This is pyro.factor, but a NaN energy must reach the weights, where it is counted, saved and reported.
        unit = dist.Unit(log_tilt, validate_args=False)
        pyro.sample(f"{self.name}_energy", unit, obs=unit.sample(), infer={"is_auxiliary": True})
        return x

    def _check_reference(self, reference: Any, support: constraints.Constraint) -> None:
        if reference.batch_shape != () or reference.event_shape != self.event_shape:
            raise ShapeError(
                f"the reference must have batch_shape () and event_shape {tuple(self.event_shape)}, got "
                f"{tuple(reference.batch_shape)} and {tuple(reference.event_shape)}; .expand(event_shape).to_event("
                f"{len(self.event_shape)}) makes a scalar distribution fit"
            )
        if support is not constraints.real_vector and not _same_bijection(
            self.support, reference.support, self.event_shape
        ):
            raise ShapeError(
                f"the reference has support {reference.support}, but support={support} was asked for; give only one of "
                "them, or a reference that lives on that support"
            )

    def __repr__(self) -> str:
        return f"BoltzmannModel({self.energy!r}, {tuple(self.event_shape)}, temperature={self.temperature})"


class _PushedNormal(dist.TransformedDistribution):  # type: ignore[misc]
    """A normal pushed through ``biject_to(support)``, which knows that support.

    torch takes the codomain of the last transform for the support, which for an interval is the whole line.
    """

    pushed_support: Any

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return self.pushed_support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _PushedNormal:
        new: _PushedNormal = super().expand(batch_shape, _instance)
        new.pushed_support = self.pushed_support
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = super().log_prob(value)
        # On the edge of the support the inverse is infinite and its terms cancel to NaN; the density there is 0.
        is_edge = log_prob.isnan() & ~sum_rightmost(value, self.event_dim).isnan()
        return torch.where(is_edge, -torch.inf, log_prob)


def _same_bijection(first: constraints.Constraint, second: constraints.Constraint, event_shape: torch.Size) -> bool:
    """Compare supports by what their bijections do, because constraints of torch have no equality."""
    transforms = [biject_to(first), biject_to(second)]
    shapes = [unconstrained_shape(transform, event_shape) for transform in transforms]
    if shapes[0] != shapes[1]:
        return False
    probe = torch.linspace(-1.0, 1.0, shapes[0].numel() + 2)[1:-1].reshape(shapes[0])
    return torch.allclose(transforms[0](probe), transforms[1](probe))
