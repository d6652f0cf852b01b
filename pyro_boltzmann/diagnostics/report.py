"""``report.json``: the record of a run, with the rules by which it refuses to lie."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.diagnostics.weights import khat_limit
from pyro_boltzmann.exceptions import ReportError

__all__ = ["Metric", "Truth", "build_report", "check_bounds", "installed_versions", "read_report", "write_report"]

Quality = Literal["exact", "certified", "measured", "bound"]

FEWEST_DRAWS = 25
"""Below this the tails of Student's t are too heavy for 4.5 standard errors to mean one false alarm in 1e5."""

KHAT_MARGIN = 0.1
"""Closer to its limit than this, k-hat is remarked upon: it is an estimate itself, good to about that much."""

_NEEDS_NO_WEIGHTS = frozenset({"elbo", "eubo", "nll", "nll_controlled", "nll_excess", "round_trip"})
_KEYS = ("experiment", "target", "sampler", "seed", "num_samples", "metrics", "models", "verdict", "reasons")


@dataclass(frozen=True)
class Truth:
    """A known value, its standard error, and how it is known; only ``exact`` and ``certified`` can refuse a report."""

    value: float
    std_error: float = 0.0
    quality: Quality = "exact"


@dataclass(frozen=True)
class Metric:
    """One row of a report.

    :ivar std_error: standard error of ``value``.
    :ivar floor: the same metric between two exact samples of the same size.
    :ivar truth: the exact value.
    :ivar num_samples: draws behind the value, where they are fewer than the report's.
    :ivar reason: why ``value`` is ``None``.
    """

    value: float | None
    std_error: float | None = None
    floor: float | None = None
    truth: float | Truth | None = None
    reason: str | None = None
    num_samples: int | None = None


def build_report(
    *,
    experiment: str,
    target: str,
    sampler: str,
    seed: int,
    num_samples: int,
    metrics: Mapping[str, Metric],
    models: Mapping[str, Mapping[str, Metric]] | None = None,
    energy_evaluations: Mapping[str, Any] | None = None,
    wall_seconds: Mapping[str, float] | None = None,
    cpu_seconds: Mapping[str, float] | None = None,
    threads: int | None = None,
    target_hash: str | None = None,
    failures: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the dictionary of ``report.json``; every field is a number, or null with a reason in ``reasons``.

    The verdict is ``"unreliable"`` if k-hat of the headline model is above :func:`~.weights.khat_limit` or unknown
    beside a ``log_z``, or if any of ``failures`` is given. Above the limit, standard errors of weighted
    estimates are null and print as ``n/a (k-hat)``.

    :param metrics: of the headline model, which was fixed before the run.
    :param models: the same metrics of every model compared.
    :param failures: further reasons that make the run unreliable.
    :param notes: further remarks for ``reasons``.
    :raises ReportError: if an ELBO lies above, or an EUBO below, an exact or certified log Z (:func:`check_bounds`).

    >>> report = build_report(experiment="demo", target="normal", sampler="exact", seed=0, num_samples=1000,
    ...                       metrics={"log_z": Metric(0.0, 0.01, truth=0.0), "khat": Metric(0.2), "ess": Metric(0.9)})
    >>> report["verdict"], report["metrics"]["log_z"]
    ('reliable', {'value': 0.0, 'std_error': 0.01, 'floor': None, 'truth': 0.0})
    """
    every = {"": metrics, **{f"models.{name}.": rows for name, rows in (models or {}).items()}}
    failed, remarks, absent = list(failures), list(notes), _Absent()
    tables = {}
    for prefix, rows in every.items():
        remarks += check_bounds(rows, where=prefix, num_samples=num_samples)
        trouble = _weight_trouble(rows, num_samples)
        (remarks if prefix else failed).extend(f"{prefix}{line}" for line in trouble)
        remarks += [f"{prefix}{line}" for line in _near_trouble(rows, num_samples) if not trouble]
        tables[prefix] = {
            name: absent.row(prefix, name, row, hide_error=bool(trouble) and name not in _NEEDS_NO_WEIGHTS)
            for name, row in rows.items()
        }
    report: dict[str, Any] = {
        "experiment": experiment,
        "target": target,
        "sampler": sampler,
        "seed": seed,
        "num_samples": num_samples,
        "metrics": tables.pop(""),
        "models": {prefix.removeprefix("models.")[:-1]: table for prefix, table in tables.items()},
        "energy_evaluations": absent.phases("energy_evaluations", energy_evaluations),
        "wall_seconds": absent.phases("wall_seconds", wall_seconds),
        "cpu_seconds": absent.phases("cpu_seconds", cpu_seconds),
        "threads": absent.number("threads", threads),
        "target_hash": target_hash,
        "verdict": "unreliable" if failed else "reliable",
        "reasons": [],
        "versions": installed_versions(),
    }
    if target_hash is None:
        absent.lines.append("target_hash: the target has no constants to hash, or none was given")
    report["reasons"] = [*failed, *remarks, *absent.reasons()]
    return report


def check_bounds(metrics: Mapping[str, Metric], where: str = "", num_samples: int | None = None) -> list[str]:
    r"""Check :math:`\mathrm{ELBO} \le \log Z \le \mathrm{EUBO}` within :math:`4.5\sqrt{s^2 + s_Z^2} + 10^{-4}`.

    :param num_samples: draws behind the bounds, if known; a standard error from fewer than 25 proves nothing.
    :returns: remarks that question a truth which is itself only measured or a bound (each is also a warning).
    :raises ReportError: if the truth, that of ``log_z``, is exact or certified.
    """
    truth = metrics["log_z"].truth if "log_z" in metrics else None
    if truth is None or (num_samples is not None and num_samples < FEWEST_DRAWS):
        return []
    truth = truth if isinstance(truth, Truth) else Truth(float(truth))
    remarks = []
    for name, sign, word in (("elbo", 1.0, "above"), ("eubo", -1.0, "below")):
        row = metrics.get(name)
        if row is None or row.value is None or math.isnan(row.value):
            continue
        error = row.std_error if row.std_error is not None and math.isfinite(row.std_error) else 0.0
        slack = 4.5 * math.hypot(error, truth.std_error) + 1e-4
        if sign * (row.value - truth.value) <= slack:
            continue
        text = (
            f"{where}{name} = {row.value:.6g} lies {word} the {truth.quality} log Z = {truth.value:.6g} by more than "
            f"4.5 standard errors ({slack:.2g})"
        )
        if truth.quality in ("exact", "certified"):
            raise ReportError(
                f"{text}, which no correct weight can do; check the log-determinants and noise densities of the "
                "blocks, and that the energy sampled is the energy scored"
            )
        remark = f"{text}; the truth itself may be wrong"
        warnings.warn(remark, UserWarning, stacklevel=3)
        remarks.append(remark)
    return remarks


def write_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the report as JSON, atomically and without the tokens NaN and Infinity, which are not JSON.

    :raises OutputError: if it cannot be written.
    :raises ReportError: if it holds a number that JSON cannot express.
    """
    try:
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ReportError(f"the report is not valid JSON ({error}); make it with build_report") from error

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomically(path, write)


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a report.

    :raises ReportError: if the file is missing, truncated, not JSON, or not a report.
    """

    def refuse(token: str) -> float:
        raise ValueError(f"{token} is not JSON")

    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read the report {path}: {error}") from error
    missing = [key for key in _KEYS if not isinstance(report, dict) or key not in report]
    if missing:
        raise ReportError(f"{path} is not a report of pyro_boltzmann: it lacks {', '.join(missing)}")
    return dict(report)


def installed_versions() -> dict[str, str]:
    """Versions of what a result depends on; packages that are not installed are left out."""
    versions = {}
    for name in ("pyro-boltzmann", "pyro-ppl", "torch", "numpy", "arviz"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _weight_trouble(rows: Mapping[str, Metric], num_samples: int) -> list[str]:
    """Why the weighted estimates of one model cannot be believed; empty if they can."""
    if "khat" not in rows:
        return ["khat: missing beside log_z, so its error cannot be believed"] if "log_z" in rows else []
    row = rows["khat"]
    if row.value is None and row.reason is not None:
        # A stated reason (for example, resampling along the path) stands for an error from replicates.
        return []
    limit = khat_limit(num_samples)
    if row.value is None or not math.isfinite(row.value):
        return ["khat: no Pareto tail can be fitted to these weights, so their errors mean nothing"]
    if row.value > limit:
        return [f"khat: {row.value:.2f} is above its limit {limit:.2f} for N = {num_samples}: weights too heavy-tailed"]
    return []


def _near_trouble(rows: Mapping[str, Metric], num_samples: int) -> list[str]:
    """What deserves a second look although nothing is refused."""
    row, limit = rows.get("khat"), khat_limit(num_samples)
    if row is None or row.value is None or row.value <= limit - KHAT_MARGIN:
        return []
    return [f"khat: {row.value:.2f} is close to its limit {limit:.2f}: errors may be several times too small"]


class _Absent:
    """Turns values into JSON numbers and remembers why some are null."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.sizes: dict[str, dict[str, int]] = {}
        self.unnamed: dict[str, set[str]] = {"std_error": set(), "floor": set(), "truth": set()}

    def number(self, where: str, value: float | int | None, reason: str | None = None) -> float | int | None:
        if value is None:
            self.lines.append(f"{where}: {reason or 'not measured'}")
            return None
        if not math.isfinite(value):
            self.lines.append(f"{where}: {reason or f'not finite ({float(value)})'}")
            return None
        return int(value) if isinstance(value, int) else float(value)

    def phases(self, where: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
        if value is None:
            self.lines.append(f"{where}: not measured")
        return {phase: self.numbers(f"{where}.{phase}", spent) for phase, spent in (value or {}).items()}

    def numbers(self, where: str, value: Any) -> Any:
        if hasattr(value, "to_dict"):
            value = value.to_dict()
        if isinstance(value, Mapping):
            return {str(key): self.numbers(f"{where}.{key}", item) for key, item in value.items()}
        return self.number(where, value)

    def row(self, prefix: str, name: str, metric: Metric, *, hide_error: bool) -> dict[str, float | int | None]:
        truth = metric.truth.value if isinstance(metric.truth, Truth) else metric.truth
        row = {"value": self.number(f"{prefix}{name}", metric.value, metric.reason)}
        if metric.num_samples is not None and metric.value is not None:
            self.sizes.setdefault(name, {})[f"{prefix}{name}"] = metric.num_samples
        for field, value in (("std_error", metric.std_error), ("floor", metric.floor), ("truth", truth)):
            if field == "std_error" and value is not None and hide_error:
                self.lines.append(f"{prefix}{name}.std_error: n/a (k-hat)")
                row[field] = None
            elif value is None:
                # The headline comes first; a model's row that shares its gap says nothing new.
                if field == "floor" and metric.value is None and metric.reason is not None:
                    self.lines.append(f"{prefix}{name}.floor: not measured")
                elif name not in self.unnamed[field]:
                    self.unnamed[field].add(f"{prefix}{name}")
                row[field] = None
            else:
                row[field] = self.number(f"{prefix}{name}.{field}", value)
        return row

    def reasons(self) -> list[str]:
        why = {"std_error": "none defined", "floor": "not a distance between samples", "truth": "not known"}
        grouped = [
            f"null {field} ({why[field]}): {', '.join(sorted(names))}" for field, names in self.unnamed.items() if names
        ]
        sizes = [f"draws behind a metric, where fewer: {self.sizes_in_brief()}"] if self.sizes else []
        return [*sizes, *self.lines, *grouped]

    def sizes_in_brief(self) -> str:
        """Metrics that rest on the same number in every row are named once, the others row by row."""
        brief: list[str] = []
        for name, of_rows in self.sizes.items():
            numbers = set(of_rows.values())
            brief += [f"{name} {numbers.pop()}"] if len(numbers) == 1 else [f"{row} {n}" for row, n in of_rows.items()]
        return ", ".join(brief)
