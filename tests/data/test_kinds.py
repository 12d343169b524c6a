"""What columns hold, which likelihood suits them, grey levels or counts, standardized features."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyroae.config import RunConfig
from pyroae.data.dataset import Dataset
from pyroae.data.kinds import columns_of_values, suggestion
from pyroae.data.loading import load
from pyroae.data.preprocessing import is_grey
from pyroae.errors import ConfigError, DataError
from pyroae.runs.data_of_run import splits_of
from pyroae.runs.default_likelihood import completed

DRAW = np.random.default_rng(0)
REAL = DRAW.normal(300.0, 50.0, (60, 2))
BITS = DRAW.integers(0, 2, (60, 1))
FEW = DRAW.poisson(3.0, (60, 1))
MANY = np.array([0, 1, 90, 2] * 15)[:, None]


@pytest.mark.parametrize(
    ("values", "likelihood", "scale"),
    [
        (BITS, "bernoulli", None),
        (DRAW.random((60, 3)), "bernoulli", None),
        (FEW, "poisson", None),
        (np.c_[MANY, BITS], "negative-binomial", None),
        (REAL, "normal:scale=learned", "standard"),
        (REAL.round(), "normal:scale=learned", "standard"),
        (-FEW, "normal:scale=learned", "standard"),
        (np.c_[REAL, BITS, BITS], "mixed:columns=normal(feature)*2+bernoulli*2", "standard"),
        (np.c_[MANY, REAL], "mixed:columns=negative-binomial+normal(feature)*2", "standard"),
        (np.c_[FEW, np.full(60, 7.5), REAL], "mixed:columns=poisson+normal(feature)*3", "standard"),
        (np.c_[np.tile(BITS, 200), REAL], "normal:scale=learned", "standard"),
        (np.where(np.arange(60)[:, None] % 7, BITS, np.nan), "bernoulli", None),
    ],
)
def test_suggested_likelihood(values: np.ndarray, likelihood: str, scale: str | None) -> None:
    found = suggestion(columns_of_values(values))
    assert (found.likelihood, found.scale) == (likelihood, scale)


# Grey levels or counts


@pytest.mark.parametrize(
    ("shape", "largest", "grey"),
    [
        ((9, 28, 28), 254, True),
        ((9, 8, 8, 3), 64, True),
        ((9, 28, 28), 16, False),
        ((9, 784), 254, True),
        ((9, 192), 200, True),
        ((9, 784), 37, False),
        ((9, 50), 37, False),
        ((9, 50), 254, False),
        ((9, 49), 254, False),
        ((9, 50), 255, True),
    ],
)
def test_grey_levels_and_counts(shape: tuple[int, ...], largest: int, grey: bool) -> None:
    assert is_grey(shape, largest) == grey
    values = np.zeros(shape, np.uint8)
    values.flat[0] = largest
    if grey:
        assert Dataset.from_array(values).x.max().item() == pytest.approx(largest / 255)
        return
    with pytest.raises(DataError, match=f"uint8 values up to {largest}, .* the scale none to"):
        Dataset.from_array(values)
    for scale, factor in (("255", 1 / 255), ("none", 1)):
        found = Dataset.from_array(values, scale=scale).x.max().item()
        assert found == pytest.approx(largest * factor)


def test_settings_of_scale_that_are_refused() -> None:
    with pytest.raises(ConfigError, match="either the scale 255 or a value_range, not both"):
        load(REAL, scale="255", value_range=(0, 1))
    with pytest.raises(ConfigError, match="either the scale none or a value_range, not both"):
        RunConfig(scale="none", value_range=(0.0, 1.0))
    with pytest.raises(ConfigError, match="unknown scale 'standrad': did you mean 'standard'"):
        load(REAL, scale="standrad")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"standardized and binarized \(threshold\)"):
        load(DRAW.random((60, 3)), scale="standard", binarize="threshold")
    assert RunConfig.from_mapping({"scale": 255}).scale == "255"


# Standardized features


@pytest.mark.usefixtures("float64")
def test_standardized_by_the_training_data() -> None:
    values = np.c_[REAL, np.full(60, 4.0)]
    stored, found = load(values), load(values, scale="standard")
    mean, deviation = stored.train.x.mean(0), stored.train.x[:, :2].std(0, correction=0)
    torch.testing.assert_close(found.train.x.mean(0), torch.zeros(3), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.train.x[:, :2].std(0, correction=0), torch.ones(2))
    assert stored.test is not None
    assert found.test is not None
    expected = (stored.test.x - mean)[:, :2] / deviation
    torch.testing.assert_close(found.test.x[:, :2], expected)
    assert found.standardization is not None
    torch.testing.assert_close(found.standardization.inverse(found.test.x), stored.test.x)
    assert found.fingerprint == stored.fingerprint


@pytest.mark.usefixtures("float64")
def test_missing_values_stay_missing() -> None:
    values = np.where(np.arange(120).reshape(60, 2) % 11, REAL, np.nan)
    x = load(values, scale="standard", missing=True).train.x
    assert x.isnan().any()
    torch.testing.assert_close(x.nanmean(0), torch.zeros(2), rtol=0, atol=1e-12)


# A run chooses its likelihood by its data, and records it.


@pytest.fixture
def table(tmp_path: Path) -> str:
    columns = {"a": REAL[:, 0], "n": MANY[:, 0], "b": REAL[:, 1], "kind": ["u", "v"] * 30}
    pd.DataFrame(columns).to_csv(tmp_path / "a.csv", index=False)
    return str(tmp_path / "a.csv")


def test_a_mixed_table(table: str) -> None:
    """Columns of counts are left as stored; other data are scaled by the run's own."""
    chosen = completed(RunConfig(data=table, labels="kind"))
    groups = "normal(feature)+negative-binomial+normal(feature)"
    assert chosen.config.likelihood == f"mixed:columns={groups}"
    assert chosen.config.scale == "standard"
    assert "columns of different kinds: likelihood mixed" in chosen.sentence
    splits = splits_of(chosen.config)
    assert set(splits.train.x[:, 1].tolist()) == {0, 1, 90, 2}
    assert splits.train.x[:, 0].mean().item() == pytest.approx(0, abs=1e-5)
    other = Path(table).with_name("b.csv")
    pd.read_csv(table).assign(a=1e4).to_csv(other, index=False)
    by = splits.standardization
    assert by is not None
    far = splits_of(chosen.config, str(other)).train.x[:, 0]
    assert far[0].item() == pytest.approx((1e4 - by.mean[0].item()) / by.deviation[0].item())
    assert completed(chosen.config).sentence == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"likelihood": "laplace"},
        {"system": "ppca"},
        {"binarize": "threshold"},
        {"value_range": (0.0, 500.0)},
        {"scale": "255"},
        {"data": "digits"},
    ],
)
def test_what_is_said_decides(table: str, settings: dict[str, Any]) -> None:
    config = RunConfig(**{"data": table, "labels": "kind", **settings})
    assert completed(config).config == config


def test_columns_of_a_condition_do_not_decide(table: str) -> None:
    config = RunConfig(data=table, labels="kind", condition="n", system="conditional-vae")
    assert completed(config).config.likelihood == "normal:scale=learned"


def test_grey_images_stay_bernoulli(tmp_path: Path) -> None:
    images = DRAW.integers(0, 256, (20, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    config = RunConfig(data=str(tmp_path / "images.npy"))
    assert completed(config).config == config
    np.save(tmp_path / "images.npy", images / 255)
    assert completed(config).config.likelihood == "bernoulli"


def test_columns_that_single_precision_cannot_hold_are_named() -> None:
    times = 1.6e9 + np.arange(50.0)
    with pytest.warns(UserWarning, match=r"column 0 \('t'\) loses its differences in float32"):
        Dataset.from_array(pd.DataFrame({"t": times, "v": times - 1.6e9}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dataset.from_array(pd.DataFrame({"t": times - 1.6e9, "c": 1e9, "v": 1e6 + times % 7}))
