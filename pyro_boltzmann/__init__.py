"""Sample unnormalised densities with Pyro: weighted draws with an honest verdict.

Write an energy, choose a sampler, train it, and get draws with exact weights: log Z with its error, effective sample
size, Pareto k-hat and the number of energy evaluations, as ArviZ data.
"""

from pyro_boltzmann import diagnostics, diffusion, energies, guides, infer, sde, stochastic, transforms
from pyro_boltzmann.diagnostics import WeightedSamples, to_arviz
from pyro_boltzmann.energies import (
    AnnealedEnergy,
    AnnealingLadder,
    Boltzmann,
    BoltzmannModel,
    LocalEnergy,
    ModelEnergy,
    NormalEnergy,
    TemperedEnergy,
    count_evaluations,
)
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.guides import AmortizedStochasticFlow, AutoDiffusion, AutoStochasticFlow, Frame
from pyro_boltzmann.infer import (
    IDEM,
    Alpha2,
    BEnDEM,
    EnDEM,
    FitResult,
    FlowMatching,
    ForwardKL,
    LogVariance,
    Phase,
    Proposal,
    ReverseKL,
    TargetScoreMatching,
    TrajectoryBalance,
    fit,
    importance_sample,
    parallel_tempering,
    smc,
)

__version__ = "0.1.0"

__all__ = [
    "IDEM",
    "Alpha2",
    "AmortizedStochasticFlow",
    "AnnealedEnergy",
    "AnnealingLadder",
    "AutoDiffusion",
    "AutoStochasticFlow",
    "BEnDEM",
    "Boltzmann",
    "BoltzmannModel",
    "EnDEM",
    "FitResult",
    "FlowMatching",
    "ForwardKL",
    "Frame",
    "LocalEnergy",
    "LogVariance",
    "ModelEnergy",
    "NormalEnergy",
    "Phase",
    "Proposal",
    "ReverseKL",
    "TargetScoreMatching",
    "TemperedEnergy",
    "TrajectoryBalance",
    "WeightedSamples",
    "catalogue",
    "count_evaluations",
    "diagnostics",
    "diffusion",
    "energies",
    "fit",
    "guides",
    "importance_sample",
    "infer",
    "parallel_tempering",
    "sde",
    "smc",
    "stochastic",
    "to_arviz",
    "transforms",
]
