"""Where trajectories start and where they are later: the data of flow maps, kept in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.exceptions import CheckpointError, ShapeError

__all__ = ["TransitionData", "read_transitions", "write_transitions"]

FORMAT = "pyro_boltzmann transitions 1"


@dataclass(frozen=True)
class TransitionData:
    r"""Triples :math:`(x_0, t, x_t)`, one from each of ``n`` independent trajectories.

    :ivar x0: initial states, ``(n, d)``.
    :ivar time: ``(n,)``.
    :ivar state: states at these times, ``(n, d)``; on the boundary for those that were absorbed before.
    :ivar exited: whether a boundary absorbed the trajectory, ``(n,)``.
    :ivar params: parameters of the equation, ``(n, param_dim)``, or ``None``.
    :raises ShapeError: if the shapes contradict each other.

    >>> data = TransitionData(torch.zeros(3, 1), torch.ones(3), torch.ones(3, 1), torch.tensor([False, True, False]))
    >>> len(data), len(data[~data.exited]), len(data[:1])
    (3, 2, 1)
    """

    x0: Tensor
    time: Tensor
    state: Tensor
    exited: Tensor
    params: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.x0)
        shapes = {
            "x0": (n, *self.x0.shape[1:2]),
            "time": (n,),
            "state": tuple(self.x0.shape),
            "exited": (n,),
            "params": (n, *(() if self.params is None else self.params.shape[1:2])),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ShapeError(f"{name} of {n} transitions must have shape {shape}, got {tuple(value.shape)}")

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: slice | Tensor) -> TransitionData:
        """Some of the rows, by a slice, a mask or indices."""
        return TransitionData(**{name: value[rows] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @staticmethod
    def cat(parts: list[TransitionData]) -> TransitionData:
        """One after the other."""
        return TransitionData(
            **{name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; a reader sees the old file or the new one, never half of either.

        :raises OutputError: if the place cannot be written.
        """
        write_transitions(path, self.tensors(), {})

    @staticmethod
    def load(path: str | Path) -> TransitionData:
        """Read what :meth:`save` or a checkpoint of :func:`draw_transitions` wrote.

        :raises CheckpointError: if the file is missing, damaged, or another kind of file.
        """
        tensors, _ = read_transitions(path)
        names = {field.name for field in fields(TransitionData)}
        return TransitionData(**{name: value for name, value in tensors.items() if name in names})


def write_transitions(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata.

    :raises OutputError: if the place cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    payload = save(plain, metadata={"format": FORMAT, "run": json.dumps(dict(metadata))})

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)


def read_transitions(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_transitions` wrote.

    :raises CheckpointError: if the file is missing, damaged, or another kind of file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path} does not hold transitions of this package; name another file")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return tensors, json.loads(metadata["run"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as transitions ({error}); delete it to draw them again, or name an existing file"
        ) from error
