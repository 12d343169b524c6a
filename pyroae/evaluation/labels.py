"""Labels of the figures of an evaluation, in the order in which tables show them."""

from dataclasses import dataclass

LABELS = {
    "nll": "NLL by importance sampling",
    "nll_50": "  at K = 50",
    "nll_jackknife": "  bias removed by the jackknife",
    "nll_psis": "  Pareto-smoothed",
    "unreliable": "  data that are not to be trusted",
    "nll_corrected": "NLL, corrected by local proposals",
    "nll_local": "NLL by a proposal fitted to each datum",
    "eubo": "log p(x) ≲ EUBO",
    "eubo_flagged": "  data that EUBO flags",
    "cubo": "log p(x) ≲ CUBO",
    "cubo_flagged": "  data that CUBO flags",
    "nll_ais": "NLL by annealing",
    "nll_exact": "NLL, exact",
    "nll_quadrature": "NLL by quadrature",
    "bdmc_lower": "simulated data: log p(x), lower",
    "bdmc_upper": "simulated data: log p(x), upper",
    "bdmc_gap": "simulated data: BDMC gap",
    "nelbo": "negative ELBO",
    "rate": "rate",
    "distortion": "distortion",
    "rate_ais": "rate of the posterior, by annealing",
    "distortion_ais": "distortion of the posterior, by annealing",
    "inference_gap": "inference gap",
    "amortization_gap": "amortization gap, diagonal q*",
    "approximation_gap": "approximation gap, diagonal q*",
    "amortization_gap_full_rank": "amortization gap, full-rank q*",
    "approximation_gap_full_rank": "approximation gap, full-rank q*",
    "mutual_information_lower": "mutual information, lower",
    "mutual_information_upper": "mutual information, upper",
    "marginal_kl_lower": "KL(q(z) ‖ p(z)), lower",
    "marginal_kl_upper": "KL(q(z) ‖ p(z)), upper",
    "total_correlation": "total correlation of q(z|x)",
    "active_units": "active units",
    "squared_error": "squared error",
    "wrong_codes": "share of wrong codes",
    "bits_per_dimension": "bits per dimension",
    "bits_per_dimension_bound": "bits per dimension, by the negative ELBO",
    "zero_share": "share of codes that are exactly 0",
    "live_share": "share of units that are not 0 for some datum",
    "accuracy": "accuracy of the classes",
}
"""The label of each figure by its name; `rate_z2` is the rate of the site z2."""


PER_SITE = (
    "rate",
    "active_units",
    "latent_scatter",
    "marginals",
    "pairs",
    "fitted",
    "sequences",
    "predictive_check",
)
"""Figures and pictures that there are for single sites too, whose name then follows theirs."""


COUNTS = ("active_units", "unreliable", "eubo_flagged", "cubo_flagged")
"""Figures that are counts, and what their names begin with for single sites."""


@dataclass(frozen=True)
class Picture:
    """What a picture of an evaluation shows.

    Attributes:
        label: Its title in the report.
        results: The names of the results whose methods and K are those of the picture; empty if it
            depends on no draws, or on those of several methods, which it names itself.
    """

    label: str
    results: tuple[str, ...] = ()


PICTURES = {
    "sandwich": Picture("Bounds and estimates of log p(x)"),
    "bound_curve": Picture("The bound against K", ("nll",)),
    "likelihood_per_datum": Picture("log p(x) of each datum", ("nll",)),
    "khat": Picture("Pareto k̂ of each datum", ("nll",)),
    "extremes": Picture("Data of the lowest and the highest log p(x)", ("nll",)),
    "rate_distortion": Picture("Rate and distortion", ("rate",)),
    "kl_per_unit": Picture("KL of each latent unit"),
    "latent_scatter": Picture("Posterior means"),
    "manifold": Picture("The learned manifold"),
    "reconstructions": Picture("Data and reconstructions"),
    "sequences": Picture("Sequences and their replicates"),
    "marginals": Picture("The distribution of each column"),
    "pairs": Picture("Pairs of columns"),
    "fitted": Picture("Data against their fitted means"),
    "columns": Picture("Reconstruction errors of columns"),
    "samples": Picture("Samples of the model"),
    "predictive_check": Picture("Predictive checks"),
    "filters": Picture("Filters"),
    "pseudo_inputs": Picture("Pseudo-inputs of the prior"),
}
"""The pictures of an evaluation by the names of their files, in the order of the report."""


def label_of(name: str) -> str:
    """Return the label of a figure.

    Args:
        name: The name of a result.

    Returns:
        Its label; the name in words if it has none.

    >>> label_of("rate"), label_of("rate_z2"), label_of("my_figure")
    ('rate', 'rate, z2', 'my figure')
    """
    base = _base(name, LABELS)
    if base is None:
        return name.replace("_", " ")
    return LABELS[base] + ("" if name == base else f", {name.removeprefix(f'{base}_')}")


def rank_of(name: str) -> tuple[int, str]:
    """Return the place of a figure in tables.

    Args:
        name: The name of a result.

    Returns:
        A key to sort by, with figures that have no label last.
    """
    base = _base(name, LABELS)
    return (len(LABELS) if base is None else list(LABELS).index(base), name)


def is_count(name: str) -> bool:
    """Return whether a figure is a number of things, shown without decimals.

    Args:
        name: The name of a result.

    Returns:
        True for the active units, of a site too, and for unreliable and flagged data.
    """
    return name.startswith(COUNTS)


def picture_of(name: str) -> Picture:
    """Return what a picture shows.

    Args:
        name: The name of its file, without a suffix.

    Returns:
        Its entry of `PICTURES`; a label made of the name if it has none.

    >>> picture_of("latent_scatter_z2").label, picture_of("training_curves").label
    ('Posterior means, z2', 'training curves')
    """
    base = _base(name, PICTURES)
    if base is None:
        return Picture(name.replace("_", " "))
    found = PICTURES[base]
    rest = "" if name == base else f", {name.removeprefix(f'{base}_')}"
    return Picture(found.label + rest, found.results)


def picture_rank(name: str) -> tuple[int, str]:
    """Return the place of a picture in the report.

    Args:
        name: The name of its file, without a suffix.

    Returns:
        A key to sort by, with pictures that have no label last.
    """
    base = _base(name, PICTURES)
    return (len(PICTURES) if base is None else list(PICTURES).index(base), name)


def _base(name: str, labels: dict[str, str] | dict[str, Picture]) -> str | None:
    """The name with a label that this one is, or is one of a single site of."""
    if name in labels:
        return name
    return next((one for one in PER_SITE if name.startswith(f"{one}_") and one in labels), None)
