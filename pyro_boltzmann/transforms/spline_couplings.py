"""Conditional spline couplings that are as quick to sample as to score."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_boltzmann.transforms.rational_quadratic import num_spline_parameters, rational_quadratic_spline

__all__ = ["SplineCouplings"]


class SplineCouplings(nn.Module):
    r"""A chain of couplings :math:`z \mapsto w` with a context :math:`e`. Layer l moves the coordinates in :math:`A_l`,

    .. math:: w_i = \mu_i + e^{\lambda_i}\, S_i(z_i), \quad i \in A_l, \qquad
              (\mu, \lambda, S) = \mathrm{net}_l(w_{B_l}, e),

    and leaves the others, :math:`B_l`, alone. :math:`S` is a monotone rational-quadratic spline with identity tails.
    Up to ``single_limit`` dimensions each layer moves one coordinate and sees all others: d layers in turn contain the
    triangular map of Knothe and Rosenblatt, yet unlike a masked autoregressive network cost the same in both
    directions. Beyond, halves of a fixed random permutation take turns. In one dimension the layers see the context
    alone. The chain is the identity at first.

    :param dim: d.
    :param context_dim: size of :math:`e`.
    :param num_layers: couplings.
    :param width: of the two hidden layers of each network.
    :param num_bins: bins of a spline.
    :param bound: splines act on :math:`[-B, B]`.
    :param dropout: share of hidden units left out while training.
    :param seed: of the permutations; the networks start from torch's global generator.

    Source: Durkan et al., arXiv 1906.04032, section 4; the order of moves is ours.

    >>> couplings = SplineCouplings(3, 4)
    >>> w, ladj = couplings(torch.randn(7, 3), torch.randn(7, 4))
    >>> w.shape, ladj.shape
    (torch.Size([7, 3]), torch.Size([7]))
    """

    single_limit = 4

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        num_layers: int | None = None,
        width: int = 128,
        num_bins: int = 8,
        bound: float = 4.0,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.num_bins, self.bound = dim, width, num_bins, bound
        self.moved = _moved_coordinates(dim, default_layers(dim) if num_layers is None else num_layers, seed)
        self.kept = [[i for i in range(dim) if i not in moved] for moved in self.moved]
        # The context enters all layers through one matrix product.
        self.from_context = nn.Linear(context_dim, width * len(self.moved))
        self.from_kept = nn.ModuleList(nn.Linear(len(kept), width, bias=False) for kept in self.kept if kept)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in self.moved)
        self.last = nn.ModuleList(
            nn.Linear(width, len(moved) * (2 + num_spline_parameters(num_bins))) for moved in self.moved
        )
        self.dropout = nn.Dropout(dropout)
        self.reset()

    def reset(self) -> None:
        """Make the chain the identity again."""
        for layer in self.last:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def context_terms(self, context: Tensor) -> list[Tensor]:
        """What a context ``(*batch, context_dim)`` adds to each network; many states may share it."""
        return list(self.from_context(context).chunk(len(self.moved), -1))

    def forward(self, z: Tensor, context: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        r"""``z`` ``(*batch, d)`` and a context that broadcasts against it (or its :meth:`context_terms`) to w and
        :math:`\log|\det \partial w/\partial z|` ``(*batch)``."""
        return self._run(z, context, inverse=False)

    def inverse(self, w: Tensor, context: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        r"""``w`` to ``z`` and :math:`\log|\det \partial z/\partial w|`."""
        return self._run(w, context, inverse=True)

    def _run(self, x: Tensor, context: Tensor | list[Tensor], *, inverse: bool) -> tuple[Tensor, Tensor]:
        terms = self.context_terms(context) if isinstance(context, Tensor) else context
        columns = list(x.unbind(-1))
        total: Tensor | float = 0.0
        order = range(len(self.moved))
        for layer in reversed(order) if inverse else order:
            moved = torch.stack([columns[i] for i in self.moved[layer]], -1)
            new, ladj = self._layer(layer, moved, columns, terms[layer], inverse=inverse)
            for i, column in zip(self.moved[layer], new.unbind(-1), strict=True):
                columns[i] = column
            total = total + ladj
        value = torch.stack(torch.broadcast_tensors(*columns), -1)
        return value, torch.as_tensor(total, dtype=x.dtype, device=x.device).expand(value.shape[:-1])

    def _layer(
        self, layer: int, x: Tensor, columns: list[Tensor], term: Tensor, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        kept = self.kept[layer]
        if kept:
            term = term + self.from_kept[layer](torch.stack(torch.broadcast_tensors(*[columns[i] for i in kept]), -1))
        hidden = functional.silu(self.hidden[layer](self.dropout(functional.silu(term))))
        raw = self.last[layer](self.dropout(hidden)).unflatten(-1, (len(self.moved[layer]), -1))
        shift, log_scale, spline = raw[..., 0], _bounded(raw[..., 1]), raw[..., 2:]
        x, _ = torch.broadcast_tensors(x, shift)
        spline = spline.expand(*x.shape, spline.shape[-1])
        if inverse:
            x, ladj = rational_quadratic_spline((x - shift) * (-log_scale).exp(), spline, self.bound)
            return x, (ladj - log_scale).sum(-1)
        x, ladj = rational_quadratic_spline(x, spline, self.bound, inverse=True)
        return shift + log_scale.exp() * x, (ladj + log_scale).sum(-1)


def default_layers(dim: int) -> int:
    """Two rounds over single coordinates, or three over halves."""
    return 2 * dim if dim <= SplineCouplings.single_limit else 6


def _bounded(log_scale: Tensor) -> Tensor:
    """A logarithm of a scale within [-3, 3]: no layer alone can overflow or collapse."""
    return 3.0 * (log_scale / 3.0).tanh()


def _moved_coordinates(dim: int, num_layers: int, seed: int) -> list[list[int]]:
    if dim <= SplineCouplings.single_limit:
        return [[layer % dim] for layer in range(num_layers)]
    generator = torch.Generator().manual_seed(seed)
    moved: list[list[int]] = []
    for layer in range(num_layers):
        if layer % 2 == 0:
            order = torch.randperm(dim, generator=generator).tolist()
        moved.append(sorted(order[: dim // 2] if layer % 2 == 0 else order[dim // 2 :]))
    return moved
