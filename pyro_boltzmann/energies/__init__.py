"""Energies: Boltzmann models and distributions, energies of Pyro programs, annealing, counting, the catalogue."""

from pyro_boltzmann.energies.annealed import AnnealedEnergy, AnnealingLadder
from pyro_boltzmann.energies.boltzmann import Boltzmann
from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.evaluation import (
    Energy,
    EvaluationCount,
    count_evaluations,
    energy_and_gradient,
    energy_value,
    record_evaluations,
)
from pyro_boltzmann.energies.held import HeldEnergy, hold
from pyro_boltzmann.energies.local_energy import LocalEnergy
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.energies.reference import NormalEnergy
from pyro_boltzmann.energies.tempered import TemperedEnergy

__all__ = [
    "AnnealedEnergy",
    "AnnealingLadder",
    "Boltzmann",
    "BoltzmannModel",
    "Energy",
    "EnergyMemo",
    "EvaluationCount",
    "HeldEnergy",
    "LocalEnergy",
    "ModelEnergy",
    "NormalEnergy",
    "TemperedEnergy",
    "count_evaluations",
    "energy_and_gradient",
    "energy_value",
    "hold",
    "record_evaluations",
]
