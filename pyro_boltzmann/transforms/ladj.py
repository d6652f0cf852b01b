"""Any transform of Pyro, torch or zuko, spoken to through one fused call."""

from __future__ import annotations

import sys
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import ComposeTransform, _InverseTransform

from pyro_boltzmann.transforms.fused import FusedTransform

__all__ = ["as_transform", "call_and_ladj", "clear_cache", "inverse_and_ladj"]


def call_and_ladj(transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""``(y, log|det dy/dx|)`` of any transform on vectors; shapes ``(*batch, dim)`` and ``(*batch)``.

    A foreign transform's own cache serves its log-determinant and is then emptied: a kept graph would break
    ``deepcopy`` and a kept value would go stale after an optimiser step.

    >>> import pyro.distributions.transforms as T
    >>> y, ladj = call_and_ladj(T.AffineTransform(0.0, 2.0), torch.ones(3, 2))
    >>> ladj
    tensor([1.3863, 1.3863, 1.3863])
    """
    transform = as_transform(transform)
    if isinstance(transform, FusedTransform):
        transform.check_width(x)
        return transform.call_and_ladj(x)
    if isinstance(transform, ComposeTransform):
        total = x.new_zeros(x.shape[:-1])
        for part in transform.parts:
            x, ladj = call_and_ladj(part, x)
            total = total + ladj
        return x, total
    if isinstance(transform, _InverseTransform):
        return inverse_and_ladj(transform.inv, x)
    if _has_own_fused_call(transform):
        y, ladj = transform.call_and_ladj(x)
        return y, _over_batch(ladj, x)
    clear_cache(transform)
    with default_dtype(x.dtype):
        y = transform(x)
        ladj = _over_batch(transform.log_abs_det_jacobian(x, y), x)
    clear_cache(transform)
    return y, ladj


def inverse_and_ladj(transform: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""``(x, log|det dx/dy|)``: the inverse map with its own log-determinant."""
    transform = as_transform(transform)
    if isinstance(transform, FusedTransform):
        transform.check_width(y)
        return transform.inverse_and_ladj(y)
    if isinstance(transform, ComposeTransform):
        total = y.new_zeros(y.shape[:-1])
        for part in reversed(transform.parts):
            y, ladj = inverse_and_ladj(part, y)
            total = total + ladj
        return y, total
    if isinstance(transform, _InverseTransform):
        return call_and_ladj(transform.inv, y)
    clear_cache(transform)
    with default_dtype(y.dtype):  # Pyro's autoregressive flows start their inversion from zeros of the default dtype
        x = transform.inv(y)
        ladj = -_over_batch(transform.log_abs_det_jacobian(x, y), y)
    clear_cache(transform)
    return x, ladj


class default_dtype:
    """Within the block, build modules and tensors in this precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.previous = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *exc: object) -> None:
        torch.set_default_dtype(self.previous)


def _has_own_fused_call(transform: Transform) -> bool:
    """Whether this is one of zuko's transforms: importing zuko gives *every* torch transform a ``call_and_ladj``."""
    method = getattr(type(transform), "call_and_ladj", None)
    return method is not None and method is not getattr(Transform, "call_and_ladj", None)


def _over_batch(ladj: Tensor, x: Tensor) -> Tensor:
    """Sum a log-determinant over event dimensions that an element-wise transform left in place."""
    batch = x.dim() - 1
    if ladj.dim() > batch:
        return ladj.expand(torch.broadcast_shapes(ladj.shape, x.shape)).sum(-1)
    return ladj.expand(x.shape[:-1])


def clear_cache(transform: Any) -> None:
    """Empty the caches that a transform, and the transforms that it is made of, keep on themselves."""
    if isinstance(transform, FusedTransform):
        transform.clear_cache()
        return
    state = vars(transform)
    for name, value in list(state.items()):
        if name.startswith("_cache") and isinstance(value, Tensor | tuple):
            setattr(transform, name, (None, None) if name == "_cached_x_y" else None)
    inner = [state.get("base_transform"), *(state.get("parts") or ()), *(state.get("transforms") or ())]
    if isinstance(transform, _InverseTransform):
        inner.append(transform.inv)
    if isinstance(transform, nn.Module):
        inner.extend(transform.children())
    for part in inner:
        if isinstance(part, Transform):
            clear_cache(part)


def as_transform(block: Any) -> Transform:
    """Turn a block into something with ``__call__``, ``inv`` and ``log_abs_det_jacobian``.

    Pyro and torch transforms pass as they are. A zuko ``LazyTransform`` is called without context; a zuko ``Flow`` maps
    data to its base, so a block made of it runs the other way, from base to data.

    :raises TypeError: for anything else.
    """
    if isinstance(block, Transform):
        return block
    zuko_lazy = sys.modules.get("zuko.lazy")  # an extra: a zuko object exists only if its user imported zuko
    if zuko_lazy is not None and isinstance(block, zuko_lazy.Flow):
        inverse: Transform = block.transform().inv
        return inverse
    if zuko_lazy is not None and isinstance(block, zuko_lazy.LazyTransform):
        produced: Transform = block()
        return produced
    hint = "; wrap it in ConditionalLayer" if isinstance(block, ConditionalTransform) else ""
    raise TypeError(
        "a block must be a stochastic block, a Pyro or torch Transform, or a zuko flow or lazy transform; "
        f"got {type(block).__name__}{hint}"
    )
