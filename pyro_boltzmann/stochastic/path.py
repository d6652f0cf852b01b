"""Composition of deterministic and stochastic blocks: every sampler of this package is one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Generator, Tensor, nn
from torch.distributions.transforms import ComposeTransform, _InverseTransform

from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.energies.tracing import is_tracing
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic.block import StochasticBlock
from pyro_boltzmann.stochastic.info import BlockInfo
from pyro_boltzmann.transforms.conditional_layer import ConditionalLayer, set_context
from pyro_boltzmann.transforms.fused import FusedTransform
from pyro_boltzmann.transforms.inverse import InverseTransform
from pyro_boltzmann.transforms.ladj import as_transform, call_and_ladj, clear_cache, inverse_and_ladj

__all__ = ["PathResult", "PathTransform"]


class PathResult(NamedTuple):
    r"""A streamed path: end state, :math:`S = \log p(n') - \log p(n) + \log|\det|` in float64 (with the sign of the
    forward path whatever the direction), what is known about energies at the end, and one info a block."""

    x: Tensor
    log_ratio: Tensor
    memo: EnergyMemo
    infos: tuple[BlockInfo | None, ...]


Redirect = Callable[[int, Any, Tensor, Tensor, EnergyMemo], "tuple[Tensor, Tensor] | None"]
"""Asked after each block of a forward path, with the arguments of an observer: ``None``, or which paths go on (indices
into the batch) and what S they go on with."""

Observer = Callable[[int, Any, Tensor, Tensor, EnergyMemo], None]
"""Called after each block of a streamed path with its index, the block, the state, S so far and the memo."""


class PathTransform(FusedTransform):
    r"""A list of blocks as one bijection :math:`(x_0, n) \mapsto (x_T, n')` on vectors of size ``dim + noise_dim``.

    A block is a stochastic block, any Pyro or torch transform of x, a zuko flow, or an
    :class:`~pyro_boltzmann.transforms.InverseTransform` of one of these. Pyro's conditional transforms take the context
    of :meth:`set_context`. With a base density :math:`q_0`, the weight

    .. math:: \log w = -u(x_T) + \log p(n') + \log|\det| - \log q_0(x_0) - \log p(n)

    has expectation Z and is the path weight of a stochastic normalizing flow.

    :param blocks: the blocks in the order in which x meets them.
    :param dim: dimension of x.
    :raises ShapeError: if a block works in another dimension.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, equation 16; the extended-space form is in docs/design.md.

    >>> import torch, pyro.distributions.transforms as T
    >>> from pyro_boltzmann.stochastic import LangevinTransform
    >>> energy = lambda x: 0.5 * x.square().sum(-1)
    >>> path = PathTransform([T.AffineTransform(1.0, 2.0), LangevinTransform(energy, 2, 0.1)], 2)
    >>> path.noise_dim
    2
    >>> joint = torch.randn(5, 4)
    >>> torch.allclose(path.inverse_and_ladj(path(joint))[0], joint, atol=1e-5)
    True
    """

    def __init__(self, blocks: Iterable[Any], dim: int, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.dim = int(dim)
        flat = list(_flatten(blocks))
        self.blocks = nn.ModuleList(b if isinstance(b, nn.Module) else _Plain(b) for b in flat)
        for position, (block, _) in enumerate(self._directed()):
            if isinstance(block, StochasticBlock):
                if block.dim != self.dim:
                    raise ShapeError(f"block {position} works in dimension {block.dim}, the path in {self.dim}")
            else:
                as_transform(block)
        self._slots = [b.noise_dim if isinstance(b, StochasticBlock) else 0 for b, _ in self._directed()]
        self.noise_dim = sum(self._slots)
        self.width = self.dim + self.noise_dim
        self.infos: tuple[BlockInfo | None, ...] = ()

    def _directed(self) -> list[tuple[Any, bool]]:
        """Each block stripped of :class:`InverseTransform` wrappers, with whether it runs backwards."""
        return [_strip(block) for block in self.blocks]

    @property
    def stochastic_blocks(self) -> list[StochasticBlock]:
        """The stochastic blocks, in order."""
        return [block for block, _ in self._directed() if isinstance(block, StochasticBlock)]

    # Noise -------------------------------------------------------------------------------------------------------

    def sample_noise(
        self, batch_shape: torch.Size | tuple[int, ...], like: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Fresh noise of all blocks, ``(*batch_shape, noise_dim)``."""
        shape = torch.Size(batch_shape)
        parts = [block.sample_noise(shape, like, generator) for block in self.stochastic_blocks]
        return torch.cat(parts, -1) if parts else like.new_zeros((*shape, 0))

    def noise_log_prob(self, noise: Tensor) -> Tensor:
        """Log-density of noise, incoming or outgoing: ``(*batch, noise_dim) -> (*batch)``."""
        total = noise.new_zeros(noise.shape[:-1])
        for (block, _), one in zip(self._directed(), noise.split(self._slots, -1), strict=True):
            if isinstance(block, StochasticBlock):
                total = total + block.noise_log_prob(one)
        return total

    # The bijection -----------------------------------------------------------------------------------------------

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(x)[:2]

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(y, inverse=True)[:2]

    def run(
        self, joint: Tensor, memo: EnergyMemo | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor, EnergyMemo]:
        """The bijection (or its inverse) on ``(*batch, width)``, with the log-determinant of the map applied.

        :param memo: what is known about energies at the state that the run starts from.
        :return: ``(joint, ladj, memo)``, the memo at the state where the run ends.
        """
        self.check_width(joint)
        x, noise = joint[..., : self.dim], list(joint[..., self.dim :].split(self._slots, -1))
        ladj = joint.new_zeros(joint.shape[:-1])
        memo = EnergyMemo() if memo is None else memo
        directed = self._directed()
        infos: list[BlockInfo | None] = [None] * len(directed)
        for position in reversed(range(len(directed))) if inverse else range(len(directed)):
            block, backwards = directed[position]
            if isinstance(block, StochasticBlock):
                result = block.run(x, noise[position], memo, inverse=backwards != inverse)
                x, noise[position], memo, infos[position] = result.x, result.noise, result.memo, result.info
                ladj = ladj + result.ladj
            else:
                x, block_ladj = self._flow(block, x, inverse=backwards != inverse)
                ladj, memo = ladj + block_ladj, EnergyMemo()
        self.infos = tuple(infos)
        return torch.cat([x, *noise], -1), ladj, memo

    def _flow(self, block: Any, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        y, ladj = (inverse_and_ladj if inverse else call_and_ladj)(block, x)
        if not is_tracing() and y.shape != x.shape:
            raise ShapeError(f"{type(block).__name__} mapped shape {tuple(x.shape)} to {tuple(y.shape)}")
        return y, ladj

    # Streaming ---------------------------------------------------------------------------------------------------

    def stream(
        self,
        x: Tensor,
        memo: EnergyMemo | None = None,
        generator: Generator | None = None,
        *,
        inverse: bool = False,
        observe: Observer | None = None,
        redirect: Redirect | None = None,
    ) -> PathResult:
        """Carry ``x`` along the path (or, with ``inverse``, back along it) with fresh noise, storing none of it.

        This has the law of the bijection applied to fresh noise, at a fraction of its memory. Start states of a forward
        path come from the base, of a backward path from the target. ``redirect`` may resample the paths between blocks.
        """
        memo = EnergyMemo() if memo is None else memo
        log_ratio = torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
        directed = self._directed()
        infos: list[BlockInfo | None] = [None] * len(directed)
        for position in reversed(range(len(directed))) if inverse else range(len(directed)):
            block, backwards = directed[position]
            if isinstance(block, StochasticBlock):
                result = block.stream(x, memo, generator, inverse=backwards != inverse)
                x, memo, infos[position] = result.x, result.memo, result.info
                log_ratio = log_ratio + (-result.log_ratio if backwards else result.log_ratio)
            else:
                x, ladj = self._flow(block, x, inverse=backwards != inverse)
                log_ratio, memo = log_ratio + (-ladj if inverse else ladj), EnergyMemo()
            if observe is not None:
                observe(position, block, x, log_ratio, memo)
            chosen = None if redirect is None else redirect(position, block, x, log_ratio, memo)
            if chosen is not None:
                index, log_ratio = chosen
                x, memo = x[index], memo.rows(index)
        return PathResult(x, log_ratio, memo, tuple(infos))

    def set_context(self, context: Tensor | None) -> None:
        """Condition all conditional layers on ``context`` ``(*data, context_dim)``, which broadcasts against states
        ``(*particles, *data, dim)``."""
        self.clear_cache()
        set_context(self, context)

    def clear_cache(self) -> None:
        super().clear_cache()
        self.infos = ()
        for block, _ in self._directed():
            clear_cache(block)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["infos"] = ()
        return state


class _Plain(nn.Module):
    """A transform without parameters, kept in the module list for its place."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = [as_transform(transform)]

    def extra_repr(self) -> str:
        return repr(self.transform[0])


def _flatten(blocks: Iterable[Any]) -> Iterator[Any]:
    """Open compositions, so that the parameters of their parts are registered and noise reaches nested blocks.

    torch's ``.inv`` becomes :class:`InverseTransform`: the plain one hides its parameters and breaks in ``deepcopy``.
    """
    for block in blocks:
        if isinstance(block, _Plain):
            yield from _flatten(block.transform)
        elif isinstance(block, PathTransform):
            yield from _flatten(block.blocks)
        elif isinstance(block, ConditionalTransform):
            yield ConditionalLayer(block)
        elif isinstance(block, ComposeTransform):
            yield from _flatten(block.parts)
        elif isinstance(block, _InverseTransform):
            yield from _flatten([InverseTransform(block.inv)])
        elif isinstance(block, InverseTransform) and isinstance(
            block.inverted, PathTransform | ComposeTransform | _InverseTransform | InverseTransform
        ):
            yield from (_inverted(part) for part in reversed(list(_flatten([block.inverted]))))
        else:
            yield block


def _inverted(block: Any) -> Any:
    return block.inverted if isinstance(block, InverseTransform) else InverseTransform(block)


def _strip(block: Any) -> tuple[Any, bool]:
    backwards = False
    while isinstance(block, InverseTransform | _Plain):
        if isinstance(block, InverseTransform):
            block, backwards = block.inverted, not backwards
        else:
            block = block.transform[0]
    return block, backwards
