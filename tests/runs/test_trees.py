"""Trees of several evaluations: draws of p(z|x) stay together, estimates are restored."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xarray import Dataset, DataTree

from pyroae import zoo
from pyroae.commands.evaluate import per_datum
from pyroae.config import EvaluationSettings
from pyroae.evaluation.importance.above import UpperBound
from pyroae.evaluation.summary import evaluate
from pyroae.inference_data import to_datatree
from pyroae.runs.trees import OF_DRAWS, curve_group, likelihood_in, merged, read_tree, write_tree


def tree_of(mark: float, chains: int, draws: int, *, annealed: bool) -> DataTree:
    """A tree whose variables all have one value, which tells its evaluation."""
    sizes = {"chain": chains, "draw": draws, "datum": 3}
    value = Dataset({"z": (tuple(sizes), np.full(tuple(sizes.values()), mark))})
    groups = dict.fromkeys(OF_DRAWS, value)
    if not annealed:
        del groups["sample_stats"]
    groups["per_datum"] = Dataset({f"of_{mark:.0f}": ("datum", np.full(3, mark))})
    return DataTree.from_dict(groups)


def marks(tree: Any) -> dict[str, set[float]]:
    """The values in the groups of draws."""
    return {
        name: set(np.unique(tree[name].to_dataset()["z"].values))
        for name in OF_DRAWS
        if name in tree.children
    }


NO_DATA = DataTree.from_dict({"simulated": Dataset({"lower": ("datum", np.zeros(3))})})
NO_DRAWS = DataTree.from_dict({"per_datum": Dataset({"of_0": ("datum", np.zeros(3))})})


@pytest.mark.parametrize("swapped", [False, True])
def test_draws_of_one_evaluation_stay_together(swapped: bool) -> None:
    """Those of annealing, then the most of them; the other groups are united."""
    few, many = tree_of(1, 2, 5, annealed=True), tree_of(2, 4, 5, annealed=True)
    closed = tree_of(3, 9, 9, annealed=False)
    without = [name for name in OF_DRAWS if name != "sample_stats"]
    for one, other, mark, groups in (
        (few, many, 2.0, OF_DRAWS),
        (few, closed, 1.0, OF_DRAWS),
        (NO_DRAWS, closed, 3.0, without),
        (NO_DRAWS, few, 1.0, OF_DRAWS),
    ):
        both = merged(other, one) if swapped else merged(one, other)
        assert marks(both) == {name: {mark} for name in groups}
        expected = {*one["per_datum"].data_vars, *other["per_datum"].data_vars}
        assert set(both["per_datum"].data_vars) == expected


def test_as_many_draws_are_replaced_by_the_new_ones() -> None:
    old, new = (tree_of(mark, 2, 5, annealed=True) for mark in (1, 2))
    assert marks(merged(old, new)) == {name: {2.0} for name in OF_DRAWS}


def test_a_variable_with_the_name_of_a_group_is_read(tmp_path: Path) -> None:
    values = Dataset({"log_prior": ("sample", np.arange(3.0))})
    write_tree(tmp_path / "tree.nc", DataTree.from_dict({"log_prior": values, "other": values}))
    read: Any = read_tree(tmp_path / "tree.nc")
    for group in ("log_prior", "other"):
        assert read[group]["log_prior"].values.tolist() == [0.0, 1.0, 2.0]


def test_the_estimate_of_importance_sampling_is_restored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    system, x = zoo.ppca(6, latent=2), torch.randn(20, 6)
    found = evaluate(system, x, EvaluationSettings(("is",), 200, seed=0))
    made = found.likelihood
    assert made is not None
    tree = to_datatree(system.model, system.guide, x, statistics=per_datum(found), seed=0)
    assert likelihood_in(tree) is None
    tree["bound_curve"] = curve_group(made)
    write_tree(tmp_path / "evaluation.nc", tree)
    read = likelihood_in(merged(read_tree(tmp_path / "evaluation.nc"), NO_DATA))
    assert read is not None
    for name in ("log_px", "se", "interval", "ess", "jackknife", "draws"):
        torch.testing.assert_close(getattr(read, name), getattr(made, name), equal_nan=True)
    for name in ("eubo", "cubo"):
        one, other = getattr(read, name), getattr(made, name)
        for field in fields(UpperBound):
            first, second = (getattr(bound, field.name) for bound in (one, other))
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
        assert one.num_flagged == other.num_flagged
    assert made.eubo.values.isfinite().all()
    assert not torch.equal(made.eubo.values, made.cubo.values)
    torch.testing.assert_close(read.smoothed.khat, made.smoothed.khat, equal_nan=True)
