"""What a user might pick instead: other libraries' samplers on the catalogue's targets, measured like our own.

Each competitor is imported when it is asked for; none is needed for anything else in the package.
"""

from __future__ import annotations

from pyro_boltzmann.experiments.others.methods import METHODS, Method
from pyro_boltzmann.experiments.others.problem import BenchProblem, bench_problem
from pyro_boltzmann.experiments.others.record import Outcome, Record, measure

__all__ = ["METHODS", "BenchProblem", "Method", "Outcome", "Record", "bench_problem", "measure"]
