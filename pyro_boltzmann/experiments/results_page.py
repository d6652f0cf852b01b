"""The docs page of an experiment: one table of all models, the headline's verdict, the pictures, and where it ran."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_boltzmann.diagnostics import format_report
from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.diagnostics.report import KHAT_MARGIN
from pyro_boltzmann.diagnostics.weights import khat_limit

__all__ = ["processor", "write_results_page"]


def write_results_page(
    path: Path,
    report: Mapping[str, Any],
    *,
    title: str,
    introduction: str,
    columns: Sequence[str] | Mapping[str, Sequence[str]],
    pictures: Mapping[str, str] | None = None,
    tables: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write a Markdown page. Where k-hat is above its limit, weighted estimates have no error, and the row says so;
    where k-hat is no column, rows have no verdict. Draws that were resampled on their way, or a Markov chain's, have no
    k-hat; their errors come from replicates, and the row says that.

    :param columns: metrics of the table, one row a model, or of each table by its heading; a table leaves out those
        that none of its models has.
    :param pictures: captions of PNG files beside the page, by name.
    :param tables: headings of several tables, with the models in each; one table of all models if not given.
    """
    lines = [f"# {title}", "", introduction, ""]
    limit, has_khat = khat_limit(report["num_samples"]), False
    for heading, models in (tables or {"": list(report["models"])}).items():
        lines += [f"## {heading}", ""] if heading else []
        chosen = columns[heading] if isinstance(columns, Mapping) else columns
        has_khat |= "khat" in chosen
        lines += [*_table(report, chosen, models, limit), ""]
    explained = f" The limit of k-hat is {limit:.2f} for N = {report['num_samples']:,}." if has_khat else ""
    lines += [f"Digits behind +- are standard errors.{explained}", ""]
    lines += [
        "## The headline model",
        "",
        "```text",
        format_report({**report, "models": {}, "reasons": _of_headline(report)}).rstrip(),
        "```",
        "",
    ]
    for picture, caption in (pictures or {}).items():
        lines += [f"![{caption}]({picture}.png)", "", f"*{caption}*", ""]
    lines += [
        f"Seed {report['seed']}, {report['threads']} threads on {processor()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items() if name != "python")
        + f"; regenerate with `pyro-boltzmann reproduce {report['experiment']} --seed {report['seed']} --out DIR`.",
        "",
    ]
    text = "\n".join(lines)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomically(path, write)


def _table(report: Mapping[str, Any], columns: Sequence[str], models: Sequence[str], limit: float) -> list[str]:
    columns = [c for c in columns if any(c in report["models"][name] for name in models)]
    verdicts = "khat" in columns
    heads = ["model", *(f"`{c}`" for c in columns), *(["verdict"] if verdicts else [])]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in models:
        metrics = report["models"][name]
        shown = f"**{name}**" if name == report["sampler"] else name
        row = metrics.get("khat") or {"value": None}
        # Without a k-hat, errors from replicates stand in the report where they mean something.
        replicated = row["value"] is None and (metrics.get("log_z") or {}).get("std_error") is not None
        reliable = replicated or (row["value"] is not None and row["value"] <= limit)
        cells = [_cell(metrics.get(c), has_error=c in _WEIGHTED, reliable=reliable) for c in columns]
        unweighted = replicated or "khat" not in metrics
        verdict = ["by replicates" if unweighted else _verdict(row["value"], limit)] if verdicts else []
        lines.append("| " + " | ".join([shown, *cells, *verdict]) + " |")
    return lines


def _of_headline(report: Mapping[str, Any]) -> list[str]:
    return [reason for reason in report["reasons"] if not reason.startswith("models.")]


def _verdict(khat: float | None, limit: float) -> str:
    if khat is None or khat > limit:
        return "unreliable"
    return "reliable" if khat <= limit - KHAT_MARGIN else "close to the limit"


_WEIGHTED = ("log_z", "log_z_error", "delta_f")


def _cell(row: Mapping[str, Any] | None, *, has_error: bool, reliable: bool) -> str:
    if row is None or row["value"] is None:
        return "n/a"
    value, error = row["value"], row["std_error"]
    if has_error and not reliable:
        return f"{value:.4g} +- n/a (k-hat)"
    digits = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.2e}"
    if error is None:
        return digits
    # Four decimals, unless the error would read as zero.
    decimals = 4 if error == 0.0 or error >= 5e-5 else 1 - math.floor(math.log10(error))
    return f"{value:.{decimals}f} +- {error:.{decimals}f}"


def processor() -> str:
    """The processor's own name where the system tells it, and the number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name} ({os.cpu_count()} cores)"
