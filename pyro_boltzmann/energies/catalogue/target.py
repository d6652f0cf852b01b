"""The base class of benchmark targets: an energy that knows its own truths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_boltzmann.exceptions import PyroBoltzmannError, ShapeError

__all__ = ["Bounds", "LogZOrigin", "Target", "TruthUnavailableError"]

Bounds = tuple[tuple[float, float], tuple[float, float]]
"""``((x_low, x_high), (y_low, y_high))``: a box in the plane of the first two coordinates."""

LogZOrigin = Literal["exact", "certified", "measured", "interval", "unknown"]


class TruthUnavailableError(PyroBoltzmannError, NotImplementedError):
    """A target was asked for a truth (exact samples, mode assignment) that it does not have."""


class Target:
    r"""An unnormalised density :math:`\pi(x) = e^{-u(x)} / Z` on :math:`\mathbb{R}^d` with its known truths.

    A target is its own energy: calling it maps ``(*batch, dim)`` to ``(*batch)`` in the dtype and on the device of
    its input. It is no ``nn.Module``, so a guide or block that holds one never trains it.

    A subclass implements ``__call__`` and, where the density can be sampled exactly, ``_sample`` (float64).

    :param name: the catalogue name.
    :param dim: :math:`d`.
    :param constants: every number that the energy depends on; :attr:`target_hash` is made of them. Tensors are
        stored in float64 and moved lazily to the dtype and device of ``x`` by :meth:`_on`.
    :param derived: float64 tensors computed from the constants, also served by :meth:`_on`; they are no part of the
        hash, because a logarithm may differ in its last digit from one platform to another.
    :param log_z: :math:`\log Z`, or ``None``.
    :param log_z_error: its standard error; 0.0 when it is exact.
    :param log_z_origin: ``"exact"`` (closed form or quadrature), ``"certified"``, ``"measured"`` (long simulation),
        ``"interval"`` or ``"unknown"``.
    :param log_z_bounds: ``(low, high)`` of an interval that holds :math:`\log Z`, where no better is known; one end may
        be infinite. Given exactly when the origin is ``"interval"``, and then ``log_z`` is ``None``.
    :param log_z_note: one line on how :math:`\log Z` was found.
    :param mean_energy: :math:`\langle u \rangle`, or ``None``.
    :param mean_energy_error: its standard error; 0.0 when it is exact.
    :param virial_dof: the exact value of :math:`\langle x \cdot \nabla u \rangle`; ``dim`` unless given.
    :param delta_f: free energy of mode 1 minus that of mode 0, where two modes exist.
    :param mode_probabilities: exact masses of the regions numbered by :meth:`mode_assignment`.
    :param bounds: where to draw the first two coordinates.
    :raises TruthUnavailableError: if ``log_z``, its origin and its bounds contradict each other.

    >>> class Normal1(Target):
    ...     def __call__(self, x):
    ...         return 0.5 * x.square().sum(-1)
    >>> target = Normal1("normal", 1, constants={}, log_z=0.918939, log_z_origin="exact", mean_energy=0.5)
    >>> target(torch.zeros(3, 1)).shape, target.virial_dof, target.has_exact_sampler
    (torch.Size([3]), 1, False)
    """

    def __init__(
        self,
        name: str,
        dim: int,
        *,
        constants: Mapping[str, float | int | str | Tensor],
        derived: Mapping[str, Tensor] | None = None,
        log_z: float | None = None,
        log_z_error: float = 0.0,
        log_z_origin: LogZOrigin = "unknown",
        log_z_bounds: tuple[float, float] | None = None,
        log_z_note: str | None = None,
        mean_energy: float | None = None,
        mean_energy_error: float = 0.0,
        virial_dof: int | None = None,
        delta_f: float | None = None,
        mode_probabilities: Tensor | None = None,
        bounds: Bounds = ((-4.0, 4.0), (-4.0, 4.0)),
    ) -> None:
        _check_log_z(name, log_z, log_z_origin, log_z_bounds)
        self.name = name
        self.dim = dim
        self.constants: dict[str, float | int | str | Tensor] = {
            key: value.detach().to("cpu", torch.float64) if isinstance(value, Tensor) else value
            for key, value in constants.items()
        }
        self._derived = dict(derived or {})
        self.log_z = log_z
        self.log_z_error = log_z_error
        self.log_z_origin: LogZOrigin = log_z_origin
        self.log_z_bounds = log_z_bounds
        self.log_z_note = log_z_note
        self.mean_energy = mean_energy
        self.mean_energy_error = mean_energy_error
        self.virial_dof = dim if virial_dof is None else virial_dof
        self.delta_f = delta_f
        self.mode_probabilities = mode_probabilities
        self.bounds = bounds
        self._moved: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """The energy of ``x``: ``(*batch, dim) -> (*batch)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement __call__(x), the energy of (*batch, dim)")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, dim={self.dim}, log_z={self.log_z})"

    def __getstate__(self) -> dict[str, Any]:
        # Moved copies may sit on a device that the reader of a pickle does not have.
        return {**self.__dict__, "_moved": {}}

    @property
    def event_shape(self) -> torch.Size:
        """``(dim,)``."""
        return torch.Size((self.dim,))

    @property
    def energy(self) -> Callable[[Tensor], Tensor]:
        """The bare energy function; the same object on every access."""
        return self

    @property
    def has_exact_sampler(self) -> bool:
        """Whether :meth:`sample` draws independent exact samples."""
        return type(self)._sample is not Target._sample

    def sample(
        self, num_samples: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Independent exact samples of shape ``(num_samples, dim)``, drawn in float64 on the generator's device.

        :raises TruthUnavailableError: if the target has no exact sampler.
        :raises ShapeError: if ``num_samples`` is negative.
        """
        if num_samples < 0:
            raise ShapeError(f"num_samples must be a non-negative number of draws, got {num_samples}")
        device = torch.device("cpu") if generator is None else generator.device
        with torch.no_grad():
            return self._sample(num_samples, generator, device).to(dtype)

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        raise TruthUnavailableError(
            f"the target {self.name!r} has no exact sampler yet; draw from it with a sampler that reports its own "
            "reliability, such as pyro_boltzmann.smc(target.energy, ...), or check target.has_exact_sampler first"
        )

    def mode_assignment(self, x: Tensor) -> Tensor:
        """Index of the mode of each ``x``: ``(*batch, dim) -> (*batch)``, int64, into ``mode_probabilities``.

        :raises TruthUnavailableError: if the target has no enumerated modes.
        """
        raise TruthUnavailableError(
            f"the target {self.name!r} has no enumerated modes; check target.mode_probabilities is not None first"
        )

    def model(self, **kwargs: Any) -> Callable[..., Any]:
        """The target as a Pyro program; keyword arguments go to :class:`~pyro_boltzmann.BoltzmannModel`."""
        from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel

        return BoltzmannModel(self.energy, self.event_shape, **kwargs)

    @property
    def target_hash(self) -> str:
        """Sixteen hexadecimal digits that change whenever the name or any constant of the energy changes."""
        constants = {
            key: value.tolist() if isinstance(value, Tensor) else value for key, value in self.constants.items()
        }
        canonical = json.dumps({"name": self.name, "constants": constants}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def _on(self, key: str, like: Tensor) -> Tensor:
        """The tensor of that name among the derived or plain constants, in the dtype and on the device of ``like``."""
        where = (key, like.dtype, like.device)
        moved = self._moved.get(where)
        if moved is None:
            value = self._derived[key] if key in self._derived else self.constants[key]
            if not isinstance(value, Tensor):
                raise TypeError(f"constant {key!r} of {self.name!r} must be a tensor, got {type(value).__name__}")
            # An inference tensor kept here would break every later backward pass.
            with torch.inference_mode(False):
                moved = self._moved[where] = value.to(like.device, like.dtype, copy=True)
        return moved


def _check_log_z(name: str, log_z: float | None, origin: LogZOrigin, bounds: tuple[float, float] | None) -> None:
    """A value for what is known by value, bounds for an interval, nothing for the unknown."""
    given = "a value" if log_z is not None else "bounds" if bounds is not None else "nothing"
    expected = {"interval": "bounds", "unknown": "nothing"}.get(origin, "a value")
    if given != expected or (log_z is not None and bounds is not None):
        raise TruthUnavailableError(
            f"log_z_origin={origin!r} of {name!r} needs {expected}, got log_z={log_z} and log_z_bounds={bounds}; pass "
            "log_z with 'exact', 'certified' or 'measured', log_z_bounds=(low, high) with 'interval', neither with "
            "'unknown'"
        )
    if bounds is not None and not bounds[0] < bounds[1]:
        raise TruthUnavailableError(f"log_z_bounds of {name!r} must be (low, high) with low < high, got {bounds}")
