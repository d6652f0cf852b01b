"""Checkpoints of a training run: one safetensors file, written atomically, read without pickle."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_boltzmann.exceptions import CheckpointError, OutputError

__all__ = ["load_checkpoint", "save_checkpoint"]

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
    path = Path(path)
    # Copies: safetensors refuses tensors that share memory, as tied parameters do.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    payload = save(plain, metadata={"format": FORMAT, "run": json.dumps(dict(metadata))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write the checkpoint {path}: {error.strerror or error}; choose another place") from error


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote, on the CPU.

    :raises CheckpointError: if the file is missing, truncated, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
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
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint ({error}); delete it to start afresh, or restore a good copy"
        ) from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    groups = [{k: v for k, v in group.items() if not isinstance(v, Tensor)} for group in state["param_groups"]]
    return tensors, {"scalars": scalars, "groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], described: Any) -> None:
    """Load what :func:`pack_optimizer` split."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, entry = name.split(".", 2)
            state.setdefault(int(index), {})[entry] = value
    for name, value in described["scalars"].items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": described["groups"]})
