"""Weighted draws as ArviZ objects and netCDF files, and back."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_boltzmann.diagnostics import compat
from pyro_boltzmann.diagnostics import weights as _weights
from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.diagnostics.resampling import RESAMPLERS, systematic
from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.exceptions import OutputError, PyroBoltzmannError, ReportError

__all__ = ["from_arviz", "from_netcdf", "to_arviz", "to_netcdf"]

_RESAMPLE = ("none", "psis", *RESAMPLERS)


def to_arviz(
    weighted_samples: WeightedSamples,
    resample: str = "none",
    *,
    num_draws: int | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    r"""An ``InferenceData`` (ArviZ 0.23) or ``DataTree`` (ArviZ 1.x), dimensions ``(chain, draw, ...)``.

    Groups: ``posterior`` (the sites), ``sample_stats`` (``log_weight``, ``log_weight_psis``, ``log_q``,
    ``root``, ``potential_energy`` and ``lp``, its negative). The root attributes ``khat``, ``kish_ess`` (a fraction),
    ``log_normalizer`` and ``log_normalizer_error`` are left out where they do not exist (NaN or all-zero weights).

    With resampling, each chain is resampled within itself (chains are independent replicates), ``posterior`` holds
    equally weighted draws that ArviZ can treat as any posterior, and the raw draws stay in ``proposal`` with their
    ``sample_stats_proposal``. Resampled draws carry the log of their chain's mean weight as ``log_weight``,
    so that nobody weights them twice. Copies of one draw stand together, so that ``az.ess`` sees them as
    autocorrelation instead of counting them as independent.

    :param resample: ``"none"``, ``"systematic"``, ``"multinomial"``, or ``"psis"`` (systematic, smoothed weights).
    :param num_draws: resampled draws in each chain; default as many as there are.
    :param generator: source of randomness.
    :raises ValueError: for an unknown ``resample``.
    :raises NonFiniteEnergyError: if resampling is asked of NaN weights or of a chain with zero weights only.
    """
    if resample not in _RESAMPLE:
        raise ValueError(f"expected resample to be one of {_RESAMPLE}, got {resample!r}")
    if resample == "psis" and weighted_samples.roots is not None:
        raise ValueError(
            "Pareto smoothing needs independent weights, and these draws were resampled on their way; take "
            "resample='systematic'"
        )
    posterior = {name: _numpy(value) for name, value in weighted_samples.samples.items()}
    stats = _sample_stats(weighted_samples)
    chains = weighted_samples.num_chains
    attrs = _root_attrs(weighted_samples, resample)
    if resample == "none":
        return compat.make_tree(
            {"posterior": _by_chain(posterior, chains), "sample_stats": _by_chain(stats, chains)}, attrs
        )
    log_weights = weighted_samples.psis()[0] if resample == "psis" else weighted_samples.log_weights
    indices, equal_weights = _resample_chains(log_weights, weighted_samples, resample, num_draws, generator)
    kept = {name: array[indices] for name, array in stats.items() if name not in ("log_weight", "log_weight_psis")}
    groups = {
        "posterior": {name: array[indices] for name, array in posterior.items()},
        "sample_stats": {"log_weight": equal_weights, **kept},
        "proposal": posterior,
        "sample_stats_proposal": stats,
    }
    return compat.make_tree({group: _by_chain(arrays, chains) for group, arrays in groups.items()}, attrs)


def from_arviz(tree: Any) -> WeightedSamples:
    """The :class:`WeightedSamples` that :func:`to_arviz` was given (the raw draws, when it resampled).

    :raises ReportError: if there is no ``posterior`` with ``log_weight`` in ``sample_stats``.
    """
    groups, attrs = compat.tree_to_arrays(tree)
    suffix = "proposal" in groups and "sample_stats_proposal" in groups
    draws = groups.get("proposal" if suffix else "posterior")
    stats = groups.get("sample_stats_proposal" if suffix else "sample_stats", {})
    if not draws or "log_weight" not in stats:
        raise ReportError(
            f"expected a posterior group and sample_stats.log_weight, got groups {sorted(groups)} with statistics "
            f"{sorted(stats)}; give a file that pyro_boltzmann wrote"
        )
    order = json.loads(attrs.get("site_names", "null")) or list(draws)
    record = json.loads(attrs.get("record", "{}"))

    def tensor(name: str) -> Tensor | None:
        return torch.from_numpy(stats[name].copy()) if name in stats else None

    return WeightedSamples(
        {name: torch.from_numpy(draws[name].copy()) for name in order},
        torch.from_numpy(stats["log_weight"].copy()),
        log_q=tensor("log_q"),
        energy=tensor("potential_energy"),
        roots=tensor("root"),
        log_normalizer_by_chain=_by_chain_record(record),
        evaluations=record.get("evaluations"),
        seconds=record.get("seconds"),
        info=_with_positions(record.get("info")),
    )


def _by_chain_record(record: dict[str, Any]) -> Tensor | None:
    values = record.get("log_normalizer_by_chain")
    return None if values is None else torch.tensor(values, dtype=torch.float64)


def _with_positions(info: Any) -> Any:
    """JSON turned the block positions of ``path_ess`` into strings; turn them back."""
    if isinstance(info, dict) and isinstance(info.get("path_ess"), dict):
        info = {**info, "path_ess": {int(position): ess for position, ess in info["path_ess"].items()}}
    return info


def to_netcdf(
    weighted_samples: WeightedSamples, path: str | os.PathLike[str], resample: str = "none", **kwargs: Any
) -> Path:
    """Write :func:`to_arviz` of the draws to ``path``, atomically.

    :raises OutputError: if it cannot be written.
    """
    unusable = [name for name in weighted_samples.samples if "/" in name]
    if unusable:
        raise OutputError(f"netCDF names cannot contain '/', got sites {unusable}; rename them in the model")
    tree = to_arviz(weighted_samples, resample, **kwargs)
    return write_atomically(path, lambda temporary: compat.write_tree(tree, temporary))


def from_netcdf(path: str | os.PathLike[str]) -> WeightedSamples:
    """Read what :meth:`WeightedSamples.save` wrote.

    :raises ReportError: if the file is missing, truncated or foreign.
    """
    try:
        return from_arviz(compat.read_tree(Path(path)))
    except ReportError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ReportError(
            f"cannot read {path}: {error}; expected a netCDF file written by WeightedSamples.save"
        ) from error


def _numpy(value: Tensor) -> NDArray[Any]:
    # netCDF has no bfloat16 and no half precision worth keeping.
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).cpu().numpy()


def _by_chain(arrays: dict[str, NDArray[Any]], chains: int) -> dict[str, NDArray[Any]]:
    return {name: array.reshape(chains, -1, *array.shape[1:]) for name, array in arrays.items()}


def _sample_stats(ws: WeightedSamples) -> dict[str, NDArray[Any]]:
    stats = {"log_weight": _numpy(ws.log_weights)}
    # Unusable weights must still be saved.
    with contextlib.suppress(PyroBoltzmannError):
        stats["log_weight_psis"] = _numpy(ws.psis()[0])
    if ws.energy is not None:
        stats |= {"potential_energy": _numpy(ws.energy), "lp": _numpy(-ws.energy)}
    if ws.log_q is not None:
        stats["log_q"] = _numpy(ws.log_q)
    if ws.roots is not None:
        stats["root"] = _numpy(ws.roots)
    return stats


def _root_attrs(ws: WeightedSamples, resample: str) -> dict[str, Any]:
    # Arrays of info (such as the unconstrained latents) follow from the draws; as JSON they would dwarf the file.
    info = {name: value for name, value in ws.info.items() if not isinstance(value, Tensor)}
    attrs: dict[str, Any] = {
        "resample": resample,
        "site_names": json.dumps(list(ws.samples)),
        "record": json.dumps(
            {
                "evaluations": ws.evaluations,
                "seconds": ws.seconds,
                "info": info,
                "log_normalizer_by_chain": ws.log_normalizer_by_chain,
            },
            default=_as_json,
        ),
    }
    with contextlib.suppress(PyroBoltzmannError):
        attrs |= {
            "khat": ws.khat,
            "kish_ess": ws.ess,
            "log_normalizer": ws.log_normalizer,
            "log_normalizer_error": ws.log_normalizer_error,
        }
    return attrs


def _as_json(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "_asdict"):
        return value._asdict()
    return str(value)


def _resample_chains(
    log_weights: Tensor, ws: WeightedSamples, method: str, num_draws: int | None, generator: torch.Generator | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    resampler = RESAMPLERS.get(method, systematic)
    length = ws.num_samples // ws.num_chains
    size = length if num_draws is None else num_draws
    indices, equal_weights = [], []
    for chain in range(ws.num_chains):
        part = slice(chain * length, (chain + 1) * length)
        chosen = resampler(log_weights[part], size, generator).sort().values
        indices.append(chosen.cpu().numpy() + chain * length)
        equal_weights.append(np.full(size, _weights.log_normalizer(ws.log_weights[part])))
    return np.concatenate(indices), np.concatenate(equal_weights)
