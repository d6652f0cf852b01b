"""Metropolis tests of any involution."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from pyro_boltzmann.energies.columns import by_columns
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.held import hold
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.energies.rows import RowMask
from pyro_boltzmann.energies.tracing import is_tracing
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock, StreamResult
from pyro_boltzmann.stochastic.info import BlockInfo, StepInfo
from pyro_boltzmann.stochastic.noise import NoisePart, Parts, log_uniform

__all__ = ["MetropolisAdjusted", "metropolis_adjusted"]

DIVERGENCE = 1000.0
"""Energy error in kT above which a move counts as divergent (Stan's threshold)."""


class MetropolisAdjusted(StochasticBlock):
    r"""Each step of an involutive proposal, accepted or rejected: again an involution.

    One more noise variable :math:`E \sim \mathrm{Exp}(1)` decides. With :math:`(y, n') = ` proposal :math:`(x, n)`
    and

    .. math:: \Delta H = u(y) - u(x) - \log p(n') + \log p(n) - \log|\det|,

    the step is :math:`(y, n', E - \Delta H)` if :math:`E > \Delta H` and :math:`(x, n, E)` otherwise. Either way
    :math:`\log p(\mathrm{noise}') - \log p(\mathrm{noise}) + \log|\det| = u(x') - u(x)`, which telescopes over steps.
    A move whose energy is not finite at either end is rejected.

    **Gradients.** Within a branch everything is smooth, but the map jumps at :math:`E = \Delta H`. The ``"pathwise"``
    gradient ignores the jump: it is biased (by a quarter of its size on the double well at :math:`\lambda = 0.5`),
    exact only where the block's energy is the target's. Use it with ``adapt=True``, which steers the proposal's scale
    towards ``target_acceptance`` instead of differentiating it. The ``"score"`` gradient integrates E out and adds
    the score of the branch probabilities; it is unbiased, with more variance, and needs
    :class:`~pyro_boltzmann.infer.ReverseKL`, which :func:`~pyro_boltzmann.fit` uses by itself.

    :param proposal: a block whose step is an involution: random walk, Langevin (then it is MALA), leapfrog (HMC),
        underdamped Langevin. Each of its repeats is tested on its own.
    :param energy: the energy :math:`u` that the step leaves invariant.
    :param gradient: ``"pathwise"`` or ``"score"``.
    :param adapt: let :func:`~pyro_boltzmann.fit` adapt the proposal's scale, which must not be learnable then.
    :param target_acceptance: acceptance rate aimed at.
    :raises ValueError: if the proposal is not an involution.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, section 4; Metropolis et al. 1953; the extended-space form is derived
    in docs/design.md.

    >>> import torch
    >>> from pyro_boltzmann.stochastic import RandomWalkTransform
    >>> energy = lambda x: 0.5 * x.square().sum(-1)
    >>> block = MetropolisAdjusted(RandomWalkTransform(1, scale=1.0), energy)
    >>> block(torch.tensor([[0.0, 2.0, 0.1]]))  # uphill by 2 kT, E = 0.1: rejected, nothing changes
    tensor([[0.0000, 2.0000, 0.1000]])
    """

    def __init__(
        self,
        proposal: StochasticBlock,
        energy: Energy,
        *,
        gradient: Literal["pathwise", "score"] = "pathwise",
        adapt: bool = False,
        target_acceptance: float | None = None,
    ) -> None:
        if not isinstance(proposal, StochasticBlock) or not proposal.is_involution:
            raise ValueError(
                "MetropolisAdjusted needs a proposal whose step is its own inverse, such as RandomWalkTransform, "
                f"LangevinTransform or LeapfrogTransform; got {type(proposal).__name__}"
            )
        if gradient not in ("pathwise", "score"):
            raise ValueError(f'gradient must be "pathwise" or "score", got {gradient!r}')
        noise = (*proposal.step_noise, NoisePart("exponential", 1))
        super().__init__(proposal.dim, noise, num_repeats=proposal.num_repeats)
        self.proposal = proposal
        self.energy = hold(energy)
        self.gradient = gradient
        self.adapt = adapt
        self.target_acceptance = _default_acceptance(proposal) if target_acceptance is None else target_acceptance
        if adapt and not isinstance(getattr(proposal, self._scale_name(), None), Tensor):
            raise ValueError(f"adapt=True needs a proposal with a scale, {type(proposal).__name__} has none")
        if adapt and self._scale().requires_grad:
            raise ValueError("adapt=True steers the scale by acceptance rate; build the proposal with learnable=False")

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        *inner, threshold = noise
        proposed = self.proposal.step(x, tuple(inner), memo, index)
        energy_x = memo.value(self.energy, x)  # after the proposal, whose force may have brought it along
        energy_y = proposed.memo.value(self.energy, proposed.x)
        log_ratio = self.proposal._log_prob(proposed.noise) - self.proposal._log_prob(tuple(inner)) + proposed.ladj
        delta = energy_y - energy_x - log_ratio
        finite = _finite_ends(energy_x, energy_y, delta)
        may_select = not self.energy.is_local  # rows that belong to data cannot be evaluated without the others
        if may_select and torch.is_grad_enabled() and not is_tracing() and not bool(finite.all()):
            return self._step_on_rows(finite, x, noise, memo, index)
        accept = finite & (threshold[..., 0] > delta)
        mask = accept.unsqueeze(-1)
        rows = RowMask(accept)
        after = proposed.memo.where(rows, memo)
        outgoing = tuple(rows.select(new, old) for new, old in zip(proposed.noise, inner, strict=True))
        threshold = torch.where(mask, threshold - delta.unsqueeze(-1), threshold)
        ladj = torch.where(accept, proposed.ladj, torch.zeros_like(energy_x))
        info = self._info(rows, delta, finite)
        return StepResult(rows.select(proposed.x, x), (*outgoing, threshold), ladj, after, info)

    def _step_on_rows(self, rows: Tensor, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        """The step with rejected non-finite rows kept out of the graph, where they would send NaN gradients
        upstream."""
        kept = self.step(x[rows], tuple(part[rows] for part in noise), memo.rows(rows), index)
        after = {
            key: (_put(value, rows, kept.memo.entries[key][0]), None)
            for key, (value, _) in memo.entries.items()
            if key in kept.memo.entries
        }
        outgoing = tuple(_put(old, rows, new) for old, new in zip(noise, kept.noise, strict=True))
        ladj = _put(x.new_zeros(x.shape[:-1]), rows, torch.as_tensor(kept.ladj).expand(kept.x.shape[:-1]))
        log_branch = kept.info.log_branch
        if log_branch is not None:
            log_branch = _put(ladj.new_zeros(ladj.shape), rows, log_branch)
        total = rows.numel()
        info = kept.info._replace(log_branch=log_branch, nonfinite=total - rows.sum(), total=total)
        return StepResult(_put(x, rows, kept.x), outgoing, ladj, EnergyMemo(dict(after)), info)

    def stream(
        self, x: Tensor, memo: EnergyMemo | None = None, generator: Generator | None = None, *, inverse: bool = False
    ) -> StreamResult:
        if torch.is_grad_enabled():
            return super().stream(x, memo, generator, inverse=inverse)
        memo = EnergyMemo() if memo is None else memo
        x = by_columns(x)
        start = spare = delta = None
        kept: list[Tensor] = []
        infos: list[StepInfo] = []
        for index in reversed(range(self.num_repeats)) if inverse else range(self.num_repeats):
            noise = self.proposal.sample_step_noise(x, generator, spare)
            y, log_ratio, proposed, _ = self.proposal.stream_step(x, noise, memo, index, inverse=inverse)
            if start is None:
                start = current = memo.value(self.energy, x)  # the proposal's force may have brought it along
            delta = torch.sub(proposed.value(self.energy, y), current, out=delta)
            if isinstance(log_ratio, Tensor):
                delta -= log_ratio
            # The threshold is -log U of a uniform U; unlike stored noise it need not be finite.
            excess = log_uniform(delta.shape, delta, generator, kept).add_(delta)
            finite = None if _all_finite(delta) else delta.isfinite()
            rows = RowMask.negative(excess) if finite is None else RowMask((excess < 0) & finite)
            memo = proposed.where(rows, memo)
            spare = x if infos else None  # the first state is the caller's
            x = rows.select(y, x, overwrite=True)  # after the energies, which may be views of y
            current = memo.value(self.energy, x)
            infos.append(self._info(rows, delta, finite))
        if inverse:
            infos.reverse()
        assert start is not None  # a block has at least one step
        # Rows that started outside the support never moved: their contribution is 0, not inf - inf.
        change = torch.where(start.isfinite(), current - start, 0.0)
        return StreamResult(x, -change if inverse else change, memo, BlockInfo.gather(infos))

    def _info(self, rows: RowMask, delta: Tensor, finite: Tensor | None) -> StepInfo:
        total = delta.numel()
        log_branch = None
        if self.gradient == "score" and torch.is_grad_enabled() and finite is not None:
            accept, one = rows.mask, torch.ones_like(delta)
            rejected = torch.where(accept | ~finite, one, delta)
            taken = torch.where(accept & finite, delta, one)
            log_branch = torch.where(
                accept,
                -taken.clamp_min(0.0),
                torch.log(-torch.expm1(-rejected.clamp_min(torch.finfo(delta.dtype).tiny))),
            )
            log_branch = torch.where(finite, log_branch, torch.zeros_like(log_branch))
        return StepInfo(
            accepted=rows.count(),
            divergences=(delta > DIVERGENCE).sum() if hasattr(self.proposal, "energy") else None,
            nonfinite=torch.zeros((), dtype=torch.long, device=delta.device)
            if finite is None
            else total - finite.sum(),
            total=total,
            log_branch=log_branch,
        )

    def _scale(self) -> Tensor:
        return getattr(self.proposal, self._scale_name())  # type: ignore[no-any-return]

    def _scale_name(self) -> str:
        return f"log_{getattr(self.proposal, 'scale_name', 'step_size')}"

    @torch.no_grad()
    def adapt_scale(self, info: BlockInfo, rate: float = 0.1) -> None:
        r"""Robbins-Monro step of the log scale: :math:`\log s \leftarrow \log s + \rho\,(a - a^*)`."""
        if not self.adapt or info.accepted_by_step is None or info.total == 0:
            return
        by_step = info.accepted_by_step.to(self._scale()) * (self.num_repeats / info.total)
        scale = self._scale()
        scale.add_(rate * ((by_step if scale.dim() else by_step.mean()) - self.target_acceptance))


def _finite_ends(energy_x: Tensor, energy_y: Tensor, delta: Tensor) -> Tensor:
    return (energy_x.isfinite() & energy_y.isfinite() & delta.isfinite()).detach()


def _all_finite(values: Tensor) -> bool:
    """Cheap and safe: a finite sum has finite terms. On a GPU the answer would cost a synchronisation, so it is no."""
    return not values.is_cuda and math.isfinite(float(values.sum()))


def _put(full: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    if rows.dim() == 0:  # a single state: index_put does not take a mask without dimensions
        return _put(full.unsqueeze(0), rows.unsqueeze(0), values).squeeze(0)
    return full.index_put((rows,), values.to(full.dtype))


def _default_acceptance(proposal: StochasticBlock) -> float:
    """Optimal scaling in high dimension: 0.234 random walk (0.44 in one dimension), 0.574 MALA, 0.651 HMC."""
    name = type(proposal).__name__
    if name == "RandomWalkTransform":
        return 0.44 if proposal.dim == 1 else 0.234
    return 0.574 if name == "LangevinTransform" else 0.651


def metropolis_adjusted(proposal: StochasticBlock, energy: Energy) -> MetropolisAdjusted:
    """A :class:`MetropolisAdjusted` block with defaults."""
    return MetropolisAdjusted(proposal, energy)
