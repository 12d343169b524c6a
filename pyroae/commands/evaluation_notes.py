"""Sentences of `pyroae evaluate` on how far its figures can be trusted."""

from pyroae.evaluation.annealing.estimates import AISEstimate
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate
from pyroae.evaluation.importance.streams import LEAST_ESS, LEAST_FOR_PSIS
from pyroae.evaluation.summary import Evaluation
from pyroae.training.validation import DEAD


def notes_of(found: Evaluation) -> list[str]:
    """Say in sentences how far the figures of an evaluation can be trusted.

    Args:
        found: The evaluation.

    Returns:
        The sentences.
    """
    notes = []
    if found.log_units is not None:
        notes.append(
            "log p(x), bounds and distortion are densities in the units of the data file: those of "
            f"the standardized values less {found.log_units.mean():.3f} nats per datum (the sum of "
            "log deviations); squared errors and pictures are of standardized values"
        )
    if found.likelihood is not None:
        notes += [*_of_likelihood(found.likelihood), *_from_above(found.likelihood)]
    for name, annealed in (
        ("AIS", found.annealed),
        ("BDMC", found.bidirectional and found.bidirectional.forward),
    ):
        if annealed:
            settings, rate = annealed.settings, annealed.acceptance_rate
            notes.append(
                f"{name}: {settings.num_chains} chains, {settings.num_distributions:,} "
                f"distributions, acceptance {rate:.2f} (target {settings.target_acceptance:.2f}), "
                f"median ESS {annealed.ess.median():.1f}"
            )
            if len(bad := annealed.unreliable.tolist()):
                notes.append(
                    f"{name}: one chain has all the weight, or hardly a move is accepted, for "
                    f"{len(bad)} of {len(annealed.ess)} data, which are not to be trusted: "
                    f"{_shown(bad)}"
                )
            if len(bad := annealed.unreliable_posterior.tolist()):
                notes.append(
                    f"{name}: the draws of the posterior of {len(bad)} data are not to be trusted: "
                    f"{_shown(bad)}"
                )
    if found.annealed is not None:
        notes += _of_rate_distortion(found.annealed)
    if found.quadrature is not None and not bool(found.quadrature.converged.all()):
        notes.append(
            f"quadrature: {int((~found.quadrature.converged).sum())} data have not converged"
        )
    if found.gaps is not None and len(bad := found.gaps.unreliable.tolist()):
        notes.append(f"gaps: the log p(x) of {len(bad)} data is not to be trusted: {_shown(bad)}")
    if found.information is not None and found.information.is_saturated:
        notes.append(
            "the lower bound on the mutual information is at its limit, log N: give more data"
        )
    if "live_share" in found.results and not found.results["live_share"].estimate:
        notes.append(DEAD)
    if found.undefined:
        notes.append(f"no log-likelihood: {found.undefined}")
    return notes


def _of_likelihood(estimate: LikelihoodEstimate) -> list[str]:
    count = estimate.num_particles
    notes = [
        f"K = {count:,}: error of the NLL for these data {estimate.error:.4f} (Monte Carlo "
        f"{estimate.monte_carlo_se:.4f}, bias {estimate.bias:+.4f}), median ESS "
        f"{estimate.ess.median():.0f}"
    ]
    if not estimate.is_within_tolerance:
        notes.append(
            f"the tolerance of {estimate.tolerance} is not reached: give more --num-particles, or "
            "a better --proposal"
        )
    if count < LEAST_FOR_PSIS:
        return [*notes, f"no k̂, which needs K ≥ {LEAST_FOR_PSIS}: no error can be trusted"]
    bad = estimate.unreliable.tolist()
    limit = float(estimate.khat_limit.min())
    if not bad:
        good = f"k̂ is below {limit:.2f} and the ESS is {LEAST_ESS:.0f} or more for all"
        return [*notes, f"{good} {len(estimate.draws)} data: the errors may be trusted"]
    return [
        *notes,
        f"k̂ is {limit:.2f} or more, or not known, or the ESS is below {LEAST_ESS:.0f}, for "
        f"{len(bad)} of {len(estimate.draws)} data: neither their log p(x) nor its error is to be "
        f"trusted (--retry local, or --method ais): {_shown(bad)}",
    ]


def _of_rate_distortion(annealed: AISEstimate) -> list[str]:
    """A sentence where there is no curve, or where parts of it are not to be trusted."""
    curve = annealed.rate_distortion
    if curve is None:
        return ["no rate–distortion curve, as the path starts at the guide (--start prior has one)"]
    bad = curve.unreliable.any(0).nonzero().flatten().tolist()
    if not bad:
        return []
    return [
        f"rate–distortion: at some β one chain has all the weight for {len(bad)} of "
        f"{curve.rate.shape[1]} data, which are not to be trusted there: {_shown(bad)}"
    ]


def _from_above(estimate: LikelihoodEstimate) -> list[str]:
    """How far EUBO and CUBO can be trusted, one sentence each."""
    total, notes = len(estimate.draws), []
    for name, bound in (("EUBO", estimate.eubo), ("CUBO", estimate.cubo)):
        flagged = f"{bound.num_flagged} of {total} data flagged"
        if bound.is_reported:
            notes.append(
                f"{name}: an upper bound as K → ∞ only, biased by {bound.bias.mean():+.4f} here; "
                f"{flagged}, {bound.num_without_interval} without an interval"
            )
        else:
            notes.append(f"{name}: no mean, with {flagged}: k̂ is too high or not known")
    return notes


def _shown(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:20])) + (", …" if len(indices) > 20 else "")
