"""Data in memory: each kind gives the bits of the plain array, and bad data one sentence."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
import xarray
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)
from torch.utils.data import Dataset as TorchDataset

from pyroae import Dataset, TrainConfig, fit, impute, likelihoods, load, zoo
from pyroae.data import batches, stored_matrices
from pyroae.data.in_memory import read_in_memory
from pyroae.data.sources import read
from pyroae.errors import DataError

X = np.random.default_rng(0).normal(size=(40, 3))
Y = np.arange(40) % 4
T = torch.tensor(X)
PAIRS = TensorDataset(T, torch.tensor(Y))
NAMES = ("height", "width", "depth")


class Items(TorchDataset):
    """A dataset whose items are made by a function of their number."""

    def __init__(self, make: Callable[[int], Any], count: int = len(X)) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        if number >= self.count:
            raise IndexError(number)
        return self.make(number)


class Stream(IterableDataset):
    """A dataset without a length."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(T)


class Packed:
    """An array that is known by DLPack only."""

    def __dlpack__(self, **settings: Any) -> Any:
        return T.__dlpack__(**settings)

    def __dlpack_device__(self) -> Any:
        return T.__dlpack_device__()


class Polars:
    """A table that is known by Arrow's stream only, as those of polars are."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return pa.Table.from_pandas(frame()).__arrow_c_stream__(requested_schema)


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(X, columns=list(NAMES)).assign(**columns)


def record() -> np.ndarray:
    result = np.empty(len(X), [(name, "f8") for name in NAMES])
    for name, column in zip(NAMES, X.T, strict=True):
        result[name] = column
    return result


def on_disk(folder: Path) -> np.memmap:
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


KINDS: dict[str, Callable[[], Any]] = {
    "lists": X.tolist,
    "tuple of tensors": lambda: list(T),
    "tensor": lambda: T.clone().requires_grad_(),
    "sparse tensor": T.to_sparse,
    "csr tensor": T.to_sparse_csr,
    "csr": lambda: scipy.sparse.csr_matrix(X),
    "csc": lambda: scipy.sparse.csc_array(X),
    "coo": lambda: scipy.sparse.coo_array(X),
    "objects": lambda: X.astype(object),
    "big-endian": lambda: X.astype(">f8"),
    "Fortran order": lambda: np.asfortranarray(X),
    "strides": lambda: np.repeat(X, 2, axis=1)[:, ::2],
    "mask without masked elements": lambda: np.ma.array(X, mask=False),
    "DataArray": lambda: xarray.DataArray(X),
    "DLPack": Packed,
    "dict": lambda: {"x": X},
    "dict of training data": lambda: {"train": X},
    "frame": lambda: frame().set_index(np.arange(40)[::-1]),
    "nullable": lambda: frame().convert_dtypes(),
    "types of pyarrow": lambda: frame().convert_dtypes(dtype_backend="pyarrow"),
    "frame of objects": lambda: frame().astype(object),
    "table of pyarrow": lambda: pa.Table.from_pandas(frame()),
    "table of polars": Polars,
    "structured": record,
    "structured, big-endian": lambda: record().astype([(name, ">f8") for name in NAMES]),
    "records": lambda: record().view(np.recarray),
    "dict of columns": lambda: dict(zip(NAMES, X.T.tolist(), strict=True)),
    "rows as dicts": lambda: frame().to_dict("records"),
    "TensorDataset": lambda: TensorDataset(T),
    "dataset": lambda: Items(lambda i: T[i]),
    "dataset of lists": lambda: Items(lambda i: X[i].tolist()),
    "dataset of tuples of one": lambda: Items(lambda i: (T[i],)),
    "dataset of dicts": lambda: Items(lambda i: {"data": X[i]}),
    "parts of a dataset": lambda: ConcatDataset([Subset(PAIRS, range(40)), Items(None, 0)]),  # type: ignore[arg-type]
    "list of items": lambda: [(T[i], Y[i]) for i in range(40)],
}
NAMED = ("frame", "nullable", "types of", "table of", "structured", "records", "dict of columns")


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_has_the_bits_of_the_array(kind: str) -> None:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch on csr layouts
        found, plain = load(KINDS[kind](), seed=3), load(X, seed=3)
    for one, other in ((found.train, plain.train), (found.valid, plain.valid)):
        assert one is not None
        assert other is not None
        assert torch.equal(one.x, other.x)
    assert (found.fingerprint == plain.fingerprint) == ("big-endian" not in kind[:10])
    if kind.startswith((*NAMED, "rows as")):
        assert found.train.columns == NAMES


LABELLED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "pair": (lambda: (X, Y), {}),
    "keyword": (lambda: X, {"labels": Y}),
    "column of labels": (lambda: (X, Y[:, None]), {}),
    "series": (lambda: (frame(), pd.Series(Y, index=Y + 7)), {}),
    "column by name": (lambda: frame(kind=Y), {"labels": "kind"}),
    "column that is named": (lambda: frame(Label=Y), {}),
    "x and y": (lambda: {"x": X, "y": Y}, {}),
    "key by name": (lambda: {"x": X, "kind": Y}, {"labels": "kind"}),
    "column of a dict": (
        lambda: {**dict(zip(NAMES, X.T, strict=True)), "kind": Y},
        {"labels": "kind"},
    ),
    "dataset": (lambda: PAIRS, {}),
    "items": (lambda: Items(lambda i: PAIRS[i]), {}),
    "items as dicts": (lambda: Items(lambda i: {"x": X[i], "kind": int(Y[i])}), {"labels": "kind"}),
    "sparse": (lambda: (scipy.sparse.csr_array(X), Y), {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(LABELLED))
def test_labels(kind: str) -> None:
    make, settings = LABELLED[kind]
    found = read(make(), **settings)
    np.testing.assert_array_equal(found.values, X, strict=True)
    np.testing.assert_array_equal(found.labels, Y)


GIVEN: dict[str, Callable[[], Any]] = {
    "pairs": lambda: ((X, Y), (X[:5] + 1, Y[:5]), (X[:6] + 2, Y[:6])),
    "keras": lambda: {
        "x_train": X,
        "y_train": Y,
        "x_val": X[:5] + 1,
        "y_val": Y[:5],
        "x_test": X[:6] + 2,
        "y_test": Y[:6],
    },
    "parts": lambda: {"train": (X, Y), "valid": (X[:5] + 1, Y[:5]), "test": (X[:6] + 2, Y[:6])},
    "frames": lambda: {
        "train": frame(y=Y),
        "valid": frame(y=Y)[:5].add([1, 1, 1, 0])[["y", "depth", "width", "height"]],
        "test": frame(y=Y)[:6].add([2, 2, 2, 0]),
    },
    "datasets": lambda: (
        PAIRS,
        TensorDataset(T[:5] + 1, torch.tensor(Y[:5])),
        TensorDataset(T[:6] + 2, torch.tensor(Y[:6])),
    ),
    "subsets": lambda: random_split(
        TensorDataset(torch.cat([T, T[:5] + 1, T[:6] + 2]), torch.tensor([*Y, *Y[:5], *Y[:6]])),
        [40, 5, 6],
        torch.Generator().manual_seed(0),
    ),
}


@pytest.mark.parametrize("kind", list(GIVEN))
def test_given_parts_are_kept(kind: str) -> None:
    splits = load(GIVEN[kind]())
    assert splits.valid is not None
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [40, 5, 6]
    if kind == "subsets":  # in another order, and none twice
        rows = torch.cat([splits.train.x, splits.valid.x, splits.test.x])
        assert len(rows.unique(dim=0)) == 51
        return
    for part, values, labels in (
        (splits.train, X, Y),
        (splits.valid, X[:5] + 1, Y[:5]),
        (splits.test, X[:6] + 2, Y[:6]),
    ):
        np.testing.assert_array_equal(part.x.numpy(), values.astype(np.float32))
        np.testing.assert_array_equal(part.labels, labels)


def test_a_loader_gives_its_dataset_and_says_so() -> None:
    with pytest.warns(UserWarning, match="batch_size=8 and its order are not taken over"):
        found = read(DataLoader(PAIRS, batch_size=8, shuffle=True))
    np.testing.assert_array_equal(found.values, X, strict=True)
    np.testing.assert_array_equal(found.labels, Y)


def test_images_with_transforms_are_drawn_once() -> None:
    """The same draws each time, from generators that are left as they were."""
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert read(Items(lambda i: (image, "cat"), 2)).values.shape == (2, 3, 4)
    noisy = Items(lambda i: (torch.rand(1, 3, 4), i), 2)
    state = torch.get_rng_state()
    first, second = read(noisy), read(noisy)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.values, second.values)
    assert (first.values[0] != first.values[1]).all()


TYPES = [bool, np.uint16, np.float16, np.longdouble, np.int8]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types_of_arrays(dtype: Any) -> None:
    values = (X > 0).astype(dtype)
    assert torch.equal(load(values).train.x, load((X > 0).astype(float)).train.x)


def test_small_and_read_only_arrays(tmp_path: Path) -> None:
    one_row = Dataset.from_array(np.array([[1.0, 2.0]]))
    one_column = Dataset.from_array(X[:, :1])
    assert (len(one_row), one_row.shape, one_column.shape) == (1, (2,), (1,))
    fixed = X.copy()
    fixed.flags.writeable = False
    assert torch.equal(load(fixed).train.x, load(X).train.x)
    mapped = on_disk(tmp_path)
    assert np.shares_memory(read(mapped).values, mapped)


# Missing values


def holes() -> np.ndarray:
    return np.where(np.arange(120).reshape(40, 3) % 7 == 3, np.nan, X)


HOLES: dict[str, Callable[[], Any]] = {
    "masked": lambda: np.ma.masked_invalid(holes()),
    "frame": lambda: pd.DataFrame(holes(), columns=list(NAMES)),
    "nullable": lambda: pd.DataFrame(holes()).convert_dtypes(),
    "objects": lambda: np.where(np.isnan(holes()), np.array(None), X.astype(object)),
    "lists": lambda: [[None if np.isnan(v) else v for v in row] for row in holes().tolist()],
    "dict of columns": lambda: {
        name: [None if np.isnan(v) else v for v in column]
        for name, column in zip(NAMES, holes().T.tolist(), strict=True)
    },
    "items": lambda: Items(lambda i: np.ma.masked_invalid(holes()[i])),
}


@pytest.mark.parametrize("kind", list(HOLES))
def test_missing_values(kind: str) -> None:
    values = HOLES[kind]()
    found = load(values, missing=True)
    np.testing.assert_array_equal(found.train.x, load(holes(), missing=True).train.x)
    with pytest.raises(DataError, match=r"array holds nan at row 1, column 0.*: .*missing"):
        load(values)


def test_masked_integers_are_missing_values() -> None:
    masked = np.ma.array(Y.reshape(-1, 2), mask=Y.reshape(-1, 2) == 3)
    found = Dataset.from_array(masked, missing=True)
    assert found.x[:2].isnan().tolist() == [[False, False], [False, True]]
    with pytest.raises(DataError, match="the labels are masked: every label must be known"):
        load((X, np.ma.array(Y, mask=Y == 3)))


# Categories


def people() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": np.arange(12) + 20,
            "sex": ["m", "f", "f"] * 4,
            "size": pd.Categorical(["s", "m", "l"] * 4, categories=["s", "m", "l"], ordered=True),
            "smokes": [True, False] * 6,
            "town": ["Rome", "Oslo", "Oslo", "Bern"] * 3,
        }
    )


def test_categories_are_codes() -> None:
    found = Dataset.from_array(people(), labels="town")
    assert found.columns == ("age", "sex", "size", "smokes")
    assert found.categories == {"sex": ("f", "m"), "size": ("s", "m", "l")}
    assert found.x[:3].tolist() == [[20, 1, 0, 1], [21, 0, 1, 0], [22, 0, 2, 1]]
    assert found.labels is not None
    assert found.labels[:4].tolist() == ["Rome", "Oslo", "Oslo", "Bern"]


@pytest.mark.parametrize("dtype", ["object", "str", "string", "category", "string[pyarrow]"])
def test_types_of_texts(dtype: str) -> None:
    found = read(people()[["age", "sex"]].astype({"sex": dtype}))
    assert found.values.tolist() == read(people()[["age", "sex"]]).values.tolist()
    assert found.categories == {"sex": ("f", "m")}


def test_missing_categories_and_booleans() -> None:
    table = people()[["sex", "smokes"]].astype({"smokes": object})
    table.loc[1] = [None, None]
    for one in (table, table.astype({"smokes": "boolean", "sex": "category"})):
        found = Dataset.from_array(one, missing=True)
        assert found.x[0].tolist() == [1, 1]
        assert found.x[1].isnan().all()


def test_codes_of_a_test_set_are_those_of_the_training_data() -> None:
    """Its texts alone would have other codes; so would its columns in another order."""
    test = people()[["sex", "age"]][1:3]
    found = load({"train": people()[["age", "sex"]], "test": test}).test
    assert found is not None
    assert found.x.tolist() == [[21, 0], [22, 0]]
    assert found.categories == {"sex": ("f", "m")}
    for wrong, words in (
        (test.assign(sex=["f", "d"]), "category 'd' of column 'sex' of the test data was never"),
        (test[["age"]], r"the test data have no column 'sex'; theirs are age"),
        (test.assign(sex=[0, 1]), "'sex' holds categories in the training data and numbers in"),
    ):
        with pytest.raises(DataError, match=words):
            load({"train": people()[["age", "sex"]], "test": wrong})


def test_new_data_like_others() -> None:
    data = Dataset.from_array(people()[["age", "sex"]])
    new = Dataset.from_array(people()[["sex", "age"]][1:3], like=data)
    assert new.x.tolist() == data.x[1:3].tolist()
    with pytest.raises(DataError, match="the new data have no column 'sex'"):
        Dataset.from_array(people()[["age", "size"]], like=data)
    with pytest.raises(DataError, match="column 'sex' of array has 1 categories"):
        Dataset.from_array(people()[["sex", "age"]][1:3])


def test_a_table_of_values() -> None:
    """The inverse of reading: names, and categories as texts."""
    data = Dataset.from_array(people().drop(columns="town"), missing=True)
    table = data.to_frame()
    assert table.columns.tolist() == ["age", "sex", "size", "smokes"]
    assert table["sex"].tolist() == people()["sex"].tolist()
    assert table["size"].dtype == pd.CategoricalDtype(["s", "m", "l"])
    assert torch.equal(Dataset.from_array(table).x, data.x)
    changed = data.x.clone()
    changed[0, 1], changed[1, 0] = torch.nan, 1.5
    again = data.to_frame(changed)
    assert (again["sex"].isna().sum(), again["age"][1]) == (1, 1.5)
    assert Dataset.from_array(X).to_frame().columns.tolist() == ["x0", "x1", "x2"]
    with pytest.raises(DataError, match=r"values of shape \(3,\) are not of the 4 columns"):
        data.to_frame(torch.zeros(3))


def test_codes_are_not_standardized() -> None:
    found = load(people().drop(columns="town"), scale="standard", test=0, valid=0).train
    assert found.x[:, 0].mean().abs() < 1e-6
    assert found.x[:3, 1:3].tolist() == [[1, 0], [0, 1], [0, 2]]


def test_other_categories_have_another_fingerprint() -> None:
    one, other = people(), people().assign(sex=["male", "f", "f"] * 4)
    assert load(one).fingerprint != load(other).fingerprint


def test_conditions_by_name() -> None:
    found = load(people(), labels="town", condition="size,age").train
    assert found.columns == ("sex", "smokes")
    assert found.condition_names == ("size=s", "size=m", "size=l", "age")
    assert found.condition is not None
    assert (found.condition[:, :3].sum(1) == 1).all()
    assert (found.condition[:, 3] >= 20).all()
    again = load(load(people()).train, condition="age", valid=0, test=0)
    assert again.train.condition_names == ("age",)


# What is refused

BAD: dict[str, tuple[Any, str]] = {
    "several levels": (
        pd.DataFrame(X[:, :2], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
        "the columns of the DataFrame have 2 levels of names",
    ),
    "one name twice": (
        pd.DataFrame(X[:, :2], columns=["a", "a"]),
        "the DataFrame has 2 columns named 'a': rename them",
    ),
    "dates": (
        frame(day=pd.date_range("2020", periods=40)),
        "column 'day' of the DataFrame is not numeric: it holds datetime64.* values: give a number",
    ),
    "differences of dates": (frame(t=pd.to_timedelta(Y, "s")), "column 't' .*: give a number"),
    "dates as objects": (
        frame(day=pd.date_range("2020", periods=40).date.astype(object)),
        "column 'day' .* holds date values: give a number",
    ),
    "complex": (frame(a=1j), "column 'a' .* is not numeric: it holds complex128 values"),
    "lists": (frame(a=[[1]] * 40), "column 'a' .* is not numeric: it holds mixed values"),
    "a text between numbers": (
        frame(a=[*X[:39, 0], "?"]),
        "column 'a' .* is not numeric: it holds the text '\\?' at row 39 between numbers",
    ),
    "a text between texts of numbers": (
        frame(a=[*map(str, X[:39, 0]), "?"]),
        "column 'a' .* it holds the text '\\?' at row 39 between numbers",
    ),
    "numbers as texts": (frame(a=Y.astype(str)), "column 'a' .* holds numbers as texts: convert"),
    "names": (
        frame(a=[f"p{i}" for i in range(40)]),
        "the 40 texts in column 'a' of the DataFrame are all different: leave it out",
    ),
    "one category": (frame(a="m"), "column 'a' of array has 1 categories"),
    "infinite": (frame(a=np.inf), r"array holds inf at row 0, column 3 \('a'\): every value must"),
    "rows in numbers": (frame(id=Y), "column 'id' of the DataFrame is named as one that numbers"),
    "no columns": (frame()[[]], "array is empty: its shape is"),
    "no rows": (frame()[:0], "array is empty: its shape is"),
    "labels of another length": ((frame(), Y[:7]), "array has 40 data and 7 labels"),
    "labels in another order": (
        (frame(), pd.Series(Y)[::-1]),
        "the labels have the index of the table in another order: align them",
    ),
    "two labels": ((frame(y=Y), Y), "labels are given twice"),
    "ragged rows": ([[1.0, 2.0], [1.0, 2.0], [1.0]], "row 2 of the list has 1 values, and row 0"),
    "ragged columns": ({"a": [1, 2], "b": [1]}, "column 'b' has 1 rows and column 'a' 2"),
    "ragged dicts": ([{"a": 1}, {"b": 1}], "row 1 of the list has the keys b, and row 0 a"),
    "text in a list": ([[1, 2], [3, "a"]], "array holds text values, 'a' at row 1, column 1"),
    "objects": ([[1, 2], [3, {}]], "array holds object values, {} at row 1, column 1"),
    "empty dict": ({}, "the dict is empty"),
    "dict without data": ({"a": X, "b": X}, "the dict holds several tables, 'a' .40, 3., 'b'"),
    "labels without data": ({"x": X, "y_test": Y}, "the dict holds 'y_test', but no test data"),
    "parts of parts": ({"train": ((X, Y), (X, Y))}, "data of one part have a validation or test"),
    "parts of other widths": ({"x_train": X, "x_val": X[:, :2]}, "and validation data of shape"),
    "four": ((X, X, X, X), "a tuple of 4 is not data"),
    "three tensors": (TensorDataset(T, T, T), "a tuple of 3 is not data: a TensorDataset holds"),
    "no length": (Stream(), "the Stream has no length: give a list of its items"),
    "no items": (Items(lambda i: T[i], 0), "the Items is empty"),
    "items of other shapes": (
        Items(lambda i: T[i, : 3 - (i == 5)]),
        r"item 5 of the Items has the shape \(2,\) and no label, item 0 \(3,\) and no label",
    ),
    "an item that fails": (
        Items(lambda i: T[i] if i < 3 else [][i]),
        "item 3 of the Items cannot be read: IndexError: list index out of range",
    ),
    "labels that are vectors": (
        Items(lambda i: (T[i], T[i])),
        r"the label of item 0 of the Items has the shape \(3,\)",
    ),
    "items of three": (Items(lambda i: (T[i], 1, 2)), "item 0 of the Items is a tuple of 3"),
    "items without x": (Items(lambda i: {"a": T[i]}), "the items of the Items have no key 'x'"),
    "a sampler that chooses": (
        DataLoader(PAIRS, sampler=SubsetRandomSampler([1, 2])),
        "the SubsetRandomSampler of the DataLoader does not draw every item once",
    ),
    "a collate_fn": (DataLoader(PAIRS, collate_fn=list), "the DataLoader has a collate_fn"),
    "variables": (xarray.Dataset({"a": ("n", X[:, 0])}), "a Dataset has several variables"),
    "no values": (T.to("meta"), "the tensor is on the device 'meta'"),
    "a masked array of texts": (np.ma.array([["a"]], mask=True), "the masked array holds <U1"),
    "complex numbers": (X + 1j, "array holds complex128 values; numbers are needed"),
    "an object": (object(), "a object is not an array; numbers are needed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_data(kind: str) -> None:
    values, words = BAD[kind]
    for how in (load, Dataset.from_array):
        with pytest.raises(DataError, match=words) as caught:
            how(values)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [frame(species=Y), {"height": Y, "species": Y}])
def test_a_label_that_is_not_there(values: Any) -> None:
    words = "unknown column of the DataFrame 'spezies': did you mean 'species'"
    with pytest.raises(DataError, match=words):
        load(values, labels="spezies")


def test_names_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an array has no named columns, so none is 'species'"):
        load(X, labels="species")
    with pytest.raises(DataError, match="unknown key of the dict 'yy': did you mean 'y'"):
        load({"x": X, "y": Y}, labels="yy")
    with pytest.raises(DataError, match="labels are given twice"):
        load((X, Y), labels=Y)


def test_a_sparse_matrix_too_large_for_memory() -> None:
    large = scipy.sparse.csc_array((2**24, 2**24))
    with pytest.raises(DataError, match=r"takes .* GiB when dense, more than half of the memory"):
        read_in_memory(large)


LARGE: dict[str, Callable[[Path], Any]] = {
    "csr": lambda folder: scipy.sparse.csr_array(X),
    "coo": lambda folder: scipy.sparse.coo_matrix(X),
    "sparse tensor": lambda folder: T.to_sparse(),
    "mapped": on_disk,
}


@pytest.mark.parametrize("kind", list(LARGE))
def test_large_matrices_are_made_dense_in_slices(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, whole = LARGE[kind](tmp_path), load(X)
    monkeypatch.setattr(stored_matrices, "IN_MEMORY", 100)
    monkeypatch.setattr(stored_matrices, "SLICE", 100)
    found = load((values, Y))
    assert found.train.stream is not None
    assert found.fingerprint == whole.fingerprint
    x = torch.cat(list(batches(found.train, 8, seed=0, epoch=0)))
    assert found.test is not None
    assert found.valid is not None
    rows = torch.cat([x, found.valid.x, found.test.x])
    assert torch.equal(rows.unique(dim=0), torch.tensor(X).float().unique(dim=0))
    place = {tuple(row): y for row, y in zip(X.astype(np.float32).tolist(), Y, strict=True)}
    for part in (found.test, found.train.first(20)):
        assert part.labels is not None
        assert part.labels.tolist() == [place[tuple(row)] for row in part.x.tolist()]
    assert load(values, missing=True).train.stream is None
    with pytest.raises(DataError, match="array has 40 data and 7 labels"):
        load(values, labels=Y[:7])


# A table from its columns to its imputations


def test_a_table_is_trained_and_imputed_by_name() -> None:
    """With numbers, categories, booleans and missing values; texts come back as texts."""
    table = pd.concat([people().drop(columns="town")] * 3, ignore_index=True)
    table = table.astype({"sex": object})
    table.loc[2, "sex"] = table.loc[5, "age"] = None
    data = Dataset.from_array(table, missing=True)
    likelihood = zoo.table_likelihood(data)
    assert [type(part).__name__ for part, _ in likelihood.groups] == [
        "Normal",
        "Categorical",
        "Categorical",
        "Bernoulli",
    ]
    vae = zoo.vae(data, latent=2, hidden=(5,), likelihood=likelihood)
    fit(vae, table, config=TrainConfig(epochs=1, batch_size=36), progress=False)
    filled = data.to_frame(impute(vae, data.x, num_particles=20, seed=0).x)
    assert not filled.isna().to_numpy().any()
    assert filled["sex"].drop(2).tolist() == table["sex"].drop(2).tolist()
    assert filled["sex"][2] in ("f", "m")


def test_columns_are_named_where_values_do_not_suit() -> None:
    data = Dataset.from_array(people()[["smokes", "age"]])
    system = zoo.vae(data, latent=1, likelihood=likelihoods.Categorical(2))
    with pytest.raises(DataError, match="holds 20 at row 0, column 'age': a categorical"):
        fit(system, data, config=TrainConfig(epochs=1, batch_size=12), progress=False)
    empty = Dataset.from_array(frame(width=np.nan), missing=True)
    with pytest.raises(DataError, match="column 'width' of array has no observed value"):
        zoo.vae(empty, latent=1)
    with pytest.raises(DataError, match="array has no named columns"):
        zoo.table_likelihood(Dataset.from_array(X))


@pytest.mark.parametrize("kind", ["frame", "dict", "TensorDataset", "csr", "records"])
def test_fit_takes_what_from_array_takes(kind: str) -> None:
    config, weights = TrainConfig(epochs=1, batch_size=40), []
    for data in (X, KINDS[kind]()):
        torch.manual_seed(0)
        system = zoo.ppca(3, latent=1)
        fit(system, data, config=config, progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in system.parameters()]))
    assert torch.equal(*weights)
