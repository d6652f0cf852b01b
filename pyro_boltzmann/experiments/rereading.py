"""Read a finished run again: its report from its files, and its pictures anew."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples, build_report, from_netcdf, read_report, weight_metrics
from pyro_boltzmann.energies.catalogue import Target, catalogue
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.exceptions import ReportError
from pyro_boltzmann.experiments.run_folder import DRAWS, REPORT
from pyro_boltzmann.experiments.run_metrics import draw_exact, failures_of, run_metrics
from pyro_boltzmann.experiments.run_plots import SAMPLES_PICTURE, write_plots

__all__ = ["reread"]

TOLERANCE = 1e-6


def reread(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Path]]:
    """The report of a run and its pictures, drawn anew beside it.

    The weights are scored again and must agree with ``report.json``, where that lies beside the draws. Without it the
    report holds what the draws and, for a target of the catalogue, its truths can tell.

    :param path: a ``samples.nc``, or the folder that holds it.
    :return: the report, and the pictures written.
    :raises ReportError: if the draws cannot be read, or the report beside them was made of other draws.
    :raises NonFiniteEnergyError: if the draws have no usable weights.
    """
    file = Path(path)
    if file.is_dir():
        file = file / DRAWS
    if not file.exists():
        raise ReportError(f"there is no file {file}; give the samples.nc of a run, or its folder")
    ws = from_netcdf(file)
    described = ws.info.get("run") or {}
    stored = read_report(file.parent / REPORT) if (file.parent / REPORT).exists() else None
    facts = {**described, **(stored or {})}
    target = _target(facts)
    z = _vectors(ws, target)
    exact = None if target is None else draw_exact(target, ws.num_samples, int(facts.get("seed", 0)))
    if stored is None:
        rows = run_metrics(ws, z, None if target is None else target.energy, target=target, exact=exact)
        stored = build_report(
            experiment=described.get("experiment", "report"),
            target=described.get("target", "unknown"),
            sampler=described.get("sampler", "unknown"),
            seed=int(described.get("seed", 0)),
            num_samples=ws.num_samples,
            metrics=rows,
            energy_evaluations=ws.evaluations or None,
            target_hash=described.get("target_hash"),
            failures=failures_of(rows),
            notes=[f"{REPORT} is missing: training and truths that it alone knew are left out"],
        )
    else:
        _compare(ws, stored, file.parent / REPORT)
    pictures = write_plots(
        ws,
        z,
        file.parent,
        energy=None if target is None else target.energy,
        target=target,
        exact_energies=None if exact is None else exact.energy,
        # The contours of a user's own energy cannot be drawn again without running the user's code.
        skip=(SAMPLES_PICTURE,) if target is None and (file.parent / SAMPLES_PICTURE).exists() else (),
    )
    return stored, pictures


def _target(described: dict[str, Any]) -> Target | None:
    name = str(described.get("target"))
    if name not in catalogue or catalogue[name].target_hash != described.get("target_hash"):
        return None
    return catalogue[name]


def _vectors(ws: WeightedSamples, target: Target | None) -> Tensor:
    if target is not None and isinstance(target.energy, ModelEnergy):
        return target.energy.unconstrain(ws.samples)
    return torch.cat([value.reshape(ws.num_samples, -1) for value in ws.samples.values()], -1)


def _compare(ws: WeightedSamples, stored: dict[str, Any], beside: Path) -> None:
    rows = weight_metrics(ws)
    for name in ("log_z", "ess", "elbo"):
        written, computed = (stored["metrics"].get(name) or {}).get("value"), rows[name].value
        same_size = stored["num_samples"] == ws.num_samples
        if same_size and (written is None or computed is None):
            continue
        if not same_size or not math.isclose(written or 0.0, computed or 0.0, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise ReportError(
                f"{beside} was made of other draws ({stored['num_samples']} draws, {name} {written}) than those "
                f"beside it ({ws.num_samples} draws, {name} {computed}); delete it, or repeat the run"
            )
