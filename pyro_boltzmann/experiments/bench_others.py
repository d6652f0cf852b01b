"""``make bench-others``: samplers of other libraries beside ours, on the catalogue's targets, over a range of budgets.

Every run is a line of JSON in ``OUT/records.jsonl``, written when it ends; the same command goes on where the last one
stopped, and writes the page and its pictures from all the lines there are. Seeds come one after the other, and in each
the small budgets of all samplers first, so that a run that is cut short compares what it holds fairly. A run whose
cost, extrapolated from the smaller budgets of its series, is above ``--limit`` is left out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments.others import METHODS, Record, bench_problem, measure
from pyro_boltzmann.experiments.others.page import write_page
from pyro_boltzmann.experiments.others.problem import TARGETS, gaussian_problem
from pyro_boltzmann.experiments.others.record import append_record, read_records

__all__ = ["main", "predicted_seconds"]

RECORDS = "records.jsonl"
CHECK = "gaussian"
"""The target on which a competitor's log Z is tried before it is reported."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing in the folder, then write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of records, page and pictures")
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET")
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. SEEDS-1 (3)")
    parser.add_argument("--minutes", type=float, default=22.0, help="start no run after so many minutes (22)")
    parser.add_argument(
        "--limit", type=float, default=20.0, help="CPU seconds that one run may be expected to take (20)"
    )
    parser.add_argument("--page-only", action="store_true", help="run nothing, write the page of what is there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder: Path = options.out
    records = read_records(folder / RECORDS)
    if not options.page_only:
        records = _collect(folder / RECORDS, records, options)
    print(write_page(folder, records))


def _collect(path: Path, records: list[Record], options: argparse.Namespace) -> list[Record]:
    start = time.monotonic()
    names = []
    for name in options.method:
        missing = METHODS[name].missing
        if missing is None:
            names.append(name)
        else:
            print(f'{METHODS[name].label}: skipped, {missing} not installed (pip install "pyro-boltzmann[bench]")')
    jobs = list(_jobs(names, options.target, options.seeds))
    for number, (name, target, size, seed) in enumerate(jobs, 1):
        if any(record.key == (name, target, size, seed) for record in records):
            continue
        if time.monotonic() - start > 60 * options.minutes:
            print(f"stopped after {options.minutes:g} minutes with {len(jobs) - number + 1} runs to go; run it again")
            break
        expected = predicted_seconds(records, name, target, size)
        where = f"[{number}/{len(jobs)}] {METHODS[name].label}, {target}, {size} {METHODS[name].unit}, seed {seed}"
        if expected is None or expected > options.limit:
            why = "its smaller budget failed" if expected is None else f"about {expected:.0f} CPU seconds expected"
            print(f"{where}: left out, {why}", flush=True)
            continue
        record = _one(name, target, size, seed)
        records = append_record(path, records, record)
        print(f"{where}: {_told(record)}", flush=True)
    return records


def _jobs(names: Sequence[str], targets: Sequence[str], seeds: int) -> Iterator[tuple[str, str, int, int]]:
    """Checks first, then seed by seed, and for each seed budget by budget."""
    for name in names:
        if METHODS[name].has_log_z and not METHODS[name].is_ours:
            yield name, CHECK, METHODS[name].sizes[1], 0
    levels = range(max((len(METHODS[name].sizes) for name in names), default=0))
    for seed, level, target, name in itertools.product(range(seeds), levels, targets, names):
        if level < len(METHODS[name].sizes):
            yield name, target, METHODS[name].sizes[level], seed


def predicted_seconds(records: Sequence[Record], method: str, target: str, size: int) -> float | None:
    """CPU seconds that a run is likely to take: the power law through the two largest smaller sizes, or one in
    proportion to the size; zero where nothing is known, ``None`` where the largest smaller size failed.

    >>> done = [Record("a", "t", 10, 0, cpu_seconds=1.0), Record("a", "t", 100, 0, cpu_seconds=5.0)]
    >>> predicted_seconds(done, "a", "t", 1000)
    25.0
    """
    series = [r for r in records if (r.method, r.target) == (method, target) and r.size < size]
    sizes = sorted({r.size for r in series})
    if not sizes:
        return 0.0
    times = [[r.cpu_seconds for r in series if r.size == one and r.error is None] for one in sizes[-2:]]
    if not times[-1]:
        return None
    last = sum(times[-1]) / len(times[-1])
    power = 1.0
    if len(times) == 2 and times[0]:
        power = math.log(last / (sum(times[0]) / len(times[0]))) / math.log(sizes[-1] / sizes[-2])
    growth = math.pow(size / sizes[-1], min(1.0, max(0.0, power)))
    return round(last * growth, 6)


def _one(name: str, target: str, size: int, seed: int) -> Record:
    method = METHODS[name]
    problem = gaussian_problem() if target == CHECK else bench_problem(target)
    record = Record(name, target, size, seed, version=method.version)
    start = time.process_time()
    try:
        return measure(record, problem, method.run(problem, size, seed))
    except (PyroBoltzmannError, ValueError, ArithmeticError, RuntimeError) as error:
        record.error = f"{type(error).__name__}: {error}"[:200]
        record.cpu_seconds = time.process_time() - start
        return record


def _told(record: Record) -> str:
    if record.error is not None:
        return f"failed, {record.error}"
    log_z = "" if record.log_z_error is None else f", log Z off by {record.log_z_error:+.3f}"
    ess = "n/a" if record.ess is None else f"{record.ess:.0f}"
    return f"{record.evaluations:,} evaluations, {record.cpu_seconds:.2f} CPU s, ESS {ess}{log_z}"


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    main()
