"""Parts of a long experiment that are finished, kept in one file so that a stopped experiment goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.exceptions import CheckpointError

__all__ = ["FinishedParts"]


class FinishedParts:
    """JSON results by name; each is written as soon as it is known.

    :param path: the file.
    :param identity: what must agree for its parts to be used again, such as the lengths of the runs.
    :raises CheckpointError: if the file is not one of these, or of another identity.

    >>> import tempfile
    >>> parts = FinishedParts(Path(tempfile.mkdtemp()) / "parts.json", {"seed": 0})
    >>> parts.get("a", lambda: {"value": 1.0}), parts.get("a", lambda: {"value": 2.0})
    ({'value': 1.0}, {'value': 1.0})
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.parts: dict[str, Any] = {}
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                found, self.parts = kept["identity"], dict(kept["parts"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{path} cannot be read ({error}); delete it to start afresh") from error
            if found != self.identity:
                raise CheckpointError(
                    f"{path} is of another run ({found}, not {self.identity}); choose another --out, or delete it"
                )

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The part of a name, made now unless it was made before."""
        if name not in self.parts:
            self.parts[name] = json.loads(json.dumps(make()))
            text = json.dumps({"identity": self.identity, "parts": self.parts}, indent=1) + "\n"

            def write(temporary: Path) -> None:
                temporary.write_text(text, encoding="utf-8")

            write_atomically(self.path, write)
        return self.parts[name]
