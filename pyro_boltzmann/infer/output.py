"""Know that a result can be written before time is spent on it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.exceptions import OutputError

__all__ = ["check_writable", "save_without_latents"]


def check_writable(path: str | Path) -> None:
    """Make the folder of ``path`` and try to write a file in it; ``path`` itself is not touched.

    :raises OutputError: if a file could not be written at ``path``.

    >>> check_writable(Path(tempfile.mkdtemp()) / "new" / "draws.nc")
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose a file in a folder that exists or can be made and "
            "is writable"
        ) from error


def save_without_latents(draws: WeightedSamples, path: str | Path) -> None:
    """Save draws, but not ``info["z"]``: the sites once more, which would swell the text that holds the record.

    :raises OutputError: if it cannot be written; the draws are on the error's ``samples``.
    """
    latents = draws.info.pop("z", None)
    try:
        draws.save(path)
    except OutputError as error:
        error.samples = draws  # type: ignore[attr-defined]
        error.add_note("the draws are on this error's .samples")
        raise
    finally:
        if latents is not None:
            draws.info["z"] = latents
