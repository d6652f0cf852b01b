"""The permutation and rotation that lay one configuration of particles onto another."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_boltzmann.diagnostics.metrics.inputs import as_particles
from pyro_boltzmann.diagnostics.metrics.scipy_calls import best_matching
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["Alignment", "align_rows", "climb", "distance_features", "kabsch"]

MOST_PERMUTATIONS = 24
"""Up to here every permutation is tried, and the alignment is exact."""

CHUNK = 200_000


class Alignment(NamedTuple):
    r"""How to lay configurations :math:`y` onto :math:`x`: :math:`x_i \approx R\, y_{\sigma(i)}`.

    :ivar overlap: :math:`\sum_i x_i \cdot R\, y_{\sigma(i)}`, ``(n,)``; the squared distance left is
        :math:`|x|^2 + |y|^2 - 2 \cdot \text{overlap}`.
    :ivar order: :math:`\sigma`, ``(n, num_particles)``.
    :ivar rotation: orthogonal :math:`R`, ``(n, D, D)``.
    """

    overlap: FloatArray
    order: NDArray[np.intp]
    rotation: FloatArray


def align_rows(
    x: ArrayLike, y: ArrayLike, *, num_alternations: int = 10, num_starts: int = 1, seed: int = 0
) -> Alignment:
    r"""The :math:`\sigma` and :math:`R \in O(D)` that minimise :math:`\sum_i |x_i - R\, y_{\sigma(i)}|^2`, row by row.

    Centres of mass are removed. Up to four particles all permutations are tried, each with its best :math:`R` (Kabsch,
    with reflections): exact. Beyond, a local minimum: permutation (Hungarian method) and rotation are improved in turn
    from the matching of the sorted distances of each particle to all others, and from random rotations.

    :param x: ``(n, num_particles, D)``.
    :param y: ``(n, num_particles, D)``.
    :param num_alternations: turns at most; a start that no longer improves is left before.
    :param num_starts: the first and ``num_starts - 1`` random rotations, the best of which is taken.
    :param seed: of these rotations.
    :raises ShapeError: if the shapes differ.

    >>> x = np.random.default_rng(0).normal(size=(3, 4, 2))
    >>> found = align_rows(x, -x[:, [2, 0, 3, 1]])
    >>> found.order[0]
    array([1, 3, 0, 2])
    """
    target, moving = as_particles(x), as_particles(y)
    if target.shape != moving.shape or num_alternations < 1 or num_starts < 1:
        raise ShapeError(
            "expected two sets of one shape (n, num_particles, D), num_alternations >= 1 and num_starts >= 1, got "
            f"{target.shape}, {moving.shape}, {num_alternations} and {num_starts}"
        )
    if math.factorial(target.shape[1]) <= MOST_PERMUTATIONS:
        return _best_of_all(target, moving)
    features = np.einsum("npf,nqf->npq", distance_features(target), distance_features(moving), optimize=True)
    best = climb(target, moving, features, num_alternations)
    rng = np.random.default_rng(seed)
    for _ in range(num_starts - 1):
        rotation = np.linalg.qr(rng.normal(size=(len(target), *[target.shape[2]] * 2)))[0]
        tried = climb(target, moving, target @ rotation @ moving.transpose(0, 2, 1), num_alternations)
        better = tried.overlap > best.overlap
        for old, new in zip(best, tried, strict=True):
            old[better] = new[better]
    return best


def _best_of_all(target: FloatArray, moving: FloatArray) -> Alignment:
    permutations = np.array(list(itertools.permutations(range(target.shape[1]))))
    dim = target.shape[2]
    rows = max(1, CHUNK // (len(permutations) * dim))
    order = np.concatenate(
        [
            permutations[_overlaps(target[start : start + rows], moving[start : start + rows, permutations]).argmax(-1)]
            for start in range(0, len(target), rows)
        ]
    )
    matched = np.take_along_axis(moving, order[:, :, None], axis=1)
    overlap, rotation = kabsch(target, matched)
    return Alignment(overlap, order, rotation)


def _overlaps(target: FloatArray, permuted: FloatArray) -> FloatArray:
    """Nuclear norms of ``target_n^T permuted_nk``, ``(n, k)``."""
    products = target.transpose(0, 2, 1)[:, None] @ permuted
    if target.shape[2] == 2:
        # (s + t)^2 = |H|^2 + 2 |det H| spares the decomposition.
        a, b, c, d = products.reshape(*products.shape[:2], 4).transpose(2, 0, 1)
        return np.asarray(a * a + b * b + c * c + d * d + 2.0 * np.abs(a * d - b * c)) ** 0.5
    return np.asarray(np.linalg.svd(products, compute_uv=False).sum(-1))


def kabsch(target: FloatArray, moving: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""The largest :math:`\sum_i x_i \cdot R\, y_i` over :math:`O(D)`, ``(n,)``, and its :math:`R`, ``(n, D, D)``.

    With :math:`x^\top y = U S V^\top` it is :math:`\operatorname{tr} S`, at :math:`R = U V^\top`. Source: Kabsch, Acta
    Cryst. A32 (1976), 922.
    """
    left, singular, right = np.linalg.svd(target.transpose(0, 2, 1) @ moving)
    return np.asarray(singular.sum(-1)), np.asarray(left @ right)


def climb(target: FloatArray, moving: FloatArray, gain: FloatArray, num_alternations: int) -> Alignment:
    """Match and rotate in turn, pair by pair; each turn can only raise the overlap.

    :param gain: ``(n, num_particles, num_particles)``, what matching a particle of ``target`` to one of ``moving`` is
        worth at first.
    """
    size, particles, dim = target.shape
    best = Alignment(np.full(size, -math.inf), np.zeros((size, particles), np.intp), np.zeros((size, dim, dim)))
    active = np.arange(size)
    for turn in range(num_alternations):
        order = np.stack([best_matching(g) for g in gain])
        matched = np.take_along_axis(moving[active], order[:, :, None], axis=1)
        overlap, rotation = kabsch(target[active], matched)
        # An overlap that rounding alone has raised is at its fixed point.
        improved = overlap > best.overlap[active] * (1.0 + 1e-12)
        active = active[improved]
        for kept, new in zip(best, (overlap, order, rotation), strict=True):
            kept[active] = new[improved]
        if turn + 1 == num_alternations or active.size == 0:
            break
        gain = target[active] @ best.rotation[active] @ moving[active].transpose(0, 2, 1)
    return best


def distance_features(x: FloatArray) -> FloatArray:
    """Sorted distances of each particle to the others, ``(n, num_particles, num_particles)``."""
    return np.asarray(np.sort(np.linalg.norm(x[:, :, None] - x[:, None, :], axis=-1), axis=-1))
