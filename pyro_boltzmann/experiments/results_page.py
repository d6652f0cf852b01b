"""The docs page of an experiment: one table of all models, the headline's verdict, the pictures, and where it ran."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_boltzmann.diagnostics import format_report
from pyro_boltzmann.diagnostics.atomic import write_atomically

__all__ = ["write_results_page"]


def write_results_page(
    path: Path,
    report: Mapping[str, Any],
    *,
    title: str,
    introduction: str,
    columns: Sequence[str],
    pictures: Sequence[str] = (),
) -> Path:
    """Write a Markdown page; pictures are PNG files beside it.

    :param columns: metrics of the table, one row a model.
    """
    lines = [f"# {title}", "", introduction, ""]
    lines += ["| model | " + " | ".join(f"`{c}`" for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, metrics in report["models"].items():
        shown = f"**{name}**" if name == report["sampler"] else name
        lines.append(f"| {shown} | " + " | ".join(_cell(metrics.get(c)) for c in columns) + " |")
    lines += ["", "Digits behind +- are standard errors; floors are those of exact samples of the same size.", ""]
    lines += [
        "## The headline model",
        "",
        "```text",
        format_report({**report, "models": {}, "reasons": _of_headline(report)}).rstrip(),
        "```",
        "",
    ]
    for picture in pictures:
        lines += [f"![{picture}]({picture}.png)", ""]
    lines += [
        f"Seed {report['seed']}, {report['threads']} threads, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items() if name != "python")
        + f"; regenerate with `pyro-boltzmann reproduce {report['experiment']} --seed {report['seed']} --out DIR`.",
        "",
    ]
    text = "\n".join(lines)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomically(path, write)


def _of_headline(report: Mapping[str, Any]) -> list[str]:
    return [reason for reason in report["reasons"] if not reason.startswith("models.")]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "n/a"
    value, error = row["value"], row["std_error"]
    digits = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.2e}"
    return digits if error is None else f"{value:.4f} +- {error:.4f}"
