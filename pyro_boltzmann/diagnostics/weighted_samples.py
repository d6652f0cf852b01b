"""Weighted draws and everything that can honestly be said of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import weights as _weights
from pyro_boltzmann.diagnostics.resampling import RESAMPLERS
from pyro_boltzmann.exceptions import PyroBoltzmannError, ShapeError

__all__ = ["WeightedSamples"]

ENOUGH_CHAINS = 4
"""Resampled draws in so many chains take their errors from the differences of the chains."""
FEWEST_INDEPENDENT = 8
"""Resampled draws that descend from fewer independent ones have errors that mean nothing."""


class WeightedSamples:
    r"""Draws :math:`x_i` with log weights :math:`\ell_i`: :math:`\frac1N \sum e^{\ell_i} f(x_i) \to Z\,E_\pi[f]`.

    Statistics are computed on first use and kept. NaN weights can be stored and saved, so that a run that met them
    loses nothing, but every statistic of them raises.

    :param samples: one tensor (then called ``x``) or a mapping from site names to tensors, of shape ``(N, *event)``.
    :param log_weights: ``(N,)``, or ``(num_chains, N / num_chains)`` for independent replicates (then ``samples``
        and the rest may have both leading dimensions too). Stored flat, in float64, without a graph.
    :param num_chains: number of independent replicates when ``log_weights`` is flat; must divide ``N``.
    :param log_q: log density (or path density) of the proposal at each draw, ``(N,)``.
    :param energy: target energy of each draw, ``(N,)``.
    :param roots: for draws that were resampled on their way: which of its chain's first draws each descends from,
        ``(N,)`` integers. Draws with one root are not independent, and their weights say nothing about what was lost
        before they were resampled: errors are taken over roots, or over chains where there are four or more, and k-hat
        is NaN.
    :param log_normalizer_by_chain: ``(num_chains,)`` estimates of :math:`\log Z`, where they do not come from the
        weights (parallel tempering); the mean of the weights must be their mean.
    :param evaluations: energy evaluations spent, ``{"train": {"values": ..., "gradients": ...}, ...}``.
    :param seconds: wall time spent.
    :param info: anything else worth keeping (acceptance rates of the blocks, ...).
    :raises ShapeError: if there are no draws or the shapes do not match.

    >>> draws = torch.linspace(-3, 3, 101)
    >>> ws = WeightedSamples(draws, -0.5 * draws.square())
    >>> mean, error = ws.expectation(lambda x: x)
    >>> abs(mean.item()) < 1e-6
    True
    >>> print(ws)
    WeightedSamples: 101 draws of x ()
      log Z     -0.8852 +- 0.0843
      ESS       0.5821 of N = 101
      k-hat     ... (limit 0.50)
    """

    def __init__(
        self,
        samples: Tensor | Mapping[str, Tensor],
        log_weights: Tensor,
        *,
        num_chains: int | None = None,
        log_q: Tensor | None = None,
        energy: Tensor | None = None,
        roots: Tensor | None = None,
        log_normalizer_by_chain: Tensor | None = None,
        evaluations: Mapping[str, Any] | None = None,
        seconds: float | Mapping[str, float] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        if log_weights.dim() not in (1, 2) or log_weights.numel() == 0:
            raise ShapeError(
                f"expected log_weights of shape (N,) or (num_chains, draws) with at least one draw, got "
                f"{tuple(log_weights.shape)}; ask for num_samples >= 1"
            )
        grid = tuple(log_weights.shape) if log_weights.dim() == 2 else None
        if grid is not None and num_chains not in (None, grid[0]):
            raise ShapeError(f"log_weights {grid} have {grid[0]} chains, but num_chains={num_chains} was given")
        self.num_samples: int = log_weights.numel()
        self.num_chains: int = grid[0] if grid else (num_chains or 1)
        if self.num_chains < 1 or self.num_samples % self.num_chains:
            raise ShapeError(f"num_chains={num_chains} must divide the number of draws, {self.num_samples}")
        named = dict(samples) if isinstance(samples, Mapping) else {"x": samples}
        self.log_weights: Tensor = log_weights.detach().flatten().to(torch.float64)
        self.samples: dict[str, Tensor] = {name: self._flat(name, value, grid) for name, value in named.items()}
        self.log_q: Tensor | None = None if log_q is None else self._flat("log_q", log_q, grid)
        self.energy: Tensor | None = None if energy is None else self._flat("energy", energy, grid)
        self.roots: Tensor | None = None if roots is None else self._flat("roots", roots, grid)
        self.log_normalizer_by_chain = log_normalizer_by_chain
        if log_normalizer_by_chain is not None and log_normalizer_by_chain.shape != (self.num_chains,):
            raise ShapeError(
                f"expected log_normalizer_by_chain of shape ({self.num_chains},), one a chain, got "
                f"{tuple(log_normalizer_by_chain.shape)}"
            )
        self.evaluations: dict[str, Any] = dict(evaluations or {})
        self.seconds: float | dict[str, float] | None = dict(seconds) if isinstance(seconds, Mapping) else seconds
        self.info: dict[str, Any] = dict(info or {})

    def _flat(self, name: str, value: Tensor, grid: tuple[int, ...] | None) -> Tensor:
        value = value.detach()
        if grid is not None and tuple(value.shape[:2]) == grid:
            value = value.flatten(0, 1)
        if value.shape[:1] != (self.num_samples,):
            raise ShapeError(
                f"expected {name!r} of shape ({self.num_samples}, ...), one row for each log weight, got "
                f"{tuple(value.shape)}"
            )
        return value

    def __len__(self) -> int:
        return self.num_samples

    @cached_property
    def weights(self) -> Tensor:
        """Normalised weights ``(N,)``, summing to one."""
        return torch.from_numpy(_weights.normalized_weights(self.log_weights)).to(self.log_weights.device)

    @cached_property
    def ess(self) -> float:
        """Kish's effective sample size as a fraction of ``N`` (see :func:`~.weights.kish_ess`)."""
        return _weights.kish_ess(self.log_weights)

    @cached_property
    def log_normalizer(self) -> float:
        r"""The estimate of :math:`\log Z`."""
        return _weights.log_normalizer(self.log_weights)

    @cached_property
    def log_normalizer_error(self) -> float:
        r"""Delta-method standard error of :attr:`log_normalizer`; means nothing unless :attr:`reliable`."""
        if self.log_normalizer_by_chain is not None:
            return float(self.log_normalizer_by_chain.double().std()) / math.sqrt(self.num_chains)
        if self.groups is None:
            return _weights.log_normalizer_error(self.log_weights)
        number = self.num_chains if self.num_chains >= ENOUGH_CHAINS else self.num_samples
        return _weights.grouped_log_normalizer_error(self.log_weights, self.groups, number)

    @cached_property
    def _chain(self) -> Tensor:
        return torch.arange(self.num_samples, device=self.log_weights.device) // (self.num_samples // self.num_chains)

    @cached_property
    def groups(self) -> Tensor | None:
        """Labels ``(N,)`` of resampled draws that depend on each other: one a chain where there are four or more,
        otherwise one a root. ``None`` where nothing was resampled."""
        if self.roots is None:
            return None
        return self._chain.cpu() if self.num_chains >= ENOUGH_CHAINS else self._roots_apart

    @property
    def _roots_apart(self) -> Tensor:
        """Labels of roots that differ from chain to chain."""
        assert self.roots is not None
        return (self._chain * (int(self.roots.max()) + 1) + self.roots).cpu()

    @cached_property
    def num_independent(self) -> float:
        r"""How many independent draws there are behind resampled ones: the effective number of their roots,
        :math:`1 / \sum_g S_g^2` for shares :math:`S_g` of the weight. The ESS, where nothing was resampled."""
        if self.roots is None:
            return self.ess * self.num_samples
        return _weights.effective_groups(self.log_weights, self._roots_apart)

    @cached_property
    def _psis(self) -> tuple[Tensor, float]:
        if self.roots is not None:
            return self.weights.log(), math.nan
        smoothed, khat = _weights.psis(self.log_weights)
        return torch.from_numpy(smoothed).to(self.log_weights.device), khat

    def psis(self) -> tuple[Tensor, float]:
        """Pareto smoothed, normalised log weights ``(N,)`` and k-hat (see :func:`~.weights.psis`)."""
        return self._psis

    @property
    def khat(self) -> float:
        """Tail index of the weights; ``inf`` where there are too few draws to tell, NaN for resampled draws."""
        return self._psis[1]

    @property
    def khat_limit(self) -> float:
        """Largest k-hat at which errors and means from this many draws can be believed."""
        return _weights.khat_limit(self.num_samples)

    @property
    def reliable(self) -> bool:
        """Whether k-hat is below its limit; for resampled draws, whether they descend from at least eight independent
        ones (:attr:`num_independent`): chains that all collapsed may differ by less than they are off."""
        if self.roots is None:
            return self.khat <= self.khat_limit
        # Rounding can push the number of equal chains below a whole one.
        return self.num_independent >= FEWEST_INDEPENDENT * (1.0 - 1e-9)

    @cached_property
    def max_weight(self) -> float:
        """The largest normalised weight."""
        return float(self.weights.max())

    @cached_property
    def num_nonfinite(self) -> int:
        """Number of draws of zero weight (energy ``+inf``)."""
        return int(torch.isneginf(self.log_weights).sum())

    @cached_property
    def _elbo(self) -> tuple[float, float]:
        return _weights.elbo(self.log_weights)

    @property
    def elbo(self) -> float:
        r"""Mean log weight, a lower bound of :math:`\log Z`."""
        return self._elbo[0]

    @property
    def elbo_error(self) -> float:
        """Standard error of :attr:`elbo`."""
        return self._elbo[1]

    def expectation(self, f: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Self-normalised mean of ``f`` and its standard error (see :func:`~.weights.expectation`; for resampled draws
        :func:`~.weights.grouped_expectation`), in float64.

        :param f: maps the dictionary of sites, or the only tensor, to ``(N, *event)``.
        """
        (first, *others) = self.samples.values()
        values = f(dict(self.samples) if others else first)
        if self.groups is None:
            mean, error = _weights.expectation(self.log_weights, values.detach().cpu())
        else:
            mean, error = _weights.grouped_expectation(self.log_weights, values.detach().cpu(), self.groups)
        device = self.log_weights.device
        return torch.from_numpy(mean).to(device), torch.from_numpy(error).to(device)

    def resample(
        self, num_samples: int | None = None, method: str = "systematic", generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Equally weighted draws, as a dictionary of ``(num_samples, *event)``; copies of one draw are not independent.

        :param num_samples: default ``N``.
        :param method: ``"systematic"`` or ``"multinomial"``.
        :raises ValueError: for any other method.
        """
        if method not in RESAMPLERS:
            raise ValueError(f"expected method to be one of {sorted(RESAMPLERS)}, got {method!r}")
        size = self.num_samples if num_samples is None else num_samples
        indices = RESAMPLERS[method](self.log_weights, size, generator)
        return {name: value[indices.to(value.device)] for name, value in self.samples.items()}

    def to_arviz(self, resample: str = "none", **kwargs: Any) -> Any:
        """An ArviZ object: :func:`~pyro_boltzmann.diagnostics.to_arviz` of these draws."""
        from pyro_boltzmann.diagnostics.arviz_io import to_arviz

        return to_arviz(self, resample=resample, **kwargs)

    def save(self, path: str | os.PathLike[str], resample: str = "none", **kwargs: Any) -> Path:
        """Write an ArviZ netCDF file atomically; :func:`~pyro_boltzmann.diagnostics.from_netcdf` reads it back.

        :raises OutputError: if it cannot be written.
        """
        from pyro_boltzmann.diagnostics.arviz_io import to_netcdf

        return to_netcdf(self, path, resample=resample, **kwargs)

    def equals(self, other: object) -> bool:
        """Whether ``other`` holds the same draws, weights and records, bit for bit (NaN equals NaN)."""
        return (
            isinstance(other, WeightedSamples)
            and self.num_chains == other.num_chains
            and self.samples.keys() == other.samples.keys()
            and all(_same(self.samples[name], other.samples[name]) for name in self.samples)
            and _same(self.log_weights, other.log_weights)
            and _same(self.log_q, other.log_q)
            and _same(self.energy, other.energy)
            and _same(self.roots, other.roots)
            and _same(self.log_normalizer_by_chain, other.log_normalizer_by_chain)
            and (self.evaluations, self.seconds) == (other.evaluations, other.seconds)
            and self.info.keys() == other.info.keys()
            and all(_same_record(value, other.info[name]) for name, value in self.info.items())
        )

    def summary(self) -> str:
        """A few lines of plain text: log Z never without its error, ESS and k-hat."""
        sites = ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in self.samples.items())
        chains = f" in {self.num_chains} chains" if self.num_chains > 1 else ""
        lines = [f"WeightedSamples: {self.num_samples} draws{chains} of {sites}"]
        try:
            error = f"{self.log_normalizer_error:.4f}" if self.reliable else f"n/a ({self._evidence()})"
            lines.append(f"  log Z     {self.log_normalizer:.4f} +- {error}")
            if self.log_normalizer_by_chain is not None:
                lines.append(f"  chains    {self.num_chains}, from whose differences errors come")
            else:
                lines.append(f"  ESS       {self.ess:.4f} of N = {self.num_samples}")
            if self.log_normalizer_by_chain is None and self.roots is not None:
                lines.append(f"  roots     {self.num_independent:.1f} effective (draws were resampled on their way)")
            elif self.roots is None:
                khat = f"{self.khat:.2f}" if math.isfinite(self.khat) else "n/a (no tail to fit)"
                lines.append(f"  k-hat     {khat}" + (f" (limit {self.khat_limit:.2f})" if self.khat_limit > 0 else ""))
        except PyroBoltzmannError as problem:
            lines.append(f"  no estimate: {problem}")
        else:
            if not self.reliable:
                lines.append(f"  unreliable: {self._trouble()}")
            if self.num_nonfinite:
                lines.append(f"  {self.num_nonfinite} draws of zero weight (energy +inf)")
        return "\n".join(lines)

    def _evidence(self) -> str:
        return "k-hat" if self.roots is None else "roots"

    def _trouble(self) -> str:
        if self.roots is not None:
            return f"fewer than {FEWEST_INDEPENDENT} independent draws are behind these"
        if not math.isfinite(self.khat):
            return "too few draws, or one that dominates them all, to fit a tail"
        return "the weights have too heavy a tail for these draws"

    __repr__ = summary


def _same_record(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):  # whose == is no bool
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _same(a, b)
    return bool(a == b)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
