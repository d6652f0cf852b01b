"""Where tempering starts on the command line."""

from __future__ import annotations

from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.infer import Proposal
from pyro_boltzmann.infer.tempering.problem import Problem, resolve_problem
from pyro_boltzmann.infer.tempering.proposal import resolve_proposal

__all__ = ["wide_proposal"]


def wide_proposal(problem: Problem, target: Target | None) -> Proposal:
    """A Gaussian on the box where a target lives, if that is known in all its dimensions; otherwise N(0, I).

    >>> from pyro_boltzmann.energies.catalogue import catalogue
    >>> gmm40 = catalogue["gmm40"]
    >>> wide_proposal(resolve_problem(gmm40.model(), (), {}, None), gmm40).dim
    2
    """
    if target is not None and len(target.bounds) == problem.dim:
        return resolve_proposal(None, resolve_problem(target, (), {}, None), (), {})
    return resolve_proposal(None, problem, (), {})
