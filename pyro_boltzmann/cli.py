"""The command line: ``pyro-boltzmann targets | sample | reproduce | report``."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from pyro_boltzmann.diagnostics import format_report
from pyro_boltzmann.energies.catalogue import Target, catalogue
from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments import EXPERIMENTS, load_experiment, takes_method

__all__ = ["main"]

PROGRAM = "pyro-boltzmann"
# 128 + SIGINT and 128 + SIGPIPE, as a shell reports them.
INTERRUPTED, CLOSED_PIPE, FAILED = 130, 141, 2

EXAMPLES = """\
examples:
  pyro-boltzmann targets
  pyro-boltzmann sample double_well --sampler snf --num-samples 100000 --seed 0 --out double_well_run
  pyro-boltzmann report double_well_run/samples.nc
  pyro-boltzmann reproduce --list
"""
SAMPLE_EXAMPLES = """\
TARGET is a name listed by 'pyro-boltzmann targets', or module:function of your own, looked up in the current directory
first: an energy (*batch, dim) -> (*batch) in torch with an attribute dim (or --dim), a BoltzmannModel, or a Pyro
program without arguments.

The same command continues a run that was stopped; a finished training is not repeated.

examples:
  pyro-boltzmann sample double_well --sampler snf --num-samples 100000 --seed 0 --out double_well_run
  pyro-boltzmann sample eight_schools --sampler flow --num-samples 20000 --seed 1 --out schools --minutes 2
  pyro-boltzmann sample gmm40 --sampler diffusion --num-samples 20000 --seed 0 --out gmm40
  pyro-boltzmann sample dw4 --sampler smc --num-samples 16000 --seed 0 --out dw4_smc
  pyro-boltzmann sample my_energies:ring --dim 2 --num-samples 50000 --seed 0 --out ring

files in DIR: samples.nc (ArviZ), report.json, PNG pictures, checkpoint.safetensors, run.json (whose checkpoint it is)
"""
REPRODUCE_EXAMPLES = """\
examples:
  pyro-boltzmann reproduce --list
  pyro-boltzmann reproduce snf-double-well --seed 0 --out snf_double_well --minutes 10
  pyro-boltzmann reproduce bendem-gmm40 --method all --seed 0 --out bendem_gmm40
"""
REPORT_EXAMPLES = """\
example:
  pyro-boltzmann report double_well_run/samples.nc
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, 2 for an error (one line on stderr), 130 for an interruption.

    >>> main(["reproduce", "--list"])
    snf-double-well
    ...
    0
    """
    arguments = argparse.Namespace(debug=False, out=None)
    try:
        try:
            arguments = _parser().parse_args(argv)
            if arguments.threads is not None:
                torch.set_num_threads(arguments.threads)
            with _short_warnings():
                arguments.command(arguments)
        finally:
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # The reader has left, which is its right; nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        out = getattr(arguments, "out", None)
        where = f"; the same command resumes from what is in {out}" if out else ""
        print(f"\n{PROGRAM}: interrupted{where}", file=sys.stderr)
        return INTERRUPTED
    except PyroBoltzmannError as error:
        if arguments.debug:
            raise
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except Exception as error:  # whatever a user's own energy or program raises
        if arguments.debug:
            raise
        what = " ".join(str(error).split())
        print(f"{PROGRAM}: error: {type(error).__name__}: {what}; --debug shows where", file=sys.stderr)
        return FAILED


def _targets(arguments: argparse.Namespace) -> None:
    rows = [_describe(catalogue[name]) for name in catalogue]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    head = ("name", "dim", "log Z", "known", "mean energy", "exact sampler", "hash")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for number, line in enumerate(cells):
        right = {1, 2, 4}
        print(
            "  ".join(
                c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
        )
        if number == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))


def _describe(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "dim": target.dim,
        "log_z": target.log_z,
        "log_z_error": target.log_z_error if target.log_z is not None else None,
        "log_z_origin": target.log_z_origin,
        "log_z_bounds": None if target.log_z_bounds is None else [_finite(end) for end in target.log_z_bounds],
        "log_z_note": target.log_z_note,
        "mean_energy": target.mean_energy,
        "mean_energy_error": target.mean_energy_error if target.mean_energy is not None else None,
        "virial": target.virial_dof,
        "delta_f": target.delta_f,
        "mode_probabilities": None if target.mode_probabilities is None else target.mode_probabilities.tolist(),
        "exact_sampler": target.has_exact_sampler,
        "target_hash": target.target_hash,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        str(row["dim"]),
        _with_error(row["log_z"], row["log_z_error"])
        if row["log_z_bounds"] is None
        else _interval(*row["log_z_bounds"]),
        row["log_z_origin"],
        _with_error(row["mean_energy"], row["mean_energy_error"]),
        "yes" if row["exact_sampler"] else "no",
        row["target_hash"],
    )


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.3f} +- {error:.3f}" if error else f"{value:.5f}"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"<= {high:g}" if low is None else f">= {low:g}"
    return f"{low:g} to {high:g}"


def _finite(end: float) -> float | None:
    """JSON has no infinity."""
    return end if math.isfinite(end) else None


def _sample(arguments: argparse.Namespace) -> None:
    from pyro_boltzmann.experiments import sampling

    report = sampling.run(
        arguments.target,
        sampler=arguments.sampler,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        out=arguments.out,
        minutes=arguments.minutes,
        dim=arguments.dim,
        freeze=arguments.freeze,
        progress=not arguments.no_progress,
        announce=lambda line: print(line, file=sys.stderr, flush=True),
    )
    _show(report, arguments.out)


def _reproduce(arguments: argparse.Namespace) -> None:
    if arguments.list:
        print("\n".join(EXPERIMENTS))
        return
    if arguments.experiment is None or arguments.out is None:
        missing = "EXPERIMENT" if arguments.experiment is None else "--out DIR"
        arguments.parser.error(f"{missing} is required (or --list, for the names of the experiments)")
    from pyro_boltzmann.experiments.run_folder import check_writable

    experiment = load_experiment(arguments.experiment)
    options: dict[str, Any] = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "num_samples": arguments.num_samples,
    }
    if arguments.method is not None:
        if not takes_method(experiment):
            able = ", ".join(name for name in EXPERIMENTS if takes_method(load_experiment(name)))
            arguments.parser.error(
                f"{arguments.experiment} has no methods to choose from; leave --method out (experiments with methods: "
                f"{able})"
            )
        options["method"] = arguments.method
    out = check_writable(arguments.out)
    report = experiment.run(out=out, **options)
    _show(report, out)


def _report(arguments: argparse.Namespace) -> None:
    from pyro_boltzmann.experiments.rereading import reread

    report, _ = reread(arguments.draws)
    _show(report, arguments.draws if arguments.draws.is_dir() else arguments.draws.parent)


def _show(report: dict[str, Any], folder: Path) -> None:
    print(format_report(report))
    # Hidden names are half-written files of other runs.
    files = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    print(f"\nfiles in {folder}: {', '.join(files)}")


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: error: {message}; see '{self.prog} --help'\n")


def _parser() -> _Parser:
    from pyro_boltzmann import __version__

    common = _Parser(add_help=False)
    common.add_argument("--threads", type=_positive_int, metavar="T", help="CPU threads (default: torch's choice)")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=PROGRAM, description="Sample unnormalised densities.", epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, summary: str, epilog: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, parents=[common], help=summary, description=summary, epilog=epilog, formatter_class=raw
        )
        made.set_defaults(command=run, parser=made)
        return made

    targets = command("targets", _targets, "list the catalogue of targets with their known truths")
    targets.add_argument("--json", action="store_true", help="print JSON instead of a table")

    sample = command("sample", _sample, "train a sampler on a target and draw weighted samples", SAMPLE_EXAMPLES)
    sample.add_argument("target", metavar="TARGET", help="a catalogue name, or module:function")
    sample.add_argument(
        "--sampler",
        default="snf",
        metavar="NAME",
        help="snf (stochastic flow, default), flow, diffusion (also: bendem), smc (sequential Monte Carlo) or pt "
        "(parallel tempering)",
    )
    sample.add_argument(
        "--num-samples", type=_positive_int, required=True, metavar="N", help="number of weighted draws"
    )
    sample.add_argument("--dim", type=_positive_int, metavar="D", help="dimension, for an energy without attribute dim")
    sample.add_argument("--freeze", action="store_true", help="smc: run again on the ladder of a pilot, unbiased")
    sample.add_argument("--no-progress", action="store_true", help="no progress bars (they go to stderr)")

    reproduce = command("reproduce", _reproduce, "run a published experiment again", REPRODUCE_EXAMPLES)
    reproduce.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="a name that --list prints")
    reproduce.add_argument("--list", action="store_true", help="print the names of the experiments, one a line")
    reproduce.add_argument(
        "--method", metavar="NAME", help="bendem-*: idem, endem, bendem, best (default), or all, for a comparison"
    )
    reproduce.add_argument("--num-samples", type=_positive_int, metavar="N", help="draws (default: as published)")

    for run in (sample, reproduce):
        run.add_argument(
            "--seed",
            type=_seed,
            required=run is sample,
            default=0,
            metavar="S",
            help="seed of the run (reproduce: 0 unless given)",
        )
        run.add_argument("--out", type=Path, required=run is sample, metavar="DIR", help="folder for the results")
        run.add_argument(
            "--minutes",
            type=_positive_float,
            metavar="M",
            help="limit of the training time; some seconds of set-up come on top",
        )

    report = command("report", _report, "read a run again: table, verdict, pictures", REPORT_EXAMPLES)
    report.add_argument("draws", type=Path, metavar="DIR/samples.nc", help="the draws of a run, or its folder")
    return parser


def _positive_int(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return number


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without the source line that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
