"""The catalogue: names of benchmark targets and the targets themselves, built when first asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from pyro_boltzmann.energies.catalogue.breast_cancer import BreastCancer
from pyro_boltzmann.energies.catalogue.brownian import Brownian
from pyro_boltzmann.energies.catalogue.double_well import DoubleWell
from pyro_boltzmann.energies.catalogue.double_well_particles import DW2, DW4
from pyro_boltzmann.energies.catalogue.funnel import Funnel
from pyro_boltzmann.energies.catalogue.gmm40 import GMM40
from pyro_boltzmann.energies.catalogue.image import ImageDensity
from pyro_boltzmann.energies.catalogue.lennard_jones import lennard_jones_target
from pyro_boltzmann.energies.catalogue.many_well import ManyWell
from pyro_boltzmann.energies.catalogue.muller_brown import MullerBrown
from pyro_boltzmann.energies.catalogue.posterior_targets import (
    eight_schools_centered_target,
    eight_schools_target,
    logistic_regression_target,
)
from pyro_boltzmann.energies.catalogue.seeds import Seeds
from pyro_boltzmann.energies.catalogue.target import Target
from pyro_boltzmann.exceptions import PyroBoltzmannError

__all__ = ["Catalogue", "UnknownTargetError"]


class UnknownTargetError(PyroBoltzmannError, KeyError):
    """A name that is not in the catalogue."""

    # KeyError prints the repr of its message.
    def __str__(self) -> str:
        return str(self.args[0])


_FACTORIES: dict[str, Callable[[], Target]] = {
    "double_well": DoubleWell,
    "muller_brown": MullerBrown,
    "image": ImageDensity,
    "gmm40": GMM40,
    "funnel10": Funnel,
    "many_well32": ManyWell,
    "many_well64": partial(ManyWell, 32),
    "dw2": DW2,
    "dw4": DW4,
    "lj13": partial(lennard_jones_target, 13),
    "lj55": partial(lennard_jones_target, 55),
    "lj13_half": partial(lennard_jones_target, 13, 1.0),
    "lj55_half": partial(lennard_jones_target, 55, 1.0),
    "eight_schools": eight_schools_target,
    "eight_schools_centered": eight_schools_centered_target,
    "logistic_regression": logistic_regression_target,
    "seeds": Seeds,
    "brownian": Brownian,
    "breast_cancer": BreastCancer,
}


class Catalogue(Mapping[str, Target]):
    """Read-only mapping from names to benchmark targets; each target is built once, when first asked for.

    :raises UnknownTargetError: (a ``KeyError``) for an unknown name, with the known names and the closest of them.

    >>> catalogue = Catalogue()
    >>> catalogue["gmm40"].log_z
    0.0
    >>> list(catalogue)[:3]
    ['double_well', 'muller_brown', 'image']
    >>> try:
    ...     catalogue["gmm"]
    ... except KeyError as error:
    ...     print(str(error)[:53])
    no target is named 'gmm'; did you mean 'gmm40'? known
    """

    def __init__(self) -> None:
        self._built: dict[str, Target] = {}

    def __getitem__(self, name: str) -> Target:
        if name not in self._built:
            if name not in _FACTORIES:
                raise UnknownTargetError(_unknown(name))
            self._built[name] = _FACTORIES[name]()
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        # Mapping's own test would build the target.
        return name in _FACTORIES

    def __iter__(self) -> Iterator[str]:
        return iter(_FACTORIES)

    def __len__(self) -> int:
        return len(_FACTORIES)

    def __repr__(self) -> str:
        return f"Catalogue({', '.join(_FACTORIES)})"


def _unknown(name: object) -> str:
    close = difflib.get_close_matches(str(name).lower(), _FACTORIES, n=1, cutoff=0.5)
    suggestion = f"; did you mean {close[0]!r}?" if close else ";"
    return f"no target is named {name!r}{suggestion} known names: {', '.join(_FACTORIES)}"
