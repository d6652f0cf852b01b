"""Errors and warnings raised by pyro_boltzmann. Each message says what was expected, what came, and how to mend it."""

__all__ = [
    "CheckpointError",
    "EnergyError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteEnergyError",
    "OutOfTimeError",
    "OutputError",
    "OutsideDomainWarning",
    "PyroBoltzmannError",
    "ReportError",
    "ShapeError",
    "SolverError",
]


class PyroBoltzmannError(Exception):
    """Base class of every error that this package raises on purpose."""


class ShapeError(PyroBoltzmannError, ValueError):
    """A tensor has a shape that the receiving function cannot use."""


class EnergyError(PyroBoltzmannError, ValueError):
    """An energy function breaks its contract (wrong shape of the result, not a tensor, no gradient)."""


class NonFiniteEnergyError(EnergyError):
    """The target energy is NaN or -inf at a final state.

    :ivar count: how many draws were affected.
    :ivar saved_to: where the draws were saved before raising, or ``None``.
    :ivar samples: the :class:`~pyro_boltzmann.WeightedSamples` drawn so far, or ``None``.
    """

    def __init__(self, message: str, *, count: int, samples: object = None, saved_to: str | None = None) -> None:
        super().__init__(message)
        self.count = count
        self.samples = samples
        self.saved_to = saved_to


class ModelError(PyroBoltzmannError, ValueError):
    """A Pyro program cannot be turned into an energy (discrete latent, subsampled plate, ...)."""


class CheckpointError(PyroBoltzmannError, RuntimeError):
    """A checkpoint is truncated, foreign, or belongs to another run."""


class MissingExtraError(PyroBoltzmannError, ImportError):
    """Something needs an optional package that is not installed; the message names the extra."""


class OutOfTimeError(PyroBoltzmannError, TimeoutError):
    """The time that was given is over before there is anything to show for it."""


class OutputError(PyroBoltzmannError, OSError):
    """A result cannot be written where it was asked to go."""


class ReportError(PyroBoltzmannError, ValueError):
    """A report cannot be made or read from what was given."""


class SolverError(PyroBoltzmannError, RuntimeError):
    """A differential equation could not be integrated to the accuracy asked for."""


class OutsideDomainWarning(UserWarning):
    """A map of an equation was asked about initial states, times or parameters that it was not trained on."""
