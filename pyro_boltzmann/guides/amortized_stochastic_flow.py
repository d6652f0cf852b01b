"""A stochastic normalizing flow for the latents of each datum, conditioned on the datum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Generator, Tensor, nn

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.exceptions import ModelError, ShapeError
from pyro_boltzmann.guides.auto_stochastic_flow import WeightedPath
from pyro_boltzmann.guides.base import PathBase
from pyro_boltzmann.guides.encoded_energy import EncodedEnergy
from pyro_boltzmann.stochastic.path import Observer, PathTransform
from pyro_boltzmann.transforms.ladj import default_dtype

__all__ = ["AmortizedStochasticFlow"]


class AmortizedStochasticFlow(PyroModule):
    r"""A guide for models with latents in a plate over data, such as variational autoencoders: one path a datum.

    The encoder proposes a Gaussian for each datum, :math:`z_i = \mu(x_i) + \sigma(x_i)\,\epsilon_i`. The path lives in
    the coordinates :math:`\epsilon`, where the base is standard normal for all data and one step size suits all
    coordinates; its blocks see the energy of the datum there,

    .. math:: u_i(\epsilon) = -\log p\bigl(x_i, \mu(x_i) + \sigma(x_i)\,\epsilon\bigr) - \sum \log \sigma(x_i),

    so :class:`~pyro_boltzmann.NormalEnergy` is the reference from which to anneal, and conditional layers get the
    encoder's context. The log weight of the trace is :math:`\sum_i \log w_i`, the exact path weights with
    :math:`E[w_i] = p(x_i)`: their mean logarithm is the ELBO of each datum, the logarithm of the mean of K of them the
    importance-weighted bound.

    Works with SVI and any ELBO that takes auxiliary sites, with vectorised particles, and with mini-batches, whether
    they are handed in as arguments or drawn by the plate (then let the encoder use ``pyro.subsample``). The model is
    not registered; what it registers itself (``pyro.module``) is trained with the guide. Forces depend on the decoder
    too, and that dependence is kept: it is part of the gradient of the bound. As in
    :class:`~pyro_boltzmann.stochastic.MetropolisAdjusted`, pathwise gradients through Metropolis tests are biased
    unless the test's energy is the target's; use unadjusted blocks for training.

    :param model: a Pyro program whose latent sites all stand in the same plate over data.
    :param encoder: called with the model's arguments, inside the plate; returns ``(loc, scale)`` or ``(loc, scale,
        context)``, shapes ``(*plate_shape, latent_dim)`` twice and ``(*plate_shape, context_dim)``.
    :param init_blocks_fn: ``(energy, latent_dim) -> list of blocks``, as for
        :class:`~pyro_boltzmann.AutoStochasticFlow`; Pyro's conditional transforms are accepted.
    :param latent_dim: coordinates of one datum, where known: the path is then built at once. Otherwise call
        :meth:`initialize` or the guide itself with the model's arguments first.
    :param dtype: of the path; the default dtype if not given.
    :raises ModelError: for a model whose latents do not belong to data (:class:`~pyro_boltzmann.LocalEnergy`).
    :raises ShapeError: if the encoder's output does not fit.

    Source: Wu, Koehler and Noe, arXiv 2002.06707 (their variational autoencoder); Burda, Grosse and Salakhutdinov,
    arXiv 1509.00519 (the bounds); Thin et al., arXiv 2106.15921 (annealed paths from the encoder).

    >>> import pyro, torch, pyro.distributions as dist, pyro.distributions.transforms as T
    >>> from pyro_boltzmann.stochastic import LangevinTransform
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)
    >>> encoder = lambda x: (torch.stack([x, x], -1) / 3, torch.tensor(0.8), x.unsqueeze(-1))
    >>> guide = AmortizedStochasticFlow(model, encoder, lambda energy, dim: [
    ...     T.conditional_affine_autoregressive(dim, 1), LangevinTransform(energy, dim, 0.1)])
    >>> guide(torch.zeros(5))["z"].shape
    torch.Size([5, 2])
    >>> guide.sample_paths(10, torch.zeros(5)).log_weight.shape
    torch.Size([10, 5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: Callable[..., tuple[Tensor, ...]],
        init_blocks_fn: Callable[[Energy, int], Iterable[Any]],
        *,
        latent_dim: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(name=type(self).__name__)
        self._held = [EncodedEnergy(model)]
        if isinstance(encoder, nn.Module):
            self.encoder = encoder
        else:
            self._plain_encoder = [encoder]
        self._init_blocks_fn = init_blocks_fn
        self._dtype = torch.get_default_dtype() if dtype is None else dtype
        self.path: PathTransform | None = None
        if latent_dim is not None:
            self._build(int(latent_dim))

    @property
    def energy(self) -> Energy:
        """The energy that the blocks see: of each datum, in the coordinates of its encoder, at the last call."""
        return self._held[0]

    @property
    def model(self) -> Callable[..., Any]:
        """The program that this guide is for."""
        return self._held[0].model

    def initialize(self, *args: Any, **kwargs: Any) -> AmortizedStochasticFlow:
        """Inspect the model with these arguments and build the path."""
        local = self._held[0].bind_model(args, kwargs)
        if self._built_path is None:
            self._build(local.latent_dim)
        path = self.get_transform()
        if path.dim != local.latent_dim:
            raise ShapeError(
                f"a datum has {local.latent_dim} unconstrained latents, the guide was built for {path.dim}"
            )
        return self

    def get_transform(self) -> PathTransform:
        """The path.

        :raises ModelError: before it is built.
        """
        path = self._built_path
        if path is None:
            raise ModelError("the path is built when the latent dimension is known; call guide.initialize(*args) first")
        return path

    def _build(self, latent_dim: int) -> None:
        del self.path
        with default_dtype(self._dtype):
            blocks = self._init_blocks_fn(self.energy, latent_dim)
            if not isinstance(blocks, Iterable):
                raise TypeError(
                    f"init_blocks_fn(energy, latent_dim) must return a list of blocks, got {type(blocks).__name__}"
                )
            self.path = PathTransform(blocks, latent_dim).to(self._dtype)

    @property
    def _built_path(self) -> PathTransform | None:
        """The path without telling Pyro: each access to ``self.path`` inside a trace registers all its parameters."""
        return cast("PathTransform | None", self._modules.get("path"))

    @contextmanager
    def _encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[EncodedEnergy]:
        """Within the plates of the data: the energy bound to their encodings, and the path to their context."""
        self.initialize(*args, **kwargs)
        energy = self._held[0]
        path = self.path  # tells Pyro
        assert path is not None
        with ExitStack() as plates:
            for frame in energy.local.frames:
                full_size = frame.full_size or frame.size
                plate = pyro.plate(frame.name, full_size, subsample_size=frame.size, dim=frame.dim)
                energy.local.use_rows(frame.name, plates.enter_context(plate))
            encoder = self.encoder if "encoder" in self._modules else self._plain_encoder[0]
            encoded = encoder(*args, **kwargs)
            if not isinstance(encoded, tuple) or len(encoded) not in (2, 3):
                got = f"{len(encoded)} of them" if isinstance(encoded, tuple) else type(encoded).__name__
                raise ShapeError(f"the encoder must return (loc, scale) or (loc, scale, context), got {got}")
            energy.bind_encoding(encoded[0], encoded[1])
            path.set_context(encoded[2] if len(encoded) == 3 else None)
            yield energy

    # Pyro's interface --------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latents of all data; returns the model's sites."""
        with self._encoded(args, kwargs) as energy:
            path = self.get_transform()
            prior = dist.Normal(torch.zeros_like(energy.loc), 1.0, validate_args=False).to_event(1)
            base = PathBase(prior, path, validate_args=False)
            posterior = dist.TransformedDistribution(base, [path], validate_args=False)
            joint = pyro.sample(f"_{self._pyro_name}_latent", posterior, infer={"is_auxiliary": True})
            sites, log_det = energy.local.constrain_and_ladj(energy.decode(joint[..., : path.dim]))
            if am_i_wrapped():  # outside inference nobody reads a factor, and Pyro warns about it
                reverse = path.noise_log_prob(joint[..., path.dim :]) + energy.log_det + log_det
                pyro.factor(f"_{self._pyro_name}_reverse", -reverse, has_rsample=True)
            return {
                name: pyro.sample(name, dist.Delta(value, event_dim=value.dim() - joint.dim() + 1))
                for name, value in sites.items()
            }

    # Weighted paths ----------------------------------------------------------------------------------------------

    def sample_paths(
        self,
        num_samples: int,
        *args: Any,
        generator: Generator | None = None,
        observe: Observer | None = None,
        **kwargs: Any,
    ) -> WeightedPath:
        r"""Draw ``num_samples`` paths for each datum and weight them; nothing but their ends is kept.

        All fields have the data in their last batch dimensions: ``z`` is ``(num_samples, *plate_shape, latent_dim)`` in
        the model's unconstrained coordinates, ``log_weight`` is ``(num_samples, *plate_shape)``. Its mean over the
        samples is the ELBO of each datum, its log-mean-exp the importance-weighted bound. Under ``torch.no_grad()`` no
        graph is built.
        """
        with self._encoded(args, kwargs) as energy:
            path, loc = self.get_transform(), energy.loc
            start = torch.randn(num_samples, *loc.shape, dtype=loc.dtype, device=loc.device, generator=generator)
            result = path.stream(start, EnergyMemo(), generator, observe=observe)
            encoded_energy = result.memo.value(energy, result.x).double()
            log_base = -0.5 * start.double().square().sum(-1) - 0.5 * path.dim * math.log(2 * math.pi)
            log_det = energy.log_det.double()
            log_q = log_base - result.log_ratio - log_det
            u = encoded_energy + log_det
            return WeightedPath(energy.decode(result.x), -u - log_q, log_q, u, result.infos)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Unconstrained latents ``(*batch, *plate_shape, latent_dim)`` of the last call to the model's sites."""
        return self._held[0].local.constrain(z)
