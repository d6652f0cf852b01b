"""Any Pyro program with continuous latents, as one batched differentiable energy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_boltzmann.energies.latent_layout import LatentLayout
from pyro_boltzmann.energies.log_joint import isolated, log_joint
from pyro_boltzmann.energies.prototype import prototype_trace
from pyro_boltzmann.exceptions import ModelError, ShapeError

__all__ = ["ModelEnergy"]


class ModelEnergy:
    r"""The energy of a Pyro program on its unconstrained space:

    .. math:: u(z) = -\log p(x(z), \mathrm{data}) - \log |\det \partial x / \partial z|

    where :math:`z` holds all latent sites in the order of the program, each mapped to the reals and flattened: the
    layout of Pyro's ``AutoContinuous`` guides. It equals the ``potential_fn`` of Pyro's ``initialize_model``, for any
    number of particles at once.

    At construction the program is run a few times to learn its sites and to find the quickest way to evaluate a
    batch that agrees with single evaluations; :attr:`strategy` says which it is:

    ``"broadcast"``
        one run with the particles in a dimension left of all plates;
    ``"vmap"``
        one run under ``torch.vmap``, for programs with operations that do not broadcast, such as ``X @ w``;
    ``"loop"``
        one run per particle, with a warning, for programs whose Python code branches on values;
    ``"direct"``
        the ``unconstrained_energy`` that the program brings along, as a :class:`BoltzmannModel` does; it is that of the
        program without further arguments, and not used where there are any.

    The random state is left as it was. Evaluations are counted by the caller
    (:func:`~pyro_boltzmann.energies.evaluation.energy_value`), not here.

    :param model: a Pyro program; further arguments are passed to it at every evaluation.
    :ivar latent_dim: number of unconstrained coordinates.
    :ivar site_names: names of the latent sites, in the order of the program.
    :ivar prototype_trace: the trace of one run.
    :raises ModelError: if the program has a discrete or enumerated latent site, a plate that subsamples data, a
        support that depends on another latent site, or no latent site at all. The message names the site.

    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(data):
    ...     scale = pyro.sample("scale", dist.Exponential(1.0))
    ...     with pyro.plate("data", len(data)):
    ...         pyro.sample("obs", dist.Normal(0.0, scale), obs=data)
    >>> energy = ModelEnergy(model, torch.zeros(3))
    >>> energy(torch.zeros(5, 1)).shape, energy.strategy
    (torch.Size([5]), 'broadcast')
    >>> energy.constrain(torch.zeros(1))
    {'scale': tensor(1.)}
    """

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self.prototype_trace = prototype_trace(self._program)
        self.layout = LatentLayout.of_trace(self.prototype_trace)
        self.latent_dim = self.layout.latent_dim
        self.site_names = self.layout.site_names
        self.strategy = "direct" if self._has_own_energy() else self._choose_strategy()

    def __call__(self, z: Tensor) -> Tensor:
        """The energy of ``z`` of shape ``(*batch, latent_dim)``, with shape ``(*batch)``.

        :raises ShapeError: if the last dimension is not :attr:`latent_dim`.
        """
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ShapeError(f"expected z of shape (*batch, {self.latent_dim}), got {tuple(z.shape)}")
        if self.strategy == "direct":
            with isolated():
                return self.model.unconstrained_energy(z)  # type: ignore[attr-defined, no-any-return]
        flat = z.reshape(z.shape[:-1].numel(), self.latent_dim)
        return self._evaluate(self.strategy, flat).reshape(z.shape[:-1])

    @property
    def energy_and_gradient(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """The formula of the energy that the program brings along, if it has one; otherwise ``None``."""
        if self.strategy != "direct":
            return None
        return getattr(self.model.unconstrained_energy, "energy_and_gradient", None)  # type: ignore[attr-defined]

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Map ``z`` of shape ``(*batch, latent_dim)`` to the sites, each of shape ``(*batch, *site_shape)``."""
        return self.layout.unpack(z)[0]

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Inverse of :meth:`constrain`.

        :raises ModelError: if a site is missing.
        :raises ShapeError: if a site has a wrong shape.
        """
        return self.layout.pack(values)

    def with_arguments(self, *args: Any, **kwargs: Any) -> ModelEnergy:
        """The energy of the same program for other arguments, at the price of one run of the program.

        The strategy is kept: arguments of one program differ in their numbers, not in how it broadcasts.

        Without its data (as in ``Predictive(model, guide=guide)(x)``) a program has more latents, the data among them.
        Then the energy stays the one it was, as Pyro's own guides keep what they were trained on.

        :raises ModelError: if the latents change in number or shape in any other way.
        """
        other = copy.copy(self)
        other.args, other.kwargs = args, kwargs
        other.prototype_trace = prototype_trace(other._program)
        nodes = other.prototype_trace.iter_stochastic_nodes()
        latents = {name for name, site in nodes if not site_is_subsample(site)}
        if set(self.site_names) < latents:
            return self
        other.layout = LatentLayout.of_trace(other.prototype_trace)
        other.site_names, other.latent_dim = other.layout.site_names, other.layout.latent_dim
        if other.site_names != self.site_names or other.latent_dim != self.latent_dim:
            raise ModelError(
                f"with these arguments the program has latents {list(other.site_names)} of "
                f"{other.latent_dim} dimensions, before it had {list(self.site_names)} of {self.latent_dim}; "
                "build a new ModelEnergy (or guide) for it"
            )
        if (self.strategy == "direct") != other._has_own_energy():
            other.strategy = "direct" if other._has_own_energy() else other._choose_strategy()
        return other

    def _has_own_energy(self) -> bool:
        return hasattr(self.model, "unconstrained_energy") and not (self.args or self.kwargs)

    def _program(self) -> Any:
        return self.model(*self.args, **self.kwargs)

    def _evaluate(self, strategy: str, flat: Tensor) -> Tensor:
        if len(flat) == 0:
            return flat.sum(-1)
        if strategy == "broadcast":
            return self._broadcast(flat)
        if strategy == "vmap":
            return torch.vmap(self._single)(flat)
        return torch.stack([self._single(z) for z in flat])

    def _broadcast(self, flat: Tensor) -> Tensor:
        latents, log_det = self.layout.unpack(flat, self.layout.plate_dim)
        return (-log_joint(self._program, latents, self.layout.plate_dim, 1) - log_det).expand(len(flat))

    def _single(self, z: Tensor) -> Tensor:
        latents, log_det = self.layout.unpack(z)
        return -log_joint(self._program, latents, self.layout.plate_dim, 0) - log_det

    def _choose_strategy(self) -> str:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            points = self._probe_points()
            self._check_supports(points[0])
            truth = self._evaluate("loop", points)
            if not truth.isfinite().any():
                reason = "its energy is not finite at any of the points tried, so nothing quicker could be verified"
                return self._warn_loop(reason)
            reasons = []
            for strategy in ("broadcast", "vmap"):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        batched = self._evaluate(strategy, points)
                except ModelError:
                    raise
                except Exception as error:  # a program may fail on a batch in any way it likes
                    reasons.append(f"{strategy}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                    continue
                if _agree(batched, truth):
                    return strategy
                reasons.append(f"{strategy}: the values differ from single evaluations")
        return self._warn_loop("; ".join(reasons))

    def _probe_points(self) -> Tensor:
        """A few points of the unconstrained space, as many of them as possible with finite energy.

        Their number is a prime that is no size in the program, so that a wrong broadcast cannot pass unnoticed.
        """
        number = next(p for p in count(5) if all(p % q for q in range(2, p)) and p not in self.layout.sizes)
        nodes: Any = self.prototype_trace.nodes
        start = self.layout.pack({name: nodes[name]["value"] for name in self.site_names})
        generator = torch.Generator().manual_seed(20)
        noise = torch.randn(8 * number, self.latent_dim, generator=generator, dtype=torch.float64).to(start)
        spread = torch.tensor([0.2, 1.0]).to(start).repeat(4 * number).unsqueeze(-1)
        points = start.nan_to_num(0.0, 0.0, 0.0) + spread * noise
        found: list[Tensor] = []
        spare: list[Tensor] = []
        for point in points:
            (found if self._single(point).isfinite() else spare).append(point)
            if len(found) == number:
                break
        return torch.stack((found + spare)[:number])

    def _check_supports(self, z: Tensor) -> None:
        values = self.constrain(z)
        with isolated(), poutine.block():
            nodes: Any = poutine.trace(poutine.condition(self._program, values)).get_trace().nodes
        for site in self.layout.sites:
            moved = biject_to(nodes[site.name]["fn"].support)
            x = moved(site.transform.inv(values[site.name]))
            if not torch.allclose(x, values[site.name], equal_nan=True, rtol=1e-3, atol=1e-5):
                raise ModelError(
                    f"the support of site '{site.name}' changes with another latent site; rewrite it with a fixed "
                    "support, for example y = bound * pyro.sample('y_unit', dist.Uniform(0, 1)) for a Uniform(0, bound)"
                )

    def _warn_loop(self, reason: str) -> str:
        warnings.warn(
            f"the program is evaluated one particle at a time, which is slow ({reason}). To evaluate batches at once, "
            "write it so that it runs with extra dimensions left of all plates: index and reduce from the right "
            "(x[..., i], .sum(-1)), use (X * w).sum(-1) or X.matmul(w.unsqueeze(-1)).squeeze(-1) in place of X @ w, "
            "and torch.where in place of Python branches on values",
            UserWarning,
            stacklevel=4,
        )
        return "loop"


def _agree(batched: Tensor, truth: Tensor) -> bool:
    if batched.shape != truth.shape:
        return False
    # Rounding only: programs in float64 may still hold data in float32.
    tolerance = 1e-6 if truth.dtype == torch.float64 else 2e-5
    return torch.allclose(batched, truth, rtol=tolerance, atol=tolerance, equal_nan=True)
