"""The global random generators of torch: seeded for a while, captured, restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["cuda_devices", "devices_in_use", "generator_states", "kept_generators", "restore_generators", "seeded"]


def cuda_devices(module: object) -> list[int]:
    """Indices of the CUDA devices that the parameters and buffers of ``module`` live on."""
    if not isinstance(module, nn.Module):
        return []
    tensors = [*module.parameters(), *module.buffers()]
    return sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})


def devices_in_use() -> list[int]:
    """Indices of the CUDA devices whose generators may have been used."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


@contextmanager
def kept_generators(*, enabled: bool = True) -> Iterator[None]:
    """Put the global generators back at the end of the block, whatever it drew."""
    with torch.random.fork_rng(devices=devices_in_use(), enabled=enabled):
        yield


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run the block from ``seed`` and leave the global generators as they were; with ``None``, simply use them.

    >>> with seeded(1):
    ...     first = torch.rand(2)
    >>> with seeded(1):
    ...     second = torch.rand(2)
    >>> torch.equal(first, second)
    True
    """
    with kept_generators(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def generator_states(devices: Iterable[int] = ()) -> dict[str, Tensor]:
    """The states of the CPU generator and of those of ``devices``, by name."""
    cuda = {f"cuda.{index}": torch.cuda.get_rng_state(index) for index in devices}
    return {"cpu": torch.get_rng_state(), **cuda}


def restore_generators(states: Mapping[str, Tensor], devices: Iterable[int] = ()) -> None:
    """Put back what :func:`generator_states` took; a device it did not know keeps its state."""
    torch.set_rng_state(states["cpu"])
    for index in devices:
        if f"cuda.{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{index}"], index)
