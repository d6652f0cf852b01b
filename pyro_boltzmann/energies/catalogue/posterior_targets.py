"""The posterior targets of the catalogue: programs, data, truths and exact samplers put together."""

from __future__ import annotations

import torch

from pyro_boltzmann.energies.catalogue.posterior_sampling import (
    sample_eight_schools,
    sample_eight_schools_centered,
    sample_logistic_regression,
)
from pyro_boltzmann.energies.catalogue.posteriors import (
    EIGHT_SCHOOLS_EFFECT,
    EIGHT_SCHOOLS_ERROR,
    PosteriorTarget,
    eight_schools,
    eight_schools_centered,
    logistic_data,
    logistic_regression,
)

__all__ = ["eight_schools_centered_target", "eight_schools_target", "logistic_regression_target"]

# Quadrature over (mu, log tau), theta integrated out in closed form; stable to 1e-12 under refinement.
EIGHT_SCHOOLS_LOG_Z = -31.311347352293


def eight_schools_target() -> PosteriorTarget:
    """Eight schools in the non-centred form, :math:`z = (\\mu, \\log \\tau, \\eta)`, with its exact evidence.

    >>> target = eight_schools_target()
    >>> target.dim, round(target.log_z, 4)
    (10, -31.3113)
    """
    return PosteriorTarget(
        "eight_schools",
        eight_schools,
        _eight_schools_data(),
        10,
        sampler=sample_eight_schools,
        log_z=EIGHT_SCHOOLS_LOG_Z,
        log_z_origin="exact",
        log_z_note="quadrature over mu and log tau, the effects integrated out in closed form",
        mean_energy=46.208389626702,
        bounds=((-12.0, 20.0), (-6.0, 5.0)),
    )


def eight_schools_centered_target() -> PosteriorTarget:
    """Eight schools in the centred form, :math:`z = (\\mu, \\log \\tau, \\theta)`: the same evidence, a funnel.

    >>> target = eight_schools_centered_target()
    >>> target.dim, round(target.log_z, 4)
    (10, -31.3113)
    """
    return PosteriorTarget(
        "eight_schools_centered",
        eight_schools_centered,
        _eight_schools_data(),
        10,
        sampler=sample_eight_schools_centered,
        log_z=EIGHT_SCHOOLS_LOG_Z,
        log_z_origin="exact",
        log_z_note="quadrature over mu and log tau, the effects integrated out in closed form",
        mean_energy=52.625503312930,
        bounds=((-12.0, 20.0), (-6.0, 5.0)),
    )


def logistic_regression_target() -> PosteriorTarget:
    """Logistic regression on 100 synthetic observations; its evidence is a Gauss-Hermite product rule, to 1e-7.

    >>> target = logistic_regression_target()
    >>> target.dim, round(target.log_z, 5)
    (5, -54.44788)
    """
    features, labels = logistic_data()
    return PosteriorTarget(
        "logistic_regression",
        logistic_regression,
        {"features": features, "labels": labels},
        5,
        sampler=sample_logistic_regression,
        log_z=-54.447881017,
        log_z_origin="exact",
        log_z_note="Gauss-Hermite product rule around the posterior mode",
        mean_energy=54.863576,
        bounds=((-0.6, 1.5), (-0.2, 2.3)),
    )


def _eight_schools_data() -> dict[str, torch.Tensor]:
    return {"sigma": torch.tensor(EIGHT_SCHOOLS_ERROR), "y": torch.tensor(EIGHT_SCHOOLS_EFFECT)}
