r"""Monte Carlo estimators of noised energies and scores.

A density :math:`\pi = e^{-u}` under Gaussian noise of variance :math:`h` is :math:`p_h = \pi * N(0, h I)`, with the
energy :math:`u_h = -\log p_h`. With points :math:`y_k = x + \sqrt h\, z_k` and weights
:math:`\bar w = \mathrm{softmax}(-u(y))`,

.. math::

    E_K(x) = -\log \frac1K \sum_k e^{-u(y_k)}, \qquad
    S_K(x) = -\sum_k \bar w_k \nabla u(y_k) \quad \text{or} \quad \sum_k \bar w_k \frac{y_k - x}{h} .

:math:`e^{-E_K}` is unbiased for :math:`p_h(x)` at every :math:`K`; with :math:`m` and :math:`v` the mean and variance
of :math:`e^{-u(y)}`, :math:`E_K` is too high by :math:`v / (2 m^2 K)` and has the variance :math:`v / (m^2 K)`. The
total energy stands in the exponential, also for particles. No function here keeps a graph.

The energy may be :math:`+\infty` (weight zero; forces there are not read). NaN or :math:`-\infty` raises. Where all
:math:`K` points have weight zero, :math:`E_K = +\infty`, the score is zero (the mean of the noise alone), ``ess`` is
zero and variances are infinite.

Sources: Akhound-Sadegh et al., Iterated Denoising Energy Matching (2024), arXiv 2402.06121, equations 7 and 8; OuYang
et al., BNEM (2024), arXiv 2409.09787, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from pyro_boltzmann.diffusion.noised_points import draw_noised
from pyro_boltzmann.diffusion.proposals import DenoisingProposal
from pyro_boltzmann.diffusion.ratio_estimate import (
    MixedScore,
    grouped,
    jackknife_shift,
    log_mean_variance,
    mixed_score,
    normalised_weights,
    weighted_mean,
)
from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient, energy_value
from pyro_boltzmann.exceptions import EnergyError, NonFiniteEnergyError, ShapeError

__all__ = [
    "Correction",
    "DenoisingEstimate",
    "ScoreForm",
    "Teacher",
    "bootstrapped_energy",
    "bootstrapped_estimate",
    "denoising_estimate",
    "noised_energy",
    "noised_score",
]

ScoreForm = Literal["target", "tweedie", "mixture"]
"""``"target"`` averages forces, best at small noise; ``"tweedie"`` averages displacements, best at large noise."""

Correction = Literal["none", "jackknife"]
"""Of the bias of :math:`E_K`; the jackknife takes it from O(1/K) to O(1/K^2) where ``ess`` is not small."""

Teacher = Callable[[Tensor, Tensor], Tensor]
"""A noised energy: ``teacher(y, variance)`` of ``(batch, dim)`` and ``(batch)`` has the shape ``(batch)``."""

# Coordinates of noised points held at once: a megabyte in float32, which stays in the caches.
WORKING_SET = 2**18


class DenoisingEstimate(NamedTuple):
    r"""What :math:`K` points tell about a noised energy and its score.

    :ivar energy: :math:`E_K`, ``(*batch)``.
    :ivar score: :math:`S_K`, ``(*batch, dim)``.
    :ivar ess: effective sample size as a fraction of :math:`K`, ``(*batch)``.
    :ivar energy_variance: estimated variance of ``energy``, ``(*batch)``; infinite for one independent point.
    :ivar score_variance: trace of the estimated variance of ``score``, ``(*batch)``; infinite where one independent
        point carries all weight.
    :ivar mixing: :math:`\lambda` in :math:`(1 - \lambda)` target form :math:`+ \lambda` Tweedie form, ``(*batch)``.
    :ivar spread: weighted variance of the noise :math:`(y - x) / \sqrt h`, ``(*batch, dim)``: that of :math:`y` given x
        in units of h, times :math:`1 - \sum \bar w^2`, which is how much it is too small.
    """

    energy: Tensor
    score: Tensor
    ess: Tensor
    energy_variance: Tensor
    score_variance: Tensor
    mixing: Tensor
    spread: Tensor


def noised_energy(
    energy: Energy,
    x: Tensor,
    variance: float | Tensor,
    num_noise: int,
    *,
    correction: Correction = "none",
    antithetic: bool = False,
    proposal: DenoisingProposal | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The energy :math:`E_K(x) = -\log \frac1K \sum_k e^{-u(y_k)}` under noise of variance :math:`h`.

    :param energy: ``(*batch, dim) -> (*batch)``; only values are asked for.
    :param x: ``(*batch, dim)``.
    :param variance: :math:`h \ge 0`, a number or a tensor that broadcasts to ``(*batch)``.
    :param num_noise: :math:`K`.
    :param correction: ``"jackknife"`` removes the bias of order :math:`1/K`; :math:`e^{-E}` is then no longer unbiased.
    :param antithetic: use each noise with both signs.
    :param proposal: draws points from another distribution than :math:`N(x, h)`, and reweights them.
    :raises NonFiniteEnergyError: if the energy is NaN or :math:`-\infty` at a noised point.
    :raises ShapeError: if arguments do not fit together.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> estimate = noised_energy(lambda x: 0.5 * x.square().sum(-1), torch.zeros(3, 2), 1.0, 10_000)
    >>> estimate.shape, torch.allclose(estimate, torch.log(torch.tensor(2.0)), atol=0.05)
    (torch.Size([3]), True)
    """
    return _estimate(
        lambda _: energy, x, variance, num_noise, None, False, correction, antithetic, proposal, generator
    ).energy


def noised_score(
    energy: Energy,
    x: Tensor,
    variance: float | Tensor,
    num_noise: int,
    *,
    form: ScoreForm = "mixture",
    antithetic: bool = False,
    proposal: DenoisingProposal | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The score :math:`S_K \approx \nabla \log p_h`, of shape ``(*batch, dim)``.

    :param form: ``"target"`` needs gradients, ``"tweedie"`` values and :math:`h > 0`, ``"mixture"`` gradients; see
        :func:`~pyro_boltzmann.diffusion.ratio_estimate.mixed_score` for the mixture. Further parameters and errors are
        those of :func:`noised_energy`.

    >>> score = noised_score(lambda x: 0.5 * x.square().sum(-1), torch.ones(3, 2), 1.0, 1000)
    >>> torch.allclose(score, torch.full((3, 2), -0.5), atol=1e-4)  # no variance on an isotropic Gaussian
    True
    """
    details = form == "mixture"
    return _estimate(
        lambda _: energy, x, variance, num_noise, form, details, "none", antithetic, proposal, generator
    ).score


def denoising_estimate(
    energy: Energy,
    x: Tensor,
    variance: float | Tensor,
    num_noise: int,
    *,
    form: ScoreForm = "mixture",
    correction: Correction = "none",
    antithetic: bool = False,
    proposal: DenoisingProposal | None = None,
    generator: torch.Generator | None = None,
) -> DenoisingEstimate:
    r"""Energy, score, effective sample size and estimated variances from the same :math:`K` energy evaluations.

    Parameters and errors are those of :func:`noised_energy` and :func:`noised_score`.

    >>> estimate = denoising_estimate(lambda x: 0.5 * x.square().sum(-1), torch.ones(3, 2), 1.0, 1000)
    >>> estimate.energy.shape, estimate.score.shape, [round(each, 2) for each in estimate.mixing.tolist()]
    (torch.Size([3]), torch.Size([3, 2]), [0.5, 0.5, 0.5])
    """
    return _estimate(lambda _: energy, x, variance, num_noise, form, True, correction, antithetic, proposal, generator)


def bootstrapped_energy(
    teacher: Teacher,
    x: Tensor,
    variance: float | Tensor,
    teacher_variance: float | Tensor,
    num_noise: int,
    *,
    correction: Correction = "none",
    antithetic: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The energy :math:`E_K(x, h; g)` from a teacher for less noise :math:`g \le h`:

    .. math:: -\log \frac1K \sum_k e^{-\hat u_g(y_k)}, \qquad y_k \sim N(x, h - g),

    because :math:`p_h = p_g * N(0, h - g)`. Its variance is never above that of :func:`noised_energy`, and vanishes as
    :math:`g \to h`; the teacher's own error stays.

    :param teacher: ``teacher(y, g) -> (n)`` for ``y`` of shape ``(n, dim)`` and ``g`` of shape ``(n)``, the variance
        that belongs to each ``y``. Its values are not counted as evaluations of the target.
    :param teacher_variance: :math:`g`, a number or a tensor that broadcasts to ``(*batch)``.

    Source: OuYang et al., BNEM (2024), arXiv 2409.09787, section 3.2.

    >>> exact = lambda y, variance: 0.5 * y.square().sum(-1) / (1 + variance) + (1 + variance).log()
    >>> estimate = bootstrapped_energy(exact, torch.zeros(2, 2), torch.tensor([1.0, 2.0]), 0.9, 20_000)
    >>> torch.allclose(estimate, torch.tensor([2.0, 3.0]).log(), atol=0.03)
    True
    """
    h, g = _check_teacher(x, variance, teacher_variance)
    return _estimate(
        lambda rows: _Teacher(teacher, g[rows].repeat_interleave(num_noise)),
        *(x, (h - g).view(x.shape[:-1]), num_noise, None, False, correction, antithetic, None, generator),
    ).energy


def bootstrapped_estimate(
    teacher: Teacher,
    x: Tensor,
    variance: float | Tensor,
    teacher_variance: float | Tensor,
    num_noise: int,
    *,
    form: ScoreForm = "mixture",
    correction: Correction = "none",
    antithetic: bool = False,
    generator: torch.Generator | None = None,
) -> DenoisingEstimate:
    """:func:`bootstrapped_energy` with the score and the variances of :func:`denoising_estimate`.

    The teacher is differentiated for ``form="target"`` and ``"mixture"``.

    >>> exact = lambda y, variance: 0.5 * y.square().sum(-1) / (1 + variance) + (1 + variance).log()
    >>> score = bootstrapped_estimate(exact, torch.ones(1, 2), 3.0, 1.0, 1000).score
    >>> torch.allclose(score, torch.tensor(-0.25), atol=1e-4)
    True
    """
    h, g = _check_teacher(x, variance, teacher_variance)
    return _estimate(
        lambda rows: _Teacher(teacher, g[rows].repeat_interleave(num_noise)),
        *(x, (h - g).view(x.shape[:-1]), num_noise, form, True, correction, antithetic, None, generator),
    )


class _Teacher:
    """A teacher with the variance of each of the points that it is about to see."""

    is_reference = True

    def __init__(self, teacher: Teacher, variance: Tensor) -> None:
        self.teacher = teacher
        self.variance = variance

    def __call__(self, y: Tensor) -> Tensor:
        return self.teacher(y, self.variance)


@torch.no_grad()
def _estimate(
    energy_of: Callable[[slice], Energy],
    x: Tensor,
    variance: float | Tensor,
    num_noise: int,
    form: ScoreForm | None,
    details: bool,
    correction: Correction,
    antithetic: bool,
    proposal: DenoisingProposal | None,
    generator: torch.Generator | None,
) -> DenoisingEstimate:
    """What was asked for; the other fields are empty tensors."""
    h = _check(x, variance, num_noise, form, correction, antithetic, proposal)
    dim = x.shape[-1]
    flat = x.reshape(-1, dim)
    step = max(1, WORKING_SET // (num_noise * dim))
    blocks = []
    for start in range(0, max(1, len(flat)), step):
        rows = slice(start, start + step)
        blocks.append(
            _block(
                *(energy_of(rows), flat[rows], h[rows], num_noise, form, details),
                *(correction, antithetic, proposal, generator),
            )
        )
    fields = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return DenoisingEstimate(*(f.reshape(x.shape[:-1] + f.shape[1:]) if len(f) == len(flat) else f for f in fields))


def _block(
    energy: Energy,
    x: Tensor,
    h: Tensor,
    num_noise: int,
    form: ScoreForm | None,
    details: bool,
    correction: Correction,
    antithetic: bool,
    proposal: DenoisingProposal | None,
    generator: torch.Generator | None,
) -> DenoisingEstimate:
    drawn = draw_noised(
        *(x, h, num_noise),
        keep_noise=form is not None and (details or form != "target"),
        antithetic=antithetic,
        proposal=proposal,
        generator=generator,
    )
    points = drawn.points.flatten(0, 1)
    gradient = None
    if form in ("target", "mixture"):
        u, gradient = energy_and_gradient(energy, points)
    else:
        u = energy_value(energy, points)
    _refuse_undefined(u)
    log_weights = u.view(len(x), num_noise).neg()
    if drawn.log_ratio is not None:
        log_weights += drawn.log_ratio
    weights, log_mean = normalised_weights(log_weights)
    estimate = -log_mean
    nothing = x.new_empty(0)
    if correction == "jackknife":
        estimate += jackknife_shift(grouped(weights, antithetic))
    if form is None:
        return DenoisingEstimate(estimate, *[nothing] * 6)
    forces = nothing if gradient is None else _usable(gradient.view(drawn.points.shape), weights)
    if not details:
        if drawn.noise is None:
            score = weighted_mean(weights, forces).neg_()
        else:
            score = weighted_mean(weights, drawn.noise).div_(h.sqrt().unsqueeze(-1))
        return DenoisingEstimate(estimate, score, *[nothing] * 5)
    noise = cast(Tensor, drawn.noise)
    mixed = mixed_score(weights, forces, noise, h.sqrt(), form=form, pairs=antithetic)
    spread = weighted_mean(weights, noise.square()) - weighted_mean(weights, noise).square()
    return _with_details(estimate, mixed, weights, antithetic, spread.clamp_min_(0.0))


def _with_details(
    estimate: Tensor, mixed: MixedScore, weights: Tensor, antithetic: bool, spread: Tensor
) -> DenoisingEstimate:
    square = weights.square().sum(-1)
    dead = square == 0.0
    ess = torch.where(dead, 0.0, 1.0 / (weights.shape[-1] * square))
    variances = (log_mean_variance(grouped(weights, antithetic)), mixed.variance)
    energy_variance, score_variance = (torch.where(dead, torch.inf, each) for each in variances)
    return DenoisingEstimate(estimate, mixed.score, ess, energy_variance, score_variance, mixed.mixing, spread)


def _usable(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient with zeros where the weight is zero: what it is inside a wall does not matter.

    :raises NonFiniteEnergyError: if it is not finite where the weight is not zero.
    """
    if bool(gradient.sum().isfinite()):
        return gradient
    gradient = torch.where(weights.unsqueeze(-1) > 0.0, gradient, 0.0)
    bad = int((~gradient.isfinite()).any(-1).sum())
    if bad:
        raise NonFiniteEnergyError(
            f"the energy's gradient is NaN or infinite at {bad} of {weights.numel()} noised points where the energy is "
            "finite; look for the derivative of sqrt or of a norm at zero (clamp its argument), or take "
            'form="tweedie", which needs values only',
            count=bad,
        )
    return gradient


def _refuse_undefined(u: Tensor) -> None:
    if bool(u.sum().isfinite()):
        return
    bad = int((~(u > -torch.inf)).sum())
    if bad:
        raise NonFiniteEnergyError(
            f"the energy is NaN or -inf at {bad} of {u.numel()} noised points; noise reaches everywhere, so it must be "
            "finite or +inf everywhere: give +inf where the density is zero, and look for inf - inf (a pair energy "
            "r^-12 - r^-6 at r = 0: clamp r from below), log(0) or 0 * inf",
            count=bad,
        )


def _check_teacher(x: Tensor, variance: float | Tensor, teacher_variance: float | Tensor) -> tuple[Tensor, Tensor]:
    h, g = _flat_variance(x, variance, "variance"), _flat_variance(x, teacher_variance, "teacher_variance")
    above = int((g > h).sum())
    if above:
        raise ShapeError(
            f"teacher_variance must not be above variance, but it is for {above} of {len(h)} states: the teacher "
            "belongs to less noise than its student"
        )
    return h, g


def _check(
    x: Tensor,
    variance: float | Tensor,
    num_noise: int,
    form: ScoreForm | None,
    correction: Correction,
    antithetic: bool,
    proposal: DenoisingProposal | None,
) -> Tensor:
    if form not in (None, "target", "tweedie", "mixture"):
        raise EnergyError(f"form must be 'target', 'tweedie' or 'mixture', got {form!r}")
    if correction not in ("none", "jackknife"):
        raise EnergyError(f"correction must be 'none' or 'jackknife', got {correction!r}")
    if num_noise < 1 or (antithetic and num_noise % 2):
        raise ShapeError(f"num_noise must be {'positive and even' if antithetic else 'at least 1'}, got {num_noise}")
    if antithetic and proposal is not None:
        raise ShapeError("antithetic noise belongs to N(x, h); leave out antithetic=True or the proposal")
    h = _flat_variance(x, variance, "variance")
    if (form == "tweedie" or proposal is not None) and not bool((h > 0.0).all()):
        raise ShapeError(
            'variance must be above zero with form="tweedie" and with a proposal; at zero noise take form="target"'
        )
    return h


def _flat_variance(x: Tensor, variance: float | Tensor, name: str) -> Tensor:
    if x.dim() < 1 or not x.is_floating_point():
        raise ShapeError(f"x must be a floating-point tensor of shape (*batch, dim), got {x.dtype} {tuple(x.shape)}")
    batch = x.shape[:-1]
    h = torch.as_tensor(variance, dtype=x.dtype, device=x.device).detach()
    try:
        h = h.expand(batch).reshape(-1)
    except RuntimeError as error:
        raise ShapeError(
            f"{name} must be a number or broadcast to the batch shape {tuple(batch)} of x, got {tuple(h.shape)}"
        ) from error
    if not bool(((h >= 0.0) & (h < torch.inf)).all()):
        raise ShapeError(f"{name} must be finite and not negative (it is h, the square of sigma)")
    return h
