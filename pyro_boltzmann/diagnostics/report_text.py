"""A report as plain text, and the rows that follow from weighted samples alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics import weights as _weights
from pyro_boltzmann.diagnostics.report import Metric, Truth
from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples

__all__ = ["format_report", "weight_metrics"]

_HEAD = ("metric", "value", "error", "truth", "floor")


NO_TAIL = "draws that were resampled have no weights whose tail could tell; errors come from their roots or chains"
NO_BOUND = "the last weights of resampled draws bound nothing"


def weight_metrics(
    weighted_samples: WeightedSamples,
    *,
    reverse_log_weights: ArrayLike | None = None,
    log_z: float | Truth | None = None,
) -> dict[str, Metric]:
    """The rows ``log_z``, ``ess``, ``khat``, ``max_weight``, ``n_nonfinite``, ``elbo`` and, from paths run backwards
    from exact samples, ``eubo`` and ``forward_ess``.

    :param log_z: the known log Z; an exact or certified one also sharpens ``forward_ess``.
    """
    ws = weighted_samples
    known = log_z.value if isinstance(log_z, Truth) else log_z
    sharp = known if not isinstance(log_z, Truth) or log_z.quality in ("exact", "certified") else None
    rows = {
        "log_z": Metric(ws.log_normalizer, ws.log_normalizer_error, truth=log_z),
        "ess": Metric(ws.ess),
        "khat": Metric(ws.khat) if ws.roots is None else Metric(None, reason=NO_TAIL),
        "max_weight": Metric(ws.max_weight),
        "n_nonfinite": Metric(ws.num_nonfinite),
        "elbo": Metric(ws.elbo, ws.elbo_error, truth=known) if ws.roots is None else Metric(None, reason=NO_BOUND),
    }
    if reverse_log_weights is not None:
        rows["eubo"] = Metric(*_weights.eubo(reverse_log_weights), truth=known)
        rows["forward_ess"] = Metric(_weights.forward_ess(reverse_log_weights, sharp))
    return rows


def format_report(report: Mapping[str, Any]) -> str:
    """A plain-text table: value, error, truth and floor of each metric, then costs, verdict and reasons."""
    lines = [
        f"{report['experiment']}: {report['target']} by {report['sampler']}, "
        f"N = {report['num_samples']}, seed {report['seed']}",
        "",
        *_table(report["metrics"], report["reasons"], ""),
    ]
    for model, rows in report["models"].items():
        lines += ["", f"model {model}", *_table(rows, report["reasons"], f"models.{model}.")]
    lines += ["", *_costs(report), f"verdict: {report['verdict']}"]
    lines += [f"  - {reason}" for reason in report["reasons"] if not _bookkeeping(reason)]
    return "\n".join(lines)


def _table(rows: Mapping[str, Mapping[str, Any]], reasons: list[str], prefix: str) -> list[str]:
    cells = [_HEAD]
    for name, row in rows.items():
        hidden = f"{prefix}{name}.std_error: n/a (k-hat)" in reasons
        error = "n/a (k-hat)" if hidden else _error(row["std_error"])
        decimals = _decimals(row["std_error"])
        floor = "" if row["floor"] is None else f"[{_number(row['floor'])}]"
        value = "n/a" if row["value"] is None else _number(row["value"], decimals)
        cells.append((name, value, error, "" if row["truth"] is None else _number(row["truth"], decimals), floor))
    used = [i for i in range(len(_HEAD)) if i < 2 or any(line[i] for line in cells[1:])]
    widths = {i: max(len(line[i]) for line in cells) for i in used}
    text = [
        "  ".join(line[i].ljust(widths[i]) if i == 0 else line[i].rjust(widths[i]) for i in used).rstrip()
        for line in cells
    ]
    return [text[0], "-" * (sum(widths.values()) + 2 * (len(used) - 1)), *text[1:]]


def _decimals(error: float | None) -> int | None:
    """Two digits of the error decide how many decimals of the value mean anything."""
    return None if not error else max(0, min(8, 1 - int(f"{error:e}".split("e")[1])))


def _error(error: float | None) -> str:
    return "" if error is None else _number(error, _decimals(error))


def _number(value: float, decimals: int | None = None) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"


def _costs(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for phase, counts in (report.get("energy_evaluations") or {}).items():
        spent = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number is not None)
        lines.append(f"energy evaluations ({phase}): {spent}")
    for key, label in (("wall_seconds", "wall seconds"), ("cpu_seconds", "CPU seconds")):
        spent = ", ".join(f"{phase} {s:.1f}" for phase, s in (report.get(key) or {}).items() if s is not None)
        if spent:
            lines.append(f"{label}: {spent}" + (f" on {report['threads']} threads" if report.get("threads") else ""))
    return lines


def _bookkeeping(reason: str) -> bool:
    return reason.startswith("null ") or reason.endswith((": not measured", ".std_error: n/a (k-hat)"))
