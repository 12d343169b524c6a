"""Scores of standardized data are densities in the units of their source."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pyroae
from pyroae import TrainConfig, zoo
from pyroae.comparison.budget import Budget
from pyroae.config import Scoring
from pyroae.objectives.named import iwae
from pyroae.studies.trainings import compare_training

pytestmark = pytest.mark.usefixtures("no_study_figures")


def test_scores_curves_and_figures_are_in_the_units_of_the_source() -> None:
    noise = np.random.default_rng(0)
    table = noise.normal(size=(60, 1)) * [300.0, 2.0, 0.1] + noise.normal(size=(60, 3))
    splits: Any = pyroae.load(table, scale="standard")
    plain = {
        name: replace(getattr(splits, name), standardization=None)
        for name in ("train", "valid", "test")
    }
    given: dict[str, Any] = {
        "budget": Budget("epochs", 1),
        "seeds": (0,),
        "config": TrainConfig(batch_size=16),
        "scoring": Scoring(num_particles=30),
        "progress": False,
    }
    make = lambda: zoo.ppca(3, latent=1)  # noqa: E731
    outcomes: list[Any] = [
        compare_training(make, data, {"iwae": iwae}, **given).outcomes[0]
        for data in (splits, replace(splits, **plain))
    ]
    own, standardized = outcomes
    units = splits.standardization.deviation.log().sum().item()
    assert abs(units) > 1
    assert own.nll - standardized.nll == pytest.approx(units, abs=1e-6)
    difference = standardized.score.log_px - own.score.log_px
    np.testing.assert_allclose(difference.numpy(), units, atol=1e-6)
    corrections = [each.score.correction.log_px for each in (standardized, own)]
    np.testing.assert_allclose((corrections[0] - corrections[1]).numpy(), units, atol=1e-6)
    curves = [each.curve[-1].nll for each in (own, standardized)]
    assert curves[0] - curves[1] == pytest.approx(units, abs=1e-6)
    for name, shift in (("nelbo", units), ("distortion", units), ("rate", 0.0)):
        above = own.figures[name] - standardized.figures[name]
        assert above == pytest.approx(shift, abs=1e-5), name
