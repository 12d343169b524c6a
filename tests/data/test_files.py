"""Files of each kind give back what was written, and what is wrong with them is one sentence."""

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
import torch

from pyroae.data.sources import read
from pyroae.errors import DataError

VALUES = np.random.default_rng(0).normal(size=(20, 3)).round(4)
VALUES[0] = [0.5, -1.25, 3.0]
LABELS = np.arange(20) % 4
ROWS = "\n".join(",".join(map(str, row)) for row in VALUES.tolist()) + "\n"
FRAME = pd.DataFrame(VALUES, columns=["a", "b", "c"])


def _h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["group/x"], file["y"], file["texts"] = VALUES, LABELS, [str(n) for n in LABELS]


def _structured(path: Path) -> None:
    np.save(path, FRAME.assign(y=LABELS).to_records(index=False))


def _csv(sep: str = ",", **options: Any) -> Callable[[Path], Any]:
    return lambda path: FRAME.assign(y=LABELS).to_csv(path, index=False, sep=sep, **options)


def _text(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text)


FILES: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    "structured.npy": (_structured, {}),
    "matrix.mat": (lambda path: scipy.io.savemat(path, {"X": VALUES, "y": LABELS[:, None]}), {}),
    "one.h5": (_h5, {"array": "group/x"}),
    "only.hdf5": (_h5, {"labels": "y"}),
    "dict.pt": (
        lambda path: torch.save({"x": torch.tensor(VALUES), "y": torch.tensor(LABELS)}, path),
        {},
    ),
    "pair.pth": (lambda path: torch.save((torch.tensor(VALUES), torch.tensor(LABELS)), path), {}),
    "chosen.npz": (lambda path: np.savez(path, u=VALUES, v=VALUES + 1, y=LABELS), {"array": "u"}),
    "test.npz": (
        lambda path: np.savez(path, x=VALUES + 1, x_test=VALUES, y_test=LABELS),
        {"array": "x_test"},
    ),
    "positions.npz": (lambda path: np.savez(path, VALUES, LABELS), {"labels": "arr_1"}),
    "table.feather": (lambda path: FRAME.assign(y=LABELS).to_feather(path), {}),
    "table.arrow": (lambda path: FRAME.assign(y=LABELS).to_feather(path), {"labels": "y"}),
    "tabs.tsv": (_csv("\t"), {}),
    "tabs.txt": (_csv("\t"), {}),
    "spaces.txt": (_csv(" "), {}),
    "semicolons.csv": (_csv(";"), {}),
    "zipped.csv.gz": (_csv(), {}),
    "bom.csv": (_csv(encoding="utf-8-sig"), {"labels": "y"}),
    "quoted.csv": (_csv(quoting=1), {}),
    "numbered.csv": (lambda path: FRAME.assign(y=LABELS).to_csv(path), {}),
    "other-label.parquet": (
        lambda path: FRAME.assign(kind=LABELS).to_parquet(path),
        {"labels": "kind"},
    ),
    "case.csv": (
        lambda path: FRAME.assign(Kind=LABELS).to_csv(path, index=False),
        {"labels": "kind"},
    ),
}


@pytest.mark.parametrize("file", list(FILES))
def test_values_and_labels(file: str, tmp_path: Path) -> None:
    write, names = FILES[file]
    write(tmp_path / file)
    source = read(tmp_path / file, **names)  # type: ignore[arg-type]
    np.testing.assert_array_equal(source.values, VALUES)
    np.testing.assert_array_equal(source.labels, LABELS)
    assert source.name == file.partition(".")[0]


WITHOUT_LABELS: dict[str, Callable[[Path], Any]] = {
    "sparse.npz": lambda path: scipy.sparse.save_npz(path, scipy.sparse.csr_array(VALUES)),
    "tensor.pt": lambda path: torch.save(torch.tensor(VALUES), path),
    "matrix.mat": lambda path: scipy.io.savemat(path, {"anything": VALUES}),
    "saved.txt": lambda path: np.savetxt(path, VALUES, header="a b c"),
    "plain.csv": _text(ROWS),
    "blank.csv": _text(f"\n{ROWS}\n\n"),
    "zipped.tsv.gz": lambda path: path.write_bytes(gzip.compress(ROWS.replace(",", "\t").encode())),
}


@pytest.mark.parametrize("file", list(WITHOUT_LABELS))
def test_values_without_labels(file: str, tmp_path: Path) -> None:
    WITHOUT_LABELS[file](tmp_path / file)
    source = read(tmp_path / file)
    np.testing.assert_array_equal(source.values, VALUES)
    assert source.labels is None


def test_a_column_named_as_labels_is_a_feature_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,5\n")
    assert read(tmp_path / "a.csv", labels="none").columns == ("x", "y")
    source = read(tmp_path / "a.csv", labels="y")
    assert (source.columns, source.values.tolist()) == (("x",), [[1], [3]])


@pytest.mark.parametrize("name", ["row", "id"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_counts_the_rows_is_no_feature(name: str, first: int, tmp_path: Path) -> None:
    FRAME.set_index(np.arange(first, first + 20)).to_csv(tmp_path / "a.csv", index_label=name)
    with pytest.warns(UserWarning, match=rf"column '{name}' of .* counts the rows from {first}"):
        source = read(tmp_path / "a.csv")
    np.testing.assert_array_equal(source.values, VALUES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is asked for as labels is not left out
        assert read(tmp_path / "a.csv", labels=name).labels is not None


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, str], str]] = {
    "several.npz": (
        lambda path: np.savez(path, u=VALUES, v=VALUES[:, :2]),
        {},
        r"several tables, 'u' \(20, 3\), 'v' \(20, 2\): .* or choose it by array",
    ),
    "array.npz": (
        lambda path: np.savez(path, values=VALUES, other=LABELS),
        {"array": "value"},
        "unknown array of '.*npz' 'value': did you mean 'values'",
    ),
    "label.csv": (
        _csv(),
        {"labels": "bb"},
        "unknown column of '.*label.csv' 'bb': did you mean 'b'.* Known: b, ",
    ),
    "label.npy": (lambda path: np.save(path, VALUES), {"labels": "y"}, "has no labels 'y'"),
    "array.csv": (_csv(), {"array": "x"}, "holds no arrays with names, so none is 'x'"),
    "text.csv": (
        _text("a,b\n1,2\n3,cat\n"),
        {},
        r"column 'b' of '.*' is not numeric: it holds 'cat' at row 1; leave",
    ),
    "comma.csv": (
        _text("a;b\n1,5;2\n3,25;4\n"),
        {},
        r"column 'a' of '.*' has commas in place of decimal points, as in '1,5' at row 0",
    ),
    "long.csv": (_text("a,b\n1,2\n\n3,4,5\n"), {}, "line 4 has 3 values, and the first 2"),
    "short.csv": (_text("a,b\n1,2\n3\n4,5\n"), {}, "line 3 has 1 values, and the first 2"),
    "twice.csv": (_text("a,b,a\n1,2,3\n"), {}, "has 2 columns named 'a': rename them"),
    "names.csv": (_text("a,b\n"), {}, "it has names of columns, and no row"),
    "empty.csv": (_text("\n"), {}, "it has no row"),
    "empty.mat": (lambda path: path.write_bytes(b""), {}, "cannot read"),
    "half.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), {}, "cannot read"),
    "objects.pt": (
        lambda path: torch.save({"x": Path("a")}, path),
        {},
        "holds objects other than tensors, which run code when they are read",
    ),
    "number.pt": (lambda path: torch.save(3, path), {}, "holds a int: save a tensor"),
    "broken.arrow": (lambda path: path.write_bytes(b"ARROW1"), {}, "cannot read"),
    "latin.csv": (lambda path: path.write_bytes("a,b\n1,é\n".encode("latin-1")), {}, "utf-8"),
}


@pytest.mark.parametrize("file", list(REFUSED))
def test_what_is_refused(file: str, tmp_path: Path) -> None:
    write, names, words = REFUSED[file]
    write(tmp_path / file)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path / file, **names)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
