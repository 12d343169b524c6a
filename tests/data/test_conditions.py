"""Conditions of data: labels as one-hot vectors, columns of a table, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyroae.data.batching import served
from pyroae.data.conditions import Conditioning
from pyroae.data.dataset import Dataset
from pyroae.data.loading import load
from pyroae.errors import PyroaeError

X = np.random.default_rng(0).random((20, 3))
LABELS = np.arange(20) % 4
TABLE = pd.DataFrame({"a": X[:, 0], "age": LABELS * 10.0, "b": X[:, 1], "h": X[:, 2]})


def test_labels_become_one_hot_vectors_in_every_part() -> None:
    splits = load((X, LABELS), valid=0.2, test=0.2, condition="labels")
    for part in (splits.train, splits.valid, splits.test):
        assert part is not None
        assert part.condition is not None
        assert part.labels is not None
        assert part.condition_names == ("0", "1", "2", "3")
        assert part.condition.argmax(1).tolist() == part.labels.tolist()
        assert part.condition.sum(1).tolist() == [1.0] * len(part)


def test_columns_become_the_condition_and_no_features() -> None:
    splits = load(TABLE, valid=0, test=0, condition="h,age")
    assert splits.train.shape == (2,)
    assert splits.train.condition_names == ("h", "age")
    torch.testing.assert_close(splits.train.x, torch.tensor(X[:, :2]).float())
    expected = torch.tensor(np.stack([X[:, 2], LABELS * 10.0], 1)).float()
    torch.testing.assert_close(splits.train.condition, expected)


def test_the_test_set_of_a_source_has_the_classes_of_the_training_data() -> None:
    splits = load(((X, LABELS), (X[:2], [3, 1])), valid=0, condition="labels")
    assert splits.test is not None
    assert splits.test.condition is not None
    assert splits.test.condition.argmax(1).tolist() == [3, 1]


def test_other_labels_have_another_fingerprint() -> None:
    one, other = (
        load((X, labels), condition="labels").fingerprint for labels in (LABELS, LABELS[::-1])
    )
    assert one != other
    assert load((X, LABELS)).fingerprint == load((X, LABELS[::-1])).fingerprint


@pytest.mark.parametrize("device", ["cpu", None])
def test_batches_carry_the_condition_beside_new_draws_of_x(device: str | None) -> None:
    data = load((np.round(X) * 0.5 + 0.25, LABELS), valid=0, test=0, condition="labels")
    data = load(data.train, binarize="dynamic", valid=0, test=0)
    plain = replace(data.train, condition=None)
    together = list(served(data.train, 6, seed=1, epoch=2, device=device))
    alone = list(served(plain, 6, seed=1, epoch=2, device=device))
    rows = torch.cat([c for _, c in together])
    assert sorted(rows.argmax(1).tolist()) == sorted(LABELS.tolist())
    for (x, c), (y,) in zip(together, alone, strict=True):
        assert torch.equal(x, y)
        assert set(x.unique().tolist()) <= {0.0, 1.0}
        assert len(c) == len(x)
        assert c.sum(1).tolist() == [1.0] * len(c)


def test_rows_of_x_and_c_stay_together() -> None:
    numbered = Dataset.from_array(np.arange(20.0)[:, None]).conditioned_on(np.arange(20)[:, None])
    for x, c in served(numbered, 6, seed=0, epoch=1):
        assert torch.equal(x, c)
    chosen = numbered.subset(np.array([5, 3])).first(1)
    assert chosen.condition is not None
    assert chosen.condition.tolist() == [[5.0]]


def test_optional_labels_are_zero_where_they_are_missing() -> None:
    labels = np.array([1.0, np.nan, 0.0, -1.0] * 5)
    splits = load((X, labels), valid=0, test=0, condition=Conditioning(optional=True))
    assert splits.train.condition_names == ("0", "1")
    assert splits.train.condition is not None
    assert splits.train.condition[:4].tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("source", "condition", "words"),
    [
        (X, "labels", "array has no labels to be conditioned on"),
        ((X, [None, *["a"] * 19]), "labels", "the label of datum 0 of array is missing"),
        ((X, [*["a"] * 19, ""]), "labels", "the label of datum 19 of array is missing"),
        ((X, [np.nan, *[1.0] * 19]), "labels", "the label of datum 0 of array is missing"),
        (((X, LABELS), (X[:1], [7])), "labels", "label '7' of datum 0 of array was never seen"),
        ((X, LABELS), "age", "no named columns, so none is 'age'"),
        (TABLE, "ages", "unknown column of array 'ages': did you mean 'age'"),
        (TABLE, "a,b,h,age", "no feature is left"),
        (TABLE.assign(age=np.nan), "age", "the column 'age' of datum 0 is nan"),
        (TABLE, "a,a", "different names of columns"),
        (TABLE, "labels,a", "either of the labels or of columns"),
    ],
)
def test_refused_conditions(source: Any, condition: str, words: str) -> None:
    with pytest.raises(PyroaeError, match=words):
        load(source, condition=condition)


@pytest.mark.parametrize(
    ("c", "words"),
    [
        (np.zeros((19, 2)), r"has the shape \(19, 2\); it needs a row for each datum"),
        (np.zeros(20), "needs a row for each datum"),
        (np.full((20, 1), np.inf), "not finite"),
    ],
)
def test_refused_arrays_of_conditions(c: np.ndarray, words: str) -> None:
    with pytest.raises(PyroaeError, match=words):
        Dataset.from_array(X).conditioned_on(c)


def test_streamed_data_have_no_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "large.npy", X)
    monkeypatch.setattr("pyroae.data.scan.IN_MEMORY", 1)
    with pytest.raises(PyroaeError, match="larger than memory and read in slices"):
        load(str(tmp_path / "large.npy"), condition="labels")
