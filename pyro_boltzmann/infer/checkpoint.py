"""Checkpoints of a training run: one safetensors file, written atomically, read without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.exceptions import CheckpointError

__all__ = ["load_checkpoint", "pack_optimizer", "save_checkpoint", "unpack_optimizer"]

FORMAT = "pyro_boltzmann checkpoint 1"


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to ``path``; a reader sees the old file or the new one, never half of either.

    :raises OutputError: if the place cannot be written.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "run.safetensors"
    >>> save_checkpoint(file, {"a": torch.ones(2)}, {"step": 3})
    >>> load_checkpoint(file)
    ({'a': tensor([1., 1.])}, {'step': 3})
    """
    # Copies: safetensors refuses tensors that share memory, as tied parameters do.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    payload = save(plain, metadata={"format": FORMAT, "run": json.dumps(dict(metadata))})

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the name of the new file with nothing in it

    write_atomically(path, write)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote, on the CPU.

    :raises CheckpointError: if the file is missing, truncated, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file at {path}; name an existing one, or train without resuming")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is a safetensors file, but not a checkpoint of this package (format "
                    f"{metadata.get('format')!r}, expected {FORMAT!r}); move it away or name another checkpoint"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return tensors, json.loads(metadata["run"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint ({error}); delete it to start afresh, or restore a good copy"
        ) from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors, named ``optimizer....``, and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: list[tuple[int, str, Any]] = []
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.state.{index}.{name}"] = value
            else:
                scalars.append((index, name, value))
    groups = []
    for index, group in enumerate(state["param_groups"]):
        tensors |= {f"optimizer.group.{index}.{k}": v for k, v in group.items() if isinstance(v, Tensor)}
        groups.append({k: v for k, v in group.items() if not isinstance(v, Tensor)})
    return tensors, {"scalars": scalars, "groups": groups}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], described: Mapping[str, Any]
) -> None:
    """Load what :func:`pack_optimizer` split."""
    state: dict[int, dict[str, Any]] = {}
    groups = [dict(group) for group in described["groups"]]
    for name, value in tensors.items():
        if not name.startswith("optimizer."):
            continue
        _, kind, index, entry = name.split(".", 3)
        if kind == "group":
            groups[int(index)][entry] = value
        else:
            state.setdefault(int(index), {})[entry] = value
    for index, entry, value in described["scalars"]:
        state.setdefault(index, {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
