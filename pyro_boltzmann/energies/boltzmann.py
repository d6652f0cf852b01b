"""The Boltzmann density of an energy, as a Pyro distribution."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import predictive
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.mcmc import util as mcmc_util
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_boltzmann.energies.evaluation import Energy, energy_value
from pyro_boltzmann.energies.tempered import check_temperature
from pyro_boltzmann.energies.unconstrained import as_event_shape, event_support, unconstrained_shape
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["Boltzmann", "Sampler"]

Sampler = Callable[[torch.Size], Tensor]
"""Maps a sample shape to exact samples of shape ``sample_shape + event_shape``."""


class Boltzmann(TorchDistribution):
    r"""The Boltzmann distribution of an energy, for a site inside a larger Pyro program:

    .. math:: \log p(x) = -u(x) / T - \log Z

    where :math:`\log Z` is taken as 0 (an unnormalised density) unless ``log_normalizer`` is given. A whole target is
    better written as a :class:`BoltzmannModel`, which every Pyro inference algorithm accepts as it is.

    NUTS, HMC and autoguides start from Pyro's ``init_to_uniform``, ``init_to_feasible``, ... as usual: these ask the
    distribution for a value only to learn its shape, and are given a feasible point. Any other request for a sample
    needs a ``sampler``.

    :param energy: maps ``(*batch, *event_shape)`` to ``(*batch)``; evaluations are counted.
    :param event_shape: shape of one configuration; an int means a vector.
    :param support: constraint that configurations satisfy.
    :param sampler: draws exact samples: ``sampler(sample_shape)`` has shape ``sample_shape + event_shape``.
    :param temperature: :math:`T > 0`.
    :param log_normalizer: :math:`\log Z` at this temperature, if known.
    :raises EnergyError: if the energy returns a wrong shape, or the temperature is not positive.
    :raises NotImplementedError: by ``sample`` and ``rsample`` if there is no sampler.

    >>> import torch
    >>> gaussian = Boltzmann(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> gaussian.log_prob(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    tensor([-0., -2.])
    >>> gaussian.expand([3]).log_prob(torch.ones(2)).shape
    torch.Size([3])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the base class declares it this way)
    has_rsample = False

    def __init__(
        self,
        energy: Energy,
        event_shape: int | Sequence[int],
        *,
        support: constraints.Constraint = constraints.real_vector,
        sampler: Sampler | None = None,
        temperature: float = 1.0,
        log_normalizer: float | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.energy = energy
        self.sampler = sampler
        self.temperature = check_temperature(temperature)
        self.log_normalizer = log_normalizer
        shape = as_event_shape(event_shape)
        self._support = event_support(support, shape)
        super().__init__(torch.Size(), shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return self._support

    def expand(self, batch_shape: Sequence[int], _instance: Boltzmann | None = None) -> Boltzmann:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        for attribute in ("energy", "sampler", "temperature", "log_normalizer", "_support"):
            setattr(new, attribute, getattr(self, attribute))
        super(Boltzmann, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        r""":math:`-u(x)/T - \log Z` for ``value`` of shape ``(*batch, *event_shape)``.

        :raises EnergyError: if the energy does not return the batch shape.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_prob = -energy_value(self.energy, value, len(self.event_shape))
        if self.temperature != 1.0:
            log_prob = log_prob / self.temperature
        if self.log_normalizer is not None:
            log_prob = log_prob - self.log_normalizer
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Exact samples from the ``sampler``.

        :raises NotImplementedError: if there is none.
        :raises ShapeError: if it returns a wrong shape.
        """
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """As :meth:`sample`, keeping whatever graph the ``sampler`` builds."""
        leading = torch.Size(sample_shape) + self.batch_shape
        if self.sampler is None:
            if _pyro_asks_for_structure_only():
                transform = biject_to(self._support)
                value: Tensor = transform(torch.zeros(leading + unconstrained_shape(transform, self.event_shape)))
                return value
            raise NotImplementedError(
                "Boltzmann cannot draw samples of an unnormalised density by itself; pass sampler=, a function from "
                "sample_shape to exact samples, or draw weighted samples with pb.importance_sample of a "
                "pb.BoltzmannModel under a trained guide"
            )
        value = self.sampler(leading)
        if value.shape != leading + self.event_shape:
            raise ShapeError(
                f"sampler({tuple(leading)}) must return shape {tuple(leading + self.event_shape)}, got "
                f"{tuple(value.shape)}"
            )
        return value


_STRUCTURE_ONLY: frozenset[CodeType] = frozenset(
    module._guess_max_plate_nesting.__code__ for module in (mcmc_util, predictive)
)


def _pyro_asks_for_structure_only() -> bool:
    """Whether Pyro will use the value for shapes or as a starting point, and never as a draw from the density.

    ``NUTS(model)`` runs the bare program once to count plates before any init strategy applies, and nothing on
    Pyro's own stack marks that run: hence the look at the calling functions, on a path that would raise otherwise.
    """
    if any(isinstance(messenger, InitMessenger) for messenger in _PYRO_STACK):
        return True
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code in _STRUCTURE_ONLY:
            return True
    return False
