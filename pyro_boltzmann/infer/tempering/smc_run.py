"""The state of a run of sequential Monte Carlo and its one step, a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.resampling import RESAMPLERS
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.exceptions import CheckpointError, NonFiniteEnergyError
from pyro_boltzmann.infer.tempering.ensemble import Ensemble, evaluate
from pyro_boltzmann.infer.tempering.kernel import Kernel
from pyro_boltzmann.infer.tempering.move import move
from pyro_boltzmann.infer.tempering.preconditioner import MASSES, Preconditioner
from pyro_boltzmann.infer.tempering.proposal import Proposal
from pyro_boltzmann.infer.tempering.schedule import Stage, next_position

__all__ = ["SMCRun", "SMCSettings"]

ADAPTATION_RATE = 1.0
FORGOTTEN = 0.8


@dataclass(frozen=True)
class SMCSettings:
    """What fixes a run, but for its seed."""

    num_chains: int
    chain_length: int
    kernel: Kernel
    num_moves: int
    max_moves: int
    conditional_ess: float
    resample_below: float
    resampler: str
    waste_free: bool
    mass: str

    def __post_init__(self) -> None:
        for name in ("conditional_ess", "resample_below"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name} must lie in (0, 1), got {value}")
        if not 1 <= self.num_moves <= self.max_moves:
            raise ValueError(
                f"expected 1 <= num_moves <= max_moves, got num_moves={self.num_moves} and max_moves={self.max_moves}"
            )
        if self.mass not in MASSES:
            raise ValueError(f"mass must be one of {', '.join(MASSES)}, got {self.mass!r}")
        if self.resampler not in RESAMPLERS:
            raise ValueError(f"resampler must be one of {sorted(RESAMPLERS)}, got {self.resampler!r}")
        if self.waste_free and self.chain_length % (self.num_moves + 1):
            raise ValueError(
                f"waste-free chains of {self.num_moves + 1} states (num_moves + 1) must divide the {self.chain_length} "
                f"particles of a chain; {self.chain_length - self.chain_length % (self.num_moves + 1)} would do"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the identity of a checkpoint."""
        return {**self.__dict__, "kernel": list(self.kernel)}


@dataclass
class SMCRun:
    r"""Particles between two temperatures.

    :ivar ensemble: batch shape ``(num_chains * chain_length)``, chain after chain.
    :ivar log_weights: of the particles in their chain since it was last resampled, ``(num_chains, chain_length)``.
    :ivar log_z: :math:`\log \hat Z` of each chain up to its last resampling.
    :ivar roots: index of each particle's first ancestor.
    """

    settings: SMCSettings
    reference: Energy
    target: Energy
    ensemble: Ensemble
    log_weights: Tensor
    log_z: Tensor
    roots: Tensor
    step_size: float
    position: float = 0.0
    stages: list[Stage] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, settings: SMCSettings, proposal: Proposal, target: Energy, step_size: float) -> SMCRun:
        """Draw the first particles.

        :raises NonFiniteEnergyError: if the energy is NaN or -inf at any of them.
        """
        shape = (settings.num_chains, settings.chain_length)
        x = proposal.sample(math.prod(shape)).detach()
        ensemble = evaluate(proposal.energy, target, x, settings.kernel.uses_gradients)
        _refuse_undefined(ensemble.target, "draws of the proposal")
        zeros = torch.zeros(shape, dtype=torch.float64, device=x.device)
        roots = torch.arange(settings.chain_length, device=x.device).expand(shape).clone()
        return cls(settings, proposal.energy, target, ensemble, zeros, zeros[:, 0].clone(), roots, step_size)

    @property
    def is_finished(self) -> bool:
        """Whether the particles have arrived at the target."""
        return self.position == 1.0

    def adapt(self, *, hurry: bool = False) -> Stage:
        """Choose the next temperature, and the scale and step size of its moves, from the particles.

        :param hurry: go to the target at once, whatever the weights.
        """
        settings = self.settings
        differences = self._differences()
        position = (
            1.0 if hurry else next_position(self.position, self.log_weights, differences, settings.conditional_ess)
        )
        weights = (self.log_weights + _increment(position - self.position, differences)).softmax(-1)
        ess = float((1.0 / weights.square().sum(-1)).mean()) / settings.chain_length
        x, pooled = self.ensemble.x.double(), weights.flatten() / settings.num_chains
        is_dense = settings.mass == "dense"
        second = (pooled.unsqueeze(-1) * x).mT @ x if is_dense else pooled @ x.square()
        independent = self._num_independent(weights) if is_dense else math.nan
        scale = Preconditioner.of_moments(settings.mass, pooled @ x, second, independent)
        resample = settings.waste_free or ess < settings.resample_below
        num_steps = settings.kernel.fitting(self.step_size).num_steps
        return Stage(position, resample, scale.to(self.ensemble.x), num_steps)

    def _differences(self) -> Tensor:
        """:math:`u - u_0` of the particles of each chain."""
        return (self.ensemble.target - self.ensemble.reference).double().view(self.roots.shape)

    def _num_independent(self, weights: Tensor) -> float:
        """Effective number of first ancestors: a covariance of relatives says more of them than of the density."""
        shares = torch.zeros_like(weights).scatter_add_(1, self.roots, weights)
        return float((1.0 / shares.square().sum(-1)).sum())

    def advance(self, stage: Stage) -> None:
        """Reweight, resample and move to the next temperature; a stage without step sizes is adapted and fills them."""
        self.log_weights = self.log_weights + _increment(stage.position - self.position, self._differences())
        self.position = stage.position
        _refuse_extinct(self.log_weights, self.position)
        if self.settings.waste_free:
            rates = self._waste_free(stage)
        else:
            if stage.resample:
                self._resample(self.settings.chain_length)
            adapts = not stage.step_sizes
            rates = self._moves_until_forgotten(stage) if adapts else self._moves(stage, len(stage.step_sizes))
        self.acceptance.append(sum(rates) / max(1, len(rates)))
        self.stages.append(stage)

    def _moves(self, stage: Stage, number: int) -> list[float]:
        return [self._move(stage, index) for index in range(number)]

    def _moves_until_forgotten(self, stage: Stage) -> list[float]:
        r"""Moves until they lead no further from where the particles stood.

        The squared jump of a coordinate, :math:`\sum_i W_i (x_i - x_i^{(0)})^2 / 2 \operatorname{Var}`, rises to one
        where a particle forgets its place, and stops short of it where it is caught in a mode. More moves are made
        while any rises by more than a tenth at a move.
        """
        weights = (self.log_weights.softmax(-1) / self.settings.num_chains).flatten().to(self.ensemble.x)
        start = self.ensemble.x

        def mean_square(displacement: Tensor) -> list[float]:
            means: list[float] = (weights @ displacement.square()).tolist()
            return means

        enough = [FORGOTTEN * 2.0 * variance for variance in mean_square(start - weights @ start)]
        rates = self._moves(stage, self.settings.num_moves)
        before = mean_square(self.ensemble.x - start)
        for index in range(self.settings.num_moves, self.settings.max_moves):
            rates.append(self._move(stage, index))
            jump = mean_square(self.ensemble.x - start)
            if all(j < 1.1 * b or j > e for j, b, e in zip(jump, before, enough, strict=True)):
                break
            before = jump
        return rates

    def _move(self, stage: Stage, index: int) -> float:
        adapts = len(stage.step_sizes) <= index
        kernel = self.settings.kernel._replace(num_steps=stage.num_steps)
        if adapts:
            stage.step_sizes.append(min(self.step_size, kernel.largest_step))
        moved = move(
            self.ensemble, self.reference, self.target, stage.position, kernel, stage.step_sizes[index], stage.scale
        )
        self.ensemble = moved.ensemble
        rate = float(moved.acceptance.mean())
        if adapts:
            self.step_size = stage.step_sizes[index] * math.exp(ADAPTATION_RATE * (rate - kernel.target_acceptance))
        return rate

    def _resample(self, size: int) -> None:
        """Replace the particles of each chain by ``size`` equally weighted ones."""
        chosen = []
        for chain in self.log_weights:
            chosen.append(RESAMPLERS[self.settings.resampler](chain, size, None))
        index = torch.stack(chosen)
        self.log_z = self.log_z + self.log_weights.logsumexp(-1) - math.log(self.settings.chain_length)
        self.roots = self.roots.gather(1, index)
        flat = (
            index + self.settings.chain_length * torch.arange(len(index), device=index.device).unsqueeze(-1)
        ).flatten()
        self.ensemble = self.ensemble.rows(flat)
        self.log_weights = torch.zeros(index.shape, dtype=torch.float64, device=index.device)

    def _waste_free(self, stage: Stage) -> list[float]:
        """Resample few particles, and keep every state of the chains that start from them (Dau and Chopin 2022)."""
        parents = self.settings.chain_length // (self.settings.num_moves + 1)
        self._resample(parents)
        shape, rates = self.roots.shape, []
        states = [self.ensemble.reshape(*shape)]
        for index in range(self.settings.num_moves):
            rates.append(self._move(stage, index))
            states.append(self.ensemble.reshape(*shape))
        self.ensemble = Ensemble.cat(states, 1).reshape(-1)
        self.roots = self.roots.repeat(1, len(states))
        self.log_weights = torch.zeros_like(self.roots, dtype=torch.float64)
        return rates

    # Results -----------------------------------------------------------------------------------------------------

    def final_log_weights(self) -> Tensor:
        r"""Log weights ``(num_chains, chain_length)`` whose mean over a chain is that chain's :math:`\hat Z`.

        :raises NonFiniteEnergyError: if the energy is NaN or -inf at a particle.
        """
        _refuse_undefined(self.ensemble.target, "final particles")
        return self.log_weights + self.log_z.unsqueeze(-1)

    def log_z_now(self) -> Tensor:
        """Of each chain, at the present temperature."""
        return self.log_z + self.log_weights.logsumexp(-1) - math.log(self.settings.chain_length)

    # Checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that changes, as tensors and JSON."""
        tensors = self.ensemble.state()
        tensors |= {"log_weights": self.log_weights, "log_z": self.log_z, "roots": self.roots}
        described = {
            "position": self.position,
            "step_size": self.step_size,
            "stages": [stage.to_dict() for stage in self.stages],
            "acceptance": self.acceptance,
        }
        return tensors, described

    @classmethod
    def restore(
        cls,
        settings: SMCSettings,
        reference: Energy,
        target: Energy,
        tensors: dict[str, Tensor],
        described: dict[str, Any],
    ) -> SMCRun:
        """The run that :meth:`state` was taken from.

        :raises CheckpointError: if something is missing.
        """
        try:
            ensemble = Ensemble.restore(tensors).reshape(-1)
            return cls(
                settings,
                reference,
                target,
                ensemble,
                tensors["log_weights"],
                tensors["log_z"],
                tensors["roots"],
                described["step_size"],
                described["position"],
                [Stage.from_dict(stage, ensemble.x) for stage in described["stages"]],
                list(described["acceptance"]),
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint of this run is not complete ({error}); delete it") from error


def _increment(step: float, differences: Tensor) -> Tensor:
    """What a step of the temperature adds to log weights; zero for no step, also where the energy is infinite."""
    return torch.zeros_like(differences) if step == 0.0 else -step * differences


def _refuse_undefined(energy: Tensor, what: str) -> None:
    bad = int((~(energy > -torch.inf)).sum())
    if bad:
        raise NonFiniteEnergyError(
            f"the energy is NaN or -inf at {bad} of {energy.numel()} {what}; it must be finite or +inf everywhere: "
            "look for log(0), 0 * inf, or a density that is not normalisable",
            count=bad,
        )


def _refuse_extinct(log_weights: Tensor, position: float) -> None:
    lost = int(torch.isneginf(log_weights).all(-1).sum())
    if lost:
        raise NonFiniteEnergyError(
            f"all particles of {lost} of {len(log_weights)} chains have infinite energy at lambda = {position:.3g}; "
            "give a proposal that reaches the support of the target, or more particles",
            count=lost,
        )
