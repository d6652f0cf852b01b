"""Published settings of denoising energy matching, in the raw coordinates of the catalogue's targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_boltzmann.diffusion import GeometricSchedule
from pyro_boltzmann.guides.auto_diffusion import Frame
from pyro_boltzmann.infer import IDEM, BEnDEM, DenoisingObjective, EnDEM

__all__ = ["PublishedSettings", "published_settings"]

METHODS = ("idem", "endem", "bendem")
UNITS = {"gmm40": 50.0}
"""The repositories' unit of length, where it is not the target's own."""
SCALES = {"gmm40": 0.5, "dw4": 1.5, "lj13": 1.0, "lj55": 1.5}
"""A standard deviation of each target, in those units: a guess, which is all that a frame needs."""
SIGMAS = {
    "idem": {"gmm40": (1e-5, 1.0), "dw4": (1e-5, 3.0), "lj13": (0.01, 2.0), "lj55": (0.5, 4.0)},
    "bnem": {"gmm40": (1e-4, 1.0), "dw4": (1e-4, 3.0), "lj13": (1e-4, 6.0), "lj55": (0.5, 4.0)},
}
IDEM_NOISE = {"gmm40": 500, "dw4": 1000, "lj13": 1000, "lj55": 100}
BNEM_NOISE = {"gmm40": (100, 100, 80), "dw4": (1000, 100, 80), "lj13": (1000, 100, 80), "lj55": (1000, 1000, 500)}
"""K, K while bootstrapping, and how many of these are the teacher's."""


@dataclass(frozen=True)
class PublishedSettings:
    """What a published run was told: the schedule and the steps of the reverse process, where the target lives, the
    objective, and the learning rate and clipping of :func:`~pyro_boltzmann.fit`."""

    schedule: GeometricSchedule
    num_steps: int
    frame: Frame
    objective: DenoisingObjective
    learning_rate: float
    clip_norm: float = 0.5


def published_settings(method: str, target_name: str) -> PublishedSettings:
    """The settings of ``"idem"``, ``"endem"`` or ``"bendem"`` for a target.

    Lengths are multiplied by the repositories' unit, scores divided by it. Reverse processes are spaced evenly in the
    log-variance here, whatever was published, because their weights need it; the frame is not theirs either.

    :raises ValueError: for a method or a target without published settings.

    Source: the configurations of Akhound-Sadegh et al., arXiv 2402.06121, and OuYang et al., arXiv 2409.09787.

    >>> settings = published_settings("idem", "gmm40")
    >>> settings.schedule, settings.objective.max_score
    (GeometricSchedule(sigma_min=0.0005, sigma_max=50.0), 1.4)
    """
    if method not in METHODS or target_name not in SCALES:
        raise ValueError(
            f"published settings exist for {', '.join(METHODS)} and {', '.join(SCALES)}, got {method!r} and "
            f"{target_name!r}"
        )
    unit = UNITS.get(target_name, 1.0)
    low, high = SIGMAS["idem" if method == "idem" else "bnem"][target_name]
    dim = {"gmm40": 2, "dw4": 6, "lj13": 36, "lj55": 162}[target_name]
    steps = 100 if method != "idem" and target_name == "gmm40" else 1000
    rate = 5e-4 if method == "idem" and target_name == "gmm40" else 1e-3
    objective = _objective(method, target_name, unit)
    schedule = GeometricSchedule(low * unit, high * unit)
    return PublishedSettings(schedule, steps, Frame.guess(dim, SCALES[target_name] * unit), objective, rate)


def _objective(method: str, name: str, unit: float) -> DenoisingObjective:
    num_particles = 128 if name == "lj55" else 512
    new = 128 if name == "lj55" else 1000 if method == "idem" else 1024
    common: dict[str, Any] = {"num_refresh": new, "refresh_every": 100, "trained_spread": False}
    if method == "idem":
        is_mixture = name == "gmm40"
        return IDEM(
            num_particles,
            num_noise=IDEM_NOISE[name],
            max_score=70.0 / unit if is_mixture else 20.0,
            weight_offset=1e-3 * unit**2 if is_mixture else None,
            **common,
        )
    plain, mixed, taught = BNEM_NOISE[name]
    if method == "endem":
        return EnDEM(num_particles, num_noise=plain, **common)
    return BEnDEM(
        num_particles,
        num_noise=plain,
        mixed_noise=mixed,
        num_bootstrap=taught,
        noiseless_weight=0.0 if name == "lj55" else 0.5,
        increment=(0.6 if name == "lj55" else 0.1) * unit**2,
        decay=0.95**0.01,
        check_every=1000,
        patience=5,
        **common,
    )
