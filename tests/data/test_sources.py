"""Every source gives back what was written: torchvision's readers on files of their own layout,
tables, arrays.
"""

import gc
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from pyroae.data.arrays import Source
from pyroae.data.dataset import Dataset
from pyroae.data.loading import load
from pyroae.data.named_datasets import DATASETS
from pyroae.data.parquet import StoredTable
from pyroae.data.sources import read
from pyroae.errors import ConfigError, DataError

VALUES = np.random.default_rng(0).normal(size=(500, 3))
LABELS = np.arange(500) % 10
IDX = {
    "mnist": ("MNIST", "train", "t10k"),
    "fashion-mnist": ("FashionMNIST", "train", "t10k"),
    "kmnist": ("KMNIST", "train", "t10k"),
    "emnist": ("EMNIST", "emnist-balanced-train", "emnist-balanced-test"),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", _raise(AssertionError("a download was started")))


def _raise(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


def write_idx(path: Path, values: np.ndarray) -> None:
    """Bytes as IDX: two zeros, the type (8), the number of dimensions, the sizes big-endian, the
    values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


def lay_out(root: Path, name: str) -> dict[str, np.ndarray]:
    """A tiny dataset where torchvision looks for it; its arrays."""
    folder, train, test = IDX[name]
    draw = np.random.default_rng(1)
    arrays = {
        f"{train}-images-idx3": draw.integers(256, size=(5, 28, 28), dtype=np.uint8),
        f"{train}-labels-idx1": np.array([3, 1, 4, 1, 5]),
        f"{test}-images-idx3": draw.integers(256, size=(2, 28, 28), dtype=np.uint8),
        f"{test}-labels-idx1": np.array([9, 2]),
    }
    for file, values in arrays.items():
        write_idx(root / folder / "raw" / f"{file}-ubyte", values)
    return arrays


def test_digits_are_the_embedded_ones() -> None:
    digits = read("digits")
    assert digits.values.shape == (1797, 8, 8)
    assert digits.values.astype(float).sum() == 561718 / 16
    assert digits.values.min() == 0
    assert digits.values.max() == 1
    assert digits.values[0].sum() == 294 / 16
    assert digits.labels is not None
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.test is None


@pytest.mark.parametrize("name", list(IDX))
def test_torchvision_files(name: str, tmp_path: Path) -> None:
    images, labels, test_images, test_labels = lay_out(tmp_path, name).values()
    source = read(name, tmp_path)
    assert source.test is not None
    if name == "emnist":  # stored lying on their side
        images, test_images = images.transpose(0, 2, 1), test_images.transpose(0, 2, 1)
    for found, written in (
        (source.values, images),
        (source.labels, labels),
        (source.test.values, test_images),
        (source.test.labels, test_labels),
    ):
        np.testing.assert_array_equal(found, written)
    assert source.values.dtype == np.uint8
    assert (source.name, source.test.name) == (name, name)


def test_omniglot_has_high_ink_and_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two characters to train on, with ink at the left; one for the test, with ink at the top.

    Files are black on white.
    """
    from torchvision.datasets import Omniglot

    left, top = np.full((105, 105), 255, np.uint8), np.full((105, 105), 255, np.uint8)
    left[:, :50], top[:50] = 0, 0
    for place, image in (
        ("background/A/c1", left),
        ("background/B/c1", left),
        ("evaluation/C/c1", top),
    ):
        folder = tmp_path / "omniglot-py" / f"images_{place}"
        folder.mkdir(parents=True)
        Image.fromarray(image).convert("1").save(folder / "0001_01.png")
    monkeypatch.setattr(Omniglot, "_check_integrity", lambda self: True)
    source = read("omniglot", tmp_path)
    assert source.test is not None
    assert source.labels is not None
    assert (source.values.shape, source.test.values.shape) == ((2, 28, 28), (1, 28, 28))
    assert source.values.dtype == np.uint8
    assert (source.values[:, :, :12] == 255).all()
    assert (source.values[:, :, 15:] == 0).all()
    assert (source.test.values[:, :12] == 255).all()
    assert (source.test.values[:, 15:] == 0).all()
    assert source.labels.tolist() == [0, 1]


def test_real_mnist(mnist_root: Path) -> None:
    source = read("mnist", mnist_root)
    assert source.test is not None
    assert source.labels is not None
    assert (source.values.shape, source.test.values.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert int(source.values.sum(dtype=np.int64)) == 1567298545
    assert int(source.test.values.sum(dtype=np.int64)) == 264923200
    assert np.bincount(source.labels).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
@pytest.mark.parametrize(
    "error",
    [URLError("no\nroute"), TimeoutError("timed out"), RuntimeError("bad checksum")],
    ids=repr,
)
def test_missing_dataset_without_network(
    name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", _raise(error))
    with pytest.raises(
        DataError, match=f"{name} is not in '{tmp_path}' and could not be downloaded"
    ) as caught:
        read(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 10, 500])
def test_damaged_torchvision_file(size: int, tmp_path: Path) -> None:
    lay_out(tmp_path, "mnist")
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match="mnist"):
        read("mnist", tmp_path)


def test_torchvision_file_of_another_kind(tmp_path: Path) -> None:
    lay_out(tmp_path, "mnist")
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="mnist"):
        read("mnist", tmp_path)


def _named() -> pd.DataFrame:
    return pd.DataFrame(VALUES, columns=["a", "b", "c"])


def _labelled() -> pd.DataFrame:
    return _named().assign(Label=LABELS)[["a", "Label", "b", "c"]]


WRITERS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "a.npy": (lambda path: np.save(path, VALUES), False),
    "x.npz": (lambda path: np.savez(path, y=LABELS, x=VALUES), True),
    "images.npz": (
        lambda path: np.savez(path, images=VALUES, other=VALUES + 1, targets=LABELS),
        True,
    ),
    "unnamed.npz": (lambda path: np.savez(path, VALUES), False),
    "own-name.npz": (lambda path: np.savez(path, weights=LABELS, table=VALUES), False),
    "plain.csv": (lambda path: _named().to_csv(path, index=False, header=False), False),
    "header.csv": (lambda path: _named().to_csv(path, index=False), False),
    "labels.csv": (lambda path: _labelled().to_csv(path, index=False), True),
    "plain.parquet": (lambda path: _named().to_parquet(path), False),
    "labels.parquet": (lambda path: _labelled().to_parquet(path), True),
}


@pytest.mark.parametrize("file", list(WRITERS))
def test_file_gives_back_what_was_written(file: str, tmp_path: Path) -> None:
    write, labelled = WRITERS[file]
    write(tmp_path / file)
    for path in (tmp_path / file, str(tmp_path / file)):
        source = read(path)
        np.testing.assert_array_equal(source.values, VALUES, strict=True)  # to the last bit
        assert source.name == Path(file).stem
        if labelled:
            np.testing.assert_array_equal(source.labels, LABELS)
        else:
            assert source.labels is None


def test_npy_of_images_keeps_shape_and_type(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_array_equal(read(tmp_path / "images.npy").values, images, strict=True)


def test_csv_keeps_a_first_row_with_a_missing_value(tmp_path: Path) -> None:
    """Not a header: the row is data, whose missing value is then refused by name."""
    for text in ("1,,3\n4,5,6\n", "1,nan,3\n4,5,6\n"):
        (tmp_path / "a.csv").write_text(text)
        np.testing.assert_array_equal(read(tmp_path / "a.csv").values, [[1, np.nan, 3], [4, 5, 6]])


def test_csv_with_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,cat\n2,dog\n")
    with pytest.raises(DataError, match=r"column 'b' of '.*a\.csv' is not numeric"):
        read(tmp_path / "a.csv")


def test_csv_with_labels_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,class\n1,cat\n2,dog\n")
    source = read(tmp_path / "a.csv")
    assert source.values.tolist() == [[1], [2]]
    assert source.labels is not None
    assert source.labels.tolist() == ["cat", "dog"]


def test_npz_without_a_table_names_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", u=LABELS, v=LABELS)
    with pytest.raises(
        DataError, match=r"holds no array named x, data, images, arr_0; it holds: u \(500,\), v"
    ):
        read(tmp_path / "a.npz")


def _truncated(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def write_half(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write_half


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "half.npy": _truncated(WRITERS["a.npy"][0]),
    "half.npz": _truncated(WRITERS["x.npz"][0]),
    "half.parquet": _truncated(WRITERS["plain.parquet"][0]),
    "garbage.npy": lambda path: path.write_bytes(b"garbage" * 50),
    "garbage.npz": lambda path: path.write_bytes(b"garbage" * 50),
    "garbage.parquet": lambda path: path.write_bytes(b"garbage" * 50),
    "garbage.csv": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "ragged.csv": lambda path: path.write_text("1,2\n3,4,5\n"),
    "empty.npy": lambda path: path.write_bytes(b""),
    "empty.csv": lambda path: path.write_bytes(b""),
    "objects.npy": lambda path: np.save(path, np.array([{"a": 1}], dtype=object)),
    "objects.npz": lambda path: np.savez(path, x=np.array([{"a": 1}], dtype=object)),
}


@pytest.mark.parametrize("file", list(DAMAGED))
def test_damaged_file(file: str, tmp_path: Path) -> None:
    DAMAGED[file](tmp_path / file)
    with pytest.raises(DataError, match=f"cannot read '.*{file}': .") as caught:
        read(tmp_path / file)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # a file left open is reported here, not in a later test


def test_zip_of_arrays_under_the_name_of_one(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, x=VALUES)
    with pytest.raises(DataError, match=r"a\.npy"):
        read(tmp_path / "a.npy")


# What is no feature, and what is no data


def _stripped(table: pd.DataFrame, path: Path) -> None:
    """Write .parquet as programs without pandas do: an index is then a column."""
    pq.write_table(
        pa.Table.from_pandas(table, preserve_index=True).replace_schema_metadata(None), path
    )


INDEXED: dict[str, Callable[[Path], Any]] = {
    "y.csv": lambda path: _named().assign(y=LABELS).to_csv(path, index=False),
    "y.parquet": lambda path: _named().assign(Y=LABELS).to_parquet(path),
    "index.csv": lambda path: _named().assign(y=LABELS).to_csv(path),
    "shuffled.csv": lambda path: (
        _named().assign(y=LABELS).set_index(np.arange(len(VALUES))[::-1]).to_csv(path)
    ),
    "words.csv": lambda path: _named().assign(y=LABELS).set_index(LABELS.astype(str)).to_csv(path),
    "index.parquet": lambda path: _stripped(
        _named().assign(y=LABELS).set_index(np.arange(len(VALUES))[::-1]), path
    ),
}


@pytest.mark.parametrize("file", list(INDEXED))
def test_labels_and_an_index_are_no_features(file: str, tmp_path: Path) -> None:
    INDEXED[file](tmp_path / file)
    source = read(tmp_path / file)
    np.testing.assert_array_equal(source.values, VALUES, strict=True)
    np.testing.assert_array_equal(source.labels, LABELS)


def test_a_streamed_table_has_the_same_features(tmp_path: Path) -> None:
    table = _named().assign(
        flag=[True, False] * (len(VALUES) // 2) + [True] * (len(VALUES) % 2), y=LABELS
    )
    _stripped(table.set_index(np.arange(len(VALUES))[::-1]), tmp_path / "a.parquet")
    stored, source = StoredTable(tmp_path / "a.parquet"), read(tmp_path / "a.parquet")
    with stored.opened(labels=True) as reader:
        rows = reader.read(0)
    np.testing.assert_array_equal(rows.values, source.values, strict=True)
    np.testing.assert_array_equal(source.values[:, :3], VALUES)
    np.testing.assert_array_equal(rows.labels, LABELS)


def test_numbers_of_columns_without_names(tmp_path: Path) -> None:
    """As pandas writes a table that was made from an array: with its index they are no datum,
    without it that is not clear.
    """
    pd.DataFrame(VALUES).to_csv(tmp_path / "a.csv")
    np.testing.assert_array_equal(read(tmp_path / "a.csv").values, VALUES)
    for width in (2, 3):
        pd.DataFrame(VALUES[:, :width]).to_csv(tmp_path / "a.csv", index=False)
        with pytest.raises(
            DataError, match="numbers of columns, as pandas writes them, or a datum"
        ):
            read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("0,1\n1,1\n0,0\n")
    assert read(tmp_path / "a.csv").values.tolist() == [[0, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y\n1,2\n3,5\n", r"'y' beside 'x' in '.*a\.csv' may be labels or a coordinate"),
        (
            "a,y,Label\n1,2,3\n3,5,4\n",
            r"'.*a\.csv' has several columns named as labels, 'y' and 'Label'",
        ),
        ("id,a\n1,2\n2,5\n", r"column 'id' of '.*a\.csv' is named as one that numbers the rows"),
        (
            "a,b\n1,2,3\n3,5,4\n",
            "the rows of '.*a.csv' have more values than its first row has names",
        ),
        ("a,b\n2020-01-01,2\n2020-01-02,5\n", "column 'a' of '.*a.csv' is not numeric"),
    ],
)
def test_tables_that_are_not_clear(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.csv")


TRAIN_AND_TEST: dict[str, dict[str, np.ndarray]] = {
    "keras": {"x_train": VALUES, "y_train": LABELS, "x_test": VALUES[:2] + 1, "y_test": LABELS[:2]},
    "images": {
        "train_images": VALUES,
        "train_labels": LABELS[:, None],
        "test_images": VALUES[:2] + 1,
        "test_labels": LABELS[:2, None],
    },
    "parts": {"X": VALUES, "Y": LABELS, "X_test": VALUES[:2] + 1, "Y_test": LABELS[:2]},
}


@pytest.mark.parametrize("names", list(TRAIN_AND_TEST))
def test_an_archive_with_a_test_set(names: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **TRAIN_AND_TEST[names])  # type: ignore[arg-type]
    pairs = ((VALUES, LABELS), (VALUES[:2] + 1, LABELS[:2]))
    for source in (read(tmp_path / "a.npz"), read(pairs)):
        np.testing.assert_array_equal(source.values, VALUES)
        np.testing.assert_array_equal(source.labels, LABELS)
        assert source.test is not None
        np.testing.assert_array_equal(source.test.values, VALUES[:2] + 1)
        np.testing.assert_array_equal(source.test.labels, LABELS[:2])
    splits = load(tmp_path / "a.npz", valid=0)
    assert splits.test is not None
    np.testing.assert_allclose(splits.test.x, VALUES[:2] + 1, rtol=1e-6)
    np.testing.assert_array_equal(splits.test.labels, LABELS[:2])
    assert len(splits.train) == len(VALUES)
    with pytest.raises(DataError, match="has a test set of its own: read it by load"):
        Dataset.from_array(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": VALUES, "y_val": LABELS}, "holds 'y_val', but no validation data"),
        ({"x_test": VALUES}, "holds no array named x"),
        ({"x_train": VALUES, "y_test": LABELS}, "holds 'y_test', but no test data"),
        (
            {"x": VALUES, "images": VALUES},
            r"holds several arrays of data, 'x' .*, 'images' .* or choose it by",
        ),
        (
            {"arr_0": VALUES, "arr_1": VALUES},
            r"holds several arrays of data, 'arr_0' .*, 'arr_1' .* or choose it by",
        ),
        (
            {"x": VALUES, "y": LABELS, "target": LABELS},
            r"holds several arrays of labels, 'y' .*, 'target' .* or choose it by",
        ),
        (
            {"u": VALUES, "v": VALUES},
            r"holds several tables, 'u' \(500, 3\), 'v' \(500, 3\): name the one with the data 'x'",
        ),
        ({"x_train": VALUES, "x_test": VALUES[:, :2]}, "and test data of shape"),
        ({"x_train": VALUES, "x_test": VALUES.astype(np.uint8)}, "and test data of type uint8"),
        ({"x": VALUES, "y": VALUES}, r"labels have the shape \[N\], one for each datum"),
    ],
)
def test_archives_that_are_not_clear(
    arrays: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.npz")


SAME: dict[str, Callable[[], Any]] = {
    "frame": _labelled,
    "frame and series": lambda: (_named(), pd.Series(LABELS, index=LABELS + 7)),
    "table of pyarrow": lambda: pa.Table.from_pandas(_labelled()),
    "nullable": lambda: _labelled().convert_dtypes(),
    "sparse": lambda: (scipy.sparse.csr_matrix(VALUES), LABELS),
    "sparse tensor": lambda: (torch.tensor(VALUES).to_sparse(), LABELS),
    "dataset": lambda: TensorDataset(torch.tensor(VALUES), torch.tensor(LABELS)),
    "list of tensors": lambda: (list(torch.tensor(VALUES, requires_grad=True)), LABELS[:, None]),
}


@pytest.mark.parametrize("form", list(SAME))
def test_the_same_values_in_another_form(form: str) -> None:
    source = read(SAME[form]())
    np.testing.assert_array_equal(source.values, VALUES, strict=True)
    np.testing.assert_array_equal(source.labels, LABELS)


def test_types_of_columns() -> None:
    """Bytes stay bytes, booleans are numbers, a missing value is refused with its place."""
    table = pd.DataFrame(
        {"a": pd.array([1, 255], "UInt8"), "b": np.array([0, 1], np.uint8), "c": [True, False]}
    )
    assert read(table).values.dtype == np.uint8
    assert (
        Dataset.from_array(table).x.tolist()
        == torch.tensor([[1, 0, 1], [255, 1, 0]]).div(255).tolist()
    )
    with pytest.raises(DataError, match=r"array holds nan at row 1, column 0 \('a'\)"):
        Dataset.from_array(pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": [0.5, 1]}))


def test_halves_of_a_tensor() -> None:
    assert read(torch.tensor([[0.5, 1.0]], dtype=torch.bfloat16)).values.tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            pd.DataFrame({"a": [1j, 2], "b": [0.5, 1]}),
            "column 'a' of the DataFrame is not numeric: it holds complex128",
        ),
        (
            pd.DataFrame({"a": pd.date_range("2020", periods=2)}),
            "column 'a' of the DataFrame is not numeric",
        ),
        (np.array(3.0), r"its shape is \(\)"),
        (TensorDataset(*[torch.tensor(VALUES)] * 3), "a tuple of 3 is not data"),
        ((VALUES, VALUES), r"labels have the shape \[N\], one for each datum, not"),
        ((VALUES, 3), r"labels have the shape \[N\]"),
        ((_labelled(), LABELS), "labels are given twice"),
    ],
)
def test_what_is_no_array_of_numbers(values: Any, words: str) -> None:
    for how in (Dataset.from_array, load):
        with pytest.raises(DataError, match=words):
            how(values)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file '.*absent\.npy'"):
        read(tmp_path / "absent.npy")


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_text("1,2")
    with pytest.raises(
        DataError,
        match=r"has an unknown suffix: \.npy, \.npz, \.csv, .* are read, and folders of images",
    ):
        read(tmp_path / "a.doc")


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="unknown dataset 'mnits': did you mean 'mnist'"):
        read("mnits")


def test_arrays_tensors_and_pairs() -> None:
    np.testing.assert_array_equal(read(VALUES).values, VALUES, strict=True)
    np.testing.assert_array_equal(
        read(torch.tensor(VALUES, requires_grad=True)).values, VALUES, strict=True
    )
    pair = read((VALUES.tolist(), torch.tensor(LABELS)))
    np.testing.assert_array_equal(pair.values, VALUES)
    np.testing.assert_array_equal(pair.labels, LABELS)


def test_ragged_lists() -> None:
    with pytest.raises(DataError, match="row 1 of the list has 1 values, and row 0 has 2"):
        read([[1, 2], [3]])


def test_a_dataset_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_choices", dict(DATASETS._choices))
    DATASETS.register("own")(lambda root: Source("own", np.array([[len(str(root))]])))
    assert read("own", "four").values.tolist() == [[4]]
