"""The energy of each datum in the coordinates in which its encoder's Gaussian is standard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.local_energy import LocalEnergy
from pyro_boltzmann.energies.tracing import is_tracing
from pyro_boltzmann.exceptions import ModelError, ShapeError

__all__ = ["EncodedEnergy"]


class EncodedEnergy:
    r""":math:`u_i(\mu_i + \sigma_i \epsilon) - \sum \log \sigma_i`, bound anew at each call of the guide that owns it.

    A ``deepcopy`` of a guide has its own. Copies and pickles forget data and encodings, which may carry graphs.
    """

    copies_with_path = True
    is_local = True

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self._local: LocalEnergy | None = None
        self._encoding: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def local(self) -> LocalEnergy:
        """The energy in the model's coordinates.

        :raises ModelError: before the first call.
        """
        if self._local is None:
            raise ModelError(
                "this guide does not know its model's arguments yet; call guide(*args) once, or "
                "guide.initialize(*args), with the arguments of the model"
            )
        return self._local

    def bind_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalEnergy:
        """Use the model with these arguments from now on."""
        if self._local is None:
            self._local = LocalEnergy(self.model, *args, **kwargs)
        else:
            self._local = self._local.with_arguments(*args, **kwargs)
        self._encoding = None
        return self._local

    def bind_encoding(self, loc: Tensor, scale: Tensor) -> None:
        """Use these means and standard deviations, which broadcast to ``(*plate_shape, latent_dim)``.

        :raises ShapeError: if they do not.
        :raises ValueError: if a standard deviation is not positive.
        """
        shape = torch.Size((*self.local.plate_shape, self.local.latent_dim))
        try:
            loc, scale = loc.expand(shape), torch.as_tensor(scale).to(loc).expand(shape)
        except RuntimeError as error:
            raise ShapeError(
                f"the encoder must return loc and scale of shape {tuple(shape)} (one row a datum), got "
                f"{tuple(loc.shape)} and {tuple(scale.shape)}"
            ) from error
        if not is_tracing() and bool((scale <= 0).any()):
            raise ValueError("the encoder returned a scale that is not positive; use exp or softplus")
        self._encoding = loc, scale, scale.log().sum(-1)

    def _bound(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._encoding is None:
            raise ModelError("the energy of an amortised guide is known only while the guide runs, after its encoder")
        return self._encoding

    @property
    def loc(self) -> Tensor:
        r""":math:`\mu`, ``(*plate_shape, latent_dim)``."""
        return self._bound()[0]

    @property
    def log_det(self) -> Tensor:
        r""":math:`\sum \log \sigma` of each datum, ``(*plate_shape)``."""
        return self._bound()[2]

    def decode(self, epsilon: Tensor) -> Tensor:
        r""":math:`\mu + \sigma \epsilon`, the unconstrained latents."""
        loc, scale, _ = self._bound()
        return loc + scale * epsilon

    def __call__(self, epsilon: Tensor) -> Tensor:
        return self.local(self.decode(epsilon)) - self.log_det

    def __deepcopy__(self, memo: dict[int, Any]) -> EncodedEnergy:
        clone = EncodedEnergy(self.model)
        memo[id(self)] = clone
        return clone

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "_local": None, "_encoding": None}
