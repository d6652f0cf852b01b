"""The state of a training run, its one update, and how it is kept in a checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.energies.evaluation import EvaluationCount, count_evaluations
from pyro_boltzmann.exceptions import CheckpointError, EnergyError, NonFiniteEnergyError
from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.infer.checkpoint import pack_optimizer, unpack_optimizer
from pyro_boltzmann.infer.objectives import ForwardKL, PathObjective, ReverseKL, learn_plates
from pyro_boltzmann.infer.phase import Phase
from pyro_boltzmann.infer.randomness import cuda_devices, generator_states, kept_generators, restore_generators
from pyro_boltzmann.infer.recipe import Recipe
from pyro_boltzmann.infer.result import FitResult
from pyro_boltzmann.stochastic.metropolis import MetropolisAdjusted

__all__ = ["TrainingRun"]

UNBOUNDED = 1e12
"""An ELBO above this is taken for an energy without a lower bound; so is a growth by ``UNBOUNDED_GROWTH``."""
UNBOUNDED_GROWTH = 1e6
ADAPTATION_BATCHES = 20
"""Batches of paths by which moves are adapted after a training that made none; the rate falls as the power -0.6."""
PATIENCE = 100
"""Updates in a row that may be skipped for a non-finite gradient before training gives up."""


class TrainingRun:
    """Everything that an update changes.

    Only three things change before an update is certain to succeed: the random generators, buffers that a flow updates
    while it runs (as batch normalisation does), and what an objective remembers. They are set aside after each
    completed update by :meth:`mark`, so that :meth:`state` is always that of a completed update, even when it is asked
    for because an update failed half-way.

    :ivar is_whole: false from the moment when parameters are moved until :meth:`mark`: then there is no state worth
        saving.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        recipe: Recipe,
        optimizer: torch.optim.Optimizer,
        forward: ForwardKL | None,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.recipe, self.optimizer, self.forward = recipe, optimizer, forward
        self.reverse = ReverseKL(recipe.num_particles)
        self.own = recipe.elbo if isinstance(recipe.elbo, PathObjective) else None
        if self.own is not None:
            self.own.begin()
        self.marked_objective: dict[str, Tensor] = {}
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.devices = cuda_devices(guide)
        self.buffers = {k: v for k, v in guide.state_dict(keep_vars=True).items() if not isinstance(v, nn.Parameter)}
        self.marked_buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        with count_evaluations() as count, kept_generators():
            learn_plates(recipe.elbo or self.reverse, model, guide, args, kwargs)
        self.result = FitResult(evaluations=count)
        self.bad_in_a_row = 0
        self.first_elbo: float | None = None
        self._clock = (time.perf_counter(), time.process_time())
        self.mark()

    # One update --------------------------------------------------------------------------------------------------

    def update(self) -> dict[str, float]:
        """One step of the optimiser.

        :returns: its loss and the norm of the gradient before clipping.
        :raises EnergyError: if the energy cannot be trained on; nothing has changed then.
        """
        recipe, result = self.recipe, self.result
        phase = recipe.phase(result.steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            if recipe.schedule != "constant":
                group["lr"] = rate * recipe.rate_factor(result.steps)
        self.optimizer.zero_grad(set_to_none=True)
        for objective in (self.reverse, self.own):
            if objective is not None:
                objective.last_paths, objective.left_out = None, False
        with count_evaluations() as count:
            loss = self._backward(phase)
        self._count_programs(count)
        nonfinite = self._count_nonfinite()
        self._refuse_unbounded(loss, phase)
        max_norm = math.inf if recipe.clip_norm is None else recipe.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self.parameters, max_norm))
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if not is_finite and self.bad_in_a_row + 1 >= PATIENCE:
            raise EnergyError(
                f"{PATIENCE} updates in a row had a loss or gradient that is not finite: the energy is +inf or NaN "
                "where the guide samples, or its gradient is not finite. Check the energy at draws of the guide, place "
                "the base distribution where the energy is finite, or lower the learning rate"
            )
        self.is_whole = False
        if is_finite:
            self.optimizer.step()
            self._adapt(phase)
        self.bad_in_a_row = 0 if is_finite else self.bad_in_a_row + 1
        result.skipped += not is_finite
        result.nonfinite += nonfinite
        result.evaluations = result.evaluations + count
        result.steps += 1
        return {"loss": loss, "grad_norm": norm}

    def _backward(self, phase: Phase) -> float:
        inputs = (self.model, self.guide, *self.args)
        elbo = self.recipe.elbo
        if elbo is not None and not hasattr(elbo, "differentiable_loss"):  # RenyiELBO, for one
            return float(elbo.loss_and_grads(*inputs, **self.kwargs))  # type: ignore[attr-defined]
        if elbo is not None:
            loss: Tensor = elbo.differentiable_loss(*inputs, **self.kwargs)
        else:
            pairs = ((phase.reverse_kl, self.reverse), (phase.forward_kl, self.forward))
            terms = [
                w * o.differentiable_loss(*inputs, **self.kwargs).double() for w, o in pairs if w and o is not None
            ]
            loss = sum(terms[1:], terms[0]) / (phase.reverse_kl + phase.forward_kl)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def _count_programs(self, count: EvaluationCount) -> None:
        """Where Pyro itself runs the program, once a particle, nobody has counted unless it holds an energy."""
        elbo: Any = self.recipe.elbo or self.reverse
        if not isinstance(self.guide, AutoStochasticFlow) or not isinstance(elbo, PathObjective):
            count.values = max(count.values, elbo.num_particles)
            count.gradients = max(count.gradients, elbo.num_particles)

    def _energy_objective(self) -> PathObjective:
        """The objective that evaluates the energy at the ends of its paths."""
        return self.reverse if self.own is None or isinstance(self.own, ForwardKL) else self.own

    def _forward_paths(self) -> WeightedPath | None:
        """Paths that the last update drew from the law of the guide."""
        objective = self._energy_objective()
        return objective.last_paths if objective.draws_from_guide else None

    def _count_nonfinite(self) -> int:
        objective = self._energy_objective()
        if not objective.left_out or objective.last_paths is None:
            return 0
        reached = objective.last_paths.z.isfinite().all(-1)
        energy = objective.last_paths.energy
        count = int((reached & ~(energy > -torch.inf)).sum())
        if count and count == int(reached.sum()):
            worst = "NaN" if bool(energy[reached].isnan().any()) else "-inf"
            raise NonFiniteEnergyError(
                f"the energy is {worst} at all {count} end states of an update, so there is nothing to train on. An "
                "energy must be finite or +inf: look for log or sqrt of a negative number, log(0), or 0 * inf",
                count=count,
            )
        return count

    def _refuse_unbounded(self, loss: float, phase: Phase) -> None:
        elbo = -loss
        is_mixture = self.recipe.elbo is None and bool(phase.forward_kl)
        if is_mixture or (self._energy_objective() is not self.reverse and not isinstance(self.own, ReverseKL)):
            # The loss is no ELBO: take that of its paths, or of the last row.
            paths, rows = self._forward_paths(), self.result.history.get("elbo", [])
            elbo = float(paths.log_weight.mean()) if paths is not None else rows[-1] if rows else math.nan
        if not math.isfinite(elbo):
            return
        if self.first_elbo is None:
            self.first_elbo = elbo
        if elbo > UNBOUNDED or elbo > UNBOUNDED_GROWTH * (1 + abs(self.first_elbo)):
            raise EnergyError(
                f"the ELBO went from {self.first_elbo:.3g} to {elbo:.3g}: the energy looks unbounded below, so "
                "exp(-energy) has no normaliser. Check the sign of the energy (it is minus the log density) and that "
                "it grows at infinity"
            )

    def _adapt(self, phase: Phase) -> None:
        objective = self._energy_objective()
        if objective.last_paths is None and phase.forward_kl and self.forward is not None:
            objective = self.forward
        if objective.last_paths is None or not isinstance(self.guide, AutoStochasticFlow):
            return
        _adapt_scales(self.guide, objective.last_paths, self.recipe.adapt_rate)

    @torch.no_grad()
    def adapt_moves(self, is_over: Callable[[], bool]) -> None:
        """Adapt the scales of moves that no evaluation of the objective has made, on paths of the trained guide, until
        the limits are reached. The random numbers of this are put back, so that a run goes on as if it had not been.
        """
        guide, own = self.guide, self.own
        if own is None or own.looks_forward or not self.recipe.adapt_rate or not isinstance(guide, AutoStochasticFlow):
            return
        if not any(isinstance(b, MetropolisAdjusted) and b.adapt for b in guide.get_transform().stochastic_blocks):
            return
        with kept_generators():
            for index in range(ADAPTATION_BATCHES):
                if is_over():
                    break
                with count_evaluations() as count:
                    paths = guide.sample_paths(self.recipe.num_particles, *self.args, **self.kwargs)
                    _adapt_scales(guide, paths, (1.0 + index) ** -0.6)
                self.result.evaluations = self.result.evaluations + count
                self.tick()

    # Records -----------------------------------------------------------------------------------------------------

    def record(self, row: Mapping[str, float]) -> None:
        """Add the update that returned ``row`` to the history, with the ELBO and the ESS of its batch."""
        result, loss = self.result, row["loss"]
        phase = self.recipe.phase(result.steps - 1)
        elbo, ess = math.nan, math.nan
        paths = self._forward_paths()
        is_elbo = not phase.forward_kl if self.recipe.elbo is None else isinstance(self.own, ReverseKL | None)
        if paths is not None:
            elbo, ess = _elbo_and_ess(paths)
        elif is_elbo:
            elbo = -loss
        elif isinstance(self.guide, AutoStochasticFlow) and (self.own is None or self.own.looks_forward):
            elbo, ess = self._look_forward(self.guide)
        evaluations, seconds = result.spent, result.seconds
        result.record(step=result.steps, elbo=elbo, ess=ess, evaluations=evaluations, seconds=seconds, **row)

    def _look_forward(self, guide: AutoStochasticFlow) -> tuple[float, float]:
        """ELBO and ESS where the update drew no forward paths: of a batch whose random numbers are put back."""
        with torch.no_grad(), kept_generators(), count_evaluations() as count:
            paths = guide.sample_paths(self.recipe.num_particles, *self.args, **self.kwargs)
        self.result.evaluations = self.result.evaluations + count
        return _elbo_and_ess(paths)

    def tick(self) -> None:
        """Add the time since the last tick to the result."""
        now = (time.perf_counter(), time.process_time())
        self.result.seconds += now[0] - self._clock[0]
        self.result.cpu_seconds += now[1] - self._clock[1]
        self._clock = now

    def mark(self) -> None:
        """Copy what the next update changes even if it fails."""
        self.is_whole = False
        self.generators = generator_states(self.devices)
        if self.buffers:
            torch._foreach_copy_(list(self.marked_buffers.values()), list(self.buffers.values()))
        if self.own is not None:
            self.marked_objective = self.own.state()
        self.is_whole = True

    # Checkpoints -------------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """What must agree for a checkpoint to continue this run, in JSON."""
        energy = getattr(self.model, "energy", None)
        described = {
            "guide": {name: [list(t.shape), str(t.dtype)] for name, t in self.guide.state_dict().items()},
            "target": getattr(energy, "target_hash", None),
            "objective": [[p.reverse_kl, p.forward_kl] for p in self.recipe.phases],
            "elbo": None if self.recipe.elbo is None else self._described_elbo(self.recipe.elbo),
            "optimizer": type(self.optimizer).__name__,
            "learning_rate": [float(rate) for rate in self.base_rates],
            **{
                name: getattr(self.recipe, name)
                for name in ("num_particles", "schedule", "clip_norm", "adapt_rate", "seed")
            },
        }
        if self.recipe.weight_power != 1:
            described["weight_power"] = self.recipe.weight_power
        described["augment"] = None if self.forward is None else self.forward.settings().get("augment")
        plain: dict[str, Any] = json.loads(json.dumps(described))
        return plain

    @staticmethod
    def _described_elbo(elbo: ELBO) -> Any:
        name, settings = type(elbo).__name__, elbo.settings() if isinstance(elbo, PathObjective) else {}
        return [name, settings] if settings else name

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The run after its last completed update, for :func:`~pyro_boltzmann.infer.save_checkpoint`."""
        guide = {name: self.marked_buffers.get(name, tensor) for name, tensor in self.guide.state_dict().items()}
        tensors = {f"guide.{name}": tensor for name, tensor in guide.items()}
        tensors |= {f"rng.{name}": state for name, state in self.generators.items()}
        tensors |= {f"objective.state.{name}": tensor for name, tensor in self.marked_objective.items()}
        parameters = [] if self.own is None else self.own.parameters()
        tensors |= {f"objective.parameter.{index}": tensor for index, tensor in enumerate(parameters)}
        history = self.result.history
        tensors |= {f"history.{name}": torch.tensor(column, dtype=torch.float64) for name, column in history.items()}
        optimizer_tensors, optimizer = pack_optimizer(self.optimizer)
        result = {k: v for k, v in asdict(self.result).items() if k != "history"}
        run = {"bad_in_a_row": self.bad_in_a_row, "first_elbo": self.first_elbo}
        metadata = {"description": self.description(), "optimizer": optimizer, "result": result, "run": run}
        return tensors | optimizer_tensors, metadata

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], where: object) -> None:
        """Continue from what :meth:`state` returned.

        :param where: the file, for the messages.
        :raises CheckpointError: if it is of another run.
        """
        _check_same_run(metadata.get("description"), self.description(), where)
        self.guide.load_state_dict(_named(tensors, "guide."))
        if self.own is not None:
            self.own.load_state(_named(tensors, "objective.state."), self.guide)
            with torch.no_grad():
                for index, parameter in enumerate(self.own.parameters()):
                    parameter.copy_(tensors[f"objective.parameter.{index}"])
        unpack_optimizer(self.optimizer, tensors, metadata["optimizer"])
        restore_generators(_named(tensors, "rng."), self.devices)
        stored = dict(metadata["result"])
        stored["evaluations"] = EvaluationCount(**stored["evaluations"])
        stored["history"] = {name: column.tolist() for name, column in _named(tensors, "history.").items()}
        stored["stopped"] = "steps"
        self.result = FitResult(**stored)
        self.bad_in_a_row, self.first_elbo = metadata["run"]["bad_in_a_row"], metadata["run"]["first_elbo"]
        self.mark()


def _adapt_scales(guide: AutoStochasticFlow, paths: WeightedPath, rate: float) -> None:
    """Steer the scales of moves towards their acceptance rates."""
    blocks = [block for block, _ in guide.get_transform()._directed()]
    for block, info in zip(blocks, paths.infos, strict=True):
        if isinstance(block, MetropolisAdjusted) and block.adapt and info is not None:
            block.adapt_scale(info, rate)


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_same_run(stored: Any, asked: Mapping[str, Any], where: object) -> None:
    if not isinstance(stored, dict):
        raise CheckpointError(f"{where} is a checkpoint, but not of a training run; name another one")
    others = [name for name in asked if stored.get(name) != asked[name]]
    if others:
        differences = "; ".join(
            name if name == "guide" else f"{name} was {stored.get(name)!r}, now {asked[name]!r}" for name in others
        )
        raise CheckpointError(
            f"{where} belongs to another run ({differences}); name another checkpoint, or pass resume=False to start "
            "anew and overwrite it"
        )


def _elbo_and_ess(paths: WeightedPath) -> tuple[float, float]:
    kept = paths.log_weight.isfinite()
    if not bool(kept.any()):
        return math.nan, math.nan
    # Paths that were left out of the loss are no effective sample either.
    return float(paths.log_weight[kept].mean()), kish_ess(torch.where(kept, paths.log_weight, -torch.inf))
