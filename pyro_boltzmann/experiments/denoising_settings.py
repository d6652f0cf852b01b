"""Settings of denoising energy matching, in the raw coordinates of the catalogue's targets: the published ones, and
some for a few minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_boltzmann.diffusion import GeometricSchedule
from pyro_boltzmann.guides.auto_diffusion import Frame
from pyro_boltzmann.infer import IDEM, BEnDEM, DenoisingObjective, EnDEM

__all__ = ["DenoisingSettings", "brief_settings", "published_settings"]

METHODS = ("idem", "endem", "bendem")
UNITS = {"gmm40": 50.0}
"""The repositories' unit of length, where it is not the target's own."""
SCALES = {"gmm40": 0.5, "dw4": 1.5, "lj13": 1.0, "lj55": 1.5, "many_well32": 2.0}
"""A standard deviation of each target, in those units: a guess, which is all that a frame needs."""
SIGMAS = {
    "idem": {
        **{"gmm40": (1e-5, 1.0), "dw4": (1e-5, 3.0), "lj13": (0.01, 2.0)},
        **{"lj55": (0.5, 4.0), "many_well32": (1e-5, 1.0)},
    },
    "bnem": {
        **{"gmm40": (1e-4, 1.0), "dw4": (1e-4, 3.0), "lj13": (1e-4, 6.0)},
        **{"lj55": (0.5, 4.0), "many_well32": (1e-5, 1.0)},
    },
}
IDEM_NOISE = {"gmm40": 500, "dw4": 1000, "lj13": 1000, "lj55": 100, "many_well32": 1000}
BNEM_NOISE = {
    "gmm40": (100, 100, 80),
    "dw4": (1000, 100, 80),
    "lj13": (1000, 100, 80),
    "lj55": (1000, 1000, 500),
    "many_well32": (1000, 100, 80),
}
"""K, K while bootstrapping, and how many of these are the teacher's."""
DIMS = {"gmm40": 2, "dw4": 6, "lj13": 36, "lj55": 162, "many_well32": 32}
CLIPS = {"gmm40": 70.0, "many_well32": 1000.0}
"""Longest score to learn from in iDEM, in those units; 20 a particle elsewhere."""
WIDTHS = {"gmm40": 1.0, "dw4": 0.2, "lj13": 0.07, "lj55": 0.07, "many_well32": 0.3}
"""A mode's width, roughly, in the target's own units: where the target leaves the energy that is learned."""
BRIEF_UPDATES = {
    "gmm40": {"idem": 7200, "endem": 8400, "bendem": 5000},
    "dw4": {"idem": 4000, "endem": 4800, "bendem": 1500},
}
"""About as many as three minutes hold on one core; the clock ends what takes longer."""


@dataclass(frozen=True)
class DenoisingSettings:
    """What a run is told: the schedule and the steps of the reverse process, where the target lives, the objective, and
    the learning rate and clipping of :func:`~pyro_boltzmann.fit`.

    :ivar num_updates: after which the learning rate has fallen to 1 % along a cosine; ``None`` for a constant rate
        until the clock ends the training.
    :ivar width: of the network, if not that of the target's plan.
    """

    schedule: GeometricSchedule
    num_steps: int | None
    frame: Frame
    objective: DenoisingObjective
    learning_rate: float
    clip_norm: float = 0.5
    num_updates: int | None = None
    width: int | None = None


def published_settings(method: str, target_name: str) -> DenoisingSettings:
    """The settings of ``"idem"``, ``"endem"`` or ``"bendem"`` for a target.

    Lengths are multiplied by the repositories' unit, scores divided by it. Reverse processes are spaced evenly in the
    log-variance here, whatever was published, because their weights need it; the frame, and the bound on a
    step's drift, are not theirs either.

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
    steps = 100 if method != "idem" and target_name == "gmm40" else 1000
    rate = 5e-4 if method == "idem" and target_name == "gmm40" else 1e-3
    objective = _objective(method, target_name, unit)
    schedule = GeometricSchedule(low * unit, high * unit)
    return DenoisingSettings(
        schedule, steps, Frame.guess(DIMS[target_name], SCALES[target_name] * unit), objective, rate
    )


def _objective(method: str, name: str, unit: float) -> DenoisingObjective:
    num_particles = 128 if name == "lj55" else 512
    new = 128 if name == "lj55" else 1000 if method == "idem" else 1024
    common: dict[str, Any] = {"num_refresh": new, "refresh_every": 100, "trained_spread": False}
    if method == "idem":
        return IDEM(
            num_particles,
            num_noise=IDEM_NOISE[name],
            max_score=CLIPS.get(name, 20.0) / unit,
            weight_offset=1e-3 * unit**2 if name == "gmm40" else None,
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


def brief_settings(method: str, target_name: str) -> DenoisingSettings:
    """The settings with which the methods are compared at equal time.

    The published ones, of which three minutes on a CPU hold a hundredth, were made for hours. Here each method has
    256 states from a buffer with importance weights and 100 points around each, noise from a quarter of a mode's width
    on, a frame that knows this width, a spread learned alongside, and a learning rate that falls to a hundredth;
    energies are weighted by their variance. BEnDEM's teacher has a third of the student's variance, and begins when two
    looks of 20 updates saw no progress; 32 of then 34 points are its own.

    :raises ValueError: for a method or a target that is not compared.

    >>> brief_settings("endem", "gmm40").schedule
    GeometricSchedule(sigma_min=0.25, sigma_max=50.0)
    """
    if method not in METHODS or target_name not in BRIEF_UPDATES:
        raise ValueError(
            f"{', '.join(METHODS)} are compared on {', '.join(BRIEF_UPDATES)}, got {method!r} and {target_name!r}"
        )
    unit, width, scale = UNITS.get(target_name, 1.0), WIDTHS[target_name], SCALES[target_name]
    common: dict[str, Any] = {"num_noise": 100, "num_refresh": 1000, "refresh_every": 100, "weighted": True}
    objective: DenoisingObjective
    if method == "idem":
        offset = 1e-3 * unit**2 if target_name == "gmm40" else 0.0
        objective = IDEM(256, max_score=CLIPS.get(target_name, 20.0) / unit, weight_offset=offset, **common)
    elif method == "endem":
        objective = EnDEM(256, by_variance=True, **common)
    else:
        taught: dict[str, Any] = {"mixed_noise": 34, "num_bootstrap": 32, "ratio": 3.0, "decay": 0.99}
        objective = BEnDEM(256, by_variance=True, check_every=20, patience=2, **taught, **common)
    return DenoisingSettings(
        GeometricSchedule(0.25 * width, 2.0 * scale * unit),
        None,
        Frame.guess(DIMS[target_name], scale * unit, width),
        objective,
        learning_rate=2e-3,
        num_updates=BRIEF_UPDATES[target_name][method],
        width=32 if target_name == "dw4" else None,
    )
