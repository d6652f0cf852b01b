"""Published experiments, each a module that regenerates its table; imported only when asked for.

Such a module (or an object in it) has ``run(*, seed, out, minutes, num_samples=None) -> dict``, which writes its files
into ``out`` and returns the report; where several methods are compared, ``run`` also takes ``method``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from pathlib import Path
from typing import Any, Protocol, cast

from pyro_boltzmann.exceptions import PyroBoltzmannError

__all__ = ["EXPERIMENTS", "Experiment", "UnknownExperimentError", "load_experiment", "takes_method"]

EXPERIMENTS: dict[str, str] = {
    "snf-double-well": "pyro_boltzmann.experiments.snf_double_well",
    "eight-schools": "pyro_boltzmann.experiments.eight_schools",
    "smc-catalogue": "pyro_boltzmann.experiments.smc_catalogue",
    "teacher-student": "pyro_boltzmann.experiments.teacher_student",
    "certify": "pyro_boltzmann.experiments.certify",
    "vae-digits": "pyro_boltzmann.experiments.vae_digits",
    "posterior-catalogue": "pyro_boltzmann.experiments.posterior_catalogue",
    "snf-images": "pyro_boltzmann.experiments.snf_images",
    "denoising-estimators": "pyro_boltzmann.experiments.denoising_estimators",
    "bendem-gmm40": "pyro_boltzmann.experiments.bendem:GMM40",
    "bendem-manywell32": "pyro_boltzmann.experiments.bendem:MANY_WELL32",
    "bendem-dw4": "pyro_boltzmann.experiments.bendem:DW4",
    "bendem-lj13": "pyro_boltzmann.experiments.bendem:LJ13",
    "bendem-lj55": "pyro_boltzmann.experiments.bendem:LJ55",
    "equivariant-dw2": "pyro_boltzmann.experiments.equivariant:DW2",
    "equivariant-dw4": "pyro_boltzmann.experiments.equivariant:DW4",
    "prnf-runaway": "pyro_boltzmann.experiments.prnf_runaway",
    "prnf-inference": "pyro_boltzmann.experiments.prnf_inference",
    "equivariant-lj13": "pyro_boltzmann.experiments.equivariant_cluster:LJ13",
    "prnf-brownian": "pyro_boltzmann.experiments.prnf_brownian",
    "prnf-ou": "pyro_boltzmann.experiments.prnf_ou",
    "prnf-abc": "pyro_boltzmann.experiments.prnf_abc",
}
"""Names of experiments and the modules that hold them, or ``module:object`` where a module holds several."""


class UnknownExperimentError(PyroBoltzmannError, KeyError):
    """A name that no experiment has."""

    # KeyError prints the repr of its message.
    def __str__(self) -> str:
        return str(self.args[0])


class Experiment(Protocol):
    """What an experiment module offers."""

    def run(self, *, seed: int, out: Path, minutes: float | None, num_samples: int | None = None) -> dict[str, Any]:
        """Run it, write its files into ``out``, and return the report."""


def load_experiment(name: str) -> Experiment:
    """Import the module of an experiment.

    :raises UnknownExperimentError: for an unknown name, with the known names and the closest of them.

    >>> try:
    ...     load_experiment("snf-doublewell")
    ... except UnknownExperimentError as error:
    ...     print(str(error)[:73])
    no experiment is named 'snf-doublewell'; did you mean 'snf-double-well'?
    """
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name.lower().replace("_", "-"), EXPERIMENTS, n=1, cutoff=0.5)
        suggestion = f"; did you mean {close[0]!r}?" if close else ";"
        raise UnknownExperimentError(
            f"no experiment is named {name!r}{suggestion} known names: {', '.join(EXPERIMENTS)}"
        )
    module, _, attribute = EXPERIMENTS[name].partition(":")
    found: Any = importlib.import_module(module)
    return cast(Experiment, getattr(found, attribute) if attribute else found)


def takes_method(experiment: Experiment) -> bool:
    """Whether an experiment compares methods, one of which its ``run(method=...)`` can be asked for.

    >>> takes_method(load_experiment("bendem-gmm40")), takes_method(load_experiment("denoising-estimators"))
    (True, False)
    """
    return "method" in inspect.signature(experiment.run).parameters
