"""The edge of the domain in a density: laws on the whole line brought onto it, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform, Transform
from torch.nn import functional

from pyro_boltzmann.sde.boundaries import Absorbing, Boundary, Clamped, Periodic, Reflecting, check_boundaries

__all__ = ["Preimages", "Walls"]


class _AtMost(constraints.less_than):
    """``less_than`` with its end, on which there may be an atom; torch has the other side only."""

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = value <= self.upper_bound
        return inside


@biject_to.register(_AtMost)  # type: ignore[untyped-decorator]
@transform_to.register(_AtMost)  # type: ignore[untyped-decorator]
def _from_real(constraint: _AtMost) -> Transform:
    return ComposeTransform([ExpTransform(), AffineTransform(constraint.upper_bound, -1.0)])


@dataclass(frozen=True)
class Preimages:
    """What a state may have been before it was brought into the domain.

    :ivar u: ``(K, *batch, d)``, on the whole space; the first is the state itself, up to absorbing ends.
    :ivar log_weight: ``(K, *batch)``; the density of the state is the sum of ``exp(log_weight) * p_u(u)`` over K.
    """

    u: Tensor
    log_weight: Tensor


class Walls:
    r"""Brings a law of :math:`u \in \mathbb R^d` onto the domain of a process, coordinate by coordinate.

    *Absorbing* ends: survivors lie strictly inside. A bijection that is close to the identity further than
    :math:`\delta` from the ends,

    .. math:: v = l + \delta\Bigl[\operatorname{softplus}\frac{u - l}{\delta} -
                                  \operatorname{softplus}\frac{u - h}{\delta}\Bigr], \qquad
              u = v + \delta \log\bigl(1 - e^{-(v - l)/\delta}\bigr) - \delta \log\bigl(1 - e^{-(h - v)/\delta}\bigr),

    with the terms of open ends left out. *Reflecting* ends fold: :math:`y = l + |v - l|`, a triangle wave between two
    ends; the density of y is the sum of that of its images. *Periodic* ends wrap, with translates in place of mirror
    images. *Clamped* ends put what is beyond them on them: the law has an atom at the end, whose mass is the integral
    beyond it (Gauss-Laguerre quadrature in units of :math:`\delta`), so ``exp(log_prob)`` at y = l is a mass in that
    coordinate and a density in the others. An absorbing end opposite a reflecting one absorbs its mirror image too.

    One reflecting end has two images, and the sum is exact. Between two, and for periodic ones, there are infinitely
    many; those of ``2 num_images + 1`` widths of the domain are kept, and the mass left out is
    that of u outside of them (:meth:`reach`).

    :param boundaries: of the process.
    :param event_dim: d.
    :param num_images: copies of the domain on either side.
    :param num_nodes: of the quadrature for each atom.
    :raises ValueError: if a coordinate is clamped at one end and reflected at the other.

    >>> walls = Walls([Reflecting(0, low=0.0)], 1)
    >>> scale = torch.ones(1)
    >>> walls.fold(torch.tensor([[-0.25]]), scale)
    tensor([[0.2500]])
    >>> walls.unfold(torch.tensor([[0.25]]), scale).u.flatten()
    tensor([ 0.2500, -0.2500])
    """

    def __init__(
        self, boundaries: Sequence[Boundary], event_dim: int, *, num_images: int = 2, num_nodes: int = 16
    ) -> None:
        check_boundaries(boundaries, event_dim)
        if num_images < 1 or num_nodes < 1:
            raise ValueError(f"expected num_images >= 1 and num_nodes >= 1, got {num_images} and {num_nodes}")
        self.boundaries, self.event_dim, self.num_images = tuple(boundaries), event_dim, num_images
        self.nodes, self.node_log_weights = _laguerre(num_nodes)
        self.absorbing: dict[int, tuple[float, float]] = {}
        for boundary in boundaries:
            if isinstance(boundary, Absorbing):
                low, high = self.absorbing.get(boundary.index, (-math.inf, math.inf))
                low = low if boundary.low is None else boundary.low
                self.absorbing[boundary.index] = (low, high if boundary.high is None else boundary.high)
        self.folds = _folds(boundaries)
        for index, fold in self.folds.items():
            if isinstance(fold, Reflecting) and index in self.absorbing:
                low, high = self.absorbing[index]
                if fold.low is not None:
                    low = 2.0 * fold.low - high
                if fold.high is not None:
                    high = 2.0 * fold.high - low
                self.absorbing[index] = (low, high)

    @property
    def is_bijective(self) -> bool:
        """Whether each state has one preimage."""
        return not self.folds

    @property
    def support(self) -> constraints.Constraint:
        """The closed domain, as a constraint on vectors."""
        if not self.boundaries:
            return constraints.real_vector
        parts: list[constraints.Constraint] = []
        for index in range(self.event_dim):
            low, high = self.domain(index)
            if math.isinf(low) and math.isinf(high):
                parts.append(constraints.real)
            elif math.isinf(high):
                parts.append(constraints.greater_than_eq(low))
            elif math.isinf(low):
                parts.append(_AtMost(high))  # type: ignore[no-untyped-call]
            else:
                parts.append(constraints.interval(low, high))
        return constraints.independent(constraints.cat(parts, dim=-1, lengths=[1] * self.event_dim), 1)

    def domain(self, index: int) -> tuple[float, float]:
        """The ends of a coordinate, infinite where it is open."""
        ends = [boundary for boundary in self.boundaries if boundary.index == index]
        lows = [boundary.low for boundary in ends if boundary.low is not None]
        highs = [boundary.high for boundary in ends if boundary.high is not None]
        return (lows[0] if lows else -math.inf), (highs[0] if highs else math.inf)

    def contains(self, y: Tensor) -> Tensor:
        """Whether states ``(*batch, d)`` lie where the law can have mass, ``(*batch)``."""
        inside = ~y.isnan().any(-1)
        for index in range(self.event_dim):
            low, high = self.domain(index)
            inside = inside & (y[..., index] >= low) & (y[..., index] <= high)
        return inside

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest states inside the domain; periodic coordinates stay as they are."""
        if not self.boundaries:
            return x
        columns = list(x.unbind(-1))
        for index in {boundary.index for boundary in self.boundaries}:
            if not isinstance(self.folds.get(index), Periodic):
                low, high = self.domain(index)
                columns[index] = columns[index].clamp(low, high)
        return torch.stack(columns, -1)

    def reach(self, u: Tensor) -> Tensor:
        """Whether the image sums include ``u`` ``(*batch, d)``: the share that they do not is mass left out."""
        inside = torch.ones(u.shape[:-1], dtype=torch.bool, device=u.device)
        for index, fold in self.folds.items():
            if not isinstance(fold, Clamped) and fold.low is not None and fold.high is not None:
                beyond = self.num_images * (fold.high - fold.low)
                inside &= (u[..., index] >= fold.low - beyond) & (u[..., index] <= fold.high + beyond)
        return inside

    def fold(self, u: Tensor, scale: Tensor) -> Tensor:
        """States of the domain from ``u`` ``(*batch, d)``; ``scale`` broadcasts, the diffusion lengths."""
        if not self.boundaries:
            return u
        columns = list(u.unbind(-1))
        for index, (low, high) in self.absorbing.items():
            columns[index] = _confine(columns[index], low, high, scale[..., index])
        for index, fold in self.folds.items():
            columns[index] = fold.fold(columns[index])  # type: ignore[attr-defined]
        return torch.stack(columns, -1)

    def unfold(self, y: Tensor, scale: Tensor, *, dequantised: bool = False, beyond: Tensor | None = None) -> Preimages:
        """All preimages of states ``(*batch, d)``; those outside the domain have no weight.

        :param beyond: lengths in place of ``scale`` on the far side of clamped ends; broadcasts.
        :param dequantised: whether the states come from :meth:`dequantise`: then clamped ends are those of the data,
            and nothing is checked.
        """
        shape = torch.broadcast_shapes(y.shape, scale.shape)
        u, scale = y.expand(shape).unsqueeze(0), scale.expand(shape)
        log_weight = torch.zeros_like(u[..., 0])
        if not self.boundaries:
            return Preimages(u, log_weight)
        if not dequantised:
            log_weight = log_weight.masked_fill(~self.contains(y).expand(shape[:-1]), -math.inf)
        for index, fold in self.folds.items():
            if dequantised and isinstance(fold, Clamped):
                continue
            length = scale if beyond is None else beyond.expand(shape)
            images, weights = self._images(fold, u[..., index], length[..., index])
            # (K_old, K_new, *batch) flattened into one leading dimension.
            count = len(images)
            u = u.repeat_interleave(count, 0)
            u[..., index] = torch.stack(list(images), 1).flatten(0, 1)
            log_weight = log_weight.repeat_interleave(count, 0) + torch.stack(list(weights), 1).flatten(0, 1)
        for index, (low, high) in self.absorbing.items():
            columns = list(u.unbind(-1))
            columns[index], ladj = _release(columns[index], low, high, scale[..., index])
            u, log_weight = torch.stack(columns, -1), log_weight + ladj
        return Preimages(u, log_weight)

    def dequantise(self, y: Tensor, scale: Tensor) -> Tensor:
        r"""Replace states on a clamped end by random ones beyond it, at distances :math:`\delta\,\mathrm{Exp}(1)`.

        Maximum likelihood of u on such data bounds that of the mixed law from below, and is equal to it where the model
        has this law beyond the end, which it can learn.
        """
        for index, fold in self.folds.items():
            if isinstance(fold, Clamped):
                step = torch.empty_like(y[..., index]).exponential_() * scale[..., index].expand(y.shape[:-1])
                column = y[..., index]
                if fold.low is not None:
                    column = torch.where(y[..., index] <= fold.low, fold.low - step, column)
                if fold.high is not None:
                    column = torch.where(y[..., index] >= fold.high, fold.high + step, column)
                y = torch.cat([y[..., :index], column.unsqueeze(-1), y[..., index + 1 :]], -1)
        return y

    @property
    def has_atoms(self) -> bool:
        return any(isinstance(fold, Clamped) for fold in self.folds.values())

    def _images(self, fold: Boundary, y: Tensor, scale: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if isinstance(fold, Clamped):
            return self._beyond(fold, y, scale)
        # The state itself comes first: it is the preimage that a round trip uses.
        copies = sorted(range(-self.num_images, self.num_images + 1), key=abs)
        images: list[Tensor]
        if isinstance(fold, Periodic):
            assert fold.low is not None and fold.high is not None
            images = [y + copy * (fold.high - fold.low) for copy in copies]
        elif fold.low is None or fold.high is None:
            wall = fold.low if fold.low is not None else fold.high
            assert wall is not None
            images = [y, 2.0 * wall - y]
        else:
            width = fold.high - fold.low
            images = [y + copy * width if copy % 2 == 0 else fold.low + fold.high - y + copy * width for copy in copies]
        return images, [torch.zeros_like(y)] * len(images)

    def _beyond(self, fold: Boundary, y: Tensor, scale: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The value itself inside, the nodes of a quadrature beyond the end for values on it."""
        at_low = torch.zeros_like(y, dtype=torch.bool) if fold.low is None else y <= fold.low
        at_high = torch.zeros_like(y, dtype=torch.bool) if fold.high is None else y >= fold.high
        on_end = at_low | at_high
        if not bool(on_end.any()):
            return [y], [torch.zeros_like(y)]
        direction = at_high.to(y.dtype) - at_low.to(y.dtype)
        images, weights = [], []
        for number, (node, log_weight) in enumerate(zip(self.nodes, self.node_log_weights, strict=True)):
            inside = 0.0 if number == 0 else -math.inf
            images.append(y + direction * node * scale)
            weights.append((log_weight + scale.log()).expand(y.shape).masked_fill(~on_end, inside))
        return images, weights


def _folds(boundaries: Sequence[Boundary]) -> dict[int, Boundary]:
    """One rule for each coordinate that is folded, wrapped or clamped."""
    folds: dict[int, Boundary] = {}
    for boundary in boundaries:
        if isinstance(boundary, Absorbing):
            continue
        other = folds.get(boundary.index)
        if other is not None and type(other) is not type(boundary):
            raise ValueError(
                f"{other} and {boundary} on one coordinate have no common law here; use the same rule at both ends, or "
                "an absorbing one opposite"
            )
        ends = dict(boundary.ends) if other is None else {**other.ends, **boundary.ends}
        folds[boundary.index] = type(boundary)(boundary.index, ends.get("low"), ends.get("high"))
    return folds


def _confine(u: Tensor, low: float, high: float, scale: Tensor) -> Tensor:
    if math.isinf(low):
        return high - scale * functional.softplus((high - u) / scale)
    v = low + scale * functional.softplus((u - low) / scale)
    if math.isinf(high):
        return v
    # The difference of two large numbers may be rounded to beyond an end.
    return (v - scale * functional.softplus((u - high) / scale)).clamp(low, high)


def _release(v: Tensor, low: float, high: float, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`_confine` and the logarithm of its slope."""
    least = torch.finfo(v.dtype).eps  # a value that rounding has put on the end
    shift = torch.zeros_like(v)
    slope = torch.ones_like(v)
    if math.isfinite(low):
        p = ((v - low) / scale).clamp_min(least)
        shift = shift + (-(-p).expm1()).log()
        slope = -1.0 / (-p).expm1()
    if math.isfinite(high):
        q = ((high - v) / scale).clamp_min(least)
        shift = shift - (-(-q).expm1()).log()
        slope = slope + 1.0 / q.expm1()
    return v + scale * shift, slope.log()


def _laguerre(num_nodes: int) -> tuple[list[float], list[float]]:
    """Nodes s and log(w exp(s)): the integral of f over the positive numbers is the sum of w exp(s) f(s)."""
    nodes, weights = np.polynomial.laguerre.laggauss(num_nodes)
    return nodes.tolist(), (np.log(weights) + nodes).tolist()
