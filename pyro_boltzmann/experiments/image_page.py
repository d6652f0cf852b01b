"""The words of the image experiment's page, and its comparison at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_boltzmann.experiments.image_chains import Curve
from pyro_boltzmann.experiments.image_scores import BACKWARD_PATHS, PSEUDO_COUNT, Scored

__all__ = ["CAPTIONS", "COLUMNS", "equal_cost", "introduction"]

COLUMNS = [
    "image_kl_raw", "image_kl", "ess", "log_z_error", "elbo", "eubo", "khat", "updates", "train_seconds",
    "sample_seconds", "train_evaluations", "draw_evaluations",
]  # fmt: skip

CAPTIONS = {
    "density": "The exact density, exact draws, and draws of our models, all with the same shades",
    "samples": "Draws of the published families by number of layers",
    "kl_layers": "KL against the number of layers; the dotted line is what exact draws score",
    "kl_evaluations": "KL of the draws against energy evaluations a draw: Metropolis chains from the Gaussian, and the "
    "same flows with other numbers of Metropolis steps",
}

SLACK = 1.1
"""A flow may cost this much more than the stochastic flow it is compared with."""


def equal_cost(scored: Mapping[str, Scored], pairs: Mapping[str, Sequence[str]]) -> list[str]:
    """Each stochastic flow beside the best flow alone, of its family and any depth, that costs no more.

    :param pairs: the flows alone for each stochastic flow.
    :return: lines of a Markdown table and one line that counts.
    """
    lines = [
        "| stochastic flow | CPU seconds | KL raw | KL reweighted | best flow alone | CPU seconds | KL raw | "
        "KL reweighted | stochastic is better |",
        "|---" * 9 + "|",
    ]
    verdicts = []
    for name, flows in pairs.items():
        one = scored[name]
        head = f"| {name} | {one.cost:.1f} | {one.value('image_kl_raw'):.4f} | {one.value('image_kl'):.4f} |"
        affordable = [scored[flow] for flow in flows if scored[flow].cost <= SLACK * one.cost]
        if not affordable:
            lines.append(f"{head} none at that cost | | | | |")
            continue
        best = min(affordable, key=lambda flow: flow.value("image_kl_raw"))
        weighted = min(flow.value("image_kl") for flow in affordable)
        better = (one.value("image_kl_raw") < best.value("image_kl_raw"), one.value("image_kl") < weighted)
        verdicts.append(better)
        word = {(True, True): "yes", (True, False): "raw only", (False, True): "reweighted only"}.get(better, "no")
        lines.append(
            f"{head} {best.model.name} | {best.cost:.1f} | {best.value('image_kl_raw'):.4f} | {weighted:.4f} | {word} |"
        )
    raw, reweighted = (sum(v[part] for v in verdicts) for part in (0, 1))
    summary = (
        f"Raw, the stochastic flow is better in {raw} of {len(verdicts)} comparisons; reweighted, in {reweighted}."
    )
    return [*lines, "", summary]


def introduction(
    scored: Mapping[str, Scored],
    headline: str,
    comparison: Sequence[str],
    curves: Mapping[str, tuple[str, Curve]],
    *,
    floor: tuple[float, float],
    count: int,
    data: tuple[int, int],
    outside: float,
    skipped: Sequence[int],
) -> str:
    """All that stands above the tables."""
    one = scored[headline]
    ratios = [one.value(name) / floor[0] for name in ("image_kl_raw", "image_kl")]
    return _TEXT.format(
        count=count,
        pseudo=PSEUDO_COUNT,
        floor=floor[0],
        spread=floor[1],
        outside=100 * outside,
        backward=BACKWARD_PATHS,
        data=data[0],
        many=data[1],
        headline=headline,
        layers=one.model.num_layers,
        raw=ratios[0],
        weighted=ratios[1],
        verdict="both are" if max(ratios) <= 1.5 else "not both are",
        comparison="\n".join(comparison),
        slack=round(100 * (SLACK - 1)),
        costs="\n".join(_costs(curves)),
        skipped=f" This run was too short for {', '.join(map(str, skipped))} layers." if skipped else "",
    )


def _costs(curves: Mapping[str, tuple[str, Curve]]) -> list[str]:
    lines = ["| sampler | energy evaluations a draw: KL raw |", "|---|---|"]
    for label, (_, curve) in curves.items():
        lines.append(f"| {label} | " + ", ".join(f"{spent:.0f}: {kl:.4f}" for spent, kl in curve) + " |")
    return lines


_TEXT = """\
A picture as a density in the plane, after Wu, Koehler and Noe (arXiv 2002.06707), section 5; the picture is this
package's own target `image`, whose log Z = 2.376254 and bin integrals are exact. `image_kl` is a plug-in
$\\mathrm{{KL}}(p\\,\\|\\,q)$ in nats between the *integrals* of the density over 50 x 50 bins (and one bin for the
{outside:.2f} % of the mass outside the square) and the shares of N = {count:,} draws, with a pseudo-count of {pseudo} a
bin: of the reweighted draws, and as `image_kl_raw` of the draws as they come. The floor, what exact draws of that
number score, is {floor:.5f} +- {spread:.5f} (standard deviation). The paper's own figures (0.40 to 0.05 between 2 and
16 layers) are of other pictures and of a metric that compares the density at the ends of a grid, whose floor is 0.0446:
they cannot be compared with these.

A *layer* is one coupling: it transforms one coordinate given the other, and then the two are swapped. `rnvp` has
affine couplings (networks 64-64-64), `nsf` rational-linear splines of 20 bins on [-4, 4], which start at the
identity; `_snf` adds ten Metropolis steps of scale 0.1 after every second layer, annealed from the Gaussian to the
picture. As in the paper these four families are trained by maximum likelihood on {data:,} *exact* draws of the
picture (batch 500; Adam 3e-3 falling by a cosine; the number of updates is chosen so that all take about the same
time, 2000 at most).{skipped}

`{headline}`, fixed before the run, has {layers} layers: the couplings of `nsf` with 24 bins, trained by maximum
likelihood on {many:,} exact draws (batch 1000, Adam 5e-3 with a cosine); then, only when it draws, 20 Metropolis
steps of scales from 2 to 0.1 on the picture itself, which move draws and leave their weights as they are. `ours_flow`
is the flow alone, trained 10 % longer instead. `ours_energy` never sees an exact draw: it learns draws of tempered
SMC (random walks from the standard normal law), then its own reweighted draws.

**The headline's KL is {raw:.2f} (raw) and {weighted:.2f} (reweighted) times the floor: {verdict} within 1.5 times.**

ELBO, ESS and log Z are of the same draws, EUBO is of {backward:,} exact draws run backwards; through annealed steps all
are of paths, and looser than those of the flow alone. `updates` are of training, `train_seconds` the CPU seconds it
took, `sample_seconds` the CPU seconds for 100,000 weighted draws, `train_evaluations` and `draw_evaluations` energies
and gradients, in all and for a draw.

## At equal cost

Cost is CPU seconds on one thread, measured here: training, and all N draws. Each stochastic flow stands beside the best
of the flows alone of its family, of whatever depth, that cost at most {slack} % more (the best raw and the best
reweighted need not be the same one; the one named is the former).

{comparison}

## Against Metropolis chains

Chains start from the standard normal law. Their scale is 0.1, the paper's, or 0.5, which suits this picture better. The
flows are those of the tables, with other numbers of steps in each block; evaluations in training are not counted here.

{costs}"""
