"""Parallel tempering: the reference sampler for targets without exact samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics.resampling import multinomial
from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.energies.evaluation import Energy, count_evaluations
from pyro_boltzmann.exceptions import CheckpointError, NonFiniteEnergyError
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.output import check_writable, save_without_latents
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.infer.tempering.ensemble import Ensemble
from pyro_boltzmann.infer.tempering.keeper import Keeper
from pyro_boltzmann.infer.tempering.kernel import Kernel, make_kernel
from pyro_boltzmann.infer.tempering.ladder import barrier, ladder_log_z, thermodynamic_integral
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner
from pyro_boltzmann.infer.tempering.problem import resolve_problem
from pyro_boltzmann.infer.tempering.proposal import Proposal, resolve_proposal
from pyro_boltzmann.infer.tempering.pt_run import PTRun
from pyro_boltzmann.infer.tempering.smc_run import SMCRun, SMCSettings

__all__ = ["parallel_tempering"]

PILOT_PARTICLES = 512


@torch.no_grad()
def parallel_tempering(
    model_or_energy: Any,
    *args: Any,
    num_samples: int = 16_000,
    num_chains: int = 16,
    dim: int | None = None,
    proposal: Any = None,
    kernel: str = "hmc",
    num_steps: int = 5,
    num_moves: int = 1,
    mass: str = "diagonal",
    num_warmup: int = 500,
    thin: int = 1,
    num_temperatures: int | None = None,
    overlap: float = 0.5,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = True,
    seed: int | None = None,
    progress: bool = True,
    save_to: str | Path | None = None,
    **kwargs: Any,
) -> WeightedSamples:
    r"""Non-reversible parallel tempering along :math:`\pi_\lambda \propto q^{1 - \lambda} e^{-\lambda u}`.

    Replicas move at all temperatures at once, at :math:`\lambda = 0` by independent draws of the proposal, and
    neighbours swap. A short run of sequential Monte Carlo finds the first ladder and the first states; the warm-up then
    places the temperatures so that all swaps are rejected alike, and adapts step sizes and masses. After it all is
    fixed, so that the chains have the target as their invariant law.

    :math:`\log Z` comes from Bennett's acceptance ratio between neighbours, for each chain by itself, and
    its error, like that of expectations, from the differences of the chains. Thermodynamic integration is given beside
    it as a check.

    :param model_or_energy: as for :func:`~.smc.smc`; likewise ``args``, ``dim``, ``proposal``, ``kernel`` and ``mass``.
    :param num_samples: draws kept at the target, over all chains.
    :param num_chains: independent systems, at least four; must divide ``num_samples``.
    :param num_moves: moves between swaps.
    :param num_warmup: rounds before anything is kept; the ladder is placed anew after an eighth, a quarter and a half.
    :param thin: rounds from one draw kept to the next.
    :param num_temperatures: as many as the annealing run needs at conditional ESS ``overlap`` unless given; about
        :math:`2 \Lambda + 1` is best, for the barrier :math:`\Lambda` that ``info`` reports.
    :param max_seconds: stop early after this much wall time, with the draws there are.
    :param checkpoint: file to keep the run in; the same call continues from it, bit for bit on the CPU, and one with
        more ``num_samples`` lengthens it.
    :return: draws with ``info["parallel_tempering"]``: ``positions``, ``rejections`` between neighbours, ``barrier``,
        ``round_trips`` (from the reference to the target and back, over all chains), ``round_trip_rate`` (per chain
        and round), ``acceptance`` of the moves, ``log_z_by_chain``, ``thermodynamic_integration``; all draws of a chain
        count as one root, so that errors are taken over chains.
    :raises ValueError: for settings out of their range.
    :raises NonFiniteEnergyError: if the energy is NaN or -inf at a draw.

    >>> energy = lambda x: 0.5 * (x - 3).square().sum(-1)
    >>> draws = parallel_tempering(energy, dim=2, num_samples=1600, num_warmup=50, seed=0, progress=False)
    >>> abs(draws.log_normalizer - 1.8379) < 0.2
    True
    """
    if num_chains < 4:
        raise ValueError(f"num_chains must be at least 4, from whose differences errors are taken; got {num_chains}")
    if num_samples < num_chains or num_samples % num_chains:
        raise ValueError(f"num_chains={num_chains} must divide num_samples={num_samples}")
    if thin < 1 or num_moves < 1 or num_warmup < 8:
        raise ValueError(
            f"expected thin >= 1, num_moves >= 1 and num_warmup >= 8, got {thin}, {num_moves} and {num_warmup}"
        )
    if num_temperatures is not None and num_temperatures < 2:
        raise ValueError(f"a ladder needs two temperatures or more, got num_temperatures={num_temperatures}")
    if save_to is not None:
        check_writable(save_to)
    moves = make_kernel(kernel, num_steps)
    problem = resolve_problem(model_or_energy, args, kwargs, dim)
    start = resolve_proposal(proposal, problem, args, kwargs)
    identity = {
        "sampler": "parallel_tempering",
        "dim": problem.dim,
        "seed": seed,
        "num_chains": num_chains,
        "kernel": list(moves),
        "num_moves": num_moves,
        "mass": mass,
        "num_warmup": num_warmup,
        "thin": thin,
        "num_temperatures": num_temperatures,
        "overlap": overlap,
    }
    keeper = Keeper(checkpoint, checkpoint_every, identity, resume=resume)
    with seeded(seed), count_evaluations() as keeper.count:
        kept = keeper.load(start)
        if kept is None:
            run = _first_ladder(start, problem.energy, moves, num_moves, mass, num_chains, num_temperatures, overlap)
            record = _Record()
        else:
            run, record = _restored(start, problem.energy, moves, num_moves, mass, *kept)
            keeper.refuse_other_energy("energy", problem.energy, run.ensemble.x, run.ensemble.target)
            keeper.refuse_other_energy("proposal", start.energy, run.ensemble.x, run.ensemble.reference)
        _warm_up(run, record, num_warmup, keeper, progress)
        _sample(run, record, num_samples // num_chains, thin, keeper, max_seconds, progress)
    draws = _draws(run, record, problem.constrain, keeper)
    if save_to is not None:
        save_without_latents(draws, save_to)
    return draws


class _Record:
    """Draws at the target and energy differences at all temperatures, round by round."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.energy: list[Tensor] = []
        self.differences: list[Tensor] = []
        self.warm = 0

    def add(self, run: PTRun) -> None:
        self.x.append(run.ensemble.x[:, -1])
        self.energy.append(run.ensemble.target[:, -1])
        self.differences.append(run.differences)

    def state(self) -> dict[str, Tensor]:
        if not self.x:
            return {}
        return {f"record.{name}": torch.stack(getattr(self, name)) for name in ("x", "energy", "differences")}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], warm: int) -> _Record:
        record = cls()
        record.warm = warm
        for name in ("x", "energy", "differences"):
            if f"record.{name}" in tensors:
                setattr(record, name, list(tensors[f"record.{name}"].unbind(0)))
        return record


def _first_ladder(
    proposal: Proposal,
    energy: Energy,
    kernel: Kernel,
    num_moves: int,
    mass: str,
    num_chains: int,
    num_temperatures: int | None,
    overlap: float,
) -> PTRun:
    """Temperatures, states and step sizes from a short annealing run."""
    size = max(PILOT_PARTICLES, 4 * num_chains)
    settings = SMCSettings(
        1, size, kernel, max(2, num_moves), max(20, num_moves), overlap, 0.9, "systematic", False, mass
    )
    annealing = SMCRun.start(settings, proposal, energy, kernel.initial_step(proposal.dim))
    states = [_some(annealing, num_chains)]
    while not annealing.is_finished:
        annealing.advance(annealing.adapt())
        states.append(_some(annealing, num_chains))
    stages = annealing.stages
    positions = np.array([0.0, *(stage.position for stage in stages)])
    levels = np.arange(len(positions), dtype=np.float64)
    if num_temperatures is not None:
        levels = np.linspace(0.0, len(positions) - 1.0, num_temperatures)
        positions = np.interp(levels, np.arange(len(positions)), positions)
    nearest = np.rint(levels).astype(int)
    chosen = [stages[max(0, index - 1)] for index in nearest[1:]]
    ensemble = Ensemble.cat([states[index].reshape(num_chains, 1) for index in nearest], 1)
    like = ensemble.x
    return PTRun.start(
        proposal,
        energy,
        kernel,
        num_moves,
        mass,
        torch.from_numpy(positions).to(like.device),
        ensemble,
        torch.tensor([stage.step_sizes[-1] for stage in chosen], dtype=like.dtype, device=like.device),
        Preconditioner.stack([stage.scale for stage in chosen]),
    )


def _some(annealing: SMCRun, number: int) -> Ensemble:
    return annealing.ensemble.rows(multinomial(annealing.log_weights.flatten(), number))


def _warm_up(run: PTRun, record: _Record, num_warmup: int, keeper: Keeper, progress: bool) -> None:
    tuned_after = {num_warmup // 8, num_warmup // 4, num_warmup // 2}
    with tqdm(total=num_warmup, initial=record.warm, disable=not progress, desc="warm-up") as bar:
        while record.warm < num_warmup:
            with _whole(run, record, keeper):
                # Step sizes rest in the last rounds, so that the noise of the last rates stays out of them.
                run.round(rate=0.5 / (1.0 + run.rounds / 10.0) ** 0.6)
                run.watch()
                record.warm += 1
                if record.warm in tuned_after:
                    run.retune()
                    run.forget()
                if record.warm == num_warmup:
                    run.forget()
            bar.update()


def _sample(
    run: PTRun, record: _Record, length: int, thin: int, keeper: Keeper, max_seconds: float | None, progress: bool
) -> None:
    with tqdm(total=length, initial=len(record.x), disable=not progress, desc="parallel tempering") as bar:
        while len(record.x) < length:
            if max_seconds is not None and keeper.seconds > max_seconds and len(record.x) >= 2:
                break
            with _whole(run, record, keeper):
                for _ in range(thin):
                    run.round()
                record.add(run)
            bar.update()
            if progress and len(record.x) % 100 == 0:
                bar.set_postfix_str(f"{int(run.trips.sum())} round trips", refresh=False)
    keeper.save(*_state(run, record))


class _whole:
    """A round that Ctrl-C does not cut in two, after which the run is saved when that is due."""

    def __init__(self, run: PTRun, record: _Record, keeper: Keeper) -> None:
        self.run, self.record, self.keeper = run, record, keeper
        self.deferred = deferred_interrupt()

    def __enter__(self) -> None:
        self.deferred.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.deferred.__exit__(kind, error, trace)
        except KeyboardInterrupt:
            if kind is None:
                self.keeper.save(*_state(self.run, self.record))
            raise
        if kind is None and self.keeper.is_due():
            self.keeper.save(*_state(self.run, self.record))


def _state(run: PTRun, record: _Record) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, described = run.state()
    return {**tensors, **record.state()}, {"run": described, "warm": record.warm}


def _restored(
    proposal: Proposal,
    energy: Energy,
    kernel: Kernel,
    num_moves: int,
    mass: str,
    tensors: dict[str, Tensor],
    described: dict[str, Any],
) -> tuple[PTRun, _Record]:
    try:
        run = PTRun.restore(proposal, energy, kernel, num_moves, mass, tensors, described["run"])
        return run, _Record.restore(tensors, described["warm"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint of this run is not complete ({error}); delete it") from error


def _draws(run: PTRun, record: _Record, constrain: Any, keeper: Keeper) -> WeightedSamples:
    x, energy = torch.stack(record.x, 1), torch.stack(record.energy, 1)
    bad = int((~(energy > -torch.inf)).sum())
    if bad:
        raise NonFiniteEnergyError(f"the energy is NaN or -inf at {bad} of {energy.numel()} draws", count=bad)
    differences = torch.stack(record.differences, 2).cpu().numpy()
    positions = run.positions.cpu().numpy()
    log_z = np.array([ladder_log_z(positions, chain) for chain in differences])
    integral = np.array([thermodynamic_integral(positions, chain) for chain in differences])
    z = x.flatten(0, 1)
    count = run.num_chains**0.5
    return WeightedSamples(
        constrain(z),
        torch.full(energy.shape, float(log_z.mean()), dtype=torch.float64),
        energy=energy,
        roots=torch.zeros(energy.shape, dtype=torch.long),
        log_normalizer_by_chain=torch.from_numpy(log_z),
        evaluations={"sample": keeper.spent.to_dict()},
        seconds=keeper.seconds,
        info={
            "parallel_tempering": {
                "positions": positions.tolist(),
                "rejections": run.rejection_rates.tolist(),
                "barrier": barrier(run.rejection_rates),
                "round_trips": int(run.trips.sum()),
                "round_trip_rate": float(run.trips.double().mean()) / max(1, run.rounds),
                "acceptance": (run.acceptance / max(1, run.rounds)).tolist(),
                "log_z_by_chain": log_z.tolist(),
                "thermodynamic_integration": [float(integral.mean()), float(integral.std(ddof=1)) / count],
            },
            "cpu_seconds": keeper.cpu_seconds,
            "z": z,
        },
    )
