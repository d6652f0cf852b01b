"""The folder of a run: the names in it, whether it can be written, and whose it is."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.exceptions import CheckpointError, OutputError

__all__ = ["CHECKPOINT", "DRAWS", "REPORT", "RUN", "check_writable", "checkpoints", "claim"]

CHECKPOINT = "checkpoint.safetensors"
DRAWS = "samples.nc"
REPORT = "report.json"
RUN = "run.json"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder; a sampler trained in stages keeps one for each."""
    return sorted(folder.glob(f"{Path(CHECKPOINT).stem}*.safetensors"))


def check_writable(out: str | os.PathLike[str]) -> Path:
    """Make the folder if need be, and try to write in it, so that no hour of training ends in an error.

    :raises OutputError: if that fails.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; choose with --out a folder that exists or can be "
            "made, and is writable"
        ) from error
    return folder


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write down in ``run.json`` whose the folder is, unless it holds checkpoints of another run.

    :raises CheckpointError: if it does.
    """
    record = folder / RUN
    found = checkpoints(folder)
    if not found:
        text = json.dumps(identity, indent=2) + "\n"

        def write(temporary: Path) -> None:
            temporary.write_text(text, encoding="utf-8")

        write_atomically(record, write)
        return
    try:
        owner = json.loads(record.read_text(encoding="utf-8"))
        differences = [
            f"{key} {owner.get(key)!r}, not {value!r}" for key, value in identity.items() if owner.get(key) != value
        ]
    except (OSError, ValueError, AttributeError):
        differences = [f"{RUN}, which says whose it is, is missing or unreadable"]
    if differences:
        raise CheckpointError(
            f"the checkpoint in {folder} belongs to another run ({'; '.join(differences)}); choose another --out, or "
            f"start afresh by deleting {', '.join(path.name for path in found)} there"
        )
