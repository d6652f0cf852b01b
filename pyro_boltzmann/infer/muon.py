"""Muon for matrices, Adam for all other parameters, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["MuonAdam"]

FEWEST_ROWS = 4
"""Matrices with fewer rows or columns are left to Adam: there is little to make orthogonal."""


class MuonAdam(torch.optim.Optimizer):
    r"""Steps along the orthogonal factor of a matrix's momentum; vectors and slim matrices take steps of Adam.

    For a weight :math:`W` whose momentum has the singular value decomposition :math:`U S V^T`,

    .. math:: W \leftarrow W - 0.2\, \eta \sqrt{\max(m, n)}\; U V^T ,

    the work of :class:`torch.optim.Muon`: steps of the size that Adam's have, in all directions alike. The small
    networks of continuous flows learn in a third of the updates. Too large a rate shows late: the loss falls, weights
    grow, and the function gets rough. Where longer training does not help, try a quarter of the rate.

    Pass the class to :func:`~pyro_boltzmann.fit`: ``optimizer=lambda p: MuonAdam(p, lr=1e-2, matrix_lr=3e-2)``.

    :param params: parameters, no groups.
    :param lr: Adam's learning rate.
    :param matrix_lr: that of the matrices, :math:`\eta`; ``lr`` unless given.
    :raises ValueError: if there are no parameters, or a rate is not positive.

    Source: Jordan, Muon (2024); step lengths, Liu et al., arXiv 2502.16982, section 2.2.

    >>> network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    >>> optimizer = MuonAdam(network.parameters(), lr=1e-2)
    >>> [len(group["params"]) for group in optimizer.param_groups]  # two vectors, two matrices
    [2, 2]
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-2, matrix_lr: float | None = None) -> None:
        matrix_lr = lr if matrix_lr is None else matrix_lr
        parameters = list(params)
        if not parameters or not (lr > 0.0 and matrix_lr > 0.0):
            raise ValueError(
                f"MuonAdam needs parameters and positive rates, got {len(parameters)} parameters, lr={lr}, "
                f"matrix_lr={matrix_lr}"
            )
        matrices = [p for p in parameters if p.dim() == 2 and min(p.shape) >= FEWEST_ROWS]
        chosen = {id(p) for p in matrices}
        others = [p for p in parameters if id(p) not in chosen]
        self._parts: list[torch.optim.Optimizer] = []
        if others:
            self._parts.append(torch.optim.Adam(others, lr=lr))
        if matrices:
            muon: Any = torch.optim.Muon
            self._parts.append(muon(matrices, lr=matrix_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
        super().__init__([{"params": part.param_groups[0]["params"]} for part in self._parts], {})
        self.param_groups = [part.param_groups[0] for part in self._parts]
        self._share()

    def _share(self) -> None:
        """One set of groups and one state for the two optimisers and this one."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(dict(state_dict))
        self._share()
