"""A small variational autoencoder of scikit-learn's digits: data, program, encoder."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import PyroBoltzmannError

__all__ = ["CONTEXT_DIM", "LATENT_DIM", "PIXELS", "Digits", "Encoder", "Vae", "digits"]

PIXELS, LATENT_DIM, CONTEXT_DIM = 64, 8, 16
NUM_TRAIN, SPLIT_SEED = 1400, 0


class Digits(NamedTuple):
    """Binary images, ``(n, 64)``: 1400 to train on, 397 to test on."""

    train: Tensor
    test: Tensor

    @property
    def target_hash(self) -> str:
        """A hash of the images and their split."""
        return hashlib.sha256(torch.cat(self).to(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def digits() -> Digits:
    """The 1797 images of 8 x 8 pixels, white where the grey value is above half, in one fixed split.

    :raises PyroBoltzmannError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PyroBoltzmannError(
            'the digits come with scikit-learn, which is not installed; pip install "pyro-boltzmann[sklearn]"'
        ) from error
    grey = torch.as_tensor(load_digits().data, dtype=torch.get_default_dtype()) / 16
    order = torch.randperm(len(grey), generator=torch.Generator().manual_seed(SPLIT_SEED))
    images = (grey > 0.5).to(grey)[order]
    return Digits(images[:NUM_TRAIN], images[NUM_TRAIN:])


class Vae(nn.Module):
    r"""The program :math:`z_i \sim N(0, I)`, :math:`x_i \sim \mathrm{Bernoulli}(\mathrm{decoder}(z_i))`."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, PIXELS)
        )

    def forward(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x)

    def image(self, z: Tensor) -> Tensor:
        """The probability of each pixel, ``(*batch, 64)``."""
        return torch.sigmoid(self.decoder(z))


class Encoder(nn.Module):
    """Mean, standard deviation and context of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(PIXELS, 128),
            nn.Tanh(),
            nn.Linear(128, 64),
            nn.Tanh(),
            nn.Linear(64, 2 * LATENT_DIM + CONTEXT_DIM),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loc, raw, context = self.net(x).split([LATENT_DIM, LATENT_DIM, CONTEXT_DIM], -1)
        return loc, 0.05 + nn.functional.softplus(raw), context
