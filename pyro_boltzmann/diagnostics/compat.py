"""The one module that knows both generations of ArviZ: 0.23 (``InferenceData``) and 1.x (xarray's ``DataTree``).

Everything else hands over plain arrays in nested dictionaries and gets plain arrays back.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["arviz", "has_datatree", "make_tree", "pareto_smooth", "read_tree", "tree_to_arrays", "write_tree"]

Arrays = dict[str, dict[str, NDArray[Any]]]


def arviz() -> Any:
    """Import ArviZ on first use, without its once-a-day announcement (which would break ``-W error``)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("arviz")


def has_datatree() -> bool:
    """Whether the installed ArviZ is of the 1.x generation."""
    return hasattr(arviz(), "convert_to_datatree")


def pareto_smooth(log_weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """ArviZ's Pareto smoothing of finite ``log_weights`` ``(N,)``: normalised smoothed log weights and k-hat.

    The fit may fail (too few distinct large weights): k-hat is then ``inf`` or NaN and nothing is smoothed.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if has_datatree():
            array_stats = importlib.import_module("arviz_stats.base").array_stats
            # 1.x takes the log likelihood of leave-one-out, whose weights are its inverse: hence the sign.
            smoothed, khat = array_stats.psislw(-log_weights)
        else:
            smoothed, khat = arviz().psislw(log_weights.copy())
    return np.asarray(smoothed, dtype=np.float64), float(khat)


def _engine() -> str:
    # h5netcdf installs without the h5py that it needs, and ArviZ 1.x asks for neither.
    return "h5netcdf" if importlib.util.find_spec("h5py") and importlib.util.find_spec("h5netcdf") else "netcdf4"


def make_tree(groups: Mapping[str, Mapping[str, NDArray[Any]]], attrs: Mapping[str, Any]) -> Any:
    """Build an ``InferenceData`` or ``DataTree`` whose arrays have shape ``(chain, draw, *event)``."""
    xarray = importlib.import_module("xarray")
    datasets = {}
    for group, arrays in groups.items():
        variables = {
            name: (("chain", "draw", *(f"{name}_dim_{i}" for i in range(array.ndim - 2))), array)
            for name, array in arrays.items()
        }
        coords = {}
        for dims, array in variables.values():
            coords.update({dim: np.arange(size) for dim, size in zip(dims, array.shape, strict=True)})
        datasets[group] = xarray.Dataset(variables, coords=coords, attrs={"inference_library": "pyro_boltzmann"})
    root = {"inference_library": "pyro_boltzmann", "arviz_version": str(arviz().__version__), **attrs}
    if has_datatree():
        tree = xarray.DataTree.from_dict(datasets)
        tree.attrs.update(root)
        return tree
    with warnings.catch_warnings():
        # Groups outside ArviZ's schema (the raw proposal draws) are meant; 0.23 warns about each.
        warnings.simplefilter("ignore", UserWarning)
        return arviz().InferenceData(attrs=root, **datasets)


def write_tree(tree: Any, path: Path) -> None:
    """Write what :func:`make_tree` built as netCDF."""
    if has_datatree():
        tree.to_netcdf(path, engine=_engine())
    else:
        tree.to_netcdf(str(path), engine=_engine(), compress=False)


def read_tree(path: Path) -> Any:
    """Read a netCDF file wholly into memory, so that the file is closed again."""
    if has_datatree():
        with importlib.import_module("xarray").open_datatree(path, engine=_engine()) as tree:
            return tree.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tree = arviz().from_netcdf(str(path), engine=_engine())
        tree.load()
        tree.close()
    return tree


def tree_to_arrays(tree: Any) -> tuple[Arrays, dict[str, Any]]:
    """Take a tree of either generation apart: ``{group: {name: array}}`` and the root attributes."""
    names = [str(name) for name in (tree.children if hasattr(tree, "children") else tree.groups())]
    groups: Arrays = {}
    for group in names:
        dataset = tree[group]
        groups[group] = {str(name): np.asarray(dataset[name].values) for name in dataset.data_vars}
    return groups, dict(tree.attrs)
