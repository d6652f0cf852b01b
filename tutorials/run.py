"""Run the tutorial notebooks: ``python tutorials/run.py [--check] [NOTEBOOK ...]``.

Each notebook is run from its first cell in a fresh kernel. Its outputs are saved in place, without time stamps, so that
a notebook that gives the same results stays the same file. With ``--check`` nothing is saved.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def run(path: Path, *, save: bool) -> None:
    """Execute one notebook, and save it unless its outputs name a folder of this machine."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    client = NotebookClient(
        notebook,
        timeout=1200,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    outputs = str([cell.get("outputs") for cell in notebook.cells])
    leaks = [folder for folder in (str(HERE.parent), sys.prefix) if folder in outputs]
    if leaks:
        raise SystemExit(
            f"{path.name}: the outputs name {leaks[0]}, a folder of this machine (a warning's text?); nothing saved"
        )
    if save:
        nbformat.write(notebook, path)


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="save nothing")
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of this folder, if none is named")
    arguments = parser.parse_args()
    for path in arguments.notebooks or sorted(HERE.glob("*.ipynb")):
        start = time.perf_counter()
        run(path.resolve(), save=not arguments.check)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
