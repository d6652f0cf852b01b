"""The energy of each datum's own latents in a Pyro program with a plate over data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_boltzmann.energies.latent_layout import check_is_continuous
from pyro_boltzmann.energies.log_joint import LogJoint, isolated
from pyro_boltzmann.energies.prototype import prototype_trace
from pyro_boltzmann.energies.unconstrained import is_identity, log_abs_det
from pyro_boltzmann.exceptions import ModelError, ShapeError

__all__ = ["LocalEnergy"]


class LocalEnergy:
    r"""The energies of a Pyro program whose latents stand in a plate over data, one energy a datum:

    .. math:: u_i(z_i) = -\log p(x_i, \zeta(z_i)) - \log |\det \partial \zeta / \partial z_i| ,

    with all latent sites of a datum mapped to the reals, flattened and joined in the order of the program. Its
    :math:`Z_i` is the evidence :math:`p(x_i)`. Sites of the program that stand outside the plate (a prior of the
    decoder's weights, say) belong to no datum and are left out; plates inside it (over pixels) are summed over.
    A plate that subsamples makes no difference to the energy of a datum: its scale is taken out again.

    Decoder parameters are not held, but the energy is differentiable in them, its forces included.

    :param model: a Pyro program; further arguments are passed to it at every evaluation. It must broadcast: run with
        extra dimensions left of all plates.
    :ivar latent_dim: number of unconstrained coordinates of one datum.
    :ivar site_names: names of the latent sites.
    :ivar frames: the plates that all latent sites share, outermost first.
    :ivar plate_shape: their sizes as batch dimensions, ``(B,)`` for one plate of B data in its usual place.
    :ivar indices: the data that subsampling plates use.
    :raises ModelError: if the program has no latent site, a discrete one, one outside all plates, or latent sites in
        different plates. The message names the site.

    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)
    >>> energy = LocalEnergy(model, torch.zeros(3))
    >>> energy(torch.randn(7, 3, 2)).shape, energy.plate_shape
    (torch.Size([7, 3]), torch.Size([3]))
    """

    is_local = True
    """Rows of a batch belong to data of their own: no row may be evaluated without the others."""

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self._read(prototype_trace(self._program))
        self._check_rows()

    def _program(self) -> Any:
        return self.model(*self.args, **self.kwargs)

    def _read(self, trace: poutine.Trace) -> None:
        nodes: list[Any] = [node for node in trace.nodes.values() if node["type"] == "sample"]
        latents = [
            (name, node) for name, node in trace.iter_stochastic_nodes() if not isinstance(node["fn"], _Subsample)
        ]
        self.frames = _shared_plates(latents)
        sites = [node for node in nodes if not isinstance(node["fn"], _Subsample)]
        depths = [-frame.dim for node in nodes for frame in node["cond_indep_stack"] if frame.vectorized]
        self._depth = max([*depths, *(len(node["fn"].batch_shape) for node in sites)])
        sizes = {frame.dim or 0: frame.size for frame in self.frames}
        self.plate_shape = torch.Size(sizes.get(dim, 1) for dim in range(min(sizes), 0))
        self._summed = tuple(dim for dim in range(-self._depth, 0) if dim not in sizes)
        self._sites: list[_Site] = []
        start = 0
        for name, node in latents:
            site = _read_site(name, node, self.plate_shape, start)
            self._sites.append(site)
            start = site.stop
        self.latent_dim = start
        self.site_names = tuple(site.name for site in self._sites)
        drawn: Any = trace.nodes
        self._like: Tensor = drawn[self.site_names[0]]["value"]
        self.indices: dict[str, Tensor] = {
            frame.name: drawn[frame.name]["value"] for frame in self.frames if _is_subsampled(frame)
        }

    def with_arguments(self, *args: Any, **kwargs: Any) -> LocalEnergy:
        """The energy of the same program for other data.

        The program is run once to learn its plates, unless all arguments have the shapes (or, not being tensors, the
        values) they had and no site has a support that could depend on them.

        :raises ModelError: if the latents change.
        """
        other = copy.copy(self)
        other.args, other.kwargs = args, kwargs
        fixed = all(site.is_unconstrained for site in self._sites)
        if not fixed or not _same_shapes((self.args, self.kwargs), (args, kwargs)):
            other._read(prototype_trace(other._program))
            if (other.site_names, other.latent_dim) != (self.site_names, self.latent_dim):
                raise ModelError(
                    f"with these arguments a datum has latents {list(other.site_names)} of {other.latent_dim} "
                    f"dimensions, before it had {list(self.site_names)} of {self.latent_dim}; build a new LocalEnergy "
                    "(or guide) for it"
                )
        return other

    def use_rows(self, plate: str, indices: Tensor | None) -> None:
        """Tell which data a subsampling plate uses from now on; other plates are left alone."""
        if plate in self.indices and indices is not None:
            self.indices = {**self.indices, plate: indices}

    def __call__(self, z: Tensor) -> Tensor:
        """The energies at ``z`` of shape ``(*batch, *plate_shape, latent_dim)``, with shape ``(*batch,
        *plate_shape)``.

        :raises ShapeError: for another shape.
        """
        self._check(z)
        batch = z.shape[: z.dim() - 1 - len(self.plate_shape)]
        ones = (1,) * (self._depth - len(self.plate_shape))
        flat = z.reshape(batch.numel(), *ones, *self.plate_shape, self.latent_dim)
        values, log_det = self.constrain_and_ladj(flat)
        joint = _LocalLogJoint(values, self.indices, self.frames, self._summed)
        with isolated(), joint:
            self._program()
        total = sum(joint.terms[1:], joint.terms[0]) + log_det
        return -total.expand(flat.shape[:-1]).reshape(z.shape[:-1])

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Map ``z`` of shape ``(*batch, *plate_shape, latent_dim)`` to the sites."""
        return self.constrain_and_ladj(z)[0]

    def constrain_and_ladj(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        r"""The sites, and :math:`\log |\det \partial \zeta / \partial z|` of each datum."""
        batch = z.shape[:-1]
        values: dict[str, Tensor] = {}
        log_det = z.new_zeros(batch)
        for site in self._sites:
            part = z[..., site.start : site.stop].reshape(batch + site.shape)
            values[site.name] = x = part if site.is_unconstrained else site.transform(part)
            if not site.is_unconstrained:
                log_det = log_det + log_abs_det(site.transform, part, x, len(batch))
        return values, log_det

    def _check_rows(self) -> None:
        """Whether a batch has the energies of its parts, and whether any datum's depends on another's latents."""
        generator = torch.Generator().manual_seed(20)
        shape = (2, *self.plate_shape, self.latent_dim)
        with torch.no_grad():
            a, b = torch.randn(shape, generator=generator, dtype=torch.float64).to(self._like)
            others = (torch.arange(self.plate_shape.numel(), device=a.device) % 2 == 1).reshape(self.plate_shape)
            alone, after = self(a), self(a)
            together = self(torch.stack([a, b, torch.where(others.unsqueeze(-1), b, a)]))
        if not _agree(alone, after):
            reason = "two evaluations differ, so the program is random beyond its sites (dropout? call .eval())"
        elif not _agree(together[0], alone):
            reason = "the energies of a batch differ from single ones; index and reduce from the right (z[..., i])"
        elif not _agree(together[2], torch.where(others, together[1], together[0])):
            reason = "the energy of one datum moves with the latents of another (batch normalisation? call .eval())"
        else:
            return
        raise ModelError(f"the program gives no energy for each datum: {reason}")

    def _check(self, z: Tensor) -> None:
        expected = (*self.plate_shape, self.latent_dim)
        if z.dim() < len(expected) or tuple(z.shape[-len(expected) :]) != expected:
            raise ShapeError(f"expected z of shape (*batch, {', '.join(map(str, expected))}), got {tuple(z.shape)}")


class _Site(NamedTuple):
    """One latent site of a datum: its bijection, its unconstrained shape and its place in the flat vector."""

    name: str
    transform: Transform
    is_unconstrained: bool
    shape: torch.Size
    start: int
    stop: int


class _LocalLogJoint(LogJoint):
    """Keeps the data's plates, sums over plates inside them and leaves out what stands outside."""

    def __init__(
        self,
        latents: Mapping[str, Tensor],
        indices: Mapping[str, Tensor],
        frames: tuple[CondIndepStackFrame, ...],
        summed: tuple[int, ...],
    ) -> None:
        super().__init__(latents, indices)
        self.names = {frame.name for frame in frames}
        self.summed = summed
        self.subsampling = 1.0
        for frame in frames:
            self.subsampling *= (frame.full_size or frame.size) / frame.size

    def reduce(self, msg: Any, log_prob: Tensor) -> Tensor | None:
        if not self.names <= {frame.name for frame in msg["cond_indep_stack"]}:
            return None
        log_prob = scale_and_mask(log_prob, msg["scale"] / self.subsampling, msg["mask"])
        summed = [dim for dim in self.summed if -dim <= log_prob.dim()]
        return log_prob.sum(summed, keepdim=True) if summed else log_prob


def _shared_plates(latents: list[tuple[str, Any]]) -> tuple[CondIndepStackFrame, ...]:
    if not latents:
        raise ModelError("the program has no latent site; leave at least one pyro.sample without obs= in the plate")
    shared: set[CondIndepStackFrame] | None = None
    for name, node in latents:
        check_is_continuous(name, node)
        frames = set(node["cond_indep_stack"])
        if not frames or not all(frame.vectorized for frame in frames):
            raise ModelError(
                f"latent site '{name}' stands in no vectorised plate, so it belongs to no datum; sample it inside "
                "'with pyro.plate(...)' over the data, or use AutoStochasticFlow for latents that all data share"
            )
        if shared is not None and frames != shared:
            raise ModelError(
                f"latent site '{name}' stands in the plates {sorted(f.name for f in frames)}, site "
                f"'{latents[0][0]}' in {sorted(f.name for f in shared)}; all latents of a datum need the same plates "
                "(use .to_event() for coordinates of one latent)"
            )
        shared = frames
    assert shared is not None
    return tuple(sorted(shared, key=lambda frame: frame.dim or 0))


def _read_site(name: str, node: Any, plate_shape: torch.Size, start: int) -> _Site:
    fn, value = node["fn"], node["value"]
    if fn.batch_shape != plate_shape:
        raise ModelError(
            f"latent site '{name}' has batch shape {tuple(fn.batch_shape)} in plates of shape {tuple(plate_shape)}; "
            "declare its other dimensions with .to_event()"
        )
    with helpful_support_errors(node):
        transform = biject_to(fn.support)
    shape = transform.inv(value).shape[len(plate_shape) :]
    return _Site(name, transform, is_identity(transform), shape, start, start + shape.numel())


def _agree(left: Tensor, right: Tensor) -> bool:
    tolerance = 1e-6 if left.dtype == torch.float64 else 1e-4
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


def _is_subsampled(frame: CondIndepStackFrame) -> bool:
    return frame.full_size is not None and frame.size < frame.full_size


def _same_shapes(old: tuple[tuple[Any, ...], dict[str, Any]], new: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    if len(old[0]) != len(new[0]) or old[1].keys() != new[1].keys():
        return False
    pairs = [*zip(old[0], new[0], strict=True), *((old[1][name], new[1][name]) for name in old[1])]
    return all(_same_shape(a, b) for a, b in pairs)


def _same_shape(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.shape == new.shape
    plain = (bool, int, float, str, type(None))
    return isinstance(old, plain) and type(old) is type(new) and bool(old == new)
