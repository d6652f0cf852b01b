"""Where each latent site of a Pyro program lies in one flat unconstrained vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_boltzmann.energies.unconstrained import is_identity, log_abs_det
from pyro_boltzmann.exceptions import ModelError, ShapeError

__all__ = ["LatentLayout", "LatentSite", "check_is_continuous"]


@dataclass(frozen=True)
class LatentSite:
    """One latent site: its shapes, its bijection, and its place ``[start, stop)`` in the flat vector."""

    name: str
    transform: Transform
    is_unconstrained: bool
    batch_dim: int
    shape: torch.Size
    unconstrained_shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True)
class LatentLayout:
    """The layout of Pyro's ``AutoContinuous``: sites in the order of the program, unconstrained and flattened.

    :ivar plate_dim: the largest number of batch dimensions of any site.
    :ivar sizes: every size that occurs in the shape of a site.
    """

    sites: tuple[LatentSite, ...]
    plate_dim: int
    sizes: frozenset[int]

    @property
    def latent_dim(self) -> int:
        return self.sites[-1].stop

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.sites)

    @staticmethod
    def of_trace(trace: poutine.Trace) -> LatentLayout:
        """Read the layout from a trace of the program.

        :raises ModelError: if a site cannot be part of an energy, or there is no latent site.
        """
        sites: list[LatentSite] = []
        start = 0
        for name, node in trace.iter_stochastic_nodes():
            if isinstance(node["fn"], _Subsample):
                continue
            check_is_continuous(name, node)
            site = _read_site(name, node, start)
            sites.append(site)
            start = site.stop
        if start == 0:
            raise ModelError(
                "the program has no latent site, so there is nothing to sample; leave at least one pyro.sample "
                "without obs="
            )
        samples: list[Any] = [node for node in trace.nodes.values() if node["type"] == "sample"]
        for node in samples:
            _check_is_not_subsampled(node)
        plate_dims = [-frame.dim for node in samples for frame in node["cond_indep_stack"] if frame.vectorized]
        batch_dims = [len(node["fn"].batch_shape) for node in samples if not isinstance(node["fn"], _Subsample)]
        sizes = frozenset(size for node in samples for size in node["value"].shape)
        return LatentLayout(tuple(sites), max([0, *plate_dims, *batch_dims]), sizes)

    def unpack(self, z: Tensor, plate_dim: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        r"""Split ``z`` of shape ``(*batch, latent_dim)`` into constrained sites and :math:`\log|\det dx/dz|`.

        :param plate_dim: if given, ones are put between the batch and each site so that all sites have as many
            dimensions right of the batch, not counting their event dimensions.
        :raises ShapeError: if the last dimension is not :attr:`latent_dim`.
        """
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ShapeError(f"expected z of shape (*batch, {self.latent_dim}), got {tuple(z.shape)}")
        batch = z.shape[:-1]
        values: dict[str, Tensor] = {}
        log_det = z.new_zeros(batch)
        for site in self.sites:
            ones = () if plate_dim is None else (1,) * (plate_dim - site.batch_dim)
            part = z[..., site.start : site.stop].reshape(batch + ones + site.unconstrained_shape)
            if site.is_unconstrained:
                values[site.name] = part
            else:
                values[site.name] = x = site.transform(part)
                log_det = log_det + log_abs_det(site.transform, part, x, len(batch))
        return values, log_det

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Join sites of shapes ``(*batch, *site_shape)`` into ``z`` of shape ``(*batch, latent_dim)``.

        :raises ModelError: if a site is missing.
        :raises ShapeError: if a site has a wrong shape.
        """
        missing = [name for name in self.site_names if name not in values]
        if missing:
            raise ModelError(f"values for the sites {list(self.site_names)} are needed; missing: {missing}")
        parts = []
        for site in self.sites:
            value = values[site.name]
            batch = value.shape[: value.dim() - len(site.shape)]
            if batch + site.shape != value.shape:
                raise ShapeError(
                    f"site '{site.name}' must have shape (*batch, {', '.join(map(str, site.shape))}), got "
                    f"{tuple(value.shape)}"
                )
            parts.append(site.transform.inv(value).reshape(*batch, site.stop - site.start))
        return torch.cat(parts, -1)


def _read_site(name: str, node: Any, start: int) -> LatentSite:
    fn, shape = node["fn"], node["value"].shape
    with helpful_support_errors(node):
        transform = biject_to(fn.support)
    unconstrained = transform.inv(node["value"]).shape
    return LatentSite(
        name=name,
        transform=transform,
        is_unconstrained=is_identity(transform),
        batch_dim=len(shape) - fn.event_dim,
        shape=shape,
        unconstrained_shape=unconstrained,
        start=start,
        stop=start + unconstrained.numel(),
    )


def check_is_continuous(name: str, node: Any) -> None:
    """Refuse a site that cannot be part of an energy, by name.

    :raises ModelError: if it is discrete, enumerated or a ``Delta``.
    """
    fn = node["fn"]
    if node["infer"].get("enumerate"):
        raise ModelError(
            f"site '{name}' is marked for enumeration; an energy needs continuous latents: sum the site out by hand "
            "(for example with dist.MixtureSameFamily) or observe it"
        )
    if fn.has_enumerate_support or getattr(fn.support, "is_discrete", False):
        raise ModelError(
            f"latent site '{name}' is discrete ({type(fn).__name__}); an energy needs continuous latents: sum the site "
            "out by hand (for example with dist.MixtureSameFamily) or observe it"
        )
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if isinstance(base, Delta):
        raise ModelError(
            f"latent site '{name}' is a Delta, which has no density; write it with pyro.deterministic('{name}', value)"
        )


def _check_is_not_subsampled(node: Any) -> None:
    fn = node["fn"]
    if isinstance(fn, _Subsample):
        name, size, full_size = node["name"], len(node["value"]), fn.size
    else:
        frames = [frame for frame in node["cond_indep_stack"] if frame.full_size and frame.size < frame.full_size]
        if not frames:
            return
        name, size, full_size = frames[0].name, frames[0].size, frames[0].full_size
    if size < full_size:
        raise ModelError(
            f"plate '{name}' uses {size} of {full_size} data, so its energy would be random; remove subsample_size "
            "(evaluate the energy on all data, or on a smaller fixed data set)"
        )
