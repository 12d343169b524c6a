"""Data are checked, scaled, split, binarized and served; every draw is a function of its seed
alone.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyroae.data import batching
from pyroae.data.arrays import Source
from pyroae.data.batching import _loaded, batches, resident
from pyroae.data.batching import served as serve
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Binarization, Splits, load
from pyroae.data.named_datasets import DATASETS
from pyroae.errors import ConfigError, DataError, PyroaeError
from pyroae.runtime.processes import Share

GREY = np.random.default_rng(0).random((40, 3))


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Source:
    """A registered dataset `own` with a test set of its own, which the training data do not
    overlap.
    """
    source = Source(
        "own", np.arange(100.0)[:, None], None, Source("own", np.arange(100.0, 107.0)[:, None])
    )
    monkeypatch.setattr(DATASETS, "_choices", {"own": lambda root: source})
    return source


def parts(splits: Splits) -> tuple[Dataset, Dataset, Dataset]:
    assert splits.valid is not None
    assert splits.test is not None
    return splits.train, splits.valid, splits.test


def served(
    data: Dataset, size: int = 100, seed: int = 0, epoch: int = 0, device: str | None = None
) -> list[Tensor]:
    return list(batches(data, size, seed=seed, epoch=epoch, device=device))


# Values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 255], [51, 102]], np.uint8), [[0, 1], [0.2, 0.4]]),
        (np.array([[[0, 64]], [[0, 0]]], np.uint8), [[0, 64 / 255], [0, 0]]),
        (np.array([[0, 1], [1, 1]], np.uint8), [[0, 1], [1, 1]]),
        (np.array([[False, True], [True, True]]), [[0, 1], [1, 1]]),
        (np.array([[0, 255], [-51, 102]]), [[0, 255], [-51, 102]]),
        (np.array([[0, 40000], [1, 2]], np.uint16), [[0, 40000], [1, 2]]),
        (np.array([[0.5, -3.0]], np.float16), [[0.5, -3.0]]),
        (torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8), [[0, 1], [0.2, 0.4]]),
        ([[1, 2.5], [3, 4]], [[1, 2.5], [3, 4]]),
        ([[7.0]], [[7.0]]),
    ],
)
@pytest.mark.usefixtures("float64")
def test_values_as_floating_point(values: Any, expected: list[list[float]]) -> None:
    torch.testing.assert_close(
        Dataset.from_array(values).x,
        torch.tensor(expected, dtype=torch.float64),
        rtol=0,
        atol=1e-15,
    )


def test_default_dtype_decides_the_precision() -> None:
    assert Dataset.from_array(GREY).x.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    assert Dataset.from_array(GREY).x.dtype == torch.float64


@pytest.mark.parametrize(
    "layout",
    [
        GREY.astype(">f8"),
        np.asfortranarray(GREY),
        GREY[:, ::-1].copy()[:, ::-1],
        np.repeat(GREY, 2, axis=0)[::2],
        GREY.astype(np.longdouble),
    ],
    ids=["big-endian", "fortran", "reversed", "strided", "long double"],
)
@pytest.mark.usefixtures("float64")
def test_values_do_not_depend_on_the_layout_in_memory(layout: np.ndarray) -> None:
    np.testing.assert_array_equal(Dataset.from_array(layout).x.numpy(), GREY)


def test_images_are_flattened_and_keep_their_shape() -> None:
    images = np.arange(24.0).reshape(2, 3, 4)
    data = Dataset.from_array(images, labels=[5, 6], name="tiny")
    assert data.x.tolist() == [list(range(12)), list(range(12, 24))]
    assert (data.shape, data.name, len(data)) == ((3, 4), "tiny", 2)
    assert data.labels is not None
    assert data.labels.tolist() == [5, 6]
    torch.testing.assert_close(data.mean, torch.arange(6.0, 18.0))


@pytest.mark.parametrize(
    "values", [np.array([[0, 16], [8, 4]], np.uint8), np.array([[0.0, 16.0], [8.0, 4.0]])]
)
def test_value_range_maps_to_zero_and_one(values: np.ndarray) -> None:
    assert Dataset.from_array(values, value_range=(0, 16)).x.tolist() == [[0, 1], [0.5, 0.25]]
    assert load(values, value_range=(0, 32), valid=0, test=0).train.x.tolist() == [
        [0, 0.5],
        [0.25, 0.125],
    ]


def test_a_dim_test_set_is_scaled_as_the_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = np.array([[0, 255], [51, 1]], np.uint8), np.array([[0, 1]], np.uint8)
    monkeypatch.setattr(
        DATASETS, "_choices", {"own": lambda root: Source("own", train, None, Source("own", test))}
    )
    held_out = load("own", valid=0).test
    assert held_out is not None
    torch.testing.assert_close(held_out.x, torch.tensor([[0, 1 / 255]]))


def test_subset_takes_values_and_labels() -> None:
    data = Dataset.from_array(np.arange(5.0)[:, None], labels=np.arange(5) * 10).subset(
        np.array([4, 1])
    )
    assert data.x.squeeze(1).tolist() == [4, 1]
    assert data.labels is not None
    assert data.labels.tolist() == [40, 10]


def test_resident_on_the_cpu_is_the_same_data() -> None:
    data = Dataset.from_array(GREY)
    kept = resident(data, torch.device("cpu"))
    assert isinstance(kept, Dataset)
    assert kept.x.data_ptr() == data.x.data_ptr()


# Refusals


def test_position_of_a_value_that_is_not_finite() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        values = GREY.copy()
        values[7, 2] = values[9, 0] = bad
        with pytest.raises(
            DataError, match=f"array holds {bad} at row 7, column 2: every value must be finite"
        ):
            Dataset.from_array(values)


def test_position_in_an_image_counts_flattened_features() -> None:
    values = np.ones((2, 2, 2), np.float32)
    values[1, 1, 0] = np.nan
    with pytest.raises(DataError, match="holds nan at row 1, column 2"):
        Dataset.from_array(values)


def test_value_beyond_single_precision() -> None:
    with pytest.raises(DataError, match=r"1e\+300"):
        Dataset.from_array(np.array([[1e300, 0.0]]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 3), 3.5), "array is constant: every value is 3.5"),
        (np.empty((0, 3)), r"array is empty: its shape is \(0, 3\)"),
        (np.empty((3, 0)), r"array is empty: its shape is \(3, 0\)"),
        (
            np.arange(3.0),
            r"array has the shape \(3,\); one row per datum is needed, as in \[N, d\]",
        ),
        (np.array(3.0), r"its shape is \(\)"),
        (GREY + 1j, "array holds complex128 values; numbers are needed"),
        (np.array([["1", "b"]]), "array holds text values, .*'b'.* at row 0, column 1; numbers"),
        (np.array([[{}]]), "array holds object values, {} at row 0, column 0; numbers are needed"),
        (np.array([["2020-01-01"]], "datetime64[D]"), "numbers are needed"),
        ([[1.0], [1.0, 2.0]], "row 1 of the list has 2 values, and row 0 has 1"),
        (None, "a NoneType is not an array; numbers are needed"),
    ],
)
def test_refused_values(values: Any, words: str) -> None:
    for read in (Dataset.from_array, load):
        with pytest.raises(DataError, match=words):
            read(values)


def test_wrong_number_of_labels() -> None:
    with pytest.raises(DataError, match="array has 40 data and 3 labels"):
        Dataset.from_array(GREY, labels=[1, 2, 3])
    with pytest.raises(DataError, match="array has 40 data and 41 labels"):
        load((GREY, np.arange(41)))


@pytest.mark.parametrize("value_range", [(1.0, 1.0), (1.0, 0.0)])
def test_value_range_without_width(value_range: tuple[float, float]) -> None:
    with pytest.raises(PyroaeError, match="value_range"):
        load(GREY, value_range=value_range)


def test_value_range_that_makes_values_infinite() -> None:
    values = 1e20 * np.random.default_rng(0).random((20, 3))
    with pytest.raises(DataError, match=r"\(0\.0, 1e-30\) of array maps values .* beyond"):
        load(values, value_range=(0.0, 1e-30))


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_share_outside_its_interval(part: str, share: float) -> None:
    with pytest.raises(ConfigError, match=rf"the {part} share must be in \[0, 1\), not {share}"):
        load(GREY, **{part: share})  # type: ignore[arg-type]


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(
        DataError, match="2 data leave none to train on after 1 for validation and 1 for the test"
    ):
        load(GREY[:2])


def test_negative_seed() -> None:
    with pytest.raises(ConfigError, match="seed"):
        load(GREY, seed=-1)


# Splits


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_splits_are_disjoint_and_cover_everything(seed: int) -> None:
    """Data are their own numbers, and so are their labels."""
    number = np.arange(50)
    sets = parts(load((number[:, None].astype(float), number), seed=seed, valid=0.2, test=0.3))
    assert [len(s) for s in sets] == [28, 7, 15]
    assert sorted(torch.cat([s.x for s in sets]).squeeze(1).tolist()) == number.tolist()
    for part in sets:
        np.testing.assert_array_equal(part.labels, part.x.squeeze(1).numpy())


def test_splits_are_fixed_by_the_seed_on_every_machine() -> None:
    values = np.arange(20.0)[:, None]
    _, valid, test = parts(load(values, seed=0, valid=0.2, test=0.2))
    assert valid.x.squeeze(1).tolist() == [4, 10, 14]
    assert test.x.squeeze(1).tolist() == [5, 9, 12, 16]
    _, valid, test = parts(load(values, seed=1, valid=0.2, test=0.2))
    assert valid.x.squeeze(1).tolist() == [8, 10, 11]
    assert test.x.squeeze(1).tolist() == [1, 3, 6, 13]


def test_no_shares_leave_everything_to_train_on() -> None:
    splits = load(np.arange(4.0)[:, None], valid=0, test=0)
    assert splits.train.x.squeeze(1).tolist() == [0, 1, 2, 3]
    assert splits.valid is None
    assert splits.test is None


def test_official_test_set_is_kept(official: Source) -> None:
    train, valid, test = parts(load("own", valid=0.1, test=0.5))
    assert test.x.squeeze(1).tolist() == list(range(100, 107))
    assert (len(train), len(valid)) == (90, 10)
    assert sorted(torch.cat([train.x, valid.x]).squeeze(1).tolist()) == list(range(100))


def test_a_dataset_as_source_keeps_its_shape_and_name() -> None:
    data = Dataset.from_array(np.arange(48.0).reshape(12, 2, 2), labels=np.arange(12), name="tiny")
    train, valid, _ = parts(load(data, valid=0.25, test=0.25))
    assert (train.shape, valid.shape, train.name) == ((2, 2), (2, 2), "tiny")
    np.testing.assert_array_equal(train.labels, train.x[:, 0].numpy() / 4)


# Binarization


def test_threshold_is_at_one_half() -> None:
    data = load(np.array([[0.0, 0.5], [0.51, 1.0]]), binarize="threshold", valid=0, test=0).train
    assert data.x.tolist() == [[0, 0], [1, 1]]
    assert not data.dynamic


def test_static_draw_has_the_grey_values_as_mean() -> None:
    grey = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    data = load(grey.expand(20000, 5), binarize="static", valid=0, test=0).train
    assert data.x.unique().tolist() == [0, 1]
    error = (data.x.mean(0) - grey).abs()
    assert (error <= 4 * (grey * (1 - grey) / 20000).sqrt()).all()
    assert data.x[:, 1].ne(data.x[:, 2]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_static_bits_are_the_same_on_every_machine(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    bits = [
        np.packbits(part.x.numpy().astype(bool)).tobytes()
        for part in parts(load("digits", binarize="static"))
    ]
    found = [hashlib.sha256(part).hexdigest()[:16] for part in bits]
    assert found == ["4bed0fe4d453626b", "ab2754c10299fcfb", "740588876bdb59ac"]


def test_static_draw_depends_on_the_seed() -> None:
    one, two = (
        load(GREY, binarize="static", valid=0, test=0, seed=seed).train.x for seed in (0, 1)
    )
    assert one.ne(two).any()


def test_dynamic_draws_are_new_each_epoch_and_repeat_for_the_same() -> None:
    data = Dataset("grey", torch.full((500, 4), 0.3), (4,), dynamic=True)
    first, again, other_epoch, other_seed = (
        torch.cat(served(data, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert first.unique().tolist() == [0, 1]
    assert first.equal(again)
    for other in (other_epoch, other_seed):
        agreement = first.eq(other).double().mean().item()  # of independent draws: 0.3² + 0.7²
        assert agreement == pytest.approx(0.58, abs=4 * (0.58 * 0.42 / 2000) ** 0.5)
    assert first.mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 2000) ** 0.5)
    assert first[:100].ne(first[100:200]).any()  # and each batch has draws of its own


def test_dynamic_leaves_validation_and_test_data_fixed() -> None:
    one, two, other = (
        load(GREY, binarize="dynamic", valid=0.3, test=0.3, seed=seed) for seed in (0, 0, 1)
    )
    assert one.train.dynamic
    assert ((one.train.x > 0) & (one.train.x < 1)).all()
    for fixed, again, different in zip(
        parts(one)[1:], parts(two)[1:], parts(other)[1:], strict=True
    ):
        assert not fixed.dynamic
        assert fixed.x.unique().tolist() == [0, 1]
        assert fixed.x.equal(again.x)
        assert fixed.x.ne(different.x).any()
        assert torch.cat(served(fixed)).unique().tolist() == [0, 1]


@pytest.mark.parametrize("binarize", ["threshold", "static", "dynamic"])
def test_binarization_needs_the_unit_interval(binarize: Binarization) -> None:
    values = np.array([[0.0, 255.0], [3.0, 4.0]])
    with pytest.raises(
        DataError,
        match=r"from 0 to 255: binarization needs values in \[0, 1\]; give its value_range",
    ):
        load(values, binarize=binarize, valid=0, test=0)
    assert load(values, binarize=binarize, valid=0, test=0, value_range=(0, 255)).train.x.max() == 1


def test_unknown_binarization() -> None:
    with pytest.raises(ConfigError, match="unknown binarization 'dynamc': did you mean 'dynamic'"):
        load(GREY, binarize="dynamc")  # type: ignore[arg-type]


# Fingerprint


def test_fingerprint_changes_with_one_value() -> None:
    changed = GREY.copy()
    changed[17, 1] += 1e-12
    one, two = load(GREY).fingerprint, load(changed).fingerprint
    assert one != two
    assert one == load(GREY.copy(), seed=5, binarize="static", valid=0.3).fingerprint
    assert one != load(GREY.reshape(40, 3, 1)).fingerprint
    assert one != load(GREY.astype(np.float32)).fingerprint


def test_fingerprint_covers_the_official_test_set(official: Source) -> None:
    before = load("own").fingerprint
    assert official.test is not None
    official.test.values[3] += 1
    assert load("own").fingerprint != before


def test_fingerprint_of_the_digits() -> None:
    assert load("digits").fingerprint == "e3e77de8d178dad0"


# Batches


@pytest.mark.parametrize("device", [None, "cpu:0"], ids=["by index", "by a DataLoader"])
def test_each_datum_once_an_epoch(device: str | None) -> None:
    data = Dataset.from_array(np.arange(10.0)[:, None])
    first = served(data, 3, device=device)
    assert [len(batch) for batch in first] == [3, 3, 3, 1]
    order = torch.cat(first).squeeze(1).tolist()
    assert sorted(order) == list(range(10))
    assert order == torch.cat(served(data, 3, device=device)).squeeze(1).tolist()
    assert order != torch.cat(served(data, 3, epoch=1, device=device)).squeeze(1).tolist()
    assert order != torch.cat(served(data, 3, seed=1, device=device)).squeeze(1).tolist()


def test_order_of_the_batches_is_pinned() -> None:
    """A resumed run, and a run on another machine, see the data in the same order."""
    data = Dataset.from_array(np.arange(8.0)[:, None])
    assert torch.cat(served(data, seed=3, epoch=2)).squeeze(1).tolist() == [6, 1, 3, 5, 2, 4, 7, 0]


@pytest.mark.parametrize("dynamic", [False, True])
def test_data_loader_gives_the_same_batches(dynamic: bool) -> None:
    data = Dataset("grey", torch.from_numpy(GREY), (3,), dynamic=dynamic)
    for one, two in zip(served(data, 7), served(data, 7, device="cpu:0"), strict=True):
        assert one.equal(two)
    index = torch.randperm(40).split(7)
    for (one, label), two in zip(
        _loaded((data.x, torch.arange(40)), index, torch.device("cpu")), index, strict=True
    ):
        assert one.equal(data.x[two])
        assert label.equal(two)


@pytest.mark.parametrize("dynamic", [False, True])
def test_batches_gathered_several_at_once_are_the_same(
    dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: 40 data are 7 + 7, 7 + 7, 7 + 5; a start in the middle, and a process's share of
    each.
    """
    dataset = Dataset("grey", torch.from_numpy(GREY), (3,), dynamic=dynamic)

    def all_ways() -> list[Tensor]:
        found = [serve(dataset, 7, seed=1, epoch=2), serve(dataset, 7, seed=1, epoch=2, start=3)]
        found += [serve(dataset, 7, seed=1, epoch=2, share=Share(rank, 2)) for rank in range(2)]
        return [x for part in found for (x,) in part]

    def pairs(index: Sequence[Tensor], device: torch.device, width: int) -> list[tuple[int, int]]:
        return [(first, min(first + 2, len(index))) for first in range(0, len(index), 2)]

    one_by_one = all_ways()
    monkeypatch.setattr(batching, "_chunks", pairs)
    for one, two in zip(one_by_one, all_ways(), strict=True):
        assert one.equal(two)


@pytest.mark.parametrize("device", [None, "cpu:0"], ids=["by index", "by a DataLoader"])
def test_batches_leave_the_callers_random_generator_alone(device: str | None) -> None:
    """Or the draws of z would depend on how the data came."""
    data = Dataset("grey", torch.from_numpy(GREY), (3,), dynamic=True)
    before = torch.get_rng_state()
    served(data, 7, device=device)
    assert torch.get_rng_state().equal(before)


def test_seed_and_epoch_are_not_interchangeable() -> None:
    data = Dataset.from_array(np.arange(100.0)[:, None])
    assert not served(data, seed=1, epoch=0)[0].equal(served(data, seed=0, epoch=1)[0])
