"""What one evaluation of a field of particles costs with its divergence, beside the published formula."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue import Target, catalogue
from pyro_boltzmann.experiments.bench_timing import measure, ratio
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import ReverseKL
from pyro_boltzmann.transforms.continuous import (
    ContinuousTransform,
    EmbeddedAtomField,
    GaussianKernels,
    KernelField,
    VelocityField,
)

__all__ = ["field_costs", "published_kernel_field"]

SYSTEMS = (("DW-4", 4, 2, 1000), ("LJ-13", 13, 3, 100), ("LJ-55", 55, 3, 10))
SMALL, LARGE = 55, 220
TIME = 0.3
FIELD_REPEATS = 9
UPDATE_BATCH, UPDATE_STEPS = 64, 10
UPDATE_GOAL = 0.050

Evaluation = Callable[[Tensor], tuple[Tensor, Tensor]]


def field_costs() -> list[str]:
    """Rows for the three systems, forward and with backward, and how the cost grows with the number of particles."""
    lines = [f"one field with its divergence, milliseconds, {FIELD_REPEATS} repeats"]
    for name, particles, dim, batch in SYSTEMS:
        gaussian = KernelField(particles, dim, kernels=_published_kernels())
        positions = torch.randn(batch, particles, dim, generator=torch.Generator().manual_seed(0))
        x = KernelField(particles, dim).pairs.basis.to_coordinates(positions)
        fields: dict[str, tuple[Evaluation, Tensor]] = {
            "ours, splines": (_evaluation(KernelField(particles, dim)), x),
            "ours, published kernels": (_evaluation(gaussian), x),
            "ours, embedded atoms": (_evaluation(EmbeddedAtomField(particles, dim)), x),
            "published formula": (partial(published_kernel_field, gaussian), positions),
        }
        for kind, run in (("forward", _forward), ("with backward", _with_backward)):
            times = measure({key: partial(run, *field) for key, field in fields.items()}, repeats=FIELD_REPEATS)
            lines.append(f" {name}, batch {batch}, {kind}")
            lines += _rows(times)
            for key in list(times)[:-1]:
                asked = None if "embedded" in key else 1.0 / 3.0
                lines.append(f"  {f'ratio, {key}':<42} {ratio(times[key], times['published formula'], asked)}")
    return [*lines, *_growth(), *_updates(), ""]


def _growth() -> list[str]:
    """The cost at four times as many particles."""
    lines = [
        f" {SMALL} and {LARGE} particles in three dimensions, batch 10, forward; {(LARGE / SMALL) ** 2:.0f} by N^2"
    ]
    for key, make in (("splines", KernelField), ("embedded atoms", EmbeddedAtomField)):
        calls = {
            f"ours, {key}, N = {number}": partial(
                _forward, _evaluation(make(number, 3)), torch.randn(10, 3 * number - 3)
            )
            for number in (SMALL, LARGE)
        }
        times = measure(calls, repeats=FIELD_REPEATS)
        lines += _rows(times)
        small, large = times.values()
        lines.append(f"  {'ratio':<42} {ratio(large, small, None)}")
    return lines


def _updates() -> list[str]:
    """An update by reverse KL, all of it: draws, solver, energy, gradients and Adam."""
    target = catalogue["dw4"]
    lines = [f" an update by reverse KL on DW-4, batch {UPDATE_BATCH}, RK4-{UPDATE_STEPS}, discretise then optimise"]
    steps: dict[str, Callable[[], None]] = {}
    for name, field in {
        "ours, splines": KernelField(4, 2),
        "ours, published kernels": KernelField(4, 2, kernels=_published_kernels()),
        "ours, embedded atoms": EmbeddedAtomField(4, 2),
        "published formula": _PublishedField(KernelField(4, 2, kernels=_published_kernels())),
    }.items():
        flow = ContinuousTransform(field, target.dim, UPDATE_STEPS)
        guide = _guide(target, flow)
        steps[name] = partial(_update, target.model(), guide, torch.optim.Adam(guide.parameters(), lr=1e-4))
    times = measure(steps, repeats=FIELD_REPEATS)
    lines += _rows(times)
    ours, theirs = times["ours, splines"], times["published formula"]
    lines.append(f"  {'over the 50 ms asked, splines':<42} {ratio(ours, [UPDATE_GOAL] * len(ours), 1.0)}")
    return [*lines, f"  {'ratio, splines':<42} {ratio(ours, theirs, None)}"]


def _guide(target: Target, flow: ContinuousTransform) -> AutoStochasticFlow:
    return AutoStochasticFlow(target.model(), lambda energy, dim: [flow], latent_dim=target.dim)


def _update(model: Callable[..., Any], guide: AutoStochasticFlow, optimizer: torch.optim.Optimizer) -> None:
    with torch.enable_grad():
        optimizer.zero_grad()
        ReverseKL(UPDATE_BATCH).loss_and_grads(model, guide)
        optimizer.step()


class _PublishedField(torch.nn.Module):
    """The published formula as a field in Helmert coordinates."""

    def __init__(self, field: KernelField) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        return self.velocity_and_divergence(t, x)[0]

    def velocity_and_divergence(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and divergence of Helmert coordinates."""
        basis = self.field.pairs.basis
        velocities, divergence = published_kernel_field(self.field, basis.to_particles(x), float(t))
        return basis.to_coordinates(velocities), divergence


def _rows(times: dict[str, list[float]]) -> list[str]:
    return [f"  {key:<42} {1e3 * min(row):7.2f}  ({1e3 * statistics.median(row):.2f})" for key, row in times.items()]


def _evaluation(field: VelocityField) -> Evaluation:
    return lambda x: field.velocity_and_divergence(TIME, x)


def _forward(evaluate: Evaluation, x: Tensor) -> None:
    evaluate(x)


def _with_backward(evaluate: Evaluation, x: Tensor) -> None:
    with torch.enable_grad():
        velocity, divergence = evaluate(x.detach().requires_grad_())
        (velocity.square().sum() + divergence.sum()).backward()


def _published_kernels() -> GaussianKernels:
    return GaussianKernels.uniform(50, 0.0, 8.0, 0.5, trainable_widths=True)


def published_kernel_field(field: KernelField, positions: Tensor, t: float = TIME) -> tuple[Tensor, Tensor]:
    r"""The formula of Koehler, Klein and Noe (arXiv 2006.02425) as its published code evaluates it: all ordered pairs,
    all kernels and their derivatives of each, then the weights of distance and time.

    With the field's own parameters, so that values can be compared where the published derivative of the kernels, which
    divides by :math:`10^{-6} + s^2`, is right.

    :param field: a field with :class:`~pyro_boltzmann.transforms.continuous.GaussianKernels`.
    :param positions: ``(batch, N, D)``.
    :return: velocities ``(batch, N, D)`` and divergences ``(batch,)``.
    """
    kernels = field.kernels
    assert isinstance(kernels, GaussianKernels)
    number, dim = positions.shape[1:]
    differences = positions.unsqueeze(2) - positions.unsqueeze(1)
    others = ~torch.eye(number, dtype=torch.bool)
    differences = differences[:, others].view(-1, number, number - 1, dim)
    distances = (differences.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    gammas = kernels.log_widths.exp()
    bumps = torch.exp(-((distances - kernels.centres) ** 2) / gammas**2)
    slopes = -2.0 * (distances - kernels.centres) / gammas**2 * bumps
    total = bumps.sum(-1, keepdim=True)
    values = bumps / (1e-6 + total)
    value_slopes = slopes / (1e-6 + total) - bumps * slopes.sum(-1, keepdim=True) / (1e-6 + total**2)

    time = field.time(t)
    forces = (((values + field.importance) @ field.weights.mT + field.bias) * time).sum(-1, keepdim=True)
    force_slopes = ((value_slopes @ field.weights.mT) * time).sum(-1, keepdim=True)
    velocities = (forces * differences).sum(2)
    return velocities, (dim * forces + distances * force_slopes).sum((1, 2, 3))
