"""What was asked of an experiment and what came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Asked", "asked_table", "short_of"]


@dataclass(frozen=True)
class Asked:
    """A figure that was asked for.

    :ivar what: in words.
    :ivar value: what came.
    :ivar bound: the largest value asked for, or with ``at_least`` the smallest.

    >>> Asked("KL", 0.002, 0.001).is_met, Asked("speed", 12.0, 10.0, at_least=True).is_met
    (False, True)
    """

    what: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it came; NaN does not."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def asked_table(asked: Sequence[Asked]) -> str:
    """A Markdown table of what was asked and what came.

    >>> print(asked_table([Asked("KL, d = 1", 0.0002, 0.001)]))
    | asked | bound | came | |
    |---|---|---|---|
    | KL, d = 1 | <= 0.001 | 0.0002 | met |
    """
    lines = ["| asked | bound | came | |", "|---|---|---|---|"]
    for row in asked:
        sign, verdict = (">=" if row.at_least else "<="), ("met" if row.is_met else "short")
        lines.append(f"| {row.what} | {sign} {row.bound:.4g} | {row.value:.4g} | {verdict} |")
    return "\n".join(lines)


def short_of(asked: Sequence[Asked]) -> list[str]:
    """What falls short, as notes of a report.

    >>> short_of([Asked("KL", 0.002, 0.001), Asked("KL of the marginal", 0.0002, 0.001)])
    ['short of what was asked: KL is 0.002']
    """
    return [f"short of what was asked: {row.what} is {row.value:.4g}" for row in asked if not row.is_met]
