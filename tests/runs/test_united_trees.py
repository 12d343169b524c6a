"""What a united evaluation says of its bounds and variables is that of one evaluation each."""

import numpy as np
import pytest
from xarray import Dataset, DataTree

from pyroae.evaluation.results import Result
from pyroae.evaluation.sandwich import sandwich_of
from pyroae.runs.trees import describe, merged

DRAWS = (("chain", "draw", "datum"), np.zeros((2, 3, 4)))


def row(name: str, estimate: float, method: str, num_particles: int) -> Result:
    return Result(name, estimate, 1.0, 12, num_particles, 0.1, method, 0.1)


def annealed(posterior: bool = True) -> DataTree:
    stats = Dataset({"ess": ("datum", np.ones(4)), "log_weight": (("c", "datum"), np.ones((2, 4)))})
    groups = {"sample_stats": stats, "per_datum": Dataset({"log_px_ais": ("datum", np.zeros(4))})}
    drawn = {"posterior": Dataset({"rate": DRAWS}), "log_prior": Dataset({"rate": DRAWS})}
    return DataTree.from_dict({**groups, **(drawn if posterior else {})})


def sampled() -> DataTree:
    values = {name: ("datum", np.zeros(4)) for name in ("ess", "log_px", "rate")}
    return DataTree.from_dict({"per_datum": Dataset(values)})


def test_a_gap_counts_for_annealing_with_the_same_number_of_chains() -> None:
    """The gap falls with the number of chains: that of 16 is no bound of the error of 4."""
    rows = [
        row("nll_ais", 89.4, "ais, 100 distributions", 16),
        row("nll_ais", 90.0, "ais, 100 distributions", 4),
        row("bdmc_gap", 0.5, "bdmc, 100 distributions", 4),
    ]
    assert sandwich_of(rows)["AIS + BDMC gap, upper"][0] == pytest.approx(-89.5)
    assert "AIS + BDMC gap, upper" not in sandwich_of([rows[0], rows[2]])
    more = [*rows, row("bdmc_gap", 0.1, "bdmc, 100 distributions", 16)]
    assert sandwich_of(more)["AIS + BDMC gap, upper"][0] == pytest.approx(-89.3)


def test_a_bound_from_above_is_withdrawn_by_more_draws_that_flag_it() -> None:
    """Where most are flagged at a larger K there is no mean, and that at a smaller K is no more."""
    rows = [
        row("eubo", -80.0, "is, guide", 100),
        row("eubo_flagged", 2, "is, guide", 100),
        row("nll", 90.0, "is, guide", 100),
    ]
    assert sandwich_of(rows)["EUBO, upper, 2 flagged"][0] == -80.0
    more = [row("eubo_flagged", 10, "is, guide", 5000), row("nll", 89.0, "is, guide", 5000)]
    assert list(sandwich_of([*rows, *more])) == ["IWAE, K = 5,000"]


def test_each_group_has_the_method_that_it_is_of() -> None:
    """A site may have the name of a result, and the ESS of annealing is not that of sampling."""
    results = {
        "nll": row("nll", 90.0, "is, guide", 50),
        "nll_ais": row("nll_ais", 90.0, "ais, 100 distributions", 4),
        "nll_exact": row("nll_exact", 90.0, "exact", 0),
        "rate": row("rate", 90.0, "guide", 100),
    }
    tree = describe(annealed(), results, {})
    for group, name in (("sample_stats", "ess"), ("posterior", "rate"), ("log_prior", "rate")):
        assert tree[group][name].attrs["method"] == "ais, 100 distributions", group
    closed = describe(DataTree.from_dict({"posterior": Dataset({"rate": DRAWS})}), results, {})
    assert closed["posterior"]["rate"].attrs["method"] == "exact"
    of_guide = DataTree.from_dict({"guide": Dataset({"rate": DRAWS})})
    assert "method" not in describe(of_guide, results, {})["guide"]["rate"].attrs
    assert describe(sampled(), results, {})["per_datum"]["ess"].attrs["num_particles"] == 50


def test_the_weights_of_annealing_stay_without_posterior_draws() -> None:
    old, new = annealed(posterior=False), sampled()
    for tree in (merged(old, new), merged(new, old)):
        assert {"log_weight", "ess"} == set(tree["sample_stats"].data_vars)
        assert {"log_px_ais", "log_px"} <= set(tree["per_datum"].data_vars)
