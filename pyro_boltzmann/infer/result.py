"""What a training run did."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_boltzmann.energies.evaluation import EvaluationCount

__all__ = ["FitResult"]


@dataclass
class FitResult:
    """What a training run did.

    :ivar history: lists of equal length: ``step``, ``loss``, ``elbo``, ``ess`` (of the batch, a fraction),
        ``grad_norm``, ``evaluations`` (values + gradients so far), ``seconds``. NaN where a step has no such number.
    :ivar steps: updates made.
    :ivar evaluations: energy evaluations spent, all of them.
    :ivar seconds: wall time, summed over resumed runs; ``cpu_seconds`` likewise.
    :ivar stopped: why: ``"steps"``, ``"time"`` or ``"evaluations"``.
    :ivar skipped: updates skipped because a loss or gradient was not finite.
    :ivar nonfinite: end states that were left out of the loss because their energy was NaN or -inf.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    evaluations: EvaluationCount = field(default_factory=EvaluationCount)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stopped: str = "steps"
    skipped: int = 0
    nonfinite: int = 0

    @property
    def spent(self) -> int:
        """Energy evaluations, values plus gradients."""
        return self.evaluations.values + self.evaluations.gradients

    def record(self, **row: float) -> None:
        """Append a row to the history."""
        for name, value in row.items():
            self.history.setdefault(name, []).append(float(value))
