"""The base class of stochastic blocks: bijections of (x, noise)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from pyro_boltzmann.energies.annealed import AnnealedEnergy
from pyro_boltzmann.energies.columns import by_columns
from pyro_boltzmann.energies.held import HeldEnergy
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.info import BlockInfo, StepInfo
from pyro_boltzmann.stochastic.noise import NoisePart, Parts, part_log_prob, sample_part, split_parts
from pyro_boltzmann.transforms.fused import FusedTransform

__all__ = ["BlockResult", "StepResult", "StochasticBlock", "StreamResult"]


class StepResult(NamedTuple):
    """One step of the bijection: new state, noise for the way back, log-determinant, what is known at the new state."""

    x: Tensor
    noise: Parts
    ladj: Tensor | float
    memo: EnergyMemo
    info: StepInfo = StepInfo()


class BlockResult(NamedTuple):
    """All steps of a block applied to given noise; ``noise`` is flat, ``(*batch, noise_dim)``."""

    x: Tensor
    noise: Tensor
    ladj: Tensor
    memo: EnergyMemo
    info: BlockInfo


class StreamResult(NamedTuple):
    r"""All steps of a block applied to fresh noise that is not kept; ``log_ratio`` is
    :math:`S = \log p(n') - \log p(n) + \log|\det|`, the block's term of the log weight, shape ``(*batch)``."""

    x: Tensor
    log_ratio: Tensor
    memo: EnergyMemo
    info: BlockInfo


class StochasticBlock(FusedTransform):
    r"""A bijection :math:`(x, n) \mapsto (x', n')` of the state and the random numbers that move it.

    As a Pyro ``TransformModule`` it acts on the joint vector ``cat([x, n], -1)`` of size ``dim + noise_dim``. A block
    repeats its step ``num_repeats`` times, each with its own noise. To write a new block, set ``step_noise`` and
    implement
    :meth:`step` (and :meth:`step_inverse`, unless a step is its own inverse), then run
    :func:`pyro_boltzmann.testing.check_block` on it.

    :param dim: dimension of x.
    :param step_noise: law of the noise of one step.
    :param num_repeats: how many steps.
    :param is_involution: whether one step is its own inverse.
    """

    energy: AnnealedEnergy | HeldEnergy
    """Set by blocks that have one. No class default: it would hide an energy registered as a submodule."""

    def __init__(
        self, dim: int, step_noise: tuple[NoisePart, ...], *, num_repeats: int = 1, is_involution: bool = True
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"the dimension of a block must be positive, got dim={dim}")
        if num_repeats < 1:
            raise ValueError(f"a block needs at least one step, got {num_repeats}")
        self.dim = int(dim)
        self.step_noise = step_noise
        self.num_repeats = int(num_repeats)
        self.is_involution = is_involution
        self.step_noise_dim = sum(part.size for part in step_noise)
        self.noise_dim = self.num_repeats * self.step_noise_dim
        self.width = self.dim + self.noise_dim

    # To implement ------------------------------------------------------------------------------------------------

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        """Step number ``index``: ``x`` is ``(*batch, dim)``, ``memo`` what is known at ``x``.

        The state returned is a tensor of its own, or ``x`` itself: a stream may use its memory again.
        """
        raise NotImplementedError

    def step_inverse(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        """The inverse of :meth:`step`, with the log-determinant of the inverse map."""
        if self.is_involution:
            return self.step(x, noise, memo, index)
        raise NotImplementedError

    def stream_step(
        self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | float, EnergyMemo, StepInfo]:
        r"""One step whose outgoing noise is not needed: ``(x', S, memo', info)`` with S of the map applied.

        Override it where S has a shorter form than the noise itself. Both the noise and the state returned belong to
        the caller of this method alone: their memory may be used again.
        """
        result = (self.step_inverse if inverse else self.step)(x, noise, memo, index)
        after = self._log_prob(result.noise)
        return result.x, after - self._log_prob(noise) + result.ladj, result.memo, result.info

    # Given -------------------------------------------------------------------------------------------------------

    def sample_noise(self, batch_shape: torch.Size, like: Tensor, generator: Generator | None = None) -> Tensor:
        """Fresh flat noise, ``(*batch_shape, noise_dim)``."""
        parts = [
            sample_part(part, batch_shape, like, generator) for _ in range(self.num_repeats) for part in self.step_noise
        ]
        return torch.cat(parts, -1) if parts else like.new_zeros((*batch_shape, 0))

    def sample_step_noise(self, x: Tensor, generator: Generator | None = None, memory: Tensor | None = None) -> Parts:
        """Fresh noise for one step at ``x``, the first part in ``memory`` where it fits."""
        parts = []
        for part in self.step_noise:
            parts.append(sample_part(part, x.shape[:-1], x, generator, memory))
            memory = None
        return tuple(parts)

    def noise_log_prob(self, noise: Tensor) -> Tensor:
        """Log-density of flat noise, ``(*batch, noise_dim) -> (*batch)``."""
        total = noise.new_zeros(noise.shape[:-1])
        for one in noise.split(self.step_noise_dim, -1) if self.noise_dim else ():
            total = total + self._log_prob(split_parts(one, self.step_noise))
        return total

    def run(self, x: Tensor, noise: Tensor, memo: EnergyMemo | None = None, *, inverse: bool = False) -> BlockResult:
        """Apply the bijection (or its inverse) to ``x`` ``(*batch, dim)`` and flat ``noise`` ``(*batch,
        noise_dim)``."""
        memo = EnergyMemo() if memo is None else memo
        slots = list(noise.split(self.step_noise_dim, -1)) if self.noise_dim else [noise] * self.num_repeats
        order = range(self.num_repeats)
        move = self.step_inverse if inverse else self.step
        ladj = x.new_zeros(x.shape[:-1])
        infos = []
        for index in reversed(order) if inverse else order:
            x, parts, step_ladj, memo, info = move(x, split_parts(slots[index], self.step_noise), memo, index)
            slots[index] = torch.cat(parts, -1) if len(parts) != 1 else parts[0]
            ladj = ladj + step_ladj
            infos.append(info)
        if inverse:
            infos.reverse()
        return BlockResult(x, torch.cat(slots, -1), ladj, memo, BlockInfo.gather(infos))

    def stream(
        self, x: Tensor, memo: EnergyMemo | None = None, generator: Generator | None = None, *, inverse: bool = False
    ) -> StreamResult:
        """Draw fresh noise step by step and move ``x``; nothing is stored.

        With ``inverse`` the steps run backwards from the end of a path; ``log_ratio`` then still has the sign of the
        forward path, so that it enters the weight the same way.
        """
        memo = EnergyMemo() if memo is None else memo
        x = by_columns(x)
        log_ratio = x.new_zeros(x.shape[:-1])
        order = range(self.num_repeats)
        infos = []
        for index in reversed(order) if inverse else order:
            noise = self.sample_step_noise(x, generator)
            x, ratio, memo, info = self.stream_step(x, noise, memo, index, inverse=inverse)
            log_ratio = log_ratio + ratio
            infos.append(info)
        if inverse:
            infos.reverse()
        return StreamResult(x, -log_ratio if inverse else log_ratio, memo, BlockInfo.gather(infos))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.check_width(x)
        result = self.run(x[..., : self.dim], x[..., self.dim :])
        return torch.cat([result.x, result.noise], -1), result.ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self.check_width(y)
        result = self.run(y[..., : self.dim], y[..., self.dim :], inverse=True)
        return torch.cat([result.x, result.noise], -1), result.ladj

    def _log_prob(self, noise: Parts) -> Tensor:
        total: Tensor | None = None
        for part, values in zip(self.step_noise, noise, strict=True):
            one = part_log_prob(part, values)
            total = one if total is None else total + one
        return torch.zeros(()) if total is None else total

    def _set_positive(self, name: str, value: float | Tensor | list[float], *, learnable: bool) -> None:
        """Store a positive number, or one a step, by its logarithm."""
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
        if tensor.dim() > 1 or (tensor.dim() == 1 and tensor.shape[0] != self.num_repeats):
            raise ValueError(
                f"{name} must be a number or one number a step ({self.num_repeats}), got {tuple(tensor.shape)}"
            )
        lowest_is_legal = bool((tensor > 0).all()) if learnable else bool((tensor >= 0).all())
        if not lowest_is_legal:
            raise ValueError(f"{name} must be {'positive' if learnable else 'non-negative'}, got {value}")
        if learnable:
            self.register_parameter(f"log_{name}", nn.Parameter(tensor.log()))
        else:
            self.register_buffer(f"log_{name}", tensor.log())

    def _number(self, name: str, index: int, x: Tensor) -> float | Tensor:
        """A positive number as a float where nothing can be learned from it and reading it costs no synchronisation."""
        value = self._positive(name, index)
        return value if torch.is_grad_enabled() or value.is_cuda else float(value)

    def _log(self, name: str) -> Tensor:
        value: Tensor = getattr(self, f"log_{name}")
        return value

    def _positive(self, name: str, index: int) -> Tensor:
        log_value = self._log(name)
        return (log_value if log_value.dim() == 0 else log_value[index]).exp()
