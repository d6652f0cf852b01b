"""The base class of the bijections of this package: one fused pass, one honest cache."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Self

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from pyro_boltzmann.energies.tracing import is_tracing
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["FusedTransform"]


class _Cached(NamedTuple):
    x: Tensor
    y: Tensor
    ladj: Tensor
    key: _Key
    is_forward: bool


_Key = tuple[bool, tuple[tuple[int, int], ...]]
"""Grad mode, and the identity and version of every parameter and buffer."""


class FusedTransform(TransformModule):
    """A bijection of vectors that returns its value and its log-determinant in one pass.

    Subclasses implement :meth:`call_and_ladj` and :meth:`inverse_and_ladj`; everything that
    :class:`torch.distributions.Transform` asks for follows. The cache holds ``(x, y, ladj)`` together. It is dropped by
    ``deepcopy`` and pickle, and never answers for another grad mode or for parameters or buffers that have since moved.
    It only ever undoes the last call: the same data handed in again are computed again, because optimisers that write
    to ``parameter.data`` (Pyro's ``ClippedAdam``) and energies whose data change leave no mark that could be checked.

    :param cache_size: 1 to keep the last ``(x, y, ladj)``, 0 to keep nothing.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    width: int
    """Size of the last dimension; checked once, here."""

    def __init__(self, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)  # type: ignore[no-untyped-call]
        self._cached: _Cached | None = None

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""``x`` of shape ``(*batch, width)`` to ``y`` (same shape) and :math:`\log|\det \partial y/\partial x|`
        ``(*batch)``."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""``y`` to ``x`` and :math:`\log|\det \partial x/\partial y|`, the log-determinant of the *inverse* map."""
        raise NotImplementedError

    def check_width(self, x: Tensor) -> None:
        if is_tracing():
            return
        if x.dim() < 1 or x.shape[-1] != self.width:
            raise ShapeError(
                f"{type(self).__name__} expects a tensor of shape (*batch, {self.width}), got {tuple(x.shape)}"
            )

    # torch.distributions.Transform ------------------------------------------------------------------------------

    def __call__(self, x: Tensor) -> Tensor:
        cached, key = self._cached, self._cache_key()
        if cached is not None and not cached.is_forward and cached.x is x and cached.key == key:
            return cached.y
        self.check_width(x)
        y, ladj = self.call_and_ladj(x)
        self._store(_Cached(x, y, ladj, key, True))
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        cached, key = self._cached, self._cache_key()
        if cached is not None and cached.is_forward and cached.y is y and cached.key == key:
            return cached.x
        self.check_width(y)
        x, ladj = self.inverse_and_ladj(y)
        self._store(_Cached(x, y, -ladj, key, False))
        return x

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        cached = self._cached
        if cached is not None and cached.x is x and cached.y is y and cached.key == self._cache_key():
            return cached.ladj
        self.check_width(x)
        return self.call_and_ladj(x)[1]

    def with_cache(self, cache_size: int = 1) -> Self:
        if cache_size not in (0, 1):
            raise ValueError(f"cache_size must be 0 or 1, got {cache_size}")
        if cache_size == self._cache_size:
            return self
        clone = copy.copy(self)  # parameters stay shared
        clone._cache_size, clone._cached, clone._inv = cache_size, None, None
        return clone

    def clear_cache(self) -> None:
        self._cached = None

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return shape

    def _cache_key(self) -> _Key:
        tensors = (t for m in self.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
        return torch.is_grad_enabled(), tuple((id(tensor), tensor._version) for tensor in tensors)

    def _store(self, cached: _Cached) -> None:
        if self._cache_size:
            self._cached = cached

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())  # type: ignore[no-untyped-call]
        state["_cached"] = None
        return state
