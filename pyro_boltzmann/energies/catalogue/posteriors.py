"""Posterior distributions of Pyro programs: eight schools in two parametrisations, and a logistic regression."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.target import Target

__all__ = ["PosteriorTarget", "eight_schools", "eight_schools_centered", "logistic_data", "logistic_regression"]

EIGHT_SCHOOLS_EFFECT = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
EIGHT_SCHOOLS_ERROR = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def eight_schools(sigma: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Eight schools, non-centred: the effect of coaching in school j is :math:`\theta_j = \mu + \tau \eta_j`.

    .. math::

        \mu \sim N(0, 5^2), \quad \tau \sim \mathrm{HalfCauchy}(5), \quad \eta_j \sim N(0, 1), \quad
        y_j \sim N(\theta_j, \sigma_j^2)

    :param sigma: standard errors of the measured effects, shape ``(8,)``.
    :param y: measured effects, shape ``(8,)``; drawn from the model when ``None``.
    :return: :math:`\theta`, also recorded as the deterministic site ``"theta"``.

    Source: Rubin (1981); Gelman et al., Bayesian Data Analysis, section 5.5.

    >>> eight_schools(torch.ones(8)).shape
    torch.Size([8])
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    # HalfCauchy.log_prob casts its value to the dtype and device of the scale, which therefore follows mu.
    tau = pyro.sample("tau", dist.HalfCauchy(mu.new_full((), 5.0)))
    with pyro.plate("schools", sigma.shape[-1], dim=-1):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta: Tensor = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma.to(theta)), obs=None if y is None else y.to(theta))
    return theta


def eight_schools_centered(sigma: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Eight schools, centred: :math:`\theta_j \sim N(\mu, \tau^2)`, otherwise as :func:`eight_schools`.

    It has the same evidence, and a funnel in :math:`(\log \tau, \theta)` that makes it hard to sample.

    >>> eight_schools_centered(torch.ones(8)).shape
    torch.Size([8])
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    # HalfCauchy.log_prob casts its value to the dtype and device of the scale, which therefore follows mu.
    tau = pyro.sample("tau", dist.HalfCauchy(mu.new_full((), 5.0)))
    with pyro.plate("schools", sigma.shape[-1], dim=-1):
        theta: Tensor = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma.to(theta)), obs=None if y is None else y.to(theta))
    return theta


def logistic_regression(features: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""Bayesian logistic regression: :math:`w \sim N(0, I)`, :math:`P(y_i = 1) = 1 / (1 + e^{-x_i \cdot w})`.

    :param features: :math:`x_i`, shape ``(n, d)``; the column of ones is the caller's.
    :param labels: 0 or 1, shape ``(n,)``; drawn from the model when ``None``.
    :return: the weights ``w``.

    >>> features, labels = logistic_data()
    >>> logistic_regression(features, labels).shape
    torch.Size([5])
    """
    zeros = features.new_zeros(features.shape[-1])
    weights: Tensor = pyro.sample("weights", dist.Normal(zeros, 1.0).to_event(1))
    with pyro.plate("data", len(features), dim=-1):
        logits = (features.to(weights) * weights).sum(-1)
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=None if labels is None else labels.to(weights))
    return weights


def logistic_data() -> tuple[Tensor, Tensor]:
    """The synthetic data of the ``logistic_regression`` target: features ``(100, 5)`` and labels ``(100,)``.

    Four standard normal features beside a column of ones, rounded to multiples of 1/64 so that they are equal on
    every platform and exact in float32. The stream of ``numpy.random.RandomState`` is frozen for ever (NEP 19).

    >>> features, labels = logistic_data()
    >>> features.shape, int(labels.sum())
    (torch.Size([100, 5]), 57)
    """
    random = np.random.RandomState(20240607)
    features = np.concatenate([np.ones((100, 1)), np.round(64 * random.standard_normal((100, 4))) / 64], 1)
    probability = 1 / (1 + np.exp(-features @ np.array([0.5, 1.0, -1.0, 0.75, -0.25])))
    labels = random.random_sample(100) < probability
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)


class PosteriorTarget(Target):
    r"""The posterior of a Pyro program, on the unconstrained space of its latent sites in trace order.

    :math:`u(z) = -\log p(x(z), y) - \log |\det \partial x / \partial z|`, so :math:`Z` is the evidence :math:`p(y)`.

    :param name: the catalogue name.
    :param program: a module-level Pyro program (so that the target can be pickled).
    :param data: its keyword arguments, or a module-level function that reads them when they are first needed.
    :param dim: number of unconstrained latent coordinates.
    :param constants: what :attr:`target_hash` is made of beside the program's name; ``data`` unless given.
    :param sampler: ``(num_samples, generator, device) -> (num_samples, dim)`` in float64, where exact draws exist.
    :param truths: further keyword arguments of :class:`Target`.

    A subclass with a formula of its own for :math:`u` overrides ``__call__``; programs made by :meth:`model` with the
    target's own data then carry it as ``unconstrained_energy``, which :class:`~pyro_boltzmann.ModelEnergy` prefers to
    running the program.

    >>> target = PosteriorTarget("schools", eight_schools, dict(sigma=torch.ones(8), y=torch.zeros(8)), dim=10)
    >>> target.model()().shape
    torch.Size([8])
    """

    def __init__(
        self,
        name: str,
        program: Callable[..., Any],
        data: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]],
        dim: int,
        *,
        constants: Mapping[str, float | int | str | Tensor] | None = None,
        sampler: Callable[[int, torch.Generator | None, torch.device], Tensor] | None = None,
        **truths: Any,
    ) -> None:
        if constants is None:
            if callable(data):
                raise TypeError(f"constants of {name!r} are needed where its data are read later, to hash them")
            constants = data
        super().__init__(name, dim, constants={"program": program.__name__, **constants}, **truths)
        self.program = program
        self._read = data if callable(data) else None
        self._data: dict[str, Tensor] | None = None if callable(data) else dict(data)
        self._sampler = sampler
        self._energy: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_energy": None}

    @property
    def data(self) -> dict[str, Tensor]:
        """The keyword arguments of the program."""
        if self._data is None:
            assert self._read is not None
            self._data = dict(self._read())
        return self._data

    def to(self, device: torch.device | str) -> PosteriorTarget:
        """The same target with its data, and so its energy, on another device."""
        moved = copy.copy(self)
        moved._data = {name: value.to(device) for name, value in self.data.items()}
        moved._energy = None
        return moved

    @property
    def energy(self) -> Callable[[Tensor], Tensor]:
        """The :class:`~pyro_boltzmann.ModelEnergy` of the program; the same object on every access."""
        if self._energy is None:
            from pyro_boltzmann.energies.model_energy import ModelEnergy

            self._energy = ModelEnergy(self.model())
        return self._energy

    def model(self, **kwargs: Any) -> Callable[..., Any]:
        """The raw Pyro program with its data bound; keyword arguments replace data (``y=None`` draws new data)."""
        program = functools.partial(self.program, **{**self.data, **kwargs})
        if not kwargs and type(self).__call__ is not PosteriorTarget.__call__:
            program.unconstrained_energy = self  # type: ignore[attr-defined]
        return program

    @property
    def has_exact_sampler(self) -> bool:
        return self._sampler is not None

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        if self._sampler is None:
            return super()._sample(num_samples, generator, device)
        return self._sampler(num_samples, generator, device)
