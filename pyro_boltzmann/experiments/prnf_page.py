"""What the experiments on flow maps share: the writing of report and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyro_boltzmann.diagnostics import Metric, build_report, write_report
from pyro_boltzmann.experiments.asked import Asked, asked_table, short_of
from pyro_boltzmann.experiments.results_page import write_results_page

__all__ = ["FlowMapResults", "write_flow_map_results"]

Rows = Mapping[str, Metric]


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


def write_flow_map_results(results: FlowMapResults, out: Path) -> dict[str, Any]:
    """Write ``report.json`` and the page beside the pictures; returns the report."""
    models = {name: dict(rows) for table in results.tables.values() for name, rows in table.items()}
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
        notes=[*results.notes, *short_of(results.asked)],
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
