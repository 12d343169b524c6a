"""Data larger than memory: the same values, each served once an epoch in an order that is fixed, in
bounded memory.
"""

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pyroae import cli, zoo
from pyroae.config import TrainConfig
from pyroae.data.batching import rows_of_batch, served
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits, load
from pyroae.data.shuffling import Windows
from pyroae.errors import DataError
from pyroae.likelihoods import Bernoulli
from pyroae.runtime.processes import Share
from pyroae.training.fitting import fit
from tests.pictures import leave_out_pictures

ROWS, WIDTH = 1003, 6


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that the files here are large: 40 slices, windows of a hundred rows or so."""
    for home, name, value in (
        ("scan", "IN_MEMORY", 4000),
        ("streaming", "IN_MEMORY", 10**6),
        ("scan", "HELD_OUT", 4 * WIDTH * 30),
        ("scan", "HEAD", 4 * WIDTH * 20),
        ("shuffling", "WINDOW", 1500),
        ("storage", "SLICE", 150),
        ("parquet", "TABLE_SLICE", 700),
        ("parquet", "UNPACKED_AT_ONCE", 300),
    ):
        monkeypatch.setattr(f"pyroae.data.{home}.{name}", value)


def values(kind: str = "uint8") -> np.ndarray:
    """Rows that differ: the first two values number them."""
    generator = np.random.default_rng(0)
    if kind == "uint8":
        found = generator.integers(0, 256, (ROWS, WIDTH)).astype(np.uint8)
        found[:, 0], found[:, 1] = np.arange(ROWS) % 256, np.arange(ROWS) // 256
        return found
    found = generator.random((ROWS, WIDTH)).astype(kind)
    found[:, 0] = np.arange(ROWS) / ROWS
    return found


def written(folder: Path, kind: str, of: np.ndarray) -> Path:
    path = folder / f"x.{'npy' if kind == 'fortran' else kind}"
    if kind == "npy":
        np.save(path, of)
    elif kind == "fortran":
        np.save(path, np.asfortranarray(of))
    else:
        frame = pd.DataFrame({f"c{i}": of[:, i] for i in range(3)}).assign(label=np.arange(len(of)))
        frame = frame.assign(**{f"c{i}": of[:, i] for i in range(3, WIDTH)})
        pq.write_table(
            pa.Table.from_pandas(frame), path, row_group_size=300
        )  # of 300, 300, 300 and 103 rows
    return path


@pytest.fixture(params=["npy", "fortran", "parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path, request.param, values())


def in_memory(path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Splits:
    with monkeypatch.context() as patch:
        patch.setattr("pyroae.data.scan.IN_MEMORY", 10**9)
        return load(path, **settings)


def epoch(data: Dataset, size: int = 70, **settings: Any) -> list[torch.Tensor]:
    return [x for (x,) in served(data, size, **{"seed": 0, "epoch": 1, **settings})]


def test_values_and_fingerprint_are_those_of_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, found = in_memory(path, monkeypatch, valid=0, test=0), load(path)
    assert found.train.stream is not None
    assert whole.train.stream is None
    assert found.fingerprint == whole.fingerprint
    parts = [
        torch.cat(epoch(found.train)),
        *(part.x for part in (found.valid, found.test) if part is not None),
    ]
    assert [len(part) for part in parts] == [ROWS - 60, 30, 30]
    everything = torch.cat(parts)
    assert torch.equal(*(x[np.lexsort(x.numpy().T)] for x in (everything, whole.train.x)))
    torch.testing.assert_close(found.train.mean, whole.train.mean)
    assert (len(found.train), found.train.shape) == (ROWS - 60, (WIDTH,))
    assert torch.equal(
        found.train.first(50).x, torch.stack([x for x in whole.train.x if not held(x, found)])[:50]
    )


def held(x: torch.Tensor, splits: Splits) -> bool:
    return any(
        bool((part.x == x).all(1).any()) for part in (splits.valid, splits.test) if part is not None
    )


def test_an_epoch_is_a_function_of_seed_and_epoch(path: Path) -> None:
    data = load(path).train
    one, two, other = epoch(data), epoch(data), epoch(data, epoch=2)
    assert [len(x) for x in one] == [70] * 13 + [33]
    assert all(map(torch.equal, one, two))
    assert not torch.equal(torch.cat(one), torch.cat(other))
    assert not torch.equal(torch.cat(one), torch.cat(epoch(data, seed=1)))
    assert torch.equal(*(x[np.lexsort(x.numpy().T)] for x in (torch.cat(one), torch.cat(other))))
    place = torch.cat(one)[:, 1] * 255 * 256 + torch.cat(one)[:, 0] * 255
    far = (place[1:] - place[:-1]).abs()
    assert far.median() > 100  # neighbours of an epoch are no neighbours in the file


def test_it_begins_anywhere(path: Path) -> None:
    data = load(path).train
    whole = epoch(data)
    for start in (1, 6, 13):
        assert all(map(torch.equal, epoch(data, start=start), whole[start:]))
    assert epoch(data, start=14) == []


@pytest.mark.parametrize("world", [2, 3])
def test_shares_are_parts_of_the_same_batches(path: Path, world: int) -> None:
    data = load(path, binarize="dynamic").train
    parts = [epoch(data, share=Share(rank, world)) for rank in range(world)]
    for whole, *own in zip(epoch(data), *parts, strict=True):
        assert torch.equal(torch.cat(own), whole)


def test_the_rows_of_a_batch(path: Path) -> None:
    data = load(path).train
    raw = values()
    for number in (0, 5, 13):
        rows = rows_of_batch(data, 70, 0, 1, number)
        torch.testing.assert_close(
            torch.from_numpy(raw[rows] / np.float32(255)), epoch(data)[number]
        )
    assert rows_of_batch(data, 70, 0, 1, 14) == []


def test_black_and_white(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black = [torch.cat(epoch(load(path, binarize="static").train, epoch=e)) for e in (1, 2)]
    assert black[0].unique().tolist() == [0, 1]
    assert torch.equal(*(x[np.lexsort(x.numpy().T)] for x in black))  # one draw, whatever the epoch
    drawn = load(path, binarize="dynamic").train
    one, two = (torch.cat(epoch(drawn, epoch=e)) for e in (1, 2))
    assert one.unique().tolist() == [0, 1]
    assert abs(one.mean() - load(path).train.mean.mean()) < 0.03
    assert not torch.equal(*(x[np.lexsort(x.numpy().T)] for x in (one, two)))
    found = torch.cat(epoch(load(path, binarize="threshold").train))
    whole = in_memory(path, monkeypatch, binarize="threshold", valid=0, test=0).train.x
    assert abs(found.mean() - whole.mean()) < 0.02


def test_floating_point_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("npy", "parquet"):
        path = written(tmp_path, kind, values("float64"))
        whole, found = (
            in_memory(path, monkeypatch, valid=0, test=0, value_range=(0, 2)),
            load(path, value_range=(0, 2)),
        )
        assert found.fingerprint == whole.fingerprint
        assert float(torch.cat(epoch(found.train)).max()) == pytest.approx(
            float(whole.train.x.max()), rel=1e-2
        )


def test_labels_of_held_out_data(tmp_path: Path) -> None:
    path = written(tmp_path, "parquet", values())
    test = load(path).test
    assert test is not None
    assert test.labels is not None
    torch.testing.assert_close(test.x, torch.from_numpy(values()[test.labels] / np.float32(255)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.__setitem__((700, 3), np.nan), "holds nan at row 700, column 3"),
        (
            lambda x: x.__setitem__((slice(None), slice(None)), 0.5),
            "is constant: every value is 0.5",
        ),
        (lambda x: x.__setitem__((5, 0), -3.0), r"values from -3 to"),
    ],
)
def test_values_that_are_refused(tmp_path: Path, change: Callable[[Any], None], said: str) -> None:
    bad = values("float32")
    change(bad)
    for kind in ("npy", "parquet"):
        with pytest.raises(DataError, match=said):
            load(written(tmp_path, kind, bad), binarize="dynamic")


def test_a_file_that_is_cut_or_replaced_in_the_middle(path: Path) -> None:
    before = threading.active_count()
    data = load(path).train
    batches = served(data, 70, seed=0, epoch=1)
    next(batches)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(
        DataError, match=r"x\.(npy|parquet)' (has changed since|ended before)|cannot read rows"
    ):
        list(batches)
    path.unlink()
    with pytest.raises(DataError, match=r"is missing|cannot read"):
        epoch(data)
    assert threading.active_count() == before


def test_nothing_stays_open_when_an_epoch_is_dropped(path: Path) -> None:
    data, before = load(path).train, threading.active_count()
    batches = served(data, 70, seed=0, epoch=1)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert not [
        name
        for name in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{name}") == str(path)
    ]


def test_two_windows_are_held_at_most(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    held, whole = [0], Windows.load

    def load_counted(*args: Any) -> np.ndarray:
        held.append(1 + sum(window() is not None for window in made))
        window = whole(*args)
        made.append(weakref.ref(window))
        return window

    monkeypatch.setattr(Windows, "load", load_counted)
    data = load(path).train
    for (x,) in served(data, 70, seed=0, epoch=1):
        assert len(x)
        time.sleep(0.002)  # the thread is as far ahead as it may be
    assert max(held) == 2
    assert len(made) > 3


def test_a_grey_value_in_a_file_of_black_and_white(tmp_path: Path) -> None:
    """Found though it was the largest when it was read."""
    x = np.zeros((ROWS, WIDTH), np.float32)
    x[0, 0], x[-1, 0] = 0.25, 1
    np.save(tmp_path / "x.npy", x)
    data = load(tmp_path / "x.npy", valid=0, test=0).train
    with pytest.raises(DataError, match="holds grey values"):
        Bernoulli().check(data.x[20:], "x")
    with pytest.raises(DataError, match="holds grey values"):
        fit(zoo.vae(data, latent=2), data, config=TrainConfig(epochs=1), progress=False)


def test_the_name_of_a_dataset_is_never_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load("digits").train) == 1455


def test_labels_of_the_first_data(tmp_path: Path) -> None:
    found = load(written(tmp_path, "parquet", values())).train.first(400)
    assert found.labels is not None
    torch.testing.assert_close(found.x, torch.from_numpy(values()[found.labels] / np.float32(255)))


def test_what_takes_all_data_at_once_is_refused(path: Path) -> None:
    data = load(path).train
    for ask in (lambda: data.subset(np.arange(3)), lambda: load(data)):
        with pytest.raises(
            DataError, match=r"the 943 data of x are larger than memory: .*first\(count\)"
        ):
            ask()
    few = data.first(100)
    with pytest.raises(
        DataError,
        match=r"validation data are in memory, and x is larger: give some of it, by first",
    ):
        fit(zoo.ppca(few, latent=2), few, valid=data, config=TrainConfig(epochs=1), progress=False)


def test_a_static_draw_does_not_depend_on_how_much_is_drawn_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(path, binarize="static").train
    whole = data.first(len(data)).x
    monkeypatch.setattr("pyroae.data.streaming.AT_ONCE", 20)
    assert torch.equal(data.first(len(data)).x, whole)


def test_no_room_for_a_scratch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        DataError,
        match="to be read in slices: No space left on device; set TMPDIR to another folder",
    ):
        load(written(tmp_path, "parquet", values()))


def test_a_table_with_a_hole(tmp_path: Path) -> None:
    frame = pd.DataFrame(values("float64"), columns=[f"c{i}" for i in range(WIDTH)])
    frame.loc[801, "c2"] = None
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=300)
    with pytest.raises(DataError, match="at row 801, column 2: every value must be finite"):
        load(tmp_path / "x.parquet")


# Images.


@pytest.fixture(params=["grey", "colour in classes"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(
            0, 256, (5, 4) if request.param == "grey" else (5, 4, 3)
        ).astype(np.uint8)
        folder = (
            tmp_path / "images"
            if request.param == "grey"
            else tmp_path / "images" / ("cat", "dog")[number % 2]
        )
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return tmp_path / "images"


def test_folders_of_images(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, found = in_memory(images, monkeypatch), load(images)
    shape = (5, 4) if whole.train.labels is None else (5, 4, 3)
    assert (whole.train.shape, found.train.shape) == (shape, shape)
    assert found.fingerprint == whole.fingerprint or whole.train.stream is not None
    if found.train.stream is not None:
        assert len(torch.cat(epoch(found.train, 7))) == len(found.train)
    if whole.train.labels is not None:
        assert set(whole.train.labels) == {"cat", "dog"}
    Image.new("L", (9, 9)).save(next(images.rglob("*.png")).with_name("zzz.png"))
    with pytest.raises(DataError, match=r"zzz\.png' is 9×9 in grey, .* is 4×5 in"):
        load(images)


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        load(tmp_path)


# Trainings.


@pytest.mark.parametrize(
    "path",
    ["npy", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fortran", "parquet"))],
    indirect=True,
)
def test_a_training(path: Path) -> None:
    data = load(path, binarize="dynamic")
    system = zoo.vae(data.train, latent=2)
    result = fit(system, data, config=TrainConfig(epochs=8, batch_size=50, lr=1e-2), progress=False)
    assert result.history[-1].valid_nelbo < result.history[0].valid_nelbo


@pytest.mark.parametrize(
    "path",
    ["parquet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("npy", "fortran"))],
    indirect=True,
)
def test_the_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    leave_out_pictures(monkeypatch)
    small = [
        "--data",
        str(path),
        "--latent",
        "2",
        "--hidden",
        "8",
        "--epochs",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert cli.main(["train", *small]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--num-particles", "30"]) == 0
    assert cli.main(["encode", str(tmp_path / "run"), "--split", "train", "--num-data", "20"]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--epochs", "3"]) == 0
    capsys.readouterr()


# Memory.

CHILD = """
import json, sys, threading, time
import torch
torch.set_num_threads(1)
from pyroae import TrainConfig, fit, load, zoo

def anonymous():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

peak, over = [0.0], threading.Event()
def watch():
    while not over.wait(0.01):
        peak[0] = max(peak[0], anonymous())
threading.Thread(target=watch, daemon=True).start()
data = load(sys.argv[1], binarize="none")
from pyroae.config import RunConfig
system = zoo.from_config(RunConfig(latent=5, hidden=(50,), likelihood="normal"), data.train)
config = TrainConfig(epochs=1, batch_size=500, max_steps=int(sys.argv[2]), compile=False)
fit(system, data, config=config, progress=False)
over.set()
streamed = data.train.stream is not None
print(json.dumps({"peak": peak[0], "streamed": streamed, "data": len(data.train)}))
"""


def peak_of(path: Path, steps: int) -> dict[str, Any]:
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(steps)],
        capture_output=True,
        text=True,
        env=quiet,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    told: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return told


def make(path: Path, megabytes: int) -> Path:
    """Bytes that are not all the same, in the shape of images of 28 × 28."""
    rows, block = (
        megabytes * 2**20 // 784,
        np.random.default_rng(0).integers(0, 255, (10_000, 784)).astype(np.uint8),
    )
    if path.suffix == ".npy":
        found = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, 784))
        for first in range(0, rows, len(block)):
            found[first : first + len(block)] = block[: rows - first]
        del found
        return path
    names = [f"p{i}" for i in range(784)]
    table = pa.concat_tables(
        [pa.table([pa.array(block[:, i]) for i in range(784)], names=names)] * 5
    )
    with pq.ParquetWriter(path, table.schema) as writer:
        for first in range(0, rows, len(table)):
            group = table.slice(0, min(len(table), rows - first))
            writer.write_table(group, row_group_size=len(group))
    return path


@pytest.mark.parametrize(
    ("kind", "megabytes"),
    [pytest.param(kind, 5000, marks=pytest.mark.slow) for kind in ("npy", "parquet")],
)
def test_anonymous_memory(tmp_path: Path, kind: str, megabytes: int, capsys: Any) -> None:
    """At most 300 MB more than for 50 MB."""
    small, large = (
        peak_of(make(tmp_path / f"{name}.{kind}", size), 120)
        for name, size in (("s", 50), ("l", megabytes))
    )
    (tmp_path / f"l.{kind}").unlink()
    with capsys.disabled():
        print(
            f"\n{kind}, {megabytes} MB: {large['peak']:.0f} MiB of anonymous memory; "
            f"50 MB: {small['peak']:.0f} MiB"
        )
    assert large["streamed"]
    assert not small["streamed"]
    assert large["peak"] - small["peak"] < 300
