"""The log-joint of a Pyro program at given latents, with as little machinery as possible."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_boltzmann.energies.evaluation import count_evaluations, record_evaluations
from pyro_boltzmann.exceptions import ModelError

__all__ = ["LogJoint", "isolated", "log_joint"]


def log_joint(model: Callable[[], Any], latents: Mapping[str, Tensor], plate_dim: int, batch_dim: int) -> Tensor:
    """Sum the log-probabilities of all sites of ``model`` with its latent sites held at ``latents``.

    :param model: a Pyro program without arguments.
    :param latents: a value for each latent site; batch dimensions stand left of ``plate_dim`` plate dimensions.
    :param plate_dim: how many dimensions right of the batch each site is summed over.
    :param batch_dim: 1 for values with one batch dimension, 0 for a single evaluation.
    :returns: shape ``(batch)`` or, where nothing depends on the batch, ``()``.
    :raises ModelError: if a latent site is met for which there is no value.
    """
    terms = _SummedLogJoint(latents, plate_dim, batch_dim)
    with isolated(), terms:
        model()
    return sum(terms.terms[1:], terms.terms[0])


@contextmanager
def isolated(*, validates: bool = False) -> Iterator[None]:
    """Run a Pyro program as if nothing surrounded it.

    Validation is off unless asked for, since a proposal out of range has energy +inf or NaN and is no error; plates
    that are open around the evaluation take no dimension; energies inside the program are counted by whoever evaluates
    the whole.
    """
    open_plates, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        with count_evaluations() as inner, nullcontext() if validates else pyro.validation_enabled(False):
            yield
    finally:
        _DIM_ALLOCATOR._stack = open_plates
        record_evaluations(-inner.values, -inner.gradients)


class LogJoint(Messenger):
    """Conditions the latent sites, hides every sample site from enclosing handlers, and collects log-probabilities.

    :param latents: a value for each latent site.
    :param indices: the data that each subsampling plate is to use; other plates draw theirs.
    """

    def __init__(self, latents: Mapping[str, Tensor], indices: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.latents = latents
        self.indices = {} if indices is None else indices
        self.terms: list[Tensor] = []

    def reduce(self, msg: Any, log_prob: Tensor) -> Tensor | None:
        """What the site adds to the sum, from its log-probability without scale and mask; ``None`` for nothing."""
        raise NotImplementedError

    def _process_message(self, msg: Any) -> None:
        # Parameters of the program may be seen from outside: SVI trains those that it sees.
        msg["stop"] = msg["type"] != "param"
        if isinstance(msg["fn"], _Subsample):
            msg["value"] = self.indices.get(msg["name"], msg["value"])
        if msg["type"] != "sample" or msg["is_observed"] or _is_untraced(msg):
            return
        value = self.latents.get(msg["name"])
        if value is None:
            raise ModelError(
                f"the program sampled site '{msg['name']}', which was not there when it was first run; an energy needs "
                "the same latent sites in every run (move the branch into the values, for example with torch.where)"
            )
        msg["value"] = value
        msg["is_observed"] = True

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["mask"] is False or msg["infer"].get("_deterministic") or _is_untraced(msg):
            return
        term = self.reduce(msg, unvalidated(msg["fn"]).log_prob(msg["value"], *msg["args"], **msg["kwargs"]))
        if term is not None:
            self.terms.append(term)


class _SummedLogJoint(LogJoint):
    """Sums each site over its plates."""

    def __init__(self, latents: Mapping[str, Tensor], plate_dim: int, batch_dim: int) -> None:
        super().__init__(latents)
        self.plate_dim = plate_dim
        self.batch_dim = batch_dim

    def reduce(self, msg: Any, log_prob: Tensor) -> Tensor:
        log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        summed_from = self.batch_dim if log_prob.dim() > self.plate_dim else 0
        return log_prob.flatten(summed_from).sum(-1) if log_prob.dim() > summed_from else log_prob


def unvalidated(fn: Any) -> Any:
    """The same distribution with its own validation off, where it was built with validation on."""
    if not getattr(fn, "_validate_args", False):
        return fn
    fn = copy.copy(fn)
    fn._validate_args = False
    if "base_dist" in fn.__dict__:
        fn.base_dist = unvalidated(fn.base_dist)
    return fn


def _is_untraced(msg: Any) -> bool:
    return isinstance(msg["fn"], _Subsample) or msg["infer"].get("_do_not_trace", False)
