"""The samplers that are compared, with the sizes at which each is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pyro_boltzmann.experiments.others.blackjax_smc import run_blackjax_smc
from pyro_boltzmann.experiments.others.dynesty_nested import run_dynesty
from pyro_boltzmann.experiments.others.extra import is_installed
from pyro_boltzmann.experiments.others.normflows_spline import run_normflows
from pyro_boltzmann.experiments.others.nuts import run_numpyro_nuts, run_pyro_nuts
from pyro_boltzmann.experiments.others.ours import run_parallel_tempering, run_smc, run_stochastic_flow
from pyro_boltzmann.experiments.others.problem import BenchProblem
from pyro_boltzmann.experiments.others.record import Outcome

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A sampler under the common protocol.

    :ivar label: in tables and pictures.
    :ivar run: ``(problem, size, seed) -> Outcome``.
    :ivar sizes: four over two decades.
    :ivar unit: what a size counts.
    :ivar distribution: the package on the index, for its version.
    :ivar modules: what must be installed.
    :ivar has_log_z: whether it estimates log Z.
    """

    label: str
    run: Callable[[BenchProblem, int, int], Outcome]
    sizes: tuple[int, ...]
    unit: str
    distribution: str
    modules: tuple[str, ...] = ()
    has_log_z: bool = True

    @property
    def is_ours(self) -> bool:
        return self.distribution == "pyro-boltzmann"

    @property
    def missing(self) -> str | None:
        """The modules that are not installed, if any."""
        absent = [name for name in self.modules if not is_installed(name)]
        return ", ".join(absent) or None

    @property
    def version(self) -> str:
        try:
            return f"{self.distribution} {version(self.distribution)}"
        except PackageNotFoundError:
            return self.distribution


METHODS: dict[str, Method] = {
    "pyro_nuts": Method(
        "Pyro NUTS", run_pyro_nuts, (10, 46, 215, 1000), "draws a chain", "pyro-ppl", ("pyro",), has_log_z=False
    ),
    "numpyro_nuts": Method(
        "NumPyro NUTS",
        run_numpyro_nuts,
        (50, 232, 1077, 5000),
        "draws a chain",
        "numpyro",
        ("numpyro", "jax"),
        has_log_z=False,
    ),
    "blackjax_smc": Method(
        "BlackJAX SMC", run_blackjax_smc, (128, 594, 2757, 12800), "particles", "blackjax", ("blackjax", "jax")
    ),
    "dynesty": Method("dynesty", run_dynesty, (20, 93, 431, 2000), "live points", "dynesty", ("dynesty", "jax")),
    "normflows": Method("normflows", run_normflows, (10, 46, 215, 1000), "updates", "normflows", ("normflows",)),
    "pb_smc": Method("pb.smc", run_smc, (128, 594, 2757, 12800), "particles", "pyro-boltzmann"),
    "pb_pt": Method(
        "pb.parallel_tempering", run_parallel_tempering, (20, 93, 431, 2000), "draws a chain", "pyro-boltzmann"
    ),
    "pb_snf": Method("pb stochastic flow", run_stochastic_flow, (10, 46, 215, 1000), "updates", "pyro-boltzmann"),
}
"""Samplers by the names that the command takes."""
