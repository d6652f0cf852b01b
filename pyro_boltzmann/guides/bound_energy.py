"""The energy a guide hands to its blocks: the model's, for the arguments of the current call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.exceptions import ModelError

__all__ = ["BoundEnergy"]


class BoundEnergy:
    """An energy whose model arguments may change from call to call.

    Blocks are built once and keep this object; :meth:`bind` points it at the arguments of the current call. A
    ``deepcopy`` of a guide has its own, so that calling one does not rebind the other. Pickles forget the arguments and
    are bound again by their next call.
    """

    copies_with_path = True

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._energy: Energy | None = model.unconstrained_energy if isinstance(model, BoltzmannModel) else None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Use the model with these arguments from now on; the very same objects cost nothing."""
        if isinstance(self.model, BoltzmannModel):
            return
        if self._energy is not None and self._call is not None and _same(self._call, (args, kwargs)):
            return
        if isinstance(self._energy, ModelEnergy):
            self._energy = self._energy.with_arguments(*args, **kwargs)
        else:
            self._energy = ModelEnergy(self.model, *args, **kwargs)
        self._call = (args, kwargs)

    @property
    def current(self) -> Energy:
        """The energy bound last.

        :raises ModelError: before the first call.
        """
        if self._energy is None:
            raise ModelError(
                "this guide does not know its model's arguments yet; call guide(*args) once, or "
                "guide.initialize(*args), with the arguments of the model"
            )
        return self._energy

    def __call__(self, z: Tensor) -> Tensor:
        return self.current(z)

    @property
    def energy_and_gradient(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """The formula of the energy bound last, if it has one; otherwise ``None``."""
        return getattr(self.current, "energy_and_gradient", None)

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundEnergy:
        clone = BoundEnergy.__new__(BoundEnergy)
        memo[id(self)] = clone
        clone.__dict__.update(self.__dict__)
        return clone

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.model, BoltzmannModel):
            return self.__dict__
        return {"model": self.model, "_call": None, "_energy": None}


def _same(old: tuple[tuple[Any, ...], dict[str, Any]], new: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    return (
        len(old[0]) == len(new[0])
        and all(a is b for a, b in zip(old[0], new[0], strict=True))
        and old[1].keys() == new[1].keys()
        and all(old[1][name] is new[1][name] for name in old[1])
    )
