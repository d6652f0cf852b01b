"""What all objectives on paths share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath

__all__ = ["PathObjective", "branch_score", "without_graph"]


class PathObjective(ELBO):
    """A loss over paths of an :class:`~pyro_boltzmann.AutoStochasticFlow`, as an ELBO object of Pyro.

    Subclasses implement :meth:`differentiable_loss`. An objective that keeps more than its settings from one evaluation
    to the next also implements :meth:`begin`, :meth:`state` and :meth:`load_state`, so that
    :func:`~pyro_boltzmann.fit` can resume it.

    :param num_particles: paths per evaluation.
    """

    last_paths: WeightedPath | None = None
    """The paths of the last evaluation, without a graph: their weights tell the ESS at no cost."""
    left_out: bool = False
    """Whether the last evaluation left paths out of its mean."""
    draws_from_guide: bool = False
    """Whether ``last_paths`` follow the law of the guide, so that their weights give the ELBO."""

    looks_forward: bool = True
    """Whether :func:`~pyro_boltzmann.fit` draws paths for the rows of its history where an evaluation drew none."""

    deadline: float | None = None
    """When :func:`~pyro_boltzmann.fit` will stop, in seconds of ``time.perf_counter``. An evaluation that may take long
    heeds it."""

    def __init__(self, num_particles: int = 256) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be positive, got {num_particles}")
        super().__init__(num_particles=num_particles, vectorize_particles=True)  # type: ignore[no-untyped-call]

    def _surrogate(self, per_path: Tensor, paths: WeightedPath) -> Tensor:
        r"""A scalar whose gradient is unbiased: pathwise, plus :math:`(f - b)\,\nabla \log P(\text{branches})`.

        The baseline b is the leave-one-out mean, which leaves the gradient unbiased. Paths of zero weight (their energy
        is +inf) carry no gradient and are left out of the mean, as are paths that are not finite for any other reason.
        """
        self.last_paths = without_graph(paths)
        score = branch_score(paths)
        kept = per_path.detach().isfinite()
        self.left_out = not bool(kept.all())
        if self.left_out:
            per_path = per_path[kept]
            score = None if score is None else score[kept]
        if per_path.numel() == 0:
            return per_path.sum() + torch.inf
        if score is not None:
            value = per_path.detach()
            count = value.shape[0]
            baseline = (value.sum() - value) / (count - 1) if count > 1 else torch.zeros_like(value)
            term = (value - baseline) * score
            per_path = per_path + term - term.detach()
        return per_path.mean()

    def _flow(self, guide: Any) -> AutoStochasticFlow:
        if not isinstance(guide, AutoStochasticFlow):
            raise TypeError(
                f"{type(self).__name__} runs paths backwards and needs an AutoStochasticFlow, got "
                f"{type(guide).__name__}"
            )
        return guide

    # What Pyro calls ---------------------------------------------------------------------------------------------

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A scalar with a graph."""
        raise NotImplementedError

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Pyro's hook for objectives that work on traces; this one works on paths and leaves traces to Pyro."""
        return Trace_ELBO()._get_trace(model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The value alone."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The value, with gradients added to the parameters: what Pyro's ``SVI`` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    # What fit asks for -------------------------------------------------------------------------------------------

    def learn_plates(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Do now what Pyro would do at the first evaluation; nothing, for objectives that need no traces."""

    def settings(self) -> dict[str, Any]:
        """What must agree for a checkpoint to continue a run, in JSON."""
        return {}

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the objective itself, trained along with the guide's."""
        return []

    def begin(self) -> None:
        """Forget earlier runs."""

    def state(self) -> dict[str, Tensor]:
        """What an evaluation leaves behind for the next. Later evaluations do not change these tensors."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor], guide: Any) -> None:
        """Continue from :meth:`state`."""


def without_graph(paths: WeightedPath) -> WeightedPath:
    """The same paths, detached."""
    infos = tuple(None if info is None else info._replace(log_branch=None) for info in paths.infos)
    return WeightedPath(paths.z.detach(), paths.log_weight.detach(), paths.log_q.detach(), paths.energy.detach(), infos)


def branch_score(paths: WeightedPath) -> Tensor | None:
    """Log-probability of the branches that ``gradient="score"`` blocks took, ``(n,)``; ``None`` without such blocks."""
    terms = [info.log_branch for info in paths.infos if info is not None and info.log_branch is not None]
    return torch.stack(terms).sum(0) if terms else None
