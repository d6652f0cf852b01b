"""The benchmark's energies as JAX functions of one point ``(dim,)``, for the samplers that are written in JAX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_boltzmann.energies.catalogue import catalogue, seeds
from pyro_boltzmann.energies.catalogue.double_well import LINEAR, QUADRATIC, QUARTIC
from pyro_boltzmann.energies.catalogue.gmm40 import MEANS, STD
from pyro_boltzmann.energies.catalogue.posteriors import EIGHT_SCHOOLS_EFFECT, EIGHT_SCHOOLS_ERROR
from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments.others.extra import need

__all__ = ["JAX_ENERGIES", "jax_energy"]

JaxEnergy = Callable[[Any], Any]
LOG_2PI = math.log(2 * math.pi)


def jax_energy(name: str) -> JaxEnergy:
    r"""The energy :math:`u` of a catalogue target as a differentiable JAX function ``(dim,) -> ()``, not compiled.

    :raises MissingExtraError: if JAX is not installed.
    :raises PyroBoltzmannError: for a target that has no such function.
    """
    if name not in JAX_ENERGIES:
        raise PyroBoltzmannError(f"no JAX energy is written for {name!r}; there is one for {', '.join(JAX_ENERGIES)}")
    return JAX_ENERGIES[name]()


def _wells() -> JaxEnergy:
    def energy(x: Any) -> Any:
        well, normal = x[0::2], x[1::2]
        return (LINEAR * well + QUADRATIC * well**2 + QUARTIC * well**4 + 0.5 * normal**2).sum()

    return energy


def _gmm40() -> JaxEnergy:
    numpy, special = need("jax.numpy"), need("jax.scipy.special")
    means = np.asarray(MEANS)
    log_peak = -math.log(len(MEANS) * 2 * math.pi * STD**2)

    def energy(x: Any) -> Any:
        square = ((x - numpy.asarray(means, x.dtype)) ** 2).sum(-1)
        return -special.logsumexp(log_peak - 0.5 * square / STD**2)

    return energy


def _funnel10() -> JaxEnergy:
    numpy = need("jax.numpy")
    normalizer = math.log(3.0) + 5 * LOG_2PI

    def energy(x: Any) -> Any:
        scaled = x[1:] * numpy.exp(-0.5 * x[0])
        return x[0] ** 2 / 18 + 4.5 * x[0] + 0.5 * (scaled**2).sum() + normalizer

    return energy


def _eight_schools() -> JaxEnergy:
    numpy = need("jax.numpy")
    effect, error = np.asarray(EIGHT_SCHOOLS_EFFECT), np.asarray(EIGHT_SCHOOLS_ERROR)
    constant = 0.5 * 17 * LOG_2PI + math.log(5.0) + float(np.log(error).sum()) - math.log(2 / (5 * math.pi))

    def energy(z: Any) -> Any:
        mu, log_tau, eta = z[0], z[1], z[2:]
        tau = numpy.exp(log_tau)
        residual = (numpy.asarray(effect, z.dtype) - mu - tau * eta) / numpy.asarray(error, z.dtype)
        quadratic = 0.5 * ((mu / 5) ** 2 + (eta**2).sum() + (residual**2).sum())
        return quadratic + numpy.log1p((tau / 5) ** 2) - log_tau + constant

    return energy


def _seeds() -> JaxEnergy:
    numpy, nn = need("jax.numpy"), need("jax.nn")
    data = {name: value.double().numpy() for name, value in catalogue["seeds"].data.items()}  # type: ignore[attr-defined]
    total, variety, extract, germinated = (data[k] for k in ("total", "variety", "extract", "germinated"))
    log_choices = sum(
        math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1)
        for n, r in zip(seeds.SEEDS_TOTAL, seeds.SEEDS_GERMINATED, strict=True)
    )
    constant = math.lgamma(0.01) - 0.01 * math.log(0.01) + 4 * math.log(10.0) + 12.5 * LOG_2PI - log_choices

    def energy(z: Any) -> Any:
        log_tau, alpha, b = z[0], z[1:5], z[5:]
        n, x1, x2, r = (numpy.asarray(v, z.dtype) for v in (total, variety, extract, germinated))
        logits = alpha[0] + alpha[1] * x1 + alpha[2] * x2 + alpha[3] * x1 * x2 + b
        prior = numpy.exp(log_tau) * (0.01 + 0.5 * (b**2).sum()) - 10.51 * log_tau + 0.005 * (alpha**2).sum()
        return prior + (n * nn.softplus(logits) - r * logits).sum() + constant

    return energy


JAX_ENERGIES: dict[str, Callable[[], JaxEnergy]] = {
    "double_well": _wells,
    "gmm40": _gmm40,
    "funnel10": _funnel10,
    "many_well32": _wells,
    "eight_schools": _eight_schools,
    "seeds": _seeds,
}
"""Functions that make the energy, by the catalogue's names."""
