"""A stochastic normalizing flow as an automatic Pyro guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.poutine.runtime import am_i_wrapped
from torch import Generator, Tensor

from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.held import HeldEnergy
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.guides.base import PathBase
from pyro_boltzmann.guides.bound_energy import BoundEnergy
from pyro_boltzmann.stochastic.info import BlockInfo
from pyro_boltzmann.stochastic.path import Observer, PathTransform
from pyro_boltzmann.transforms.ladj import default_dtype

__all__ = ["AutoStochasticFlow", "PathResampling", "WeightedPath"]


class WeightedPath(NamedTuple):
    r"""End states of paths with their exact path weights.

    :ivar z: unconstrained latents, ``(n, latent_dim)``; for backward paths the start states handed in.
    :ivar log_weight: ``(n,)`` float64, :math:`-u(x_T) + S - \log q_0(x_0)`.
    :ivar log_q: ``(n,)`` float64, :math:`\log q_0(x_0) - S`, so that ``log_weight = -energy - log_q``.
    :ivar energy: ``(n,)``, the model's energy at ``z``.
    :ivar infos: one :class:`~pyro_boltzmann.stochastic.BlockInfo` a block, ``None`` for flows.
    """

    z: Tensor
    log_weight: Tensor
    log_q: Tensor
    energy: Tensor
    infos: tuple[BlockInfo | None, ...]


class PathResampling(Protocol):
    """Resamples the paths of one batch between blocks."""

    log_base: Tensor
    """Log-density of the base at the start of each path that is left."""

    def begin(self, log_base: Tensor) -> None:
        """A new batch of paths starts."""

    def __call__(
        self, position: int, block: Any, x: Tensor, log_ratio: Tensor, memo: EnergyMemo
    ) -> tuple[Tensor, Tensor] | None:
        """See :data:`~pyro_boltzmann.stochastic.path.Redirect`."""


class AutoStochasticFlow(AutoContinuous):
    r"""A guide whose latents come out of a path of flow layers and stochastic blocks.

    The path is a bijection of (x, noise), so its joint density is exact. The guide samples the joint vector as an
    auxiliary site and takes the noise of the way back out again with a ``factor``; the trace's log weight is then the
    path weight, whose expectation is the normaliser Z of the model. Any Pyro model with continuous latents is accepted
    untouched, and so is every Pyro consumer of guides (SVI with all ELBOs, importance sampling, predictive), except
    ``SMCFilter`` and ``TraceTMC_ELBO``, which do not take sites that the guide alone has (the latter gives wrong
    values). Jit ELBOs cannot trace the force of an energy that contains ``exp`` or the like, a limit of ``torch.jit``.

    :param model: a Pyro program, for example a :class:`~pyro_boltzmann.BoltzmannModel`.
    :param init_blocks_fn: ``(energy, latent_dim) -> list of blocks`` (see
        :class:`~pyro_boltzmann.stochastic.PathTransform`); ``energy`` is the model's energy on its unconstrained
        space, for use in blocks.
    :param latent_dim: the dimension, where it is known. The path is then built at once, and ``parameters()`` and
        ``state_dict`` work before the first call. A ``BoltzmannModel`` knows its own. Otherwise call
        :meth:`initialize` or the guide itself with the model's arguments first.
    :param base_loc: mean of the Gaussian base, a number or ``(latent_dim,)``.
    :param base_scale: its standard deviation, a number or ``(latent_dim,)``.
    :param dtype: of base and path; the default dtype if not given.
    :raises ShapeError: if the model has another dimension than ``latent_dim``.
    :raises ModelError: for a model that is not an energy (discrete latents, subsampled plates).

    Source: Wu, Koehler and Noe, arXiv 2002.06707; the extended-space form is in docs/design.md.

    >>> import torch, pyro.distributions.transforms as T
    >>> import pyro_boltzmann as pb
    >>> from pyro_boltzmann.stochastic import LangevinTransform
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [
    ...     T.affine_autoregressive(dim), LangevinTransform(energy, dim, 0.1)])
    >>> guide()["x"].shape
    torch.Size([2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init_blocks_fn: Callable[[Energy, int], Iterable[Any]],
        *,
        latent_dim: int | None = None,
        base_loc: float | Tensor = 0.0,
        base_scale: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
    ) -> None:
        super().__init__(model, init_loc_fn=init_loc_fn)  # type: ignore[no-untyped-call]
        if not bool((torch.as_tensor(base_scale) > 0).all()):
            raise ValueError(f"base_scale must be positive, got {base_scale}")
        self._bound = HeldEnergy(BoundEnergy(model))
        self._init_blocks_fn = init_blocks_fn
        self._init_loc_fn = init_loc_fn
        self._base = (base_loc, base_scale, dtype)
        self.path: PathTransform | None = None
        self.base_loc: Tensor
        self.base_scale: Tensor
        known = getattr(model, "latent_dim", None) if latent_dim is None else latent_dim
        if known is not None:
            self._build(int(known))

    def _build(self, latent_dim: int) -> None:
        loc, scale, dtype = self._base
        dtype = torch.get_default_dtype() if dtype is None else dtype
        del self.path
        with default_dtype(dtype):
            blocks = self._init_blocks_fn(self.energy, latent_dim)
            if not isinstance(blocks, Iterable):
                raise TypeError(
                    f"init_blocks_fn(energy, latent_dim) must return a list of blocks, got {type(blocks).__name__}"
                )
            self.path = PathTransform(blocks, latent_dim).to(dtype)
        self.register_buffer("base_loc", _row(loc, latent_dim, dtype))
        self.register_buffer("base_scale", _row(scale, latent_dim, dtype))

    @property
    def _bound_energy(self) -> BoundEnergy:
        return cast(BoundEnergy, self._bound.energy)

    @property
    def model(self) -> Callable[..., Any]:
        """The program that this guide is for."""
        # Pyro's own reference to it is lost, even on the original, whenever a guide is copied or pickled.
        return self._bound_energy.model

    def __getstate__(self) -> Any:
        master = self.master
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        self.master = master
        return state

    @property
    def energy(self) -> Energy:
        """The model's energy on its unconstrained space, bound to the arguments of the last call."""
        bound = self._bound_energy
        # A Boltzmann model's energy has no arguments: hand out the very object, so that memos recognise it.
        return bound.current if isinstance(bound.model, BoltzmannModel) else bound

    def initialize(self, *args: Any, **kwargs: Any) -> AutoStochasticFlow:
        """Inspect the model with these arguments and build the path, without drawing from it."""
        self._bind(args, kwargs)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return self

    @property
    def _built_path(self) -> PathTransform | None:
        """The path without telling Pyro: each access to ``self.path`` inside a trace registers all its parameters."""
        return cast("PathTransform | None", self._modules.get("path"))

    @property
    def _known_path(self) -> PathTransform:
        """The same where there must be one."""
        path = self._built_path
        if path is None:
            raise ValueError(
                "the guide does not know the model's dimension yet: call guide.initialize(...) with the model's "
                "arguments first, or build it with latent_dim="
            )
        return path

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._bound_energy.bind(args, kwargs)
        path = self._built_path
        if path is not None:
            path.clear_cache()  # of another model's arguments, perhaps

    # Pyro's interface --------------------------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self._bind(args, kwargs)
        # A first call must give the same draws as a later one from the same seed.
        cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.no_grad(), torch.random.fork_rng(devices=cuda), InitMessenger(self._init_loc_fn):
            super()._setup_prototype(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self._built_path is None:
            self._build(self.latent_dim)
        path = self.get_transform()
        if path.dim != self.latent_dim:
            raise ShapeError(
                f"the model has {self.latent_dim} unconstrained latents, the guide was built for {path.dim}"
            )

    def get_base_dist(self) -> PathBase:
        prior = dist.Normal(self.base_loc, self.base_scale, validate_args=False).to_event(1)
        path = self._known_path
        return PathBase(prior, path, validate_args=False)

    def get_transform(self, *args: Any, **kwargs: Any) -> PathTransform:
        if self.path is None:
            return self._known_path
        return self.path

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The density of the joint vector (latents, noise of the way back)."""
        return dist.TransformedDistribution(self.get_base_dist(), [self.get_transform()], validate_args=False)

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        joint = pyro.sample(f"_{self._pyro_name}_latent", self.get_posterior(), infer={"is_auxiliary": True})
        path = self._known_path
        noise = joint[..., path.dim :]
        if am_i_wrapped():  # outside inference nobody reads a factor, and Pyro warns about it
            # A factor, never Delta.log_density: TraceMeanField_ELBO ignores the latter.
            pyro.factor(f"_{self._pyro_name}_reverse", -path.noise_log_prob(noise), has_rsample=True)
        return joint[..., : path.dim]

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        self._bind(args, kwargs)
        result: dict[str, Tensor] = super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        return result

    # Weighted paths ----------------------------------------------------------------------------------------------

    def sample_paths(
        self,
        num_samples: int,
        *args: Any,
        generator: Generator | None = None,
        observe: Observer | None = None,
        resampler: PathResampling | None = None,
        **kwargs: Any,
    ) -> WeightedPath:
        r"""Draw paths from the base and weight them; nothing but their ends is kept.

        Under ``torch.no_grad()`` no graph is built; otherwise ``log_weight`` is differentiable.

        :param resampler: resamples the paths between blocks, see
            :class:`~pyro_boltzmann.infer.path_resampling.PathResampler`.
        """
        path = self._start(args, kwargs)
        noise = torch.randn(
            num_samples, path.dim, dtype=self.base_loc.dtype, device=self.base_loc.device, generator=generator
        )
        x0 = self.base_loc + self.base_scale * noise
        log_base = self._base_log_prob(noise)
        if resampler is not None:
            resampler.begin(log_base)
        result = path.stream(x0, EnergyMemo(), generator, observe=observe, redirect=resampler)
        energy = result.memo.value(self.energy, result.x)
        log_base = log_base if resampler is None else resampler.log_base
        return self._weigh(result.x, energy, log_base - result.log_ratio, result.infos)

    def reverse_paths(
        self,
        z: Tensor,
        *args: Any,
        generator: Generator | None = None,
        observe: Observer | None = None,
        with_energy: bool = True,
        **kwargs: Any,
    ) -> WeightedPath:
        """Run paths backwards from ``z`` ``(n, latent_dim)`` with fresh noise, and weight them as forward paths.

        From exact samples of the target, ``log_weight.mean()`` is the EUBO; from data its negative is the
        maximum-likelihood loss, up to the energy. Without ``with_energy`` the energy and the weight are NaN and only
        ``log_q`` is computed.
        """
        path = self._start(args, kwargs)
        if z.dim() < 1 or z.shape[-1] != path.dim:
            raise ShapeError(f"expected unconstrained latents of shape (n, {path.dim}), got {tuple(z.shape)}")
        z = z.to(self.base_loc)
        memo = EnergyMemo()
        result = path.stream(z, memo, generator, inverse=True, observe=observe)
        # Asked for last, because the path may have evaluated it at z with its force.
        energy = memo.value(self.energy, z) if with_energy else torch.full_like(z[..., 0], math.nan)
        noise = (result.x - self.base_loc) / self.base_scale
        return self._weigh(z, energy, self._base_log_prob(noise) - result.log_ratio, result.infos)

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PathTransform:
        path = self.initialize(*args, **kwargs).get_transform()
        if am_i_wrapped():  # Pyro's SVI trains the parameters that it is told of while the loss is computed
            pyro.module(f"{self._pyro_name}.path", path)
        return path

    def _base_log_prob(self, noise: Tensor) -> Tensor:
        noise = noise.double()
        constant = self.base_scale.double().log().sum() + 0.5 * noise.shape[-1] * math.log(2 * math.pi)
        log_prob: Tensor = -0.5 * noise.square().sum(-1) - constant
        return log_prob

    @staticmethod
    def _weigh(z: Tensor, energy: Tensor, log_q: Tensor, infos: tuple[BlockInfo | None, ...]) -> WeightedPath:
        return WeightedPath(z, -energy.double() - log_q, log_q, energy, infos)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Unconstrained latents ``(*batch, latent_dim)`` to a dict of site values in the model's own spaces."""
        energy = self._bound_energy
        source: Any = energy.model if isinstance(energy.model, BoltzmannModel) else energy.current
        sites: dict[str, Tensor] = source.constrain(z)
        return sites


def _row(value: float | Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    row = torch.as_tensor(value, dtype=dtype).detach()
    if row.shape not in ((), (dim,)):
        raise ShapeError(f"the base needs a number or shape ({dim},), got {tuple(row.shape)}")
    return row.expand(dim).clone()
