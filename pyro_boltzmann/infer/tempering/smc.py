"""Sequential Monte Carlo on a ladder of temperatures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.output import check_writable, save_without_latents
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.infer.tempering.keeper import Keeper
from pyro_boltzmann.infer.tempering.kernel import make_kernel
from pyro_boltzmann.infer.tempering.problem import resolve_problem
from pyro_boltzmann.infer.tempering.proposal import resolve_proposal
from pyro_boltzmann.infer.tempering.schedule import Stage
from pyro_boltzmann.infer.tempering.smc_run import SMCRun, SMCSettings

__all__ = ["smc"]

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


@torch.no_grad()
def smc(
    model_or_energy: Any,
    *args: Any,
    num_samples: int = 4000,
    num_chains: int = 1,
    dim: int | None = None,
    proposal: Any = None,
    kernel: str = "hmc",
    num_steps: int = 5,
    num_moves: int = 2,
    max_moves: int = 20,
    step_size: float | None = None,
    mass: str = "diagonal",
    conditional_ess: float = 0.9,
    resample_below: float = 0.5,
    resampler: str = "systematic",
    waste_free: bool = False,
    freeze: bool = False,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = True,
    seed: int | None = None,
    progress: bool = True,
    save_to: str | Path | None = None,
    **kwargs: Any,
) -> WeightedSamples:
    r"""Tempered sequential Monte Carlo: particles drawn from a proposal :math:`q` are reweighted, resampled and moved
    along

    .. math:: \pi_\lambda(x) \propto q(x)^{1 - \lambda} e^{-\lambda u(x)}, \qquad 0 = \lambda_0 < \dots < \lambda_n = 1,

    where each :math:`\lambda` is the furthest whose conditional ESS is ``conditional_ess``. The mean weight estimates
    Z.

    *Consistent* or *unbiased*: temperatures, step sizes and masses that adapt to the particles make the estimate of Z
    consistent, no more. With ``freeze=True`` that adaptive run is a pilot, and fresh particles run on its ladder with
    its kernels: then :math:`E[\hat Z] = Z` exactly. ``info["smc"]["label"]`` says which.

    *Errors*: draws with a common ancestor are not independent, and the weights since the last resampling say nothing
    about what was lost before it. So errors come from genealogies (Lee and Whiteley, arXiv 1509.00394), or from the
    chains where there are four or more, and k-hat is NaN. Chains share the ladder but never exchange particles. Where
    few ancestors survive many resamplings (``waste_free`` with tens of moves, multinomial resampling), genealogies
    exaggerate the error of log Z manifold: use four chains or more.

    :param model_or_energy: a Pyro program (with its ``args`` and ``kwargs``), a ``BoltzmannModel``, a catalogue target,
        or an energy ``(*batch, dim) -> (*batch)`` with ``dim``.
    :param num_samples: particles, over all chains.
    :param num_chains: independent replicates, advanced together; must divide ``num_samples``.
    :param proposal: where tempering starts; :func:`~.proposal.resolve_proposal` says what is accepted. A trained flow
        is corrected by this; the default is Gaussian.
    :param kernel: ``"hmc"``, ``"mala"`` or ``"rwm"`` (which needs no gradients).
    :param num_steps: leapfrog steps of an HMC move, at most: fewer where a trajectory would pass a quarter of a period.
    :param num_moves: moves at each temperature, at least.
    :param max_moves: at most: more moves are made while they still carry the particles further from where they stood.
    :param mass: ``"diagonal"``, the inverse variances of the particles; ``"dense"``, their inverse covariance, shrunk
        towards its diagonal where they have few independent ancestors; or ``"identity"``.
    :param step_size: the first, in units of the particles' standard deviations; it adapts to an acceptance of 0.8
        (HMC), 0.6 (MALA) or 0.3 (random walk).
    :param conditional_ess: a fraction in (0, 1); closer to one, more temperatures.
    :param resample_below: resample when the ESS within the chains falls below this fraction.
    :param resampler: a name in ``RESAMPLERS``.
    :param waste_free: keep every state that the moves pass through: ``num_samples / (num_moves + 1)`` particles are
        resampled and each makes ``num_moves`` moves (Dau and Chopin, arXiv 2011.02328). Use tens of moves.
    :param freeze: see above; costs twice the evaluations, of which the pilot's are counted as training.
    :param max_seconds: after this much wall time go to the target in one step. The weights stay right; their
        quality suffers, and the report will say so.
    :param checkpoint: file to keep the run in; the same call continues from it, bit for bit on the CPU.
    :param seed: run from this seed and leave the global generator as it was.
    :param save_to: netCDF file for the draws.
    :return: draws with ``info["smc"]``: label, ladder (``positions``, ``acceptance``, ``step_sizes``,
        ``num_steps``, ``num_moves``, ``resampled``),
        ``log_z_by_chain``, ``num_roots`` (distinct first ancestors of each chain); ``info["z"]`` holds the
        unconstrained vectors (not saved).
    :raises ValueError: for settings out of their range.
    :raises NonFiniteEnergyError: if the energy is NaN or -inf at a first or last particle, or infinite at all.
    :raises CheckpointError: if the checkpoint is of another run.

    Source: Del Moral, Doucet and Jasra, Sequential Monte Carlo samplers (2006); Buchholz, Chopin and Jacob,
    arXiv 1808.07730 (adaptive Hamiltonian moves).

    >>> energy = lambda x: 0.5 * (x - 3).square().sum(-1)
    >>> draws = smc(energy, dim=2, num_samples=1000, seed=0, progress=False)
    >>> abs(draws.log_normalizer - 1.8379) < 0.2, draws.info["smc"]["label"]
    (True, 'consistent')
    """
    settings = SMCSettings(
        num_chains,
        _chain_length(num_samples, num_chains),
        make_kernel(kernel, num_steps),
        num_moves,
        num_moves if waste_free else max(num_moves, max_moves),
        conditional_ess,
        resample_below,
        resampler,
        waste_free,
        mass,
    )
    if save_to is not None:
        check_writable(save_to)
    problem = resolve_problem(model_or_energy, args, kwargs, dim)
    start = resolve_proposal(proposal, problem, args, kwargs)
    first_step = settings.kernel.initial_step(problem.dim) if step_size is None else float(step_size)
    if not 0.0 < first_step < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    file = None if checkpoint is None else Path(checkpoint)
    identity = {"sampler": "smc", "dim": problem.dim, "seed": seed, "step_size": first_step, **settings.to_dict()}

    def run_pass(name: str, ladder: list[Stage] | None) -> tuple[SMCRun, Keeper]:
        place = file if file is None or name == "smc" else file.with_name(f"{file.stem}-{name}{file.suffix}")
        keeper = Keeper(place, checkpoint_every, {**identity, "pass": name, "freeze": freeze}, resume=resume)
        with count_evaluations() as keeper.count:
            kept = keeper.load(start)
            if kept is None:
                run = SMCRun.start(settings, start, problem.energy, first_step)
            else:
                run = SMCRun.restore(settings, start.energy, problem.energy, *kept)
                keeper.refuse_other_energy("energy", problem.energy, run.ensemble.x, run.ensemble.target)
                if not run.is_finished:  # at the end of the ladder the reference is not asked any more
                    keeper.refuse_other_energy("proposal", start.energy, run.ensemble.x, run.ensemble.reference)
            _anneal(run, ladder, keeper, max_seconds, progress, name)
        return run, keeper

    with seeded(seed):
        pilot = run_pass("pilot", None) if freeze else None
        run, keeper = run_pass("smc", None if pilot is None else pilot[0].stages)
    draws = _draws(run, problem.constrain, keeper, None if pilot is None else pilot[1])
    if save_to is not None:
        save_without_latents(draws, save_to)
    return draws


def _anneal(
    run: SMCRun, ladder: list[Stage] | None, keeper: Keeper, max_seconds: float | None, progress: bool, name: str
) -> None:
    """Take the particles to the target, on a given ladder or on one that adapts."""
    keeper.save(*run.state())
    with tqdm(total=1.0, initial=run.position, disable=not progress, desc=name, bar_format=BAR) as bar:
        while not run.is_finished:
            before, is_whole = run.position, False
            try:
                with deferred_interrupt():
                    if ladder is not None:
                        stage = ladder[len(run.stages)]
                    else:
                        stage = run.adapt(hurry=max_seconds is not None and keeper.seconds > max_seconds)
                    run.advance(stage)
                    is_whole = True
            except KeyboardInterrupt:
                if is_whole:
                    keeper.save(*run.state())
                raise
            if progress:
                log_z = float(run.log_z_now().mean())
                bar.set_postfix_str(f"log Z {log_z:.2f}, accepted {run.acceptance[-1]:.2f}", refresh=False)
                bar.update(run.position - before)
            if keeper.is_due():
                keeper.save(*run.state())
    keeper.save(*run.state())


def _draws(run: SMCRun, constrain: Any, keeper: Keeper, pilot: Keeper | None) -> WeightedSamples:
    log_weights = run.final_log_weights()
    z, energy = run.ensemble.x, run.ensemble.target
    stages = run.stages
    sample = keeper.spent.to_dict()
    return WeightedSamples(
        constrain(z),
        log_weights,
        energy=energy,
        roots=run.roots,
        evaluations={"sample": sample} if pilot is None else {"train": pilot.spent.to_dict(), "sample": sample},
        seconds=keeper.seconds if pilot is None else {"train": pilot.seconds, "sample": keeper.seconds},
        info={
            "smc": {
                "label": "consistent" if pilot is None else "unbiased",
                "positions": [stage.position for stage in stages],
                "resampled": [stage.resample for stage in stages],
                "step_sizes": [stage.step_sizes[-1] if stage.step_sizes else None for stage in stages],
                "num_steps": [stage.num_steps for stage in stages],
                "num_moves": [len(stage.step_sizes) for stage in stages],
                "acceptance": run.acceptance,
                "log_z_by_chain": run.log_z_now().tolist(),
                "num_roots": [len(chain.unique()) for chain in run.roots],
            },
            "cpu_seconds": keeper.cpu_seconds,
            "z": z,
        },
    )


def _chain_length(num_samples: int, num_chains: int) -> int:
    for name, value in (("num_samples", num_samples), ("num_chains", num_chains)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if num_samples % num_chains:
        raise ValueError(f"num_chains={num_chains} must divide num_samples={num_samples}")
    if num_samples // num_chains < 2:
        raise ValueError(f"each chain needs at least two particles, got {num_samples} for {num_chains} chains")
    return num_samples // num_chains
