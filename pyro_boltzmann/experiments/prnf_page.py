"""What the experiments on flow maps share: what was asked and what came, and the writing of report and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyro_boltzmann.diagnostics import Metric, build_report, write_report
from pyro_boltzmann.experiments.results_page import write_results_page

__all__ = ["Asked", "FlowMapResults", "asked_table", "write_flow_map_results"]

Rows = Mapping[str, Metric]


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


@dataclass(frozen=True)
class FlowMapResults:
    """All that goes onto the page.

    :ivar tables: by heading, rows of metrics by model; names of models are unique.
    :ivar columns: of each table.
    :ivar headline: the model that the report puts first.
    :ivar pictures: captions by name of the file.
    :ivar failures: what makes the run unreliable.
    """

    experiment: str
    target: str
    title: str
    introduction: str
    seed: int
    num_samples: int
    headline: str
    tables: Mapping[str, Mapping[str, Rows]]
    columns: Mapping[str, Sequence[str]]
    asked: Sequence[Asked]
    pictures: Mapping[str, str]
    seconds: Mapping[str, float]
    failures: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)


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


def write_flow_map_results(results: FlowMapResults, out: Path) -> dict[str, Any]:
    """Write ``report.json`` and the page beside the pictures; returns the report."""
    models = {name: dict(rows) for table in results.tables.values() for name, rows in table.items()}
    short = [f"short of what was asked: {row.what} is {row.value:.4g}" for row in results.asked if not row.is_met]
    report = build_report(
        experiment=results.experiment,
        target=results.target,
        sampler=results.headline,
        seed=results.seed,
        num_samples=results.num_samples,
        metrics=models[results.headline],
        models=models,
        wall_seconds=results.seconds,
        threads=torch.get_num_threads(),
        failures=results.failures,
        notes=[*results.notes, *short],
    )
    write_report(report, out / "report.json")
    write_results_page(
        out / f"{results.experiment}.md",
        report,
        title=results.title,
        introduction=f"{results.introduction}\n\n{asked_table(results.asked)}",
        columns=results.columns,
        tables={heading: list(table) for heading, table in results.tables.items()},
        pictures=results.pictures,
    )
    return report
