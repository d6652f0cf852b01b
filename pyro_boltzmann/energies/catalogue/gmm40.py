"""The mixture of forty Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm, keeps_graph
from pyro_boltzmann.energies.catalogue.target import Target

__all__ = ["GMM40"]

# float32 values of (torch.rand(40, 2) - 0.5) * 2 * 40 with seed 0: a literal, because generators may change.
MEANS: tuple[tuple[float, float], ...] = (
    (-0.2994728088378906, 21.457744598388672),
    (-32.92180633544922, -29.43756103515625),
    (-15.406174659729004, 10.72629451751709),
    (-0.7925271987915039, 31.715579986572266),
    (-3.5497617721557617, 10.584502220153809),
    (-12.088522911071777, -7.862615585327148),
    (-38.21393966674805, -26.491283416748047),
    (-16.488924026489258, 1.4817428588867188),
    (15.813407897949219, 24.000911712646484),
    (-27.117643356323242, -17.418514251708984),
    (14.528684616088867, 33.215518951416016),
    (-8.232007026672363, 29.932470321655273),
    (-6.447334289550781, 4.2325639724731445),
    (36.21904754638672, -37.106815338134766),
    (-25.1815185546875, -10.126609802246094),
    (-15.591998100280762, 34.56003189086914),
    (-25.92718505859375, -18.413314819335938),
    (-27.94561767578125, -37.462440490722656),
    (-23.349618911743164, 34.3839225769043),
    (17.848735809326172, 19.38690185546875),
    (2.1036624908447266, -20.507339477539062),
    (6.767387390136719, -37.3477897644043),
    (-28.90264892578125, -20.621200561523438),
    (25.237518310546875, 23.452850341796875),
    (-17.73980140686035, -1.4432954788208008),
    (25.582427978515625, 39.765323638916016),
    (15.875287055969238, 5.403714179992676),
    (26.819454193115234, -23.552093505859375),
    (7.453761100769043, -31.01222038269043),
    (-27.723445892333984, -20.663341522216797),
    (18.098922729492188, 16.086416244506836),
    (-23.69409942626953, 12.084283828735352),
    (21.958881378173828, -5.048694610595703),
    (1.527261734008789, 9.2681884765625),
    (24.8150634765625, 38.40776443481445),
    (-30.82494354248047, -14.65878963470459),
    (15.720396041870117, 33.14197540283203),
    (34.808292388916016, 35.29426956176758),
    (7.9605817794799805, -34.78330612182617),
    (3.6796998977661133, -25.024213790893555),
)
# softplus(1) = log(1 + e).
STD = 1.3132616875182228
# Masses of the cells in which each component has the largest responsibility, by quadrature, to 1e-6.
CELL_MASSES: tuple[float, ...] = (
    0.0250000,
    0.0250007,
    0.0250000,
    0.0250000,
    0.0249991,
    0.0250002,
    0.0249999,
    0.0250009,
    0.0250028,
    0.0255817,
    0.0249980,
    0.0250000,
    0.0250007,
    0.0250000,
    0.0250141,
    0.0250000,
    0.0246079,
    0.0250000,
    0.0250000,
    0.0249989,
    0.0250004,
    0.0250050,
    0.0253559,
    0.0250009,
    0.0249989,
    0.0250027,
    0.0250000,
    0.0250000,
    0.0250137,
    0.0243362,
    0.0250005,
    0.0250000,
    0.0250000,
    0.0250003,
    0.0249968,
    0.0251034,
    0.0249990,
    0.0250005,
    0.0249813,
    0.0249996,
)


# Distances to means held at once: half a megabyte in float32, which stays in the caches.
WORKING_SET = 2**17
# Below this an exponential is nothing beside one; where it underflows, it takes a hundred times as long.
LOWEST = -80.0


class GMM40(ClosedForm, Target):
    r"""Mixture of 40 Gaussians of equal weight in two dimensions.

    .. math:: u(x) = -\log \frac{1}{40} \sum_{k=1}^{40} N(x; \mu_k, s^2 I), \qquad s = \log(1 + e)

    It is normalised (:math:`\log Z = 0`). This is variant A, with the means of fab-torch and iDEM. Modes overlap (the
    closest two means are 1.18 apart): :meth:`mode_assignment` takes the component of largest responsibility, which is
    the nearest mean, and :attr:`mode_probabilities` are the exact masses of those cells, within 3 % of 1/40.

    Source: Midgley et al., Flow Annealed Importance Sampling Bootstrap (2023), arXiv 2208.01893, section 5.1.

    >>> target = GMM40()
    >>> target(torch.zeros(3, 2)).shape, target.log_z
    (torch.Size([3]), 0.0)
    >>> target.mode_assignment(torch.tensor([-0.3, 21.5])).item()
    0
    """

    def __init__(self) -> None:
        means = torch.tensor(MEANS, dtype=torch.float64)
        # In these units a component is exp(-|x * unit - mean * unit|^2).
        self._unit = 1 / (STD * math.sqrt(2.0))
        # The box drawn in the literature.
        half_width = 56.0
        super().__init__(
            "gmm40",
            2,
            constants={"means": means, "std": STD},
            derived={
                "scaled_means": (means * self._unit).mT.contiguous(),
                "log_peak": torch.tensor(-math.log(len(MEANS) * 2 * math.pi * STD**2), dtype=torch.float64),
            },
            log_z=0.0,
            log_z_origin="exact",
            log_z_note="the density is normalised",
            mean_energy=6.859468829330,
            mode_probabilities=torch.tensor(CELL_MASSES, dtype=torch.float64),
            bounds=((-half_width, half_width), (-half_width, half_width)),
        )

    def __call__(self, x: Tensor) -> Tensor:
        if not keeps_graph(x):
            with torch.no_grad():
                parts = [self._components(part) for part in x.reshape(-1, 2).split(WORKING_SET // len(MEANS))]
                u = [least - weights.sum(0).log_() for _, least, weights in parts]
                return torch.cat(u).sub_(self._on("log_peak", x)).view(x.shape[:-1])
        first, second = self._scaled_differences(x)
        log_components = torch.addcmul(self._on("log_peak", x), first, first, value=-1)
        return -torch.addcmul(log_components, second, second, value=-1).logsumexp(-1)

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.reshape(-1, 2)
        means = self._on("scaled_means", x)
        u, gradient = x.new_empty(len(flat)), torch.empty_like(flat)
        rows = WORKING_SET // len(MEANS)
        for start in range(0, len(flat), rows):
            part = slice(start, start + rows)
            scaled, least, weights = self._components(flat[part])
            total = weights.sum(0)
            u[part] = least - total.log()
            gradient[part] = scaled.sub_((means @ weights).div_(total)).mul_(2.0 * self._unit).mT
        return u.sub_(self._on("log_peak", x)).view(x.shape[:-1]), gradient.view(x.shape)

    def noised_energy(self, x: Tensor, variance: float | Tensor) -> Tensor:
        r"""Exact energy under Gaussian noise of variance :math:`h`: the mixture with :math:`s^2 + h` in place of
        :math:`s^2`.

        :param x: ``(*batch, 2)``.
        :param variance: :math:`h \ge 0`, broadcast to ``(*batch)``.

        >>> target, x = GMM40(), torch.zeros(3, 2)
        >>> torch.allclose(target.noised_energy(x, 0.0), target(x))
        True
        """
        spread = torch.as_tensor(variance, dtype=x.dtype, device=x.device).unsqueeze(-1) + STD**2
        first, second = x.chunk(2, -1)
        means = self._on("means", x)
        square = (first - means[:, 0]).square() + (second - means[:, 1]).square()
        return -(square / (-2.0 * spread) - (2.0 * math.pi * len(MEANS) * spread).log()).logsumexp(-1)

    def _components(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled coordinates ``(2, batch)``, the smallest squared distance to a mean ``(batch)`` and the components
        relative to the largest ``(40, batch)``: the batch innermost, where element-wise work is."""
        means = self._on("scaled_means", flat).unsqueeze(-1)
        scaled = flat.mT * self._unit
        square = scaled[0] - means[0]
        square.mul_(square)
        other = scaled[1] - means[1]
        square.addcmul_(other, other)
        least = square.amin(0)
        return scaled, least, torch.sub(least, square, out=square).clamp_min_(LOWEST).exp_()

    def mode_assignment(self, x: Tensor) -> Tensor:
        first, second = self._scaled_differences(x)
        return torch.addcmul(first * first, second, second).argmin(-1)

    def _scaled_differences(self, x: Tensor) -> tuple[Tensor, Tensor]:
        means = self._on("scaled_means", x)
        first, second = (x * self._unit).chunk(2, -1)
        return first - means[0], second - means[1]

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        component = torch.randint(len(MEANS), (num_samples,), generator=generator, device=device)
        normal = torch.randn(num_samples, 2, generator=generator, device=device, dtype=torch.float64)
        means = self._on("means", normal)
        return means[component] + STD * normal
