"""Every figure of an evaluation is known to depend on the unit of the data, or not to."""

from pyroae.evaluation.labels import LABELS
from pyroae.evaluation.units import ABOVE, BELOW

CONVERTED = {"nll_50", "nll_corrected"}
"""Made of estimates that have been converted."""


FREE = {
    *("unreliable", "eubo_flagged", "cubo_flagged", "active_units", "wrong_codes", "accuracy"),
    *("zero_share", "live_share", "squared_error", "rate", "rate_ais", "bdmc_gap"),
    *("inference_gap", "amortization_gap", "approximation_gap", "total_correlation"),
    *("amortization_gap_full_rank", "approximation_gap_full_rank"),
    *("mutual_information_lower", "mutual_information_upper"),
    *("marginal_kl_lower", "marginal_kl_upper"),
}
"""Counts, shares, squared errors of the values as they are, and differences of log-densities."""


IMAGES = {"bits_per_dimension", "bits_per_dimension_bound"}
"""Of images of 8 bits, which are not standardized."""


def test_each_figure_is_converted_or_free_of_the_unit() -> None:
    """A new figure of log p(x) that is in neither list would be of standardized values."""
    lists = [set(BELOW), set(ABOVE), CONVERTED, FREE, IMAGES]
    assert set.union(*lists) == set(LABELS)
    assert sum(map(len, lists)) == len(LABELS)
